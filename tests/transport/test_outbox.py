"""Credits: nobody is flooded, nobody waits for ever, and what an owner sends stays in order."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from zmpsl.codecs import NONE, by_name
from zmpsl.errors import LocalProtocolError
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, Header, parse

CREDIT = 100


def task_of(owner: int, nbytes: int | None, batch: int = 0) -> Task:
    """A task on behalf of an owner; None for one without a tensor."""
    if nbytes is None:
        return Task(Op.CLOSE, 1, owner, 0, batch=batch, count=1)
    return Task(Op.FORWARD, 1, owner, 0, batch=batch, tensor=np.zeros(nbytes, np.uint8))


def outbox_of(credit_bytes: int = CREDIT) -> Outbox:
    return Outbox(7, lambda _task: NONE, credit_bytes)


def sent(outbox: Outbox) -> list[Header]:
    """Everything that can leave now."""
    headers = []
    while (message := outbox.next()) is not None:
        headers.append(parse(message[0], 1 << 30))
    return headers


def batches(headers: list[Header]) -> list[tuple[int, int]]:
    return [(header.task.owner, header.task.batch) for header in headers]


class TestCredit:
    def test_no_more_leaves_than_there_is_credit(self) -> None:
        outbox = outbox_of()
        for batch in range(5):
            outbox.push(task_of(0, 40, batch))
        assert batches(sent(outbox)) == [(0, 0), (0, 1)]
        assert outbox.held == 3
        assert not outbox

    def test_all_credit_to_the_last_byte_may_be_used(self) -> None:
        outbox = outbox_of()
        for batch, nbytes in enumerate((60, 40, 1)):
            outbox.push(task_of(0, nbytes, batch))
        assert batches(sent(outbox)) == [(0, 0), (0, 1)]
        outbox.grant(0, 1)
        assert batches(sent(outbox)) == [(0, 2)]

    def test_credit_that_comes_back_lets_go_what_waits_and_no_more(self) -> None:
        outbox = outbox_of()
        for batch in range(5):
            outbox.push(task_of(0, 40, batch))
        sent(outbox)
        outbox.grant(0, 19)  # 61 of 100 are still under way
        assert sent(outbox) == []
        outbox.grant(0, 21)
        assert batches(sent(outbox)) == [(0, 2)]
        outbox.grant(0, 80)
        assert batches(sent(outbox)) == [(0, 3), (0, 4)]

    def test_a_tensor_larger_than_all_credit_goes_alone(self) -> None:
        outbox = outbox_of()
        for batch, nbytes in enumerate((10, 500, 10, None)):
            outbox.push(task_of(0, nbytes, batch))
        assert batches(sent(outbox)) == [(0, 0)]
        outbox.grant(0, 10)
        assert batches(sent(outbox)) == [(0, 1)]
        outbox.grant(0, 409)  # 91 are still under way, and 10 more would be 101
        assert sent(outbox) == []
        outbox.grant(0, 1)
        assert batches(sent(outbox)) == [(0, 2), (0, 3)]

    def test_what_waits_is_not_overtaken_by_what_would_fit(self) -> None:
        outbox = outbox_of()
        for batch, nbytes in enumerate((60, 60, 1, None)):
            outbox.push(task_of(0, nbytes, batch))
        assert batches(sent(outbox)) == [(0, 0)]
        outbox.grant(0, 60)
        assert batches(sent(outbox)) == [(0, 1), (0, 2), (0, 3)]

    def test_a_starved_owner_holds_up_nobody_else(self) -> None:
        outbox = outbox_of()
        for batch in range(3):
            outbox.push(task_of(0, 90, batch))
        for batch in range(2):
            outbox.push(task_of(1, 50, batch))
        assert batches(sent(outbox)) == [(0, 0), (1, 0), (1, 1)]
        outbox.grant(1, 100)
        assert sent(outbox) == []
        assert outbox.held == 2

    def test_a_task_without_tensor_needs_no_credit(self) -> None:
        outbox = outbox_of()
        for batch, nbytes in enumerate((100, None, None)):
            outbox.push(task_of(0, nbytes, batch))
        assert batches(sent(outbox)) == [(0, 0), (0, 1), (0, 2)]

    def test_more_credit_than_was_taken_gives_nothing_extra(self) -> None:
        outbox = outbox_of()
        outbox.push(task_of(0, 40))
        sent(outbox)
        outbox.grant(0, 2**60)
        for batch in range(3):
            outbox.push(task_of(0, 50, batch))
        assert len(sent(outbox)) == 2

    def test_bytes_count_unpacked_whatever_the_codec(self) -> None:
        outbox = Outbox(7, lambda _task: by_name("lz4"), 10_000)
        for batch in range(3):
            outbox.push(task_of(0, 6000, batch))
        (header,) = sent(outbox)
        assert header.size < 100 < header.raw


class TestSending:
    def test_the_sender_is_filled_in_and_the_rest_stays(self) -> None:
        outbox = outbox_of()
        task = replace(task_of(3, 10), sender=99, micro=1, micros=2)
        outbox.push(task)
        (header,) = sent(outbox)
        assert header.task == replace(task, sender=7, tensor=None)

    def test_each_kind_of_task_gets_its_codec(self) -> None:
        asked: list[Op] = []
        outbox = Outbox(
            0, lambda task: asked.append(task.op) or by_name("lz4" if task.op is Op.BACKWARD else "none"), 1 << 20
        )
        for op in (Op.FORWARD, Op.BACKWARD):
            outbox.push(Task(op, 1, 0, 0, tensor=np.zeros(5000, np.uint8)))
        assert [header.codec for header in sent(outbox)] == [0, 1]
        assert asked == [Op.FORWARD, Op.BACKWARD]

    def test_the_chunks_of_a_tensor_are_not_interleaved_with_others(self) -> None:
        outbox = outbox_of(10 * CHUNK)
        outbox.push(task_of(0, 2 * CHUNK + 1))
        first = outbox.next()
        assert first is not None
        outbox.push(task_of(1, CHUNK + 1))
        assert [header.task.owner for header in sent(outbox)] == [0, 0, 1, 1]

    def test_it_is_true_as_long_as_something_may_leave(self) -> None:
        outbox = outbox_of(10 * CHUNK)
        assert not outbox
        outbox.push(task_of(0, CHUNK + 1))
        assert outbox
        outbox.next()
        assert outbox
        outbox.next()
        assert outbox.next() is None
        assert not outbox

    def test_a_tensor_that_cannot_travel_does_not_stop_the_rest(self) -> None:
        outbox = outbox_of()
        outbox.push(Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros((4, 4), np.uint8).T))
        outbox.push(task_of(0, 10, 1))
        with pytest.raises(LocalProtocolError, match="not C-contiguous"):
            sent(outbox)
        assert batches(sent(outbox)) == [(0, 1)]


class TestGivingBack:
    def test_less_than_half_waits_for_a_ride(self) -> None:
        outbox = outbox_of()
        outbox.owe(0, 49)
        assert sent(outbox) == []
        outbox.push(task_of(1, 10))
        outbox.push(task_of(0, 10, 1))
        outbox.push(task_of(0, 10, 2))
        assert [(h.task.owner, h.task.batch, h.credit) for h in sent(outbox)] == [(1, 0, 0), (0, 1, 49), (0, 2, 0)]

    def test_half_goes_at_once_in_a_task_of_its_own(self) -> None:
        outbox = outbox_of()
        outbox.push(task_of(2, None))  # the plan of the last task is the credit's
        sent(outbox)
        outbox.owe(3, 20)
        outbox.owe(3, 30)
        (header,) = sent(outbox)
        assert header.task == Task(Op.CREDIT, 1, 3, 0, sender=7)
        assert header.credit == 50
        assert header.dtype is None

    def test_what_becomes_owed_before_it_leaves_goes_along(self) -> None:
        outbox = outbox_of()
        outbox.owe(0, 50)
        outbox.owe(0, 7)
        assert sum(header.credit for header in sent(outbox)) == 57

    def test_when_idle_all_is_given_back(self) -> None:
        outbox = outbox_of()
        outbox.owe(0, 1)
        outbox.owe(5, 2)
        outbox.owe(6, 0)
        assert outbox.owes
        outbox.give_back_all()
        assert {header.task.owner: (header.task.op, header.credit) for header in sent(outbox)} == {
            0: (Op.CREDIT, 1),
            5: (Op.CREDIT, 2),
        }
        assert not outbox.owes
        outbox.give_back_all()
        assert sent(outbox) == []

    def test_it_is_given_back_once_however_often_it_is_asked_for(self) -> None:
        # While the socket takes nothing, the loop finds itself idle again and again.
        outbox = outbox_of()
        for _ in range(20):
            outbox.owe(0, 60)
            outbox.give_back_all()
        assert [header.credit for header in sent(outbox)] == [1200]

    def test_no_empty_credit_follows_what_rode_on_a_task(self) -> None:
        outbox = outbox_of()
        outbox.push(task_of(0, 10))
        outbox.owe(0, 60)
        assert [(header.task.op, header.credit) for header in sent(outbox)] == [(Op.FORWARD, 60)]

    def test_credit_needs_no_credit(self) -> None:
        outbox = outbox_of()
        for batch in range(3):
            outbox.push(task_of(0, 90, batch))
        outbox.owe(0, 50)
        assert [(header.task.op, header.credit) for header in sent(outbox)] in (
            [(Op.FORWARD, 0), (Op.CREDIT, 50)],
            [(Op.FORWARD, 50)],
        )


OWNERS = st.integers(0, 2)
SIZES = st.none() | st.sampled_from([0, 1, 49, 50, 51, 99, 100, 101, 250]) | st.integers(0, 130)


class End:
    """One end of the modelled link: its outbox, what has arrived, and what of it is not used up yet."""

    def __init__(self) -> None:
        self.outbox = outbox_of()
        self.wire: deque[Header] = deque()
        self.pushed: dict[int, list[int]] = defaultdict(list)
        self.arrived: dict[int, list[int]] = defaultdict(list)
        self.unused: dict[int, deque[int]] = defaultdict(deque)
        self.credit = Counter[int]()


class TwoEnds(RuleBasedStateMachine):
    """Two roles joined by a wire: either pushes, sends, receives, uses up and gives back, in any order.

    The model knows nothing of the outbox's books: it looks only at what crosses the wire.
    """

    @initialize()
    def join(self) -> None:
        self.ends = (End(), End())
        self.count = 0

    @rule(end=st.integers(0, 1), owner=OWNERS, nbytes=SIZES)
    def push(self, end: int, owner: int, nbytes: int | None) -> None:
        self.count += 1
        self.ends[end].outbox.push(task_of(owner, nbytes, self.count))
        self.ends[end].pushed[owner].append(self.count)

    @rule(end=st.integers(0, 1))
    def send(self, end: int) -> None:
        message = self.ends[end].outbox.next()
        if message is not None:
            self.ends[1 - end].wire.append(parse(message[0], 1 << 30))

    @rule(end=st.integers(0, 1))
    def receive(self, end: int) -> None:
        me = self.ends[end]
        if not me.wire:
            return
        header = me.wire.popleft()
        owner = header.task.owner
        if header.credit:
            me.outbox.grant(owner, header.credit)
        if header.task.op is not Op.CREDIT:
            me.arrived[owner].append(header.task.batch)
            me.unused[owner].append(header.total)

    @rule(end=st.integers(0, 1), owner=OWNERS)
    def use(self, end: int, owner: int) -> None:
        me = self.ends[end]
        if me.unused[owner]:
            me.outbox.owe(owner, me.unused[owner].popleft())

    @rule(end=st.integers(0, 1))
    def idle(self, end: int) -> None:
        self.ends[end].outbox.give_back_all()

    @invariant()
    def nobody_is_flooded(self) -> None:
        for end in self.ends:
            for owner in range(3):
                under_way = [header.total for header in end.wire if header.task.owner == owner and header.total]
                under_way += [nbytes for nbytes in end.unused[owner] if nbytes]
                assert sum(under_way) <= CREDIT or len(under_way) == 1

    @invariant()
    def every_owner_is_served_in_order(self) -> None:
        for me, peer in (self.ends, self.ends[::-1]):
            for owner, order in me.arrived.items():
                assert order == peer.pushed[owner][: len(order)]

    def teardown(self) -> None:
        """When both ends use up what comes and give back when idle, everything arrives: there is no deadlock."""
        if not hasattr(self, "ends"):
            return
        for _ in range(20 * (self.count + 3)):
            for end in (0, 1):
                for _ in range(3):
                    self.send(end)
                    self.receive(end)
                for owner in range(3):
                    self.use(end, owner)
                if not self.ends[end].wire and not any(self.ends[end].unused.values()):
                    self.idle(end)
            self.nobody_is_flooded()
        for me, peer in (self.ends, self.ends[::-1]):
            assert me.outbox.held == 0
            assert not me.wire
            assert me.arrived == {owner: order for owner, order in peer.pushed.items() if order}


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
