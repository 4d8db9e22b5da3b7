"""Forecasts: their scores beside GluonTS's own, those that learn nothing, the table, and the predictor."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import HOURS, LENGTH, TINY, load, waves, write_csv, write_panel

import ddpm
from tiny_diffusion import forecasts
from tiny_diffusion.frequencies import stamp
from tiny_diffusion.messages import UsageError
from tiny_diffusion.series import from_groups
from tiny_diffusion.windows import Group


def as_gluonts(data, paths):
    """(histories with the truth, forecasts) as GluonTS's evaluator takes them."""
    from gluonts.model.forecast import SampleForecast

    group, starts = data.items[-1], data.windows.starts
    frame = pd.DataFrame(group.values, pd.period_range(group.start, periods=len(group.values)))
    found = [SampleForecast(paths[:, i], start) for i, start in enumerate(starts)]
    return [frame[: start + data.prediction_length - 1] for start in starts], found


@pytest.mark.filterwarnings("ignore:The provided callable <function sum")
@pytest.mark.parametrize("scale", [0.3, 3])
def test_scores_are_those_of_gluonts_evaluator(gluonts_folder, scale):
    from gluonts.evaluation import MultivariateEvaluator

    data = load("series", gluonts_folder)
    noise = np.random.default_rng(0).normal(size=(100, 3, LENGTH, 3)).astype(np.float32)
    paths = data.windows.truth + 0.5 + scale * noise
    evaluator = MultivariateEvaluator(np.arange(1, 20) / 20, num_workers=0, target_agg_funcs={"sum": np.sum})
    theirs, _ = evaluator(*as_gluonts(data, paths))
    ours = forecasts.evaluate(data, paths)
    assert ours["crps"] == pytest.approx(theirs["mean_wQuantileLoss"], rel=1e-5)
    assert ours["crps_sum"] == pytest.approx(theirs["m_sum_mean_wQuantileLoss"], rel=1e-5)
    assert ours["mase"] == pytest.approx(theirs["MASE"], rel=1e-5)
    assert ours["nd"] == pytest.approx(theirs["ND"], rel=1e-5)
    low, high = np.quantile(paths, [0.05, 0.95], axis=0)
    truth = data.windows.truth
    assert ours["coverage_90"] == pytest.approx(((low <= truth) & (truth <= high)).mean(), abs=0.02)


def test_the_seasonal_naive_score_is_gluonts_own(gluonts_folder):
    from gluonts.evaluation import MultivariateEvaluator
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    data = load("series", gluonts_folder)
    naive = SeasonalNaivePredictor(prediction_length=LENGTH, season_length=24)
    paths = []
    for known in data.test:
        entries = [{"target": column, "start": data.items[0].start} for column in known.T]
        paths.append(np.stack([forecast.samples for forecast in naive.predict(entries)], -1))
    evaluator = MultivariateEvaluator(np.arange(1, 20) / 20, num_workers=0)
    theirs, _ = evaluator(*as_gluonts(data, np.stack(paths, 1)))
    ours = forecasts.evaluate(data, forecasts.last_season(data))
    assert ours["crps"] == pytest.approx(theirs["mean_wQuantileLoss"])
    assert ours["mase"] == pytest.approx(theirs["MASE"])


def test_a_random_walk_has_the_spread_of_the_changes():
    values = np.random.default_rng(0).normal(size=(5000, 2)).cumsum(0) * [1, 3]
    start, covariates = pd.Period("2000-01-01", "D"), np.empty((5000, 0), np.float32)
    group = Group(0, start, values.astype(np.float32), covariates, 4970, [4970])
    config = ddpm.resolve({"dataset": "series", "context_length": 10, "difference": 1})
    data = from_groups("series", [group], ["a", "b"], [], [[]], 30, config)
    paths = forecasts.random_walk(data, 4000)
    assert paths.shape == (4000, 1, 30, 2)
    np.testing.assert_allclose(paths.mean(0)[0, 0], values[4969], atol=0.2)
    np.testing.assert_allclose(paths.std(0)[0, -1] / 30**0.5, [1, 3], rtol=0.05)


