"""What the manager remembers of lost roles: who is suspected, how often a round was begun again, what was evaluated.

a link broke     -> suspect both ends for a moment; is the peer gone, or was it the link?
a role is gone   -> everybody pauses, the role comes back (or is left out), the round is begun again
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from zmpsl.job.schema import Job
from zmpsl.roles.seal import LEAST_OWNERS, Seal

__all__ = ["Recovery"]

# A killed process closes its connections one after the other: this much later the manager knows of all of them.
SETTLE_S = 0.1


@dataclass
class Recovery:
    """State of recovery.

    Attributes:
        reason: Why the last plan became void.
        suspects: Peers whose link broke: place -> what was told, and when it was heard.
        seal: Who must take part in a round that is begun again.
        unscored: Round that is committed but not evaluated yet, None when there is none.
    """

    reason: str = ""
    suspects: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    seal: Seal = field(default_factory=Seal)
    unscored: int | None = None
    _round: int = -1
    _attempts: int = 0

    def suspect(self, peer: str, text: str) -> None:
        """Notes that a link to a peer broke."""
        self.suspects.setdefault(peer, (text, None))

    def due(self, now: float) -> dict[str, str]:
        """Gives the suspects whose time to be looked at has come, with what was told of them."""
        for peer, (text, since) in list(self.suspects.items()):
            if since is None:
                self.suspects[peer] = text, now
        ready = {peer: text for peer, (text, since) in self.suspects.items() if since and now - since >= SETTLE_S}
        for peer in ready:
            del self.suspects[peer]
        return ready

    def again(self, round_: int, reason: str) -> int:
        """Notes that a round must be begun again; gives how often it was by now."""
        self.reason = reason
        self.suspects.clear()
        self._attempts = self._attempts + 1 if round_ == self._round else 1
        self._round = round_
        return self._attempts

    def may_leave_out(self, job: Job, missing: set[str]) -> bool:
        """Tells whether the run may go on without these places: owners only, and enough of the others."""
        least = LEAST_OWNERS if job.privacy.secure_average else 1
        needed = max(least, math.ceil(job.recover.quorum * job.owners))
        if self.seal.owners & missing:
            return False
        return all(place.startswith("owner-") for place in missing) and job.owners - len(missing) >= needed
