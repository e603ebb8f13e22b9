"""Messages with packed chunks, damaged in any way: a receiver says RemoteProtocolError, or holds what the bytes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_hop import Hop

from zmpsl.codecs import by_name, qz_of
from zmpsl.errors import RemoteProtocolError
from zmpsl.job.codec import parse_spec
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.packing import Packer, Unpacker
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import INLINE, messages

TEXTS = ["none", "lz4", "bitmap", "huff", "bf16", "bf16-huff", "int8", "int4", "qz(0.5)", "topk(0.3)"]
FUZZ = settings(max_examples=60, deadline=None)


def values_of(n: int, wild: bool) -> np.ndarray:
    values = np.maximum(np.random.default_rng(n).standard_normal(n, np.float32), 0)
    if wild:
        values[::5], values[1::5], values[2::7] = np.nan, np.inf, -0.0
    return values


def sent(text: str, values: np.ndarray, mask: KnownMask | None) -> list[bytes]:
    """The frames of one tensor as its sender packs it."""
    task = Task(Op.FORWARD if mask is None else Op.BACKWARD, 1, 0, 0, tensor=values, mask=mask)
    packing = Packer("link", lambda _op: parse_spec(text))(task)
    ((header, chunk),) = messages(task, packing, 0)
    small = chunk is None or len(chunk) <= INLINE
    return [header + bytes(chunk or b"")] if small else [header, bytes(chunk)]


def receive(hop: Hop) -> list[Task]:
    """Takes all messages there are; what a peer did wrong may only be told in one way."""
    found = []
    while hop.wire.messages or hop.inbox.midway:
        try:
            each = hop.inbox.receive()
        except RemoteProtocolError:
            continue
        if each is not None and each[1] is not None:
            found.append(each[1])
    return found


damage = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", TEXTS)
@FUZZ
@given(n=st.sampled_from([1, 2, 7, 63, 257, 1001, 5000]), wild=st.booleans(), changes=damage, cut=st.integers(0, 60))
def test_damaged_messages(
    text: str, masked: bool, n: int, wild: bool, changes: list[tuple[int, int]], cut: int
) -> None:
    values = values_of(n, wild)
    mask = KnownMask(values_of(n, False)) if masked else None
    frames = [bytearray(frame) for frame in sent(text, values, mask)]
    for at, value in changes:
        frame = frames[at % len(frames)]
        if frame:
            # The first bytes matter most: headers, tables, counts.
            frame[at // 2 % min(len(frame), 96 if at % 2 else len(frame))] = value
    frames[-1] = frames[-1][: len(frames[-1]) - (cut if cut < 40 else 0)]
    hop = Hop()
    hop.inbox.unpack = Unpacker(lambda _task: mask)
    hop.say(*map(bytes, frames))
    for task in receive(hop):
        assert task.tensor is None or task.tensor.nbytes <= 1 << 24
    # And nothing is left behind that would harm the next one.
    hop.say(*sent("huff", values, mask))
    (task,) = [task for task in receive(hop) if task.tensor is not None and task.owner == 0]
    expected = values if mask is None else np.where(values_of(n, False) != 0, values, np.float32(0))
    assert task.tensor is not None
    assert task.tensor.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3,), (5, 7)])
@pytest.mark.parametrize("text", TEXTS)
def test_every_shape_has_a_defined_result(text: str, shape: tuple[int, ...]) -> None:
    values = np.full(shape, 0.5, np.float32)
    hop = Hop()
    hop.inbox.unpack = Unpacker(lambda _task: None)
    hop.say(*sent(text, values, None))
    (task,) = receive(hop)
    assert task.tensor is not None
    assert task.tensor.shape == shape
    assert np.allclose(task.tensor, values, rtol=0.3)


@pytest.mark.parametrize("codec", [by_name("huff"), by_name("bf16-huff"), qz_of(0.5)], ids=lambda c: c.name)
def test_a_chunk_of_nothing_but_nan_and_infinity(codec: object) -> None:
    values = np.full(3000, np.nan, np.float32)
    values[::2] = -np.inf
    body = codec.pack(values.view(np.uint8).data)  # type: ignore[attr-defined]
    back = np.zeros(values.nbytes, np.uint8)
    if body is not None:
        codec.unpack_into(memoryview(body), back)  # type: ignore[attr-defined]
        assert np.array_equal(back.view(np.float32), values, equal_nan=True)
