"""A state goes into packed bytes and comes back bit for bit; bytes that are none give CheckpointError and no more."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zmpsl.codecs import CODECS, Codec, by_name
from zmpsl.errors import CheckpointError
from zmpsl.packed_state import DTYPES, MAGIC, pack_state, unpack_state, unpack_state_into

State = dict[str, np.ndarray]
EXACT = [codec for codec in CODECS if codec.exact]
FUZZ = settings(max_examples=150, deadline=None)


def packed(state: Mapping[str, np.ndarray], codec: Codec | None = None) -> bytes:
    return b"".join(pack_state(state, codec))


def weights() -> State:
    rng = np.random.default_rng(3)
    odd = rng.standard_normal(77).astype(np.float32)
    odd[:4] = np.nan, np.inf, -0.0, 1e-42
    return {
        "0.weight": 0.05 * rng.standard_normal((300, 1000)).astype(np.float32),  # more than a chunk
        "0.bias": odd,
        "1.running_var": rng.random((3, 0, 2)).astype(np.float64),
        "1.num_batches_tracked": np.array(2**40 + 1),
        "2.half": rng.random(9).astype(np.float16),
        "2.step": np.array(7, np.float32),
        "mask": rng.random(13) < 0.5,
        "zeros": np.zeros((2, 1 << 19), np.float32),
        "turned": rng.standard_normal((5, 7)).astype(np.float32).T,
    }


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


class TestThereAndBack:
    @pytest.mark.parametrize("codec", EXACT, ids=lambda codec: codec.name)
    def test_bit_for_bit_in_both_ways(self, codec: Codec) -> None:
        state, data = weights(), packed(weights(), codec)
        assert same(unpack_state(io.BytesIO(data)), state)
        into = {name: np.full(array.shape, 1, array.dtype) for name, array in state.items()}
        unpack_state_into(io.BytesIO(data), into)
        assert same(into, state)

    def test_what_fits_is_read_into_given_memory(self) -> None:
        state = {"a": np.arange(5, dtype=np.float32), "b": np.arange(3), "c": np.ones(2)}
        room = {"a": np.zeros(5, np.float32), "b": np.zeros(4, np.int64), "c": np.zeros(2, np.float32), "d": np.ones(1)}
        found = unpack_state(io.BytesIO(packed(state)), room=room)
        assert same(found, state)
        assert [name for name in found if found[name] is room[name]] == ["a"]
        with pytest.raises(ValueError, match="a is not in C order"):
            unpack_state(io.BytesIO(packed(state)), room={"a": np.zeros(10, np.float32)[::2]})

    @FUZZ
    @given(
        st.dictionaries(
            st.text(max_size=9),
            st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
            max_size=5,
        )
    )
    def test_any_state(self, state: State) -> None:
        assert same(unpack_state(io.BytesIO(packed(state))), state)

    def test_weights_get_smaller_and_integers_stay_as_they_are(self) -> None:
        state = weights()
        assert len(packed(state)) < 0.87 * sum(array.nbytes for array in state.values() if array.any())
        counts = {"n": np.arange(1000)}
        assert counts["n"].tobytes() in packed(counts)

    def test_two_states_in_one_file(self) -> None:
        file = io.BytesIO(packed(weights()) + packed({"b": np.ones(3)}))
        assert same(unpack_state(file), weights())
        assert same(unpack_state(file), {"b": np.ones(3)})

    def test_only_a_chunk_is_in_memory_twice(self) -> None:
        state = {"w": np.random.default_rng(1).standard_normal(1 << 22).astype(np.float32)}
        for _ in pack_state(state):  # scratch buffers are made
            pass
        tracemalloc.start()
        try:
            for _ in pack_state(state):
                pass
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    def test_what_cannot_be_packed(self) -> None:
        for state, codec, words in (
            ({"w": np.ones(3, complex)}, None, "w has dtype complex128"),
            ({"w": np.array([{}])}, None, "w has dtype object"),
            ({"w": np.ones(3, ">f4")}, None, "w has dtype >f4"),
            ({"w": np.ones(3)}, by_name("bf16"), "bf16 changes values"),
        ):
            with pytest.raises(ValueError, match=words):
                packed(state, codec)


def head(description: bytes, crc: int | None = None) -> bytes:
    return struct.pack("<8sII", MAGIC, len(description), zlib.crc32(description) if crc is None else crc) + description


TWICE = b'[{"name":"a","dtype":"int8","shape":[1]},{"name":"a","dtype":"int8","shape":[1]}]'
BYTE = head(b'[{"name":"a","dtype":"int8","shape":[1]}]')
FLOAT = head(b'[{"name":"a","dtype":"float32","shape":[1]}]')


class TestBytesThatAreNone:
    def test_other_tensors_than_expected(self) -> None:
        data = packed({"a": np.ones(3, np.float32), "b": np.ones(2)})
        for into, words in (
            ({"a": np.ones(3, np.float32)}, r"holds b float64\[2\] where no further tensor is expected"),
            ({"a": np.ones(3, np.float32), "b": np.ones(3)}, r"holds b float64\[2\] where b float64\[3\]"),
            ({"a": np.ones(3), "b": np.ones(2)}, r"holds a float32\[3\] where a float64\[3\]"),
            ({"a": np.ones(3, np.float32), "b": np.ones(2), "c": np.ones(1)}, "holds no further tensor where c"),
        ):
            with pytest.raises(CheckpointError, match=words):
                unpack_state_into(io.BytesIO(data), into)

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "ends 16 bytes too early"),
            (b"PK\x03\x04" * 9, "a packed state with"),
            (struct.pack("<8sII", MAGIC, 2**32 - 1, 0), "description claims 4294967295 bytes"),
            (head(b"[]", 1), "description is damaged"),
            (head(b"{}"), "cannot be read"),
            (head(b"[" * 100_000), "cannot be read"),
            (head(b"\xff\xfe"), "cannot be read"),
            (head(b'[{"name":"a","dtype":"object","shape":[]}]'), "an unknown dtype"),
            (head(b'[{"name":"a","dtype":"float32","shape":[-1]}]'), "a negative size"),
            (head(TWICE), "a name twice"),
            (head(b'[{"name":"a","dtype":"float32","shape":[4294967296,4294967296]}]'), "at most 1099511627776"),
            (head(b'[{"name":"a","dtype":"int8","shape":[' + b"1," * 99 + b"1]}]"), "tensor a of 1 bytes"),
            (BYTE + struct.pack("<III", 0, 2, 0), "said to take 2"),
            (BYTE + struct.pack("<III", 0, 1, 9) + b"x", "from byte 0"),
            (BYTE + struct.pack("<IIIs", 99, 1, zlib.crc32(b"x"), b"x"), "codec number 99"),
            (FLOAT + struct.pack("<IIIs", 4, 1, zlib.crc32(b"x"), b"x"), "bf16 is no exact codec"),
        ],
    )
    def test_made_by_hand(self, data: bytes, words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            unpack_state(io.BytesIO(data))

    def test_every_cut_and_every_changed_byte_is_found(self) -> None:
        data = packed({"a": np.arange(40, dtype=np.float32), "b": np.arange(3)})
        for length in range(len(data)):
            with pytest.raises(CheckpointError):
                unpack_state(io.BytesIO(data[:length]))
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 0x41
            with pytest.raises(CheckpointError):
                unpack_state(io.BytesIO(bytes(changed)))

    @FUZZ
    @given(st.binary(max_size=300), st.integers(0, 60))
    def test_garbage_behind_a_sound_beginning(self, garbage: bytes, keep: int) -> None:
        sound = packed({"a": np.arange(40, dtype=np.float32)})
        data = sound[:keep] + garbage
        if not sound.startswith(data) and not data.startswith(sound):
            with pytest.raises(CheckpointError):
                unpack_state(io.BytesIO(data))

    def test_a_claim_takes_no_memory_before_the_bytes_are_there(self) -> None:
        data = head(b'[{"name":"a","dtype":"float32","shape":[1073741824]}]')
        with pytest.raises(CheckpointError, match="ends 12 bytes too early"):
            unpack_state(io.BytesIO(data))
        with pytest.raises(CheckpointError, match="4294967296 bytes of tensors, at most 100"):
            unpack_state(io.BytesIO(data), 100)
