"""The job reference, docs/job.md, written from the schema: `python -m zmpsl.job.reference > docs/job.md`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import yaml
from msgspec import inspect

from zmpsl.job.schema import Job

__all__ = ["EXAMPLE", "cell", "kind_in_words", "reference"]

EXAMPLE = """\
name: digits-skewed
owners: 4
compute_nodes: 2
model:
  name: digits_cnn
  args: {dropout: 0.1}
data:
  name: digits
  partition: {kind: dirichlet, alpha: 0.5, min_samples: 32}
train:
  rounds: 10
  local_epochs: 1
  batch_size: 32
  micro_batches: 2
optimizer:
  name: sgd
  lr: {initial: 0.05, schedule: cosine}
codec:
  links: {"owner>node-0": huff}
"""

HEAD = """\
# Job reference

<!-- Written by `python -m zmpsl.job.reference > docs/job.md`; change zmpsl/job/schema.py, not this file. -->

A job is a YAML file. Every key has a default, so a job holds only what differs from it; an empty file is the built-in
job. An unknown key is an error that names file, line and the nearest key. New here? Read the [tutorial](tutorial.md)
first; the words are explained in [concepts](concepts.md).

```sh
zmpsl run --print-config                    # the built-in job with all defaults, and nothing else
zmpsl run --print-config job.yaml           # the same for your job
zmpsl run job.yaml --set train.rounds=5     # one key changed for this run; may be given several times
```

An example:

