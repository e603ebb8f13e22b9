"""Masks of secure averaging: what one owner hands in tells nothing, and the sum is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import job
from masked import SECURE, fixed_mean

from zmpsl.errors import JobError, RemoteProtocolError, TrainingError
from zmpsl.masking import MaskedAverage, Masker
from zmpsl.messages import Paused
from zmpsl.plan import Block, Entry, Peer, Plan, owner_name
from zmpsl.roles.seal import Seal
from zmpsl.state import ends_layout

x25519 = pytest.importorskip(
    "cryptography.hazmat.primitives.asymmetric.x25519", reason="needs the package cryptography: zmpsl[secure]"
)

ELEMENTS = 60_000


@pytest.fixture
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key pairs from a seed, so that what is said of the masks is said of the same ones each time."""
    rng = np.random.default_rng(5)
    make = x25519.X25519PrivateKey.from_private_bytes
    monkeypatch.setattr(x25519.X25519PrivateKey, "generate", lambda: make(rng.bytes(32)))


def plan(owners: int = 3, version: int = 1) -> Plan:
    """Two blocks at the ends: floats of three kinds, and a counter."""
    entries = (Entry("w", "float32", (ELEMENTS,), True), Entry("d", "float64", (3,), True))
    block = Block("B", (*entries, Entry("h", "float16", (5,), True), Entry("n", "int64", (), False)))
    return Plan(
        version=version, run="r", job=job(*SECURE), blocks=(block, block, block), bounds=(0, 1, 2, 3),
        aggregator=Peer("aggregator", "x"), nodes=(Peer("node-0", "x"),),
        owners=tuple(Peer(owner_name(index), "x") for index in range(owners)),
    )  # fmt: skip


def agreed(of: Plan) -> list[Masker]:
    maskers = [Masker(of, owner) for owner in of.active]
    keys = {owner_name(owner): masker.public for owner, masker in zip(of.active, maskers, strict=True)}
    for masker in maskers:
        masker.agree(keys)
    return maskers


def states(of: Plan) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(1)
    layout = ends_layout(of.blocks, of.bounds, of.job.optimizer)
    found = []
    for owner in of.active:
        flat = np.zeros(layout.nbytes, np.uint8)
        for name, view in layout.views(flat).items():
            view[...] = owner + 7 if name.endswith("n") else rng.normal(0, 0.1, view.shape)
        found.append(flat)
    return found


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_the_sum_is_exact_in_any_order(order: list[int]):
    of = plan(4)
    layout = ends_layout(of.blocks, of.bounds, of.job.optimizer)
    flats, weights, maskers = states(of), [3, 500, 64, 1], agreed(of)
    average = MaskedAverage(layout)
    for owner in order:
        average.add(owner, maskers[owner].mask(flats[owner], weights[owner], 0), weights[owner])
    got = np.zeros(layout.nbytes, np.uint8)
    average.write_to(got)
    views = [layout.views(flat) for flat in flats]
    for name, view in layout.views(got).items():
        expected = fixed_mean([each[name] for each in views], weights)
        assert (view.dtype, view.tobytes()) == (expected.dtype, expected.tobytes()), name


