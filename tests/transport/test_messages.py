"""Control messages: whatever is said is heard, and whatever bytes come, they are a message or a RemoteProtocolError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmpsl import messages
from zmpsl.errors import RemoteProtocolError
from zmpsl.job import Job, Model
from zmpsl.messages import (
    FromManager,
    Join,
    Leave,
    Ping,
    Ready,
    Submit,
    ToManager,
    Trouble,
    decode_from_manager,
    decode_to_manager,
    encode,
)
from zmpsl.plan import Activation, Block, Entry, Peer, Plan, Rates
from zmpsl.stats import Stats

FUZZ = settings(max_examples=300, deadline=None)
DECODERS = [decode_to_manager, decode_from_manager]
STATS = Stats(forward_s=0.1, tasks=3, sent_bytes=2**40)
JOB = Job(name="x", owners=3, model=Model(args={"a": [1, None, {"b": 2.5}]}), cuts=[1, 2, 3])
PLAN = Plan(
    version=3,
    run="run",
    job=JOB,
    blocks=(Block("Linear", (Entry("weight", "float32", (2, 3), True),)), Block("ReLU", ())),
    outputs=(Activation("float32", (3,)), Activation("float32", (3,))),
    bounds=(0, 1, 2),
    aggregator=Peer("aggregator", "tcp://a:1"),
    nodes=(Peer("node-0", "tcp://b:2"),),
    owners=(Peer("owner-0", "tcp://c:3"), Peer("owner-1", "tcp://d:4")),
    start_round=7,
    digests={"node-0": "ab" * 32},
)

TO_MANAGER: list[ToManager] = [
    Join(role="owner"),
    Join(role="compute", place="node-1", endpoint="tcp://x:1", version="0.1.0", host="höst", pid=12),
    Submit(job=Job()),
    Submit(job=JOB),
    messages.Described(blocks=PLAN.blocks, outputs=PLAN.outputs),
    messages.Described(blocks=()),
    messages.Profiled(profile=None, text="it has no gradient"),
    Ready(plan=1),
    Ready(plan=2, samples=3, batches=4),
    Ready(plan=2, key=bytes(range(32))),
    messages.Progress(plan=1, round=0),
    messages.Progress(plan=1, round=1, batches=2, loss_sum=float("inf"), samples=4, stats=STATS),
    messages.Trained(plan=1, round=1, batches=2, loss_sum=-0.0, samples=4, stats=STATS),
    messages.Prepared(plan=1, round=1, digests={"aggregator": "ff" * 32}, stats=STATS),
    messages.Evaluated(plan=1, round=1, correct=2, total=3, samples=3, loss_sum=0.5),
    messages.Broken(plan=2, peer="node-1"),
    messages.Aside(plan=2, round=1, owner=65_534, state="kept"),
    messages.Aside(plan=2, round=1, owner=0, state="failed", text="disk full"),
    messages.Paused(plan=3),
    messages.Paused(plan=3, handed_in=2),
    Trouble(exit_code=7, text="näh\n" * 1000),
    messages.Accuse(place="owner-3", text="why"),
    messages.Probe(data=b"\0" * 1000),
    Leave(),
]
FROM_MANAGER: list[FromManager] = [
    messages.Refused(exit_code=5, text="no"),
    messages.Welcome(place="owner-0"),
    messages.Welcome(place="owner-0", job=JOB),
    messages.Describe(job=JOB),
    messages.Measure(job=JOB, input_shape=(1, 8, 8), input_dtype="int64"),
    messages.Publish(plan=PLAN),
    messages.Pause(plan=4),
    messages.Restrict(plan=1, rates={3: Rates(0.5, None), 65_534: Rates(None, 1e18)}),
    messages.MaskKeys(plan=1, keys={"owner-0": bytes(32)}),
    messages.Begin(round=2**31),
    messages.Committed(round=0, digests={}),
    messages.Evaluate(round=0),
    messages.Unheard(number=3),
    messages.SetAside(round=3, owner=7),
    messages.TakeUp(round=3, owner=7),
    messages.Finish(),
    messages.Finish(exit_code=6, text="gone"),
    Ping(),
    messages.Probed(data=b"x"),
]


def is_message_or_error(data: bytes, decode: Callable[[bytes], Any], union: Any) -> None:
    """Whatever comes is one of the messages of that direction, and can be said again, or a RemoteProtocolError."""
    try:
        message = decode(data)
    except RemoteProtocolError as error:
        assert f"{len(data)} bytes" in str(error)  # noqa: PT017 - that no other error comes is the point
    else:
        assert isinstance(message, get_args(union))


class TestRoundTrips:
    @pytest.mark.parametrize("message", TO_MANAGER, ids=lambda message: type(message).__name__)
    def test_what_a_member_says_is_heard(self, message: ToManager) -> None:
        assert decode_to_manager(encode(message)) == message

    @pytest.mark.parametrize("message", FROM_MANAGER, ids=lambda message: type(message).__name__)
    def test_what_the_manager_says_is_heard(self, message: FromManager) -> None:
        assert decode_from_manager(encode(message)) == message

    def test_no_message_is_left_out_here(self) -> None:
        assert {type(message) for message in TO_MANAGER} == set(get_args(ToManager))
        assert {type(message) for message in FROM_MANAGER} == set(get_args(FromManager))

    def test_no_name_means_two_messages(self) -> None:
        names = [kind.__name__ for kind in get_args(ToManager) + get_args(FromManager)]
        assert len(set(names)) == len(names)

    def test_a_message_is_not_taken_from_the_wrong_side(self) -> None:
        for message in TO_MANAGER:
            with pytest.raises(RemoteProtocolError, match="the manager sent"):
                decode_from_manager(encode(message))
        for message in FROM_MANAGER:
            with pytest.raises(RemoteProtocolError, match="a member sent"):
                decode_to_manager(encode(message))

    def test_a_field_of_a_later_version_is_passed_over(self) -> None:
        assert decode_to_manager(msgspec.msgpack.encode({"type": "Leave", "mood": "sad"})) == Leave()


def submit(value: bytes) -> bytes:
    """A Submit whose job has these bytes of msgpack as the argument `a` of its model."""
    return b"\x82\xa4type\xa6Submit\xa3job\x81\xa5model\x82\xa4name\xa1x\xa4args\x81\xa1a" + value


class TestHostileBytes:
    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "Join"},
            {"type": "Join", "role": 5},
            {"type": "Join", "role": "x" * 65},
            {"type": "Join", "role": "owner", "endpoint": "x" * 257},
            {"type": "Trouble", "exit_code": 1, "text": "x" * 4001},
            {"type": "Trouble", "exit_code": None, "text": "x"},
            {"type": "Prepared", "round": 1, "digests": {"x" * 65: "y"}, "stats": {}},
            {"type": "Ready", "plan": 1.5},
            {"type": "Submit", "job": {"owners": 0}},
            {"type": "Submit", "job": {"trian": {}}},
            {"type": "Described", "blocks": [["Linear"]]},
            {"type": "Nothing"},
            {"type": 1},
            {"role": "owner"},
            [],
            None,
            "Leave",
        ],
    )
    def test_what_does_not_fit_is_refused(self, fields: object) -> None:
        with pytest.raises(RemoteProtocolError, match="bytes that are no control message: "):
            decode_to_manager(msgspec.msgpack.encode(fields))

    @pytest.mark.parametrize("decode", DECODERS)
    @pytest.mark.parametrize(
        "data",
        [
            b"\x82\xa4type\xa4Join\xa4role\xa2\xff\xff",
            b"\x82\xa4type\xa7Welcome\xa5place\xa2\xff\xff",
            b"\x81\xa4type\xa4\xff\xff\xff\xff",
            b"\x81\xa4\xff\xff\xff\xff\xa5Leave",
            submit(b"\xa1\xff"),
        ],
        ids=["field", "field from manager", "tag", "key", "argument"],
    )
    def test_text_that_is_no_utf8_is_refused(self, data: bytes, decode: Callable[[bytes], Any]) -> None:
        with pytest.raises(RemoteProtocolError):
            decode(data)

    @pytest.mark.parametrize(
        "value",
        [b"\x91" * 100_000, b"\x91" * 100_000 + b"\xc0", b"\x81\xa1a" * 100_000, b"\x81" * 100_000],
        ids=["lists", "closed lists", "maps", "maps as keys"],
    )
    def test_deep_nesting_does_not_overflow_the_stack(self, value: bytes) -> None:
        with pytest.raises(RemoteProtocolError):
            decode_to_manager(submit(value))

    @pytest.mark.parametrize(
        "head", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"], ids=["list", "map", "str", "bin", "ext"]
    )
    def test_a_length_is_not_believed(self, head: bytes) -> None:
        # Five bytes that promise four thousand million items.
        for data in (submit(head + b"\xff" * 4), b"\x82\xa4type\xa9Described\xa6blocks" + head + b"\xff" * 4):
            with pytest.raises(RemoteProtocolError):
                decode_to_manager(data)

    @FUZZ
    @given(st.binary(max_size=200))
    @example(b"")
    @example(b"\xc1")
    def test_any_bytes(self, data: bytes) -> None:
        is_message_or_error(data, decode_to_manager, ToManager)
        is_message_or_error(data, decode_from_manager, FromManager)

    @FUZZ
    @given(st.binary(max_size=40))
    @example(b"\xd6\xff\x00\x00\x00\x00")
    @example(b"\xd4\x05a")
    @example(b"\x81\x91\x81\x01\x02\x03")
    @example(b"\xc7\x0c\xff" + b"\xff" * 12)
    def test_any_bytes_where_anything_may_stand(self, data: bytes) -> None:
        is_message_or_error(submit(data), decode_to_manager, ToManager)

    @FUZZ
    @given(
        st.sampled_from(TO_MANAGER + FROM_MANAGER),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(0, 3),
    )
    def test_damaged_messages(self, message: Any, changes: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(encode(message))
        for at, value in changes:
            data[at % len(data)] = value
        damaged = bytes(data[: len(data) - cut])
        is_message_or_error(damaged, decode_to_manager, ToManager)
        is_message_or_error(damaged, decode_from_manager, FromManager)
