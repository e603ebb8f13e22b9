"""Bad input of every kind ends in one message that says what, where and what to do, in the right error class, for all.

`exit_code` of the class is what the command line exits with; a few cases at the end go through a real process.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import zmq
from helpers import TINY, ThreadedRun, cli, job, wait_for
from torch import nn

from zmpsl.errors import DataError, JobError, JoinError, NetworkError, PeerLostError, TrainingError, ZmpslError
from zmpsl.job import Job
from zmpsl.loop import Node, check_address
from zmpsl.manager_loop import ManagerNode
from zmpsl.messages import PROTOCOL, FromManager, Join, Leave, Message, Refused, Welcome
from zmpsl.plan import fingerprint
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager, Phase
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.submit import submit
from zmpsl.transport.control import ControlClient

SMALL = [*TINY, "owners=2", "model.name=small_nets:tiny_mlp"]
NO_DATA = [part for part in SMALL if not part.startswith("data.")]


# -- what a user's own module might be ---------------------------------------------------------------------------------


class Failing(nn.Linear):
    """Fails when it is trained."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such channel")


class InPlace(nn.Module):
    """Works on its input instead of a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.mul_(self.gain)


def net_with(kind: str, at: int = 2) -> list[nn.Module]:
    """Four blocks for the digits, one of them odd; cut at every block that is a part of its own."""
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10),
    ]  # fmt: skip
    blocks[at] = {"failing": lambda: Failing(8, 8), "in-place": InPlace}[kind]()
    return blocks


def quarrelsome() -> list[nn.Module]:
    """A model that fails while it is built."""
    raise RuntimeError("the weights file is not there")


# -- how a run is made to fail -----------------------------------------------------------------------------------------


def fails(job: Job, kind: type[ZmpslError], *parts: str) -> str:
    """Runs a job that must end with this error; every role must have been told the same. Gives the message."""
    with ThreadedRun(job) as run:
        with pytest.raises(kind) as caught:
            run.finish(30)
        assert type(caught.value) is kind
        message = str(caught.value)
        for part in parts:
            assert part in message
        assert run.manager.manager.exit is not None
        assert run.manager.manager.exit.exit_code == kind.exit_code
        for node in run.nodes:
            assert node.drain(10), f"{node.member.place} did not end"
            assert isinstance(node.error, kind), (node.member.place, node.error)
            # Two owners may find the same fault at once; whoever was first is heard.
            assert _nameless(node.error) == _nameless(caught.value)
    return message


def _nameless(error: BaseException) -> str:
    return str(error).replace("owner 0", "owner K").replace("owner 1", "owner K").replace("owner-0", "owner-K").replace("owner-1", "owner-K")  # fmt: skip


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
    known = manager.manager.members
    node.start()
    wait_for(lambda: manager.manager.members > known or node.drain(0), 10)
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


# -- data --------------------------------------------------------------------------------------------------------------


def test_data_set_without_folder():
    """Says which setting is missing."""
    fails(
        job(*NO_DATA, "data.name=fashion-mnist"), DataError,
        "data set 'fashion-mnist' is read from files: give their folder as data.dir (or --data-dir)",
    )  # fmt: skip


def test_data_files_that_are_not_there(tmp_path: Path):
    """Says which files were looked for, and where."""
    fails(
        job(*NO_DATA, "data.name=fashion-mnist", f"data.dir={tmp_path / 'nowhere'}"), DataError,
        "fashion-mnist: did not find train-images-idx3-ubyte(.gz), train-labels-idx1-ubyte(.gz)",
        f"({tmp_path / 'nowhere'} is not a folder)", "set data.dir to the folder that holds them",
    )  # fmt: skip


def test_data_error_names_the_owner(tmp_path: Path):
    """Each owner has data of its own, so a message without the owner's name sends people to the wrong host."""
    message = fails(job(*NO_DATA, "data.name=fashion-mnist", f"data.dir={tmp_path}"), DataError)
    assert "owner-0" in message or "owner-1" in message or "owner 0" in message or "owner 1" in message


