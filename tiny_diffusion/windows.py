"""How time series are cut into windows: where their pasts and forecasts lie, and what is known of each."""

import itertools
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from gluonts.time_feature import (
    day_of_month,
    day_of_year,
    get_seasonality,
    time_features_from_frequency_str,
    week_of_year,
)
from torch import Tensor

from tiny_diffusion.arrays import LARGEST

LAGS = {"D": [1, 7, 14, 28, 364], "W": [1, 2, 4, 13, 26, 52]}  # in steps, where a season is no day
LAGS |= {"M": [1, 2, 3, 12, 24, 36], "Q": [1, 2, 4, 8, 12], "Y": [1, 2, 3]}
MEANS = (6, 12, 24, 48, 96)  # over so many last values
SEASONS = {"D": [7], "B": [5], "W": [52], "M": [12], "Q": [4], "h": [24, 168], "30min": [48, 336]}  # to look for

# GluonTS counts business days by periods and names years "Y"; pandas 2 warns of both at every turn
for message in ("Period.*B.*deprecated", "'.*' is deprecated"):
    warnings.filterwarnings("ignore", message, FutureWarning)


class Group(NamedTuple):
    """Series that are forecast together: all of a data set, or one of many. `number` counts the latter.

    Rows before `train_end` are learned from; forecasts to be scored begin at the rows `begins`, none before it.
    """

    number: int
    start: pd.Period
    values: np.ndarray  # (time, dimensions), NaN where missing
    covariates: np.ndarray  # (time and perhaps more, covariates)
    train_end: int
    begins: list[int]


class Windows(NamedTuple):
    """Where forecasts begin. `numbers` are those of the groups: as many as there are for a series never seen before."""

    pasts: np.ndarray  # (windows, past_length, dimensions), NaN where a value is missing
    starts: list[pd.Period]  # of the forecasts
    numbers: np.ndarray
    covariates: np.ndarray  # (windows, past_length + prediction_length, covariates)
    truth: np.ndarray | None = None  # (windows, prediction_length, dimensions)


class Past(NamedTuple):
    """What a forecast is conditioned on, as `models.RNN` describes it."""

    values: Tensor
    missing: Tensor
    location: Tensor
    scale: Tensor
    features: Tensor
    categories: Tensor


def changes(values, difference: int):
    """values_t - values_(t - difference) of (windows, time, dimensions), shorter by the difference; or the values."""
    return values[:, difference:] - values[:, :-difference] if difference else values


def last_seen(values: np.ndarray) -> np.ndarray:
    """(time, dimensions) with the value before it wherever one is missing."""
    return pd.DataFrame(values).ffill().to_numpy()


def steps_between(first: pd.Period, last: pd.Period) -> int:
    """How many periods after `first` is `last`."""
    return (last.ordinal - first.ordinal) // first.freq.n


def calendar_features(freq: str) -> list:
    """GluonTS's features of the calendar; none for steps shorter than a second, which it does not know."""
    return [] if freq.endswith(("ms", "us", "ns")) else time_features_from_frequency_str(freq)


def calendar(start: pd.Period, length: int, freq: str) -> np.ndarray:
    """GluonTS's features of the time of day, the weekday and the month from `start` on, (length, features) float32.

    Those of the date are left out: with a few years to learn from, they teach single days by heart.
    """
    index = pd.period_range(start, periods=length)
    kept = [f for f in calendar_features(freq) if f not in (day_of_month, day_of_year, week_of_year)]
    return np.array([feature(index) for feature in kept], np.float32).reshape(len(kept), length).T


