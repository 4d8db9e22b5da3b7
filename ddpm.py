"""Denoising diffusion probabilistic models (Ho et al. 2020) of points, images, sounds and time series.

    python ddpm.py                                                          a dinosaur of 2D points, in under a minute
    python ddpm.py --dataset mnist --epochs 20 --experiment_name mnist_base
    python ddpm.py --sample exps/mnist_base/checkpoint.pt --label 7 --guidance 2
    python ddpm.py --dataset mnist --experiment_name mnist_base --resume --epochs 40
    python ddpm.py --dataset exchange-rate                                  forecasts with intervals
    torchrun --nproc-per-node=4 ddpm.py --dataset faces

From top to bottom: arguments, `NoiseScheduler`, the reverse process, training, checkpoints, what is left in `exps/`.
"""

import argparse
import ast
import functools
import math
import os
import signal
import sys
from pathlib import Path


def number_in(kind, low, high=math.inf) -> dict:
    """Settings of an argument that is a number of `kind`, int or float, between `low` and `high`."""

    def parse(text):
        value = kind(text)
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # for argparse's messages
    return {"type": parse, "metavar": "N"}


def option(default, text: str, **settings) -> dict:
    """A row of `FLAGS`, with argparse's settings. Where `default` is a dictionary, the flag serves these modalities."""
    shown = default
    if isinstance(default, dict):
        shown = {modalities.replace(" ", "/"): value for modalities, value in default.items()}
        default = {modality: value for modalities, value in default.items() for modality in modalities.split()}
    return {"default": default, "shown": shown, "help": text, "settings": settings}


@functools.cache
def dataset_names() -> str:
    """The names in `datasets.DATASETS`, read from the source: -h cannot wait for what datasets.py imports."""
    source = ast.parse(Path(__file__).with_name("datasets.py").read_text("utf-8"))
    tables = [node.value for node in source.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)]
    return ", ".join(key.value for key in tables[-1].keys)


count, several = (number_in(int, low, 10**9) for low in (1, 2))
natural, steps = (number_in(int, low, 10**5) for low in (0, 1))
positive, share, counts = number_in(float, 0), number_in(float, 0, 1), count | {"nargs": "+"}
limits = number_in(float, -math.inf) | {"nargs": 2, "metavar": ("LOW", "HIGH")}
EMBEDDINGS, SAMPLERS = ("sinusoidal", "fourier", "learnable", "linear"), ("ddpm", "ddim", "dpm++")
FLAGS = {  # every flag, with its default, in the order of -h; where it is None, the text says what that stands for
    "data": {
        "dataset": option("dino", "data set: {names}, or gluonts:NAME", metavar="NAME"),
        "data_dir": option("data", "folder of downloaded data sets, or of your own data", metavar="PATH"),
        "limit": option(None, "train on only N items (default: all)", **count),
        "image_size": option(
            {"images": None},
            "side, or height and width, of the images (default: 64 for files, else as it is)",
            **number_in(int, 1, 2048) | {"nargs": "+"},
        ),
        "range": option({"images": None}, "lowest and highest value of an array (default: its own)", **limits),
        "prediction_length": option({"series": None}, "steps to forecast (default: the data set's own)", **steps),
        "context_length": option(
            {"series": None}, "steps read before a forecast (default: as many, of one series twice)", **steps
        ),
        "freq": option({"series": None}, "time between rows: h, 30min, D, B, W, M (default: as read)", metavar="FREQ"),
        "form": option({"series": None}, "vector: learned jointly; panel: one by one", choices=("vector", "panel")),
        "covariates": option({"series": None}, "columns known ahead of time", metavar="COLUMN", nargs="+"),
        "test_windows": option({"series": None}, "forecasts to score (default: a tenth, at most 5)", **count),
        "difference": option(
            {"series": None}, "learn changes over N steps; 0: the values (default: 1 or a season)", **natural
        ),
        "scaling": option({"series": "mean"}, "how a window is scaled by its context", choices=("mean", "standard")),
        "words": option({"audio": None}, "words to learn (default: digits; sounds: all)", metavar="WORD", nargs="+"),
    },
    "diffusion": {
        "num_timesteps": option(
            {"points": 200, "images audio": 1000, "series": 100}, "length of the chain", **number_in(int, 2, 10**6)
        ),
        "beta_schedule": option("cosine", "noise schedule", choices=("linear", "quadratic", "cosine", "sigmoid")),
        "prediction_type": option("v", "what the denoiser predicts", choices=("epsilon", "v", "sample")),
    },
    "denoiser": {
        "hidden_size": option({"points": 128, "images series": 64, "audio": 32}, "width of the first layer", **count),
        "hidden_layers": option(
            {"points": 3, "images audio": 1, "series": 2},
            "layers, or blocks in each of the UNet's stages",
            **number_in(int, 1, 1000),
        ),
        "embedding_size": option({"points images audio": 128, "series": 64}, "size of the embeddings", **several),
        "dropout": option({"series": 0.3}, "share of the RNN's outputs dropped in training", **share),
        "time_embedding": option("sinusoidal", "embedding of t", choices=(*EMBEDDINGS, "zero")),
        "input_embedding": option({"points": "sinusoidal"}, "embedding of x_t", choices=(*EMBEDDINGS, "identity")),
        "channel_multipliers": option(
            {"images": None, "audio": [1, 2, 4]},
            "widths of the UNet's stages over --hidden_size (images: 1 1 2 2 ...)",
            **counts,
        ),
        "patch_size": option({"images audio": 2}, "side of the squares the UNet takes as one pixel", **count),
    },
    "training": {
        "epochs": option({"points": 320, "images audio": 20, "series": 6}, "passes over the data", **count),
        "train_batch_size": option({"points": 1024, "images": 128, "audio series": 64}, "items in a step", **count),
        "learning_rate": option({"points": 0.01, "images audio": 0.02, "series": 3e-3}, "learning rate", **positive),
        "time_power": option(
            {"points": 3.0, "images audio series": 1.0}, "training times are T u^N for uniform u", **positive
        ),
        "ema_decay": option(0.999, "final decay of the weights' moving average", **share),
        "save_every": option({"points": 40, "images audio series": 1}, "epochs between kept checkpoints", **count),
    },
    "sampling": {
        "sampler": option({"points": "ddpm", "images audio series": "dpm++"}, "sampler", choices=SAMPLERS),
        "sampling_steps": option(
            {"points images audio": 30, "series": 20}, "network calls for each sample; ddpm: T by default", **count
        ),
        "sampling_power": option(
            {"points images audio": 1.0, "series": 2.0},
            "these calls are at times T u^N for evenly spaced u",
            **number_in(float, 1),
        ),
        "eta": option(
            {"points series": 0.0, "images audio": 1.0},
            "noise added in each step: 0 none, 1 as much as ddpm; 0 if another --sampler is chosen",
            **share,
        ),
        "num_samples": option({"points": 2000, "images audio series": 100}, "samples, or paths from a window", **count),
        "eval_batch_size": option(
            {"points": 10000, "series": 4000, "images": 500, "audio": 100}, "items drawn or scored at once", **count
        ),
        "label": option(None, "class to draw, by name or number (default: each in turn)", metavar="CLASS"),
        "guidance": option(None, "strength of the class, 0: none (default: 2 with --label, else 1)", **positive),
    },
    "run": {
        "experiment_name": option(None, "folder in exps/ for the results (default: DATASET_base)", metavar="NAME"),
        "seed": option(0, "random seed", **number_in(int, 0, 2**63 - 1)),
        "device": option("auto", "device: cpu, cuda, cuda:1, mps", metavar="NAME"),
        "precision": option("auto", "precision of the denoiser; auto: bf16 on a GPU", choices=("auto", "fp32", "bf16")),
        "compile": option(False, "compile the denoiser: a minute to start, then faster", action="store_true"),
    },
}
ACTIONS = {  # other than training anew
    "resume": option(None, "continue from the experiment's last checkpoint", action="store_true"),
    "overwrite": option(None, "replace the experiment of that name, if there is one", action="store_true"),
    "sample": option(None, "draw samples from this checkpoint, or from a model that comes along", metavar="PATH"),
    "evaluate": option(
        None, "score this checkpoint (default: the experiment's last one)", metavar="PATH", nargs="?", const=""
    ),
}
ALIASES = {"epochs": ["--num_epochs"], "save_every": ["--save_images_step"]}  # tiny-diffusion's names
DEFAULTS = {flag: row["default"] for group in FLAGS.values() for flag, row in group.items()}
FIXED = {flag for group in ("data", "diffusion", "denoiser") for flag in FLAGS[group]} - {"data_dir"}  # by training


