"""`zmpsl bench codec` and `zmpsl bench link`: what each codec does to your tensors, here and over slow links."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zmpsl.cli.options import PATH, errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zmpsl.trials.codec import Trial

__all__ = ["bench"]

# What a tensor to try codecs on is taken from.
TENSOR = (
    click.option("--tensor", type=PATH, help="An .npy file of float32 values, such as an activation."),
    click.option("--mask", type=PATH, help="An .npy file: the ReLU's output that --tensor is the gradient of."),
    click.option("--model", default="digits_cnn", show_default=True, help="A model of the zoo, if no tensor is given."),
    click.option("--arg", "args", multiple=True, metavar="KEY=VALUE", help="Argument of the model."),
    click.option("--cut", default=1, show_default=True, help="Index of the first block behind the cut."),
    click.option("--batch", default=32, show_default=True, help="Samples in a batch."),
    click.option("--codec", "codecs", multiple=True, help="What to try, as in a job; may be given several times."),
)
RATES = (5.0, 20.0, 100.0, 1000.0, 10000.0)  # Mbit/s
HEAD = ("codec", "ratio", "packs", "unpacks", "error")


@click.group()
def bench() -> None:
    """Measure on this machine."""


def tensor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options in TENSOR."""
    for option in reversed(TENSOR):
        command = option(command)
    return command


@bench.command()
@tensor_options
def codec(
    tensor: Path | None, mask: Path | None, model: str, args: tuple[str, ...], cut: int, batch: int,
    codecs: tuple[str, ...],
) -> None:  # fmt: skip
    """Tell ratio, speed and error of each codec.

    Speeds are bytes of the tensor per second on one thread; errors are relative to the tensor. A model has fresh
    weights and made-up inputs: a model that has learnt something gives other tensors. Where zstandard, blosc2 or torch
    is installed, their own ways to pack follow; they know no mask, so they get zeros outside of it.
    """
    with errors():
        for title, values, activation in _tensors(tensor, mask, model, args, cut, batch):
            _table(title, values, activation, codecs)


@bench.command()
@tensor_options
@click.option("--mbit", "rates", multiple=True, type=click.FloatRange(0.01, 1e6), help="Rate of a link; several times.")
@click.option("--seconds", default=1.0, show_default=True, help="Per rate and codec, about, before packing.")
@click.option("--shaper", type=click.Choice(["auto", "namespace", "proxy"]), default="auto", show_default=True)
@click.option("--inside", is_flag=True, hidden=True)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def link(
    tensor: Path | None, mask: Path | None, model: str, args: tuple[str, ...], cut: int, batch: int,
    codecs: tuple[str, ...], rates: tuple[float, ...], seconds: float, shaper: str, inside: bool, form: str,
) -> None:  # fmt: skip
    """Tell which codec is fastest over links of 5, 20, 100 Mbit/s, 1 and 10 Gbit/s.

    Tensors go through the sockets of a run, over a network of their own that the kernel slows down (`namespace`; needs
    root or user namespaces, and `ip` and `tc`), else through a proxy in user space. Times are those of whole tensors in
    a row, packed, sent and unpacked; over a slow link a part of the tensor is sent, and its time counted up.
    """
    from zmpsl.trials.slow_link import private_network

    with errors():
        prefix = private_network() if shaper != "proxy" and not inside else None
        if prefix is not None:
            command = [*prefix, sys.executable, "-m", "zmpsl", *sys.argv[1:], "--inside"]
            sys.exit(subprocess.run(command, check=False).returncode)
        if shaper == "namespace" and not inside:
            raise click.UsageError("no network namespace with tc can be made here; try --shaper proxy")
        tensors = _tensors(tensor, mask, model, args, cut, batch)
        found = [_over_links(*each, codecs, rates or RATES, seconds, inside) for each in tensors]
        if form == "json":
            click.echo(json.dumps({"shaper": "namespace" if inside else "proxy", "tensors": found}, indent=1))
        else:
            click.echo(f"shaped by {'the kernel, in a network namespace' if inside else 'a proxy in user space'}\n")
            for each in found:
                _show_links(each)


def _tensors(
    tensor: Path | None, mask: Path | None, name: str, args: tuple[str, ...], cut: int, batch: int
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]]:
    """Gives what codecs are tried on: title, values, and the activation behind a ReLU that it is the gradient of."""
    if tensor is None:
        return _of_model(name, args, cut, batch)
    from zmpsl.errors import DataError
    from zmpsl.trials.codec import read_npy

    values, activation = read_npy(tensor), None if mask is None else read_npy(mask)
    if activation is not None and activation.shape != values.shape:
        raise DataError(f"{mask} has shape {activation.shape}, {tensor} has {values.shape}: a gradient has its mask's")
    return [(str(tensor), values, activation)]