def season_of(groups: list[Group], freq: str) -> int:
    """The season in steps, 1 for none: of the calendar's candidates the one at which changes repeat most.

    That is the autocorrelation of changes over a quarter of the season, the mean over series, where it is above 0.3 and
    beyond what chance makes of so few (Bartlett's limit, 5%).
    """
    found = {1: 0.0}
    for season in SEASONS.get(freq.split("-")[0], []):
        series = [values for group in groups[:: 1 + len(groups) // 100] for values in group.values[: group.train_end].T]
        moves = [changes(last_seen(values[:, None])[None], max(1, season // 4))[0, :, 0] for values in series]
        moves = [part[np.isfinite(part)] for part in moves]
        repeats = [repetition(part, season) for part in moves if len(part) >= 2 * season and np.ptp(part) > 0]
        if repeats and np.mean([at_season - limit for at_season, limit in repeats]) > 0:
            found[season] = np.mean([at_season for at_season, _ in repeats])
    return max(found, key=found.get)


def repetition(moves: np.ndarray, season: int) -> tuple[float, float]:
    """The autocorrelation of moves (time,) at a season, and the least that counts as one."""
    power = np.abs(np.fft.rfft(moves - moves.mean(), 2 * len(moves))) ** 2
    correlation = np.fft.irfft(power)[: season + 1]
    correlation /= correlation[0]
    chance = 1.645 * np.sqrt((1 + 2 * (correlation[1:season] ** 2).sum()) / len(moves))
    return correlation[season], max(0.3, chance)


def grows_with_level(groups: list[Group], season: int) -> bool:
    """Whether the changes of one positive series, over a season, grow with its level.

    By the profile likelihood of a seasonal random walk with drift (Box & Cox 1964): logarithms then change alike.
    """
    if not all(np.nanmin(group.values) > 0 for group in groups):
        return False
    values = np.concatenate([group.values[: group.train_end] for group in groups])
    sizes = [np.nanvar(changes(part[None], season)) for part in (values, np.log(values))]
    return bool(sizes[1] * np.exp(2 * np.nanmean(np.log(values))) < sizes[0])


def lags_of(freq: str, dimensions: int) -> list[int]:
    """How far back the RNN looks, in steps: one, a day and a week; for one dimension all days of it, and two weeks."""
    season, unit = get_seasonality(freq), freq.split("-")[0]
    days = [1, 2, 3, 4, 5, 6, 7, 14] if dimensions == 1 else [1, 7]
    return LAGS.get(unit) or [1, *(season * day for day in days if season > 1)]


def lags_of_one(freq: str, season: int, rows: int) -> tuple[list[int], list[int]]:
    """Those of a single series, of up to five seasons within half of its rows; and over how many steps it takes means.

    The longest mean is a lag as well: beside it, that tells of a trend.
    """
    means = [steps for steps in MEANS if 4 * steps < rows]
    lags = {*lags_of(freq, 1), *range(1, 13 if freq.startswith("Y") else 7), *means[-1:]}
    if season > 1:
        lags |= {season - 1, season, season + 1, 2 * season, 2 * season + 1}
        lags |= {number * season for number in (3, 4, 5) if 4 * number * season < rows}
    return [lag for lag in sorted(lags) if lag == 1 or 2 * lag < rows], means


def typical_scale(values: np.ndarray, difference: int) -> np.ndarray:
    """Root mean square of each dimension's changes, and a little above zero for what never changes."""
    squares = np.ma.masked_invalid(changes(values[None], difference)[0].astype(float) ** 2)
    largest = np.ma.masked_invalid(np.abs(values)).max(0).filled(0)
    return np.fmax(np.ma.filled(squares.mean(0), 0) ** 0.5, 1e-6 * np.where(largest > 0, largest, 1))


def windows_of(group: Group, past_length: int, prediction_length: int) -> Windows:
    """The windows of one group, with the truth as far as there is one."""
    length = past_length + prediction_length
    values = np.pad(group.values, ((past_length, 0), (0, 0)), constant_values=np.nan)
    covariates = np.pad(group.covariates, ((past_length, length), (0, 0)), constant_values=np.nan)
    return Windows(
        np.stack([values[begin:][:past_length] for begin in group.begins]),
        [group.start + begin for begin in group.begins],
        np.full(len(group.begins), group.number),
        np.stack([covariates[begin:][:length] for begin in group.begins]),
        np.stack([values[past_length + begin :][:prediction_length] for begin in group.begins]),
    )


def concatenated(windows: list[Windows]) -> Windows:
    """All of them as one."""
    pasts, starts, numbers, covariates, truth = zip(*windows)
    pasts, numbers, covariates, truth = map(np.concatenate, (pasts, numbers, covariates, truth))
    return Windows(pasts, [*itertools.chain(*starts)], numbers, covariates, truth)


def training_rows(groups: list[Group], difference: int, past_length: int, context_length: int, length: int) -> tuple:
    """Where in `Series.table` the pasts of windows begin: of those to train on, and of those to validate with.

    A context begins with a known change, or where the series does; of a single series, which has few, half of it may
    lie before. Of 20 forecasts one is validated; none that is trained on overlaps it. Short series have none.
    """
    train, validated, above = [np.empty(0, int)], [np.empty(0, int)], context_length
    for group in groups:
        last = group.train_end - context_length - length  # begins the last context; before 0, it is not whole
        if group.train_end > difference + length:
            before = context_length // 2 if len(groups) == group.values.shape[1] == 1 else 0
            begins = np.arange(min(difference - before, last), last + 1)
            kept = begins[10 * length :: 20 * length]
            free = np.abs(begins[:, None] - kept).min(1, initial=length) >= length
            train.append(above + begins[free])
            validated.append(above + kept)
        above += past_length + group.train_end
    return np.concatenate(train), np.concatenate(validated)


def target_and_covariates(entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """Of a GluonTS entry, (time, dimensions) and (time and perhaps more, covariates). Raises ValueError."""
    values = np.atleast_2d(np.asarray(entry["target"], float)).T
    known = entry.get("feat_dynamic_real")
    covariates = np.empty((len(values), 0)) if known is None else np.atleast_2d(np.asarray(known, float)).T
    if any((np.abs(part) > LARGEST).any() for part in (values, covariates)):
        raise ValueError(f"a value larger than {LARGEST:g}")
    return values, covariates.astype(np.float32)
