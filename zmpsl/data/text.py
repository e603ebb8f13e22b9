"""Character-level text: predict the next character of windows cut from UTF-8 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.arguments import whole_number
from zmpsl.data.files import folder_of, missing, read_bytes
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError

__all__ = ["read_text"]

_LIMIT_BYTES = 1 << 28


def read_text(folder: str | None, seed: int, *, file: str | None = None, context: int = 64) -> Split:
    """Reads text as samples of `context` characters and, as targets, the characters that follow each of them.

    The vocabulary is every character of the text, sorted by code point; a token is the index in it. The first 90 %
    of the characters (rounded down) are cut into non-overlapping windows of `context + 1` for training, the rest
    into windows for test; what is left over at either end is not used.

    Args:
        folder: Where the files are.
        seed: Not used, nothing here is random.
        file: One file, relative to the folder; without it, all `*.txt` of the folder, joined in the order of their
            names.
        context: Characters per sample.

    Returns:
        Inputs and targets `(N, context) int64`; the classes are the characters of the vocabulary.

    Raises:
        DataError: A file is missing, is not UTF-8, or the text is too short for one window of training and of test.
    """
    width = whole_number("text", "context", context) + 1
    paths = _paths(folder_of("text", folder), file)
    text = "".join(_decode(path) for path in paths)
    cut = len(text) * 9 // 10
    if len(text) - cut < width:
        raise DataError(
            f"text: {len(text)} characters in {', '.join(map(str, paths))} leave {len(text) - cut} for test, fewer "
            f"than one window of context + 1 = {width}: give more text or a smaller data.args context"
        )
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    vocabulary, tokens = np.unique(points, return_inverse=True)
    tokens = tokens.reshape(-1).astype(np.int64)
    return Split(_windows(tokens[:cut], width), _windows(tokens[cut:], width), len(vocabulary))


def _paths(folder: Path, file: Any) -> list[Path]:
    if file is not None and not isinstance(file, str):
        raise DataError(f"text: data.args file must be a file name, not {file!r}")
    if file is not None:
        if not (folder / file).is_file():
            raise missing("text", [file], [folder], downloadable=False)
        return [folder / file]
    paths = sorted(path for path in folder.glob("*.txt") if path.is_file())
    if not paths:
        raise missing("text", ["*.txt"], [folder], downloadable=False)
    return paths


def _decode(path: Path) -> str:
    content = read_bytes(path, _LIMIT_BYTES)
    if len(content) > _LIMIT_BYTES:
        raise DataError(f"{path}: has more than {_LIMIT_BYTES} bytes, the most that text may have")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}") from error


def _windows(tokens: NDArray[np.int64], width: int) -> Samples:
    count = len(tokens) // width
    windows = tokens[: count * width].reshape(count, width)
    return Samples(windows[:, :-1], windows[:, 1:])  # two views of the same characters
