"""The oracle itself is checked: against textbook loops, exact fractions, and what must hold of any correct training."""

import ast
import hashlib
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from sklearn.datasets import load_digits
from torch import nn

from zmpsl import models
from zmpsl.data import load
from zmpsl.job import parse_job


@pytest.fixture(autouse=True)
def _torchs_random_state_outlives_a_test():
    with torch.random.fork_rng(devices=[]):
        yield


def job_of(*overrides):
    return parse_job("", "test", overrides)


def seed_of(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def small_job(*overrides):
    """Two owners, some 100 digits each, one local epoch, no more than needed to move the weights."""
    return job_of("owners=2", "train.rounds=1", "train.local_epochs=1", "data.args.limit=200", *overrides)


def assert_same(left, right):
    """Same tensors, same bits."""
    assert list(left) == list(right)
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape), name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)


def assert_close(left, right, atol):
    assert list(left) == list(right)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=atol, err_msg=name)


def differs(left, right):
    return any(not np.array_equal(left[name], right[name]) for name in left)


def first_state(job):
    """The weights before round 0."""
    return reference.arrays(reference.initial_model(job).state_dict())


def test_it_shares_no_code_with_what_runs():
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    taken = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zmpsl"):
            taken |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("zmpsl") for alias in node.names)
    data = {("zmpsl.data", name) for name in ("Samples", "Split", "load", "partition")}
    assert taken == data | {("zmpsl", "models"), ("zmpsl.job", "Data"), ("zmpsl.job", "Job")}


def test_keys_are_those_of_the_written_definition():
    assert reference.key(7, "shuffle", 2, 0, 1) == seed_of("7/shuffle/2/0/1")
    assert reference.key(0, "partition") == seed_of("0/partition")
    assert 0 <= reference.key(2**53 - 1, "init", 0) < 2**63


def test_two_owners_learn_the_digits():
    """Accuracy and loss are sensible; the accuracy is that of the weights given, on all test samples, no dropout."""
    job = small_job("train.rounds=2", "data.args.limit=800", "train.batch_size=16", "model.args.dropout=0.2")
    result = reference.train(job)
    assert len(result.states) == len(result.accuracies) == len(result.losses) == 2
    assert result.accuracies[-1] > 0.85
    assert result.losses[1] < 0.6 * result.losses[0]
    model = nn.Sequential(*models.build("digits_cnn", dropout=0.2))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in result.states[-1].items()})
    inputs, targets = load(job.data, job.seed).test.batch(np.arange(359))
    with torch.no_grad():
        right = (model.eval()(torch.from_numpy(inputs)).argmax(1).numpy() == targets).mean()
    assert result.accuracies[-1] == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("state", ["reset", "average"])
def test_one_owner_is_a_textbook_training_loop(name, state):
    """Of one owner there is nothing to average: bit for bit a plain loop, with one optimiser where state is kept."""
    job = job_of(
        "owners=1", "seed=5", "train.rounds=2", "train.local_epochs=2", "data.args.limit=150", f"optimizer.name={name}",
        f"optimizer.state={state}", "optimizer.lr={initial: 0.01, schedule: exponential, gamma: 0.5}",
        "model.args.dropout=0.5",
    )  # fmt: skip
    result = reference.train(job)

    bunch = load_digits()
    chosen = np.flatnonzero(np.arange(len(bunch.target)) % 5 != 4)[:150]
    images = torch.tensor(bunch.images[chosen, np.newaxis] / 16, dtype=torch.float32)
    labels = torch.tensor(bunch.target[chosen])
    layers = []
    blocks = models.build("digits_cnn", dropout=0.5)
    for index in range(6):
        torch.default_generator.manual_seed(seed_of(f"5/init/{index}"))
        layers.append(next(blocks))
    model = nn.Sequential(*layers)
    optimizer = None
    for round_ in range(2):
        if optimizer is None or state == "reset":
            if name == "adam":
                optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
            else:
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        optimizer.param_groups[0]["lr"] = [0.01, 0.005][round_]
        losses = []
        for epoch in range(2):
            rng = np.random.Generator(np.random.PCG64(seed_of(f"5/shuffle/0/{round_}/{epoch}")))
            for batch, indices in enumerate(torch.from_numpy(rng.permutation(150)).split(32)):
                optimizer.zero_grad()
                logits = images[indices]
                for index, layer in enumerate(layers):
                    torch.default_generator.manual_seed(seed_of(f"5/forward/0/{round_}/{epoch}/{batch}/0/{index}"))
                    logits = layer(logits)
                loss = nn.functional.cross_entropy(logits, labels[indices])
                loss.backward()
                optimizer.step()
                losses += [loss.item()] * len(indices)
        assert_same(result.states[round_], {key: value.numpy() for key, value in model.state_dict().items()})
        assert result.losses[round_] == pytest.approx(np.mean(losses), rel=1e-9)


