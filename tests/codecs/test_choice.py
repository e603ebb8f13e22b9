"""codec: auto: the arithmetic of the choice, hysteresis, the rate of a link, and what a packer makes of them."""

from __future__ import annotations

import itertools
import logging
import socket
import threading

import numpy as np
import pytest
from helpers import wait_for
from hypothesis import given
from hypothesis import strategies as st

from zmpsl.codecs import NONE
from zmpsl.job.codec import CLASSES, parse_spec
from zmpsl.messages import Progress
from zmpsl.observe.events import Event
from zmpsl.roles.scoreboard import Scoreboard
from zmpsl.stats import LinkStats, Stats
from zmpsl.transport.choice import CANDIDATES, FAST_BYTES_PER_S, Chooser, Cost, Rate, seconds
from zmpsl.transport.packing import Packer
from zmpsl.transport.task import Op, Task
from zmpsl.transport.tcp_info import delivered

MBIT = 125_000.0
MB = 1_000_000
# Roughly what the kernels of one core of a server do.
COSTS = {
    "none": Cost(1, 0, 0),
    "bitmap": Cost(0.69, 5.3e-11, 5.2e-11),
    "huff": Cost(0.57, 4.2e-10, 3.8e-10),
    "bf16": Cost(0.5, 5e-11, 5e-11),
    "bf16-huff": Cost(0.245, 3.8e-10, 3.6e-10),
    "int8": Cost(0.26, 5e-11, 4.5e-11),
    "int4": Cost(0.14, 6.6e-11, 4.4e-11),
    "qz": Cost(0.07, 3.3e-10, 3.3e-10),
}


def chooser(within: str, now: float = 0.0) -> Chooser:
    made = Chooser(within)
    for name in CANDIDATES[within]:
        made.note(name, COSTS[name], now)
    return made


class TestArithmetic:
    def test_one_tile_takes_the_sum_and_many_tiles_the_slowest_stage(self) -> None:
        cost = Cost(0.5, 2e-9, 1e-9)  # per byte 2 ns, then 0.5 / 1e8 = 5 ns, then 1 ns
        assert seconds(10**9, cost, 1e8, 1) == pytest.approx(8)
        assert seconds(10**9, cost, 1e8, 4) == pytest.approx(8 / 4 + 3 / 4 * 5)
        assert seconds(10**9, cost, 1e8, 10**6) == pytest.approx(5, rel=1e-4)

    @pytest.mark.parametrize(
        ("within", "rate", "tiles", "best"),
        [
            ("lossless", 20 * MBIT, 1, "huff"),
            ("lossless", 1000 * MBIT, 32, "huff"),
            ("lossless", 9000 * MBIT, 1, "bitmap"),
            ("lossless", 20_000 * MBIT, 32, "none"),
            ("accurate", 100 * MBIT, 4, "bf16-huff"),
            ("accurate", 9000 * MBIT, 1, "bf16"),
            ("slow-link", 20 * MBIT, 1, "qz"),
            ("slow-link", 9000 * MBIT, 1, "int4"),
        ],
    )
    def test_the_fastest_for_the_link_is_chosen(self, within: str, rate: float, tiles: int, best: str) -> None:
        assert chooser(within).choose(10.0, rate, 32 * MB, tiles) == best

    @given(
        rate=st.floats(1e3, 1e10), tiles=st.integers(1, 100), nbytes=st.integers(4096, 10**9),
        within=st.sampled_from(list(CLASSES)),
    )  # fmt: skip
    def test_whatever_is_chosen_first_is_never_slower_than_none(
        self, rate: float, tiles: int, nbytes: int, within: str
    ) -> None:
        name = chooser(within).choose(10.0, rate, nbytes, tiles)
        assert name in CANDIDATES[within]
        assert seconds(nbytes, COSTS[name], rate, tiles) <= seconds(nbytes, COSTS["none"], rate, tiles)

    def test_exact_codecs_only_within_lossless(self) -> None:
        assert all(parse_spec(name).exact for name in CANDIDATES["lossless"])


