"""Reads a batch of CIFAR's "python version" as data: nothing named in the file is ever imported or called.

These files were written with Python's serialisation protocol 2, whose loader would run any function a file names.
Here the file is split into opcodes and arguments with the tables of `pickletools`, which know how to read them but
not how to act on them, and a stack machine of thirty opcodes builds plain values:

    opcode                              on the stack
    numbers, strings, None, booleans    themselves; Python 2 strings and bytes are Latin-1 text
    tuples, lists, dicts                themselves
    GLOBAL                              a `_Name`, if it is one of the six in `_NAMES`, else an error
    REDUCE                              what the table in `_reduce` says for that name: an empty `_Array`,
                                        a type code, or the text that `_codecs.encode` would make bytes of
    BUILD                               the state of an array: shape, type, order, bytes
    anything else                       an error

Source: CPython Lib/pickletools.py; numpy `ndarray.__reduce__` and `__setstate__`.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.files import read_bytes
from zmpsl.errors import DataError

__all__ = ["read_python_batch"]

_LIMIT_BYTES = 1 << 28  # the largest official file holds 155 MB
_PIXELS = 3 * 32 * 32
_NAMES = MappingProxyType(
    {
        "numpy.core.multiarray _reconstruct": "array",
        "numpy._core.multiarray _reconstruct": "array",
        "numpy ndarray": "ndarray",
        "numpy dtype": "dtype",
        "_codecs encode": "encode",
        "__builtin__ bytes": "bytes",  # how Python 3 writes b""
    }
)
_CONSTANTS: Mapping[str, Any] = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False})
_VALUES = frozenset("BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE NONE NEWTRUE NEWFALSE".split())
_ACTIONS = frozenset(
    "PROTO STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS "
    "GLOBAL REDUCE BUILD BINPUT LONG_BINPUT BINGET LONG_BINGET".split()
)
_OPCODES = MappingProxyType(
    {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes if opcode.name in _VALUES | _ACTIONS}
)


class _Mark:
    """Where the items of a tuple, list or dict begin on the stack."""


@dataclass(frozen=True)
class _Name:
    """A name the file mentions and this reader understands."""

    meaning: str


@dataclass(frozen=True)
class _Type:
    """A NumPy type, by its code such as `u1`."""

    code: str


@dataclass
class _Array:
    """A NumPy array; empty until its state has been read."""

    state: tuple[Any, ...] = ()


class _RefusedError(Exception):
    """The file holds something this reader does not understand; becomes a DataError that names the file."""


def read_python_batch(path: Path, label_key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads the images and labels of one batch file.

    Args:
        path: A file such as `data_batch_1`, `test_batch`, `train` or `test`.
        label_key: Under which key the labels stand: `labels` or `fine_labels`.

    Returns:
        Images `(N, 3072) uint8` and labels `(N,) int64`; label values are not checked.

    Raises:
        DataError: The file is damaged, or holds anything but the plain values of a CIFAR batch.
    """
    content = bytes(read_bytes(path, _LIMIT_BYTES))
    try:
        if len(content) > _LIMIT_BYTES:
            raise _RefusedError(f"more than {_LIMIT_BYTES} bytes")
        batch = _walk(content)
        if not isinstance(batch, dict):
            raise _RefusedError(f"a {type(batch).__name__} where a dict was expected")
        images = _images(batch.get("data"))
        labels = _labels(batch.get(label_key), label_key)
    except _RefusedError as error:
        raise DataError(f"{path}: not a batch of CIFAR's python version: {error}") from error
    if len(images) != len(labels):
        raise DataError(f"{path}: holds {len(images)} images but {len(labels)} labels")
    return images, labels


def _opcodes(content: bytes) -> Iterator[tuple[str, Any, int]]:
    """Gives (opcode, argument, position) one by one; refuses opcodes that have no place in such a file.

    `pickletools.genops` would do the same, but it reads the argument of any opcode first, and the readers of the
    text opcodes and of GLOBAL interpret backslashes, with warnings. So those are never used.
    """
    stream = io.BytesIO(content)
    while True:
        position = stream.tell()
        code = stream.read(1)
        opcode = _OPCODES.get(code)
        if opcode is None:
            known = next((other.name for other in pickletools.opcodes if other.code == code.decode("latin-1")), None)
            what = f"opcode {known or hex(code[0])}, which has no place in such a file," if code else "no end"
            raise _RefusedError(f"{what} at byte {position}")
        argument = None
        try:
            if opcode.name == "GLOBAL":
                argument = b" ".join(stream.readline().removesuffix(b"\n") for _ in range(2)).decode("latin-1")
            elif opcode.arg is not None:
                argument = opcode.arg.reader(stream)
        except ValueError as error:
            raise _RefusedError(f"argument of {opcode.name} cannot be read at byte {position} ({error})") from error
        yield opcode.name, argument, position


