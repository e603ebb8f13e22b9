"""One HTML file that tells a finished run: what was trained where, how well, how fast, and where the time went.

The file needs nothing else: plots are inline SVG, the style sheet is inside, there is no script and no link. All text
that comes from the run is escaped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from zmpsl.errors import ZmpslError
from zmpsl.observe import plots
from zmpsl.observe.codec_table import codec_table
from zmpsl.observe.events import RoleStats, RoundEvent
from zmpsl.observe.page import figure, page, table
from zmpsl.observe.readable import amount, duration, natural, number, one_line, percent
from zmpsl.observe.run_folder import Recorded, load
from zmpsl.observe.spill_table import aside_table, spill_table
from zmpsl.observe.timeline import Span, round_starts, spans
from zmpsl.whole_file import replacing

__all__ = ["write_report"]

_MAX_ROWS = 24
_MAX_NODE_ROWS = 18
_MAX_TABLE_ROUNDS = 200
_MAX_NOTICES = 50
_WINDOW_US = 2_000_000
# More bars than this in a row of the Gantt are no longer told apart; the window becomes shorter instead.
_MAX_BARS_IN_ROW = 120


def write_report(run_folder: Path) -> Path:
    """Writes report.html into a run folder, from its job.yaml, metrics.jsonl and timeline folder.

    Parts that a run did not get to, or did not record, are named as missing.

    Args:
        run_folder: The folder a run left.

    Returns:
        The report's path; it appears only once it is whole.

    Raises:
        ZmpslError: The folder is none of a run, a file of it is damaged, or matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ZmpslError("the report needs matplotlib: pip install 'zmpsl[report]'")
    run = load(run_folder)
    body = "\n".join(
        piece
        for piece in (
            _head(run),
            _plan(run),
            _learning(run),
            _time(run),
            _gantt(run, run_folder / "timeline"),
            _bytes(run),
            _round_table(run),
            _notices(run),
            _job(run),
        )
        if piece
    )
    path = run_folder / "report.html"
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(page(_name(run), body), encoding="utf-8")
    except OSError as error:
        raise ZmpslError(f"cannot write {path}: {error.strerror}") from error
    return path


def _name(run: Recorded) -> str:
    return one_line(run.plan.job) if run.plan is not None else "run"


def _head(run: Recorded) -> str:
    if run.end is None:
        status, kind = "no end recorded", "open"
        text = "The run is still going on, or was stopped from outside before it could say so."
    else:
        status, kind = run.end.status, run.end.status
        text = one_line(run.end.text)
        if run.end.exit_code:
            text = f"{text} (exit code {run.end.exit_code})".strip()
    pieces = [f'<h1>{escape(_name(run))} <span class="badge {kind}">{escape(status)}</span></h1>']
    if run.first_s is not None and run.last_s is not None:
        when = datetime.fromtimestamp(run.first_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        took = run.end.seconds if run.end is not None else run.last_s - run.first_s
        again = f", continued {run.plans - 1} time(s)" if run.plans > 1 else ""
        pieces.append(f'<p class="soft">Started {when}{again}; the last run took {duration(took)}.</p>')
    if text:
        pieces.append(f"<p>{escape(text)}</p>")
    if run.plan is not None and run.plan.emulated:
        pieces.append(
            '<p class="warning"><strong>Emulated run.</strong> The speed of devices and links was imitated on other'
            " hardware. Read all times and rates here as what the emulation gave, not as measured on such devices.</p>"
        )
    return "\n".join([*pieces, _tiles(run)])


def _tiles(run: Recorded) -> str:
    tiles: list[tuple[str, str]] = []
    if run.plan is not None:
        tiles.append(("rounds done", f"{len(run.rounds)} of {run.plan.rounds}"))
        tiles.append(("data owners", f"{run.plan.owners:,}"))
        tiles.append(("compute nodes", f"{len(run.plan.nodes):,}"))
    if run.evaluations:
        last = list(run.evaluations.values())[-1]
        best = max(run.evaluations.values(), key=lambda event: event.accuracy)
        tiles.append(("last accuracy", percent(last.accuracy)))
        tiles.append((f"best accuracy (round {best.round + 1})", percent(best.accuracy)))
    if run.rounds:
        rounds = list(run.rounds.values())
        seconds = sum(event.seconds for event in rounds)
        tiles.append(("last training loss", number(rounds[-1].loss)))
        tiles.append(("mean round", duration(seconds / len(rounds))))
        if seconds > 0:
            tiles.append(("batches/s", f"{sum(event.batches for event in rounds) / seconds:,.1f}"))
        tiles.append(("sent by all roles", amount(sum(event.bytes for event in rounds))))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in tiles)
    return f'<div class="tiles">{cells}</div>' if cells else ""


