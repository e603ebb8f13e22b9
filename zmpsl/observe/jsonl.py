"""Files of one JSON value per line that are written while a run goes on and may end in half a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from zmpsl.errors import ZmpslError

__all__ = ["follow_lines", "mend", "read_lines"]

T = TypeVar("T")
_BLOCK_BYTES = 1 << 16


def read_lines(path: Path, decoder: msgspec.json.Decoder[T]) -> Iterator[T]:
    """Reads the values of a file, one per line.

    A half-written last line is left out: its writer was stopped in the middle, or is still at it.

    Args:
        path: The file.
        decoder: Turns one line into a value.

    Yields:
        The values, in the file's order.

    Raises:
        ZmpslError: The file cannot be opened, or a finished line is broken; the message names file and line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ZmpslError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _decode(path, number, line, decoder)
            elif _is_whole(line, decoder):
                yield decoder.decode(line)


def follow_lines(
    path: Path, decoder: msgspec.json.Decoder[T], stop: Callable[[], bool], pause: Callable[[], None]
) -> Iterator[T]:
    """Reads the values of a file as it grows; the file need not be there yet.

    Args:
        path: The file.
        decoder: Turns one line into a value.
        stop: Asked before each look at the file; once it says True, what the file holds by then is still read.
        pause: Called between two looks.

    Yields:
        The values of finished lines, in the file's order.

    Raises:
        ZmpslError: A finished line is broken; the message names file and line.
    """
    offset, number = 0, 0
    while True:
        last_look = stop()
        if path.exists():
            # Opened anew and read from the last finished line on, so that `mend` by a restarted writer does no harm.
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset, number = offset + len(line), number + 1
                    yield _decode(path, number, line, decoder)
        if last_look:
            return
        pause()


def mend(path: Path, decoder: msgspec.json.Decoder[T]) -> None:
    """Cuts off a half-written last line, so that more lines can be appended; a whole one gets its newline.

    Args:
        path: The file; nothing happens where there is none.
        decoder: Tells whether the last line is whole.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - _BLOCK_BYTES)
            file.seek(start)
            tail = file.read(end - start)
        line = tail[tail.rfind(b"\n") + 1 :]
        if line and _is_whole(line, decoder):
            file.seek(end)
            file.write(b"\n")
        elif line:
            file.truncate(end - len(line))


def _is_whole(line: bytes, decoder: msgspec.json.Decoder[T]) -> bool:
    """Tells whether a line without a newline is complete: no proper prefix of a JSON object or array is valid."""
    try:
        decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def _decode(path: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ZmpslError(
            f"{path}:{number}: this line is damaged ({error}); remove it to use the rest of the file"
        ) from error