class TestHysteresis:
    def test_before_anything_is_measured_and_on_a_fast_link_nothing_is_tried(self) -> None:
        fresh = Chooser("slow-link")
        assert fresh.wanted(0.0, None, 32 * MB) == []
        assert fresh.wanted(0.0, FAST_BYTES_PER_S, 32 * MB) == []
        assert fresh.wanted(0.0, 20 * MBIT, 1000) == []
        assert fresh.choose(0.0, None, 32 * MB, 32) == fresh.choose(0.0, 1e10, 32 * MB, 32) == "none"

    def test_each_candidate_is_tried_once_and_again_later(self) -> None:
        fresh = Chooser("lossless")
        assert fresh.wanted(0.0, 20 * MBIT, MB) == ["bitmap", "huff"]
        fresh.note("huff", COSTS["huff"], 0.0)
        assert fresh.wanted(1.0, 20 * MBIT, MB) == ["bitmap"]
        assert fresh.wanted(60.0, 20 * MBIT, MB) == ["bitmap", "huff"]

    def test_a_small_gain_does_not_change_the_choice(self) -> None:
        made = chooser("lossless")
        made.note("bitmap", Cost(0.60, 5e-11, 5e-11), 0.0)
        assert made.choose(10.0, 20 * MBIT, MB, 1) == "huff"
        made.note("bitmap", Cost(0.55, 0, 0), 10.0)
        assert made.choose(20.0, 20 * MBIT, MB, 1) == "huff"
        made.note("bitmap", Cost(0.4, 0, 0), 20.0)
        assert made.choose(30.0, 20 * MBIT, MB, 1) == "bitmap"

    def test_a_choice_holds_for_a_while(self) -> None:
        made = chooser("lossless")
        assert made.choose(10.0, 20 * MBIT, MB, 1) == "huff"
        assert made.choose(10.5, 9000 * MBIT, MB, 1) == "huff"
        assert made.choose(11.5, 9000 * MBIT, MB, 1) == "bitmap"

    def test_a_link_that_became_fast_gets_its_values_as_they_are(self) -> None:
        made = chooser("slow-link")
        made.choose(10.0, 20 * MBIT, MB, 1)
        assert made.choose(10.1, FAST_BYTES_PER_S, MB, 1) == "none"


