"""Who owns which samples, what an owner tests on, in which order its batches come and how they are augmented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.data import OwnerData, Samples, Split, load, owner_data, partition
from zmpsl.data.augment import augment
from zmpsl.errors import DataError
from zmpsl.job.schema import Data, Evaluate, Partition
from zmpsl.randomness import generator

LABELS = np.random.default_rng(0).integers(0, 10, 2000)


def split_of(train, test, classes=10):
    """Samples whose input is their own index, so that a subset tells where it came from."""
    halves = [np.arange(n, dtype=np.float32)[:, None] for n in (train, test)]
    return Split(*[Samples(x, (x[:, 0] % classes).astype(np.int64)) for x in halves], classes)


def indices(samples):
    return samples.inputs[:, 0].astype(int).tolist()


@st.composite
def cases(draw):
    owners = draw(st.integers(1, 12))
    count = draw(st.integers(owners * 4, 200))
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    kind = draw(st.sampled_from(["iid", "dirichlet", "shards", "sizes"]))
    sizes = draw(st.lists(st.floats(1, 3), min_size=owners, max_size=owners))
    spec = Partition(kind=kind, alpha=5.0, shards_per_owner=draw(st.integers(1, 4)), sizes=sizes)
    return labels, owners, spec, draw(st.integers(0, 2**62))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_every_sample_goes_to_exactly_one_owner_and_the_seed_says_to_which(case):
    labels, owners, spec, seed = case
    parts = partition(labels, owners, spec, seed)
    assert len(parts) == owners
    assert all(part.dtype == np.int64 and len(part) and np.array_equal(part, np.sort(part)) for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    again = partition(labels.astype(np.uint8), owners, spec, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "sizes"])
def test_another_seed_deals_otherwise(kind):
    spec = Partition(kind=kind, sizes=[1.0] * 8)
    one, two = (partition(LABELS, 8, spec, seed) for seed in (1, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_iid_shares_differ_by_one_sample_at_most_and_follow_the_named_generator():
    parts = partition(LABELS[:1003], 4, Partition(), 7)
    assert sorted(map(len, parts)) == [250, 251, 251, 251]
    order = generator(7, "partition").permutation(1003)
    assert parts[0].tolist() == sorted(order[:251].tolist())


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([1, 1, 2], [500, 500, 1000]),
        ([1, 1, 1], [667, 667, 666]),
        ([0.5, 99.5], [10, 1990]),
        ([1e308] * 2, [1000] * 2),
    ],
)
def test_sizes_are_relative_shares_that_add_up(sizes, counts):
    assert [len(part) for part in partition(LABELS, len(sizes), Partition(kind="sizes", sizes=sizes), 0)] == counts


def test_shards_give_few_labels_to_each_owner():
    parts = partition(LABELS, 10, Partition(kind="shards", shards_per_owner=2), 0)
    assert {len(part) for part in parts} == {200}
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 4  # a shard spans two labels at most


def test_dirichlet_is_skewed_for_a_small_alpha_and_even_for_a_large_one():
    def largest_label_share(alpha):
        parts = partition(LABELS, 5, Partition(kind="dirichlet", alpha=alpha, min_samples=20), 3)
        assert min(map(len, parts)) >= 20
        return np.mean([np.bincount(LABELS[part], minlength=10).max() / len(part) for part in parts])

    assert largest_label_share(0.1) > 0.35 > 0.2 > largest_label_share(1000)


def test_dirichlet_shuffles_each_label_before_cutting_it():
    parts = partition(LABELS, 5, Partition(kind="dirichlet", alpha=1000), 3)
    zeros = np.flatnonzero(LABELS == 0)
    for part in parts:  # without a shuffle, an owner's samples of one label would all stand side by side
        ranks = np.searchsorted(zeros, part[LABELS[part] == 0])
        assert ranks.max() - ranks.min() > len(zeros) // 2


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("iid", [[0, 4, 6, 8], [2, 5, 7, 11], [1, 3, 9, 10]]),
        ("dirichlet", [[0, 4, 6, 8], [3, 7, 10, 11], [1, 2, 5, 9]]),
        ("shards", [[0, 2, 3, 5], [7, 8, 10, 11], [1, 4, 6, 9]]),
        ("sizes", [[0, 8], [4, 5, 6, 11], [1, 2, 3, 7, 9, 10]]),
    ],
)
def test_a_partition_is_the_same_on_every_host_and_in_every_version(kind, wanted):
    # Owners deal for themselves: two that disagree would train on the same samples. These lists must never change.
    spec = Partition(kind=kind, alpha=1.0, sizes=[1, 2, 3])
    assert [part.tolist() for part in partition(np.arange(12) % 3, 3, spec, 42)] == wanted


def test_dirichlet_gives_up_with_the_numbers():
    spec = Partition(kind="dirichlet", alpha=0.01, min_samples=180)
    with pytest.raises(DataError, match=r"1000 draws with alpha 0\.01.*10 owners.*of 2000.*min_samples is 180"):
        partition(LABELS, 10, spec, 0)
    with pytest.raises(DataError, match="10 owners x min_samples 201 = 2010 samples, but there are 2000"):
        partition(LABELS, 10, Partition(kind="dirichlet", min_samples=201), 0)


def test_text_can_be_dealt_out_by_iid_and_sizes_only():
    targets = np.zeros((20, 8), np.int64)
    for kind in ("iid", "sizes"):
        assert sum(map(len, partition(targets, 2, Partition(kind=kind, sizes=[1, 3]), 0))) == 20
    for kind in ("dirichlet", "shards"):
        with pytest.raises(DataError, match=rf"{kind}.*\(20, 8\): take 'iid' or 'sizes'"):
            partition(targets, 2, Partition(kind=kind), 0)


@pytest.mark.parametrize(
    ("owners", "spec", "message"),
    [
        (2001, Partition(), "2001 owners cannot share 2000 samples"),
        (3, Partition(kind="sizes"), "3 numbers, one per owner, but there are none"),
        (3, Partition(kind="sizes", sizes=[1, 2]), "3 numbers, one per owner, but there are 2"),
        (2, Partition(kind="sizes", sizes=[1, float("inf")]), "finite"),
        (3, Partition(kind="sizes", sizes=[5, 0.001, 5]), r"owner 1 none of 2000 samples: its size 0\.001"),
        (900, Partition(kind="shards", shards_per_owner=3), "900 owners x 3 shards_per_owner = 2700.*2000"),
    ],
)
def test_impossible_partitions_are_refused_with_the_numbers(owners, spec, message):
    with pytest.raises(DataError, match=message):
        partition(LABELS, owners, spec, 0)


def test_shared_evaluation_deals_all_test_samples_out_by_stride():
    split = split_of(100, 11)
    owners = [owner_data(split, Data(), Evaluate(), 4, owner, 0) for owner in range(4)]
    assert [indices(data.test) for data in owners] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]
    parts = partition(split.train.targets, 4, Partition(), 0)
    assert [indices(data.train) for data in owners] == [part.tolist() for part in parts]
    assert len(owner_data(split, Data(), Evaluate(), 12, 11, 0).test) == 0


@pytest.mark.parametrize(("share", "held"), [(0.1, 2), (0.26, 6), (0.001, 1), (0.999, 24)])
def test_own_evaluation_holds_back_a_share_of_the_owners_samples(share, held):
    split = split_of(100, 11)
    data = owner_data(split, Data(), Evaluate(data="owners", share=share), 4, 2, 5)
    mine = partition(split.train.targets, 4, Partition(), 5)[2]
    assert len(data.test) == held
    assert sorted(indices(data.train) + indices(data.test)) == mine.tolist()
    order = generator(5, "partition", 2).permutation(25)
    assert indices(data.test) == sorted(mine[order[:held]].tolist())


def test_owners_that_cannot_be_served_are_told_so():
    split = split_of(4, 2)
    with pytest.raises(DataError, match="owner 1 has 1 sample"):
        owner_data(split, Data(), Evaluate(data="owners"), 4, 1, 0)
    with pytest.raises(DataError, match="owner 4 has no data: the job has 4 owners"):
        owner_data(split, Data(), Evaluate(), 4, 4, 0)
    with pytest.raises(DataError, match=r"augment 'crop-flip' is for images.*\(4, 1\)"):
        owner_data(split, Data(augment="crop-flip"), Evaluate(), 4, 0, 0)


def test_batches_are_the_shuffled_samples_cut_in_order():
    data = OwnerData(split_of(10, 1).train, split_of(10, 1).test)
    order = generator(1, "shuffle", 2, 3, 4).permutation(10).tolist()
    assert [b.tolist() for b in data.batches(1, 2, 3, 4, 4, False, None)] == [order[:4], order[4:8], order[8:]]
    assert [b.tolist() for b in data.batches(1, 2, 3, 4, 4, True, None)] == [order[:4], order[4:8]]
    assert [b.tolist() for b in data.batches(1, 2, 3, 4, 4, False, 1)] == [order[:4]]
    assert [len(b) for b in data.batches(1, 2, 3, 4, 5, True, 7)] == [5, 5]
    for other in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert np.concatenate(data.batches(*other, 4)).tolist() != order


def test_drop_last_never_leaves_an_owner_without_a_batch():
    data = OwnerData(split_of(10, 1).train, split_of(10, 1).test)
    with pytest.raises(DataError, match="owner 2 has 10 training samples, fewer than batch_size 11"):
        data.batches(1, 2, 0, 0, 11, drop_last=True)
    assert len(data.batches(1, 2, 0, 0, 10, drop_last=True)) == 1


def test_augment_equals_a_plain_loop_over_the_documented_draws():
    images = np.random.default_rng(2).integers(1, 256, (50, 3, 9, 7), dtype=np.uint8)
    rng = np.random.default_rng(3)
    offsets, flips = rng.integers(0, 9, size=(50, 2)), rng.random(50) < 0.5
    result = augment(images, np.random.default_rng(3))
    assert result.flags.c_contiguous
    assert 0 < flips.sum() < 50
    for image, crop, (top, left), flip in zip(images, result, offsets, flips, strict=True):
        padded = np.zeros((3, 17, 15), np.uint8)
        padded[:, 4:13, 4:11] = image
        wanted = padded[:, top : top + 9, left : left + 7]
        assert np.array_equal(crop, wanted[:, :, ::-1] if flip else wanted)


def test_augmentation_pads_with_black_pixels_before_normalising():
    samples = Samples(np.full((64, 1, 8, 8), 255, np.uint8), np.zeros(64, np.int64), (0.5,), (0.25,))
    inputs, _ = samples.batch(np.arange(64), np.random.default_rng(1))
    assert set(np.unique(inputs)) == {np.float32(-2), np.float32(2)}
    with pytest.raises(DataError, match="augment"):
        Samples(np.zeros((2, 5), np.int64), np.zeros(2, np.int64)).batch(np.arange(2), np.random.default_rng(1))


def test_an_owner_with_data_of_its_own_has_all_of_it():
    split = load(Data(name="digits"), 0)
    for owner in (0, 2):
        mine = owner_data(split, Data(partition=Partition(kind="own")), Evaluate(), 3, owner, 0)
        assert len(mine.train) == len(split.train)
        assert len(mine.test) == len(split.test)
    held = owner_data(split, Data(partition=Partition(kind="own")), Evaluate(data="owners", share=0.25), 3, 1, 0)
    assert (len(held.train), len(held.test)) == (1438 - 360, 360)
    with pytest.raises(DataError, match="deals nothing out"):
        partition(split.train.targets, 3, Partition(kind="own"), 0)
