"""Tensors through outbox, wire and unpacker with every codec: what arrives, how far off, and what a mask spares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace

from zmpsl.codecs import NONE
from zmpsl.errors import RemoteProtocolError
from zmpsl.job.codec import parse_spec
from zmpsl.kernels import KERNELS
from zmpsl.transport.assembly import Assembly
from zmpsl.transport.buffers import BufferPool
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Packer, Unpacker
from zmpsl.transport.task import DTYPES, Op, Task
from zmpsl.transport.wire import CHUNK, Header, parse

EXACT = ["none", "lz4", "bitmap", "huff", "auto"]
LOSSY = ["bf16", "int8", "int4", "bf16-huff", "qz(0.05)", "qz(0.5)", "topk(0.1)", "topk(0.1, error-feedback)"]
# Relative error, as the codecs' specification has it, with room for other tensors than its own.
ERRORS = {"bf16": 0.003, "bf16-huff": 0.003, "int8": 0.02, "int4": 0.15, "qz(0.05)": 0.02, "qz(0.5)": 0.16}
FUZZ = settings(max_examples=60, deadline=None)
SEED = 20240611


def packer(codec: str) -> Packer:
    return Packer("a>b", lambda _op: parse_spec(codec))


class Hop:
    """Both ends of a link: the sender's outbox and the receiver's assembly."""

    def __init__(self, codec: str, known: KnownMask | None = None) -> None:
        self.packer = packer(codec)
        self.outbox = Outbox(1, self.packer, 1 << 40)
        self.assembly = Assembly(BufferPool())
        self.unpack = Unpacker(lambda _task: known)
        self.headers: list[Header] = []
        self.sent = 0

    def send(self, task: Task) -> Task:
        self.outbox.push(self.packer.queued(task))
        self.headers.clear()
        received = None
        while message := self.outbox.next():
            header, body = parse(message[0], 1 << 40), bytes(message[1] or b"")
            assert len(body) == header.size
            self.headers.append(header)
            self.sent += len(body)
            self.unpack(header, memoryview(body), self.assembly.place(header))
            received = self.assembly.finish(header)
        assert received is not None
        assert received.tensor is not None
        return received

    def through(self, tensor: np.ndarray, op: Op = Op.FORWARD, mask: KnownMask | None = None) -> np.ndarray:
        before = tensor.tobytes()
        received = self.send(Task(op, 1, 0, 0, tensor=tensor, relu=op is Op.FORWARD and mask is not None, mask=mask))
        assert tensor.tobytes() == before, "the sender's tensor was written"
        assert received.tensor is not None
        assert (received.tensor.dtype, received.tensor.shape) == (tensor.dtype, tensor.shape)
        return received.tensor


def activations(n: int, seed: int = SEED) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).standard_normal(n, np.float32), 0)


def noise(n: int, seed: int = SEED + 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n, np.float32)


def error(ours: np.ndarray, original: np.ndarray) -> float:
    return float(np.linalg.norm(ours - original) / np.linalg.norm(original))


SIZES = [1, 2, 3, 63, 64, 65, 1000, CHUNK // 4 - 1, CHUNK // 4, CHUNK // 4 + 1, 3 * CHUNK // 4 + 777]


class TestRoundTrips:
    @pytest.mark.parametrize("codec", EXACT)
    @pytest.mark.parametrize("n", SIZES)
    def test_exact_codecs_give_back_every_bit(self, codec: str, n: int) -> None:
        for tensor in (activations(n), noise(n)):
            assert Hop(codec).through(tensor).tobytes() == tensor.tobytes()

    @pytest.mark.parametrize("codec", EXACT + LOSSY)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_other_dtype_comes_back_bit_for_bit(self, codec: str, dtype: np.dtype) -> None:
        tensor = (100 * activations(4097)).astype(dtype)
        if dtype != np.float32 or codec in EXACT:
            assert Hop(codec).through(tensor).tobytes() == tensor.tobytes()

    @pytest.mark.parametrize("codec", LOSSY)
    @pytest.mark.parametrize("op", [Op.PART, Op.GLOBAL])
    def test_weights_are_never_changed(self, codec: str, op: Op) -> None:
        tensor = noise(5000)
        assert Hop(codec).through(tensor, op).tobytes() == tensor.tobytes()

    @pytest.mark.parametrize("codec", ERRORS)
    @pytest.mark.parametrize("n", [size for size in SIZES if size > 1000])
    def test_lossy_codecs_stay_within_their_error(self, codec: str, n: int) -> None:
        hop = Hop(codec)
        for tensor in (activations(n), noise(n)):
            assert error(hop.through(tensor), tensor) <= ERRORS[codec]
        assert hop.sent < 0.6 * 8 * n

    @pytest.mark.parametrize("codec", EXACT + LOSSY)
    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (5, 1, 7)], ids=str)
    def test_odd_shapes(self, codec: str, shape: tuple[int, ...]) -> None:
        tensor = np.full(shape, 2.0, np.float32)
        assert np.allclose(Hop(codec).through(tensor), tensor, atol=0.5)

    @pytest.mark.parametrize("codec", ["none", "lz4", "huff", "bf16", "bf16-huff", "int8", "int4", "qz(0.5)", "topk"])
    def test_what_is_not_finite_arrives_as_such(self, codec: str) -> None:
        """Training that has diverged must look so at the other end."""
        tensor = noise(2000)
        tensor[77], tensor[1500] = np.nan, np.inf
        received = Hop(codec).through(tensor)
        assert np.isnan(received[77])
        assert not np.isfinite(received[1500])

    @pytest.mark.parametrize("codec", EXACT)
    @FUZZ
    @given(data=st.data())
    def test_any_float32(self, codec: str, data: st.DataObject) -> None:
        tensor = data.draw(arrays(np.uint32, st.integers(0, 300))).view(np.float32)
        assert Hop(codec).through(tensor).tobytes() == tensor.tobytes()

    @pytest.mark.parametrize("codec", LOSSY)
    @FUZZ
    @given(data=st.data())
    def test_any_float32_goes_through_a_lossy_codec(self, codec: str, data: st.DataObject) -> None:
        tensor = data.draw(arrays(np.uint32, st.integers(0, 300))).view(np.float32)
        with np.errstate(all="ignore"):
            Hop(codec).through(tensor)

    def test_a_tally_of_what_was_sent(self) -> None:
        hop = Hop("huff")
        hop.through(activations(CHUNK))
        tally = hop.packer.tally
        assert (tally.raw_bytes, tally.packed_bytes, tally.codecs) == (4 * CHUNK, hop.sent, {"huff": 1})
        assert tally.encode_s > 0
        assert hop.unpack.seconds[1] > 0


class TestTopk:
    def test_the_largest_values_arrive_and_nothing_else(self) -> None:
        tensor = noise(10_000)
        received = Hop("topk(0.05)").through(tensor)
        kept = received != 0
        assert 500 <= kept.sum() <= 505
        assert np.abs(tensor[kept]).min() >= np.abs(tensor[~kept]).max()
        assert np.allclose(received[kept], tensor[kept], rtol=0.005)

    def test_error_feedback_sends_in_the_end_what_it_left_out(self) -> None:
        tensor, hop = noise(1000), Hop("topk(0.1, error-feedback)")
        total = sum(hop.through(tensor, Op.BACKWARD).astype(np.float64) for _ in range(50))
        assert error(total / 50, tensor) < 0.2
        assert error(Hop("topk(0.1)").through(tensor, Op.BACKWARD), tensor) > 0.5

    def test_error_feedback_starts_anew_with_a_round(self) -> None:
        tensor, hop = noise(1000), Hop("topk(0.1, error-feedback)")
        first = [hop.send(Task(Op.BACKWARD, 1, 0, 0, tensor=tensor)).tensor for _ in range(3)]
        again = [hop.send(Task(Op.BACKWARD, 1, 0, 1, tensor=tensor)).tensor for _ in range(3)]
        assert [each.tobytes() for each in first] == [each.tobytes() for each in again]


class TestMasks:
    @pytest.mark.parametrize(
        "codec", ["lz4", "bitmap", "huff", "bf16", "bf16-huff", "int8", "int4", "qz(0.05)", "topk(0.9)"]
    )
    @pytest.mark.parametrize("n", SIZES)
    def test_gradients_travel_only_where_the_activation_is_not_zero(self, codec: str, n: int) -> None:
        activation, gradient = activations(n), noise(n)
        theirs = KnownMask(activation.copy())
        hop = Hop(codec, KnownMask(activation))
        received = hop.through(gradient, Op.BACKWARD, theirs)
        assert (received[activation == 0] == 0).all()
        expected = np.where(activation != 0, gradient, 0).astype(np.float32)
        if codec in EXACT:
            assert received.tobytes() == expected.tobytes()
        elif expected.any() and n > 3:
            assert error(received, expected) < (0.2 if codec in ("int4", "topk(0.9)") else 0.03)

    @pytest.mark.parametrize("codec", ["huff", "qz(0.5)"])
    def test_a_mask_makes_gradients_smaller(self, codec: str) -> None:
        activation, gradient = activations(100_000), noise(100_000)
        plain, masked = Hop(codec), Hop(codec, KnownMask(activation))
        plain.through(gradient, Op.BACKWARD)
        masked.through(gradient, Op.BACKWARD, KnownMask(activation))
        assert masked.sent < 0.65 * plain.sent
        assert all(header.masked for header in masked.headers)

    def test_without_a_codec_gradients_travel_whole(self) -> None:
        gradient = noise(1000)
        assert Hop("none").through(gradient, Op.BACKWARD, KnownMask(activations(1000))).tobytes() == gradient.tobytes()

    @pytest.mark.parametrize("activation", [np.zeros(5000, np.float32), np.ones(5000, np.float32)], ids=["0", "1"])
    @pytest.mark.parametrize("codec", ["bitmap", "huff", "bf16-huff", "qz(0.5)", "topk"])
    def test_a_mask_of_nothing_and_of_everything(self, activation: np.ndarray, codec: str) -> None:
        received = Hop(codec, KnownMask(activation)).through(noise(5000), Op.BACKWARD, KnownMask(activation))
        assert (received[activation == 0] == 0).all()
        assert not activation.any() or received.any()

    @pytest.mark.parametrize("forward", ["huff", "bf16-huff", "int4", "qz(0.5)", "topk(0.1)"])
    @pytest.mark.parametrize("n", [1000, CHUNK // 2 + 5])
    def test_both_ends_agree_on_what_a_lossy_codec_left_of_an_activation(self, forward: str, n: int) -> None:
        sent = activations(n)
        ours = KnownMask(sent)
        seen = Hop(forward).through(sent, Op.FORWARD, ours)
        gradient = noise(n)
        received = Hop("huff", ours).through(gradient, Op.BACKWARD, KnownMask(seen))
        assert received.tobytes() == np.where(seen != 0, gradient, 0).astype(np.float32).tobytes()

    def test_forward_says_that_it_is_the_output_of_a_relu(self) -> None:
        hop = Hop("none")
        assert hop.send(Task(Op.FORWARD, 1, 0, 0, tensor=activations(9), relu=True)).relu
        assert not hop.send(Task(Op.FORWARD, 1, 0, 0, tensor=activations(9))).relu

    def test_a_waiting_gradient_holds_on_to_no_activation(self) -> None:
        activation = activations(1000)
        task = Task(Op.BACKWARD, 1, 0, 0, tensor=noise(1000), mask=KnownMask(activation))
        assert packer("none").queued(task).mask is None
        waiting = packer("huff").queued(task)
        assert waiting.mask is not None
        bits = waiting.mask.bits(0, 4000).tobytes()
        activation[:] = 0
        assert waiting.mask.bits(0, 4000).tobytes() == bits


class TestHostileMasks:
    def masked(self) -> tuple[Header, bytes]:
        hop = Hop("huff")
        activation = activations(1000)
        hop.outbox.push(Task(Op.BACKWARD, 1, 0, 0, tensor=noise(1000), mask=KnownMask(activation)))
        message = hop.outbox.next()
        assert message is not None
        header = parse(message[0], 1 << 30)
        assert header.masked
        return header, bytes(message[1] or b"")

    @pytest.mark.parametrize(
        "known", [None, KnownMask(activations(999)), KnownMask(np.zeros(1000, np.float32)), KnownMask(noise(1000))]
    )
    def test_a_mask_that_is_not_ours_is_refused(self, known: KnownMask | None) -> None:
        header, body = self.masked()
        with pytest.raises(RemoteProtocolError):
            Unpacker(lambda _task: known)(header, memoryview(body), np.zeros(4000, np.uint8))

    @pytest.mark.parametrize("number", [0, 1, 2, 4, 7, 8])
    @FUZZ
    @given(body=st.binary(max_size=300))
    def test_garbage_under_a_mask(self, number: int, body: bytes) -> None:
        header, _ = self.masked()
        unpack = Unpacker(lambda _task: KnownMask(activations(1000)))
        try:
            unpack(replace(header, codec=number), memoryview(body), np.zeros(4000, np.uint8))
        except RemoteProtocolError as error:
            assert str(len(body)) in str(error) or "unpack" in str(error)  # noqa: PT017 - its class is the point


def test_none_is_no_packing_at_all() -> None:
    assert packer("none")(Task(Op.FORWARD, 1, 0, 0, tensor=noise(10))) is NONE
    assert packer("auto")(Task(Op.FORWARD, 1, 0, 0, tensor=noise(10))) is NONE
    assert KERNELS.isa