class TestRate:
    def test_it_takes_a_few_readings(self) -> None:
        rate = Rate()
        rate.read(MB, 20 * MBIT, False)
        rate.read(2 * MB, 20 * MBIT, False)
        assert rate.bytes_per_s is None
        rate.read(3 * MB, 22 * MBIT, False)
        assert rate.bytes_per_s == 20 * MBIT

    def test_lower_bounds_and_looks_between_which_nothing_was_sent_do_not_count(self) -> None:
        rate = Rate()
        for step in range(10):
            rate.read(MB * step, 5 * MBIT, True)
            rate.read(MB * step, 7 * MBIT, False)
            rate.read(MB * step + 1000, 7 * MBIT, False)
        assert rate.bytes_per_s is None

    def test_one_slow_moment_of_many_does_not_count_and_a_new_rate_takes_over(self) -> None:
        rate, sent = Rate(), itertools.count(MB, MB)
        for value in (9e9, 9e9, 9e9, 1e6, 9e9):
            rate.read(next(sent), value, False)
        assert rate.bytes_per_s == 9e9
        for _ in range(12):
            rate.read(next(sent), 1e6, False)
        assert rate.bytes_per_s == 1e6

    def test_a_new_connection_starts_from_nothing(self) -> None:
        rate = Rate()
        rate.read(100 * MB, 1e6, False)
        for step in range(1, 3):
            rate.read(MB * step, 1e6, False)
        assert rate.bytes_per_s == 1e6

    @pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux tells")
    def test_the_kernel_tells_of_a_connection_and_leaves_it_open(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
            far, _ = server.accept()
            reader = threading.Thread(target=lambda: [far.recv(1 << 20) for _ in iter(lambda: far.recv(1 << 20), b"")])
            reader.start()
            near.sendall(bytes(8 * MB))
            near.shutdown(socket.SHUT_WR)
            reader.join(20)
            # What has been read may be acknowledged a little later.
            wait_for(lambda: (reading := delivered(near.fileno())) is None or reading.nbytes >= 8 * MB, 20)
            reading = delivered(near.fileno())
            far.close()
            assert reading is not None
            assert reading.bytes_per_s > 0
            assert 0 < reading.round_trip_s < 1
            assert delivered(near.fileno()) is not None

    def test_what_is_no_connection_tells_nothing(self) -> None:
        with open("/dev/null", "rb") as file:
            assert delivered(file.fileno()) is None
        assert delivered(10**6) is None


class TestPacker:
    def activations(self, op: Op = Op.FORWARD) -> Task:
        values = np.maximum(np.random.default_rng(5).standard_normal(300_000, np.float32), 0)
        return Task(op, 1, 0, 0, tensor=values)

    def packer(self, text: str, rate: float | None) -> Packer:
        ticks = itertools.count(100)
        made = Packer("owner-0>node-0", lambda _op: parse_spec(text), clock=lambda: next(ticks) * 1e-6)
        for step in range(1, 4 if rate else 1):
            made.rate.read(MB * step, rate or 0.0, False)
        return made

    def test_a_slow_link_gets_a_codec_and_the_log_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        made = self.packer("auto", 20 * MBIT)
        with caplog.at_level(logging.INFO, "zmpsl"):
            assert made(self.activations()) is not NONE
        assert made.chosen == "forward huff"
        assert made.tally.codecs == {"huff": 1}
        assert "owner-0>node-0: FORWARD packs by huff instead of none, the link carries 20 Mbit/s" in caplog.text

    @pytest.mark.parametrize("rate", [None, 5e9])
    def test_an_unknown_and_a_fast_link_get_none_and_nothing_is_packed_for_trial(self, rate: float | None) -> None:
        made = self.packer("auto(slow-link)", rate)
        assert made(self.activations()) is NONE
        assert made.tally.encode_s == 0
        assert made.tally.codecs == {"none": 1}

    def test_weights_stay_exact_in_any_class(self) -> None:
        made = self.packer("auto(slow-link)", 20 * MBIT)
        packing = made(self.activations(Op.PART))
        assert packing is NONE or set(made.tally.codecs) <= {"huff", "bitmap"}

    def test_only_auto_asks_for_the_rate(self) -> None:
        assert self.packer("auto", None).adaptive
        assert not self.packer("huff", None).adaptive


class TestTelling:
    def told(self, *links: dict[str, LinkStats]) -> list[str]:
        board, events = Scoreboard(), list[Event]()
        board.listeners.append(events.append)
        for number, each in enumerate(links):
            board.progress(f"owner-{number}", Progress(plan=1, round=0, stats=Stats(links=each)))
        return [event.text for event in events if hasattr(event, "text")]

    def test_each_choice_is_told_once_however_many_owners_make_it(self) -> None:
        slow = {"owner>node-0": LinkStats(chosen="forward huff", bytes_per_s=20 * MBIT)}
        assert self.told(slow, slow, slow) == ["codec auto on owner>node-0: forward huff at 20.0 Mbit/s"]

    def test_none_is_news_only_after_something_else(self) -> None:
        none, slow = ({"owner>node-0": LinkStats(chosen=f"forward {name}")} for name in ("none", "huff"))
        assert self.told(none) == []
        assert len(self.told(none, slow, none)) == 2

    def test_links_add_up_and_subtract(self) -> None:
        one = LinkStats(raw_bytes=100, packed_bytes=50, encode_s=1.0, codecs={"huff": 2}, chosen="forward huff")
        two = LinkStats(raw_bytes=10, packed_bytes=10, decode_s=2.0, codecs={"none": 1})
        both = one.plus(two)
        assert (both.raw_bytes, both.packed_bytes, both.codecs) == (110, 60, {"huff": 2, "none": 1})
        assert both.plus(two, -1) == one
