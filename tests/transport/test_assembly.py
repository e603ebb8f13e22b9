"""Chunks become tensors only when each is the one that must come next; after a mistake the next tensor is fine."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from msgspec.structs import replace

from zmpsl.codecs import NONE, by_name, by_number
from zmpsl.errors import RemoteProtocolError
from zmpsl.transport.assembly import MAX_OPEN_PER_OWNER, Assembly
from zmpsl.transport.buffers import ALIGNMENT, BufferPool
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, Header, messages, parse

Chunk = tuple[Header, bytes]


def task_of(owner: int = 0, chunks: int = 3, batch: int = 0, sender: int = 1, value: int = 0) -> Task:
    """A task whose tensor takes that many chunks, the last one 12 bytes long; numbers count up from `value`."""
    tensor = np.arange(value, value + ((chunks - 1) * CHUNK + 12) // 4, dtype=np.int32)
    return Task(Op.FORWARD, 1, owner, 0, batch=batch, sender=sender, tensor=tensor)


def chunks_of(task: Task, codec: str = "none") -> list[Chunk]:
    """The parsed messages of a task."""
    return [(parse(first, 1 << 30), bytes(chunk or b"")) for first, chunk in messages(task, by_name(codec), 0)]


def feed(assembly: Assembly, chunk: Chunk) -> Task | None:
    """What an inbox does with a message."""
    header, data = chunk
    if header.dtype is not None:
        by_number(header.codec).unpack_into(memoryview(data), assembly.place(header))
    return assembly.finish(header)


def whole(assembly: Assembly, task: Task) -> bool:
    """Whether a task sent in order arrives as it is."""
    *first, last = [feed(assembly, chunk) for chunk in chunks_of(task)]
    return first == [None] * len(first) and is_same(last, task)


def about(task: Task) -> Task:
    """What a task is about, without its tensor."""
    return replace(task, tensor=None)


def is_same(found: Task | None, sent: Task) -> bool:
    return found is not None and about(found) == about(sent) and np.array_equal(found.tensor, sent.tensor)


@pytest.fixture
def assembly() -> Assembly:
    return Assembly(BufferPool())


class TestInOrder:
    @pytest.mark.parametrize("codec", ["none", "lz4"])
    @pytest.mark.parametrize("chunks", [1, 2, 5])
    def test_the_last_chunk_makes_the_tensor(self, assembly: Assembly, chunks: int, codec: str) -> None:
        task = task_of(chunks=chunks)
        *first, last = [feed(assembly, chunk) for chunk in chunks_of(task, codec)]
        assert first == [None] * (chunks - 1)
        assert is_same(last, task)

    def test_a_task_without_tensor_is_whole_at_once(self, assembly: Assembly) -> None:
        task = Task(Op.CLOSE, 1, 0, 0, count=5)
        assert feed(assembly, chunks_of(task)[0]) == task

    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
    def test_shape_and_dtype_are_the_headers(self, assembly: Assembly, shape: tuple[int, ...]) -> None:
        task = Task(Op.FORWARD, 1, 0, 0, tensor=np.ones(shape, np.float64))
        found = feed(assembly, chunks_of(task)[0])
        assert is_same(found, task)
        assert found is not None
        assert found.tensor is not None
        assert (found.tensor.shape, found.tensor.dtype) == (shape, np.float64)

    def test_the_tensor_lies_aligned_in_pooled_memory_that_is_given_back(self) -> None:
        pool = BufferPool()
        assembly = Assembly(pool)
        for _ in range(5):
            found = feed(assembly, chunks_of(task_of(chunks=1))[0])
            assert found is not None
            assert found.tensor is not None
            assert found.tensor.ctypes.data % ALIGNMENT == 0
            assert pool.leased_bytes == 4096
            del found
            assert pool.leased_bytes == 0
        assert pool.allocations == 1

    def test_the_chunks_of_one_tensor_lie_behind_each_other(self, assembly: Assembly) -> None:
        headers = [header for header, _ in chunks_of(task_of(chunks=3))]
        places = []
        for header in headers:
            places.append(assembly.place(header))
            assembly.finish(header)
        starts = [place.ctypes.data - places[0].ctypes.data for place in places]
        assert starts == [0, CHUNK, 2 * CHUNK]
        assert [place.nbytes for place in places] == [CHUNK, CHUNK, 12]

    def test_owners_and_senders_may_be_interleaved_in_any_way(self, assembly: Assembly) -> None:
        draw = random.Random(20240216)
        tasks = [
            task_of(owner, chunks, sender=sender, batch=batch, value=1000 * owner + sender)
            for (owner, sender, batch), chunks in zip(
                itertools.product(range(3), (1, 2), (0, 1)), itertools.cycle([1, 2, 4])
            )
        ]
        lanes = [chunks_of(task) for task in tasks]
        found = []
        while any(lanes):
            task = feed(assembly, draw.choice([lane for lane in lanes if lane]).pop(0))
            if task is not None:
                found.append(task)
        assert len(found) == len(tasks)
        assert all(is_same(next(task for task in found if about(task) == about(sent)), sent) for sent in tasks)


class TestMistakes:
    @pytest.mark.parametrize(
        ("order", "wrong"),
        [
            ([1], 0),  # the first is missing
            ([2], 0),
            ([0, 2], 1),  # one between is missing
            ([0, 1, 1], 2),  # one came twice
            ([0, 1, 2, 1], 3),
            ([0, 2, 1], 1),  # two changed places
            ([0, 1, 3], 2),
            ([0, 1, 2, 3, 3], 4),  # the last came twice
            ([0, 1, 2, 3, 1], 4),
        ],
        ids=str,
    )
    def test_a_chunk_that_is_not_the_next_is_refused(self, assembly: Assembly, order: list[int], wrong: int) -> None:
        chunks = chunks_of(task_of(chunks=4))
        for number in order[:wrong]:
            feed(assembly, chunks[number])
        with pytest.raises(RemoteProtocolError, match=r"chunk at \d+ of FORWARD owner 0 .* does not follow what came"):
            feed(assembly, chunks[order[wrong]])
        assert whole(assembly, task_of(chunks=4, value=7))
        assert whole(assembly, task_of(chunks=1, batch=1))

    def test_the_rest_of_a_tensor_that_was_given_up_is_refused_too(self, assembly: Assembly) -> None:
        chunks = chunks_of(task_of(chunks=4))
        feed(assembly, chunks[0])
        for number in (2, 3, 1):
            with pytest.raises(RemoteProtocolError):
                feed(assembly, chunks[number])
        assert whole(assembly, task_of(chunks=4))

    def test_a_first_chunk_that_comes_again_starts_anew_and_mixes_nothing(self, assembly: Assembly) -> None:
        old, new = chunks_of(task_of(chunks=3, value=1)), chunks_of(task_of(chunks=3, value=500))
        feed(assembly, old[0])
        feed(assembly, old[1])
        feed(assembly, new[0])
        with pytest.raises(RemoteProtocolError):
            feed(assembly, old[2])
        assert whole(assembly, task_of(chunks=3, value=9))

    @pytest.mark.parametrize("tensor", [(2, 262_145), (262_145, 2), (1, 524_290)], ids=str)
    def test_a_chunk_of_another_shape_is_refused(self, assembly: Assembly, tensor: tuple[int, ...]) -> None:
        one = Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(524_290, np.int32))
        other = Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(tensor, np.int32))
        feed(assembly, chunks_of(one)[0])
        with pytest.raises(RemoteProtocolError):
            feed(assembly, chunks_of(other)[1])
        assert whole(assembly, other)

    def test_a_chunk_of_another_dtype_is_refused(self, assembly: Assembly) -> None:
        one = Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(524_290, np.int32))
        other = Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(524_290, np.float32))
        feed(assembly, chunks_of(one)[0])
        with pytest.raises(RemoteProtocolError):
            feed(assembly, chunks_of(other)[1])

    @pytest.mark.parametrize(
        "field", ["op", "plan", "owner", "round", "epoch", "batch", "micro", "micros", "count", "sender"]
    )
    def test_a_chunk_of_another_task_is_refused(self, assembly: Assembly, field: str) -> None:
        numbers = {
            "plan": 1,
            "owner": 2,
            "round": 3,
            "epoch": 4,
            "batch": 5,
            "micro": 6,
            "micros": 70,
            "count": 8,
            "sender": 9,
        }
        tensor = np.zeros(2 * CHUNK, np.uint8)
        one = Task(Op.FORWARD, **numbers, tensor=tensor)
        changed = {field: numbers.get(field, 0) + 1}
        other = Task(
            **{"op": Op.FORWARD, **numbers, **(changed if field != "op" else {"op": Op.BACKWARD})}, tensor=tensor
        )
        feed(assembly, chunks_of(one)[0])
        with pytest.raises(RemoteProtocolError):
            feed(assembly, chunks_of(other)[1])
        # The other task is untouched by it.
        assert is_same(feed(assembly, chunks_of(one)[1]), one)

    def test_a_dropped_tensor_gives_its_memory_back(self) -> None:
        pool = BufferPool()
        assembly = Assembly(pool)
        chunks = chunks_of(task_of(chunks=3))
        feed(assembly, chunks[0])
        assembly.drop(chunks[1][0])
        assert pool.leased_bytes == 0
        with pytest.raises(RemoteProtocolError):
            feed(assembly, chunks[1])
        assembly.drop(chunks[1][0])  # nothing is open: nothing happens
        assert whole(assembly, task_of(chunks=3))

    def test_a_refused_chunk_gives_the_memory_of_its_tensor_back(self) -> None:
        pool = BufferPool()
        assembly = Assembly(pool)
        chunks = chunks_of(task_of(chunks=3))
        feed(assembly, chunks[0])
        with pytest.raises(RemoteProtocolError):
            feed(assembly, chunks[2])
        assert pool.leased_bytes == 0


class TestTooManyOpen:
    def test_an_owner_has_at_most_so_many_unfinished_tensors_per_sender(self) -> None:
        pool = BufferPool()
        assembly = Assembly(pool)
        tasks = [task_of(chunks=2, batch=batch, value=batch) for batch in range(MAX_OPEN_PER_OWNER)]
        for task in tasks:
            feed(assembly, chunks_of(task)[0])
        before = pool.leased_bytes
        one_more = task_of(chunks=2, batch=99)
        with pytest.raises(RemoteProtocolError, match=f"owner 0 has {MAX_OPEN_PER_OWNER} unfinished tensors"):
            feed(assembly, chunks_of(one_more)[0])
        assert pool.leased_bytes == before
        # Nobody else suffers, nor do small tensors or those under way.
        assert whole(assembly, task_of(owner=1, chunks=2))
        assert whole(assembly, task_of(owner=0, chunks=2, sender=2))
        assert whole(assembly, task_of(owner=0, chunks=1, batch=50))
        assert all(is_same(feed(assembly, chunks_of(task)[1]), task) for task in tasks)
        assert whole(assembly, one_more)

    def test_starting_an_unfinished_tensor_anew_is_not_one_more(self, assembly: Assembly) -> None:
        for batch in range(MAX_OPEN_PER_OWNER):
            feed(assembly, chunks_of(task_of(chunks=2, batch=batch))[0])
        assert whole(assembly, task_of(chunks=2, batch=3, value=5))


def test_nothing_is_unpacked_twice() -> None:
    # A chunk that does not unpack is dropped by the inbox; what came before of the tensor must not come back.
    assembly = Assembly(BufferPool())
    chunks = chunks_of(Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(2 * CHUNK, np.uint8)), "lz4")
    feed(assembly, chunks[0])
    header, data = chunks[1]
    place = assembly.place(header)
    with pytest.raises(RemoteProtocolError):
        by_number(header.codec).unpack_into(memoryview(data[:-1]), place)
    assembly.drop(header)
    with pytest.raises(RemoteProtocolError):
        feed(assembly, chunks[1])
    assert header.codec != NONE.number
