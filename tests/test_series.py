"""Time series: what is read and masked, how a forecast goes on, and GluonTS's view of it."""

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import datasets
import ddpm
from datasets import UsageError, load, restore
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


@pytest.fixture
def folder(tmp_path):
    return write_gluonts(tmp_path / "data" / "gluonts" / "exchange_rate_nips", waves())


def test_a_gluonts_folder_has_training_series_and_rolling_windows(folder):
    data, values = load("series", folder), waves().astype(np.float32)
    assert data.names == ["site 0", "site 1", "site 2"] and data.freq == "h" and data.prediction_length == LENGTH
    np.testing.assert_array_equal(data.items, values[: -3 * LENGTH])
    assert data.truth.shape == (3, LENGTH, 3)
    for window in range(3):
        end = HOURS - (2 - window) * LENGTH
        np.testing.assert_array_equal(data.truth[window], values[end - LENGTH : end])
        np.testing.assert_array_equal(data.pasts[window], values[: end - LENGTH][-data.past_length :])
        assert data.starts[window] == pd.Period("2024-01-01", "h") + end - LENGTH
    by_name = load("exchange-rate", folder.parents[1])
    assert by_name.name == "gluonts:exchange_rate_nips" and np.array_equal(by_name.truth, data.truth)


@pytest.mark.parametrize("difference", [0, 1, 24])
@pytest.mark.parametrize("scaling", ["mean", "standard"])
def test_decoding_undoes_encoding(folder, difference, scaling):
    data = load("series", folder, difference=difference, scaling=scaling)
    x_0, _, _ = next(data.held_out(7, 7, "cpu"))  # more than there are windows: in turn
    np.testing.assert_allclose(data.decode(x_0), data.truth[np.arange(7) % 3], rtol=1e-4)


def test_windows_are_scaled_by_their_context_alone(folder):
    data = load("series", folder, difference=1, context_length=10)
    (x_0, inputs, weight), *_ = data.read([np.array([50, 200])], "cpu")
    assert x_0.shape == (2, LENGTH, 3) and inputs.shape == (2, 16, data.cond_size) and weight is None
    change = np.diff(data.items, axis=0, prepend=np.nan)
    for row, start in zip(x_0, (50, 200)):
        scale = np.maximum(np.abs(change[start : start + 10]).mean(0), np.array(data.typical) / 2)
        np.testing.assert_allclose(row, change[start + 10 : start + 16] / scale, rtol=1e-4)
    data.scaling = "standard"
    (x_0, _, _), *_ = data.read([np.array([50])], "cpu")
    context = change[50:60]
    np.testing.assert_allclose(x_0[0], (change[60:66] - context.mean(0)) / context.std(0), rtol=1e-3)


@pytest.mark.parametrize("difference", [0, 1, 24])
def test_inputs_know_the_past_and_nothing_else(folder, difference):
    data = load("series", folder, difference=difference)
    assert data.lags == [1, 24, 168] and data.level_lags == ([168] if difference == 24 else [])
    start, step = 250, 2  # of the forecast; the context comes before
    now = data.context_length + step
    (x_0, inputs, _), *_ = data.read([np.array([start])], "cpu")
    data.items = data.items.copy()
    data.items[start + now :] += 1
    (changed, others, _), *_ = data.read([np.array([start])], "cpu")
    torch.testing.assert_close(inputs[:, : now + 1], others[:, : now + 1])
    assert not torch.allclose(inputs[:, now + 1], others[:, now + 1]) and not torch.allclose(x_0, changed)
    torch.testing.assert_close(others[0, data.context_length + 1 :, :3], changed[0, :-1])  # lag 1


