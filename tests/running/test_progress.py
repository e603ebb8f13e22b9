"""metrics.jsonl is read back as it was written, also half-written; a run is shown in plain lines and live."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from zmpsl.errors import ZmpslError
from zmpsl.observe.events import (
    CommitEvent,
    EndEvent,
    EvaluationEvent,
    Event,
    EventLog,
    NoticeEvent,
    PlanEvent,
    PlanPart,
    ProgressEvent,
    RoleStats,
    RoundEvent,
    follow,
    read_events,
)
from zmpsl.observe.progress import Progress
from zmpsl.observe.readable import amount, duration, natural, number, one_line, percent, some


def plan(**changes: object) -> PlanEvent:
    fields: dict[str, object] = {
        "time": 100.0, "job": "digits", "version": 1, "start_round": 0, "rounds": 2, "cuts": [1, 3, 5],
        "parts": [
            PlanPart(part=0, where="owners", first=0, stop=1, parameters=320, bytes=1280),
            PlanPart(part=1, where="node-0", first=1, stop=3, parameters=18_496, bytes=73_984),
            PlanPart(part=2, where="node-1", first=3, stop=5, parameters=36_928, bytes=147_712),
            PlanPart(part=3, where="owners", first=5, stop=6, parameters=650, bytes=2600),
        ],
        "owners": 4, "nodes": ["node-0", "node-1"],
    }  # fmt: skip
    return PlanEvent(**(fields | changes))  # type: ignore[arg-type]


def progress(time: float, batches: int, round: int = 0, loss: float | None = 0.4312, nodes: int = 2) -> ProgressEvent:
    busy = {f"node-{index}": 0.91 - 0.05 * index for index in range(nodes)}
    return ProgressEvent(
        time=time, round=round, phase="train", batches=batches, batches_total=48, batches_per_s=37.5, loss=loss,
        busy=busy, bytes=1_234_567,
    )  # fmt: skip


def finished_round(time: float, round: int = 0, predicted_s: float | None = None) -> RoundEvent:
    stats = RoleStats(
        forward_s=1.0, backward_s=1.5, update_s=0.25, idle_s=0.5, sent_bytes=500, received_bytes=400, tasks=96
    )
    return RoundEvent(
        time=time, round=round, seconds=3.4, loss=0.4312, samples=1437, batches=48, bytes=1_234_567,
        roles={"node-0": stats}, predicted_s=predicted_s,
    )  # fmt: skip


def all_kinds() -> list[Event]:
    return [
        plan(),
        progress(101.0, 12),
        finished_round(103.4, predicted_s=3.2),
        EvaluationEvent(time=103.5, round=0, accuracy=0.958, loss=0.1312, samples=360),
        CommitEvent(time=103.6, round=0, digests={"node-0": "ab12"}),
        NoticeEvent(time=103.7, text="owner-3 is slow"),
        EndEvent(time=104.0, status="finished", text="", exit_code=0, seconds=4.0),
    ]


def shown(events: list[Event]) -> list[str]:
    stream = io.StringIO()
    with Progress(stream, live=False) as view:
        for event in events:
            view.handle(event)
    return stream.getvalue().splitlines()


class TestEvents:
    def test_every_kind_survives_the_file(self, tmp_path: Path) -> None:
        # One tag per kind, and no field is lost or changed on the way.
        path = tmp_path / "run" / "metrics.jsonl"
        with EventLog(path) as log:
            for event in all_kinds():
                log.append(event)
        assert list(read_events(path)) == all_kinds()
        assert path.read_bytes().startswith(b'{"event":"plan","time":100.0,"job":"digits",')
        assert path.read_bytes().count(b"\n") == 7

    def test_a_line_is_there_as_soon_as_append_returns(self, tmp_path: Path) -> None:
        # What a crash leaves behind must end with the last event told.
        with EventLog(tmp_path / "m") as log:
            log.append(plan())
            assert list(read_events(tmp_path / "m")) == [plan()]

    def test_a_half_written_last_line_is_left_out_and_a_whole_one_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        with EventLog(path) as log:
            log.append(plan())
            log.append(progress(1.0, 1))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert list(read_events(path)) == [plan(), progress(1.0, 1)]
        for cut in range(len(whole) - 2, whole.index(b"\n"), -1):
            path.write_bytes(whole[:cut])
            assert list(read_events(path)) == [plan()]

    @pytest.mark.parametrize(
        "line", [b"{", b'{"event":"unknown","time":1}', b'{"event":"notice","time":1,"text":3}', b'"\xff"', b""]
    )
    def test_a_broken_line_in_the_middle_is_named(self, tmp_path: Path, line: bytes) -> None:
        path = tmp_path / "metrics.jsonl"
        with EventLog(path) as log:
            log.append(plan())
        path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
        with pytest.raises(ZmpslError, match=r"metrics\.jsonl:2: this line is damaged"):
            list(read_events(path))

    def test_unknown_fields_are_ignored(self, tmp_path: Path) -> None:
        # A newer zmpsl may say more; its files stay readable.
        path = tmp_path / "m"
        path.write_bytes(b'{"event":"notice","time":1.5,"text":"a","more":[1]}\n')
        assert list(read_events(path)) == [NoticeEvent(time=1.5, text="a")]

    def test_a_loss_that_is_not_a_number_reads_as_none(self, tmp_path: Path) -> None:
        with EventLog(tmp_path / "m") as log:
            log.append(progress(1.0, 1, loss=float("nan")))
        assert list(read_events(tmp_path / "m")) == [progress(1.0, 1, loss=None)]

    @pytest.mark.parametrize("tail", [b'{"event":"no', b"\xff", b'{"event":"notice","time":2.0,"text":"b"}'])
    def test_a_new_writer_mends_what_a_killed_one_left(self, tmp_path: Path, tail: bytes) -> None:
        # Without mending, the next line would be glued to the half one and both lost.
        path = tmp_path / "m"
        first, last = NoticeEvent(time=1.0, text="a" * 100_000), NoticeEvent(time=3.0, text="c")
        with EventLog(path) as log:
            log.append(first)
        path.write_bytes(path.read_bytes() + tail)
        with EventLog(path) as log:
            log.append(last)
        whole = [NoticeEvent(time=2.0, text="b")] if tail.endswith(b"}") else []
        assert list(read_events(path)) == [first, *whole, last]

    def test_missing_and_unwritable_files_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ZmpslError, match=r"cannot read .*nothing"):
            list(read_events(tmp_path / "nothing"))
        (tmp_path / "file").write_text("")
        with pytest.raises(ZmpslError, match="cannot write"):
            EventLog(tmp_path / "file" / "metrics.jsonl")


class TestFollow:
    def test_it_waits_for_the_file_for_lines_and_for_their_ends(self, tmp_path: Path) -> None:
        # Each pause does the next thing to the file: nothing, half a line, its other half and one more, a last one.
        path = tmp_path / "m"
        lines = [b'{"event":"notice","time":%d.0,"text":"t"}\n' % second for second in range(3)]
        steps = [b"", lines[0][:9], lines[0][9:] + lines[1], lines[2]]
        got: list[float] = []
        pauses: list[list[float]] = []

        def pause() -> None:
            pauses.append(list(got))
            with path.open("ab") as file:
                file.write(steps.pop(0))

        for event in follow(path, stop=lambda: not steps, pause=pause):
            got.append(event.time)
        assert got == [0.0, 1.0, 2.0]
        assert pauses == [[], [], [], [0.0, 1.0]]

    def test_what_is_there_when_told_to_stop_is_still_read(self, tmp_path: Path) -> None:
        with EventLog(tmp_path / "m") as log:
            log.append(plan())
        assert list(follow(tmp_path / "m", stop=lambda: True, pause=pytest.fail)) == [plan()]

    def test_what_came_just_before_being_told_to_stop_is_read(self, tmp_path: Path) -> None:
        # The last event is written, then the writer ends: both happen between two looks at the file.
        answers = [False, True]

        def stop() -> bool:
            if answers[0]:
                with EventLog(tmp_path / "m") as log:
                    log.append(plan())
            return answers.pop(0)

        assert list(follow(tmp_path / "m", stop, pause=lambda: None)) == [plan()]

    def test_a_half_line_that_is_cut_off_by_a_new_writer_does_no_harm(self, tmp_path: Path) -> None:
        path = tmp_path / "m"
        path.write_bytes(b'{"event":"noti')
        steps = [1]

        def pause() -> None:
            steps.pop()
            with EventLog(path) as log:
                log.append(plan())

        assert list(follow(path, stop=lambda: not steps, pause=pause)) == [plan()]

    def test_a_broken_line_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "m").write_bytes(b'{"event":"notice","time":1,"text":"a"}\nx\n')
        with pytest.raises(ZmpslError, match="m:2: "):
            list(follow(tmp_path / "m", stop=lambda: True, pause=lambda: None))


class TestPlain:
    def test_a_small_run(self) -> None:
        # The whole text of a run, so that any change of wording is seen.
        events = [
            plan(), progress(100.0, 0, loss=None), progress(101.9, 12), progress(102.0, 24), progress(103.9, 36),
            finished_round(104.0),
            EvaluationEvent(time=104.1, round=0, accuracy=0.958, loss=0.1312, samples=360),
            CommitEvent(time=104.2, round=0, digests={"node-0": "ab12"}),
            progress(104.3, 3, round=1), finished_round(108.0, round=1, predicted_s=3.2),
            NoticeEvent(time=108.5, text="owner-3 is slow"),
            EndEvent(time=109.0, status="finished", text="", exit_code=0, seconds=9.0),
        ]  # fmt: skip
        assert shown(events) == [
            "job digits: 4 owners; 2 compute nodes (node-0, node-1); cuts 1, 3, 5; 56,394 parameters; 2 rounds",
            "round 1/2 train  0/48 batches  37.5 batches/s  busy node-0 91 %, node-1 86 %  1.2 MB sent",
            "round 1/2 train  24/48 batches  37.5 batches/s  loss 0.4312  busy node-0 91 %, node-1 86 %  1.2 MB sent",
            "round 1/2 done  loss 0.4312  3.4 s  1,437 samples  48 batches  14.1 batches/s  1.2 MB sent",
            "round 1/2 evaluated  accuracy 95.8 %  loss 0.1312  on 360 samples",
            "round 2/2 train  3/48 batches  37.5 batches/s  loss 0.4312  busy node-0 91 %, node-1 86 %  1.2 MB sent",
            "round 2/2 done  loss 0.4312  predicted 3.2 s, measured 3.4 s  1,437 samples  48 batches  14.1 batches/s"
            "  1.2 MB sent",
            "note: owner-3 is slow",
            "finished in 9.0 s",
        ]

    @pytest.mark.parametrize(
        ("event", "line"),
        [
            (
                plan(emulated=True, owners=1, nodes=["a"], cuts=[1, 2], rounds=1),
                "emulated job digits: 1 owner; 1 compute node (a); cuts 1, 2; 56,394 parameters; 1 round",
            ),
            (
                plan(start_round=1, nodes=[f"n{i}" for i in range(9)]),
                "job digits: 4 owners; 9 compute nodes (n0, n1, ..., n8); cuts 1, 3, 5; 56,394 parameters; 2 rounds,"
                " from round 2 on",
            ),
            (
                progress(0.0, 1, nodes=6),
                "round 1 train  1/48 batches  37.5 batches/s  loss 0.4312  busy 66 % to 91 %  1.2 MB sent",
            ),
            (
                EndEvent(time=1.0, status="failed", text="node-1 is lost", exit_code=6, seconds=65.2),
                "failed after 1 min 05 s (exit code 6): node-1 is lost",
            ),
            (
                EndEvent(time=1.0, status="interrupted", text="", exit_code=130, seconds=0.5),
                "interrupted after 0.50 s (exit code 130)",
            ),
            (NoticeEvent(time=1.0, text="a\x1b[2J\nb\r\tc"), "note: a [2J b c"),
        ],
    )
    def test_special_cases(self, event: Event, line: str) -> None:
        assert shown([event]) == [line]

    def test_a_clock_that_is_set_back_does_not_silence_progress(self) -> None:
        assert len(shown([progress(1000.0, 1), progress(10.0, 2), progress(11.0, 3), progress(12.0, 4)])) == 3

    def test_a_stream_that_is_no_terminal_gets_plain_lines(self) -> None:
        stream = io.StringIO()
        with Progress(stream) as view:
            view.handle(plan())
        assert stream.getvalue().startswith("job digits: ")

    def test_a_name_the_stream_cannot_take_is_escaped(self) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with Progress(stream) as view:
            view.handle(NoticeEvent(time=1.0, text="Zoë"))
        stream.seek(0)
        assert stream.read() == "note: Zo\\xeb\n"

    def test_rich_is_loaded_for_the_live_view_only_and_its_absence_means_plain_lines(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        shown(all_kinds())
        assert "rich" not in sys.modules
        monkeypatch.setitem(sys.modules, "rich", None)
        stream = io.StringIO()
        with Progress(stream, live=True) as view:
            view.handle(NoticeEvent(time=1.0, text="a"))
        assert stream.getvalue() == "note: a\n"


class TestLive:
    @pytest.fixture(autouse=True)
    def _terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("LINES", "40")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")

    def test_it_shows_header_bars_and_numbers_and_leaves_the_lines(self) -> None:
        stream = io.StringIO()
        with Progress(stream, live=True) as view:
            view.handle(plan(nodes=["node-0", "node-1[red]"], emulated=True))
            view.handle(finished_round(101.0, predicted_s=3.2))
            view.handle(EvaluationEvent(time=103.5, round=0, accuracy=0.958, loss=0.1312, samples=360))
            view.handle(progress(104.0, 24, round=1, nodes=14))
        text = stream.getvalue()
        for expected in (
            "digits", "emulated", "4 owners > node-0, node-1[red] > owners", "cuts 1, 3, 5", "round 2/2 train",
            "24/48 batches", "37.5 batches/s", "loss 0.4312", "accuracy 95.8 % after round 1", "1.2 MB sent",
            "91 % busy", "2 more", "busy 26 % to 31 %", "round 1/2 done  loss 0.4312  predicted 3.2 s, measured 3.4 s",
            "━",
        ):  # fmt: skip
            assert expected in text, expected

    def test_the_cursor_comes_back_however_the_view_ends(self) -> None:
        for end in (True, False):
            stream = io.StringIO()
            view = Progress(stream, live=True)
            view.handle(plan())
            if end:
                view.handle(EndEvent(time=1.0, status="failed", text="no", exit_code=1, seconds=1.0))
            view.close()
            view.close()
            text = stream.getvalue()
            assert text.rindex("\x1b[?25h") > text.index("\x1b[?25l")
            assert text.endswith("failed after 1.0 s (exit code 1): no\n") is end

    def test_it_redraws_ten_times_a_second_at_most(self) -> None:
        stream = io.StringIO()
        with Progress(stream, live=True) as view:
            view.handle(plan())
            for step in range(1000):
                view.handle(progress(200.0 + step / 1000, step % 48))
        assert 5 <= stream.getvalue().count("37.5 batches/s") <= 11


class TestReadable:
    @pytest.mark.parametrize(
        ("n_bytes", "text"),
        [
            (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (999_949, "999.9 kB"),
            (999_951, "1.0 MB"), (80e9, "80.0 GB"), (4.5e15, "4,500.0 TB"),
        ],
    )  # fmt: skip
    def test_amount(self, n_bytes: float, text: str) -> None:
        assert amount(n_bytes) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0.0, "0 ms"), (0.0344, "34 ms"), (0.5, "0.50 s"), (3.21, "3.2 s"), (59.94, "59.9 s"),
            (59.96, "1 min 00 s"), (125.4, "2 min 05 s"), (3599.7, "1 h 00 min"), (7620.0, "2 h 07 min"),
        ],
    )  # fmt: skip
    def test_duration(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    def test_the_others(self) -> None:
        assert [number(None), number(0.43124), number(1e6)] == ["-", "0.4312", "1.000e+06"]
        assert [percent(0.9583), percent(1.0, 0)] == ["95.8 %", "100 %"]
        assert [some("ab"), some("abcde")] == ["a, b", "a, b, ..., e"]
        assert one_line(" a\n\x00b\u2028c ") == "a b c"
        assert sorted(["node-10", "node-2", "aggregator", "node-²"], key=natural) == [
            "aggregator", "node-2", "node-10", "node-²",
        ]  # fmt: skip
