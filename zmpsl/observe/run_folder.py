"""A run folder's job and metrics, read into one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from zmpsl.errors import ZmpslError
from zmpsl.observe.events import EndEvent, EvaluationEvent, NoticeEvent, PlanEvent, RoundEvent, read_events

__all__ = ["Recorded", "load"]


@dataclass
class Recorded:
    """What a run folder says.

    A round that was done again after a restart counts as done last. `end` is None where the last run did not tell of
    its end; `plans` counts how often the run was started; `first_s` and `last_s` are the first and last event's times.
    """

    job_text: str = ""
    plan: PlanEvent | None = None
    plans: int = 0
    rounds: dict[int, RoundEvent] = field(default_factory=dict)
    evaluations: dict[int, EvaluationEvent] = field(default_factory=dict)
    notices: list[NoticeEvent] = field(default_factory=list)
    end: EndEvent | None = None
    first_s: float | None = None
    last_s: float | None = None


def load(folder: Path) -> Recorded:
    """Reads job.yaml and metrics.jsonl of a run folder; one of the two may be missing.

    Raises:
        ZmpslError: Both are missing, or a line of metrics.jsonl is damaged.
    """
    run = Recorded()
    job, metrics = folder / "job.yaml", folder / "metrics.jsonl"
    if not job.exists() and not metrics.exists():
        raise ZmpslError(f"{folder} is not the folder of a run: it holds neither job.yaml nor metrics.jsonl")
    if job.exists():
        run.job_text = job.read_text(encoding="utf-8", errors="replace")
    if not metrics.exists():
        return run
    for event in read_events(metrics):
        run.first_s = event.time if run.first_s is None else run.first_s
        run.last_s = event.time
        match event:
            case PlanEvent():
                run.plan, run.plans, run.end = event, run.plans + 1, None
            case RoundEvent():
                run.rounds[event.round] = event
            case EvaluationEvent():
                run.evaluations[event.round] = event
            case NoticeEvent():
                run.notices.append(event)
            case EndEvent():
                run.end = event
            case _:
                pass
    run.rounds = dict(sorted(run.rounds.items()))
    run.evaluations = dict(sorted(run.evaluations.items()))
    return run
