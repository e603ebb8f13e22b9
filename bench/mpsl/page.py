"""From results to a page: what is compared with what, whether it agrees, and the text with its numbers filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from report import table

__all__ = [
    "Check",
    "Group",
    "Panel",
    "Plot",
    "Section",
    "Series",
    "anchor",
    "fill",
    "percent",
    "pieces",
    "render",
    "section_text",
    "summary",
]

TEMPLATE = Path(__file__).with_name("page.md")
# Between these the page may differ from run to run.
TIMED = ("<!-- timings: not the same in every run -->", "<!-- end of timings -->")


@dataclass(frozen=True)
class Check:
    """One number of the paper beside ours, both in the same unit."""

    paper: float
    ours: float

    @property
    def difference(self) -> float:
        """(ours - paper) / paper."""
        return self.ours / self.paper - 1

    @classmethod
    def each(cls, paper: Iterable[float], ours: Iterable[float]) -> tuple[Check, ...]:
        """Pairs of two rows of equal length."""
        return tuple(cls(a, b) for a, b in zip(paper, ours, strict=True))


@dataclass(frozen=True)
class Group:
    """Numbers that are compared with one tolerance; one line of the summary.

    Attributes:
        name: What they are.
        checks: Empty where the paper gives nothing to compare with.
        within: Largest relative difference that passes.
        reading: Error of reading the paper's figure, in its unit, on top.
        remark: Why it differs, or what to know.
    """

    name: str
    checks: tuple[Check, ...] = ()
    within: float = 0.0
    reading: float = 0.0
    remark: str = ""

    @property
    def passed(self) -> int:
        """How many checks are within the tolerance."""
        return sum(abs(one.ours - one.paper) <= self.within * abs(one.paper) + self.reading for one in self.checks)

    @property
    def verdict(self) -> str:
        """Pass, differs, or that there is nothing to compare."""
        if not self.checks:
            return "nothing to compare"
        return "pass" if self.passed == len(self.checks) else "**differs**"

    @property
    def worst(self) -> float:
        """The largest relative difference, with its sign."""
        return max((one.difference for one in self.checks), key=abs)


@dataclass(frozen=True)
class Series:
    """A line of a plot, or marks alone for what the paper printed; marks and dashes take the colour before them."""

    label: str
    x: Sequence[float | str]
    y: Sequence[float]
    paper: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One set of axes; with `log` the value axis is logarithmic."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture: file name without folder and ending, words for who does not see it, panels side by side."""

    name: str
    alt: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Section:
    """One figure or table of the paper.

    `values` are what the text names as {figure_9[name]}; numbers may carry a format there.
    """

    name: str
    title: str
    groups: tuple[Group, ...]
    values: Mapping[str, object] = field(default_factory=dict)
    plot: Plot | None = None


def percent(value: float, digits: int = 1) -> str:
    """A relative difference with its sign."""
    return f"{100 * value:+.{digits}f} %"


def render(sections: Sequence[Section], template: str | None = None) -> str:
    """Gives the page as Markdown: the template with the sections' values, their pictures and the summary."""
    text = TEMPLATE.read_text(encoding="utf-8") if template is None else template
    fields: dict[str, object] = {one.name: _fields(one) for one in sections}
    groups = [group for one in sections for group in one.groups if group.checks]
    passed = sum(group.verdict == "pass" for group in groups)
    counts = {"passed": passed, "compared": len(groups), "differ": len(groups) - passed}
    return fill(text, {**fields, **counts, "summary": summary(sections)})


def pieces(template: str | None = None) -> dict[str, str]:
    """Gives the part of the template under each section's title, by name of the section."""
    text = TEMPLATE.read_text(encoding="utf-8") if template is None else template
    _, *found = re.split(r"^\{(\w+)\[title\]\}$", text, flags=re.M)
    return dict(zip(found[::2], found[1::2], strict=True))


def section_text(section: Section) -> str:
    """Gives one section of the page, with its heading."""
    text = "{" + section.name + "[title]}\n" + pieces()[section.name]
    return fill(text, {section.name: _fields(section)})


def fill(text: str, fields: Mapping[str, object]) -> str:
    """Fills in the fields; no more than one empty line stays between paragraphs."""
    return re.sub(r"\n{3,}", "\n\n", text.format(**fields)).rstrip() + "\n"


def _fields(section: Section) -> dict[str, object]:
    fields = {"title": f"## {section.title}", **section.values}
    if section.plot is not None:
        fields["plot"] = f"![{section.plot.alt}](reproduction/{section.plot.name}.svg)"
    return fields


def summary(sections: Sequence[Section]) -> str:
    """Gives the table on top: one line per group."""
    rows = []
    for section in sections:
        for group in section.groups:
            count = f"{group.passed} of {len(group.checks)}" if group.checks else "-"
            worst = percent(group.worst) if group.checks else "-"
            place = f"[{section.title.split(':')[0]}](#{anchor(section.title)})"
            rows.append((place, group.name, _tolerance(group), count, worst, group.verdict, group.remark))
    head = ("", "compared", "tolerance", "within it", "largest difference", "verdict", "remark")
    return table(head, rows)


def _tolerance(group: Group) -> str:
    if not group.checks:
        return "-"
    return f"{100 * group.within:g} %" + (f" + {group.reading:g}" if group.reading else "")


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
