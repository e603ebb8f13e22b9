"""Owners whose gradients or updates are larger than the job allows are sent away by name; within it nothing changes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from helpers import SMALL, TINY, job
from ruined import ruined

from zmpsl.engine.build import summarise
from zmpsl.errors import PeerLostError
from zmpsl.job.schema import Model
from zmpsl.launch.memory import MemoryRun
from zmpsl.norms import change_norm, tensor_norm
from zmpsl.roles.owner import DataOwner
from zmpsl.state import STEP, layout_of


def test_an_owner_that_sends_gradients_beyond_the_limit_is_sent_away() -> None:
    def spoil(owner: DataOwner) -> None:
        def last_part(*arguments, own=owner.engine.last_part):
            gradient, loss = own(*arguments)
            return gradient * 1e6, loss

        owner.engine.last_part = last_part  # type: ignore[method-assign]

    text = ruined(spoil, "guard.gradient_norm=100")
    assert re.search(r"owner-1 .*node-1 says: the gradient of owner 1 has norm [0-9.e+]+, the limit is 100", text)
    assert "guard.gradient_norm" in text


def test_an_owner_that_moves_its_own_parts_beyond_the_limit_is_sent_away() -> None:
    def spoil(owner: DataOwner) -> None:
        def close(own=owner._close_round):
            if owner.round == 1:
                owner.engine.flat.view(np.float32)[0] += 1e4
            yield from own()

        owner._close_round = close  # type: ignore[method-assign]

    text = ruined(spoil, "guard.update_norm=500", "train.rounds=3")
    assert re.search(
        r"aggregator says: the update of the first and last part by owner 1 has norm 1.*limit is 500", text
    )


def test_a_node_looks_at_what_has_become_of_its_part() -> None:
    run = MemoryRun(job(*SMALL, "guard.update_norm=1e-9", "recover.wait_s=0"))
    with pytest.raises(PeerLostError, match=r"node-[01] says: the update of part [12] by owner [01] has norm .* 1e-09"):
        run.run()


def test_limits_that_nobody_meets_change_no_weight() -> None:
    states = []
    for more in ([], ["guard.update_norm=1000", "guard.gradient_norm=1000"]):
        run = MemoryRun(job(*TINY, "owners=2", *more))
        run.run()
        states.append(run.manager.record.committed)  # type: ignore[union-attr]
    assert states[0] == states[1]


def test_norms() -> None:
    blocks = summarise(Model(name="small_nets:tiny_mlp"))
    layout = layout_of(blocks, range(len(blocks)), job().optimizer)
    base, flat = np.zeros(layout.nbytes, np.uint8), np.zeros(layout.nbytes, np.uint8)
    trained = [segment.name for segment in layout.segments if segment.trained]
    for name, value in zip(trained[:2], (3.0, 4.0), strict=True):
        layout.views(flat)[name].flat[-1] = value
    assert change_norm(layout, flat, base) == change_norm(layout, base, flat) == 5.0
    assert tensor_norm(np.full(STEP + 1, 1e30, np.float32)) == pytest.approx(1e30 * math.sqrt(STEP + 1), rel=1e-6)
    assert tensor_norm(np.zeros((0, 3), np.float32)) == 0.0
