"""What the fork server loads once for all data owners and compute nodes of a local run."""

from importlib import import_module

import torch

for module in ("zmpsl.loop", "zmpsl.roles.compute", "zmpsl.roles.owner"):
    import_module(module)

# The first optimiser of a process loads much of torch behind it.
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
