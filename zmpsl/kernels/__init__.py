"""Face of the codec kernels: the C extension where it could be built, else the NumPy twins, with the same bytes.

`ZMPSL_NO_EXT=1` takes the twins in any case; `ZMPSL_ISA=portable` (`avx2`, `avx512`, `neon`) picks a set of C kernels.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["KERNELS", "NAMES", "NOT_NATIVE", "Kernel", "Kernels", "gather"]

NAMES = ("bf16", "int8", "int4", "bitmap", "bytes", "huff", "bf16_huff", "qz")
STEP_MIN = 2.0**-100
STEP_MAX = 2.0**100

Buffer = Any  # whatever has the buffer protocol; typing has no name for it before Python 3.12


@dataclass(frozen=True, slots=True)
class Kernel:
    """One format.

    Attributes:
        name: One of `NAMES`.
        encode_into: (source, destination[, step]) to bytes written; only qz has a step. The destination needs
            `bound(n)` bytes.
        decode_into: (one whole encoding, destination of exactly n values) to bytes written.
        bound: Most bytes that n float32 values (n bytes, for `bytes`) can need.
    """

    name: str
    encode_into: Callable[..., int]
    decode_into: Callable[[Buffer, Buffer], int]
    bound: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of everything. All of it raises ValueError, and nothing else, for bytes that do not fit.

    Attributes:
        isa: `numpy`, `portable`, `avx2`, `avx512` or `neon`.
        formats: By name.
        mean_square: Mean of the squares of float32 values; values that are not finite count as 0.
        add_into: (float32 source, weight, float64 sums, float64 rests): adds source times weight to the sums and writes
            what rounding left out; tells whether any of that is not 0.
        mask_into: (source, destination): one bit per value, set where it is not 0, the first in the lowest bit.
        pack_into: (source, mask, destination): the values under the mask, in order.
        unpack_into: (source, mask, destination): the reverse, zeros elsewhere.
        module: Where all of this comes from.
    """

    isa: str
    formats: dict[str, Kernel]
    mean_square: Callable[[Buffer], float]
    add_into: Callable[[Buffer, float, Buffer, Buffer], bool]
    mask_into: Callable[[Buffer, Buffer], int]
    pack_into: Callable[[Buffer, Buffer, Buffer], int]
    unpack_into: Callable[[Buffer, Buffer, Buffer], int]
    module: ModuleType

    @property
    def native(self) -> bool:
        """Whether these are the C kernels."""
        return self.isa != "numpy"

    def topk_encode_into(self, values: Buffer, destination: Buffer, share: float) -> int:
        """Writes the largest float32 values, about that share of all, as bf16_huff; the others become 0."""
        size: int = self.module.topk_encode_into(values, destination, share)
        return size

    def step(self, values: Buffer, alpha: float) -> float:
        """Gives qz's step for float32 values: alpha times their root mean square, within what qz allows."""
        return min(max(alpha * math.sqrt(self.mean_square(values)), STEP_MIN), STEP_MAX)


def gather(module: ModuleType) -> Kernels:
    """Gives the kernels of a module: `zmpsl._codecs` or `zmpsl.kernels.twins`."""
    formats = {
        name: Kernel(name, *(getattr(module, f"{name}_{end}") for end in ("encode_into", "decode_into", "bound")))
        for name in NAMES
    }
    others = (module.mean_square, module.add_into, module.mask_into, module.pack_into, module.unpack_into)
    return Kernels(module.ISA, formats, *others, module)


def _load() -> ModuleType:
    if not os.environ.get("ZMPSL_NO_EXT"):
        try:
            return importlib.import_module("zmpsl._codecs")
        except ImportError:
            pass  # built without a compiler: the twins do the same, slower
    return importlib.import_module("zmpsl.kernels.twins")


KERNELS = gather(_load())
NOT_NATIVE = "codecs run in NumPy here and not in C: the same bytes, many times slower; `zmpsl doctor` says what to do"
