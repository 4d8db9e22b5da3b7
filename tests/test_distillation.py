"""Distillation: the closed form, exact resumption, how many calls a student draws with, and what is refused."""

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import ListDataset
from helpers import TINY, files, refused, waves, write_csv
from torch import nn

import ddpm
import models
from tiny_diffusion import distillation

SMALL = ["--train_batch_size", 16, "--num_samples", 20]
MEAN, STD = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 0.2])


class Linear(models.Denoiser):
    """x_0 = a x_t + b, with an a and a b for each time and dimension: all that normal data needs."""

    def __init__(self, scale, shift):
        super().__init__((2,), len(scale) - 1)
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)

    def forward(self, x_t, t, cond=None):
        return self.scale[t] * x_t + self.shift[t]


def test_of_normal_data_the_student_becomes_mean_plus_std_times_noise():
    """x_0 ~ N(MEAN, STD^2): the best denoiser is linear, and one call must draw with both moments, within 2%."""
    scheduler, generator = ddpm.NoiseScheduler(20, "cosine", "sample"), torch.Generator().manual_seed(0)
    alpha = torch.tensor(scheduler.alphas_cumprod).float()[:, None]
    scale = alpha.sqrt() * STD**2 / (alpha * STD**2 + 1 - alpha)
    teacher = Linear(scale, MEAN - scale * alpha.sqrt() * MEAN).requires_grad_(False)
    student, fake = (Linear(teacher.scale.clone(), teacher.shift.clone()) for _ in range(2))
    optimizers = [
        torch.optim.Adam(network.parameters(), rate, betas=(0.5, 0.99))
        for network, rate in ((student, 0.01), (fake, 0.02))
    ]
    data, last = SimpleNamespace(time_axes=1, classes=None), []
    for step in range(800):
        x_T, noise = torch.randn(2, 1024, 2, generator=generator)
        t = scheduler.training_times(torch.rand(1024, generator=generator), 1.0)
        x = student(x_T, torch.full((1,), 20))
        loss = distillation.matching_loss(x, None, teacher, fake, scheduler, 1.0, t, noise)
        ddpm.descend(loss, student, optimizers[:1], 1 - step / 800)
        for _ in range(distillation.FAKE_STEPS):
            loss = ddpm.training_loss(fake, scheduler, data, (x.detach(), None, None), generator, 1.0)
            ddpm.descend(loss, fake, optimizers[1:], 1 - step / 800)
        last.append(torch.stack([student.shift[20], student.scale[20].abs()]).detach())
    mean, std = torch.stack(last[-100:]).mean(0)
    torch.testing.assert_close(mean, MEAN, rtol=0.02, atol=0)
    torch.testing.assert_close(std**2, STD**2, rtol=0.02, atol=0)


def test_the_gradient_is_what_both_denoisers_disagree_about_with_the_paper_s_weight():
    scheduler, (x, noise) = ddpm.NoiseScheduler(100, "cosine", "sample"), torch.randn(2, 4, 3, 5)
    x, t = x.requires_grad_(), torch.tensor([5, 20, 50, 90])
    teacher = SimpleNamespace(guided=lambda x_t, t, cond, guidance: guidance * x_t)
    loss = distillation.matching_loss(x, None, teacher, lambda x_t, t, cond: 0.5 * x_t, scheduler, 1.5, t, noise)
    x_t = scheduler.add_noise(x.detach(), noise, t)
    weight = (1.5 * x_t - x).abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], (0.5 * x_t - 1.5 * x_t) / weight.detach() / x.numel())


def test_the_fréchet_distance_is_that_of_normal_distributions():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20000, 3, generator=generator), 1 + 2 * torch.randn(20000, 3, generator=generator)
    assert distillation.frechet(x, y) == pytest.approx(3 * (1 + 1), rel=0.03)
    assert distillation.frechet(x, x) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def short(monkeypatch):
    """Distillations of a few steps, scored with a few samples."""
    monkeypatch.setattr(distillation, "STEPS", 3)
    monkeypatch.setattr(distillation, "COMPARED", {"points": 50, "images": 24, "audio": 24, "series": 4})


def distilled(ddpm_command, dataset, *flags):
    """The folder of a student of a tiny model of a data set."""
    assert ddpm_command("--dataset", dataset, *TINY, *flags, "--experiment_name", "teacher").returncode == 0
    done = ddpm_command("--distill", "exps/teacher/checkpoint.pt", *SMALL, "--epochs", 3)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.split()[-1])


