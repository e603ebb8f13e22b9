"""zmpsl bench link: tensors arrive through shaped sockets, and the table says which codec was fastest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from zmpsl.cli.bench import bench
from zmpsl.errors import RemoteProtocolError
from zmpsl.transport.wire import CHUNK
from zmpsl.trials.link import LinkTrial, fastest, sample_of, shaped_by_proxy, try_link
from zmpsl.trials.slow_link import private_network

FAST = 4e9  # bits per second


def activations(n: int) -> np.ndarray:
    return np.maximum(np.random.default_rng(1).standard_normal(n, np.float32), 0)


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bench, ["link", "--seconds", "0.01", *arguments])
    return result.exit_code, result.output


class TestSamples:
    def test_a_slow_link_gets_whole_chunks_of_the_beginning(self) -> None:
        values = activations(CHUNK)  # four chunks
        sample = sample_of(values, None, 8 * 2.5 * CHUNK, 1.0)
        assert (sample.values.nbytes, sample.repeats, sample.share) == (2 * CHUNK, 1, 0.5)
        assert sample_of(values, None, 1.0, 1.0).values.nbytes == CHUNK
        assert np.array_equal(sample.values, values[: CHUNK // 2])

    def test_a_fast_link_gets_the_tensor_many_times(self) -> None:
        sample = sample_of(activations(1000).reshape(10, 100), None, 8 * 4000 * 7.5, 1.0)
        assert (sample.values.size, sample.repeats, sample.share) == (1000, 7, 1.0)

    def test_a_mask_is_cut_with_its_tensor(self) -> None:
        values = activations(CHUNK)
        sample = sample_of(values, values, 1.0, 1.0)
        assert sample.mask is not None
        assert sample.mask.nbytes == CHUNK


class TestLinks:
    @pytest.mark.parametrize("text", ["none", "lz4", "huff", "qz(0.5)", "topk(0.1, error-feedback)"])
    def test_everything_arrives_through_a_proxy(self, text: str) -> None:
        values = activations(CHUNK // 2)  # two chunks
        for activation in (None, values):
            trial = try_link(text, sample_of(values, activation, FAST, 0.01), FAST)
            assert trial.codec == text
            assert trial.seconds > 0
            assert (trial.ratio > 1.1) == (text != "none")

    def test_what_the_receiver_cannot_unpack_is_heard_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_chunk: object) -> None:
            raise RemoteProtocolError("a chunk of nonsense")

        monkeypatch.setattr("zmpsl.trials.link.Unpacker", lambda _known: refuse)
        with pytest.raises(RemoteProtocolError, match="a chunk of nonsense"):
            try_link("huff", sample_of(activations(1000), None, FAST, 0.01), FAST, shaped_by_proxy)

    def test_the_fastest(self) -> None:
        trials = [LinkTrial("none", 3.0, 1.0), LinkTrial("huff", 2.0, 2.0), LinkTrial("qz(0.5)", 1.0, 9.0)]
        assert fastest(trials) == ("huff", "qz(0.5)")
        assert fastest(trials[2:]) == ("qz(0.5)", "qz(0.5)")


class TestCommand:
    def test_a_table_per_tensor(self) -> None:
        code, text = call("--shaper", "proxy", "--batch", "4", "--codec", "none", "--codec", "huff", "--mbit", "4000")
        assert code == 0, text
        assert "shaped by a proxy in user space" in text
        assert "digits_cnn before block 1, activation behind a ReLU: [4, 16, 8, 8]" in text
        assert "4 Gbit/s" in text
        rows = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
        assert rows == ["codec", "none", "huff", "fastest", "fastest"] * 2

    def test_figures_of_a_file_as_json(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", activations(3000))
        code, text = call(
            "--shaper", "proxy", "--tensor", str(tmp_path / "a.npy"), "--codec", "huff", "--mbit", "2000",
            "--mbit", "4000", "--format", "json",
        )  # fmt: skip
        assert code == 0, text
        told = json.loads(text)
        (tensor,) = told["tensors"]
        assert (told["shaper"], tensor["bytes"], tensor["shape"]) == ("proxy", 12000, [3000])
        assert [each["mbit"] for each in tensor["links"]] == [2000, 4000]
        assert all(each["fastest"] == each["fastest_exact"] == "huff" for each in tensor["links"])
        assert all(each["seconds"]["huff"] > 0 and each["ratio"]["huff"] > 1.5 for each in tensor["links"])

    def test_in_a_network_namespace(self) -> None:
        if private_network() is None:
            pytest.skip("no network namespace with tc can be made here")
        done = subprocess.run(
            [sys.executable, "-m", "zmpsl", "bench", "link", "--shaper", "namespace", "--seconds", "0.01", "--mbit",
             "1000", "--batch", "2", "--codec", "huff", "--format", "json"],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["shaper"] == "namespace"

    def test_what_is_wrong_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = call("--shaper", "proxy", "--codec", "zip")
        assert (code, text.splitlines()[-1][:27]) == (2, "zmpsl: --codec: 'zip' is no"), text
        monkeypatch.setenv("PATH", "")
        assert private_network() is None
        code, text = call("--shaper", "namespace")
        assert code == 2
        assert "no network namespace with tc can be made here; try --shaper proxy" in text
