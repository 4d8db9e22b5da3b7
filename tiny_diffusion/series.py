"""Time series, forecast from their own past: how they are cut into windows, scaled and conditioned on."""

import functools
import itertools
import math
import warnings
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from gluonts.time_feature import get_seasonality
from pydantic import Field, model_validator
from torch import Tensor

from tiny_diffusion import forecasts
from tiny_diffusion.arrays import LARGEST
from tiny_diffusion.data import Count, Data, Facts, Number, Positive, Size, Text, in_batches
from tiny_diffusion.files import write
from tiny_diffusion.machine import paired_noise_of
from tiny_diffusion.messages import UsageError
from tiny_diffusion.windows import (
    Group,
    Past,
    Windows,
    calendar,
    calendar_features,
    changes,
    concatenated,
    grows_with_level,
    lags_of,
    lags_of_one,
    last_seen,
    season_of,
    steps_between,
    training_rows,
    typical_scale,
    windows_of,
)

JOINT = 30  # series at most that are learned together unless --form says so: more crowd the encoder's inputs
EPOCH_WINDOWS = 10000  # training windows at most in an epoch
PANEL_CONTEXT = 2  # forecast lengths that are read before a forecast of one series; of several, one
SHORT = 4000  # training windows of a single series: with fewer a small network does better


class SeriesFacts(Facts):
    """How series are learned, and the last windows of their groups, to be forecast from without the data.

    `names` are those of all series, group by group. Of each group: `typical_scales`, those of its dimensions over the
    training data, None where nothing was learned; `categories`, its number first; where its next forecast starts;
    and the values (groups, past_length, dimensions) and covariates (groups, past_length + prediction_length,
    covariates) that this forecast is made from. `covariates` have their mean and standard deviation.
    """

    classes: None = None
    freq: Text
    names: list[Text]
    context_length: Annotated[Size, Field(lt=2**17)]
    difference: Annotated[Count, Field(lt=2**17)]
    lags: list[Size]
    means: list[Size]  # over so many last values
    season: Size
    scaling: Literal["mean", "standard"]
    logarithms: bool  # of the values are learned
    range: tuple[Number, Number] | None = None  # that forecasts are cut to
    typical_scales: list[list[Positive | None]]
    categories: list[list[Count]]
    covariates: dict[Text, tuple[Number, Positive]]
    forecast_starts: list[Text]
    last_pasts: Tensor
    last_covariates: Tensor

    @model_validator(mode="before")
    @classmethod
    def complete(cls, facts: dict) -> dict:
        """Facts as checkpoints had them before they had lags or logarithms, and before they could hold tensors."""
        facts = {"means": [], "logarithms": False} | facts
        if "lags" not in facts:
            lags = lags_of(facts["freq"], facts["shape"][1])
            facts = facts | {"lags": lags, "season": get_seasonality(facts["freq"])}
        if "recent" not in facts:
            return facts
        starts, (length, dimensions) = facts["ends"], facts["shape"]
        rows = max(facts["lags"]) + facts["difference"] + facts["context_length"]
        pasts, covariates = (np.frombuffer(facts[name].encode("latin-1"), np.float32) for name in ("recent", "known"))
        return facts | {
            "typical_scales": facts["typical"],
            "forecast_starts": starts,
            "last_pasts": torch.tensor(pasts.reshape(len(starts), rows, dimensions)),
            "last_covariates": torch.tensor(covariates.reshape(len(starts), rows + length, len(facts["covariates"]))),
        }


