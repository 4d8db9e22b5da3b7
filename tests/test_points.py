"""Points: the shapes, one's own of any dimension, and the distances that score them."""

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch
from helpers import load

from datasets import restore
from tiny_diffusion.evaluation import verdict_on_samples
from tiny_diffusion.files import STATIC
from tiny_diffusion.points import nearest_distance, sliced_wasserstein


def test_dinosaur_has_the_published_summary_statistics():
    """Matejka & Fitzmaurice (2017)."""
    x, y = np.loadtxt(STATIC / "datasaurus_dino.csv", delimiter=",", skiprows=1).T
    assert len(x) == 142
    figures = [x.mean(), y.mean(), x.std(ddof=1), y.std(ddof=1), np.corrcoef(x, y)[0, 1]]
    assert np.abs(np.array(figures) - [54.263, 47.832, 16.765, 26.935, -0.064]).max() < 1e-3


@pytest.mark.parametrize("name", ["circle", "dino", "line", "moons"])
def test_points_are_8000_and_standardised_in_model_space(name):
    data = load(name)
    assert len(data.train) == 8000
    x_0, cond, _ = next(data.batches(8000, seed=0, epoch=1, device="cpu"))
    assert cond is None
    np.testing.assert_allclose(x_0.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x_0.std(0, correction=0), 1, atol=1e-5)
    low, high = data.interval
    assert low < x_0.min() and x_0.max() < high
    raw = data.items[np.random.default_rng((0, 1)).permutation(8000)]
    np.testing.assert_allclose(data.decode(x_0), raw, atol=1e-4)


def test_sliced_wasserstein_equals_scipy_direction_by_direction_and_a_shift_s_closed_form():
    x, y = np.random.default_rng(0).normal(size=(2, 500, 2)) * [[[1, 2]], [[3, 1]]]
    one = sliced_wasserstein(x, y, directions=1)  # at a right angle: the second coordinate
    quantiles = np.linspace(0, 1, 501)[1:] - 0.5 / 500
    inverse = [scipy.stats.mstats.mquantiles(points[:, 1], quantiles, alphap=0.5, betap=0.5) for points in (x, y)]
    assert one == pytest.approx(np.sqrt(np.mean((inverse[0] - inverse[1]) ** 2)))
    assert sliced_wasserstein(x, x + [3, 4]) == pytest.approx(5 / 2**0.5)  # E over directions of (5 cos)^2 = 25 / 2


def test_nearest_distance_is_that_of_the_definition_and_zero_for_the_same_points():
    x, y = np.random.default_rng(0).normal(size=(2, 300, 2))
    every = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
    assert nearest_distance(x, y) == pytest.approx(every.min(1).mean())
    assert nearest_distance(x, x[::-1]) == 0


def points_ratios(data, x):
    scores = data.score(x)
    assert set(scores["true_samples"]) == {"sliced_wasserstein", "distance_to_data", "distance_to_training_items"}
    return scores["sliced_wasserstein_ratio"], scores["distance_to_data_ratio"]


@pytest.mark.parametrize("name", ["circle", "dino", "line", "moons"])
def test_points_scores_are_one_for_true_samples_and_more_for_wrong_ones(name):
    data = load(name)
    true = data.encode(torch.from_numpy(data.items[:2000]))
    assert all(0.6 < ratio < 1.4 for ratio in points_ratios(data, true))
    assert points_ratios(data, 1.1 * true)[0] > 1.5
    assert min(points_ratios(data, torch.randn(2000, 2))) > 1.4


