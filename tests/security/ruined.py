"""A run one of whose owners is spoilt before it begins."""

from __future__ import annotations

from collections.abc import Callable

from helpers import SMALL, job
from siege import siege

from zmpsl.errors import PeerLostError
from zmpsl.roles.owner import DataOwner

__all__ = ["ruined"]


def ruined(spoil: Callable[[DataOwner], None], *overrides: str) -> str:
    """Tells how it ends."""
    with siege(job(*SMALL, "recover.wait_s=0", *overrides)) as besieged:
        manager = besieged.run.manager
        spoil(besieged.run.members["owner-1"])  # type: ignore[arg-type]
        besieged.gate.set()
        assert manager.drain(60)
        assert isinstance(manager.error, PeerLostError), manager.error
        return str(manager.error)
