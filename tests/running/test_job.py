"""The job file: all defaults visible, mistakes named with file, line, key and nearest key, nothing but JobError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmpsl import errors
from zmpsl.errors import JobError, ZmpslError, error_for
from zmpsl.job import Data, Job, load_job, parse_job
from zmpsl.job.load import dump_job

SOME = settings(max_examples=60, deadline=None)


def refusal(text: str, *overrides: str) -> str:
    """The message with which a job text is refused."""
    with pytest.raises(JobError) as caught:
        parse_job(text, "job.yaml", overrides)
    return str(caught.value)


class TestDefaults:
    def test_the_built_in_job_is_all_defaults(self) -> None:
        assert load_job(None) == parse_job("", "empty") == parse_job("# nothing\n", "comment") == Job()

    def test_the_dump_shows_every_field_and_is_read_back(self) -> None:
        text = dump_job(Job())
        assert yaml.safe_load(text) == msgspec.to_builtins(Job())
        assert parse_job(text, "dump") == Job()

    def test_every_field_says_what_it_is(self) -> None:
        sections = msgspec.json.schema(Job)["$defs"]
        mute = [
            f"{section}.{name}"
            for section, schema in sections.items()
            for name, field in schema["properties"].items()
            if not field.get("description")
        ]
        assert len(sections) >= 10
        assert not mute

    @pytest.mark.parametrize(
        ("settings_", "nodes"),
        [
            ({}, 2),
            ({"compute_nodes": 5}, 5),
            ({"multihop_level": 5}, 3),
            ({"compute_nodes": 1, "multihop_level": 3}, 1),
        ],
    )
    def test_nodes_and_parts_follow_from_either_number(self, settings_: dict[str, int], nodes: int) -> None:
        job = parse_job(yaml.safe_dump(settings_), "job.yaml")
        assert (job.nodes, job.parts) == (nodes, nodes + 2)

    def test_a_whole_number_will_do_for_a_float(self) -> None:
        assert parse_job("data: {partition: {alpha: 1}}", "job.yaml").data.partition.alpha == 1.0

    @pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.e-4", "+1e-04", "0.0001"])
    def test_a_small_number_may_be_written_as_people_write_it(self, written: str) -> None:
        # YAML 1.1 takes 1e-4, without a dot, for a text.
        assert parse_job(f"optimizer: {{weight_decay: {written}}}", "job.yaml").optimizer.weight_decay == 1e-4


# A wrong job text, and what the message must hold (parts are divided by " ... "); lines count from 1.
WRONG = {
    "seed: 1\ntrian: {rounds: 1}": "job.yaml:2: unknown key 'trian'; did you mean 'train'?",
    "train:\n  rounds: 1\n  round: 2": "job.yaml:3: unknown key 'train.round'; did you mean 'rounds'?",
    "seed: 1\noptimizer:\n  lr:\n    gama: 0.5": "job.yaml:4: unknown key 'optimizer.lr.gama'; did you mean 'gamma'?",
    "zzqqxx: 1": "job.yaml:1: unknown key 'zzqqxx'; known keys are name, seed, model, ",
    "train:\n  rounds: abc": "job.yaml:2: train.rounds: expected `int`, got `str` (it is 'abc')",
    "owners: 1.5": "job.yaml:1: owners: expected `int`, got `float` (it is 1.5)",
    "\n\ntrain:\n  rounds: 0": "job.yaml:4: train.rounds: expected `int` >= 1 (it is 0)",
    "owners: 65536": "job.yaml:1: owners: expected `int` <= 65535 (it is 65536)",
    "optimizer: {lr: {initial: 0}}": "job.yaml:1: optimizer.lr.initial: expected `float` > 0.0 (it is 0)",
    "optimizer: {weight_decay: .nan}": "job.yaml:1: optimizer.weight_decay: ... (it is nan)",
    "optimizer:\n  name: sdg": "job.yaml:2: optimizer.name: ... 'sdg'",
    "name: a b": "job.yaml:1: name: ... (it is 'a b')",
    "train:": "job.yaml:1: train: expected `object`, got `null` (it is None)",
    "train: 5": "job.yaml:1: train: expected `object`, got `int` (it is 5)",
    "- 1": "job.yaml:1: a job is a mapping of keys to values, not a list",
    "abc": "job.yaml:1: a job is a mapping of keys to values, not a str",
    "seed: 1\nowners: [1,": "job.yaml:2: not valid YAML: ",
    "seed: 1\n\na: b: c": "job.yaml:3: not valid YAML: mapping values are not allowed here",
    "train:\n\trounds: 1": "job.yaml:2: not valid YAML: ... '\\t'",
    "seed: 1\n---\nseed: 2": "job.yaml:2: not valid YAML: ",
    "name: !!python/object/apply:os.getcwd []": "job.yaml:1: not valid YAML: ... python/object/apply",
    "name: \x00": "job.yaml: not valid YAML: ",
    "seed: 1\n1: 2": "job.yaml:2: ... key 1",
    "cuts:\n- 0\n- 2\n- 3": "job.yaml:2: cuts.0: expected `int` >= 1 (it is 0)",
    "cuts:\n- 1\n- a\n- 3": "job.yaml:3: cuts.1: expected `int`, got `str` (it is 'a')",
    "cuts: odd": "job.yaml:1: cuts: ... 'odd'",
    "cuts: [3, 2, 5]": "job.yaml ... cuts [3, 2, 5] must rise strictly",
    "cuts: [1, 2, 2]": "job.yaml ... cuts [1, 2, 2] must rise strictly",
    "cuts: [1, 2]": "job.yaml ... 2 cuts make 3 parts, but 2 compute nodes need 3 cuts",
    "compute_nodes: 1\ncuts: [1, 2, 3]": "job.yaml ... 3 cuts make 4 parts, but 1 compute nodes need 2 cuts",
    "cuts: []": "job.yaml ... 0 cuts make 1 parts",
    "cuts: [1, 2, 3]\nfirst_cut: 1": "job.yaml ... first_cut and last_cut go with cuts: auto or even ... [1, 2, 3]",
    "compute_nodes: 2\nmultihop_level: 5": "job.yaml ... compute_nodes 2 and multihop_level 5 disagree",
    "data: {partition: {kind: sizes}}": "data.partition.sizes must list one number for each of the 4 owners",
    "owners: 3\ndata: {partition: {kind: sizes, sizes: [1, 2]}}": "data.partition.sizes ... each of the 3 owners",
    "data: {partition: {sizes: [1, 2, 3, 4]}}": "data.partition.sizes ... with kind: sizes and only then",
    "data:\n  partition:\n    sizes:\n    - 1\n    - -2": "job.yaml:5: data.partition.sizes.1: ... > 0.0 (it is -2)",
    "codec: {links: {owner-node-0: lz4}}": "job.yaml ... codec.links: 'owner-node-0' is no link; write sender>receiver",
    "codec: {links: {owner>node-0>node-1: lz4}}": "'owner>node-0>node-1' is no link",
    "codec: {links: {owner>node-2: lz4}}": "'owner>node-2' is no link",
    "codec: {links: {owner-4>node-0: lz4}}": "'owner-4>node-0' is no link",
    "codec:\n  links:\n    owner>node-1: lz4\n    owner>node-0: z": "job.yaml:4: codec.links.owner>node-0: ... 'z'",
    "owners: 0\ntrain: {rounds: x}": "job.yaml:",
}


class TestWhatIsRefused:
    @pytest.mark.parametrize("text", WRONG)
    def test_the_message_names_file_line_key_and_value(self, text: str) -> None:
        message = refusal(text)
        assert [part for part in WRONG[text].split(" ... ") if part not in message] == [], message

    @pytest.mark.parametrize(
        "value",
        ["2020-13-45", "!!bool x", "!!int x", "!!int ''", "!!timestamp x", "1" * 5000, "[" * 600 + "]" * 600],
        ids=["date", "bool", "int", "empty int", "timestamp", "digits", "deep"],
    )
    def test_what_the_yaml_library_stumbles_over_is_a_mistake_in_the_job(self, value: str) -> None:
        # PyYAML raises ValueError, KeyError, IndexError, AttributeError and RecursionError for these.
        assert refusal(f"model:\n  args:\n    x: {value}").startswith("job.yaml")
        assert "--set model.args.x=" in refusal("", f"model.args.x={value}")

    @pytest.mark.parametrize(
        "key", ["optimizer.lr.initial", "optimizer.weight_decay", "network.lost_after_s", "network.join_timeout_s"]
    )
    def test_infinity_is_refused(self, key: str) -> None:
        # JSON has no infinity: the run's record would hold null and could not be read again.
        assert key in refusal("", f"{key}=.inf")

    @pytest.mark.parametrize(
        "value",
        '.inf|.nan|99999999999999999999999|2020-01-01|!!set {a}|!!binary aGk=|{1: 2}|"\\ud800"|&a [*a]'.split("|"),
        ids="inf|nan|66 bits|date|set|bytes|number as key|half a character|itself".split("|"),
    )
    @pytest.mark.parametrize("section", ["model", "data"])
    def test_free_arguments_are_only_what_record_and_wire_can_carry(self, section: str, value: str) -> None:
        # All of these change on their way through JSON or msgpack, or cannot be written at all.
        message = refusal(f"seed: 1\n{section}:\n  args:\n    x: {value}")
        assert f"{section}.args" in message or "alias" in message

    def test_plain_free_arguments_of_all_kinds_pass(self) -> None:
        job = parse_job("model: {args: {a: [1, 2.5, null, true, {b: é, c: []}], d: -9223372036854775808}}", "job.yaml")
        assert job.model.args == {"a": [1, 2.5, None, True, {"b": "é", "c": []}], "d": -(2**63)}
        assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job

    def test_text_that_cannot_be_sent_is_refused(self) -> None:
        assert "data.dir" in refusal('data: {dir: "\\ud800"}')

    @pytest.mark.parametrize("bomb", ["lists", "merges"])
    def test_a_short_text_does_not_become_a_huge_job(self, bomb: str) -> None:
        # Each level names the one above ten times; six levels are a million items, ten would fill any memory.
        lines = ["model:", "  args:", "    a0: &a0 {x: 1}"]
        for level in range(1, 7):
            ten = ",".join([f"*a{level - 1}"] * 10)
            lines.append(f"    a{level}: &a{level} " + (f"[{ten}]" if bomb == "lists" else f"{{<<: [{ten}]}}"))
        refusal("\n".join(lines))


class TestOverrides:
    def test_they_replace_what_the_file_says_and_add_what_it_does_not(self) -> None:
        job = parse_job("train: {rounds: 9}", "job.yaml", ["train.rounds=5", "cuts=[1, 2, 3]", "data.dir=a=b"])
        assert (job.train.rounds, job.cuts, job.data.dir) == (5, [1, 2, 3], "a=b")

    def test_the_last_one_wins(self) -> None:
        assert parse_job("", "job.yaml", ["seed=1", "seed=2"]).seed == 2

    def test_free_mappings_take_any_key_to_any_depth(self) -> None:
        overrides = ["model.args.y.z=[a]", "data.args.limit=3", "codec.links.owner>node-0=lz4"]
        job = parse_job("model: {args: {x: 1}}", "job.yaml", overrides)
        assert job.model.args == {"x": 1, "y": {"z": ["a"]}}
        assert job.data.args == {"limit": 3}
        assert job.codec.links == {"owner>node-0": "lz4"}

    @pytest.mark.parametrize(
        ("text", "override", "message"),
        [
            ("", "train.round=5", "--set train.round=5: unknown key 'train.round'; did you mean 'rounds'?"),
            ("", "trian.rounds=5", "--set trian.rounds=5: unknown key 'trian'; did you mean 'train'?"),
            ("", "train.rounds.x=5", "--set train.rounds.x=5: unknown key 'train.rounds.x'; it has no keys below it"),
            ("", "cuts.x=5", "--set cuts.x=5: unknown key 'cuts.x'; it has no keys below it"),
            ("", "train", "--set train: must look like train.rounds=5"),
            ("", "=3", "--set =3: must look like train.rounds=5"),
            ("", "train.=3", "--set train.=3: must look like train.rounds=5"),
            ("", "seed=[1,", "--set seed=[1,: the value is not valid YAML"),
            ("", "train.rounds=0", "--set train.rounds=0: train.rounds: expected `int` >= 1 (it is 0)"),
            ("", "train.rounds=abc", "--set train.rounds=abc: train.rounds: expected `int`, got `str` (it is 'abc')"),
            ("", "train=5", "--set train=5: train: expected `object`, got `int` (it is 5)"),
            ("", "name=", "--set name=: name: expected `str`, got `null` (it is None)"),
            ("train: 5", "train.rounds=1", "--set train.rounds=1: train is 5 in the file, which has no keys"),
            ("data: {args: {x: 1}}", "data.args.x.y=1", "--set data.args.x.y=1: x is 1 in the file, which has no keys"),
        ],
    )
    def test_mistakes_are_told_by_the_option(self, text: str, override: str, message: str) -> None:
        assert refusal(text, override).startswith(message)

    def test_a_mistake_in_the_file_is_not_blamed_on_an_option_with_a_similar_key(self) -> None:
        assert refusal("seed: 1\nnames: x", "name=y").startswith("job.yaml:2: unknown key 'names'")

    def test_a_mistake_in_one_option_is_not_blamed_on_another(self) -> None:
        assert refusal("", "train.rounds=0", "seed=3", "train.batch_size=4").startswith("--set train.rounds=0: ")

    def test_two_places_of_the_file_that_share_a_value_are_changed_apart(self) -> None:
        text = "model: {args: &shared {limit: 5}}\ndata: {args: *shared}"
        try:
            job = parse_job(text, "job.yaml", ["model.args.limit=6"])
        except JobError:
            return  # aliases may as well be refused
        assert (job.model.args, job.data.args) == ({"limit": 6}, {"limit": 5})


class TestDump:
    @pytest.mark.parametrize(
        "text", ["1e4", "1e-4", "no", "1.0", "0x1f", "~", "2020-01-01", "", "é\n #", "1_0", "12:30"]
    )
    def test_a_text_that_looks_like_something_else_stays_a_text(self, text: str) -> None:
        job = Job(data=Data(dir=text, args={text: text}))
        assert parse_job(dump_job(job), "dump") == job


class TestFiles:
    def test_a_file_is_read_as_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        path.write_text("data: {dir: Käse}\r\nseed: 4\r\n", encoding="utf-8")
        job = load_job(path, ["seed=5"])
        assert (job.data.dir, job.seed) == ("Käse", 5)

    def test_messages_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("\nseeds: 4")
        with pytest.raises(JobError) as caught:
            load_job(path)
        assert str(caught.value) == f"{path}:2: unknown key 'seeds'; did you mean 'seed'?"

    @pytest.mark.parametrize("kind", ["missing", "folder", "not utf-8"])
    def test_what_cannot_be_read_is_named(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "job.yaml"
        if kind == "folder":
            path.mkdir()
        elif kind == "not utf-8":
            path.write_bytes(b"name: \xff")
        with pytest.raises(JobError) as caught:
            load_job(path)
        assert str(caught.value).startswith(f"{path}: cannot be read: ")


class TestExitCodes:
    def test_a_wrong_job_is_a_usage_error(self) -> None:
        assert JobError.exit_code == 2

    def test_every_class_that_is_raised_has_a_code_of_its_own_and_is_found_by_it(self) -> None:
        kinds = [getattr(errors, name) for name in errors.__all__ if name not in ("ProtocolError", "error_for")]
        assert sorted(kind.exit_code for kind in kinds) == list(range(1, len(kinds) + 1))
        for kind in kinds:
            assert type(error_for(kind.exit_code, "why")) is kind
            assert str(error_for(kind.exit_code, "why")) == "why"

    @pytest.mark.parametrize("code", [0, 1, 11, 130, -9, 255])
    def test_codes_of_no_class_give_the_base(self, code: int) -> None:
        assert type(error_for(code, "why")) is ZmpslError


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
positive = st.floats(1e-12, 1e12)


@st.composite
def good_jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Trees that are valid jobs, each key present or not."""
    owners = draw(st.integers(1, 5))
    nodes = draw(st.integers(1, 4))
    ends = st.sampled_from(["owner", "aggregator", f"owner-{owners - 1}", f"node-{nodes - 1}"])
    partition = draw(
        st.fixed_dictionaries(
            {"kind": st.just("sizes"), "sizes": st.lists(positive, min_size=owners, max_size=owners)},
        )
        | st.fixed_dictionaries(
            {}, optional={"kind": st.sampled_from(["iid", "dirichlet", "shards"]), "alpha": positive}
        )
    )
    tree = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
                "seed": st.integers(0, 2**53 - 1),
                "model": st.fixed_dictionaries(
                    {},
                    optional={
                        "name": st.text(max_size=9),
                        "args": st.dictionaries(st.text(max_size=9), plain, max_size=3),
                    },
                ),
                "cuts": st.sets(st.integers(1, 99), min_size=nodes + 1, max_size=nodes + 1).map(sorted),
                "train": st.fixed_dictionaries(
                    {}, optional={"rounds": st.integers(1, 10**9), "max_batches": st.none() | st.integers(1, 9)}
                ),
                "optimizer": st.fixed_dictionaries(
                    {}, optional={"eps": positive, "momentum": st.floats(0, 0.999), "lr": st.just({"gamma": 1})}
                ),
                "codec": st.fixed_dictionaries(
                    {},
                    optional={
                        "links": st.dictionaries(st.tuples(ends, ends).map(">".join), st.sampled_from(["none", "lz4"]))
                    },
                ),
            },
        )
    )
    data = draw(st.fixed_dictionaries({}, optional={"dir": st.none() | st.text(max_size=20)}))
    return {**tree, "owners": owners, "compute_nodes": nodes, "data": {**data, "partition": partition}}


