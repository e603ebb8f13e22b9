"""A compute node's replica serves one owner after the other in the same memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact import reference
from helpers import differing, global_state
from reference import train
from small_pools import Watched, rooms, small
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zmpsl.engine.node_replica import NodeReplica
from zmpsl.errors import CheckpointError
from zmpsl.pool import spill


class Places:
    """Notes where the optimiser states of compute nodes lie, owner by owner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, set[frozenset[int]]] = {}
        original = NodeReplica.update

        def update(replica: NodeReplica) -> None:
            original(replica)
            tensors = [each for state in replica._optimizer.state.values() for each in state.values() if each.ndim]
            self.of.setdefault(replica.owner, set()).add(frozenset(each.data_ptr() for each in tensors))

        monkeypatch.setattr(NodeReplica, "update", update)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimiser_states_lie_where_the_last_owner_s_did(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    places = Places(monkeypatch)
    wanted = small("dropout", 1, 3, 2, f"optimizer.name={name}", "train.rounds=2")
    ours = Watched(wanted, 1, rooms=rooms(wanted, [1], 1))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert set(places.of) == {0, 1, 2}
    assert len(set.union(*places.of.values())) == 1


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("fit", [1, 2])
def test_kept_states_lie_in_one_memory_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, fit: int
) -> None:
    """That one is being written to disk while the next owner trains."""
    places = Places(monkeypatch)
    wanted = small("dropout", 1, 4, 2, f"optimizer.name={name}", "train.rounds=3", "optimizer.state=keep")
    ours = Watched(wanted, 1, tmp_path, rooms=rooms(wanted, [fit], 1))
    ours.run()
    assert differing(global_state(ours.members), train(wanted).states[-1]) == []
    assert set(places.of) == {0, 1, 2, 3}
    found = set.union(*places.of.values())
    assert len(found) == fit + 1
    assert len(frozenset.union(*found)) == sum(map(len, found))  # none overlaps another


class Late(spill.Errand):
    """An errand that is run when it is waited for, and not a moment before."""

    def start(self) -> None:
        """Nothing yet."""

    def join(self, timeout: float | None = None) -> None:
        """Runs it."""
        self.run()


@pytest.mark.parametrize("fit", [1, 2])
def test_nobody_writes_to_a_state_before_it_is_on_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fit: int
) -> None:
    """The disk may be as slow as it likes: what it gets is what the owner left."""
    monkeypatch.setattr(spill, "Errand", Late)
    wanted = small("mlp", 2, 4, 1, "optimizer.name=adam", "train.rounds=3", "optimizer.state=keep")
    ours = Watched(wanted, 7, tmp_path, rooms=rooms(wanted, [fit, fit], 7))
    ours.run()
    assert differing(global_state(ours.members), train(wanted).states[-1]) == []


class Living(TorchDispatchMode):
    """Adds up what lives of gradients and of all that operations make, and notes the most that ever did."""

    def __init__(self, replica: NodeReplica) -> None:
        super().__init__()
        replica.own()
        own = [parameter for _, parameter in replica._parameters] + list(replica._own_slots().values())
        self._own = {StorageWeakRef(each.untyped_storage()).cdata for each in own}
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}
        for _, parameter in replica._parameters:
            self._see(parameter.grad)
        self.peak = self._living()

    def _see(self, tensor: torch.Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference.cdata not in self._own:
            self._found[reference.cdata] = reference, tensor.untyped_storage().nbytes()

    def _living(self) -> int:
        return sum(nbytes for reference, nbytes in self._found.values() if not reference.expired())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.ndim:
                self._see(tensor)
        self.peak = max(self.peak, self._living())
        return made


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_owner_s_first_step_takes_no_more_memory_than_the_next(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It did: a new state lay beside its place until it was copied there, 392 MiB of a node's budget for VGG-19."""
    peaks: dict[int, list[int]] = {}
    original = NodeReplica.update

    def update(replica: NodeReplica) -> None:
        with Living(replica) as living:
            original(replica)
        peaks.setdefault(replica.owner, []).append(living.peak)

    monkeypatch.setattr(NodeReplica, "update", update)
    wanted = small("mlp", 1, 2, 1, f"optimizer.name={name}", "optimizer.weight_decay=0.01", "train.rounds=1")
    Watched(wanted, 1, rooms=rooms(wanted, [1], 1)).run()
    assert set(peaks) == {0, 1}
    for first, *others in peaks.values():
        assert first <= max(others)


def refused() -> spill.Tensors:
    raise CheckpointError("damaged")


@pytest.mark.parametrize("read", [dict, refused], ids=["read", "damaged"])
def test_a_replica_rests_only_when_nothing_is_read_into_it_any_more(read: Callable[[], spill.Tensors]) -> None:
    """Else a state that was not waited for would be read over the next owner's."""
    wanted = small("mlp", 1, 2, 1, "train.rounds=1")
    ours = Watched(wanted, 1, rooms=rooms(wanted, [1], 1))
    ours.run()
    replica = ours.members["node-0"].engine.pool._spares[0]
    waited = []

    def kept() -> spill.Tensors:
        waited.append(True)
        return read()

    replica.go_on_from(kept)
    replica.rest()
    replica.rest()
    assert waited == [True]
