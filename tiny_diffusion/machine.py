"""The machine: its device and memory, what it refuses, and what several processes, which torchrun starts, share."""

import contextlib
import ctypes
import math
import os
import re
import sys

import numpy as np
import psutil
import torch
import torch.distributed as dist
from tqdm import tqdm

from tiny_diffusion.messages import UsageError

NOISE_BLOCK = 32  # samples that share a random generator
MMAP_THRESHOLD, TRIM_THRESHOLD = (-3, 2**25), (-1, 2**29)  # parameters of glibc's mallopt, and bytes
MOST_THREADS = {"points": 4, "series": 4}  # of small networks: PyTorch cuts their tensors into no more parts


def process() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def of_the_first(value: float, device) -> float:
    """The first process's value, as float32, so that all decide alike."""
    shared = torch.tensor([value], dtype=torch.float32, device=device)
    if process()[1] > 1:
        dist.broadcast(shared, 0)
    return shared.item()


def mean_over_processes(weight: torch.Tensor) -> None:
    """Make the gradient of a weight the mean of all processes'."""
    dist.all_reduce(weight.grad)
    weight.grad /= dist.get_world_size()


def progress_bar(title: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A bar on the first process's terminal; nothing where the output is not a terminal."""
    quiet = None if process()[0] == 0 else True
    return tqdm(desc=title, total=total, initial=initial, unit=f" {unit}", unit_scale=True, leave=False, disable=quiet)


def seed_from(*numbers: int) -> int:
    """A seed that depends on all of `numbers`; zeros at the end count for nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def choose_device(name: str) -> torch.device:
    """The device called `name`; `auto` is this process's GPU if there is one. Raises UsageError."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # what "cuda" stands for
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"--device {name}: no such device; choose cpu, cuda, cuda:1 or mps")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: not available ({error}); choose another, or cpu") from error


class Unfilled(torch.overrides.TorchFunctionMode):
    """Leaves new weights unfilled: on the device "meta" PyTorch would import its compiler for that, for a second."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return keywords["tensor"]
        return function(*arguments, **keywords or {})


def keep_memory() -> None:
    """Let glibc keep up to half a gigabyte of freed memory, which the next step needs: new pages are slow to get."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for parameter, value in (MMAP_THRESHOLD, TRIM_THRESHOLD):
            libc.mallopt(parameter, value)


def set_threads(threads: int | None, modality: str) -> int:
    """Compute with as many threads, by default as cores are free; returns the number."""
    if not threads:
        threads = min(torch.get_num_threads(), MOST_THREADS.get(modality, math.inf))
        if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it, too
            threads = max(1, min(threads, free_cores()))
    torch.set_num_threads(threads)
    return threads


def free_cores() -> int:
    """How many of the processor's cores have nothing to do, looked at for a quarter of a second."""
    return round(sum(1 - busy / 100 for busy in psutil.cpu_percent(0.25, percpu=True)))


@contextlib.contextmanager
def explained():
    """Turn what the machine refuses, a file or memory, or the loss of another process into a UsageError."""
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


def noise_of(seed: int, numbers: range, device):
    """Returns draw(shape): noise that depends on a sample's number, not on its batch; NOISE_BLOCK share a generator."""
    first, last = numbers[0] // NOISE_BLOCK, numbers[-1] // NOISE_BLOCK
    seeds = (seed_from(seed, block, 0, 1) for block in range(first, last + 1))
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def draw(shape):
        blocks = [torch.randn((NOISE_BLOCK, *shape), generator=generator, device=device) for generator in generators]
        return torch.cat(blocks)[numbers[0] - first * NOISE_BLOCK :][: len(numbers)]

    return draw


def paired_noise_of(seed: int, numbers: range, device, histories: int):
    """`noise_of` for paths that continue so many histories in turn; of each, every second negates the one before.

    By such antithetic variates (Hammersley & Morton 1956) few paths have nearly the mean and median of many.
    """
    path, history = np.divmod(numbers, histories)
    number = path // 2 * histories + history
    draw = noise_of(seed, range(number.min(), number.max() + 1), device)
    index, sign = (torch.from_numpy(part).to(device) for part in (number - number.min(), 1 - 2 * (path % 2)))
    return lambda shape: draw(shape)[index] * sign.view(-1, *(1,) * len(shape))


def check_memory(flags: str, size: float, device) -> None:
    """Raise UsageError, which names `flags`, where `size` bytes are more than the device's memory."""
    device = torch.device(device)
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if size > memory:
        raise UsageError(f"{flags}: {size / 1e9:.0f} GB, of {memory / 1e9:.0f} GB of memory; make it smaller")
