"""Training: what a step does, exact resumption, several processes, and what is drawn after it."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, begin, load, train_epochs, waves, write_csv

import ddpm
from ddpm import NoiseScheduler
from tiny_diffusion import evaluation
from tiny_diffusion.messages import UsageError

DIGITS = ["--dataset", "digits", "--num_timesteps", "50", "--hidden_size", "16", "--num_samples", "20"]
SERIES = ["--dataset", "series", "--prediction_length", "6", "--num_timesteps", "10", "--hidden_size", "8"]
SERIES += ["--sampling_steps", "3", "--num_samples", "5", "--train_batch_size", "32"]


@pytest.mark.parametrize("beta_schedule", ["linear", "quadratic", "cosine", "sigmoid"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v", "sample"])
def test_training_lowers_the_loss_of_every_prediction_type_with_every_schedule(prediction_type, beta_schedule):
    run = begin(prediction_type=prediction_type, beta_schedule=beta_schedule, dataset="circle")
    before = held_out_loss(run)
    train_epochs(run, 1, 32)
    assert held_out_loss(run) < 0.98 * before
    assert ddpm.sample(run.average, 20)[0].isfinite().all()


def held_out_loss(run):
    model, generator = run.model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        batch = next(model.data.held_out(2000, 2000, "cpu"))
        return ddpm.training_loss(model.denoiser, model.scheduler, model.data, batch, generator, 1.0).item()


def test_the_average_s_decay_grows_with_the_steps():
    run = begin(ema_decay=0.9)
    average, weights = run.average.denoiser.head.weight, run.model.denoiser.head.weight
    for batch in itertools.islice(run.model.data.batches(100, 0, 1, "cpu"), 80):
        before = average.clone()
        ddpm.train_step(run, batch)
        decay = min(0.9, (1 + run.step) / (10 + run.step))
        torch.testing.assert_close(average, decay * before + (1 - decay) * weights.detach())


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_times_are_drawn_with_the_power_asked_for(power):
    """P(t <= k) = (k / T)^(1 / power) for t = T u^power, rounded up."""
    scheduler, seen = NoiseScheduler(50, "cosine", "v"), []
    network = lambda x_t, t, cond: seen.append(t) or x_t  # noqa: E731
    data, batch = SimpleNamespace(time_axes=1, classes=None), (torch.zeros(100_000, 2), None, None)
    ddpm.training_loss(network, scheduler, data, batch, torch.Generator().manual_seed(0), power)
    assert seen[0].min() == 1 and seen[0].max() == 50
    for k in (1, 5, 20, 45):
        assert (seen[0] <= k).double().mean().item() == pytest.approx((k / 50) ** (1 / power), abs=0.006)


def test_classes_are_hidden_from_the_denoiser_one_time_in_ten():
    run = begin(dataset="digits")
    seen = []

    def network(x_t, t, cond):
        seen.append(cond)
        return x_t

    run.generator.manual_seed(0)
    for epoch in range(1, 5):
        for batch in run.model.data.batches(500, 0, epoch, "cpu"):
            ddpm.training_loss(network, run.model.scheduler, run.model.data, batch, run.generator, 1.0)
    hidden = (torch.cat(seen) == 10).double().mean().item()
    assert abs(hidden - 0.1) < 4 * (0.09 / 6000) ** 0.5


def test_guidance_is_the_formula_and_1_and_0_its_ends():
    denoiser = begin(dataset="digits").model.denoiser
    torch.nn.init.normal_(denoiser.head.weight)
    x_t, t, cond = torch.randn(4, 1, 8, 8), torch.full((1,), 500), torch.tensor([0, 3, 5, 9])
    with torch.no_grad():
        conditional, unconditional = denoiser(x_t, t, cond), denoiser(x_t, t, None)
        for guidance in (0, 1, 2.5):
            expected = unconditional + guidance * (conditional - unconditional)
            torch.testing.assert_close(denoiser.guided(x_t, t, cond, guidance), expected, rtol=1e-4, atol=1e-4)


def same_weights(one, other):
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    return all(torch.equal(a[part][name], b[part][name]) for part in ("model", "average") for name in a[part])


def test_a_forecaster_with_dropout_resumes_to_identical_weights(tmp_path):
    csv = write_csv(tmp_path / "my.csv", waves(200, 1))
    flags = {"dataset": "series", "data_dir": str(csv), "prediction_length": 6, "hidden_size": 8, "dropout": 0.5}
    whole, stopped, resumed = (begin(**flags) for _ in range(3))
    train_epochs(whole, 3, 32)
    train_epochs(stopped, 1, 32)
    ddpm.save(stopped.state_dict(), tmp_path / "checkpoint.pt")
    resumed.load_state_dict(ddpm.load_checkpoint(tmp_path / "checkpoint.pt"))
    train_epochs(resumed, 2, 32)
    for one, other in ((whole.model, resumed.model), (whole.average, resumed.average)):
        assert all(map(torch.equal, one.denoiser.parameters(), other.denoiser.parameters()))
    losses = [row["loss"] for row in whole.history]
    assert losses == [row["loss"] for row in resumed.history] and len(set(losses)) == 3


def test_more_epochs_can_be_added_to_a_finished_run(ddpm_command, tmp_path):
    assert ddpm_command(*DIGITS, "--epochs", 3, "--experiment_name", "whole").returncode == 0
    assert ddpm_command(*DIGITS, "--epochs", 2, "--experiment_name", "grown").returncode == 0
    assert ddpm_command("--resume", "--experiment_name", "grown", "--epochs", 3).returncode == 0
    assert same_weights(*(tmp_path / "exps" / name / "checkpoint.pt" for name in ("whole", "grown")))


def torchrun(*arguments):
    """Two processes in the current folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / "ddpm.py"]
    command += map(str, arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done


def history(name):
    return torch.load(f"exps/{name}/checkpoint.pt", weights_only=True)["history"]


def test_two_processes_follow_the_single_one_and_either_resumes_the_other(ddpm_command):
    """The batch is shared: gradients differ by rounding alone."""
    flags = [*DIGITS, "--train_batch_size", "100"]
    assert ddpm_command(*flags, "--epochs", 3, "--experiment_name", "one").returncode == 0
    done = torchrun(*flags, "--epochs", 2, "--experiment_name", "two")
    assert done.stdout.count("results:") == 1
    for row, other in zip(history("one"), history("two")):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert row["step"] == other["step"]
    assert ddpm_command("--resume", "--experiment_name", "two", "--epochs", 3).returncode == 0
    torchrun("--resume", "--experiment_name", "one", "--epochs", 4)
    assert history("one")[2]["loss"] == pytest.approx(history("two")[2]["loss"], rel=5e-3)


def test_two_processes_draw_the_samples_of_the_single_one(ddpm_command):
    """Also an odd number of them, and more processes than samples."""
    assert ddpm_command(*DIGITS, "--epochs", 1, "--experiment_name", "one").returncode == 0
    for number in (35, 1):
        flags = ["--sample", "exps/one/checkpoint.pt", "--num_samples", number, "--sampler", "ddpm"]
        done = torchrun(*flags)
        folder = done.stdout.split()[-1]
        samples = np.load(f"{folder}/samples.npy")
        assert ddpm_command(*flags).stdout.split()[-1] == folder and len(samples) == number
        assert np.abs(samples.astype(int) - np.load(f"{folder}/samples.npy")).max() <= 1  # a level, by rounding


def test_processes_whose_missing_values_differ_follow_the_single_one(ddpm_command, tmp_path):
    """The masked loss is a mean over the values that all processes have together."""
    values = waves(200, 1)
    values[::3] = np.nan
    flags = [*SERIES, "--data_dir", write_csv(tmp_path / "my.csv", values), "--dropout", 0, "--epochs", 2]
    flags += ["--prediction_length", 30]  # a single window to draw
    assert ddpm_command(*flags, "--experiment_name", "one").returncode == 0
    torchrun(*flags, "--experiment_name", "two")
    for row, other in zip(history("one"), history("two")):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_bf16_trains_like_fp32():
    flags = {"dataset": "digits", "hidden_size": 32}
    fp32, bf16 = (train_epochs(begin(precision=precision, **flags), 3, 100) for precision in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.02) and bf16 != fp32


def test_scores_do_not_depend_on_the_precision():
    run = begin(dataset="digits", hidden_size=32, precision="bf16")
    train_epochs(run, 1, 100)
    score = evaluation.held_out_loss(run.average, 1, 1000)
    run.average.config.precision = "fp32"
    assert evaluation.held_out_loss(run.average, 1, 1000) == score


def test_a_weight_counts_values_in_the_loss():
    scheduler = NoiseScheduler(10, "cosine", "sample")
    data = SimpleNamespace(time_axes=2, classes=None)
    x_0 = torch.ones(4, 5, 3)
    x_0[:, 2:] = torch.nan
    weight = x_0.isnan().logical_not().float()
    shapes = []

    def network(x_t, t, cond):
        shapes.append(t.shape)
        return torch.full_like(x_t, 3.0)

    loss = ddpm.training_loss(network, scheduler, data, (x_0.nan_to_num(), None, weight), torch.Generator(), 1.0)
    assert loss.item() == pytest.approx(4) and shapes == [(4, 5)]


@pytest.mark.parametrize("flags", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.5}, {"eta": 0.0}, {"eta": 1.0}])
def test_samples_are_the_same_in_batches_of_any_size(flags):
    model = begin(dataset="digits", sampling_steps=10, **flags).average
    torch.nn.init.normal_(model.denoiser.head.weight, std=0.1)
    whole, film = ddpm.sample(model, 70, frames=5)
    assert whole.shape == (70, 1, 8, 8) and film.shape == (5, 40, 1, 8, 8)
    assert torch.equal(film[-1], whole[:40])
    for size in (1, 7, 33):
        model.config.eval_batch_size = size
        torch.testing.assert_close(ddpm.sample(model, 70)[0], whole, rtol=0, atol=1e-4)


