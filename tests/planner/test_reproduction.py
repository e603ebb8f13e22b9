"""The page on the MP-SL paper: its numbers are those of a fresh computation, and its verdicts follow from them."""

from __future__ import annotations

import re
import string
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))

import reproduce  # noqa: E402
from mpsl import page, plots, solver_time  # noqa: E402
from mpsl.page import Check, Group, Panel, Plot, Section, Series  # noqa: E402
from mpsl.published import Published  # noqa: E402

COMMITTED = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LONG = {"figure_13a"}  # 18 epochs of 300 owners; figure 13b is made of the same parts
FIGURES = {make.__name__: make for make in reproduce.FIGURES}
PLOT = Plot(
    "some", "two lines & a mark",
    (Panel("left", "x", "y", (Series("ours", (1, 2), (3.0, 4.0)), Series("paper", (1, 2), (3.5, 4.5), paper=True))),
     Panel("right", "mix", "y", (Series("named", ("a", "b"), (1.0, 10.0)),), log=True)),
)  # fmt: skip


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Published:
    found = Published(shared_data)
    if not found.folder.is_dir():
        pytest.skip(f"the authors' numbers are not at {found.folder}")
    return found


def untimed(text: str) -> str:
    """Without what differs from run to run."""
    begin, end = map(re.escape, page.TIMED)
    return re.sub(f"{begin}.*?{end}", "", text, flags=re.S)


def committed(title: str) -> str:
    """One section of the committed page, with its heading."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", COMMITTED, re.M | re.S)
    assert found is not None, title
    return found[0]


def assert_same(found: str, expected: str) -> None:
    """The same words, and the same numbers but for the last digit, which may be rounded otherwise elsewhere."""
    found, expected = untimed(found).split("\n"), untimed(expected).split("\n")
    assert [NUMBER.sub("#", line) for line in found] == [NUMBER.sub("#", line) for line in expected]
    for here, there in zip(found, expected, strict=True):
        for a, b in zip(NUMBER.findall(here), NUMBER.findall(there), strict=True):
            last_digit = 10 ** -len(b.partition(".")[2]) if "." in b else 0
            assert abs(float(a) - float(b)) <= 1.01 * last_digit, (here, there)


class TestCommittedPage:
    @pytest.mark.parametrize("name", sorted(set(FIGURES) - LONG))
    def test_a_fresh_computation_gives_the_same(self, published: Published, name: str) -> None:
        section = FIGURES[name](published)
        assert_same(page.section_text(section).strip(), committed(section.title).strip())
        lines = page.summary([section]).splitlines()[2:]
        there = [line for line in committed("Summary").splitlines() if line.startswith(lines[0].split(" | ")[0])]
        assert_same("\n".join(lines), "\n".join(there))
        if section.plot is not None:
            assert (ROOT / "docs" / "reproduction" / f"{section.plot.name}.svg").is_file()

    def test_the_counts_on_top_are_those_of_the_table(self) -> None:
        text = committed("Summary")
        passed, differ = text.count("| pass |"), text.count("| **differs** |")
        assert f"{passed} of {passed + differ} comparisons pass, {differ} differ." in text

    def test_pictures_are_few_small_and_all_shown(self) -> None:
        files = sorted((ROOT / "docs" / "reproduction").iterdir())
        assert [file.name for file in files] == sorted(re.findall(r"\]\(reproduction/(\S+)\)", COMMITTED))
        assert sum(file.stat().st_size for file in files) < 600_000


class TestRenderer:
    def test_every_section_has_a_text_and_the_other_way_round(self) -> None:
        assert list(page.pieces()) == list(FIGURES)
        text = page.TEMPLATE.read_text(encoding="utf-8")
        used = {re.split(r"[\[.]", field)[0] for _, field, _, _ in string.Formatter().parse(text) if field}
        assert used == {*FIGURES, "summary", "passed", "compared", "differ"}

    def test_values_pictures_and_verdicts_are_filled_in(self) -> None:
        groups = (
            Group("close", (Check(100, 101), Check(100, 98)), 0.02),
            Group("far", (Check(10, 12), Check(10, 10)), 0.1, remark="why"),
            Group("alone", remark="no numbers"),
        )
        section = Section("one", "Figure 1: a thing", groups, {"x": 2.345}, PLOT)
        counts = "# Page\n\n{passed} of {compared}, {differ}\n\n{summary}\n\n"
        text = counts + "{one[title]}\n\n{one[plot]}\n\n\n\n{one[x]:.1f} m\n"
        expected = """\
# Page

1 of 2, 1

|  | compared | tolerance | within it | largest difference | verdict | remark |
|---|---|---|---|---|---|---|
| [Figure 1](#figure-1-a-thing) | close | 2 % | 2 of 2 | -2.0 % | pass |  |
| [Figure 1](#figure-1-a-thing) | far | 10 % | 1 of 2 | +20.0 % | **differs** | why |
| [Figure 1](#figure-1-a-thing) | alone | - | - | - | nothing to compare | no numbers |

## Figure 1: a thing

![two lines & a mark](reproduction/some.svg)

2.3 m
"""
        assert page.render([section], text) == expected

    def test_the_error_of_reading_a_figure_comes_on_top(self) -> None:
        assert Group("", (Check(10, 10.65),), 0.01, 0.5).verdict == "**differs**"
        assert Group("", (Check(10, 10.55),), 0.01, 0.5).verdict == "pass"
        assert Group("", (Check(10, 9.45),), 0.01, 0.5).worst == pytest.approx(-0.055)

    def test_a_number_that_is_missing_is_an_error(self) -> None:
        with pytest.raises(KeyError, match="absent"):
            page.render([Section("one", "One", ())], "{one[absent]}")

    def test_a_picture_is_the_same_each_time_and_its_text_is_text(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        first = plots.draw(PLOT, tmp_path).read_bytes()
        assert first == plots.draw(PLOT, tmp_path).read_bytes()
        assert all(word.encode() in first for word in ("left", "right", "ours", "paper", "named"))


class TestEquation7:
    def test_as_printed_it_allows_gaps_and_as_coded_it_does_not(self) -> None:
        for one, runs in (((0, 0, 1, 1), True), ((1, 1, 0, 2), True), ((0, 1, 0), False), ((0, 1, 2, 1), False)):
            assert solver_time.contiguous(one) is runs
            assert solver_time.coded_form(one) is runs
            assert solver_time.printed_form(one)


def test_without_the_authors_numbers_the_command_says_where_it_looked(tmp_path: Path) -> None:
    done = CliRunner().invoke(reproduce.main, ["--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert f"not at {tmp_path / 'mpsl'}; give --data or set ZMPSL_DATA" in done.output
    assert not (tmp_path / "out").exists()
