"""`zmpsl bench codec`: what each codec does to your tensors, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import PATH, errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zmpsl.codec_trial import Trial

__all__ = ["bench"]

HEAD = ("codec", "ratio", "packs", "unpacks", "error")


@click.group()
def bench() -> None:
    """Measure on this machine."""


@bench.command()
@click.option("--tensor", type=PATH, help="An .npy file of float32 values, such as an activation.")
@click.option("--mask", type=PATH, help="An .npy file: the ReLU's output that --tensor is the gradient of.")
@click.option("--model", default="digits_cnn", show_default=True, help="A model of the zoo, where no tensor is given.")
@click.option("--arg", "args", multiple=True, metavar="KEY=VALUE", help="Argument of the model.")
@click.option("--cut", default=1, show_default=True, help="Index of the first block behind the cut.")
@click.option("--batch", default=32, show_default=True, help="Samples in a batch.")
@click.option("--codec", "codecs", multiple=True, help="What to try, as in a job; may be given several times.")
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
        if tensor is not None:
            _of_file(tensor, mask, codecs)
        else:
            _of_model(model, args, cut, batch, codecs)


def _of_file(tensor: Path, mask: Path | None, codecs: tuple[str, ...]) -> None:
    from zmpsl.codec_trial import read_npy
    from zmpsl.errors import DataError

    values, activation = read_npy(tensor), None if mask is None else read_npy(mask)
    if activation is not None and activation.shape != values.shape:
        raise DataError(f"{mask} has shape {activation.shape}, {tensor} has {values.shape}: a gradient has its mask's")
    _table(str(tensor), values, activation, codecs)


def _of_model(name: str, args: tuple[str, ...], cut: int, batch: int, codecs: tuple[str, ...]) -> None:
    import yaml

    from zmpsl.engine.cut_tensors import cut_tensors
    from zmpsl.job.schema import Model

    values = {key: yaml.safe_load(value) for key, _, value in (arg.partition("=") for arg in args)}
    activation, gradient, relu = cut_tensors(Model(name=name, args=values), cut, batch, 0)
    where = f"{name} before block {cut}"
    _table(f"{where}, activation{' behind a ReLU' if relu else ''}", activation, None, codecs)
    _table(f"{where}, gradient{' under its mask' if relu else ''}", gradient, activation if relu else None, codecs)


def _table(
    title: str, values: NDArray[np.float32], activation: NDArray[np.float32] | None, codecs: tuple[str, ...]
) -> None:
    import numpy as np

    from zmpsl.codec_kernels import KERNELS
    from zmpsl.codec_rivals import rivals
    from zmpsl.codec_trial import TEXTS, try_codec, try_rival
    from zmpsl.errors import JobError
    from zmpsl.observe.readable import amount

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
