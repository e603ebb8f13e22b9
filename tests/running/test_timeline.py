"""Traces of several roles line up in time, stay bounded, and merge into a file that Perfetto understands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zmpsl.errors import ZmpslError
from zmpsl.observe.timeline import Recorder, Span, busy, merge, round_starts, spans

UNIX_NS = 1_700_000_000 * 10**9
MS = 10**6


def recorder(folder: Path, role: str, clock_ns: int = 5_000, late_ns: int = 0, **limits: int) -> Recorder:
    """A recorder whose clock reads `clock_ns` at the Unix time UNIX_NS + late_ns."""
    return Recorder(folder / f"{role}.jsonl", role, lambda: clock_ns, lambda: UNIX_NS + late_ns, **limits)


@pytest.fixture
def two_roles(tmp_path: Path) -> Path:
    """node-10 begins at 2 ms, node-2 whose clock counts from elsewhere at 1 ms; round 1 follows at 100 ms."""
    folder = tmp_path / "timeline"
    with recorder(folder, "node-10") as trace:
        zero = 5_000
        trace.add("F", zero + 2 * MS, zero + 4 * MS, owner=0, round=0, epoch=1, batch=3, micro=0)
        trace.add("B", zero + 5 * MS, zero + 8 * MS, owner=0, round=0, epoch=1, batch=3, micro=2)
        trace.flush()
        trace.add("F", zero + 100 * MS, zero + 101 * MS, owner=1, round=1, epoch=0, batch=0, micro=0)
    with recorder(folder, "node-2", clock_ns=-(10**15), late_ns=MS) as trace:
        zero = -(10**15)
        trace.add("E", zero, zero + 4 * MS, owner=1, round=0, epoch=0, batch=0, micro=0)
        trace.add("A", zero + 5 * MS, zero + 6 * MS, owner=-1, round=0, epoch=-1, batch=-1, micro=-1)
    return folder


class TestRecorder:
    def test_the_file_as_documented(self, two_roles: Path) -> None:
        assert (two_roles / "node-10.jsonl").read_text().splitlines() == [
            '{"role":"node-10","dropped":0}',
            '["F",1700000000002000,2000,0,0,1,3,0]',
            '["B",1700000000005000,3000,0,0,1,3,2]',
            '["F",1700000000100000,1000,1,1,0,0,0]',
        ]

    def test_unix_time_is_taken_in_the_middle_of_two_looks_at_the_clock(self, tmp_path: Path) -> None:
        # A pause between reading the two clocks must shift the trace by half of it only.
        ticks = iter([0, 2 * MS])
        with Recorder(tmp_path / "a.jsonl", "a", lambda: next(ticks), lambda: UNIX_NS) as trace:
            trace.add("F", MS, 2 * MS, 0, 0, 0, 0, 0)
        assert spans(tmp_path, 0)["a"][0].start_us == UNIX_NS // 1000

    def test_work_that_did_not_overlap_does_not_after_rounding(self, tmp_path: Path) -> None:
        with recorder(tmp_path, "a") as trace:
            for index in range(200):
                trace.add("F", index * 1_777, (index + 1) * 1_777, 0, 0, 0, index, 0)
        work = spans(tmp_path, 0)["a"]
        ends = [span.start_us + span.duration_us for span in work]
        assert ends[:-1] == [span.start_us for span in work[1:]]

    def test_what_is_beyond_the_limit_of_a_round_is_counted(self, tmp_path: Path) -> None:
        trace = recorder(tmp_path, "a", limit=10)
        for round_index, count in enumerate([25, 10, 11]):
            for batch in range(count):
                trace.add("F", batch, batch + 1, 0, round_index, 0, batch, 0)
            trace.flush()
        assert [len(spans(tmp_path, index)["a"]) for index in range(3)] == [10, 10, 10]
        merge(tmp_path, tmp_path / "out.json")
        assert json.loads((tmp_path / "out.json").read_text())["otherData"] == {"dropped": {"a": 16}}

    def test_the_file_stops_growing_at_its_limit(self, tmp_path: Path) -> None:
        trace = recorder(tmp_path, "a", file_limit_bytes=300)
        for round_index in range(50):
            for batch in range(5):
                trace.add("F", batch, batch + 1, 0, round_index, 0, batch, 0)
            trace.flush()
        merge(tmp_path, tmp_path / "out.json")
        result = json.loads((tmp_path / "out.json").read_text())
        kept = sum(event["ph"] == "X" for event in result["traceEvents"])
        assert kept == 10
        assert result["otherData"] == {"dropped": {"a": 240}}

    def test_a_restarted_role_continues_its_file_past_a_half_line(self, tmp_path: Path) -> None:
        for batch in range(2):
            with recorder(tmp_path, "a") as trace:
                trace.add("F", 0, 1, 0, 0, 0, batch, 0)
            with (tmp_path / "a.jsonl").open("ab") as file:
                file.write(b'["F",17')
        assert [span.batch for span in spans(tmp_path, 0)["a"]] == [0, 1]

    def test_nothing_noted_writes_nothing(self, tmp_path: Path) -> None:
        recorder(tmp_path / "t", "a").close()
        assert not (tmp_path / "t").exists()

    def test_a_file_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        trace = recorder(tmp_path / "file", "a")
        trace.add("F", 0, 1, 0, 0, 0, 0, 0)
        with pytest.raises(ZmpslError, match=r"cannot write the timeline .*a\.jsonl"):
            trace.flush()


class TestMerge:
    def test_the_chrome_trace(self, two_roles: Path, tmp_path: Path) -> None:
        # Every field by hand: names, processes in natural order, times from the first work of any role.
        out = tmp_path / "timeline.json"
        assert merge(two_roles, out) == 5
        trace = json.loads(out.read_text())
        events = trace["traceEvents"]
        assert trace["displayTimeUnit"] == "ms"
        assert [(e["name"], e["pid"], e["args"]) for e in events if e["ph"] == "M"] == [
            ("process_name", 1, {"name": "node-2"}),
            ("process_sort_index", 1, {"sort_index": 1}),
            ("process_name", 2, {"name": "node-10"}),
            ("process_sort_index", 2, {"sort_index": 2}),
        ]
        work = [event for event in events if event["ph"] == "X"]
        assert {event["tid"] for event in work} == {0}
        assert [(e["pid"], e["name"], e["cat"], e["ts"], e["dur"]) for e in work] == [
            (1, "E owner 1 b0", "E", 0, 4000),
            (1, "A", "A", 5000, 1000),
            (2, "F owner 0 b3", "F", 1000, 2000),
            (2, "B owner 0 b3.2", "B", 4000, 3000),
            (2, "F owner 1 b0", "F", 99_000, 1000),
        ]
        assert work[3]["args"] == {"owner": 0, "round": 0, "epoch": 1, "batch": 3, "micro": 2}
        assert len(events) == len(work) + 4

    def test_an_empty_folder_gives_an_empty_trace(self, tmp_path: Path) -> None:
        assert merge(tmp_path, tmp_path / "out.json") == 0
        assert json.loads((tmp_path / "out.json").read_text())["traceEvents"] == []

    def test_a_damaged_line_is_named_and_leaves_no_file(self, two_roles: Path, tmp_path: Path) -> None:
        with (two_roles / "node-2.jsonl").open("ab") as file:
            file.write(b'["F","soon",1,0,0,0,0,0]\n["F",1,1,0,0,0,0,0]\n')
        with pytest.raises(ZmpslError, match=r"node-2\.jsonl:4: "):
            merge(two_roles, tmp_path / "out.json")
        assert list(tmp_path.iterdir()) == [two_roles]

    def test_a_role_named_with_quotes_stays_json(self, tmp_path: Path) -> None:
        with Recorder(tmp_path / "x.jsonl", 'no"de\n', lambda: 0, lambda: UNIX_NS) as trace:
            trace.add("F", 0, 1, 0, 0, 0, 0, 0)
        merge(tmp_path, tmp_path / "out.json")
        names = [e["args"]["name"] for e in json.loads((tmp_path / "out.json").read_text())["traceEvents"][:1]]
        assert names == ['no"de\n']


class TestSums:
    def test_busy(self, two_roles: Path) -> None:
        assert busy(two_roles) == {"node-2": {"E": 0.004, "A": 0.001}, "node-10": {"F": 0.003, "B": 0.003}}

    def test_round_starts(self, two_roles: Path) -> None:
        assert round_starts(two_roles) == {0: UNIX_NS // 1000 + 1000, 1: UNIX_NS // 1000 + 100_000}

    def test_spans_of_a_round_up_to_a_time(self, two_roles: Path) -> None:
        start_us = UNIX_NS // 1000
        found = spans(two_roles, 0, until_us=start_us + 5000)
        assert list(found) == ["node-2", "node-10"]
        assert found["node-10"] == [Span("F", start_us + 2000, 2000, owner=0, round=0, epoch=1, batch=3, micro=0)]
        assert [span.op for span in spans(two_roles, 0)["node-10"]] == ["F", "B"]
        assert spans(two_roles, 7) == {}
