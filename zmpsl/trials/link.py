"""Which codec is fastest over a link of some rate: tensors through real sockets. For `zmpsl bench link`.

    Outbox + Packer -> Link -> (shaped TCP) -> Inbox + Unpacker

Both ends are those of a hop in a run, here in two threads. While one chunk travels, the next is packed and the one
before is unpacked, so the time per tensor is about the largest of the three; the slower the link, the more a high
ratio counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

from zmpsl.errors import NetworkError
from zmpsl.job.codec import Spec, parse_spec
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Packer, Unpacker
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK
from zmpsl.trials.slow_link import Bucket, Shaper

__all__ = ["TEXTS", "LinkTrial", "Sample", "as_it_is", "fastest", "sample_of", "shaped_by_proxy", "try_link"]

TEXTS = ("none", "lz4", "bitmap", "huff", "bf16", "bf16-huff", "int8", "int4", "qz(0.2)", "qz(0.5)")
SHAPED = "127.0.0.2"
DEADLINE_S = 120.0
MOST_REPEATS = 200
WARM_UP = 256  # values
Values = NDArray[np.float32]
Route = Callable[[str, float], AbstractContextManager[str]]


class Sample(NamedTuple):
    """What is sent in place of a tensor, so that a slow link takes no minutes.

    Attributes:
        values: The tensor, or its beginning.
        mask: Where it is a gradient that travels under its activation's mask.
        repeats: How often it is sent in a row.
        share: Of the tensor.
    """

    values: Values
    mask: KnownMask | None
    repeats: int
    share: float


class LinkTrial(NamedTuple):
    """One codec on one link.

    Attributes:
        codec: As in a job.
        seconds: For the whole tensor, packed, sent and unpacked, in a row of them; from what a sample took.
        ratio: Bytes of the tensor over bytes sent, headers left out.
    """

    codec: str
    seconds: float
    ratio: float

    @property
    def exact(self) -> bool:
        """Whether the codec changes no value."""
        return parse_spec(self.codec).exact


def sample_of(values: Values, activation: Values | None, bits_per_s: float, seconds: float) -> Sample:
    """Takes as much of a tensor as a link carries unpacked in about `seconds`: a part of it, or several times all.

    A part is some whole chunks, at least one where the tensor has that much.
    """
    carried = bits_per_s / 8 * seconds
    flat = values.reshape(-1)
    chunks = max(1, int(carried / CHUNK))
    size = min(flat.size, chunks * CHUNK // 4)
    mask = None
    if activation is not None:
        mask = KnownMask(np.ascontiguousarray(activation.reshape(-1)[:size]))
        mask.settle()
    repeats = max(1, min(MOST_REPEATS, int(carried / values.nbytes)))
    return Sample(np.ascontiguousarray(flat[:size]), mask, repeats, size / flat.size)


@contextmanager
def shaped_by_proxy(endpoint: str, bits_per_s: float) -> Iterator[str]:
    """Puts a proxy in front of an endpoint on 127.0.0.1, and gives the endpoint that leads through it."""
    shaped = endpoint.replace("127.0.0.1", SHAPED)
    shaper = Shaper(shaped, Bucket(bits_per_s / 8))
    try:
        yield shaped
    finally:
        shaper.close()


@contextmanager
def as_it_is(endpoint: str, _bits_per_s: float) -> Iterator[str]:
    """Leads straight to the endpoint: something else slows it down."""
    yield endpoint


def try_link(
    text: str, sample: Sample, bits_per_s: float,
    route: Route = shaped_by_proxy,
) -> LinkTrial:  # fmt: skip
    """Sends a sample over a link and takes the time until all of it is unpacked.

    Args:
        text: The codec, as in a job.
        sample: What to send, see `sample_of`.
        bits_per_s: The link's rate.
        route: Leads through the shaped link, given the receiver's endpoint and the rate.

    Raises:
        ValueError: There is no such codec.
        NetworkError: The tensors did not arrive in time.
    """
    spec = parse_spec(text)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = Inbox(context, "tcp://127.0.0.1:*", 2 * sample.values.nbytes + CHUNK)
    try:
        inbox.unpack = Unpacker(lambda _task: sample.mask)
        with route(inbox.endpoint, bits_per_s) as endpoint:
            return _through(context, inbox, endpoint, text, spec, sample)
    finally:
        inbox.close()
        context.term()


def _through(
    context: zmq.Context[zmq.Socket[bytes]], inbox: Inbox, endpoint: str, text: str, spec: Spec, sample: Sample
) -> LinkTrial:
    packer = Packer("bench", lambda _op: spec)
    link = Link(context, "peer", endpoint, Outbox(1, packer, 1 << 60))
    arrived, failed = threading.Semaphore(0), list[BaseException]()
    ended = threading.Event()
    receiver = threading.Thread(target=_receive, args=(inbox, arrived, ended, failed), daemon=True)
    receiver.start()
    try:
        _send(link, [_task(sample.values[:WARM_UP], None)], arrived, failed)
        before = packer.tally.packed_bytes, packer.tally.raw_bytes
        began = time.perf_counter()
        _send(link, [_task(sample.values, sample.mask)] * sample.repeats, arrived, failed)
        seconds = (time.perf_counter() - began) / sample.repeats / sample.share
        packed, raw = packer.tally.packed_bytes - before[0], packer.tally.raw_bytes - before[1]
        return LinkTrial(text, seconds, raw / packed)
    finally:
        ended.set()
        receiver.join()
        link.close()


def _task(values: Values, mask: KnownMask | None) -> Task:
    return Task(Op.FORWARD if mask is None else Op.BACKWARD, 0, 0, 0, tensor=values, mask=mask)


def _send(link: Link, tasks: list[Task], arrived: threading.Semaphore, failed: list[BaseException]) -> None:
    """Sends tasks and waits until the receiver has them all."""
    deadline = time.monotonic() + DEADLINE_S
    for task in tasks:
        link.send(task)
    while link.blocked:
        if failed or time.monotonic() > deadline:
            break
        if link.socket.poll(100, zmq.POLLOUT):
            link.flush()
    for _ in tasks:
        while not arrived.acquire(timeout=0.1):
            if failed:
                raise failed[0]
            if time.monotonic() > deadline:
                raise NetworkError(f"tensors were still on their way after {DEADLINE_S:.0f} s; give --seconds less")


def _receive(inbox: Inbox, arrived: threading.Semaphore, ended: threading.Event, failed: list[BaseException]) -> None:
    """Takes what comes until it is told to end."""
    try:
        while not ended.is_set():
            if not inbox.midway and not inbox.socket.poll(50):
                continue
            found = inbox.receive()
            if found is not None and found[1] is not None:
                arrived.release()
    except BaseException as error:  # told by the thread that waits
        failed.append(error)


def fastest(trials: list[LinkTrial]) -> tuple[str, str]:
    """Names the fastest exact codec and the fastest of all; the first of equals."""
    exact = [trial for trial in trials if trial.exact] or trials
    return min(exact, key=lambda trial: trial.seconds).codec, min(trials, key=lambda trial: trial.seconds).codec
