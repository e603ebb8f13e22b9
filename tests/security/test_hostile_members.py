"""Messages in the right form from the right place that no honest member sends: wrong shapes, replays, NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zmq
from helpers import SMALL, job, wait_for
from hostile import forward
from ruined import ruined
from siege import siege

from zmpsl import messages as control
from zmpsl.engine.build import build_blocks, summarise, trace
from zmpsl.job.schema import Model
from zmpsl.messages import Message
from zmpsl.roles.actions import Say
from zmpsl.roles.owner import DataOwner
from zmpsl.security import MAX_REJECTED
from zmpsl.state import layout_of, not_finite
from zmpsl.stats import Stats
from zmpsl.transport.task import Op
from zmpsl.transport.wire import OWNER_SENDER

# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        *(("node-0", {"op": op, "sender": OWNER_SENDER}) for op in (Op.FORWARD, Op.EVALUATE)),
        *(("node-1", {"op": op, "sender": 1}) for op in (Op.FORWARD, Op.EVALUATE)),
        ("node-0", {"op": Op.BACKWARD, "sender": 2}),
        ("node-1", {"op": Op.BACKWARD, "sender": OWNER_SENDER}),
        ("owner-0", {"op": Op.BACKWARD, "sender": 1}),
        *(("owner-0", {"op": op, "sender": 2}) for op in (Op.FORWARD, Op.EVALUATE)),
    ],
    ids=lambda value: value if isinstance(value, str) else value["op"].name,
)
def test_tensor_of_a_wrong_form(place: str, fields: dict[str, object]):
    """Addressed as a neighbour would: counted, dropped, and the run ends with the weights it would have had."""
    wrong = [
        np.ones((16, 7), np.float32), np.ones((16, 64), np.float64), np.ones((16, 64, 1), np.float32),
        np.ones(16, np.float32), np.ones((0, 64), np.float32), np.ones((), np.float32), np.ones((30_000, 3)), None,
    ]  # fmt: skip
    with siege() as besieged:
        node = besieged.node(place)
        push = besieged.connect(zmq.PUSH, node.endpoint)
        for tensor in wrong:
            push.send_multipart(forward(tensor=tensor, **fields))
        wait_for(lambda: node.rejected >= len(wrong) or besieged.run.manager.drain(0), 20)
        assert node.rejected == len(wrong)
        besieged.hold_out()


def test_forms_are_what_a_model_gives():
    """One per block, as a real batch shows; also of a model that is not of the zoo."""
    for name, inputs in (("lenet5", torch.ones(2, 1, 28, 28)), ("small_nets:tiny_mlp", torch.ones(2, 1, 8, 8))):
        model = Model(name=name)
        forms = trace(model, inputs)
        values = inputs
        for (_, block), form in zip(build_blocks(model, 0, range(99)), forms, strict=True):
            values = block(values)
            assert (str(values.dtype), tuple(values.shape[1:])) == (f"torch.{form.dtype}", form.shape)
        assert len(forms) == len(summarise(model))


def test_model_whose_forms_cannot_be_found_out():
    """Then shapes are not checked; that the model does not fit its data is told where it is trained."""
    assert trace(Model(name="lenet5"), torch.ones(2, 7)) == ()


def test_replay_of_an_old_round():
    """What was right a round ago changes nothing now."""
    with siege(job(*SMALL, "train.rounds=3")) as besieged:
        node = besieged.node("node-0")
        form = besieged.run.manager.manager.plan.entering(1)  # type: ignore[union-attr]
        captured = forward(tensor=np.ones((16, *form.shape), np.float32))  # type: ignore[union-attr]
        node.member.round += 1  # as if the round were over
        before = node.rejected
        push = besieged.connect(zmq.PUSH, node.endpoint)
        for _ in range(5):
            push.send_multipart(captured)
        wait_for(lambda: node.rejected == before + 5, 20)
        node.member.round -= 1
        besieged.gate.set()
        besieged.run.finish()


# -- what is not theirs to say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("owner-1", control.Described(blocks=())),
        ("node-0", control.Described(blocks=())),
        ("owner-0", control.Prepared(plan=1, round=0, digests={"node-0": "0"}, stats=Stats())),
        ("node-0", control.Prepared(plan=1, round=0, digests={"node-0": "0", "aggregator": "0"}, stats=Stats())),
        ("aggregator", control.Prepared(plan=1, round=0, digests={"node-1": "0"}, stats=Stats())),
        ("node-0", control.Trained(plan=1, round=0, batches=1, loss_sum=0.0, samples=1, stats=Stats())),
        ("aggregator", control.Evaluated(plan=1, round=0, correct=1, total=1, samples=1, loss_sum=0.0)),
        ("owner-0", control.Accuse(place="owner-1", text="it is slow")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_member_says_what_is_not_its_to_say(place: str, message: Message):
    """Not one of them moves the run on, puts words into its record, or sends another member away."""
    with siege() as besieged:
        node = besieged.node(place)
        before = besieged.run.manager.rejected
        todo = [message]

        def tick(now: float, own=node.member.tick):
            if todo:
                yield Say(todo.pop())
            yield from own(now)

        node.member.tick = tick  # type: ignore[method-assign]
        wait_for(lambda: besieged.run.manager.rejected == before + 1, 20)
        besieged.hold_out()


def test_member_that_goes_on_saying_it():
    """It is sent away by name."""
    with siege() as besieged:
        node = besieged.node("node-0")
        wrong = control.Trained(plan=1, round=0, batches=1, loss_sum=0.0, samples=1, stats=Stats())

        def tick(_now: float):
            for _ in range(MAX_REJECTED):
                yield Say(wrong)

        node.member.tick = tick  # type: ignore[method-assign]
        assert node.drain(20)
        assert f"node-0 said {MAX_REJECTED} things nobody may say" in str(node.error)


# -- numbers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_owner_hands_in_what_is_not_finite(value: float):
    """The aggregator takes nothing of it, and names the owner."""

    def spoil(owner: DataOwner) -> None:
        def close(own=owner._close_round):
            owner.engine.flat.view(np.float32)[0] = value
            yield from own()

        owner._close_round = close  # type: ignore[method-assign]

    text = ruined(spoil)
    assert "owner-1" in text
    assert "as aggregator says: the weights that owner 1 has trained are not finite (" in text


def test_owner_sends_gradients_that_are_not_finite():
    """They ruin only its own replica, which its node leaves out of the average."""

    def spoil(owner: DataOwner) -> None:
        def last_part(*arguments, own=owner.engine.last_part):
            gradient, loss = own(*arguments)
            return gradient * float("nan"), loss

        owner.engine.last_part = last_part  # type: ignore[method-assign]

    text = ruined(spoil, "train.max_batches=1")  # with more, its own loss would tell
    assert "owner-1" in text
    assert "the weights that owner 1 has trained are not finite" in text


def test_what_counts_as_finite():
    """Numbers whose squares overflow are finite; integers always are."""
    blocks = summarise(Model(name="small_nets:tiny_mlp"))
    layout = layout_of(blocks, range(len(blocks)), job().optimizer)
    flat = np.zeros(layout.nbytes, np.uint8)
    views = layout.views(flat)
    name = next(iter(views))
    views[name].flat[0] = 3e38
    assert not_finite(layout, flat) is None
    views[name].flat[0] = -np.inf
    assert not_finite(layout, flat) == name