def test_a_distillation_leaves_a_run_s_files_and_a_checkpoint_that_draws_in_one_call(ddpm_command, short, monkeypatch):
    folder = distilled(ddpm_command, "digits")
    assert folder == Path("exps/teacher_distilled")
    names = {"log.csv", "loss.png", "reverse.gif", "forward.gif", "samples.png", "teacher_and_student.png"}
    assert names | {"config.json", "metrics.json", "report.html", "checkpoint.pt"} <= set(files(folder))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["network_calls"] == 1 and metrics["teacher"]["network_calls"] == 3
    assert metrics["verdict"].startswith("Draws in 1 call of the network instead of 3, ")
    calls = []
    forward = models.UNet.forward
    monkeypatch.setattr(models.UNet, "forward", lambda self, *args: calls.append(len(args[0])) or forward(self, *args))
    for flags in ([], ["--label", 7]):
        assert ddpm_command("--sample", folder / "checkpoint.pt", *flags).returncode == 0
        assert calls == [20]
        calls.clear()
    done = ddpm_command("--evaluate", folder / "checkpoint.pt")
    assert done.returncode == 0 and "distance_to_training_items" in done.stdout and "bits_per_dim" not in done.stdout


def test_a_stopped_distillation_resumes_to_the_bit_without_its_teacher(ddpm_command, short, monkeypatch):
    distilled(ddpm_command, "digits")
    score, scores = distillation.score, []

    def interrupted(*given):
        scores.append(score(*given))
        if len(scores) == 2:
            raise KeyboardInterrupt
        return scores[-1]

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "score", interrupted)
        flags = ["--distill", "exps/teacher/checkpoint.pt", *SMALL, "--epochs", 3, "--experiment_name", "again"]
        assert ddpm_command(*flags).returncode != 0 and len(scores) == 2
    Path("exps/teacher/checkpoint.pt").unlink()
    assert ddpm_command("--resume", "--experiment_name", "again").returncode == 0
    one, other = (
        torch.load(f"exps/{name}/checkpoint.pt", weights_only=True) for name in ("teacher_distilled", "again")
    )
    for part in ("model", "average", "fake"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    one, other = ([row["held_out_loss"] for row in state["history"]] for state in (one, other))
    assert one == other and len(one) == 3


def test_without_classes_a_student_of_images_begins_by_imitation(ddpm_command, short, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "IMITATED", 2)
    begun, step = [], ddpm.imitation_step
    monkeypatch.setattr(ddpm, "imitation_step", lambda run, batch: begun.append(run.step) or step(run, batch))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 8, 8), np.float32))
    folder = distilled(ddpm_command, "array", "--data_dir", tmp_path / "x.npy")
    config = json.loads((folder / "config.json").read_text())
    assert begun == [0, 1] and (config["learning_rate"], config["time_power"]) == (5e-4, 1.0)


