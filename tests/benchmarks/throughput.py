"""Training and sampling speed of the UNet beside diffusers' and lucidrains', at about the same number of parameters.

    python tests/benchmarks/throughput.py

All run in turn, several rounds, in one process on MNIST's shape; the figures are medians. The last column is the rate
of convolutions and matrix products (forward and backward) as a share of what a large float32 matrix product reaches.
"""

import sys
import time
from pathlib import Path
from statistics import median

import torch
from denoising_diffusion_pytorch import Unet
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))
import ddpm
from datasets import restore

BATCH, ROUNDS, SAMPLING_STEPS = 128, 5, 20


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


def main():
    data = restore({"name": "mnist", "shape": [1, 28, 28], "classes": [str(digit) for digit in range(10)]})
    ours = ddpm.new_model(ddpm.resolve({"dataset": "mnist"}), data, "cpu").denoiser
    models = {"ours": ours, "diffusers": Diffusers(), "lucidrains": Lucidrains()}
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
    times = {key: [] for key in work}
    for i in range(ROUNDS + 1):
        for key, task in work.items():
            elapsed = seconds(task)
            if i:  # the first round warms up
                times[key].append(elapsed)
    peak = 2 * 4096**3 / median(times["matrix product"])
    print(f"{torch.get_num_threads()} threads, matrix product {peak / 1e9:.0f} GFLOP/s")
    columns = ("", "parameters", "training images/s", "ours over it", "samples/s", "ours over it", "of peak")
    print("".join(f"{column:>18}" for column in columns))
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
        print("".join(f"{column:>18}" for column in (name, *row, f"{share:.0%}")))


if __name__ == "__main__":
    main()
