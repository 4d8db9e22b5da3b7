"""Denoising diffusion probabilistic models (Ho et al. 2020) of points, images, sounds and time series.

    python ddpm.py                                                          a dinosaur of 2D points, in half a minute
    python ddpm.py --dataset mnist --epochs 20 --experiment_name mnist_base
    python ddpm.py --sample exps/mnist_base/checkpoint.pt --label 7 --guidance 2
    python ddpm.py --dataset mnist --experiment_name mnist_base --resume --epochs 40
    python ddpm.py --dataset exchange-rate                                  forecasts with intervals
    torchrun --nproc-per-node=4 ddpm.py --dataset faces

From top to bottom: arguments, `NoiseScheduler`, the reverse process, training, checkpoints, what is left in `exps/`.
"""

import argparse
import base64
import copy
import csv
import inspect
import itertools
import json
import math
import os
import pickle
import shlex
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import datasets
from datasets import DATASETS, STATIC, Data, UsageError, entry, load, restore

EXPERIMENTS = Path("exps")
LABEL_DROPOUT = 0.1  # how often training hides the class, for classifier-free guidance (Ho & Salimans 2022)
LABEL_GUIDANCE = 2.0  # who asks for a class wants it clear
WARMUP_STEPS = 200  # of the learning rate, linearly from zero
GRADIENT_CLIP = 1.0  # the largest norm of a gradient
FRAMES = 34  # of a GIF: one of colour photographs stays below 2 MB
SAMPLING_STEPS = 30  # of ddim and dpm++, unless a flag says otherwise
PLAYERS = 40  # of sounds at most in a report
BOUND_CALLS = 1000  # network calls for the variational bound after training; --evaluate takes ten times as many


