"""What a role asks its driver to do. Roles themselves touch no socket: events in, actions out."""

from __future__ import annotations

from dataclasses import dataclass

from zmpsl.messages import FromManager, ToManager
from zmpsl.plan import Plan
from zmpsl.transport.task import Task

__all__ = ["Action", "Connect", "Disconnect", "Say", "Send", "Stop", "Tell"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a task to a peer of the plan."""

    to: str
    task: Task


@dataclass(frozen=True, slots=True)
class Say:
    """Say something to the manager."""

    message: ToManager


@dataclass(frozen=True, slots=True)
class Tell:
    """The manager tells a member something; `to` is the member's identity on the control plane."""

    to: bytes
    message: FromManager


@dataclass(frozen=True, slots=True)
class Connect:
    """Open links to peers: place name -> address. `sender` is our place code in tasks.

    `keep_bytes` is how much memory receive buffers may keep that are free; None leaves that as it is.
    """

    plan: Plan
    sender: int
    peers: dict[str, str]
    keep_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close all links to peers, drop what waits, and read nothing from peers until the next Connect."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The role is done: drain, close, and end with this code."""

    exit_code: int
    text: str


Action = Send | Say | Tell | Connect | Disconnect | Stop
