"""Without the C kernels a run gives the same weights by the NumPy twins, and says that this is slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, cli, differing, job
from reference import train

from zmpsl.checkpoint import load_state_dict
from zmpsl.job.codec import packs
from zmpsl.kernels import NOT_NATIVE

MORE = [*TINY, "train.rounds=1", "owners=2", "data.args.limit=32", "data.args.test_limit=8", "cuts=even"]


@pytest.mark.parametrize("codec", ["lossless", "none"])
def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setenv("ZMPSL_NO_EXT", "1")
    wanted = [*MORE, f"codec={codec}"]
    settings = [part for each in wanted for part in ("--set", each)]
    with cli("run", "--name", "slow", *settings, folder=tmp_path) as process:
        _, errors = process.communicate(timeout=80)
    assert process.returncode == 0, errors
    folder = tmp_path / "runs" / "slow"
    assert differing(load_state_dict(folder), train(job(*wanted, "codec=none")).states[-1]) == []
    logs = (folder / "logs" / "node-0.log").read_text()
    assert [NOT_NATIVE in text for text in (errors, logs)] == [codec == "lossless"] * 2


@pytest.mark.parametrize(
    ("settings", "packed"),
    [
        ([], True),
        (["codec=none"], False),
        (["codec=bf16"], True),
        (["codec=auto"], True),
        (["codec=none", "codec.checkpoints=huff"], True),
        (["codec=none", "codec.links={owner>node-0: lz4}"], True),
        (["codec=none", "codec.links={owner>node-0: none}"], False),
    ],
)
def test_what_packs(settings: list[str], packed: bool) -> None:
    assert packs(job(*settings).codec) == packed
