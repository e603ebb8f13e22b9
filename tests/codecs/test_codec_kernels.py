"""One battery for the codec kernels: C on every instruction set and the NumPy twins give the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from codec_cases import ALL, NATIVE, TWIN, bell, canonical, decode, encode, related, samples
from codec_samples import GOLDEN, GOLDEN_RELATED, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.kernels import KERNELS, NAMES, Kernels

FUZZ = settings(max_examples=120, deadline=None)
EXACT = ("bitmap", "bytes", "huff")
FLOATS = [name for name in NAMES if name != "bytes"]


SIZES = (0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 255, 256, 257, 2047, 2049, 65535, 65536, 65537, 150001)


class TestSameBytes:
    @pytest.mark.parametrize("n", SIZES)
    def test_c_and_twin_agree(self, n: int) -> None:
        if not NATIVE:
            pytest.skip("the C kernels are not built")
        for (kind, values), name in itertools.product({**samples(n), **related(n)}.items(), NAMES):
            expected = encode(TWIN, name, values)
            result = canonical(decode(TWIN, name, expected, n))
            for kernels in NATIVE:
                assert encode(kernels, name, values) == expected, (kernels.isa, name, kind)
                assert canonical(decode(kernels, name, expected, n)) == result, (kernels.isa, name, kind)

    @pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("at", [0, 700, 2047, 5000, 9999])
    def test_one_value_that_is_not_finite_among_many(self, at: int, bad: float) -> None:
        """Kernels take many blocks at a time as long as all are finite; here one group in the midst is not."""
        values = bell(10000)
        values[at] = bad
        for name, kernels in itertools.product(("bf16", "int8", "int4"), NATIVE):
            assert encode(kernels, name, values) == encode(TWIN, name, values), (kernels.isa, name)
        assert {kernels.mean_square(values) for kernels in NATIVE} <= {TWIN.mean_square(values)}

    def test_bounds_and_sums_agree(self) -> None:
        for kernels, n in itertools.product(NATIVE, SIZES):
            for name in NAMES:
                assert kernels.formats[name].bound(n) == TWIN.formats[name].bound(n)
            for values in samples(n).values():
                assert kernels.mean_square(values) == TWIN.mean_square(values)

    def test_the_face_offers_one_of_them(self) -> None:
        assert KERNELS.isa in ALL
        assert KERNELS.native == (KERNELS.isa != "numpy")


class TestPick:
    """What the environment says holds for a whole process, so each case has one."""

    def isa(self, **environment: str) -> subprocess.CompletedProcess[str]:
        code = "from zmpsl.kernels import KERNELS; print(KERNELS.isa)"
        env = {**{name: os.environ[name] for name in os.environ if not name.startswith("ZMPSL_")}, **environment}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)

    def test_the_twins_can_be_asked_for(self) -> None:
        assert self.isa(ZMPSL_NO_EXT="1").stdout == "numpy\n"

    def test_a_set_can_be_asked_for(self) -> None:
        if not NATIVE:
            pytest.skip("the C kernels are not built")
        assert self.isa(ZMPSL_ISA="portable").stdout == "portable\n"

    def test_an_unknown_set_is_an_error_and_no_slow_run(self) -> None:
        if not NATIVE:
            pytest.skip("the C kernels are not built")
        refused = self.isa(ZMPSL_ISA="mmx")
        assert refused.returncode != 0
        assert "ZMPSL_ISA is 'mmx'" in refused.stderr


def test_another_thread_runs_while_c_works() -> None:
    """The GIL is dropped: the other thread counts while one call of many milliseconds is under way."""
    if not NATIVE:
        pytest.skip("the C kernels are not built")
    values = np.tile(bell(1 << 16), 64)
    room = np.zeros(NATIVE[0].formats["huff"].bound(values.size), np.uint8)
    started, ended, count = threading.Event(), threading.Event(), itertools.count()

    def work() -> None:
        started.set()
        NATIVE[0].formats["huff"].encode_into(values, room)
        ended.set()

    # With the GIL held, this thread could run only in the few steps around the call; the interval is longer than that.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        while not ended.is_set() and next(count) < 1000:
            pass
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert next(count) > 100


@pytest.mark.parametrize("name", NAMES)
def test_golden(kernels: Kernels, name: str) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for values in samples(70001).values():
        digest.update(encode(kernels, name, values))
    assert digest.hexdigest() == GOLDEN[name]
    digest = hashlib.blake2b(digest_size=8)
    for values in related(70001).values():
        digest.update(encode(kernels, name, values))
    assert digest.hexdigest() == GOLDEN_RELATED[name]


class TestRoundTrips:
    @pytest.mark.parametrize("name", EXACT)
    @pytest.mark.parametrize("n", [0, 1, 7, 64, 257, 70001])
    def test_lossless_is_bit_for_bit(self, kernels: Kernels, name: str, n: int) -> None:
        for values in (*samples(n).values(), *related(n).values()):
            assert decode(kernels, name, encode(kernels, name, values), n).tobytes() == values.tobytes()

    @pytest.mark.parametrize("name", ["bf16", "bf16_huff"])
    def test_bf16_rounds_to_nearest_even_and_keeps_nan(self, kernels: Kernels, name: str) -> None:
        ties = [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF]
        strange = [0x7F800000, 0x7F800001, 0xFFC00000, 0x80000000, 1, 0x8000]
        bits = ties + strange
        rounded = [0x3F800000, 0x3F820000, 0x3F810000, 0x7F800000, 0x7F800000, 0x7FC00000, 0xFFC00000, 0x80000000, 0, 0]
        values = np.array(bits, np.uint32).view(np.float32)
        assert decode(kernels, name, encode(kernels, name, values), 10).view(np.uint32).tolist() == rounded

    @pytest.mark.parametrize(("name", "block", "levels", "slack"), [("int8", 256, 255, 1.001), ("int4", 64, 15, 1.2)])
    def test_blockwise_error_is_half_a_step(
        self, kernels: Kernels, name: str, block: int, levels: int, slack: float
    ) -> None:
        values = bell(block * 40)
        error = np.abs(decode(kernels, name, encode(kernels, name, values), values.size) - values).reshape(-1, block)
        spans = np.ptp(values.reshape(-1, block), axis=1, keepdims=True)
        assert (error <= spans / levels / 2 * slack).all()

    @pytest.mark.parametrize(("name", "block"), [("int8", 256), ("int4", 64)])
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_fills_its_block_with_nan(
        self, kernels: Kernels, name: str, block: int, bad: float
    ) -> None:
        values = bell(3 * block)
        values[block + 5] = bad
        nan = np.isnan(decode(kernels, name, encode(kernels, name, values), values.size)).reshape(3, block)
        assert nan.all(axis=1).tolist() == [False, True, False]
        assert not nan[::2].any()

    @pytest.mark.parametrize("step", [2.0**-100, 0.01, 0.3, 2.0**100])
    def test_qz_error_is_half_a_step_and_outliers_are_exact(self, kernels: Kernels, step: float) -> None:
        values = bell(70001)
        values[::100] *= 1000
        values[7], values[8] = np.nan, -np.inf
        result = decode(kernels, "qz", encode(kernels, "qz", values, step), values.size)
        far = ~(np.abs(values.astype(float)) < 127.51 * step)
        assert result[far].tobytes() == values[far].tobytes()
        assert far[7]
        assert far[8]
        assert (np.abs(result[~far].astype(float) - values[~far]) <= step / 2 * 1.0001).all()

    @pytest.mark.parametrize("step", [0.0, -1.0, 2.0**-101, 2.0**101, np.nan, np.inf])
    def test_qz_refuses_a_step_out_of_range(self, kernels: Kernels, step: float) -> None:
        with pytest.raises(ValueError, match="step must lie"):
            encode(kernels, "qz", bell(10), step)

    def test_step_is_alpha_times_rms_and_always_allowed(self, kernels: Kernels) -> None:
        values = bell(1000)
        assert kernels.step(values, 0.5) == pytest.approx(0.5 * float(np.sqrt(np.mean(np.square(values, dtype=float)))))
        assert kernels.step(np.zeros(9, np.float32), 0.5) == 2.0**-100

    def test_sizes_on_skewed_values(self, kernels: Kernels) -> None:
        values = np.maximum(bell(1 << 17), 0)
        sizes = {name: values.nbytes / len(encode(kernels, name, values, 0.05)) for name in FLOATS}
        least = {"bf16": 2, "int8": 3.87, "int4": 7.1, "bitmap": 1.8, "huff": 2.2, "bf16_huff": 5.5, "qz": 8.5}
        assert {name: sizes[name] for name in least if sizes[name] < least[name]} == {}


class TestSigns:
    """Signs go with the exponents where neighbours have one sign, and only where that is smaller."""

    @pytest.mark.parametrize("name", ["huff", "bf16_huff"])
    @pytest.mark.parametrize("kind", ["runs", "rows", "runs with zeros", "negative"])
    def test_signs_of_neighbours_cost_less_than_their_bit(self, kernels: Kernels, name: str, kind: str) -> None:
        values = related(70001)[kind]
        kept = int(np.count_nonzero(values))
        mixed = np.where(noise(values.size, 11) & 1, values, -values)
        saved = len(encode(kernels, name, mixed)) - len(encode(kernels, name, values))
        assert saved > kept / 8 * 0.2

    @pytest.mark.parametrize("name", ["huff", "bf16_huff"])
    def test_a_decoder_takes_any_distance_but_0(self, kernels: Kernels, name: str) -> None:
        values = related(300)["runs"]
        encoding = bytearray(encode(kernels, name, values))
        at = (
            3 + (600 if name == "huff" else 0) + 300 - 300 // 8 + 1
        )  # behind the head, lower halves, mantissas and base
        assert encoding[0] & 4
        assert int.from_bytes(encoding[at : at + 2], "little") == 1
        for distance in (1, 2, 63, 64, 65, 127, 128, 299, 300, 301, 65535):
            encoding[at : at + 2] = distance.to_bytes(2, "little")
            arrived = decode(kernels, name, bytes(encoding), 300)
            assert arrived.tobytes() == decode(TWIN, name, bytes(encoding), 300).tobytes()
            assert (distance == 1) == (np.signbit(arrived) == np.signbit(values)).all()
        encoding[at : at + 2] = b"\0\0"
        with pytest.raises(ValueError, match="contradict"):
            decode(kernels, name, bytes(encoding), 300)

    def test_exponents_too_far_apart_leave_signs_where_they_were(self, kernels: Kernels) -> None:
        values = related(70001)["far apart"]
        assert not encode(kernels, "huff", values)[0] & 4
        assert encode(kernels, "huff", related(70001)["runs"])[0] & 4


class TestBuffers:
    @pytest.mark.parametrize("name", NAMES)
    def test_unaligned_buffers(self, kernels: Kernels, name: str) -> None:
        values = bell(5003)
        memory = np.zeros(values.nbytes + 4, np.uint8)
        expected = encode(kernels, name, values)
        result = decode(kernels, name, expected, values.size).tobytes()
        for offset in (1, 2, 3):
            shifted = memory[offset : offset + values.nbytes]
            shifted[:] = values.view(np.uint8)
            assert encode(kernels, name, as_floats(shifted)) == expected
            shifted[:] = 0
            kernels.formats[name].decode_into(expected, shifted)
            assert shifted.tobytes() == result

    def test_overlap_small_and_read_only_destinations_are_refused(self, kernels: Kernels) -> None:
        values = bell(64)
        kernel = kernels.formats["bf16"]
        with pytest.raises(ValueError, match="overlaps"):
            kernel.encode_into(values, values)
        with pytest.raises(ValueError, match="up to 128 are needed"):
            kernel.encode_into(values, np.zeros(127, np.uint8))
        with pytest.raises(TypeError):
            kernel.encode_into(values, bytes(128))
        with pytest.raises(ValueError, match="no whole number"):
            kernel.encode_into(b"abc", np.zeros(128, np.uint8))

    @pytest.mark.parametrize("n", [0, 1, 8, 13, 2048, 70001])
    def test_known_mask(self, kernels: Kernels, n: int) -> None:
        values, mask = bell(n, 1), np.zeros((n + 7) // 8, np.uint8)
        activations = samples(n)["activations"]
        assert kernels.mask_into(activations, mask) == mask.size
        assert np.unpackbits(mask, bitorder="little", count=n).tolist() == (activations != 0).tolist()
        count = int((activations != 0).sum())
        packed, back = np.zeros(count, np.float32), np.full(n, 9, np.float32)
        assert kernels.pack_into(values, mask, packed) == 4 * count
        assert packed.tobytes() == values[activations != 0].tobytes()
        assert kernels.unpack_into(packed, mask, back) == 4 * n
        assert back.tobytes() == np.where(activations != 0, values, np.float32(0)).tobytes()

    def test_a_mask_that_does_not_fit_is_refused(self, kernels: Kernels) -> None:
        values, room = bell(13), np.zeros(13, np.float32)
        for mask, problem in ((b"\x01", "values need 2"), (b"\x01\xff", "beyond its 13"), (b"\xff\x1f", "8 bytes")):
            with pytest.raises(ValueError, match=problem):
                kernels.unpack_into(values[:2], mask, room)

    def test_threads_share_the_kernels(self, kernels: Kernels) -> None:
        values = samples(70001)["activations"]
        expected = encode(kernels, "huff", values)
        results: list[bytes] = []
        threads = [threading.Thread(target=lambda: results.append(encode(kernels, "huff", values))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 4


def as_floats(data: np.ndarray) -> np.ndarray:
    """The same memory as float32, aligned or not."""
    return np.ndarray(data.size // 4, np.float32, data.data)


def attempt(kernels: Kernels, name: str, encoding: bytes, n: int) -> bytes | None:
    """What comes of an encoding: the values, or None where it is refused."""
    try:
        return canonical(decode(kernels, name, encoding, n))
    except ValueError:
        return None


class TestHostileBytes:
    @pytest.mark.parametrize("name", NAMES)
    def test_every_truncation_is_refused(self, kernels: Kernels, name: str) -> None:
        for values in (samples(300)["sparse"], related(300)["runs"]):
            encoding = encode(kernels, name, values)
            for size in range(len(encoding)):
                with pytest.raises(ValueError, match=r"."):
                    decode(kernels, name, encoding[:size], 300)
            with pytest.raises(ValueError, match=r"left over"):
                decode(kernels, name, encoding + b"\0", 300)

    @pytest.mark.parametrize("name", NAMES)
    @FUZZ
    @given(data=st.data())
    def test_mutations_are_refused_or_decoded_alike(self, name: str, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, 700))
        kinds = {**samples(n), **related(n)}
        kind = data.draw(st.sampled_from(["activations", "gradients", "sparse", "odd", "runs", "runs with zeros"]))
        encoding = bytearray(encode(TWIN, name, kinds[kind]))
        for _ in range(data.draw(st.integers(1, 4)) if encoding else 0):
            at = data.draw(st.integers(0, min(len(encoding) - 1, data.draw(st.sampled_from([40, 5000])))))
            encoding[at] = data.draw(st.integers(0, 255))
        cut = bytes(encoding[: data.draw(st.sampled_from([None, None, len(encoding) // 2]))])
        outcomes = {kernels.isa: attempt(kernels, name, cut, n) for kernels in (TWIN, *NATIVE)}
        assert len(set(outcomes.values())) == 1, outcomes

    @pytest.mark.parametrize("name", NAMES)
    @FUZZ
    @given(data=st.binary(max_size=400), n=st.integers(0, 300))
    def test_any_bytes_are_refused_or_decoded_alike(self, name: str, data: bytes, n: int) -> None:
        outcomes = {kernels.isa: attempt(kernels, name, data, n) for kernels in (TWIN, *NATIVE)}
        assert len(set(outcomes.values())) == 1, outcomes

    @pytest.mark.parametrize("name", NAMES)
    @FUZZ
    @given(values=st.lists(st.integers(0, 2**32 - 1), max_size=200))
    def test_any_values_encode_alike(self, name: str, values: list[int]) -> None:
        array = np.array(values, np.uint32).view(np.float32)
        encodings = {encode(kernels, name, array) for kernels in (TWIN, *NATIVE)}
        assert len(encodings) == 1
