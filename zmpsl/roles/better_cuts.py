"""Other cuts between rounds: found once links and codecs are known, told, and taken where the job says so.

The first plan knows of links between hosts only what the job says. Cuts change no result, so a run may change them
after any commit: what they move is read from the checkpoint, as when a node is lost.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.measured import Measured, problem_of
from zmpsl.planner.predict import Prediction
from zmpsl.planner.solver import solve_in_order

__all__ = ["Better", "better_cuts"]

WORTH = 0.1  # a round must get shorter by this share: predictions are off by some per cent


class Better(Struct, frozen=True):
    """Cuts that are expected to make rounds shorter.

    Attributes:
        bounds: Of all parts.
        round_s: Seconds of a round with them.
        before_s: Seconds of a round with the cuts there are.
    """

    bounds: tuple[int, ...]
    round_s: float
    before_s: float

    def __str__(self) -> str:
        return (
            f"with links as they are, rounds would take {self.round_s:.2f} s with cuts {list(self.bounds[1:-1])},"
            f" {self.before_s:.2f} s as the model is cut now"
        )


def better_cuts(
    measured: Measured, bounds: tuple[int, ...], expect: Callable[[tuple[int, ...]], Prediction | None]
) -> Better | None:
    """Solves the cuts for nodes in their places, as only links between neighbours are known.

    Args:
        measured: What was measured of nodes and of links.
        bounds: The cuts there are.
        expect: Predicts a round under given bounds; None where that cannot be.
    """
    try:
        pieces = solve_in_order(problem_of(measured)).pieces
    except JobError:
        return None  # memory is taken more strictly now than when the cuts were made
    found = (0, pieces[0].first, *(piece.stop for piece in pieces), measured.owner.model_blocks)
    if len(found) != len(bounds) or found == bounds:
        return None
    before, after = expect(bounds), expect(found)
    if before is None or after is None or after.whole_s >= (1 - WORTH) * before.whole_s:
        return None
    return Better(found, after.whole_s, before.whole_s)
