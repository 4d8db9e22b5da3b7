"""Training: what a step does, exact resumption, several processes, and the figures computed after it."""

import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import ddpm
from datasets import load
from ddpm import NoiseScheduler

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
DIGITS = ["--dataset", "digits", "--num_timesteps", "50", "--hidden_size", "16", "--num_samples", "20"]


def begin(**given):
    config = ddpm.resolve(given)
    data = load(config.dataset)
    return ddpm.begin(config, data, torch.device("cpu"), None), config, data


def test_training_lowers_the_loss_of_every_prediction_type_and_schedule():
    for prediction_type, beta_schedule in zip(("epsilon", "v", "sample"), ("linear", "quadratic", "sigmoid")):
        run, config, data = begin(prediction_type=prediction_type, beta_schedule=beta_schedule, learning_rate=2e-3)
        with ddpm.progress_bar("", 1, "") as bar:
            for _ in range(15):
                run.history.append(ddpm.train_epoch(run, config, data, 250, bar))
        assert run.history[-1]["loss"] < 0.98 * run.history[0]["loss"], prediction_type


def test_the_average_s_decay_grows_with_the_steps():
    run, config, data = begin(ema_decay=0.9)
    for batch in list(data.batches(100, 0, 1, "cpu"))[:80]:
        before = run.average.head.weight.clone()
        ddpm.train_step(run, config, data, batch)
        decay = min(0.9, (1 + run.step) / (10 + run.step))
        torch.testing.assert_close(
            run.average.head.weight, decay * before + (1 - decay) * run.model.head.weight.detach()
        )


def test_classes_are_hidden_from_the_denoiser_one_time_in_ten():
    run, _, data = begin(dataset="digits")
    seen = []

    def network(x_t, t, cond):
        seen.append(cond)
        return x_t

    run.generator.manual_seed(0)
    for epoch in range(1, 5):
        for batch in data.batches(500, 0, epoch, "cpu"):
            ddpm.training_loss(network, run.scheduler, data, batch, run.generator)
    hidden = (torch.cat(seen) == 10).double().mean().item()
    assert abs(hidden - 0.1) < 4 * (0.09 / 6000) ** 0.5


def test_guidance_is_the_formula_and_1_and_0_its_ends():
    run, _, _ = begin(dataset="digits")
    torch.nn.init.normal_(run.model.head.weight)
    x_t, t, cond = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.tensor([0, 3, 5, 9])
    with torch.no_grad():
        conditional, unconditional = run.model(x_t, t, cond), run.model(x_t, t, None)
        for guidance in (0, 1, 2.5):
            expected = unconditional + guidance * (conditional - unconditional)
            torch.testing.assert_close(ddpm.guided(run.model, x_t, t, cond, guidance), expected, rtol=1e-4, atol=1e-4)


def same_weights(one, other):
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return all(torch.equal(a[part][name], b[part][name]) for part in ("model", "average") for name in a[part])


def test_a_run_killed_in_mid_epoch_resumes_to_identical_weights(ddpm_command, tmp_path):
    flags = [*DIGITS, "--epochs", "4", "--train_batch_size", "16"]
    assert ddpm_command(*flags, "--experiment_name", "whole").returncode == 0
    command = [sys.executable, ROOT / "ddpm.py", *flags, "--experiment_name", "killed"]
    same_threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # they decide how sums are rounded
    process = subprocess.Popen(command, env=same_threads)
    checkpoint = tmp_path / "exps" / "killed" / "checkpoint.pt"
    while not checkpoint.exists():  # written after the first epoch
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(torch.load(checkpoint, weights_only=True)["history"]) < 4
    done = ddpm_command("--resume", "--experiment_name", "killed")
    assert done.returncode == 0, done.stderr
    assert same_weights(checkpoint, tmp_path / "exps" / "whole" / "checkpoint.pt")
    assert len((checkpoint.parent / "log.csv").read_text().splitlines()) == 5


def test_more_epochs_can_be_added_to_a_finished_run(ddpm_command, tmp_path):
    assert ddpm_command(*DIGITS, "--epochs", 3, "--experiment_name", "whole").returncode == 0
    assert ddpm_command(*DIGITS, "--epochs", 2, "--experiment_name", "grown").returncode == 0
    assert ddpm_command("--resume", "--experiment_name", "grown", "--epochs", 3).returncode == 0
    assert same_weights(*(tmp_path / "exps" / name / "checkpoint.pt" for name in ("whole", "grown")))


