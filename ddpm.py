"""Denoising diffusion probabilistic models (Ho et al. 2020) of points, images, sounds and time series.

    python ddpm.py                                                          a dinosaur of 2D points, in under a minute
    python ddpm.py --dataset mnist --epochs 20 --experiment_name mnist_base
    python ddpm.py --sample exps/mnist_base/checkpoint.pt --label 7 --guidance 2
    python ddpm.py --dataset mnist --experiment_name mnist_base --resume --epochs 40
    python ddpm.py --dataset exchange-rate                                  forecasts with intervals
    python ddpm.py --distill exps/mnist_base/checkpoint.pt                  drawn in one call of the network
    torchrun --nproc-per-node=4 ddpm.py --dataset faces

From top to bottom: arguments, `NoiseScheduler`, the reverse process, training, checkpoints, what is left in `exps/`.
"""

import argparse
import functools
import math
import os
import re
import signal
import sys
from pathlib import Path

from datasets import DATASETS, load, modality_of, recognised, restore
from tiny_diffusion.flags import number_in, option, parser_of, takes
from tiny_diffusion.messages import UsageError, file_name, format_value, reading

whole, several = (number_in(int, low, 10**9) for low in (1, 2))
natural, steps = (number_in(int, low, 10**5) for low in (0, 1))
chain, layers, seed = number_in(int, 2, 10**6), number_in(int, 1, 1000), number_in(int, 0, 2**63 - 1)
positive, share, power = number_in(float, 0), number_in(float, 0, 1), number_in(float, 1)
strength = number_in(float, 0, 50, "more makes noise of the samples")
wholes, sides = whole | {"nargs": "+"}, number_in(int, 1, 2048) | {"nargs": "+"}
limits = number_in(float, -math.inf) | {"nargs": 2, "metavar": ("LOW", "HIGH")}
columns, words = ({"metavar": name, "nargs": "+"} for name in ("COLUMN", "WORD"))
EMBEDDINGS, SCHEDULES = ("sinusoidal", "fourier", "learnable", "linear"), ("linear", "quadratic", "cosine", "sigmoid")


def steps_of(config: dict, few: int) -> int:
    """The default of --sampling_steps: the whole chain with ddpm, a few times with other samplers."""
    return config["num_timesteps"] if config["sampler"] == "ddpm" else min(few, config["num_timesteps"])


