"""YAML -> Job, with errors that name file, line, key and the nearest valid key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from zmpsl.errors import JobError
from zmpsl.job.schema import Job

__all__ = ["dump_job", "load_job", "parse_job"]


def load_job(path: Path | None, overrides: Iterable[str] = ()) -> Job:
    """Reads a job file.

    Args:
        path: The file; None for the built-in job, which is all defaults.
        overrides: Texts such as `train.rounds=5`; the key must exist, the value is YAML.

    Raises:
        JobError: The file cannot be read or says something a job cannot be.
    """
    if path is None:
        return parse_job("", "built-in job", overrides)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {error}") from error
    return parse_job(text, str(path), overrides)


def parse_job(text: str, source: str, overrides: Iterable[str] = ()) -> Job:
    """Reads a job from YAML text; `source` names it in messages. Raises JobError like `load_job`."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark is not None else source
        raise JobError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise JobError(f"{source}:1: a job is a mapping of keys to values, not a {type(data).__name__}")
    origins: dict[str, str] = {}
    for override in overrides:
        _override(data, override, origins)
    try:
        job = msgspec.convert(data, Job, strict=True)
    except msgspec.ValidationError as error:
        raise JobError(_explain(str(error), data, tree, source, origins)) from error
    _check(job, source)
    return job


def dump_job(job: Job) -> str:
    """Gives the full job as YAML, every default visible; `parse_job` reads it back."""
    text: str = yaml.safe_dump(msgspec.to_builtins(job), sort_keys=False, allow_unicode=True, width=110)
    return text


def _override(data: dict[str, Any], override: str, origins: dict[str, str]) -> None:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise JobError(f"--set {override}: must look like train.rounds=5")
    _check_path(path, override)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise JobError(f"--set {override}: the value is not valid YAML") from error
    for part in path[:-1]:
        below = data.setdefault(part, {})
        if not isinstance(below, dict):
            raise JobError(f"--set {override}: {part} is {below!r} in the file, which has no keys")
        data = below
    data[path[-1]] = parsed
    origins["$." + ".".join(path)] = f"--set {override}"


def _check_path(path: list[str], override: str) -> None:
    here: Any = Job
    for depth, part in enumerate(path):
        names = _fields(here)
        if names is None:  # a free mapping, such as model.args
            return
        if part not in names:
            raise JobError(f"--set {override}: unknown key {'.'.join(path[: depth + 1])!r}{_nearest(part, names)}")
        here = names[part]


def _fields(kind: Any) -> dict[str, Any] | None:
    """Gives the fields of a section's type, None where the type is no section."""
    info = msgspec.inspect.type_info(kind)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if not isinstance(info, msgspec.inspect.StructType):
        return None if isinstance(info, msgspec.inspect.DictType) else {}
    hints = {field.name: field.type for field in info.fields}
    return {name: _python_type(hint) for name, hint in hints.items()}


def _python_type(info: msgspec.inspect.Type) -> Any:
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if isinstance(info, msgspec.inspect.StructType):
        return info.cls
    return dict if isinstance(info, msgspec.inspect.DictType) else int


def _nearest(key: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return (
        f"; did you mean {close[0]!r}?"
        if close
        else f"; known keys are {', '.join(names)}"
        if names
        else "; it has no keys below it"
    )


_PATH = re.compile(r" - at `(?P<path>\$[^`]*)`$")
_UNKNOWN = re.compile(r"contains unknown field `(?P<key>[^`]*)`")


def _explain(message: str, data: dict[str, Any], tree: yaml.Node | None, source: str, origins: dict[str, str]) -> str:
    """Turns msgspec's message into one that names file, line and key."""
    found = _PATH.search(message)
    path = found["path"] if found else "$"
    text = _PATH.sub("", message)
    unknown = _UNKNOWN.search(message)
    parts = [part for part in re.split(r"\.|\[(\d+)\]", path.removeprefix("$")) if part]
    if unknown:
        here: Any = Job
        for part in parts:
            here = (_fields(here) or {}).get(part, int)
        parts.append(unknown["key"])
        text = f"unknown key {'.'.join(parts)!r}{_nearest(unknown['key'], _fields(here) or {})}"
    else:
        text = f"{'.'.join(parts) or 'the job'}: {text[0].lower()}{text[1:]}{_got(data, parts)}"
    origin = next(
        (origins[key] for key in sorted(origins, reverse=True) if ("$." + ".".join(parts)).startswith(key)), None
    )
    return f"{origin or f'{source}:{_line(tree, parts)}'}: {text}"


def _got(data: Any, parts: list[str]) -> str:
    for part in parts:
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    return f" (it is {data!r})" if not isinstance(data, dict | list) else ""


def _line(node: yaml.Node | None, parts: list[str]) -> int:
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


def _check(job: Job, source: str) -> None:
    """What no single field can tell."""
    if job.compute_nodes is not None and job.multihop_level is not None and job.multihop_level != job.compute_nodes + 2:
        raise JobError(
            f"{source}: compute_nodes {job.compute_nodes} and multihop_level {job.multihop_level} disagree; the level"
            " is the number of nodes + 2, give one of the two"
        )
    if job.cuts != "even":
        if job.first_cut is not None or job.last_cut is not None:
            raise JobError(f"{source}: first_cut and last_cut are for cuts: even; here cuts are {list(job.cuts)}")
        if any(low >= high for low, high in zip(job.cuts, job.cuts[1:], strict=False)):
            raise JobError(f"{source}: cuts {list(job.cuts)} must rise strictly")
        if len(job.cuts) != job.parts - 1:
            raise JobError(
                f"{source}: {len(job.cuts)} cuts make {len(job.cuts) + 1} parts, but {job.nodes} compute nodes need"
                f" {job.parts - 1} cuts"
            )
    sizes = job.data.partition.sizes
    if (job.data.partition.kind == "sizes") != (sizes is not None) or (sizes is not None and len(sizes) != job.owners):
        raise JobError(
            f"{source}: data.partition.sizes must list one number for each of the {job.owners} owners, with kind: sizes"
            " and only then"
        )
    known = {
        "owner",
        "aggregator",
        *(f"owner-{i}" for i in range(job.owners)),
        *(f"node-{i}" for i in range(job.nodes)),
    }
    for link in job.codec.links:
        ends = link.split(">")
        if len(ends) != 2 or not set(ends) <= known:
            raise JobError(
                f"{source}: codec.links: {link!r} is no link; write sender>receiver, such as owner>node-0 or"
                " node-0>node-1"
            )
