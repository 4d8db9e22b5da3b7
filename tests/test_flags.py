"""The table of flags: which values each takes, typed or out of a checkpoint."""

import argparse

import pytest

import ddpm
from tiny_diffusion.flags import number_in, option, takes


def defaults():
    """Every default of every flag: (flag, value)."""
    for flag, default in ddpm.DEFAULTS.items():
        for value in default.values() if isinstance(default, dict) else [default]:
            if value is not None and value is not False:
                yield flag, value


@pytest.mark.parametrize("flag, value", list(defaults()))
def test_every_default_is_a_value_that_its_flag_takes(flag, value):
    assert takes(ddpm.ROWS[flag], value)


@pytest.mark.parametrize("flag", ddpm.ROWS)
def test_a_flag_takes_what_is_typed_after_it_and_nothing_of_another_kind(flag):
    typed = {"range": ["0", "1.5"], "embedding_size": ["2"], "num_timesteps": ["2"], "compile": []}
    row = ddpm.ROWS[flag]
    words = typed.get(flag, [row["settings"].get("choices", ["1"])[0]])
    (value,) = ddpm.parse_arguments([f"--{flag}", *words]).values()
    assert takes(row, value)
    other = value[0] if type(value) is list else [value]
    for wrong in (None, {}, (1,), b"1", [[1]], float("nan"), other):
        assert not taken(row, wrong), wrong


def taken(row, value):
    """Whether a row takes a value; one that is out of its range may also be an error."""
    try:
        return takes(row, value)
    except (argparse.ArgumentTypeError, ValueError):
        return False


@pytest.mark.parametrize("text", ["0", "10", "nan", "inf", "1.5", "one"])
def test_a_number_outside_its_bounds_is_refused(text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        number_in(int, 1, 9)["type"](text)


def test_a_default_of_a_few_modalities_is_shown_together_and_kept_for_each():
    row = option({"images audio": 3, "series": 4}, "a number")
    assert row["shown"] == {"images/audio": 3, "series": 4}
    assert row["default"] == {"images": 3, "audio": 3, "series": 4}


def test_a_default_that_follows_another_flag_names_one_that_there_is():
    following = {flag: row["follows"][0] for flag, row in ddpm.ROWS.items() if row["follows"]}
    assert {"sampling_steps", "eta", "guidance"} <= set(following) and set(following.values()) <= set(ddpm.ROWS)
