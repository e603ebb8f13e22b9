"""A small job on real processes under blows: every commit is checked, and what each blow has cost."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults import settings
from harmed import Site, make_keys
from striking import Blow, Outcome, disturbed, quiet_run

__all__ = ["BOUNDS", "FEW", "MANY", "SEED", "SEEDED", "SLOW", "SMALL", "in_bounds", "quiet", "struck"]

SEED = int(os.environ.get("ZMPSL_FAULTS_SEED", "0"))
SMALL = ("data.args.limit=120", "data.args.test_limit=48", "train.batch_size=20")
# Rounds long enough to be hit in the middle; the quiet run need not be slow.
SLOW = "emulate.slow_down={owner: 8}"
FEW, MANY = 150, 400
# What a fault may cost at most, by the first word of its name and by what bench/striking.py counts. Far above what a
# quiet machine takes (bench/README.md): who waits for a wrong deadline is beyond it, who waits for a processor is not.
BOUNDS = {"kill": {"stalls_s": 15.0}, "silent": {"noticed_s": 8.0, "healed_s": 5.0}}
SEEDED = pytest.mark.parametrize("seed", [SEED], ids=lambda seed: f"seed{seed}")


@cache
def quiet(rounds: int) -> dict[int, dict[str, str]]:
    """Digests by round of the run left in peace; codecs without loss do not change them."""
    with TemporaryDirectory() as folder:
        return quiet_run(settings("none", *SMALL, f"train.rounds={rounds}"), Path(folder))


def struck(
    tmp_path: Path, codec: str, blows: list[Blow], seed: int, rounds: int = FEW, *, keys: bool = False,
    clocks: dict[str, float] | None = None,
) -> Outcome:  # fmt: skip
    """Runs under blows and checks every commit."""
    job = settings(codec, *SMALL, SLOW, f"train.rounds={rounds}")
    if keys:
        make_keys(tmp_path / "keys", job)
    site = Site(job, tmp_path / "keys" if keys else None, clocks=clocks)
    try:
        outcome = disturbed(site, tmp_path, "struck", blows, quiet(rounds), random.Random(seed))
    finally:
        site.close()
    assert outcome.right, f"seed {seed}: rounds {outcome.wrong} differ; {outcome.text}"
    return outcome


def in_bounds(outcome: Outcome, kind: str, seed: int) -> None:
    """Checks what a fault of that kind has cost."""
    for figure, bound in BOUNDS.get(kind, {}).items():
        assert max(getattr(outcome, figure), default=0.0) <= bound, f"seed {seed}: {figure} of {outcome}"
