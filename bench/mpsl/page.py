"""From results to a page: what is compared with what, whether it agrees, and Markdown with a summary on top."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from report import table

__all__ = ["Check", "Group", "Panel", "Plot", "Section", "Series", "percent", "render"]

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
        """pass, differs, or nothing to compare."""
        if not self.checks:
            return "nothing to compare"
        return "pass" if self.passed == len(self.checks) else "**differs**"

    @property
    def worst(self) -> float:
        """The largest relative difference, with its sign."""
        return max((one.difference for one in self.checks), key=abs)


@dataclass(frozen=True)
class Series:
    """A line of a plot, or marks alone for what the paper printed."""

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
    """A picture: file name without folder, what a reader who does not see it should know, panels side by side."""

    name: str
    alt: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Section:
    """One figure or table of the paper.

    `body` has {plot} where the picture goes. What is in `timings` differs from run to run and is marked as such.
    """

    title: str
    shows: str
    body: str
    verdict: str
    groups: tuple[Group, ...]
    plot: Plot | None = None
    timings: str = ""
    notes: tuple[str, ...] = field(default=())


def percent(value: float, digits: int = 1) -> str:
    """A relative difference with its sign."""
    return f"{100 * value:+.{digits}f} %"


def render(intro: str, sections: Sequence[Section]) -> str:
    """Gives the page as Markdown."""
    parts = [intro.rstrip() + "\n", "## Summary\n", _summary(sections)]
    return "\n".join(parts + [section_text(one) for one in sections])


def section_text(section: Section) -> str:
    """Gives one section as Markdown; paragraphs are joined to lines of their own."""
    picture = ""
    if section.plot is not None:
        picture = f"![{section.plot.alt}](reproduction/{section.plot.name}.svg)"
    body = section.body.replace("{plot}", picture)
    parts = [f"## {section.title}\n", section.shows.strip() + "\n", body.strip() + "\n"]
    if section.timings:
        parts += [TIMED[0] + "\n", section.timings.strip() + "\n", TIMED[1] + "\n"]
    return "\n".join([*parts, f"**Verdict.** {section.verdict.strip()}\n"])


def _summary(sections: Sequence[Section]) -> str:
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
    reading = f" + {group.reading:g}" if group.reading else ""
    return f"{100 * group.within:g} %{reading}"


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
