"""Reading data sets: real files, damaged files, missing files, and what a batch is made of."""

import gzip
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmpsl.data import Samples, Split, load
from zmpsl.data.cifar_python import read_python_batch
from zmpsl.data.idx import IDX_FILES
from zmpsl.errors import DataError
from zmpsl.job.schema import Data

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1, 7], dtype=np.uint8)
PIXELS = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)


def idx(array, magic=None):
    head = struct.pack(f">{1 + array.ndim}I", magic or 0x0800 + array.ndim, *array.shape)
    return head + array.tobytes()


def mnist_folder(folder, **replaced):
    """Four small IDX files; `replaced` gives other content by a short key, None leaves a file out."""
    keys = ("images", "labels", "test_images", "test_labels")
    content = dict(zip(keys, (idx(IMAGES), idx(LABELS), idx(IMAGES[:2]), idx(LABELS[:2])), strict=True)) | replaced
    folder.mkdir(parents=True, exist_ok=True)
    for key, name in zip(keys, IDX_FILES, strict=True):
        if content[key] is not None:
            (folder / name).write_bytes(content[key])
    return str(folder)


def records(labels, pixels=PIXELS, coarse=None):
    columns = [np.array(labels, np.uint8)[:, None], pixels[: len(labels)]]
    return np.hstack(columns if coarse is None else [np.array(coarse, np.uint8)[:, None], *columns]).tobytes()


