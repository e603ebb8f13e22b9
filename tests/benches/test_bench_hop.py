"""The hop benchmark runs from its command line and writes the figures that documents quote."""

import importlib.util
import json

import pytest
from typed_bench import bench

SPREADS = {
    "gb_per_s", "ratio_to_raw", "round_trip_ms", "cpu_sender_s_per_gb", "cpu_receiver_s_per_gb", "cpu_both_s_per_gb",
}  # fmt: skip


def run(*options):
    return bench("hop", *options, timeout_s=120)


def test_one_size_gives_table_and_json(tmp_path):
    """All transports deliver what was sent (the bench checks it), and every figure is there and makes sense."""
    peers = ["raw", "pyzmq", "gloo"] + ["grpc"] * (importlib.util.find_spec("grpc") is not None)
    file = tmp_path / "hop.json"
    options = ["--sizes", "64KiB", "--repeats", "1", "--seconds", "0.02", "--peers", ",".join(peers)]
    done = run(*options, "--json", str(file))
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith("|")][2:] == ["zmpsl", *peers]
    result = json.loads(file.read_text())
    assert f"pyzmq {result['versions']['pyzmq']}" in table[0]
    assert result["machine"]["cpu"] in table[0]
    assert result["machine"]["kernel"] in table[0]
    assert "python bench/hop.py --sizes 64KiB" in table[0]
    assert [row["transport"] for row in result["rows"]] == ["zmpsl", *peers]
    for row in result["rows"]:
        assert row["tensor_bytes"] == 65536
        assert row["content_verified"] is True
        for name in SPREADS:
            assert 0 <= row[name]["min"] <= row[name]["median"] <= row[name]["max"]
            assert len(row[name]["samples"]) == 1
        assert row["gb_per_s"]["min"] > 0
    assert result["rows"][0]["new_pool_buffers"] == 0
    assert result["rows"][1]["ratio_to_raw"]["samples"] == [1.0]


def measured(tmp_path, *options):
    """The rows of a run that ends well."""
    file = tmp_path / "hop.json"
    done = run(*options, "--json", str(file))
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())["rows"]


def test_over_a_slow_line_no_more_comes_through_than_its_rate(tmp_path):
    """With keys and without; and what the line carries is what was sent."""
    options = ["--sizes", "64KiB", "--repeats", "1", "--seconds", "0.2", "--peers", "zmpsl-curve", "--mbit", "20"]
    rows = measured(tmp_path, *options)
    assert [row["transport"] for row in rows] == ["zmpsl", "zmpsl-curve"]
    assert all(0 < row["gb_per_s"]["median"] < 4 * 0.0025 for row in rows)  # what the sockets hold comes at once


def test_without_raw_there_is_no_ratio(tmp_path):
    """zmpsl alone, packed, in two sizes."""
    options = ["--sizes", "64KiB,2MiB", "--repeats", "2", "--seconds", "0.02", "--peers", "", "--codec", "lz4"]
    rows = measured(tmp_path, *options)
    assert [(row["tensor_bytes"], row["ratio_to_raw"], row["new_pool_buffers"]) for row in rows] == [
        (65536, None, 0),
        (2 << 20, None, 0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "64KB"], "'64KB' is no size"),
        (["--sizes", "0KiB"], "'0KiB' is no size"),
        (["--peers", "raw,pigeon"], "'pigeon' in --peers"),
        (["--peers", "raw,raw"], "'raw' in --peers"),
        (["--mbit", "20"], "'raw' in --peers knows no --mbit"),
    ],
)
def test_wrong_options_are_named(options, message):
    done = run(*options)
    assert done.returncode == 2
    assert message in done.stderr
