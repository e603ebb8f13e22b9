"""What is wrong in a job's YAML and where: the path of the key, its line, and what may have been meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import yaml

__all__ = ["explain", "fields", "line_of", "nearest", "not_plain"]


def fields(kind: Any) -> dict[str, Any] | None:
    """Gives the fields of a section's type with theirs, None for a free mapping, nothing for a plain value."""
    info = _bare(msgspec.inspect.type_info(kind))
    if isinstance(info, msgspec.inspect.StructType):
        return {field.name: _python_type(_bare(field.type)) for field in info.fields}
    return None if isinstance(info, msgspec.inspect.DictType) else {}


def _below(kind: Any, part: str) -> Any:
    """Gives the type of a key of a section, or of an entry of a list of sections."""
    info = _bare(msgspec.inspect.type_info(kind))
    if part.isdigit() and isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        return _python_type(_bare(info.item_type))
    return (fields(kind) or {}).get(part, int)


def _bare(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return info


def _python_type(info: msgspec.inspect.Type) -> Any:
    if isinstance(info, msgspec.inspect.StructType):
        return info.cls
    if isinstance(info, msgspec.inspect.ListType | msgspec.inspect.VarTupleType):
        return list[_python_type(_bare(info.item_type))]  # type: ignore[misc]
    return dict if isinstance(info, msgspec.inspect.DictType) else int


def nearest(key: str, names: Iterable[str]) -> str:
    """Gives the end of a message about an unknown key: what may have been meant, or all there is."""
    names = list(names)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys are {', '.join(names)}" if names else "; it has no keys below it"


def not_plain(value: Any, parts: list[str]) -> Iterator[tuple[list[str], str]]:
    """Finds what JSON and msgpack, which carry the job to records and hosts, would not give back the same."""
    name = ".".join(parts) or "the job"
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                yield [*parts, str(key)], f"{name}: key {key!r} must be a text"
                return
            yield from not_plain(key, [*parts, key])
            yield from not_plain(below, [*parts, key])
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from not_plain(below, [*parts, str(index)])
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            yield parts, f"{name}: the text {value!r} holds half a character"
    elif isinstance(value, float) and not math.isfinite(value):
        yield parts, f"{name}: must be a finite number (it is {value})"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield parts, f"{name}: {value} has more than 64 bits"
    elif not isinstance(value, int | float | None):
        yield parts, f"{name}: a {type(value).__name__} ({value!r}) is neither number, text, list nor mapping"


_PATH = re.compile(r" - at `(?P<path>\$[^`]*)`$")
_UNKNOWN = re.compile(r"contains unknown field `(?P<key>[^`]*)`")


def explain(kind: type, message: str, data: dict[str, Any]) -> tuple[list[str], str]:
    """Turns msgspec's message into the path of the key and a message that names it."""
    found = _PATH.search(message)
    path = (found["path"] if found else "$").replace("[...]", ".*")
    text = _PATH.sub("", message)
    unknown = _UNKNOWN.search(message)
    parts = [part for part in re.split(r"\.|\[(\d+)\]", path.removeprefix("$")) if part]
    if "*" in parts:
        parts = _name_entry(kind, parts, data)
    if unknown:
        here: Any = kind
        for part in parts:
            here = _below(here, part)
        parts.append(unknown["key"])
        return parts, f"unknown key {'.'.join(parts)!r}{nearest(unknown['key'], fields(here) or {})}"
    return parts, f"{'.'.join(parts) or 'the job'}: {text[0].lower()}{text[1:]}{_got(data, parts)}"


def _name_entry(kind: type, parts: list[str], data: Any) -> list[str]:
    """Finds which entry of a free mapping is meant: the one that alone gives an error too."""
    above = parts[: parts.index("*")]
    for part in above:
        data = data[part]
    for key, value in data.items():
        alone: Any = {key: value}
        for part in reversed(above):
            alone = {part: alone}
        try:
            msgspec.convert(alone, kind, strict=True)
        except msgspec.ValidationError:
            return [*above, key]
    return above


def _got(data: Any, parts: list[str]) -> str:
    for part in parts:
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    return f" (it is {data!r})" if not isinstance(data, dict | list) else ""


def line_of(node: yaml.Node | None, parts: list[str]) -> int:
    """Gives the line of a key, counted from 1; that of the nearest key above it where it is not there."""
    line = node.start_mark.line if node is not None else 0
    for part in parts:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line
    return line + 1
