"""Data sets of the user's own: `module:function`."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zmpsl.data.arguments import accept_arguments
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError, ZmpslError

__all__ = ["read_custom"]


def read_custom(name: str, folder: str | None, args: Mapping[str, Any]) -> Split:
    """Calls the user's function as `function(folder, **args)`.

    Args:
        name: `module:function`; the module must be importable.
        folder: `data.dir` of the job, may be None.
        args: `data.args` of the job, without `limit` and `test_limit`.

    Returns:
        What the function returns: a `Split`, or made from `((inputs, targets), (inputs, targets), classes)`: training
        and test arrays, floats becoming float32 and integers other than uint8 becoming int64 (tokens).

    Raises:
        DataError: The function cannot be imported, does not take the arguments, fails, or returns something else.
    """
    function = _function(name)
    first = next(iter(inspect.signature(function).parameters), "")
    accept_arguments(name, function, args, already=(first,))
    try:
        result = function(folder, **args)
    except ZmpslError:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"data set {name!r} failed at {where.filename}:{where.lineno}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(result, Split):
        return result
    try:
        train, test, classes = result
        (x, y), (test_x, test_y) = train, test
    except (TypeError, ValueError) as error:
        raise DataError(
            f"data set {name!r} returned a {type(result).__name__}, expected a zmpsl.data.Split or "
            "((inputs, targets), (inputs, targets), classes)"
        ) from error
    if not isinstance(classes, int) or classes < 1:
        raise DataError(f"data set {name!r} returned {classes!r} as number of classes, expected an integer above 0")
    return Split(_samples(name, x, y), _samples(name, test_x, test_y), classes)


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise DataError(
            f"data.name {name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); the module must be "
            "installed, or its folder be in PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"data.name {name!r}: {module.__file__} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _samples(name: str, inputs: object, targets: object) -> Samples:
    x, y = np.asarray(inputs), np.asarray(targets)
    if x.dtype.kind not in "fiu" or y.dtype.kind not in "iu":
        raise DataError(
            f"data set {name!r} returned inputs of type {x.dtype} and targets of type {y.dtype}, expected numbers and "
            "integers"
        )
    if x.dtype != np.uint8:
        x = x.astype(np.float32 if x.dtype.kind == "f" else np.int64, copy=False)
    return Samples(x, y)
