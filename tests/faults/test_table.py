"""The table of faults names every fault of the list, and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_fault_is_in_the_table_and_every_file_is_there():
    rows = re.findall(r"^\| F[0-9].*", (HERE / "README.md").read_text(), re.MULTILINE)
    assert [int(row.split()[1].removeprefix("F")) for row in rows] == [*range(1, 15), 16, 17]
    for row in rows:
        named = re.findall(r"`([\w./]+\.py)`", row)
        assert named, row
        assert all((HERE / name).exists() or (HERE.parents[1] / name).exists() for name in named), row