def _plan(run: Recorded) -> str:
    if run.plan is None:
        return "<h2>Plan</h2>\n<p>No plan is recorded: the run ended before the model was cut.</p>"
    plan = run.plan
    rows = [
        [
            str(part.part),
            f"each of {plan.owners:,} owners" if part.where == "owners" else one_line(part.where),
            f"{part.first} to {part.stop - 1}" if part.stop - part.first > 1 else str(part.first),
            f"{part.parameters:,}",
            amount(part.bytes),
        ]
        for part in plan.parts
    ]
    rows.append(["", "whole model", "", f"{sum(part.parameters for part in plan.parts):,}",
                 amount(sum(part.bytes for part in plan.parts))])  # fmt: skip
    cuts = ", ".join(map(str, plan.cuts))
    return (
        f"<h2>Plan</h2>\n<p>The model is cut before blocks {cuts}. Version {plan.version} of the plan.</p>\n"
        + table(["part", "where", "blocks", "parameters", "bytes"], rows, numbers={0, 2, 3, 4}, total=True)
    )


def _learning(run: Recorded) -> str:
    pieces = ["<h2>Learning</h2>"]
    losses = {
        "training": {event.round: event.loss for event in run.rounds.values() if event.loss is not None},
        "evaluation": {event.round: event.loss for event in run.evaluations.values() if event.loss is not None},
    }
    losses = {name: values for name, values in losses.items() if values}
    figures = []
    if losses:
        figures.append(
            figure(
                "Loss per round",
                plots.lines("loss", losses, "Loss per round"),
                "Mean loss over the samples of a round. It should fall and then level off; evaluation loss that rises"
                " while training loss falls means overfitting.",
            )
        )
    if run.evaluations:
        accuracy = {event.round: 100 * event.accuracy for event in run.evaluations.values()}
        figures.append(
            figure(
                "Accuracy per round",
                plots.lines("accuracy (%)", {"accuracy": accuracy}, "Accuracy per round"),
                "Share of evaluation samples that the averaged model gets right after each evaluated round.",
            )
        )
    if not figures:
        return "<h2>Learning</h2>\n<p>No round was finished, so there is no loss and no accuracy to show.</p>"
    return "\n".join([*pieces, f'<div class="pair">{"".join(figures)}</div>'])


def _chosen(roles: Iterable[str]) -> tuple[list[str], str]:
    """Picks the roles that get a row of their own, compute nodes first, and words what was left out."""
    order = sorted(roles, key=natural)
    chosen = [role for role in order if not _is_owner(role)][:_MAX_NODE_ROWS]
    chosen += [role for role in order if _is_owner(role)][: _MAX_ROWS - len(chosen)]
    left_out = len(order) - len(chosen)
    return chosen, f" {left_out} more roles are not drawn." if left_out > 0 else ""


def _is_owner(role: str) -> bool:
    return role.startswith("owner")


