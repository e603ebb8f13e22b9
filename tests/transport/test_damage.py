"""Bits that are flipped on the way: nothing of them is used, whose they were is told, and the round begins again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import settings
from harmed import Site, control, places_of
from msgspec.structs import replace
from small_hop import LIMIT, Hop, same, task_of
from striking import disturbed, flips, quiet_run

from zmpsl.codecs import NONE, by_name
from zmpsl.errors import RemoteProtocolError
from zmpsl.observe.events import NoticeEvent, read_events
from zmpsl.transport.damage import DamagedError, mended
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, INLINE, messages, parse

SEED = 20241121


def sealed_hop(codec: str = "none") -> Hop:
    hop = Hop(codec=codec)
    hop.outbox._sealed = True
    return hop


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def sent(nbytes: int, codec: str = "none") -> list[list[bytes]]:
    """Frames of one task as they lie on the wire, sealed."""
    hop = sealed_hop(codec)
    hop.link.send(task_of(3, nbytes))
    return [list(frames) for frames in hop.wire.messages]


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("nbytes", [1, 1000, INLINE, INLINE + 1, CHUNK, 2 * CHUNK + 40])
def test_sealed_tensors_arrive_as_they_were(nbytes: int, codec: str) -> None:
    hop = sealed_hop(codec)
    hop.link.send(task_of(3, nbytes))
    (found,) = hop.received()[-1:]
    assert found[0].seal is not None
    assert same([found[1]], [task_of(3, nbytes)])  # type: ignore[list-item]


def flips_of(frames: list[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """The same messages with one bit flipped, in places drawn at random."""
    rng = random.Random(SEED)
    for number, message in enumerate(frames):
        for which, frame in enumerate(message):
            for _ in range(60):
                changed = [list(each) for each in frames]
                changed[number][which] = flipped(frame, rng.randrange(8 * len(frame)))
                yield changed


@pytest.mark.parametrize("codec", ["none", "lz4"])
@pytest.mark.parametrize("nbytes", [1000, INLINE + 1, CHUNK + 40])
def test_no_flipped_bit_of_a_tensor_is_used_and_its_sender_is_known(nbytes: int, codec: str) -> None:
    for frames in flips_of(sent(nbytes, codec)):
        hop, errors, tasks = Hop(), [], []
        for message in frames:
            hop.say(*message)
        while True:
            try:
                if (found := hop.inbox.receive()) is None:
                    break
                tasks.append(found[1])
            except RemoteProtocolError as error:
                errors.append(error.with_traceback(None))  # which holds the buffer
        assert [task for task in tasks if task is not None] == []
        assert isinstance(errors[0], DamagedError)
        assert replace(errors[0].task, tensor=None) == replace(task_of(3, nbytes), tensor=None, sender=7)
        assert hop.inbox.rejected == len(errors)
        hop.inbox.forget()  # as when the round begins again
        assert hop.inbox.pool.leased_bytes == 0


def test_without_a_checksum_a_flipped_bit_arrives() -> None:
    """What `network.checksum: never` means; under keys the connection would have ended."""
    hop = Hop()
    hop.link.send(task_of(3, 1000))
    (message,) = hop.wire.messages
    message[0] = flipped(message[0], 8 * len(message[0]) - 1)
    assert not same(hop.tasks(), [task_of(3, 1000)])


def test_the_bit_of_a_header_that_was_flipped_is_found() -> None:
    task = Task(Op.BACKWARD, 5, 2, 3, 4, 5, 6, 7, 8, 9, np.ones(10, np.float32))
    header = next(messages(task, NONE, 0))[0]
    assert all(mended(flipped(header, bit)) == header for bit in range(8 * len(header)))
    for bit in range(8 * len(header)):
        with pytest.raises(DamagedError) as caught:
            parse(flipped(header, bit), LIMIT)
        assert replace(caught.value.task, tensor=None) == replace(task, tensor=None)
    rng = random.Random(SEED)
    for _ in range(300):
        with pytest.raises(RemoteProtocolError) as found:
            parse(rng.randbytes(len(header)), LIMIT)
        assert not isinstance(found.value, DamagedError)


def test_what_is_told_of_a_damaged_chunk() -> None:
    (message,) = sent(1000)
    hop = Hop()
    hop.say(flipped(message[0], 8 * len(message[0]) - 1))
    with pytest.raises(
        DamagedError, match=r"FORWARD owner 0 .*chunk of 1000 bytes at 0 of 1000 was changed on the way"
    ):
        hop.inbox.receive()


def test_a_packed_chunk_is_checked_before_it_is_unpacked() -> None:
    first, chunk = next(messages(task_of(0, 50_000), by_name("lz4"), 0, sealed=True))
    hop = Hop()
    hop.inbox.unpack = lambda *_: pytest.fail("unpacked")  # type: ignore[assignment]
    hop.say(first + b"\xff" + bytes(chunk or b"")[1:])
    with pytest.raises(DamagedError):
        hop.inbox.receive()


@pytest.mark.parametrize("codec", ["none", pytest.param("lossless", marks=pytest.mark.all_faults)])
def test_a_run_without_keys_through_flipping_proxies_ends_with_the_same_weights(tmp_path: Path, codec: str) -> None:
    """Single bits of tasks; then five at a time anywhere, also in ZeroMQ's own bytes; then of control messages."""
    small = (
        "data.args.limit=120",
        "data.args.test_limit=48",
        "train.batch_size=20",
        "train.rounds=150",
        "emulate.slow_down={owner: 8}",
        "recover.still_s=5",
    )
    job = settings(codec, *small)
    site = Site(job)
    try:
        places = places_of(job)
        blows = [
            flips(50_000, 2, places), flips(50_000, 2, bits=5), flips(1500, 2, [control(place) for place in places], 5),
        ]  # fmt: skip
        right = quiet_run(settings("none", *small[:-2]), tmp_path / "calm")
        outcome = disturbed(site, tmp_path, "struck", blows, right, random.Random(SEED))
        of_tasks, of_control = (
            sum(site.harms[way].counts["flips"] for way in ways) for ways in (places, [*map(control, places)])
        )
    finally:
        site.close()
    assert outcome.right, f"rounds {outcome.wrong} differ; {outcome.text}"
    texts = [
        event.text for event in read_events(tmp_path / "struck" / "metrics.jsonl") if isinstance(event, NoticeEvent)
    ]
    told = [text for text in texts if "got damaged bytes" in text]
    assert of_tasks > 3
    assert of_control > 3
    assert outcome.begun_again >= 3
    assert told
    assert any("was lost on the way" in text for text in texts)
