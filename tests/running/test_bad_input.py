"""Bad input of every kind ends in one message that says what, where and what to do, in the right error class, for all.

`exit_code` of the class is what the command line exits with; a few cases at the end go through a real process.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from pathlib import Path

import pytest
import torch
from helpers import SMALL, ThreadedRun, cli, job
from torch import nn

from zmpsl.engine import build
from zmpsl.errors import DataError, JobError, JoinError, TrainingError, ZmpslError
from zmpsl.job import Job
from zmpsl.plan import fingerprint

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
            # Two owners may find the same fault, each in a batch of its own; whoever was first is heard.
            assert _nameless(node.error) == _nameless(caught.value)
    return message


def _nameless(error: BaseException) -> str:
    return re.sub(r"(owner[ -]|batch )\d+", r"\1K", str(error))


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
        (["model.name=small_nets:tiny_ml"], ["'small_nets' has no function 'tiny_ml' (did you mean 'tiny_mlp'?)"]),
        (["model.name=no_nets:tiny_mlp"], ["cannot import 'no_nets'", "is its folder on PYTHONPATH?"]),
        (["model.name=digits_cnn", "model.args.drop=0.1"], ["has no argument 'drop' (did you mean 'dropout'?)"]),
        (["model.name=digits_cnn", "model.args.dropout=x"], ["argument 'dropout' is 'x', but must be a number from 0"]),
        (["model.args.wide=3"], ["model 'small_nets:tiny_mlp' has no argument 'wide'", "it accepts features, width"]),
        (
            ["compute_nodes=3"],
            ["small_nets:tiny_mlp has 4 blocks; between first_cut 1 and last_cut 3 lie 2, too few for 3 compute nodes"],
        ),
        (["cuts=[1, 2, 9]"], ["cuts: [1, 2, 9] must rise strictly between 0 and 4", "blocks of small_nets:tiny_mlp"]),
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
    wanted = job(*SMALL, "model.name=test_bad_input:net_with", "model.args.kind=failing", f"model.args.at={at}")
    message = fails(wanted, ZmpslError, "KeyError: 'no such channel'")
    assert message.startswith(who)


def test_model_that_works_in_place_on_its_input():
    """What came over the wire is a leaf of the node's graph; the message names the node and torch's reason."""
    wanted = job(*SMALL, "model.name=test_bad_input:net_with", "model.args.kind=in-place")
    message = fails(wanted, ZmpslError, "in-place")
    assert message.startswith("node-1")


@pytest.mark.parametrize("setting", ["model.name", "data.name"])
def test_code_that_was_not_allowed(setting: str):
    """A job comes over the network: code it names is not even imported by a role that was not told so beforehand."""
    run = ThreadedRun(job(*SMALL, f"{setting}=no_such_module:anything"))
    for node in run.nodes:
        node.member.allowed_code = ("small_nets:tiny_mlp", "no_such_module:other")
    with run, pytest.raises(JoinError) as caught:
        run.finish(30)
    assert _nameless(caught.value) == (
        f"owner-K on {socket.gethostname()} was not told to run 'no_such_module:anything' for a job; "
        "if you trust that code, start this role with --allow-code no_such_module:anything"
    )


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
    real = build.summarise
    wanted = job(*SMALL)
    theirs = real(wanted.model)
    ours = (*theirs[:2], theirs[2].__class__("Other", theirs[2].entries), *theirs[3:])
    run = ThreadedRun(wanted)
    monkeypatch.setattr(build, "summarise", lambda model: ours if _thread_is(run, "node-1") else real(model))
    with run, pytest.raises(JoinError) as caught:
        run.finish(30)
    message = str(caught.value)
    assert message.startswith(f"node-1 on {socket.gethostname()}: model small_nets:tiny_mlp has fingerprint ")
    assert f"fingerprint {fingerprint(ours)} with 4 blocks here, the plan says {fingerprint(theirs)} with 4" in message
    assert "they differ from block 2 on. Install the same version of the model's code on all hosts" in message
    assert all(str(node.error) == message for node in run.nodes)


def _thread_is(run: ThreadedRun, place: str) -> bool:
    return any(node.member.place == place and node._thread is threading.current_thread() for node in run.nodes)


# -- the same through the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["manager", "--bind", "{taken}"], 4, "cannot bind {taken}: Address already in use"),
        (["aggregator", "--manager", "{taken}", "--bind", "{taken}"], 4, "cannot bind {taken}: Address already in use"),
        (["aggregator", "--manager", "tcp://10.1.2.3:5600"], 2, "tcp://10.1.2.3:5600 can be reached from other hosts"),
        (["manager", "--bind", "tcp://0.0.0.0:*"], 2, "tcp://0.0.0.0:* can be reached from other hosts"),
        (["manager", "--set", "network.join_timeout_s=0.3"], 5, "still missing: aggregator, node-0, node-1, owner-0"),
        (["aggregator", "--manager", "tcp://127.0.0.1:*"], 2, "'tcp://127.0.0.1:*'"),
        (["submit", "nothing.yaml", "--manager", "{taken}"], 2, "nothing.yaml: cannot be read"),
    ],
    ids=["manager-port", "member-port", "member-address", "manager-address", "nobody-joins", "no-port", "no-job-file"],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, arguments: list[str], code: int, message: str):
    """One line on stderr, no traceback, and the exit code of the class."""
    listener, address = taken_port()
    arguments = [each.format(taken=address) for each in arguments]
    with contextlib.closing(listener), cli(*arguments, folder=tmp_path) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert len(err.splitlines()) == 1
    assert err.startswith("zmpsl: ")
    assert message.format(taken=address) in err


def test_wrong_job_in_processes(tmp_path: Path):
    """All processes of `zmpsl run` go, each with the reason as the last line of its log; exit code 2."""
    settings = ("--set", "owners=1", "--set", "compute_nodes=1", "--set", "cuts=[1, 99]")
    with cli("run", "--plain", "--name", "wrong", *settings, folder=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cuts: [1, 99] must rise strictly between 0 and 6, the number of blocks of digits_cnn" in err
    assert "Traceback" not in err
    logs = list((tmp_path / "runs" / "wrong" / "logs").iterdir())
    assert {path.stem for path in logs} == {"manager", "aggregator", "node-0", "owner-0"}
    for path in logs:
        assert "cuts: [1, 99] must rise strictly" in path.read_text().splitlines()[-1], path.name
