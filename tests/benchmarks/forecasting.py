"""Forecasts beside those of other libraries: the same windows, one core, the same scores.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/forecasting.py --data_dir data m4_hourly m4_weekly exchange_rate_nips vic_electricity
    python tests/benchmarks/forecasting.py --data_dir data --windows 24 vic_electricity
    python tests/benchmarks/forecasting.py --data_dir data air.csv:12 sun.csv:6:11 gdp.csv:4 co2w.csv:13 nile.csv:5:1

The sets are GluonTS's, in --data_dir/gluonts; their test windows are forecast, or --windows of them, spread over the
last year, with nothing after the first of them to learn from. GluonTS's Evaluator scores: CRPS is its
mean_wQuantileLoss over 0.05, 0.10 ... 0.95, pooled over all windows, MASE and sMAPE are those of the median; relative
is the mean over series of the CRPS in units of seasonal naive's. Seconds are the processor's, in training and
forecasting. Every forecaster learns from all series of a set, statsforecast's from one at a time. All have their
library's defaults; LightGBM, which has none for series, is told in `lightgbm` below. A CSV of one series, in
--data_dir, is named with the steps to forecast and, where it is not the calendar's, its season: its last tenth is
forecast, in five windows at most. Any other flags, at the end, are ddpm.py's: --seed 1, --epochs 2.
"""

import argparse
import functools
import logging
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import MetaData, TrainDatasets, load_datasets
from gluonts.dataset.jsonl import JsonLinesWriter
from gluonts.evaluation import Evaluator
from gluonts.model.forecast import QuantileForecast
from gluonts.time_feature import get_seasonality
from gluonts.torch import DeepAREstimator
from lightgbm import LGBMRegressor
from statsforecast import StatsForecast
from statsforecast.models import MSTL, AutoETS, AutoTheta, SeasonalNaive

sys.path.insert(0, str(Path(__file__).parents[2]))
import ddpm
from tiny_diffusion.forecasts import QUANTILES, quantiles, weighted_quantile_loss

PATHS = 100
READ = 3000  # steps of a series at most that statsforecast's models learn from, which take time in proportion
LONG_SEASONS = {"h": 168, "W": 52}  # beside GluonTS's own
ROWS = 100_000  # about as many does LightGBM learn from
ONLY_SEASONS = {"D": 7, "W-SAT": 52}  # where GluonTS has none
FEW = 2  # series of a set are scored each by itself


class Task(NamedTuple):
    """What to learn from and what to forecast: GluonTS's entries, each of one series."""

    freq: str
    length: int
    train: list[dict]
    windows: list[dict]  # to the end of each forecast
    season: int | None = None  # where it is not the calendar's

    @property
    def pasts(self) -> list[dict]:
        return [entry | {"target": entry["target"][: -self.length]} for entry in self.windows]

    @property
    def seasons(self) -> list[int]:
        if self.season or self.freq in ONLY_SEASONS:
            return [self.season or ONLY_SEASONS[self.freq]]
        return sorted({get_seasonality(self.freq), LONG_SEASONS.get(self.freq, get_seasonality(self.freq))})


