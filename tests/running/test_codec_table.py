"""The report's table of codecs: which were used when on each link, and what they did."""

from __future__ import annotations

import pytest

from zmpsl.observe.codec_table import codec_table
from zmpsl.observe.events import LinkTraffic, RoundEvent
from zmpsl.observe.run_folder import Recorded


def traffic(packed: int, rate: float | None, **codecs: int) -> LinkTraffic:
    return LinkTraffic(
        raw_bytes=1_000_000, packed_bytes=packed, encode_s=0.25, decode_s=0.5, codecs=codecs, bytes_per_s=rate
    )


def recorded(*links: dict[str, LinkTraffic]) -> Recorded:
    rounds = {
        index: RoundEvent(
            time=0.0, round=index, seconds=1.0, loss=None, samples=1, batches=1, bytes=1, roles={}, links=each
        )
        for index, each in enumerate(links)
    }
    return Recorded(rounds=rounds)


def cells(html: str) -> list[list[str]]:
    rows = [line for line in html.splitlines() if line.startswith("<tr><td")]
    return [[cell.split(">")[-1] for cell in row.split("</td>")[:-1]] for row in rows]


NAME = "owner&gt;node-0"


def test_a_row_for_each_span_of_rounds() -> None:
    slow = 2.5e6
    html = codec_table(
        recorded(
            {"owner>node-0": traffic(1_000_000, None, none=8), "node-10>node-11": traffic(500_000, None, bf16=8)},
            {"owner>node-0": traffic(600_000, slow, none=2, huff=6), "node-10>node-11": traffic(500_000, None, bf16=8)},
            {"owner>node-0": traffic(500_000, slow, huff=8), "node-10>node-11": traffic(500_000, None, bf16=8)},
            {"owner>node-0": traffic(500_000, 2 * slow, huff=8), "node-2>node-3": traffic(10**6, None, none=1)},
        )
    )
    assert cells(html) == [
        ["node-2&gt;node-3", "4", "none", "1.0 MB", "1.0 MB", "1.00", "0.25 s", "0.50 s", "-"],
        ["node-10&gt;node-11", "1 to 3", "bf16", "3.0 MB", "1.5 MB", "2.00", "0.75 s", "1.5 s", "-"],
        [NAME, "1", "none", "1.0 MB", "1.0 MB", "1.00", "0.25 s", "0.50 s", "-"],
        [NAME, "2", "huff, none", "1.0 MB", "600.0 kB", "1.67", "0.25 s", "0.50 s", "20.0 Mbit/s"],
        [NAME, "3 to 4", "huff", "2.0 MB", "1.0 MB", "2.00", "0.50 s", "1.0 s", "40.0 Mbit/s"],
    ]
    assert 'aria-label="Compression of each link per round"' in html


def test_a_link_that_changes_all_the_time_does_not_fill_the_page() -> None:
    html = codec_table(
        recorded(*({"owner>node-0": traffic(500_000, None, **{name: 1})} for name in ["huff", "none"] * 10))
    )
    assert len(cells(html)) == 13
    assert cells(html)[-1][:3] == [NAME, "8 more", "are in metrics.jsonl"]


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_nothing_where_nothing_is_packed(rounds: int) -> None:
    assert codec_table(recorded(*[{"owner>node-0": traffic(10**6, None, none=8)}] * rounds)) == ""


def test_one_round_is_no_line() -> None:
    html = codec_table(recorded({"owner>node-0": traffic(1, None, huff=8)}))
    assert len(cells(html)) == 1
    assert "<svg" not in html


def test_names_of_others_are_text() -> None:
    html = codec_table(recorded(*[{"<b>$x$": traffic(500_000, None, **{"<i>": 1})}] * 2))
    assert "<b>$" not in html
    assert "<i>" not in html