def _time(run: Recorded) -> str:
    if not run.rounds:
        return ""
    pieces = ["<h2>Time</h2>"]
    totals: dict[str, dict[str, float]] = {}
    for event in run.rounds.values():
        for role, stats in event.roles.items():
            row = totals.setdefault(role, {"F": 0.0, "B": 0.0, "U": 0.0, "idle": 0.0})
            row["F"] += stats.forward_s
            row["B"] += stats.backward_s
            row["U"] += stats.update_s
            row["idle"] += stats.idle_s
    chosen, left_out = _chosen(totals)
    if chosen:
        pieces.append(
            figure(
                "Busy and idle",
                plots.shares({role: totals[role] for role in chosen}, "Busy and idle share of each role"),
                "How each role spent its time over all rounds. The compute node with the least idle time sets the pace;"
                f" owners wait while the chain works on others.{left_out}",
            )
        )
    predicted = {event.round: event.predicted_s for event in run.rounds.values() if event.predicted_s is not None}
    if predicted:
        measured = {index: run.rounds[index].seconds for index in run.rounds}
        pieces.append(
            figure(
                "Predicted and measured",
                plots.lines(
                    "s per round", {"measured": measured, "predicted": predicted}, "Seconds per round", from_zero=True
                ),
                f"Seconds per round, and what the cost model foresaw. {_miss(predicted, measured)}",
            )
        )
    pieces += _expected_work(run)
    pieces += spill_table(run) + aside_table(run)
    return "\n".join(pieces) if len(pieces) > 1 else ""


def _expected_work(run: Recorded) -> list[str]:
    """Tabulates how long each compute node was expected to work in a round beside how long it did."""
    rounds = [event for event in run.rounds.values() if event.predicted_busy_s]
    names = sorted({name for event in rounds for name in event.predicted_busy_s}, key=natural)
    rows = []
    for name in names[:_MAX_NODE_ROWS]:
        both = [(event.predicted_busy_s[name], event.roles[name]) for event in rounds if name in event.roles]
        if both:
            expected = sum(seconds for seconds, _ in both) / len(both)
            worked = sum(each.forward_s + each.backward_s + each.update_s for _, each in both) / len(both)
            off = percent(expected / worked - 1) if worked > 0 else "-"
            rows.append([one_line(name), duration(expected), duration(worked), off])
    if not rows:
        return []
    return [
        "<p>Work of each compute node per round, as planned from its profile and as measured.</p>",
        table(["node", "predicted", "measured", "predicted is off by"], rows, numbers={1, 2, 3}),
    ]


def _miss(predicted: Mapping[int, float], measured: Mapping[int, float]) -> str:
    """Words how far predictions were off, as the mean of |predicted - measured| / measured."""
    misses = [abs(predicted[index] - measured[index]) / measured[index] for index in predicted if measured[index] > 0]
    if not misses:
        return "The closer the lines, the more a plan's numbers can be trusted."
    return f"The prediction was off by {percent(sum(misses) / len(misses))} on average."


def _gantt(run: Recorded, folder: Path) -> str:
    title = "<h2>Timeline</h2>"
    starts = round_starts(folder) if folder.is_dir() else {}
    if not starts:
        return f"{title}\n<p>No timeline was recorded.</p>"
    # The first round also warms caches up; the one after it shows how a run normally goes.
    index = next((found for found in list(starts)[1:] if found in run.rounds), next(iter(starts)))
    origin_us = starts[index]
    work = spans(folder, index, origin_us + _WINDOW_US)
    chosen, left_out = _chosen(work)
    work = {role: work[role] for role in chosen}
    window_us = _window(work.values(), origin_us)
    drawn = figure(
        f"The first {duration(window_us / 1e6)} of round {index + 1}",
        plots.gantt(work, origin_us, window_us, "Work of each role over time"),
        "Each row is a role, each bar a piece of work, the gaps are waiting. A full pipeline has hardly any gaps in the"
        f" row of the slowest compute node.{left_out} The whole run is in timeline.json, which Perfetto opens.",
    )
    return f"{title}\n{drawn}"


def _window(rows: Iterable[Sequence[Span]], origin_us: int) -> int:
    """Picks how much of a round is drawn: up to two seconds, less where bars would be too thin, not past the work."""
    end_us, window_us = 1, _WINDOW_US
    for row in rows:
        end_us = max(end_us, max(span.start_us + span.duration_us for span in row) - origin_us)
        if len(row) > _MAX_BARS_IN_ROW:
            window_us = min(window_us, max(1, row[_MAX_BARS_IN_ROW].start_us - origin_us))
    return min(window_us, end_us)