def fail(message: str) -> int:
    """Say what is wrong in one line; returns the exit code."""
    print("ddpm.py: error:", *message.split(), file=sys.stderr)
    return 2


def format_value(value) -> str:
    """A figure or a setting for people; nothing for None."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def parse_arguments(arguments: list[str] | None = None, error=lambda message: sys.exit(fail(message))) -> dict:
    """The flags that were given, and no others: defaults come from `DEFAULTS` or from a checkpoint."""
    names = dataset_names()
    parser = argparse.ArgumentParser(
        usage="python ddpm.py [--dataset NAME] [flags]",
        description="Train a diffusion model, draw from it, score it. Without flags: the dinosaur.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.error = error
    for title, flags in (FLAGS | {"actions": ACTIONS}).items():
        group = parser.add_argument_group(title)
        for flag, row in flags.items():
            shown = "" if row["settings"].get("action") else format_value(row["shown"])
            text = row["help"].replace("{names}", names) + (f" (default: {shown})" if shown else "")
            group.add_argument(f"--{flag}", *ALIASES.get(flag, []), dest=flag, help=text, **row["settings"])
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))  # until there is something to lose
    GIVEN = parse_arguments()  # before the imports below, which take seconds: -h and a mistyped flag answer at once

import base64
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import re
import shlex
import shutil
import time
import warnings

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import datasets
import models
from datasets import STATIC, Data, UsageError, file_name, is_points, load, lookup, owned, reading, restore, write

EXPERIMENTS = Path("exps")
MODELS = STATIC / "models"  # that come along, to be named without a path
DENOISERS = {"points": models.MLP, "images": models.UNet, "audio": models.UNet, "series": models.RNN}
LABEL_DROPOUT = 0.1  # how often training hides the class, for classifier-free guidance (Ho & Salimans 2022)
LABEL_GUIDANCE = 2.0  # default guidance when --label is given
WARMUP_STEPS = 200  # of the learning rate, linearly from zero
GRADIENT_CLIP = 1.0  # the largest norm of a gradient
CHECKPOINT_SECONDS = 10  # between checkpoints: writing one safely takes some 20 ms
SAMPLED_VALUES = 2**26  # most values drawn at once, whatever --eval_batch_size says: 256 MB
NOISE_BLOCK = 32  # samples that share a random generator
BOUND_CALLS = 1000  # network calls for the variational bound after training; --evaluate takes ten times as many
CHECKED = (100, 1000)  # held-out items for the loss after an epoch: a twentieth of the epoch's, within these bounds
CHECKED_SHARE = 0.06  # of all items are they at most: a call takes a third of a training step, so 2% of the time
LEVELS = 20  # of noise, in the picture of the loss
RISE, FALL = 0.03, 0.03  # of the held-out loss: what counts as memorising, and as worth twice the epochs
COPIED = 0.7  # of held-out items' distance to the nearest training item: samples nearer than that are copies
GIF_FRAMES = 34  # keeps a GIF of colour photographs below 2 MB
MAX_PLAYERS = 40  # sounds in a report
OPTIMIZER_STATE = {"muon": {"average"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}  # what each keeps of a weight
UNFIT = "it is a kept epoch's, damaged, or of another version of this program; train anew"


def resolve(given: dict, saved: dict | None = None) -> argparse.Namespace:
    """The whole configuration: the flags given, else those `saved` in a checkpoint, else the defaults.

    Its `given` are the flags given, those of the runs before a --resume included. Raises UsageError for a flag that
    the modality has no use for, and for one that training has fixed.
    """
    saved = saved or {}
    given = {flag: value for flag, value in given.items() if flag not in ACTIONS}
    name = experiment_folder(saved | given).name
    if given.get("dataset") == "array":
        path = Path(given.get("data_dir", DEFAULTS["data_dir"]))
        given |= {"dataset": "points"} if saved.get("dataset") == "points" or (not saved and is_points(path)) else {}
    modality = lookup((saved or given).get("dataset", DEFAULTS["dataset"]))[0].modality
    known = {flag: row for flag, row in DEFAULTS.items() if not isinstance(row, dict) or modality in row}
    config = {flag: row[modality] if isinstance(row, dict) else row for flag, row in known.items()}
    for flag in given:
        if flag not in DEFAULTS:
            raise UsageError(f"--{flag}: no such flag; python ddpm.py -h lists them")
        if flag not in config:
            raise UsageError(f"--{flag}: has no effect on {modality}; leave it out")
        if saved and flag in FIXED and given[flag] != saved.get(flag):
            raise UsageError(f"--{flag} {given[flag]}: the checkpoint was trained with {saved.get(flag)}; leave it out")
    config |= {flag: value for flag, value in saved.items() if flag not in ("device", "compile")} | given
    config["given"] = saved.get("given", {}) | given
    config["experiment_name"] = name
    if "eta" in given and config["sampler"] == "ddpm":
        raise UsageError(f"--eta {config['eta']}: has no effect with --sampler ddpm; leave it out")
    if {"eta", "sampler"} & set(given) == {"sampler"}:
        is_default = config["sampler"] == DEFAULTS["sampler"][modality]
        config["eta"] = DEFAULTS["eta"][modality] if is_default else 0.0
    if "sampling_steps" not in config["given"] or {"sampling_steps", "sampler"} & set(given) == {"sampler"}:
        num_timesteps, few = config["num_timesteps"], DEFAULTS["sampling_steps"][modality]
        config["sampling_steps"] = num_timesteps if config["sampler"] == "ddpm" else min(few, num_timesteps)
    if config["guidance"] is None or {"label", "guidance"} & set(given) == {"label"}:
        config["guidance"] = 1.0 if config["label"] is None else LABEL_GUIDANCE
    if config["sampling_steps"] > config["num_timesteps"]:
        raise UsageError(f"--sampling_steps {config['sampling_steps']}: more than --num_timesteps; make it smaller")
    return argparse.Namespace(**config)


class NoiseScheduler:
    """The chain x_0, x_1, ..., x_T and the way back, for x of any shape.

    t runs from 1 to T = `num_timesteps`, as in the paper; t = 0 is the data. In training it is a tensor of times that
    belong to the leading axes of x, in sampling an int. `interval` is the range (low, high) of x_0 that predictions of
    it are clipped to. `betas` and `alphas_cumprod` are float64 arrays of length T + 1; `signal` and `sigma` are float32
    on the device: the square roots of alphas_cumprod and of 1 - alphas_cumprod.
    """

    def __init__(self, num_timesteps, beta_schedule, prediction_type, interval=None, device="cpu"):
        self.num_timesteps, self.prediction_type, self.interval = num_timesteps, prediction_type, interval
        self.betas = np.append(0, make_betas(beta_schedule, num_timesteps))
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        self.device = torch.device(device)
        tables = np.sqrt([self.alphas_cumprod, 1 - self.alphas_cumprod]).astype(np.float32)
        self.signal, self.sigma = torch.from_numpy(tables).to(device)

    def signal_and_noise(self, x: Tensor, t: Tensor | int) -> tuple:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at t: floats, or tensors shaped to multiply x."""
        if isinstance(t, int):
            alpha = self.alphas_cumprod[t].item()
            return math.sqrt(alpha), math.sqrt(1 - alpha)
        shape = t.shape + (1,) * (x.ndim - t.ndim)
        return self.signal[t].reshape(shape), self.sigma[t].reshape(shape)

    def snr(self, t):
        """Signal-to-noise ratio of x_t; infinite at t = 0."""
        with np.errstate(divide="ignore"):
            alpha = self.alphas_cumprod[np.asarray(t)]  # a tensor of one value would count as an int
            return alpha / (1 - alpha)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """x_t ~ q(x_t | x_0) (Ho et al. 2020, eq. 4)."""
        signal, sigma = self.signal_and_noise(x_0, t)
        return signal * x_0 + sigma * noise

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """What the denoiser learns to predict: the noise, x_0, or v (Salimans & Ho 2022, app. D)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_0
        signal, sigma = self.signal_and_noise(x_0, t)
        return signal * noise - sigma * x_0

    def predict_x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """x_0 from the denoiser's prediction, clipped to the data's range."""
        signal, sigma = self.signal_and_noise(x_t, t)
        if self.prediction_type == "epsilon":
            x_0 = (x_t - sigma * prediction) / signal
        elif self.prediction_type == "sample":
            x_0 = prediction
        else:
            x_0 = signal * x_t - sigma * prediction
        return x_0.clamp(*self.interval) if self.interval else x_0

    def posterior(self, x_0: Tensor, x_t: Tensor, t: int, s: int, eta: float = 1.0) -> tuple[Tensor, float]:
        """Mean and standard deviation of q(x_s | x_t, x_0) for s < t (Song et al. 2021, eq. 7 and 16).

        eta = 1 is the posterior of the chain (Ho et al. 2020, eq. 6 and 7), eta = 0 has no variance.
        """
        alpha_t, alpha_s = self.alphas_cumprod[[t, s]].tolist()
        variance = eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)
        noise_weight = math.sqrt(max(0, 1 - alpha_s - variance) / (1 - alpha_t))
        x_0_weight = math.sqrt(alpha_s) - noise_weight * math.sqrt(alpha_t)
        return x_0_weight * x_0 + noise_weight * x_t, math.sqrt(variance)

    def timesteps(self, sampling_steps: int, power: float = 1.0) -> list[int]:
        """sampling_steps + 1 times from T down to 0, T u^power for evenly spaced u.

        A power above 1 makes the last steps shorter (2: the quadratic spacing of Song et al. 2021, app. D.2). The last
        step goes to the mean of x_0: a long one loses the spread of narrow data. No time is below 1 before the end.
        """
        power = min(power, math.log(self.num_timesteps) / math.log(sampling_steps)) if sampling_steps > 1 else power
        u = np.linspace(1, 0, sampling_steps + 1)
        return np.floor(self.num_timesteps * u**power + 0.5).astype(int).tolist()


def make_betas(beta_schedule: str, num_timesteps: int) -> np.ndarray:
    """beta_1 ... beta_T in float64; every schedule ends in noise whatever T is.

    `linear` (Ho et al. 2020, sec. 4) and `quadratic` are given for T = 1000 and rescaled by 1000 / T; `cosine`
    (Nichol & Dhariwal 2021, eq. 17) and `sigmoid` (Jabri et al. 2022, app. B) give alphas_cumprod at any T.
    """
    first, last = 1000 / num_timesteps * 1e-4, 1000 / num_timesteps * 0.02
    u = np.linspace(0, 1, num_timesteps + 1)
    if beta_schedule == "linear":
        betas = np.linspace(first, last, num_timesteps)
    elif beta_schedule == "quadratic":
        betas = np.linspace(first**0.5, last**0.5, num_timesteps) ** 2
    else:
        if beta_schedule == "cosine":
            signal = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        else:
            signal = 1 / (1 + np.exp(6 * u - 3)) - 1 / (1 + math.exp(3))
        betas = 1 - signal[1:] / signal[:-1]
    return betas.clip(max=0.999)


def forward_process(scheduler: NoiseScheduler, x_0: Tensor, times: list[int], generator: torch.Generator):
    """Yield (t, x_t) for each of the rising `times`, each x_t from the one before (Ho et al. 2020, eq. 2)."""
    s, x_t = 0, x_0
    for t in times:
        alpha = (scheduler.alphas_cumprod[t] / scheduler.alphas_cumprod[s]).item()
        noise = torch.randn(x_t.shape, generator=generator, device=x_t.device)
        s, x_t = t, math.sqrt(alpha) * x_t + math.sqrt(1 - alpha) * noise
        yield t, x_t


def reverse_process(denoise, scheduler, times: list[int], x_T: Tensor, sampler: str, eta: float = 0.0, noise=None):
    """Yield (t, x_t, the x_0 predicted from x_t) for each of the falling `times`; the last is (0, x_0, x_0).

    `denoise(x_t, t)` gives the denoiser's prediction, `noise()` noise of x_T's shape. One formula makes three samplers:

    - ddpm: ancestral sampling (Ho et al. 2020, algorithm 2), strided where a time is skipped;
    - ddim: eta = 0, or anything up to 1, which is ddpm (Song et al. 2021, eq. 12);
    - dpm++: ddim with x_0 extrapolated, from its last two predictions, along the logarithm of the SNR to the middle of
      the step. eta = 0 is DPM-Solver++ 2M, eta = 1 SDE-DPM-Solver++ 2M (Lu et al. 2022). The last step, to infinite
      signal, is of first order.
    """
    eta = 1.0 if sampler == "ddpm" else eta
    x_t, last = x_T, None
    for t, s in itertools.pairwise(times):
        x_0 = target = scheduler.predict_x_0(denoise(x_t, t), x_t, t)
        yield t, x_t, x_0
        if sampler == "dpm++" and last and s > 0:
            last_t, last_x_0 = last
            step, last_step = (math.log(scheduler.snr(b) / scheduler.snr(a)) for a, b in ((t, s), (last_t, t)))
            target = x_0 + step / (2 * last_step) * (x_0 - last_x_0)
        x_t, deviation = scheduler.posterior(target, x_t, t, s, eta)
        if deviation > 0:
            x_t = x_t + deviation * noise()
        last = t, x_0
    yield 0, x_t, x_t


@dataclasses.dataclass
class Model:
    """A denoiser with all that sampling from it takes."""

    denoiser: models.Denoiser
    scheduler: NoiseScheduler
    data: Data
    config: argparse.Namespace


def new_model(config, data: Data, device, saved: dict | None = None) -> Model:
    """An untrained model, like that of the checkpoint `saved` if given. Raises UsageError where settings do not fit."""
    settings = {flag: value for flag, value in vars(config).items() if flag in FLAGS["denoiser"]}
    settings |= {"num_timesteps": config.num_timesteps} | data.network_settings()
    build = functools.partial(DENOISERS[data.modality], data.shape, **settings)
    try:
        with torch.device("meta"):  # shapes alone
            shapes = {name: weight.shape for name, weight in build().state_dict().items()}
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError:  # more than a number of 64 bits counts
        shapes = {"weights": (math.inf,)}
    if saved and shapes != {name: weight.shape for name, weight in saved["average"].items()}:
        raise UsageError(f"the checkpoint has other weights than its settings say: {UNFIT}")
    check_memory(sum(map(math.prod, shapes.values())), config, data, torch.device(device))
    torch.manual_seed(config.seed)
    denoiser = build().to(device)
    if config.label is not None:
        data.class_number(str(config.label))  # a wrong --label is an error before the training, not after it
    if config.guidance != 1 and not data.classes:
        raise UsageError(f"--guidance {config.guidance}: {data.name} has no classes; leave --guidance out")
    chain = (config.num_timesteps, config.beta_schedule, config.prediction_type)
    return Model(denoiser, NoiseScheduler(*chain, data.interval, device), data, config)


def check_memory(parameters: float, config, data: Data, device: torch.device) -> None:
    """Raise UsageError where the network with all that trains it, or the samples, are larger than the memory."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    values = config.num_samples * data.histories * math.prod(data.shape)
    network = f"--hidden_size {config.hidden_size}, --hidden_layers {config.hidden_layers}"
    for flags, size in ((network, 24 * parameters), (f"--num_samples {config.num_samples}", 16 * values)):
        if size > memory:
            raise UsageError(f"{flags}: {size / 1e9:.0f} GB, of {memory / 1e9:.0f} GB of memory; make it smaller")


