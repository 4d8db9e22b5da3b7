"""ddpm.py as a user runs it: its answers, what a run leaves, and what it refuses."""

import csv
import json
import re
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from helpers import ROOT, files, refused

from tiny_diffusion.messages import file_name, format_value

SMALL = ["--epochs", "2", "--num_timesteps", "10", "--train_batch_size", "500"]
POINTS = ["--dataset", "moons", *SMALL, "--num_samples", "200", "--hidden_size", "16"]
DIGITS = ["--dataset", "digits", *SMALL, "--num_samples", "20", "--hidden_size", "16"]
HEAVY = {"torch", "numpy", "pandas", "pydantic", "matplotlib", "filelock", "models"}  # to import


def test_help_loads_neither_torch_nor_numpy_and_shows_every_default(ddpm_command):
    import ddpm

    code = "import sys; sys.argv = ['ddpm.py', '-h']; import runpy\ntry: runpy.run_path('ddpm.py', run_name='__main__')"
    code += f"\nfinally: print(*{HEAVY} & set(sys.modules), file=sys.stderr)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stderr.split() == []
    text = " ".join(answer.stdout.split())
    for flag, default in ddpm.DEFAULTS.items():
        assert f"--{flag} " in text
        values = default if isinstance(default, dict) else {"": default}
        for modality, value in values.items():
            shown = re.escape(format_value(value))  # "points/images 30"
            assert not value or re.search(rf"\b{modality}[/a-z]* {shown}" if modality else shown, text)
    for group in ddpm.FLAGS:
        assert f"{group}:" in text


def test_every_flag_of_tiny_diffusion_is_understood():
    import ddpm

    line = (
        "--experiment_name a --dataset line --train_batch_size 32 --eval_batch_size 1000 --num_epochs 200 "
        "--learning_rate 1e-3 --num_timesteps 50 --beta_schedule quadratic --embedding_size 128 --hidden_size 128 "
        "--hidden_layers 3 --time_embedding zero --input_embedding linear --save_images_step 1"
    )
    config = ddpm.resolve(ddpm.parse_arguments(line.split()))
    assert (config.epochs, config.save_every, config.input_embedding) == (200, 1, "linear")
    assert ddpm.parse_arguments(["--epochs", "7"]) == ddpm.parse_arguments(["--num_epochs", "7"])


