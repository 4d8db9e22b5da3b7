"""What README.md and static/RESULTS.md tell people to type and to look at."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import ROOT

import datasets
import ddpm

PAGES = {path: (ROOT / path).read_text("utf-8") for path in ("README.md", "static/RESULTS.md")}
TEXT = "\n".join(PAGES.values())
COMMANDS = sorted({re.split(r"\s{2,}", line)[0].strip() for line in re.findall(r"python (ddpm\.py[^`\n|]*)", TEXT)})
COMMANDS = [command for command in COMMANDS if not re.search(r"\.\.\.|…|--dataset$|-h$", command)]
BENCHMARKS = sorted(set(re.findall(r"python (tests/benchmarks/[^`\n|]*)", TEXT)))
NEED_NOTHING = {"circle", "dino", "line", "moons", "digits"}
SMALL = ["--epochs", "1", "--num_samples", "10", "--num_timesteps", "10", "--overwrite"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_flags_that_exist_and_runs_where_it_needs_no_download(command, ddpm_command):
    _, *arguments = shlex.split(command)
    given = ddpm.parse_arguments(arguments)
    checkpoint = given.get("sample") or given.get("evaluate") or given.get("distill")
    if checkpoint:
        assert ddpm.find_checkpoint(checkpoint).exists() or checkpoint.startswith("exps/")
        return
    config = ddpm.resolve(given)
    assert config.dataset in datasets.DATASETS or config.dataset.startswith("gluonts:")
    if config.dataset in NEED_NOTHING:
        result = ddpm_command(*arguments, *SMALL)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", BENCHMARKS)
def test_each_benchmark_has_flags_that_exist(command):
    script, *arguments = shlex.split(command)
    source = (ROOT / script).read_text("utf-8")
    assert all(f'"{argument}"' in source for argument in arguments if argument.startswith("--"))


def test_every_flag_that_is_mentioned_exists():
    mentioned = set(
        re.findall(r"(?<![\w-])--([a-z]\w+)", re.sub(r"python tests/benchmarks/[^`\n|]*|torchrun --\S+", "", TEXT))
    )
    assert len(mentioned) > 20 and mentioned <= set(ddpm.ROWS) | set(ddpm.ACTIONS)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_the_project_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)]*)\)", PAGES[page]):
        path, _, title = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if title:
            headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE)
            assert title in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


def test_each_promise_names_tests_that_exist():
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(named) > 8 and all(f"def {name}(" in tests for name in named)


def test_the_readme_has_commands_for_every_modality():
    names = [ddpm.resolve(ddpm.parse_arguments(shlex.split(command)[1:])).dataset for command in COMMANDS]
    assert len(COMMANDS) > 10 and set(map(datasets.modality_of, names)) == set(datasets.MODALITIES)


def test_the_example_in_python_does_what_it_says():
    (code,) = re.findall(r"```python\n(import ddpm\n\nmodel.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(code.replace("exps/mnist_base/checkpoint.pt", "mnist"), names)
    assert names["x_0"].shape == (64, 1, 28, 28) and names["images"].shape == (64, 28, 28, 1)
    assert len(names["film"]) == 30 and str(names["images"].dtype) == "uint8"
