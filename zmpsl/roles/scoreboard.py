"""The manager's view of how the run goes: turns what members report into events for people and metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from zmpsl.messages import Evaluated, Prepared, Progress, Trained
from zmpsl.observe.events import (
    CommitEvent,
    EndEvent,
    EvaluationEvent,
    Event,
    EventLog,
    LinkTraffic,
    NoticeEvent,
    PlanEvent,
    PlanPart,
    ProgressEvent,
    RoleStats,
    RoundEvent,
)
from zmpsl.plan import Plan
from zmpsl.planner.predict import Prediction
from zmpsl.pool.spill import SpillStats
from zmpsl.stats import LinkStats, Stats

__all__ = ["Scoreboard"]


class Scoreboard:
    """Gathers numbers; `listeners` are called with every event.

    Attributes:
        expected: What the planner expects of every round, None where it knows nothing.
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[Event], None]] = []
        self.batches_total = 0
        self.expected: Prediction | None = None
        self._log: EventLog | None = None
        self._started = self._began = time.time()
        self._owners: dict[str, Progress | Trained] = {}
        self._stats: dict[str, Stats] = {}
        self._finals: dict[str, Stats] = {}
        self._scores: list[Evaluated] = []
        self._told: tuple[float, int, dict[str, float]] = (self._started, 0, {})
        self._bytes_before = 0
        self._nodes: list[str] = []
        self._chosen: set[tuple[str, str]] = set()

    def log_to(self, folder: Path) -> None:
        """Writes all events to the run's metrics.jsonl from now on."""
        if self._log is None:
            self._log = EventLog(folder / "metrics.jsonl")

    def planned(self, plan: Plan) -> None:
        """Tells the plan, and leaves the resolved job in the run's folder."""
        self._nodes = [peer.name for peer in plan.nodes]
        self.batches_total = 0
        places = ["owners", *self._nodes, "owners"]
        parts = [
            PlanPart(
                part=part,
                where=places[part],
                first=plan.bounds[part],
                stop=plan.bounds[part + 1],
                parameters=plan.parameters_of(part),
                bytes=4 * plan.parameters_of(part),
            )
            for part in range(plan.parts)
        ]
        self._emit(
            PlanEvent(
                time=time.time(),
                job=plan.job.name,
                version=plan.version,
                start_round=plan.start_round,
                rounds=plan.job.train.rounds,
                cuts=list(plan.bounds[1:-1]),
                parts=parts,
                owners=len(plan.active),
                nodes=self._nodes,
                emulated=plan.job.emulate.active,
            )
        )

    def notice(self, text: str, place: str = "", pid: int = 0) -> None:
        """Tells something a person should know; with place and process of a role that was lost."""
        self._emit(NoticeEvent(time=time.time(), text=text, place=place, pid=pid))

    def begin(self, round_: int) -> None:
        """A round begins."""
        self._began = time.time()
        self._owners.clear()
        self._stats.clear()
        self._finals.clear()
        self._told = (self._began, 0, {})

    def progress(self, place: str, message: Progress) -> None:
        """A member told how far it is."""
        self._stats[place] = message.stats
        self._tell_choices(message.stats)
        if place.startswith("owner") and not isinstance(self._owners.get(place), Trained):
            self._owners[place] = message

    def trained(self, place: str, message: Trained) -> None:
        """An owner has finished its round."""
        self._owners[place] = message
        self._finals[place] = message.stats

    def prepared(self, place: str, message: Prepared) -> None:
        """A node or the aggregator has finished its round."""
        self._finals[place] = message.stats

    def tell_progress(self, phase: str, round_: int) -> None:
        """Tells how far the round is; called twice a second."""
        if phase not in ("training", "evaluating"):
            return
        now, (before, batches_before, busy_before) = time.time(), self._told
        batches, loss = self._batches_and_loss()
        busy = self.work[1]
        span = max(now - before, 1e-9)
        shares = {
            node: min(1.0, max(0.0, (seconds - busy_before.get(node, 0.0)) / span)) for node, seconds in busy.items()
        }
        self._told = (now, batches, busy)
        self._emit(
            ProgressEvent(
                time=now,
                round=round_,
                phase="train" if phase == "training" else "evaluate",
                batches=batches,
                batches_total=self.batches_total,
                batches_per_s=max(0, batches - batches_before) / span,
                loss=loss,
                busy=shares,
                bytes=self._bytes_before + sum(stats.sent_bytes for stats in self._stats.values()),
                predicted_busy=self.expected.busy if self.expected is not None and phase == "training" else {},
            )
        )

    def batches_of(self, place: str) -> int:
        """Batches that an owner has trained in this round, as far as it told."""
        told = self._owners.get(place)
        return 0 if told is None else told.batches

    @property
    def finals(self) -> dict[str, Stats]:
        """What every member did in the round that has ended, by place."""
        return dict(self._finals)

    @property
    def work(self) -> tuple[int, dict[str, float]]:
        """Batches that were trained in this round by now, and the seconds each node has worked in it."""
        busy = {node: _busy(self._stats[node]) for node in self._nodes if node in self._stats}
        return self._batches_and_loss()[0], busy

    def committed(self, round_: int, digests: dict[str, str]) -> None:
        """A round counts."""
        now = time.time()
        batches, loss = self._batches_and_loss()
        roles = {place: _role_stats(stats) for place, stats in self._finals.items()}
        sent = sum(stats.sent_bytes for stats in self._finals.values())
        self._bytes_before += sent
        self._emit(
            RoundEvent(
                time=now,
                round=round_,
                seconds=now - self._began,
                loss=loss,
                samples=sum(each.samples for each in self._owners.values()),
                batches=batches,
                bytes=sent,
                roles=roles,
                predicted_s=self.expected.whole_s if self.expected is not None else None,
                predicted_busy_s=self.expected.busy_s if self.expected is not None else {},
                links=_links(self._finals),
                spill={place: stats.spill for place, stats in self._finals.items() if stats.spill != SpillStats()},
                aside={place: stats.aside for place, stats in self._finals.items() if stats.aside != SpillStats()},
            )
        )
        self._emit(CommitEvent(time=now, round=round_, digests=digests))

    def forget_scores(self) -> None:
        """An evaluation begins, perhaps again."""
        self._scores.clear()

    def evaluated(self, message: Evaluated) -> None:
        """An owner has evaluated the global model."""
        self._scores.append(message)

    def evaluation_over(self, round_: int) -> None:
        """All owners have evaluated."""
        scores, self._scores = self._scores, []
        total = sum(each.total for each in scores)
        if total:
            # Summed in a fixed order, so that the figure does not depend on who came first.
            loss = sum(sorted(each.loss_sum for each in scores)) / total
            accuracy = sum(each.correct for each in scores) / total
            self._emit(
                EvaluationEvent(
                    time=time.time(),
                    round=round_,
                    accuracy=accuracy,
                    loss=loss,
                    samples=sum(each.samples for each in scores),
                )
            )

    def end(self, exit_code: int, text: str, place: str = "", pid: int = 0) -> None:
        """The run is over, where a place and its process are named because that role was lost."""
        status = {0: "finished", 130: "interrupted"}.get(exit_code, "failed")
        now = time.time()
        self._emit(
            EndEvent(
                time=now, status=status, text=text, exit_code=exit_code, seconds=now - self._started,  # type: ignore[arg-type]
                place=place, pid=pid,
            )
        )  # fmt: skip
        self.close()

    def close(self) -> None:
        """Closes the file of events."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _tell_choices(self, stats: Stats) -> None:
        """Tells what `codec: auto` chose, each choice once per kind of link, however many owners make it."""
        for name, link in stats.links.items():
            told = any(name == before for before, _ in self._chosen)
            news = told or any(not text.endswith(" none") for text in link.chosen.split(", "))
            if link.chosen and news and (name, link.chosen) not in self._chosen:
                self._chosen.add((name, link.chosen))
                rate = f" at {link.bytes_per_s * 8e-6:,.1f} Mbit/s" if link.bytes_per_s else ""
                self.notice(f"codec auto on {name}: {link.chosen}{rate}")

    def _batches_and_loss(self) -> tuple[int, float | None]:
        batches = sum(each.batches for each in self._owners.values())
        samples = sum(each.samples for each in self._owners.values())
        loss = sum(self._owners[place].loss_sum for place in sorted(self._owners)) / samples if samples else None
        return batches, loss

    def _emit(self, event: Event) -> None:
        if self._log is not None:
            self._log.append(event)
        for listener in self.listeners:
            listener(event)


def _busy(stats: Stats) -> float:
    return stats.forward_s + stats.backward_s + stats.update_s


def _links(stats: dict[str, Stats]) -> dict[str, LinkTraffic]:
    """Adds up what both ends of each kind of link tell."""
    sums: dict[str, LinkStats] = {}
    for place in sorted(stats):
        for name, link in stats[place].links.items():
            sums[name] = sums[name].plus(link) if name in sums else link
    return {
        name: LinkTraffic(
            raw_bytes=link.raw_bytes,
            packed_bytes=link.packed_bytes,
            encode_s=link.encode_s,
            decode_s=link.decode_s,
            codecs=link.codecs,
            bytes_per_s=link.bytes_per_s or None,
        )
        for name, link in sums.items()
    }


def _role_stats(stats: Stats) -> RoleStats:
    return RoleStats(
        forward_s=stats.forward_s,
        backward_s=stats.backward_s,
        update_s=stats.update_s,
        idle_s=max(0.0, stats.round_s - _busy(stats)),
        sent_bytes=stats.sent_bytes,
        received_bytes=stats.received_bytes,
        tasks=stats.tasks,
    )
