"""One hop of zmpsl against other transports on the loopback interface, measured in the same run.

    python bench/hop.py [--sizes 64KiB,1MiB,16MiB,64MiB] [--repeats 5] [--peers raw,pyzmq,gloo,grpc] [--json FILE]

`--peers raw,zmpsl-curve` shows what keys cost: the same hop, encrypted; `--peers raw,zmpsl-bare` what checksums cost.
`--mbit 20 --peers zmpsl-curve --seconds 5` shows it over a line of 20 Mbit/s (bench/proxy.py), and with `--rtt-ms 40
--loss 2 --peers raw` over one that also delays and loses packets (bench/two_hosts.py, as root).

GB is 1e9 bytes. A stream is sized to take --seconds; each repetition measures all transports one after the other, in
rotating order, so that noise hits all alike. The ratio to raw is the median of the ratios within each repetition.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pair import KINDS, BenchError, Pair, Stream

if TYPE_CHECKING:
    from two_hosts import Line

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
HEAD = (
    "transport", "tensor", "n", "GB/s (min-max)", "x raw (min-max)", "round trip ms", "CPU s/GB sender + receiver",
    "new buffers",
)  # fmt: skip


def parse_size(text: str) -> int:
    """Reads a size such as `64KiB`.

    Raises:
        click.BadParameter: It has no unit that is known, or is no whole number of float32.
    """
    unit = next((unit for unit in UNITS if text.endswith(unit)), None)
    number = text.removesuffix(unit or "").strip()
    if unit is None or not number.isdecimal() or int(number) == 0:
        raise click.BadParameter(f"{text!r} is no size; write a whole number and one of {', '.join(UNITS)}: 64KiB")
    return int(number) * UNITS[unit]


def size_text(nbytes: int) -> str:
    """Gives the size as `parse_size` reads it."""
    unit = max((unit for unit in UNITS if nbytes % UNITS[unit] == 0), key=UNITS.__getitem__)
    return f"{nbytes // UNITS[unit]} {unit}"


def stream_length(pair: Pair, size: int, seconds: float) -> int:
    """Warms up, and finds how many tensors of `size` elements a stream of `seconds` has; at least 2."""
    pair.stream(size, 2)
    n, wall_s = 2, pair.stream(size, 2).wall_s
    while wall_s < seconds / 3:
        n = max(2 * n, min(16 * n, int(n * seconds / wall_s)))
        wall_s = pair.stream(size, n).wall_s
    return max(2, round(n * seconds / wall_s))


class Cell:
    """What is measured of one transport at one size.

    Args:
        pair: The transport.
        nbytes: Bytes of a tensor.
        seconds: How long a stream shall take.
    """

    def __init__(self, pair: Pair, nbytes: int, seconds: float) -> None:
        self.pair, self.nbytes, self.size = pair, nbytes, nbytes // 4
        self.n = stream_length(pair, self.size, seconds)
        round_trip_s = pair.echo(self.size, 3)
        self.echoes = max(3, min(200, round(seconds / 2 / round_trip_s)))
        pair.echo(self.size, self.echoes)
        self.streams: list[Stream] = []
        self.round_trips_s: list[float] = []
        self.new_buffers = None if pair.allocations() is None else 0

    def measure(self) -> None:
        """Adds one repetition."""
        before = self.pair.allocations()
        self.streams.append(self.pair.stream(self.size, self.n))
        after = self.pair.allocations()
        if before is not None and after is not None:
            self.new_buffers = (self.new_buffers or 0) + after - before
        self.round_trips_s.append(self.pair.echo(self.size, self.echoes))

    @property
    def rates(self) -> list[float]:
        """GB/s of each repetition."""
        return [self.n * self.nbytes / 1e9 / stream.wall_s for stream in self.streams]

    def row(self, raw: Cell | None) -> dict[str, Any]:
        """Gives the figures of this cell; ratios are None without raw."""
        ratios = [] if raw is None else [ours / theirs for ours, theirs in zip(self.rates, raw.rates, strict=True)]
        gb = self.n * self.nbytes / 1e9
        return {
            "transport": self.pair.kind,
            "tensor_bytes": self.nbytes,
            "tensors": self.n,
            "gb_per_s": spread(self.rates),
            "ratio_to_raw": spread(ratios) if ratios else None,
            "round_trip_ms": spread([1e3 * seconds for seconds in self.round_trips_s]),
            "cpu_sender_s_per_gb": spread([stream.sender_s / gb for stream in self.streams]),
            "cpu_receiver_s_per_gb": spread([stream.receiver_s / gb for stream in self.streams]),
            "cpu_both_s_per_gb": spread([(stream.sender_s + stream.receiver_s) / gb for stream in self.streams]),
            "content_verified": True,  # a difference is a BenchError
            "new_pool_buffers": self.new_buffers,
            "other_cores": spread([stream.other_cores for stream in self.streams]),
        }


def spread(samples: list[float]) -> dict[str, Any]:
    """Gives median, least, greatest and all samples."""
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def measure(pairs: list[Pair], sizes: list[int], repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Measures all transports at all sizes; one row each."""
    rows = []
    for nbytes in sizes:
        click.echo(f"{size_text(nbytes)}: warm-up", err=True)
        cells = [Cell(pair, nbytes, seconds) for pair in pairs]
        for repetition in range(repeats):
            click.echo(f"{size_text(nbytes)}: repetition {repetition + 1} of {repeats}", err=True)
            turn = repetition % len(cells)
            for cell in cells[turn:] + cells[:turn]:
                cell.measure()
        raw = next((cell for cell in cells if cell.pair.kind == "raw"), None)
        rows += [cell.row(raw) for cell in cells]
    return rows


