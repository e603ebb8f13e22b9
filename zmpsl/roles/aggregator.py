"""The aggregator: weighted FedAvg of the owners' first and last parts. Needs NumPy, no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zmpsl.checkpoint import load_state, prune, save_parts
from zmpsl.errors import CheckpointError, RemoteProtocolError
from zmpsl.masking import MOST_SAMPLES, MaskedAverage, masked_bytes
from zmpsl.messages import Accuse, Prepared, Ready
from zmpsl.norms import change_norm, too_large
from zmpsl.plan import AGGREGATOR, Plan, owner_name
from zmpsl.roles.actions import Action, Connect, Say, Send
from zmpsl.roles.member import NOT_FINITE, Member
from zmpsl.state import Average, digest, ends_layout, not_finite
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["Aggregator"]


class Aggregator(Member):
    """Averages what owners hand in, stores it, and sends it back."""

    role = AGGREGATOR

    def accepts(self, op: Op) -> int | None:
        """Parts come from owners."""
        return OWNER_SENDER if op is Op.PART else None

    def build(self, plan: Plan) -> Iterator[Action]:
        """Lays out the state; where a run goes on, sends the owners the stored average."""
        self.layout = ends_layout(plan.blocks, plan.bounds, plan.job.optimizer)
        secure = plan.job.privacy.secure_average
        self.average = MaskedAverage(self.layout) if secure else Average(self.layout)
        self._size = masked_bytes(self.layout) if secure else self.layout.nbytes
        self._most = MOST_SAMPLES // len(plan.active) if secure else 1 << 62
        self._in: set[int] = set()
        self._base: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None = None  # what the owners began from
        yield Connect(plan, 0, {plan.owners[index].name: plan.owners[index].endpoint for index in plan.active})
        if plan.start_round:
            if self.folder is None:
                raise CheckpointError("a run that goes on needs a folder with its checkpoints")
            flat = np.zeros(self.layout.nbytes, np.uint8)
            load_state(self.folder, plan, self.layout, flat)
            yield from self._send_global(plan, plan.start_round - 1, flat)
        yield Say(Ready(plan=plan.version))

    def handle(self, task: Task) -> Iterator[Action]:
        """Takes one owner's parts; with the last owner's, averages."""
        plan = self.plan
        if (
            plan is None
            or task.tensor is None
            or task.tensor.shape != (self._size,)
            or task.tensor.dtype != np.uint8
            or not 1 <= task.count <= self._most
        ):
            raise RemoteProtocolError(
                f"{task}: owners hand in {self._size} bytes and 1 to {self._most} samples, not {task.count}"
            )
        if task.owner in self._in:
            raise RemoteProtocolError(f"{task}: handed in twice")
        state = task.tensor.view(np.uint8)
        if (wrong := self._wrong(task.owner, state, plan.job.guard.update_norm)) != "":
            yield Say(Accuse(place=owner_name(task.owner), text=wrong))
            return
        with self.meter.measure("A", task):
            self.average.add(task.owner, state, task.count)
        self._in.add(task.owner)
        if len(self._in) < len(plan.active):
            return
        with self.meter.measure("A", task):
            # Fresh memory: the owners may still be receiving the last average.
            flat = np.zeros(self.layout.nbytes, np.uint8)
            self.average.write_to(flat)
        yield from self._send_global(plan, self.round, flat)
        if self.folder is not None:
            save_parts(self.folder, plan, self.round, (0, plan.parts - 1), self.layout, flat)
        digests = {AGGREGATOR: digest(flat)}
        yield Say(Prepared(plan=plan.version, round=self.round, digests=digests, stats=self.meter.stats()))
        self.meter.restart()
        self.round += 1
        self.average.reset()
        self._in.clear()

    def committed(self, round_: int) -> None:
        """Drops checkpoints nobody needs any more."""
        if self.folder is not None and self.plan is not None:
            prune(self.folder, round_, self.plan.job.keep_checkpoints)

    def _wrong(self, owner: int, flat: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], limit: float | None) -> str:
        """Says what is wrong with an owner's parts, empty if nothing; a masked state looks like noise to us."""
        spoiled = None if isinstance(self.average, MaskedAverage) else not_finite(self.layout, flat)
        if spoiled is not None:
            return NOT_FINITE.format(owner=owner, name=spoiled)
        if limit is None or self._base is None:
            return ""
        norm = change_norm(self.layout, flat, self._base)
        if norm <= limit:
            return ""
        return too_large("the update of the first and last part by", owner, norm, limit, "guard.update_norm")

    def _send_global(
        self, plan: Plan, round_: int, flat: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    ) -> Iterator[Action]:
        if plan.job.guard.update_norm is not None:
            self._base = flat
        for owner in plan.active:
            yield Send(owner_name(owner), Task(Op.GLOBAL, plan.version, owner, round_, tensor=flat))
