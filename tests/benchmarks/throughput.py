"""The UNet beside diffusers' and lucidrains', at about the same number of parameters: speed, and quality by time.

    python tests/benchmarks/throughput.py
    python tests/benchmarks/throughput.py --minutes 5 15 --data_dir data

For the speed all run in turn, several rounds, in one process on MNIST's shape, in float32, then bfloat16; figures are
medians. The last column is the rate of convolutions and matrix products (forward and backward) as a share of what a
large matrix product reaches in the same precision. With --minutes each is then trained on MNIST on one core, by its own
recipe, and 1,000 samples of 25 calls are judged as handwritten_digits.py does it: after these minutes, and at times
between, to tell when the Fréchet distance first falls below each of --below. Only the processor's time in training
counts. Ours learn the digits' classes too, unless it says otherwise. Nobody mirrors digits, though lucidrains' Trainer
mirrors images unless it is told not to.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))
import handwritten_digits

import datasets
import ddpm
from tiny_diffusion.images import Images, frechet_distances
from tiny_diffusion.machine import keep_memory

BATCH, ROUNDS, SAMPLING_STEPS = 128, 5, 20
SAMPLES, CALLS, DRAWN = 1000, 25, 250  # judged, calls for each, drawn at once
NO_PATCHES = {"patch_size": 1, "channel_multipliers": [1, 1]}  # else the same network
MARKS, GROWTH = 8, 1.5  # how often a race is looked at, and how much later each time


class Diffusers(UNet2DModel):
    """With its own block structure, narrow enough to have as many parameters as ours."""

    def __init__(self):
        widths = {"block_out_channels": (24, 32, 32), "layers_per_block": 2, "norm_num_groups": 8}
        blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")}
        blocks["up_block_types"] = ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        super().__init__(sample_size=28, in_channels=1, out_channels=1, **widths, **blocks)

    def forward(self, x_t, t, cond):
        return super().forward(x_t, t).sample


class Lucidrains(Unet):
    """With its own defaults, narrow enough to have as many parameters as ours."""

    def __init__(self):
        super().__init__(dim=14, dim_mults=(1, 2, 4), channels=1)

    def forward(self, x_t, t, cond):
        return super().forward(x_t, t)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds_of(work: dict) -> dict:
    """The seconds of each piece of work in several rounds, all in turn, without the first, which warms up."""
    rounds = [{key: seconds(task) for key, task in work.items()} for _ in range(ROUNDS + 1)]
    return {key: [of_round[key] for of_round in rounds[1:]] for key in work}


def speed():
    data = datasets.restore({"name": "mnist", "shape": [1, 28, 28], "classes": [str(digit) for digit in range(10)]})
    models = {
        "ours": ddpm.new_model(ddpm.resolve({"dataset": "mnist"}), data, "cpu").denoiser,
        "ours, patch size 1": ddpm.new_model(ddpm.resolve({"dataset": "mnist"} | NO_PATCHES), data, "cpu").denoiser,
        "diffusers": Diffusers(),
        "lucidrains": Lucidrains(),
    }
    x, t, cond = torch.randn(BATCH, 1, 28, 28), torch.randint(1, 1000, (BATCH,)), torch.randint(0, 10, (BATCH,))
    left, right = torch.randn(2, 4096, 4096)

    def training_step(model, optimizer):
        (model(x, t, cond) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def sampling(model):
        for _ in range(SAMPLING_STEPS):
            model(x, t, cond)

    work, operations = {"matrix product": lambda: left @ right}, {}
    for name, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        work[name, "train"] = lambda model=model, optimizer=optimizer: training_step(model, optimizer)
        work[name, "sample"] = lambda model=model: sampling(model)
        with FlopCounterMode(display=False) as counter:
            work[name, "train"]()
        operations[name] = counter.get_total_flops()
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            print_speed("bfloat16" if half else "float32", models, operations, rounds_of(work))


def print_speed(precision: str, models: dict, operations: dict, times: dict):
    peak = 2 * 4096**3 / median(times["matrix product"])
    print(f"{precision}, {torch.get_num_threads()} threads, matrix product {peak / 1e9:.0f} GFLOP/s")
    columns = ("", "parameters", "training images/s", "ours over it", "samples/s", "ours over it", "of peak")
    print("".join(f"{column:>20}" for column in columns))
    for name, model in models.items():
        train, sample = median(times[name, "train"]), median(times[name, "sample"])
        ratios = [median(b / a for a, b in zip(times["ours", kind], times[name, kind])) for kind in ("train", "sample")]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        share = operations[name] / train / peak
        row = (
            f"{parameters:,}",
            f"{BATCH / train:.0f}",
            f"{ratios[0]:.1f}",
            f"{BATCH / sample:.1f}",
            f"{ratios[1]:.1f}",
        )
        print("".join(f"{column:>20}" for column in (name, *row, f"{share:.0%}")))


def ours(data, optimizer=None, **flags):
    """The defaults of ddpm.py; `optimizer(weights)` in place of Muon and AdamW together."""
    config = ddpm.resolve({"dataset": "mnist", "sampling_steps": CALLS} | flags)
    run = ddpm.Run(ddpm.new_model(config, data, "cpu"))
    if optimizer:
        run.optimizers = [optimizer(run.model.denoiser.parameters())]
    batches = batches_of(data, config.train_batch_size)

    def step(share):
        ddpm.train_step(run, next(batches))

    def draw():
        return data.decode(ddpm.sample(run.average, SAMPLES)[0])

    return step, list(run.average.denoiser.parameters()), draw


def diffusers(data):
    """The recipe of its train_unconditional.py, whose learning rate falls as the time runs out."""
    model, chain = Diffusers(), DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
    batches = batches_of(data, 16)

    def step(share):
        x_0, _, _ = next(batches)
        noise, t = torch.randn_like(x_0), torch.randint(1000, (len(x_0),))
        loss = F.mse_loss(model(chain.add_noise(x_0, noise, t), t, None), noise)
        warm_up = min(1, average.optimization_step / 500)
        optimizer.param_groups[0]["lr"] = 1e-4 * warm_up * (1 + math.cos(math.pi * share)) / 2
        descend(loss, model, optimizer)
        average.step(model.parameters())

    @torch.inference_mode()
    def draw():
        average.copy_to(model.parameters())
        sampler = DPMSolverMultistepScheduler.from_config(chain.config)
        sampler.set_timesteps(CALLS)
        x = torch.randn(SAMPLES, 1, 28, 28)
        for t in sampler.timesteps:
            prediction = torch.cat([model(part, t, None) for part in x.split(DRAWN)])
            x = sampler.step(prediction, t, x).prev_sample
        return data.decode(x)

    return step, average.shadow_params, draw


def lucidrains(data):
    """The recipe of its README, whose two batches of 32 for a step are one of 64 here."""
    diffusion = GaussianDiffusion(Lucidrains(), image_size=28, timesteps=1000, sampling_timesteps=CALLS)
    optimizer = torch.optim.Adam(diffusion.parameters(), 8e-5, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    batches = batches_of(data, 64)

    def step(share):
        x_0, _, _ = next(batches)
        descend(diffusion((x_0 + 1) / 2), diffusion, optimizer)
        average.update()

    def draw():
        images = [average.ema_model.sample(batch_size=DRAWN) for _ in range(SAMPLES // DRAWN)]
        return data.decode(2 * torch.cat(images) - 1)

    return step, list(average.ema_model.parameters()), draw


def batches_of(data, size: int):
    return itertools.chain.from_iterable(data.batches(size, 0, epoch, "cpu") for epoch in itertools.count(1))


def descend(loss, model, optimizer):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def race(contestant, marks: list[float], asked: list[float], enough: float, distance_of) -> dict[float, float]:
    """Fréchet distances after `marks` seconds of training; none earlier than one above `enough`, but those `asked` for.

    A contestant is step(share of the time that is spent), the weights that it samples with, and draw().
    """
    step, weights, draw = contestant
    spent, kept, distances, distance = 0, [], {}, 0
    for mark in marks:
        while spent < mark:
            start = time.process_time()
            step(spent / marks[-1])
            spent += time.process_time() - start
        kept.append([weight.clone() for weight in weights])
    for mark in reversed(marks):
        then = kept.pop()
        if mark in asked or distance < enough:
            torch._foreach_copy_(weights, then)
            distances[mark] = distance = distance_of(draw())
    return distances


def frechet_distance(reference, samples, judge) -> float:
    (distance,) = frechet_distances(reference, [samples], feature=judge)
    return distance


def quality(minutes: list[float], below: list[float], data_dir: str, kept: Path | None):
    torch.set_num_threads(1)
    data = datasets.load(ddpm.resolve({"dataset": "mnist", "data_dir": data_dir}))
    judge = handwritten_digits.trained(data, kept=kept)
    facts = data.facts.model_copy(update={"classes": None})
    without_classes = Images(facts, items=data.items, train=data.train, test=data.test)
    reference = data.items[data.test][::2]
    contestants = {
        "ours": lambda: ours(data),
        "ours, no classes": lambda: ours(without_classes),
        "ours, AdamW alone": lambda: ours(data, lambda weights: torch.optim.AdamW(weights, 1e-3)),
        "ours, patch size 1": lambda: ours(data, **NO_PATCHES),
        "diffusers": lambda: diffusers(data),
        "lucidrains": lambda: lucidrains(data),
    }
    asked = [60 * value for value in sorted(minutes)]
    marks = sorted({*asked, *(asked[-1] / GROWTH**i for i in range(MARKS))})
    print("Fréchet distance of samples after so many seconds of training, and seconds until it is below a value")
    print(f"{'':20}" + "".join(f"{mark:>8.0f}" for mark in marks) + "".join(f"{f'< {value:g}':>8}" for value in below))
    for name, contestant in contestants.items():
        torch.manual_seed(0)
        distances = race(contestant(), marks, asked, max(below), lambda x: frechet_distance(reference, x, judge))
        row = [f"{distances[mark]:.2f}" if mark in distances else "" for mark in marks]
        for value in below:
            reached = [f"{mark:.0f}" for mark in marks if distances.get(mark, value) < value]
            row.append(reached[0] if reached else "never")
        print(f"{name:20}" + "".join(f"{cell:>8}" for cell in row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", help="train and judge instead, after so many minutes")
    parser.add_argument("--below", type=float, nargs="+", default=[5, 2.3, 1.2], metavar="DISTANCE")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--judge", type=Path, metavar="FILE", help="where the judge is, or else goes once trained")
    arguments = parser.parse_args()
    keep_memory()
    if arguments.minutes:
        quality(arguments.minutes, arguments.below, arguments.data_dir, arguments.judge)
    else:
        speed()


if __name__ == "__main__":
    main()
