"""Forecasts: their scores, beside those of naive ones, their table and picture, and a GluonTS predictor.

`data` is a `series.Series`, whose `windows` are forecast; paths are (paths, windows, prediction_length, dimensions).
"""

import itertools
import warnings

import numpy as np
import pandas as pd
from gluonts.model.forecast import SampleForecast
from gluonts.model.predictor import Predictor
from gluonts.time_feature import get_seasonality
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure

from tiny_diffusion.data import pixels_of
from tiny_diffusion.frequencies import moments, stamp
from tiny_diffusion.windows import Group, Windows, concatenated, target_and_covariates, windows_of

QUANTILES = np.arange(1, 20) / 20  # of the quantiles that the mean weighted quantile loss is the mean over
PANELS = 8  # forecasts at most in a picture


def quantiles(paths: np.ndarray) -> np.ndarray:
    """The quantiles at QUANTILES of paths (n, ...), as GluonTS takes them: the nearest path, (levels, ...)."""
    nearest = np.round((len(paths) - 1) * QUANTILES).astype(int)
    return np.partition(paths, np.unique(nearest), axis=0)[nearest]


def weighted_quantile_loss(levels: np.ndarray, truth: np.ndarray) -> float:
    """The CRPS as Rasul et al. (2021) report it: the mean over QUANTILES of 2 sum |y - q| |[y <= q] - p| / sum |y|."""
    level = QUANTILES.reshape(-1, *[1] * truth.ndim)
    loss = np.abs((truth - levels) * ((truth <= levels) - level))
    return float(2 * np.nansum(loss) / len(QUANTILES) / np.nansum(np.abs(truth)))


def scores(data, paths: np.ndarray) -> dict:
    """Scores of paths on the test windows, beside those of two forecasts that learn nothing."""
    ours = {"paths": len(paths), "windows": data.histories} | evaluate(data, paths)
    naive = {"seasonal_naive": last_season(data), "random_walk": random_walk(data, len(paths))}
    return ours | {name: evaluate(data, forecast) for name, forecast in naive.items()}