FLAGS = {  # every flag, with its default, in the order of -h; where it is None, the text says what that stands for
    "data": {
        "dataset": option("dino", "data set: {names}, gluonts:NAME or hf:OWNER/NAME", metavar="NAME"),
        "data_dir": option("data", "folder of downloaded data sets, or of your own data", metavar="PATH"),
        "limit": option(None, "train on only N items (default: all)", **whole),
        "image_size": option({"images": None}, "side, or height and width (default: as it is; files: 64)", **sides),
        "range": option({"images series": None}, "lowest and highest value (default: the data's own)", **limits),
        "frames": option({"images": None}, "frames of films and stacks (default: first)", choices=("first", "all")),
        "channels": option({"images": None}, "axis of an array's channels (default: seen)", choices=("first", "last")),
        "prediction_length": option({"series": None}, "steps to forecast (default: the data set's own)", **steps),
        "context_length": option({"series": None}, "steps read first (default: as many; one series: twice)", **steps),
        "freq": option({"series": None}, "time between rows: h, 30min, D, B, W, M (default: as read)", metavar="FREQ"),
        "date_format": option({"series": None}, "form of times: %%d/%%m/%%Y (default: as read)", metavar="FORMAT"),
        "decimal": option({"series": None}, "mark of decimals (default: as read)", choices=(".", ",")),
        "form": option({"series": None}, "vector: learned jointly; panel: one by one", choices=("vector", "panel")),
        "covariates": option({"series": None}, "columns known ahead of time", **columns),
        "test_windows": option({"series": None}, "forecasts to score (default: a tenth, at most 5)", **whole),
        "difference": option({"series": None}, "learn changes over N steps (default: 1 or a season)", **natural),
        "season": option({"series": None}, "steps in a season (default: found; 1: none)", **steps),
        "scaling": option({"series": "mean"}, "how a window is scaled by its context", choices=("mean", "standard")),
        "words": option({"audio": None}, "words to learn (default: digits; sounds: all)", **words),
    },
    "diffusion": {
        "num_timesteps": option({"points": 200, "images audio": 1000, "series": 100}, "length of the chain", **chain),
        "beta_schedule": option("cosine", "noise schedule", choices=SCHEDULES),
        "prediction_type": option("v", "what the denoiser predicts", choices=("epsilon", "v", "sample")),
    },
    "denoiser": {
        "hidden_size": option({"points": 128, "images series": 64, "audio": 32}, "width of the first layer", **whole),
        "hidden_layers": option({"points": 3, "images audio": 1, "series": 2}, "layers, or blocks a stage", **layers),
        "embedding_size": option({"points images audio": 128, "series": 64}, "size of the embeddings", **several),
        "dropout": option({"series": 0.3}, "share of the RNN's outputs dropped in training", **share),
        "time_embedding": option("sinusoidal", "embedding of t", choices=(*EMBEDDINGS, "zero")),
        "input_embedding": option({"points": "sinusoidal"}, "embedding of x_t", choices=(*EMBEDDINGS, "identity")),
        "channel_multipliers": option(
            {"images": None, "audio": [1, 2, 4]},
            "widths of the UNet's stages over --hidden_size (images: 1 1 2 2 ...)",
            **wholes,
        ),
        "patch_size": option({"images audio": 2}, "side of the squares the UNet takes as one pixel", **whole),
    },
    "training": {
        "epochs": option({"points": 320, "images audio": 20, "series": 6}, "passes over the data", **whole),
        "steps": option({"points": 2000, "images audio": 1000, "series": 500}, "steps to train for at least", **whole),
        "train_batch_size": option({"points": 1024, "images": 128, "audio series": 64}, "items in a step", **whole),
        "learning_rate": option({"points": 0.01, "images audio": 0.02, "series": 3e-3}, "learning rate", **positive),
        "time_power": option({"points": 3.0, "images audio series": 1.0}, "train at times T u^N", **positive),
        "ema_decay": option(0.999, "final decay of the weights' moving average", **share),
        "save_every": option(None, "epochs between kept checkpoints (default: a tenth of all, or more)", **whole),
        "distill": option(
            None, "learn to draw in 1 call (points: 4; or --sampling_steps) what this checkpoint draws", metavar="PATH"
        ),
    },
    "sampling": {
        "sampler": option(
            {"points": "ddpm", "images audio series": "dpm++"}, "sampler", choices=("ddpm", "ddim", "dpm++")
        ),
        "sampling_steps": option(
            {"points images audio": 30, "series": 20},
            "network calls for each sample; ddpm: T by default",
            follows=("sampler", steps_of),
            **whole,
        ),
        "sampling_power": option({"points images audio": 1.0, "series": 2.0}, "call at times T u^N, u even", **power),
        "eta": option(
            {"points series": 0.0, "images audio": 1.0},
            "noise added in each step: 0 none, 1 as much as ddpm; 0 if another --sampler is chosen",
            follows=("sampler", lambda config, usual: usual if config["sampler"] == "dpm++" else 0.0),
            **share,
        ),
        "num_samples": option({"points": 2000, "images audio series": 100}, "samples, or paths from a window", **whole),
        "eval_batch_size": option(
            {"points": 10000, "series": 4000, "images": 500, "audio": 100}, "items drawn or scored at once", **whole
        ),
        "keep": option("best", "draw with the weights of the lowest held-out loss, or last", choices=("best", "last")),
        "label": option(None, "class to draw, by name or number (default: each in turn)", metavar="CLASS"),
        "guidance": option(
            None,
            "strength of the class, 0: none (default: 2 with --label, else 1)",
            follows=("label", lambda config, _: 1.0 if config["label"] is None else 2.0),
            **strength,
        ),
    },
    "run": {
        "experiment_name": option(None, "folder in exps/ for the results (default: DATASET_base)", metavar="NAME"),
        "seed": option(0, "random seed", **seed),
        "device": option("auto", "device: cpu, cuda, cuda:1, mps", metavar="NAME"),
        "threads": option(None, "processor threads (default: as many as cores are free)", **number_in(int, 1, 1024)),
        "precision": option(
            "auto",
            "precision of the denoiser; auto: bf16 where the hardware has it, points excepted",
            choices=("auto", "fp32", "bf16"),
        ),
        "compile": option(False, "compile the denoiser, for GPUs: takes a minute to start", action="store_true"),
    },
}
ACTIONS = {  # other than training anew
    "dry_run": option(None, "read the data, say what it is, draw it as data.png, and stop", action="store_true"),
    "resume": option(None, "continue from the experiment's last checkpoint", action="store_true"),
    "overwrite": option(None, "replace the experiment of that name, if there is one", action="store_true"),
    "sample": option(None, "draw samples from this checkpoint, or from a model that comes along", metavar="PATH"),
    "evaluate": option(
        None, "score this checkpoint (default: the experiment's last one)", metavar="PATH", nargs="?", const=""
    ),
}
ALIASES = {"epochs": ["--num_epochs"], "save_every": ["--save_images_step"]}  # tiny-diffusion's names
ROWS = {flag: row for group in FLAGS.values() for flag, row in group.items()}
DEFAULTS = {flag: row["default"] for flag, row in ROWS.items()}
FIXED = {flag for group in ("data", "diffusion", "denoiser") for flag in FLAGS[group]} - {"data_dir"}  # by training
DRAWN = {"sampler", "eta", "sampling_steps", "sampling_power", "guidance", "distill"}  # fixed by a distillation too
STUDENT = {"epochs": 1, "learning_rate": 1e-3, "ema_decay": 0.99, "sampler": "ddim", "eta": 0.0, "guidance": 1.0}
DISTILLED = {  # what a distillation has instead of the defaults
    "points": STUDENT
    | {"steps": 2000, "train_batch_size": 1024, "sampling_steps": 4, "sampling_power": 2.0, "learning_rate": 3e-3},
    "images": STUDENT | {"steps": 2100, "train_batch_size": 64, "sampling_steps": 1, "time_power": 2.0},
    "audio": STUDENT | {"steps": 1600, "train_batch_size": 32, "sampling_steps": 1, "time_power": 2.0},
    "series": STUDENT | {"steps": 1600, "train_batch_size": 64, "sampling_steps": 1, "learning_rate": 2e-3},
}


def fail(message: str) -> int:
    """Say what is wrong in one line; returns the exit code."""
    print("ddpm.py: error:", *message.split(), file=sys.stderr)
    return 2


def parse_arguments(arguments: list[str] | None = None) -> dict:
    """The flags that were given, and no others: defaults come from `DEFAULTS` or from a checkpoint."""
    parser = parser_of(FLAGS | {"actions": ACTIONS}, ALIASES, ", ".join(DATASETS))
    parser.error = lambda message: sys.exit(fail(message))
    return vars(parser.parse_args(arguments))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(128 + number))  # until there is something to lose
    GIVEN = parse_arguments()  # before the imports below, which take seconds: -h and a mistyped flag answer at once

import contextlib
import copy
import dataclasses
import itertools
import time
import warnings

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import models
from tiny_diffusion import distillation, evaluation
from tiny_diffusion.checkpoints import MODELS, find_checkpoint, kept_epochs, save, save_kept, save_last, spacing
from tiny_diffusion.data import Data, check_tensors, write_picture
from tiny_diffusion.files import LOCK, clear, owned, write_json
from tiny_diffusion.length import batch_size_of, chosen_weights, only_rises, settle
from tiny_diffusion.machine import (
    Unfilled,
    check_memory,
    choose_device,
    explained,
    keep_memory,
    mean_over_processes,
    of_the_first,
    process,
    progress_bar,
    seed_from,
    set_threads,
)
from tiny_diffusion.report import GIF_FRAMES, write_gif, write_report, write_training

