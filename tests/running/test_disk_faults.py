"""Disks that fill up and power that fails: what was stored before is whole, and what was told of is there."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import numpy as np
import pytest
from stored import JOB, load, plan_of, state_of

from zmpsl.checkpoint import Record, read_record, round_folder, save_parts, write_record
from zmpsl.engine.build import summarise
from zmpsl.errors import CheckpointError
from zmpsl.job.schema import Codec


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_parts_are_there_even_if_the_power_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synced file whose new name is not on disk is lost with the power: the folder has to be synced behind it."""
    plan = plan_of(summarise(JOB.model))
    layout, flat = state_of(plan)
    done: list[tuple[str, Path]] = []
    fsync, replace = os.fsync, Path.replace
    opened = Path("/proc/self/fd")
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(("sync", (opened / str(n)).readlink())), fsync(n)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (done.append(("rename", new)), replace(old, new)))
    run = tmp_path / "new"
    save_parts(run, plan, 0, [0, 1], layout, flat)
    folder = round_folder(run, 0)
    for number in (0, 1):
        path = folder / f"part-{number}.safetensors"
        written, renamed = done.index(("sync", path.with_name(path.name + ".tmp"))), done.index(("rename", path))
        assert written < renamed
        assert ("sync", folder) in done[renamed:]
    assert {path for what, path in done if what == "sync"} >= {folder.parent, run, tmp_path}


@pytest.mark.parametrize("codec", ["none", "huff"])
def test_a_file_that_cannot_be_written_to_its_end_leaves_the_old_one(tmp_path: Path, codec: str) -> None:
    """A disk that is full, or a quota: here a limit to the size of files. The error is one of ours."""
    plan = plan_of(summarise(JOB.model), msgspec.structs.replace(JOB, codec=Codec(checkpoints=codec)))
    layout, flat = state_of(plan)
    _, other = state_of(plan, seed=1)
    record = Record(run="run", job=JOB, bounds=plan.bounds, fingerprint="x", committed={})
    save_parts(tmp_path, plan, 0, range(plan.parts), layout, flat)
    write_record(tmp_path, record)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*part-0.*: .*[Ff]ile too large"):
            save_parts(tmp_path, plan, 0, range(plan.parts), layout, other)
        with pytest.raises(CheckpointError, match=r"cannot write .*record.json: File too large"):
            write_record(tmp_path, record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(load(tmp_path, plan, layout, flat), flat)
    assert read_record(tmp_path).fingerprint == "x"
