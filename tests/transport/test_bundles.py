"""Small tasks that wait leave in one frame and arrive as if each had come alone; a wrong frame gives nothing at all."""

from __future__ import annotations

import struct
import time
from zlib import crc32

import numpy as np
import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_hop import LIMIT, Hop, frame_of, same, task_of

from zmpsl.codecs import NONE
from zmpsl.errors import LocalProtocolError, RemoteProtocolError
from zmpsl.transport.buffers import ALIGNMENT
from zmpsl.transport.link import BUNDLE, Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, HEADER_BYTES, INLINE, MAX_MESSAGE, messages, parse


def sealed(frame: bytes, at: int, code: str, value: int) -> bytes:
    """A frame with a field of its first header replaced and a checksum that fits."""
    data = bytearray(frame)
    struct.pack_into(f"<{code}", data, at, value)
    struct.pack_into("<I", data, 148, crc32(data[:148]))
    return bytes(data)


class TestSending:
    @pytest.mark.parametrize("nbytes", [None, 0, 1000, INLINE])
    def test_what_does_not_wait_leaves_alone_and_at_once(self, nbytes: int | None) -> None:
        hop = Hop()
        for batch in range(20):
            hop.link.send(task_of(batch, nbytes))
            assert len(hop.wire.sent) == batch + 1
        assert {tuple(sizes) for sizes in hop.wire.sent} == {(HEADER_BYTES + (nbytes or 0),)}

    def test_what_waits_leaves_in_frames_of_at_most_a_bundle(self) -> None:
        hop, sent = Hop(), [task_of(batch, INLINE) for batch in range(21)]
        hop.wire.room = 0
        for task in sent:
            hop.link.send(task)
        assert hop.link.blocked
        assert hop.wire.sent == []
        hop.wire.room = 100
        hop.link.flush()
        one = HEADER_BYTES + INLINE
        assert hop.wire.sent == [[one], [8 * one], [8 * one], [4 * one]]  # the first had met the full socket
        assert max(map(sum, hop.wire.sent)) <= BUNDLE <= MAX_MESSAGE
        assert not hop.link.blocked
        assert same(hop.tasks(), sent)

    def test_a_full_socket_is_not_asked_again_for_every_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hop = Hop()
        hop.wire.room = 0
        hop.link.send(task_of(0))
        monkeypatch.setattr(hop.wire, "send", lambda *_args, **_named: pytest.fail("asked"))
        for batch in range(1, 10):
            hop.link.send(task_of(batch))

    def test_a_frame_that_was_refused_leaves_as_it_was(self) -> None:
        hop, sent = Hop(), [task_of(batch) for batch in range(5)]
        hop.wire.room = 0
        for task in sent:
            hop.outbox.push(task)
        for _ in range(3):
            hop.link.flush()
        hop.outbox.push(task_of(5))
        hop.wire.room = 9
        hop.link.flush()
        assert [sum(sizes) for sizes in hop.wire.sent] == [5 * 1152, 1152]
        assert same(hop.tasks(), [*sent, task_of(5)])

    def test_large_tensors_travel_by_themselves_and_keep_their_place(self) -> None:
        sizes = [10, 20, INLINE + 1, 30, 2 * CHUNK + 40, 50, None, CHUNK, 60, 70]
        hop, sent = Hop(), [task_of(batch, nbytes) for batch, nbytes in enumerate(sizes)]
        for task in sent:
            hop.outbox.push(task)
        hop.link.flush()
        h = HEADER_BYTES
        assert hop.wire.sent == [
            [2 * h + 30], [h, INLINE + 1], [h + 30], [h, CHUNK], [h, CHUNK],
            [h + 40], [2 * h + 50], [h, CHUNK], [2 * h + 130],
        ]  # fmt: skip
        assert same(hop.tasks(), sent)
        assert hop.inbox.received_bytes == hop.link.sent_bytes == sum(map(sum, hop.wire.sent))

    def test_a_tensor_that_cannot_travel_takes_nothing_along(self) -> None:
        hop, sent = Hop(), [task_of(batch) for batch in range(4)]
        for task in sent[:2]:
            hop.outbox.push(task)
        hop.outbox.push(Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros((4, 4), np.uint8).T))
        for task in sent[2:]:
            hop.outbox.push(task)
        with pytest.raises(LocalProtocolError, match="not C-contiguous"):
            hop.link.flush()
        hop.link.flush()
        assert same(hop.tasks(), sent)