def number(kind, low, high=math.inf):
    """An argparse type: a number of `kind` (int or float) between `low` and `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} is not {'a whole number' if kind is int else 'a number'} in [{low}, {high}]"
            )
        return value

    return parse


def option(default, text: str, *names: str, **settings) -> dict:
    """A row of `FLAGS`. `default` may be a dictionary by modalities: the flag then serves these modalities alone."""
    if isinstance(default, dict):
        default = {modality: value for modalities, value in default.items() for modality in modalities.split()}
    return {"default": default, "help": text, "names": names, "settings": settings}


def dataset(text: str) -> str:
    """An argparse type: the name of a data set."""
    if text not in DATASETS and not text.startswith("gluonts:"):
        raise argparse.ArgumentTypeError(f"{text}: choose among {', '.join(DATASETS)}, gluonts:NAME")
    return text


count = number(int, 1)
FLAGS = {  # every flag, with its default, in the order of -h
    "data": {
        "dataset": option("dino", f"{', '.join(DATASETS)}, or gluonts:NAME", type=dataset, metavar="NAME"),
        "data_dir": option(
            "data", "where data sets are read from or downloaded to; with `folder` and `sounds`, your own"
        ),
        "limit": option(None, "train on the first N items alone", type=count),
        "image_size": option({"images": None}, "side of the images (default: grey as they are, RGB 64)", type=count),
        "prediction_length": option({"series": None}, "steps to forecast (default: the data set's own)", type=count),
        "context_length": option({"series": None}, "steps read before (default: as many as forecast)", type=count),
        "freq": option({"series": None}, "of a CSV's rows: h, 30min, D, B, W, M (default: as they lie)", metavar="F"),
        "difference": option(
            {"series": None}, "forecast changes over N steps, 0: values (default: a season, or 1)", type=number(int, 0)
        ),
        "scaling": option({"series": "mean"}, "of a window by its context", choices=("mean", "standard")),
        "words": option({"audio": None}, "to speak (default: the digits; of `sounds`, all)", metavar="W", nargs="+"),
    },
    "diffusion": {
        "num_timesteps": option(
            {"points": 200, "images audio": 1000, "series": 100}, "length T of the chain", type=number(int, 2)
        ),
        "beta_schedule": option("cosine", "how noise comes in", choices=("linear", "quadratic", "cosine", "sigmoid")),
        "prediction_type": option("v", "what the denoiser predicts", choices=("epsilon", "v", "sample")),
    },
    "denoiser": {
        "hidden_size": option(
            {"points": 128, "images": 64, "audio": 32, "series": 64}, "width of the first layer", type=count
        ),
        "hidden_layers": option(
            {"points": 3, "images audio": 1, "series": 2}, "layers, or blocks of each UNet stage", type=count
        ),
        "embedding_size": option(
            {"points images audio": 128, "series": 64}, "of the positional embeddings", type=number(int, 2)
        ),
        "dropout": option({"series": 0.3}, "share of the RNN's values hidden in training", type=number(float, 0, 1)),
        "time_embedding": option(
            "sinusoidal", "of t", choices=("sinusoidal", "fourier", "learnable", "linear", "zero")
        ),
        "input_embedding": option(
            {"points": "sinusoidal"}, "of x_t", choices=("sinusoidal", "fourier", "learnable", "linear", "identity")
        ),
        "channel_multipliers": option(
            {"images": None, "audio": [1, 2, 4]},
            "widths of the UNet's stages (default: images 1 1 2 2 ... down to 8 pixels)",
            type=count,
            nargs="+",
        ),
        "patch_size": option({"images audio": 2}, "side of the squares the UNet takes as one pixel", type=count),
    },
    "training": {
        "epochs": option(
            {"points": 400, "images audio": 20, "series": 6}, "times through the data", "--num_epochs", type=count
        ),
        "train_batch_size": option(
            {"points": 1024, "images": 128, "audio series": 64}, "items a step, over all processes", type=count
        ),
        "learning_rate": option({"points": 2e-3, "images audio series": 1e-3}, "of AdamW", type=number(float, 0)),
        "ema_decay": option(0.999, "of the weights' moving average, reached gradually", type=number(float, 0, 1)),
        "save_every": option(
            {"points": 40, "images audio series": 1},
            "epochs between kept checkpoints",
            "--save_images_step",
            type=count,
        ),
    },
    "sampling": {
        "sampler": option(
            {"points": "ddpm", "images audio series": "dpm++"}, "way back", choices=("ddpm", "ddim", "dpm++")
        ),
        "sampling_steps": option(None, "network calls for a sample (default: ddpm T, others 30)", type=count),
        "eta": option(0.0, "noise of ddim: 0 none, 1 as ddpm", type=number(float, 0, 1)),
        "num_samples": option(
            {"points": 2000, "images audio series": 100}, "samples to draw; of series, of each window", type=count
        ),
        "eval_batch_size": option(
            {"points series": 10000, "images": 500, "audio": 100}, "samples drawn at once", type=count
        ),
        "label": option(None, "draw this class alone, by name or number (default: each in turn)"),
        "guidance": option(
            None, "towards the class: 1 as learned, 0 without (default: 2 with --label, else 1)", type=number(float, 0)
        ),
    },
    "run": {
        "experiment_name": option(None, "results go to exps/EXPERIMENT_NAME (default: DATASET_base)"),
        "seed": option(0, "of all that is random", type=number(int, 0)),
        "device": option("auto", "cpu, cuda, cuda:1 ..."),
        "precision": option("auto", "of the denoiser; auto: bf16 on a GPU", choices=("auto", "fp32", "bf16")),
        "compile": option(False, "compile the denoiser: a minute to start, then faster", action="store_true"),
    },
}
ACTIONS = {  # what to do other than train anew
    "resume": option(None, "go on from the experiment's last checkpoint", action="store_true"),
    "overwrite": option(None, "delete the experiment, if it exists, and start anew", action="store_true"),
    "sample": option(None, "draw samples from this checkpoint", metavar="CHECKPOINT"),
    "evaluate": option(
        None,
        "score a checkpoint (default: the experiment's) on held-out data",
        metavar="CHECKPOINT",
        nargs="?",
        const="",
    ),
}
DEFAULTS = {flag: row["default"] for group in FLAGS.values() for flag, row in group.items()}
FIXED = {flag for group in ("data", "diffusion", "denoiser") for flag in FLAGS[group]} - {"data_dir"}  # by training


class Parser(argparse.ArgumentParser):
    def error(self, message):
        sys.exit(fail(message))


def fail(message: str) -> int:
    """Say what is wrong in one line; returns the exit code."""
    print("ddpm.py: error:", *message.split(), file=sys.stderr)
    return 2


def parse_arguments(arguments: list[str] | None = None) -> dict:
    """The flags that were given, and no others: defaults come from `DEFAULTS` or from a checkpoint."""
    parser = Parser(
        usage="python ddpm.py [--dataset NAME] [flags]",
        description="Train a diffusion model, draw from it, score it. Without flags: the dinosaur.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, flags in (FLAGS | {"actions": ACTIONS}).items():
        group = parser.add_argument_group(title)
        for flag, row in flags.items():
            default = row["default"]
            if isinstance(default, dict):
                default = ", ".join(f"{modality} {value}" for modality, value in default.items() if value is not None)
            settings = ({"metavar": "N"} if "type" in row["settings"] else {}) | row["settings"]
            text = row["help"] + (f" (default: {default})" if default else "")
            group.add_argument(f"--{flag}", *row["names"], dest=flag, help=text, **settings)
    return vars(parser.parse_args(arguments))


def resolve(given: dict, saved: dict | None = None) -> SimpleNamespace:
    """The whole configuration: the flags given, else those `saved` in a checkpoint, else the defaults.

    Raises UsageError for a flag that the modality has no use for, and for one that training has fixed.
    """
    if saved:
        for flag in FIXED & set(given):
            if given[flag] != saved.get(flag):
                raise UsageError(
                    f"--{flag} {given[flag]}: the checkpoint was trained with {saved.get(flag)}; leave it out"
                )
    modality = entry((saved or given).get("dataset", DEFAULTS["dataset"]))[0].modality
    config = {}
    for flag, default in DEFAULTS.items():
        if isinstance(default, dict) and modality not in default:
            if flag in given:
                raise UsageError(f"--{flag}: of no use for {modality}; leave it out")
            continue
        config[flag] = default[modality] if isinstance(default, dict) else default
    config |= {flag: value for flag, value in (saved or {}).items() if flag not in ("device", "compile")}
    config |= {flag: value for flag, value in given.items() if flag in DEFAULTS}
    config["experiment_name"] = config["experiment_name"] or f"{config['dataset']}_base".replace(":", "_")
    if not config["sampling_steps"] or {"sampling_steps", "sampler"} & set(given) == {"sampler"}:
        num_timesteps = config["num_timesteps"]
        config["sampling_steps"] = num_timesteps if config["sampler"] == "ddpm" else min(SAMPLING_STEPS, num_timesteps)
    if config["guidance"] is None or {"label", "guidance"} & set(given) == {"label"}:
        config["guidance"] = LABEL_GUIDANCE if config["label"] else 1.0
    if config["sampling_steps"] > config["num_timesteps"]:
        raise UsageError(
            f"--sampling_steps {config['sampling_steps']}: at most --num_timesteps, {config['num_timesteps']}"
        )
    return SimpleNamespace(**config)


if __name__ == "__main__":
    GIVEN = parse_arguments()  # before PyTorch, whose import takes seconds: -h and a mistyped flag answer at once

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import models  # noqa: E402

DENOISERS = {"points": models.MLP, "images": models.UNet, "audio": models.UNet, "series": models.RNN}


class NoiseScheduler:
    """The chain x_0, x_1, ..., x_T and the way back, for x of any shape.

    t runs from 1 to T = `num_timesteps`, as in the paper; t = 0 is the data. A tensor of times belongs to the leading
    axes of x. `interval` is the range of x_0, to which predictions of it are clipped. All tables are float64, of
    length T + 1.
    """

    def __init__(
        self,
        num_timesteps: int = 1000,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        interval: tuple[float, float] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.num_timesteps, self.prediction_type, self.interval = num_timesteps, prediction_type, interval
        self.betas = F.pad(make_betas(beta_schedule, num_timesteps), (1, 0)).to(device)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)

    def signal_and_noise(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at t, shaped to multiply x."""
        alphas_cumprod = self.alphas_cumprod[t]
        alphas_cumprod = alphas_cumprod.reshape(alphas_cumprod.shape + (1,) * (x.ndim - alphas_cumprod.ndim))
        return alphas_cumprod.sqrt().to(x.dtype), (1 - alphas_cumprod).sqrt().to(x.dtype)

    def snr(self, t: Tensor | int) -> Tensor:
        """Signal-to-noise ratio of x_t; infinite at t = 0."""
        return self.alphas_cumprod[t] / (1 - self.alphas_cumprod[t])

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

    def posterior(self, x_0: Tensor, x_t: Tensor, t: int, s: int, eta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x_0) for s < t (Song et al. 2021, eq. 7 and 16).

        eta = 1 is the posterior of the chain (Ho et al. 2020, eq. 6 and 7), eta = 0 has no variance.
        """
        alpha_t, alpha_s = self.alphas_cumprod[t], self.alphas_cumprod[s]
        variance = eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)
        noise_weight = ((1 - alpha_s - variance).clamp(min=0) / (1 - alpha_t)).sqrt()
        x_0_weight = alpha_s.sqrt() - noise_weight * alpha_t.sqrt()
        return x_0_weight.to(x_t.dtype) * x_0 + noise_weight.to(x_t.dtype) * x_t, variance.to(x_t.dtype)

    def step(
        self,
        prediction: Tensor,
        x_t: Tensor,
        t: int,
        s: int,
        noise: Tensor | None = None,
        eta: float = 1.0,
        previous: tuple[Tensor, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x_s for s < t, and the x_0 that the denoiser predicted at x_t. One formula makes three samplers:

        - ddpm: eta = 1, ancestral sampling (Ho et al. 2020, algorithm 2), strided where s < t - 1;
        - ddim: eta = 0, or anything between (Song et al. 2021, eq. 12);
        - dpm++: eta = 0 and `previous`, the last step's x_0 and t. DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) is
          ddim with x_0 extrapolated along log(signal / noise) to the middle of the step.
        """
        x_0 = target = self.predict_x_0(prediction, x_t, t)
        if previous and s > 0:  # the last step, to infinite signal, is of first order
            last_x_0, last_t = previous
            h, last_h = self.log_snr(s) - self.log_snr(t), self.log_snr(t) - self.log_snr(last_t)
            target = x_0 + (h / (2 * last_h)).to(x_0.dtype) * (x_0 - last_x_0)
        mean, variance = self.posterior(target, x_t, t, s, eta)
        return mean if noise is None else mean + variance.sqrt() * noise, x_0

    def log_snr(self, t: int) -> Tensor:
        """log(signal / noise), half the logarithm of the SNR; lambda in Lu et al. (2022)."""
        return self.snr(t).log() / 2

    def timesteps(self, sampling_steps: int) -> list[int]:
        """sampling_steps + 1 times from T down to 0, evenly spaced."""
        return np.linspace(self.num_timesteps, 0, sampling_steps + 1).round().astype(int).tolist()


