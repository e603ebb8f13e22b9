"""What is stored is read back bit for bit; what is missing, damaged or of another run is a CheckpointError."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stored import JOB, load, plan_of, state_of
from torch import nn
from zmpsl.models import build

from zmpsl.checkpoint import (
    INDEX,
    Record,
    load_parts,
    load_state_dict,
    prune,
    read_record,
    round_folder,
    save_parts,
    write_index,
    write_record,
    write_text,
)
from zmpsl.engine.build import summarise
from zmpsl.errors import CheckpointError
from zmpsl.job import Model, Optimizer
from zmpsl.plan import Block, Entry, Plan, fingerprint
from zmpsl.state import Layout, digest, layout_of

# Every dtype, a scalar, an empty tensor and a block without any tensor.
MIXED = (
    Block("A", (Entry("w", "float32", (3, 4), True), Entry("n", "int64", (), False))),
    Block(
        "B",
        tuple(
            Entry(name, name, (5,), False) for name in ("float64", "float16", "int32", "int16", "int8", "uint8", "bool")
        ),
    ),
    Block("ReLU", ()),
    Block("C", (Entry("none", "float32", (0, 3), False), Entry("w", "float32", (2,), True))),
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Plan, Layout, np.ndarray]:
    """A run's folder with round 0 of a small network, its plan, layout and state."""
    plan = plan_of(summarise(JOB.model))
    layout, flat = state_of(plan)
    save_parts(tmp_path, plan, 0, range(plan.parts), layout, flat)
    write_index(tmp_path, plan, 0, {"aggregator": "x"})
    return tmp_path, plan, layout, flat


