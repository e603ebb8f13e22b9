"""EPSL's round, by hand, and what must hold whatever the numbers are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from zmpsl.errors import JobError
from zmpsl.planner.epsl import Epsl, epsl_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.terms import Owners, PartTime

OWNERS = Owners(3, PartTime(1.0, 2.0, 0.5), PartTime(99.0, 99.0), (NodeLink(10.0), NodeLink(5.0), NodeLink(20.0)))
ROUND = Epsl(PartTime(2.0, 4.0, 0.25), 1.0, 10, 0.4, smashed_bytes=2.0, gradient_bytes=1.0)


class TestRound:
    def test_every_term_by_hand(self) -> None:
        """4 rows folded, 4 + 3 * 6 = 22 go back; the slow owner sends 20 bytes in 4 s and gets 4, then 6 bytes."""
        found = epsl_time(OWNERS, ROUND)
        assert found.rows == 22
        assert (found.upload_s, found.forward_s) == (1 + 4, 6)
        assert found.backward_s == pytest.approx(3 * 1 + 2.2 * 3 + 0.25)
        assert (found.broadcast_s, found.download_s) == (4 / 5, pytest.approx(6 / 5 + 2.5))
        assert found.total_s == pytest.approx(5 + 6 + 9.85 + 0.8 + 3.7)

    def test_without_folding_it_is_parallel_sl(self) -> None:
        found = epsl_time(OWNERS, replace(ROUND, phi=0.0))
        assert (found.rows, found.broadcast_s) == (30, 0)
        assert found.backward_s == pytest.approx(3 * 4 + 0.25)
        assert found.download_s == 10 / 5 + 2.5

    def test_all_folded(self) -> None:
        found = epsl_time(OWNERS, replace(ROUND, phi=1.0))
        assert (found.rows, found.broadcast_s, found.download_s) == (10, 2.0, 2.5)

    def test_rows_and_time_at_the_server_fall_with_phi(self) -> None:
        found = [epsl_time(OWNERS, replace(ROUND, phi=phi / 10)) for phi in range(11)]
        assert [one.rows for one in found] == [30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10]
        for before, after in pairwise(found):
            assert after.backward_s < before.backward_s

    def test_copies_for_every_owner_use_up_what_folding_saves_on_the_link(self) -> None:
        """4 bytes to three owners over a server link of 2 bytes/s: 6 s, with multicast 2 s."""
        narrow = replace(ROUND, server_link=NodeLink(2.0))
        assert epsl_time(OWNERS, narrow).broadcast_s == 6
        assert epsl_time(OWNERS, replace(narrow, multicast=True)).broadcast_s == 2

    def test_a_part_of_a_row_folds_a_whole_one(self) -> None:
        """But 0.1 * 30, which is a little above 3 in binary, is three rows."""
        assert epsl_time(OWNERS, replace(ROUND, phi=0.31)).rows == 4 + 3 * 6
        assert epsl_time(OWNERS, replace(ROUND, phi=0.1, batch_size=30)).rows == 3 + 3 * 27


BAD: list[tuple[dict[str, Any], str]] = [
    ({"phi": 1.5}, "phi is 1.5"),
    ({"phi": math.nan}, "phi is nan"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"smashed_bytes": -1.0}, "epsl: smashed_bytes is -1.0"),
    ({"last_backward_s": 5.0}, "last_backward_s is 5.0 s, more than the 4.0 s"),
    ({"server": PartTime(math.inf, 1.0)}, "server: forward_s is inf"),
    ({"server_link": NodeLink(0.0)}, "epsl: server_link: bytes_per_s is 0.0"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        replace(ROUND, **change)
