"""The wire format: tensors cross unchanged, the layout stands still, and a wrong header is refused before memory."""

from __future__ import annotations

import itertools
import random
import struct
import tracemalloc
from zlib import crc32

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from zmpsl.codecs import CODECS, NONE, by_name, by_number
from zmpsl.errors import LocalProtocolError, RemoteProtocolError
from zmpsl.transport.assembly import Assembly
from zmpsl.transport.buffers import BufferPool
from zmpsl.transport.task import DTYPES, Array, Op, Task
from zmpsl.transport.wire import CHUNK, HEADER_BYTES, MAX_MESSAGE, Header, messages, parse, payload_bytes

FUZZ = settings(max_examples=300, deadline=None)
LIMIT = 1 << 26
SEED = 20240214
SHAPES = [(), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4), (1,) * 8, (1023, 257), (CHUNK,), (CHUNK + 1,), (3, 700_001)]


def tensor_of(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """A tensor of arbitrary bits (NaNs and infinities among them); bool is only ever 0 or 1."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = np.random.default_rng([SEED, count]).integers(
        0, 2 if dtype == np.bool_ else 256, count * dtype.itemsize, np.uint8
    )
    return raw.view(dtype).reshape(shape)


def bare(task: Task | None) -> Task | None:
    """A task without its tensor, as headers hold it; tensors are compared by themselves."""
    return None if task is None else replace(task, tensor=None)


def receive(
    sent: list[tuple[bytes, memoryview | bytes | None]], limit: int = LIMIT
) -> tuple[Task | None, list[Header]]:
    """What a receiver makes of the messages of one task: the task, if it came whole, and all headers."""
    assembly, headers, task = Assembly(BufferPool()), [], None
    for first, chunk in sent:
        header = parse(first, limit)
        headers.append(header)
        if chunk is not None:
            assert len(chunk) == header.size
            by_number(header.codec).unpack_into(memoryview(chunk), assembly.place(header))
        task = assembly.finish(header)
    return task, headers


def header_of(shape: tuple[int, ...] = (3, 5), **fields: int) -> bytes:
    """The first header of a float16 tensor."""
    tensor = np.zeros(shape, np.float16)
    return next(messages(Task(Op.FORWARD, fields.pop("plan", 1), 2, 3, tensor=tensor, **fields), NONE, 0))[0]


def sealed(header: bytes, at: int, code: str, *values: int) -> bytes:
    """A header with some fields replaced and a checksum that fits."""
    data = bytearray(header)
    struct.pack_into(f"<{code}", data, at, *values)
    struct.pack_into("<I", data, 148, crc32(data[:148]))
    return bytes(data)


class TestRoundTrip:
    @pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.exact], ids=lambda codec: codec.name)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_every_dtype_and_shape_arrives_bit_for_bit(self, shape: tuple[int, ...], codec: object) -> None:
        dtypes = DTYPES if np.prod(shape) < 10_000 else DTYPES[:1] + DTYPES[-1:]
        for dtype in dtypes:
            tensor = tensor_of(dtype, shape)
            tensor.setflags(write=False)
            sent = Task(Op.BACKWARD, 1, 2, 3, 4, 5, 6, 7, 8, 9, tensor)
            task, headers = receive(list(messages(sent, codec, 0)))
            assert bare(task) == bare(sent)
            assert task is not None
            assert task.tensor is not None
            assert (task.tensor.dtype, task.tensor.shape) == (dtype, shape)
            assert task.tensor.tobytes() == tensor.tobytes()
            assert len(headers) == max(1, -(-tensor.nbytes // CHUNK))

    @pytest.mark.parametrize("op", Op)
    def test_a_task_without_tensor_is_one_frame_with_all_its_fields(self, op: Op) -> None:
        sent = Task(op, 2**32 - 1, 2**32 - 2, 2**32 - 3, 2**32 - 4, 2**32 - 5, 65533, 65534, 2**64 - 1, 65535)
        ((first, chunk),) = messages(sent, NONE, 2**64 - 2)
        header = parse(first, 0)
        assert chunk is None
        assert len(first) == HEADER_BYTES
        assert header.task == sent
        assert (header.dtype, header.shape, header.total, header.credit) == (None, (), 0, 2**64 - 2)

    def test_the_tensor_itself_is_sent_and_not_a_copy(self) -> None:
        tensor = np.arange(CHUNK // 4 + 10, dtype=np.float32)
        chunks = [chunk for _, chunk in messages(Task(Op.FORWARD, 1, 0, 0, tensor=tensor), NONE, 0)]
        assert all(np.shares_memory(np.frombuffer(chunk, np.uint8), tensor) for chunk in chunks if chunk is not None)
        assert [len(chunk) for chunk in chunks if chunk is not None] == [CHUNK, 40]

    def test_headers_have_one_length_and_each_tells_the_whole_task(self) -> None:
        sent = Task(Op.PART, 1, 2, 3, count=9, sender=5, tensor=np.zeros(3 * CHUNK + 1, np.uint8))
        firsts = [first for first, _ in messages(sent, NONE, 0)]
        headers = [parse(first, LIMIT) for first in firsts]
        assert {len(first) for first in firsts} == {HEADER_BYTES}
        assert all(header.task == bare(sent) and header.total == 3 * CHUNK + 1 for header in headers)
        assert [(header.offset, header.raw) for header in headers] == [
            (0, CHUNK),
            (CHUNK, CHUNK),
            (2 * CHUNK, CHUNK),
            (3 * CHUNK, 1),
        ]

    def test_credit_is_told_once(self) -> None:
        task = Task(Op.FORWARD, 1, 0, 0, tensor=np.zeros(2 * CHUNK + 1, np.uint8))
        credits_ = [parse(first, LIMIT).credit for first, _ in messages(task, NONE, 12345)]
        assert credits_ == [12345, 0, 0]

    def test_a_chunk_that_does_not_get_smaller_travels_as_it_is(self) -> None:
        noise = np.random.default_rng(SEED).integers(0, 256, CHUNK, np.uint8)
        tensor = np.concatenate([np.zeros(CHUNK, np.uint8), noise, np.zeros(7, np.uint8)])
        sent = list(messages(Task(Op.FORWARD, 1, 0, 0, tensor=tensor), by_name("lz4"), 0))
        assert [parse(first, LIMIT).codec for first, _ in sent] == [1, 0, 0]
        task, _ = receive(sent)
        assert task is not None
        assert np.array_equal(task.tensor, tensor)

    def test_the_largest_message_is_within_what_a_socket_accepts(self) -> None:
        assert (
            max(len(chunk or b"") for _, chunk in messages(Task(Op.PART, 1, 0, 0, tensor=np.zeros(2 * CHUNK)), NONE, 0))
            == CHUNK
        )
        assert CHUNK < MAX_MESSAGE < 2 * CHUNK


class TestMisuse:
    @pytest.mark.parametrize(
        ("tensor", "why"),
        [
            (np.zeros((4, 5), np.float32).T, r"strides \(4, 20\) is not C-contiguous"),
            (np.zeros(10, np.float32)[::2], "not C-contiguous"),
            (np.zeros(3, ">f4"), "dtype >f4 .* cannot travel"),
            (np.zeros(3, np.complex64), "dtype complex64 with 1 dimensions cannot travel"),
            (np.zeros(3, np.uint32), "dtype uint32"),
            (np.zeros(3, object), "dtype object"),
            (np.zeros(3, "M8[s]"), "dtype datetime64"),
            (np.zeros(3, [("a", "f4")]), "cannot travel"),
            (np.zeros((1,) * 9, np.float32), "with 9 dimensions cannot travel"),
        ],
    )
    def test_a_tensor_that_cannot_travel_is_our_own_mistake(self, tensor: Array, why: str) -> None:
        task = Task(Op.FORWARD, 1, 2, 3, tensor=tensor)
        for action in (lambda: list(messages(task, NONE, 0)), lambda: payload_bytes(task)):
            with pytest.raises(LocalProtocolError, match=why) as caught:
                action()
            assert "FORWARD owner 2 round 3" in str(caught.value)

    @pytest.mark.parametrize(
        "task",
        [Task(Op.CLOSE, -1, 0, 0), Task(Op.CLOSE, 1, 0, 2**32), Task(Op.CLOSE, 1, 0, 0, micros=2**16)],
        ids=["negative", "round", "micros"],
    )
    def test_a_number_that_has_no_room_is_our_own_mistake(self, task: Task) -> None:
        with pytest.raises(LocalProtocolError):
            list(messages(task, NONE, 0))


# One number per field, so that a field that moves is seen; the layout is told in zmpsl/transport/wire.py.
GOLDEN_TASK = Task(
    Op.BACKWARD, 0x01020304, 0x11121314, 0x21222324, 0x31323334, 0x41424344, 0x0102, 0x0304, 0x5152535455565758, 0x0506,
    np.zeros((3, 5), np.float16),
)  # fmt: skip
GOLDEN = bytes.fromhex(
    "7a50 03 02 00 03 02 00"  # magic "zP", version, op, codec, dtype, dimensions, flags
    "04030201 14131211 24232221 34333231 44434241"  # plan, owner, round, epoch, batch
    "0201 0403 0605 0000"  # micro, micros, sender, zero
    "5857565554535251 6867666564636261"  # count, credit
    "1e00000000000000 0000000000000000"  # total, offset
    "1e000000 1e000000"  # unpacked, packed
    "0300000000000000 0500000000000000"  # dimensions
    "0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000"
    "0000000000000000"  # checksum of the chunk
    "1d3eed4d"  # CRC-32
)


class TestLayout:
    def test_the_golden_header(self) -> None:
        ((first, _),) = messages(GOLDEN_TASK, NONE, 0x6162636465666768)
        assert first == GOLDEN
        header = parse(GOLDEN, LIMIT)
        assert header == Header(bare(GOLDEN_TASK), 0, np.dtype("<f2"), (3, 5), 0x6162636465666768, 30, 0, 30, 30)

    def test_a_header_has_152_bytes(self) -> None:
        assert HEADER_BYTES == len(GOLDEN) == 152

    def test_the_numbers_of_ops_dtypes_and_codecs_stand_still(self) -> None:
        names = ["FORWARD", "BACKWARD", "EVALUATE", "CLOSE", "PART", "GLOBAL", "CREDIT"]
        assert {op.name: int(op) for op in Op} == {name: number for number, name in enumerate(names, 1)}
        assert [dtype.str for dtype in DTYPES] == ["<f4", "<f8", "<f2", "|u1", "|i1", "<i2", "<i4", "<i8", "|b1"]
        names = ["none", "lz4", "huff", "bitmap", "bf16", "int8", "int4", "bf16-huff", "qz"]
        assert [(codec.name, codec.number) for codec in CODECS] == [(name, i) for i, name in enumerate(names)]


class TestHostileHeaders:
    def test_no_single_flipped_bit_gets_through(self) -> None:
        flipped = [
            GOLDEN[:at] + bytes([GOLDEN[at] ^ 1 << bit]) + GOLDEN[at + 1 :] for at in range(152) for bit in range(8)
        ]
        assert [data.hex() for data in flipped if self.is_accepted(data)] == []
        assert self.is_accepted(GOLDEN)

    @pytest.mark.parametrize("length", [0, 1, 147, 151, 153, 4096])
    def test_any_other_length_is_refused(self, length: int) -> None:
        with pytest.raises(RemoteProtocolError, match=f"a header has 152 bytes, this frame {length}"):
            parse((GOLDEN * 30)[:length], LIMIT)

    @pytest.mark.parametrize(
        ("at", "code", "values", "why"),
        [
            (0, "2s", (b"ZP",), "magic b'ZP' version 3, expected b'zP' version 3"),
            (2, "B", (1,), "version 1, expected b'zP' version 3"),
            (3, "B", (0,), "op 0"),
            (3, "B", (8,), "op 8"),
            (4, "B", (2,), "codec 2"),
            (5, "B", (10,), "dtype 10"),
            (6, "B", (9,), "ndim 9"),
            (7, "B", (4,), "header with codec"),
            (140, "Q", (7,), "checksum 0000000000000007 of a chunk that has none"),
            (7, "B", (1,), "FORWARD of float16 with a mask"),
            (4, "B", (4,), "FORWARD of float16 packed by bf16, which changes values"),
            (28, "HH", (0, 0), "micro 0 of 0"),
            (28, "HH", (5, 5), "micro 5 of 5"),
            (34, "H", (1,), "header with op"),
            (5, "B", (0,), r"tensor of shape \(3, 5\) dtype None"),
            (5, "B", (1,), r"shape \(3, 5\) dtype float32 has 60 bytes, header says 30"),
            (6, "B", (1,), r"shape \(3,\)"),
            (6, "B", (3,), r"shape \(3, 5, 0\) dtype float16 has 0 bytes, header says 30"),
            (76, "Q", (4,), "has 40 bytes, header says 30"),
            (76, "QQ", (2**63, 2**63), "header says 30"),
            (92, "Q", (1,), "shape"),
            (132, "Q", (1,), "shape"),
            (52, "Q", (31,), "header says 31"),
            (60, "Q", (1,), "chunk of 30 bytes at 1 does not fit a tensor of 30"),
            (60, "Q", (CHUNK,), f"at {CHUNK} does not fit"),
            (60, "Q", (2**63,), "does not fit"),
            (68, "II", (29, 29), "chunk of 29 bytes at 0 does not fit"),
            (68, "II", (0, 0), "chunk of 0 bytes at 0 does not fit"),
            (68, "II", (2**32 - 1, 2**32 - 1), "does not fit"),
            (72, "I", (29,), "chunk of 30 bytes says it travels as 29 with codec 0"),
            (4, "B", (1,), "chunk of 30 bytes says it travels as 30 with codec 1"),
        ],
    )
    def test_each_field_is_checked(self, at: int, code: str, values: tuple[int, ...], why: str) -> None:
        with pytest.raises(RemoteProtocolError, match=why):
            parse(sealed(header_of(), at, code, *values), LIMIT)

    def test_a_packed_chunk_of_no_bytes_is_refused(self) -> None:
        with pytest.raises(RemoteProtocolError, match="travels as 0 with codec 1"):
            parse(sealed(sealed(header_of(), 4, "B", 1), 72, "I", 0), LIMIT)

    @pytest.mark.parametrize(
        ("header", "at", "code", "values"),
        [
            (header_of(), 52, "QQII", (30, 1, 29, 29)),  # a chunk that begins in the middle
            (header_of((CHUNK // 2,)), 60, "QII", (CHUNK, 0, 0)),  # a chunk behind the end
            (sealed(header_of(), 4, "B", len(CODECS)), 72, "I", (5,)),  # a codec that is not there
            (sealed(header_of(), 5, "B", 0), 52, "QQII", (0, 0, 0, 0)),  # dimensions of no tensor
        ],
        ids=["middle", "end", "codec", "dimensions"],
    )
    def test_fields_that_fit_each_other_must_fit_the_layout(
        self, header: bytes, at: int, code: str, values: tuple[int, ...]
    ) -> None:
        with pytest.raises(RemoteProtocolError):
            parse(sealed(header, at, code, *values), LIMIT)

    def test_an_offset_of_a_task_without_tensor_is_refused(self) -> None:
        ((first, _),) = messages(Task(Op.CLOSE, 1, 0, 0), NONE, 0)
        for at in (52, 60):
            for value in (1, CHUNK):
                with pytest.raises(RemoteProtocolError):
                    parse(sealed(first, at, "Q", value), LIMIT)

    def test_a_tensor_over_the_limit_is_refused_before_memory_is_touched(self) -> None:
        huge = header_of()
        for dim, limit in ((2**40, 1 << 30), (2**20, (2 << 20) - 1)):
            huge = sealed(sealed(huge, 6, "B", 1), 76, "QQ", dim, 0)
            huge = sealed(sealed(huge, 52, "Q", 2 * dim), 68, "II", CHUNK, CHUNK)
            tracemalloc.start()
            try:
                with pytest.raises(
                    RemoteProtocolError, match=rf"tensor of {2 * dim} bytes is over the limit of {limit}"
                ):
                    parse(huge, limit)
                assert tracemalloc.get_traced_memory()[1] < 100_000
            finally:
                tracemalloc.stop()
        assert parse(huge, 2 << 20).total == 2 << 20

    @pytest.mark.parametrize(
        "dims", [(0, 2**64 - 1), (0, 2**63 - 1), (0, 2**40, 2**40), (2**32, 2**32, 2**32, 0)], ids=str
    )
    def test_an_empty_tensor_cannot_have_dimensions_that_no_array_has(self, dims: tuple[int, ...]) -> None:
        # Its size, 0, is within any limit; NumPy raises ValueError when it is to make an array of it.
        data = sealed(header_of((0,) * len(dims)), 76, f"{len(dims)}Q", *dims)
        assert not self.is_accepted(data)

    @staticmethod
    def is_accepted(data: bytes) -> bool:
        """Whether a header is taken for good, up to the tensor it stands for."""
        try:
            header = parse(data, LIMIT)
            assembly = Assembly(BufferPool())
            assembly.place(header)
            assembly.finish(header)
        except RemoteProtocolError:
            return False
        return True


class TestFuzz:
    @FUZZ
    @given(st.binary(max_size=300))
    @example(GOLDEN)
    @example(GOLDEN[:140])
    def test_any_bytes(self, data: bytes) -> None:
        self.header_or_error(data)

    @FUZZ
    @given(
        st.lists(st.tuples(st.integers(0, HEADER_BYTES - 1), st.integers(0, 255)), min_size=1, max_size=4),
        st.sampled_from([(), (3, 5), (0, 3), (CHUNK,)]),
    )
    def test_a_few_changed_bytes_change_nothing_unnoticed(
        self, changes: list[tuple[int, int]], shape: tuple[int, ...]
    ) -> None:
        good = header_of(shape)
        data = bytearray(good)
        for at, value in changes:
            data[at] = value
        found = self.header_or_error(bytes(data))
        assert found is None or found == parse(good, LIMIT)

    @FUZZ
    @given(
        st.lists(st.tuples(st.integers(2, 139), st.integers(0, 255)), min_size=1, max_size=4),
        st.sampled_from([(), (3, 5), (0, 3), (CHUNK,)]),
    )
    def test_a_peer_that_gets_the_checksum_right_is_not_believed_either(
        self, changes: list[tuple[int, int]], shape: tuple[int, ...]
    ) -> None:
        header = header_of(shape)
        for at, value in changes:
            header = sealed(header, at, "B", value)
        found = self.header_or_error(header)
        if found is not None and found.dtype is not None:
            # What was accepted can be carried out: memory of the claimed size is all that is needed.
            assert found.offset % CHUNK == 0
            assert 0 <= found.size <= found.raw <= CHUNK
            assert found.offset + found.raw <= found.total <= LIMIT
            assert found.total == found.dtype.itemsize * int(np.prod(found.shape, dtype=object))
            if found.raw == found.total:
                assembly = Assembly(BufferPool())
                assembly.place(found)
                task = assembly.finish(found)
                assert task is not None
                assert task.tensor is not None
                assert task.tensor.shape == found.shape

    def test_random_fields(self) -> None:
        draw = random.Random(SEED)
        numbers = [0, 1, 2, 3, 8, 255, CHUNK, CHUNK + 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]
        places = list(
            itertools.chain(
                ((at, "B", 2**8) for at in range(2, 8)),
                ((at, "I", 2**32) for at in (68, 72)),
                ((at, "Q", 2**64) for at in range(52, 140, 8) if at != 68),
            )
        )
        for _ in range(3000):
            data = header_of(draw.choice([(), (3, 5), (0,), (CHUNK,)]))
            for at, code, bound in draw.sample(places, draw.randint(1, 5)):
                data = sealed(data, at, code, draw.choice(numbers) % bound)
            self.header_or_error(data)

    @staticmethod
    def header_or_error(data: bytes) -> Header | None:
        try:
            return parse(data, LIMIT)
        except RemoteProtocolError:
            return None