def read(root: Path, windows: int | None) -> Task:
    """A set's own test windows, or that many others: over the last year, the first a year before the end."""
    parts = load_datasets(root, root / "train", root / "test")
    freq, length = parts.metadata.freq, parts.metadata.prediction_length
    train, tests = list(parts.train), list(parts.test)
    if windows:
        whole = tests[-len(train) :]
        year = len(pd.period_range("2014", "2015", freq=freq)) - 1
        cuts = [-year + i * (year // windows) for i in range(windows)]
        train = [entry | {"target": entry["target"][: cuts[0]]} for entry in whole]
        tests = [entry | {"target": entry["target"][: cut + length]} for cut in cuts for entry in whole]
    tests = [entry | {"item_id": train[i % len(train)]["item_id"]} for i, entry in enumerate(tests)]
    return Task(freq, length, train, tests)


def read_csv(path: Path, length: int, season: int | None) -> Task:
    """The series in a CSV, whose last windows are forecast."""
    frame = pd.read_csv(path, index_col=0, parse_dates=True)
    values, periods = frame.iloc[:, 0].to_numpy(), frame.index.to_period()
    ends = [len(values) - length * i for i in reversed(range(int(np.clip(0.1 * len(values) // length, 1, 5))))]
    entry = {"start": periods[0], "item_id": path.stem}
    train = [entry | {"target": values[: ends[0] - length]}]
    return Task(periods.freqstr, length, train, [entry | {"target": values[:end]} for end in ends], season)


def ours(task: Task, flags: dict) -> np.ndarray:
    """ddpm.py, which reads the task from a folder in GluonTS's layout and forecasts as one of its predictors."""
    with tempfile.TemporaryDirectory() as folder:
        folder, metadata = Path(folder), MetaData(freq=task.freq, prediction_length=task.length)
        TrainDatasets(metadata, task.train, task.windows).save(str(folder / "data"), JsonLinesWriter())
        config = ddpm.resolve(flags | {"dataset": "series", "data_dir": str(folder / "data")})
        data = ddpm.load(config)
        ddpm.settle(config, flags, data)
        run = ddpm.Run(ddpm.new_model(config, data, "cpu"))
        ddpm.train(run, folder)
        forecaster, together = ddpm.predictor(folder / "checkpoint.pt"), run.model.data.shape[1]
    pasts = task.pasts
    if together > 1:  # series of one window are forecast as a vector
        groups = [pasts[i : i + together] for i in range(0, len(pasts), together)]
        pasts = [group[0] | {"target": np.stack([past["target"] for past in group])} for group in groups]
    paths = np.stack([forecast.samples for forecast in forecaster.predict(pasts, num_samples=PATHS)], 1)
    paths = paths.reshape(PATHS, len(pasts), task.length, together).swapaxes(2, 3)
    return quantiles(paths.reshape(PATHS, -1, task.length)).swapaxes(0, 1)


def deepar(task: Task) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"accelerator": "cpu", "logger": False, "default_root_dir": folder}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False}
        predictor = DeepAREstimator(task.freq, task.length, trainer_kwargs=settings).train(task.train)
    forecasts = predictor.predict(task.pasts, num_samples=PATHS)
    return quantiles(np.stack([forecast.samples for forecast in forecasts], 1)).swapaxes(0, 1)


def statistical(model):
    """A forecaster of each window by a model of statsforecast, whose intervals give the quantiles."""

    def forecast(task: Task) -> np.ndarray:
        pasts = [past["target"][-READ:].astype(float) for past in task.pasts]
        table = pd.concat(pd.DataFrame({"unique_id": i, "ds": np.arange(len(y)), "y": y}) for i, y in enumerate(pasts))
        library = StatsForecast([model(task.seasons)], freq=1, fallback_model=SeasonalNaive(task.seasons[0]))
        table = library.forecast(task.length, table, level=list(range(10, 100, 10)))
        name = table.columns[2]
        columns = [f"{name}-lo-{level}" for level in range(90, 0, -10)]
        columns += [name] + [f"{name}-hi-{level}" for level in range(10, 100, 10)]
        return table[columns].to_numpy().reshape(len(pasts), task.length, -1).swapaxes(1, 2)

    return forecast


def lightgbm(task: Task) -> np.ndarray:
    """A regression of each quantile for any step ahead, pooled over all series.

    What is learned is the change from the value a day before, or the last one where a step is a day or more, in units
    of the mean size of such changes. Inputs and settings are those that served it best on vic_electricity's 24 windows.
    """
    generator, rows = np.random.default_rng(0), []
    for entry in task.train:
        last = len(entry["target"]) - task.length
        first = min(reach(task), last // 2)
        number = math.ceil(ROWS / task.length * (last - first) / sum(len(e["target"]) for e in task.train))
        for origin in generator.integers(first, last + 1, number):
            inputs, base, scale = lightgbm_inputs(task, entry, origin)
            rows.append(np.column_stack([inputs, (entry["target"][origin:][: task.length] - base) / scale]))
    inputs, target = np.split(np.concatenate(rows), [-1], axis=1)
    known = ~np.isnan(target[:, 0])
    asked, bases, scales = zip(*(lightgbm_inputs(task, past, len(past["target"])) for past in task.pasts))
    settings = {"learning_rate": 0.05, "min_child_samples": 200, "colsample_bytree": 0.5, "n_jobs": 1, "verbose": -1}
    levels = []
    for level in QUANTILES:
        model = LGBMRegressor(objective="quantile", alpha=level, **settings).fit(inputs[known], target[known, 0])
        levels.append(model.predict(np.concatenate(asked)).reshape(len(asked), -1))
    return np.stack(bases)[:, None] + np.sort(np.stack(levels, 1), 1) * np.reshape(scales, (-1, 1, 1))


def reach(task: Task) -> int:
    """How far back LightGBM looks."""
    return max(8 * task.seasons[0], 2 * task.seasons[-1])


def lightgbm_inputs(task: Task, entry: dict, origin: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Inputs (length, inputs), base (length,) and scale of the steps from `origin` on.

    Read are how far values of the last seven days (or steps), two long seasons and last steps were from the base, the
    step ahead, hour, weekday and the number of the series. Before the beginning of a series its first value stands.
    """
    season, longest = task.seasons[0] if task.seasons[0] > 7 else 1, task.seasons[-1]
    known = np.asarray(entry["target"][max(0, origin - reach(task)) : origin], float)
    known = pd.Series(np.pad(known, (reach(task) - len(known), 0), mode="edge")).ffill().to_numpy()
    steps = np.arange(task.length)
    base = known[-season:][steps % season]
    scale = max(np.abs(known[season:] - known[:-season]).mean(), 1e-6 * np.abs(known).mean(), 1e-9)
    inputs = [known[-season * k :][steps % season] - base for k in range(2, 8)]
    inputs += [known[-longest * k :][steps % longest] - base for k in (1, 2)]
    inputs += [known[-k] - base for k in range(1, 5)]
    times = pd.period_range(entry["start"] + origin, periods=task.length)
    number = np.full(task.length, [other["item_id"] for other in task.train].index(entry["item_id"]))
    known_ahead = steps, times.hour, times.dayofweek, number
    return np.column_stack([*(part / scale for part in inputs), *known_ahead]), base, scale


PEERS = {
    "statsforecast SeasonalNaive": statistical(lambda seasons: SeasonalNaive(seasons[0])),
    "statsforecast AutoETS": statistical(lambda seasons: AutoETS(seasons[0])),
    "statsforecast AutoTheta": statistical(lambda seasons: AutoTheta(seasons[0])),
    "statsforecast MSTL": statistical(lambda seasons: MSTL([season for season in seasons if season > 1])),
    "LightGBM quantiles": lightgbm,
    "GluonTS DeepAR": deepar,
}


def scores(task: Task, levels: np.ndarray, item) -> dict:
    """By GluonTS's Evaluator, of quantiles (windows, levels, length); of one item's windows, or of all for None."""
    chosen = [i for i, window in enumerate(task.windows) if item is None or window["item_id"] == item]
    forecasts, truths = [], []
    for i in chosen:
        start, target = task.windows[i]["start"], task.windows[i]["target"]
        forecasts.append(QuantileForecast(levels[i], start + len(target) - task.length, list(map(str, QUANTILES))))
        truths.append(pd.DataFrame(target, pd.period_range(start, periods=len(target))))
    found, _ = Evaluator(QUANTILES, num_workers=0)(truths, forecasts)
    coverage = found["Coverage[0.95]"] - found["Coverage[0.05]"]
    return {"CRPS": found["mean_wQuantileLoss"], "MASE": found["MASE"], "sMAPE": found["sMAPE"], "90%": coverage}


def relative_crps(task: Task, levels: np.ndarray) -> float:
    """The mean over series of the CRPS, in units of that of repeating the last season: it counts each series alike."""
    pasts, ratios = task.pasts, []
    for item in dict.fromkeys(entry["item_id"] for entry in task.train):
        chosen = [i for i, window in enumerate(task.windows) if window["item_id"] == item]
        truth = np.stack([task.windows[i]["target"][-task.length :] for i in chosen])
        naive = np.stack([np.resize(pasts[i]["target"][-task.seasons[0] :], task.length) for i in chosen])
        ours, theirs = (weighted_quantile_loss(part, truth) for part in (levels[chosen].swapaxes(0, 1), naive[None]))
        ratios.append(ours / theirs)
    return float(np.ma.masked_invalid(ratios).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="SET")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--windows", type=int, help="test windows of each series (default: the set's own)")
    arguments, flags = parser.parse_known_args()
    forecasters = {"ours": functools.partial(ours, flags=ddpm.parse_arguments(flags))} | PEERS
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in arguments.names:
        file, *numbers = name.split(":")
        if numbers:
            task = read_csv(arguments.data_dir / file, *map(int, numbers), *[None] * (2 - len(numbers)))
        else:
            task = read(arguments.data_dir / "gluonts" / name, arguments.windows)
        items = list(dict.fromkeys(entry["item_id"] for entry in task.train))
        print(f"{name}: {len(items)} series, {len(task.windows)} windows of {task.length} steps")
        print(f"{'':30}{'CRPS':>9}{'MASE':>9}{'sMAPE':>9}{'90%':>9}{'seconds':>9}{'relative':>10}")
        for label, forecast in forecasters.items():
            start = time.process_time()
            levels = forecast(task)
            seconds, relative = time.process_time() - start, relative_crps(task, levels)
            for item in items if len(items) <= FEW else [None]:
                row = scores(task, levels, item)
                figures = f"{row['CRPS']:9.4f}{row['MASE']:9.3f}{row['sMAPE']:9.2%}{row['90%']:9.1%}"
                print(f"{label:30}{figures}{seconds:9.0f}{relative:10.3f}  {item or ''}", flush=True)


if __name__ == "__main__":
    main()
