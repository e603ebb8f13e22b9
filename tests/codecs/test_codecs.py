"""One battery for every codec: chunks come back bit for bit, and a peer's bytes raise RemoteProtocolError only."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.codecs import CODECS, NONE, Codec, by_name, by_number
from zmpsl.errors import RemoteProtocolError
from zmpsl.job.codec import EXACT as EXACT_NAMES
from zmpsl.job.codec import LOSSY as LOSSY_NAMES

FUZZ = settings(max_examples=150, deadline=None)
CHUNK = 1 << 20
SEED = 20240215
EXACT = [codec for codec in CODECS if codec.exact]
PACKING = [codec for codec in CODECS if codec is not NONE]
EXACT_PACKING = [codec for codec in EXACT if codec is not NONE]


def named(codecs: list[Codec] | tuple[Codec, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("codec", codecs, ids=lambda codec: codec.name)


def noise(nbytes: int) -> bytes:
    return np.random.default_rng([SEED, nbytes]).bytes(nbytes)


def chunks() -> dict[str, bytes]:
    """What chunks look like: weights, activations after a ReLU, nothing at all, and sizes that do not divide."""
    rng = np.random.default_rng(SEED)
    activations = np.maximum(rng.standard_normal(CHUNK // 4, np.float32), 0)
    return {
        "empty": b"",
        "one byte": b"\x00",
        "two bytes": b"ab",
        "tiny": b"abc" * 4,
        "odd": noise(4099) + bytes(4098),
        "zeros": bytes(CHUNK),
        "zeros, odd": bytes(CHUNK - 1),
        "activations": activations.tobytes(),
        "weights": (0.01 * rng.standard_normal(5_001)).astype(np.float32).tobytes(),
        "counting": np.arange(10_000, dtype=np.int64).tobytes(),
        "noise": noise(CHUNK),
    }


def unpack(codec: Codec, data: bytes, nbytes: int) -> bytes:
    """What a receiver gets out of the bytes; the memory around the destination must stay as it was."""
    memory = np.full(nbytes + 64, 0xA5, np.uint8)
    codec.unpack_into(memoryview(data), memory[32 : 32 + nbytes])
    assert (memory[:32] == 0xA5).all()
    assert (memory[32 + nbytes :] == 0xA5).all()
    return memory[32 : 32 + nbytes].tobytes()


class TestRegistry:
    def test_the_jobs_names_and_the_headers_numbers_are_the_registry(self) -> None:
        assert {codec.name for codec in EXACT} == set(EXACT_NAMES)
        assert {codec.name for codec in CODECS if not codec.exact} | {"topk"} == set(LOSSY_NAMES)
        assert [codec.number for codec in CODECS] == list(range(len(CODECS)))
        assert all(by_name(codec.name) is by_number(codec.number) is codec for codec in CODECS)

    @pytest.mark.parametrize("number", [len(CODECS), 17, 255])
    def test_a_number_that_is_not_known_is_the_peers_mistake(self, number: int) -> None:
        with pytest.raises(
            RemoteProtocolError, match=f"codec number {number} is not known here; known are 0 to {len(CODECS) - 1}"
        ):
            by_number(number)


class TestBattery:
    @named(EXACT)
    @pytest.mark.parametrize("kind", chunks())
    def test_a_chunk_comes_back_bit_for_bit(self, codec: Codec, kind: str) -> None:
        chunk = chunks()[kind]
        packed = codec.pack(memoryview(chunk))
        if packed is None:  # it travels as it is
            assert unpack(NONE, chunk, len(chunk)) == chunk
        else:
            assert 0 < len(packed) < len(chunk)
            assert unpack(codec, packed, len(chunk)) == chunk

    @named(EXACT)
    def test_what_does_not_get_smaller_is_not_packed(self, codec: Codec) -> None:
        assert codec.pack(memoryview(noise(CHUNK))) is None
        assert codec.pack(memoryview(b"")) is None
        assert codec.pack(memoryview(b"x")) is None

    @named([codec for codec in PACKING if codec.name in ("lz4", "huff", "bf16-huff", "qz")])
    def test_zeros_get_much_smaller(self, codec: Codec) -> None:
        packed = codec.pack(memoryview(bytes(CHUNK)))
        assert packed is not None
        assert len(packed) < CHUNK // 100

    @named(PACKING)
    def test_packing_reads_the_tensors_own_read_only_memory(self, codec: Codec) -> None:
        tensor = np.zeros(5000, np.uint8)
        tensor.setflags(write=False)
        packed = codec.pack(memoryview(tensor)[7:4007])
        assert packed is not None
        assert unpack(codec, packed, 4000) == bytes(4000)

    @named(PACKING)
    def test_the_same_chunk_is_packed_the_same_way(self, codec: Codec) -> None:
        chunk = memoryview(chunks()["activations"])
        assert codec.pack(chunk) == codec.pack(chunk)

    @named(EXACT)
    @FUZZ
    @given(pieces=st.lists(st.tuples(st.binary(max_size=20), st.integers(1, 300)), max_size=6))
    def test_any_chunk(self, codec: Codec, pieces: list[tuple[bytes, int]]) -> None:
        chunk = b"".join(piece * times for piece, times in pieces)
        packed = codec.pack(memoryview(chunk))
        assert packed is None or (len(packed) < len(chunk) and unpack(codec, packed, len(chunk)) == chunk)


class TestHostileBytes:
    @named(CODECS)
    @pytest.mark.parametrize("kind", ["odd", "zeros", "activations"])
    def test_a_cut_chunk_is_refused(self, codec: Codec, kind: str) -> None:
        chunk = chunks()[kind]
        packed = codec.pack(memoryview(chunk)) or chunk
        for length in (0, 1, len(packed) // 2, len(packed) - 1):
            with pytest.raises(RemoteProtocolError, match=f"{length} bytes|an unpacked chunk has"):
                unpack(codec, packed[:length], len(chunk))

    @named(CODECS)
    @pytest.mark.parametrize("wrong", [-1, 1, 1000])
    def test_another_size_than_the_header_says_is_refused(self, codec: Codec, wrong: int) -> None:
        chunk = chunks()["odd"]
        packed = codec.pack(memoryview(chunk)) or chunk
        with pytest.raises(RemoteProtocolError):
            unpack(codec, packed, len(chunk) + wrong)

    @named(PACKING)
    def test_a_bomb_needs_no_more_memory_than_a_chunk(self, codec: Codec) -> None:
        bomb = codec.pack(memoryview(bytes(64 * CHUNK)))
        assert bomb is not None
        destination = np.empty(CHUNK, np.uint8)
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError):
                codec.unpack_into(memoryview(bomb), destination)
            assert tracemalloc.get_traced_memory()[1] < 2 * CHUNK
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00",
            b"\xf0" + b"\xff" * 4000,  # a literal that never ends
            b"\x0f\x00\x00" + b"\xff" * 4000,  # a match at distance 0
            b"\x1fx\x01\x00" + b"\xff" * 5000 + b"\x00",  # one byte repeated 1.3 million times
            b"\x40abc",  # fewer literals than promised
            b"\x10a\xff\xff\x00",  # a match before the beginning
            struct.pack("<I", 2**31) + b"\x00" * 8,  # a size in front, as lz4 files have it
        ],
    )
    def test_lz4_blocks_made_by_hand_are_refused(self, data: bytes) -> None:
        for nbytes in (1, 100, CHUNK):
            with pytest.raises(RemoteProtocolError):
                unpack(by_name("lz4"), data, nbytes)

    @named(CODECS)
    @FUZZ
    @given(data=st.binary(max_size=200), nbytes=st.integers(0, 5000))
    def test_garbage(self, codec: Codec, data: bytes, nbytes: int) -> None:
        self.unpacked_or_error(codec, data, nbytes)

    @named(PACKING)
    @FUZZ
    @given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
    def test_damaged_chunks(self, codec: Codec, changes: list[tuple[int, int]]) -> None:
        values = np.random.default_rng(SEED).standard_normal(500, np.float32)
        chunk = np.concatenate([np.zeros(500, np.float32), values]).tobytes()
        data = bytearray(codec.pack(memoryview(chunk)) or b"")
        for at, value in changes:
            data[at % len(data)] = value
        self.unpacked_or_error(codec, bytes(data), len(chunk))

    @staticmethod
    def unpacked_or_error(codec: Codec, data: bytes, nbytes: int) -> None:
        try:
            unpack(codec, data, nbytes)
        except RemoteProtocolError as error:
            assert str(len(data)) in str(error) or str(nbytes) in str(error)  # noqa: PT017 - its class is the point
