"""Hands a job to a waiting manager, as a data owner's operator does, and can watch the run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

from zmpsl import __version__
from zmpsl.errors import NetworkError, PeerLostError, RemoteProtocolError, error_for
from zmpsl.job.schema import Job
from zmpsl.keys import LOOPBACK, Security
from zmpsl.messages import Committed, Finish, FromManager, Join, Leave, Publish, Refused, Submit, Welcome
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlClient
from zmpsl.transport.curve import check_pair

__all__ = ["submit"]


def submit(
    job: Job, manager: str, *, watch: bool, security: Security = LOOPBACK, tell: Callable[[str], object],
    reach_s: float = 10.0,
) -> None:  # fmt: skip
    """Submits a job.

    Args:
        job: The job.
        manager: The manager's address.
        watch: Stay until the run is over.
        security: How the link is protected.
        tell: Called with a line for a person now and then.
        reach_s: How long to wait for the manager's answer.

    Raises:
        NetworkError: The manager does not answer.
        ZmpslError: The manager refused the job, or (with `watch`) the run failed.
    """
    check_address(manager, security.may_leave)
    check_pair(security)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = ControlClient(context, manager, security)
    try:
        _talk(client, job, manager, watch, tell, reach_s)
    finally:
        client.send(Leave())
        client.close(0.5)
        context.term()


def _talk(
    client: ControlClient, job: Job, manager: str, watch: bool, tell: Callable[[str], object], reach_s: float
) -> None:
    """Hands the job in, and stays as long as it is to."""
    client.send(Submit(job=job))
    accepted = False
    patience_s = job.recover.manager_wait_s if job.recover.wait_s else job.network.lost_after_s
    observe = Join(role="observer", version=__version__, host=socket.gethostname(), pid=os.getpid())
    seen = time.monotonic()
    deadline = time.monotonic() + reach_s
    while True:
        client.socket.poll(100)
        while (message := _next(client)) is not None:
            if isinstance(message, Welcome) and message.job == job and not accepted:
                accepted = True
                tell(f"job {job.name} accepted by the manager at {manager}")
                if not watch:
                    return
                client.send(observe)
            elif isinstance(message, Welcome) and message.job != job and accepted:
                raise PeerLostError(f"the manager at {manager} was started again, and has another job or none")
            if _over(message, tell):
                return
        lost = client.lost()
        if lost and not accepted:
            client.send(Submit(job=job))
        if (client.watch() or lost) and accepted:  # a manager that was away, or the next one, has forgotten us
            client.send(observe)
        if client.hopeless or (client.failure and not accepted and time.monotonic() > deadline - reach_s / 2):
            raise NetworkError(f"no handshake with the manager at {manager}: {client.failure}")
        seen = time.monotonic() if client.connected else seen
        if accepted and time.monotonic() - seen > patience_s:
            raise PeerLostError(f"the manager at {manager} has been out of reach for {patience_s:g} s")
        if not accepted and time.monotonic() > deadline:
            raise NetworkError(
                f"the manager at {manager} has not answered for {reach_s:g} s; is it running, and is the address right?"
            )


def _next(client: ControlClient) -> FromManager | None:
    """Takes the next message that can be read, if there is one."""
    while True:
        with suppress(RemoteProtocolError):
            return client.receive()


def _over(message: FromManager, tell: Callable[[str], object]) -> bool:
    match message:
        case Refused():
            raise error_for(message.exit_code, message.text)
        case Publish():
            tell(
                f"plan {message.plan.version}: {len(message.plan.owners)} owners, {len(message.plan.nodes)} compute"
                f" nodes, cuts {list(message.plan.bounds[1:-1])}"
            )
        case Committed():
            tell(f"round {message.round + 1} committed")
        case Finish():
            if message.exit_code:
                raise error_for(message.exit_code, message.text)
            tell(message.text)
            return True
    return False
