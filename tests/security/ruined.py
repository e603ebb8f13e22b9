"""How a run ends one of whose owners is spoilt before it begins."""

from __future__ import annotations

from collections.abc import Callable

from helpers import SMALL, ThreadedRun, job, wait_for

from zmpsl.errors import PeerLostError
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner

__all__ = ["ruined"]


def ruined(spoil: Callable[[DataOwner], None], *overrides: str) -> str:
    """How a run ends one of whose owners is spoilt before it begins."""
    run = ThreadedRun(job(*SMALL, "recover.wait_s=0", *overrides))
    gate = False
    for node in run.nodes:
        if isinstance(node.member, DataOwner):
            node.member.wants_work = lambda own=node.member.wants_work: gate and own()  # type: ignore[method-assign]
    with run:
        wait_for(lambda: run.manager.manager.phase is Phase.TRAINING or run.manager.drain(0), 20)
        spoil(run.members["owner-1"])  # type: ignore[arg-type]
        gate = True
        assert run.manager.drain(60)
        assert isinstance(run.manager.error, PeerLostError), run.manager.error
        return str(run.manager.error)
