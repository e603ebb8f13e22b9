"""A lost role does not end a run: it comes back, the round is begun again, and the weights are those of a quiet run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from blows import disturbed
from helpers import TINY, differing, job

from zmpsl.checkpoint import load_state_dict
from zmpsl.launch.local import run
from zmpsl.observe.events import NoticeEvent, PlanEvent, read_events

ROUNDS = 30
OVERRIDES = [*TINY, "owners=2", f"train.rounds={ROUNDS}", "evaluate.every=7"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed."""
    return run(job(*OVERRIDES), tmp_path_factory.mktemp("quiet"), "quiet").folder


def test_a_stopped_role_is_replaced(quiet: Path, tmp_path: Path):
    """It answers nobody but keeps its connections: the manager's heartbeats tell."""
    result = disturbed(job(*OVERRIDES, "network.lost_after_s=0.5"), tmp_path, [("node-1", signal.SIGSTOP)])
    assert differing(load_state_dict(result.folder), load_state_dict(quiet)) == []


@pytest.mark.parametrize("place", ["node-0", "node-1", "owner-1", "aggregator", "manager"])
def test_a_killed_role_comes_back(quiet: Path, tmp_path: Path, place: str):
    result = disturbed(job(*OVERRIDES), tmp_path, [(place, signal.SIGKILL)])
    assert differing(load_state_dict(result.folder), load_state_dict(quiet)) == []
    events = list(read_events(result.folder / "metrics.jsonl"))
    assert len([event for event in events if isinstance(event, PlanEvent)]) >= 2
    if place != "manager":
        assert any(event.place == place for event in events if isinstance(event, NoticeEvent))


def test_a_hung_manager_is_replaced(quiet: Path, tmp_path: Path):
    """It is stopped, so it neither ends nor answers; the members wait for it, and the launcher must not."""
    result = disturbed(job(*OVERRIDES), tmp_path, [("manager", signal.SIGSTOP)])
    assert differing(load_state_dict(result.folder), load_state_dict(quiet)) == []
