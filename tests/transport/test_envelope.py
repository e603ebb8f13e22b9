"""Control messages that are changed or lost on the way: none is used, both sides learn of it, no round waits for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from helpers import TINY, ThreadedRun, job, wait_for
from small_hop import Hop, task_of

from zmpsl.errors import RemoteProtocolError
from zmpsl.messages import FromManager, Join, Leave, Ping, Progress, Ready, ToManager, Unheard, Welcome, encode
from zmpsl.observe.events import NoticeEvent
from zmpsl.roles.manager import Phase
from zmpsl.roles.standstill import Standstill
from zmpsl.transport.control import ControlClient, ControlServer
from zmpsl.transport.damage import DamagedError
from zmpsl.transport.envelope import Counts, LostError, Numbers, unwrap, wrap

SEED = 20241121
ENDLESS = (*TINY, "model.name=small_nets:tiny_mlp", "owners=2", "train.rounds=100000", "evaluate.every=0")


class Ends:
    """The two ends of the control plane, with a hand on what is between them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.server = ControlServer(context, "tcp://127.0.0.1:*")
        self.client = ControlClient(context, self.server.endpoint)

    def said(self, *messages: ToManager) -> list[ToManager]:
        """What the manager hears of what the member says, and then of a Leave."""
        for message in (*messages, Leave()):
            self.client.send(message)
        heard: list[ToManager] = []

        def last() -> bool:
            try:
                received = self.server.receive()
            except RemoteProtocolError:
                return False
            heard.extend([] if received is None else [received[1]])
            return isinstance(heard[-1], Leave) if heard else False

        wait_for(last, 20)
        return heard[:-1]

    def told(self, *messages: FromManager) -> list[FromManager]:
        """What the member hears of what the manager tells it, and then of a Ping."""
        for message in (*messages, Ping()):
            assert self.server.send(self.server.who, message)
        heard: list[FromManager] = []

        def last() -> bool:
            try:
                received = self.client.receive()
            except RemoteProtocolError:
                return False
            heard.extend([] if received is None else [received])
            return isinstance(heard[-1], Ping) if heard else False

        wait_for(last, 20)
        return heard[:-1]


@pytest.fixture
def ends() -> Iterator[Ends]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Ends(context)
    yield made
    made.client.close()
    made.server.close()
    context.term()


@contextmanager
def changing(monkeypatch: pytest.MonkeyPatch, kind: type) -> Iterator[None]:
    """Meanwhile messages of that kind are changed on the way."""

    def harmed(body: bytes, number: int) -> bytes:
        frame = wrap(body, number)
        return flipped(frame, random.Random(SEED), 5) if kind.__name__.encode() in body else frame

    with monkeypatch.context() as patched:
        patched.setattr("zmpsl.transport.control.wrap", harmed)
        yield


def flipped(frame: bytes, rng: random.Random, bits: int) -> bytes:
    changed = bytearray(frame)
    for bit in rng.sample(range(8 * len(frame)), bits):
        changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300, 1 << 20])
def test_a_message_comes_out_as_it_went_in(size: int):
    body = random.Random(size).randbytes(size)
    found, number = unwrap(wrap(body, 7))
    assert (bytes(found), number) == (body, 7)
    assert unwrap(wrap(body, 2**32 + 3))[1] == 3


def test_the_layout_is_that_of_the_documentation():
    assert wrap(b"zmpsl", 1).hex() == b"zmpsl".hex() + "01000000" + LAYOUT_CHECKSUM


LAYOUT_CHECKSUM = "34fcdd6ee21d21d9"


def test_no_changed_bit_is_taken():
    frame, rng = wrap(encode(Ready(plan=1, samples=20, batches=3)), 5), random.Random(SEED)
    for bit in range(8 * len(frame)):
        with pytest.raises(LostError, match=f"of {len(frame)} bytes whose checksum does not match"):
            unwrap(frame[: bit >> 3] + bytes([frame[bit >> 3] ^ (1 << (bit & 7))]) + frame[(bit >> 3) + 1 :])
    for _ in range(1000):
        with pytest.raises(LostError):
            unwrap(flipped(frame, rng, rng.randrange(2, 40)))
        with pytest.raises(LostError):
            unwrap(frame[: rng.randrange(len(frame))])