@pytest.mark.parametrize("arguments", [POINTS, DIGITS], ids=["points", "images"])
def test_a_run_leaves_what_it_should_and_says_where(arguments, ddpm_command, tmp_path):
    done = ddpm_command(*arguments, "--experiment_name", "a", "--save_every", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["results:", "exps/a"]
    assert done.stderr == ""  # no progress bars where the output is not a terminal
    folder = tmp_path / "exps" / "a"
    config = json.loads((folder / "config.json").read_text())
    assert config["dataset"] == arguments[1] and config["epochs"] == 2
    rows = list(csv.DictReader((folder / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["loss"]) < 1.5
    metrics = json.loads((folder / "metrics.json").read_text())
    assert ("distance_to_data" if arguments is POINTS else "bits_per_dim") in metrics
    assert len(np.load(folder / "samples.npy")) == int(arguments[arguments.index("--num_samples") + 1])
    for name, frames in {"forward": 11, "reverse": 11, "training": 2}.items():
        gif = imageio.imread(folder / f"{name}.gif")
        assert len(gif) == frames and gif.shape[-1] == 3
    for name in ("loss.png", "samples.png"):
        assert imageio.imread(folder / name).ndim == 3
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["epoch_0001.pt", "epoch_0002.pt"]
    assert len(torch.load(folder / "checkpoints" / kept[0], weights_only=True)["samples"]) > 0


def test_a_checkpoint_alone_is_enough_to_sample_and_the_data_to_evaluate(ddpm_command, tmp_path):
    assert ddpm_command(*DIGITS, "--experiment_name", "a").returncode == 0
    moved = tmp_path / "elsewhere" / "model.pt"
    moved.parent.mkdir()
    (tmp_path / "exps" / "a" / "checkpoint.pt").rename(moved)
    flags = ["--num_samples", 7, "--sampler", "ddim", "--sampling_steps", 5, "--label", 3, "--guidance", 2]
    done = ddpm_command("--sample", moved, *flags)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.split()[-1]
    assert np.load(folder / "samples.npy").shape == (7, 8, 8, 1)
    again = np.load(folder / "samples.npy")
    assert ddpm_command("--sample", moved, *flags).returncode == 0
    assert np.array_equal(np.load(folder / "samples.npy"), again)
    done = ddpm_command("--evaluate", moved)
    assert done.returncode == 0 and "bits_per_dim:" in done.stdout, done.stderr


def test_the_noise_in_each_step_is_a_default_of_the_default_sampler():
    import ddpm

    images = vars(ddpm.resolve({"dataset": "digits"}))
    assert (images["sampler"], images["eta"]) == ("dpm++", 1)
    for given, eta in (({}, 1), ({"sampler": "ddim"}, 0), ({"sampler": "ddim", "eta": 0.5}, 0.5), ({"eta": 0.0}, 0)):
        assert ddpm.resolve({"dataset": "digits"} | given).eta == eta
        later = vars(ddpm.resolve({"dataset": "digits"} | given))
        assert ddpm.resolve({}, saved=later).eta == eta
        assert ddpm.resolve({"sampler": "ddim"}, saved=later).eta == 0
        assert ddpm.resolve({"sampler": "dpm++"}, saved=later).eta == 1


def test_a_model_that_comes_along_is_drawn_from_by_its_name_without_data(ddpm_command, tmp_path, monkeypatch):
    """Half precision moves no pixel by more than two levels."""
    import ddpm

    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from export_model import export

    assert ddpm_command(*DIGITS, "--experiment_name", "a", "--data_dir", tmp_path).returncode == 0
    for module in ("ddpm", "tiny_diffusion.checkpoints"):
        monkeypatch.setattr(f"{module}.MODELS", tmp_path / "models")
    export(tmp_path / "exps/a/checkpoint.pt", tmp_path / "models" / "ten.pt")
    model = torch.load(tmp_path / "models" / "ten.pt", weights_only=True)
    assert all(weight.dtype == torch.float16 for weight in model["average"].values()) and str(tmp_path) not in str(
        model
    )
    done = ddpm_command("--sample", "ten", "--num_samples", 20)
    assert done.returncode == 0 and done.stdout.split()[-1].startswith("exps/ten/samples/"), done.stderr
    samples, whole = (np.load(f"{folder}/samples.npy") for folder in (done.stdout.split()[-1], "exps/a"))
    assert np.abs(samples.astype(int) - whole).max() <= 2
    assert ddpm.load_model("ten").data.classes == list("0123456789")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--dataset", "dragon"], "--dataset"),
        (["--epochs", "0"], "--epochs"),
        (["--learning_rate", "fast"], "--learning_rate"),
        (["--epoch", "3"], "--epoch"),
        (["--experiment_name", "../a"], "--experiment_name"),
        (["--experiment_name", "/tmp/a"], "--experiment_name"),
        (["--experiment_name", "."], "--experiment_name"),
        (["--experiment_name", ".."], "--experiment_name"),
        (["--resume"], "--resume"),
        (["--resume", "--overwrite"], "--overwrite"),
        (["--sample", "absent.pt"], "--sample"),
        (["--sample", "damaged.pt"], "damaged.pt"),
        (["--sample", "foreign.pt"], "foreign.pt"),
        (["--evaluate"], "checkpoint.pt"),
        (["--label", "3"], "--label"),
        (["--guidance", "2"], "--guidance"),
        (["--patch_size", "2"], "--patch_size"),
        (["--num_timesteps", "10", "--sampling_steps", "11"], "--sampling_steps"),
        (["--dataset", "digits", "--label", "10"], "--label"),
        (["--dataset", "digits", "--channel_multipliers", *"11111"], "--channel_multipliers"),
        (["--dataset", "digits", "--image_size", "9", "8", "7"], "--image_size"),
        (["--dataset", "digits", "--range", "0", "1"], "--range"),
        (["--dataset", "folder", "--data_dir", "absent"], "--data_dir"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_bad_input_gets_one_line_that_names_it_and_exit_code_2(arguments, told, ddpm_command, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"PK not really")
    torch.save({"some": "weights"}, tmp_path / "foreign.pt")
    done = ddpm_command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and told in done.stderr
    assert not (tmp_path / "exps").exists()


def test_an_experiment_that_exists_is_kept_unless_overwritten(ddpm_command, tmp_path):
    assert ddpm_command(*POINTS, "--experiment_name", "a").returncode == 0
    checkpoint = tmp_path / "exps" / "a" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    refused = ddpm_command(*POINTS, "--experiment_name", "a")
    assert refused.returncode == 2 and "--resume" in refused.stderr and "--overwrite" in refused.stderr
    failed = ddpm_command("--dataset", "folder", "--data_dir", "absent", "--experiment_name", "a", "--overwrite")
    assert failed.returncode == 2 and checkpoint.read_bytes() == before
    assert ddpm_command(*POINTS, "--experiment_name", "a", "--overwrite", "--seed", 1).returncode == 0
    assert checkpoint.read_bytes() != before


def test_what_training_has_fixed_cannot_be_changed_after_it(ddpm_command):
    assert ddpm_command(*POINTS, "--experiment_name", "a").returncode == 0
    for action in (["--sample", "exps/a/checkpoint.pt"], ["--resume", "--experiment_name", "a"]):
        done = ddpm_command(*action, "--num_timesteps", 20)
        assert done.returncode == 2 and "--num_timesteps" in done.stderr and "10" in done.stderr
    done = ddpm_command("--sample", "exps/a/checkpoint.pt", "--epochs", 3)
    assert done.returncode == 2 and "--epochs" in done.stderr


def test_a_checkpoint_of_another_architecture_is_an_error_of_one_line(ddpm_command):
    assert ddpm_command(*POINTS, "--experiment_name", "a").returncode == 0
    saved = torch.load("exps/a/checkpoint.pt", weights_only=True)
    for part in ("model", "average"):
        saved[part].popitem()
    torch.save(saved, "exps/a/checkpoint.pt")
    for action in (["--sample", "exps/a/checkpoint.pt"], ["--resume", "--experiment_name", "a"]):
        done = ddpm_command(*action)
        assert done.returncode == 2 and "another version" in done.stderr and len(done.stderr.splitlines()) == 1


def test_resuming_from_a_kept_epoch_is_an_error_of_one_line(ddpm_command, tmp_path):
    assert ddpm_command(*POINTS, "--experiment_name", "a").returncode == 0
    folder = tmp_path / "exps" / "a"
    (folder / "checkpoints" / "epoch_0002.pt").replace(folder / "checkpoint.pt")
    done = ddpm_command("--resume", "--experiment_name", "a", "--epochs", 3)
    assert done.returncode == 2 and "kept epoch" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_resumed_run_keeps_its_number_of_threads(ddpm_command, tmp_path):
    asked = []
    for flags in ([*POINTS, "--threads", 2], ["--resume", "--epochs", 3]):
        assert ddpm_command(*flags, "--experiment_name", "a").returncode == 0
        asked.append(torch.get_num_threads())
        torch.set_num_threads(1)
    assert asked == [2, 2]


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(ddpm_command, tmp_path):
    assert ddpm_command(*POINTS, "--experiment_name", "a").returncode == 0
    checkpoint = tmp_path / "exps" / "a" / "checkpoint.pt"
    done = ddpm_command("--resume", "--experiment_name", "a", "--epochs", 50, "--learning_rate", "1e30")
    assert done.returncode == 2 and "no longer finite" in done.stderr and "--learning_rate" in done.stderr
    state = torch.load(checkpoint, weights_only=True)
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert len(state["history"]) >= 2


def test_dry_run_reads_says_draws_and_trains_nothing(ddpm_command, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (40, 8, 8)), y=[10, 20, 30, 40] * 10)
    flags = ["--dataset", "array", "--data_dir", "x.npz"]
    done = ddpm_command(*flags, "--dry_run")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "results: exps/array_base/data.png"
    assert "x.npz: 40 images of 8×8, 1 channel, uint8 from 0 to 255" in done.stdout
    assert list(files(tmp_path / "exps/array_base")) == ["data.png"]
    small = ["--epochs", 1, "--hidden_size", 8, "--num_timesteps", 5, "--sampling_steps", 2, "--num_samples", 4]
    assert ddpm_command(*flags, *small).returncode == 0
    done = ddpm_command("--sample", "exps/array_base/checkpoint.pt", "--label", 20)
    assert done.returncode == 0 and "no class has that name" not in done.stdout
    done = ddpm_command("--sample", "exps/array_base/checkpoint.pt", "--label", 1)
    assert "--label 1: no class has that name; counted from 0, it is 20" in done.stdout


def test_guidance_has_a_bound_with_its_reason_and_small_strengths_a_folder_of_their_own(ddpm_command):
    refused(ddpm_command("--dataset", "digits", "--guidance", "1e6"), "--guidance", "[0, 50]", "noise")
    assert file_name("guidance-1e+06") != file_name("guidance-1e-06")