```yaml
"""

TAIL = """\
## Rules across keys

- Give `compute_nodes` or `multihop_level`. Where both are given, the level is the number of compute nodes plus 2.
- `cuts` as a list has one number less than there are parts. They rise strictly and lie below the model's number of
  blocks. `first_cut` and `last_cut` go with `cuts: auto` and `cuts: even` only.
- `cuts: auto` and `even` need at least one block per compute node between `first_cut` and `last_cut`.
- `--resume` keeps the cuts that the run began with, whatever would be solved now.
- `data.partition.sizes` goes with `kind: sizes` and only with it, and has one number per owner.
- Every owner needs at least `train.batch_size` training samples.
- `dirichlet` and `shards` need one label per sample, so they are not for text. `crop-flip` is for images only.
- A key of `codec.links` is `sender>receiver`. Names are `owner-0`, `node-0`, `aggregator`, and so on; `owner` means
  every owner, and an owner's own name goes before it. The codec counts for all tensors on that link.
- `codec: lossless` (or any other text of the table below) sets activations and gradients to it. `lossless`, `accurate`
  and `slow-link` also set `parts: huff`, `auto` sets `parts: auto`. Links with the aggregator take exact codecs only.

## Codecs

Exact codecs change no result. The others change float32 activations and gradients; whatever else is sent with one, such
as tokens or float64, travels as it is. Relative errors are those of a small residual net while it trains.

| text | what it sends | relative error |
|---|---|---|
| `none` | the values as they are | 0 |
| `lz4` | any bytes, by LZ4; helps little | 0 |
| `bitmap` | a bit per value, and the values that are not 0 | 0 |
| `huff` | the same, with exponents by Huffman's code | 0 |
| `bf16` | the upper 16 bits of each value, rounded | 0.002 |
| `bf16-huff` | `huff` of that | 0.002 |
| `int8` | 256 levels in each block of 256 values | 0.004 to 0.01 |
| `int4` | 16 levels in each block of 64 values | 0.05 to 0.12 |
| `qz(0.2)` | multiples of 0.2 times the root mean square, by Huffman's code | 0.05; in proportion to the step |
| `topk(0.1)` | about the largest tenth, by a sample, as `bf16-huff`; zeros for the others | large |
| `topk(0.1, error-feedback)` | the same, and what was left out is added to the next tensor of the round | |
| `lossless`, `accurate`, `slow-link` | `huff`, `bf16-huff`, `qz(0.5)` | |
| `auto`, `auto(accurate)`, `auto(slow-link)` | what makes the link fastest without more error, as measured | |

`auto` within `lossless` changes no result. Within another class the choice depends on time, and so do the weights. It
measures on Linux over TCP; elsewhere it sends the values as they are.

## Data sets and their `data.args`

All data sets take `limit` and `test_limit`: keep only the first so many training or test samples.
Each owner reads the whole data set from `data.dir`, or from its own `--data-dir`, and keeps its own share of it by
`data.partition`. This is so with folders of their own too: owner k of K keeps share k of what its folder holds.

| `data.name` | `data.args` | Where the files are |
|---|---|---|
| `digits` | | in scikit-learn; nothing to download |
| `mnist`, `fashion-mnist` | | IDX files in `data.dir`, plain or `.gz`; `data.download` can fetch them |
| `cifar10`, `cifar100` | | binary or Python batches in `data.dir`; `data.download` can fetch them |
| `text` | `file`, `context` | one UTF-8 file of `data.dir`, or all its `*.txt` |
| `synthetic` | `samples`, `shape`, `classes` | made up from the seed, for speed tests only |
| `module:function` | what the function takes | called as `function(data.dir, **data.args)` |

## Learning rate schedules

Rounds g count from 0 to G - 1; G is `train.rounds`. The rate stays the same within a round.

| `optimizer.lr.schedule` | learning rate of round g |
|---|---|
| `constant` | `initial` |
| `step` | `initial * gamma ** (g // step_rounds)` |
| `exponential` | `initial * gamma ** g` |
| `cosine` | `initial * 0.5 * (1 + cos(pi * g / G))` |
"""


def reference() -> str:
    """Gives docs/job.md: every key of a job with type, default and meaning, section by section."""
    tables = "\n".join(_table(path, section) for path, section in _sections("", Job()))
    return f"{HEAD}{EXAMPLE}```\n\n{tables}\n{TAIL}"


def _sections(path: str, section: msgspec.Struct) -> Iterator[tuple[str, msgspec.Struct]]:
    """Gives the section and those below it, each with its path; values are the defaults."""
    yield path, section
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, msgspec.Struct):
            yield from _sections(f"{path}.{name}".lstrip("."), value)


def _table(path: str, section: msgspec.Struct) -> str:
    info = inspect.type_info(type(section))
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{type(section).__name__} is no section")
    title = f"`{path}`" if path else "Top level"
    rows = [_row(path, field, getattr(section, field.encode_name)) for field in info.fields]
    first_line = (info.cls.__doc__ or "").splitlines()[0]
    return f"## {title}\n\n{first_line}\n\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n{''.join(rows)}"


def _row(path: str, field: inspect.Field, default: object) -> str:
    key = f"{path}.{field.encode_name}".lstrip(".")
    kind, meaning = field.type, ""
    if isinstance(kind, inspect.Metadata):
        meaning = str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    if isinstance(kind, inspect.StructType):
        # GitHub makes a heading's anchor from its letters alone.
        return f"| `{key}` | [section](#{key.replace('.', '')}) | | {cell(meaning)} |\n"
    return f"| `{key}` | {cell(kind_in_words(kind))} | {_default(key, default)} | {cell(meaning)} |\n"


def cell(text: str) -> str:
    """Gives a text as it may stand in a cell of a table."""
    return text.replace("|", "\\|")


def _default(key: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    size = f" ({value >> 20:,} MiB)" if key.endswith("_bytes") and isinstance(value, int) else ""
    return f"`{text}`{size}"


def kind_in_words(kind: inspect.Type) -> str:
    """Puts a type into words."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return ("whole number" if isinstance(kind, inspect.IntType) else "number") + _range(kind)
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.StrType():
            return "text" if kind.pattern is None else f"text like `{kind.pattern}`"
        case inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in kind.values)
        case inspect.ListType(item_type=inspect.StructType()):
            return "list of [classes](emulation.md#classes)"
        case inspect.ListType():
            return f"list of: {kind_in_words(kind.item_type)}"
        case inspect.DictType():
            values = "" if isinstance(kind.value_type, inspect.AnyType) else f" to {kind_in_words(kind.value_type)}"
            return f"mapping of text{values}" if values else "mapping"
        case inspect.UnionType():
            # null first, or it would read as the end of a range or list
            types = sorted(kind.types, key=lambda each: not isinstance(each, inspect.NoneType))
            return ", or ".join(map(kind_in_words, types))
        case inspect.NoneType():
            return "`null`"
    raise TypeError(f"{kind} has no words here yet")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low = f"{kind.ge:,} or more" if kind.ge is not None else f"above {kind.gt:,}" if kind.gt is not None else ""
    high = f"at most {kind.le:,}" if kind.le is not None else f"below {kind.lt:,}" if kind.lt is not None else ""
    limits = ", ".join(filter(None, (low, high)))
    return f", {limits}" if limits else ""


if __name__ == "__main__":
    print(reference(), end="")
