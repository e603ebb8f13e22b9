"""Cuts, parts and fingerprints: every block runs in exactly one place, and two different models never look the same."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.errors import JobError
from zmpsl.job import Job
from zmpsl.plan import Block, Entry, Peer, Plan, check_cuts, even_cuts, fingerprint, node_name, owner_name

SOME = settings(max_examples=200, deadline=None)


def plan_of(bounds: tuple[int, ...], blocks: tuple[Block, ...]) -> Plan:
    return Plan(
        version=1,
        run="r",
        job=Job(),
        blocks=blocks,
        bounds=bounds,
        aggregator=Peer("aggregator", "tcp://a"),
        nodes=(Peer("node-0", "tcp://b"),),
        owners=(Peer("owner-0", "tcp://c"),),
    )


def jobs(nodes: int, **fields: object) -> Job:
    return msgspec.convert({"compute_nodes": nodes, **fields}, Job)


class TestNames:
    def test_places_are_numbered_from_0(self) -> None:
        assert [owner_name(0), owner_name(12), node_name(0), node_name(3)] == [
            "owner-0",
            "owner-12",
            "node-0",
            "node-3",
        ]


class TestEvenCuts:
    @pytest.mark.parametrize(
        ("blocks", "nodes", "ends", "cuts"),
        [
            # One block at either end stays with the owner; nodes share the rest, the earlier ones the larger shares.
            (3, 1, {}, (1, 2)),
            (6, 1, {}, (1, 5)),
            (6, 2, {}, (1, 3, 5)),
            (6, 3, {}, (1, 3, 4, 5)),
            (6, 4, {}, (1, 2, 3, 4, 5)),
            (12, 4, {}, (1, 4, 7, 9, 11)),
            (6, 2, {"first_cut": 2}, (2, 4, 5)),
            (6, 2, {"last_cut": 4}, (1, 3, 4)),
            (10, 3, {"first_cut": 2, "last_cut": 8}, (2, 4, 6, 8)),
            (10, 3, {"first_cut": 4, "last_cut": 7}, (4, 5, 6, 7)),
        ],
    )
    def test_the_table(self, blocks: int, nodes: int, ends: dict[str, int], cuts: tuple[int, ...]) -> None:
        assert even_cuts(jobs(nodes, **ends), blocks) == cuts

    @pytest.mark.parametrize(
        ("blocks", "nodes", "ends", "parts"),
        [
            (3, 2, {}, ["has 3 blocks", "first_cut 1 and last_cut 2 lie 1, too few for 2 compute nodes"]),
            (6, 5, {}, ["has 6 blocks", "lie 4, too few for 5 compute nodes"]),
            (6, 1, {"first_cut": 5}, ["first_cut 5 and last_cut 5 lie 0"]),
            (6, 1, {"first_cut": 9}, ["first_cut 9 and last_cut 5 lie 0"]),
            (6, 1, {"last_cut": 1}, ["first_cut 1 and last_cut 1 lie 0"]),
            (6, 2, {"last_cut": 6}, ["has 6 blocks", "last_cut 6"]),
            (6, 2, {"last_cut": 60}, ["has 6 blocks", "last_cut 60"]),
            (1, 1, {}, ["has 1 blocks", "lie 0"]),
        ],
    )
    def test_too_few_blocks_are_told_with_the_numbers(
        self, blocks: int, nodes: int, ends: dict[str, int], parts: list[str]
    ) -> None:
        with pytest.raises(JobError) as caught:
            even_cuts(jobs(nodes, **ends), blocks)
        assert [part for part in ["cuts: auto: model digits_cnn", *parts] if part not in str(caught.value)] == []

    @SOME
    @given(st.integers(1, 300), st.integers(1, 255), st.none() | st.integers(1, 300), st.none() | st.integers(1, 300))
    def test_they_are_valid_and_even_or_refused(
        self, blocks: int, nodes: int, first: int | None, last: int | None
    ) -> None:
        job = jobs(nodes, first_cut=first, last_cut=last)
        low, high = first or 1, last or blocks - 1
        if not (1 <= low < high < blocks and high - low >= nodes):
            with pytest.raises(JobError):
                even_cuts(job, blocks)
            return
        cuts = even_cuts(job, blocks)
        sizes = [after - before for before, after in pairwise(cuts)]
        assert (cuts[0], cuts[-1], len(sizes)) == (low, high, nodes)
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        assert check_cuts(job, blocks) == (0, *cuts, blocks)


class TestCheckCuts:
    def test_cuts_of_the_job_become_bounds(self) -> None:
        assert check_cuts(jobs(2, cuts=[1, 2, 5]), 6) == (0, 1, 2, 5, 6)

    @pytest.mark.parametrize(
        ("cuts", "message"),
        [
            ([1, 3, 2], r"cuts: \[1, 3, 2\] must rise strictly between 0 and 6, the number of blocks of digits_cnn"),
            ([1, 2, 2], "must rise strictly between 0 and 6"),
            ([1, 2, 6], "must rise strictly between 0 and 6"),
            ([1, 2, 60], "must rise strictly between 0 and 6"),
            ([1, 2], r"cuts: \[1, 2\] makes 3 parts, but 2 compute nodes need 3 cuts"),
            ([1, 2, 3, 4], "makes 5 parts, but 2 compute nodes need 3 cuts"),
        ],
    )
    def test_cuts_that_do_not_fit_are_refused(self, cuts: list[int], message: str) -> None:
        with pytest.raises(JobError, match=message):
            check_cuts(jobs(2, cuts=cuts), 6)


class TestPlan:
    @SOME
    @given(st.data())
    def test_every_block_is_in_exactly_one_part(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(3, 40))
        inner = data.draw(st.sets(st.integers(1, count - 1), min_size=2, max_size=count - 1))
        job = jobs(len(inner) - 1, cuts=sorted(inner))
        weights = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
        blocks = tuple(
            Block("Linear", (Entry("w", "float32", (n, 3), True), Entry("m", "float32", (7,), False))) for n in weights
        )
        plan = plan_of(check_cuts(job, count), blocks)
        assert plan.parts == job.parts
        assert [index for part in range(plan.parts) for index in plan.blocks_of(part)] == list(range(count))
        assert all(len(plan.blocks_of(part)) >= 1 for part in range(plan.parts))
        assert sum(plan.parameters_of(part) for part in range(plan.parts)) == 3 * sum(weights)

    def test_a_scalar_has_one_element_and_an_empty_tensor_none(self) -> None:
        assert [Entry("x", "int64", shape, False).elements for shape in ((), (3, 4), (3, 0))] == [1, 12, 0]

    def test_plans_do_not_share_their_digests(self) -> None:
        first, second = plan_of((0, 1), ()), plan_of((0, 1), ())
        first.digests["aggregator"] = "x"
        assert second.digests == {}


BASE = (
    Block("Conv2d", (Entry("weight", "float32", (2, 3), True), Entry("bias", "float32", (2,), True))),
    Block("ReLU", ()),
)


class TestFingerprint:
    def test_equal_models_have_equal_short_fingerprints(self) -> None:
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(BASE), type=tuple[Block, ...])
        assert fingerprint(again) == fingerprint(BASE)
        assert len(fingerprint(BASE)) == 16
        assert int(fingerprint(BASE), 16) >= 0

    def test_it_stays_what_it_was(self) -> None:
        # Records of earlier runs hold it: SHA-256 of this JSON text, made with sha256sum.
        assert fingerprint(BASE) == "bda3b904ff73e4f2"

    @pytest.mark.parametrize(
        "other",
        [
            (Block("Conv3d", BASE[0].entries), BASE[1]),
            (Block("Conv2d", (Entry("weights", "float32", (2, 3), True), BASE[0].entries[1])), BASE[1]),
            (Block("Conv2d", (Entry("weight", "float64", (2, 3), True), BASE[0].entries[1])), BASE[1]),
            (Block("Conv2d", (Entry("weight", "float32", (3, 2), True), BASE[0].entries[1])), BASE[1]),
            (Block("Conv2d", (Entry("weight", "float32", (2, 3, 1), True), BASE[0].entries[1])), BASE[1]),
            (Block("Conv2d", (Entry("weight", "float32", (2, 3), False), BASE[0].entries[1])), BASE[1]),
            (Block("Conv2d", BASE[0].entries[::-1]), BASE[1]),
            (Block("Conv2d", BASE[0].entries[:1]), Block("ReLU", BASE[0].entries[1:])),
            BASE[::-1],
            BASE[:1],
            (*BASE, Block("ReLU", ())),
            (),
        ],
        ids="kind|key|dtype|shape|dimensions|trained|order of tensors|moved|order of blocks|less|more|none".split("|"),
    )
    def test_it_changes_with_every_property(self, other: tuple[Block, ...]) -> None:
        assert fingerprint(other) != fingerprint(BASE)
