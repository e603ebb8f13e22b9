"""The benchmark's cgroups: what is written and read, in both versions, in a folder that imitates the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hard_limit import Cgroup


class Imitated(Cgroup):
    """The kernel fills a new folder with files, and lets it be removed with them."""

    files: dict[str, str]

    def __enter__(self) -> Cgroup:
        self._parent.mkdir(exist_ok=True)
        original = Path.mkdir

        def mkdir(path: Path, *args: object) -> None:
            original(path)
            for name, text in self.files.items():
                (path / name).write_text(text)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "mkdir", mkdir)
            return super().__enter__()

    def __exit__(self, *_exc: object) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        super().__exit__()


class New(Imitated):
    files = {
        "memory.max": "max\n", "memory.swap.max": "max\n", "cgroup.procs": "", "memory.peak": "1234\n",
        "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 0\n",
    }  # fmt: skip


class Old(Imitated):
    files = {
        "memory.limit_in_bytes": "9223372036854771712\n", "memory.swappiness": "60\n", "cgroup.procs": "",
        "memory.max_usage_in_bytes": "1234\n", "memory.failcnt": "7\n",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }  # fmt: skip


@pytest.mark.parametrize("before", ["", "cpu memory"])
def test_version_2(tmp_path: Path, before: str) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text(before)
    with New(tmp_path, "node-0", 5000) as group:
        assert (tmp_path / "cgroup.subtree_control").read_text() == (before or "+memory")
        group.take(77)
        assert (group.folder / "memory.max").read_text() == "5000"
        assert (group.folder / "memory.swap.max").read_text() == "0"
        assert (group.folder / "cgroup.procs").read_text() == "77"
        assert (group.peak, group.kills, group.reached) == (1234, 2, 7)
        (group.folder / "memory.peak").unlink()
        assert group.peak == 0
    assert not group.folder.exists()


def test_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    with Old(tmp_path, "node-0", 5000) as group:
        group.take(77)
        assert (group.folder / "memory.limit_in_bytes").read_text() == "5000"
        assert (group.folder / "memory.swappiness").read_text() == "0"
        assert (group.peak, group.kills, group.reached) == (1234, 2, 7)


def test_a_folder_that_does_not_govern_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(FileNotFoundError, match="has no memory controller"), New(tmp_path, "node-0", 5000):
        pass