@torch.inference_mode()
def sample(model: Model, number: int, frames: int = 0) -> tuple[Tensor, Tensor]:
    """`number` samples, of series as many for each window, and a film of the first few in `frames` frames, from x_T on.

    Both are float32 on the CPU, of shapes (number, *shape) and (frames, animated, *shape). Several processes share the
    work; the first gets all, the others get nothing.
    """
    data, (rank, world_size) = model.data, process()
    mine = np.array_split(np.arange(number), world_size)[rank]
    size = max(1, min(model.config.eval_batch_size, SAMPLED_VALUES // math.prod(data.shape)) // data.histories)
    batches, film = [], torch.empty(0)
    with progress_bar("sampling", len(mine) * data.histories, "samples") as bar:
        for first in mine[::size].tolist():
            last = min(first + size, mine[-1].item() + 1)
            x_0, way = sample_batch(model, range(first * data.histories, last * data.histories), frames, bar)
            batches.append(x_0)
            frames, film = 0, way if frames else film
    if world_size > 1:
        gathered = [None] * world_size if rank == 0 else None
        dist.gather_object(batches, gathered)
        batches = list(itertools.chain(*gathered or []))
    x_0 = torch.cat(batches) if batches else torch.empty(0)
    if not x_0.isfinite().all():
        raise UsageError("the samples are not finite numbers; choose more --sampling_steps or a smaller --guidance")
    return x_0, film


def sample_batch(model: Model, numbers: range, frames: int, bar: tqdm) -> tuple[Tensor, Tensor]:
    """The samples of these numbers, and a film of the first of them."""
    data, scheduler, config, device = model.data, model.scheduler, model.config, model.scheduler.device
    times = scheduler.timesteps(config.sampling_steps, config.sampling_power)
    noise = noise_of(config.seed, numbers, device)
    kept = set(np.linspace(0, len(times) - 1, frames).astype(int))
    films = []

    def reverse(denoiser, shape, cond):
        """A whole reverse process, from noise to x_0 of `shape` for each number; what it passes is filmed."""

        def denoise(x_t, t):
            t = torch.full((1,) * data.time_axes, t, device=device)
            with models.autocast(config.precision, device):
                return denoiser.guided(x_t, t, cond, config.guidance).float()

        settings = {"sampler": config.sampler, "eta": config.eta, "noise": lambda: noise(shape)}
        chain = reverse_process(denoise, scheduler, times, noise(shape), **settings)
        film, part = [torch.empty(0, *shape)], math.prod(shape) / math.prod(data.shape) / len(times)
        for i, (_, x_t, _) in enumerate(chain):
            if i in kept:
                film.append(x_t[: data.animated * data.histories].cpu())
            bar.update(len(numbers) * part)
        films.append(torch.stack(film[1:] or film))
        return x_t

    x_0 = model.denoiser.sample(reverse, data.condition(numbers, config.label, device))
    return x_0.cpu(), torch.cat(films, dim=2)


def noise_of(seed: int, numbers: range, device):
    """Returns draw(shape): noise that depends on a sample's number, not on its batch; NOISE_BLOCK share a generator."""
    first, last = numbers[0] // NOISE_BLOCK, numbers[-1] // NOISE_BLOCK
    seeds = (seed_from(seed, block, 0, 1) for block in range(first, last + 1))
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def draw(shape):
        blocks = [torch.randn((NOISE_BLOCK, *shape), generator=generator, device=device) for generator in generators]
        return torch.cat(blocks)[numbers[0] - first * NOISE_BLOCK :][: len(numbers)]

    return draw


def seed_from(*numbers: int) -> int:
    """A seed that depends on all of `numbers`; zeros at the end count for nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@torch.inference_mode()
def bits_per_dim(model: Model, number: int) -> dict:
    """The variational bound on held-out data in bits per dimension (Ho et al. 2020, eq. 5), and its standard error.

    Each of `number` items pays for one t, drawn with probability proportional to 1 / t, where the bound has its weight.
    The denoiser knows the item's class, where there are classes.
    """
    scheduler, data, config, device = model.scheduler, model.data, model.config, model.scheduler.device
    generator = torch.Generator(device).manual_seed(config.seed)
    odds = 1 / np.arange(1, config.num_timesteps + 1)
    odds /= odds.sum()
    quantiles = torch.randperm(number, generator=generator, device=device).cpu().numpy() + 0.5
    times = 1 + np.searchsorted(odds.cumsum(), quantiles / number).clip(max=config.num_timesteps - 1)
    batches, bits = data.held_out(config.eval_batch_size, number, device), []
    with progress_bar("evaluating", number, "items") as bar:
        for (x_0, cond, _), t in zip(batches, torch.from_numpy(times).to(device).split(config.eval_batch_size)):
            x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=generator, device=device), t)
            with models.autocast(config.precision, device):
                prediction = model.denoiser(x_t, t, cond).float()
            predicted = scheduler.predict_x_0(prediction, x_t, t).cpu().double()
            t, x_0 = t.cpu(), x_0.cpu().double()
            terms = bound_terms(scheduler, x_0, predicted, t, data.bin_width).flatten(1).sum(1)
            bits.append(terms / torch.from_numpy(odds)[t - 1] + prior_term(scheduler, x_0).flatten(1).sum(1))
            bar.update(len(x_0))
    bits = torch.cat(bits) / (math.prod(data.shape) * math.log(2))
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": (bits.std() / number**0.5).item()}


def prior_term(scheduler: NoiseScheduler, x_0: Tensor) -> Tensor:
    """L_T: KL(q(x_T | x_0) || N(0, 1)) in nats, for each value."""
    alpha_T = scheduler.alphas_cumprod[-1].item()
    return (alpha_T * x_0**2 - alpha_T - math.log1p(-alpha_T)) / 2


def bound_terms(scheduler: NoiseScheduler, x_0: Tensor, predicted: Tensor, t: Tensor, bin_width: float) -> Tensor:
    """L_{t-1} in nats, for each value of x_0: a KL divergence for t > 1, the decoder's -log p(x_0 | x_1) for t = 1.

    The reverse process has the posterior's variance, for t = 1 beta_1. The decoder gives each bin of raw values the
    normal distribution's mass in it, the outermost bins all that lies beyond (Ho et al. 2020, eq. 13); the mass is
    taken for 1e-12 at least. All in float64, on the CPU.
    """
    t = t.view(-1, *(1,) * (x_0.ndim - 1))
    divergence = torch.from_numpy(scheduler.snr(t - 1) - scheduler.snr(t)) / 2 * (x_0 - predicted) ** 2
    low, high = x_0 - predicted - bin_width / 2, x_0 - predicted + bin_width / 2
    low = low.masked_fill(x_0 < scheduler.interval[0] + bin_width / 2, -math.inf) / math.sqrt(scheduler.betas[1])
    high = high.masked_fill(x_0 > scheduler.interval[1] - bin_width / 2, math.inf) / math.sqrt(scheduler.betas[1])
    flip = low > 0  # far above the mean: by symmetry the same mass below it, where floating point has digits left
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    return torch.where(t > 1, divergence, -mass.clamp(min=1e-12).log())


def progress_bar(title: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A bar on the first process's terminal; nothing where the output is not a terminal."""
    quiet = None if process()[0] == 0 else True
    return tqdm(desc=title, total=total, initial=initial, unit=f" {unit}", unit_scale=True, leave=False, disable=quiet)


def process() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Run:
    """All that training changes. `state_dict` names what a resumed run needs."""

    def __init__(self, model: Model):
        denoiser, config = model.denoiser, model.config
        average = copy.deepcopy(denoiser).requires_grad_(False).eval()
        self.model, self.average = model, dataclasses.replace(model, denoiser=average)  # samples come from the average
        self.optimizers = models.optimizers(denoiser, config.learning_rate)
        self.generator = torch.Generator(model.scheduler.device)
        self.step, self.history = 0, []
        if config.compile:
            denoiser.compile()
            average.compile()
        self.network = torch.nn.parallel.DistributedDataParallel(denoiser) if process()[1] > 1 else denoiser

    def state_dict(self) -> dict:
        """A checkpoint, of which `load_model` needs the first line."""
        average, config, facts = self.average.denoiser.state_dict(), vars(self.model.config), self.model.data.facts
        state = {"model": self.model.denoiser.state_dict(), "step": self.step, "history": self.history}
        state |= {name: part.state_dict() for name, part in zip(("muon", "adamw"), self.optimizers)}
        return {"config": config, "data": facts, "average": average} | state

    def load_state_dict(self, state: dict) -> None:
        """Continue where the checkpoint `state` was saved. Raises UsageError."""
        with reading(f"the checkpoint cannot be resumed: {UNFIT}"):
            self.model.denoiser.load_state_dict(state["model"])
            self.average.denoiser.load_state_dict(state["average"])
            self.step, self.history = state["step"], state["history"]
            for optimizer, name in zip(self.optimizers, OPTIMIZER_STATE):
                load_optimizer(optimizer, state[name]["state"], OPTIMIZER_STATE[name] if self.step else set())


def load_optimizer(optimizer, state: dict, expected: set) -> None:
    """Give an optimizer its state, of each weight what is `expected`; its settings stay. Raises ValueError."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight in optimizer.param_groups[0]["params"]:
        found = optimizer.state[weight]
        datasets.check_tensors(found)
        if set(found) != expected or any(value.shape not in (weight.shape, ()) for value in found.values()):
            raise ValueError("not of these weights")


def training_loss(network, scheduler, data: Data, batch, generator: torch.Generator, time_power: float) -> Tensor:
    """Mean squared error of the denoiser's prediction at random times (Ho et al. 2020, algorithm 1 and eq. 14).

    Times are T u^time_power for uniform u: a power above 1 spends more of the training where there is little noise.
    Random numbers are drawn for the batches of all processes, so that they do not depend on how many there are.
    """
    x_0, cond, weight = batch
    rank, world_size = process()
    device, items = x_0.device, len(x_0) * world_size
    times = (items, *x_0.shape[1 : data.time_axes])
    u = torch.rand(times, generator=generator, device=device)[rank::world_size]
    t = training_times(scheduler, u, time_power)
    noise = torch.randn((items, *x_0.shape[1:]), generator=generator, device=device)[rank::world_size]
    if data.classes:
        hidden = torch.rand(items, generator=generator, device=device)[rank::world_size] < LABEL_DROPOUT
        cond = cond.masked_fill(hidden, len(data.classes))
    prediction = network(scheduler.add_noise(x_0, noise, t), t, cond).float()
    target = scheduler.target(x_0, noise, t)
    if weight is None:
        return F.mse_loss(prediction, target)
    total = weight.sum()
    if world_size > 1:
        dist.all_reduce(total)  # gradients are averaged over processes, whose weights may differ
    return (weight * (prediction - target) ** 2).sum() * world_size / total.clamp(min=1)


def training_times(scheduler: NoiseScheduler, u: Tensor, time_power: float) -> Tensor:
    """T u^time_power, rounded up, for u between 0 and 1."""
    return (scheduler.num_timesteps * u**time_power).ceil().long().clamp(min=1)


def train_step(run: Run, batch) -> Tensor:
    """One step of the optimizers and the moving average; returns the loss and the gradient's norm, on the device."""
    model, config = run.model, run.model.config
    run.step += 1
    with models.autocast(config.precision, model.scheduler.device):
        loss = training_loss(run.network, model.scheduler, model.data, batch, run.generator, config.time_power)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.denoiser.parameters(), GRADIENT_CLIP)
    for optimizer in run.optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * min(1, run.step / WARMUP_STEPS)
        optimizer.step()
        optimizer.zero_grad()
    decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))  # a young average must forget its start
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.denoiser.parameters()), list(model.denoiser.parameters()), 1 - decay)
        return torch.stack([loss, norm])


