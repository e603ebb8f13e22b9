"""Runs whose links are protected by keys: who has the right key trains, everybody else is told so within seconds."""

from __future__ import annotations

import contextlib
import random
import re
import socket

import pytest
import zmq
from helpers import SMALL, job, wait_for
from hostile import forward
from keyed import ENDLESS, error_of, stranger

from zmpsl.errors import JobError, JoinError, NetworkError
from zmpsl.keys import Allowed, KeyRole, Security, add_member, revoke_member, security_from
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.messages import Join, Ready, encode
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager, Phase
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.security import MAX_REJECTED
from zmpsl.submit import submit
from zmpsl.transport.curve import new_pair
from zmpsl.transport.envelope import wrap

# -- the right keys ----------------------------------------------------------------------------------------------------


def test_protected_run_gives_the_same_weights(site):
    """Keys change who may take part, and nothing else."""
    protected = site(job(*SMALL))
    protected.finish()
    plain = MemoryRun(job(*SMALL))
    plain.run()
    assert protected.manager.manager.record.committed == plain.manager.record.committed
    keys = {peer.public for peer in protected.manager.manager.plan.peers}
    assert len(keys) == 5
    assert "" not in keys


def test_operator_submits_and_nobody_else(site):
    """A job comes from an operator or an owner; a compute node's key is not enough."""
    waiting = site(None, ["averager"])
    with pytest.raises(JoinError, match="the key of rack-9 is for role compute; jobs are submitted by operators"):
        submit(
            job(*SMALL), waiting.manager.endpoint, watch=False, tell=print, security=waiting.key("rack-9", "compute")
        )
    told: list[str] = []
    chief = waiting.key("chief", "operator")
    submit(job(*SMALL), waiting.manager.endpoint, watch=False, tell=told.append, security=chief)
    assert told == [f"job digits accepted by the manager at {waiting.manager.endpoint}"]


# -- the wrong keys ----------------------------------------------------------------------------------------------------


def test_key_that_is_not_on_the_list(site):
    """Both sides tell within seconds: the member that its key was refused, the manager which key it was."""
    waiting = site(job(*SMALL), [])
    unknown = waiting.key("visitor", "compute", allowed=False)
    error = error_of(waiting.join("visitor", ComputeNode(), unknown))
    assert isinstance(error, JoinError)
    assert unknown.key is not None
    assert f"refused our key (visitor, {unknown.key.public})" in str(error)
    wait_for(lambda: unknown.key.public in waiting.notices, 10)
    assert "zmpsl keys add" in waiting.notices


def test_key_that_is_added_while_the_manager_runs(site):
    """The list is read again by itself."""
    waiting = site(job(*SMALL), [])
    late = waiting.key("late", "compute")

    def there() -> bool:
        node = waiting.join("late", ComputeNode(), late)
        wait_for(lambda: node.member.place or node.drain(0), 15)
        return bool(node.member.place)

    wait_for(there, 20)


def test_wrong_key_of_the_manager(site):
    """libzmq would try for ever without a word."""
    waiting = site(job(*SMALL), [])
    ours = waiting.key("rack-9", "compute")
    other = Security(key=ours.key, manager=new_pair("manager", "manager").public)
    error = error_of(waiting.join("rack-9", ComputeNode(), other))
    assert isinstance(error, NetworkError)
    assert "no handshake with the manager" in str(error)
    wait_for(lambda: "expects another key here" in waiting.notices, 10)


def test_member_without_keys(site):
    """One side has keys, the other has none: both say so."""
    waiting = site(job(*SMALL), [])
    error = error_of(waiting.join("plain", ComputeNode(), Security()))
    # Who notices first says why; the other may only see that it was hung up on.
    either = "one side uses keys and the other does not|it was hung up on"
    assert re.search(either, str(error))
    wait_for(lambda: "a handshake failed" in waiting.notices, 10)
    with pytest.raises(NetworkError, match=either):
        submit(job(*SMALL), waiting.manager.endpoint, watch=False, tell=print, reach_s=4)


def test_member_with_keys_at_a_manager_without():
    """The other way round."""
    with ManagerNode(Manager(None, job(*SMALL))) as plain:
        ours = Security(key=new_pair("rack-1", "compute"), manager=new_pair("manager", "manager").public)
        node = Node(ComputeNode(), plain.endpoint, security=ours).start()
        assert "one side uses keys and the other does not" in str(error_of(node))
        node.close()


@pytest.mark.parametrize(
    ("role", "member", "text"),
    [
        ("owner", ComputeNode(), "the key of x is for role owner, not for compute"),
        ("compute", DataOwner(), "the key of x is for role compute, not for owner"),
        ("operator", Aggregator(), "the key of x is for role operator, not for aggregator"),
    ],
)
def test_wrong_role(site, role: KeyRole, member: Member, text: str):
    """A key takes only the role it was allowed for."""
    waiting = site(job(*SMALL), [])
    assert text in str(error_of(waiting.join("x", member, waiting.key("x", role))))
    assert text in waiting.notices


def test_wrong_place_and_too_many_places(site):
    """A key takes only its place, and only so many."""
    waiting = site(job(*SMALL), [])
    ours = waiting.key("rack-9", "compute", allowed=False)
    assert ours.key is not None
    add_member(waiting.folder, Allowed(name="rack-9", role="compute", public=ours.key.public, place="node-1"))
    wait_for(lambda: waiting.manager._guard._members.get(ours.key.public), 10)
    wrong = waiting.join("wrong", ComputeNode(place="node-0"), ours)
    assert "the key of rack-9 is for place node-1, not for node-0" in str(error_of(wrong))
    right = waiting.join("right", ComputeNode(), ours)
    wait_for(lambda: right.member.place == "node-1", 10)
    second = waiting.join("second", ComputeNode(), ours)
    assert "holds 1 places already" in str(error_of(second))


