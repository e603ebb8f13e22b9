"""Numbers and names as a person reads them: `1.2 MB`, `95.8 %`, `1 min 05 s`."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["amount", "duration", "encodable", "natural", "number", "one_line", "percent", "some"]


def amount(n_bytes: float) -> str:
    """Words a number of bytes in powers of 1000, such as `512 B` or `1.2 MB`."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        # 999.95 is where one decimal would round up to 1000.0.
        if n_bytes < 999.95:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:,.1f} TB"


def duration(seconds: float) -> str:
    """Words a duration, such as `34 ms`, `3.2 s`, `1 min 05 s` or `2 h 07 min`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def number(value: float | None) -> str:
    """Words a loss with four decimals; `-` where there is none."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def percent(share: float, decimals: int = 1) -> str:
    """Words a share of 1, such as `95.8 %`."""
    return f"{share * 100:.{decimals}f} %"


def some(names: Iterable[str], limit: int = 4) -> str:
    """Lists names, only the first and last few of a long list: `node-0, node-1, ..., node-9`."""
    known = list(names)
    if len(known) > limit:
        known = [*known[: limit - 2], "...", known[-1]]
    return ", ".join(known)


def one_line(text: str) -> str:
    """Puts text on one line without control characters, since text from other roles must not steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def encodable(text: str, encoding: str | None) -> str:
    """Writes characters that a stream cannot take as escapes: a name must not end a run that logs in ASCII."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def natural(name: str) -> list[tuple[int, str]]:
    """Gives a sort key by which node-2 comes before node-10."""
    # Every second piece is the digits that were split at.
    pieces = re.split(r"([0-9]+)", name)
    return [(int(piece), "") if index % 2 else (-1, piece) for index, piece in enumerate(pieces)]