def test_a_distillation_stopped_as_it_ends_to_imitate_resumes_to_the_bit(ddpm_command, short, monkeypatch, tmp_path):
    monkeypatch.setattr(distillation, "IMITATED", distillation.STEPS)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 8, 8), np.float32))
    distilled(ddpm_command, "array", "--data_dir", tmp_path / "x.npy")
    save_last = ddpm.save_last

    def stopped(state, folder):
        save_last(state, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ddpm, "save_last", stopped)
        flags = ["--distill", "exps/teacher/checkpoint.pt", *SMALL, "--epochs", 3, "--experiment_name", "again"]
        assert ddpm_command(*flags).returncode != 0
    assert torch.load("exps/again/checkpoint.pt", weights_only=True)["step"] == distillation.STEPS
    assert ddpm_command("--resume", "--experiment_name", "again").returncode == 0
    one, other = (
        torch.load(f"exps/{name}/checkpoint.pt", weights_only=True) for name in ("teacher_distilled", "again")
    )
    for part in ("model", "average", "fake"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part


def test_points_are_drawn_in_as_many_calls_as_asked_for(ddpm_command, short):
    folder = distilled(ddpm_command, "moons")
    assert ddpm.load_model(folder / "checkpoint.pt").config.sampling_steps == 4
    flags = ["--distill", "exps/teacher/checkpoint.pt", "--experiment_name", "two", "--epochs", 1]
    assert ddpm_command(*flags, "--sampling_steps", 2, *SMALL).returncode == 0
    model, calls = ddpm.load_model("exps/two/checkpoint.pt"), []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    assert ddpm.sample(model, 10)[0].shape == (10, 2) and len(calls) == 2


def test_a_distilled_forecaster_is_a_predictor_whose_encoder_is_the_teacher_s(ddpm_command, short, tmp_path):
    csv = write_csv(tmp_path / "my.csv", waves(200, 2))
    folder = distilled(ddpm_command, "series", "--data_dir", csv, "--prediction_length", 6)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    taught, learned = state["teacher"]["average"], state["model"]
    changed = {name for name in learned if not torch.equal(learned[name], taught[name])}
    assert changed and all(name.startswith("denoiser.") for name in changed)
    past = ListDataset([{"start": "2024-01-01", "target": waves(100, 2).T}], freq="h", one_dim_target=False)
    (forecast,) = ddpm.predictor(folder / "checkpoint.pt").predict(past, 7)
    assert forecast.samples.shape == (7, 6, 2) and np.isfinite(forecast.samples).all()


def test_a_distillation_takes_all_its_epochs_and_keeps_the_one_nearest_to_the_data(ddpm_command, short, monkeypatch):
    scores = iter([3.0, 1.0, *[2.0] * 100])
    monkeypatch.setattr(distillation, "score", lambda *_: next(scores))
    assert ddpm_command("--dataset", "digits", *TINY, "--experiment_name", "teacher").returncode == 0
    assert ddpm_command("--distill", "exps/teacher/checkpoint.pt", *SMALL, "--epochs", 5).returncode == 0
    state = torch.load("exps/teacher_distilled/checkpoint.pt", weights_only=True)
    assert len(state["history"]) == 5 and state["best"]["epoch"] == 2


def test_what_cannot_be_distilled_is_said_in_one_line(ddpm_command, short, tmp_path):
    folder = distilled(ddpm_command, "digits")
    student, teacher = folder / "checkpoint.pt", "exps/teacher/checkpoint.pt"
    refused(ddpm_command("--distill", teacher), "teacher_distilled exists", "--overwrite")
    refused(ddpm_command("--distill", student, "--experiment_name", "b"), "is distilled already")
    refused(ddpm_command("--distill", teacher, "--experiment_name", "teacher", "--resume"), "leave --resume out")
    refused(ddpm_command("--distill", "nothing.pt"), "no such file")
    refused(ddpm_command("--distill", teacher, "--dry_run"), "leave one of them out")
    again = ["--distill", teacher, "--experiment_name", "b"]
    refused(ddpm_command(*again, "--hidden_size", 99), "--hidden_size", "leave it out")
    refused(ddpm_command(*again, "--sampler", "ddpm"), "--sampler", "leave it out")
    refused(ddpm_command("--distill", teacher, "--sample", student), "--distill", "has no effect with --sample")
    for flags in (["--sampling_steps", 5], ["--guidance", 2], ["--sampler", "ddpm"], ["--eta", 0.5]):
        refused(ddpm_command("--sample", student, *flags), flags[0], "leave it out")
    csv = write_csv(tmp_path / "my.csv", waves(200, 2))
    flags = ["--dataset", "series", "--data_dir", csv, "--prediction_length", 6, "--experiment_name", "series"]
    assert ddpm_command(*flags, *TINY).returncode == 0
    write_csv(csv, waves(200, 2, seed=1))
    refused(ddpm_command("--distill", "exps/series/checkpoint.pt"), "not the data that")
    refused(ddpm_command("--distill", "exps/series/checkpoint.pt", "--time_power", 2), "--time_power", "leave it out")


def test_by_imitation_the_student_learns_the_teacher_s_own_map_from_noise_to_x_0():
    """Of normal data that map is linear in closed form: x_0 = MEAN + STD x_T, sample by sample, within 2%."""
    scheduler, generator = ddpm.NoiseScheduler(100, "cosine", "sample"), torch.Generator().manual_seed(0)
    alpha = torch.tensor(scheduler.alphas_cumprod).float()[:, None]
    scale = alpha.sqrt() * STD**2 / (alpha * STD**2 + 1 - alpha)
    network = Linear(scale, MEAN - scale * alpha.sqrt() * MEAN)
    config = SimpleNamespace(sampling_steps=1, sampling_power=1.0, sampler="ddim", precision="fp32", guidance=1.0)
    teacher = ddpm.Model(network, scheduler, SimpleNamespace(time_axes=1, modality="points"), config)
    student = dataclasses.replace(teacher, denoiser=copy.deepcopy(network))
    optimizer = torch.optim.Adam(student.denoiser.parameters(), 0.01)
    for step in range(600):
        x_T = torch.randn(256, 2, generator=generator)
        loss = ddpm.imitation_loss(student, teacher, None, x_T)
        ddpm.descend(loss, student.denoiser, [optimizer], 1 - step / 600)
    torch.testing.assert_close(ddpm.generate(student, None, x_T), MEAN + STD * x_T, rtol=0.02, atol=0.02)


def test_the_way_of_the_teacher_passes_the_times_of_the_student_and_gets_closer_before_each():
    fine = distillation.finer([100, 0], 20)
    assert fine[:2] == [100, 93] and fine[-3:] == [3, 1, 0]
    times = [250, 141, 62, 16, 0]
    fine = distillation.finer(times, 20)
    assert len(fine) == 21 and set(times) <= set(fine) and fine == sorted(set(fine), reverse=True)


def test_a_forecaster_s_student_is_held_out_against_its_teacher(ddpm_command, short, tmp_path):
    csv = write_csv(tmp_path / "my.csv", waves(300, 1))
    folder = distilled(ddpm_command, "series", "--data_dir", csv, "--prediction_length", 6)
    assert pd.read_csv(folder / "log.csv")["held_out_loss"].is_monotonic_decreasing
    few = ["--distill", "exps/teacher/checkpoint.pt", *SMALL, "--epochs", 1, "--eval_batch_size", 5]
    assert ddpm_command(*few, "--experiment_name", "few").returncode == 0
    before = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert "fake_adamw" not in before and before["step"] == 9
    assert ddpm_command("--resume", "--experiment_name", folder.name).returncode == 0
    after = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all(torch.equal(before["model"][name], after["model"][name]) for name in before["model"])
