"""A run with keys in threads of this process, members that may have one or not, and strangers with a bare socket."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from helpers import SMALL

from zmpsl.errors import ZmpslError
from zmpsl.job import Job
from zmpsl.keys import Allowed, KeyRole, Security, add_member, security_from, write_pair
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.observe.events import Event, NoticeEvent
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.transport.curve import new_pair, protect_client

__all__ = ["ENDLESS", "MEMBERS", "Site", "error_of", "stranger"]

ENDLESS = [*SMALL, "train.rounds=100000", "evaluate.every=0"]
MEMBERS: dict[str, tuple[KeyRole, Callable[[], Member]]] = {
    "averager": ("aggregator", Aggregator),
    "rack-1": ("compute", ComputeNode),
    "rack-2": ("compute", ComputeNode),
    "clinic-1": ("owner", DataOwner),
    "clinic-2": ("owner", DataOwner),
}


@dataclass
class Site:
    """A manager with keys, and members that may have some; all in threads over loopback."""

    folder: Path
    runs: Path | None = None
    manager: ManagerNode = field(init=False)
    nodes: dict[str, Node] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def key(self, name: str, role: KeyRole, *, allowed: bool = True) -> Security:
        """Makes a key on a host of its own, lets the manager know it, and gives what that host's role uses."""
        home = self.folder / name
        write_pair(home, pair := new_pair(name, role))
        (home / "manager.pub").write_bytes((self.folder / "manager.pub").read_bytes())
        if allowed:
            add_member(self.folder, Allowed(name=name, role=role, public=pair.public))
        return security_from(home, "keys", role)

    def open(self, wanted: Job | None, names: list[str]) -> None:
        """Starts the manager, and members by the name of their key."""
        write_pair(self.folder, new_pair("manager", "manager"))
        keys = {name: self.key(name, MEMBERS[name][0]) for name in MEMBERS}
        role = Manager(self.runs, wanted)
        role.board.listeners.append(self.events.append)
        self.manager = ManagerNode(role, security=security_from(self.folder, "keys", "manager")).start()
        for name in names:
            self.join(name, MEMBERS[name][1](), keys[name])

    def join(self, name: str, member: Member, security: Security) -> Node:
        """Starts a member."""
        member.runs = self.runs
        self.nodes[name] = node = Node(member, self.manager.endpoint, security=security).start()
        return node

    def finish(self) -> None:
        """Waits for the end, and raises what went wrong."""
        assert self.manager.drain(60), "the run did not end"
        for each in (self.manager, *self.nodes.values()):
            assert each.drain(10)
            if each.error is not None:
                raise each.error

    @property
    def notices(self) -> str:
        """What the manager told of."""
        return "\n".join(event.text for event in self.events if isinstance(event, NoticeEvent))

    def close(self) -> None:
        """Ends everybody."""
        for node in self.nodes.values():
            node.close()
        self.manager.close()


@contextlib.contextmanager
def stranger(kind: int, endpoint: str, security: Security, server: str) -> Iterator[zmq.Socket[bytes]]:
    """A bare socket with a key."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(kind)
    try:
        protect_client(peer, security, server)
        peer.connect(endpoint)
        yield peer
    finally:
        context.destroy(linger=0)


def error_of(node: Node, timeout_s: float = 15.0) -> ZmpslError:
    """What ended a node."""
    assert node.drain(timeout_s), "the node goes on"
    assert isinstance(node.error, ZmpslError)
    return node.error
