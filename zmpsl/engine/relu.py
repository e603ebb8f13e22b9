"""Whether a tensor is the output of a ReLU, read off the graph that autograd has recorded.

The graph tells what happened, so a ReLU is found wherever it stands: as a module, in nn.Sequential, or called inside a
block's own forward, as at the end of a residual block. Max-pooling and views behind it do no harm: where a window's
maximum is 0, all of it is, and the ReLU's backward lets none of that gradient pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zmpsl.transport.mask import KnownMask

__all__ = ["mask_of_output"]

_TRANSPARENT = {"MaxPool2DWithIndicesBackward0", "AdaptiveMaxPool2DBackward0", "ViewBackward0", "UnsafeViewBackward0"}


def mask_of_output(output: Tensor) -> KnownMask | None:
    """Gives the mask of a part's output; None where it is no float32 output of a ReLU.

    Args:
        output: Attached to the graph.
    """
    node = output.grad_fn
    while node is not None and node.name() in _TRANSPARENT:
        node = node.next_functions[0][0]
    if node is None or node.name() != "ReluBackward0" or output.dtype != torch.float32:
        return None
    return KnownMask(output.detach().contiguous().numpy())