def make_betas(beta_schedule: str, num_timesteps: int) -> Tensor:
    """beta_1 ... beta_T in float64; every schedule ends in noise whatever T is.

    `linear` (Ho et al. 2020, sec. 4) and `quadratic` are given for T = 1000 and rescaled by 1000 / T; `cosine`
    (Nichol & Dhariwal 2021, eq. 17) and `sigmoid` (Jabri et al. 2022, app. B) give alphas_cumprod at any T.
    """
    scale = 1000 / num_timesteps
    if beta_schedule == "linear":
        betas = torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)
    elif beta_schedule == "quadratic":
        betas = torch.linspace((scale * 1e-4) ** 0.5, (scale * 0.02) ** 0.5, num_timesteps, dtype=torch.float64) ** 2
    else:
        u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
        if beta_schedule == "cosine":
            signal = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        else:
            signal = torch.sigmoid(3 - 6 * u) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
        betas = 1 - signal[1:] / signal[:-1]
    return betas.clamp(max=0.999)


def guided(model, x_t: Tensor, t: Tensor, cond, guidance: float) -> Tensor:
    """The denoiser's prediction with classifier-free guidance: uncond + guidance * (cond - uncond).

    Ho & Salimans (2022), eq. 6, with guidance = 1 + w: 1 leaves the prediction as it is.
    """
    if guidance == 1:
        return model(x_t, t, cond)
    nothing = torch.full_like(cond, model.num_classes)
    twice = (torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([cond, nothing]))
    with_class, without_class = model(*twice).chunk(2)
    return without_class + guidance * (with_class - without_class)


