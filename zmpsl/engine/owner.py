"""The data owner's engine: first and last part, loss. Both parts share one flat state, which travels as one tensor.

A device has memory for the round's base and for the state that it trains, from the start to the end. Where many owners
are imitated in one process they share the base, and an owner has a state of its own only while it trains: from the
begin of its round until its parts have left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zmpsl.engine.privacy import Shaping
from zmpsl.engine.replica import Key, Part, Replica, aligned
from zmpsl.errors import RemoteProtocolError, TrainingError
from zmpsl.plan import Plan
from zmpsl.pool.spill import KeptStates
from zmpsl.state import Flat, ends_layout
from zmpsl.transport.mask import KnownMask

__all__ = ["Ends", "OwnerEngine", "SharedEnds", "loss_of"]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over samples (and positions, for token models): outputs `(..., C)`, targets `(...)`."""
    return nn.functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


class Ends:
    """The base of an owner's two parts: the weights that a round starts from.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.layout = ends_layout(plan.blocks, plan.bounds, plan.job.optimizer)
        self.flat = aligned(self.layout.nbytes)
        self.parts = [Part(plan, part, self.flat, self.layout) for part in (0, plan.parts - 1)]


class SharedEnds:
    """The base that all owners of a process share; it is the same for all, whoever writes it."""

    def __init__(self) -> None:
        self._of: tuple[str, int] | None = None
        self._ends: Ends | None = None

    def of(self, plan: Plan) -> Ends:
        """Gives that of a plan, made when the first owner asks."""
        if self._ends is None or self._of != (plan.run, plan.version):
            self._ends, self._of = Ends(plan), (plan.run, plan.version)
        return self._ends


class _Copy:
    """The state that an owner trains, and what trains it."""

    def __init__(self, ends: Ends, owner: int) -> None:
        self.flat = aligned(ends.layout.nbytes)
        self.first, self.last = (Replica(part, owner, self.flat) for part in ends.parts)


class OwnerEngine:
    """First and last part of one data owner.

    Args:
        plan: The plan.
        owner: Index of the owner.
        secret: What the noise on smashed data follows from, where the job asks for noise.
        kept: Where its optimiser states are kept from round to round; None where they are not.
        shared: The base that it shares with other owners; then it has a state of its own only while it trains.
    """

    def __init__(
        self, plan: Plan, owner: int, secret: bytes = b"", kept: KeptStates | None = None,
        shared: SharedEnds | None = None,
    ) -> None:  # fmt: skip
        self.owner = owner
        self._kept = kept
        self._lasts = shared is None
        privacy = plan.job.privacy
        self._shaping = Shaping(privacy, plan.job.seed, owner, secret) if privacy.shapes else None
        self._ends = Ends(plan) if shared is None else shared.of(plan)
        self.base, self._parts = self._ends.flat, self._ends.parts
        self._copy = _Copy(self._ends, owner) if self._lasts else None
        self._last_part = plan.parts - 1

    @property
    def flat(self) -> Flat:
        """The state that is trained.

        Raises:
            RemoteProtocolError: The owner trains no round now.
        """
        return self._own.flat

    @property
    def _own(self) -> _Copy:
        if self._copy is None:
            raise RemoteProtocolError(f"owner {self.owner} trains no round now")
        return self._copy

    def _replicas(self) -> dict[int, Replica]:
        return {0: self._own.first, self._last_part: self._own.last}

    def begin(self, round_: int) -> None:
        """Starts a round from the base weights."""
        if self._copy is None:
            self._copy = _Copy(self._ends, self.owner)
        for part, replica in self._replicas().items():
            replica.reset(round_)
            if self._kept is not None:
                replica.go_on_from(self._kept.fetch(self.owner, part))

    def end(self, round_: int) -> None:
        """Ends a round: stores the optimiser states for the next one, and waits until they are on disk."""
        if self._kept is not None:
            for part, replica in self._replicas().items():
                self._kept.store(self.owner, part, round_, replica.kept())
            self._kept.end_round()
        if not self._lasts:
            self._copy = None  # whoever still sends the state has it

    def first_forward(self, inputs: Tensor, at: Key, samples: int) -> Tensor:
        """Runs part 0 on one micro-batch of a batch of so many samples; gives the smashed data as they are sent."""
        shaping = self._shaping
        if shaping is None:
            return self._own.first.forward(inputs, at, first=True)
        share = len(inputs) / samples
        return self._own.first.forward(inputs, at, first=True, shape=lambda x, h: shaping.train(x, h, at, share))

    def first_mask(self, at: Key) -> KnownMask | None:
        """Gives the mask of part 0's output, where that is a ReLU's and still saved."""
        return None if self._copy is None else self._copy.first.masks(at)[1]

    def last_part(self, activations: Tensor, targets: Tensor, at: Key, samples: int) -> tuple[Tensor, float]:
        """Runs part P - 1 forward, the loss, and part P - 1 backward.

        Args:
            activations: What came back from the chain, `(b, ...)`.
            targets: Labels of the same micro-batch.
            at: Which micro-batch.
            samples: Samples of the whole batch; the micro-batch's mean loss counts b / samples.

        Returns:
            The gradient for the chain, and the micro-batch's share of the batch's mean loss.

        Raises:
            TrainingError: The loss is not finite.
        """
        if len(activations) != len(targets):
            raise RemoteProtocolError(f"owner {self.owner}: {len(activations)} activations for {len(targets)} samples")
        loss = loss_of(self._own.last.forward(activations, at), targets)
        if len(targets) != samples:
            loss = loss * (len(targets) / samples)
        value = float(loss.detach())
        if not torch.isfinite(loss.detach()):
            round_, epoch, batch, _ = at
            raise TrainingError(
                f"owner {self.owner}: the loss is {value} at round {round_}, local epoch {epoch}, batch {batch}; "
                f"training has diverged, try a lower optimizer.lr.initial"
            )
        gradient = self._own.last.backward(None, at, loss)
        if gradient is None:
            raise TrainingError("the last part gives no gradient for its input")
        return gradient, value

    def last_update(self) -> None:
        """Steps part P - 1's optimiser."""
        self._own.last.update()

    def first_backward(self, gradient: Tensor, at: Key) -> None:
        """Runs part 0 backward."""
        self._own.first.backward(gradient, at)

    def first_update(self) -> None:
        """Steps part 0's optimiser."""
        self._own.first.update()

    def evaluate_first(self, inputs: Tensor, round_: int, batch: int) -> Tensor:
        """Runs the base of part 0 in evaluation mode; gives the smashed data as they are sent."""
        output = self._parts[0].evaluate(inputs)
        return output if self._shaping is None else self._shaping.evaluate(output, round_, batch)

    def evaluate_last(self, activations: Tensor, targets: Tensor) -> tuple[int, int, float]:
        """Runs the base of part P - 1 in evaluation mode.

        Returns:
            Correct predictions, predictions, and the sum of the losses.
        """
        outputs = self._parts[1].evaluate(activations)
        correct = int((outputs.argmax(-1) == targets).sum())
        return correct, targets.numel(), float(loss_of(outputs, targets)) * targets.numel()

    def load(self, flat: Flat) -> None:
        """Replaces the base weights by the average the aggregator sent."""
        self.base[:] = flat
