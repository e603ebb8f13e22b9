"""zmpsl bench codec: a table per tensor, and one line where something is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from zmpsl.cli.bench import bench


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bench, ["codec", *arguments])
    return result.exit_code, result.output


def test_a_model_gives_activation_and_gradient() -> None:
    code, text = call("--batch", "4", "--codec", "huff", "--codec", "qz(0.5)")
    assert code == 0
    assert "digits_cnn before block 1, activation behind a ReLU: [4, 16, 8, 8], 16.4 kB" in text
    assert "gradient under its mask" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == ["codec", "huff", "qz(0.5)"] * 2


def test_a_file_and_its_mask(tmp_path: Path) -> None:
    for name in ("a.npy", "g.npy"):
        np.save(tmp_path / name, np.maximum(np.random.default_rng(1).standard_normal((3, 5000), np.float32), 0))
    code, text = call("--tensor", str(tmp_path / "g.npy"), "--mask", str(tmp_path / "a.npy"))
    assert code == 0
    assert all(name in text for name in ("none", "lz4", "bf16-huff", "topk(0.1)"))
    for module, name in (("zstandard", "zstd 1"), ("blosc2", "blosc2 zstd-1 shuffle"), ("torch", "torch bfloat16")):
        assert (name in text) == (importlib.util.find_spec(module) is not None)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tensor", "nowhere.npy"], 3, "nowhere.npy: cannot be read"),
        (["--model", "digits_cnm"], 2, "digits_cnm"),
        (["--cut", "9"], 2, "a cut lies from 1 to 5: 9"),
        (["--codec", "zip"], 2, "--codec: 'zip' is no codec"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], code: int, words: str) -> None:
    ended, text = call(*arguments)
    assert ended == code
    assert words in text.splitlines()[-1]