@torch.inference_mode()
def sample(model, scheduler: NoiseScheduler, data: Data, config, number: int) -> tuple[Tensor, Tensor]:
    """Draw `number` samples, and keep the way of the first few from noise to x_0 for a GIF.

    Both come as float32 on the CPU, of shapes (number, *shape) and (frames, animated, *shape).
    """
    device = scheduler.betas.device
    generator = torch.Generator(device).manual_seed(config.seed)
    times = scheduler.timesteps(config.sampling_steps)
    frames = set(np.linspace(0, len(times) - 1, FRAMES).astype(int))
    eta = {"ddpm": 1.0, "ddim": config.eta, "dpm++": 0.0}[config.sampler]

    def reverse(denoiser, shape, cond):
        x_t = torch.randn(shape, generator=generator, device=device)
        way, previous = [x_t[: data.animated].cpu()], None
        for i, (t, s) in enumerate(itertools.pairwise(times), start=1):
            with autocast(config.precision, device):
                every_t = torch.full(shape[: data.time_axes], t, device=device)
                prediction = guided(denoiser, x_t, every_t, cond, config.guidance).float()
            noise = torch.randn(shape, generator=generator, device=device) if eta and s else None
            x_t, x_0 = scheduler.step(prediction, x_t, t, s, noise, eta, previous)
            previous = (x_0, t) if config.sampler == "dpm++" else None
            if i in frames:
                way.append(x_t[: data.animated].cpu())
            bar.update(shape[0])
        return x_t.cpu(), torch.stack(way)

    batches = [range(number)[i : i + config.eval_batch_size] for i in range(0, number, config.eval_batch_size)]
    with progress_bar("sampling", number * data.draws * (len(times) - 1), "calls") as bar:
        drawn = [data.generate(model, reverse, len(b), data.condition(b, config.label, device)) for b in batches]
    return torch.cat([x_0 for x_0, _ in drawn]), drawn[0][1]


@torch.inference_mode()
def bits_per_dim(model, scheduler: NoiseScheduler, data: Data, config, number: int) -> dict:
    """The variational bound on held-out data in bits per dimension (Ho et al. 2020, eq. 5), and its standard error.

    Each of `number` items pays for one t, drawn with probability proportional to 1 / t, where the bound has its weight.
    """
    device, dimensions = scheduler.betas.device, math.prod(data.shape)
    generator = torch.Generator(device).manual_seed(config.seed)
    odds = 1 / torch.arange(1, config.num_timesteps + 1, dtype=torch.float64, device=device)
    odds /= odds.sum()
    quantiles = (torch.randperm(number, generator=generator, device=device) + 0.5) / number
    times = 1 + torch.searchsorted(odds.cumsum(0), quantiles.double()).clamp(max=config.num_timesteps - 1)
    bits = []
    batches = zip(data.held_out(config.eval_batch_size, number, device), times.split(config.eval_batch_size))
    with progress_bar("evaluating", number, "items") as bar:
        for (x_0, cond, _), t in batches:
            x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=generator, device=device), t)
            with autocast(config.precision, device):
                prediction = model(x_t, t, cond).float()
            terms = bound_terms(scheduler, x_0, x_t, t, prediction, data.bin_width)
            bits.append(terms.flatten(1).sum(1) / odds[t - 1] + prior_term(scheduler, x_0).flatten(1).sum(1))
            bar.update(len(x_0))
    bits = torch.cat(bits) / (dimensions * math.log(2))
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": (bits.std() / number**0.5).item()}