def test_fewer_samples_than_a_batch():
    """Names the owner and both numbers."""
    wanted = job(
        *SMALL, "train.batch_size=30", "data.partition.kind=sizes", "data.partition.sizes=[3, 1]",
    )  # fmt: skip
    fails(
        wanted, DataError,
        "owner 1 has 24 training samples, fewer than one batch of 30 (train.batch_size)", "use a smaller batch",
    )  # fmt: skip


def test_more_owners_than_samples():
    """Refused by every owner, with the numbers."""
    fails(job(*SMALL, "owners=5", "data.args.limit=3"), DataError, "5 owners cannot share 3 samples")


# -- model and cuts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.name=digits_cn"], ["no model is called 'digits_cn' (did you mean 'digits_cnn'?)"]),
        (["model.name=small_nets:tiny_ml"], ["module 'small_nets' has no function 'tiny_ml' (did you mean 'tiny_mlp'?)"]),
        (["model.name=no_nets:tiny_mlp"], ["cannot import 'no_nets'", "is its folder on PYTHONPATH?"]),
        (["model.name=digits_cnn", "model.args.drop=0.1"], ["has no argument 'drop' (did you mean 'dropout'?)"]),
        (["model.name=digits_cnn", "model.args.dropout=x"], ["argument 'dropout' is 'x', but must be a number from 0"]),
        (["model.args.wide=3"], ["model 'small_nets:tiny_mlp' has no argument 'wide'", "it accepts features, width"]),
        (
            ["compute_nodes=3"],
            ["model small_nets:tiny_mlp has 4 blocks; between first_cut 1 and last_cut 3 lie 2, too few for 3 compute nodes"],
        ),
        (["cuts=[1, 2, 9]"], ["cuts: [1, 2, 9] must rise strictly between 0 and 4, the number of blocks of small_nets:tiny_mlp"]),
        (["first_cut=3", "last_cut=2"], ["between first_cut 3 and last_cut 2 lie 0"]),
    ],
    ids=["name", "function", "module", "argument", "value", "own-argument", "hops", "cuts", "first-last"],
)  # fmt: skip
def test_model_or_cuts_that_do_not_fit(overrides: list[str], parts: list[str]):
    """A wrong job is found by the owner asked to describe it, or by the manager, before anybody builds anything."""
    fails(job(*SMALL, *overrides), JobError, *parts)


def test_model_that_fails_while_it_is_built():
    """An exception of the user's code is no bug of ours: the message names the role and the exception."""
    message = fails(job(*SMALL, "model.name=test_bad_input:quarrelsome"), ZmpslError)
    assert message == "owner-0: RuntimeError: the weights file is not there"


@pytest.mark.parametrize(("at", "who"), [(0, "owner-"), (2, "node-1"), (3, "owner-")], ids=["first", "chain", "last"])
def test_model_that_fails_in_forward(at: int, who: str):
    """The message names the role on which it happened and the exception."""
    wanted = job(*SMALL, "model.name=test_bad_input:net_with", "model.args={kind: failing, at: %d}" % at)
    message = fails(wanted, ZmpslError, "KeyError: 'no such channel'")
    assert message.startswith(who)


def test_model_that_works_in_place_on_its_input():
    """What came over the wire is a leaf of the node's graph; the message names the node and torch's reason."""
    wanted = job(*SMALL, "model.name=test_bad_input:net_with", "model.args={kind: in-place, at: 2}")
    message = fails(wanted, ZmpslError, "in-place")
    assert message.startswith("node-1")


@pytest.mark.parametrize("rate", ["1.0e+6", "1.0e+30"])
def test_loss_that_is_not_a_number(rate: str):
    """Names owner, round, local epoch and batch, and what to try."""
    message = fails(
        job(*SMALL, f"optimizer.lr.initial={rate}"), TrainingError,
        "the loss is nan at round 0, local epoch 0, batch ", "training has diverged, try a lower optimizer.lr.initial",
    )  # fmt: skip
    assert message.startswith(("owner 0: ", "owner 1: "))


