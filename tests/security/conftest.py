"""Fixtures for tests of who may do what."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bare_port import OURS, Port
from keyed import MEMBERS, Site

from zmpsl.job import Job
from zmpsl.keys import LOOPBACK


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Opens a site: `site(job, names)`; with `keeps`, its roles share a folder of runs."""
    sites: list[Site] = []

    def make(wanted: Job | None, names: list[str] | None = None, *, keeps: bool = False) -> Site:
        sites.append(Site(tmp_path / "keys", tmp_path / "runs" if keeps else None))
        sites[-1].open(wanted, list(MEMBERS) if names is None else names)
        return sites[-1]

    yield make
    for each in sites:
        each.close()


@pytest.fixture(params=[LOOPBACK, OURS], ids=["plain", "keys"])
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    """A port without and with keys."""
    with contextlib.ExitStack() as stack:
        opened = Port(request.param, stack)
        try:
            yield opened
        finally:
            opened.close()
