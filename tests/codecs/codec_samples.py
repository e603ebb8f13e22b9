"""Tensors that are the same on every machine and for ever, and the digests of their encodings; NumPy only."""

from __future__ import annotations

import numpy as np

STEP = 0.3


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


def related(n: int) -> dict[str, np.ndarray]:
    """What has its signs from its neighbours, before it or a row above; and what nearly has."""
    x, at = np.abs(bell(n)), np.arange(n)
    runs = np.where(at // 23 % 2, -x, x)
    rows = np.where((noise(n + 32, 7)[at % 32] & 1) ^ (noise(n, 8) % 10 == 0), -x, x)
    return {
        "runs": runs,
        "rows": rows,
        "runs with zeros": np.where(noise(n, 9) % 3 == 0, np.float32(0), runs),
        "negative": -x,
        "far apart": runs * np.where(noise(n, 10) % 2, np.float32(2.0**-70), np.float32(2.0**70)),
        "runs of few": np.where(at // 23 % 2, np.float32(-1.5), np.float32(3)),
    }


def canonical(values: np.ndarray) -> bytes:
    """The sign and payload of a computed NaN differ between machines."""
    return np.where(np.isnan(values), np.float32(np.nan), values).tobytes()


# Digests of all encodings of `samples(70001)`, in order; they hold for every machine and every version to come.
GOLDEN = {
    "bf16": "df6dd9643ac2b953",
    "int8": "83851a531834b941",
    "int4": "c56a5942839ee98f",
    "bitmap": "4e7f7be9fa5ec36a",
    "bytes": "53b0c12ee6ce8ce6",
    "huff": "9e709eede5995dd8",
    "bf16_huff": "9f385e58cc107920",
    "qz": "ddd54cb6fdb9c737",
}

# The same of `related(70001)`.
GOLDEN_RELATED = {
    "bf16": "254109104aeb1636",
    "int8": "a69aa87e52115267",
    "int4": "521115dfdf413491",
    "bitmap": "c9c915d9529e9a4c",
    "bytes": "c0e82035a11d2546",
    "huff": "2ce4112d7fa4b33a",
    "bf16_huff": "50809daa64463f1d",
    "qz": "0797d05d5a8b9f4a",
}