def test_other_code_on_one_host(monkeypatch: pytest.MonkeyPatch):
    """A node whose import gives another model refuses the plan: both fingerprints, and where the lists part."""
    from zmpsl.engine import build

    real = build.summarise
    wanted = job(*SMALL)
    theirs = real(wanted.model)
    ours = (*theirs[:2], theirs[2].__class__("Other", theirs[2].entries), *theirs[3:])
    run = ThreadedRun(wanted)
    monkeypatch.setattr(build, "summarise", lambda model: ours if _thread_is(run, "node-1") else real(model))
    with run:
        with pytest.raises(JoinError) as caught:
            run.finish(30)
    assert f"node-1 on {socket.gethostname()}: model small_nets:tiny_mlp has fingerprint {fingerprint(ours)}" in str(caught.value)
    assert f"the plan says {fingerprint(theirs)} with 4; they differ from block 2 on" in str(caught.value)
    assert all(str(node.error) == str(caught.value) for node in run.nodes)


def _thread_is(run: ThreadedRun, place: str) -> bool:
    import threading

    return any(node.member.place == place and node._thread is threading.current_thread() for node in run.nodes)


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
        import os

        assert refused(second) == (
            f"place node-0 is taken by process {os.getpid()} on {socket.gethostname()}; two cannot hold it"
        )
        for member in (ComputeNode(), DataOwner(), DataOwner()):
            join(manager, nodes, member)
        assert manager.drain(60)
        assert manager.error is None
        assert manager.manager.round == 2


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
        submit(job(*SMALL, "compute_nodes=1"), manager.endpoint, watch=False, unprotected=False, tell=lambda _: None)
        assert refused(nodes[1]) == "job 'digits' has no place node-1"
        assert not nodes[0].drain(0)


def test_late_role_is_refused():
    """While the run trains there is no place left."""
    with ThreadedRun(job(*SMALL, "train.rounds=100000", "evaluate.every=0")) as run:
        wait_for(lambda: run.manager.manager.phase is Phase.TRAINING, 20)
        late = Node(ComputeNode(), run.manager.endpoint).start()
        assert refused(late) == "the run is training; all its places are taken"
        assert not run.manager.drain(0)


def test_another_protocol(says: Callable[[str, Message], list[FromManager]]):
    """Two versions of zmpsl that cannot talk: both are named, and what to do."""
    with party(job(*SMALL)) as (manager, _):
        answer = says(manager.endpoint, Join(role="compute", protocol=PROTOCOL + 1, version="9.9"))[-1]
        assert isinstance(answer, Refused)
        assert answer.exit_code == JoinError.exit_code
        from zmpsl import __version__

        assert answer.text == (
            f"this manager speaks protocol {PROTOCOL} (zmpsl {__version__}), compute speaks {PROTOCOL + 1} (zmpsl 9.9); "
            "install the same version on all hosts"
        )
        assert manager.manager.members == 0


def test_unknown_role(says: Callable[[str, Message], list[FromManager]]):
    """A role of another program is refused."""
    with party(job(*SMALL)) as (manager, _):
        answer = says(manager.endpoint, Join(role="planner"))[-1]
        assert isinstance(answer, Refused)
        assert answer.text == "'planner' is no role; known are owner, compute, aggregator"


# -- submitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["another", "the same"])
def test_job_submitted_twice(second: str):
    """The second one is refused, also when it is the very same job: nothing new will be trained."""
    first = job(*SMALL)
    again = first if second == "the same" else job(*SMALL, "seed=1")
    with party(None, Aggregator()) as (manager, _):
        told: list[str] = []
        submit(first, manager.endpoint, watch=False, unprotected=False, tell=told.append)
        assert told == [f"job digits accepted by the manager at {manager.endpoint}"]
        with pytest.raises(JobError) as caught:
            submit(again, manager.endpoint, watch=False, unprotected=False, tell=told.append)
        assert str(caught.value) == "this manager already has job 'digits'; one manager runs one job"
        assert len(told) == 1
        assert manager.manager.job == first


def test_submit_to_nobody():
    """Gives up in time and says what to look at."""
    listener, address = taken_port()
    listener.close()
    since = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        submit(job(), address, watch=False, unprotected=False, tell=lambda _: None, reach_s=0.3)
    assert time.monotonic() - since < 5
    assert str(caught.value) == (
        f"the manager at {address} has not answered for 0.3 s; is it running, and is the address right?"
    )