def train_epoch(run: Run, batch_size: int, bar: tqdm) -> dict:
    """Once through the data; returns the row of the log. All that is random in it follows from seed and epoch."""
    data, seed, device = run.model.data, run.model.config.seed, run.model.scheduler.device
    epoch, (rank, world_size) = len(run.history) + 1, process()
    run.generator.manual_seed(seed_from(seed, epoch))
    torch.manual_seed(seed_from(seed, epoch, 1 + rank))  # of dropout
    start = last_read = time.monotonic()
    sums, steps = torch.zeros(2, device=device), data.steps_per_epoch(batch_size)
    checked = next((f"{row['held_out_loss']:.4f}" for row in run.history[::-1] if row.get("held_out_loss")), "")
    for i, batch in enumerate(data.batches(batch_size, seed, epoch, device, rank, world_size), start=1):
        sums += train_step(run, batch)
        bar.update(batch_size)
        if time.monotonic() - last_read > 0.5 or i == steps:  # seldom: reading the loss waits for the device
            last_read = time.monotonic()
            bar.set_postfix(epoch=epoch, loss=f"{sums[0].item() / i:.4f}", held_out=checked)
            check_finite(run, sums)
    if world_size > 1:
        dist.all_reduce(sums)
    loss, norm = (sums / steps / world_size).tolist()
    seconds, items = time.monotonic() - start, steps * batch_size
    row = {"epoch": epoch, "step": run.step, "loss": loss, "held_out_loss": held_out_loss(run.model, epoch, items)}
    return row | {"gradient_norm": norm, "seconds": seconds, "items_per_second": items / seconds}