def prior_term(scheduler: NoiseScheduler, x_0: Tensor) -> Tensor:
    """L_T: KL(q(x_T | x_0) || N(0, 1)) in nats, for each value."""
    alpha_T = scheduler.alphas_cumprod[-1]
    return (alpha_T * x_0.double() ** 2 - alpha_T - torch.log1p(-alpha_T)) / 2


def bound_terms(scheduler: NoiseScheduler, x_0, x_t, t: Tensor, prediction, bin_width: float) -> Tensor:
    """L_{t-1} in nats, for each value of x_0: a KL divergence for t > 1, the decoder's -log p(x_0 | x_1) for t = 1.

    The reverse process has the posterior's variance, for t = 1 beta_1. The decoder gives each bin of raw values the
    normal distribution's mass in it, the outermost bins all that lies beyond (Ho et al. 2020, eq. 13).
    """
    predicted = scheduler.predict_x_0(prediction, x_t, t).double()
    x_0, extra = x_0.double(), (1,) * (x_0.ndim - t.ndim)
    divergence = (scheduler.snr(t - 1) - scheduler.snr(t)).view(-1, *extra) / 2 * (x_0 - predicted) ** 2
    low, high = x_0 - predicted - bin_width / 2, x_0 - predicted + bin_width / 2
    low = low.masked_fill(x_0 < scheduler.interval[0] + bin_width / 2, -math.inf) / scheduler.betas[1].sqrt()
    high = high.masked_fill(x_0 > scheduler.interval[1] - bin_width / 2, math.inf) / scheduler.betas[1].sqrt()
    flip = low > 0  # far above the mean: by symmetry the same mass below it, where floating point has digits left
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    return torch.where(t.view(-1, *extra) > 1, divergence, -mass.clamp(min=1e-12).log())


def autocast(precision: str, device):
    """bfloat16 arithmetic where `precision` asks for it, by itself on a GPU that has it."""
    on_gpu = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = precision == "bf16" or (precision == "auto" and on_gpu)
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def progress_bar(title: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A bar on one process's terminal; nothing where the output is not a terminal."""
    quiet = None if process()[0] == 0 else True
    return tqdm(desc=title, total=total, initial=initial, unit=f" {unit}", unit_scale=True, leave=False, disable=quiet)


def process() -> tuple[int, int]:
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def chosen(config, function) -> dict:
    """Those settings that `function` takes, by the names of its parameters."""
    return {name: getattr(config, name) for name in inspect.signature(function).parameters if hasattr(config, name)}


def build(config, data: Data, device):
    """A new denoiser and the scheduler for it. Raises UsageError where the sizes do not fit together."""
    denoiser = DENOISERS[data.modality]
    torch.manual_seed(config.seed)
    try:
        model = denoiser(data.shape, data.cond_size, **chosen(config, denoiser)).to(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    data.condition(range(1), config.label, device)  # to know a wrong --label before the training
    if config.guidance != 1 and not data.classes:
        raise UsageError(f"--guidance {config.guidance}: {data.name} has no classes; leave --guidance out")
    scheduler = NoiseScheduler(
        config.num_timesteps, config.beta_schedule, config.prediction_type, data.interval, device
    )
    return model, scheduler


def training_loss(network, scheduler: NoiseScheduler, data: Data, batch, generator: torch.Generator) -> Tensor:
    """Mean squared error of the denoiser's prediction at random times (Ho et al. 2020, algorithm 1 and eq. 14).

    Random numbers are drawn for the batches of all processes, so that they do not depend on how many there are.
    """
    x_0, cond, weight = batch
    rank, world_size = process()
    device, items = x_0.device, len(x_0) * world_size
    times = (items, *x_0.shape[1 : data.time_axes])
    t = torch.randint(1, scheduler.num_timesteps + 1, times, generator=generator, device=device)[rank::world_size]
    noise = torch.randn((items, *x_0.shape[1:]), generator=generator, device=device)[rank::world_size]
    if data.classes:
        hidden = torch.rand(items, generator=generator, device=device)[rank::world_size] < LABEL_DROPOUT
        cond = cond.masked_fill(hidden, len(data.classes))
    prediction = network(scheduler.add_noise(x_0, noise, t), t, cond).float()
    target = scheduler.target(x_0, noise, t)
    if weight is None:
        return F.mse_loss(prediction, target)
    return (weight * (prediction - target) ** 2).sum() / weight.sum().clamp(min=1)


def begin(config, data: Data, device: torch.device, saved: dict | None) -> SimpleNamespace:
    """All that training changes, in one place, as it was `saved` in a checkpoint or new."""
    model, scheduler = build(config, data, device)
    run = SimpleNamespace(model=model, scheduler=scheduler, step=0, history=[])
    run.average = copy.deepcopy(model).requires_grad_(False).eval()  # of the weights; what samples are drawn with
    run.optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, fused=True)
    run.generator = torch.Generator(device)
    if saved:
        for part in ("model", "average", "optimizer"):
            load_part(getattr(run, part), saved[part])
        run.step, run.history = saved["step"], saved["history"]
    if config.compile:
        model.compile()
    run.network = model
    if process()[1] > 1:
        run.network = torch.nn.parallel.DistributedDataParallel(model)
    return run


def train_step(run, config, data: Data, batch) -> Tensor:
    """One step of AdamW and of the moving average; returns the loss and the gradient's norm, still on the device."""
    run.step += 1
    run.optimizer.param_groups[0]["lr"] = config.learning_rate * min(1, run.step / WARMUP_STEPS)
    with autocast(config.precision, batch[0].device):
        loss = training_loss(run.network, run.scheduler, data, batch, run.generator)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), GRADIENT_CLIP)
    run.optimizer.step()
    run.optimizer.zero_grad()
    decay = min(config.ema_decay, (1 + run.step) / (10 + run.step))  # a young average must forget its start
    with torch.no_grad():
        torch._foreach_lerp_(list(run.average.parameters()), list(run.model.parameters()), 1 - decay)
        return torch.stack([loss, norm])


