"""The model zoo: a network by name, as a list of atomic blocks that is built one block at a time.

A device keeps only its own blocks of a network that would not fit it whole. So `build` is lazy: block i is
constructed when it is asked for and not before, and its weights come from torch's random state at that moment alone.
Any device can then make any block, the same to the last bit, and pass over the others on the meta device:

    blocks = build("resnet18", classes=10)
    for i in range(stop):
        torch.manual_seed(key(seed, "init", i))
        with torch.device("cpu" if i >= start else "meta"):
            block = next(blocks)

No block works in place: an activation may still be on its way to the next device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from .arguments import ModelError, check_names, check_values, did_you_mean
from .gpt import gpt_tiny
from .lenet import digits_cnn, lenet5, mlp
from .resnet import BASIC, BOTTLENECK, resnet, resnet101_mpsl
from .user import blocks_of, load
from .vgg import vgg, vgg19_mpsl

__all__ = ["INPUTS", "ZOO", "ModelError", "build", "input_spec"]

ZOO: dict[str, Callable[..., Iterator[nn.Module]]] = {
    "digits_cnn": digits_cnn,
    "mlp": mlp,
    "lenet5": lenet5,
    "vgg11": partial(vgg, 11, False, 0),
    "vgg13": partial(vgg, 13, False, 0),
    "vgg16": partial(vgg, 16, False, 0),
    "vgg19": partial(vgg, 19, False, 0),
    "vgg11_bn": partial(vgg, 11, True, 0),
    "vgg13_bn": partial(vgg, 13, True, 0),
    "vgg16_bn": partial(vgg, 16, True, 0),
    "vgg19_bn": partial(vgg, 19, True, 0),
    "vgg19_mpsl": vgg19_mpsl,
    "resnet18": partial(resnet, BASIC, (2, 2, 2, 2)),
    "resnet34": partial(resnet, BASIC, (3, 4, 6, 3)),
    "resnet50": partial(resnet, BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": partial(resnet, BOTTLENECK, (3, 4, 23, 3)),
    "resnet101_mpsl": resnet101_mpsl,
    "gpt_tiny": gpt_tiny,
}

_IMAGENET: tuple[tuple[int | str, ...], str] = (("channels", 224, 224), "float32")

# The input each model is meant for: the shape of one sample, where a word is an argument of the model, and the dtype.
INPUTS: dict[str, tuple[tuple[int | str, ...], str]] = {
    **{name: _IMAGENET for name in ZOO if name.startswith(("vgg", "resnet"))},
    "digits_cnn": ((1, 8, 8), "float32"),
    "mlp": (("features",), "float32"),
    "lenet5": (("channels", "size", "size"), "float32"),
    "vgg19_mpsl": (("channels", 32, 32), "float32"),
    "resnet101_mpsl": (("channels", 32, 32), "float32"),
    "gpt_tiny": (("context",), "int64"),
}


def build(name: str, /, **args: Any) -> Iterator[nn.Module]:
    """Builds a network, block by block, as the blocks are asked for.

    A user's function should be a generator, for then it is as lazy as the zoo. One that returns a list or an
    nn.Sequential is called here, at once, with all its blocks: seed torch before, and call it on the device wanted.

    Args:
        name: A model of the zoo, or `module:function`, a function that gives nn.Modules: a generator, a list or an
            nn.Sequential. Naming a function runs it, so take such a name only from a job you trust.
        args: Arguments of the model's function.

    Returns:
        The blocks; `nn.Sequential(*build(name))` is the whole network. Taking a block raises ModelError where the
        block is no nn.Module, shares a weight with an earlier one, or the function raises ValueError.

    Raises:
        ModelError: The model or an argument is not known, or a value does not fit.
    """
    if ":" in name:
        return blocks_of(name, load(name, args), args)
    _arguments(name, args)
    return blocks_of(name, ZOO[name], args)


def input_spec(name: str, /, **args: Any) -> tuple[tuple[int, ...], str]:
    """Tells what a zoo model takes by default, for summaries and profiles.

    Args:
        name: A model of the zoo.
        args: Arguments of the model's function, as given to `build`.

    Returns:
        The shape of one sample without the batch dimension, and the dtype's name, such as ((3, 224, 224), "float32").

    Raises:
        ModelError: The model is not of the zoo, or an argument is not known or does not fit.
    """
    if ":" in name:
        raise ModelError(f"model {name!r} is not of the zoo, so its input shape is not known: take it from the data")
    values = _arguments(name, args)
    shape, dtype = INPUTS[name]
    if values.get("small_input"):
        shape = ("channels", 32, 32)
    return tuple(values[size] if isinstance(size, str) else size for size in shape), dtype


def _arguments(name: str, args: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks the name and the arguments of a zoo model, and adds the defaults of those not given."""
    if name not in ZOO:
        raise ModelError(
            f"no model is called {name!r}{did_you_mean(name, list(ZOO))}: "
            f"give `module:function` or one of {', '.join(ZOO)}"
        )
    accepted = signature(ZOO[name], eval_str=True)
    check_names(name, accepted, args)
    check_values(name, accepted, args)
    bound = accepted.bind(**args)
    bound.apply_defaults()
    return bound.arguments
