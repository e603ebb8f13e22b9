"""A part's state in one buffer: no two tensors overlap, and the average is exact whatever the order of arrival."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmpsl.errors import JobError, TrainingError
from zmpsl.job import Optimizer
from zmpsl.plan import Block, Entry
from zmpsl.state import (
    ALIGNMENT,
    FLOATS,
    INTEGERS,
    STEP,
    Average,
    Layout,
    digest,
    ends_layout,
    layout_of,
    optimizer_entries,
)

SOME = settings(max_examples=150, deadline=None)
PLAIN = Optimizer()
SEED = 20240217

names = st.sampled_from(FLOATS + INTEGERS)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
blocks_ = st.lists(
    st.lists(st.tuples(names, shapes, st.booleans()), max_size=4).map(
        lambda tensors: Block(
            "B", tuple(Entry(f"t{n}", dtype, shape, trained) for n, (dtype, shape, trained) in enumerate(tensors))
        )
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def layout_with(*entries: Entry, optimizer: Optimizer = PLAIN) -> Layout:
    return layout_of((Block("B", entries),), range(1), optimizer)


def vector(size: int, dtype: str = "float32") -> Layout:
    return layout_with(Entry("w", dtype, (size,), True))


def flat_of(layout: Layout, **values: object) -> np.ndarray:
    """A state with these values in tensors 0.NAME."""
    flat = np.zeros(layout.nbytes, np.uint8)
    for name, value in values.items():
        layout.views(flat)[f"0.{name}"][...] = value
    return flat


def averaged(layout: Layout, states: list[tuple[int, np.ndarray, int]]) -> np.ndarray:
    """The average of (owner, state, weight)."""
    average = Average(layout)
    for owner, flat, weight in states:
        average.add(owner, flat, weight)
    result = np.zeros(layout.nbytes, np.uint8)
    average.write_to(result)
    return result


class TestLayout:
    @SOME
    @given(
        blocks_,
        st.sampled_from([Optimizer(), Optimizer(state="average"), Optimizer(name="adam", state="average")]),
        st.sampled_from([0, 640]),
    )
    def test_tensors_are_aligned_disjoint_and_in_order(
        self, blocks: tuple[Block, ...], optimizer: Optimizer, start: int
    ) -> None:
        layout = layout_of(blocks, range(len(blocks)), optimizer, start)
        end = start
        for segment in layout.segments:
            assert segment.offset % ALIGNMENT == 0
            assert end <= segment.offset < end + ALIGNMENT
            end = segment.offset + segment.nbytes
        assert end <= layout.nbytes < end + ALIGNMENT
        names_ = [segment.name for segment in layout.segments]
        assert len(set(names_)) == len(names_)
        wanted = [f"{index}.{entry.key}" for index, block in enumerate(blocks) for entry in block.entries]
        assert [name for name in names_ if "@" not in name] == wanted

    @SOME
    @given(blocks_)
    def test_views_cover_the_buffer_and_only_themselves(self, blocks: tuple[Block, ...]) -> None:
        layout = layout_of(blocks, range(len(blocks)), PLAIN)
        flat = np.zeros(layout.nbytes, np.uint8)
        views = layout.views(flat)
        expected = np.zeros_like(flat)
        for number, segment in enumerate(layout.segments, 1):
            view = views[segment.name]
            assert (view.dtype, view.shape) == (segment.dtype, segment.shape)
            assert view.nbytes == segment.nbytes
            view.reshape(-1).view(np.uint8)[:] = number
            expected[segment.offset : segment.offset + segment.nbytes] = number
        assert np.array_equal(flat, expected)

    def test_only_the_blocks_asked_for(self) -> None:
        blocks = tuple(Block("Linear", (Entry("w", "float32", (n,), True),)) for n in range(1, 6))
        assert [segment.name for segment in layout_of(blocks, range(1, 3), PLAIN).segments] == ["1.w", "2.w"]

    def test_the_ends_are_the_first_part_and_behind_it_the_last(self) -> None:
        blocks = tuple(Block("Linear", (Entry("w", "float32", (20,), True),)) for _ in range(5))
        layout = ends_layout(blocks, (0, 2, 3, 4, 5), PLAIN)
        assert [(segment.name, segment.offset) for segment in layout.segments] == [
            ("0.w", 0),
            ("1.w", 128),
            ("4.w", 256),
        ]
        assert layout.nbytes == 384

    def test_a_dtype_that_cannot_be_averaged_is_refused_by_name(self) -> None:
        with pytest.raises(
            JobError, match=r"block 0 \(B\): w has dtype bfloat16; known are float32, float64, float16, int64"
        ):
            layout_with(Entry("w", "bfloat16", (2,), True))

    def test_an_empty_part_has_an_empty_layout(self) -> None:
        layout = layout_of((Block("ReLU", ()),), range(1), PLAIN)
        assert (layout.segments, layout.nbytes) == ((), 0)
        assert digest(np.zeros(0, np.uint8)) == sha256(b"").hexdigest()

    def test_the_digest_is_that_of_all_bytes(self) -> None:
        flat = np.arange(200, dtype=np.uint8)
        assert digest(flat) == sha256(flat.tobytes()).hexdigest()


class TestOptimizerEntries:
    @pytest.mark.parametrize(
        ("optimizer", "extra"),
        [
            (Optimizer(), []),
            (Optimizer(name="adam"), []),
            (Optimizer(state="average"), [("0.w@momentum_buffer", "float64", (3, 2))]),
            (Optimizer(state="average", momentum=0), []),
            (
                Optimizer(name="adam", state="average"),
                [
                    ("0.w@step", "float32", ()),
                    ("0.w@exp_avg", "float64", (3, 2)),
                    ("0.w@exp_avg_sq", "float64", (3, 2)),
                ],
            ),
        ],
    )
    def test_each_parameter_has_them_behind_it_and_nothing_else_has(
        self, optimizer: Optimizer, extra: list[tuple[str, str, tuple[int, ...]]]
    ) -> None:
        layout = layout_with(
            Entry("w", "float64", (3, 2), True), Entry("mean", "float32", (2,), False), optimizer=optimizer
        )
        found = [(segment.name, segment.dtype, segment.shape) for segment in layout.segments]
        assert found == [("0.w", "float64", (3, 2)), *extra, ("0.mean", "float32", (2,))]
        assert [segment.name for segment in layout.segments if segment.trained] == ["0.w"]
        assert [segment.name for segment in layout.segments if segment.is_optimizer] == [name for name, _, _ in extra]
        assert len(optimizer_entries(optimizer)) == len(extra)


def exactly(values: list[float], weights: list[int]) -> np.float32:
    """The average as zmpsl/state.py defines it, by exact arithmetic."""
    total = sum((Fraction(float(np.float32(v))) * w for v, w in zip(values, weights, strict=True)), Fraction(0))
    # Python divides integers with one correct rounding; this is float64(exact sum).
    return np.float32((total.numerator / total.denominator) / sum(weights))


@st.composite
def terms(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Values of one element and their weights: signs, zeros, any magnitude at all, spread over 2**40 of it."""
    lowest = draw(st.integers(-149, 84))
    finite = st.builds(
        lambda sign, mantissa, up: sign * float(mantissa) * 2.0 ** (lowest + up),
        st.sampled_from([1, -1]),
        st.integers(0, 2**24 - 1),
        st.integers(0, 20),
    )
    values = draw(st.lists(st.just(-0.0) | finite, min_size=1, max_size=9))
    weights = draw(
        st.lists(st.integers(1, 2**28) | st.sampled_from([1, 2**28]), min_size=len(values), max_size=len(values))
    )
    return [float(np.float32(value)) for value in values], weights


