"""Codec kernels to hold against each other, and tensors to do it with."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest

from zmpsl import codec_twins
from zmpsl.codec_kernels import Kernels, gather

STEP = 0.3
TWIN = gather(codec_twins)


def native(isa: str) -> Kernels | None:
    """The C kernels of one set: a module of its own, since a set is picked when a module is made."""
    spec = importlib.util.find_spec("zmpsl._codecs")
    if spec is None or spec.loader is None:
        return None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMPSL_ISA", isa)
        try:
            module: ModuleType = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ValueError:  # not on this processor
            return None
    return gather(module)


ALL = {"numpy": TWIN, **{isa: native(isa) for isa in ("portable", "avx2", "neon")}}
NATIVE = [kernels for isa, kernels in ALL.items() if kernels is not None and isa != "numpy"]


def noise(n: int, salt: int = 0) -> np.ndarray:
    """32 even bits per value, the same for ever: no generator of NumPy promises that."""
    x = np.arange(n, dtype=np.uint64) + np.uint64(salt << 32) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x >> np.uint64(32)).astype(np.uint32)


def bell(n: int, salt: int = 0) -> np.ndarray:
    """About normal, with exact arithmetic only: sums of four even numbers."""
    parts = np.stack([noise(n, salt * 4 + i).astype(np.int64) >> 8 for i in range(4)])
    return ((parts.sum(0) - (1 << 25)) / (1 << 24)).astype(np.float32)


def samples(n: int) -> dict[str, np.ndarray]:
    """What tensors look like, and what they had better not."""
    x = bell(n)
    huge = (x.view(np.uint32) & np.uint32(0x807FFFFF)) | np.uint32(0x7F000000)  # 1.7e38 and more
    odd = x.copy()
    for start, value in ((0, -0.0), (3, np.nan), (5, np.inf), (6, -np.inf), (9, 1e-42)):
        odd[start::37] = value
    return {
        "activations": np.maximum(x, 0),
        "before a ReLU": x,
        "gradients": x * x * x * np.float32(1e-5),
        "any bits": noise(n).view(np.float32),
        "zeros": np.zeros(n, np.float32),
        "constant": np.full(n, -3.5, np.float32),
        "odd": odd,
        "huge": huge.view(np.float32),
        "subnormal": (noise(n, 5) >> 12 | (noise(n, 6) & 1) << 31).view(np.float32),
        "sparse": np.where(noise(n, 9) % 50 == 0, x, np.float32(0)),
        "tie": np.round(x * 8) * np.float32(0.15),
    }


def encode(kernels: Kernels, name: str, values: np.ndarray, step: float = STEP) -> bytes:
    """Encodes into a destination of exactly the bound, and checks that nothing beyond it was written."""
    kernel = kernels.formats[name]
    room = kernel.bound(values.nbytes if name == "bytes" else values.size)
    memory = np.full(room + 64, 0xA5, np.uint8)
    before = values.tobytes()
    size = kernel.encode_into(values, memory[:room], *((step,) if name == "qz" else ()))
    assert size <= room
    assert (memory[room:] == 0xA5).all()
    assert values.tobytes() == before
    return memory[:size].tobytes()


def decode(kernels: Kernels, name: str, encoding: bytes, n: int) -> np.ndarray:
    memory = np.full(n + 16, 7, np.float32)
    assert kernels.formats[name].decode_into(encoding, memory[:n]) == 4 * n
    assert (memory[n:] == 7).all()
    return memory[:n]


def canonical(values: np.ndarray) -> bytes:
    """The sign and payload of a computed NaN differ between machines."""
    return np.where(np.isnan(values), np.float32(np.nan), values).tobytes()