class TestReceiving:
    def test_every_message_counts_as_if_it_had_come_alone(self) -> None:
        hop, sent = Hop(), [task_of(batch, nbytes) for batch, nbytes in enumerate([5, None, 0, INLINE, 77])]
        hop.say(b"".join(frame_of(task, credit=10 + task.batch) for task in sent))
        found = hop.received()
        assert [header.credit for header, _ in found] == [10, 11, 12, 13, 14]
        assert same([task for _, task in found if task is not None], sent)
        assert hop.inbox.rejected == 0

    def test_a_frame_is_midway_until_its_last_message_is_received(self) -> None:
        hop = Hop()
        hop.say(frame_of(*map(task_of, range(3))))
        seen = [hop.inbox.midway]
        while hop.inbox.receive() is not None:
            seen.append(hop.inbox.midway)
        assert seen == [False, True, True, False]

    def test_each_tensor_has_aligned_memory_of_its_own(self) -> None:
        # A small tensor that is kept must not keep the whole frame.
        hop = Hop()
        hop.say(frame_of(*(task_of(batch, nbytes) for batch, nbytes in enumerate([3, 5000, INLINE, 100]))))
        found = hop.tasks()
        assert all(task.tensor is not None and task.tensor.ctypes.data % ALIGNMENT == 0 for task in found)
        kept = found[0]
        del found
        assert kept.tensor is not None
        assert hop.inbox.pool.leased_bytes == 4096

    def test_packed_chunks_and_plain_ones_share_a_frame(self) -> None:
        hop, sent = Hop(codec="lz4"), [task_of(batch, nbytes) for batch, nbytes in enumerate([50_000, 3, None, 40_000])]
        for task in sent:
            hop.outbox.push(task)
        hop.link.flush()
        assert len(hop.wire.sent) == 1
        found = hop.received()
        assert [header.codec for header, _ in found] == [1, 0, 0, 1]
        assert same([task for _, task in found if task is not None], sent)

    def test_the_end_of_a_large_tensor_may_share_a_frame(self) -> None:
        hop, large = Hop(), task_of(0, CHUNK + 9)
        first, last = messages(large, NONE, 0)
        hop.say(first[0], bytes(first[1] or b""))
        hop.say(frame_of(task_of(1)) + last[0] + bytes(last[1] or b"") + frame_of(task_of(2)))
        assert same(hop.tasks(), [task_of(1), large, task_of(2)])

    def test_a_task_that_is_not_for_us_takes_nothing_along(self) -> None:
        hop = Hop()

        def admit(task: Task) -> None:
            if task.owner == 9:
                raise RemoteProtocolError("not for us")

        hop.inbox.admit = admit
        hop.say(frame_of(task_of(0), task_of(1, owner=9), task_of(2)))
        assert same([hop.inbox.receive()[1]], [task_of(0)])  # type: ignore[index,list-item]
        with pytest.raises(RemoteProtocolError, match="not for us"):
            hop.inbox.receive()
        assert same(hop.tasks(), [task_of(2)])
        assert hop.inbox.rejected == 1


GOOD = frame_of(task_of(0, 6), task_of(1, None), task_of(2, 48))
SECOND = HEADER_BYTES + 6  # where the second message begins


class TestHostileFrames:
    @pytest.mark.parametrize(
        "frames",
        {
            "nothing": [b""],
            "last chunk cut": [GOOD[:-1]],
            "last chunk missing": [GOOD[:-48]],
            "last header cut": [GOOD[:-49]],
            "one byte more": [GOOD + b"\0"],
            "zeros behind": [GOOD + bytes(HEADER_BYTES)],
            "a header cut behind": [GOOD + GOOD[: HEADER_BYTES - 1]],
            "a chunk of another length": [GOOD[:HEADER_BYTES] + GOOD[HEADER_BYTES + 1 :]],
            "a wrong checksum": [GOOD[: SECOND + 149] + b"\0" + GOOD[SECOND + 150 :]],
            "a wrong first header": [b"ZP" + GOOD[2:]],
            "a large chunk": [GOOD + frame_of(task_of(3, INLINE + 1))],
            "a large chunk first": [frame_of(task_of(3, INLINE + 1)) + GOOD],
            "the start of a large tensor": [GOOD + frame_of(task_of(3, 2 * CHUNK))[: HEADER_BYTES + INLINE]],
            "a claim over the limit": [GOOD + sealed(frame_of(task_of(3, 2 * CHUNK)), 76, "Q", LIMIT + 1)],
            "a second frame": [GOOD, b""],
            "a chunk's frame behind it": [GOOD + frame_of(task_of(3, CHUNK))[:HEADER_BYTES], bytes(CHUNK)],
            "a chunk in a frame of its own": [GOOD[:HEADER_BYTES], GOOD[HEADER_BYTES:SECOND]],
            "no tensor and a second frame": [frame_of(task_of(0, None)), bytes(CHUNK)],
        }.items(),
        ids=lambda item: item[0].replace(" ", "-"),
    )
    def test_nothing_of_a_wrong_frame_is_used(self, frames: tuple[str, list[bytes]]) -> None:
        hop = Hop()
        hop.say(*frames[1])
        hop.say(GOOD)
        with pytest.raises(RemoteProtocolError):
            hop.inbox.receive()
        assert (hop.inbox.rejected, hop.inbox.midway, hop.inbox.pool.allocations) == (1, False, 0)
        assert same(hop.tasks(), [task_of(0, 6), task_of(1, None), task_of(2, 48)])

    def test_a_chunk_that_cannot_be_unpacked_ends_its_frame(self) -> None:
        hop, packed = Hop(), bytearray(frame_of(task_of(1, 50_000), codec="lz4"))
        packed[HEADER_BYTES:] = b"\xff" * (len(packed) - HEADER_BYTES)
        hop.say(frame_of(task_of(0)) + packed + frame_of(task_of(2)))
        assert same([hop.inbox.receive()[1]], [task_of(0)])  # type: ignore[index,list-item]
        with pytest.raises(RemoteProtocolError, match="cannot be unpacked"):
            hop.inbox.receive()
        assert hop.received() == []
        assert (hop.inbox.rejected, hop.inbox.pool.leased_bytes) == (1, 0)

    def test_a_chunk_that_does_not_follow_ends_its_frame(self) -> None:
        hop = Hop()
        _, last = messages(task_of(1, CHUNK + 9), NONE, 0)
        hop.say(last[0] + bytes(last[1] or b"") + frame_of(task_of(2)))
        with pytest.raises(RemoteProtocolError, match="does not follow"):
            hop.inbox.receive()
        assert hop.received() == []

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3),
        st.integers(-len(GOOD), 200),
        st.booleans(),
    )
    @example([], 0, False)
    def test_changed_bytes_become_numbers_or_an_error(
        self, changes: list[tuple[int, int]], length: int, resealed: bool
    ) -> None:
        frame = GOOD
        for at, value in changes:
            start = max(start for start in (0, SECOND, SECOND + HEADER_BYTES) if start <= at)
            if resealed and 2 <= at - start < 148:
                frame = frame[:start] + sealed(frame[start:], at - start, "B", value)
            else:
                frame = frame[:at] + bytes([value]) + frame[at + 1 :]
        frame = frame[:length] if length < 0 else frame + bytes(length)
        hop, errors = Hop(), 0
        hop.say(frame)
        hop.say(GOOD)
        found = []
        while True:
            try:
                if (each := hop.inbox.receive()) is None:
                    break
                found.append(each)
            except RemoteProtocolError:
                errors += 1
        assert hop.inbox.rejected == errors <= 1
        good = [parse(GOOD[at : at + HEADER_BYTES], LIMIT) for at in (0, SECOND, SECOND + HEADER_BYTES)]
        assert [header for header, _ in found[-3:]] == good


