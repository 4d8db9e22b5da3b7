"""Arrays in files: read where they are looked at, scaled by their range; a bad one is an error of one line."""

import numpy as np
import pytest
import torch
from helpers import load, numbers

from datasets import restore
from tiny_diffusion.messages import UsageError

SMALL = ["--epochs", 1, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 7, "--hidden_size", 16]


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


class Evil:
    def __reduce__(self):
        return (exec, ("open('pwned', 'w')",))


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
