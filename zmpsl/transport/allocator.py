"""Tells glibc and torch how to get memory, for processes that receive tensors and train all day.

libzmq allocates every message it receives. Left alone, glibc gives each freed 1 MiB back to the system and gets fresh
pages for the next one: dozens of page faults per message. Only a process of our own may be
tuned like this, so roles embedded in another program do not call it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["give_back_freed_memory", "keep_freed_memory", "use_huge_pages"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 64 << 20
# The largest that glibc takes. Both must be set: one alone stops glibc from raising the other.
MMAP_FROM_BYTES = 32 << 20
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # not in every kernel


def keep_freed_memory() -> bool:
    """Lets this process keep up to 64 MiB of freed memory per arena; tells whether the C library could do it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl, macOS
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)) and bool(mallopt(M_MMAP_THRESHOLD, MMAP_FROM_BYTES))


def use_huge_pages() -> None:
    """Asks torch to get large tensors in huge pages, where the system has them; before anything imports torch.

    Every backward makes gradients anew. Those of one layer of 4096 x 25088 are 100,000 page faults of 4 KiB, which take
    longer than the sums in them; of 2 MiB they are 200. NumPy asks for the same by itself. A kernel without any
    refuses, and torch warns of that in every process.
    """
    if HUGE_PAGES.exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back_freed_memory() -> None:
    """Gives all whole pages that are free in the C library's heaps back to the system, also between live ones."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
