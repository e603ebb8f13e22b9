"""Two hosts and the line between them: packets are lost, late and overtaken, or none comes through at all.

Below TCP, where proxies cannot reach. Every commit is that of the quiet run. Needs root and TUN devices, and is skipped
where there are none. A few of each by default, all with `--all-faults`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from faults import CODECS, settings
from striking import Blow, Field, Outcome, disturbed, kills, waits
from struck import FEW, SEED, SEEDED, SLOW, SMALL, in_bounds, quiet
from two_hosts import FAR, NEAR, Line, TwoHosts, Weather, enter, silences, why_not

MORE = pytest.mark.all_faults


@pytest.fixture
def line() -> Iterator[Line]:
    if reason := why_not():
        pytest.skip(reason)
    made = Line(Weather(), SEED)
    yield made
    made.close()


def over(line: Line, tmp_path: Path, codec: str, blows: list[Blow], seed: int) -> Outcome:
    """A run of which node-1 and owner-1 are at the far end, and what became of it."""
    site = TwoHosts(settings(codec, *SMALL, SLOW, f"train.rounds={FEW}"), line)
    outcome = disturbed(site, tmp_path, "line", blows, quiet(FEW), random.Random(seed))
    assert outcome.right, f"seed {seed}: rounds {outcome.wrong} differ; {outcome.text}"
    return outcome


def test_the_line_loses_and_delays_what_it_says(line: Line):
    """Or the tests below would prove nothing."""
    import socket

    line.weather = Weather(loss=0.2, jitter_s=0.002)
    heard: list[bytes] = []
    ready = threading.Event()

    def listen() -> None:
        enter(line.far)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inbox:
            inbox.bind((FAR, 9))
            inbox.settimeout(10)
            ready.set()
            while (last := inbox.recv(100)) != b"the end":
                heard.append(last)

    def speak() -> None:
        enter(line.near)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outbox:
            outbox.bind((NEAR, 0))
            for number in range(1000):
                outbox.sendto(b"%d" % number, (FAR, 9))
                threading.Event().wait(0.0002)
            line.weather = Weather()
            threading.Event().wait(0.1)
            outbox.sendto(b"the end", (FAR, 9))

    threads = [threading.Thread(target=each) for each in (listen, speak)]
    threads[0].start()
    ready.wait(10)
    threads[1].start()
    for each in threads:
        each.join(30)
    assert 650 < len(heard) < 950
    assert len(set(heard)) == len(heard)
    assert heard != sorted(heard, key=int)
    assert line.counts["lost"] == 1000 - len(heard)
    assert line.counts["overtaken"] > 10


@SEEDED
@pytest.mark.timeout(300)
def test_packets_are_lost_and_late_and_the_line_falls_silent(line: Line, tmp_path: Path, seed: int):
    line.weather = Weather(loss=0.03, delay_s=0.002, jitter_s=0.003)
    outcome = over(line, tmp_path, "none", [waits(2), kills("node-1"), silences(1)], seed)
    assert line.counts["lost"] > 100
    assert line.counts["overtaken"] > 100
    assert outcome.begun_again >= 1


@SEEDED
@MORE
@pytest.mark.timeout(600)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_more_or_fewer_packets_are_lost(line: Line, tmp_path: Path, loss: float, codec: str, seed: int):
    """TCP sends them again; nothing of ours takes a connection for broken because of that."""
    line.weather = Weather(loss=loss, delay_s=0.01, jitter_s=0.005)
    outcome = over(line, tmp_path, codec, [waits(15)], seed)
    assert line.counts["lost"] > 50
    assert outcome.begun_again == 0


@SEEDED
@MORE
@pytest.mark.timeout(600)
@pytest.mark.parametrize("one_way", ["", "there", "back"], ids=["both ways", "there", "back"])
@pytest.mark.parametrize("seconds", [1, 5, 60])
def test_the_line_falls_silent(
    line: Line, tmp_path: Path, seconds: float, one_way: Literal["", "there", "back"], seed: int
):
    """No connection is told. It is noticed while it lasts, where it lasts, and the run goes on after it."""
    line.weather = Weather(delay_s=0.005)
    outcome = over(line, tmp_path, "lossless", [silences(seconds, one_way)], seed)
    assert seconds < 60 or outcome.noticed_s
    in_bounds(outcome, "silent", seed)


@SEEDED
@MORE
@pytest.mark.timeout(600)
def test_a_slow_line_that_loses_packets(line: Line, tmp_path: Path, seed: int):
    """20 Mbit/s with 40 ms there and back, then 2, then 20; what does not fit into its queue is lost too."""
    line.weather = Weather(loss=0.005, delay_s=0.02, bytes_per_s=20 * 125e3)

    def rate(mbit: float, seconds: float) -> Blow:
        def strike(ground: Field) -> None:
            line.weather.bytes_per_s = mbit * 125e3
            ground.over.wait(seconds)

        return Blow(strike, seconds)

    assert over(line, tmp_path, "lossless", [rate(20, 5), rate(2, 10), rate(20, 5)], seed).begun_again == 0
