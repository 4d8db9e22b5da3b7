"""Time series: scaling, missing values, vectors and panels, what a run forecasts, what a checkpoint keeps."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import HOURS, LENGTH, TINY, load, remembered, rnn, row, waves, write_csv, write_gluonts, write_panel

import ddpm
from datasets import restore
from tiny_diffusion import forecasts
from tiny_diffusion.messages import UsageError
from tiny_diffusion.windows import Windows


@pytest.mark.parametrize("difference", [0, 1, 24])
@pytest.mark.parametrize("scaling", ["mean", "standard"])
def test_decoding_undoes_encoding(gluonts_folder, difference, scaling):
    data = load("series", gluonts_folder, difference=difference, scaling=scaling)
    x_0, _, _ = next(data.held_out(7, 7, "cpu"))  # more than there are windows: in turn
    np.testing.assert_allclose(data.decode(x_0), data.windows.truth[np.arange(7) % 3], rtol=1e-4)


def test_windows_are_scaled_by_their_context_alone(gluonts_folder):
    data = load("series", gluonts_folder, difference=1, context_length=10)
    (x_0, past, weight), *_ = data.read([row(data, 50, 200)], "cpu")
    assert x_0.shape == weight.shape == (2, LENGTH, 3) and weight.min() == 1
    assert past.values.shape == (2, data.past_length + LENGTH, 3) and past.features.shape[:2] == (2, 16)
    change = np.diff(data.items[0].values, axis=0, prepend=np.nan)
    for window, start in zip(x_0, (50, 200)):
        scale = np.maximum(np.abs(change[start : start + 10]).mean(0), data.typical_scales[0].numpy() / 2)
        np.testing.assert_allclose(window, change[start + 10 : start + 16] / scale, rtol=1e-4)
    data = load("series", gluonts_folder, difference=1, context_length=10, scaling="standard")
    (x_0, _, _), *_ = data.read([row(data, 50)], "cpu")
    context = change[50:60]
    np.testing.assert_allclose(x_0[0], (change[60:66] - context.mean(0)) / context.std(0), rtol=1e-3)


def test_missing_values_count_neither_in_the_loss_nor_in_the_scale(tmp_path):
    values = waves()
    values[100:108, 1] = np.nan
    data = load("series", write_gluonts(tmp_path / "gap", values), difference=0, context_length=10)
    (x_0, past, weight), *_ = data.read([row(data, 95)], "cpu")
    assert weight[0, :3, 1].sum() == 0 and weight.sum() == weight.numel() - 3
    assert rnn(data)(x_0, torch.ones(1, LENGTH), past).isfinite().all() and x_0.isfinite().all()
    seen = np.abs(values[95:100, 1]).mean()
    assert x_0[0, 3, 1] == pytest.approx(values[108, 1] / seen, rel=1e-5)
    scheduler, losses = ddpm.NoiseScheduler(10, "cosine", "sample"), []
    for fill in (0, 1e3):
        x = torch.where(weight > 0, x_0, torch.tensor(float(fill)))
        generator = torch.Generator().manual_seed(0)
        network = lambda x_t, t, cond: torch.zeros_like(x_t)  # noqa: E731
        losses.append(ddpm.training_loss(network, scheduler, data, (x, past, weight), generator, 1.0))
    assert losses[0] == losses[1] > 0


def test_a_run_forecasts_and_its_checkpoint_forecasts_what_comes_next(tmp_path, ddpm_command):
    csv = write_csv(tmp_path / "my.csv", waves())
    result = ddpm_command("--dataset", "series", "--data_dir", csv, "--prediction_length", LENGTH, *TINY)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "exps" / "series_base"
    assert all((run / name).exists() for name in ("forecast.png", "forward.gif", "reverse.gif", "training.gif"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"crps", "crps_sum", "mase", "nd", "coverage_50", "coverage_90"} <= set(metrics)
    assert metrics["random_walk"]["crps"] > 0 and "random walk" in (run / "report.html").read_text()
    assert np.load(run / "samples.npy").shape == (20, 5, LENGTH, 3)
    result = ddpm_command("--evaluate", run / "checkpoint.pt")
    assert result.returncode == 0, result.stderr
    (again,) = run.glob("samples/*/metrics.json")
    other = json.loads(again.read_text())
    assert all(other[name] == metrics[name] for name in ("crps", "mase", "coverage_90", "random_walk"))
    shutil.rmtree(again.parent)
    csv.unlink()
    result = ddpm_command("--sample", run / "checkpoint.pt")
    assert result.returncode == 0, result.stderr
    (paths,) = run.glob("samples/*/samples.npy")
    assert np.load(paths).shape == (20, 1, LENGTH, 3)
    (start,) = ddpm.load_model(run / "checkpoint.pt").data.windows.starts
    assert start == pd.Period("2024-01-01", "h") + HOURS


def test_a_constant_column_is_forecast_to_stay(tmp_path, ddpm_command):
    values = waves(150, 2)
    values[:, 1] = 5
    csv = write_csv(tmp_path / "my.csv", values)
    result = ddpm_command("--dataset", "series", "--data_dir", csv, "--prediction_length", LENGTH, *TINY)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "exps/series_base/samples.npy")[..., 1], 5, atol=1e-3)


def test_a_forecast_goes_on_from_the_last_value_seen(tmp_path):
    values = waves()
    values[-1, 0] = np.nan
    data = load("series", write_gluonts(tmp_path / "gap", values, windows=1), difference=1)
    data = restore(data.facts.model_dump())
    assert np.isfinite(data.decode(torch.zeros(2, LENGTH, 3))).all()
    np.testing.assert_allclose(data.decode(torch.zeros(1, LENGTH, 3))[0, :, 0], values[-2, 0], rtol=1e-5)
    assert data.render(torch.zeros(2, LENGTH, 3)).ndim == 3


def test_any_eval_batch_size_draws_the_same_paths(gluonts_folder):
    data, flags = load("series", gluonts_folder), {"dataset": "series", "num_timesteps": 10, "sampling_steps": 3}
    model = ddpm.new_model(ddpm.resolve(flags), data, "cpu")
    torch.nn.init.normal_(model.denoiser.denoiser.head.weight)
    model.denoiser.eval()
    whole, film = ddpm.sample(model, 20, frames=4)
    assert whole.shape == (60, LENGTH, 3) and film.shape == (4, 60, LENGTH, 3)
    for size in (1, 7, 25):
        model.config.eval_batch_size = size
        torch.testing.assert_close(ddpm.sample(model, 20)[0], whole, rtol=1e-3, atol=1e-3)


def test_sampling_of_many_series_is_split_into_what_fits(gluonts_folder, monkeypatch):
    data = load("series", gluonts_folder)
    model = ddpm.new_model(
        ddpm.resolve({"dataset": "series", "prediction_length": LENGTH, "num_samples": 9}), data, "cpu"
    )
    batches, sample_batch = [], ddpm.sample_batch
    monkeypatch.setattr(ddpm, "SAMPLED_VALUES", 4 * 3 * LENGTH * 3)  # four paths from each of three windows
    monkeypatch.setattr(
        ddpm,
        "sample_batch",
        lambda model, numbers, *rest: batches.append(len(numbers)) or sample_batch(model, numbers, *rest),
    )
    model.config.sampling_steps = 2
    assert ddpm.sample(model, 9)[0].shape == (27, LENGTH, 3) and batches == [12, 12, 3]


def test_series_without_a_common_calendar_are_learned_one_by_one(tmp_path):
    data = load("series", write_panel(tmp_path / "panel"), difference=1)
    assert data.shape == (LENGTH, 1) and data.facts.names == ["s0", "s1", "s2"] and data.histories == 6
    assert data.network_settings()["categories"] == [
        4,
        3,
    ]  # of the series, and of feat_static_cat; one more for unknown
    for window, (number, end) in enumerate([(0, 84), (0, 90), (1, 144), (1, 150), (2, 54), (2, 60)]):
        values = waves([90, 150, 60][number], 1, seed=number)[:, 0] * 10.0**number
        np.testing.assert_allclose(data.windows.truth[window, :, 0], values[end - LENGTH : end], rtol=1e-6)
        assert data.windows.starts[window] == pd.Period("2024-01-01", "h") + 7 * number + end - LENGTH
        assert data.name_of(window, 0) == f"s{number}"
    (x_0, past, weight), *_ = data.read([data.train], "cpu")
    assert weight.min() == 1 and x_0.abs().mean() < 3  # by the scale of each series itself
    assert sorted(set(past.categories[:, 0].tolist())) == [0, 1, 2] and past.values.nan_to_num(0).isfinite().all()
    assert load("series", write_gluonts(tmp_path / "aligned", waves()), form="panel").shape == (LENGTH, 1)
    with pytest.raises(UsageError, match=r"--form vector: .* do not begin and end together"):
        load("series", tmp_path / "panel", form="vector")


def as_before(facts):
    """Facts of series as checkpoints had them before they could hold tensors: arrays as text."""
    facts = dict(facts)
    arrays = {"recent": facts.pop("last_pasts"), "known": facts.pop("last_covariates")}
    texts = {name: np.asarray(array, np.float32).tobytes().decode("latin-1") for name, array in arrays.items()}
    for new in ("lags", "means", "logarithms", "season", "range"):
        del facts[new]
    return {"typical": facts.pop("typical_scales"), "ends": facts.pop("forecast_starts")} | facts | texts


@pytest.mark.parametrize("form", ["vector", "panel with a new series and covariates"])
def test_facts_of_before_are_those_of_today(form, gluonts_folder, tmp_path):
    if form == "vector":
        data = load("series", gluonts_folder)
    else:
        values = waves(HOURS, 3)
        values[:300, 0], values[-50:-LENGTH, 1] = np.nan, np.nan
        flags = {"prediction_length": LENGTH, "covariates": ["plant 2"], "scaling": "standard"}
        data = load("series", write_csv(tmp_path / "my.csv", values), test_windows=1, **flags)
    facts = data.facts.model_dump()
    facts["last_pasts"] = facts["last_pasts"].float()
    before = as_before(facts)
    assert not {"last_pasts", "last_covariates", "typical_scales", "forecast_starts"} & set(before)
    old, new = restore(before), restore(facts)
    assert old.facts.equal(new.facts)
    assert old.facts.model_dump().keys() == facts.keys()
    for one, other in zip(old.past, new.past):
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9))
    assert old.windows.starts == new.windows.starts


def test_a_checkpoint_of_before_forecasts_what_it_did(tmp_path):
    """Of exchange-rate, whose model comes along."""
    saved = ddpm.load_checkpoint(ddpm.find_checkpoint("exchange-rate"))
    facts = restore(saved["data"]).facts.model_dump()
    for name, data in (("old", as_before(facts)), ("new", facts)):
        ddpm.save(saved | {"data": data}, tmp_path / f"{name}.pt")
    text = torch.load(tmp_path / "old.pt", weights_only=True)["data"]["recent"]
    assert type(text) is str and len(text) == 4 * facts["last_pasts"].numel()
    old, new = (ddpm.load_model(tmp_path / f"{name}.pt", sampling_steps=2) for name in ("old", "new"))
    (ours, _), (theirs, _) = ddpm.sample(old, 2), ddpm.sample(new, 2)
    assert torch.equal(ours, theirs) and np.array_equal(old.data.decode(ours), new.data.decode(theirs))


@pytest.mark.parametrize(
    "name, wrong",
    {
        "freq": 7,
        "names": ["site 0", "site 1"],
        "context_length": 0,
        "difference": -1,
        "scaling": "median",
        "typical_scales": [[1.0, 1.0]],
        "categories": [],
        "covariates": {"plant": [0.0, -1.0]},
        "forecast_starts": ["never"],
        "last_pasts": torch.full((1, 3, 3), torch.inf),
        "last_covariates": torch.zeros(1, 2, 3),
        "classes": ["a"],
    }.items(),
)
def test_facts_that_do_not_fit_together_are_refused(name, wrong, gluonts_folder, tmp_path):
    facts = load("series", gluonts_folder).facts
    assert remembered(facts.model_dump(), tmp_path / "a.pt").facts.equal(facts)
    with pytest.raises(UsageError, match=r"a\.pt: not a checkpoint"):
        remembered(facts.model_dump() | {name: wrong}, tmp_path / "a.pt")


def single(tmp_path, values, **flags):
    """A data set of one series of days."""
    path = write_csv(tmp_path / "one.csv", np.asarray(values)[:, None], freq="D", start="2022-01-01")
    return load("series", path, **{"prediction_length": 14} | flags)


def test_a_single_series_is_forecast_by_regression_before_any_training(tmp_path):
    """Weekdays of 100 and weekends of 20, with noise of 1: an ideal forecast has a CRPS of about 0.007."""
    weekdays = np.where(np.arange(600) % 7 < 5, 100, 20) + np.random.default_rng(0).normal(size=600)
    data = single(tmp_path, weekdays)
    assert data.facts.season == 7 and data.difference == 1 and len(data.validated)
    run = ddpm.Run(ddpm.new_model(ddpm.resolve({"dataset": "series", "num_samples": 50}), data, "cpu"))
    run.model.denoiser.fit(data.batches(256, 0, 1, "cpu"))
    scores = data.score(ddpm.sample(run.model, 50)[0])
    assert scores["crps"] < 0.012 < scores["random_walk"]["crps"] and scores["seasonal_naive"]["crps"] < 0.02
    assert 0.8 < scores["coverage_90"] <= 1


def test_only_a_short_single_series_gets_a_small_network(tmp_path):
    for rows, small in ((1000, True), (5000, False)):
        path = write_csv(tmp_path / f"{rows}.csv", waves(rows)[:, :1])
        data = load("series", path, prediction_length=LENGTH)
        config = ddpm.resolve({"dataset": "series", "data_dir": str(path)})
        ddpm.settle(config, {}, data)
        assert (config.hidden_size < ddpm.DEFAULTS["hidden_size"]["series"]) == small


def test_logarithms_are_learned_where_changes_grow_with_the_level(tmp_path):
    generator, time = np.random.default_rng(0), np.arange(400)
    values = np.exp(3 + 0.005 * time + 0.3 * (time % 7 > 4) + 0.05 * generator.normal(size=400))
    data = single(tmp_path, values)
    assert data.facts.logarithms and restore(data.facts.model_dump()).facts.logarithms
    x_0, _, _ = next(data.held_out(2, 2, "cpu"))
    np.testing.assert_allclose(data.decode(x_0), data.windows.truth[:2], rtol=1e-4)
    assert data.decode(-1000 * torch.ones(2, 14, 1)).min() >= 0 and np.isfinite(data.decode(x_0 + 1e9)).all()
    assert data.typical_scales[0] == pytest.approx(np.sqrt(np.mean(np.diff(np.log(values[:330])) ** 2)), rel=0.02)
    forecaster = forecasts.Forecaster(data, None)
    entry = {"start": pd.Period("2022-01-01", "D"), "target": np.append(values, 0)}
    with pytest.raises(ValueError, match="a value that is not above 0"):
        forecaster.window(entry)


def test_a_single_series_looks_at_means_of_its_last_values(tmp_path):
    values = np.random.default_rng(0).normal(size=300).cumsum()
    data = single(tmp_path, values)
    assert data.facts.means == [6, 12, 24, 48]
    (_, past, _), *_ = data.read([row(data, 100)], "cpu")
    found = rnn(data).of_forecast(past)[0, 3, 0, -4:] * past.scale
    first = 100 + data.context_length + 3  # the step forecast
    np.testing.assert_allclose(
        found[0], [values[first - n : first].mean() - values[first - 1] for n in data.facts.means], rtol=1e-3, atol=1e-4
    )


def test_large_values_keep_their_small_changes(tmp_path, ddpm_command):
    values = 123472800.0 + 40 * np.arange(300) + np.random.default_rng(0).normal(size=300)
    data = single(tmp_path, values)
    x_0, _, _ = next(data.held_out(2, 2, "cpu"))
    np.testing.assert_allclose(data.decode(x_0), data.windows.truth[:2], rtol=0, atol=0.01)
    flags = ["--prediction_length", 14, "--steps", 10, "--num_samples", 20]
    assert ddpm_command("--dataset", "series", "--data_dir", tmp_path / "one.csv", *flags).returncode == 0
    means = pd.read_csv("exps/series_base/forecast.csv")["mean"]
    assert np.abs(means.diff()[1:14] - 40).max() < 20


@pytest.mark.parametrize("difference", [1, 7])
def test_forecasts_are_wider_after_a_gap(tmp_path, difference):
    """Of a random walk whose last nine values are missing, the first step has the variance of the tenth."""
    values = np.random.default_rng(0).normal(size=3000).cumsum()
    data = single(tmp_path, values, difference=difference)
    model = ddpm.new_model(ddpm.resolve({"dataset": "series"}), data, "cpu")
    model.denoiser.fit(data.batches(256, 0, 1, "cpu"))
    model.denoiser.eval()
    windows = data.windows
    spread = {}
    for gap in (0, 9):
        pasts = windows.pasts[:1].copy()
        pasts[:, pasts.shape[1] - gap :] = np.nan
        now = data.continuing(Windows(pasts, windows.starts[:1], windows.numbers[:1], windows.covariates[:1]))
        paths = now.by_window(ddpm.sample(dataclasses.replace(model, data=now), 500, 2)[0])
        spread[gap] = paths[:, 0, :, 0].std(0)
    np.testing.assert_allclose(spread[9][:5], spread[0][9:], rtol=0.15)
    assert spread[9][0] > 2 * spread[0][0]


def test_forecasts_are_cut_to_a_range(tmp_path):
    counts = np.random.default_rng(0).poisson(0.5, 300)
    data = single(tmp_path, counts, range=[0, 3])
    paths = data.decode(torch.randn(40, 14, 1) * 10)
    assert paths.min() == 0 and paths.max() == 3 and restore(data.facts.model_dump()).facts.range == (0, 3)


def test_a_new_series_with_a_short_history_gets_the_scale_that_is_usual_for_its_level(tmp_path):
    data = load("series", write_panel(tmp_path / "panel"), difference=1)
    usual = np.median(
        [
            scale / np.nanmean(np.abs(past))
            for (scale,), past in zip(data.facts.typical_scales, data.facts.last_pasts.numpy())
        ]
    )
    assert data.scale_of_new(np.array([[np.nan], [10.0]])) == pytest.approx(10 * usual, rel=0.01)
    known = 10 + np.random.default_rng(0).normal(size=(200, 1))
    assert data.scale_of_new(known) == pytest.approx(np.sqrt(np.mean(np.diff(known[:, 0]) ** 2)))


def test_short_series_have_no_windows_to_validate_with_and_are_not_judged(tmp_path, ddpm_command):
    data = single(tmp_path, np.arange(60.0) % 7, prediction_length=7)
    assert len(data.train) and not len(data.validated) and data.validation(10, 10, "cpu") is None
    flags = ["--prediction_length", 7, "--num_samples", 20, "--steps", 20]
    done = ddpm_command("--dataset", "series", "--data_dir", tmp_path / "one.csv", *flags)
    assert done.returncode == 0 and "verdict: Not judged: too little data" in done.stdout, done.stderr
