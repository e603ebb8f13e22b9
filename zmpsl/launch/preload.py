"""What the fork server loads once for all data owners and compute nodes of a local run."""

import zmpsl.loop
import zmpsl.roles.compute
import zmpsl.roles.owner

try:
    import torch

    import zmpsl.engine.compute
    import zmpsl.engine.owner

    # The first optimiser of a process loads much of torch behind it.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
except ImportError:  # without torch each role says so itself
    pass
