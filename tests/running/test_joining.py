"""Joining, submitting and addresses: who gets a place, who is refused, and what is told when nobody is there."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from helpers import SMALL, ThreadedRun, job, notices, wait_for

from zmpsl import __version__
from zmpsl.errors import JobError, JoinError, NetworkError, PeerLostError, ZmpslError
from zmpsl.job import Job
from zmpsl.keys import Security
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.messages import PROTOCOL, Finish, FromManager, Join, Leave, Message, Refused, Submit, Welcome
from zmpsl.roles.actions import Tell
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager, Phase
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.submit import submit
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlClient, ControlServer


@contextlib.contextmanager
def party(job: Job | None, *members: Member) -> Iterator[tuple[ManagerNode, list[Node]]]:
    """A manager and some members, each joined before the next one comes; more may be added to the list."""
    manager = ManagerNode(Manager(None, job)).start()
    nodes: list[Node] = []
    try:
        for member in members:
            join(manager, nodes, member)
        yield manager, nodes
    finally:
        for node in nodes:
            node.close()
        manager.close()


def join(manager: ManagerNode, nodes: list[Node], member: Member) -> Node:
    """Starts a node and waits until it has a place, or is refused."""
    wanted, member.place = member.place, ""
    node = Node(member, manager.endpoint)
    member.place = wanted
    nodes.append(node)
    known = len(manager.manager.roster)
    node.start()
    wait_for(lambda: len(manager.manager.roster) > known or node.drain(0), 10)
    return node


def refused(node: Node) -> str:
    """The message with which a node was sent away."""
    assert node.drain(10)
    assert isinstance(node.error, JoinError), node.error
    return str(node.error)


@pytest.fixture
def says() -> Iterator[Callable[[str, Message], list[FromManager]]]:
    """Says one thing to a manager from a bare socket, and gives what it answers up to the first Welcome or Refused."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    clients: list[ControlClient] = []

    def say(manager: str, message: Message) -> list[FromManager]:
        client = ControlClient(context, manager)
        clients.append(client)
        client.send(message)
        heard: list[FromManager] = []

        def answered() -> bool:
            while (answer := client.receive()) is not None:
                heard.append(answer)
            return any(isinstance(each, Welcome | Refused) for each in heard)

        wait_for(answered, 10)
        return heard

    yield say
    for client in clients:
        client.send(Leave())
        client.close(0.5)
    context.term()