SUBNORMAL, TINY, LARGEST = 1e-45, 1.1754944e-38, 3.4028235e38


class TestAverage:
    @SOME
    @given(terms())
    @example(([LARGEST] * 4, [2**28] * 4))
    @example(([-LARGEST, LARGEST, LARGEST], [1, 2**28, 3]))
    @example(([SUBNORMAL, SUBNORMAL], [1, 1]))
    @example(([SUBNORMAL, -0.0, TINY], [2**28, 7, 1]))
    @example(([1.0, SUBNORMAL, -1.0], [3, 2**28, 3]))
    @example(([LARGEST, SUBNORMAL, -LARGEST], [3, 2**28, 3]))
    def test_it_is_the_exact_sum_rounded_as_documented(self, drawn: tuple[list[float], list[int]]) -> None:
        values, weights = drawn
        layout = vector(1)
        states = [(owner, flat_of(layout, w=v), w) for owner, (v, w) in enumerate(zip(values, weights, strict=True))]
        found = averaged(layout, states).view(np.float32)[0]
        assert found.tobytes() == exactly(values, weights).tobytes()

    @SOME
    @given(terms(), st.randoms(use_true_random=False))
    def test_the_order_of_arrival_changes_no_bit(
        self, drawn: tuple[list[float], list[int]], order: random.Random
    ) -> None:
        layout = vector(1)
        states = [(owner, flat_of(layout, w=v), w) for owner, (v, w) in enumerate(zip(*drawn, strict=True))]
        shuffled = order.sample(states, len(states))
        assert averaged(layout, shuffled).tobytes() == averaged(layout, states).tobytes()

    @pytest.mark.parametrize(
        "values",
        [
            [2.0**100, 2.0**20, 2.0**-60, -(2.0**100), -(2.0**20)],
            [1.0, 2.0**-70, 2.0**-140, -1.0, -(2.0**-70)],
            [1.0, 2.0**-53, 2.0**-110],
        ],
        ids=["large", "small", "tie"],
    )
    def test_the_order_changes_no_bit_even_where_magnitudes_lie_far_apart(self, values: list[float]) -> None:
        # Three magnitudes further apart than a pair of float64 is wide; what the large ones leave over must not depend
        # on who came first.
        layout = vector(1, "float32")
        found = set()
        for order in itertools.permutations(range(len(values))):
            result = averaged(layout, [(owner, flat_of(layout, w=values[owner]), 1) for owner in order])
            found.add(float(result.view(np.float32)[0]))
        assert found == {float(exactly(values, [1] * len(values)))}

    def test_many_owners_with_real_looking_weights(self) -> None:
        rng = np.random.default_rng(SEED)
        layout = vector(500)
        weights = [int(n) for n in rng.integers(1, 60_000, 100)]
        tensors = [(rng.standard_normal(500) * 10.0 ** rng.integers(-6, 3, 500)).astype(np.float32) for _ in weights]
        states = [(owner, flat_of(layout, w=t), w) for owner, (t, w) in enumerate(zip(tensors, weights, strict=True))]
        found = averaged(layout, states).view(np.float32)[:500]
        expected = [exactly([float(t[n]) for t in tensors], weights) for n in range(500)]
        assert found.tobytes() == np.array(expected).tobytes()
        assert averaged(layout, states[::-1]).view(np.float32)[:500].tobytes() == found.tobytes()

    @pytest.mark.parametrize("size", [1, STEP - 1, STEP, STEP + 1, 2 * STEP + 17])
    def test_tensors_of_any_size_are_averaged_to_the_last_element(self, size: int) -> None:
        layout = layout_with(Entry("a", "float32", (size,), True), Entry("b", "float32", (3,), True))
        one, other = np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32)[::-1] * 3
        result = averaged(layout, [(0, flat_of(layout, a=one, b=1), 1), (1, flat_of(layout, a=other, b=5), 3)])
        views = layout.views(result)
        assert np.array_equal(views["0.a"], ((one.astype(float) + 3.0 * other) / 4).astype(np.float32))
        assert np.array_equal(views["0.b"], np.full(3, 4, np.float32))

    def test_one_owner_alone_gives_its_own_values(self) -> None:
        layout = vector(1000)
        values = np.random.default_rng(SEED).standard_normal(1000).astype(np.float32)
        assert np.array_equal(
            averaged(layout, [(0, flat_of(layout, w=values), 12_345)]).view(np.float32)[:1000], values
        )

    @pytest.mark.parametrize("dtype", ["float64", "float16"])
    def test_other_float_types(self, dtype: str) -> None:
        layout = vector(3, dtype)
        states = [(0, flat_of(layout, w=[1, 2, -3]), 1), (1, flat_of(layout, w=[3, 2, 0]), 1)]
        assert layout.views(averaged(layout, states))["0.w"].tolist() == [2.0, 2.0, -1.5]

    @pytest.mark.parametrize("order", list(itertools.permutations((2, 5, 9))), ids=str)
    def test_integers_of_the_lowest_owner_stand(self, order: tuple[int, ...]) -> None:
        layout = layout_with(
            Entry("w", "float32", (2,), True), Entry("n", "int64", (), False), Entry("m", "bool", (3,), False)
        )
        states = [
            (owner, flat_of(layout, w=owner, n=2**53 + owner, m=[owner == 2, 0, 1]), 1 + owner) for owner in order
        ]
        views = layout.views(averaged(layout, states))
        assert views["0.n"] == 2**53 + 2
        assert views["0.m"].tolist() == [True, False, True]
        assert views["0.w"].tolist() == [np.float32((2 * 3 + 5 * 6 + 9 * 10) / 19)] * 2

    def test_optimizer_tensors_are_averaged_like_weights(self) -> None:
        optimizer = Optimizer(name="adam", state="average")
        layout = layout_with(Entry("w", "float32", (2,), True), optimizer=optimizer)
        states = [
            (k, flat_of(layout, **{"w": k, "w@step": 10 * k, "w@exp_avg": -k, "w@exp_avg_sq": k * k}), 1)
            for k in (1, 3)
        ]
        views = layout.views(averaged(layout, states))
        assert views["0.w@step"] == 20
        assert [views[f"0.{name}"].tolist() for name in ("w", "w@exp_avg", "w@exp_avg_sq")] == [
            [2, 2],
            [-2, -2],
            [5, 5],
        ]

    def test_padding_stays_zero(self) -> None:
        layout = layout_with(Entry("a", "float32", (3,), True), Entry("n", "int32", (), False))
        result = averaged(layout, [(0, flat_of(layout, a=[1, 2, 3], n=7), 5)])
        assert np.flatnonzero(result).max() < 64 + 4
        assert not result[12:64].any()

    def test_adding_changes_no_state(self) -> None:
        layout = vector(100)
        flat = flat_of(layout, w=3)
        flat.setflags(write=False)
        averaged(layout, [(0, flat, 7), (1, flat, 8)])

    def test_after_a_reset_nothing_of_the_last_round_is_left(self) -> None:
        layout = layout_with(Entry("w", "float32", (2,), True), Entry("n", "int64", (), False))
        average = Average(layout)
        average.add(0, flat_of(layout, w=1e30, n=1), 2**28)
        average.reset()
        assert average.weight == 0
        average.add(4, flat_of(layout, w=[1, 2], n=44), 3)
        average.add(3, flat_of(layout, w=[1, 2], n=33), 3)
        result = np.zeros(layout.nbytes, np.uint8)
        average.write_to(result)
        assert layout.views(result)["0.w"].tolist() == [1, 2]
        assert layout.views(result)["0.n"] == 33

    @pytest.mark.parametrize(
        "values",
        [[np.nan], [np.inf], [-np.inf], [1, np.inf], [np.inf, 1, 2], [np.inf, -np.inf], [np.nan, np.inf]],
        ids=str,
    )
    def test_what_is_not_finite_is_a_training_error_that_names_the_tensor(self, values: list[float]) -> None:
        # Without a warning of NumPy's on the way: the error says it all.
        layout = layout_with(Entry("good", "float32", (2,), True), Entry("bad", "float32", (2,), True))
        states = [(owner, flat_of(layout, bad=[0, value]), 1) for owner, value in enumerate(values)]
        with pytest.raises(TrainingError, match=r"the average of 0\.bad is not finite; training has diverged"):
            averaged(layout, states)

    def test_a_sum_that_no_float64_holds_is_a_training_error_too(self) -> None:
        layout = vector(2, "float64")
        for values, weight in (([1e308, 1e308], 1), ([1e308], 2**28)):
            states = [(owner, flat_of(layout, w=[0, value]), weight) for owner, value in enumerate(values)]
            with pytest.raises(TrainingError, match=r"the average of 0\.w is not finite"):
                averaged(layout, states)