def torchrun(*arguments):
    """Two processes in the current folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "ddpm.py"]
    return subprocess.run(
        [*command, *arguments], env=ONE_THREAD, capture_output=True, text=True, check=True, timeout=200
    )


def test_two_processes_follow_the_single_one_and_either_resumes_the_other(ddpm_command, tmp_path):
    """The batch is shared: gradients differ by rounding alone."""
    flags = [*DIGITS, "--train_batch_size", "100"]
    assert ddpm_command(*flags, "--epochs", 3, "--experiment_name", "one").returncode == 0
    done = torchrun(*flags, "--epochs", "2", "--experiment_name", "two")
    assert done.stdout.count("results:") == 1
    one, two = (torch.load(tmp_path / "exps" / name / "checkpoint.pt", weights_only=True) for name in ("one", "two"))
    for row, other in zip(one["history"], two["history"]):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["step"] == other["step"]
    assert ddpm_command("--resume", "--experiment_name", "two", "--epochs", 3).returncode == 0
    torchrun("--resume", "--experiment_name", "one", "--epochs", "4")
    two = torch.load(tmp_path / "exps" / "two" / "checkpoint.pt", weights_only=True)
    assert one["history"][2]["loss"] == pytest.approx(two["history"][2]["loss"], rel=5e-3)


def test_bf16_trains_like_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        run, config, data = begin(dataset="digits", precision=precision, hidden_size=32)
        with ddpm.progress_bar("", 1, "") as bar:
            losses.append(
                [run.history.append(r := ddpm.train_epoch(run, config, data, 100, bar)) or r["loss"] for _ in range(3)]
            )
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]


def test_a_weight_counts_values_in_the_loss():
    scheduler = NoiseScheduler(10, prediction_type="sample")
    data = SimpleNamespace(time_axes=2, classes=None)
    x_0 = torch.ones(4, 5, 3)
    x_0[:, 2:] = torch.nan
    weight = x_0.isnan().logical_not().float()
    shapes = []

    def network(x_t, t, cond):
        shapes.append(t.shape)
        return torch.full_like(x_t, 3.0)

    loss = ddpm.training_loss(network, scheduler, data, (x_0.nan_to_num(), None, weight), torch.Generator())
    assert loss.item() == pytest.approx(4) and shapes == [(4, 5)]


def test_bits_per_dim_of_the_best_denoiser_is_the_closed_form():
    """Gaussian data N(0, v): E[(x_0 - E[x_0 | x_t])^2] = v (1 - a) / (a v + 1 - a), with which eq. 5 can be summed."""
    scheduler, variance = NoiseScheduler(100, "cosine", "sample"), 0.1
    x_0, noise = torch.randn(2, 200_000, dtype=torch.float64)
    x_0 *= variance**0.5
    scheduler.interval = (-100.0, 100.0)
    a = scheduler.alphas_cumprod
    total = ddpm.prior_term(scheduler, x_0).mean().item()
    expected = (0.5 * (a[-1] * variance - a[-1] - torch.log1p(-a[-1]))).item()
    assert total == pytest.approx(expected, abs=1e-4)
    for t in (2, 10, 50, 100):
        x_t = scheduler.add_noise(x_0, noise, t)
        best = a[t].sqrt() * variance / (a[t] * variance + 1 - a[t]) * x_t
        error = variance * (1 - a[t]) / (a[t] * variance + 1 - a[t])
        expected = (scheduler.snr(t - 1) - scheduler.snr(t)) / 2 * error
        terms = ddpm.bound_terms(scheduler, x_0, x_t, torch.full((200_000,), t), best, bin_width=0.01)
        assert terms.mean().item() == pytest.approx(expected.item(), rel=0.02)


def test_the_decoder_s_bins_sum_to_one_and_its_tails_are_finite():
    scheduler = NoiseScheduler(1000, "linear", "sample", (-1.0, 1.0))
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    t = torch.ones(256, dtype=torch.int64)
    for centre in (-1.0, 0.3, 1.0):
        terms = ddpm.bound_terms(scheduler, levels, levels, t, torch.full((256,), centre), bin_width=2 / 255)
        assert torch.exp(-terms).sum().item() == pytest.approx(1, abs=1e-6)
        assert terms.isfinite().all()


def test_bits_per_dim_needs_no_more_than_8_bits_for_a_denoiser_that_knows_the_data(monkeypatch):
    """For data that is always the same, the perfect denoiser pays for the decoder's width alone."""
    data = load("digits")
    data.items = data.items * 0 + 128
    config = ddpm.resolve({"dataset": "digits", "prediction_type": "sample"})
    scheduler = NoiseScheduler(1000, "cosine", "sample", data.interval)
    figures = ddpm.bits_per_dim(
        lambda x_t, t, cond: torch.full_like(x_t, 128 / 127.5 - 1), scheduler, data, config, 400
    )
    half_bin, sigma = 1 / 255, scheduler.betas[1].sqrt()
    decoder = -math.log2(math.erf(half_bin / sigma / 2**0.5))
    assert figures["bits_per_dim"] == pytest.approx(decoder, abs=5 * figures["bits_per_dim_standard_error"] + 1e-3)


def test_sampling_is_the_same_in_small_batches_for_deterministic_samplers_but_for_the_noise():
    run, config, data = begin(dataset="digits")
    x_0, way = ddpm.sample(run.average, run.scheduler, data, config, 30)
    assert x_0.shape == (30, 1, 8, 8) and way.shape[1:] == (30, 1, 8, 8)
    config.eval_batch_size = 7
    again, _ = ddpm.sample(run.average, run.scheduler, data, config, 30)
    assert again.shape == x_0.shape and again.isfinite().all()
