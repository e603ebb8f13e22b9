"""ModelError, and the checks of the arguments that a job gives to a model's function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import Parameter, Signature
from typing import Any

__all__ = ["ModelError", "check_names", "check_values", "did_you_mean"]


class ModelError(ValueError):
    """The job names a model, an argument or a value that does not exist or does not fit."""


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """Gives " (did you mean 'x'?)" for the nearest known name, or nothing where none is near."""
    near = get_close_matches(wrong, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_names(model: str, accepted: Signature, args: Mapping[str, Any]) -> None:
    """Checks that a model's function can be called with exactly these arguments.

    Args:
        model: The model's name, for the message.
        accepted: The function's signature.
        args: The arguments by name.

    Raises:
        ModelError: An argument is not known, or one without a default is missing.
    """
    parameters = accepted.parameters.values()
    names = [p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    accepts = f"it accepts {', '.join(names)}" if names else "it accepts none"
    if all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
        for name in args:
            if name not in names:
                raise ModelError(f"model {model!r} has no argument {name!r}{did_you_mean(name, names)}: {accepts}")
    try:
        accepted.bind(**args)
    except TypeError as error:
        raise ModelError(f"model {model!r}: {error}; {accepts}") from None


def check_values(model: str, accepted: Signature, args: Mapping[str, Any]) -> None:
    """Checks a zoo model's values by the annotations of its function.

    Args:
        model: The model's name, for the message.
        accepted: The function's signature, with annotations that are types and no strings.
        args: The arguments by name, all of them known.

    Raises:
        ModelError: A value is of another kind, or out of range.
    """
    for name, value in args.items():
        wanted, fits = _KINDS[accepted.parameters[name].annotation]
        if not fits(value):
            raise ModelError(f"model {model!r}: argument {name!r} is {value!r}, but must be {wanted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < 1


def _is_counts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_count, value))


# What an annotation means in the zoo: every int is a count, every float the share that dropout drops.
_KINDS: Mapping[Any, tuple[str, Callable[[object], bool]]] = {
    int: ("a whole number of 1 or more", _is_count),
    float: ("a number from 0 up to, but not including, 1", _is_share),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    Sequence[int]: ("a list of whole numbers of 1 or more", _is_counts),
}