def test_numbers_tell_what_is_missing():
    numbers = Numbers()
    assert [numbers.heard(number, anew=False) for number in (4, 5, 7, 8)] == [False, False, True, False]
    assert not numbers.heard(30, anew=True)
    assert numbers.damaged() == 31
    assert not numbers.heard(32, anew=False)
    assert not numbers.heard(2**32 - 1, anew=True)
    assert not numbers.heard(0, anew=False)


def test_who_was_not_spoken_to_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zmpsl.transport.envelope.MOST_PEERS", 2)
    counts = Counts()
    for who in (b"a", b"b", b"a"):
        counts.of(who).sent += 1
    counts.of(b"c")
    assert (counts.of(b"a").sent, counts.of(b"b").sent) == (2, 0)


# -- the two ends ------------------------------------------------------------------------------------------------------


def test_a_damaged_message_to_the_manager(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    assert ends.said(Join(role="owner"), Ready(plan=1))
    with changing(monkeypatch, Ready):
        assert ends.said(Ready(plan=1), Progress(plan=1, round=0)) == [Progress(plan=1, round=0)]
    assert ends.server.rejected == 1
    assert [number for _, number in ends.server.losses] == [3]  # Join, Ready, Leave, and then this
    ends.told(Unheard(number=3))
    assert ends.client.lost()
    assert not ends.client.lost()
    assert ends.said(Join(role="owner"))
    ends.told(Unheard(number=3))
    assert not ends.client.lost()  # it has joined since
    assert len(ends.server.losses) == 1


def test_a_message_that_the_manager_never_got(ends: Ends):
    assert ends.said(Join(role="owner"))
    ends.client._numbers.sent += 1
    assert ends.said(Progress(plan=1, round=0)) == [Progress(plan=1, round=0)]  # it is still heard
    assert [number for _, number in ends.server.losses] == [3]
    ends.client._numbers.sent += 10
    ends.said(Join(role="owner"))  # after which nobody waits for anything that was said before
    assert len(ends.server.losses) == 1


def test_damaged_and_missing_messages_to_a_member(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    ends.said(Join(role="owner"))
    assert ends.told(Welcome(place="owner-0")) == [Welcome(place="owner-0")]
    assert not ends.client.lost()
    with changing(monkeypatch, Welcome):
        assert ends.told(Welcome(place="owner-0")) == []
    assert ends.client.rejected == 1
    assert ends.client.lost()
    ends.said(Join(role="owner"))
    ends.told(Welcome(place="owner-0"))
    assert not ends.client.lost()
    ends.server._counts.of(ends.server.who).sent += 1
    ends.told(Welcome(place="owner-0"))
    assert ends.client.lost()


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Join", "Described", "Ready", "Trained", "Prepared", "Paused"])
def test_a_run_in_which_one_message_to_the_manager_is_damaged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It goes on, whatever it was; and tells of it."""
    goes_on(tmp_path, monkeypatch, kind)


@pytest.mark.parametrize("kind", ["Welcome", "Describe", "Publish", "Begin", "Committed", "Pause"])
def test_a_run_in_which_one_message_to_a_member_is_damaged(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    goes_on(tmp_path, monkeypatch, kind)


def goes_on(runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Damages the first message of a kind of a run; it still trains."""
    left, rng = [1], random.Random(SEED)

    def harmed(body: bytes, number: int) -> bytes:
        frame = wrap(body, number)
        if b"\xa4type" + bytes([0xA0 + len(kind)]) + kind.encode() not in body[:32] or not left[0]:
            return frame
        left[0] -= 1
        return flipped(frame, rng, 5)

    monkeypatch.setattr("zmpsl.transport.control.wrap", harmed)
    with ThreadedRun(job(*ENDLESS, "recover.still_s=1000"), runs) as run:
        manager = run.manager.manager
        if kind in ("Paused", "Pause"):
            wait_for(lambda: manager.phase is Phase.TRAINING, 30)
            manager.recovery.suspect("node-0", "a test wants so")
        reached = lambda: not left[0] and manager.phase is Phase.TRAINING and manager.round >= 3  # noqa: E731
        wait_for(lambda: reached() or run.manager.drain(0), 40)
        assert reached(), run.manager.error
        told = [event.text for event in run.events if isinstance(event, NoticeEvent)]
        assert kind == "Join" or manager.plan.version == 1 or any("cut off" in text for text in told)


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_a_header_with_many_flipped_bits_is_told_of_by_its_connection():
    """Nobody can tell whose it was; but over that connection a peer has spoken before."""
    hop, rng = Hop(), random.Random(SEED)
    hop.link.send(task_of(3, 1000))
    (frame,) = hop.wire.messages.popleft()
    hop.say(flipped(frame[:152], rng, 6) + frame[152:])
    with pytest.raises(RemoteProtocolError) as found:
        hop.inbox.receive()
    assert not isinstance(found.value, DamagedError)  # a stranger
    hop.say(frame)
    assert hop.inbox.receive() is not None
    for wrong in (flipped(frame[:152], rng, 6) + frame[152:], b"", rng.randbytes(70)):
        hop.wire.source = 3
        hop.say(wrong)
        with pytest.raises(DamagedError) as told:
            hop.inbox.receive()
        assert told.value.task.batch == 3
        hop.wire.source = 4
        hop.say(wrong)
        with pytest.raises(RemoteProtocolError) as found:
            hop.inbox.receive()
        assert not isinstance(found.value, DamagedError)


# -- what nobody can tell of -------------------------------------------------------------------------------------------


def said(count: int, *, busy: bool = False) -> Progress:
    return Progress(plan=1, round=0, batches=count, busy=busy)


def test_all_must_stand_still_at_the_same_time():
    still = Standstill()
    places = ("owner-0", "node-0")
    still.hear("owner-0", said(1))
    assert not still.stands(places, 0.0, 5.0)
    still.hear("node-0", said(7))
    assert not still.stands(places, 1.0, 5.0)
    still.hear("node-0", said(7))
    assert not still.stands(places, 20.0, 5.0)  # the owner has said nothing for long: it works
    still.hear("owner-0", said(2))
    assert not still.stands(places, 20.5, 5.0)
    still.hear("owner-0", said(2))
    still.hear("node-0", said(7))
    assert not still.stands(places, 25.0, 5.0)
    still.hear("owner-0", said(2))
    assert not still.stands(places, 26.0, 5.0)  # the node has not said so since
    still.hear("node-0", said(7))
    assert still.stands(places, 26.5, 5.0)
    still.restart()
    assert not still.stands(places, 40.0, 5.0)


def test_who_imitates_work_is_busy():
    still = Standstill()
    for now in range(10):
        still.hear("owner-0", said(1))
        still.hear("node-0", said(1, busy=True))
        assert not still.stands(("owner-0", "node-0"), now, 5.0)


def test_a_round_in_which_a_message_vanishes_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A task that no checksum and no number tells of."""
    from zmpsl.transport.link import Link

    real, swallowed = Link._send, []

    def send(link: Link, first: bytes, chunk: memoryview | bytes | None) -> bool:
        if not swallowed and link.name == "node-1":
            swallowed.append(first)
            return True
        return real(link, first, chunk)

    monkeypatch.setattr(Link, "_send", send)
    with ThreadedRun(job(*ENDLESS, "recover.still_s=1"), tmp_path) as run:
        manager = run.manager.manager
        wait_for(lambda: manager.round >= 2 or run.manager.drain(0), 40)
        assert swallowed
        assert manager.plan.version == 2
        told = [event.text for event in run.events if isinstance(event, NoticeEvent)]
        assert any("nobody has had anything to do for 1 s (recover.still_s)" in text for text in told)