def evaluate(data, paths: np.ndarray) -> dict:
    """Scores of paths as GluonTS's evaluator defines them."""
    truth, levels = data.windows.truth, quantiles(paths)
    found = {"crps": weighted_quantile_loss(levels, truth)}
    if data.shape[1] > 1:
        found["crps_sum"] = weighted_quantile_loss(quantiles(paths.sum(-1)), truth.sum(-1))
    error = np.abs(truth - levels[len(QUANTILES) // 2])
    found["mase"] = mean_scaled_error(error, data.test, get_seasonality(data.freq))
    found["nd"] = float(np.nansum(error) / np.nansum(np.abs(truth)))
    for share, low, high in ((50, 4, 14), (90, 0, 18)):
        inside = (levels[low] < truth) & (truth <= levels[high])
        found[f"coverage_{share}"] = float(inside[~np.isnan(truth)].mean())
    return found


def mean_scaled_error(error: np.ndarray, pasts: list[np.ndarray], season: int) -> float:
    """Mean absolute error in units of that of the seasonal-naive forecast on the past of each window (MASE)."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is constant or missing
        naive = [mean_change(past, season if season < len(past) else 1) for past in pasts]
        relative = np.nanmean(error, 1) / np.stack(naive)
    return float(np.ma.masked_invalid(relative).mean())


def mean_change(values: np.ndarray, lag: int) -> np.ndarray:
    """Mean absolute change of values (time, dimensions) over `lag` steps."""
    return np.nanmean(np.abs(values[lag:] - values[:-lag]), 0)


def last_season(data) -> np.ndarray:
    """The seasonal-naive forecast: the last season over and over."""
    season = data.filled[:, -data.facts.season :]
    return season[None][:, :, np.arange(data.prediction_length) % season.shape[1]]


def random_walk(data, number: int) -> np.ndarray:
    """`number` paths whose changes over `difference` steps, or 1, are drawn from those of each window's own past."""
    generator, paths = np.random.default_rng(0), []
    for known, past in zip(data.test, data.filled):
        difference = data.difference if 0 < 2 * data.difference <= len(known) else 1
        moves = np.nan_to_num(known[difference:] - known[:-difference])
        moves = moves if len(moves) else np.zeros((1, data.shape[1]))  # of a single value nothing is known
        seasons = -(-data.prediction_length // difference)
        first = generator.integers(len(moves) - difference + 1, size=(number, seasons, 1))
        drawn = moves[first + np.arange(difference)].cumsum(1) + past[-difference:]
        paths.append(drawn.reshape(number, -1, data.shape[1])[:, : data.prediction_length])
    return np.stack(paths, 1)


def table(data, paths: np.ndarray) -> pd.DataFrame:
    """forecast.csv: mean and quantiles of paths, a row for each time and series."""
    rows = list(itertools.product(range(data.histories), range(data.shape[1]), range(data.prediction_length)))
    columns = {"time": [stamp(data.windows.starts[window] + step) for window, _, step in rows]}
    columns |= {"series": [data.name_of(window, i) for window, i, _ in rows], "mean": in_rows(paths.mean(0))}
    columns |= {f"{level:.2f}": in_rows(quantile) for level, quantile in zip(QUANTILES, quantiles(paths))}
    return pd.DataFrame(columns)


def in_rows(values: np.ndarray) -> np.ndarray:
    """(windows, prediction_length, dimensions) as one column, window by window and series by series."""
    return values.swapaxes(1, 2).ravel()


def picture(data, paths: np.ndarray) -> Figure:
    """A few forecasts, their median and the intervals of 50% and 90%, with their past and, where it is known, truth."""
    figure, axes_of = panels(data, PANELS)
    for (window, i), (axes, times) in axes_of.items():
        values = paths[:, window, :, i]
        for inside, alpha in ((0.9, 0.2), (0.5, 0.4)):
            low, high = np.quantile(values, [0.5 - inside / 2, 0.5 + inside / 2], axis=0)
            axes.fill_between(times, low, high, color="tab:blue", alpha=alpha, linewidth=0, label=f"{inside:.0%}")
        axes.plot(times, np.median(values, 0), color="tab:blue", linewidth=1, label="median")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def overview(data) -> np.ndarray:
    """A picture of the first series, whole, the windows of which forecasts are scored shaded."""
    shown = [(group, i) for group in data.items for i in range(data.shape[1])][:PANELS]
    figure = Figure(figsize=(10, 0.8 + 1.3 * len(shown)), dpi=80, layout="constrained")
    for number, (group, i) in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, number + 1)
        name = data.facts.names[group.number * data.shape[1] + i]
        axes.set_title(name, fontsize=9, loc="left", parse_math=False)
        times = moments(group.start, len(group.values))
        axes.plot(times, group.values[:, i], color="0.3", linewidth=0.7)
        for begin in group.begins:
            last = min(begin + data.prediction_length, len(times)) - 1
            axes.axvspan(times[begin], times[last], color="tab:orange", alpha=0.3, linewidth=0)
        axes.tick_params(labelsize=7)
    return pixels_of(figure)


def film(data, batches):
    """Yield a picture, (height, width, 3) uint8, of each batch of paths; all but the paths is drawn once."""
    figure, axes_of = panels(data, PANELS // 2)
    style = {"colors": "tab:blue", "linewidths": 0.5, "alpha": 0.5, "animated": True}
    lines = [axes.add_collection(LineCollection([], **style), autolim=False) for axes, _ in axes_of.values()]
    figure.legend(*axes_of[0, 0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    for paths in batches:
        canvas.restore_region(background)
        for ((window, i), (axes, times)), line in zip(axes_of.items(), lines):
            values = paths[:, window, :, i]
            x = np.broadcast_to(date2num(times), values.shape)
            line.set_segments(np.stack([x, values], 2))
            axes.draw_artist(line)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def panels(data, most: int) -> tuple[Figure, dict]:
    """A figure of at most that many forecasts without the forecasts; axes and times of each (window, dimension)."""
    dimensions = min(data.shape[1], most)
    spread = np.unique(np.linspace(0, data.histories - 1, most // dimensions).astype(int)).tolist()
    shown = [(window, i) for i in range(dimensions) for window in spread]
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 0.8 + 1.7 * rows), dpi=80, layout="constrained")
    axes_of = {}
    for number, (window, i) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(data.name_of(window, i), fontsize=9, loc="left", parse_math=False)
        axes_of[window, i] = axes, draw_known(axes, data, window, i)
    return figure, axes_of


def draw_known(axes, data, window: int, i: int) -> np.ndarray:
    """Draw the past of dimension `i` of one window and, where it is known, the truth; returns the forecast's times."""
    start, truth = data.windows.starts[window], data.windows.truth
    history = data.windows.pasts[window, -3 * data.prediction_length :, i]
    times = moments(start - len(history), len(history) + data.prediction_length)
    before, after = np.split(times, [len(history)])
    axes.plot(before, history, color="0.3", linewidth=1, label="past")
    shown = history
    if truth is not None:
        axes.plot(after, truth[window, :, i], color="black", linewidth=1, label="truth")
        shown = np.append(history, truth[window, :, i])
    middle, reach = np.nanmean(shown), 1.2 * (np.nanmax(shown) - np.nanmin(shown))
    if reach > 0:
        axes.set_ylim(middle - reach, middle + reach)
    axes.set_xlim(times[0], times[-1])
    axes.xaxis.set_major_formatter(ConciseDateFormatter(AutoDateLocator()))
    axes.tick_params(labelsize=7)
    return after


class Forecaster(Predictor):
    """A GluonTS Predictor; `sample(series, number)` draws that many paths of each of the series' windows.

    It takes entries whose target has `data`'s dimensions, (dimensions, time) or, for a single one, (time,), and with
    covariates `feat_dynamic_real` to the end of the forecast. Of many series `item_id` names one; others are new to it.
    """

    def __init__(self, data, sample):
        super().__init__(data.prediction_length)
        self.data, self.sample = data, sample

    def predict(self, dataset, num_samples: int = 100):
        """Yield a SampleForecast of `num_samples` paths for each entry. Raises ValueError for one that does not fit."""
        if num_samples < 1:
            raise ValueError(f"num_samples: {num_samples} is not 1 or more")
        if not (entries := list(dataset)):
            return
        windows = concatenated([self.window(entry) for entry in entries])._replace(truth=None)
        series = self.data.continuing(windows)
        paths = series.by_window(self.sample(series, num_samples))
        paths = paths[..., 0] if series.shape[1] == 1 else paths
        for i, entry in enumerate(entries):
            yield SampleForecast(paths[:, i], windows.starts[i], entry.get("item_id"))

    def window(self, entry: dict) -> Windows:
        """The one window that forecasts what comes after an entry."""
        data, (values, covariates) = self.data, target_and_covariates(entry)
        if not np.isfinite(values).any(0).all():
            raise ValueError("target: no value to forecast from")
        if data.facts.logarithms and np.nanmin(values) <= 0:
            raise ValueError("target: a value that is not above 0; the model has learned logarithms")
        if not isinstance(start := entry.get("start"), pd.Period):
            raise ValueError(f"start: a pandas Period of {data.freq}, not {start}")
        expected, given = (data.shape[1], data.freq), (values.shape[1], start.freqstr)
        if given != expected:
            raise ValueError("made for {} dimensions every {}, not {} every {}".format(*expected, *given))
        if covariates.shape[1] != len(data.facts.covariates):
            raise ValueError(f"feat_dynamic_real: made for {len(data.facts.covariates)}, not {covariates.shape[1]}")
        group = Group(data.number_of(entry.get("item_id")), start, values, covariates, 0, [len(values)])
        return windows_of(group, data.past_length, data.prediction_length)
