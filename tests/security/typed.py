"""Commands as a person types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from zmpsl.cli import main

__all__ = ["done", "zmpsl"]


def zmpsl(*words: str, folder: Path) -> Result:
    """Runs a command in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, words)


def done(*words: str, folder: Path) -> str:
    """Runs a command that works; gives what it prints."""
    result = zmpsl(*words, folder=folder)
    assert result.exit_code == 0, result.output
    return result.output
