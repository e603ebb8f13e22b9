"""What codecs did on each kind of link, for the report: over all rounds, and from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from zmpsl.observe import plots
from zmpsl.observe.events import LinkTraffic
from zmpsl.observe.page import figure, table
from zmpsl.observe.readable import amount, duration, natural, one_line
from zmpsl.observe.run_folder import Recorded

__all__ = ["codec_table"]

_HEAD = ["link", "rounds", "codecs", "tensors' bytes", "sent", "ratio", "packing", "unpacking", "link's rate"]
_MAX_SPANS = 12
# The most that can be told apart in one picture.
_MAX_LINES = 9


def codec_table(run: Recorded) -> str:
    """Words what the codecs did on each kind of link; nothing where none packed anything."""
    links: dict[str, dict[int, LinkTraffic]] = {}
    for index, event in sorted(run.rounds.items()):
        for name, traffic in event.links.items():
            links.setdefault(name, {})[index] = traffic
    if all(set(each.codecs) <= {"none"} for traffic in links.values() for each in traffic.values()):
        return ""
    rows = [row for name in sorted(links, key=natural) for row in _rows(one_line(name), links[name])]
    return (
        "<p>What the codecs did for all owners: a row for each span of rounds in which the same ones were used. Seconds"
        " are those of one core, the link's rate is the last that was measured. Where several codecs are named, they"
        " packed different kinds of tensors, or the choice changed within a round.</p>\n"
        + table(_HEAD, rows, numbers={3, 4, 5, 6, 7, 8})
        + _over_time(links)
    )


def _rows(name: str, rounds: Mapping[int, LinkTraffic]) -> list[list[str]]:
    """Gives a link's rows, one where its codecs never changed."""
    used = [(index, each) for index, each in rounds.items() if each.codecs]
    spans = [list(found) for _, found in groupby(used, key=lambda each: sorted(each[1].codecs))]
    rows = [_row(name, [index for index, _ in span], [each for _, each in span]) for span in spans[:_MAX_SPANS]]
    if len(spans) > _MAX_SPANS:
        rows.append([name, f"{len(spans) - _MAX_SPANS} more", "are in metrics.jsonl", *[""] * (len(_HEAD) - 3)])
    return rows


def _row(name: str, rounds: Sequence[int], traffic: Sequence[LinkTraffic]) -> list[str]:
    raw, packed = sum(each.raw_bytes for each in traffic), sum(each.packed_bytes for each in traffic)
    counts: dict[str, int] = {}
    for each in traffic:
        for codec, tensors in each.codecs.items():
            counts[codec] = counts.get(codec, 0) + tensors
    rates = [each.bytes_per_s for each in traffic if each.bytes_per_s]
    return [
        name,
        str(rounds[0] + 1) if len(rounds) == 1 else f"{rounds[0] + 1} to {rounds[-1] + 1}",
        ", ".join(one_line(codec) for codec in sorted(counts, key=lambda each: -counts[each])),
        amount(raw),
        amount(packed),
        f"{raw / packed:.2f}" if packed else "-",
        duration(sum(each.encode_s for each in traffic)),
        duration(sum(each.decode_s for each in traffic)),
        f"{rates[-1] * 8e-6:,.1f} Mbit/s" if rates else "-",
    ]


def _over_time(links: Mapping[str, Mapping[int, LinkTraffic]]) -> str:
    """Draws the ratio of each link from round to round; nothing where that is a single point."""
    ratios = {
        name: {index: each.raw_bytes / each.packed_bytes for index, each in traffic.items() if each.packed_bytes}
        for name, traffic in links.items()
    }
    shown = [(name, ratios[name]) for name in sorted(ratios, key=natural) if ratios[name]]
    if max((len(values) for _, values in shown), default=0) < 2:
        return ""
    left_out = len(shown) - _MAX_LINES
    more = f" {left_out} more links are not drawn." if left_out > 0 else ""
    return figure(
        "Compression per round",
        plots.lines("ratio", dict(shown[:_MAX_LINES]), "Compression of each link per round", from_zero=True),
        "Bytes of tensors over what was sent of them, on each kind of link. A step is another codec; a slow drift comes"
        f" from the values, such as gradients that get sparser.{more}",
    )
