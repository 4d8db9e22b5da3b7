"""What a person can type, hold or pull out: nothing is lost, nothing is left behind, and one line says what to do."""

import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import fuzz, kills
from helpers import files, interrupt, no_space, refused, write_images
from test_command_line import POINTS

import ddpm
from tiny_diffusion.files import owned
from tiny_diffusion.messages import UsageError

NAME = ["--experiment_name", "a"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An experiment of two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        draw_nothing(patch)
        assert ddpm.main(ddpm.parse_arguments([*POINTS, *NAME])) == 0
        return Path("exps", "a").absolute()


def draw_nothing(patch):
    """What takes longest in a small run is its end."""
    patch.setattr(ddpm, "write_samples", lambda *_: ({}, []))
    patch.setattr(ddpm, "write_training", lambda *_: None)
    patch.setattr(ddpm, "write_report", lambda *_: None)


@pytest.fixture
def train_command(ddpm_command, monkeypatch):
    """ddpm_command without what a run does after the training."""
    draw_nothing(monkeypatch)
    return ddpm_command


@pytest.fixture
def experiment(trained, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(trained, tmp_path / "exps" / "a")


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["model"]


def test_the_checkpoint_alone_is_enough_to_resume(experiment, train_command):
    config = json.loads((experiment / "config.json").read_text())
    for path in experiment.iterdir():
        if path.name not in ("checkpoint.pt", "checkpoints"):
            path.unlink()
    assert train_command("--resume", *NAME, "--epochs", 3).returncode == 0
    after = json.loads((experiment / "config.json").read_text())
    assert after == config | {"epochs": 3, "given": config["given"] | {"epochs": 3}}


@pytest.mark.parametrize("flags", [POINTS, [*POINTS, "--overwrite"], ["--resume"]], ids=["new", "overwrite", "resume"])
def test_a_second_process_is_refused_while_the_first_is_at_work(flags, experiment, train_command):
    with owned(experiment):
        before = files(experiment)
        refused(train_command(*flags, *NAME), "exps/a", "another process")
        assert files(experiment) == before
    assert ".lock" not in files(experiment)


def test_an_experiment_is_replaced_when_the_new_one_has_its_first_checkpoint(experiment, train_command, monkeypatch):
    (experiment / "of_the_first.txt").write_text("")
    before = files(experiment)
    with monkeypatch.context() as patch:
        patch.setattr("tiny_diffusion.files.os.fsync", no_space)
        refused(train_command(*POINTS, *NAME, "--overwrite"), "checkpoint.pt", " MB could not be written", "--resume")
    assert files(experiment) == before
    monkeypatch.setattr(ddpm, "train", interrupt)
    assert train_command(*POINTS, *NAME, "--overwrite").returncode == 143
    assert set(files(experiment)) == {"checkpoint.pt", "config.json", "data.png"}


def test_a_full_disk_costs_no_checkpoint(experiment, train_command, monkeypatch):
    before = files(experiment)
    with monkeypatch.context() as patch:
        patch.setattr("tiny_diffusion.files.os.fsync", no_space)
        refused(train_command("--resume", *NAME, "--epochs", 3), "MB could not be written (No space left", "--resume")
    assert files(experiment) == before
    assert train_command("--resume", *NAME, "--epochs", 3).returncode == 0


def test_weights_that_are_not_finite_are_never_saved(train_command, tmp_path):
    one_step = ["--train_batch_size", 8000, "--learning_rate", 1e30]  # the loss is computed before it
    refused(train_command(*POINTS, *one_step, *NAME), "no longer finite", "untrained", "--learning_rate")
    saved = torch.load(tmp_path / "exps" / "a" / "checkpoint.pt", weights_only=True)
    assert saved["history"] == [] and all(weight.abs().max() < 10 for weight in saved["model"].values())
    assert train_command("--resume", *NAME, "--learning_rate", 0.01).returncode == 0


@pytest.mark.parametrize("number", [2, 15])
def test_what_is_interrupted_keeps_the_last_whole_epoch_and_resumes_to_the_bit(
    number, trained, train_command, tmp_path, monkeypatch
):
    step, flags = ddpm.train_step, [*POINTS, *NAME, "--save_every", 9]
    with monkeypatch.context() as patch:
        patch.setattr(ddpm, "train_step", lambda run, batch: interrupt_at(40, number, run) or step(run, batch))
        done = train_command(*flags, "--epochs", 4)  # of 16 steps; only the first is saved at once
    assert (done.returncode, done.stderr) == (128 + number, "stopped; --resume --experiment_name a continues\n")
    checkpoint = tmp_path / "exps" / "a" / "checkpoint.pt"
    assert len(torch.load(checkpoint, weights_only=True)["history"]) == 2
    assert train_command("--resume", *NAME, "--epochs", 2).returncode == 0
    ours, whole = weights(checkpoint), weights(trained / "checkpoint.pt")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def interrupt_at(step, number, run):
    if run.step == step:
        raise KeyboardInterrupt(number)


def test_interrupted_decoding_leaves_nothing_and_promises_nothing(train_command, tmp_path, monkeypatch):
    write_images(tmp_path / "mine", 3)
    monkeypatch.setattr("tiny_diffusion.pictures.decode", interrupt)
    done = train_command("--dataset", "folder", "--data_dir", "mine")
    assert (done.returncode, done.stderr) == (143, "stopped\n")
    assert {path.split("/")[0] for path in files(tmp_path)} == {"mine"} and not (tmp_path / "mine" / ".cache").exists()


def test_kept_checkpoints_of_a_long_run_are_thinned_out(train_command, experiment, monkeypatch):
    monkeypatch.setattr("tiny_diffusion.checkpoints.GIF_FRAMES", 4)
    assert train_command("--resume", *NAME, "--epochs", 11, "--save_every", 1).returncode == 0
    assert sorted(path.name for path in (experiment / "checkpoints").iterdir()) == [
        f"epoch_{epoch:04d}.pt" for epoch in (4, 8, 11)
    ]


HUGE = str(10**30)
DIGITS = ["--dataset", "digits"]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--seed", 2**64], "--seed"),
        (["--seed", "-1"], "--seed"),
        (["--num_timesteps", HUGE], "--num_timesteps"),
        (["--hidden_size", 10**9], "--hidden_size"),
        (["--hidden_layers", 10**9], "--hidden_layers"),
        (["--hidden_layers", 900, "--hidden_size", 9000], "--hidden_layers"),
        (["--embedding_size", 10**9, "--hidden_size", 1000], "GB of memory"),
        ([*DIGITS, "--channel_multipliers", 10**9], "GB of memory"),
        ([*DIGITS, "--patch_size", 10**9], "--patch_size"),
        ([*DIGITS, "--image_size", 20000], "--image_size"),
        ([*DIGITS, "--image_size", 2048], "--image_size"),
        (["--num_samples", 10**12], "--num_samples"),
        (["--num_samples", 10**9 - 1, "--train_batch_size", HUGE], "--train_batch_size"),
        ([*DIGITS, "--num_samples", 10**9], "--num_samples"),
        (["--epochs", HUGE], "--epochs"),
        (["--learning_rate", "inf"], "--learning_rate"),
        (["--learning_rate", "nan"], "--learning_rate"),
        (["--time_power", "inf"], "--time_power"),
        ([*DIGITS, "--guidance", "inf"], "--guidance"),
        (["--eta", 0.5], "--eta"),
        (["--experiment_name", "a" * 256], "--experiment_name"),
        (["--experiment_name", "日" * 80], "--experiment_name"),
        (["--experiment_name", "a\nb"], "--experiment_name"),
        (["--device", "meta"], "--device"),
        (["--device", "hpu"], "--device"),
        (["--device", "cpu:5"], "--device"),
        (["--device", "cuda:99"], "--device"),
        (["--sample", "a.pt", "--evaluate", "b.pt"], "--evaluate"),
        (["--sample", "."], "--sample"),
        (["--sample", "pipe"], "--sample"),
        (["--dataset", "folder", "--data_dir", "odd"], "--data_dir"),
        (["--dataset", "mnist", "--data_dir", "odd"], "--data_dir"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(flags, told, train_command, tmp_path):
    os.mkfifo("pipe")
    raw = tmp_path / "odd" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, kind in itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1")):
        (raw / f"{part}-{kind}-ubyte").write_text("0 0 0 5 18 126 136\n")
    os.mkfifo(tmp_path / "odd" / "a.png")
    before = files(tmp_path)
    refused(train_command(*flags), told)
    assert files(tmp_path) == before and not (tmp_path / "exps").exists()


def test_the_smallest_sizes_work(ddpm_command, monkeypatch):
    monkeypatch.setattr(ddpm, "BOUND_CALLS", 2)
    sizes = ("num_samples", "eval_batch_size", "limit", "hidden_size", "embedding_size", "num_timesteps", "epochs")
    values = (1, 1, 1, 1, 2, 2, 1)
    done = ddpm_command(*DIGITS, *(f"--{size}={value}" for size, value in zip(sizes, values)))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("obstacle", ["file", "dangling link", "looping link"])
def test_an_obstacle_at_exps_is_named_before_the_training(obstacle, train_command, tmp_path):
    if obstacle == "file":
        Path("exps").write_text("")
    else:
        os.symlink("exps" if obstacle == "looping link" else "absent/absent", "exps")
    refused(train_command(*POINTS), "exps")


def test_names_that_are_not_utf_8_are_classes_but_no_experiments(train_command, tmp_path):
    for name in ("a\udcff", "b"):
        write_images(tmp_path / "mine" / name, 4)
    flags = ["--dataset", "folder", "--data_dir", "mine", "--image_size", 8, "--epochs", 1, "--num_timesteps", 5]
    assert train_command(*flags, "--hidden_size", 8, *NAME).returncode == 0
    assert ddpm.load_model("exps/a/checkpoint.pt", label="a\udcff").data.classes == ["a\udcff", "b"]
    with pytest.raises(UsageError, match="--experiment_name"):
        ddpm.resolve({"experiment_name": "a\udcff"})


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 0 --ema_decay 0 --time_power 0 --data_dir=-odd --limit 3",
        "--dataset digits --guidance 0 --image_size 8 16 --channel_multipliers 1 2 --compile --sampler ddim --eta 0",
        "--dataset sounds --words a 'b c'",
        "--dataset series --dropout 0 --difference 0 --freq h",
    ],
)
def test_settings_are_read_from_a_checkpoint_as_they_were_given(flags):
    config = vars(ddpm.resolve(ddpm.parse_arguments(shlex.split(flags))))
    for settings in (config, config["given"]):
        known = {flag: value for flag, value in settings.items() if flag in ddpm.DEFAULTS}
        assert ddpm.checked(settings) == {
            flag: value for flag, value in known.items() if value is not None and value is not False
        }


WRONG = {
    "dataset": 3,
    "num_timesteps": "10",
    "sampling_steps": 0,
    "hidden_size": 16.5,
    "hidden_layers": True,
    "eval_batch_size": [7],
    "sampler": "euler",
    "prediction_type": ["v"],
    "time_power": math.nan,
    "learning_rate": math.inf,
    "ema_decay": 1.5,
    "seed": 2**64,
    "guidance": "strong",
    "device": 7,
    "compile": 1,
}


@pytest.mark.parametrize("flag", WRONG)
@pytest.mark.parametrize("given", [False, True])
def test_a_setting_of_a_wrong_kind_in_a_checkpoint_is_refused_in_one_line(flag, given, experiment, train_command):
    state = torch.load(experiment / "checkpoint.pt", weights_only=True)
    (state["config"]["given"] if given else state["config"])[flag] = WRONG[flag]
    torch.save(state, experiment / "checkpoint.pt")
    before = files(experiment)
    refused(train_command("--sample", "exps/a/checkpoint.pt"), "exps/a/checkpoint.pt: not a checkpoint")
    refused(train_command("--resume", *NAME, "--epochs", 3), "exps/a/checkpoint.pt: not a checkpoint")
    assert files(experiment) == before


ONCE_ESCAPED = {"checkpoint": [1930, 4994]}


CASES = {"image": 100, "sound": 60, "csv": 40, "excel": 15, "feather": 15, "parquet": 40, "gluonts": 60, "tsf": 40}
CASES |= {"array": 60, "mat": 5, "checkpoint": 40}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, cases", CASES.items())
def test_damaged_files_end_in_a_result_or_in_one_line(kind, cases, damaged_files, tmp_path):
    numbers = [*range(cases), *ONCE_ESCAPED.get(kind, [])]
    wrong = [fuzz.escaped(kind, number, damaged_files, tmp_path / f"{kind}_{number}") for number in numbers]
    assert not any(wrong), "".join(filter(None, wrong))


@pytest.fixture(scope="module")
def damaged_files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield fuzz.prepare()


@pytest.mark.parametrize("which", [["--runs", "digits", "--kills", "2"], ["--torchrun", "--kills", "1"]])
def test_runs_that_are_killed_at_any_moment_are_not_lost(which):
    """A small run of tests/benchmarks/kills.py: resumed to the bit, and after the death of one of two processes."""
    command = [sys.executable, Path(kills.__file__), *which]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("action", ["--sample", "--evaluate"])
def test_a_checkpoint_that_is_a_loop_of_links_is_refused(action, train_command):
    os.symlink("loop.pt", "loop.pt")
    refused(train_command(action, "loop.pt"), "loop.pt")


def test_a_refused_command_leaves_no_empty_folders(train_command, tmp_path, monkeypatch):
    def refuse(*_):
        raise UsageError("refused")

    monkeypatch.setattr(ddpm, "write_samples", refuse)
    for action in (["--sample", "dino"], ["--resume", *NAME], ["--dry_run", "--dataset", "array"]):
        assert train_command(*action).returncode == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["two", "2"])