def test_owners_who_take_one_plain_step_make_a_step_down_the_gradient_of_all_samples():
    """w - lr * sum(n_k * g_k) / n is gradient descent on all samples (FedSGD), so weights n_k are right, not 1/K."""
    plain = ["optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.lr.initial=0.5", "train.batch_size=256"]
    sizes = ["data.partition.kind=sizes", "data.partition.sizes=[1, 2, 5]"]
    split = reference.train(small_job(*plain, *sizes, "owners=3"))
    whole = reference.train(small_job(*plain, "owners=1"))
    assert_close(split.states[0], whole.states[0], atol=1e-6)
    assert split.losses[0] == pytest.approx(whole.losses[0], rel=1e-6)
    skewed = reference.train(small_job(*plain, "owners=3", "data.partition.kind=shards"))
    assert_close(skewed.states[0], whole.states[0], atol=1e-6)


def test_micro_batches_change_no_more_than_rounding():
    """Micro-batches of 11, 11 and 10 (and of 1 to 8 in the short last batch) sum up to the gradient of the batch."""
    whole = reference.train(small_job("train.batch_size=32"))
    for pieces in (3, 8):
        cut = reference.train(small_job("train.batch_size=32", f"train.micro_batches={pieces}"))
        assert_close(cut.states[0], whole.states[0], atol=1e-5)
        assert cut.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
        assert differs(cut.states[0], whole.states[0])  # they were cut at all


def test_averages_equal_exact_fractions_in_any_order():
    """Values over 60 binades that cancel; a plain float64 sum must be wrong somewhere, or nothing is shown."""
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((5, 400)) * 2.0 ** rng.integers(-30, 30, (5, 400))).astype(np.float32)
    weights = [int(weight) for weight in rng.integers(1, 2**29, 4)]
    weights.append(weights[0])
    values[4, ::3] = -values[0, ::3]  # cancels exactly what owner 0 adds
    states = [{"x": row.reshape(20, 20), "count": np.int64(k) * np.ones((), np.int64)} for k, row in enumerate(values)]
    exact = [sum(Fraction(float(v)) * n for v, n in zip(column, weights, strict=True)) for column in values.T]
    wanted = (np.array([float(each) for each in exact]) / sum(weights)).astype(np.float32).reshape(20, 20)
    mean = reference.weighted_mean(states, weights)
    assert_same(mean, {"x": wanted, "count": np.array(0)})
    for _ in range(5):
        order = rng.permutation(5)
        shuffled = reference.weighted_mean([states[k] for k in order], [weights[k] for k in order])
        assert shuffled["x"].tobytes() == mean["x"].tobytes()
        assert shuffled["count"] == order[0]
    naive = sum(row.astype(np.float64) * n for row, n in zip(values, weights, strict=True))
    assert naive.tolist() != [float(each) for each in exact]


def test_average_of_equal_states_is_that_state():
    state = {"x": np.random.default_rng(0).standard_normal(1000).astype(np.float32), "scalar": np.array(3, np.float32)}
    assert_same(reference.weighted_mean([state, state, state], [7, 1, 2**20]), state)


def test_optimiser_state_is_averaged_with_the_weights_of_fedavg():
    """After owners of 3 and 1 batches of Adam, the averaged step lies between, by their samples."""
    sizes = ["data.partition.kind=sizes", "data.partition.sizes=[3, 1]", "data.args.limit=128", "train.batch_size=32"]
    job = small_job("optimizer.name=adam", "optimizer.state=average", *sizes)
    owners = reference.deal(job, load(job.data, job.seed))
    model = reference.initial_model(job)
    zeros = reference.initial_memory(job, model)
    trained = [reference.train_owner(job, model, zeros, owner, 0) for owner in owners]
    memory = reference.weighted_mean([each[1] for each in trained], [each[2] for each in trained])
    assert [each[2] for each in trained] == [96, 32]
    assert list(memory) == list(zeros)
    assert memory["0.step"].shape == ()
    assert memory["0.step"] == np.float32((96 * 3 + 32 * 1) / 128)
    two = ["train.rounds=2", *sizes]
    kept, reset = (reference.train(small_job(*two, f"optimizer.state={state}")) for state in ("average", "reset"))
    assert_same(kept.states[0], reset.states[0])
    assert differs(kept.states[1], reset.states[1])