def looks_random(values: np.ndarray[Any, Any], plain: np.ndarray[Any, Any]) -> bool:
    """Bytes are uniform (chi-squared), and neither halves nor signs go with the plain values (5 sigma)."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    mean = values.nbytes / 256
    chi = float(((counts - mean) ** 2 / mean).sum())
    limit = 5 / np.sqrt(values.size)
    numbers = [(values >> shift).astype(np.uint32).astype(np.float64) for shift in (np.uint64(0), np.uint64(32))]
    found = [abs(np.corrcoef(number, plain)[0, 1]) for number in numbers]
    return abs(chi - 255) < 5 * np.sqrt(2 * 255) and max(found) < limit


@pytest.mark.usefixtures("_seeded")
def test_what_one_owner_hands_in_goes_with_nothing():
    """Nor does what is left of the sum while one owner is missing, nor the difference of two rounds or plans."""
    of = plan()
    flats = states(of)
    plain = flats[1][: 4 * ELEMENTS].view(np.float32).astype(np.float64)

    def handed(version: int, round_: int, owners: tuple[int, ...] = (1,)) -> np.ndarray[Any, Any]:
        maskers = agreed(plan(version=version))
        return sum(maskers[each].mask(flats[each], 9, round_).view(np.uint64)[:ELEMENTS] for each in owners)  # type: ignore[return-value]

    assert looks_random(handed(1, 0), plain)
    assert looks_random(handed(1, 0, (0, 1)), plain)
    assert looks_random(handed(1, 1) - handed(1, 0), plain)
    assert looks_random(handed(2, 0) - handed(1, 0), plain)
    masker = agreed(of)[1]
    first, second = (masker.mask(flats[1], 9, round_).view(np.uint64)[:ELEMENTS] for round_ in (0, 1))
    assert looks_random(second - first, plain)
    # The test would see it: the sum of all three, and the plain values in fixed point.
    assert not looks_random(handed(1, 0, (0, 1, 2)), plain)
    assert not looks_random(np.rint(plain * 2**28).astype(np.int64).view(np.uint64), plain)


def test_one_mask_is_used_once():
    of = plan()
    masker = agreed(of)[0]
    masker.mask(states(of)[0], 1, 4)
    for round_ in (4, 3):
        with pytest.raises(TrainingError, match=f"owner-0 has handed in already, in round {round_}"):
            masker.mask(states(of)[0], 1, round_)


def test_without_keys_nothing_is_handed_in():
    of = plan()
    with pytest.raises(TrainingError, match="owner-1 has no keys of the other owners yet"):
        Masker(of, 1).mask(states(of)[1], 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda keys: keys.pop("owner-2"),
        lambda keys: keys.update({"owner-3": bytes(32)}),
        lambda keys: keys.update({"owner-0": bytes(32)}),
        lambda keys: keys.update({"owner-2": bytes(32)}),
        lambda keys: keys.update({"owner-2": b"short"}),
    ],
    ids=["too few", "too many", "another of ours", "of low order", "short"],
)
def test_keys_that_are_not_those_of_the_plan(change: Callable[[dict[str, bytes]], None]):
    maskers = [Masker(plan(), owner) for owner in range(3)]
    keys = {owner_name(owner): masker.public for owner, masker in enumerate(maskers)}
    change(keys)
    with pytest.raises(RemoteProtocolError, match="mask key"):
        maskers[0].agree(keys)
    with pytest.raises(TrainingError, match="has no keys"):
        maskers[0].mask(states(plan())[0], 1, 0)


def test_two_owners_are_too_few():
    with pytest.raises(JobError, match="needs owners: 3 or more, not 2"):
        job(*SECURE, "owners=2")
    maskers = [Masker(plan(2), owner) for owner in range(2)]
    with pytest.raises(RemoteProtocolError, match="3 or more"):
        maskers[0].agree({owner_name(owner): masker.public for owner, masker in enumerate(maskers)})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["optimizer.name=adam", "optimizer.state=average"], "too coarse for Adam"),
        (["guard.update_norm=5"], "guard.update_norm"),
        (["recover.round_s=60"], "recover.round_s must be null"),
    ],
)
def test_settings_that_do_not_go_with_it(settings: list[str], says: str):
    with pytest.raises(JobError, match=says):
        job(*SECURE, *settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1024.5])
def test_weights_that_are_out_of_range(value: float):
    of = plan()
    flat = states(of)[1]
    flat.view(np.float32)[0] = value
    with pytest.raises(TrainingError, match=r"owner-1: 0\.w has a value of .*takes up to 1024"):
        agreed(of)[1].mask(flat, 1, 0)


def test_largest_weights_and_counts_do_not_overflow():
    of = plan()
    layout = ends_layout(of.blocks, of.bounds, of.job.optimizer)
    flats, most = states(of), (1 << 24) // 3
    average = MaskedAverage(layout)
    for owner, masker in enumerate(agreed(of)):
        flats[owner].view(np.float32)[0] = -1024
        average.add(owner, masker.mask(flats[owner], most, 0), most)
    got = np.zeros(layout.nbytes, np.uint8)
    average.write_to(got)
    assert got.view(np.float32)[0] == -1024
    with pytest.raises(TrainingError, match=f"owner-1 has processed {most + 1} samples"):
        agreed(of)[1].mask(flats[1], most + 1, 0)


def test_masks_that_do_not_cancel():
    """An owner that hands in anything else ruins the average, and that is told."""
    of = plan()
    layout = ends_layout(of.blocks, of.bounds, of.job.optimizer)
    average = MaskedAverage(layout)
    average.add(0, agreed(of)[0].mask(states(of)[0], 1, 0), 1)
    with pytest.raises(TrainingError, match="do not cancel"):
        average.write_to(np.zeros(layout.nbytes, np.uint8))


class TestSeal:
    """Which owners a round is begun again with."""

    def closed(self) -> Seal:
        seal = Seal()
        seal.close(plan(version=4))
        return seal

    def test_closed_it_takes_the_same_owners_only(self) -> None:
        assert self.closed().keeps_out("owner-3")
        assert not self.closed().keeps_out("owner-2")
        assert not self.closed().keeps_out("node-0")
        assert not Seal().keeps_out("owner-3")

    @pytest.mark.parametrize(
        ("place", "of", "handed_in", "opens"),
        [
            ("owner-1", 4, -1, True), ("owner-1", 4, 6, True), ("owner-1", 4, 7, False),
            ("owner-1", 3, -1, False), ("owner-3", 4, -1, False), ("node-1", 4, -1, False),
        ],
    )  # fmt: skip
    def test_an_owner_that_has_not_handed_in_opens_it(self, place: str, of: int, handed_in: int, opens: bool) -> None:
        seal = self.closed()
        seal.hear(place, Paused(plan=of, handed_in=handed_in), 7)
        assert bool(seal.owners) is not opens

    def test_settled_it_stays(self) -> None:
        seal = self.closed()
        seal.settle()
        seal.hear("owner-1", Paused(plan=4), 7)
        seal.close(plan(4, version=5))
        assert seal.keeps_out("owner-3")
