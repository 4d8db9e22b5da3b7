"""Arrays in files: their items, classes, split and range come out as they are, and what is no array is named."""

import gzip
import pickle
import tracemalloc

import numpy as np
import pytest
import scipy.io
import torch
from helpers import load, numbers

from datasets import restore
from tiny_diffusion.arrays import (
    Array,
    check_shape,
    chosen,
    narrowed,
    points_hint,
    read_array,
    role_and_part,
    taken,
    value_range,
)
from tiny_diffusion.messages import UsageError

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 9, 14, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4
SMALL = ["--epochs", 1, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 7, "--hidden_size", 16]


def saved(path, x):
    np.save(path, x)
    return path


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_npy_is_read_where_it_is_looked_at(tmp_path):
    array = read_array(saved(tmp_path / "x.npy", PICTURES))
    assert isinstance(array.items, np.memmap) and np.array_equal(array.items, PICTURES)
    assert array.classes is array.labels is array.split is None and array.said == ()


def test_a_large_npy_with_a_limit_is_not_read_whole(tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (300_000, 64, 64))  # 4.9 GB, all holes
    file[::100_000] = 1
    del file
    tracemalloc.start()
    array = read_array(tmp_path / "x.npy")
    array = narrowed(taken(array, chosen(np.arange(300_000), 64, None)), "x")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.items.shape == (64, 64, 64) and most < 30e6  # bytes


@pytest.mark.parametrize("shape", [(20, 3, 32, 32), (20, 1, 28, 28), (20, 4, 24, 40), (20, 13, 64, 64)])
def test_channels_first_are_seen_by_the_shape_and_told(shape, tmp_path):
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    array = read_array(saved(tmp_path / "x.npy", x))
    _, channels, height, width = shape
    assert array.items.shape == (20, height, width, channels) and array.items[3, 5, 7, 0] == x[3, 0, 5, 7]
    assert f"{channels} channel" in array.said[0] and f"of {height}×{width}; --channels last if" in array.said[0]
    assert read_array(tmp_path / "x.npy", "last").items.shape == shape


@pytest.mark.parametrize("shape", [(20, 32, 32, 3), (20, 9, 14, 4), (20, 64, 64, 13), (20, 3, 32, 3), (20, 28, 28, 28)])
def test_channels_last_stay_unless_asked_for(shape, tmp_path):
    array = read_array(saved(tmp_path / "x.npy", np.zeros(shape, np.uint8)))
    n, a, b, c = shape
    said = f"{shape} read as {c} channels of {a}×{b}; --channels first if it is not so"
    assert array.items.shape == shape and array.said == ((said,) if c > 4 else ())
    assert read_array(tmp_path / "x.npy", "first").items.shape == (n, b, c, a)


@pytest.mark.parametrize(
    "key, role",
    {
        "x": ("x", ""),
        "Y": ("y", ""),
        "train_images": ("x", "train"),
        "val_labels": ("y", "validation"),
        "x_test": ("x", "test"),
        "y_train": ("y", "train"),
        "X_train": ("x", "train"),
        "trainX": ("x", "train"),
        "arr_0": ("x", ""),
        "mean": None,
        "train": None,
    }.items(),
)
def test_arrays_are_known_by_their_names(key, role):
    assert role_and_part(key) == role


@pytest.mark.parametrize("y", [LABELS, LABELS[:, None], np.eye(4)[LABELS], LABELS.astype(float), LABELS.astype("S1")])
def test_labels_in_any_form_are_classes(y, tmp_path):
    array = read_array(archive(tmp_path / "a.npz", x=PICTURES, y=y))
    assert array.classes == ["0", "1", "2", "3"] and np.array_equal(array.labels, LABELS)


def test_points_with_y_have_classes(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 2))
    array = read_array(archive(tmp_path / "a.npz", x=x, y=np.array(["a", "b"] * 10)))
    assert array.items.shape == (20, 2) and array.classes == ["a", "b"] and array.labels.tolist() == [0, 1] * 10


