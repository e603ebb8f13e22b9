"""A user's own model, `module:function`, and the checks that every block passes on its way out of `build`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from inspect import Signature, signature
from itertools import chain
from typing import Any

from torch import Tensor, nn

from .arguments import ModelError, check_names, did_you_mean

__all__ = ["blocks_of", "load"]


def load(name: str, args: Mapping[str, Any]) -> Callable[..., object]:
    """Imports a user's function and checks that it takes these arguments.

    Args:
        name: `module:function`.
        args: The arguments by name.

    Raises:
        ModelError: There is no such module or function, or it takes other arguments. Any other error that the
            module raises while it is imported comes through as it is.
    """
    module_name, _, function_name = name.partition(":")
    model = f"model {name!r}"
    try:
        module = import_module(module_name)
    except (ImportError, TypeError, ValueError) as error:  # the last two: a name that is relative, or empty
        raise ModelError(f"{model}: cannot import {module_name!r}: {error}; is its folder on PYTHONPATH?") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, [each for each in dir(module) if callable(getattr(module, each))])
        raise ModelError(f"{model}: module {module_name!r} has no function {function_name!r}{hint}")
    accepted = _signature(function)
    if accepted is not None:
        check_names(name, accepted, args)
    found: Callable[..., object] = function
    return found


def blocks_of(name: str, function: Callable[..., object], args: Mapping[str, Any]) -> Iterator[nn.Module]:
    """Calls a model's function and passes its blocks on one by one, each checked.

    Args:
        name: The model's name, for messages.
        function: A generator function, or one that returns a list or an nn.Sequential.
        args: The arguments by name.

    Raises:
        ModelError: The function gives nothing that can be iterated, or raises ValueError. Later, when a block is
            taken: the block is no nn.Module, or shares a weight or buffer with an earlier one.
    """
    try:
        made = function(**args)
    except ValueError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    if not isinstance(made, Iterable):
        raise ModelError(
            f"model {name!r} gave one {type(made).__name__}, which cannot be cut: "
            "give its blocks as a generator, a list or an nn.Sequential"
        )
    return _checked(name, iter(made))


def _signature(function: Callable[..., object]) -> Signature | None:
    try:
        return signature(function)
    except (TypeError, ValueError):  # written in C: calling it will tell
        return None


def _checked(name: str, made: Iterator[object]) -> Iterator[nn.Module]:
    seen: dict[int, tuple[int, weakref.ref[Tensor]]] = {}
    index = 0
    while True:
        try:
            block = next(made)
        except StopIteration:
            return
        except ValueError as error:
            raise ModelError(f"model {name!r}, block {index}: {error}") from error
        if not isinstance(block, nn.Module):
            raise ModelError(f"model {name!r}: block {index} is a {type(block).__name__!r}, but must be an nn.Module")
        _check_own_tensors(name, index, block, seen)
        yield block
        del block  # or the last block would still be in memory while the next one is made
        index += 1


def _check_own_tensors(
    name: str, index: int, block: nn.Module, seen: dict[int, tuple[int, weakref.ref[Tensor]]]
) -> None:
    """Raises ModelError where a weight or buffer of the block is in `seen`, and adds them all to it.

    `seen` is weak: a block that the caller dropped is freed, and its address may then belong to another tensor.
    """
    for tensor in chain(block.parameters(), block.buffers()):
        earlier = seen.get(id(tensor))
        if earlier is not None and earlier[1]() is tensor:
            raise ModelError(
                f"model {name!r}: block {index} shares a weight with block {earlier[0]}: "
                "on two devices they would drift apart; give each block its own"
            )
        seen[id(tensor)] = (index, weakref.ref(tensor))
