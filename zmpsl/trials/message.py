"""What a message costs this process beside its way over a network: a link to itself, through real sockets.

    rest, send  ->  libzmq's threads, the system's TCP  ->  rest, receive        and again without the second rest

What is sent and received by hand keeps a role from computing; the way between delays, and costs other cores. A tensor
of a few KiB and a large one tell what any message costs, and what each byte does.
"""

from __future__ import annotations

import time
from statistics import median
from typing import NamedTuple

import numpy as np

from zmpsl.errors import NetworkError
from zmpsl.job.codec import parse_spec
from zmpsl.profiles import MessageCost
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Packer
from zmpsl.transport.sockets import many_sockets
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK

__all__ = ["message_cost"]

SMALL_BYTES = 1 << 12
# Larger ones cost no more per byte; smaller ones tell too little.
LARGE_BYTES = (1 << 16, 8 << 20)
REPEATS = 5
ARRIVAL_S = 2e-3
DEADLINE_S = 10.0


class _Costs(NamedTuple):
    """Seconds of one message: of the sender, the receiver, the way between, and of all this process' threads."""

    send_s: float
    receive_s: float
    transit_s: float
    processor_s: float


def message_cost(largest_bytes: int, rest_s: float = 0.0) -> MessageCost | None:
    """Measures sending and receiving on this device, both in this thread.

    Args:
        largest_bytes: Of a tensor at a cut.
        rest_s: Rest before each message, as in a role that waits: the processor is cold then.

    Returns:
        The cost without a codec; None where this host lets nobody bind to 127.0.0.1, or nothing arrives.
    """
    context = many_sockets()
    try:
        inbox = Inbox(context, "tcp://127.0.0.1:*", 2 * LARGE_BYTES[1])
    except NetworkError:
        context.term()
        return None
    spec = parse_spec("none")
    link = Link(context, "itself", inbox.endpoint, Outbox(1, Packer("trial", lambda _op: spec), 1 << 60))
    size = max(LARGE_BYTES[0], min(LARGE_BYTES[1], largest_bytes))
    try:
        small, large = (_measure(inbox, link, nbytes, rest_s) for nbytes in (SMALL_BYTES, size))
    except NetworkError:
        return None
    finally:
        link.close()
        inbox.close()
        context.term()
    each = [max(0.0, more - less) / (size - SMALL_BYTES) for less, more in zip(small, large, strict=True)]
    fixed = [max(0.0, less - SMALL_BYTES * rate) for less, rate in zip(small, each, strict=True)]
    return MessageCost(*fixed, *each)


def _measure(inbox: Inbox, link: Link, nbytes: int, rest_s: float) -> _Costs:
    task = Task(Op.FORWARD, 0, 0, 0, tensor=np.ones(nbytes // 4, np.float32))
    _pass(inbox, link, task, 0.0, 0.0)  # connects, and warms up
    found = []
    for _ in range(REPEATS):
        worked = time.process_time()
        send_s, receive_s = _pass(inbox, link, task, rest_s, max(rest_s, ARRIVAL_S))
        at_once = sum(_pass(inbox, link, task, rest_s, 0.0))
        worked = time.process_time() - worked
        found.append(_Costs(send_s, receive_s, max(0.0, at_once - send_s - receive_s), worked / 2))
    return _Costs(*(median(column) for column in zip(*found, strict=True)))


def _pass(inbox: Inbox, link: Link, task: Task, rest_s: float, arrival_s: float) -> tuple[float, float]:
    """Sends one task and receives it, after it has had some time to arrive; gives the seconds of both."""
    time.sleep(rest_s)
    begun = time.perf_counter()
    link.send(task)
    sent = time.perf_counter()
    if task.nbytes <= CHUNK:  # more than that the sockets need not take before somebody receives
        time.sleep(arrival_s)
    turned = time.perf_counter()
    while True:
        if not inbox.midway and not inbox.socket.poll(int(1000 * ARRIVAL_S)):
            link.flush()
            if time.perf_counter() - turned > DEADLINE_S:
                raise NetworkError("a message to ourselves did not arrive")
            continue
        received = inbox.receive()
        if received is not None and received[1] is not None:
            return sent - begun, time.perf_counter() - turned
