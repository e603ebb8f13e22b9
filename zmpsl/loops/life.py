"""The life of a node object: run in this thread, or start, drain, stop and close with a thread of its own."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from enum import Enum
from typing import Self

from zmpsl.errors import LocalProtocolError

__all__ = ["Life", "State", "complain"]

log = logging.getLogger("zmpsl")


class State(Enum):
    """Where a node object is in its life."""

    NEW = "new"
    RUNNING = "running"
    DRAINING = "draining"
    CLOSED = "closed"


class Life(ABC):
    """Base of the drivers. All methods may be called from any thread; `start` and `close` more than once.

    Attributes:
        state: Where it is.
        error: What ended a run that was started in a thread.
    """

    # How long `stop` waits when it is not told.
    STOP_S = 5.0

    def __init__(self) -> None:
        self.state = State.NEW
        self.error: BaseException | None = None
        self._asked_to_stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def run(self) -> None:
        """Works until the run is over; raises what went wrong."""

    @abstractmethod
    def _close(self) -> None:
        """Frees everything; a second call does nothing."""

    @abstractmethod
    def _thread_name(self) -> str:
        """Gives the name of the thread that `start` makes."""

    def start(self) -> Self:
        """Works in a thread of its own."""
        if self.state is State.CLOSED:
            raise LocalProtocolError("this node is closed; make a new one")
        if self.state is State.NEW:
            self.state = State.RUNNING
            self._thread = threading.Thread(target=self._run_quietly, name=self._thread_name(), daemon=True)
            self._thread.start()
        return self

    def drain(self, timeout_s: float | None = None) -> bool:
        """Waits until the run is over; False when it is not within the time."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return self.state is State.CLOSED

    def ask_to_stop(self) -> None:
        """Asks the loop to end, and returns at once; may be called from a signal handler too."""
        self._asked_to_stop.set()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Asks the loop to end, tells the others, and waits; False when it is not done within the time."""
        self.ask_to_stop()
        return self.drain(self.STOP_S if timeout_s is None else timeout_s)

    def close(self) -> None:
        """Stops if need be and frees everything; a second call does nothing."""
        if self._thread is not None:
            self.stop()
        elif self.state is State.NEW:
            self._close()

    def __enter__(self) -> Self:
        return self.start() if self.state is State.NEW else self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_quietly(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.error = error


def complain(count: int, error: Exception) -> None:
    """Logs a message that was not used; ever more rarely, so that a flood of them does not fill the disk."""
    if count & (count - 1) == 0:
        log.warning("%s (%d so far)", error, count)