def test_a_random_walk_from_a_single_value_stays_there(tmp_path):
    write_csv(tmp_path / "my.csv", waves(40, 1))
    data = load("series", tmp_path / "my.csv", prediction_length=LENGTH)
    data.test = [known[-1:] for known in data.test]
    assert (forecasts.random_walk(data, 3) == data.filled[:, -1:]).all()


@pytest.mark.parametrize("dimensions", [1, 3])
def test_a_checkpoint_is_a_gluonts_predictor(tmp_path, ddpm_command, dimensions):
    from gluonts.evaluation import Evaluator, MultivariateEvaluator, make_evaluation_predictions
    from gluonts.model.predictor import Predictor

    values = waves(dimensions=dimensions).astype(np.float32)
    csv = write_csv(tmp_path / "my.csv", values)
    assert not ddpm_command("--dataset", "series", "--data_dir", csv, "--prediction_length", LENGTH, *TINY).returncode
    run = tmp_path / "exps" / "series_base"
    predictor = ddpm.predictor(run / "checkpoint.pt")
    assert isinstance(predictor, Predictor)
    entries = [
        {"target": values[: HOURS - i * LENGTH].T.squeeze(), "start": pd.Period("2024-01-01", "h"), "item_id": str(i)}
        for i in (4, 3, 2, 1, 0)
    ]
    found, histories = map(list, make_evaluation_predictions(entries, predictor, num_samples=20))
    assert [forecast.item_id for forecast in found] == ["4", "3", "2", "1", "0"]
    evaluator = (MultivariateEvaluator if dimensions > 1 else Evaluator)(quantiles=np.arange(1, 20) / 20, num_workers=0)
    if dimensions == 1:
        histories = [history[0] for history in histories]
    figures, _ = evaluator(histories, found)
    metrics = json.loads((run / "metrics.json").read_text())
    assert figures["mean_wQuantileLoss"] == pytest.approx(metrics["crps"], rel=1e-3)
    with pytest.raises(ValueError, match="dimensions"):
        list(predictor.predict([{"target": np.zeros((7, 100)), "start": pd.Period("2024-01-01", "h")}]))


@pytest.mark.parametrize("first, unit", [("1500-01-01", "D"), ("1677-09-20T00", "h"), ("2255-01", "M"), ("9900", "Y")])
def test_forecasts_of_any_century_are_drawn(tmp_path, first, unit):
    moments = np.datetime64(first) + np.arange(90).astype(f"m8[{unit}]")
    rows = [f"{str(moment).replace('T', ' ')},{value}\n" for moment, value in zip(moments, waves(90)[:, 0])]
    (tmp_path / "my.csv").write_text("time,a\n" + "".join(rows))
    data = load("series", tmp_path / "my.csv", prediction_length=4)
    _, times = forecasts.panels(data, 1)[1][0, 0]
    begin = data.items[0].begins[0]
    assert np.array_equal(times, moments[begin : begin + 4])
    assert data.overview().any() and data.render(torch.zeros(2 * data.histories, *data.shape)).any()


def test_a_forecast_that_goes_on_after_the_year_9999_is_refused(tmp_path):
    (tmp_path / "my.csv").write_text("time,a\n" + "".join(f"{9900 + i},{i}\n" for i in range(97)))
    assert load("series", tmp_path / "my.csv", prediction_length=3).histories
    with pytest.raises(UsageError, match="reaches 10000; years are 1 to 9999"):
        load("series", tmp_path / "my.csv", prediction_length=4)


def test_a_predictor_leaves_its_model_as_it_was(gluonts_folder):
    data = load("series", gluonts_folder)
    model = ddpm.new_model(ddpm.resolve({"dataset": "series", "num_timesteps": 10, "sampling_steps": 3}), data, "cpu")
    predictor = forecasts.Forecaster(
        data, lambda data, number: ddpm.sample(dataclasses.replace(model, data=data), number)[0]
    )
    entries = [{"target": waves(seed=i).T, "start": pd.Period("2024-01-01", "h")} for i in (0, 1)]
    first, _ = predictor.predict(entries, num_samples=4)
    list(predictor.predict(entries[1:], num_samples=4))
    again, _ = predictor.predict(entries, num_samples=4)
    assert np.array_equal(first.samples, again.samples) and data.histories == 3


