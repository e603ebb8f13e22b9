"""Checks of `data.args`: the keyword arguments a data set takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from zmpsl.errors import DataError

__all__ = ["LIMITS", "accept_arguments", "whole_number"]

LIMITS = ("limit", "test_limit")  # every data set takes these two


def whole_number(name: str, argument: str, value: object) -> int:
    """Gives `value` if it is an integer of at least 1, else raises a DataError that names data set and argument."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{name}: data.args {argument} must be a whole number of at least 1, not {value!r}")
    return value


def accept_arguments(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], already: tuple[str, ...]
) -> None:
    """Checks that a function takes the given keyword arguments.

    Args:
        name: The data set, for the message.
        function: What is going to be called with them.
        given: The arguments of the job, without `LIMITS`.
        already: The parameters of the function that zmpsl itself fills.

    Raises:
        DataError: An argument is unknown or one without a default is missing; names the accepted ones.
    """
    kinds = inspect.signature(function).parameters.values()
    named = [p for p in kinds if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in already]
    accepted = [p.name for p in named] + list(LIMITS)
    if not any(p.kind is p.VAR_KEYWORD for p in kinds):
        for key in given:
            if key not in accepted:
                near = difflib.get_close_matches(key, accepted, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise DataError(f"{name}: unknown data.args {key!r}{hint}; accepted: {', '.join(accepted)}")
    if wanting := [p.name for p in named if p.default is p.empty and p.name not in given]:
        raise DataError(f"{name}: data.args lacks {', '.join(wanting)}; accepted: {', '.join(accepted)}")