def _walk(content: bytes) -> Any:
    """Runs the stack machine over the whole file and gives the one value that is left."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument, position in _opcodes(content):
        try:
            if name == "STOP":
                (value,) = stack
                return value
            if name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            else:
                _step(stack, name, argument)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise _RefusedError(f"opcode {name} at byte {position} does not fit what comes before it") from error
        except _RefusedError as error:
            raise _RefusedError(f"{error} at byte {position}") from error
    raise _RefusedError("no end")


def _step(stack: list[Any], name: str, argument: Any) -> None:
    """Carries out one opcode, the memo's and STOP excepted."""
    if name == "PROTO":
        if argument != 2:
            raise _RefusedError(f"protocol {argument}, expected 2")
    elif name in _VALUES:
        stack.append(_CONSTANTS[name] if name in _CONSTANTS else argument)
    elif name == "MARK":
        stack.append(_Mark())
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(_pop(stack, int(name[-1]))))
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        items = _pop(stack, 1) if name == "APPEND" else _pop_to_mark(stack)
        _top(stack, list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop(stack, 2) if name == "SETITEM" else _pop_to_mark(stack)
        _top(stack, dict).update(_pairs(items))
    elif name == "GLOBAL":
        if argument not in _NAMES:
            raise _RefusedError(f"the name {argument[:80]!r}, which has no place in such a file,")
        stack.append(_Name(_NAMES[argument]))
    elif name == "BUILD":
        (state,) = _pop(stack, 1)
        _build(stack[-1], state)
    else:  # REDUCE, the last one that `_opcodes` lets through
        function, arguments = _pop(stack, 2)
        stack.append(_reduce(function, arguments))


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count or any(isinstance(item, _Mark) for item in stack[-count:]):
        raise IndexError(f"{count} values wanted")
    items = stack[-count:]
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    start = len(stack) - 1
    while not isinstance(stack[start], _Mark):
        start -= 1
        if start < 0:
            raise IndexError("no mark")
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise TypeError(f"a {kind.__name__} wanted")
    return stack[-1]


def _pairs(items: list[Any]) -> dict[str, Any]:
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
        raise TypeError("text keys wanted, one per value")
    return dict(zip(keys, values, strict=True))


def _reduce(function: Any, arguments: Any) -> Any:
    """Gives what a call in the file stands for; only these five calls have a meaning, and none is made."""
    match function, arguments:
        case _Name("array"), (_Name("ndarray"), (0,), "b"):
            return _Array()
        case _Name("dtype"), (str(code), 0 | 1, 0 | 1):  # False and True match, too
            return _Type(code)
        case _Name("encode"), (str(text), "latin1"):
            return text
        case _Name("bytes"), ():
            return ""
    raise TypeError("an unknown call")


def _build(target: Any, state: Any) -> None:
    """Gives an array its state; that of a type (byte order and layout) says nothing new about bytes."""
    if isinstance(target, _Array) and isinstance(state, tuple) and not target.state:
        target.state = state
    elif not (isinstance(target, _Type) and isinstance(state, tuple)):
        raise TypeError("a state for an array or a type wanted")


def _images(array: Any) -> NDArray[np.uint8]:
    match array:
        case _Array((1, (int(count), int(width)), _Type("u1"), 0 | 1 as by_columns, str(text))):
            if width != _PIXELS or len(text) != count * width:
                raise _RefusedError(f"images of shape ({count}, {width}) in {len(text)} bytes, expected (N, {_PIXELS})")
        case _:
            raise _RefusedError(f"no uint8 array (N, {_PIXELS}) under the key 'data'")
    try:
        pixels = np.frombuffer(text.encode("latin-1"), np.uint8)
    except UnicodeEncodeError as error:
        raise _RefusedError(f"pixels that are not bytes ({error.reason})") from error
    return pixels.reshape((count, width), order="F" if by_columns else "C")


def _labels(labels: Any, key: str) -> NDArray[np.int64]:
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 1 << 31 for label in labels):
        raise _RefusedError(f"no list of integers under the key {key!r}")
    return np.array(labels, dtype=np.int64)