def python2_batch(pixels, labels, key=b"labels", by_columns=False):
    """A batch file as Python 2's cPickle wrote the original ones, opcode by opcode."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    data = pixels.tobytes(order="F" if by_columns else "C")
    return b"".join([
        b"\x80\x02}q\x01(", short(b"batch_label"), b"q\x02", short(b"training batch 1 of 5"), b"q\x03",
        short(key), b"q\x04]q\x05(", *(b"K" + bytes([label]) for label in labels), b"e",
        short(b"data"), b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07",
        b"cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09",
        b"(K\x01M", struct.pack("<H", len(pixels)), b"M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b",
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb", b"\x88" if by_columns else b"\x89",
        b"T", struct.pack("<i", len(data)), data, b"tbu.",
    ])  # fmt: skip


def test_fashion_mnist_is_read_whole_and_its_mean_and_std_are_right(shared_data):
    split = load(Data(name="fashion-mnist", dir=str(shared_data / "fashion-mnist")), 0)
    assert split.train.inputs.shape == (60000, 1, 28, 28)
    assert split.test.inputs.shape == (10000, 1, 28, 28)
    assert np.bincount(split.train.targets).tolist() == [6000] * 10
    assert np.bincount(split.test.targets).tolist() == [1000] * 10
    pixels = split.train.inputs / 255
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (split.train.mean[0], split.train.std[0])


def test_cifar10_excerpt_has_the_original_order_and_gives_its_last_eighth_for_test(shared_data):
    split = load(Data(name="cifar10", dir=str(shared_data / "cifar10-lossless-4k")), 0)
    assert split.train.inputs.shape == (3500, 3, 32, 32)
    assert split.test.inputs.shape == (500, 3, 32, 32)
    assert split.train.targets[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]  # the known first labels
    means = split.train.inputs.mean(axis=(0, 2, 3)) / 255
    assert np.abs(means - split.train.mean).max() < 0.01


def test_text_windows_do_not_overlap_and_targets_are_the_next_characters(shared_data):
    split = load(Data(name="text", dir=str(shared_data / "tinyshakespeare")), 0)
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    vocabulary = sorted(set(text))
    assert (len(text), split.classes) == (1_115_394, 65)
    cut = len(text) * 9 // 10
    assert (len(split.train), len(split.test)) == (cut // 65, (len(text) - cut) // 65)
    for half, start, index in ((split.train, 0, 0), (split.train, 65, 1), (split.test, cut + 65 * 7, 7)):
        inputs, targets = half.batch(np.array([index]))
        assert (inputs.dtype, targets.dtype, inputs.shape, targets.shape) == (np.int64, np.int64, (1, 64), (1, 64))
        assert "".join(vocabulary[token] for token in inputs[0]) == text[start : start + 64]
        assert "".join(vocabulary[token] for token in targets[0]) == text[start + 1 : start + 65]


def test_digits_hold_every_fifth_sample_for_test_whatever_the_seed():
    from sklearn.datasets import load_digits

    split = load(Data(), 0)
    everything = load_digits()
    assert (len(split.train), len(split.test), split.classes) == (1438, 359, 10)
    assert np.array_equal(split.test.targets, everything.target[4::5])
    assert np.array_equal(split.test.inputs[:, 0] * 16, everything.images[4::5])
    assert np.array_equal(load(Data(), 99).train.inputs, split.train.inputs)
    assert split.train.batch(np.arange(3))[0].dtype == np.float32


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"pip install zmpsl\[digits\]"):
        load(Data(), 0)


def test_a_batch_is_normalised_bit_by_bit_as_documented():
    samples = Samples(PIXELS.reshape(4, 3, 32, 32), np.array([1, 2, 3, 4], np.uint8), (0.1, 0.5, 0.7), (0.2, 0.3, 0.4))
    inputs, targets = samples.batch(np.array([2, 0]))
    assert (inputs.dtype, targets.dtype, targets.tolist()) == (np.float32, np.int64, [3, 1])
    assert inputs.flags.c_contiguous
    assert inputs.flags.writeable
    for channel, row, column in ((0, 0, 0), (1, 5, 31), (2, 31, 7)):
        pixel = np.float32(samples.inputs[2, channel, row, column])
        wanted = (pixel / np.float32(255) - np.float32(samples.mean[channel])) / np.float32(samples.std[channel])
        assert inputs[0, channel, row, column] == wanted


def test_samples_are_read_only_and_badly_fitting_ones_are_refused():
    x, y = np.zeros((4, 3), np.float32), np.arange(4)
    samples = Samples(x, y)
    with pytest.raises(ValueError, match="read-only"):
        samples.inputs[0, 0] = 1
    two, one, zero = (1.0, 2.0), (0.5,), (0.0,)
    for bad in ((x, y[:3]), (x.astype(np.float64), y), (x, y / 2), (x, y, two, two), (x, y, one), (x, y, one, zero)):
        with pytest.raises(DataError):
            Samples(*bad)
    with pytest.raises(DataError, match=r"\[0, 3\).*span 0 to 3"):
        Split(samples, samples, 3)
    with pytest.raises(DataError, match="differ"):
        Split(samples, Samples(np.zeros((4, 2), np.float32), y), 4)


@pytest.mark.parametrize("sub", [".", "MNIST/raw"])
def test_mnist_is_found_plain_or_packed_in_the_folder_or_where_torchvision_puts_it(tmp_path, sub):
    mnist_folder(tmp_path / sub)
    for name in IDX_FILES[:2]:
        plain = tmp_path / sub / name
        plain.with_name(name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    split = load(Data(name="mnist", dir=str(tmp_path)), 0)
    assert np.array_equal(split.train.inputs[:, 0], IMAGES)
    assert np.array_equal(split.test.targets, LABELS[:2])
    assert (split.train.mean, split.train.std) == ((0.1307,), (0.3081,))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"images": b"\0\0\x08"}, "train-images-idx3-ubyte: has 3 bytes.*has 16"),
        ({"images": idx(IMAGES, 0x801)}, "0x00000801, expected 0x00000803"),
        ({"images": idx(IMAGES)[:-1]}, r"has 4719 bytes.*\(6, 28, 28\).*4720"),
        ({"test_images": idx(IMAGES[:2]) + b"x"}, r"t10k-images.*has 1585 bytes.*\(2, 28, 28\).*1584"),
        ({"images": struct.pack(">4I", 0x803, *[0xFFFFFFFF] * 3)}, "has 16 bytes.*4294967295"),
        ({"images": idx(IMAGES[:5])}, "5 images.*6 labels"),
        ({"images": idx(IMAGES[:, :, :27])}, r"\(28, 27\), expected \(28, 28\)"),
        ({"test_labels": idx(np.array([1, 10], np.uint8))}, "t10k-labels.*label 1 is 10, expected 0 to 9"),
    ],
)
def test_damaged_idx_files_are_named_with_what_was_read_and_expected(tmp_path, replaced, message):
    with pytest.raises(DataError, match=message):
        load(Data(name="mnist", dir=mnist_folder(tmp_path, **replaced)), 0)


def test_a_gz_file_that_is_cut_or_no_gz_at_all_is_named(tmp_path):
    folder = mnist_folder(tmp_path, images=None)
    for content in (gzip.compress(idx(IMAGES))[:-20], b"no gzip at all"):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: damaged gzip file"):
            load(Data(name="mnist", dir=folder), 0)


def test_missing_files_name_folder_files_and_remedy(tmp_path):
    folder = mnist_folder(tmp_path, labels=None)
    message = f"train-labels-idx1-ubyte.*{re.escape(folder)}.*data.dir.*data.download: true"
    with pytest.raises(DataError, match=message) as e:
        load(Data(name="mnist", dir=folder), 0)
    assert "train-images" not in str(e.value)
    with pytest.raises(DataError, match=r"data_batch_\*\.bin.*nowhere is not a folder"):
        load(Data(name="cifar10", dir=str(tmp_path / "nowhere")), 0)
    with pytest.raises(DataError, match=r"give their folder as data\.dir"):
        load(Data(name="text"), 0)


def test_cifar10_reads_all_batches_in_order_and_none_twice(tmp_path):
    (tmp_path / "data_batch_2.bin").write_bytes(records([2, 3]))
    (tmp_path / "data_batch_1.bin.gz").write_bytes(gzip.compress(records([0, 1])))
    (tmp_path / "data_batch_2.bin.gz").write_bytes(gzip.compress(records([2, 3])))
    (tmp_path / "data_batch_3.bin.part").write_bytes(b"half")
    (tmp_path / "test_batch.bin").write_bytes(records([9]))
    split = load(Data(name="cifar10", dir=str(tmp_path)), 0)
    assert split.train.targets.tolist() == [0, 1, 2, 3]
    assert split.test.targets.tolist() == [9]
    assert np.array_equal(split.train.inputs[3].ravel(), PIXELS[1])


def test_cifar100_takes_the_fine_label_and_wants_its_test_file(tmp_path):
    inner = tmp_path / "cifar-100-binary"
    inner.mkdir()
    (inner / "train.bin").write_bytes(records([99, 5], coarse=[1, 2]))
    with pytest.raises(DataError, match=r"did not find test\.bin"):
        load(Data(name="cifar100", dir=str(tmp_path)), 0)
    (inner / "test.bin").write_bytes(records([7], coarse=[3]))
    split = load(Data(name="cifar100", dir=str(tmp_path)), 0)
    assert (split.train.targets.tolist(), split.test.targets.tolist(), split.classes) == ([99, 5], [7], 100)
    assert np.array_equal(split.train.inputs[1].ravel(), PIXELS[1])


def test_damaged_cifar_files_are_named_with_what_was_read_and_expected(tmp_path):
    batch = tmp_path / "data_batch_1.bin"
    for content, message in (
        (records([1, 2])[:-5], "data_batch_1.bin: has 6141 bytes.*3073.*1 records and 3068 bytes"),
        (b"", "has 0 bytes"),
        (records([1, 10]), "record 1 is 10, expected 0 to 9"),
    ):
        batch.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(Data(name="cifar10", dir=str(tmp_path)), 0)


@pytest.mark.parametrize("by_columns", [False, True])
def test_python_version_as_python_2_wrote_it(tmp_path, by_columns):
    content = python2_batch(PIXELS, [3, 1, 0, 9], by_columns=by_columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy has moved the module the old files name
        assert np.array_equal(pickle.loads(content, encoding="bytes")[b"data"], PIXELS)  # the file is a true one
    (tmp_path / "data_batch_1").write_bytes(content)
    (tmp_path / "test_batch").write_bytes(python2_batch(PIXELS[:1], [5]))
    split = load(Data(name="cifar10", dir=str(tmp_path)), 0)
    assert np.array_equal(split.train.inputs.reshape(4, -1), PIXELS)
    assert (split.train.targets.tolist(), split.test.targets.tolist()) == ([3, 1, 0, 9], [5])


def test_python_version_as_python_3_writes_it(tmp_path):
    for name, labels in (("train", [3, 1, 98, 9]), ("test", [0, 1, 2, 3])):
        batch = {b"data": PIXELS, b"fine_labels": labels, b"coarse_labels": [0] * 4, b"filenames": [b"a.png", b""]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    split = load(Data(name="cifar100", dir=str(tmp_path)), 0)
    assert np.array_equal(split.train.inputs.reshape(4, -1), PIXELS)
    assert split.train.targets.tolist() == [3, 1, 98, 9]


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("batch", "protocol", "message"),
    [
        ({"data": PIXELS, "labels": Trap("TRAP")}, 2, "'posix mkdir', which has no place in such a file, at byte"),
        ({"data": PIXELS, "labels": [1] * 4}, 4, "protocol 4, expected 2"),
        ({"data": PIXELS, "labels": [1.5] * 4}, 2, "opcode BINFLOAT"),
        ({"data": PIXELS, "labels": [1] * 3}, 2, "4 images but 3 labels"),
        ({"data": PIXELS, "labels": "1111"}, 2, "no list of integers under the key 'labels'"),
        ({"data": PIXELS.astype(np.int16), "labels": [1] * 4}, 2, "no uint8 array"),
        ({"data": PIXELS[:, :9], "labels": [1] * 4}, 2, r"\(4, 9\)"),
        ([1, 2], 2, "a list where a dict was expected"),
    ],
)
def test_anything_but_a_cifar_batch_is_refused_and_nothing_in_it_is_called(tmp_path, batch, protocol, message):
    if isinstance(batch, dict) and isinstance(batch["labels"], Trap):
        batch["labels"].path = str(tmp_path / "trap")
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DataError, match=message) as e:
        read_python_batch(path, "labels")
    assert str(path) in str(e.value)
    assert not (tmp_path / "trap").exists()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_to_a_python_batch_raises_anything_but_data_error(tmp_path_factory, data):
    content = bytearray(python2_batch(PIXELS[:1], [3]))
    frame = [*range(len(content) - 3072 - 4), len(content) - 4, len(content) - 3, len(content) - 2, len(content) - 1]
    for at in data.draw(st.lists(st.sampled_from(frame), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed_batch"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), *frame]))])
    try:
        images, labels = read_python_batch(path, "labels")
    except DataError:
        return
    assert images.shape == (len(labels), 3072)


def test_text_joins_files_by_name_takes_one_file_and_refuses_bad_ones(tmp_path):
    (tmp_path / "b.txt").write_bytes("ü\r\n".encode() * 30)
    (tmp_path / "a.txt").write_text("ab" * 30)
    args = {"context": 4}
    split = load(Data(name="text", dir=str(tmp_path), args=args), 0)
    assert split.classes == len("\n\rabü")
    assert split.train.inputs[0].tolist() == [2, 3, 2, 3]
    assert load(Data(name="text", dir=str(tmp_path), args={**args, "file": "a.txt"}), 0).classes == 2
    with pytest.raises(DataError, match=r"150 characters .* leave 15 for test.* context \+ 1 = 65"):
        load(Data(name="text", dir=str(tmp_path)), 0)
    with pytest.raises(DataError, match=r"did not find c\.txt"):
        load(Data(name="text", dir=str(tmp_path), args={"file": "c.txt"}), 0)
    (tmp_path / "c.txt").write_bytes(b"good\xff")
    with pytest.raises(DataError, match=r"c\.txt: not UTF-8 text: byte 4 is 0xff"):
        load(Data(name="text", dir=str(tmp_path), args={"file": "c.txt"}), 0)


def test_synthetic_follows_the_seed_and_has_the_shape_asked_for():
    data = Data(name="synthetic", args={"samples": 80, "shape": [3, 5], "classes": 4})
    split = load(data, 1)
    assert (split.train.inputs.shape, split.test.inputs.shape, split.classes) == ((80, 3, 5), (10, 3, 5), 4)
    assert np.array_equal(load(data, 1).train.inputs, split.train.inputs)
    assert not np.array_equal(load(data, 2).train.inputs, split.train.inputs)


def test_limits_keep_the_first_samples_of_any_data_set():
    split = load(Data(args={"limit": 7, "test_limit": 10_000}), 0)
    assert (len(split.train), len(split.test)) == (7, 359)
    assert np.array_equal(split.train.inputs, load(Data(), 0).train.inputs[:7])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("digits", {"context": 3}, "digits: unknown data.args 'context'; accepted: limit, test_limit"),
        ("text", {"contxt": 3}, "'contxt' .did you mean 'context'.*accepted: file, context, limit, test_limit"),
        ("digits", {"limit": 0}, "digits: data.args limit must be a whole number of at least 1, not 0"),
        ("text", {"context": True}, "context must be a whole number"),
        ("synthetic", {"shape": 8}, "shape must be a list"),
        ("fashion_mnist", {}, "did you mean 'fashion-mnist'.*known: cifar10, .*module:function"),
    ],
)
def test_wrong_names_and_arguments_are_told_with_the_accepted_ones(name, args, message):
    with pytest.raises(DataError, match=message):
        load(Data(name=name, dir="/", args=args), 0)


CUSTOM = """
import numpy as np
from zmpsl.data import Samples, Split
def pair(dir, size=3): return (np.ones((4, size)), [0, 1, 0, 1]), (np.ones((2, size)), [1, 1]), 2
def split(dir): return Split(*[Samples(np.ones((1, 2), np.uint8), np.zeros(1, int))] * 2, 1)
def needs(dir, must): return None
def junk(dir): return 5
def fails(dir): raise KeyError(dir)
"""


def test_a_function_of_the_users_own_is_called_with_dir_and_args(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    split = load(Data(name="own_data:pair", args={"size": 5, "limit": 3}), 0)
    assert (split.train.inputs.shape, split.train.inputs.dtype, split.classes) == ((3, 5), np.float32, 2)
    assert len(load(Data(name="own_data:split"), 0).train) == 1
    for name, args, message in (
        ("own_data:pair", {"sise": 5}, "'sise' .did you mean 'size'.*accepted: size, limit"),
        ("own_data:needs", {}, "lacks must"),
        ("own_data:junk", {}, "returned a int, expected a zmpsl.data.Split or"),
        ("own_data:fails", {}, r"own_data\.py:\d+: KeyError: 'here'"),
        ("own_data:gone", {}, r"own_data\.py has no function 'gone'"),
        ("no_such_module:f", {}, "cannot import 'no_such_module'.*PYTHONPATH"),
    ):
        with pytest.raises(DataError, match=message):
            load(Data(name=name, dir="here", args=args), 0)


def test_the_data_room_loads_neither_torch_nor_zmq_nor_scikit_learn():
    program = "import sys, zmpsl.data; sys.exit(str({'torch', 'zmq', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "set()"