def _bytes(run: Recorded) -> str:
    groups: dict[str, dict[int, float]] = {}
    roles = sorted({role for event in run.rounds.values() for role in event.roles}, key=natural)
    names = _groups(roles)
    largest = 1.0
    for event in run.rounds.values():
        for role, stats in event.roles.items():
            values = groups.setdefault(names[role], {})
            values[event.round] = values.get(event.round, 0.0) + stats.sent_bytes
        largest = max(largest, sum(stats.sent_bytes for stats in event.roles.values()))
    if not groups:
        return ""
    power = max(0, min(4, (len(str(int(largest))) - 1) // 3))
    unit = ["B", "kB", "MB", "GB", "TB"][power]
    scaled = {
        name: {index: value / 1000**power for index, value in groups[name].items()}
        for name in sorted(groups, key=natural)
    }
    drawn = figure(
        "Bytes sent per round",
        plots.stacks(f"{unit} sent", scaled, "Bytes sent per round and role"),
        "What each role put on its links. Activations and gradients grow with the samples of a round; the owners' share"
        " also holds the parts they hand in for averaging.",
    )
    return f"<h2>Traffic</h2>\n{drawn}\n{codec_table(run)}"


def _groups(roles: Sequence[str]) -> dict[str, str]:
    """Names the layer each role belongs to: all owners are one, compute nodes too where they are many."""
    nodes = [role for role in roles if not _is_owner(role)]
    return {
        role: "owners" if _is_owner(role) else role if len(nodes) <= 7 or "-" not in role else "compute nodes"
        for role in roles
    }


def _round_table(run: Recorded) -> str:
    if not run.rounds:
        return "<h2>Rounds</h2>\n<p>No round was finished.</p>"
    shown = list(run.rounds.values())[-_MAX_TABLE_ROUNDS:]
    left_out = len(run.rounds) - len(shown)
    columns: list[tuple[str, Callable[[RoundEvent], str]]] = [
        ("round", lambda event: str(event.round + 1)),
        ("loss", lambda event: number(event.loss)),
        ("accuracy", lambda event: _accuracy(run, event.round)),
        ("time", lambda event: duration(event.seconds)),
        ("predicted", lambda event: "-" if event.predicted_s is None else duration(event.predicted_s)),
        ("samples", lambda event: f"{event.samples:,}"),
        ("batches", lambda event: f"{event.batches:,}"),
        ("batches/s", lambda event: f"{event.batches / event.seconds:,.1f}" if event.seconds > 0 else "-"),
        ("sent", lambda event: amount(event.bytes)),
        ("nodes idle", lambda event: _idle(run, event.roles)),
    ]
    rows = [[word(event) for _, word in columns] for event in shown]
    note = f" The first {left_out:,} rounds are left out here; metrics.jsonl has them." if left_out else ""
    return f"<h2>Rounds</h2>\n<p>Rounds count from 1 here and from 0 in metrics.jsonl.{note}</p>\n" + table(
        [name for name, _ in columns], rows, numbers=set(range(len(columns)))
    )


def _accuracy(run: Recorded, index: int) -> str:
    return percent(run.evaluations[index].accuracy) if index in run.evaluations else "-"


def _idle(run: Recorded, roles: Mapping[str, RoleStats]) -> str:
    """Words the mean idle share of the compute nodes."""
    shares = []
    for role, stats in roles.items():
        whole = stats.forward_s + stats.backward_s + stats.update_s + stats.idle_s
        if run.plan is not None and role in run.plan.nodes and whole > 0:
            shares.append(stats.idle_s / whole)
    return percent(sum(shares) / len(shares)) if shares else "-"


def _notices(run: Recorded) -> str:
    if not run.notices:
        return ""
    items = "".join(f"<li>{escape(one_line(notice.text))}</li>" for notice in run.notices[:_MAX_NOTICES])
    more = len(run.notices) - _MAX_NOTICES
    rest = f"<li>and {more:,} more in metrics.jsonl</li>" if more > 0 else ""
    return f"<h2>Notices</h2>\n<ul>{items}{rest}</ul>"


def _job(run: Recorded) -> str:
    if not run.job_text:
        return "<h2>Job</h2>\n<p>The folder holds no job.yaml.</p>"
    return (
        "<h2>Job</h2>\n<details><summary>job.yaml, with every default</summary>"
        f"<pre>{escape(run.job_text)}</pre></details>"
    )
