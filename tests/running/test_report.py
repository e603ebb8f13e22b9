"""The report is one valid, self-contained HTML file that holds the run's numbers, whatever the run got to."""

from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from zmpsl.errors import ZmpslError
from zmpsl.observe import plots
from zmpsl.observe.events import (
    EndEvent,
    EvaluationEvent,
    Event,
    EventLog,
    NoticeEvent,
    PlanEvent,
    PlanPart,
    RoleStats,
    RoundEvent,
)
from zmpsl.observe.report import write_report
from zmpsl.observe.timeline import Recorder, Span

START_S = 1_700_000_000
MS = 10**6
VOID = {"meta", "br", "hr", "link", "img", "input"}


class Walker(HTMLParser):
    """Checks that tags are balanced and collects ids, references, attributes that fetch something, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._look(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in {"src", "srcset", "action", "onclick", "onload"}
            if name == "id":
                self.ids.append(value or "")
            if name.endswith("href"):
                assert (value or "").startswith("#")
                self.references.add((value or "")[1:])
            self.references.update(re.findall(r"url\(#([^)]+)\)", value or ""))


def stats(sent: int, forward: float = 1.0, idle: float = 0.5) -> RoleStats:
    return RoleStats(
        forward_s=forward, backward_s=1.5, update_s=0.25, idle_s=idle, sent_bytes=sent, received_bytes=400, tasks=96
    )


def plan_event(owners: int, nodes: int, rounds: int, emulated: bool) -> PlanEvent:
    names = [f"node-{index}" for index in range(nodes)]
    middle = [
        PlanPart(part=index + 1, where=name, first=1 + 2 * index, stop=3 + 2 * index, parameters=18_496, bytes=73_984)
        for index, name in enumerate(names)
    ]
    last = 1 + 2 * nodes
    return PlanEvent(
        time=START_S, job="digits", version=7, start_round=0, rounds=rounds,
        cuts=[*(part.first for part in middle), last],
        parts=[
            PlanPart(part=0, where="owners", first=0, stop=1, parameters=320, bytes=1280), *middle,
            PlanPart(part=nodes + 1, where="owners", first=last, stop=last + 1, parameters=650, bytes=2600),
        ],
        owners=owners, nodes=names, emulated=emulated,
    )  # fmt: skip


def round_events(index: int, owners: int, nodes: int) -> list[Event]:
    time = START_S + 4.0 * (index + 1)
    roles = {f"owner-{owner}": stats(1_000_000, 0.3, 2.0) for owner in range(owners)}
    roles |= {f"node-{node}": stats(2_000_000) for node in range(nodes)}
    roles["aggregator"] = stats(30_000)
    return [
        RoundEvent(
            time=time, round=index, seconds=4.0, loss=2.0 / (index + 1), samples=1437, batches=48,
            bytes=sum(role.sent_bytes for role in roles.values()), roles=roles, predicted_s=3.0,
            predicted_busy_s={f"node-{node}": 1.0 for node in range(nodes)},
        ),
        EvaluationEvent(time=time, round=index, accuracy=0.9 + 0.01 * index, loss=1.75, samples=360),
    ]  # fmt: skip


def write_run(
    folder: Path, owners: int = 3, nodes: int = 2, rounds: int = 3, emulated: bool = False, timeline: bool = True
) -> Path:
    folder.mkdir()
    (folder / "job.yaml").write_text("name: digits\nseed: 0 # <script>alert('x')</script> & more\n")
    with EventLog(folder / "metrics.jsonl") as log:
        log.append(plan_event(owners, nodes, rounds, emulated))
        for index in range(rounds):
            for event in round_events(index, owners, nodes):
                log.append(event)
        log.append(NoticeEvent(time=START_S, text="owner-1 <b>was</b> slow"))
        log.append(EndEvent(time=START_S + 20.0, status="finished", text="", exit_code=0, seconds=20.0))
    if timeline:
        roles = [f"node-{node}" for node in range(nodes)] + [f"owner-{owner}" for owner in range(owners)]
        for late, role in enumerate(roles):
            with Recorder(folder / "timeline" / f"{role}.jsonl", role, lambda: 0, lambda: START_S * 10**9) as trace:
                for index in range(rounds):
                    for batch in range(40):
                        begin = (index * 4000 + batch * 30 + late) * MS
                        trace.add("F", begin, begin + 10 * MS, 0, index, 0, batch, 0)
                        trace.add("B", begin + 12 * MS, begin + 25 * MS, 0, index, 0, batch, 0)
    return folder


def read(folder: Path) -> tuple[str, Walker, str]:
    """Writes the report; gives its text, its walker, and its visible words on one line."""
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    walker = Walker(text)
    return text, walker, " ".join(" ".join(walker.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Walker, str]:
    return read(write_run(tmp_path_factory.mktemp("report") / "run"))


class TestWhole:
    def test_it_is_valid_and_every_reference_leads_somewhere(self, report: tuple[str, Walker, str]) -> None:
        _, walker, _ = report
        assert len(walker.ids) == len(set(walker.ids))
        assert walker.references == set(walker.ids)
        assert walker.tags.count("svg") == 6

    def test_each_node_has_its_predicted_work_beside_the_measured(self, report: tuple[str, Walker, str]) -> None:
        _, _, words = report
        assert "predicted is off by node-0 1.0 s 2.8 s -63.6 % node-1 1.0 s 2.8 s" in words

    def test_it_needs_nothing_from_outside(self, report: tuple[str, Walker, str]) -> None:
        text, walker, _ = report
        for reference in ("http:", "https:", "//www", "@import", "<script", "<link", "xmlns", "<!ENTITY", "w3.org"):
            assert reference not in text, reference
        assert re.findall(r"url\((?!#)", text) == []
        assert text.count("<!DOCTYPE") == 1
        assert walker.tags[0] == "html"

    def test_each_plot_is_well_formed_in_the_colours_of_the_page(self, report: tuple[str, Walker, str]) -> None:
        text, _, _ = report
        for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
            root = ElementTree.fromstring(svg)
            assert root.get("role") == "img"
            assert root.get("aria-label")
            assert "currentColor" in svg
            assert "#01020" not in svg

    def test_it_says_the_run_s_numbers(self, report: tuple[str, Walker, str]) -> None:
        _, _, words = report
        for expected in (
            "digits finished", "Started 2023-11-14 22:13:20 UTC", "the last run took 20.0 s", "3 of 3",
            "92.0 % last accuracy", "92.0 % best accuracy (round 3)", "0.6667 last training loss", "4.0 s mean round",
            "12.0 batches/s", "21.1 MB sent by all roles",
            "cut before blocks 1, 3, 5", "Version 7", "1 node-0 1 to 2 18,496 74.0 kB",
            "0 each of 3 owners 0 320 1.3 kB", "whole model 37,962 151.8 kB",
            "The prediction was off by 25.0 % on average.", "The first 1.2 s of round 2",
            "1 2.0000 90.0 % 4.0 s 3.0 s 1,437 48 12.0 7.0 MB 15.4 %",
            "owner-1 <b>was</b> slow", "seed: 0 # <script>alert('x')</script> & more",
        ):  # fmt: skip
            assert expected in words, expected
        assert "Emulated" not in words

    def test_every_plot_has_a_title_and_a_sentence(self, report: tuple[str, Walker, str]) -> None:
        text, walker, _ = report
        assert walker.tags.count("figure") == walker.tags.count("figcaption") == 6
        assert all(len(words) > 40 for words in re.findall(r"<figcaption>(.*?)</figcaption>", text))

    def test_text_of_the_run_is_escaped(self, report: tuple[str, Walker, str]) -> None:
        text, _, _ = report
        assert html.escape("# <script>alert('x')</script> & more") in text
        assert "<b>was" not in text

    def test_two_reports_of_one_run_are_equal(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "run", rounds=1)
        first = write_report(folder).read_bytes()
        assert write_report(folder).read_bytes() == first


class TestParts:
    def test_an_emulated_run_says_so(self, tmp_path: Path) -> None:
        _, _, words = read(write_run(tmp_path / "run", emulated=True, rounds=1, timeline=False))
        assert "Emulated run." in words
        assert "No timeline was recorded." in words

    def test_a_run_without_rounds(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        with EventLog(folder / "metrics.jsonl") as log:
            log.append(plan_event(3, 2, 5, False))
            log.append(EndEvent(time=START_S + 1.5, status="failed", text="a <b>", exit_code=6, seconds=1.5))
        _, walker, words = read(folder)
        for expected in (
            "digits failed", "a <b> (exit code 6)", "0 of 5", "No round was finished", "No timeline was recorded.",
            "holds no job.yaml",
        ):  # fmt: skip
            assert expected in words, expected
        assert "svg" not in walker.tags

    def test_a_run_that_never_got_a_plan_and_has_no_end(self, tmp_path: Path) -> None:
        (tmp_path / "job.yaml").write_bytes(b"name: \xff\n")
        _, _, words = read(tmp_path)
        assert "no end recorded" in words
        assert "No plan is recorded" in words

    def test_a_continued_run_counts_repeated_rounds_once(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "run", rounds=2, timeline=False)
        with EventLog(folder / "metrics.jsonl") as log:
            log.append(plan_event(3, 2, 3, False))
            for index in (1, 2):
                for event in round_events(index, 3, 2):
                    log.append(event)
        _, _, words = read(folder)
        assert "3 of 3 rounds done" in words
        assert "continued 1 time(s)" in words
        assert "no end recorded" in words

    def test_a_large_run_stays_small(self, tmp_path: Path) -> None:
        # Many roles, rounds and pieces of work: what is drawn is bounded, and what is left out is said.
        folder = write_run(tmp_path / "run", owners=60, nodes=9, rounds=260, timeline=False)
        for role in [f"node-{index}" for index in range(30)] + [f"owner-{index}" for index in range(60)]:
            with Recorder(folder / "timeline" / f"{role}.jsonl", role, lambda: 0, lambda: START_S * 10**9) as trace:
                for batch in range(1000):
                    trace.add("FB"[batch % 2], batch * MS, batch * MS + MS // 2, 0, 0, 0, batch, 0)
        _, _, words = read(folder)
        assert (folder / "report.html").stat().st_size < 1_500_000
        for expected in (
            "46 more roles are not drawn", "66 more roles are not drawn", "The first 0.12 s of round 1",
            "The first 60 rounds are left out here",
        ):  # fmt: skip
            assert expected in words, expected

    def test_odd_role_names_are_drawn(self, tmp_path: Path) -> None:
        # `$` starts mathematics in matplotlib, `_` hides a label, and fonts lack many glyphs (a warning is an error).
        folder = write_run(tmp_path / "run", rounds=1, timeline=False)
        names = ["$x^$", "_hidden", "節点", "<i>", "n" * 300]
        with EventLog(folder / "metrics.jsonl") as log:
            log.append(
                RoundEvent(
                    time=1.0, round=0, seconds=1.0, loss=None, samples=1, batches=1, bytes=1,
                    roles={name: stats(1) for name in names},
                )
            )  # fmt: skip
            part = PlanPart(part=0, where="<i>", first=0, stop=1, parameters=1, bytes=1)
            log.append(msgspec.structs.replace(plan_event(3, 1, 1, False), parts=[part]))
        for name in names[:2]:
            with Recorder(folder / "timeline" / f"{name}.jsonl", name, lambda: 0, lambda: START_S * 10**9) as trace:
                trace.add("?", 0, 0, -1, 0, -1, -1, -1)
        _, _, words = read(folder)
        assert "0 <i> 0 1 1 B" in words


class TestErrors:
    def test_a_folder_that_is_no_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ZmpslError, match="is not the folder of a run"):
            write_report(tmp_path)

    def test_a_damaged_file_is_named_and_an_earlier_report_stays(self, tmp_path: Path) -> None:
        folder = write_run(tmp_path / "run", rounds=1, timeline=False)
        (folder / "report.html").write_text("earlier")
        (folder / "metrics.jsonl").write_text("{}\n")
        with pytest.raises(ZmpslError, match=r"metrics\.jsonl:1"):
            write_report(folder)
        assert (folder / "report.html").read_text() == "earlier"

    def test_without_matplotlib_it_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ZmpslError) as caught:
            write_report(tmp_path)
        assert str(caught.value) == "the report needs matplotlib: pip install 'zmpsl[report]'"

    def test_pyplot_is_never_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # pyplot keeps figures and a window system for the whole process; here an import of it fails.
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        write_report(write_run(tmp_path / "run", rounds=1))


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "label"),
        [("node-0", "node-0"), ("_hid", "hid"), ("$x^$", r"\$x^\$"), ("é", r"\xe9"), ("n" * 25, "n" * 21 + "...")],
    )
    def test_names_become_labels_that_matplotlib_draws_as_they_are(self, name: str, label: str) -> None:
        assert plots._plain(name) == label


class TestBars:
    def test_close_neighbours_of_one_op_become_one_bar_and_others_keep_apart(self) -> None:
        # In 1 s, 200 microseconds are a tenth of a pixel: F F join, F B F do not, work is cut at the window's end.
        def span(op: str, start_us: int, length_us: int) -> Span:
            return Span(op, 1_000 + start_us, length_us, 0, 0, 0, 0, 0)

        work = [
            span("F", 0, 100), span("F", 250, 100), span("F", 700, 50), span("B", 800, 20), span("F", 830, 20),
            span("B", 999_990, 500), span("F", 1_000_100, 10),
        ]  # fmt: skip
        assert plots._bars(work, 1_000, 1_000_000) == {
            "F": [(0, 350), (700, 50), (830, 20)],
            "B": [(800, 20), (999_990, 10)],
        }
