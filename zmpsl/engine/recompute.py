"""A replica that keeps only its inputs and runs forward again before backward: less memory for more work, same bits.

The second forward is the first one over again. Its random numbers come from the same keys, its weights are the same
(one optimiser step per batch, and that comes later), and what else a forward changes, such as batch norm's running
statistics, is put back to what it was the first time while it runs.
"""

from __future__ import annotations

from torch import Tensor

from zmpsl.engine.node_replica import NodeReplica
from zmpsl.engine.replica import Key, Shape
from zmpsl.errors import JobError, RemoteProtocolError

__all__ = ["RecomputingReplica"]


class RecomputingReplica(NodeReplica):
    """A replica that saves the inputs of its part instead of all activations."""

    def forward(
        self, inputs: Tensor, at: Key, *, first: bool = False, relu: bool = False, shape: Shape | None = None
    ) -> Tensor:
        """Runs the blocks in training mode; as for every replica, but the output is attached to no graph.

        Raises:
            JobError: The blocks write their weights in forward, so it cannot be repeated.
        """
        before = self._buffers()
        output = super().forward(inputs, at, first=first, relu=relu, shape=shape)
        if self.base.lends is False:
            raise JobError(
                f"blocks {self.base.indices.start} to {self.base.indices.stop - 1} write their weights in forward,"
                " which cannot be repeated exactly: set recompute: never"
            )
        saved = self._saved[at]
        if saved.output_mask is not None:
            saved.output_mask.settle()  # or it would keep the output
        self._saved[at] = saved._replace(output=saved.leaf, before=before)
        return output.detach()

    def backward(self, gradient: Tensor | None, at: Key, loss: Tensor | None = None) -> Tensor | None:
        """Runs the blocks forward again, then backward."""
        saved = self._saved.pop(at, None)
        if saved is None:
            raise RemoteProtocolError(f"owner {self.owner}: backward of {at} without its forward")
        after = self._buffers()
        if saved.before is not None:
            self._put(saved.before)
        super().forward(saved.leaf.detach(), at, relu=saved.leaf_mask is not None)
        self._put(after)
        return super().backward(gradient, at, loss)
