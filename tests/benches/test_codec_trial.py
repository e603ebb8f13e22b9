"""Trying codecs on one tensor: .npy files without pickle, what crosses a model's cut, and the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zmpsl.engine.cut_tensors import cut_tensors
from zmpsl.errors import DataError, JobError
from zmpsl.job.schema import Model
from zmpsl.trials.codec import TEXTS, read_npy, try_codec, try_rival
from zmpsl.trials.rivals import rivals


class TestFiles:
    @pytest.mark.parametrize("shape", [(7,), (3, 4, 5), ()])
    def test_a_tensor_comes_out_as_it_was_saved(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), values)
        assert read_npy(tmp_path / "a.npy").shape == shape

    @pytest.mark.parametrize(
        "array",
        [np.zeros(3), np.zeros(3, ">f4"), np.zeros((3, 4), np.float32).T, np.zeros(0, np.float32), np.array([{}])],
        ids=["float64", "big-endian", "Fortran", "empty", "objects"],
    )
    def test_what_is_no_such_tensor_is_refused(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(DataError, match=r"a\.npy"):
            read_npy(tmp_path / "a.npy")

    @pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00abcde", b"text" * 100])
    def test_what_is_no_npy_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be read as \.npy"):
            read_npy(tmp_path / "a.npy")

    def test_a_cut_file_and_one_that_is_not_there_are_refused(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros(100, np.float32))
        (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-4])
        for name in ("b.npy", "c.npy"):
            with pytest.raises(DataError, match=name):
                read_npy(tmp_path / name)


class TestCuts:
    @pytest.mark.parametrize(("cut", "relu"), [(1, True), (3, True), (5, False)])
    def test_activation_and_gradient_of_a_cut(self, cut: int, relu: bool) -> None:
        # The last one ends in dropout, which does nothing at a share of 0, so give it one.
        activation, gradient, is_relu = cut_tensors(Model(name="digits_cnn", args={"dropout": 0.5}), cut, 4, 1)
        assert activation.shape == gradient.shape
        assert activation.shape[0] == 4
        assert is_relu == relu
        assert gradient.any()

    def test_tokens(self) -> None:
        activation, gradient, relu = cut_tensors(Model(name="gpt_tiny", args={"width": 16, "heads": 2}), 1, 2, 1)
        assert activation.shape == gradient.shape
        assert not relu

    @pytest.mark.parametrize("cut", [0, 6, -1])
    def test_a_cut_that_is_none(self, cut: int) -> None:
        with pytest.raises(JobError, match=f"has 6 blocks, so a cut lies from 1 to 5: {cut}"):
            cut_tensors(Model(name="digits_cnn"), cut, 2, 1)

    def test_a_model_that_is_none(self) -> None:
        with pytest.raises(JobError, match="digits_cnm"):
            cut_tensors(Model(name="digits_cnm"), 1, 2, 1)


class TestTrials:
    @pytest.mark.parametrize("text", TEXTS)
    def test_figures_are_those_of_the_codec(self, text: str) -> None:
        activation, gradient, _ = cut_tensors(Model(name="digits_cnn"), 1, 8, 1)
        for trial in (try_codec(text, activation, None, 1), try_codec(text, gradient, activation, 1)):
            assert trial.codec == text
            assert trial.ratio >= 1
            assert min(trial.encode_bytes_per_s, trial.decode_bytes_per_s) > 0
            assert (trial.error == 0) == (text in ("none", "lz4", "bitmap", "huff"))

    def test_rivals_give_back_what_their_error_says(self) -> None:
        values = np.maximum(np.random.default_rng(1).standard_normal(30000), 0).astype(np.float32)
        trials = {rival.name: try_rival(rival, values, 1) for rival in rivals(values, most=True)}
        assert trials["lz4"].error == 0
        assert trials["torch bfloat16"].ratio == 2
        for name, trial in trials.items():
            exact = name.startswith(("lz4", "zstd")) or (name.startswith("blosc2") and not name.endswith(" bits"))
            assert (trial.error == 0) == exact, name
            assert trial.error < 0.2, name

    def test_a_codec_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="'zip' is no codec"):
            try_codec("zip", np.ones(5, np.float32))