def test_submit_to_somebody_else():
    """A port on which something listens that is no manager is as good as nobody."""
    listener, address = taken_port()
    with contextlib.closing(listener), pytest.raises(NetworkError, match="has not answered for 0.3 s"):
        submit(job(), address, watch=False, unprotected=False, tell=lambda _: None, reach_s=0.3)


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
        lambda: submit(job(), "tcp://10.1.2.3:5600", watch=False, unprotected=False, tell=print),
    ],
    ids=["manager-bind", "member-bind", "member-manager", "submit"],
)
def test_address_of_a_network_needs_a_word(make: Callable[[], object]):
    """Nothing listens on, or talks to, other hosts without --unprotected."""
    with pytest.raises(JobError, match=r"^tcp://(0.0.0.0:\*|10.1.2.3:5600) can be reached from other hosts.*say --unprotected"):
        make()


def test_unprotected_lets_it_pass():
    """The word is enough; the address told to others is a name, not 0.0.0.0."""
    with ManagerNode(Manager(), "tcp://0.0.0.0:*", unprotected=True) as manager:
        assert "0.0.0.0" not in manager.endpoint


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:5600", "ipc:///tmp/zmpsl", "tcp://127.0.0.1", "tcp://127.0.0.1:", "tcp://127.0.0.1:http",
        "tcp://127.0.0.1:65536", "tcp://127.0.0.1:99999", "tcp://:5600", "",
    ],
)  # fmt: skip
def test_address_that_is_none(address: str):
    """A manager's address that cannot be one is a JobError; libzmq itself takes port 99999 for 34463."""
    with pytest.raises(JobError, match="must look like tcp://HOST:PORT"):
        Node(ComputeNode(), address)


@pytest.mark.parametrize("host", ["127.0.0.1.example.com", "127.example.com", "localhost.example.com"])
def test_name_that_only_looks_like_loopback(host: str):
    """Such a name can point anywhere."""
    with pytest.raises(JobError, match="can be reached from other hosts"):
        check_address(f"tcp://{host}:5600", False)


# -- the same through the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["manager", "--bind", "{taken}"], 4, "cannot bind {taken}: Address already in use"),
        (["aggregator", "--manager", "{taken}", "--bind", "{taken}"], 4, "cannot bind {taken}: Address already in use"),
        (["aggregator", "--manager", "tcp://10.1.2.3:5600"], 2, "tcp://10.1.2.3:5600 can be reached from other hosts"),
        (["manager", "--bind", "tcp://0.0.0.0:*"], 2, "tcp://0.0.0.0:* can be reached from other hosts"),
        (["manager", "--set", "network.join_timeout_s=0.3"], 5, "still missing: aggregator, node-0, node-1, owner-0, owner-1"),
        (["submit", "nothing.yaml", "--manager", "{taken}"], 2, "nothing.yaml: cannot be read"),
    ],
    ids=["manager-port", "member-port", "member-address", "manager-address", "nobody-joins", "no-job-file"],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, message: str):
    """One line on stderr, no traceback, and the exit code of the class."""
    listener, address = taken_port()
    with contextlib.closing(listener), cli(*(each.format(taken=address) for each in arguments), folder=tmp_path) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert len(err.splitlines()) == 1
    assert err.startswith("zmpsl: ")
    assert message.format(taken=address) in err


def test_wrong_job_in_processes(tmp_path: Path):
    """All processes of `zmpsl run` go, each with the reason as the last line of its log, and the exit code is JobError's."""
    with cli("run", "--plain", "--name", "wrong", "--set", "compute_nodes=9", folder=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "too few for 9 compute nodes; use fewer nodes or a deeper model" in err
    assert "Traceback" not in err
    logs = list((tmp_path / "runs" / "wrong" / "logs").iterdir())
    assert len(logs) == 15
    for path in logs:
        assert "too few for 9 compute nodes" in path.read_text().splitlines()[-1], path.name


def test_nothing_is_left_in_sys_modules():
    """The models of this file are found by name, as a user's are."""
    assert sys.modules["test_bad_input"].quarrelsome is quarrelsome