def _of_model(
    name: str, args: tuple[str, ...], cut: int, batch: int
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32] | None]]:
    import yaml

    from zmpsl.engine.cut_tensors import cut_tensors
    from zmpsl.job.schema import Model

    values = {key: yaml.safe_load(value) for key, _, value in (arg.partition("=") for arg in args)}
    activation, gradient, relu = cut_tensors(Model(name=name, args=values), cut, batch, 0)
    where = f"{name} before block {cut}"
    return [
        (f"{where}, activation{' behind a ReLU' if relu else ''}", activation, None),
        (f"{where}, gradient{' under its mask' if relu else ''}", gradient, activation if relu else None),
    ]


def _over_links(
    title: str, values: NDArray[np.float32], activation: NDArray[np.float32] | None, codecs: tuple[str, ...],
    rates: Sequence[float], seconds: float, inside: bool,
) -> dict[str, Any]:  # fmt: skip
    """Gives the times of one tensor over every link."""
    from zmpsl.errors import JobError
    from zmpsl.trials.link import TEXTS, as_it_is, fastest, sample_of, shaped_by_proxy, try_link
    from zmpsl.trials.slow_link import slow_loopback

    links = []
    for mbit in rates:
        if inside:
            slow_loopback(1e6 * mbit)
        sample = sample_of(values, activation, 1e6 * mbit, seconds)
        try:
            trials = [
                try_link(text, sample, 1e6 * mbit, as_it_is if inside else shaped_by_proxy) for text in codecs or TEXTS
            ]
        except ValueError as problem:
            raise JobError(f"--codec: {problem}") from problem
        exact, of_all = fastest(trials)
        links.append(
            {
                "mbit": mbit,
                "seconds": {trial.codec: trial.seconds for trial in trials},
                "ratio": {trial.codec: trial.ratio for trial in trials},
                "fastest_exact": exact,
                "fastest": of_all,
            }
        )
    return {"tensor": title, "shape": list(values.shape), "bytes": values.nbytes, "links": links}


def _show_links(found: dict[str, Any]) -> None:
    from zmpsl.kernels import KERNELS
    from zmpsl.observe.readable import amount

    click.echo(f"{found['tensor']}: {found['shape']}, {amount(found['bytes'])}; kernels: {KERNELS.isa}; ms per tensor")
    links = found["links"]
    click.echo(f"  {'codec':<28}" + "".join(f"{_rate(each['mbit']):>12}" for each in links) + f"{'ratio':>10}")
    for text in links[0]["seconds"]:
        times = "".join(f"{1000 * each['seconds'][text]:>12.4g}" for each in links)
        click.echo(f"  {text:<28}{times}{links[0]['ratio'][text]:>10.2f}")
    for what, key in (("fastest exact", "fastest_exact"), ("fastest", "fastest")):
        click.echo(f"  {what:<28}" + "".join(f"{each[key]:>12}" for each in links))
    click.echo("")


def _rate(mbit: float) -> str:
    return f"{mbit:g} Mbit/s" if mbit < 1000 else f"{mbit / 1000:g} Gbit/s"


def _table(
    title: str, values: NDArray[np.float32], activation: NDArray[np.float32] | None, codecs: tuple[str, ...]
) -> None:
    import numpy as np

    from zmpsl.errors import JobError
    from zmpsl.kernels import KERNELS
    from zmpsl.observe.readable import amount
    from zmpsl.trials.codec import TEXTS, try_codec, try_rival
    from zmpsl.trials.rivals import rivals

    click.echo(f"{title}: {list(values.shape)}, {amount(values.nbytes)}; kernels: {KERNELS.isa}")
    click.echo(f"  {HEAD[0]:<28}{HEAD[1]:>8}{HEAD[2]:>13}{HEAD[3]:>13}{HEAD[4]:>10}")
    for text in codecs or TEXTS:
        try:
            trial = try_codec(text, values, activation)
        except ValueError as problem:
            raise JobError(f"--codec: {problem}") from problem
        _row(trial)
    if not codecs:
        expected = np.ascontiguousarray(values if activation is None else np.where(activation != 0, values, values * 0))
        for rival in rivals(expected):
            if rival.name not in TEXTS:
                _row(try_rival(rival, expected))
    click.echo("")


def _row(trial: Trial) -> None:
    from zmpsl.observe.readable import amount

    speeds = [f"{amount(each)}/s" for each in (trial.encode_bytes_per_s, trial.decode_bytes_per_s)]
    speeds = ["-", "-"] if trial.codec == "none" else speeds
    error = f"{trial.error:.4f}" if trial.error else "0"
    click.echo(f"  {trial.codec:<28}{trial.ratio:>8.2f}{speeds[0]:>13}{speeds[1]:>13}{error:>10}")