def test_revoked_key(site):
    """The manager sends its holder away at once, and names it."""
    running = site(job(*ENDLESS))
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    revoke_member(running.folder, "clinic-2")
    error = error_of(running.nodes["clinic-2"])
    assert "the key of clinic-2 has been revoked" in str(error)


def test_broken_list_changes_nothing(site):
    """Somebody edits the list by hand and makes a mistake: the old one holds, and the manager tells."""
    running = site(job(*ENDLESS))
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    (running.folder / "allowed.yaml").write_text("members: [nobody]\n")
    wait_for(lambda: "the allow-list stays as it was" in running.notices, 10)
    assert not running.manager.drain(0)


# -- members that break the rules --------------------------------------------------------------------------------------


def test_owner_in_the_name_of_another(site):
    """A message counts for who holds the key, whatever its header says; the weights are as if it had not been sent."""
    running = site(job(*SMALL), ["averager", "rack-1", "rack-2", "clinic-1"])
    gate = False
    owner = DataOwner()
    owner.wants_work = lambda own=owner.wants_work: gate and own()  # type: ignore[method-assign]
    evil = security_from(running.folder / "clinic-2", "keys", "owner")
    running.join("clinic-2", owner, evil)
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    plan = running.manager.manager.plan
    mine = next(peer.name for peer in plan.owners if peer.public == evil.key.public)
    other = 1 - int(mine.removeprefix("owner-"))
    node = running.nodes[next(n for n in ("rack-1", "rack-2") if running.nodes[n].member.place == "node-0")]
    before = node.rejected
    with stranger(zmq.PUSH, node.endpoint, evil, plan.nodes[0].public) as push:
        for _ in range(5):
            push.send_multipart(forward(owner=other))
        wait_for(lambda: node.rejected >= before + 5, 15)
    gate = True
    running.finish()
    plain = MemoryRun(job(*SMALL))
    plain.run()
    assert running.manager.manager.record.committed == plain.manager.record.committed


def test_member_that_sends_too_much_nonsense(site):
    """Who goes on and on is sent away, by name."""
    running = site(job(*ENDLESS))
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    plan = running.manager.manager.plan
    evil = security_from(running.folder / "clinic-2", "keys", "owner")
    place = next(peer.name for peer in plan.owners if peer.public == evil.key.public)
    with stranger(zmq.PUSH, plan.nodes[0].endpoint, evil, plan.nodes[0].public) as push:
        for _ in range(MAX_REJECTED + 5):
            push.send(b"nonsense")
        error = error_of(running.nodes["clinic-2"])
    assert f"{place} was sent away, as node-0 says: {MAX_REJECTED} messages that nobody may send" in str(error)


def test_connection_that_speaks_for_another(site):
    """Taking over another member's name on the control plane needs its key."""
    running = site(job(*ENDLESS))
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    seat = next(iter(running.manager.manager.roster))
    running.nodes[next(n for n in running.nodes if running.nodes[n].member.place == seat.place)]
    evil = running.key("evil", "operator")
    wait_for(lambda: running.manager._guard._members.get(evil.key.public), 10)
    before = running.manager._server.rejected + running.manager.manager.rejected
    with stranger(zmq.DEALER, running.manager.endpoint, evil, evil.manager) as peer:
        peer.send(wrap(encode(Ready(plan=1)), 0))
        peer.send(wrap(encode(Join(role="observer", public="somebody else")), 1))
        assert peer.poll(10_000)
    assert running.manager._server.rejected + running.manager.manager.rejected == before + 1


def test_nothing_of_strangers_reaches_the_application(site):
    """Random bytes, other protocols, plain ZeroMQ and unknown keys: not one message is even counted."""
    running = site(job(*ENDLESS))
    wait_for(lambda: running.manager.manager.phase is Phase.TRAINING, 30)
    plan = running.manager.manager.plan
    unknown = Security(key=new_pair("visitor", "owner"), manager="0" * 64)
    noise = random.Random(7)
    endpoints = [node.endpoint for node in running.nodes.values()]
    with contextlib.ExitStack() as stack:
        for endpoint in [*endpoints, running.manager.endpoint]:
            host, port = endpoint.removeprefix("tcp://").split(":")
            for _ in range(20):
                peer = stack.enter_context(socket.create_connection((host, int(port))))
                peer.sendall(noise.randbytes(2000))
        for peer, endpoint in [(peer, peer.endpoint) for peer in plan.peers]:
            for security in (unknown, Security()):
                push = stack.enter_context(stranger(zmq.PUSH, endpoint, security, peer.public))
                push.setsockopt(zmq.LINGER, 0)
                push.send_multipart(forward())
        seen = running.manager.manager.round
        wait_for(lambda: running.manager.manager.round > seen + 20, 30)
        assert [node.rejected for node in running.nodes.values()] == [0] * 5
        assert running.manager.rejected == 0


def test_pair_that_does_not_belong_together():
    """Found before anything is sent."""
    one, two = new_pair("a", "manager"), new_pair("b", "manager")
    mixed = Security(key=type(one)(name="a", role="manager", public=one.public, secret=two.secret), manager=one.public)
    with pytest.raises(JobError, match="the two halves of key a do not belong together"):
        Node(ComputeNode(), "tcp://127.0.0.1:5600", security=mixed)


def test_manager_with_a_key_and_no_list():
    """Fails closed."""
    with pytest.raises(JobError, match="list of who may take part"):
        ManagerNode(Manager(), security=Security(key=new_pair("manager", "manager")))