def test_missing_values_count_neither_in_the_loss_nor_in_the_scale(tmp_path):
    values = waves()
    values[100:108, 1] = np.nan
    data = load("series", write_gluonts(tmp_path / "gap", values), difference=0, context_length=10)
    (x_0, inputs, weight), *_ = data.read([np.array([95])], "cpu")
    assert weight[0, :3, 1].sum() == 0 and weight.sum() == weight.numel() - 3
    assert inputs.isfinite().all() and x_0.isfinite().all()
    seen = np.abs(values[95:100, 1]).mean()
    assert x_0[0, 3, 1] == pytest.approx(values[108, 1] / seen, rel=1e-5)
    scheduler, losses = ddpm.NoiseScheduler(10, prediction_type="sample"), []
    for fill in (0, 1e3):
        x = torch.where(weight > 0, x_0, torch.tensor(float(fill)))
        generator = torch.Generator().manual_seed(0)
        network = lambda x_t, t, cond: torch.zeros_like(x_t)  # noqa: E731
        losses.append(ddpm.training_loss(network, scheduler, data, (x, inputs, weight), generator))
    assert losses[0] == losses[1] > 0


class Recorder:
    """Stands in for the RNN: counts in its state what it has read, and keeps it."""

    denoiser = "the denoiser"

    def __init__(self):
        self.read = []

    def encode(self, inputs, state=None):
        self.read.append(inputs)
        (seen,) = state or (torch.zeros(1, len(inputs), 1),)
        seen = seen + inputs.shape[1]
        return seen.transpose(0, 1), (seen,)


def test_forecasting_reads_what_training_reads_and_goes_on_from_what_it_drew(folder):
    data, model = load("series", folder, difference=24), Recorder()
    x_0, _, _ = next(data.held_out(3, 3, "cpu"))
    drawn = iter(x_0.split(1, dim=1))

    def reverse(denoiser, shape, cond):
        assert denoiser == "the denoiser" and shape == (3, 1, 3)
        assert (cond == data.context_length + len(model.read) - 1).all()  # the state has seen all before this step
        x = next(drawn)
        return x, x[None]

    x, way = data.generate(model, reverse, 3, data.condition(range(3), None, "cpu"))
    torch.testing.assert_close(x, x_0)
    assert way.shape == (1, 3, LENGTH, 3)
    np.testing.assert_allclose(data.decode(x), data.truth, rtol=1e-4)
    data.items, starts = data.known.to_numpy(np.float32), [(start - data.begin).n for start in data.starts]
    (_, inputs, _), *_ = data.read([np.array(starts) - data.context_length], "cpu")
    torch.testing.assert_close(torch.cat(model.read, 1), inputs, rtol=1e-3, atol=1e-3)