def test_distance_to_data_sees_a_blur_that_the_sliced_wasserstein_distance_hardly_sees():
    data = load("dino")
    true = data.encode(torch.from_numpy(data.items[:2000]))
    wasserstein, nearest = points_ratios(data, true + 0.05 * torch.randn(2000, 2))
    assert wasserstein < 1.3 and nearest > 1.5


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_points_of_any_dimension_come_back_are_drawn_and_scored(dimensions, tmp_path):
    scales = 10.0 ** np.arange(dimensions)
    items = np.random.default_rng(0).normal(size=(3000, dimensions)) * scales
    np.save(tmp_path / "x.npy", items)
    data = load("points", tmp_path / "x.npy")
    x, _, _ = next(data.batches(2700, 0, 1, "cpu"))
    np.testing.assert_allclose(x.std(0, correction=0), 1, atol=1e-5)
    order = np.random.default_rng((0, 1)).permutation(data.train)
    for one in (data, restore(data.facts.model_dump())):
        assert one.decode(x).dtype == np.float64
        np.testing.assert_allclose(one.decode(x), items[order], atol=1e-5 * scales[-1])
    panels = {1: 1, 2: 1, 3: 3, 5: 3}[dimensions]
    picture = data.render(x)
    assert picture.shape == (400, 400 * panels, 3) and picture.min() < 200
    good, wide = (
        data.score(factor * torch.from_numpy(np.random.default_rng(1).normal(size=(150, dimensions))))
        for factor in (1, 2)
    )
    assert good["sliced_wasserstein_ratio"] < 2.5 < wide["sliced_wasserstein_ratio"]


def test_the_sliced_wasserstein_distance_of_shifted_points_in_space_is_the_closed_form():
    x = np.random.default_rng(0).normal(size=(300, 3))
    shifted = sliced_wasserstein(x, x + [1, 2, 2], directions=4000)
    assert shifted == pytest.approx(3 / 3**0.5, rel=0.03)  # E over directions of (3 cos)^2 is 9 / 3
    every = scipy.spatial.distance.cdist(x, x + 1).min(1).mean()
    assert nearest_distance(x, x + 1) == pytest.approx(every)


def test_classes_of_points_are_learned_and_drawn(tmp_path, ddpm_command):
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.normal(size=(1500, 2)), generator.normal(size=(1500, 2)) + 8])
    np.savez(tmp_path / "x.npz", x=x, y=["low"] * 1500 + ["high"] * 1500)
    flags = ["--epochs", 60, "--hidden_size", 32, "--num_samples", 100, "--learning_rate", 0.02]
    assert ddpm_command("--dataset", "array", "--data_dir", "x.npz", *flags).returncode == 0
    for label, mean in (("low", 0), ("high", 8)):
        assert ddpm_command("--sample", "exps/array_base/checkpoint.pt", "--label", label).returncode == 0
        (folder,) = (tmp_path / "exps/array_base/samples").glob(f"*label-{label}*")
        np.testing.assert_allclose(np.load(folder / "samples.npy").mean(0), mean, atol=2)


def test_a_coordinate_that_never_changes_stays_and_whole_numbers_are_scored_rounded(tmp_path):
    x = np.random.default_rng(0).integers(0, 4, (2000, 3)).astype(np.int32)
    x[:, 2] = 7
    np.save(tmp_path / "x.npy", x)
    data = load("points", tmp_path / "x.npy")
    noisy = data.encoded(data.train[:100]) + 0.01 * torch.randn(100, 3)
    assert np.array_equal(data.decode(noisy), x[data.train[:100]])
    scores = data.score(noisy)
    assert scores["distance_to_data"] == 0 and "distance_to_data_ratio" not in scores


def test_a_score_that_cannot_tell_is_left_out_above_twenty_dimensions(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(500, 64)))
    data = load("points", tmp_path / "x.npy")
    assert "sliced_wasserstein" not in data.score(torch.randn(20, 64))


def test_heavy_tails_are_no_copies_and_copies_are(tmp_path):
    generator, verdicts = np.random.default_rng(0), []
    np.save(tmp_path / "x.npy", generator.lognormal(0, 2, (3000, 1)))
    data = load("points", tmp_path / "x.npy")
    for _ in range(40):
        true = data.encode(torch.from_numpy(generator.lognormal(0, 2, (150, 1))))
        verdicts += verdict_on_samples(data.score(true))
    assert not verdicts
    copies = data.encoded(data.train[:150])
    assert "copy" in verdict_on_samples(data.score(copies))[0]
