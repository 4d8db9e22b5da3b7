"""Time series: what is read and masked, how a forecast goes on, and GluonTS's view of it."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load

import datasets
import ddpm
from datasets import UsageError, restore
from models import RNN

HOURS, LENGTH = 400, 6


def waves(hours=HOURS, dimensions=3, seed=0):
    """Hourly series with a daily rhythm and noise, (hours, dimensions)."""
    generator = np.random.default_rng(seed)
    rhythm = np.sin(2 * np.pi * np.arange(hours)[:, None] / 24 + np.arange(dimensions))
    return 10 * (1 + np.arange(dimensions)) + 3 * rhythm + generator.normal(size=(hours, dimensions))


def write_csv(path, values, freq="h", start="2024-01-01"):
    frame = pd.DataFrame(values, pd.date_range(start, periods=len(values), freq=freq))
    frame.rename(columns=lambda i: f"plant {i}").to_csv(path, index_label="time")
    return path


def write_gluonts(folder, values, windows=3, freq="h"):
    """A data set in GluonTS's layout with `windows` rolling test windows."""
    for part, lengths in (
        ("train", [len(values) - windows * LENGTH]),
        ("test", [len(values) - (windows - 1 - i) * LENGTH for i in range(windows)]),
    ):
        (folder / part).mkdir(parents=True)
        rows = [
            {"target": values[:length, i].tolist(), "start": "2024-01-01 00:00", "item_id": f"site {i}"}
            for length in lengths
            for i in range(values.shape[1])
        ]
        text = "".join(json.dumps(row).replace("NaN", '"NaN"') + "\n" for row in rows)
        (folder / part / "data.json.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "metadata.json").write_text(json.dumps({"freq": freq, "prediction_length": LENGTH}))
    return folder


def row(data, *starts):
    """The rows of the table of a single group that make contexts begin there."""
    return np.array(starts) + data.context_length


@pytest.fixture
def folder(tmp_path):
    return write_gluonts(tmp_path / "data" / "gluonts" / "exchange_rate_nips", waves())


def test_a_gluonts_folder_has_training_series_and_rolling_windows(folder):
    data, values = load("series", folder), waves().astype(np.float32)
    assert data.names == ["site 0", "site 1", "site 2"] and data.freq == "h" and data.prediction_length == LENGTH
    (group,), (pasts, starts, _, _, truth) = data.items, data.windows
    np.testing.assert_array_equal(group.values, values)
    assert group.train_end == HOURS - 3 * LENGTH == data.train.max() + LENGTH
    assert truth.shape == (3, LENGTH, 3)
    for window in range(3):
        end = HOURS - (2 - window) * LENGTH
        np.testing.assert_array_equal(truth[window], values[end - LENGTH : end])
        np.testing.assert_array_equal(pasts[window], values[: end - LENGTH][-data.past_length :])
        assert starts[window] == pd.Period("2024-01-01", "h") + end - LENGTH
    by_name = load("exchange-rate", folder.parents[1])
    assert by_name.name == "gluonts:exchange_rate_nips" and np.array_equal(by_name.windows.truth, truth)


@pytest.mark.parametrize("difference", [0, 1, 24])
@pytest.mark.parametrize("scaling", ["mean", "standard"])
def test_decoding_undoes_encoding(folder, difference, scaling):
    data = load("series", folder, difference=difference, scaling=scaling)
    x_0, _, _ = next(data.held_out(7, 7, "cpu"))  # more than there are windows: in turn
    np.testing.assert_allclose(data.decode(x_0), data.windows.truth[np.arange(7) % 3], rtol=1e-4)


def test_windows_are_scaled_by_their_context_alone(folder):
    data = load("series", folder, difference=1, context_length=10)
    (x_0, past, weight), *_ = data.read([row(data, 50, 200)], "cpu")
    assert x_0.shape == weight.shape == (2, LENGTH, 3) and weight.min() == 1
    assert past.values.shape == (2, data.past_length + LENGTH, 3) and past.features.shape[:2] == (2, 16)
    change = np.diff(data.items[0].values, axis=0, prepend=np.nan)
    for window, start in zip(x_0, (50, 200)):
        scale = np.maximum(np.abs(change[start : start + 10]).mean(0), data.typical[0] / 2)
        np.testing.assert_allclose(window, change[start + 10 : start + 16] / scale, rtol=1e-4)
    data.scaling = "standard"
    (x_0, _, _), *_ = data.read([row(data, 50)], "cpu")
    context = change[50:60]
    np.testing.assert_allclose(x_0[0], (change[60:66] - context.mean(0)) / context.std(0), rtol=1e-3)


def rnn(data):
    """A forecaster of `data` whose every weight matters."""
    settings = {"num_timesteps": 10, "hidden_size": 8, "hidden_layers": 2, "embedding_size": 16, "dropout": 0.0}
    torch.manual_seed(0)
    model = RNN(data.shape, time_embedding="sinusoidal", **settings, **data.network_settings()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("difference", [0, 1, 24])
def test_a_step_is_denoised_knowing_the_past_and_nothing_else(folder, difference):
    data = load("series", folder, difference=difference)
    model = rnn(data)
    assert model.lags == [1, 24, 168] and model.level_lags == ([168] if difference == 24 else [])
    start, step = 250, 2  # of the forecast; the context comes before
    (x_0, past, _), *_ = data.read([row(data, start)], "cpu")
    values = data.items[0].values.copy()
    values[start + data.context_length + step :] += 1
    data.items = [data.items[0]._replace(values=values)]
    del data.table
    (changed, future, _), *_ = data.read([row(data, start)], "cpu")
    t = torch.full((1, LENGTH), 5)
    before, after = (model(x_0, t, cond) for cond in (past, future))
    torch.testing.assert_close(before[:, : step + 1], after[:, : step + 1])
    assert not torch.allclose(before[:, step + 1], after[:, step + 1]) and not torch.allclose(x_0, changed)


@pytest.mark.parametrize("difference", [0, 1, 24])
def test_the_first_inputs_are_the_changes_of_the_step_before(folder, difference):
    data = load("series", folder, difference=difference, scaling="standard")
    model, (x_0, past, _) = rnn(data), next(data.read([row(data, 250)], "cpu"))
    seen = []
    model.encoder.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    model(x_0, torch.full((1, LENGTH), 5), past)
    torch.testing.assert_close(seen[0][0, data.context_length + 1 :, :3], x_0[0, :-1], rtol=1e-4, atol=1e-4)


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


@torch.no_grad()
@pytest.mark.parametrize("difference", [0, 1, 24])
def test_forecasting_reads_what_training_reads_and_goes_on_from_what_it_drew(folder, difference):
    """With the truth in place of what is drawn, the network reads the same step by step as at once."""
    data = load("series", folder, difference=difference, scaling="standard")
    model, (x_0, _, _) = rnn(data), next(data.held_out(3, 3, "cpu"))
    steps, conds = iter(x_0.split(1, dim=1)), []

    def reverse(denoiser, shape, cond):
        assert denoiser is model.denoiser and shape == (1, 3)
        conds.append(cond)
        return next(steps)

    torch.testing.assert_close(model.sample(reverse, data.condition(range(3), None, "cpu")), x_0)
    (group,), truth = data.items, data.windows.truth
    data.items = [group._replace(train_end=HOURS)]
    (x_again, past, _), *_ = data.read([row(data, *(begin - data.context_length for begin in group.begins))], "cpu")
    torch.testing.assert_close(x_again, x_0, rtol=1e-3, atol=1e-4)
    t = torch.randint(1, 11, (3, LENGTH))
    by_step = model.denoiser(x_0, t, torch.cat(conds, 1))
    torch.testing.assert_close(by_step, model(x_0, t, past), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(data.decode(x_0), truth, rtol=1e-4)


@torch.no_grad()
def test_each_path_continues_its_own_window(folder):
    """Several paths of each window, with the same draws, are the paths of the windows one by one."""
    data = load("series", folder, difference=24)
    model, draws = rnn(data), torch.randn(LENGTH, 1, 1, 3)

    def paths(samples):
        steps = iter(draws)
        return model.sample(
            lambda denoiser, shape, cond: next(steps) + cond[..., :3], data.condition(samples, None, "cpu")
        )

    whole = paths(range(7))
    for i in range(7):
        torch.testing.assert_close(paths(range(i, i + 1))[0], whole[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[6], whole[0])


def as_gluonts(data, paths):
    """(histories with the truth, forecasts) as GluonTS's evaluator takes them."""
    from gluonts.model.forecast import SampleForecast

    (group,), starts = data.items, data.windows.starts
    frame = pd.DataFrame(group.values, pd.period_range(group.start, periods=len(group.values)))
    forecasts = [SampleForecast(paths[:, i], start) for i, start in enumerate(starts)]
    return [frame[: start + data.prediction_length - 1] for start in starts], forecasts


@pytest.mark.filterwarnings("ignore:The provided callable <function sum")
@pytest.mark.parametrize("scale", [0.3, 3])
def test_scores_are_those_of_gluonts_evaluator(folder, scale):
    from gluonts.evaluation import MultivariateEvaluator

    data = load("series", folder)
    noise = np.random.default_rng(0).normal(size=(100, 3, LENGTH, 3)).astype(np.float32)
    paths = data.windows.truth + 0.5 + scale * noise
    evaluator = MultivariateEvaluator(np.arange(1, 20) / 20, num_workers=0, target_agg_funcs={"sum": np.sum})
    theirs, _ = evaluator(*as_gluonts(data, paths))
    ours = data.evaluate(paths)
    assert ours["crps"] == pytest.approx(theirs["mean_wQuantileLoss"], rel=1e-5)
    assert ours["crps_sum"] == pytest.approx(theirs["m_sum_mean_wQuantileLoss"], rel=1e-5)
    assert ours["mase"] == pytest.approx(theirs["MASE"], rel=1e-5)
    assert ours["nd"] == pytest.approx(theirs["ND"], rel=1e-5)
    low, high = np.quantile(paths, [0.05, 0.95], axis=0)
    truth = data.windows.truth
    assert ours["coverage_90"] == pytest.approx(((low <= truth) & (truth <= high)).mean(), abs=0.02)


def test_the_seasonal_naive_score_is_gluonts_own(folder):
    from gluonts.evaluation import MultivariateEvaluator
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    data = load("series", folder)
    naive = SeasonalNaivePredictor(prediction_length=LENGTH, season_length=24)
    paths = []
    for known in data.test:
        entries = [{"target": column, "start": data.items[0].start} for column in known.T]
        paths.append(np.stack([forecast.samples for forecast in naive.predict(entries)], -1))
    evaluator = MultivariateEvaluator(np.arange(1, 20) / 20, num_workers=0)
    theirs, _ = evaluator(*as_gluonts(data, np.stack(paths, 1)))
    ours = data.evaluate(data.last_season())
    assert ours["crps"] == pytest.approx(theirs["mean_wQuantileLoss"])
    assert ours["mase"] == pytest.approx(theirs["MASE"])


def test_a_random_walk_has_the_spread_of_the_changes():
    values = np.random.default_rng(0).normal(size=(5000, 2)).cumsum(0) * [1, 3]
    start, covariates = pd.Period("2000-01-01", "D"), np.empty((5000, 0), np.float32)
    group = datasets.Group(0, start, values.astype(np.float32), covariates, 4970, [4970])
    config = ddpm.resolve({"dataset": "series", "context_length": 10, "difference": 1})
    data = datasets.series_of("series", [group], ["a", "b"], [], [[]], 30, config)
    paths = data.random_walk(4000)
    assert paths.shape == (4000, 1, 30, 2)
    np.testing.assert_allclose(paths.mean(0)[0, 0], values[4969], atol=0.2)
    np.testing.assert_allclose(paths.std(0)[0, -1] / 30**0.5, [1, 3], rtol=0.05)


TINY = ["--epochs", 1, "--hidden_size", 8, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 20]


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
    forecasts, histories = map(list, make_evaluation_predictions(entries, predictor, num_samples=20))
    assert [forecast.item_id for forecast in forecasts] == ["4", "3", "2", "1", "0"]
    evaluator = (MultivariateEvaluator if dimensions > 1 else Evaluator)(quantiles=np.arange(1, 20) / 20, num_workers=0)
    if dimensions == 1:
        histories = [history[0] for history in histories]
    figures, _ = evaluator(histories, forecasts)
    metrics = json.loads((run / "metrics.json").read_text())
    assert figures["mean_wQuantileLoss"] == pytest.approx(metrics["crps"], rel=1e-3)
    with pytest.raises(ValueError, match="dimensions"):
        list(predictor.predict([{"target": np.zeros((7, 100)), "start": pd.Period("2024-01-01", "h")}]))


def test_a_half_written_download_is_made_again(folder, monkeypatch, capsys):
    from gluonts.dataset.repository.datasets import dataset_recipes

    made = []

    def recipe(dataset_path, **settings):
        made.append(dataset_path)
        if len(made) == 1:
            (dataset_path / "train").mkdir(parents=True)
            raise ConnectionError("lost")
        write_gluonts(dataset_path, waves(seed=1))

    monkeypatch.setitem(dataset_recipes, "exchange_rate_nips", recipe)
    load("exchange-rate", folder.parents[1])
    assert not made
    whole = (folder / "test" / "data.json.gz").read_bytes()
    (folder / "test" / "data.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"--data_dir.*ConnectionError: lost.*connect to the internet"):
        load("exchange-rate", folder.parents[1])
    for _ in range(2):
        data = load("exchange-rate", folder.parents[1])
        assert np.array_equal(data.items[0].values, waves(seed=1).astype(np.float32))
    assert len(made) == 2 and [path.name for path in folder.parent.iterdir()] == ["exchange_rate_nips"]
    shutil.rmtree(folder / "test")
    load("exchange-rate", folder.parents[1])
    assert len(made) == 3 and "not whole" in capsys.readouterr().out


def test_any_name_of_gluonts_will_do_and_others_are_an_error(folder):
    folder.rename(folder.with_name("vic_electricity"))
    assert load("gluonts:vic_electricity", folder.parents[1]).name == "gluonts:vic_electricity"
    with pytest.raises(UsageError, match=r"nothing: not there.*m4_hourly"):
        load("gluonts:nothing", folder.parents[1])


def spoiled(frame, how):
    frame = frame.astype(object)
    if how == "a date that is none":
        frame.iloc[7, 0] = "yesterday"
    elif how == "a word":
        frame.iloc[7, 2] = "much"
    elif how == "twice":
        frame.iloc[7, 0] = frame.iloc[8, 0]
    elif how == "no values":
        frame.iloc[:, 2] = np.nan
    elif how == "short":
        frame = frame[:12]
    elif how == "gaps":
        frame = frame.drop(index=[5, 9, 50])
    return frame


@pytest.mark.parametrize(
    "how, message",
    [
        ("a date that is none", "--data_dir .*yesterday"),
        ("a word", "--data_dir .*much"),
        ("twice", "--data_dir .*several rows for 2024-01-01 08:00"),
        ("no values", "--data_dir .*plant 1 has no values; take it out"),
        ("short", "--prediction_length 6.*too few"),
        ("gaps", "--freq: the time between rows cannot be told"),
    ],
)
def test_a_spoiled_csv_is_an_error_of_one_line(tmp_path, ddpm_command, how, message):
    csv = write_csv(tmp_path / "my.csv", waves())
    spoiled(pd.read_csv(csv), how).to_csv(csv, index=False)
    freq = [] if how == "gaps" else ["--freq", "h"]
    result = ddpm_command("--dataset", "series", "--data_dir", csv, "--prediction_length", LENGTH, *freq, *TINY)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert pd.Series([result.stderr]).str.contains(message).all(), result.stderr


def test_rows_that_are_missing_are_missing_values(tmp_path, capsys):
    csv = write_csv(tmp_path / "my.csv", waves())
    spoiled(pd.read_csv(csv), "gaps").to_csv(csv, index=False)
    data = load("series", csv, freq="h", prediction_length=LENGTH, difference=1)
    assert "3 of 400 rows are missing, the first 2024-01-01 05:00" in capsys.readouterr().out
    missing = np.isnan(data.items[0].values)
    assert missing[[5, 9, 50]].all() and missing.sum() == 9
    weights = torch.cat([weight for _, _, weight in data.read([row(data, *range(20, 60))], "cpu")])
    assert (weights == 0).any() and weights.max() == 1


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
    data = restore(data.facts)
    assert np.isfinite(data.decode(torch.zeros(2, LENGTH, 3))).all()
    np.testing.assert_allclose(data.decode(torch.zeros(1, LENGTH, 3))[0, :, 0], values[-2, 0], rtol=1e-5)
    assert data.render(torch.zeros(2, LENGTH, 3)).ndim == 3


def test_any_eval_batch_size_draws_the_same_paths(folder):
    data, flags = load("series", folder), {"dataset": "series", "num_timesteps": 10, "sampling_steps": 3}
    model = ddpm.new_model(ddpm.resolve(flags), data, "cpu")
    torch.nn.init.normal_(model.denoiser.denoiser.head.weight)
    model.denoiser.eval()
    whole, film = ddpm.sample(model, 20, frames=4)
    assert whole.shape == (60, LENGTH, 3) and film.shape == (4, 60, LENGTH, 3)
    for size in (1, 7, 25):
        model.config.eval_batch_size = size
        torch.testing.assert_close(ddpm.sample(model, 20)[0], whole, rtol=1e-3, atol=1e-3)


def test_a_predictor_leaves_its_model_as_it_was(folder):
    data = load("series", folder)
    model = ddpm.new_model(ddpm.resolve({"dataset": "series", "num_timesteps": 10, "sampling_steps": 3}), data, "cpu")
    predictor = datasets.predictor(
        data, lambda data, number: ddpm.sample(dataclasses.replace(model, data=data), number)[0]
    )
    entries = [{"target": waves(seed=i).T, "start": pd.Period("2024-01-01", "h")} for i in (0, 1)]
    first, _ = predictor.predict(entries, num_samples=4)
    list(predictor.predict(entries[1:], num_samples=4))
    again, _ = predictor.predict(entries, num_samples=4)
    assert np.array_equal(first.samples, again.samples) and data.histories == 3


def test_sampling_of_many_series_is_split_into_what_fits(folder, monkeypatch):
    data = load("series", folder)
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


def write_panel(folder, lengths=(90, 150, 60), tests=2, categories=(0, 1, 1), prediction_length=LENGTH, extra=()):
    """A data set in GluonTS's layout whose series have lengths and starts of their own; `extra` are tested alone."""
    rows = []
    for number, length in enumerate([*lengths, *extra]):
        values = waves(length, 1, seed=number)[:, 0] * 10.0**number
        start = str(pd.Timestamp("2024-01-01") + pd.Timedelta(hours=7 * number))
        rows.append({"target": values.tolist(), "start": start, "item_id": f"s{number}"})
        rows[-1]["feat_static_cat"] = [categories[number % len(categories)]]
    cut = lambda row, steps: row | {"target": row["target"][: len(row["target"]) - steps]}  # noqa: E731
    train = [cut(row, tests * LENGTH) for row in rows[: len(lengths)]]
    test = [cut(row, i * LENGTH) for i in reversed(range(tests)) for row in rows]
    for part, entries in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / part / "data.json.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "metadata.json").write_text(json.dumps({"freq": "h", "prediction_length": prediction_length}))
    return folder


def test_series_without_a_common_calendar_are_learned_one_by_one(tmp_path):
    data = load("series", write_panel(tmp_path / "panel"), difference=1)
    assert data.shape == (LENGTH, 1) and data.names == ["s0", "s1", "s2"] and data.histories == 6
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


@pytest.mark.parametrize("form", ["vector", "panel"])
@pytest.mark.parametrize("prediction_length", [3, LENGTH, 4 * LENGTH])
def test_no_training_window_overlaps_a_test_window(folder, form, prediction_length):
    """Whatever the flags; nor does one overlap what is forecast for validation."""
    data = load("series", folder, form=form, prediction_length=prediction_length, difference=1, context_length=5)
    first = HOURS - 2 * LENGTH - prediction_length  # of the first test window
    assert {group.train_end for group in data.items} == {min(first, HOURS - 3 * LENGTH)}
    every = np.full((1, len(data.table[0])), -1)
    for begin in data.train:
        every[0, begin + data.past_length :][:prediction_length] = begin
    assert len(data.validated) and all(
        (every[0, v + data.past_length :][:prediction_length] < 0).all() for v in data.validated
    )
    rows_of_a_group = data.past_length + data.items[0].train_end
    ends = (data.train % rows_of_a_group) + data.past_length + prediction_length
    assert ends.max() == rows_of_a_group


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
    forecasts = [SampleForecast(paths[:, i, :, 0], start) for i, start in enumerate(data.windows.starts)]
    theirs, _ = Evaluator(np.arange(1, 20) / 20, num_workers=0)(truths, forecasts)
    ours = data.evaluate(paths)
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


def test_the_table_of_a_forecast_has_its_quantiles(folder):
    data = load("series", folder)
    paths = np.random.default_rng(0).normal(size=(101, 3, LENGTH, 3))
    table = data.table_of(paths)
    row = table[(table["series"] == "site 1") & (table["time"] == data.windows.starts[2] + 4)].iloc[0]
    assert row["mean"] == pytest.approx(paths[:, 2, 4, 1].mean())
    assert row["0.05"] == pytest.approx(np.quantile(paths[:, 2, 4, 1], 0.05))
    assert list(table.columns[3:]) == [f"{level / 20:.2f}" for level in range(1, 20)]


def test_periods_of_several_units_are_counted_in_steps():
    first = pd.Period("2024-01-01", "30min")
    assert datasets.steps_between(first, first + 7) == 7
    assert datasets.steps_between(pd.Period("2024-01-01", "W"), pd.Period("2024-01-01", "W") + 3) == 3


CSVS = {
    "years": ("year,a\n" + "".join(f"{1900 + i},{i}\n" for i in range(60)), "Y", "read as years"),
    "seconds": ("t,a\n" + "".join(f"{1700000000 + 3600 * i},{i}\n" for i in range(60)), "h", "seconds since 1970"),
    "a trailing line of commas": (
        "time,a,\n" + "".join(f"2024-01-{1 + i:02d},{i},\n" for i in range(31)) + ",,\n",
        "D",
        "",
    ),
    "semicolons and decimal commas": (
        "time;a\n" + "".join(f"2024-01-{1 + i:02d};{i},0\n" for i in range(31)),
        "D",
        "decimal commas",
    ),
    "summer time": (
        "time,a\n"
        + "".join(f"{stamp.isoformat()},{i}\n" for i, stamp in enumerate(
            pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin"))),
        "h",
        "counted in UTC",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CSVS)
def test_csvs_are_read_as_they_come_and_what_was_assumed_is_said(tmp_path, capsys, kind):
    text, freq, said = CSVS[kind]
    (tmp_path / "my.csv").write_text(text)
    data = load("series", tmp_path / "my.csv", prediction_length=2, difference=1)
    assert data.freq.startswith(freq) and said in capsys.readouterr().out
    values = data.items[0].values[:, 0]
    assert np.array_equal(values, np.arange(len(values))) and len(values) >= 31


def test_rows_closer_than_freq_become_their_mean(tmp_path, capsys):
    csv = write_csv(tmp_path / "my.csv", np.arange(400.0)[:, None])
    data = load("series", csv, prediction_length=2, freq="2h", difference=1)
    np.testing.assert_array_equal(data.items[0].values[:, 0], np.arange(200) * 2 + 0.5)
    assert "400 rows become the means of 200" in capsys.readouterr().out


def test_a_column_that_begins_late_is_a_series_of_its_own(tmp_path):
    values = waves()
    values[:100, 0], values[390:, 1], values[-LENGTH:, 2] = np.nan, np.nan, np.nan
    data = load("series", write_csv(tmp_path / "my.csv", values), prediction_length=LENGTH, test_windows=2)
    assert [len(group.values) for group in data.items] == [HOURS - 100, 390, HOURS]  # the last one only lacks its end
    assert data.items[0].start == pd.Period("2024-01-01", "h") + 100 and data.histories == 6


def test_a_known_covariate_is_read_to_the_end_of_the_forecast(tmp_path, ddpm_command):
    values = waves(420, 2)
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", values))
    frame.loc[HOURS:, "plant 0"] = np.nan  # to be forecast; plant 1 is known
    frame.to_csv(tmp_path / "my.csv", index=False)
    flags = ("--dataset", "series", "--data_dir", tmp_path / "my.csv", "--prediction_length", LENGTH)
    result = ddpm_command(*flags, "--covariates", "plant 1", *TINY)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "exps/series_base/checkpoint.pt"
    data = ddpm.load_model(path).data
    (start,) = data.windows.starts
    assert data.names == ["plant 0"] and start == pd.Period("2024-01-01", "h") + HOURS
    expected = (values[:, 1] - values[: data_end(tmp_path), 1].mean()) / values[: data_end(tmp_path), 1].std()
    steps, (level, change) = np.arange(HOURS - data.context_length, HOURS + LENGTH), data.past.features[0, :, -2:].T
    np.testing.assert_allclose(level, expected[steps], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(change, (expected[steps] - expected[steps - 24]), rtol=1e-3, atol=1e-4)
    assert ddpm_command("--sample", path).returncode == 0
    (forecast,) = ddpm.predictor(path).predict(
        [{"target": values[:100, 0], "start": start, "feat_dynamic_real": values[None, : 100 + LENGTH, 1]}]
    )
    assert np.isfinite(forecast.samples).all()
    frame[: HOURS + 2].to_csv(tmp_path / "my.csv", index=False)
    assert ddpm_command(*flags, "--covariates", "plant 1", *TINY, "--overwrite").returncode == 0
    result = ddpm_command("--sample", path)
    assert result.returncode == 2 and f"--covariates plant 1: not known for {start + 2}" in result.stderr
    result = ddpm_command(*flags, "--covariates", "price", *TINY, "--overwrite")
    assert result.returncode == 2 and "--covariates price: not among the columns" in result.stderr


def data_end(tmp_path):
    """Rows that are learned from: all but the last five forecasts."""
    return HOURS - 5 * LENGTH


BAD_CSVS = {
    "inf": ("plant 1", 7, "inf", "inf in column plant 1, row 9"),
    "too large": ("plant 0", 399, "-1e300", "-1e.300 in column plant 0, row 401"),
    "a mistyped year": ("time", 0, "1721-01-01 00:00:00", "--freq h: .* would make 2,656"),
}


@pytest.mark.parametrize("kind", BAD_CSVS)
def test_a_mistake_in_a_csv_is_named_with_its_place(tmp_path, kind):
    column, row, text, message = BAD_CSVS[kind]
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", waves())).astype(object)
    frame.loc[row, column] = text
    frame.to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(UsageError, match=message):
        load("series", tmp_path / "my.csv", prediction_length=LENGTH, freq="h")


def test_what_is_no_series_at_all_is_an_error(tmp_path):
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", waves(50)))
    for columns, freq, message in ((1, None, "no series"), (4, "ms", "--freq ms: .* would make")):
        frame.iloc[:, :columns].to_csv(tmp_path / "my.csv", index=False)
        with pytest.raises(UsageError, match=message):
            load("series", tmp_path / "my.csv", prediction_length=LENGTH, freq=freq)
    frame["time"] = range(50)
    frame.to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(UsageError, match="neither years nor seconds"):
        load("series", tmp_path / "my.csv", prediction_length=LENGTH)


def test_test_series_that_are_only_counted_come_in_turn(folder):
    names = load("series", folder)
    for part in ("train", "test"):
        lines = gzip.decompress((folder / part / "data.json.gz").read_bytes()).splitlines()
        numbered = "".join(json.dumps(json.loads(line) | {"item_id": i}) + "\n" for i, line in enumerate(lines))
        (folder / part / "data.json.gz").write_bytes(gzip.compress(numbered.encode()))
    data = load("series", folder)
    assert data.shape == (LENGTH, 3) and data.names == ["0", "1", "2"]
    np.testing.assert_array_equal(data.windows.truth, names.windows.truth)
