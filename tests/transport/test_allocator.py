"""What is asked of torch's allocator depends on what the kernel has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zmpsl.transport import allocator


@pytest.mark.parametrize("has_them", [True, False])
def test_huge_pages_are_asked_for_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_them: bool
) -> None:
    """Under a kernel without them every role warned of torch's refused madvise before it had done anything."""
    monkeypatch.setattr(allocator, "HUGE_PAGES", tmp_path if has_them else tmp_path / "missing")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    allocator.use_huge_pages()
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == ("1" if has_them else None)


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(allocator, "HUGE_PAGES", tmp_path)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    allocator.use_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
