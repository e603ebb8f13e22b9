"""The data sets by name, and `load`, which reads one as the job says."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

from zmpsl.data.arguments import LIMITS, accept_arguments, whole_number
from zmpsl.data.cifar import has_cifar, read_cifar10, read_cifar100
from zmpsl.data.custom import read_custom
from zmpsl.data.digits import read_digits
from zmpsl.data.download import fetch
from zmpsl.data.files import folder_of
from zmpsl.data.idx import has_idx, read_fashion_mnist, read_mnist
from zmpsl.data.samples import Split
from zmpsl.data.synthetic import read_synthetic
from zmpsl.data.text import read_text
from zmpsl.errors import DataError
from zmpsl.job.schema import Data

__all__ = ["READERS", "load"]

# Each is called as reader(folder, seed, **args); its keyword-only parameters are what data.args may hold.
READERS: Mapping[str, Callable[..., Split]] = MappingProxyType(
    {
        "cifar10": read_cifar10,
        "cifar100": read_cifar100,
        "digits": read_digits,
        "fashion-mnist": read_fashion_mnist,
        "mnist": read_mnist,
        "synthetic": read_synthetic,
        "text": read_text,
    }
)

# For each data set that can be fetched: whether its files are there already.
_PRESENT: Mapping[str, Callable[[str, str | None], bool]] = MappingProxyType({
    "cifar10": has_cifar, "cifar100": has_cifar, "fashion-mnist": has_idx, "mnist": has_idx,
})  # fmt: skip


def load(data: Data, seed: int) -> Split:
    """Reads the data set a job names.

    All data sets take `data.args.limit` and `test_limit`: only the first so many training or test samples are kept.

    Args:
        data: The job's section `data`; `partition` and `augment` play no part here.
        seed: The job's seed; only `synthetic` depends on it.

    Returns:
        Training samples, test samples and the number of classes.

    Raises:
        DataError: The name or an argument is unknown, files are missing or damaged, or a download failed.
    """
    limits = [whole_number(data.name, key, data.args[key]) if key in data.args else None for key in LIMITS]
    args = {key: value for key, value in data.args.items() if key not in LIMITS}
    if ":" in data.name:
        split = read_custom(data.name, data.dir, args)
    else:
        reader = _reader(data.name)
        accept_arguments(data.name, reader, args, already=("folder", "seed"))
        if data.download and data.name in _PRESENT and not _PRESENT[data.name](data.name, data.dir):
            fetch(data.name, folder_of(data.name, data.dir))
        split = reader(data.dir, seed, **args)
    train = split.train if limits[0] is None else split.train.first(limits[0])
    test = split.test if limits[1] is None else split.test.first(limits[1])
    return Split(train, test, split.classes)


def _reader(name: str) -> Callable[..., Split]:
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"data.name {name!r} is not a data set{hint}; known: {', '.join(READERS)}, or module:function")
    return READERS[name]