def test_what_torchrun_would_not_set_is_refused(size, train_command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    refused(train_command("--dry_run"), "WORLD_SIZE and RANK are not as torchrun sets them")


def test_an_output_that_is_full_is_one_line_and_one_that_is_closed_is_none(train_command, tmp_path, monkeypatch):
    told = lambda *words, **where: print(*words, **where) if "file" in where else no_space()  # noqa: E731
    monkeypatch.setattr(ddpm, "print", told, raising=False)
    refused(train_command("--dry_run"), "No space left on device")
    command = f"{sys.executable} {Path(ddpm.__file__)} --dry_run >&-"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, env=os.environ | {"HOME": "/dev/null"})
    assert (done.returncode, done.stderr) == (0, b"")


def test_kept_epochs_of_another_experiment_are_left_out_of_the_film(experiment, ddpm_command, tmp_path):
    other = torch.load(experiment / "checkpoints" / "epoch_0002.pt", weights_only=True)
    for epoch, changed in ((1, THREE_D), (4, {"mean": [0.0, 1.0]})):
        changed = {"data": other["data"] | changed, "samples": torch.zeros(5, *changed.get("shape", [2]))}
        torch.save(other | changed, experiment / f"checkpoints/epoch_000{epoch}.pt")
    done = ddpm_command("--resume", *NAME, "--epochs", 3, "--num_samples", 20)
    assert done.returncode == 0
    assert all(f"epoch_000{epoch}.pt: of another experiment" in done.stdout for epoch in (1, 4))


THREE_D = {"shape": [3], "mean": [0.0] * 3, "std": [1.0] * 3, "limits": [[0.0] * 3, [1.0] * 3]}
