"""Windows of time series: where they begin, and what is counted in steps."""

import numpy as np
import pandas as pd
import pytest
from helpers import HOURS, LENGTH, load

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
