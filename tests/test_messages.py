"""What people are told: commands, figures and names of files."""

import shlex
from pathlib import Path

import pytest

import ddpm
from tiny_diffusion.messages import UsageError, command_line, file_name, format_value, reading


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--dataset mnist --sampler ddpm --sampling_steps 30",
        "--dataset pets --channel_multipliers 1 2 --num_timesteps 20 --label 'a b' --guidance 1 --compile",
        "--sampler ddim --seed 3 --experiment_name it --num_samples 10",
    ],
)
def test_the_command_on_a_report_is_the_one_that_was_given(flags):
    config = ddpm.resolve(ddpm.parse_arguments(shlex.split(flags)))
    command = shlex.split(command_line(config.given))
    assert command[:2] == ["python", "ddpm.py"]
    assert ddpm.resolve(ddpm.parse_arguments(command[2:])) == config
    assert len(command) == 2 + len(shlex.split(flags)), "defaults are left out"


@pytest.mark.parametrize(
    "value, text",
    [
        (None, ""),
        (3, "3"),
        (0.123456, "0.1235"),
        ([1, 2.5], "1 2.5"),
        ({"a": 1.0, "b": None, "c": [2, 3]}, "a 1, c 2 3"),
        (True, "True"),
    ],
)
def test_figures_and_settings_are_short(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize("part", ["/elsewhere/a", "../../a", "a b\n", "\udcff", "x" * 500, "日" * 85])
def test_a_file_name_of_any_text_is_plain_and_short(part):
    name = file_name(part, 3)
    assert name.endswith("_3") and Path(name).name == name and name.isprintable()
    assert len(name.encode()) < 200


def test_a_foreign_library_s_error_becomes_one_of_usage_and_one_of_usage_stays():
    told = "a.txt: {error} {}; mend it"
    with pytest.raises(UsageError, match=r"a\.txt: KeyError: 'x' \{\}; mend it"), reading(told):
        {}["x"]
    with pytest.raises(UsageError, match=r"^as it was$"), reading("other"):
        raise UsageError("as it was")
    with pytest.raises(KeyboardInterrupt), reading("other"):
        raise KeyboardInterrupt
