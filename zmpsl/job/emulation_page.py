"""The page on imitated devices, docs/emulation.md: `python -m zmpsl.job.emulation_page > docs/emulation.md`."""

from __future__ import annotations

from msgspec import NODEFAULT, Struct, inspect

from zmpsl.job.emulation import NodeClass, OwnerClass, PartSeconds, Scenario
from zmpsl.job.reference import cell, kind_in_words

__all__ = ["page"]

HEAD = """\
# Imitated devices

<!-- Written by `python -m zmpsl.job.emulation_page > docs/emulation.md`: change zmpsl/job/emulation*.py instead. -->

Hundreds of slow owners behind slow links, on one machine:

```sh
zmpsl run --emulate docs/planning/owners.yaml                    # the built-in job on twenty small devices
zmpsl run job.yaml --emulate devices.yaml --print-config         # what becomes of a job
zmpsl simulate docs/planning/scenario.yaml                       # the same form of file, without a run
```

The [file](planning/owners.yaml) lists classes of devices. It decides how many owners and compute nodes there are; all
the rest is the [job](job.md)'s. Roles, protocol, plan, sockets and bytes are real. Imitated are time and links:

- **Time.** An imitated device does not burn a processor: its work is done, and what follows waits until the device
  would be done. One thread holds up to 250 owners, each with sockets of its own. Work that waited for a busy device
  begins when that device became free, so the host's own delays do not add up.
- **Links.** Each message waits as long as the link would have kept it: one after the other at the rate, then latency
  and jitter. An owner has one such lane each way. The bytes pass the host's loopback in no time; where a class
  gives `bytes_per_s`, `codec: auto` takes that for the rate instead of measuring the connection.
- **Results.** Devices that compute train as if nothing was imitated: the weights are the same, bit for bit. With
  `compute: none` nothing is trained; such runs are for trials of scale. They evaluate nothing, and cannot go on. A node
  that computes nothing has the memory of its class, however little the host has.

`time_scale: 20` makes twenty seconds of the devices pass in one of the run: times are divided by it, rates multiplied.
All that the run tells is in its own seconds. Progress lines, report and metrics say that a run is emulated, and how.
Predicted beside measured is there as in every run with `cuts: auto`, for these devices and links.

Compute nodes stand in the chain in the order of the file. `zmpsl simulate` tells which order, and which choice of
nodes, would be best. More than 250 owners take several processes and some twenty open files each; `zmpsl run` takes
as many open files as the system allows it (`ulimit -Hn`). Owners of one process share the base weights of their two
parts, and each has a state of its own only while it trains: from the begin of its round until its parts have left.

## The file

"""


def page() -> str:
    """Gives docs/emulation.md."""
    text = HEAD + _table(Scenario) + "\n## Classes\n"
    for kind, what in ((OwnerClass, "`owners`"), (NodeClass, "`nodes`"), (PartSeconds, "`first` and `last`")):
        text += f"\n### {what}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n\n{_table(kind)}"
    return text


def _table(kind: type[Struct]) -> str:
    info = inspect.type_info(kind)
    if not isinstance(info, inspect.StructType):
        raise TypeError(f"{kind.__name__} is no section")
    return "| Key | Value | Default | Meaning |\n|---|---|---|---|\n" + "".join(map(_row, info.fields))


def _row(field: inspect.Field) -> str:
    kind, meaning = field.type, ""
    if isinstance(kind, inspect.Metadata):
        meaning = str((kind.extra_json_schema or {}).get("description", ""))
        kind = kind.type
    if field.default is NODEFAULT:
        default = "must be given"
    else:
        default = f"`{'null' if field.default is None else field.default}`"
    return f"| `{field.encode_name}` | {cell(_words(kind))} | {default} | {cell(meaning)} |\n"


def _words(kind: inspect.Type) -> str:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        first = sorted(kind.types, key=lambda each: not isinstance(each, inspect.NoneType))
        return ", or ".join(map(_words, first))
    if isinstance(kind, inspect.StructType):
        return "[seconds](#first-and-last)"
    if isinstance(kind, inspect.VarTupleType):
        item = kind.item_type
        inner = "[classes](#classes)" if isinstance(item, inspect.StructType) else _words(item)
        return f"list of {inner}" if isinstance(item, inspect.StructType) else f"list of: {inner}"
    return kind_in_words(kind)


if __name__ == "__main__":
    print(page(), end="")
