"""The report's table of what codecs did on each kind of link."""

from __future__ import annotations

from collections.abc import Sequence

from zmpsl.observe.events import LinkTraffic
from zmpsl.observe.page import table
from zmpsl.observe.readable import amount, duration, natural, one_line
from zmpsl.observe.run_folder import Recorded

__all__ = ["codec_table"]


def codec_table(run: Recorded) -> str:
    """Words what the codecs did on each kind of link over all rounds; nothing where none packed anything."""
    links: dict[str, list[LinkTraffic]] = {}
    for event in run.rounds.values():
        for name, traffic in event.links.items():
            links.setdefault(name, []).append(traffic)
    rows = [_row(name, links[name]) for name in sorted(links, key=natural)]
    if all(set(each.codecs) <= {"none"} for traffic in links.values() for each in traffic):
        return ""
    return (
        "<p>What the codecs did, over all rounds and all owners. Seconds are those of one core.</p>\n"
        + table(
            ["link", "codecs", "tensors' bytes", "sent", "ratio", "packing", "unpacking", "link's rate"], rows,
            numbers={2, 3, 4, 5, 6, 7},
        )
    )  # fmt: skip


def _row(name: str, traffic: Sequence[LinkTraffic]) -> list[str]:
    raw, packed = sum(each.raw_bytes for each in traffic), sum(each.packed_bytes for each in traffic)
    counts: dict[str, int] = {}
    for each in traffic:
        for codec, tensors in each.codecs.items():
            counts[codec] = counts.get(codec, 0) + tensors
    rates = [each.bytes_per_s for each in traffic if each.bytes_per_s]
    return [
        one_line(name),
        ", ".join(one_line(codec) for codec in sorted(counts, key=lambda each: -counts[each])),
        amount(raw),
        amount(packed),
        f"{raw / packed:.2f}" if packed else "-",
        duration(sum(each.encode_s for each in traffic)),
        duration(sum(each.decode_s for each in traffic)),
        f"{rates[-1] * 8e-6:,.1f} Mbit/s" if rates else "-",
    ]