EXPERIMENTS = Path("exps")
DENOISERS = {"points": models.MLP, "images": models.UNet, "audio": models.UNet, "series": models.RNN}
WARMUP_STEPS = 200  # of the learning rate, linearly from zero
GRADIENT_CLIP = 1.0  # the largest norm of a gradient
FITTED = 256  # items in a batch for what is fitted before the first step
UNTRAINED = {LOCK, "data.png"}  # what a folder may hold and be new
CHECKPOINT_SECONDS = 10  # between checkpoints: writing one safely takes some 20 ms
SAMPLED_VALUES = 2**26  # most values drawn at once, whatever --eval_batch_size says: 256 MB
BOUND_CALLS = 1000  # network calls for the variational bound after training; --evaluate takes ten times as many
OPTIMIZER_STATE = {"muon": {"average"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}  # what each keeps of a weight
OPTIMIZER_STATE["fake_adamw"] = OPTIMIZER_STATE["adamw"]
UNFIT = "it is a kept epoch's, damaged, or of another version of this program; train anew"


def resolve(given: dict, saved: dict | None = None) -> argparse.Namespace:
    """The whole configuration: the flags given, else those `saved` in a checkpoint, else the defaults.

    Its `given` are the flags given, those of the runs before a --resume included. Raises UsageError for a flag that
    the modality has no use for, and for one that training has fixed.
    """
    saved = saved or {}
    given = {flag: value for flag, value in given.items() if flag not in ACTIONS}
    name = experiment_folder(saved | given).name
    if "dataset" in given and saved.get("dataset") != given["dataset"]:
        given["dataset"] = recognised(given["dataset"], (saved | given).get("data_dir", DEFAULTS["data_dir"]))
    modality = modality_of((saved or given).get("dataset", DEFAULTS["dataset"]))
    known = {flag: row for flag, row in DEFAULTS.items() if not isinstance(row, dict) or modality in row}
    defaults = {flag: row[modality] if isinstance(row, dict) else row for flag, row in known.items()}
    if "distill" in given and not saved.get("distill"):  # the student of what was saved
        saved = {flag: value for flag, value in saved.items() if flag in FIXED | {"data_dir"}}
    check_flags(given, defaults, saved, modality)
    if (saved | given).get("distill"):
        defaults |= DISTILLED[modality]
    config = defaults | {flag: value for flag, value in saved.items() if flag not in ("device", "compile")} | given
    config |= {"given": saved.get("given", {}) | given, "experiment_name": name}
    for flag, default in defaults.items():
        if ROWS[flag]["follows"] and flag not in given and not config["distill"]:
            cause, rule = ROWS[flag]["follows"]
            if cause in given or flag not in config["given"]:
                config[flag] = rule(config, default)
    if "eta" in given and config["sampler"] == "ddpm":
        raise UsageError(f"--eta {config['eta']}: has no effect with --sampler ddpm; leave it out")
    if config["sampling_steps"] > config["num_timesteps"]:
        raise UsageError(f"--sampling_steps {config['sampling_steps']}: more than --num_timesteps; make it smaller")
    return argparse.Namespace(**config)


def check_flags(given: dict, known: dict, saved: dict, modality: str) -> None:
    """Raise UsageError for a flag that is not `known`, or that the training of a `saved` configuration has fixed."""
    for flag, value in given.items():
        if flag not in ROWS:
            raise UsageError(f"--{flag}: no such flag; python ddpm.py -h lists them")
        if flag not in known:
            raise UsageError(f"--{flag}: has no effect on {modality}; leave it out")
        unused = {"sampler", "eta"} | (set() if modality in distillation.MATCHED else {"time_power"})
        if "distill" in given and flag in unused:
            raise UsageError(f"--{flag} {value}: has no effect with --distill of {modality}; leave it out")
        fixed = FIXED | DRAWN if saved.get("distill") else FIXED
        if saved and flag in fixed and value != saved.get(flag):
            raise UsageError(f"--{flag} {value}: the checkpoint was trained with {saved.get(flag)}; leave it out")


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

    def training_times(self, u: Tensor, time_power: float) -> Tensor:
        """T u^time_power, rounded up, for u between 0 and 1."""
        return (self.num_timesteps * u**time_power).ceil().long().clamp(min=1)

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
        with torch.device("meta"), Unfilled():  # shapes alone
            shapes = {name: weight.shape for name, weight in build().state_dict().items()}
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError:  # more than a number of 64 bits counts
        shapes = {"weights": (math.inf,)}
    if saved and shapes != {name: weight.shape for name, weight in saved["average"].items()}:
        raise UsageError(f"the checkpoint has other weights than its settings say: {UNFIT}")
    network = f"--hidden_size {config.hidden_size}, --hidden_layers {config.hidden_layers}"
    check_memory(network, 24 * sum(map(math.prod, shapes.values())), device)  # bytes of all that trains a weight
    values = config.num_samples * data.histories * math.prod(data.shape)
    check_memory(f"--num_samples {config.num_samples}", 16 * values, device)
    torch.manual_seed(config.seed)
    denoiser = build().to(device)
    if config.label is not None:  # a wrong --label is an error before the training, not after it
        number = data.class_number(str(config.label))
        if data.classes[number] != str(config.label):
            print(f"--label {config.label}: no class has that name; counted from 0, it is {data.classes[number]}")
    if config.guidance != 1 and not data.classes:
        raise UsageError(f"--guidance {config.guidance}: {data.name} has no classes; leave --guidance out")
    chain = (config.num_timesteps, config.beta_schedule, config.prediction_type)
    interval = None if config.distill else data.interval  # clipped, what a student draws would have no gradient
    return Model(denoiser, NoiseScheduler(*chain, interval, device), data, config)


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
    noise = data.noise_of(config.seed, numbers, device)
    kept = set(np.linspace(0, len(times) - 1, frames).astype(int))
    films = []

    def reverse(denoiser, shape, cond):
        """A whole reverse process, from noise to x_0 of `shape` for each number; what it passes is filmed."""
        denoise = denoise_by(denoiser, cond, model)
        settings = {"sampler": config.sampler, "eta": config.eta, "noise": lambda: noise(shape)}
        chain = reverse_process(denoise, scheduler, times, noise(shape), **settings)
        film, part = [torch.empty(0, *shape)], math.prod(shape) / math.prod(data.shape) / len(times)
        for i, (_, x_t, _) in enumerate(chain):
            if i in kept:
                film.append(x_t[: data.animated * data.histories].cpu())
            bar.update(len(numbers) * part)
        films.append(torch.stack(film[1:] or film))
        return x_t

    with models.autocast(model.denoiser, config.precision):
        x_0 = model.denoiser.sample(reverse, data.condition(numbers, config.label, device))
    return x_0.cpu(), torch.cat(films[-data.shape[0] :], dim=2)  # of series, without the gap before the forecast


def denoise_by(network, cond, model: Model):
    """`denoise(x_t, t)` for `reverse_process`: the prediction of a model's network, given cond, with guidance."""

    def denoise(x_t, t):
        t = torch.full((1,) * model.data.time_axes, t, device=x_t.device)
        with models.autocast(model.denoiser, model.config.precision):
            return network.guided(x_t, t, cond, model.config.guidance).float()

    return denoise


class Run:
    """All that training changes. `state_dict` names what a resumed run needs."""

    optimizer_names = ("muon", "adamw")

    def __init__(self, model: Model):
        denoiser, config = model.denoiser, model.config
        average = copy.deepcopy(denoiser).requires_grad_(False).eval()
        self.model, self.average = model, dataclasses.replace(model, denoiser=average)  # samples come from the average
        self.optimizers = models.optimizers(denoiser, config.learning_rate)
        self.generator = torch.Generator(model.scheduler.device)
        self.step, self.history, self.best = 0, [], {}
        if config.compile:
            denoiser.compile()
            average.compile()
        shared = process()[1] > 1 and not config.distill
        self.network = torch.nn.parallel.DistributedDataParallel(denoiser) if shared else denoiser

    def start(self) -> None:
        """Set, before the first step, what follows from the data in closed form."""
        model = self.model
        model.denoiser.fit(model.data.batches(FITTED, model.config.seed, 1, model.scheduler.device))
        self.average.denoiser.load_state_dict(model.denoiser.state_dict())

    def steps(self, batch_size: int) -> int:
        """Of an epoch."""
        return self.model.data.steps_per_epoch(batch_size)

    def batches(self, batch_size: int, epoch: int):
        """Yield this process's share of an epoch's batches."""
        data, device = self.model.data, self.model.scheduler.device
        yield from data.batches(batch_size, self.model.config.seed, epoch, device, *process())

    def learn(self, batch) -> Tensor:
        """One step; returns the loss and the gradient's norm, on the device."""
        return train_step(self, batch)

    def held_out_loss(self, epoch: int, items: int) -> float | None:
        """The loss that chooses the best weights, after an epoch of `items`; None if it is not due."""
        return evaluation.held_out_loss(self.average, epoch, items)

    def state_dict(self) -> dict:
        """A checkpoint, of which `load_model` needs the first line."""
        average, config = self.average.denoiser.state_dict(), vars(self.model.config)
        state = {"model": self.model.denoiser.state_dict(), "best": self.best}
        state |= {"step": self.step, "history": self.history}
        state |= {name: part.state_dict() for name, part in zip(self.optimizer_names, self.optimizers)}
        return {"config": config, "data": self.model.data.facts.model_dump(), "average": average} | state

    def load_state_dict(self, state: dict) -> None:
        """Continue where the checkpoint `state` was saved. Raises UsageError."""
        with reading(f"the checkpoint cannot be resumed: {UNFIT}"):
            self.model.denoiser.load_state_dict(state["model"])
            self.average.denoiser.load_state_dict(state["average"])
            self.step, self.history, self.best = state["step"], state["history"], state.get("best", {})
            for optimizer, name in zip(self.optimizers, self.optimizer_names):
                expected = OPTIMIZER_STATE[name] if self.taken(name) > 0 else set()
                models.load_optimizer(optimizer, state[name]["state"], expected)

    def taken(self, optimizer_name: str) -> float:
        """How many steps an optimizer has taken."""
        return self.step

    def note_best(self) -> None:
        """Keep a copy of the average where the held-out loss of the last epoch is the lowest so far."""
        loss = self.history[-1]["held_out_loss"]
        if loss is not None and loss < self.best.get("held_out_loss", math.inf):
            average = copy.deepcopy(self.average.denoiser.state_dict())
            self.best = {"epoch": len(self.history), "held_out_loss": loss, "average": average}

    def finished(self) -> bool:
        """Whether the last epoch is done, or to go on would only raise the held-out loss."""
        config = self.model.config
        overfits = config.keep == "best" and only_rises(self.history)
        return len(self.history) >= config.epochs or overfits

    def chosen(self) -> Model:
        """The model that samples come from, as `--keep` says."""
        denoiser = copy.deepcopy(self.average.denoiser)
        denoiser.load_state_dict(chosen_weights(self.state_dict(), self.model.config.keep)[1])
        return dataclasses.replace(self.average, denoiser=denoiser)


def random_share(draw, shape: tuple, generator: torch.Generator) -> Tensor:
    """Random numbers of `shape`: this process's share of those for all, which do not depend on how many there are."""
    rank, world_size = process()
    return draw((shape[0] * world_size, *shape[1:]), generator=generator, device=generator.device)[rank::world_size]


def training_loss(
    network, scheduler, data: Data, batch, generator, time_power: float, class_dropout=evaluation.LABEL_DROPOUT
) -> Tensor:
    """Mean squared error of the denoiser's prediction at random times (Ho et al. 2020, algorithm 1 and eq. 14).

    Times are T u^time_power for uniform u: a power above 1 spends more of the training where there is little noise.
    """
    (x_0, cond, weight), (_, world_size) = batch, process()
    t = scheduler.training_times(random_share(torch.rand, x_0.shape[: data.time_axes], generator), time_power)
    noise = random_share(torch.randn, x_0.shape, generator)
    if data.classes:
        hidden = random_share(torch.rand, x_0.shape[:1], generator) < class_dropout
        cond = cond.masked_fill(hidden, len(data.classes))
    prediction = network(scheduler.add_noise(x_0, noise, t), t, cond).float()
    target = scheduler.target(x_0, noise, t)
    if weight is None:
        return F.mse_loss(prediction, target)
    total = weight.sum()
    if world_size > 1:
        dist.all_reduce(total)  # gradients are averaged over processes, whose weights may differ
    return (weight * (prediction - target) ** 2).sum() * world_size / total.clamp(min=1)


def train_step(run: Run, batch) -> Tensor:
    """One step of the optimizers and the moving average; returns the loss and the gradient's norm, on the device."""
    model, config, (x_0, cond, weight) = run.model, run.model.config, batch
    batch = model.denoiser.residual(x_0, cond), cond, weight
    run.step += 1
    with models.autocast(model.denoiser, config.precision):
        loss = training_loss(run.network, model.scheduler, model.data, batch, run.generator, config.time_power)
    norm = descend(loss, model.denoiser, run.optimizers, run.step / WARMUP_STEPS)
    follow(run.average.denoiser, model.denoiser, run.step, config.ema_decay)
    return torch.stack([loss.detach(), norm])


def descend(loss: Tensor, network, optimizers: list, share: float) -> Tensor:
    """A step of the optimizers, at `share` of their learning rates, 1 at most; returns the norm of the gradient."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * min(1, share)
        optimizer.step()
        optimizer.zero_grad()
    return norm


@torch.no_grad()
def follow(average, network, step: int, ema_decay: float) -> None:
    """Move an average of a network's weights towards them; a young one must forget its start."""
    decay = min(ema_decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


class Distillation(Run):
    """A run whose model, the student, learns to draw in few calls what `teacher` draws in many; see `distillation`.

    Its held-out loss is how far its samples are from the data, or the teacher's. The learning rate falls to zero.
    """

    optimizer_names = ("adamw", "fake_adamw")

    def __init__(self, model: Model, teacher: Model):
        super().__init__(model)
        self.teacher, rate = teacher, model.config.learning_rate
        for denoiser in (model.denoiser, self.average.denoiser):
            denoiser.load_state_dict(teacher.denoiser.state_dict())
        model.denoiser.eval()  # the encoder of a forecaster stays as it is
        self.fake, rates = None, {model.denoiser.called: rate}
        if model.data.modality in distillation.MATCHED:
            self.fake = copy.deepcopy(teacher.denoiser.called).requires_grad_()
            rates[self.fake] = distillation.FAKE_RATE * rate
        self.optimizers = [distillation.optimizer(network, rate) for network, rate in rates.items()]
        if process()[1] > 1:
            for weight in itertools.chain.from_iterable(network.parameters() for network in rates):
                weight.register_post_accumulate_grad_hook(mean_over_processes)

    def start(self):
        pass  # from the teacher's weights

    def steps(self, batch_size):
        return distillation.STEPS

    def batches(self, batch_size, epoch):
        epochs = (super(Distillation, self).batches(batch_size, i) for i in itertools.count(epoch * distillation.STEPS))
        yield from itertools.islice(itertools.chain.from_iterable(epochs), distillation.STEPS)

    def learn(self, batch):
        if self.step == self.imitated:
            self.optimizers[0].state.clear()  # its moments are those of a loss a hundredth as steep
        return (imitation_step if self.step < self.imitated else matching_step)(self, batch)

    @property
    def imitated(self) -> float:
        """How many of the first steps are by imitation."""
        if self.fake is None:
            return math.inf
        return 0 if self.model.data.classes else distillation.IMITATED

    def taken(self, optimizer_name):
        return self.step if optimizer_name == "adamw" else self.step - self.imitated

    def share(self) -> float:
        """Of the learning rate."""
        left = 1 - (self.step - 1) / (self.model.config.epochs * distillation.STEPS)
        return left * min(1, self.step / distillation.WARMUP)

    def held_out_loss(self, epoch, items):
        score = distillation.score(self.average, self.teacher, generate, imitation_loss)
        return score and of_the_first(score, self.model.scheduler.device)

    def finished(self):
        return len(self.history) >= self.model.config.epochs  # the best may come last, when the rate is low

    def state_dict(self):
        teacher = self.teacher
        kept = {"config": vars(teacher.config), "data": teacher.data.facts.model_dump()}
        kept |= {"average": teacher.denoiser.state_dict()}
        return super().state_dict() | {"teacher": kept, "fake": self.fake.state_dict() if self.fake else {}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        with reading(f"the checkpoint cannot be resumed: {UNFIT}"):
            if self.fake:
                self.fake.load_state_dict(state["fake"])


def steps_from(x_t: Tensor, cond, model: Model, times: list[int], sampler: str):
    """`reverse_process` from x_t on, without noise of its own, by the network that a distillation changes."""
    return reverse_process(denoise_by(model.denoiser.called, cond, model), model.scheduler, times, x_t, sampler)


def generate(model: Model, cond, x_T: Tensor) -> Tensor:
    """x_0 out of the noise x_T in the few calls of a student, with its gradient; cond is what these are given."""
    times = model.scheduler.timesteps(model.config.sampling_steps, model.config.sampling_power)
    *_, (_, _, x_0) = steps_from(x_T, cond, model, times, model.config.sampler)
    return x_0


def imitation_loss(model: Model, teacher: Model, cond, x_T: Tensor) -> Tensor:
    """Mean squared error of the student's steps along the way from x_T to x_0 that the teacher takes without noise.

    Where the teacher gets in many calls, the student is to get in one (Salimans & Ho 2022, all halvings at once). A
    step from x_t counts 1 / sigma_t^2, as errors of v do (their app. D): the last, short ones make outlines sharp.
    """
    times = model.scheduler.timesteps(model.config.sampling_steps, model.config.sampling_power)
    calls = distillation.TEACHER_CALLS[model.data.modality]
    with torch.no_grad():
        way = {t: x_t for t, x_t, _ in steps_from(x_T, cond, teacher, distillation.finer(times, calls), "dpm++")}
    errors = []
    for t, s in itertools.pairwise(times):
        *_, (_, _, x_s) = steps_from(way[t], cond, model, [t, s], model.config.sampler)
        _, sigma = model.scheduler.signal_and_noise(x_T, t)
        errors.append(F.mse_loss(x_s, way[s]) / sigma**2)
    return sum(errors)


def matching_step(run: Distillation, batch) -> Tensor:
    """A step of the student by distribution matching, then FAKE_STEPS of mu_fake on what the student has drawn.

    Returns the loss of mu_fake and the norm of the student's gradient, on the device.
    """
    model, config, teacher, (x_0, cond, _) = run.model, run.model.config, run.teacher, batch
    data, scheduler, student = model.data, model.scheduler, model.denoiser.called
    optimizer, *fake_optimizer = run.optimizers
    run.step += 1
    with torch.no_grad():
        cond = teacher.denoiser.called_with(cond)
    x_T, noise = (random_share(torch.randn, x_0.shape, run.generator) for _ in range(2))
    u = random_share(torch.rand, x_0.shape[: data.time_axes], run.generator)
    t = scheduler.training_times(u, config.time_power)
    x = generate(model, cond, x_T)
    with models.autocast(model.denoiser, config.precision):
        guidance = teacher.config.guidance
        loss = distillation.matching_loss(x, cond, teacher.denoiser.called, run.fake, scheduler, guidance, t, noise)
    norm = descend(loss, student, [optimizer], run.share())
    follow(run.average.denoiser.called, student, run.step, config.ema_decay)
    for _ in range(distillation.FAKE_STEPS):
        drawn = x.detach(), cond, None
        with models.autocast(model.denoiser, config.precision):
            loss = training_loss(run.fake, scheduler, data, drawn, run.generator, config.time_power, class_dropout=0)
        descend(loss, run.fake, fake_optimizer, run.share())
    return torch.stack([loss.detach(), norm])


def imitation_step(run: Distillation, batch) -> Tensor:
    """A step of the student by imitation; returns the loss and the norm of the gradient, on the device."""
    model, (x_0, cond, _) = run.model, batch
    run.step += 1
    with torch.no_grad():
        cond = model.denoiser.called_with(cond)
    x_T = random_share(torch.randn, x_0.shape, run.generator)
    loss = imitation_loss(model, run.teacher, cond, x_T)
    norm = descend(loss, model.denoiser.called, run.optimizers[:1], run.share())
    follow(run.average.denoiser.called, model.denoiser.called, run.step, model.config.ema_decay)
    return torch.stack([loss.detach(), norm])


def train_epoch(run: Run, batch_size: int, bar: tqdm) -> dict:
    """Once through the data; returns the row of the log. All that is random in it follows from seed and epoch."""
    seed, device = run.model.config.seed, run.model.scheduler.device
    epoch, (rank, world_size) = len(run.history) + 1, process()
    run.generator.manual_seed(seed_from(seed, epoch))
    torch.manual_seed(seed_from(seed, epoch, 1 + rank))  # of dropout
    start = last_read = time.monotonic()
    sums, steps = torch.zeros(2, device=device), run.steps(batch_size)
    checked = next((f"{row['held_out_loss']:.4f}" for row in run.history[::-1] if row.get("held_out_loss")), "")
    for i, batch in enumerate(run.batches(batch_size, epoch), start=1):
        sums += run.learn(batch)
        bar.update(batch_size)
        if time.monotonic() - last_read > 0.5 or i == steps:  # seldom: reading the loss waits for the device
            last_read = time.monotonic()
            bar.set_postfix(epoch=epoch, step=run.step, loss=f"{sums[0].item() / i:.4f}", held_out=checked)
            check_finite(run, sums)
    if world_size > 1:
        dist.all_reduce(sums)
    loss, norm = (sums / steps / world_size).tolist()
    seconds, items = time.monotonic() - start, steps * batch_size
    held_out = run.held_out_loss(epoch, items)
    row = {"epoch": epoch, "step": run.step, "loss": loss, "held_out_loss": held_out}
    return row | {"gradient_norm": norm, "seconds": seconds, "items_per_second": items / seconds}


def check_finite(run: Run, sums: Tensor) -> None:
    """Raise UsageError unless the sums of this epoch's losses and the weights, squared, are finite numbers."""
    weights = [*run.model.denoiser.parameters(), *run.average.denoiser.parameters()]
    if not (sums.isfinite().all() and torch.stack(torch._foreach_norm(weights)).isfinite().all()):
        last = f"epoch {run.history[-1]['epoch']}, loss {run.history[-1]['loss']:.4g}" if run.history else "untrained"
        remedy = "continue with --resume and a smaller --learning_rate or --precision fp32, or start anew"
        raise UsageError(f"training is no longer finite; the last checkpoint is from before ({last}): {remedy}")


def train(run: Run, folder: Path) -> None:
    """Train to the last epoch, or until the held-out loss only rises.

    Checkpoints are kept, with samples, every `save_every` epochs, more seldom in long runs. However it ends, the
    checkpoint is that of the last whole epoch, or if the process is killed ten seconds older.
    """
    config, data, first = run.model.config, run.model.data, process()[0] == 0
    batch_size = batch_size_of(config, data)
    items, saved, unsaved = run.steps(batch_size) * batch_size, -math.inf, None
    if not run.step:
        run.start()
    try:
        with progress_bar("training", config.epochs * items, "items", len(run.history) * items) as bar:
            while not run.finished():
                run.history.append(train_epoch(run, batch_size, bar))
                run.note_best()
                epoch = len(run.history)
                keep = epoch % spacing(config.save_every, epoch) == 0 or run.finished()
                if keep:
                    samples, _ = sample(run.average, data.animated)
                if first and keep:
                    save_kept(run.state_dict(), samples, folder / "checkpoints")
                if first and (keep or time.monotonic() - saved > CHECKPOINT_SECONDS):
                    save_last(run.state_dict(), folder)
                    saved, unsaved = time.monotonic(), None
                elif first:
                    unsaved = copy.deepcopy(run.state_dict())
    finally:
        if unsaved:
            save_last(unsaved, folder)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint, on the CPU, read without running code from it, and whole. Raises UsageError."""
    along = ", ".join(sorted(model.stem for model in MODELS.glob("*.pt")))
    remedy = f"name one that a run has left, by --experiment_name for --resume; --sample also takes {along}"
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {remedy}")
    with reading(f"{path}: not a checkpoint (damaged, or not of this program); {remedy}"):
        return whole_checkpoint(torch.load(path, map_location="cpu", weights_only=True))


def whole_checkpoint(state: dict) -> dict:
    """`state`, if its parts fit together, and its teacher's, without settings that are off. Raises any error if not."""
    config = state["config"]
    state["config"] = checked(config) | {"given": checked(config.get("given", {}))}
    data = restore(state["data"])
    best = state.get("best") or {"average": {}, "epoch": 1, "held_out_loss": 1.0}
    samples, history = state.get("samples", torch.zeros(1, *data.shape)), state.get("history", [])
    states = [part for name in OPTIMIZER_STATE for part in state.get(name, {"state": {}})["state"].values()]
    states += [state["average"], state.get("model", {}), state.get("fake", {}), best["average"], {"samples": samples}]
    for tensors in states:
        check_tensors(tensors)
    columns = ("epoch", "step", "loss", "seconds")
    rows = [[*(row[name] for name in columns), row.get("held_out_loss") or 0] for row in history]
    rows = np.array(rows).reshape(-1, 5)
    fitting = [
        data.modality == modality_of(config["dataset"]),
        samples.shape[1:] == data.shape,
        np.isfinite(rows).all() and (rows[:, 0] == np.arange(1, 1 + len(rows))).all(),
        type(state.get("step", 0)) is type(best["epoch"]) is int and type(history) is list,
        type(best["held_out_loss"]) is float and best["held_out_loss"] > 0,
    ]
    if not all(fitting):
        raise ValueError("its parts do not fit together")
    if "teacher" in state:
        whole_checkpoint(state["teacher"])
    return state


def checked(settings: dict) -> dict:
    """Those of a checkpoint's settings that are not off. Raises ValueError if the command line would not take one."""
    kept = {flag: value for flag, value in settings.items() if flag in ROWS}
    kept = {flag: value for flag, value in kept.items() if value is not None and value is not False}
    for flag, value in kept.items():
        if not takes(ROWS[flag], value):
            raise ValueError(f"--{flag} {value}")
    return kept


def forward_film(model: Model):
    """Yield held-out items on their way into noise."""
    data, scheduler = model.data, model.scheduler
    number = data.animated * data.histories
    x_0, _, _ = next(data.held_out(number, number, scheduler.device))
    times = np.unique(np.linspace(0, scheduler.num_timesteps, GIF_FRAMES).astype(int)).tolist()
    generator = torch.Generator(scheduler.device).manual_seed(model.config.seed)
    return (x_t for _, x_t in forward_process(scheduler, x_0, times, generator))


def kept_samples(folder: Path, data: Data):
    """Yield the samples of the kept checkpoints, in the order of their epochs; what is damaged is left out."""
    for path in kept_epochs(folder).values():
        try:
            state = load_checkpoint(path)
            if not data.facts.equal(restore(state["data"]).facts):
                raise UsageError("of another experiment")
            yield state["samples"]
        except (UsageError, KeyError) as error:
            print(f"left out of training.gif: {path}: {error}")


def write_samples(model: Model, folder: Path, bound_calls: int) -> tuple[dict, list]:
    """Samples and the reverse process into `folder`; returns their scores, where the data is at hand, and the film."""
    data, config = model.data, model.config
    x_0, film = sample(model, config.num_samples, GIF_FRAMES)
    if process()[0] > 0:
        return {}, []
    data.save(x_0, folder, config.label)
    pictures = list(data.film(film))
    write_gif(folder / "reverse.gif", pictures)
    metrics = {}
    if bound_calls:
        compared, x_0 = data.comparable(x_0, config.label)
        metrics = compared.score(x_0, model.scheduler.device, thorough=bound_calls > BOUND_CALLS)
        compared.save_nearest(x_0, folder)
    if bound_calls and not config.distill:  # which knows few times alone
        if data.bin_width:
            metrics |= evaluation.bits_per_dim(model, bound_calls)
        metrics |= evaluation.write_noise_levels(model, folder, bound_calls)
    return metrics, pictures


def compare(run: Distillation, folder: Path) -> dict:
    """Draw from teacher and student out of the same noise, side by side; returns calls and seconds of both.

    Of the teacher also the scores; the student's are those of its own samples.
    """
    data, told, pictures = run.model.data, [], []
    shown = {flag: vars(run.model.config)[flag] for flag in ("seed", "label", "num_samples", "precision")}
    for model in (run.teacher, run.chosen()):
        config, start = argparse.Namespace(**vars(model.config) | shown), time.monotonic()
        x_0, _ = sample(dataclasses.replace(model, data=data, config=config), config.num_samples)
        told.append({"network_calls": config.sampling_steps, "seconds": time.monotonic() - start})
        if process()[0] == 0:
            pictures.append(data.render(x_0[: data.animated * data.histories]))
        if process()[0] == 0 and model is run.teacher:
            scores = data.score(x_0)
            told[-1] |= {name: value for name, value in scores.items() if type(value) in (int, float)}
    if pictures:
        write_picture(folder / "teacher_and_student.png", np.concatenate(pictures, 1))
    return told[1] | {"teacher": told[0]}


def experiment_folder(flags: dict) -> Path:
    """The folder of the results, right below `EXPERIMENTS`. Raises UsageError."""
    usual = re.sub("[:/]", "_", f"{flags.get('dataset', DEFAULTS['dataset'])}_base")
    if flags.get("distill"):
        path = Path(flags["distill"])
        usual = f"{path.absolute().parent.name if path.stem == 'checkpoint' else path.stem}_distilled"
    name = flags.get("experiment_name") or usual
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
    elif process()[0] == 0 and "overwrite" not in given and {path.name for path in folder.iterdir()} - UNTRAINED:
        raise UsageError(f"{folder} exists: choose --resume, --overwrite (replaces it) or another --experiment_name")
    teacher = teacher_of(given, saved, device)
    if teacher and not saved:
        config = resolve({flag: given[flag] for flag in given if flag != "guidance"}, vars(teacher.config))
        config.given = {flag: given[flag] for flag in given if flag not in ACTIONS}
    else:
        config = resolve(given, saved.get("config"))
    config.threads = set_threads(config.threads if saved else given.get("threads"), modality_of(config.dataset))
    data = read_data(config)
    source = teacher.data.facts if teacher else restore(saved["data"]).facts if saved else data.facts
    if not data.facts.equal(source):
        raise UsageError(f"--data_dir {config.data_dir}: not the data that {folder} was trained on; give that")
    if not saved or "steps" in given:
        settle(config, given, data)
    model = new_model(config, data, device, saved)
    run = Distillation(model, teacher) if teacher else Run(model)
    if saved:
        run.load_state_dict(saved)
    return run


def teacher_of(given: dict, saved: dict, device: torch.device) -> Model | None:
    """The model to distill, which the checkpoint of a distillation holds too; None in other runs. Raises UsageError."""
    if saved:
        if "distill" in given and "teacher" not in saved:
            raise UsageError(f"--distill {given['distill']}: no distillation was begun here; leave --resume out")
        return trained(saved["teacher"], device) if "teacher" in saved else None
    if "distill" not in given:
        return None
    state = load_checkpoint(find_checkpoint(given["distill"]))
    if state["config"].get("distill"):
        raise UsageError(f"--distill {given['distill']}: is distilled already; name the model that it came from")
    usual = distillation.GUIDANCE if state["data"].get("classes") else 1.0
    return trained(state, device, guidance=given.get("guidance", usual))


def look_at_data(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Read the data, which prints what it is, and draw the beginning of it; returns the picture's path."""
    if "distill" in given:
        raise UsageError(f"--distill {given['distill']}: has no effect with --dry_run; leave one of them out")
    folder, data = experiment_folder(given), read_data(resolve(given))
    if process()[0] == 0:
        with owned(folder):
            write_picture(folder / "data.png", data.overview())
    parts = {"train": len(data.train), "test": len(data.test), "shape": list(data.shape)}
    return folder / "data.png", parts | ({"classes": data.classes} if data.classes else {})


def train_or_resume(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Train as the flags say; returns the folder of the results and the scores."""
    folder, first = experiment_folder(given), process()[0] == 0
    if {"resume", "overwrite"} <= set(given):
        raise UsageError("--resume continues an experiment, --overwrite replaces it: choose one")
    with owned(folder) if first else contextlib.nullcontext():
        run = begin(given, folder, device)
        config, data = run.model.config, run.model.data
        if first and not run.history:
            save(run.state_dict(), folder / "checkpoint.pt")
            clear(folder, ("checkpoint.pt", LOCK))  # only now may an earlier experiment go
        try:
            if first:
                write_json(folder / "config.json", vars(config))
                write_picture(folder / "data.png", data.overview())
            train(run, folder)
            metrics, film = write_samples(run.chosen(), folder, BOUND_CALLS)
            if config.distill:
                metrics |= compare(run, folder)
            if first:
                epoch, _ = chosen_weights(run.state_dict(), config.keep)
                if config.distill:
                    told = [distillation.verdict(metrics, epoch)]
                else:
                    told = [evaluation.verdict_on_curve(run.history, folder, epoch)]
                told += evaluation.verdict_on_samples(metrics)
                minutes = sum(row["seconds"] for row in run.history) / 60
                metrics = {"verdict": " ".join(told), "epoch": epoch, "training_minutes": minutes} | metrics
                write_training(folder, data, run.history, forward_film(run.model), kept_samples(folder, data))
                write_report(folder, config.given, vars(config), metrics, film)
        except KeyboardInterrupt as stop:
            advice = f"--resume --experiment_name {folder.name} continues"
            raise KeyboardInterrupt(*stop.args or [signal.SIGINT], advice) from None
    return folder, metrics


def load_model(path: str | Path, device: torch.device | str = "cpu", load_data: bool = False, **flags) -> Model:
    """The trained model in a checkpoint, or that comes along: `load_model("mnist", label=7)`. Raises UsageError.

    `flags` are those of the command line. Without `load_data` the model's data set has no items to be scored against.
    """
    return trained(load_checkpoint(find_checkpoint(path)), device, load_data, **flags)


def trained(saved: dict, device, load_data: bool = False, **flags) -> Model:
    """The model in the checkpoint `saved`; see `load_model`."""
    config = resolve(flags, saved["config"])
    model = new_model(config, read_data(config) if load_data else restore(saved["data"]), device, saved)
    model.denoiser.load_state_dict(chosen_weights(saved, config.keep)[1])
    model.denoiser.requires_grad_(False).eval()
    if config.compile:
        model.denoiser.compile()
    return model


def predictor(path: str | Path, device: torch.device | str = "cpu", **flags):
    """A GluonTS Predictor out of a checkpoint of time series; `flags` as for `load_model`: sampling_steps=10."""
    model = load_model(path, device, **flags)
    from tiny_diffusion.forecasts import Forecaster

    return Forecaster(model.data, lambda data, number: sample(dataclasses.replace(model, data=data), number)[0])


def from_checkpoint(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Draw from a checkpoint, and with --evaluate score it; returns the folder of the results and the scores."""
    for flag in {*FLAGS["training"], "resume", "overwrite"} & set(given):
        raise UsageError(f"--{flag}: has no effect with --sample or --evaluate, which do not train; leave it out")
    if given.get("sample") and given.get("evaluate"):
        raise UsageError(f"--evaluate {given['evaluate']}: takes no path beside --sample, whose checkpoint it scores")
    path = find_checkpoint(given.get("sample") or given.get("evaluate") or experiment_folder(given) / "checkpoint.pt")
    home = EXPERIMENTS / path.stem if path.absolute().parent == MODELS else path.parent
    model = load_model(path, load_data="evaluate" in given, **given | {"device": device})
    config = model.config
    config.threads = set_threads(given.get("threads"), model.data.modality)
    settings = [path.stem, config.sampler, config.sampling_steps, config.label and f"label-{config.label}"]
    settings += [config.eta and f"eta-{config.eta:g}", f"guidance-{config.guidance:g}", f"seed-{config.seed}"]
    folder, first = home / "samples" / file_name(*filter(None, settings)), process()[0] == 0
    with owned(folder) if first else contextlib.nullcontext():
        metrics, film = write_samples(model, folder, 10 * BOUND_CALLS if "evaluate" in given else 0)
        if told := evaluation.verdict_on_samples(metrics):
            metrics = {"verdict": " ".join(told)} | metrics
        if first:
            write_report(folder, given, vars(config), metrics, film)
    return folder, metrics


def main(given: dict) -> int:
    """Do what the flags say and tell where the results are; returns the exit code."""
    try:
        with explained():
            folder, metrics = perform(given)
            for name, value in (metrics | {"results": folder}).items() if process()[0] == 0 else ():
                print(f"{name}: {format_value(value)}", flush=True)
    except UsageError as error:
        return fail(str(error)) if process()[0] == 0 or isinstance(error.__cause__, RuntimeError) else 2
    except KeyboardInterrupt as stop:
        number, *advice = stop.args or [signal.SIGINT]
        if process()[0] == 0:
            print("; ".join(["stopped", *advice]), file=sys.stderr)
        return 128 + number
    if dist.is_initialized():
        dist.barrier()  # torchrun ends all processes as soon as one fails: none leaves before the first is done
        dist.destroy_process_group()
    return 0


def perform(given: dict) -> tuple[Path, dict]:
    """Choose the device, join torchrun's other processes, and train or draw."""
    keep_memory()
    device = choose_device(given.get("device", "auto"))
    with reading("WORLD_SIZE and RANK are not as torchrun sets them ({error}); start with torchrun, or unset them"):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # all wait while the first process decodes and scores
            a_week = pd.Timedelta(days=7)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=a_week)
    act = from_checkpoint if {"sample", "evaluate"} & set(given) else train_or_resume
    act = look_at_data if "dry_run" in given else act
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
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - where it is closed
    sys.stdout.reconfigure(errors="backslashreplace")  # for names of files that are not UTF-8
    sys.exit(main(GIVEN))
