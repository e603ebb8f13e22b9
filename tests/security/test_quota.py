"""What an owner may send: who keeps to it is never held up, who does not is sent away, and nobody else is hurt."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zmq
from helpers import SMALL, TINY, job, wait_for
from hostile import forward
from one_task import OneTask
from siege import siege, undisturbed

from zmpsl.errors import JoinError, RemoteProtocolError
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.station import Station
from zmpsl.messages import Accuse
from zmpsl.roles.actions import Say
from zmpsl.roles.manager import Phase
from zmpsl.transport.quota import BURST_S, Bucket, Quota, QuotaError
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER, Header

SEED = 20241121


def test_a_bucket_fills_at_its_rate_and_no_further():
    bucket = Bucket(10.0, 30.0)
    assert [bucket.take(10, 5.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(10, 6.0)
    assert not bucket.take(1, 6.0)
    assert not bucket.take(10, 5.0)  # a time that went back gives nothing
    assert bucket.take(30, 1000.0)
    assert not bucket.take(1, 1000.0)


@pytest.mark.parametrize("seed", range(3))
def test_no_more_comes_through_than_what_is_allowed(seed: int):
    rng, quota, now, taken, began = random.Random(seed), Quota(1000, 500.0, 20.0), 0.0, [0, 0], None
    for _ in range(2000):
        now += rng.expovariate(10)
        began = now if began is None else began
        nbytes = rng.randrange(1, 200)
        try:
            quota.come(0, nbytes, now)
        except QuotaError:
            quota = Quota(1000, 500.0, 20.0)
            taken, began = [0, 0], None
            continue
        taken = [taken[0] + nbytes, taken[1] + 1]
        assert taken[0] <= max(1000, 500 * BURST_S) + 500 * (now - began)
        assert taken[1] <= 20 * BURST_S + 20 * (now - began)


def test_who_keeps_to_the_rate_is_never_refused():
    quota = Quota(1000, 500.0, 10.0)
    for second in range(1000):
        for part in range(10):
            quota.come(3, 50, second + part / 10)


def test_one_owner_goes_too_far_and_no_other_notices():
    quota = Quota(1 << 16, 100.0)
    text = r"owner 1 has sent more than 65,536 bytes at once and 100 per second after that \(guard.bytes_per_s\)"
    quota.come(1, 65_000, 0.0)
    for first in (True, False, False):
        with pytest.raises(QuotaError, match=text) as caught:
            quota.come(1, 1000, 1.0)
        assert (caught.value.owner, caught.value.first) == (1, first)
    quota.come(0, 1000, 1.0)


def test_what_is_here_is_bounded_by_the_credit():
    quota = Quota(100)
    quota.hold(0, 60)
    quota.hold(0, 40)
    quota.hold(1, 5000)  # one that is larger than all credit, alone
    with pytest.raises(
        QuotaError, match="1 bytes while 5,000 of its bytes were here, which is more than its credit of"
    ):
        quota.hold(1, 1)
    quota.used(0, 60)
    quota.hold(0, 60)
    with pytest.raises(QuotaError, match=r"owner 0 has sent 1 bytes .* \(network.credit_bytes\)"):
        quota.hold(0, 1)
    with pytest.raises(QuotaError):
        quota.come(0, 1, 0.0)


def test_an_owner_without_credit_is_accused_once():
    station = Station(OneTask())  # type: ignore[arg-type]
    station.quota = Quota(100)
    told: list[Say] = []
    for number in range(4):
        tensor = np.zeros(60, np.uint8)
        part = Task(Op.PART, 1, 2, 0, batch=number, tensor=tensor, sender=OWNER_SENDER)
        try:
            station.take(Header(part, 0, tensor.dtype, (60,), 0, 60, 0, 60, 60), part)
        except RemoteProtocolError as error:
            told += [action for action in station.lost(error) if isinstance(action, Say)]
    (say,) = told
    assert isinstance(say.message, Accuse)
    assert say.message.place == "owner-2"
    assert "has sent 60 bytes while 60 of its bytes were here" in say.message.text
    assert station.strays >= 1


def test_an_owner_that_sends_too_many_messages_is_sent_away_and_the_others_train():
    """By name and with the numbers, though each of them alone would only be dropped."""
    wanted = job(*SMALL, "guard.messages_per_s=1", "recover.quorum=0.5", "recover.wait_s=1")
    with siege(wanted) as besieged:
        manager = besieged.run.manager.manager
        node, owner = besieged.node("node-0"), besieged.node("owner-1")
        push = besieged.connect(zmq.PUSH, node.endpoint)
        for number in range(30):
            push.send_multipart(forward(owner=1, batch=number))
        assert owner.drain(30)
        assert isinstance(owner.error, JoinError)
        text = "owner-1 was sent away, as node-0 says: owner 1 has sent more than 10 messages at once and 1 per second"
        assert text in str(owner.error)
        wait_for(lambda: manager.phase is Phase.TRAINING and len(manager.plan.active) == 1, 30)


def test_limits_that_owners_keep_to_change_nothing():
    run = MemoryRun(job(*SMALL, "guard.bytes_per_s=1e9", "guard.messages_per_s=1e6", "network.credit_bytes=65536"))
    run.run()
    assert run.manager.record is not None
    assert run.manager.record.committed == undisturbed()
    assert all(place.station.strays == 0 for place in run._places.values())


def test_large_tensors_with_little_credit_are_within_it():
    """Each is larger than all credit, and goes alone."""
    run = MemoryRun(job(*TINY, "owners=2", "train.micro_batches=2", "network.credit_bytes=65536"), 7)
    run.run()
    assert all(place.station.strays == 0 for place in run._places.values())
