"""YAML -> Job, with errors that name file, line, key and the nearest valid key."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from zmpsl.errors import JobError
from zmpsl.job.codec import problems, spread
from zmpsl.job.emulation import OwnerClass
from zmpsl.job.schema import Job
from zmpsl.job.text import read_yaml, write_yaml

__all__ = ["check_job", "dump_job", "load_job", "parse_as", "parse_job"]

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
        return f"{source}:{_line(tree, parts)}"

    for parts, problem in _not_plain(data, []):
        raise JobError(f"{where(parts)}: {problem}")
    try:
        job = msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        parts, problem = _explain(kind, str(error), data)
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
        names = _fields(here)
        if names is None:  # a free mapping, such as model.args
            return
        if part not in names:
            raise JobError(f"--set {override}: unknown key {'.'.join(path[: depth + 1])!r}{_nearest(part, names)}")
        here = names[part]


def _fields(kind: Any) -> dict[str, Any] | None:
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
    return (_fields(kind) or {}).get(part, int)


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


def _nearest(key: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys are {', '.join(names)}" if names else "; it has no keys below it"


# -- what is wrong, and where -----------------------------------------------------------------------------------------


def _not_plain(value: Any, parts: list[str]) -> Iterator[tuple[list[str], str]]:
    """Finds what JSON and msgpack, which carry the job to records and hosts, would not give back the same."""
    name = ".".join(parts) or "the job"
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                yield [*parts, str(key)], f"{name}: key {key!r} must be a text"
                return
            yield from _not_plain(key, [*parts, key])
            yield from _not_plain(below, [*parts, key])
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _not_plain(below, [*parts, str(index)])
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


def _explain(kind: type, message: str, data: dict[str, Any]) -> tuple[list[str], str]:
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
        return parts, f"unknown key {'.'.join(parts)!r}{_nearest(unknown['key'], _fields(here) or {})}"
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


# -- what no single field can tell ------------------------------------------------------------------------------------


def _check_secure_average(job: Job, source: str) -> None:
    if not job.privacy.secure_average:
        return
    if job.owners < 3:
        raise JobError(
            f"{source}: privacy.secure_average needs owners: 3 or more, not {job.owners}; of two, each could take its"
            " own part off the average and have the other's"
        )
    if job.optimizer.name == "adam" and job.optimizer.state == "average":
        raise JobError(
            f"{source}: privacy.secure_average rounds what is averaged to steps of 3.7e-9, too coarse for Adam's"
            " squared gradients; use optimizer.state: reset"
        )
    if job.guard.update_norm is not None:
        raise JobError(
            f"{source}: privacy.secure_average hides from the aggregator what guard.update_norm would have it measure;"
            " give one of the two"
        )
    if job.recover.round_s is not None:
        raise JobError(
            f"{source}: with privacy.secure_average a round that owners may have handed in cannot go on without one of"
            " them, so recover.round_s must be null"
        )
    if job.emulate.thin:
        raise JobError(f"{source}: privacy.secure_average needs owners and nodes that compute, not compute: none")


def check_job(job: Job, source: str) -> None:
    """Checks what no single field can tell; `source` names the job in messages.

    Raises:
        JobError: Two fields contradict one another.
    """
    if job.compute_nodes is not None and job.multihop_level not in (None, job.compute_nodes + 2):
        raise JobError(
            f"{source}: compute_nodes {job.compute_nodes} and multihop_level {job.multihop_level} disagree; "
            f"the level is the number of nodes + 2, give one of the two"
        )
    _check_cuts(job, source)
    sizes = job.data.partition.sizes
    if (job.data.partition.kind == "sizes") != (sizes is not None) or (sizes is not None and len(sizes) != job.owners):
        raise JobError(
            f"{source}: data.partition.sizes must list one number for each of the {job.owners} owners, "
            f"with kind: sizes and only then"
        )
    for _, problem in problems(job.codec):
        raise JobError(f"{source}: {problem}")
    if job.privacy.noise and job.privacy.clip_norm is None:
        raise JobError(
            f"{source}: privacy.noise {job.privacy.noise:g} is a multiple of privacy.clip_norm, which is not given; "
            f"without a bound no noise hides anything, give one such as 1.0"
        )
    _check_secure_average(job, source)
    known = {
        "owner",
        "aggregator",
        *(f"owner-{i}" for i in range(job.owners)),
        *(f"node-{i}" for i in range(job.nodes)),
    }
    _check_names(source, "emulate.slow_down", job.emulate.slow_down, known - {"aggregator"})
    _check_classes(job, source)
    nodes = {name for name in known if name.startswith("node")}
    _check_names(source, "planning.node_memory", job.planning.node_memory, nodes)
    _check_names(source, "planning.max_blocks or optional_nodes", job.planning.named_nodes, nodes)
    if job.planning.optional_nodes and job.cuts != "auto":
        raise JobError(
            f"{source}: planning.optional_nodes: which nodes go without blocks is solved, so it goes with cuts: auto;"
            f" here cuts are {job.cuts}"
        )
    _check_links(source, job.codec.links, known)


def _check_links(source: str, links: Iterable[str], known: set[str]) -> None:
    for link in links:
        ends = link.split(">")
        if len(ends) != 2 or not set(ends) <= known:
            raise JobError(
                f"{source}: codec.links: {link!r} is no link; write sender>receiver, "
                f"such as owner>node-0 or node-0>node-1"
            )


def _check_names(source: str, key: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise JobError(f"{source}: {key}: {name!r} is not there; the first compute node is node-0, for instance")


def _check_classes(job: Job, source: str) -> None:
    emulate = job.emulate
    for key, classes, there in (("owners", emulate.owners, job.owners), ("nodes", emulate.nodes, job.nodes)):
        count = sum(kind.count for kind in classes)
        if classes and count != there:
            raise JobError(f"{source}: emulate.{key}: the classes have {count} devices, the job {there}")
        for number, kind in enumerate(classes):
            measured = isinstance(kind, OwnerClass) and kind.first is not None and kind.last is not None
            if kind.compute != "real" and not measured and job.planning.profile is None:
                raise JobError(
                    f"{source}: emulate.{key}.{number}: compute: {kind.compute} needs seconds; name the profile of a"
                    " device" + (", or give first and last" if key == "owners" else "")
                )
    if emulate.thin and job.evaluate.every:
        raise JobError(f"{source}: emulate: with compute: none there is nothing to evaluate; set evaluate.every: 0")


def _check_cuts(job: Job, source: str) -> None:
    if isinstance(job.cuts, str):
        return
    cuts = list(job.cuts)
    if job.first_cut is not None or job.last_cut is not None:
        raise JobError(f"{source}: first_cut and last_cut go with cuts: auto or even; here cuts are {cuts}")
    if any(low >= high for low, high in pairwise(job.cuts)):
        raise JobError(f"{source}: cuts {cuts} must rise strictly")
    if len(cuts) != job.parts - 1:
        raise JobError(
            f"{source}: {len(cuts)} cuts make {len(cuts) + 1} parts, "
            f"but {job.nodes} compute nodes need {job.parts - 1} cuts"
        )