def held_out_loss(model: Model, epoch: int, items: int) -> float | None:
    """The loss, after an epoch of `items`, at held-out items, times and noises that stay the same; None if not due."""
    number = int(np.clip(items // 20, *CHECKED))
    every = math.ceil(number / (CHECKED_SHARE * items))
    if process()[0] > 0 or (epoch % every and epoch != model.config.epochs):
        return None
    batches = model.data.validation(model.config.eval_batch_size, number, model.scheduler.device)
    return losses(model, batches, number)[1].mean().item()


@torch.inference_mode()
def losses(model: Model, batches, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Times, and the loss there of one of the `number` items in `batches` each, without dropout.

    Times are as in training, but evenly spread; they and the noises are the same at every call.
    """
    scheduler, data, config, device = model.scheduler, model.data, model.config, model.scheduler.device
    generator, was_training = torch.Generator(device).manual_seed(config.seed), model.denoiser.training
    u = (torch.randperm(number, generator=generator, device=device) + 0.5) / number
    times, found = training_times(scheduler, u, config.time_power), []
    model.denoiser.eval()
    for x_0, cond, weight in batches:
        t = times[sum(map(len, found)) :][: len(x_0)].view(-1, *(1,) * (data.time_axes - 1))
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        if data.classes:
            hidden = torch.rand(len(x_0), generator=generator, device=device) < LABEL_DROPOUT
            cond = cond.masked_fill(hidden, len(data.classes))
        with models.autocast(config.precision, device):
            prediction = model.denoiser(scheduler.add_noise(x_0, noise, t), t, cond).float()
        error = (prediction - scheduler.target(x_0, noise, t)) ** 2
        weight = torch.ones_like(error) if weight is None else weight
        found.append((weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1))
    model.denoiser.train(was_training)
    return times.cpu().numpy(), torch.cat(found).cpu().numpy()


def check_finite(run: Run, sums: Tensor) -> None:
    """Raise UsageError unless the sums of this epoch's losses and the weights, squared, are finite numbers."""
    weights = [*run.model.denoiser.parameters(), *run.average.denoiser.parameters()]
    if not (sums.isfinite().all() and torch.stack(torch._foreach_norm(weights)).isfinite().all()):
        last = f"epoch {run.history[-1]['epoch']}, loss {run.history[-1]['loss']:.4g}" if run.history else "untrained"
        remedy = "continue with --resume and a smaller --learning_rate or --precision fp32, or start anew"
        raise UsageError(f"training is no longer finite; the last checkpoint is from before ({last}): {remedy}")


def train(run: Run, folder: Path) -> None:
    """Train to the last epoch. Checkpoints are kept, with samples, every `save_every` epochs, more seldom in long runs.

    However it ends, the checkpoint is that of the last whole epoch, or if the process is killed ten seconds older.
    """
    config, data, (rank, world_size) = run.model.config, run.model.data, process()
    batch_size = min(config.train_batch_size, len(data.train)) // world_size * world_size
    if batch_size == 0:
        raise UsageError(f"--train_batch_size {config.train_batch_size}: too small for {world_size} processes")
    items, saved, unsaved = data.steps_per_epoch(batch_size) * batch_size, -math.inf, None
    try:
        with progress_bar("training", config.epochs * items, "items", len(run.history) * items) as bar:
            while len(run.history) < config.epochs:
                run.history.append(train_epoch(run, batch_size, bar))
                epoch = len(run.history)
                keep = epoch % spacing(config.save_every, epoch) == 0 or epoch == config.epochs
                if keep:
                    samples, _ = sample(run.average, data.animated)
                if rank == 0 and keep:
                    save_kept(run, samples, folder / "checkpoints")
                if rank == 0 and (keep or time.monotonic() - saved > CHECKPOINT_SECONDS):
                    save_last(run.state_dict(), folder)
                    saved, unsaved = time.monotonic(), None
                elif rank == 0:
                    unsaved = copy.deepcopy(run.state_dict())
    finally:
        if unsaved:
            save_last(unsaved, folder)


def spacing(save_every: int, epoch: int) -> int:
    """Epochs between kept checkpoints: doubled as often as it takes to have no more than a GIF has frames."""
    while epoch > GIF_FRAMES * save_every:
        save_every *= 2
    return save_every


def save_kept(run: Run, samples: Tensor, folder: Path) -> None:
    """Keep the epoch's average with its samples; where the spacing has grown, those in between go."""
    config, epoch = run.model.config, len(run.history)
    state = {name: part for name, part in run.state_dict().items() if name in ("config", "data", "average")}
    save(state | {"samples": samples}, folder / f"epoch_{epoch:04d}.pt")
    apart = spacing(config.save_every, epoch)
    for other in range(1, epoch) if apart > config.save_every else []:
        if other % apart:
            (folder / f"epoch_{other:04d}.pt").unlink(missing_ok=True)


def kept_epochs(folder: Path) -> dict[int, Path]:
    """The checkpoints that an experiment has kept, by epoch."""
    paths = (folder / "checkpoints").glob("epoch_*.pt")
    return dict(sorted((int(path.stem[6:]), path) for path in paths if path.stem[6:].isdecimal()))


def save_last(state: dict, folder: Path) -> None:
    """Write the log, then the checkpoint that --resume goes on from."""
    write(folder / "log.csv", lambda file: file.write(pd.DataFrame(state["history"]).to_csv(index=False).encode()))
    save(state, folder / "checkpoint.pt")


def save(state: dict, path: Path) -> None:
    """Write a checkpoint."""
    path.parent.mkdir(exist_ok=True)
    write(path, functools.partial(torch.save, state))


def load_checkpoint(path: Path) -> dict:
    """A checkpoint, on the CPU, read without running code from it, and whole. Raises UsageError."""
    along = ", ".join(sorted(model.stem for model in MODELS.glob("*.pt")))
    remedy = f"name one that a run has left, by --experiment_name for --resume; --sample also takes {along}"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {remedy}")
    with reading(f"{path}: not a checkpoint (damaged, or not of this program); {remedy}"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        config = state["config"]
        state["config"] = checked(config) | {"given": checked(config.get("given", {}))}
        data = restore(state["data"])
        samples, history = state.get("samples", torch.zeros(1, *data.shape)), state.get("history", [])
        for tensors in (state["average"], state.get("model", {}), {"samples": samples}):
            datasets.check_tensors(tensors)
        columns = ("epoch", "step", "loss", "seconds")
        rows = [[*(row[name] for name in columns), row.get("held_out_loss") or 0] for row in history]
        rows = np.array(rows).reshape(-1, 5)
        fitting = [
            data.modality == lookup(config["dataset"])[0].modality,
            samples.shape[1:] == data.shape,
            np.isfinite(rows).all() and (rows[:, 0] == np.arange(1, 1 + len(rows))).all(),
            type(state.get("step", 0)) is int and type(history) is list,
        ]
        if not all(fitting):
            raise ValueError("its parts do not fit together")
    return state


def checked(settings: dict) -> dict:
    """A checkpoint's settings as the command line takes them. Raises ValueError."""
    given = {flag: value for flag, value in settings.items() if flag in DEFAULTS}
    given = {flag: value for flag, value in given.items() if value is not None and value is not False}
    return parse_arguments(shlex.split(command_line(given))[2:], error=refuse)


def refuse(message: str):
    raise ValueError(message)


def write_gif(path: Path, pictures) -> None:
    """An endless GIF, 60 ms a picture, that rests on the last."""
    pictures = np.stack(list(pictures))
    durations = [60] * (len(pictures) - 1) + [1500]
    durations = durations if len(pictures) > 1 else 1500
    write(path, lambda file: imageio.imwrite(file, pictures, extension=".gif", duration=durations, loop=0))


def write_training(run: Run, folder: Path) -> None:
    """The loss curves, the forward process of held-out items, and the samples of the kept checkpoints."""
    data, config, scheduler = run.model.data, run.model.config, run.model.scheduler
    curves = {"training, as it went": "loss", "held-out items": "held_out_loss"}
    checked = {name: [(row["epoch"], row[key]) for row in run.history if row.get(key)] for name, key in curves.items()}
    write_losses(folder / "loss.png", {name: zip(*rows) for name, rows in checked.items() if rows}, "epoch")
    number = data.animated * data.histories
    x_0, _, _ = next(data.held_out(number, number, scheduler.device))
    times = sorted(set(np.linspace(0, config.num_timesteps, GIF_FRAMES).astype(int).tolist()))
    generator = torch.Generator(scheduler.device).manual_seed(config.seed)
    write_gif(folder / "forward.gif", (data.render(x) for _, x in forward_process(scheduler, x_0, times, generator)))
    pictures = []
    for path in kept_epochs(folder).values():
        try:
            pictures.append(data.render(load_checkpoint(path)["samples"]))
        except (UsageError, KeyError) as error:
            print(f"left out of training.gif: {path}: {error}")
    if pictures:
        write_gif(folder / "training.gif", pictures)


def write_samples(model: Model, folder: Path, bound_calls: int) -> dict:
    """Samples and the reverse process into `folder`; where the data is at hand, their scores too."""
    data, config = model.data, model.config
    x_0, film = sample(model, config.num_samples, GIF_FRAMES)
    if process()[0] > 0:
        return {}
    data.save(x_0, folder, config.label)
    write_gif(folder / "reverse.gif", map(data.render, film))
    metrics = {}
    if bound_calls:
        compared = data.of_class(config.label)
        metrics = compared.score(x_0, model.scheduler.device, thorough=bound_calls > BOUND_CALLS)
        compared.save_nearest(x_0, folder)
        if data.bin_width:
            metrics |= bits_per_dim(model, bound_calls)
        metrics |= noise_levels(model, folder, bound_calls)
    return metrics


def noise_levels(model: Model, folder: Path, number: int) -> dict:
    """noise_levels.png, the loss of training and of held-out items over log-SNR, and the mean of each curve.

    Both have the same `number` of times and noises: where they part, the denoiser knows its training items by heart.
    """
    data, config, device = model.data, model.config, model.scheduler.device
    size = min(config.eval_batch_size, len(data.train), number)
    number -= number % size
    epochs = (data.batches(size, config.seed, epoch, device) for epoch in itertools.count())
    items = {"training items": itertools.islice(itertools.chain.from_iterable(epochs), number // size)}
    items["held-out items"] = data.validation(size, number, device)
    curves, means = {}, {}
    for name, batches in items.items():
        times, found = losses(model, batches, number)
        order = np.array_split(times.argsort(), LEVELS)
        curves[name] = [
            [values[part].mean() for part in order] for values in (np.log(model.scheduler.snr(times)), found)
        ]
        means[f"loss_of_{name}".replace(" ", "_").replace("-", "_")] = found.mean().item()
    write_losses(folder / "noise_levels.png", curves, "logarithm of the signal-to-noise ratio")
    return means


def write_losses(path: Path, curves: dict, xlabel: str) -> None:
    """A picture of losses: for each name its (x, y)."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel="loss", yscale="log")
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name)
    axes.legend()
    axes.grid(alpha=0.3)
    write(path, lambda file: figure.savefig(file, dpi=120))


def verdict_on_curve(history: list[dict], name: str, kept: list[int]) -> str:
    """What the log of the run called `name`, with checkpoints of the epochs `kept`, says, and what to do about it.

    The first that holds of these, once the second half has three held-out losses:

    - unstable: over the five epochs before, the training loss jumps by half and by six times its usual change;
    - memorising: the held-out loss has risen by RISE since its lowest, both smoothed over a tenth of the run;
    - still falling: a straight line through the second half, on logarithmic axes, falls by FALL when epochs double;
    - long enough.
    """
    log = pd.DataFrame(history, columns=["epoch", "loss", "held_out_loss"], dtype=float).set_index("epoch")
    loss, held_out, epochs = np.log(log["loss"]), log["held_out_loss"].dropna(), len(log)
    longer = command_line({"resume": True, "experiment_name": name, "epochs": 2 * epochs})
    later = held_out[held_out.index >= epochs / 2]
    if len(later) < 3:
        return f"Too short to judge. Train longer: {longer}"
    jump, usual = loss - loss.rolling(5, min_periods=1).median().shift(), loss.diff().abs().median()
    if jump.max() > np.clip(6 * usual, math.log(1.5), math.log(10)):
        rise = f"in epoch {jump.idxmax():.0f} the training loss rose to {math.exp(jump.max()):.3g} times what it was"
        return f"Unstable: {rise}. Train anew with a quarter of the --learning_rate."
    smooth = held_out.rolling(1 + len(held_out) // 10, center=True, min_periods=1).mean()
    rise, best = smooth.iloc[-1] / smooth.min() - 1, smooth.idxmin()
    if rise > RISE:
        path = EXPERIMENTS / name / "checkpoints" / f"epoch_{min(kept, key=lambda epoch: abs(epoch - best)):04d}.pt"
        since = f"since epoch {best:.0f}, the held-out loss has risen by {rise:.0%}"
        return f"Memorising: {since}. Draw from the checkpoint kept nearest to it, --sample {path}, or find more data."
    fall = 1 - math.exp(np.polyfit(np.log2(later.index), np.log(later), 1)[0])
    if fall > FALL:
        return f"Still falling: twice the epochs would lower the held-out loss by about {fall:.0%}. Go on: {longer}"
    return "Long enough: the held-out loss is flat, more epochs would change little."


def verdict_on_samples(metrics: dict) -> list[str]:
    """Copies, a shift in brightness, a tint, each where it is more than chance makes of so many samples."""
    true, remarks = metrics.get("true_samples", {}), []
    ratio = metrics.get("distance_to_training_items_ratio", 1)
    if ratio < COPIED:
        remarks.append(f"Samples copy: {ratio:.2f} times as far from the nearest training item as held-out items are.")
    channels = [name.removeprefix("mean") for name in true if name.startswith("mean")]
    if channels:
        shifts = {
            name: (metrics[f"mean{name}"] - true[f"mean{name}"]) / max(true[f"contrast{name}"], 1e-9)
            for name in channels
        }
        shift, chance = np.mean(list(shifts.values())), 1 / math.sqrt(metrics["samples"])
        tint = [
            f"{name[1:]} {part - shift:+.0%}" for name, part in shifts.items() if abs(part - shift) > max(0.05, chance)
        ]
        if abs(shift) > max(0.1, 2 * chance):
            how = "brighter" if shift > 0 else "darker"
            remarks.append(f"Samples are {how} than the data, by {abs(shift):.0%} of its contrast.")
        if tint:
            remarks.append(f"Samples have a tint, in parts of the data's contrast: {', '.join(tint)}.")
    return remarks


def write_json(path: Path, content: dict) -> None:
    """Write JSON, in which numbers that are not finite, which it does not have, are null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def command_line(flags: dict) -> str:
    """The command that gives these flags."""
    words = ["python", "ddpm.py"]
    for flag, value in flags.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", *map(str, values)]
    return shlex.join(words)


def write_report(folder: Path, flags: dict, config, metrics: dict) -> None:
    """metrics.json, and report.html: all that a run has left in `folder`, on one page that needs nothing else."""
    import jinja2

    if metrics:
        write_json(folder / "metrics.json", metrics)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"format": format_value, "base64": lambda path: base64.b64encode(path.read_bytes()).decode()}
    content = {"config": {flag: value for flag, value in vars(config).items() if flag in DEFAULTS}}
    content |= {"command": command_line(flags), "metrics": metrics, "folder": folder}
    content["film"] = stills(folder / "reverse.gif", config.sampling_steps)
    content["sounds"] = sorted(folder.glob("audio/*.wav"), key=lambda path: path.stem.split("_")[-1])[:MAX_PLAYERS]
    text = page.from_string((STATIC / "report.html").read_text("utf-8")).render(content)
    write(folder / "report.html", lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def stills(path: Path, steps: int) -> list[tuple[int, str]]:
    """The frames of a GIF of `steps` steps: which step each is, and a PNG in base64."""
    frames, pictures = imageio.imread(path), []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG")  # a GIF has no more colours
        pictures.append(base64.b64encode(buffer.getvalue()).decode())
    return list(zip(np.linspace(0, steps, len(frames)).astype(int).tolist(), pictures))


def experiment_folder(flags: dict) -> Path:
    """The folder of the results, right below `EXPERIMENTS`. Raises UsageError."""
    name = flags.get("experiment_name") or f"{flags.get('dataset', DEFAULTS['dataset'])}_base".replace(":", "_")
    if Path(name).name != name or name == ".." or len(name.encode(errors="replace")) > 200 or not name.isprintable():
        raise UsageError(f"--experiment_name {name}: must be a plain name, for a folder in {EXPERIMENTS}/")
    return EXPERIMENTS / name


def read_data(config) -> Data:
    """The data set, read by the first process first, which downloads and decodes it for all."""
    data = load(config) if process()[0] == 0 else None
    if dist.is_initialized():
        dist.barrier()
    with contextlib.nullcontext() if data else contextlib.redirect_stdout(None):  # the first has said what it found
        return data or load(config)


def begin(given: dict, folder: Path, device: torch.device) -> Run:
    """The run that the flags describe, untrained or as its checkpoint left it. Raises UsageError."""
    saved = {}
    if "resume" in given:
        saved = load_checkpoint(folder / "checkpoint.pt")
    elif process()[0] == 0 and "overwrite" not in given and {path.name for path in folder.iterdir()} - {".lock"}:
        raise UsageError(f"{folder} exists: choose --resume, --overwrite (replaces it) or another --experiment_name")
    config = resolve(given, saved.get("config"))
    data = read_data(config)
    if saved and saved["data"] != data.facts:
        raise UsageError(f"--data_dir {config.data_dir}: not the data that {folder} was trained on; give that")
    run = Run(new_model(config, data, device, saved))
    if saved:
        run.load_state_dict(saved)
    return run


def train_or_resume(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Train as the flags say; returns the folder of the results and the scores."""
    folder, first = experiment_folder(given), process()[0] == 0
    if {"resume", "overwrite"} <= set(given):
        raise UsageError("--resume continues an experiment, --overwrite replaces it: choose one")
    with owned(folder) if first else contextlib.nullcontext():
        run = begin(given, folder, device)
        config = run.model.config
        if first and not run.history:
            save(run.state_dict(), folder / "checkpoint.pt")
            clear(folder)  # only now may an earlier experiment go
        try:
            if first:
                write_json(folder / "config.json", vars(config))
            train(run, folder)
            metrics = write_samples(run.average, folder, BOUND_CALLS)
            if first:
                kept = list(kept_epochs(folder)) or [len(run.history)]
                told = [verdict_on_curve(run.history, folder.name, kept), *verdict_on_samples(metrics)]
                minutes = sum(row["seconds"] for row in run.history) / 60
                metrics = {"verdict": " ".join(told), "training_minutes": minutes} | metrics
                write_training(run, folder)
                write_report(folder, config.given, config, metrics)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                *stop.args or [signal.SIGINT], f"--resume --experiment_name {folder.name} continues"
            ) from None
    return folder, metrics


def clear(folder: Path) -> None:
    """Delete all that an experiment before has left beside the checkpoint."""
    for path in folder.iterdir():
        if path.name not in ("checkpoint.pt", ".lock"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def load_model(path: str | Path, device: torch.device | str = "cpu", load_data: bool = False, **flags) -> Model:
    """The trained model in a checkpoint, or that comes along: `load_model("mnist", label=7)`. Raises UsageError.

    `flags` are those of the command line. Without `load_data` the model's data set has no items to be scored against.
    """
    saved = load_checkpoint(find_checkpoint(path))
    config = resolve(flags, saved["config"])
    model = new_model(config, read_data(config) if load_data else restore(saved["data"]), device, saved)
    model.denoiser.load_state_dict(saved["average"])
    model.denoiser.requires_grad_(False).eval()
    if config.compile:
        model.denoiser.compile()
    return model


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`, or the model of that name that comes along."""
    along = MODELS / f"{path}.pt"
    return along if along.is_file() and not Path(path).is_file() else Path(path)


def predictor(path: str | Path, device: torch.device | str = "cpu", **flags):
    """A GluonTS Predictor out of a checkpoint of time series; `flags` as for `load_model`: sampling_steps=10."""
    model = load_model(path, device, **flags)
    return datasets.predictor(model.data, lambda data, number: sample(dataclasses.replace(model, data=data), number)[0])


def from_checkpoint(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Draw from a checkpoint, and with --evaluate score it; returns the folder of the results and the scores."""
    for flag in {*FLAGS["training"], "resume", "overwrite"} & set(given):
        raise UsageError(f"--{flag}: has no effect with --sample or --evaluate, which do not train; leave it out")
    if given.get("sample") and given.get("evaluate"):
        raise UsageError(f"--evaluate {given['evaluate']}: takes no path beside --sample, whose checkpoint it scores")
    path = find_checkpoint(given.get("sample") or given.get("evaluate") or experiment_folder(given) / "checkpoint.pt")
    home = EXPERIMENTS / path.stem if path.resolve().parent == MODELS.resolve() else path.parent
    model = load_model(path, load_data="evaluate" in given, **given | {"device": device})
    config = model.config
    settings = [path.stem, config.sampler, config.sampling_steps, config.label and f"label-{config.label}"]
    settings += [config.eta and f"eta-{config.eta:g}", f"guidance-{config.guidance:g}", f"seed-{config.seed}"]
    folder, first = home / "samples" / file_name(*filter(None, settings)), process()[0] == 0
    with owned(folder) if first else contextlib.nullcontext():
        metrics = write_samples(model, folder, 10 * BOUND_CALLS if "evaluate" in given else 0)
        if told := verdict_on_samples(metrics):
            metrics = {"verdict": " ".join(told)} | metrics
        if first:
            write_report(folder, given, config, metrics)
    return folder, metrics


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is this process's GPU if there is one. Raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device {name}: no such device; choose cpu, cuda, cuda:1 or mps")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: not available ({error}); choose another, or cpu") from error


@contextlib.contextmanager
def explained():
    """What the machine refuses, a file or memory, or another process that is lost, as a UsageError."""
    try:
        yield
    except OSError as error:
        remedy = "see that it can be written and read, and that there is room"
        raise UsageError(f"{error.filename or 'a file'}: {error.strerror or error}; {remedy}") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in str(error):
            remedy = "make --train_batch_size, --eval_batch_size, --num_samples or --hidden_size smaller"
            raise UsageError(f"out of memory; {remedy}, and go on with --resume") from error
        if process()[1] > 1:
            raise UsageError("another process has ended; if it was training, go on with --resume") from error
        raise


def main(given: dict) -> int:
    """Do what the flags say and tell where the results are; returns the exit code."""
    try:
        with explained():
            folder, metrics = perform(given)
    except UsageError as error:
        return fail(str(error)) if process()[0] == 0 or isinstance(error.__cause__, RuntimeError) else 2
    except KeyboardInterrupt as stop:
        number, *advice = stop.args or [signal.SIGINT]
        if process()[0] == 0:
            print("; ".join(["stopped", *advice]), file=sys.stderr)
        return 128 + number
    if process()[0] == 0:
        for name, value in metrics.items():
            print(f"{name}: {format_value(value)}")
        print(f"results: {folder}")
    if dist.is_initialized():
        dist.barrier()  # torchrun ends all processes as soon as one fails: none leaves before the first is done
        dist.destroy_process_group()
    return 0


def perform(given: dict) -> tuple[Path, dict]:
    """Choose the device, join torchrun's other processes, and train or draw."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # what "cuda" stands for
    device = choose_device(given.get("device", "auto"))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun; all wait while the first process decodes and scores
        a_week = pd.Timedelta(days=7)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=a_week)
    act = from_checkpoint if {"sample", "evaluate"} & set(given) else train_or_resume
    return act(given, device)


def interrupt(number: int, frame) -> None:
    """Let Ctrl-C, or SIGTERM, which clusters send, end what is under way, once: it may have something to save."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    warnings.simplefilter("ignore")  # which libraries address to programmers
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not UTF-8
    sys.exit(main(GIVEN))