def test_rnn_step_by_step_is_rnn_at_once():
    torch.manual_seed(0)
    model = RNN((3,), 5, num_timesteps=10, hidden_size=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x_t, t, inputs = torch.randn(2, 4, 3), torch.randint(1, 11, (2, 4)), torch.randn(2, 4, 5)
    whole, state = model(x_t, t, inputs), None
    assert whole.shape == x_t.shape
    torch.testing.assert_close(model(x_t[:, 2:], t[:, 2:], inputs), whole[:, 2:])  # a forecast after its context
    for step in range(4):
        hidden, state = model.encode(inputs[:, step : step + 1], state)
        part = model.denoiser(x_t[:, step : step + 1], t[:, step : step + 1], hidden)
        torch.testing.assert_close(part, whole[:, step : step + 1])
    later = inputs.clone()
    later[:, 2:] += 1
    torch.testing.assert_close(model(x_t, t, later)[:, :2], whole[:, :2])


def weighted_quantile_loss(paths, truth):
    """CRPS as TimeGrad reports it, by its definition: paths (n, ...), truth (...)."""
    levels = np.arange(1, 20) / 20
    quantiles = np.quantile(paths, levels, axis=0, method="inverted_cdf")
    error = truth - quantiles
    level = levels.reshape(-1, *[1] * truth.ndim)
    return np.mean(2 * np.abs(error * (level - (error < 0))).sum(tuple(range(1, error.ndim))) / np.abs(truth).sum())


def test_scores_are_those_of_their_definitions(folder):
    data = load("series", folder)
    paths = data.truth + np.random.default_rng(0).normal(size=(200, 3, LENGTH, 3)).astype(np.float32)
    scores = data.evaluate(paths)
    assert scores["crps"] == pytest.approx(weighted_quantile_loss(paths, data.truth), rel=0.02)
    assert scores["crps_sum"] == pytest.approx(weighted_quantile_loss(paths.sum(-1), data.truth.sum(-1)), rel=0.02)
    low, high = np.quantile(paths, [0.05, 0.95], axis=0)
    assert scores["coverage_90"] == pytest.approx(((low <= data.truth) & (data.truth <= high)).mean(), abs=0.02)


def test_the_seasonal_naive_score_is_gluonts_own(folder):
    from gluonts.evaluation import MultivariateEvaluator
    from gluonts.model.forecast import SampleForecast
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    data = load("series", folder)
    naive = SeasonalNaivePredictor(prediction_length=LENGTH, season_length=24)
    forecasts, histories = [], []
    for start in data.starts:
        known = data.known[: start - 1]
        entries = [{"target": known[name].to_numpy(), "start": known.index[0]} for name in known]
        samples = np.stack([forecast.samples for forecast in naive.predict(entries)], -1)
        forecasts.append(SampleForecast(samples, start))
        histories.append(data.known[: start + LENGTH - 1].set_axis(range(3), axis=1))
    figures, _ = MultivariateEvaluator(quantiles=np.arange(1, 20) / 20, num_workers=0)(histories, forecasts)
    ours = data.evaluate(data.last_season())
    assert ours["crps"] == pytest.approx(figures["mean_wQuantileLoss"]) and ours["mase"] == pytest.approx(
        figures["MASE"]
    )


def test_a_random_walk_has_the_spread_of_the_changes():
    values = np.random.default_rng(0).normal(size=(5000, 2)).cumsum(0) * [1, 3]
    frame = pd.DataFrame(values, pd.period_range("2000-01-01", periods=5000, freq="D"))
    options = datasets.SimpleNamespace(data_dir="", context_length=10, difference=1, scaling="mean")
    data = datasets.series_of("series", frame[:4970], frame, [5000], 30, options)
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
    assert json.loads(again.read_text()) == metrics
    shutil.rmtree(again.parent)
    csv.unlink()
    result = ddpm_command("--sample", run / "checkpoint.pt")
    assert result.returncode == 0, result.stderr
    (paths,) = run.glob("samples/*/samples.npy")
    assert np.load(paths).shape == (20, 1, LENGTH, 3)
    assert restore(ddpm.load_checkpoint(run / "checkpoint.pt")["data"]).starts == [pd.Period("2024-01-01", "h") + HOURS]


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
        assert np.array_equal(data.items, waves(seed=1)[: -3 * LENGTH].astype(np.float32))
    assert len(made) == 2 and [path.name for path in folder.parent.iterdir()] == ["exchange_rate_nips"]
    shutil.rmtree(folder / "test")
    load("exchange-rate", folder.parents[1])
    assert len(made) == 3 and "not whole" in capsys.readouterr().out


def test_any_name_of_gluonts_will_do_and_others_are_an_error(folder):
    folder.rename(folder.with_name("vic_electricity"))
    assert load("gluonts:vic_electricity", folder.parents[1]).name == "gluonts:vic_electricity"
    with pytest.raises(UsageError, match=r"nothing is not there.*m4_hourly"):
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
        ("no values", "--data_dir .*plant 1 has no values"),
        ("short", "--prediction_length 6.*too few"),
        ("gaps", "--freq None"),
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
    assert np.isnan(data.items[[5, 9, 50]]).all() and np.isnan(data.items).sum() == 9
    weights = torch.cat([weight for _, _, weight in data.read([np.arange(20, 60)], "cpu")])
    assert (weights == 0).any() and weights.max() == 1


def test_a_constant_column_is_forecast_to_stay(tmp_path, ddpm_command):
    values = waves()
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
    assert data.draw(torch.zeros(2, LENGTH, 3)).ndim == 3
