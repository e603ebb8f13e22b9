"""Frames of several messages that strangers send to a run: what is wrong in one of them changes no weight."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import zmq
from helpers import wait_for
from hostile import Frames, parts_of, task_for
from siege import siege

from zmpsl.transport.task import Op
from zmpsl.transport.wire import CHUNK, HEADER_BYTES, INLINE


def broken_frames() -> Iterator[Frames]:
    """A message node-0 could use, in one frame with something that is wrong."""
    good, other = (b"".join(parts_of(task_for(batch=batch))) for batch in (0, 1))
    large, chunk = parts_of(task_for(tensor=np.zeros(CHUNK, np.uint8)))
    yield from ([good + wrong] for wrong in (b"\0", other[:-1], other[:100], other + b"\0", b"ZP" + other[2:]))
    yield from ([good + large + chunk[:size]] for size in (INLINE, CHUNK - len(good) - HEADER_BYTES, CHUNK))
    yield [good + other, b""]
    yield [good + large, chunk]


def test_nothing_of_a_broken_frame_is_used():
    """Each counts once, and the message in front that is whole and right is not trained with."""
    frames = list(broken_frames())
    with siege() as besieged:
        node = besieged.node("node-0")
        push = besieged.connect(zmq.PUSH, node.endpoint)
        for each in frames:
            push.send_multipart(each)
        wait_for(lambda: node.rejected >= len(frames) or besieged.run.manager.drain(0), 20)
        assert node.rejected == len(frames)
        besieged.hold_out()


def test_a_frame_full_of_messages_is_read_to_its_end():
    """A role reads only so many messages in one go, and then polls; but what it holds already, no poll tells of."""
    strange = b"".join(parts_of(task_for(tensor=None, op=Op.CLOSE, plan=7)))
    with siege() as besieged:
        node = besieged.node("node-0")
        besieged.connect(zmq.PUSH, node.endpoint).send(strange * 1500)
        wait_for(lambda: node.rejected == 1500 or besieged.run.manager.drain(0), 20)
        assert node.rejected == 1500
        besieged.hold_out()
