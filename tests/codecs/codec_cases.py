"""Codec kernels to hold against each other, and the tensors of `codec_samples` to do it with."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest
from codec_samples import STEP, bell, canonical, related, samples

from zmpsl.kernels import Kernels, gather, twins

__all__ = ["ALL", "NATIVE", "STEP", "TWIN", "bell", "canonical", "decode", "encode", "native", "related", "samples"]

TWIN = gather(twins)


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


ALL = {"numpy": TWIN, **{isa: native(isa) for isa in ("portable", "avx2", "avx512", "neon")}}
NATIVE = [kernels for isa, kernels in ALL.items() if kernels is not None and isa != "numpy"]


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