def train_epoch(run, config, data: Data, batch_size: int, bar: tqdm) -> dict:
    """Once through the data; returns the row of the log. All that is random in it follows from seed and epoch."""
    epoch, (rank, world_size) = len(run.history) + 1, process()
    run.generator.manual_seed(int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0]))
    start = read = time.monotonic()
    sums, steps = torch.zeros(2, device=run.generator.device), data.steps_per_epoch(batch_size)
    for batch in data.batches(batch_size, config.seed, epoch, run.generator.device, rank, world_size):
        figures = train_step(run, config, data, batch)
        sums += figures
        bar.update(batch_size)
        if time.monotonic() - read > 0.5:  # seldom: reading the loss waits for the device
            read = time.monotonic()
            bar.set_postfix(epoch=epoch, loss=f"{figures[0].item():.4f}")
            check_finite(sums, epoch)
    if world_size > 1:
        dist.all_reduce(sums)
    check_finite(sums, epoch)
    loss, norm = (sums / steps / world_size).tolist()
    seconds = time.monotonic() - start
    row = {"epoch": epoch, "step": run.step, "loss": loss, "gradient_norm": norm}
    return row | {"seconds": seconds, "items_per_second": steps * batch_size / seconds}


def check_finite(sums: Tensor, epoch: int) -> None:
    """Raise UsageError once a loss or a gradient is not finite."""
    if not sums.isfinite().all():
        raise UsageError(
            f"the loss is no longer finite in epoch {epoch}; the last checkpoint is good: go on from it with --resume "
            "and a smaller --learning_rate, or with --precision fp32"
        )


def train(run, config, data: Data, folder: Path) -> None:
    """Train to the last epoch, with a checkpoint after each and one to keep, with samples, every `save_every`."""
    rank, world_size = process()
    batch_size = min(config.train_batch_size, len(data.train)) // world_size * world_size
    if batch_size == 0:
        raise UsageError(f"--train_batch_size {config.train_batch_size}: too small for {world_size} processes")
    items = data.steps_per_epoch(batch_size) * batch_size
    with progress_bar("training", config.epochs * items, "items", len(run.history) * items) as bar:
        while len(run.history) < config.epochs:
            run.history.append(train_epoch(run, config, data, batch_size, bar))
            if rank > 0:
                continue
            epoch = len(run.history)
            to_sample = {"config": vars(config), "data": data.facts, "average": run.average.state_dict()}
            if epoch % config.save_every == 0 or epoch == config.epochs:
                samples, _ = sample(run.average, run.scheduler, data, config, data.animated)
                save(to_sample | {"epoch": epoch, "samples": samples}, folder / "checkpoints" / f"epoch_{epoch:04d}.pt")
            to_resume = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
            to_resume |= {"step": run.step, "history": run.history}
            save(to_sample | to_resume, folder / "checkpoint.pt")
            write_log(run.history, folder)


def save(state: dict, path: Path) -> None:
    """Write a checkpoint so that `path` is at every moment whole: the old one or the new one."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".part")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint, on the CPU, read without running code from it. Raises UsageError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"config", "data", "average"} <= set(state):
            raise KeyError("no denoiser in it")
    except FileNotFoundError as error:
        raise UsageError(
            f"{path}: no such checkpoint; --sample and --evaluate take a file that a run has left"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a checkpoint of this program, or a damaged one; choose another") from error
    return state


def load_part(part, state: dict) -> None:
    """Give a denoiser or an optimizer the state out of a checkpoint. Raises UsageError."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise UsageError("the checkpoint is of another version of this program; train anew") from error


