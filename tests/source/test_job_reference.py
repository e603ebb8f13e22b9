"""docs/job.md is what the schema says now, names every key, and its example is a job."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from zmpsl.data.sets import READERS
from zmpsl.job import Job, parse_job
from zmpsl.job.reference import EXAMPLE, reference

PAGE = Path(__file__).parents[2] / "docs" / "job.md"


def keys(values: dict[str, Any], section: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every key of a job with its dots, and its default; free mappings are one key."""
    for name, value in values.items():
        below = getattr(section, name)
        if isinstance(below, msgspec.Struct):
            yield from keys(value, below, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


ROW = re.compile(r"^\| `([a-z_0-9.]+)` \| (.*?) \| (.*?) \| (.+) \|$", re.M)
ROWS = {key: cells for key, *cells in ROW.findall(reference())}


def test_the_page_is_up_to_date() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == reference(), "docs/job.md is out of date: .venv/bin/python -m zmpsl.job.reference > docs/job.md"


def test_the_module_prints_it() -> None:
    command = [sys.executable, "-m", "zmpsl.job.reference"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=PAGE.parents[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, reference(), "")


@pytest.mark.parametrize(("key", "default"), list(keys(msgspec.to_builtins(Job()), Job())))
def test_every_key_is_there_with_its_default(key: str, default: object) -> None:
    values, shown, meaning = ROWS[key]
    assert yaml.safe_load(shown.split("`")[1]) == pytest.approx(default)
    assert values
    assert meaning


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.micro_batches", "`auto`, or whole number, 1 or more, at most 65,535"),
        ("optimizer.momentum", "number, 0 or more, below 1"),
        ("optimizer.lr.initial", "number, above 0"),
        ("optimizer.name", "`adam` or `sgd`"),
        ("compute_nodes", "`null`, or whole number, 1 or more, at most 255"),
        ("cuts", "`auto` or `even`, or list of: whole number, 1 or more"),
        ("codec.links", "mapping of text to text"),
        ("data.download", "`true` or `false`"),
    ],
)
def test_types_and_limits_in_words(key: str, values: str) -> None:
    assert ROWS[key][0] == values


def test_links_to_sections_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^## (.+)$", reference(), re.M)}
    wanted = set(re.findall(r"\[section\]\(#(.+?)\)", reference()))
    assert len(wanted) >= 9
    assert wanted <= headings


def test_the_example_is_a_job() -> None:
    job = parse_job(EXAMPLE, "example")
    assert EXAMPLE in PAGE.read_text(encoding="utf-8")
    assert (job.name, job.train.micro_batches) == ("digits-skewed", 2)


def test_data_sets_are_listed_with_their_arguments() -> None:
    listed = {}
    for names, args in re.findall(r"^\| (`[^|]+) \|([^|]*)\| [^|]+ \|$", reference().split("## Data sets")[1], re.M):
        listed |= {name: re.findall(r"`(.+?)`", args) for name in re.findall(r"`(.+?)`", names)}
    readers = {
        name: [each.name for each in inspect.signature(reader).parameters.values() if each.kind is each.KEYWORD_ONLY]
        for name, reader in READERS.items()
    }
    assert {name: args for name, args in listed.items() if name in READERS} == readers