def test_only_the_first_batch_is_filmed():
    model = begin(dataset="digits", eval_batch_size=30, sampling_steps=4).average
    x_0, film = ddpm.sample(model, 70, frames=3)
    assert film.shape == (3, 30, 1, 8, 8) and torch.equal(film[-1], x_0[:30])


def test_a_model_from_a_checkpoint_draws_what_the_run_drew(ddpm_command):
    assert ddpm_command(*DIGITS, "--epochs", 1, "--label", 7).returncode == 0
    run = torch.from_numpy(np.load("exps/digits_base/samples.npy"))
    model = ddpm.load_model("exps/digits_base/checkpoint.pt")
    assert np.array_equal(model.data.decode(ddpm.sample(model, 20)[0]), run)
    changed = ddpm.load_model("exps/digits_base/checkpoint.pt", label=3, guidance=1)
    assert (changed.config.label, changed.config.guidance, model.config.guidance) == (3, 1, 2)
    assert not torch.equal(ddpm.sample(changed, 20)[0], ddpm.sample(model, 20)[0])
    with pytest.raises(UsageError, match="--lable"):
        ddpm.load_model("exps/digits_base/checkpoint.pt", lable=3)


def test_a_checkpoint_is_written_when_the_last_is_ten_seconds_old(ddpm_command, monkeypatch):
    clock, written, save = itertools.count(0, 1.0), [], ddpm.save
    monkeypatch.setattr(ddpm.time, "monotonic", lambda: next(clock))

    def noted(state, path):
        written.append((path.name, len(state.get("history", ()))))
        save(state, path)

    for module in ("ddpm", "tiny_diffusion.checkpoints"):
        monkeypatch.setattr(f"{module}.save", noted)
    points = ["--dataset", "moons", "--num_timesteps", 10, "--hidden_size", 8, "--num_samples", 100]
    assert ddpm_command(*points, "--train_batch_size", 8000, "--epochs", 12, "--save_every", 50).returncode == 0
    epochs = [epoch for name, epoch in written if name == "checkpoint.pt"]
    assert epochs[:2] == [0, 1] and epochs[-1] == 12 and 4 <= len(epochs) < 8


