"""`zmpsl run` as a person types it: what it prints, what it leaves, how it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, cli, differing, job
from safetensors.torch import load_file

from zmpsl import models
from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.errors import CheckpointError, JobError
from zmpsl.job import load_job
from zmpsl.launch.local import run


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The built-in job, once for this file: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("default")
    with cli("run", "--name", "demo", folder=folder) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    return folder / "runs" / "demo", out


def test_built_in_job_trains_to_95_percent(default_run: tuple[Path, str]):
    folder, out = default_run
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [event["accuracy"] for event in events if event["event"] == "evaluation"][-1] >= 0.95
    assert events[-1]["event"] == "end"
    assert events[-1]["seconds"] < 120
    assert "4 owners; 2 compute nodes" in out
    assert "round 3/3 evaluated  accuracy 9" in out


def test_run_folder_is_complete(default_run: tuple[Path, str]):
    folder, _ = default_run
    assert load_job(folder / "job.yaml") == job()
    assert {path.name for path in (folder / "logs").iterdir()} == {
        f"{name}.log"
        for name in ("manager", "aggregator", "node-0", "node-1", "owner-0", "owner-1", "owner-2", "owner-3")
    }
    trace = json.loads((folder / "timeline.json").read_text())
    assert {event["ph"] for event in trace["traceEvents"]} == {"M", "X"}
    report = (folder / "report.html").read_text()
    assert report.count("<svg") >= 4
    assert "src=" not in report


def test_checkpoint_is_an_ordinary_state_dict(default_run: tuple[Path, str]):
    folder, _ = default_run
    state: dict[str, torch.Tensor] = {}
    for path in sorted((folder / "checkpoints" / "round-00002").glob("part-?.safetensors")):
        state |= load_file(path)
    model = torch.nn.Sequential(*models.build("digits_cnn"))
    model.load_state_dict(state, strict=True)
    model.eval()
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.asarray(digits.images / 16, np.float32)).unsqueeze(1)
    with torch.no_grad():
        accuracy = float((model(images).argmax(1).numpy() == digits.target).mean())
    assert accuracy >= 0.95


def test_only_two_checkpoints_are_kept(default_run: tuple[Path, str]):
    folder, _ = default_run
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["round-00001", "round-00002"]
    assert list(read_record(folder).committed) == [1, 2]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path):
    overrides = [*TINY, "owners=2", "train.rounds=3", "optimizer.state=average", "optimizer.lr.schedule=exponential"]
    whole = run(job(*overrides), tmp_path, "whole")
    cut = run(job(*overrides, "train.rounds=1"), tmp_path, "cut")
    again = run(job(*overrides), tmp_path, "cut", resume=True)
    assert cut.folder == again.folder
    assert differing(load_state_dict(whole.folder), load_state_dict(again.folder)) == []
    assert read_record(whole.folder).committed == read_record(again.folder).committed
    assert whole.accuracy == again.accuracy


def test_changed_checkpoint_is_refused(tmp_path: Path):
    run(job(*TINY, "owners=1", "compute_nodes=1", "train.rounds=1"), tmp_path, "cut")
    path = tmp_path / "cut" / "checkpoints" / "round-00000" / "part-1.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the files were changed"):
        run(job(*TINY, "owners=1", "compute_nodes=1"), tmp_path, "cut", resume=True)


def test_a_run_folder_is_not_overwritten(tmp_path: Path):
    run(job(*TINY, "owners=1", "compute_nodes=1", "train.rounds=1"), tmp_path, "once")
    with pytest.raises(JobError, match="already holds a run"):
        run(job(), tmp_path, "once")
    with pytest.raises(JobError, match="goes on with the owners, model and seed"):
        run(job("owners=2"), tmp_path, "once", resume=True)
    with pytest.raises(CheckpointError, match="is no run folder"):
        run(job(), tmp_path, "nothing", resume=True)


def test_print_config_is_a_job_that_loads(tmp_path: Path):
    with cli("run", "--print-config", "--set", "train.rounds=7", folder=tmp_path) as process:
        out, _ = process.communicate(timeout=30)
    (tmp_path / "job.yaml").write_text(out)
    assert load_job(tmp_path / "job.yaml") == job("train.rounds=7")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("train:\n  round: 3\n", [], "job.yaml:2: unknown key 'train.round'; did you mean 'rounds'?"),
        ("owners: many\n", [], "job.yaml:1: owners: expected `int`, got `str` (it is 'many')"),
        ("seed: 1\ntrain:\n  rounds: 0\n", [], "job.yaml:3: train.rounds: expected `int` >= 1 (it is 0)"),
        ("", ["--set", "train.roundz=4"], "--set train.roundz=4: unknown key 'train.roundz'; did you mean 'rounds'?"),
    ],
)
def test_wrong_job_exits_with_2_and_one_line(tmp_path: Path, text: str, arguments: list[str], message: str):
    (tmp_path / "job.yaml").write_text(text)
    with cli("run", "job.yaml", *arguments, folder=tmp_path) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert err.strip() == f"zmpsl: {message}"
    assert not (tmp_path / "runs").exists()


def test_help_is_quick_and_light(tmp_path: Path):
    code = (
        "import sys; sys.argv = ['zmpsl', '--help']\nfrom zmpsl.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "print(sorted({'torch', 'mip', 'zmq', 'numpy', 'matplotlib'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.strip().endswith("[]")
    assert "Exit codes" in out
