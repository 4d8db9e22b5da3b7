"""Windows of time series: where they begin, and what is counted in steps."""

import numpy as np
import pandas as pd
import pytest
from helpers import HOURS, LENGTH, load

from tiny_diffusion import windows
from tiny_diffusion.windows import steps_between


@pytest.mark.parametrize("form", ["vector", "panel"])
@pytest.mark.parametrize("prediction_length", [3, LENGTH, 4 * LENGTH])
def test_no_training_window_overlaps_a_test_window(gluonts_folder, form, prediction_length):
    """Whatever the flags; nor does one overlap what is forecast for validation."""
    flags = {"form": form, "prediction_length": prediction_length, "difference": 1, "context_length": 5}
    data = load("series", gluonts_folder, **flags)
    first = HOURS - 2 * LENGTH - prediction_length  # of the first test window
    assert {group.train_end for group in data.items if group.train_end} == {min(first, HOURS - 3 * LENGTH)}
    every = np.full((1, len(data.table[0])), -1)
    for begin in data.train:
        every[0, begin + data.past_length :][:prediction_length] = begin
    assert len(data.validated) and all(
        (every[0, v + data.past_length :][:prediction_length] < 0).all() for v in data.validated
    )
    rows_of_a_group = data.past_length + data.items[0].train_end
    ends = (data.train % rows_of_a_group) + data.past_length + prediction_length
    assert ends.max() == rows_of_a_group


def test_periods_of_several_units_are_counted_in_steps():
    first = pd.Period("2024-01-01", "30min")
    assert steps_between(first, first + 7) == 7
    assert steps_between(pd.Period("2024-01-01", "W"), pd.Period("2024-01-01", "W") + 3) == 3


def series_of(values, freq="D"):
    start = pd.Period("2020-01-01", freq)
    return [windows.Group(0, start, np.asarray(values, float)[:, None], np.empty((len(values), 0)), len(values), [])]


def test_a_season_is_found_where_changes_repeat_and_none_in_noise_and_walks():
    generator, time = np.random.default_rng(0), np.arange(600)
    weekly = np.where(time % 7 < 5, 100, 20) + generator.normal(size=600)
    monthly = 100 * 1.01 ** time[:150] * (1 + 0.3 * np.sin(time[:150] * np.pi / 6)) + generator.normal(size=150)
    assert windows.season_of(series_of(weekly), "D") == 7
    assert windows.season_of(series_of(np.where(time % 50 == 3, np.nan, weekly)), "D") == 7
    assert windows.season_of(series_of(monthly), "M") == 12
    both = np.resize(generator.normal(size=168), 600) + np.sin(time * np.pi / 12)
    assert windows.season_of(series_of(both, "h"), "h") == 168
    for noise in (generator.normal(size=600), generator.normal(size=600).cumsum(), 3.0 * time, np.ones(600)):
        assert windows.season_of(series_of(noise), "D") == windows.season_of(series_of(noise[:10]), "M") == 1


def test_a_single_series_looks_back_around_its_season_within_half_of_its_rows():
    assert windows.lags_of_one("M", 12, 200) == ([1, 2, 3, 4, 5, 6, 11, 12, 13, 24, 25, 36, 48], [6, 12, 24, 48])
    assert windows.lags_of_one("M", 12, 48) == ([1, 2, 3, 4, 5, 6, 11, 12, 13], [6])
    assert windows.lags_of_one("Y", 1, 5) == ([1, 2], [])


@pytest.mark.parametrize("grows", [False, True])
def test_changes_that_grow_with_the_level_are_told_from_those_that_do_not(grows):
    time, noise = np.arange(150), np.random.default_rng(0).normal(size=150)
    values = 20 * 1.01**time * (1 + 0.05 * noise) if grows else 20 + 0.5 * time + noise
    assert windows.grows_with_level(series_of(values, "M"), 12) == grows
    values[10] = np.nan
    assert windows.grows_with_level(series_of(values, "M"), 12) == grows
    values[20] = 0
    assert not windows.grows_with_level(series_of(values, "M"), 12)
