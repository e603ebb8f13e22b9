"""What every bench prints: the machine, the versions, the command, and Markdown tables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path


def machine(command: str) -> str:
    """Gives one line about where and with what a bench ran."""
    model = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")),
            model,
        )
    names = ("pyzmq", "torch", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}; Python"
        f" {platform.python_version()}, {versions}; `{command.strip()}`\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Gives a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"
