"""Checkpoints packed by an exact codec hold the same state under the same digests, and either kind of file is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, job

from zmpsl.checkpoint import load_state_dict, read_record, round_folder
from zmpsl.errors import CheckpointError, JobError
from zmpsl.launch.memory import MemoryRun

ADAM = ["optimizer.name=adam", "optimizer.state=average", "optimizer.lr.initial=0.01"]


def run(runs: Path, codec: str, *more: str) -> Path:
    """Trains a small job and gives the run's folder."""
    MemoryRun(job(*TINY, *ADAM, f"codec.checkpoints={codec}", *more), runs=runs).run()
    return runs / "memory"


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("codec", ["lz4", "bitmap", "huff"])
def test_same_state_and_same_digests(tmp_path: Path, codec: str) -> None:
    plain, packed = run(tmp_path / "a", "none"), run(tmp_path / "b", codec)
    last = read_record(plain).last
    assert read_record(packed).committed == read_record(plain).committed
    assert same(load_state_dict(packed), load_state_dict(plain))
    names = {path.name for path in round_folder(plain, last).glob("part-*")}
    found = {path.name for path in round_folder(packed, last).glob("part-*")}
    assert found == {name.replace(".safetensors", ".packed") for name in names}
    assert "part-1.optimizer.packed" in found


def test_a_run_goes_on_from_packed_files_and_may_change_its_mind(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "none", "train.rounds=3")
    half = run(tmp_path / "half", "huff", "train.rounds=2")
    record = read_record(half)
    again = job(*TINY, *ADAM, "train.rounds=3", "codec.checkpoints=none")
    MemoryRun(again, runs=tmp_path / "half", resume=record).run()
    assert read_record(half).committed[2] == read_record(whole).committed[2]
    assert same(load_state_dict(half), load_state_dict(whole))
    assert {path.suffix for path in round_folder(half, 1).glob("part-*")} == {".packed"}
    assert {path.suffix for path in round_folder(half, 2).glob("part-*")} == {".safetensors"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    packed = run(tmp_path, "huff")
    path = round_folder(packed, read_record(packed).last) / "part-1.packed"
    sound = path.read_bytes()
    for data, words in (
        (sound[:-3], "ends 3 bytes too early"),
        (sound[:-1] + bytes([sound[-1] ^ 1]), "checksum"),
        (b"PK" + sound, "a packed state with"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"part-1\.packed.*{words}"):
            load_state_dict(packed)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"part-1\.packed does not exist"):
        load_state_dict(packed)


def test_only_exact_codecs() -> None:
    with pytest.raises(JobError, match=r"codec\.checkpoints"):
        job("codec.checkpoints=bf16")