STEPS = st.one_of(
    st.tuples(
        st.just("push"), st.integers(0, 2),
        st.none() | st.integers(0, 3000) | st.sampled_from([INLINE - 1, INLINE, INLINE + 1, CHUNK, CHUNK + 5]),
    ),
    st.tuples(st.just("room"), st.integers(0, 4), st.none()),
    st.tuples(st.just("flush"), st.just(0), st.none()),
    st.tuples(st.just("receive"), st.integers(1, 9), st.none()),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from(["none", "lz4"]), st.sampled_from([5000, CHUNK, 1 << 40]))
def test_whatever_waits_wherever_all_arrives_in_order(
    steps: list[tuple[str, int, int | None]], codec: str, credit_bytes: int
) -> None:
    """Tasks pushed, sockets full, frames read in part: each owner's tasks arrive once, unchanged and in order."""
    hop, sent, found = Hop(credit_bytes, codec), [], []
    hop.wire.room = 0

    def receive(limit: int) -> None:
        for _ in range(limit):
            each = hop.inbox.receive()
            if each is None:
                return
            if each[1] is not None:
                found.append(each[1])
                hop.outbox.grant(each[1].owner, each[1].nbytes)

    for what, number, nbytes in steps:
        match what:
            case "push":
                sent.append(task_of(len(sent), nbytes, number))
                hop.link.send(sent[-1])
            case "room":
                hop.wire.room = number
            case "flush":
                hop.link.flush()
            case "receive":
                receive(number)
    hop.wire.room = 1 << 30
    while hop.outbox or hop.link.blocked or hop.wire.messages or hop.inbox.midway:
        hop.link.flush()
        receive(1 << 30)
    assert hop.outbox.held == 0
    assert hop.inbox.rejected == 0
    for owner in range(3):
        assert same([task for task in found if task.owner == owner], [task for task in sent if task.owner == owner])
    if credit_bytes == 1 << 40:
        assert same(found, sent)
    assert all(sizes[0] <= BUNDLE for sizes in hop.wire.sent)


def test_over_sockets_all_of_a_full_outbox_arrives_in_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same over ZeroMQ, whose receiver starts to read when its sender is full."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = Inbox(context, "tcp://127.0.0.1:*", LIMIT)
    outbox = Outbox(0, lambda _task: NONE, 1 << 30)
    link = Link(context, "peer", inbox.endpoint, outbox)
    try:
        sent = [task_of(batch, [INLINE, None, 300][batch % 3]) for batch in range(2000)]
        for task in sent:
            link.send(task)
        assert link.blocked
        found: list[Task] = []
        deadline = time.monotonic() + 30
        while len(found) < len(sent) and time.monotonic() < deadline:
            link.flush()
            if inbox.socket.poll(10):
                while (each := inbox.receive()) is not None:
                    found += [each[1]] if each[1] is not None else []
        assert same(found, sent)
    finally:
        link.close()
        inbox.close()
        context.term()