def version(package: str) -> str:
    """Gives the installed version of a distribution, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    """Gives the processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Gives machine, versions and command of this run."""
    import zmq

    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            "pyzmq": zmq.pyzmq_version(),
            "libzmq": zmq.zmq_version(),
            "torch": version("torch"),
            "grpcio": version("grpcio"),
        },
        "command": " ".join(["python", *sys.argv]),
    }


def markdown(about: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Gives the table, with a line on where its figures come from."""
    machine = about["machine"]
    others = statistics.median(row["other_cores"]["median"] for row in rows)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores ({others:.1f} busy with other work), {machine['kernel']}; "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + f"; `{about['command']}`",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    for row in rows:
        rate, ratio, trip = row["gb_per_s"], row["ratio_to_raw"], row["round_trip_ms"]["median"]
        digits = ".2f" if rate["median"] > 0.1 else ".6f"
        sender, receiver, both = (row[f"cpu_{who}_s_per_gb"]["median"] for who in ("sender", "receiver", "both"))
        cells = (
            row["transport"], size_text(row["tensor_bytes"]), str(row["tensors"]),
            f"{rate['median']:{digits}} ({rate['min']:{digits}}-{rate['max']:{digits}})",
            "-" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
            f"{trip:.3g}", f"{sender:.2f} + {receiver:.2f} = {both:.2f}",
            "-" if row["new_pool_buffers"] is None else str(row["new_pool_buffers"]),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kinds_of(peers: str, mbit: float, far: bool) -> list[str]:
    """Gives the transports to measure, zmpsl first.

    Raises:
        click.BadParameter: One is not known, or cannot be measured over such a line.
    """
    kinds = ["zmpsl", *filter(None, peers.split(","))]
    for kind in kinds:
        if kind not in KINDS or kinds.count(kind) > 1:
            known = "raw, pyzmq, gloo, grpc, zmpsl-curve and zmpsl-bare"
            raise click.BadParameter(f"{kind!r} in --peers is not known or there twice; known are {known}")
        if far and kind in ("gloo", "grpc"):
            raise click.BadParameter(f"{kind!r} in --peers knows no --rtt-ms and no --loss; the others do")
        if mbit and not far and not kind.startswith("zmpsl"):
            raise click.BadParameter(f"{kind!r} in --peers knows no --mbit; zmpsl-curve and zmpsl-bare do")
    return kinds


@contextmanager
def between_hosts(mbit: float, rtt_ms: float, loss: float) -> Iterator[Line]:
    """A line of that rate between two hosts, that delays and loses packets.

    Raises:
        click.ClickException: There can be none here.
    """
    from two_hosts import Line, Weather, why_not  # here: it needs zmpsl whole

    if reason := why_not():
        raise click.ClickException(reason)
    line = Line(Weather(loss / 100, rtt_ms / 2000, bytes_per_s=mbit * 125e3))
    try:
        yield line
    finally:
        line.close()


@click.command(help=__doc__.split("\n\n", 1)[0] if __doc__ else None)
@click.option("--sizes", default="64KiB,1MiB,16MiB,64MiB", show_default=True, help="Tensor sizes.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Measured repetitions.")
@click.option("--peers", default="raw,gloo,grpc", show_default=True, help="What to compare with; may be empty.")
@click.option("--seconds", default=0.4, show_default=True, type=click.FloatRange(0.001, 10), help="Length of a stream.")
@click.option("--codec", default="none", show_default=True, type=click.Choice(["none", "lz4"]), help="zmpsl's codec.")
@click.option(
    "--mbit", default=0.0, type=click.FloatRange(0), help="Rate of the line in Mbit/s; only zmpsl's own peers."
)
@click.option("--rtt-ms", default=0.0, type=click.FloatRange(0), help="Of a line between two hosts made for it; root.")
@click.option("--loss", default=0.0, type=click.FloatRange(0, 50), help="Percent of its packets that are lost; root.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="File for all samples.")
def main(
    sizes: str, repeats: int, peers: str, seconds: float, codec: str, mbit: float, rtt_ms: float, loss: float,
    json_file: Path | None,
) -> None:  # fmt: skip
    tensor_bytes = [parse_size(text) for text in sizes.split(",")]
    far = bool(rtt_ms or loss)
    kinds = kinds_of(peers, mbit, far)
    about = environment()
    try:
        with ExitStack() as stack:
            line = stack.enter_context(between_hosts(mbit, rtt_ms, loss)) if far else None
            pairs = []
            for kind in kinds:
                pairs.append(Pair(kind, codec, 0.0 if far else mbit, line))
                stack.callback(pairs[-1].close)
            for pair in pairs:
                pair.connect()
            rows = measure(pairs, tensor_bytes, repeats, seconds)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        settings = {
            "repeats": repeats, "seconds": seconds, "codec": codec, "mbit": mbit, "rtt_ms": rtt_ms, "loss": loss,
        }  # fmt: skip
        json_file.write_text(json.dumps({**about, "settings": settings, "rows": rows}, indent=1) + "\n")
    click.echo(markdown(about, rows))


if __name__ == "__main__":
    main()