def test_batch_norm_averages_statistics_and_takes_the_count_of_owner_0():
    """Owner 0 has 3 batches of 2 micro-batches each; statistics have moved, and other owners moved them too."""
    job = job_of(
        "owners=2", "train.rounds=1", "train.local_epochs=1", "train.batch_size=8", "train.micro_batches=2",
        "model.name=resnet18", "model.args={width: 4, classes: 3, small_input: true}", "data.name=synthetic",
        "data.args={samples: 32, shape: [3, 32, 32], classes: 3}", "data.partition.kind=sizes",
        "data.partition.sizes=[3, 1]",
    )  # fmt: skip
    start, end = first_state(job), reference.train(job).states[0]
    counts = [name for name in end if name.endswith("num_batches_tracked")]
    assert counts
    assert all(start[name] == 0 and end[name] == 6 and end[name].dtype == np.int64 for name in counts)
    statistics = [name for name in end if "running" in name]
    assert all(not np.array_equal(start[name], end[name]) and np.isfinite(end[name]).all() for name in statistics)
    owners = reference.deal(job, load(job.data, job.seed))
    alone = reference.train_owner(job, reference.initial_model(job), {}, owners[0], 0)[0]
    assert all(not np.array_equal(alone[name], end[name]) for name in statistics)


def test_randomness_is_keyed_and_torchs_own_is_left_alone():
    """Dropout and augmentation follow from the job's seed only, whatever was drawn before."""
    noisy = ["model.args.dropout=0.5", "data.augment=crop-flip"]
    torch.default_generator.manual_seed(1)
    before = torch.get_rng_state()
    first = reference.train(small_job(*noisy))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = reference.train(small_job(*noisy))
    assert_same(first.states[0], again.states[0])
    assert (first.losses, first.accuracies) == (again.losses, again.accuracies)
    for change in ("seed=1", "model.args.dropout=0.0", "data.augment=none"):
        assert differs(first.states[0], reference.train(small_job(*noisy, change)).states[0]), change


def test_every_use_of_randomness_has_its_own_key(monkeypatch):
    """Of 2 owners, 2 rounds, 2 local epochs, 4 batches of 2 micro-batches, no two draw the same numbers."""
    keys = []
    plain = reference.key
    monkeypatch.setattr(reference, "key", lambda *what: keys.append(what[1:]) or plain(*what))
    job = small_job("train.rounds=2", "train.local_epochs=2", "train.micro_batches=2", "data.augment=crop-flip")
    reference.train(job)
    epochs = [(owner, round_, epoch) for round_ in range(2) for owner in range(2) for epoch in range(2)]
    batches = [(*epoch, batch) for epoch in epochs for batch in range(4)]
    wanted = {
        "init": [(0,), *((block,) for block in range(7))],  # before the first block twice, and to learn of the end
        "shuffle": epochs,
        "augment": batches,
        "forward": [(*batch, micro, block) for batch in batches for micro in range(2) for block in range(6)],
    }
    for purpose, numbers in wanted.items():
        assert [tuple(used) for name, *used in keys if name == purpose] == numbers, purpose
    assert {name for name, *_ in keys} == set(wanted)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("{initial: 0.5}", [0.5, 0.5, 0.5, 0.5]),
        ("{initial: 0.5, schedule: step, gamma: 0.1, step_rounds: 2}", [0.5, 0.5, 0.05, 0.05]),
        ("{initial: 0.5, schedule: exponential, gamma: 0.5}", [0.5, 0.25, 0.125, 0.0625]),
        ("{initial: 0.5, schedule: cosine}", [0.5, 0.25 + 0.125 * math.sqrt(2), 0.25, 0.25 - 0.125 * math.sqrt(2)]),
    ],
)
def test_learning_rates(settings, wanted):
    job = job_of("train.rounds=4", f"optimizer.lr={settings}")
    assert [reference.learning_rate(job, round_) for round_ in range(4)] == pytest.approx(wanted, rel=1e-12)


def test_owners_hold_back_a_share_for_their_own_tests():
    """No sample is in two places, and together they are the whole data set."""
    job = small_job("owners=3", "evaluate.data=owners", "evaluate.share=0.2")
    owners = reference.deal(job, load(job.data, job.seed))
    assert [len(owner.test_indices) for owner in owners] == [13, 13, 13]
    everything = np.concatenate([part for owner in owners for part in (owner.train_indices, owner.test_indices)])
    assert sorted(everything) == list(range(200))
    assert all(owner.test is owner.train for owner in owners)
    assert 0 <= reference.train(job).accuracies[0] <= 1


def test_batches_of_an_epoch():
    """Every sample once, in an order of its own per epoch; the options leave out what they say."""

    def of_epoch(*overrides, epoch=0):
        job = small_job("owners=1", "data.args.limit=70", *overrides)
        (owner,) = reference.deal(job, load(job.data, job.seed))
        return reference.batches(job, owner, 0, epoch)

    assert [len(batch) for batch in of_epoch()] == [32, 32, 6]
    assert [len(batch) for batch in of_epoch("train.drop_last=true")] == [32, 32]
    assert [len(batch) for batch in of_epoch("train.max_batches=1")] == [32]
    assert sorted(np.concatenate(of_epoch())) == list(range(70))
    assert np.concatenate(of_epoch()).tolist() != np.concatenate(of_epoch(epoch=1)).tolist()