def test_medmnist_keeps_its_split_and_classes(tmp_path):
    sizes = {"train": 12, "val": 4, "test": 8}
    x = {f"{part}_images": np.full((n, 28, 28), i, np.uint8) for i, (part, n) in enumerate(sizes.items())}
    y = {f"{part}_labels": (np.arange(n) % 2 + 3)[:, None].astype(np.uint8) for part, n in sizes.items()}
    array = read_array(archive(tmp_path / "a.npz", **x, **y))
    assert array.split.tolist() == ["train"] * 12 + ["validation"] * 4 + ["test"] * 8
    assert array.items[:, 0, 0].tolist() == [0] * 12 + [1] * 4 + [2] * 8
    assert array.classes == ["3", "4"] and array.labels.tolist() == [0, 1] * 12
    several = {key: np.ones((len(value), 14)) for key, value in y.items()}
    array = read_array(archive(tmp_path / "chest.npz", **x, **several))
    assert array.classes is None and "several of them to an item" in array.said[1]


def test_the_mnist_of_keras_has_its_split(tmp_path):
    parts = {"x_train": PICTURES[:15], "y_train": LABELS[:15], "x_test": PICTURES[15:], "y_test": LABELS[15:]}
    array = read_array(archive(tmp_path / "mnist.npz", **parts))
    assert np.array_equal(array.items, PICTURES) and np.array_equal(array.labels, LABELS)
    assert array.split.tolist() == ["train"] * 15 + ["test"] * 5


def test_a_lone_array_is_taken_and_others_are_listed(tmp_path):
    assert np.array_equal(read_array(archive(tmp_path / "a.npz", faces=PICTURES)).items, PICTURES)
    with pytest.raises(UsageError, match=r"holds faces, names; name the one to learn x"):
        read_array(archive(tmp_path / "b.npz", faces=PICTURES, names=LABELS))
    with pytest.raises(UsageError, match=r"the parts differ: train uint8 .*, test float64"):
        read_array(archive(tmp_path / "d.npz", x_train=PICTURES, x_test=PICTURES / 255))
    array = read_array(archive(tmp_path / "e.npz", x_train=PICTURES, y_train=LABELS, x_test=PICTURES))
    assert array.classes is None and array.said[0].endswith("x_train, x_test read; y_train left out")
    array = read_array(archive(tmp_path / "c.npz", x=PICTURES, mean=np.ones(3)))
    assert array.said == (f"{tmp_path / 'c.npz'}: x read; mean left out",)