def taken_port() -> tuple[socket.socket, str]:
    """A port somebody else listens on, and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, f"tcp://127.0.0.1:{listener.getsockname()[1]}"


# -- joining -----------------------------------------------------------------------------------------------------------


def test_compute_node_that_never_comes():
    """The manager gives up after network.join_timeout_s, names who is missing, and everybody else is told."""
    wanted = job(*SMALL, "network.join_timeout_s=0.5")
    with party(wanted, Aggregator(), ComputeNode(), DataOwner(), DataOwner()) as (manager, nodes):
        assert manager.drain(10)
        assert isinstance(manager.error, JoinError)
        assert str(manager.error) == (
            "after 0.5 s (network.join_timeout_s) still missing: node-1; "
            "start them with `zmpsl compute|owner|aggregator --manager ADDRESS`"
        )
        for node in nodes:
            assert node.drain(10)
            assert isinstance(node.error, JoinError)
            assert str(node.error) == str(manager.error)


def test_two_claim_one_place():
    """The second is refused and told who holds it; the run goes on with the first."""
    with party(job(*SMALL), Aggregator(), ComputeNode(place="node-0")) as (manager, nodes):
        second = join(manager, nodes, ComputeNode(place="node-0"))
        assert refused(second) == (
            f"place node-0 is taken by process {os.getpid()} on {socket.gethostname()}; two cannot hold it"
        )
        for member in (ComputeNode(), DataOwner(), DataOwner()):
            join(manager, nodes, member)
        assert manager.drain(60)
        assert manager.error is None
        assert manager.manager.round == 2


def test_a_place_whose_holder_is_gone_is_free_for_anybody():
    """Also for who asks for no place in particular, and before the manager has given up the one that had it."""
    manager = Manager(None, job(*SMALL, "owners=1"))
    list(manager.hear(b"first", Join(role="owner")))
    list(manager.unreachable(b"first", 0.0))
    told = [each.message for each in manager.hear(b"second", Join(role="owner")) if isinstance(each, Tell)]
    assert isinstance(told[-1], Welcome)
    assert told[-1].place == "owner-0"


def test_more_roles_than_places():
    """One compute node too many is sent away; the run goes on."""
    with party(job(*SMALL), ComputeNode(), ComputeNode()) as (manager, nodes):
        third = join(manager, nodes, ComputeNode())
        assert refused(third) == "all places for role 'compute' are taken: node-0, node-1"
        for member in (Aggregator(), DataOwner(), DataOwner()):
            join(manager, nodes, member)
        assert manager.drain(60)
        assert manager.error is None


def test_place_that_does_not_exist():
    """Says which places there are."""
    with party(job(*SMALL)) as (manager, nodes):
        assert refused(join(manager, nodes, DataOwner(place="owner-7"))) == (
            "owner asks for place 'owner-7'; this job has owner-0, owner-1"
        )
        assert refused(join(manager, nodes, ComputeNode(place="owner-1"))) == (
            "compute asks for place 'owner-1'; this job has node-0, node-1"
        )


def test_any_place_may_be_asked_for_before_there_is_a_job():
    """Without a job nobody knows how many places there will be, so nobody can say that one does not exist."""
    with party(None) as (manager, nodes):
        node = join(manager, nodes, ComputeNode(place="node-1"))
        assert node.error is None, node.error
        wait_for(lambda: node.member.place == "node-1", 5)


def test_place_that_the_submitted_job_does_not_have(says: Callable[[str, Message], list[FromManager]]):
    """Whoever waits at a manager without a job and gets no place in the one that comes is told so."""
    with party(None, ComputeNode(), ComputeNode()) as (manager, nodes):
        submit(job(*SMALL, "compute_nodes=1"), manager.endpoint, watch=False, tell=lambda _: None)
        assert refused(nodes[1]) == "job 'digits' has no place node-1"
        assert not nodes[0].drain(0)


def test_late_role_is_refused():
    """While the run trains there is no place left."""
    with ThreadedRun(job(*SMALL, "train.rounds=100000", "evaluate.every=0")) as run:
        wait_for(lambda: run.manager.manager.phase is Phase.TRAINING, 20)
        late = Node(ComputeNode(), run.manager.endpoint).start()
        assert refused(late) == "all places for role 'compute' are taken: node-0, node-1"
        assert not run.manager.drain(0)


def test_another_protocol(says: Callable[[str, Message], list[FromManager]]):
    """Two versions of zmpsl that cannot talk: both are named, and what to do."""
    with party(job(*SMALL)) as (manager, _):
        told = notices(manager.manager.board)
        answer = says(manager.endpoint, Join(role="compute", protocol=PROTOCOL + 1, version="9.9", host="attic"))[-1]
        assert isinstance(answer, Refused)
        assert answer.exit_code == JoinError.exit_code
        assert answer.text == (
            f"this manager speaks protocol {PROTOCOL} (zmpsl {__version__}), "
            f"compute speaks {PROTOCOL + 1} (zmpsl 9.9); install the same version on all hosts"
        )
        assert len(manager.manager.roster) == 0
        assert told == [f"refused compute (process 0 on attic): {answer.text}"]


def test_unknown_role(says: Callable[[str, Message], list[FromManager]]):
    """A role of another program is refused."""
    with party(job(*SMALL)) as (manager, _):
        answer = says(manager.endpoint, Join(role="planner"))[-1]
        assert isinstance(answer, Refused)
        assert answer.text == "'planner' is no role; known are owner, compute, aggregator"


# -- submitting --------------------------------------------------------------------------------------------------------


def _answer_until(server: ControlServer, kind: type[Message], answer: FromManager) -> None:
    """Answers whoever says this kind of thing."""
    received: list[tuple[bytes, Message]] = []

    def heard() -> bool:
        got = server.receive()
        if got is not None and isinstance(got[1], kind):
            received.append(got)
        return bool(received)

    wait_for(heard, 10)
    server.send(received[0][0], answer)


def test_who_watches_waits_for_a_lost_manager_like_the_members_do():
    """It comes back, here after much more than network.lost_after_s, and the watcher hears the end of the run."""
    handed_in = job(*SMALL, "network.lost_after_s=0.01")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = ControlServer(context, "tcp://127.0.0.1:*")
    told: list[str] = []
    watcher = threading.Thread(
        target=submit, args=(handed_in, server.endpoint), kwargs={"watch": True, "tell": told.append}
    )
    watcher.start()
    try:
        _answer_until(server, Submit, Welcome(place="", job=handed_in))
        _answer_until(server, Join, Welcome(place="", job=handed_in))
        endpoint = server.endpoint
        server.close()
        away = time.monotonic()
        wait_for(lambda: time.monotonic() - away > 0.5)
        assert watcher.is_alive()
        server = ControlServer(context, endpoint)
        _answer_until(server, Join, Finish(exit_code=0, text="all done"))
        watcher.join(10)
        assert told[-1] == "all done"
    finally:
        server.close()
        watcher.join(10)
        context.term()


@pytest.mark.parametrize("second", ["another", "the same"])
def test_job_submitted_twice(second: str):
    """The second one is refused, also when it is the very same job: nothing new will be trained."""
    first = job(*SMALL)
    again = first if second == "the same" else job(*SMALL, "seed=1")
    with party(None, Aggregator()) as (manager, _):
        told: list[str] = []
        submit(first, manager.endpoint, watch=False, tell=told.append)
        assert told == [f"job digits accepted by the manager at {manager.endpoint}"]
        with pytest.raises(JobError) as caught:
            submit(again, manager.endpoint, watch=False, tell=told.append)
        assert str(caught.value) == "this manager already has job 'digits'; one manager runs one job"
        assert len(told) == 1
        assert manager.manager.job == first


def test_submit_to_nobody():
    """Gives up in time and says what to look at."""
    listener, address = taken_port()
    listener.close()
    since = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        submit(job(), address, watch=False, tell=lambda _: None, reach_s=0.3)
    assert time.monotonic() - since < 5
    assert str(caught.value) == (
        f"the manager at {address} has not answered for 0.3 s; is it running, and is the address right?"
    )


def test_submit_to_somebody_else():
    """A port on which something listens that is no manager is as good as nobody."""
    listener, address = taken_port()
    with contextlib.closing(listener), pytest.raises(NetworkError, match=r"has not answered for 0\.3 s"):
        submit(job(), address, watch=False, tell=lambda _: None, reach_s=0.3)


def test_watched_manager_that_vanishes():
    """Nobody hangs: who watches a run is told within seconds that the manager is gone."""
    brief = job("recover.wait_s=0")  # a run that ends when a role is lost
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = ControlServer(context, "tcp://127.0.0.1:*")
    address = server.endpoint
    errors: list[BaseException] = []

    def watch() -> None:
        try:
            submit(brief, address, watch=True, tell=lambda _: None)
        except ZmpslError as error:
            errors.append(error)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    heard: list[tuple[bytes, object]] = []
    wait_for(lambda: (each := server.receive()) is not None and (heard.append(each) or isinstance(each[1], Submit)), 10)
    server.send(heard[-1][0], Welcome(place="", job=brief))
    server.close(1.0)
    watcher.join(10)
    hung = watcher.is_alive()
    if hung:  # let it go, or it would outlive the test
        server = ControlServer(context, address)
        wait_for(lambda: server.send(heard[-1][0], Finish()) or not watcher.is_alive(), 10)
        watcher.join(10)
        server.close()
    context.term()
    assert not hung
    assert isinstance(errors[0], NetworkError | PeerLostError)
    assert address in str(errors[0])


def test_member_without_manager():
    """A role that was started too early waits `reach_s`, then says which address it tried."""
    listener, address = taken_port()
    listener.close()
    node = Node(ComputeNode(), address, reach_s=0.3)
    with pytest.raises(PeerLostError, match=f"^the manager at {address} has been out of reach for 0.[3-9] s$"):
        node.run()


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_taken_port():
    """Manager and member say which address, and what to do; both are NetworkErrors."""
    listener, address = taken_port()
    with contextlib.closing(listener):
        for make in (lambda: ManagerNode(Manager(), address), lambda: Node(ComputeNode(), address, address)):
            with pytest.raises(NetworkError) as caught:
                make()
            assert f"cannot bind {address}: Address already in use" in str(caught.value)
            assert "choose another port, or 0 for any free one" in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ManagerNode(Manager(), "tcp://0.0.0.0:*"),
        lambda: Node(ComputeNode(), "tcp://127.0.0.1:5600", "tcp://0.0.0.0:*"),
        lambda: Node(ComputeNode(), "tcp://10.1.2.3:5600"),
        lambda: submit(job(), "tcp://10.1.2.3:5600", watch=False, tell=print),
    ],
    ids=["manager-bind", "member-bind", "member-manager", "submit"],
)
def test_address_of_a_network_needs_a_word(make: Callable[[], object]):
    """Nothing listens on, or talks to, other hosts without --security none."""
    wanted = r"^tcp://(0\.0\.0\.0:\*|10\.1\.2\.3:5600) can be reached from other hosts.*say --security none"
    with pytest.raises(JobError, match=wanted):
        make()


def test_no_security_lets_it_pass():
    """The word is enough; the address told to others is a name, not 0.0.0.0."""
    with ManagerNode(Manager(), "tcp://0.0.0.0:*", security=Security(open=True)) as manager:
        assert "0.0.0.0" not in manager.endpoint


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:5600", "ipc:///tmp/zmpsl", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:http",
        "tcp://127.0.0.1:-1", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:99999", "",
    ],
)  # fmt: skip
def test_address_that_is_none(address: str):
    """What cannot be an address is a JobError, before a socket is made: libzmq takes port 99999 for 34463."""
    with pytest.raises(JobError, match="must look like tcp://HOST:PORT"):
        check_address(address, False)


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "127.example.com", "localhost.example.com"])
def test_name_that_only_looks_like_loopback(host: str):
    """Such a name can point anywhere."""
    with pytest.raises(JobError, match="can be reached from other hosts"):
        check_address(f"tcp://{host}:5600", False)
