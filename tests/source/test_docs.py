"""The documents tell the truth: links lead somewhere, commands and jobs parse, tables agree with the code."""

from __future__ import annotations

import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest
import torch
import zmq

import zmpsl
from zmpsl import errors, messages, models
from zmpsl.cli import main
from zmpsl.codecs import CODECS
from zmpsl.data import load
from zmpsl.engine.build import summarise
from zmpsl.job import parse_job
from zmpsl.plan import check_cuts
from zmpsl.transport import link, wire
from zmpsl.transport.task import DTYPES, Op

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")})
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced code blocks of a page in one of these languages."""
    for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield code


def prose(page: Path) -> str:
    """The page without its fenced code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The anchors GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def rows(text: str, heading: str, columns: int) -> list[list[str]]:
    """The cells of all tables under a heading."""
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.M)[0]
    cells = [re.split(r" *\| *", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return [row for row in cells if len(row) == columns and not set("".join(row)) <= set("-: ")][1:]


def names(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `zmpsl ...` in a fenced block, with what stands before it cut off: page and words."""
    for page in PAGES:
        for code in blocks(page, "sh", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?zmpsl( .*)?$", line)
                if found and not line.startswith("zmpsl:"):  # that is a message, not a command
                    words = shlex.split(found[1] or "", comments=True)
                    end = next((i for i, word in enumerate(words) if word in ("|", ">", "&", "&&", ";")), None)
                    yield page.name, words[:end]


class TestLinks:
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_relative_links_lead_to_a_file_and_a_heading(self, page: Path) -> None:
        broken = []
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (page.parent / path).resolve() if path else page
            if not there.exists() or (anchor and anchor not in anchors(there)):
                broken.append(target)
        assert broken == []


class TestCommands:
    def test_there_are_some(self) -> None:
        assert len(list(commands())) > 20
        assert {words[0] for _, words in commands() if words} >= set(main.commands)

    @pytest.mark.parametrize(("page", "words"), [pytest.param(*each, id=" ".join(each[1])) for each in commands()])
    def test_the_command_line_takes_them(self, page: str, words: list[str]) -> None:
        main.commands[words[0]].make_context(words[0], words[1:])

    def test_an_option_that_does_not_exist_is_found(self) -> None:
        with pytest.raises(click.NoSuchOption):
            main.commands["run"].make_context("run", ["--no-such-option"])

    def test_make_targets_exist(self) -> None:
        targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
        shells = [code for page in PAGES for code in blocks(page, "sh")]
        used = {name for code in shells for name in re.findall(r"^make (\w+)", code, re.M)}
        assert {"run", "test"} <= used <= targets


class TestCode:
    @pytest.mark.parametrize(
        ("page", "text"), [pytest.param(page.name, text) for page in PAGES for text in blocks(page, "yaml")]
    )
    def test_every_yaml_block_is_a_job(self, page: str, text: str) -> None:
        parse_job(text, page)

    @pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "tutorial.md"], ids=lambda page: page.name)
    def test_models_data_and_jobs_go_together(
        self, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for source in (page, ROOT / "docs" / "tutorial.md"):  # the README leaves the data to the tutorial
            for code in blocks(source, "python"):
                if found := re.match(r"# (\w+\.py)\n", code):
                    # A name for this test alone: a module is imported once per process.
                    own = f"{page.stem.lower()}_{found[1]}"
                    if not (tmp_path / own).exists():
                        (tmp_path / own).write_text(code, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        texts = [text for text in blocks(page, "yaml") if "mynet:" in text]
        assert texts
        for text in texts:
            job = parse_job(re.sub(r"\bmy(net|data):", rf"{page.stem.lower()}_my\1:", text), page.name)
            check_cuts(job, len(summarise(job.model)))
            split = load(job.data, job.seed)
            inputs, _ = split.train.batch(range(3))  # type: ignore[arg-type]
            outputs = torch.nn.Sequential(*models.build(job.model.name, **job.model.args))(torch.from_numpy(inputs))
            assert outputs.shape == (3, split.classes)


class TestTables:
    def test_header(self) -> None:
        table = [(int(offset), int(size)) for offset, size, _ in rows(PROTOCOL, "Header", 3)]
        ends = [offset + size for offset, size in table]
        assert [0, *ends[:-1]] == [offset for offset, _ in table]
        assert ends[-1] == wire.HEADER_BYTES
        assert f"a {wire.HEADER_BYTES}-byte header" in PROTOCOL
        written = re.findall(r"^ +(\d+) +(\d+)  \S", wire.__doc__ or "", re.M)
        assert [(int(offset), int(size)) for offset, size in written] == table

    def test_header_codes(self) -> None:
        text = " ".join(field for _, _, field in rows(PROTOCOL, "Header", 3))
        assert re.findall(r"(\d) `([A-Z]+)`", text) == [(str(op.value), op.name) for op in Op]
        assert all(f"{code} {dtype.name}" in text for code, dtype in enumerate(DTYPES, 1))
        assert all(f"{codec.number} {codec.name}" in text for codec in CODECS)
        assert f"version of this layout, {wire.VERSION}" in text
        assert f"Protocol version {messages.PROTOCOL}." in PROTOCOL

    def test_messages(self) -> None:
        listed = {name for cell, _ in rows(PROTOCOL, "Control messages", 2) for name in names(cell)}
        assert listed >= {kind.__name__ for kind in typing.get_args(messages.ToManager | messages.FromManager)}
        assert all(isinstance(getattr(messages, name), msgspec.structs.StructMeta) for name in listed)

    def test_tasks(self) -> None:
        assert [name for row in rows(PROTOCOL, "Tasks", 4) for name in names(row[0])] == [op.name for op in Op]

    def test_socket_options(self) -> None:
        class Recorder:
            def __init__(self) -> None:
                self.names: set[str] = set()

            def setsockopt(self, option: zmq.SocketOption, _value: int) -> None:
                self.names.add(option.name)

        socket = Recorder()
        link.configure(socket, 1, (1, 1), 1)  # type: ignore[arg-type]
        listed = {name for row in rows(PROTOCOL, "Socket options", 3) for name in names(row[0])}
        assert listed == socket.names | {"ROUTER_MANDATORY", "ROUTER_HANDOVER", "IDENTITY"}

    def test_exit_codes(self) -> None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        listed = {int(code) for code, _ in rows(readme, "When something goes wrong", 2)}
        kinds = [getattr(errors, name) for name in errors.__all__ if name != "error_for"]
        assert listed == {0, 130, *(kind.exit_code for kind in kinds)}

    def test_rooms(self) -> None:
        """Every room and module of the package has its row for newcomers, and no row is of one that has moved."""
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        listed = [
            name for row in rows(text, "How the code hangs together", 2) for name in re.findall(r"`([^`]+)`", row[0])
        ]
        package = [path for path in (ROOT / "zmpsl").iterdir() if not path.name.startswith(("_", "."))]
        there = [f"{path.name}/" for path in package if path.is_dir()]
        there += [path.name for path in package if path.suffix == ".py"]
        assert sorted(listed) == sorted(there)

    def test_folders_of_tests(self) -> None:
        """As for rooms; and pytest finds what tests of one folder take from another."""
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        listed = [name for row in rows(text, "Set up, test, lint", 2) for name in re.findall(r"`(\w+)/`", row[0])]
        there = [path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))]
        assert sorted(listed) == sorted(there)
        paths = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
        assert set(paths["pythonpath"]) == {"tests", "bench", *(f"tests/{name}" for name in there)}

    def test_randomness(self) -> None:
        concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
        listed = {name for row in rows(concepts, "Randomness", 3) for name in names(row[0])}
        source = (zmpsl.randomness.__doc__ or "").split("seeds\n")[1]
        assert listed == set(re.findall(r"^    (\w+)", source, re.M))


def test_the_changelog_begins_with_this_version() -> None:
    version = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert version is not None
    assert version[1] == zmpsl.__version__


def test_every_test_that_the_security_page_names_is_there():
    text = (ROOT / "docs" / "security.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(named) > 40
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in files.get(file, "")] == []
    assert {row for row in re.findall(r"^\| (S\d) \|", text, re.MULTILINE)} == {f"S{n}" for n in range(1, 9)}