def write_log(history: list[dict], folder: Path) -> None:
    """log.csv, a row for each epoch."""
    with open(folder / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, history[0])
        writer.writeheader()
        writer.writerows(history)


def draw_loss(history: list[dict], folder: Path) -> None:
    """loss.png, the mean loss of each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss", yscale="log")
    axes.plot([row["epoch"] for row in history], [row["loss"] for row in history])
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120)


def write_gif(path: Path, pictures) -> None:
    """An endless GIF, 60 ms a picture, that rests on the last."""
    import imageio.v3 as imageio

    pictures = np.stack(list(pictures))
    durations = [60] * (len(pictures) - 1) + [1500]  # Pillow takes no list for a single picture
    imageio.imwrite(path, pictures, duration=durations if len(pictures) > 1 else durations[0], loop=0)


def forward_process(scheduler: NoiseScheduler, data: Data, seed: int):
    """Yield held-out items on their way from x_0 to x_T, each from the one before (Ho et al. 2020, eq. 2)."""
    generator = torch.Generator().manual_seed(seed)
    x_t, _, _ = next(data.held_out(data.animated, data.animated, "cpu"))
    yield x_t
    times = np.linspace(0, scheduler.num_timesteps, FRAMES).astype(int)
    alphas_cumprod = scheduler.alphas_cumprod.cpu().float()
    for s, t in itertools.pairwise(times):
        if t > s:
            alpha = alphas_cumprod[t] / alphas_cumprod[s]
            x_t = alpha.sqrt() * x_t + (1 - alpha).sqrt() * torch.randn(x_t.shape, generator=generator)
            yield x_t


def draw_and_score(model, scheduler, data: Data, config, folder: Path, bound_calls: int) -> dict:
    """Samples and the reverse process into `folder`; where the data is at hand, their scores too."""
    number = config.num_samples * len(data.starts)
    x_0, way = sample(model, scheduler, data, config, number)
    data.save(x_0, folder, data.condition(range(number), config.label, "cpu"))
    write_gif(folder / "reverse.gif", map(data.draw, way))
    metrics = {}
    if bound_calls:
        metrics = data.score(x_0, thorough=bound_calls > BOUND_CALLS)
        if data.bin_width:
            metrics |= bits_per_dim(model, scheduler, data, config, bound_calls)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def command_line(flags: dict) -> str:
    """The command that gives these flags."""
    words = ["python", "ddpm.py"]
    for flag, value in flags.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{flag}", *map(str, values)]
    return shlex.join(words)


def flags_of(config) -> dict:
    """The flags that make `config` out of the defaults."""
    flags = {"dataset": config.dataset}
    for flag, value in vars(config).items():  # in order: a default may depend on the flags before it
        if vars(resolve(flags))[flag] != value:
            flags[flag] = value
    return flags


def shown(value) -> str:
    """A figure or a setting for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def embedded(path: Path, kind: str) -> str:
    """A file as a URL that holds all of it."""
    return f"data:{kind}/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def write_report(folder: Path, flags: dict, config, metrics: dict) -> None:
    """report.html: all that a run has left in `folder`, on one page that needs nothing else."""
    import jinja2

    captions = {
        "reverse.gif": "reverse process: samples out of noise",
        "samples.png": "samples",
        "forecast.png": "forecasts, with intervals of 50% and 90%",
        "forward.gif": "forward process: data into noise",
        "training.gif": "samples after each kept checkpoint",
        "loss.png": "training loss",
    }
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["figure"] = shown
    sounds = sorted(folder.glob("audio/*.wav"), key=lambda path: path.stem.split("_")[-1])[:PLAYERS]
    pictures = [path for path in map(folder.joinpath, captions) if path.exists()]
    text = page.from_string((STATIC / "report.html").read_text("utf-8")).render(
        title=config.experiment_name,
        command=command_line(flags),
        metrics=metrics,
        columns=[name for name, figures in metrics.items() if isinstance(figures, dict)],
        players=[(path.stem, embedded(path.with_suffix(".png"), "image"), embedded(path, "audio")) for path in sounds],
        pictures=[(captions[path.name], embedded(path, "image")) for path in pictures],
        config=vars(config),
    )
    (folder / "report.html").write_text(text, "utf-8")


def experiment_folder(given: dict) -> Path:
    """The folder of the results, right below `EXPERIMENTS`. Raises UsageError."""
    name = given.get("experiment_name") or f"{given.get('dataset', DEFAULTS['dataset'])}_base".replace(":", "_")
    if Path(name).name != name or name == "..":
        raise UsageError(f"--experiment_name {name}: must be a plain name, for a folder in {EXPERIMENTS}/")
    return EXPERIMENTS / name


