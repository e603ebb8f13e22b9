"""CIFAR-10 and CIFAR-100 from binary batches (.bin, .bin.gz) or from the batches of the "python version".

A binary record is the label (CIFAR-100: coarse label, fine label) and then 3,072 bytes: 32 x 32 red, green, blue.
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and its data page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.cifar_python import read_python_batch
from zmpsl.data.files import find, folder_of, missing, read_bytes
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError

__all__ = ["has_cifar", "read_cifar10", "read_cifar100"]

Images = NDArray[np.uint8]  # (N, 3072)
Labels = NDArray[np.int64]

_PIXELS = 3 * 32 * 32
_LIMIT_RECORDS = 50_000  # the largest official file, CIFAR-100's train.bin
_HELD_OUT = 8  # with no test file, the last one in so many samples is the test set


@dataclass(frozen=True)
class _Version:
    """What tells CIFAR-10 from CIFAR-100."""

    name: str
    classes: int
    train: str  # a pattern; `.bin` or nothing follows
    test: str
    label_bytes: int  # the last of them is the label
    python_labels: str
    subfolders: tuple[str, ...]  # where the official archives put the files
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR10 = _Version(
    "cifar10", 10, "data_batch_*", "test_batch", 1, "labels", ("cifar-10-batches-bin", "cifar-10-batches-py"),
    (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010),
)  # fmt: skip
_CIFAR100 = _Version(
    "cifar100", 100, "train", "test", 2, "fine_labels", ("cifar-100-binary", "cifar-100-python"),
    (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
)  # fmt: skip


def read_cifar10(folder: str | None, seed: int) -> Split:
    """Reads CIFAR-10: images `(3, 32, 32) uint8`, 10 classes.

    Every `data_batch_*` present is training data, in the order of the names; where there is no `test_batch`,
    the last 1/8 of these samples is the test set.
    """
    return _read(_CIFAR10, folder)


def read_cifar100(folder: str | None, seed: int) -> Split:
    """Reads CIFAR-100: 50,000 + 10,000 images `(3, 32, 32) uint8`, 100 (fine) classes."""
    return _read(_CIFAR100, folder)


def has_cifar(name: str, folder: str | None) -> bool:
    """Says whether the files of `cifar10` or `cifar100` are there; the test file of `cifar10` may be wanting."""
    version = _CIFAR10 if name == "cifar10" else _CIFAR100
    train, test = _files(version, _folders(version, folder))
    return bool(train) and (version is _CIFAR10 or test is not None)


def _folders(version: _Version, folder: str | None) -> list[Path]:
    top = folder_of(version.name, folder)
    return [top, *(top / sub for sub in version.subfolders)]


def _files(version: _Version, folders: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Gives the training files and the test file of the first folder that has training files.

    Binary files go before python ones, and a plain file before its own .gz, so that no sample is read twice.
    """
    for folder in filter(Path.is_dir, folders):
        names = sorted({path.name.removesuffix(".gz") for path in folder.iterdir()})
        for ending in (".bin", ""):
            pattern = version.train + ending
            wanted = [name for name in names if fnmatchcase(name, pattern) and Path(name).suffix == ending]
            train = [path for name in wanted if (path := find([folder], name)) is not None]
            if train:
                return train, find([folder], version.test + ending)
    return [], None


def _read(version: _Version, folder: str | None) -> Split:
    folders = _folders(version, folder)
    train_files, test_file = _files(version, folders)
    if not train_files:
        names = [f"{version.train}.bin(.gz)", f"{version.test}.bin(.gz)", f"{version.train} (python version)"]
        raise missing(version.name, names, folders)
    if test_file is None and version is not _CIFAR10:
        raise missing(version.name, [f"{version.test}{train_files[0].suffix}"], [train_files[0].parent])
    images, labels = _join([_read_file(version, path) for path in train_files])
    if test_file is not None:
        test_images, test_labels = _read_file(version, test_file)
    else:
        cut = len(images) - len(images) // _HELD_OUT
        images, test_images = images[:cut], images[cut:]
        labels, test_labels = labels[:cut], labels[cut:]
    return Split(_samples(version, images, labels), _samples(version, test_images, test_labels), version.classes)


def _join(parts: list[tuple[Images, Labels]]) -> tuple[Images, Labels]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _samples(version: _Version, images: Images, labels: Labels) -> Samples:
    return Samples(images.reshape(-1, 3, 32, 32), labels, version.mean, version.std)


def _read_file(version: _Version, path: Path) -> tuple[Images, Labels]:
    if path.name.removesuffix(".gz").endswith(".bin"):
        images, labels = _read_binary(path, version.label_bytes)
    else:
        images, labels = read_python_batch(path, version.python_labels)
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= version.classes))):
        raise DataError(
            f"{path}: the label of record {wrong[0]} is {labels[wrong[0]]}, expected 0 to {version.classes - 1} "
            f"({len(wrong)} of {len(labels)} labels are out of range): this is no {version.name} file"
        )
    return images, labels


def _read_binary(path: Path, label_bytes: int) -> tuple[Images, Labels]:
    record = label_bytes + _PIXELS
    content = read_bytes(path, _LIMIT_RECORDS * record)
    if not content or len(content) % record or len(content) > _LIMIT_RECORDS * record:
        raise DataError(
            f"{path}: has {len(content)} bytes, expected 1 to {_LIMIT_RECORDS} records of {record} bytes "
            f"({len(content) // record} records and {len(content) % record} bytes were read)"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)
