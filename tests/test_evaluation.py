"""How good a run is: bits per dimension, the held-out loss, the loss by noise level, the verdict on made-up curves."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import begin, load

from ddpm import NoiseScheduler
from models import Denoiser
from tiny_diffusion import evaluation
from tiny_diffusion.evaluation import verdict_on_samples


def history(epochs, loss, held_out, scatter=0.02, every=1):
    """Rows of a log out of two functions of the epoch, with some scatter."""
    generator = np.random.default_rng(0)
    rows = []
    for epoch in range(1, epochs + 1):
        noisy = [curve(epoch) * math.exp(scatter * generator.normal()) for curve in (loss, held_out)]
        checked = None if epoch % every else noisy[1]
        rows.append({"epoch": epoch, "step": 10 * epoch, "loss": noisy[0], "held_out_loss": checked})
    return rows


def falling(epoch):
    return 0.2 + 0.8 / epoch


def power_law(epoch):
    return epoch**-0.3


def memorised(epoch):
    return falling(min(epoch, 100)) * (1 + 0.002 * max(0, epoch - 100))


def judge(rows, taken=None):
    return evaluation.verdict_on_curve(rows, Path("exps/a"), taken or len(rows))


@pytest.mark.parametrize("scatter", [0, 0.02])
def test_a_loss_that_still_falls_asks_for_twice_the_epochs_and_says_what_they_bring(scatter):
    told = judge(history(60, power_law, power_law, scatter))
    assert told.startswith("Still falling") and told.endswith("--resume --experiment_name a --epochs 120")
    percent = int(told.split("about ")[1].split("%")[0])
    assert percent == pytest.approx(100 * (1 - 2**-0.3), abs=1 if scatter == 0 else 5)


@pytest.mark.parametrize("every", [1, 7])
def test_a_loss_that_has_become_flat_has_had_enough(every):
    assert judge(history(300, falling, falling, every=every)).startswith("Long enough")


@pytest.mark.parametrize("every", [1, 12])
def test_a_rising_held_out_loss_is_memorising_since_its_lowest_and_says_which_epoch_was_taken(every):
    rows = history(500, power_law, memorised, scatter=0.002, every=every)
    told = judge(rows, taken=96)
    assert told.startswith("Memorising: since epoch ") and "Samples are those of epoch 96." in told
    assert int(told.split("since epoch ")[1].split(" ")[0]) == pytest.approx(95, abs=15)
    assert "risen by 7" in told or "risen by 8" in told
    assert "--keep best" in judge(rows)


def test_training_is_done_when_the_held_out_loss_has_risen_for_half_as_long_as_it_fell():
    rows = history(500, power_law, memorised, scatter=0)
    ends = [epoch for epoch in range(1, 501) if evaluation.only_rises(rows[:epoch])]
    assert ends == list(range(150, 501))  # the lowest is at 100, and 3% above it at 115
    flat = history(500, falling, falling, scatter=0.005)
    assert not any(evaluation.only_rises(flat[:epoch]) for epoch in range(1, 501))


def test_what_is_too_little_to_validate_with_is_not_judged():
    rows = [row | {"held_out_loss": None} for row in history(50, falling, falling)]
    assert judge(rows).startswith("Not judged: too little data")


def test_a_training_loss_that_jumps_is_unstable_and_scatter_alone_is_not():
    rows = history(40, falling, falling)
    rows[24]["loss"] *= 3
    told = judge(rows)
    assert told.startswith("Unstable: in epoch 25 the training loss rose to ") and "--learning_rate" in told
    rows = history(400, falling, falling, scatter=0.02)
    for row, factor in zip(rows, np.random.default_rng(1).normal(size=400)):
        row["loss"] *= math.exp(0.15 * factor)  # epochs of a single small batch
    assert judge(rows).startswith("Long enough")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_few_epochs_are_too_short_to_judge(epochs):
    told = judge(history(epochs, falling, falling))
    assert told.startswith("Too short") and told.endswith(f"--epochs {2 * epochs}")


def figures(red, green, blue, samples=400, ratio=0.95):
    names = ("red", "green", "blue")
    true = {f"mean_{name}": 120.0 for name in names} | {f"contrast_{name}": 60.0 for name in names}
    means = {f"mean_{name}": mean for name, mean in zip(names, (red, green, blue))}
    return {"samples": samples, "distance_to_training_items_ratio": ratio} | means | {"true_samples": true}


@pytest.mark.parametrize(
    "metrics, told",
    [
        (figures(121, 119, 121), []),
        (figures(125, 125, 125), []),
        (figures(136, 136, 136), ["brighter", "27%"]),
        (figures(104, 104, 104), ["darker", "27%"]),
        (figures(134, 119, 119), ["tint", "red +17%"]),
        (figures(126, 119, 119, samples=20), []),
        (figures(120, 120, 120, ratio=0.2), ["Samples copy: 0.20 times"]),
        ({"samples": 100, "paths": 100}, []),
    ],
)
def test_samples_that_are_copies_or_have_a_tint_are_told_and_others_are_not(metrics, told):
    (text,) = [" ".join(evaluation.verdict_on_samples(metrics))]
    assert all(word in text for word in told) and bool(text) == bool(told)


def test_losses_are_those_of_the_definition_at_evenly_spread_times_and_the_same_again():
    model = begin(dataset="digits", num_timesteps=50, time_power=2.0, hidden_size=16).model
    data, scheduler = model.data, model.scheduler
    zero = Denoiser(data.shape, 50)
    zero.forward = lambda x_t, t, cond: torch.zeros_like(x_t)
    model.denoiser = zero
    times, found = evaluation.losses(model, data.held_out(64, 250, "cpu"), 250)
    u = np.sort((times / 50) ** 0.5)  # t = T u^2, rounded up
    assert np.abs(u - (np.arange(250) + 0.5) / 250).max() < 0.15 and times.min() >= 1 and times.max() == 50
    x_0 = torch.cat([batch[0] for batch in data.held_out(64, 250, "cpu")])
    signal, sigma = (table[torch.from_numpy(times)] for table in (scheduler.signal, scheduler.sigma))
    expected = signal**2 + sigma**2 * x_0.square().mean((1, 2, 3))  # E v^2 over the noise
    assert found.mean() == pytest.approx(expected.mean().item(), rel=0.03)
    again = evaluation.losses(model, data.held_out(64, 250, "cpu"), 250)
    assert np.array_equal(found, again[1]) and np.array_equal(times, again[0])


@pytest.mark.parametrize(
    "limit, expected", [(100, [17, 30]), (1500, list(range(2, 31, 2))), (2000, list(range(1, 31)))]
)
def test_the_held_out_loss_takes_six_calls_for_a_hundred_items_trained_at_most(limit, expected, monkeypatch):
    monkeypatch.setattr(evaluation, "losses", lambda model, batches, number: (None, np.zeros(number)))
    model = begin(dataset="digits", limit=limit, epochs=30).model
    due = [epoch for epoch in range(1, 31) if evaluation.held_out_loss(model, epoch, limit) is not None]
    assert due == expected


def test_the_loss_by_noise_level_parts_where_training_items_are_known_by_heart(tmp_path):
    """A denoiser that finds the nearest training item makes no error on these, and one on others."""
    model = begin(dataset="digits", prediction_type="sample", eval_batch_size=100).average
    items = model.data.encode(torch.from_numpy(model.data.items[model.data.train]))

    class Memory(Denoiser):
        def forward(self, x_t, t, cond):
            signal = model.scheduler.signal[t].view(-1, 1)
            return items[torch.cdist(x_t.flatten(1), items.flatten(1) * signal.mean()).argmin(1)]

    model.denoiser = Memory(model.data.shape, 50)
    means = evaluation.write_noise_levels(model, tmp_path, 400)
    assert set(means) == {"loss_of_training_items", "loss_of_held_out_items"}
    assert means["loss_of_training_items"] < 0.8 * means["loss_of_held_out_items"]
    assert (tmp_path / "noise_levels.png").stat().st_size > 1000


def test_bits_per_dim_of_the_best_denoiser_is_the_closed_form():
    """Gaussian data N(0, v): E[(x_0 - E[x_0 | x_t])^2] = v (1 - a) / (a v + 1 - a), with which eq. 5 can be summed."""
    scheduler, variance = NoiseScheduler(100, "cosine", "sample"), 0.1
    x_0, noise = torch.randn(2, 200_000, dtype=torch.float64)
    x_0 *= variance**0.5
    scheduler.interval = (-100.0, 100.0)
    a = scheduler.alphas_cumprod
    total = evaluation.prior_term(scheduler, x_0).mean().item()
    expected = 0.5 * (a[-1] * variance - a[-1] - math.log1p(-a[-1]))
    assert total == pytest.approx(expected, abs=1e-4)
    for t in (2, 10, 50, 100):
        x_t = scheduler.add_noise(x_0, noise, t)
        best = a[t] ** 0.5 * variance / (a[t] * variance + 1 - a[t]) * x_t
        error = variance * (1 - a[t]) / (a[t] * variance + 1 - a[t])
        expected = (scheduler.snr(t - 1) - scheduler.snr(t)) / 2 * error
        terms = evaluation.bound_terms(scheduler, x_0, best, torch.full((200_000,), t), bin_width=0.01)
        assert terms.mean().item() == pytest.approx(expected, rel=0.02)


def test_the_decoder_s_bins_sum_to_one_and_its_tails_are_finite():
    scheduler = NoiseScheduler(1000, "linear", "sample", (-1.0, 1.0))
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    t = torch.ones(256, dtype=torch.int64)
    for centre in (-1.0, 0.3, 1.0):
        terms = evaluation.bound_terms(scheduler, levels, torch.full((256,), centre), t, bin_width=2 / 255)
        assert torch.exp(-terms).sum().item() == pytest.approx(1, abs=1e-6)
        assert terms.isfinite().all()


def test_bits_per_dim_needs_no_more_than_8_bits_for_a_denoiser_that_knows_the_data(monkeypatch):
    """For data that is always the same, the perfect denoiser pays for the decoder's width alone."""
    model = begin(dataset="digits", prediction_type="sample").model
    model.data.items = model.data.items * 0 + 128
    model.denoiser = lambda x_t, t, cond: torch.full_like(x_t, 128 / 127.5 - 1)
    figures = evaluation.bits_per_dim(model, 400)
    half_bin, sigma = 1 / 255, model.scheduler.betas[1] ** 0.5
    decoder = -math.log2(math.erf(half_bin / sigma / 2**0.5))
    assert figures["bits_per_dim"] == pytest.approx(decoder, abs=5 * figures["bits_per_dim_standard_error"] + 1e-3)