def test_svhn_s_mat_counts_along_the_last_axis_and_calls_zero_ten(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    y = (np.arange(20) % 10 + 1)[:, None].astype(np.uint8)
    scipy.io.savemat(tmp_path / "train_32x32.mat", {"X": x, "y": y})
    array = read_array(tmp_path / "train_32x32.mat")
    assert array.items.shape == (20, 32, 32, 3) and np.array_equal(array.items[7], x[..., 7])
    assert array.classes == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"] and array.labels[9] == 9


@pytest.mark.parametrize(
    "dtype, low, high, kept",
    [
        ("int64", 0, 255, "uint8"),
        ("int64", 0, 4095, "uint16"),
        ("int64", -5, 300, "int16"),
        ("uint32", 0, 10**6, "int32"),
        ("int8", -100, 100, "int16"),
        ("int16", -1000, 3000, "int16"),
        (">u2", 0, 9999, "uint16"),
        ("bool", 0, 1, "uint8"),
    ],
)
def test_whole_numbers_are_kept_where_they_fit(dtype, low, high, kept, tmp_path):
    x = np.linspace(low, high, 2 * 8 * 8).round().reshape(2, 8, 8).astype(dtype)
    array = narrowed(read_array(saved(tmp_path / "x.npy", x)), "x")
    assert array.items.dtype == kept and np.array_equal(array.items, x)
    assert value_range(array.items, "x")[0][0] == low


def test_numbers_that_fit_nowhere_are_refused():
    with pytest.raises(UsageError, match="int64 from 0 to 1099511627776 do not fit 32 bits; save as float64"):
        narrowed(Array(np.array([[0, 1], [2, 2**40]])), "x")


def test_masks_of_few_values_have_their_own_range():
    mask = np.random.default_rng(0).integers(0, 2, (10, 8, 8), dtype=np.uint8)
    assert value_range(mask, "x") == ([0, 1], [])
    assert value_range(mask * 255, "x")[0] == [0, 255]
    assert value_range(mask, "x", [0, 1])[0] == [0, 1]
    assert value_range(PICTURES, "x")[0] == [0, 255] == value_range(PICTURES // 2, "x")[0]


def test_one_pixel_far_away_is_told_with_the_range_that_leaves_it_out():
    x = np.random.default_rng(0).random((50, 28, 28)).astype(np.float32)
    x[3, 4, 5] = 1000
    limits, (said,) = value_range(x, "x")
    assert limits[1] == 1000 and "values from" in said and "to 1000" in said
    low, high = (float(number) for number in said.split("--range ")[1].split()[:2])
    assert -0.01 < low < 0.01 and 0.99 < high <= 1.01
    assert value_range(x, "x", [0, 1]) == ([0, 1], ["--range: 1 of 39,200 values are outside and clipped"])
    assert value_range(np.clip(x, 0, 1), "x")[1] == []


def test_a_range_that_leaves_out_many_values_is_refused():
    with pytest.raises(UsageError, match=r"--range 0 5: the values are from -1 to 2"):
        value_range(np.linspace(-1, 2, 1000).reshape(10, 10, 10), "x", [0, 5])


def test_the_range_of_floats_is_each_channel_s_and_bad_values_are_placed():
    x = np.random.default_rng(0).random((30, 8, 8, 3)) * [1, 10, 100]
    low, high = value_range(x, "x")[0]
    assert len(low) == 3 and [round(value, -int(np.log10(value))) for value in high] == [1, 10, 100]
    x[17, 3, 3, 1] = np.nan
    with pytest.raises(UsageError, match="item 17 has values that are no finite numbers"):
        value_range(x, "x")
    with pytest.raises(UsageError, match="all values are the same"):
        value_range(np.ones((4, 8, 8)), "x")


def test_a_limit_takes_a_random_part_with_every_class():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    rows = np.arange(1000)
    part = chosen(rows, 20, labels)
    assert len(part) == 20 and set(labels[part]) == {0, 1, 2} and np.array_equal(part, chosen(rows, 20, labels))
    assert chosen(rows, None, labels) is rows and len(chosen(rows, 2, labels)) == 2
    spread = np.bincount(labels[chosen(rows, 300, labels)])
    assert 240 < spread[0] < 290


def test_points_of_many_dimensions_get_the_shape_to_give():
    assert points_hint(2) == points_hint(50) == ""
    assert points_hint(784) == (
        "points of 784 dimensions are slow to learn; if they are pictures, save x.reshape(-1, 28, 28)"
    )
    assert "x.reshape(-1, 3, 32, 32)" in points_hint(3072) and "signals, save x.reshape(-1, 1, 187)" in points_hint(187)


class Evil:
    def __reduce__(self):
        return (exec, ("open('pwned', 'w')",))


FILES = {
    "a Parquet file": b"PAR1....PAR1",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "an HDF5 file of MATLAB's": b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n",
    "an IDX file": bytes([0, 0, 8, 3, 0, 0, 0, 10]) + bytes(100),
    "packed by gzip": gzip.compress(b"anything"),
    "text, such as a CSV": b"a,b\n1,2\n3,4\n",
    "a pickled batch of CIFAR's": pickle.dumps({b"batch_label": b"training batch 1 of 5", b"data": [1]}, protocol=2),
    "a pickle, which could run any program": pickle.dumps(Evil()),
    "one picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "empty": b"",
    "nothing else that is known": b"\xfe\xfd\xfc" * 100,
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("suffix", ["npy", "npz", "mat"])
def test_what_a_file_is_is_said_in_one_line(kind, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(FILES[kind])
    with pytest.raises(UsageError, match=kind) as error:
        read_array(path)
    assert f"--data_dir {path}" in str(error.value) and "\n" not in str(error.value)
    assert "allow_pickle" not in str(error.value) and not (tmp_path / "pwned").exists()


def test_broken_odd_and_absent_files_are_one_line(tmp_path):
    whole = saved(tmp_path / "x.npy", PICTURES).read_bytes()
    archive(tmp_path / "a.npz", x=PICTURES, y=LABELS[:3])
    zipped = archive(tmp_path / "b.npz", x=PICTURES).read_bytes()
    np.savez(tmp_path / "c.npz", allow_pickle=True, x=np.array([Evil(), 1], object))
    np.savez(tmp_path / "d.npz", x=PICTURES, y=np.arange(20))
    np.save(tmp_path / "e.npy", np.array([Evil(), 1], object), allow_pickle=True)
    (tmp_path / "f.npy").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "g.npz").write_bytes(zipped[: len(zipped) // 2])
    scipy.io.savemat(tmp_path / "h.mat", {"x": PICTURES})
    (tmp_path / "h.mat").write_bytes((tmp_path / "h.mat").read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    for name in ("a.npz", "c.npz", "d.npz", "e.npy", "f.npy", "g.npz", "h.mat", "folder", "absent.npy"):
        with pytest.raises(UsageError, match="--data_dir") as error:
            read_array(tmp_path / name)
        assert "\n" not in str(error.value) and "allow_pickle" not in str(error.value), name
    assert not (tmp_path / "pwned").exists()


def test_a_mat_that_makes_scipy_crash_is_one_line(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": np.arange(6.0)})
    content, tag = (tmp_path / "x.mat").read_bytes(), b"\x09\0\0\0\x30\0\0\0"  # of 48 bytes of float64
    assert content.count(tag) == 1
    (tmp_path / "x.mat").write_bytes(content.replace(tag, b"\x08" + tag[1:]))  # no type of MATLAB's
    with pytest.raises(UsageError, match=r"--data_dir .*x\.mat: damaged"):
        read_array(tmp_path / "x.mat")


@pytest.mark.parametrize("shape", [(3, 3, 3, 3, 3), (5,), (), (0, 8, 8), (5, 0, 8), (1, 8, 8), (64, 64, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UsageError, match="its shape"):
        check_shape(np.zeros(shape), "x")


def test_each_channel_of_floats_is_scaled_by_its_own_range_and_one_that_never_changes_comes_back(tmp_path):
    items = numbers((30, 8, 8, 3), np.float32, 0, 1) * [1, 1e4, 0] + [0, -300, 7]
    np.save(tmp_path / "x.npy", items.astype(np.float32))
    data = load("array", tmp_path / "x.npy")
    x, _, _ = next(data.batches(27, 0, 1, "cpu"))
    assert x[:, :2].amin((0, 2, 3)).tolist() == pytest.approx([-1, -1], abs=0.02)
    assert x[:, :2].amax((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.02) and not x[:, 2].any()
    order = np.random.default_rng((0, 1)).permutation(data.train)
    for one in (data, restore(data.facts.model_dump())):
        np.testing.assert_allclose(one.decode(x), items[order], rtol=1e-5, atol=1e-3)
        assert (one.decode(torch.full((1, *data.shape), 9.0))[..., 2] == 7).all()
    tones = data.tones(x)
    assert tones["mean_green"] == pytest.approx(items[order][..., 1].mean(), rel=1e-4) and tones["contrast_blue"] == 0
    with pytest.raises(UsageError, match="--range"):
        load("array", tmp_path / "x.npy", range=[0, 5])


def test_a_large_array_is_read_where_it_is_looked_at(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", numbers((40, 8, 8), np.uint16, 0, 9999))
    data = load("array", tmp_path / "x.npy")
    assert isinstance(data.items, np.memmap)
    resident = next(data.batches(36, 0, 1, "cpu"))[0]
    monkeypatch.setattr("tiny_diffusion.data.RESIDENT_BYTES", 0)
    assert torch.equal(next(data.batches(36, 0, 1, "cpu"))[0], resident)


@pytest.mark.parametrize(
    "items, files",
    [
        (numbers((30, 11, 14), np.uint16, 200, 4095), ["nearest.png"]),
        (numbers((30, 24, 40, 4), np.float32, -3, 400), ["nearest.png"]),
        (np.random.default_rng(0).normal(50, 3, (300, 3)).astype(np.float32), []),
    ],
    ids=["uint16", "floats", "points"],
)
def test_an_array_is_trained_and_drawn_from_and_a_resumption_needs_no_more_words(items, files, ddpm_command, tmp_path):
    np.save(tmp_path / "x.npy", items)
    flags = ["--dataset", "array", "--data_dir", "x.npy", "--experiment_name", "a"]
    done = ddpm_command(*flags, *SMALL)
    assert done.returncode == 0, done.stderr
    samples = np.load("exps/a/samples.npy")
    assert samples.dtype == items.dtype and samples.shape == (7, *items.shape[1:])
    if items.ndim > 2:
        assert items.min() <= samples.min() and samples.max() <= items.max()
    assert all((tmp_path / "exps/a" / name).exists() for name in ["samples.png", "reverse.gif", *files])
    assert ddpm_command(*flags, "--resume", "--epochs", 2).returncode == 0
    (tmp_path / "x.npy").unlink()
    assert ddpm_command("--sample", "exps/a/checkpoint.pt", "--num_samples", 3).returncode == 0


@pytest.mark.parametrize(
    "items",
    [
        np.array([[1, "a"], [2, Evil()]], object),
        np.array([[1.0, np.nan], [2.0, 3.0]]),
        np.full((4, 8, 8), np.inf, np.float32),
        np.zeros((3, 3, 3, 3, 3)),
        np.zeros(5),
        np.array(1.0),
        np.zeros((0, 8, 8)),
        np.zeros((5, 0, 8)),
        np.zeros((1, 8, 8)),
        np.zeros((5, 8, 8)),
        np.zeros((5, 8, 8), complex),
        np.zeros((5, 8, 8), np.int64),
        np.array([["a", "b"]]),
        np.zeros(5, [("a", "f4"), ("b", "i4")]),
    ],
)
def test_a_bad_array_is_an_error_of_one_line_before_the_training(items, ddpm_command, tmp_path):
    np.save(tmp_path / "x.npy", items, allow_pickle=True)
    done = ddpm_command("--dataset", "array", "--data_dir", "x.npy")
    assert done.returncode == 2 and "--data_dir x.npy" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "exps/array_base/checkpoint.pt").exists() and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4 not really", b"\x93NUMPY\1\0", b"\x80\4}.", "half", "absent", "folder"]
)
def test_a_file_that_holds_no_array_is_an_error_of_one_line(content, ddpm_command, tmp_path):
    path = tmp_path / "x.npy"
    if content == "half":
        np.save(path, np.ones((50, 8, 8)))
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "folder":
        path.mkdir()
    elif content != "absent":
        path.write_bytes(content)
    done = ddpm_command("--dataset", "array", "--data_dir", "x.npy")
    assert done.returncode == 2 and "--data_dir x.npy" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arrays", [{"a": np.ones(3)}, {"x": np.ones((4, 8, 8)), "y": np.ones(3)}, {"x": np.array([Evil()], object)}]
)
def test_a_bad_archive_is_an_error_of_one_line(arrays, ddpm_command, tmp_path):
    np.savez(tmp_path / "x.npz", allow_pickle=True, **arrays)
    done = ddpm_command("--dataset", "array", "--data_dir", "x.npz")
    assert done.returncode == 2 and "--data_dir x.npz" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "pwned").exists()
