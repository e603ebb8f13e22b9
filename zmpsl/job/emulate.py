"""A job on imitated devices: reads an emulation file and writes its classes into the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import structs

from zmpsl.errors import JobError
from zmpsl.job.emulation import Scenario
from zmpsl.job.load import parse_as
from zmpsl.job.rules import check_job
from zmpsl.job.schema import Job

__all__ = ["emulated", "read_scenario", "words"]


def read_scenario(path: Path) -> Scenario:
    """Reads classes of devices, for a run, an estimate or a simulation.

    Raises:
        JobError: The file cannot be read, or says what cannot be; the message names file, line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    scenario = parse_as(Scenario, text, str(path))
    names = [kind.name for kind in scenario.nodes]
    for name in names:
        if names.count(name) > 1:
            raise JobError(f"{path}: nodes: {names.count(name)} classes are called {name!r}; give each its own name")
    return scenario


def emulated(job: Job, path: Path) -> Job:
    """Puts the devices of an emulation file into a job.

    The file says how many owners and compute nodes there are. What else it says of the training goes before the job;
    what it leaves out stays as it is there. A run in which somebody only pretends to compute evaluates nothing.

    Raises:
        JobError: The file cannot be read, or does not go with the job.
    """
    found = read_scenario(path)
    owners, nodes = (sum(kind.count for kind in classes) for classes in (found.owners, found.nodes))
    changes: dict[str, Any] = {"owners": owners, "compute_nodes": nodes, "multihop_level": None}
    changes |= {key: value for key in ("first_cut", "last_cut") if (value := getattr(found, key)) is not None}
    changes |= {} if found.replicas is None else {"owners_in_flight": found.replicas}
    train = {key: value for key in ("local_epochs", "micro_batches") if (value := getattr(found, key)) is not None}
    emulate = structs.replace(
        job.emulate, owners=list(found.owners), nodes=list(found.nodes), time_scale=found.time_scale
    )
    planning = job.planning
    if found.profile is not None and any(kind.compute != "real" for kind in (*found.owners, *found.nodes)):
        planning = structs.replace(planning, profile=str((path.parent / found.profile).resolve()))
    evaluate = structs.replace(job.evaluate, every=0) if emulate.thin else job.evaluate
    job = structs.replace(
        job, **changes, train=structs.replace(job.train, **train), emulate=emulate, planning=planning, evaluate=evaluate
    )
    check_job(job, str(path))
    return job


def words(job: Job) -> str:
    """Puts into words what of a job is imitated, empty where nothing is."""
    emulate = job.emulate
    if not emulate.active:
        return ""
    pieces = [
        " + ".join(f"{kind.count} {kind.name}" + (" (no computing)" if kind.compute == "none" else "") for kind in some)
        + f" {what}"
        for what, some in (("data owners", emulate.owners), ("compute nodes", emulate.nodes))
        if some
    ]
    pieces += [f"{name} {factor:g} times slower" for name, factor in emulate.slow_down.items()]
    if emulate.time_scale != 1:
        pieces.append(f"{emulate.time_scale:g} of their seconds pass in one")
    text = f"emulated: {'; '.join(pieces)}"
    return text + (". Nobody trains here: numbers of weights and loss mean nothing" if emulate.thin else "")
