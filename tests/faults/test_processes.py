"""Faults on real processes and real connections: whatever is done to them, every commit is that of the quiet run.

A few of each kind by default; all of them, in the numbers of README.md, with `--all-faults`. The seed of the moments is
in each test's name; `ZMPSL_FAULTS_SEED` sets it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults import CODECS, cases
from harmed import control
from striking import cuts, dies, drowsy, kills, resets, silence, stops
from struck import MANY, SEED, SEEDED, in_bounds, struck


@SEEDED
@pytest.mark.parametrize(("codec", "keys"), [(CODECS[0], False), (CODECS[1], True)], ids=["plain", "packed, with keys"])
def test_a_few_of_each(tmp_path: Path, codec: str, keys: bool, seed: int):
    blows = [
        kills("node-0"), dies("node-0", 1), cuts("node-1", 50_000), kills("owner-1"), stops("aggregator", 0.5),
        dies("manager", 2), resets(["owner-0", control("node-0")], 0.1), silence(["node-1"], 1), dies("aggregator", 0),
        kills("node-0", "node-1"), kills("manager"),
    ]  # fmt: skip
    random.Random(seed).shuffle(blows)
    assert struck(tmp_path, codec, blows, seed, keys=keys).begun_again >= 5


@SEEDED
def test_an_owner_that_is_slow_is_not_taken_for_dead(tmp_path: Path, seed: int):
    assert struck(tmp_path, "none", [drowsy("owner-1", 2)], seed).begun_again == 0


@SEEDED
def test_nothing_depends_on_the_time_of_day(tmp_path: Path, seed: int):
    day = 86_400.0
    clocks = {"node-0": day, "node-1": -day, "owner-0": 3 * day, "aggregator": -2 * day, "manager": day / 2}
    struck(tmp_path, "none", [kills("node-0"), kills("owner-0")], seed, clocks=clocks)


@SEEDED
@pytest.mark.all_faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", cases(random.Random(SEED), quick=False))
def test_all_of_one_kind(tmp_path: Path, codec: str, name: str, seed: int):
    outcome = struck(tmp_path, codec, cases(random.Random(seed), quick=False)[name], seed, MANY)
    in_bounds(outcome, name.split()[0], seed)


@SEEDED
@pytest.mark.all_faults
@pytest.mark.timeout(900)
def test_flipped_bits_under_keys(tmp_path: Path, seed: int):
    """A message that does not pass the authentication ends its connection; nothing of it is used."""
    blows = cases(random.Random(seed), quick=False, keys=True)["flipped bits"]
    assert struck(tmp_path, "none", blows, seed, MANY, keys=True).begun_again >= 1