@pytest.mark.parametrize(
    "given, items, expected",
    [
        ({}, 200, (2000, 333)),  # 2,000 steps of one batch
        ({}, 8000, (320, 32)),  # the usual epochs of 7 steps are more
        ({"steps": 100}, 8000, (15, 9)),
        ({"epochs": 30}, 8000, (30, 9)),  # as long to draw from three as to train
        ({"epochs": 30}, 200, (30, 30)),
        ({"steps": 500, "save_every": 7}, 200, (500, 7)),
    ],
)
def test_a_run_is_as_long_as_its_data_needs(given, items, expected):
    config, data = ddpm.resolve({"dataset": "moons"} | given), load("moons")
    data.train = data.train[:items]
    ddpm.settle(config, given, data)
    assert (config.epochs, config.save_every) == expected


def test_samples_come_from_the_lowest_held_out_loss_and_a_run_that_only_rises_ends(ddpm_command, monkeypatch):
    losses = iter([3.0, 1.0, 1.02, 1.05, 1.5, 1.5, 1.5])
    monkeypatch.setattr(ddpm.evaluation, "held_out_loss", lambda *_: next(losses))
    flags = ["--dataset", "moons", "--limit", 300, "--num_timesteps", 10, "--hidden_size", 8, "--num_samples", 100]
    assert ddpm_command(*flags, "--epochs", 6, "--save_every", 1, "--experiment_name", "a").returncode == 0
    state = torch.load("exps/a/checkpoint.pt", weights_only=True)
    second = torch.load("exps/a/checkpoints/epoch_0002.pt", weights_only=True)["average"]
    assert len(state["history"]) == 4 and state["best"]["epoch"] == 2
    for name, weight in ddpm.load_model("exps/a/checkpoint.pt").denoiser.state_dict().items():
        assert torch.equal(weight, second[name])
    last = ddpm.load_model("exps/a/checkpoint.pt", keep="last").denoiser.state_dict()
    assert all(torch.equal(last[name], weight) for name, weight in state["average"].items())
    losses = iter([3.0, 1.0, 1.02, 1.05, 1.5, 1.5, 1.5])
    assert ddpm_command(*flags, "--epochs", 6, "--keep", "last", "--experiment_name", "b").returncode == 0
    assert len(torch.load("exps/b/checkpoint.pt", weights_only=True)["history"]) == 6
