"""What the fork server loads once: for data owners and compute nodes of a local run, and for who follows the dead."""

from importlib import import_module

import torch

ROLES = ("aggregator", "compute", "manager", "owner")
for module in ("zmpsl.loops.member", "zmpsl.loops.manager", *(f"zmpsl.roles.{role}" for role in ROLES)):
    import_module(module)

# The first optimiser of a process loads much of torch behind it.
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