def test_a_panel_is_scored_as_gluonts_evaluator_scores_it(tmp_path):
    from gluonts.evaluation import Evaluator
    from gluonts.model.forecast import SampleForecast

    data = load("series", write_panel(tmp_path / "panel"))
    noise = np.random.default_rng(0).normal(size=(100, 6, LENGTH, 1)).astype(np.float32)
    paths = data.windows.truth * (1.1 + 0.2 * noise)
    truths = []
    for start, known, truth in zip(data.windows.starts, data.test, data.windows.truth):
        values = np.concatenate([known, truth])[:, 0]
        truths.append(pd.Series(values, pd.period_range(end=start + LENGTH - 1, periods=len(values))))
    found = [SampleForecast(paths[:, i, :, 0], start) for i, start in enumerate(data.windows.starts)]
    theirs, _ = Evaluator(np.arange(1, 20) / 20, num_workers=0)(truths, found)
    ours = forecasts.evaluate(data, paths)
    assert ours["crps"] == pytest.approx(theirs["mean_wQuantileLoss"], rel=1e-5) and "crps_sum" not in ours
    assert ours["mase"] == pytest.approx(theirs["MASE"], rel=1e-5)


def test_a_series_that_training_never_saw_is_forecast(tmp_path, ddpm_command):
    folder = write_panel(tmp_path / "panel", extra=(80,))
    result = ddpm_command("--dataset", "series", "--data_dir", folder, *TINY)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "exps" / "series_base"
    assert np.load(run / "samples.npy").shape == (20, 8, LENGTH, 1)
    predictor = ddpm.predictor(run / "checkpoint.pt")
    entry = {"target": waves(100, 1)[:, 0], "start": pd.Period("2024-01-01", "h")}
    for item_id in ("s1", "unheard of"):
        (forecast,) = predictor.predict([entry | {"item_id": item_id}], num_samples=5)
        assert forecast.samples.shape == (5, LENGTH) and np.isfinite(forecast.samples).all()
    table = pd.read_csv(run / "forecast.csv")
    assert list(table["series"].unique()) == ["s0", "s1", "s2", "s3"] and len(table) == 8 * LENGTH
    assert table.iloc[0, 2:].notna().all() and table["time"][0] == "2024-01-04 06:00"
    result = ddpm_command("--sample", run / "checkpoint.pt")
    (path,) = run.glob("samples/*/forecast.csv")
    ahead = pd.read_csv(path)
    assert len(ahead) == 4 * LENGTH and ahead["time"][0] == str(pd.Period("2024-01-01", "h") + 90)


def test_the_table_of_a_forecast_has_its_quantiles(gluonts_folder):
    data = load("series", gluonts_folder)
    paths = np.random.default_rng(0).normal(size=(101, 3, LENGTH, 3))
    table = forecasts.table(data, paths)
    row = table[(table["series"] == "site 1") & (table["time"] == stamp(data.windows.starts[2] + 4))].iloc[0]
    assert row["mean"] == pytest.approx(paths[:, 2, 4, 1].mean())
    assert row["0.05"] == pytest.approx(np.quantile(paths[:, 2, 4, 1], 0.05))
    assert list(table.columns[3:]) == [f"{level / 20:.2f}" for level in range(1, 20)]


@pytest.mark.parametrize(
    "entry, told",
    [
        ({"target": np.full((3, 50), np.nan)}, "target: no value to forecast from"),
        ({"start": pd.Timestamp("2024-01-01")}, "start: a pandas Period"),
        ({"start": None}, "start: a pandas Period"),
        ({"target": np.ones((2, 50))}, "made for 3 dimensions"),
    ],
)
def test_a_predictor_refuses_what_it_cannot_forecast_from(gluonts_folder, entry, told):
    forecaster = forecasts.Forecaster(load("series", gluonts_folder), None)
    assert list(forecaster.predict([])) == []
    with pytest.raises(ValueError, match="num_samples: 0"):
        list(forecaster.predict([], num_samples=0))
    with pytest.raises(ValueError, match=told):
        list(forecaster.predict([{"target": waves(50).T, "start": pd.Period("2024-01-01", "h")} | entry]))
