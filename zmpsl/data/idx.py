"""MNIST and Fashion-MNIST from IDX files, plain or .gz.

An IDX file is big-endian: the magic number 0x000008DD (08: unsigned bytes, DD: dimensions), one 32-bit size per
dimension, then the bytes. Source: the format description on the MNIST page of LeCun, Cortes and Burges.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.files import find, folder_of, missing, read_bytes
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError

__all__ = ["IDX_FILES", "has_idx", "read_fashion_mnist", "read_idx", "read_mnist"]

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

_SUBFOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}  # where torchvision puts them
_CLASSES = 10
_SIDE = 28
_LIMIT_BYTES = 1 << 28  # the largest official file holds 47 MB


def read_mnist(folder: str | None, seed: int) -> Split:
    """Reads MNIST: 60,000 + 10,000 images `(1, 28, 28) uint8`, 10 classes; mean 0.1307, std 0.3081."""
    return _read("mnist", folder, (0.1307,), (0.3081,))


def read_fashion_mnist(folder: str | None, seed: int) -> Split:
    """Reads Fashion-MNIST: 60,000 + 10,000 images `(1, 28, 28) uint8`, 10 classes; mean 0.2860, std 0.3530."""
    return _read("fashion-mnist", folder, (0.2860,), (0.3530,))


def has_idx(name: str, folder: str | None) -> bool:
    """Says whether all four files of `mnist` or `fashion-mnist` are there."""
    return all(find(_folders(name, folder), file) for file in IDX_FILES)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads one IDX file of unsigned bytes.

    Args:
        path: The file; a name that ends in `.gz` is unpacked.
        dimensions: How many dimensions it must have.

    Returns:
        The array, of the shape the header tells.

    Raises:
        DataError: The magic number is wrong, or the sizes in the header do not fit the length of the file.
    """
    content = read_bytes(path, _LIMIT_BYTES)
    start = 4 + 4 * dimensions
    magic = 0x0800 + dimensions
    if len(content) < start:
        raise DataError(f"{path}: has {len(content)} bytes, but an IDX header of {dimensions} dimensions has {start}")
    found, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    if found != magic:
        raise DataError(f"{path}: magic number is 0x{found:08x}, expected 0x{magic:08x}: not the file its name says")
    expected = start + math.prod(shape)
    if len(content) != expected:
        read = f"more than {_LIMIT_BYTES}" if len(content) > _LIMIT_BYTES else f"{len(content)}"
        raise DataError(f"{path}: has {read} bytes, but its header says {tuple(shape)}, which makes {expected} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _folders(name: str, folder: str | None) -> list[Path]:
    top = folder_of(name, folder)
    return [top, top / _SUBFOLDERS[name]]


def _read(name: str, folder: str | None, mean: tuple[float, ...], std: tuple[float, ...]) -> Split:
    folders = _folders(name, folder)
    paths = {file: find(folders, file) for file in IDX_FILES}
    if absent := [f"{file}(.gz)" for file, path in paths.items() if path is None]:
        raise missing(name, absent, folders)
    found = [path for path in paths.values() if path is not None]
    return Split(_samples(found[0], found[1], mean, std), _samples(found[2], found[3], mean, std), _CLASSES)


def _samples(image_path: Path, label_path: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> Samples:
    images = read_idx(image_path, 3)
    labels = read_idx(label_path, 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise DataError(f"{image_path}: images are {images.shape[1:]}, expected ({_SIDE}, {_SIDE})")
    if len(images) != len(labels):
        raise DataError(f"{image_path} holds {len(images)} images, but {label_path} holds {len(labels)} labels")
    if len(wrong := np.flatnonzero(labels >= _CLASSES)):
        raise DataError(
            f"{label_path}: label {wrong[0]} is {labels[wrong[0]]}, expected 0 to {_CLASSES - 1} "
            f"({len(wrong)} labels are out of range)"
        )
    return Samples(images[:, np.newaxis], labels, mean, std)
