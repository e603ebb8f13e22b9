"""YAML -> Job, with errors that name file, line, key and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zmpsl.errors import JobError
from zmpsl.job.codec import problems, spread
from zmpsl.job.mistakes import explain, fields, line_of, nearest, not_plain
from zmpsl.job.rules import check_job
from zmpsl.job.schema import Job
from zmpsl.job.text import read_yaml, write_yaml

__all__ = ["dump_job", "load_job", "parse_as", "parse_job"]

T = TypeVar("T")


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
    job = parse_as(Job, text, source, overrides)
    check_job(job, source)
    return job


def parse_as(kind: type[T], text: str, source: str, overrides: Iterable[str] = ()) -> T:
    """Reads YAML text as a struct of some kind.

    Args:
        kind: A job, or another struct that forbids unknown fields.
        text: The document.
        source: Names it in messages.
        overrides: Texts such as `train.rounds=5`.

    Raises:
        JobError: It is not of that kind; the message names file, line, key and the nearest valid key.
    """
    tree, data = read_yaml(text, source)
    data = {} if data is None else data
    if not isinstance(data, dict):
        what = "a job" if kind is Job else f"a {kind.__name__.lower()}"
        raise JobError(f"{source}:1: {what} is a mapping of keys to values, not a {type(data).__name__}")
    origins: dict[tuple[str, ...], str] = {}
    _spread_codec(kind, data)
    for override in overrides:
        origins[_override(kind, data, override)] = f"--set {override}"
        _spread_codec(kind, data)

    def where(parts: list[str]) -> str:
        """Names the option or the line that a value came from."""
        for depth in range(len(parts), 0, -1):
            if tuple(parts[:depth]) in origins:
                return origins[tuple(parts[:depth])]
        return f"{source}:{line_of(tree, parts)}"

    for parts, problem in not_plain(data, []):
        raise JobError(f"{where(parts)}: {problem}")
    try:
        job = msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        parts, problem = explain(kind, str(error), data)
        raise JobError(f"{where(parts)}: {problem}") from error
    for parts, problem in problems(job.codec) if isinstance(job, Job) else ():
        raise JobError(f"{where(parts)}: {problem}")
    return job


def dump_job(job: Job) -> str:
    """Gives the full job as YAML, every default visible; `parse_job` reads it back."""
    return write_yaml(msgspec.to_builtins(job))


def _spread_codec(kind: type, data: dict[str, Any]) -> None:
    """Writes out what a single text for the whole section `codec` stands for."""
    if kind is Job and isinstance(data.get("codec"), str):
        data["codec"] = spread(data["codec"])


# -- overrides --------------------------------------------------------------------------------------------------------


def _override(kind: type, data: dict[str, Any], override: str) -> tuple[str, ...]:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise JobError(f"--set {override}: must look like train.rounds=5")
    _check_path(kind, path, override)
    for part in path[:-1]:
        below = data.setdefault(part, {})
        if not isinstance(below, dict):
            raise JobError(f"--set {override}: {part} is {below!r} in the file, which has no keys")
        data = below
    try:
        data[path[-1]] = read_yaml(value, "value")[1]
    except JobError as error:
        raise JobError(f"--set {override}: the value is not valid YAML") from error
    return tuple(path)


def _check_path(kind: type, path: list[str], override: str) -> None:
    here: Any = kind
    for depth, part in enumerate(path):
        names = fields(here)
        if names is None:  # a free mapping, such as model.args
            return
        if part not in names:
            raise JobError(f"--set {override}: unknown key {'.'.join(path[: depth + 1])!r}{nearest(part, names)}")
        here = names[part]