def test_samples_of_unbalanced_classes_are_compared_in_the_proportions_of_the_data(tmp_path):
    """Of 180 dark and 20 light images, drawn in turn: no brighter than the data."""
    x = np.concatenate([np.full((180, 8, 8), 50), np.full((20, 8, 8), 200)]) + np.arange(64).reshape(8, 8) % 7
    np.savez(tmp_path / "x.npz", x=x.astype(np.uint8), y=[0] * 180 + [1] * 20)
    data = load("array", tmp_path / "x.npz")
    drawn = data.encode(torch.from_numpy(data.items[[0, 199] * 50]))
    compared, samples = data.comparable(drawn, None)
    share = (samples.mean((1, 2, 3)) > 0).float().mean().item()
    assert share == pytest.approx((data.labels[data.test] == 1).mean(), abs=0.03)
    assert not verdict_on_samples(compared.score(samples))
    rare, samples = data.comparable(drawn[1::2], "1")
    assert not verdict_on_samples(rare.score(samples))


def test_no_figure_without_sense():
    true = {"mean": 1.0, "contrast": 1e-9}
    assert verdict_on_samples({"samples": 100, "mean": 60.0, "true_samples": true}) == [
        "Samples are far brighter than the data."
    ]
    assert verdict_on_samples({"samples": 100, "mean": 60.0, "true_samples": true | {"contrast": 0.0}}) == []