class TestProperties:
    @pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029"])
    def test_line_breaks_of_unicode_survive(self, mark: str) -> None:
        # Written as they are, they came back as spaces.
        job = parse_job(f'data: {{dir: "a\\u{ord(mark):04x}b"}}', "job.yaml")
        assert job.data.dir == f"a{mark}b"
        assert parse_job(dump_job(job), "dump") == job

    @SOME
    @given(good_jobs())
    def test_every_valid_job_survives_yaml_json_and_msgpack(self, tree: dict[str, Any]) -> None:
        job = parse_job(yaml.safe_dump(tree, allow_unicode=True, default_style='"'), "job.yaml")
        assert parse_job(dump_job(job), "dump") == job
        assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job

    @SOME
    @given(st.text(max_size=120))
    @example("? : 1")
    @example("=: 1")
    @example("'a`b': 1")
    @example("codec: {links: {'a` - at `$`': zz}}")
    @example("&a {model: *a}")
    @example("!!binary aGk=: 1")
    @example("!!omap [a: 1]")
    def test_any_text_is_a_job_or_a_job_error(self, text: str) -> None:
        self.job_or_error(text)

    @SOME
    @given(st.integers(0, 1400), st.integers(0, 30), st.text("\n\t :-#&*!?|>'\"%@`[]{},.=<01eEnai~yx_+é", max_size=12))
    def test_a_damaged_job_is_a_job_or_a_job_error(self, at: int, length: int, instead: str) -> None:
        text = dump_job(Job())
        self.job_or_error(text[:at] + instead + text[at + length :])

    @SOME
    @given(
        st.recursive(
            plain,
            lambda inner: st.dictionaries(st.sampled_from(list(Job.__struct_fields__)), inner, max_size=4),
            max_leaves=8,
        )
    )
    def test_any_tree_is_a_job_or_a_job_error(self, tree: object) -> None:
        self.job_or_error(yaml.safe_dump(tree))

    @SOME
    @given(
        st.text(max_size=30),
        st.sampled_from(["", "=1", "=[", "=x"]),
        st.sampled_from(["", "train.", "model.args.", "codec.links."]),
    )
    def test_any_override_makes_a_job_or_a_job_error(self, key: str, value: str, section: str) -> None:
        self.job_or_error("train: {rounds: 2}", section + key + value)

    @staticmethod
    def job_or_error(text: str, *overrides: str) -> None:
        try:
            job = parse_job(text, "job.yaml", overrides)
        except JobError as error:
            assert str(error)  # noqa: PT017 - that it is a JobError is the point
        else:
            assert isinstance(job, Job)
