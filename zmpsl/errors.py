"""Every error zmpsl raises on purpose, and the exit code the command line gives it.

    ZmpslError                      1   something zmpsl could name went wrong
    +- JobError                     2   the job or an option is wrong (usage errors of click are 2 as well)
    +- DataError                    3   data missing, damaged or too small
    +- NetworkError                 4   an address cannot be bound or reached
    +- JoinError                    5   a role was refused, or did not come in time
    +- PeerLostError                6   a role died, or its connection did
    +- TrainingError                7   training itself failed (loss is nan, a gradient is inf)
    +- CheckpointError              8   a checkpoint is missing, damaged or belongs to another job
    +- ProtocolError
       +- LocalProtocolError        9   our own misuse of the protocol: a bug in zmpsl
       +- RemoteProtocolError      10   bytes from a peer that are not what the protocol allows

Exit code 0 is success, 1 also an unexpected exception (a bug), 130 an interrupt.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError", "DataError", "JobError", "JoinError", "LocalProtocolError", "NetworkError",
    "PeerLostError", "ProtocolError", "RemoteProtocolError", "TrainingError", "ZmpslError", "error_for",
]  # fmt: skip


class ZmpslError(Exception):
    """Base of every error that zmpsl raises on purpose."""

    exit_code = 1


class JobError(ZmpslError):
    """The job file or an option is wrong; the message names file, line and key."""

    exit_code = 2


class DataError(ZmpslError):
    """Data are missing, damaged or too few for the job."""

    exit_code = 3


class NetworkError(ZmpslError):
    """An address cannot be bound or reached."""

    exit_code = 4


class JoinError(ZmpslError):
    """A role was refused by the manager, or did not come in time."""

    exit_code = 5


class PeerLostError(ZmpslError):
    """A role died or its connection broke during a run."""

    exit_code = 6


class TrainingError(ZmpslError):
    """Training cannot go on: a loss or gradient is not finite."""

    exit_code = 7


class CheckpointError(ZmpslError):
    """A checkpoint is missing, damaged or belongs to another job."""

    exit_code = 8


class ProtocolError(ZmpslError):
    """Base of the two protocol errors."""


class LocalProtocolError(ProtocolError):
    """Our own code used the protocol wrongly: a bug in zmpsl."""

    exit_code = 9


class RemoteProtocolError(ProtocolError):
    """A peer sent something the protocol does not allow; nothing of it was used."""

    exit_code = 10


_BY_CODE: dict[int, type[ZmpslError]] = {
    kind.exit_code: kind
    for kind in (
        JobError, DataError, NetworkError, JoinError, PeerLostError, TrainingError, CheckpointError,
        LocalProtocolError, RemoteProtocolError,
    )
}  # fmt: skip


def error_for(exit_code: int, text: str) -> ZmpslError:
    """Gives the error that belongs to an exit code, as told by another role.

    Args:
        exit_code: One of the codes listed above.
        text: The message.

    Returns:
        An error of the matching class, `ZmpslError` where the code is not known.
    """
    return _BY_CODE.get(exit_code, ZmpslError)(text)
