"""zmpsl: multihop parallel split learning over ZeroMQ (MP-SL, arXiv 2402.00208).

    from zmpsl import Job, run

    if __name__ == "__main__":                      # roles are processes of their own
        result = run(Job(owners=4, compute_nodes=2))
        print(result.accuracy, result.folder)

Importing this module loads neither zmq nor torch; names below are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Aggregator": "zmpsl.roles.aggregator",
    "ComputeNode": "zmpsl.roles.compute",
    "DataOwner": "zmpsl.roles.owner",
    "Job": "zmpsl.job",
    "Manager": "zmpsl.roles.manager",
    "ManagerNode": "zmpsl.loops.manager",
    "Node": "zmpsl.loops.member",
    "Result": "zmpsl.launch.local",
    "ZmpslError": "zmpsl.errors",
    "load_job": "zmpsl.job",
    "load_state_dict": "zmpsl.checkpoint",
    "run": "zmpsl.launch.local",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
