"""Receive buffers: aligned, never used again under somebody's eyes, always used again after the last look."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.transport.buffers import ALIGNMENT, BufferPool, size_class

SOME = settings(max_examples=200, deadline=None)
MIB = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Gives other threads a chance until something has happened; False when it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0)
    return True


class TestSizeClass:
    @pytest.mark.parametrize(
        ("nbytes", "size"),
        [
            *((0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (32768, 32768), (32769, 36864), (65537, 73728)),
            *((MIB, MIB), (MIB + 1, MIB + MIB // 8), (2 * MIB - 1, 2 * MIB), (2 * MIB + 1, 2 * MIB + MIB // 4)),
        ],
    )
    def test_the_table(self, nbytes: int, size: int) -> None:
        assert size_class(nbytes) == size

    @SOME
    @given(st.integers(0, 1 << 41))
    def test_a_class_covers_its_requests_and_wastes_little(self, nbytes: int) -> None:
        size = size_class(nbytes)
        assert size >= max(nbytes, 4096)
        assert size % 4096 == 0
        assert size - nbytes <= max(4096, nbytes // 8)
        assert size_class(size) == size

    @SOME
    @given(st.integers(0, 1 << 41), st.integers(0, 1 << 41))
    def test_more_never_gets_less(self, one: int, other: int) -> None:
        assert (size_class(one) <= size_class(other)) or one > other

    def test_there_are_eight_classes_per_power_of_two(self) -> None:
        assert len({size_class(nbytes) for nbytes in range(MIB + 1, 2 * MIB + 1, 512)}) == 8


class TestLease:
    @pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 4095, 4096, 4097, 100_001, MIB])
    def test_it_is_aligned_writable_and_as_long_as_asked_for(self, nbytes: int) -> None:
        pool = BufferPool()
        leases = [pool.take(nbytes) for _ in range(5)]
        for number, lease in enumerate(leases):
            assert (lease.shape, lease.dtype) == ((nbytes,), np.uint8)
            assert address(lease) % ALIGNMENT == 0
            lease[:] = number
        assert all((lease == number).all() for number, lease in enumerate(leases))

    def test_the_books_are_right(self) -> None:
        pool = BufferPool()
        small, large = pool.take(10), pool.take(5000)
        assert (pool.leased_bytes, pool.free_bytes, pool.allocations) == (4096 + 8192, 0, 2)
        del small
        assert (pool.leased_bytes, pool.free_bytes, pool.allocations) == (8192, 4096, 2)
        del large
        assert (pool.leased_bytes, pool.free_bytes, pool.allocations) == (0, 4096 + 8192, 2)


def as_view(lease: np.ndarray) -> object:
    return lease[100:200].view(np.float32)[3:].reshape(2, 11)


def as_tensor(lease: np.ndarray) -> object:
    return torch.from_numpy(lease.view(np.float32))[5:].view(torch.int32).unsqueeze(0)


def as_graph(lease: np.ndarray) -> object:
    leaf = torch.from_numpy(lease.view(np.float32)).requires_grad_()
    return leaf * leaf  # saves its input for backward


def as_memoryview(lease: np.ndarray) -> object:
    return memoryview(lease)[10:20]


def as_array_of_memoryview(lease: np.ndarray) -> object:
    return np.frombuffer(memoryview(lease[8:]), np.int64)[1:]


def as_frame(lease: np.ndarray) -> object:
    return zmq.Frame(lease[:4000], copy=False)


HOLDERS = [as_view, as_tensor, as_graph, as_memoryview, as_array_of_memoryview, as_frame]


class TestRecycling:
    @pytest.mark.parametrize("hold", HOLDERS)
    def test_memory_is_used_again_when_its_last_holder_is_gone_and_not_before(
        self, hold: Callable[..., object]
    ) -> None:
        pool = BufferPool()
        lease = pool.take(8000)
        where = address(lease)
        lease[:] = 0
        holder = hold(lease)
        del lease
        others = [pool.take(8000) for _ in range(3)]
        assert where not in map(address, others)
        assert pool.free_bytes == 0
        for other in others:
            other[:] = 0xFF
        if isinstance(holder, np.ndarray):
            assert not holder.any()
        del holder
        # libzmq gives memory back in a thread of pyzmq's.
        assert until(lambda: pool.free_bytes == 8192)
        assert address(pool.take(8000)) == where

    def test_memory_sent_without_a_copy_is_free_once_it_is_received(self) -> None:
        pool = BufferPool()
        context = zmq.Context()
        push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        try:
            pull.bind("inproc://buffers")
            push.connect("inproc://buffers")
            lease = pool.take(100_000)
            lease[:] = 7
            push.send(memoryview(lease), copy=False)
            del lease
            assert pool.free_bytes == 0
            assert pull.recv() == b"\x07" * 100_000
            assert until(lambda: pool.leased_bytes == 0)
        finally:
            push.close(linger=0)
            pull.close(linger=0)
            context.term()

    def test_a_lease_in_a_cycle_is_found_by_the_garbage_collector(self) -> None:
        pool = BufferPool()
        holder: list[object] = [pool.take(8000)]
        holder.append(holder)
        del holder
        gc.collect()
        assert (pool.leased_bytes, pool.free_bytes) == (0, 8192)

    def test_in_steady_state_nothing_is_allocated(self) -> None:
        pool = BufferPool()
        window: list[object] = []
        for step in range(300):
            window.append(torch.from_numpy(pool.take(100_000 + step % 50).view(np.uint8)))
            del window[:-3]
        assert pool.allocations == 4

    def test_another_size_of_the_same_class_uses_the_same_memory(self) -> None:
        pool = BufferPool()
        where = address(pool.take(66_000))
        assert address(pool.take(73_000)) == where
        assert address(pool.take(74_000)) != where

    def test_free_memory_above_the_limit_is_given_back(self) -> None:
        pool = BufferPool(keep_bytes=3 * MIB)
        leases = [pool.take(MIB) for _ in range(5)]
        del leases
        assert (pool.leased_bytes, pool.free_bytes) == (0, 3 * MIB)
        again = [pool.take(MIB) for _ in range(5)]
        assert pool.allocations == 7
        assert pool.free_bytes == 0
        del again

    def test_a_pool_that_keeps_nothing(self) -> None:
        pool = BufferPool(keep_bytes=0)
        for _ in range(3):
            pool.take(10)
        assert (pool.leased_bytes, pool.free_bytes, pool.allocations) == (0, 0, 3)

    def test_leases_outlive_their_pool(self) -> None:
        pool = BufferPool()
        lease = pool.take(5000)
        lease[:] = 3
        del pool
        gc.collect()
        assert (lease == 3).all()
        del lease

    @SOME
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 40_000)), max_size=40))
    def test_live_leases_never_overlap_and_the_books_stay_right(self, steps: list[tuple[bool, int]]) -> None:
        pool = BufferPool(keep_bytes=100_000)
        live: list[tuple[np.ndarray, int]] = []
        for number, (take, nbytes) in enumerate(steps):
            if take or not live:
                lease = pool.take(nbytes)
                lease[:] = number % 256
                live.append((lease[nbytes // 3 :], number % 256))
                del lease
            else:
                live.pop(nbytes % len(live))
            assert all((view == value).all() for view, value in live)
            assert pool.free_bytes <= 100_000
        live.clear()
        assert pool.leased_bytes == 0


def test_views_may_die_in_other_threads() -> None:
    # pyzmq's collector thread and torch's backward threads drop the last view; the books must stay right.
    pool = BufferPool()
    lanes: list[queue.SimpleQueue[np.ndarray | None]] = [queue.SimpleQueue() for _ in range(3)]
    damaged: list[int] = []

    def drop(lane: queue.SimpleQueue[np.ndarray | None]) -> None:
        while (view := lane.get()) is not None:
            if not (view == view[0]).all():
                damaged.append(int(view[0]))
            del view

    threads = [threading.Thread(target=drop, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for step in range(4000):
        lease = pool.take(5000 + 4096 * (step % 3))
        lease[:] = step % 256
        lanes[step % 3].put(lease[::7])
        del lease
    for lane in lanes:
        lane.put(None)
    for thread in threads:
        thread.join(30)
    assert damaged == []
    assert until(lambda: pool.leased_bytes == 0)
    assert pool.free_bytes == sum(size * len(slabs) for size, slabs in pool._free.items())
    assert sum(map(len, pool._free.values())) == pool.allocations
