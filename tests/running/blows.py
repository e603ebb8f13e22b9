"""Runs whose roles are killed or stopped one after the other."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path

from helpers import victim_of, wait_for

from zmpsl.checkpoint import read_record
from zmpsl.job import Job
from zmpsl.launch.local import Result, run

__all__ = ["disturbed"]


def disturbed(job_: Job, runs: Path, blows: list[tuple[str, signal.Signals]]) -> Result:
    """A run in which roles are hit one after the other, each after a few more rounds."""
    folder = runs / "hit"
    results: list[Result | BaseException] = []

    def work() -> None:
        try:
            results.append(run(job_, runs, "hit"))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def reached(rounds: int) -> bool:
        return bool(results) or ((folder / "record.json").exists() and read_record(folder).last >= rounds)

    rounds = 1
    for place, number in blows:
        wait_for(partial(reached, rounds))
        victim_of(os.getpid(), folder, place).send_signal(number)
        rounds = read_record(folder).last + 3
    thread.join(90)
    assert results, "the run did not end"
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]
