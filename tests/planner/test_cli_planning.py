"""The planning commands: profile, plan, and the what-if questions of a scenario; the documented example runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from helpers import job

from zmpsl.cli import main
from zmpsl.errors import JobError
from zmpsl.planner.advice import advise, micro_problem
from zmpsl.planner.from_job import measured_of
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.scenario import Choice, choices, load_scenario, pareto
from zmpsl.profiles import read_profile

PLANNING = Path(__file__).parents[2] / "docs" / "planning"
PROFILE = PLANNING / "digits-profile.json"


def invoke(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(one) for one in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def as_json(*arguments: str | Path) -> Any:
    return json.loads(invoke(*arguments, "--format", "json"))


class TestProfile:
    def test_a_model_of_the_zoo(self, tmp_path: Path) -> None:
        out = tmp_path / "p.json"
        text = invoke(
            "profile", "lenet5", "--set", "train.batch_size=4", "--repeats", "2", "--budget", "0.1", "--out", out
        )
        assert "lenet5: 4 samples, sgd+momentum" in text
        assert "per optimiser step" in text
        assert "a message to itself takes" in text
        assert len(read_profile(out).blocks) == 7

    def test_a_job_gives_batch_optimiser_and_the_shape_of_its_data(self, tmp_path: Path) -> None:
        path = tmp_path / "job.yaml"
        path.write_text("train: {batch_size: 12, micro_batches: 3}\noptimizer: {name: adam}\n")
        found = as_json("profile", "--job", path, "--repeats", "1", "--budget", "0")
        assert (found["model"], found["batch_size"], found["optimizer"]) == ("digits_cnn", 4, "adam")
        assert found["input_shape"] == [1, 8, 8]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["no_such"], "no model is called 'no_such'"),
            (["digits_cnn", "--shape", "1,x"], "--shape 1,x: must be whole numbers"),
            (
                ["digits_cnn", "--shape", "3,8,8"],
                "block 0 (Sequential) cannot be profiled with an input of [32, 3, 8, 8]",
            ),
            (["small_nets:tiny_mlp"], "give --shape, or --job with the data"),
            (["digits_cnn", "--set", "train.batchsize=3"], "did you mean"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, arguments: list[str], message: str) -> None:
        assert message in invoke("profile", *arguments, code=2)


class TestPlan:
    def test_the_table_tells_who_holds_what_and_how_else(self) -> None:
        text = invoke("plan", "--profile", PROFILE)
        for part in (
            "node-0", "node-1", "each owner", "solved in", "bottleneck", "eq. (5)", "even", "greedy", "horizontal",
            "multihop level 3", "SplitNN", "owners fill", "busy in an epoch", "cores", "node-0 > node-1",
            "taken for loopback",
        ):  # fmt: skip
            assert part in text, part

    def test_json_holds_the_same(self) -> None:
        found = as_json("plan", "--profile", PROFILE, "--nodes", "3", "--batches", "10")
        assert [part["where"] for part in found["parts"]] == ["each owner", "node-0", "node-1", "node-2", "each owner"]
        assert [way["name"] for way in found["alternatives"]] == [
            "even", "greedy", "multihop level 3", "multihop level 4", "horizontal", "SplitNN",
        ]  # fmt: skip
        assert found["paper"]["batches"] == 4 * 2 * 10
        assert [hop["between"] for hop in found["links"]] == [
            "owner > node-0", "node-0 > node-1", "node-1 > node-2", "node-2 > owner",
        ]  # fmt: skip
        node = found["parts"][1]
        assert node["epoch_busy_s"] == pytest.approx(found["prediction"]["busy_s"]["node-0"])
        assert node["cores"] >= 1
        paces = {way["name"]: way["pace_s"] for way in found["alternatives"]}
        assert found["prediction"]["pace_s"] <= min(paces["even"], paces["greedy"])

    def test_too_few_owners_are_warned_of_with_the_remedy(self) -> None:
        text = invoke("plan", "--profile", PROFILE, "--set", "owners=2", "--batches", "5")
        assert "warning: too few owners to fill the pipe" in text
        assert "train.micro_batches: " in text
        alone = invoke("plan", "--profile", PROFILE, "--set", "owners=1", "--batches", "5")
        assert "no number of micro-batches fills it" in alone

    def test_links_say_where_their_figures_are_from(self) -> None:
        set_ = ("--set", "planning.node_bytes_per_s=1e6", "--set", "planning.latency_s=0.5")
        first, between, last = as_json("plan", "--profile", PROFILE, "--batches", "3", *set_)["links"]
        assert (between["bytes_per_s"], between["latency_s"]) == (1e6, 0.5)
        assert between["origin"] == "planning.node_bytes_per_s"
        assert between["forward_s"] == pytest.approx(0.5 + between["forward_bytes"] / 1e6)
        assert first["origin"] == last["origin"] == "taken for loopback"

    def test_measured_here_where_no_profile_is_given(self) -> None:
        text = invoke("plan", "--batches", "3")
        assert "bottleneck" in text
        assert "to itself" in text

    def test_it_tells_how_many_owners_there_is_memory_for_and_whether_they_fill_the_chain(self) -> None:
        ask = ("plan", "--profile", PROFILE, "--batches", "24", "--set", "owners=10")
        few = ("--set", "planning.node_memory={node-0: 3000000, node-1: 9000000}")
        text = " ".join(invoke(*ask, *few, "--set", "recompute=never").split())
        assert "memory: 1 of 10 owners can train at a time: node-0 takes" in text
        assert "would fill the chain, so its slowest node will have to wait" in text
        assert "so an epoch takes" in text
        found = {each: as_json(*ask, *few, "--set", f"recompute={each}") for each in ("never", "auto", "always")}
        memory = {each: one["memory"] for each, one in found.items()}
        assert memory["never"]["in_flight"] == memory["never"]["most_in_flight"] == 1
        assert memory["never"]["recompute"] == []
        # A second owner at a time gains more than running forward again costs.
        assert (memory["auto"]["in_flight"], memory["auto"]["recompute"]) == (2, ["node-0"])
        assert memory["auto"]["epoch_s"] < 0.8 * memory["never"]["epoch_s"]
        assert memory["always"]["recompute"] == ["node-0", "node-1"]
        assert found["never"]["epoch_s"] == found["auto"]["epoch_s"] < memory["auto"]["epoch_s"]
        ample = as_json(*ask, "--set", "memory=100GiB")["memory"]
        assert ample["most_in_flight"] == 10
        assert "should fill the chain, so" in ample["words"]

    def test_without_the_model_s_code_nothing_is_said_of_memory(self) -> None:
        ask = ("plan", "--profile", PROFILE, "--batches", "5", "--set", "model.name=nowhere:blocks")
        assert "memory:" not in invoke(*ask)
        assert as_json(*ask)["memory"] is None

    def test_a_number_of_owners_that_does_not_fit_is_refused(self) -> None:
        few = ("--set", "owners_in_flight=4", "--set", "planning.node_memory={node-0: 3000000, node-1: 9000000}")
        text = invoke("plan", "--profile", PROFILE, "--batches", "5", "--set", "owners=10", *few, code=2)
        assert "bytes" in text
        assert "node" in text

    def test_what_does_not_fit_is_told_as_json_too(self) -> None:
        set_ = ("--set", "planning.node_memory={node-1: 100000}")
        done = CliRunner().invoke(main, ["plan", "--profile", str(PROFILE), *set_, "--format", "json"])
        assert done.exit_code == 2
        found = json.loads(done.stdout)
        assert found["short"][0]["node"] == "node-1"
        assert found["short"][0]["lacks_bytes"] == found["short"][0]["needs_bytes"] - 100000

    def test_what_does_not_fit_names_node_and_bytes(self) -> None:
        text = invoke("plan", "--profile", PROFILE, "--set", "planning.node_memory={node-1: 100000}", code=2)
        assert "node 'node-1'" in text
        assert "bytes short" in text

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["--profile", "{p}", "--profile", "{p}"],
                "2 profiles for the owners and 2 compute nodes: give one for all, or 3",
            ),
            (["--profile", "{p}", "--set", "train.batch_size=8"], "for 32 samples at a time, the job passes 8"),
            (["--profile", "none.json"], "none.json: cannot be read"),
            (["--profile", "{p}", "--nodes", "9"], "too few for 9 compute nodes"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, arguments: list[str], message: str) -> None:
        assert message in invoke("plan", *(one.format(p=PROFILE) for one in arguments), code=2)

    def test_owners_without_data_here_need_a_number(self) -> None:
        text = invoke("plan", "--profile", PROFILE, "--set", "data.name=mnist", "--set", "data.dir=/nowhere", code=3)
        assert "--batches" in text


class TestAdvice:
    def test_memory_that_only_one_layout_has(self) -> None:
        profile = read_profile(PROFILE)
        settings = job("planning.node_memory={node-0: 8000000, node-1: 12000000}")
        found = advise(measured_of(settings, profile, {"node-0": profile, "node-1": profile}), (24,) * 4)
        ways = {way.name: way for way in found.alternatives}
        assert ways["multihop level 3"].epoch_s is None
        assert "bytes short" in ways["multihop level 3"].text
        assert ways["horizontal"].epoch_s is None or ways["horizontal"].epoch_s > 0

    def test_no_node_sees_more_than_it_may_and_other_ways_say_so(self) -> None:
        profile = read_profile(PROFILE)
        two = {"node-0": profile, "node-1": profile}
        found = advise(measured_of(job("planning.max_blocks={node-0: 1}"), profile, two), (24,) * 4)
        (held,) = [part for part in found.parts if part.where == "node-0"]
        assert held.stop - held.first == 1
        ways = {way.name: way for way in found.alternatives}
        for name in ("even", "horizontal", "multihop level 3"):
            assert ways[name].epoch_s is None
        assert "node-0 would see 2 blocks, but may see 1" in ways["even"].text
        assert "node-0 would see 4 blocks, but may see 1" in ways["horizontal"].text

    def test_ways_by_hand_say_which_limit_they_break(self) -> None:
        profile = read_profile(PROFILE)
        two = {"node-0": profile, "node-1": profile}
        most = advise(measured_of(job("privacy.max_share=0.9"), profile, two), (24,) * 4)
        ways = {way.name: way for way in most.alternatives}
        assert re.search(r"node-\d would see .*% of the parameters, but may see 90.0%", ways["horizontal"].text)
        tight = job("planning.node_memory={node-0: 11300000, node-1: 11300000}")
        tightest = advise(measured_of(tight, profile, two), (24,) * 4)
        ways = {way.name: way for way in tightest.alternatives}
        assert "node-1 lacks" in ways["even"].text

    def test_a_node_that_only_slows_the_chain_stays_unused(self) -> None:
        profile = read_profile(PROFILE)
        settings = job("compute_nodes=3", "planning.optional_nodes=true", "emulate.slow_down={node-1: 1000}")
        found = advise(measured_of(settings, profile, {f"node-{hop}": profile for hop in range(3)}), (24,) * 4)
        assert "node-1" not in [part.where for part in found.parts]

    def test_a_slow_link_is_paid_for(self) -> None:
        profile = read_profile(PROFILE)
        plain = measured_of(job(), profile, {"node-0": profile, "node-1": profile})
        slow = msgspec.structs.replace(plain, owner_link=NodeLink(1e6, 0.01))
        assert advise(slow, (24,) * 4).epoch_s > 5 * advise(plain, (24,) * 4).epoch_s

    def test_a_micro_batch_of_the_whole_batch_is_the_batch(self) -> None:
        profile = read_profile(PROFILE)
        measured = measured_of(job(), profile, {"node-0": profile, "node-1": profile})
        whole = micro_problem(measured, 32)
        assert whole.micro_batches == 1
        half = micro_problem(measured, 16)
        assert half.micro_batches == 2
        assert half.blocks[0].forward_s == pytest.approx(whole.blocks[0].forward_s / 2)
        assert half.blocks[0].update_s == whole.blocks[0].update_s


class TestScenario:
    @pytest.mark.parametrize("command", ["estimate", "simulate"])
    def test_the_documented_example_runs(self, command: str) -> None:
        text = invoke(command, PLANNING / "scenario.yaml")
        assert "* " in text
        assert "large-1" in text
        found = as_json(command, PLANNING / "scenario.yaml")
        assert len(found["choices"]) > 5
        assert 1 <= len(found["pareto"]) <= len(found["choices"])

    def test_the_front_holds_what_nothing_else_beats(self) -> None:
        scenario, profile = load_scenario(PLANNING / "scenario.yaml")
        every = [one for one in choices(scenario, profile, "estimate") if one.epoch_s is not None]
        front = pareto(every)
        for one in every:
            beaten = [
                other for other in every
                if (other.epoch_s, other.cost) != (one.epoch_s, one.cost)
                and (other.epoch_s or 0) <= (one.epoch_s or 0) and (other.cost or 0) <= (one.cost or 0)
            ]  # fmt: skip
            assert (one in front) == (not beaten), one
        costs = [one.cost for one in front]
        assert costs == sorted(costs, reverse=True)

    def test_both_methods_agree_where_the_pipe_is_full(self) -> None:
        scenario, profile = load_scenario(PLANNING / "scenario.yaml")
        played = {one.layout: one for one in choices(scenario, profile, "simulate")}
        full = [one for one in choices(scenario, profile, "estimate") if one.full]
        assert full
        for one in full:
            assert one.epoch_s == pytest.approx(played[one.layout].epoch_s, rel=0.15)

    def test_cost_is_price_times_hours_times_epochs(self) -> None:
        scenario, profile = load_scenario(PLANNING / "scenario.yaml")
        for one in choices(scenario, profile, "estimate"):
            if one.epoch_s is not None:
                hourly = 0.046 * one.nodes.get("small", 0) + 0.18 * one.nodes.get("large", 0)
                assert one.cost == pytest.approx(50 * one.epoch_s / 3600 * hourly)

    def test_nodes_that_are_too_small_say_so(self, tmp_path: Path) -> None:
        shutil.copy(PROFILE, tmp_path)
        (tmp_path / "s.yaml").write_text(
            "profile: digits-profile.json\nowners: [{count: 2}]\nnodes: [{name: tiny, memory_bytes: 1000}]\n"
        )
        assert "not possible with 1 tiny: no split" in invoke("estimate", tmp_path / "s.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("profle: x", "s.yaml:1: unknown key 'profle'; did you mean 'profile'?"),
            ("profile: a\nowners: [{count: 0}]", "s.yaml:2: owners.0.count: expected `int` >= 1 (it is 0)"),
            (
                "profile: a\nowners:\n- {}\nnodes:\n- {name: a, pice_per_hour: 1}",
                "s.yaml:5: unknown key 'nodes.0.pice_per_hour'; did you mean 'price_per_hour'?",
            ),
            ("profile: a\nowners: [{}]\nnodes: [{name: a}, {name: a}]", "2 classes are called 'a'"),
            ("profile: none.json\nowners: [{}]\nnodes: [{name: a}]", "none.json: cannot be read"),
            ("- 1", "s.yaml:1: a scenario is a mapping of keys to values, not a list"),
            ("profile: a\nowners: []\nnodes: [{name: a}]", "owners"),
            ("profile: a\nowners: [{bytes_per_s: 0}]\nnodes: []", "owners.0.bytes_per_s: expected `float` > 0"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_names_file_line_and_key(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text(text)
        assert message in invoke("estimate", tmp_path / "s.yaml", code=2)

    def test_too_many_choices_are_refused_with_the_number(self) -> None:
        scenario, profile = load_scenario(PLANNING / "scenario.yaml")
        many = msgspec.structs.replace(
            scenario,
            hops=None,
            nodes=tuple(msgspec.structs.replace(scenario.nodes[0], name=str(n), count=9) for n in range(9)),
        )
        with pytest.raises(JobError, match=r"make .* choices, more than 2,000: list fewer hops"):
            next(choices(many, profile, "estimate"))

    def test_a_choice_that_cannot_be_is_on_no_front(self) -> None:
        assert pareto([Choice({"a": 1}, text="no")]) == []
