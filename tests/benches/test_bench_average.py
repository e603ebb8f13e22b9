"""The benchmark of averaging runs from its command line."""

from typed_bench import bench


def test_a_few_parameters_give_a_table() -> None:
    done = bench("average", "--parameters", "70001", "--repeats", "2", timeout_s=100)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "| a copy of as many bytes | " in done.stdout
    assert len(rows) == 2 + 4