class Series(Data):
    """Raw: (time, dimensions), NaN where a value is missing.

    A vector of series that share a calendar is learned jointly, as one group of several dimensions; a panel of many
    series one by one, by the same network, as groups of one dimension.

    Model space: the change over `difference` steps (the value itself where that is 0), minus the location and divided
    by the scale of the window's context, each dimension by itself. A sample is a path (prediction_length, dimensions);
    sample i of a batch continues window i % histories. Forecasts are of `windows`, by default the last ones. `items`
    are groups; `train` and `validated` are rows of `table` where the pasts of windows begin; `test` are the values
    before each of `windows`.
    """

    Facts = SeriesFacts
    modality = "series"
    time_axes = 2

    def __init__(self, facts: SeriesFacts, windows: Windows | None = None, validated=None, **items):
        super().__init__(facts, **items)
        self.prediction_length, dimensions = self.shape
        self.context_length, self.difference, self.freq = facts.context_length, facts.difference, facts.freq
        unknown = [np.nan] * dimensions  # the typical scales of a new series
        self.typical_scales = torch.tensor(np.array([*facts.typical_scales, unknown], np.float32))
        new = [max(column) + 1 for column in zip(*facts.categories)]
        self.categories = torch.tensor(np.array([*facts.categories, new], int))
        self.past_length = max(facts.lags + facts.means) + self.difference + self.context_length
        if windows is None:
            starts = [pd.Period(start, self.freq) for start in facts.forecast_starts]
            pasts, covariates = facts.last_pasts.numpy(), facts.last_covariates.numpy()
            windows = Windows(pasts, starts, np.arange(len(starts)), covariates)
        self.windows, self.validated, self.histories = windows, validated, len(windows.starts)
        self.animated = int(np.clip(40000 // (self.histories * math.prod(self.shape)), 1, 40))
        self.filled = np.stack([last_seen(past) for past in windows.pasts]).astype(float)
        self.anchors = np.stack([self.anchor_of(past) for past in self.learned(self.filled)])
        self.past = self.past_of_windows()

    def continuing(self, windows: Windows) -> "Series":
        """The same series with other windows to forecast from."""
        return Series(self.facts, windows)

    def check(self):
        """Raise ValueError unless all sizes fit together, and what is known are numbers."""
        facts, (length, dimensions) = self.facts, self.shape
        check_years(self.windows.starts, self.past_length, length - 1)
        "".join((facts.freq, *facts.names, *facts.forecast_starts, *facts.covariates)).encode()  # no half characters
        groups, known = len(facts.forecast_starts), self.past_length + length
        fitting = [
            [len(row) for row in facts.typical_scales] == [dimensions] * groups,
            len(facts.names) == groups * dimensions,
            [len(row) for row in facts.categories] == [len(facts.categories[0])] * groups,
            facts.last_pasts.shape == (groups, self.past_length, dimensions),
            facts.last_covariates.shape == (groups, known, len(facts.covariates)),
            not (facts.last_pasts.isinf().any() or facts.last_covariates.isinf().any()),
            not (facts.logarithms and (facts.last_pasts <= 0).any()),
        ]
        if not all(fitting):
            raise ValueError("sizes that do not fit together")

    def recipe(self):
        if len(self.facts.names) > 1 or len(self.train) >= SHORT:
            return {}
        small = {"hidden_size": 32, "embedding_size": 32, "dropout": 0.5, "learning_rate": 1e-3}
        return small | {"steps": int(np.clip(1.5 * len(self.train), 100, 1000))}

    def network_settings(self):
        return {
            "lags": self.facts.lags,
            "means": self.facts.means,
            "difference": self.difference,
            "features": self.past.features.shape[2],
            "categories": (self.categories[-1] + 1).tolist(),
            "linear": len(self.facts.names) == 1,
        }

    def steps_per_epoch(self, batch_size):
        return max(1, min(len(self.train), EPOCH_WINDOWS) // batch_size)

    def read(self, batches, device):
        """Yield (x_0, Past, weight) for windows whose pasts begin at the given rows of `table`."""
        values, filled, known, numbers = (part.to(device) for part in self.table)
        typical, categories = self.typical_scales.to(device), self.categories.to(device)
        steps = torch.arange(self.past_length + self.prediction_length, device=device)
        for index in batches:
            rows = torch.from_numpy(index).to(device)[:, None] + steps
            window = (part.index_select(0, rows.flatten()).unflatten(0, rows.shape) for part in (values, filled, known))
            number = numbers[rows[:, 0]]
            past, x_0 = self.encoded_windows(*window, typical[number], categories[number])
            yield x_0.nan_to_num(0), past, (~x_0.isnan()).float()

    @functools.cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All groups' training rows one below the other, each group after `past_length` rows of nothing.

        Values, NaN where one is missing; the same with the last one seen there; calendar and covariates; group numbers.
        """
        groups = [group for group in self.items if group.train_end]
        first = min((group.start for group in groups), key=lambda start: start.ordinal)
        offsets = [steps_between(first, group.start) for group in groups]
        times = calendar(first, max(offset + group.train_end for offset, group in zip(offsets, groups)), self.freq)
        above, parts = ((self.past_length, 0), (0, 0)), []
        for offset, group in zip(offsets, groups):
            values = self.learned(group.values[: group.train_end])
            values = np.pad(values - self.anchor_of(values), above, constant_values=np.nan).astype(np.float32)
            covariates = self.standardised(group.covariates[: group.train_end])
            known = np.concatenate([times[offset : offset + group.train_end], covariates], 1)
            parts.append((values, last_seen(values), np.pad(known, above), np.full(len(values), group.number)))
        return tuple(torch.from_numpy(np.concatenate(part)) for part in zip(*parts))

    def past_of_windows(self) -> Past:
        """What forecasts from `windows` are conditioned on."""
        pasts, starts, numbers, covariates, _ = self.windows
        typical, categories = self.typical_scales[numbers], self.categories[numbers]
        for window in np.flatnonzero(typical.isnan().any(1)):
            typical[window] = torch.from_numpy(self.scale_of_new(pasts[window]))
        length = self.past_length + self.prediction_length
        times = np.stack([calendar(start - self.past_length, length, self.freq) for start in starts])
        known = np.concatenate([times, self.standardised(covariates)], 2)
        parts = (self.learned(part) - self.anchors[:, None] for part in (pasts, self.filled))
        values, filled = (part.astype(np.float32) for part in parts)
        return self.encoded_windows(*map(torch.from_numpy, (values, filled, known)), typical, categories)[0]

    def learned(self, values: np.ndarray) -> np.ndarray:
        """Values as they are learned: their logarithms, or as they are."""
        return np.log(values) if self.facts.logarithms else values

    def anchor_of(self, values: np.ndarray) -> np.ndarray:
        """What values (time, dimensions) are counted from, so that float32 can hold changes of large ones."""
        if not self.difference or np.isnan(values).all(0).any():
            return np.zeros(values.shape[1])
        return np.nanmedian(values, 0)

    def scale_of_new(self, values: np.ndarray) -> np.ndarray:
        """The typical scale of a series never seen before; of few values, at least what is usual for their level."""
        own = typical_scale(values, self.difference)
        if np.isfinite(values).all(1).sum() > self.difference + self.context_length:
            return own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what is missing altogether
            levels = np.nanmean(self.facts.last_pasts.abs().numpy(), 1)
            usual = np.nanmedian(self.typical_scales[: len(levels)].numpy() / levels, 0)
            return np.fmax(own, usual * np.nanmean(np.abs(values), 0)).astype(np.float32)

    def encoded_windows(self, values, filled, known, typical, categories) -> tuple[Past, Tensor]:
        """What windows are conditioned on, and x_0 of what comes after their past, as far as it is there.

        values and `filled`, without gaps: (windows, past_length and perhaps prediction_length, dimensions); known, the
        calendar and the covariates: (windows, past_length + prediction_length, features).
        """
        change = changes(values, self.difference)[:, self.past_length - self.difference - self.context_length :]
        context, change = change[:, : self.context_length], change[:, self.context_length :]
        location, scale = self.location_and_scale(context, typical)
        missing = values[:, : self.past_length].isnan()
        past = Past(filled, missing, location, scale, self.features(scale, typical, known), categories)
        return past, (change - location[:, None]) / scale[:, None]

    def location_and_scale(self, context: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (windows, dimensions) of a context (windows, time, dimensions), NaN where missing.

        `mean`: 0 and the mean size; `standard`: the mean and the standard deviation. No scale is below half of the
        typical one: a series that has stood still for a while may move again.
        """
        count = (~context.isnan()).sum(1).clamp(min=1)
        location = torch.zeros_like(typical)
        if self.facts.scaling == "standard":
            location = context.nansum(1) / count
            scale = ((context - location[:, None]) ** 2).nansum(1).div(count).sqrt()
        else:
            scale = context.abs().nansum(1) / count
        return location, scale.maximum(typical / 2)

    def features(self, scale: Tensor, typical: Tensor, known: Tensor) -> Tensor:
        """What is known of each step of context and forecast beside the values, (windows, time, features).

        The scale relative to what is typical; calendar and covariates, the last columns of `known`; and how covariates
        have changed over `difference`, as the values that are learned.
        """
        length = self.context_length + self.prediction_length
        relative = (scale / typical).log().mean(1)[:, None, None].expand(-1, length, 1)
        covariates = known[:, :, known.shape[2] - len(self.facts.covariates) :]
        changed = changes(covariates, self.difference)[:, -length:]
        return torch.cat([relative, known[:, -length:], *([changed] if self.difference else [])], 2)

    def standardised(self, covariates: np.ndarray) -> np.ndarray:
        """Covariates (..., covariates) by their mean and standard deviation over the training data, 0 where missing."""
        mean, std = np.array(list(self.facts.covariates.values()), np.float32).reshape(-1, 2).T
        return np.nan_to_num((covariates - mean) / std)

    def check_covariates(self) -> None:
        """Raise UsageError where a covariate is not known to the end of a forecast."""
        unknown = np.argwhere(np.isnan(self.windows.covariates[:, self.past_length :]))
        if len(unknown):
            window, step, column = unknown[0]
            name, time = list(self.facts.covariates)[column], self.windows.starts[window] + int(step)
            raise UsageError(f"--covariates {name}: not known for {time}; a forecast needs it to its last step")

    def validation(self, batch_size, number, device):
        return self.read(in_batches(self.validated, batch_size, number), device) if len(self.validated) else None

    def held_out(self, batch_size, number, device):
        """Yield (x_0, None, None) of the true values of the windows, in turn."""
        known = self.learned(np.concatenate([self.windows.pasts, self.windows.truth], 1))
        change = torch.from_numpy(changes(known, self.difference)[:, -self.prediction_length :]).float()
        x_0 = ((change - self.past.location[:, None]) / self.past.scale[:, None]).nan_to_num(0)
        for first in range(0, number, batch_size):
            yield x_0[torch.arange(first, min(number, first + batch_size)) % len(x_0)].to(device), None, None

    def condition(self, samples, label, device):
        """What the forecaster samples with: the past of all windows, and which window each sample continues."""
        self.check_covariates()
        past = Past(*(part.to(device) for part in self.past))
        return past, torch.tensor(samples, device=device) % self.histories

    def noise_of(self, seed, samples, device):
        return paired_noise_of(seed, samples, device, self.histories)

    def decode(self, x):
        """Paths in the units of the data, (n, prediction_length, dimensions)."""
        window = torch.arange(len(x)) % self.histories
        steps = (x.cpu() * self.past.scale[window][:, None] + self.past.location[window][:, None]).double().numpy()
        if self.difference:
            past = self.learned(self.filled[:, -self.difference :])
            for t in range(self.prediction_length):
                earlier = t - self.difference  # below 0: before the forecast
                steps[:, t] += steps[:, earlier] if earlier >= 0 else past[window, earlier]
        steps = np.exp(steps.clip(max=np.log(LARGEST))) if self.facts.logarithms else steps
        return steps.clip(*self.facts.range) if self.facts.range else steps

    def by_window(self, x) -> np.ndarray:
        """`decode`, as (paths, windows, prediction_length, dimensions)."""
        return self.decode(x).reshape(-1, self.histories, *self.shape)

    def render(self, x):
        return next(self.film([x]))

    def overview(self):
        """The whole series, the windows to be forecast and scored shaded."""
        return forecasts.overview(self)

    def film(self, batches):
        return forecasts.film(self, map(self.by_window, batches))

    def save(self, x, folder, label=None):
        """samples.npy, (paths, windows, prediction_length, dimensions), their quantiles and the picture of them."""
        paths = self.by_window(x)
        table = forecasts.table(self, paths).to_csv(index=False, float_format="%.10g")
        figure = forecasts.picture(self, paths)
        write(folder / "samples.npy", lambda file: np.save(file, paths))
        write(folder / "forecast.csv", lambda file: file.write(table.encode()))
        write(folder / "forecast.png", functools.partial(figure.savefig, dpi=110))

    def score(self, x, device="cpu", thorough=False):
        """Scores on the test windows, beside those of two forecasts that learn nothing."""
        return forecasts.scores(self, self.by_window(x))

    def number_of(self, name) -> int:
        """The number of the group that is called `name`, or of a new one."""
        names = self.facts.names[:: self.shape[1]]
        if len(self.facts.categories[0]) == 0:
            return 0  # a vector
        return names.index(str(name)) if str(name) in names else len(names)

    def name_of(self, window: int, dimension: int) -> str:
        """The name of one of the series forecast."""
        place = self.windows.numbers[window] * self.shape[1] + dimension
        return self.facts.names[place] if place < len(self.facts.names) else "new"


def from_series(name: str, series: list[list[Group]], names, covariates, categories, length: int, config) -> Series:
    """A data set out of the groups of each single series: a few that share a calendar become a vector, others a panel.

    `covariates` are names, `categories` those of each series. Raises UsageError.
    """
    calendars = {tuple((g.start, len(g.values), g.train_end, *g.begins) for g in groups) for groups in series}
    form = config.form or ("vector" if len(calendars) == 1 and len(series) <= JOINT else "panel")
    if form == "vector":
        if len(calendars) > 1:
            raise UsageError(f"--form vector: the series of {name} do not begin and end together; leave it out")
        groups = [
            parts[0]._replace(values=np.concatenate([part.values for part in parts], 1)) for parts in zip(*series)
        ]
        return from_groups(name, groups, names, covariates, [[]], length, config)
    print(f"{len(series)} series, learned one by one")
    columns = [column for column in zip(*categories) if 1 < len(set(column)) < len(series)]
    columns = [np.unique(column, return_inverse=True)[1].tolist() for column in columns]  # any numbers become 0, 1 ...
    categories = [list(row) for row in zip(range(len(series)), *columns)]
    return from_groups(name, [*itertools.chain(*series)], names, covariates, categories, length, config)


def from_groups(name: str, groups: list[Group], names, covariates, categories, length: int, config) -> Series:
    """A data set out of its groups, in the order of their numbers. Raises UsageError."""
    freq, dimensions = groups[0].start.freqstr, groups[0].values.shape[1]
    check_frequency(freq)
    longest = max(group.train_end for group in groups)
    context_length = config.context_length or (PANEL_CONTEXT if dimensions == 1 else 1) * length
    if config.context_length and context_length > longest:
        raise UsageError(f"--context_length {context_length}: {name} has only {longest} steps; make it smaller")
    learned, single = [group for group in groups if group.train_end], len(names) == 1
    season = config.season or season_of(learned, freq)
    print(f"{name}: a season of {season} steps" if season > 1 else f"{name}: no season")
    lags, means = lags_of_one(freq, season, longest) if single else (lags_of(freq, dimensions), [])
    difference = config.difference
    if difference is None:  # of one series, whose seasons are among the lags of a linear forecast, over a step
        difference = 1 if single else default_difference(get_seasonality(freq), longest - context_length - length)
    if logarithms := single and grows_with_level(groups, season):
        print(f"{name}: changes grow with the level; learned are logarithms")
    past_length = max(lags + means) + difference + context_length
    train, validated = training_rows(learned, difference, past_length, context_length, length)
    scored = [group for group in groups if group.begins]
    check_years([time for g in groups for time in (g.start, g.start + len(g.values))], past_length, length - 1)
    if not len(train):
        few = f"too few for a forecast and a context of {context_length}, after --difference {difference}"
        remedy = f"{name} has {longest} steps to learn from, {few}; make them smaller"
        raise UsageError(f"--prediction_length {length}: {remedy}")
    if not scored:
        remedy = f"no series of {name} is long enough to be scored; make it smaller"
        raise UsageError(f"--prediction_length {length}: {remedy}")
    facts = {"name": name, "shape": [length, dimensions], "freq": freq, "names": names, "categories": categories}
    facts |= {"context_length": context_length, "difference": difference, "scaling": config.scaling}
    facts |= {"lags": lags, "means": means, "season": season, "range": config.range, "logarithms": logarithms}
    facts |= training_facts(learned, difference, covariates, categories, logarithms)
    facts |= last_windows(groups, past_length, length)
    windows = concatenated([windows_of(group, past_length, length) for group in scored])
    items = {"items": groups, "train": train, "test": [g.values[:begin] for g in scored for begin in g.begins]}
    data = Series(SeriesFacts(**facts), windows, validated, **items)
    data.check_covariates()
    return data


def check_frequency(freq: str) -> None:
    """Raise UsageError for a frequency that GluonTS does not know."""
    try:
        calendar_features(freq)
    except ValueError as error:
        raise UsageError(f"--freq {freq}: no such time between rows; choose one of h, 30min, D, B, W, M") from error


def check_years(starts: list[pd.Period], before: int, after: int) -> None:
    """Raise UsageError where `before` steps ahead of `starts`, or `after` steps on, the years are not 1 to 9999."""
    ordered = sorted(starts, key=lambda start: start.ordinal)
    for period in (ordered[0] - before, ordered[-1] + after):
        if not 1 <= period.year <= 9999:
            raise UsageError(f"--data_dir: what is read and forecast reaches {period}; years are 1 to 9999, mend them")


def default_difference(season: int, steps: int) -> int:
    """A season, where it is longer than a week and the `steps` to learn from hold two of them, else 1."""
    return season if season > 7 and steps >= 2 * season else 1


def training_facts(groups: list[Group], difference: int, covariates: list[str], categories, logarithms: bool) -> dict:
    """What is kept of the rows that are learned from: typical scales, and mean and deviation of each covariate."""
    typical = [[None] * groups[0].values.shape[1] for _ in categories]
    for group in groups:
        values = group.values[: group.train_end]
        typical[group.number] = typical_scale(np.log(values) if logarithms else values, difference).tolist()
    seen = np.concatenate([group.covariates[: group.train_end] for group in groups]).astype(float)
    moments = zip(np.nanmean(seen, 0).tolist(), np.fmax(np.nanstd(seen, 0), 1e-6).tolist())
    return {"typical_scales": typical, "covariates": dict(zip(covariates, moments))}


def last_windows(groups: list[Group], past_length: int, length: int) -> dict:
    """What is kept to forecast from without the data: of each number's last group, the window after its end."""
    last = {group.number: group._replace(begins=[len(group.values)]) for group in groups}
    windows = concatenated([windows_of(group, past_length, length) for group in last.values()])
    tensors = {"last_pasts": torch.tensor(windows.pasts), "last_covariates": torch.tensor(windows.covariates)}
    return {"forecast_starts": [str(start) for start in windows.starts]} | tensors
