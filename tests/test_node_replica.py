"""A compute node's replica serves one owner after the other in the same memory."""

from __future__ import annotations

import pytest
from helpers import differing, global_state
from test_exactness import reference
from test_pool_runs import Watched, rooms, small

from zmpsl.engine.node_replica import NodeReplica


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimiser_states_lie_where_the_last_owner_s_did(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    places: dict[int, set[int]] = {}
    original = NodeReplica.update

    def update(self: NodeReplica) -> None:
        original(self)
        tensors = [each for state in self._optimizer.state.values() for each in state.values() if each.ndim]
        places.setdefault(self.owner, set()).update(each.data_ptr() for each in tensors)

    monkeypatch.setattr(NodeReplica, "update", update)
    wanted = small("dropout", 1, 3, 2, f"optimizer.name={name}", "train.rounds=2")
    ours = Watched(wanted, 1, rooms=rooms(wanted, [1], 1))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert set(places) == {0, 1, 2}
    assert places[0] == places[1] == places[2]