class TestParts:
    @pytest.mark.parametrize(
        "optimizer", [Optimizer(), Optimizer(state="average"), Optimizer(name="adam", state="average")]
    )
    def test_what_is_saved_is_loaded(self, tmp_path: Path, optimizer: Optimizer) -> None:
        plan = plan_of(MIXED, msgspec.structs.replace(JOB, optimizer=optimizer))
        layout, flat = state_of(plan)
        save_parts(tmp_path, plan, 3, range(plan.parts), layout, flat)
        assert np.array_equal(load(tmp_path, plan, layout, flat, 3), flat)
        files = {path.name for path in round_folder(tmp_path, 3).iterdir()}
        extra = (
            {"part-0.optimizer.safetensors", "part-2.optimizer.safetensors"} if optimizer.state == "average" else set()
        )
        assert files == {f"part-{part}.safetensors" for part in range(3)} | extra
        for name in files:
            assert all(("@" in tensor) == (name in extra) for tensor in load_file(round_folder(tmp_path, 3) / name))

    def test_each_part_alone_is_an_ordinary_file_of_its_own(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, flat = saved
        found = {}
        for part in range(plan.parts):
            tensors = load_file(run / "checkpoints" / "round-00000" / f"part-{part}.safetensors")
            assert {int(name.split(".")[0]) for name in tensors} <= set(plan.blocks_of(part))
            found |= tensors
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: view.tobytes() for name, view in layout.views(flat).items()
        }

    def test_some_parts_only(self, saved: tuple[Path, Plan, Layout, np.ndarray], tmp_path: Path) -> None:
        _, plan, _, _ = saved
        layout = layout_of(plan.blocks, plan.blocks_of(1), plan.job.optimizer)
        flat = np.zeros(layout.nbytes, np.uint8)
        save_parts(tmp_path, plan, 9, [1], layout, flat)
        assert [path.name for path in round_folder(tmp_path, 9).iterdir()] == ["part-1.safetensors"]
        back = np.ones_like(flat)
        back[:] = 0
        load_parts(tmp_path, plan.bounds, 9, [1], layout, back, digest(flat))

    def test_a_later_state_replaces_an_earlier_one(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, _ = saved
        _, other = state_of(plan, seed=1)
        save_parts(run, plan, 0, range(plan.parts), layout, other)
        assert np.array_equal(load(run, plan, layout, other), other)

    def test_nothing_temporary_is_left(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        assert not list(saved[0].rglob("*.tmp"))

    def test_another_state_than_the_recorded_one_is_refused_with_both_digests(
        self, saved: tuple[Path, Plan, Layout, np.ndarray]
    ) -> None:
        run, plan, layout, flat = saved
        with pytest.raises(CheckpointError) as caught:
            load_parts(run, plan.bounds, 0, range(plan.parts), layout, np.zeros_like(flat), "ab" * 32)
        assert digest(flat)[:16] in str(caught.value)
        assert "abababababababab" in str(caught.value)
        assert "round 0" in str(caught.value)

    def test_a_missing_file_is_named(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, flat = saved
        path = round_folder(run, 0) / "part-1.safetensors"
        path.unlink()
        with pytest.raises(CheckpointError, match=r"part-1\.safetensors does not exist; copy the part files"):
            load(run, plan, layout, flat)
        with pytest.raises(CheckpointError, match=r"part-1\.safetensors does not exist"):
            load_state_dict(run, 0)

    def test_a_file_cut_anywhere_is_refused(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, flat = saved
        path = round_folder(run, 0) / "part-1.safetensors"
        data = path.read_bytes()
        for length in (*range(0, len(data), 7), len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=r"part-1\.safetensors is damaged"):
                load(run, plan, layout, flat)
            with pytest.raises(CheckpointError, match=r"part-1\.safetensors is damaged"):
                load_state_dict(run, 0)

    def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(
        self, saved: tuple[Path, Plan, Layout, np.ndarray]
    ) -> None:
        # In the header's free text (run, round) it changes nothing; every other one does.
        run, plan, layout, flat = saved
        path = round_folder(run, 0) / "part-1.safetensors"
        data = path.read_bytes()
        harmless = 0
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
            try:
                assert np.array_equal(load(run, plan, layout, flat), flat)
                harmless += 1
            except CheckpointError:
                pass
        assert harmless < 30 < len(data)

    def test_a_flipped_bit_makes_no_other_error_in_load_state_dict(
        self, saved: tuple[Path, Plan, Layout, np.ndarray]
    ) -> None:
        run, _, _, _ = saved
        path = round_folder(run, 0) / "part-1.safetensors"
        data = path.read_bytes()
        names = set(load_state_dict(run, 0))
        for at in range(8 + int.from_bytes(data[:8], "little")):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            try:
                assert set(load_state_dict(run, 0)) == names
            except CheckpointError as error:
                assert "part-1.safetensors" in str(error)  # noqa: PT017 - its class is the point

    def test_a_tensor_of_another_shape_is_named(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, flat = saved
        other = plan_of(summarise(Model(name="mlp", args={"features": 6, "hidden": [5, 3]})))
        save_parts(run, other, 0, range(other.parts), *state_of(other))
        with pytest.raises(
            CheckpointError, match=r"part-\d.safetensors: tensor \d.*weight is missing or not float32\[4, 5\]"
        ):
            load(run, plan, layout, flat)

    def test_a_tensor_of_another_dtype_is_refused_even_where_the_numbers_are_equal(self, tmp_path: Path) -> None:
        found, wanted = (
            plan_of(tuple(Block("A", (Entry("w", dtype, (2,), True),)) for _ in range(3)))
            for dtype in ("float64", "float32")
        )
        for plan in (found, wanted):
            layout, flat = state_of(plan)
            flat[:] = 0
            if plan is found:
                save_parts(tmp_path, plan, 0, range(plan.parts), layout, flat)
        with pytest.raises(CheckpointError, match=r"tensor 0\.w is missing or not float32\[2\]"):
            load(tmp_path, wanted, layout, flat)


class TestFolders:
    def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(
        self, saved: tuple[Path, Plan, Layout, np.ndarray]
    ) -> None:
        # Below a regular file nobody can write, not even root.
        run, plan, layout, flat = saved
        below = run / "file"
        below.write_text("x")
        record = Record(run="r", job=JOB, bounds=(0, 1), fingerprint="f", committed={})
        for action in (
            lambda: save_parts(below, plan, 0, range(plan.parts), layout, flat),
            lambda: load(below, plan, layout, flat),
            lambda: write_index(below, plan, 0, {}),
            lambda: write_record(below, record),
            lambda: write_text(below / "deep" / "file", b""),
            lambda: read_record(below),
            lambda: load_state_dict(below),
            lambda: load_state_dict(below, 0),
        ):
            with pytest.raises(CheckpointError, match=str(below)):
                action()

    def test_a_folder_in_the_place_of_a_file_is_a_checkpoint_error(
        self, saved: tuple[Path, Plan, Layout, np.ndarray]
    ) -> None:
        run, plan, layout, flat = saved
        path = round_folder(run, 0) / "part-0.safetensors"
        path.unlink()
        path.mkdir()
        (run / "record.json").mkdir()
        for action in (
            lambda: save_parts(run, plan, 0, [0], layout, flat),
            lambda: load(run, plan, layout, flat),
            lambda: load_state_dict(run, 0),
            lambda: read_record(run),
        ):
            with pytest.raises(CheckpointError, match=str(run)):
                action()

    def test_prune_keeps_the_last_n_committed_rounds_and_what_is_not_committed(self, tmp_path: Path) -> None:
        for round_ in (0, 1, 2, 3, 4, 100_000):
            round_folder(tmp_path, round_).mkdir(parents=True)
        (tmp_path / "checkpoints" / "round-mine").mkdir()
        (round_folder(tmp_path, 0) / "part-0.safetensors").write_text("x")
        prune(tmp_path, 3, 2)
        left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert left == ["round-00002", "round-00003", "round-00004", "round-100000", "round-mine"]
        prune(tmp_path, 100_000, 1)
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round-100000", "round-mine"]

    def test_prune_of_nothing(self, tmp_path: Path) -> None:
        prune(tmp_path, 5, 2)
        assert not list(tmp_path.iterdir())


class TestRecord:
    RECORD = Record(run="run", job=JOB, bounds=(0, 1, 2), fingerprint="ab", committed={0: {"node-0": "x"}, 11: {}})

    def test_it_is_read_back(self, tmp_path: Path) -> None:
        write_record(tmp_path / "new", self.RECORD)
        assert read_record(tmp_path / "new") == self.RECORD
        assert self.RECORD.last == 11

    def test_before_the_first_commit_there_is_no_last_round(self) -> None:
        assert msgspec.structs.replace(self.RECORD, committed={}).last == -1

    def test_what_a_crash_left_behind_is_not_read(self, tmp_path: Path) -> None:
        write_record(tmp_path, self.RECORD)
        (tmp_path / "record.json.tmp").write_text("half a rec")
        assert read_record(tmp_path) == self.RECORD
        write_record(tmp_path, msgspec.structs.replace(self.RECORD, run="again"))
        assert read_record(tmp_path).run == "again"
        assert [path.name for path in tmp_path.iterdir()] == ["record.json"]

    def test_a_crash_while_writing_leaves_the_old_record(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_record(tmp_path, self.RECORD)

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*record\.json: No space left on device"):
            write_record(tmp_path, msgspec.structs.replace(self.RECORD, run="again"))
        assert read_record(tmp_path) == self.RECORD

    def test_no_record_says_what_that_means(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="is no run folder, or its run ended before the first plan"):
            read_record(tmp_path)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{}",
            b"[]",
            b"null",
            b"\xff\xfe",
            b'{"run": "\xff"}',
            b'{"run": 5}',
            b'{"rum": "x"}',
            b"[" * 100_000,
            b'{"job": ' + b"[" * 100_000,
        ],
        ids=range(10),
    )
    def test_a_damaged_record_is_a_checkpoint_error(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "record.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"record\.json is damaged: "):
            read_record(tmp_path)


class TestStateDict:
    def test_the_index_is_as_other_tools_know_it(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, plan, layout, _ = saved
        index = json.loads((round_folder(run, 0) / INDEX).read_text())
        assert set(index) == {"metadata", "weight_map"}
        assert index["metadata"]["model"] == "mlp"
        assert index["metadata"]["digests"] == {"aggregator": "x"}
        assert set(index["weight_map"]) == set(layout.views(np.zeros(layout.nbytes, np.uint8)))
        for name, file in index["weight_map"].items():
            part = int(file.removeprefix("part-").removesuffix(".safetensors"))
            assert int(name.split(".")[0]) in plan.blocks_of(part)

    def test_it_loads_into_the_plain_model(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        run, _, layout, flat = saved
        write_record(run, Record(run="r", job=JOB, bounds=(0, 1), fingerprint=fingerprint(()), committed={0: {}}))
        model = nn.Sequential(*build(JOB.model.name, **JOB.model.args))
        state = {name: torch.from_numpy(array) for name, array in load_state_dict(run).items()}
        model.load_state_dict(state, strict=True)
        views = layout.views(flat)
        assert {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()} == {
            name: view.tobytes() for name, view in views.items()
        }

    def test_optimizer_state_is_no_part_of_it(self, tmp_path: Path) -> None:
        plan = plan_of(summarise(JOB.model), msgspec.structs.replace(JOB, optimizer=Optimizer(state="average")))
        layout, flat = state_of(plan)
        save_parts(tmp_path, plan, 2, range(plan.parts), layout, flat)
        write_index(tmp_path, plan, 2, {})
        model = nn.Sequential(*build(JOB.model.name, **JOB.model.args))
        assert set(load_state_dict(tmp_path, 2)) == set(model.state_dict())

    def test_without_a_committed_round_it_says_so(self, tmp_path: Path) -> None:
        write_record(tmp_path, Record(run="r", job=JOB, bounds=(0, 1), fingerprint="f", committed={}))
        with pytest.raises(CheckpointError, match=r"no (committed )?round"):
            load_state_dict(tmp_path)

    def test_a_round_that_is_not_there(self, saved: tuple[Path, Plan, Layout, np.ndarray]) -> None:
        with pytest.raises(CheckpointError, match="round-00007"):
            load_state_dict(saved[0], 7)

    @pytest.mark.parametrize(
        "data",
        [
            *(b"", b"{}", b"[]", b"null", b"\xff\xfe", b"3", b'{"weight_map": 3}', b'{"weight_map": {"0.w": 3}}'),
            *(
                b'{"weight_map": {"9.w": "part-0.safetensors"}}',
                b'{"weight_map": {"9.w": "record.json"}}',
                b"[" * 100_000,
            ),
            b'{"weight_map": {"\xff": "part-0.safetensors"}}',
        ],
        ids=range(12),
    )
    def test_a_damaged_index_is_a_checkpoint_error(
        self, saved: tuple[Path, Plan, Layout, np.ndarray], data: bytes
    ) -> None:
        (round_folder(saved[0], 0) / INDEX).write_bytes(data)
        with pytest.raises(CheckpointError, match="round-00000"):
            load_state_dict(saved[0], 0)
