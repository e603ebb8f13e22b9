"""Members with keys that are cut off, killed, or give themselves many names: nobody is kept out, nothing grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import zmq
from helpers import SMALL, job, told, untold, wait_for
from keyed import ENDLESS, Site, stranger
from proxy import Harm, Proxy

from zmpsl.keys import Security, security_from
from zmpsl.loops.member import Node
from zmpsl.messages import FromManager, Join, Leave, Ready, Refused, Welcome, encode
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner
from zmpsl.security import MAX_REJECTED
from zmpsl.transport.control import ControlClient
from zmpsl.transport.curve import protect_client
from zmpsl.transport.envelope import wrap


def said(client: ControlClient) -> FromManager:
    """The manager's next answer."""
    heard: list[FromManager] = []

    def answer() -> bool:
        message = client.receive()
        heard.extend([message] if isinstance(message, Welcome | Refused) else [])
        return bool(heard)

    wait_for(answer, 15)
    return heard[0]


def test_who_was_cut_off_from_the_manager_comes_back(site):
    """Again and again; it has its own place, which is the one its key may hold: it is not one too many."""
    running: Site = site(job(*ENDLESS), ["averager", "rack-1", "rack-2", "clinic-1"], keeps=True)
    manager, ours = running.manager.manager, security_from(running.folder / "clinic-2", "keys", "owner")
    host, port = running.manager.endpoint.removeprefix("tcp://").split(":")
    proxy = Proxy(("127.0.0.1", 0), (host, int(port)), Harm())
    try:
        node = Node(DataOwner(running.runs), f"tcp://127.0.0.1:{proxy.port}", security=ours).start()
        running.nodes["clinic-2"] = node
        for version in range(1, 4):
            wait_for(lambda v=version: node.drain(0) or (manager.phase is Phase.TRAINING and manager.plan.version >= v))
            assert node.error is None
            proxy.reset()
        seen = manager.round
        wait_for(lambda: manager.round > seen + 1 or node.drain(0))
        assert node.error is None
    finally:
        proxy.close()


def test_a_killed_process_does_not_keep_the_next_one_out(site):
    """Its connection is gone, so its place is not held: a supervisor starts the role anew with the same key."""
    waiting: Site = site(job(*SMALL), [])
    ours = waiting.key("rack-9", "compute")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        first, second, third = (ControlClient(context, waiting.manager.endpoint, ours) for _ in range(3))
        for client, kind in ((first, Welcome), (second, Refused)):
            client.send(Join(role="compute", endpoint="tcp://127.0.0.1:1"))
            assert isinstance(said(client), kind)
        first.close()  # no farewell
        (seat,) = waiting.manager.manager.roster
        wait_for(lambda: seat.unreachable_since, 10)
        third.send(Join(role="compute", endpoint="tcp://127.0.0.1:1"))
        assert isinstance(said(third), Welcome)
    finally:
        context.destroy(linger=0)


# -- names -------------------------------------------------------------------------------------------------------------


def things(value: object, seen: set[int]) -> int:
    """How many things containers hold, all the way down."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Mapping):
        return len(value) + sum(things(each, seen) for each in value.values())
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return len(value) + sum(things(each, seen) for each in value)
    return sum(things(each, seen) for each in vars(value).values()) if hasattr(value, "__dict__") else 0


def test_a_member_that_gives_itself_many_names_leaves_nothing_behind(site):
    """Each connection may choose its name, and goes without a word: the guard keeps none of them, nor does the role."""
    waiting: Site = site(None, [])
    chief = waiting.key("chief", "operator")
    guard, manager = waiting.manager._guard, waiting.manager.manager
    wait_for(lambda: chief.key.public in guard._members, 10)
    before = things(vars(guard), set()), things(vars(manager), set())
    for number in range(60):
        with stranger(zmq.DEALER, waiting.manager.endpoint, chief, chief.manager) as peer:
            peer.send(told(Ready(plan=number)))
            peer.send(told(Join(role="observer")))
            assert peer.poll(10_000)
            assert isinstance(untold(peer.recv()), Welcome)
    wait_for(lambda: (things(vars(guard), set()), things(vars(manager), set())) == before, 15)


def test_a_name_that_has_joined_is_held_by_its_key(site):
    """Its connection is gone and another member takes the name: what it says counts for nothing."""
    waiting: Site = site(job(*SMALL), [])
    name = b"a name of a member"

    def connected(security: Security) -> zmq.Socket[bytes]:
        peer = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.IDENTITY, name)
        protect_client(peer, security, security.manager)
        peer.connect(waiting.manager.endpoint)
        return peer

    ours, evil = waiting.key("rack-9", "compute"), waiting.key("evil", "compute")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        first = connected(ours)
        first.send(wrap(encode(Join(role="compute", endpoint="tcp://127.0.0.1:1")), 0))
        assert first.poll(10_000)
        (seat,) = waiting.manager.manager.roster
        first.close(linger=0)
        wait_for(lambda: seat.unreachable_since, 10)
        before = waiting.manager.rejected
        second = connected(evil)
        for number in range(MAX_REJECTED + 10):
            message = Join(role="compute", endpoint="tcp://127.0.0.1:2") if number % 2 else Leave()
            second.send(wrap(encode(message), number))
        wait_for(lambda: waiting.manager.rejected == before + MAX_REJECTED + 10, 10)
        assert [each.join.endpoint for each in waiting.manager.manager.roster] == ["tcp://127.0.0.1:1"]
    finally:
        context.destroy(linger=0)
