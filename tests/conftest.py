"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-faults` runs the long fault tests too."""
    parser.addoption("--all-faults", action="store_true", help="run every fault of tests/faults in full numbers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves them out otherwise."""
    if config.getoption("--all-faults") or os.environ.get("ZMPSL_FAULTS") == "all":
        return
    skipped = pytest.mark.skip(reason="takes long; run with --all-faults")
    for item in items:
        if item.get_closest_marker("all_faults"):
            item.add_marker(skipped)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("ZMPSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are neither at $ZMPSL_DATA nor at {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """A shell starts what shall run in the background deaf to Ctrl-C, and the commands under test would be so too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Bitwise comparisons need one thread on both sides."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Profiles that roles keep do not lie in the home of whoever runs the tests, and are found by later tests."""
    os.environ["ZMPSL_CACHE"] = str(tmp_path_factory.mktemp("cache"))
