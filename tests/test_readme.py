"""What README.md tells people to type."""

import re
import shlex

import pytest
from conftest import ROOT

import datasets
import ddpm

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = sorted({re.split(r"\s{2,}", line)[0] for line in re.findall(r"python (ddpm\.py[^`\n|]*)", README)})
COMMANDS = [command for command in COMMANDS if not re.search(r"\.\.\.|…|--dataset$|-h$", command)]
NEED_NOTHING = {"circle", "dino", "line", "moons", "digits"}
SMALL = ["--epochs", "1", "--num_samples", "10", "--num_timesteps", "10", "--overwrite"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_flags_that_exist_and_runs_where_it_needs_no_download(command, ddpm_command):
    _, *arguments = shlex.split(command)
    given = ddpm.parse_arguments(arguments)
    if {"sample", "evaluate"} & set(given):
        assert ddpm.find_checkpoint(given["sample"]).exists() or given["sample"].startswith("exps/")
        return
    config = ddpm.resolve(given)
    assert config.dataset in datasets.DATASETS or config.dataset.startswith("gluonts:")
    if config.dataset in NEED_NOTHING:
        result = ddpm_command(*arguments, *SMALL)
        assert result.returncode == 0, result.stderr


def test_the_readme_has_commands_for_every_modality():
    modalities = {datasets.lookup(ddpm.resolve(ddpm.parse_arguments(shlex.split(c)[1:])).dataset)[0] for c in COMMANDS}
    assert len(COMMANDS) > 10 and modalities == {
        datasets.Points,
        datasets.Images,
        datasets.Spectrograms,
        datasets.Series,
    }


def test_the_example_in_python_does_what_it_says():
    (code,) = re.findall(r"```python\n(import ddpm\n\nmodel.*?)```", README, re.DOTALL)
    names = {}
    exec(code.replace("exps/mnist_base/checkpoint.pt", "mnist"), names)
    assert names["x_0"].shape == (64, 1, 28, 28) and names["images"].shape == (64, 28, 28, 1)
    assert len(names["film"]) == 30 and str(names["images"].dtype) == "uint8"
