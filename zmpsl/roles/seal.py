"""Which owners a round must be begun again with, where their parts are averaged under masks.

Training is reproducible: begun again, an owner hands in the same part. Had the aggregator the sum of some owners, and
then that of all of them but one, the difference would be that one's part. So once all may have handed in, the round is
begun again with the same owners and no others. If one of those that are still here has not handed in, and now never
will under that plan, then the masks it shares with the others stay on, nothing is known of any sum, and others may do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zmpsl.messages import Paused
from zmpsl.plan import Plan, owner_name

__all__ = ["LEAST_OWNERS", "Seal"]

# Of two, each could take its own part off the average and have the other's.
LEAST_OWNERS = 3


@dataclass
class Seal:
    """The owners of a round that is begun again.

    Attributes:
        owners: Their places; empty where any may take part.
    """

    owners: frozenset[str] = frozenset()
    _plan: int = 0  # whose members may still tell that the sum cannot be known; 0 for none

    def keep(self, owners: Iterable[int]) -> None:
        """Closes for owners that a manager before this one had in its last plan; nobody knows what they handed in."""
        self.owners, self._plan = frozenset(map(owner_name, owners)), 0

    def close(self, plan: Plan) -> None:
        """Closes for a plan that became void in the middle of a round."""
        if plan.job.privacy.secure_average and not self.owners:
            self.owners, self._plan = frozenset(map(owner_name, plan.active)), plan.version

    def hear(self, place: str, message: Paused, round_: int) -> None:
        """Opens again, where an owner of that plan has dropped its work before it handed in."""
        if message.plan == self._plan and place in self.owners and message.handed_in < round_:
            self.lift()

    def settle(self) -> None:
        """Stays as it is: the next plan is made, and what is said of an older one counts no more."""
        self._plan = 0

    def lift(self) -> None:
        """Opens: the round is committed."""
        self.owners, self._plan = frozenset(), 0

    def keeps_out(self, place: str) -> bool:
        """Tells whether a member must wait until the round is over."""
        return bool(self.owners) and place.startswith("owner-") and place not in self.owners