def load_data(config) -> Data:
    """The data set, read by the first process first, which downloads and decodes it for all."""
    rank, world_size = process()
    if rank > 0:
        dist.barrier()
    data = load(config.dataset, **chosen(config, load))
    if rank == 0 and world_size > 1:
        dist.barrier()
    return data


def from_scratch_or_resumed(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Train as the flags say; returns the folder of the results and the scores."""
    folder, rank, saved = experiment_folder(given), process()[0], {}
    if {"resume", "overwrite"} <= set(given):
        raise UsageError("--resume goes on with an experiment, --overwrite deletes it: choose one")
    if "resume" in given:
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"--resume: there is no experiment in {folder}; check --experiment_name or leave --resume out"
            )
        saved = {"config": json.loads((folder / "config.json").read_text())}
        if (folder / "checkpoint.pt").exists():
            saved = load_checkpoint(folder / "checkpoint.pt")
    elif rank == 0 and folder.exists() and "overwrite" not in given:
        raise UsageError(
            f"{folder} exists: --resume goes on with it, --overwrite starts anew, --experiment_name gives another name"
        )
    config = resolve(given, saved.get("config"))
    data = load_data(config)
    if "data" in saved and saved["data"] != data.facts:
        raise UsageError(f"--data_dir {config.data_dir}: not the data that {folder} was trained on; give that folder")
    run = begin(config, data, device, saved if "model" in saved else None)
    if rank == 0:
        if folder.exists() and not saved:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(vars(config), indent=2) + "\n")
    train(run, config, data, folder)
    if rank > 0:
        return folder, {}
    draw_loss(run.history, folder)
    write_gif(folder / "forward.gif", map(data.draw, forward_process(run.scheduler, data, config.seed)))
    kept = sorted((folder / "checkpoints").glob("epoch_*.pt"))
    write_gif(folder / "training.gif", (data.draw(load_checkpoint(path)["samples"]) for path in kept))
    metrics = draw_and_score(run.average, run.scheduler, data, config, folder, BOUND_CALLS)
    write_report(folder, flags_of(config), config, metrics)
    return folder, metrics


def reopen(path: str | Path, given: dict, device: torch.device | str = "cpu"):
    """The denoiser, scheduler, data set and configuration of a checkpoint. Raises UsageError.

    `given` are flags, as on the command line. The data set has no items, unless --evaluate is among them.
    """
    saved = load_checkpoint(Path(path))
    config = resolve(given, saved["config"])
    data = load_data(config) if "evaluate" in given else restore(saved["data"])
    model, scheduler = build(config, data, device)
    load_part(model, saved["average"])
    model.eval()
    if config.compile:
        model.compile()
    return model, scheduler, data, config


def predictor(path: str | Path, device="cpu", **flags):
    """A GluonTS Predictor out of a checkpoint of time series; `flags` as on the command line: sampling_steps=10."""
    model, scheduler, data, config = reopen(path, flags, device)
    return datasets.predictor(data, lambda number: sample(model, scheduler, data, config, number)[0])


def from_checkpoint(given: dict, device: torch.device) -> tuple[Path, dict]:
    """Draw from a checkpoint, and with --evaluate score it; returns the folder of the results and the scores."""
    for flag in {*FLAGS["training"], "resume", "overwrite"} & set(given):
        raise UsageError(f"--{flag}: of no use with --sample or --evaluate, which train nothing; leave it out")
    path = Path(given.get("sample") or given.get("evaluate") or experiment_folder(given) / "checkpoint.pt")
    model, scheduler, data, config = reopen(path, given, device)
    settings = [path.stem, config.sampler, config.sampling_steps, config.label and f"label-{config.label}"]
    settings += [f"guidance-{config.guidance:g}", f"seed-{config.seed}"]
    folder = path.parent / "samples" / "_".join(str(part).replace("/", "-") for part in settings if part)
    folder.mkdir(parents=True, exist_ok=True)
    calls = 10 * BOUND_CALLS if "evaluate" in given else 0
    metrics = draw_and_score(model, scheduler, data, config, folder, calls)
    write_report(folder, given, config, metrics)
    return folder, metrics


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is this process's GPU if there is one. Raises UsageError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not to be had here ({reason}); choose another, or cpu") from error


def main(given: dict) -> int:
    """Do what the flags say and tell where the results are; returns the exit code."""
    try:
        device = choose_device(given.get("device", "auto"))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # started by torchrun
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        act = from_checkpoint if {"sample", "evaluate"} & set(given) else from_scratch_or_resumed
        folder, metrics = act(given, device)
    except UsageError as error:
        return fail(str(error)) if process()[0] == 0 else 2
    except KeyboardInterrupt:
        print("\nstopped; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    if process()[0] == 0:
        for name, value in metrics.items():
            print(f"{name}: {shown(value)}")
        print(f"results: {folder}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(GIVEN))
