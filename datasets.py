"""The data sets: what they have in common, then modality by modality a class and its readers, then one table of all.

>>> data = load(ddpm.resolve({"dataset": "dino"}))
>>> x_0, cond, weight = next(data.batches(512, seed=0, epoch=1, device="cpu"))

To add a data set, write a function that reads it and add a row to `DATASETS`. A reader takes the configuration, whose
settings are the command line's flags, and raises UsageError.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import hashlib
import io
import itertools
import math
import os
import re
import shutil
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import torch
from gluonts.time_feature import (
    day_of_month,
    day_of_year,
    get_seasonality,
    time_features_from_frequency_str,
    week_of_year,
)
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

STATIC = Path(__file__).parent / "static"
RESIDENT_BYTES = 2**30  # data up to this size is kept on the device, larger data is read from the disk
HELD_OUT = 0.1  # share of the items held out for scoring, where the data set itself does not say
MAX_PICTURED = 2000  # samples in a picture
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")  # of arrays
MAX_TRUE = 20000  # points that samples are compared with


class UsageError(ValueError):
    """An error the user can fix: the message names the argument and the remedy."""


def write(path: Path, produce) -> None:
    """Write what `produce(file)` writes; `path` is at every moment whole, the old one or the new. Raises UsageError."""
    buffer = io.BytesIO()
    produce(buffer)
    with replacing(path, len(buffer.getbuffer())) as file:
        file.write(buffer.getbuffer())


@contextlib.contextmanager
def replacing(path: Path, size: int):
    """A file for `size` bytes or fewer that becomes `path` when all is written. Raises UsageError."""
    partial = path.with_name(f"{path.name}.part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        remedy = "make room and repeat the command; a checkpoint written before is whole, for --resume"
        raise UsageError(f"{path}: {size / 1e6:.1f} MB could not be written ({error.strerror}); {remedy}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(folder: Path, wait: bool = False):
    """Keep `folder`, made if absent, to this process, as long as it lives; what another left half-written in it goes.

    Where another process has it, `wait` for that, or raise UsageError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while (file := locked(path)) is None:
        if not wait:
            raise UsageError(f"{folder}: another process is at work on it; wait, or choose another --experiment_name")
        time.sleep(0.1)
    try:
        for partial in (*folder.glob("*.part"), *folder.glob("*/*.part")):
            partial.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            path.unlink()
            folder.rmdir()
            folder.parent.rmdir()
        os.close(file)


def locked(path: Path) -> int | None:
    """A descriptor of `path`, locked until it is closed or this process ends; None where another has the lock."""
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not os.path.samestat(os.fstat(file), os.stat(path))  # its last owner has just removed it
    except OSError as error:
        taken = isinstance(error, (BlockingIOError, FileNotFoundError))  # or else this file system has no locks
    if taken:
        os.close(file)
    return None if taken else file


def file_name(*parts) -> str:
    """A plain file name out of any texts: no separators, nothing that is longer than a file system takes."""
    return re.sub(r"[^\w.-]+", "-", "_".join(str(part)[:60] for part in parts))


class Data:
    """What every modality offers, and all that training and sampling know of it.

    `items` are raw, as they are stored; a batch `x` is in model space, float32 of shape (n, *shape). `facts` are what
    a checkpoint keeps, so that `restore(facts)` renders, saves and names samples without the data.
    """

    modality = ""
    interval = None  # (low, high): the range of x_0 in model space, where it has one
    bin_width = None  # distance of neighbouring raw values in model space, where they are discrete
    time_axes = 1  # how many leading axes of a batch have a diffusion time of their own
    animated = 0  # samples in a GIF
    histories = 1  # histories to forecast from; numbers of samples are those of each

    def __init__(self, name, shape, classes=None, items=None, labels=None, train=None, test=None):
        self.name, self.shape, self.classes = name, tuple(shape), classes
        self.items, self.labels, self.train, self.test = items, labels, train, test
        self.facts = {"name": name, "shape": list(shape), "classes": classes}
        self._resident = None

    def network_settings(self) -> dict:
        """Keyword arguments of the denoiser that the data decides."""
        return {}

    @staticmethod
    def whole(**facts) -> bool:
        """Whether facts out of a file are of the right kinds and sizes."""
        raise NotImplementedError

    def encode(self, raw: Tensor) -> Tensor:
        """Raw items to model space."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> np.ndarray:
        """Model space to raw items."""
        raise NotImplementedError

    def render(self, x: Tensor) -> np.ndarray:
        """A batch as one picture, (height, width, 3) uint8."""
        raise NotImplementedError

    def save(self, x: Tensor, folder: Path, label=None) -> None:
        """Write samples, drawn with `label`, as samples.npy, in raw units, and samples.png."""
        write(folder / "samples.npy", lambda file: np.save(file, self.decode(x)))
        write_picture(folder / "samples.png", self.render(x[:MAX_PICTURED]))

    def score(self, x: Tensor, device="cpu", thorough: bool = False) -> dict:
        """Figures for samples, beside those of `true_samples`; `thorough` adds what takes minutes or a download."""
        return {}

    def save_nearest(self, x: Tensor, folder: Path) -> None:
        """Write nearest.png, samples beside the training items nearest to them, where it can be drawn."""

    def of_class(self, label) -> Data:
        """The items of one class alone, to compare samples drawn with `label` with; without a label, all."""
        data = copy.copy(self)
        if label is not None:
            number = self.class_number(str(label))
            data.train, data.test = (part[self.labels[part] == number] for part in (self.train, self.test))
        return data if len(data.train) and len(data.test) else self

    def condition(self, samples: range, label, device):
        """cond to draw `samples` with: the class called `label`, by name or number, or else every class in turn."""
        if label is not None:
            return torch.full((len(samples),), self.class_number(str(label)), device=device)
        return torch.tensor(samples, device=device) % len(self.classes) if self.classes else None

    def class_number(self, label: str) -> int:
        """The number of the class called `label`. Raises UsageError."""
        if not self.classes:
            raise UsageError(f"--label {label}: {self.name} has no classes; leave --label out")
        if label in self.classes:
            return self.classes.index(label)
        if not (label.isdecimal() and int(label) < len(self.classes)):
            raise UsageError(f"--label {label}: {self.name} has the classes {', '.join(self.classes)}")
        return int(label)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch; the items left over differ from epoch to epoch."""
        return max(1, len(self.train) // batch_size)

    def batches(self, batch_size: int, seed: int, epoch: int, device, rank: int = 0, world_size: int = 1):
        """Yield (x_0, cond, weight) once through the training set, in an order given by `seed` and `epoch` alone.

        Of each batch, process `rank` of `world_size` gets its share. `weight`, of x_0's shape or None, says how much
        each value counts in the loss.
        """
        order = np.random.default_rng((seed, epoch)).permutation(self.train)
        steps = self.steps_per_epoch(batch_size)
        yield from self.read([order[i * batch_size :][:batch_size][rank::world_size] for i in range(steps)], device)

    def held_out(self, batch_size: int, number: int, device):
        """Yield (x_0, cond, weight) for `number` held-out items, over and over if there are fewer."""
        order = np.resize(np.random.default_rng(0).permutation(self.test), number)
        yield from self.read(np.split(order, range(batch_size, number, batch_size)), device)

    def validation(self, batch_size: int, number: int, device):
        """`held_out`, for the loss while training: before the test data begins, where there is an order of time."""
        return self.held_out(batch_size, number, device)

    def read(self, batches, device):
        """Yield (x_0, cond, weight) for each array of indices, out of the device's memory or ahead from the disk."""
        device = torch.device(device)
        if self.items.nbytes <= RESIDENT_BYTES:
            if self._resident is None or self._resident.device != device:
                self._resident = torch.from_numpy(np.array(self.items)).to(device)
            found = ((index, self._resident[torch.from_numpy(index).to(device)]) for index in batches)
        else:
            found = read_ahead(lambda index: (index, torch.from_numpy(self.items[index]).to(device)), batches)
        for index, raw in found:
            labels = None if self.labels is None else torch.as_tensor(self.labels[index]).to(device)
            yield self.encode(raw), labels, None


def read_ahead(read, requests, depth: int = 4):
    """Yield read(request) for each request, in order, with `depth` of them under way in threads."""
    with ThreadPoolExecutor(depth) as pool:
        pending = collections.deque()
        for request in requests:
            pending.append(pool.submit(read, request))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def split(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `number` items train, and which are held out: one in ten, at least one."""
    order = np.random.default_rng(0).permutation(number)
    test, train = np.split(order, [max(1, round(HELD_OUT * number))])
    return train, test


@contextlib.contextmanager
def reading(message: str):
    """Around a reader of what others made: any error, of which each library has its own, becomes a UsageError.

    `message` may have a place for the {error}.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(message.replace("{error}", f"{type(error).__name__}: {error}")) from error


def download(name: str, config, remedy: str):
    """Around the download of what is not there."""
    state = "is not there, or not whole, and could not be downloaded ({error})"
    return reading(f"--data_dir {config.data_dir}: {name} {state}; connect to the internet, or {remedy}")


def check_tensors(tensors: dict) -> None:
    """Raise ValueError unless all are floats of 16 or 32 bits, finite, and take the memory that their shapes say."""
    for tensor in tensors.values():
        honest = tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
        if tensor.dtype not in (torch.float16, torch.float32) or not (honest and tensor.isfinite().all()):
            raise ValueError("not finite numbers")


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """A picture, (height, width, 3) uint8, as PNG."""
    write(path, lambda file: imageio.imwrite(file, pixels, extension=".png"))


def pixels_of(figure: Figure) -> np.ndarray:
    """A figure as a picture, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as `dtype`, rounded and clipped where it holds integers."""
    if np.issubdtype(dtype, np.integer):
        values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


class Points(Data):
    """Points in the plane, or of any dimension. Model space: standardised, each coordinate by itself."""

    modality = "points"
    animated = 1000

    def __init__(self, name, shape, mean, std, limits, dtype="float32", **items):
        super().__init__(name, shape, **items)
        self.mean, self.std, self.limits, self.dtype = mean, std, limits, dtype
        self.facts |= {"mean": mean, "std": std, "limits": limits, "dtype": dtype}
        reach = (np.array(limits) - mean) / std
        self.interval = (1.25 * reach.min().item(), 1.25 * reach.max().item())  # wide enough to shape nothing

    @staticmethod
    def whole(shape, classes, mean, std, limits, dtype="float32", **_):
        numbers = are_numbers([mean, std, *limits], 4, *shape) and min(std) > 0
        return len(shape) == 1 and not classes and numbers and dtype in DTYPES

    def encode(self, raw):
        raw = raw if raw.dtype == torch.float64 else raw.float()
        return ((raw - raw.new_tensor(self.mean)) / raw.new_tensor(self.std)).float()

    def decode(self, x):
        return cast(x.cpu().double().numpy() * self.std + self.mean, self.dtype)

    def render(self, x):
        """Each pair of the first three coordinates, each coordinate of more than two on a scale of its own."""
        pairs = list(itertools.combinations(range(min(self.shape[0], 3)), 2)) or [(0, 0)]
        figure, points = Figure(figsize=(4 * len(pairs), 4), dpi=100), self.decode(x)
        low, high = np.array(self.limits)
        middle, reach = (low + high) / 2, 0.65 * (high - low).clip(min=1e-9)
        reach = reach if self.shape[0] > 2 else reach.max().repeat(self.shape[0])
        for k, (i, j) in enumerate(pairs):
            axes = figure.add_axes((k / len(pairs), 0, 1 / len(pairs), 1))
            axes.set(
                xlim=(middle[i] - reach[i], middle[i] + reach[i]), ylim=(middle[j] - reach[j], middle[j] + reach[j])
            )
            axes.set_axis_off()
            axes.plot(points[:, i], points[:, j], ".", markersize=4, markeredgewidth=0, color="#2b5c8a", alpha=0.7)
        return pixels_of(figure)

    def score(self, x, device="cpu", thorough=False):
        """Distances to true samples of the same size and to training items, beside those of true samples."""
        parts = (self.train, self.test[:MAX_TRUE])
        train, true = (self.encode(torch.from_numpy(self.items[part])).numpy() for part in parts)
        if len(true) < 2:
            return {}
        x = x[: len(true) // 2].float().cpu().numpy()
        true = true[: len(true) // len(x) * len(x)].reshape(-1, *x.shape)
        scores, floors = {"samples": len(x)}, {}
        for name, distance in {"sliced_wasserstein": sliced_wasserstein, "distance_to_data": nearest_distance}.items():
            scores[name] = float(np.mean([distance(x, other) for other in true]))
            floors[name] = float(np.mean([distance(one, other) for one, other in zip(true, np.roll(true, 1, axis=0))]))
        scores["distance_to_training_items"] = nearest_distance(x, train)
        floors["distance_to_training_items"] = nearest_distance(true[0], train)
        ratios = {f"{name}_ratio": scores[name] / max(floor, 1e-9) for name, floor in floors.items()}
        return scores | ratios | {"true_samples": floors}


def nearest_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean distance of the points x to the nearest of the points y, both (n, dimensions)."""
    from scipy.spatial import KDTree

    return float(KDTree(y).query(x)[0].mean())


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, directions: int = 128) -> float:
    """Sliced 2-Wasserstein distance of two equally large sets of points, (n, dimensions) (Bonneel et al. 2015, eq. 9).

    The directions are evenly spread in the plane, random ones elsewhere.
    """
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    theta = np.stack([np.cos(angles), np.sin(angles)])
    if x.shape[1] != 2:
        theta = np.random.default_rng(0).normal(size=(x.shape[1], directions))
        theta /= np.linalg.norm(theta, axis=0)
    return float(np.sqrt(np.mean((np.sort(x @ theta, axis=0) - np.sort(y @ theta, axis=0)) ** 2)))


def points(name: str, sample, config) -> Points:
    """8,000 training points and 20,000 held out, drawn by `sample(number, generator)`."""
    number = 8000
    items = sample(number + 20000, np.random.default_rng(0)).astype(np.float32)
    train, test = np.arange(number), np.arange(number, len(items))
    return Points(name, (2,), items=items, train=train, test=test, **points_facts(items[train]))


def points_facts(known: np.ndarray) -> dict:
    """What a data set of points keeps of the training points, (n, dimensions)."""
    std = known.std(0)
    limits = [known.min(0).tolist(), known.max(0).tolist()]
    return {"mean": known.mean(0).tolist(), "std": np.where(std > 0, std, 1).tolist(), "limits": limits}


def circle(number: int, generator) -> np.ndarray:
    """A unit circle, blurred by 0.02."""
    angle = generator.uniform(0, 2 * np.pi, number)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.02 * generator.normal(size=(number, 2))


def dino(number: int, generator) -> np.ndarray:
    """Alberto Cairo's Datasaurus (Matejka & Fitzmaurice 2017): 142 points, blurred by 0.5 of about 100."""
    outline = np.loadtxt(STATIC / "datasaurus_dino.csv", delimiter=",", skiprows=1)
    return generator.permutation(np.resize(outline, (number, 2))) + 0.5 * generator.normal(size=(number, 2))


def line(number: int, generator) -> np.ndarray:
    """A thick upright line: a filled rectangle, one wide and two high."""
    return generator.uniform((-0.5, -1), (0.5, 1), (number, 2))


def moons(number: int, generator) -> np.ndarray:
    """scikit-learn's two half circles, blurred by 0.05."""
    from sklearn.datasets import make_moons

    return make_moons(number, noise=0.05, random_state=int(generator.integers(2**31)))[0]


FRECHET_SAMPLES = 2048  # as many as Inception has features, for their covariance to have full rank
COLUMNS = 10  # of a grid of images: with ten classes, one for each
PAIRS = 25  # samples in a picture with their nearest training items
COMPARED = 200  # samples, and held-out items, whose nearest training items are looked for
COMPARED_VALUES = 2**24  # of training items that are compared at once: 64 MB


class Pixels(Data):
    """Raw: (height, width, channels), of `flat` data (height, width), values of `dtype` within `limits`.

    Model space: (channels, height, width), (raw - mean) / std; by default the middle and half of the limits. Limits,
    mean and std are numbers, or lists of one for each channel.
    """

    animated = 40

    def __init__(self, name, shape, limits=(0, 255), mean=None, std=None, dtype="uint8", flat=False, **items):
        super().__init__(name, shape, **items)
        self.limits = low, high = np.array(limits)
        self.mean = ((low + high) / 2).tolist() if mean is None else mean
        self.std = np.where(high > low, (high - low) / 2, 1).tolist() if std is None else std
        self.dtype, self.flat = dtype, flat
        self.facts |= {"mean": self.mean, "std": self.std, "limits": self.limits.tolist(), "dtype": dtype, "flat": flat}
        self.interval = ((low - self.mean) / self.std).min().item(), ((high - self.mean) / self.std).max().item()
        self.bin_width = 1 / self.std if np.issubdtype(dtype, np.integer) else None

    @staticmethod
    def whole(shape, limits=(0, 255), mean=127.5, std=127.5, dtype="uint8", flat=False, **_):
        sizes = len(shape) == 3 and math.prod(shape) < 2**24 and (shape[0] == 1 or not flat)
        numbers = are_numbers([*limits, mean, std], 4) or are_numbers([*limits, mean, std], 4, shape[0])
        ordered = numbers and np.less_equal(*limits).all() and np.less(*limits).any() and np.min(std) > 0
        return sizes and bool(ordered) and dtype in DTYPES

    def network_settings(self):
        return {"num_classes": len(self.classes or ())}

    def encode(self, raw):
        raw = raw[..., None] if self.flat else raw
        raw = raw if raw.dtype == torch.float64 else raw.float()
        return raw.sub(raw.new_tensor(self.mean)).div_(raw.new_tensor(self.std)).permute(0, 3, 1, 2).float()

    def decode(self, x):
        raw = (x.cpu().double().permute(0, 2, 3, 1).numpy() * self.std + self.mean).clip(*self.limits)
        return cast(raw[..., 0] if self.flat else raw, self.dtype)

    def score(self, x, device="cpu", thorough=False):
        """Distance to the nearest training item, and mean and contrast of each channel, beside those of held-out items.

        The distance is the root mean square of the differences in model space.
        """
        x = x[:COMPARED]
        held_out = np.random.default_rng(0).permutation(self.test)[: len(x)]
        true = self.encode(torch.from_numpy(self.items[held_out]))
        scores, floors = (
            {"distance_to_training_items": self.nearest(one)[0].mean().item()} | self.tones(one) for one in (x, true)
        )
        ratio = scores["distance_to_training_items"] / max(floors["distance_to_training_items"], 1e-9)
        return {"samples": len(x)} | scores | {"distance_to_training_items_ratio": ratio, "true_samples": floors}

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each of x, the distance to the nearest training item, and which of the items that is."""
        x, best, which = x.flatten(1), torch.full((len(x),), math.inf), torch.zeros(len(x), dtype=torch.int64)
        size = max(1, COMPARED_VALUES // x.shape[1])
        for index in np.split(self.train, range(size, len(self.train), size)):
            items = self.encode(torch.from_numpy(self.items[index])).flatten(1)
            distance, position = torch.cdist(x, items).min(1)
            which = torch.where(distance < best, torch.from_numpy(index)[position], which)
            best = best.minimum(distance)
        return best / math.sqrt(x.shape[1]), which

    def tones(self, x: Tensor) -> dict:
        """Mean and contrast, the standard deviation, of each channel of x in raw units."""
        names, figures = {1: [""], 3: ["_red", "_green", "_blue"]}, {}
        raw = self.decode(x).reshape(-1, x.shape[1]).astype(np.float64)
        for name, values in zip(names.get(x.shape[1]) or [f"_{i}" for i in range(x.shape[1])], raw.T):
            figures |= {f"mean{name}": values.mean().item(), f"contrast{name}": values.std().item()}
        return figures

    def save_nearest(self, x, folder):
        x = x[:PAIRS]
        items = self.encode(torch.from_numpy(self.items[np.asarray(self.nearest(x)[1])]))
        write_picture(folder / "nearest.png", self.render(torch.stack([x, items], 1).flatten(0, 1)))


def grid(tiles: np.ndarray) -> np.ndarray:
    """RGB tiles (n, height, width, 3) as one picture: rows of COLUMNS, small ones enlarged, a thin line around each."""
    columns = min(len(tiles), COLUMNS)
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1), (0, 0)))
    number, height, width, _ = tiles.shape
    rows = tiles.reshape(number // columns, columns, height, width, 3).swapaxes(1, 2)
    zoom = max(1, 56 // height)
    return rows.reshape(-1, columns * width, 3).repeat(zoom, axis=0).repeat(zoom, axis=1)


class Images(Pixels):
    """Images of any number of channels; one is drawn grey, of several the first three as RGB.

    With `flip`, training sees half of them mirrored, others in each epoch.
    """

    modality = "images"

    def __init__(self, *facts, flip=False, **items):
        super().__init__(*facts, **items)
        self.flip = flip

    def batches(self, batch_size, seed, epoch, device, rank=0, world_size=1):
        """As `Data.batches`, mirrored or not as seed and epoch have it."""
        generator = np.random.default_rng((seed, epoch, 1))
        for x_0, label, weight in super().batches(batch_size, seed, epoch, device, rank, world_size):
            if self.flip:
                mirrored = torch.from_numpy(generator.random(batch_size)[rank::world_size] < 0.5).to(x_0.device)
                x_0 = torch.where(mirrored[: len(x_0), None, None, None], x_0.flip(3), x_0)
            yield x_0, label, weight

    def render(self, x):
        low, high = self.interval
        tiles = x.cpu().sub(low).mul(255 / (high - low)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        if tiles.shape[3] == 1:
            tiles = tiles.repeat(3, axis=3)
        return grid(np.pad(tiles[..., :3], ((0, 0), (0, 0), (0, 0), (0, 3 - min(3, tiles.shape[3])))))

    def score(self, x, device="cpu", thorough=False):
        """Also, if `thorough`, the Fréchet distance in Inception features (Heusel et al. 2017), where it can be had.

        It is that of all samples to training images, beside that of as many other training images to the same ones.
        """
        scores, number = super().score(x, device, thorough), len(x)
        if not thorough:
            return scores
        if min(number, len(self.train) // 2) < FRECHET_SAMPLES:
            needed = f"--num_samples {FRECHET_SAMPLES} and twice as many training images, better 10000"
            print(f"Fréchet distance left out: it needs at least {needed}")
            return scores
        if self.dtype != "uint8" or self.shape[0] not in (1, 3):
            print("Fréchet distance left out: Inception takes grey and RGB images of 8 bits")
            return scores
        number = min(number, len(self.train) // 2)
        others, real = np.split(self.items[np.random.default_rng(0).permutation(self.train)], [number])
        try:
            distance, floor = frechet_distances(real, [self.decode(x[:number]), others], device)
        except (ImportError, OSError) as error:  # no torch-fidelity, or no network for its weights
            print(f"Fréchet distance left out, it needs torch-fidelity and Inception's weights: {error}")
            return scores
        scores["true_samples"]["frechet_distance"] = floor
        return scores | {"frechet_distance": distance, "frechet_samples": number, "frechet_training_images": len(real)}


def frechet_distances(real: np.ndarray, others: list[np.ndarray], device="cpu", feature=2048) -> list[float]:
    """Fréchet distances of sets of images (n, height, width, channels) uint8 to `real`, as torchmetrics has them."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    device = "cpu" if torch.device(device).type == "mps" else device  # the covariances are float64
    metric = FrechetInceptionDistance(feature=feature, reset_real_features=False).to(device)
    distances, total = [], sum(map(len, [real, *others]))
    with tqdm(desc="Fréchet", total=total, unit=" images", leave=False, disable=None) as bar:
        for images in [real, *others]:
            for batch in np.split(images, range(64, len(images), 64)):
                batch = torch.from_numpy(batch.reshape(*batch.shape[:3], -1)).to(device).permute(0, 3, 1, 2)
                metric.update(batch.expand(-1, 3, -1, -1), real=images is real)
                bar.update(len(batch))
            if images is not real:
                distances.append(float(metric.compute()))
                metric.reset()
    return distances


def gray_images(name: str, items: np.ndarray, labels: np.ndarray, number: int, classes: list[str], config) -> Images:
    """Images (n, height, width) uint8 scaled to `--image_size`; the first `number` of them train."""
    if config.image_size:
        from torchvision.transforms.functional import resize

        height, width = sides(config.image_size)
        if len(items) * height * width > 2 * RESIDENT_BYTES:
            raise UsageError(f"--image_size {height} {width}: too large for {len(items)} images; make it smaller")
        parts = torch.from_numpy(items).split(256)
        items = torch.cat([resize(part, [height, width], antialias=True) for part in parts]).numpy()
    train, test = np.split(np.arange(len(items)), [number])
    items = items[..., None]
    return Images(name, (1, *items.shape[1:3]), classes=classes, items=items, labels=labels, train=train, test=test)


def digits(config) -> Images:
    """The 1,797 handwritten digits, 8x8, that come inside scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    items = (bunch.images * (255 / 16)).round().astype(np.uint8)
    return gray_images("digits", items, bunch.target, 1500, [str(digit) for digit in range(10)], config)


def from_torchvision(name: str, class_name: str, config) -> Images:
    """A data set of torchvision's in MNIST's form, downloaded to `--data_dir` where it is not there yet."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, class_name)
    with download(name, config, f"put its files into {Path(config.data_dir) / class_name / 'raw'}"):
        train, test = (dataset(config.data_dir, train=train, download=True) for train in (True, False))
        items, labels = (torch.cat(parts).numpy() for parts in ((train.data, test.data), (train.targets, test.targets)))
        if items.shape != (len(labels), 28, 28) or len(train) * len(test) == 0 or labels.max() > 9:
            raise ValueError("images and labels do not fit together")
    classes = [title.split(" - ")[0] for title in dataset.classes]  # MNIST's are "0 - zero" ...
    return gray_images(name, items, labels, len(train), classes, config)


def from_kaggle(name: str, handle: str, config) -> Images:
    """The images of a public Kaggle data set, downloaded to `--data_dir`/`name` where that folder is absent."""
    home = Path(config.data_dir) / name
    if not home.is_dir():
        import kagglehub

        partial = home.with_name(f".{name}.part")
        with download(name, config, f"unpack kaggle.com/datasets/{handle} into {home}"):
            kagglehub.dataset_download(handle, output_dir=str(partial))
        partial.rename(home)
    return from_images(name, home, home.parent / ".cache", config, own=False)


def image_folder(config) -> Images:
    """Your own images: all below `--data_dir`; the folders right below it, if there are several, are classes."""
    root = Path(config.data_dir)
    return from_images("folder", root, root / ".cache", config, own=True)


def from_images(name: str, root: Path, cache: Path, config, own: bool) -> Images:
    """All images below `root`, RGB or, your own, as they are; one in ten, at least one, is held out."""
    Image.init()
    height, width = sides(config.image_size or 64)
    paths = files_below(root, Image.EXTENSION)
    mode = common_mode(paths, root) if own else "RGB"
    dtype, channels = ("uint16" if mode == "I;16" else "uint8"), (3 if mode == "RGB" else 1)
    shape = (height, width, channels * np.dtype(dtype).itemsize)  # in bytes
    kept, items = decoded("images", paths, root, cache, lambda path: decode_image(path, (width, height), mode), shape)
    items = items.view(dtype)
    classes, labels = labels_by_folder([paths[i] for i in kept], root) if own else (None, None)
    train, test = split(len(items))
    parts = {"items": items, "labels": labels, "train": train, "test": test, "classes": classes, "flip": not own}
    return Images(name, (channels, height, width), value_range(items, f"--data_dir {root}"), dtype=dtype, **parts)


def sides(image_size: int | list[int]) -> list[int]:
    """Height and width, of `--image_size` with one number for both or one for each. Raises UsageError."""
    if np.size(image_size) > 2:
        raise UsageError(f"--image_size {image_size}: give one number, or a height and a width")
    return np.resize(image_size, 2).tolist()


def common_mode(paths: list[Path], root: Path) -> str:
    """The way to keep all images in: "I;16" if all are grey with 16 bits, "L" if all are grey, or else "RGB"."""
    found = [kind for kind in read_ahead(functools.partial(attempt, mode_and_size), paths) if kind]
    modes = {mode for mode, _ in found}
    deep = {mode for mode in modes if mode.startswith("I")}
    mode = "RGB" if not found or modes - deep - {"1", "L", "LA"} else "L" if modes - deep else "I;16"
    if found:
        (width, height), _ = collections.Counter(size for _, size in found).most_common(1)[0]
        print(f"{root}: {len(found):,} images, {'RGB' if mode == 'RGB' else 'grey'}, most {height}×{width}")
    return mode


def mode_and_size(path: Path) -> tuple:
    """Out of the head of an image."""
    with Image.open(path) as image:
        return image.mode, image.size


def files_below(root: Path, suffixes) -> list[Path]:
    """All files below `root` whose suffix is one of `suffixes`, in order; nothing hidden. Raises UsageError."""
    if not root.is_dir():
        raise UsageError(f"--data_dir {root}: no such folder; name the one that holds your files")
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def labels_by_folder(paths: list[Path], root: Path, classes: list[str] | None = None):
    """Classes, if not given, and labels by the folders right below `root`; None unless there are several."""
    parents = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    if classes is None:
        classes = sorted(set(parents))
        if len(classes) < 2 or "" in classes:
            return None, None
    return classes, np.array([classes.index(parent) for parent in parents])


def decoded(kind: str, paths: list[Path], root: Path, cache: Path, decode, shape) -> tuple[np.ndarray, np.ndarray]:
    """Which of `paths` could be read, and these as a memory map (n, *shape) uint8.

    `decode(path)` is called once for each, in parallel, and raises or gives None for what it cannot read. The results
    go into `cache`, under a name made of `kind`, the shape, and all files' names, sizes and times. Raises UsageError.
    """
    stats = [path.stat() if path.exists() else None for path in paths]
    listing = [f"{path.relative_to(root)} {s and (s.st_size, s.st_mtime_ns)}" for path, s in zip(paths, stats)]
    key = hashlib.sha256(os.fsencode("\n".join([f"{kind} {shape}", *listing]))).hexdigest()[:16]
    noun = kind.split()[0]
    target = cache / f"{noun}-{key}.raw"
    look = functools.partial(read_decoded, target, len(paths), math.prod(shape))
    try:
        if look() is None:
            with owned(cache, wait=True):
                if look() is None:  # not even now: no other process has decoded them in the meantime
                    print(f"{target} is not whole: decoding again\n" * target.exists(), end="")
                    write_decoded(target, paths, root, decode, noun, math.prod(shape))
        kept = np.flatnonzero(look())
    except OSError as error:
        remedy = f"make it writable, to keep decoded {noun} in, or copy your data"
        raise UsageError(f"--data_dir {root}: {cache}: {error.strerror}; {remedy}") from error
    return kept, np.memmap(target, np.uint8, "r", shape=(len(kept), *shape))


def read_decoded(target: Path, number: int, size: int) -> np.ndarray | None:
    """Which of `number` files could be read, if `target` holds `size` bytes of each of these; None if it does not."""
    if not target.exists():
        return None
    readable = np.fromfile(target, np.uint8, offset=max(0, target.stat().st_size - number))
    whole = len(readable) == number and target.stat().st_size == readable.sum() * size + number
    return readable.astype(bool) if whole and readable.max() <= 1 else None


def attempt(read, path: Path):
    """What `read(path)` gives; None if the file is unreadable."""
    with contextlib.suppress(UsageError), reading(f"{path} is unreadable"):
        return read(path)


@contextlib.contextmanager
def quiet_libraries():
    """Keep what libraries in C say of damaged files from stderr, which is given in its place."""
    sys.stderr.flush()
    with open(os.dup(2), "w") as terminal, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal.fileno(), 2)


def write_decoded(target: Path, paths: list[Path], root: Path, decode, noun: str, size: int) -> None:
    """Write what `decode(path)` gives for each path to `target`, one after the other, then which could be read."""
    items, readable = read_ahead(functools.partial(attempt, decode), paths, os.cpu_count()), []
    with replacing(target, len(paths) * (size + 1)) as file, quiet_libraries() as terminal:
        for item in tqdm(items, "decoding", len(paths), unit=f" {noun}", disable=None, file=terminal):
            readable.append(item is not None)
            if item is not None:
                file.write(item.tobytes())
        file.write(bytes(readable))
        skipped = [str(path.relative_to(root)) for path, good in zip(paths, readable) if not good]
        if skipped:
            print(f"skipped {len(skipped)} unreadable {noun}: {', '.join(skipped[:10])}{' ...' * (len(skipped) > 10)}")
        if sum(readable) < 2:
            raise UsageError(f"--data_dir: fewer than 2 readable {noun} in {root}; name another folder")


LARGE_IMAGE = threading.Lock()  # they take gigabytes: one at a time


def decode_image(path: Path, size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    """The middle of an image as (height, width, channels), on white where it is transparent.

    `size` is (width, height), `mode` Pillow's: "RGB" and "L", grey, have 8 bits, "I;16" is grey with 16.
    """
    with Image.open(path) as image:
        image.draft("RGB", (2 * size[0], 2 * size[1]))  # lets JPEG decode at a fraction of its size
        with LARGE_IMAGE if image.width * image.height > 2**24 else contextlib.nullcontext():
            with contextlib.suppress(UsageError), reading("broken EXIF"):
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits
                image = image.convert("F")
                if mode != "I;16":
                    image = image.point(lambda value: value / 257 + 0).convert("L")
            if image.has_transparency_data:
                image = image if image.mode == "RGBA" else image.convert("RGBA")
                white = Image.new("RGB", image.size, "white")
                white.paste(image, mask=image)
                image = white
            image = image if image.mode == mode or mode == "I;16" else image.convert(mode)
            pixels = np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS))
    return cast(pixels, "uint16" if mode == "I;16" else "uint8").reshape(size[1], size[0], -1)


def read_array(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The array in a .npy, read where it is looked at, or `x` of a .npz, and its `y`. Raises UsageError."""
    taken = "uint8, uint16 or floats of (n, height, width[, channels]) or (n, dimensions)"
    with reading(f"--data_dir {path}: {{error}}; give a .npy, or a .npz with x and perhaps y: {taken}"):
        if not path.is_file():
            raise ValueError("no such file")
        x, y = np.load(path, mmap_mode="r", allow_pickle=False), None
        if not isinstance(x, np.ndarray):
            x, y = x["x"], x.get("y")
        if x.dtype.name not in DTYPES:
            raise ValueError(f"its values are {x.dtype}")
        if x.ndim not in (2, 3, 4) or x.size == 0 or len(x) < 2:
            raise ValueError(f"its shape is {x.shape}")
        if y is not None and (y.shape != x.shape[:1] or y.dtype.kind not in "iubU"):
            raise ValueError(f"y is {y.dtype} of {y.shape}, not a whole number or a text for each of x")
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")), y


def is_points(path: Path) -> bool:
    """Whether an array is of (n, dimensions)."""
    return read_array(path)[0].ndim == 2


def value_range(items: np.ndarray, argument: str) -> list:
    """The lowest and the highest of all values, of each channel where these are floats; of uint8 0 and 255.

    Raises UsageError if a value is not a finite number.
    """
    if items.dtype == np.uint8:
        return [0, 255]
    channels = items.shape[3] if items.ndim == 4 and items.dtype.kind == "f" else 1
    lows, highs, size = [], [], max(1, COMPARED_VALUES // items[0].size)
    for first in range(0, len(items), size):
        part = items[first : first + size]
        if not np.isfinite(part).all():
            bad = first + np.isfinite(part.reshape(len(part), -1)).all(1).argmin()
            raise UsageError(f"{argument}: item {bad} has values that are no finite numbers; take it out")
        lows.append(part.reshape(-1, channels).min(0))
        highs.append(part.reshape(-1, channels).max(0))
    low, high = np.min(lows, 0), np.max(highs, 0)
    if (low == high).all():
        raise UsageError(f"{argument}: all values are the same; there is nothing to learn")
    return [low.tolist(), high.tolist()] if channels > 1 else [low.item(), high.item()]


def array(config) -> Images:
    """Your own images: `--data_dir` is a .npy of (n, height, width[, channels]), or a .npz with `x` and `y`."""
    items, y = read_array(Path(config.data_dir))
    if items.ndim == 2:
        raise UsageError(f"--data_dir {config.data_dir}: points, (n, dimensions); learn them with --dataset points")
    if config.image_size:
        raise UsageError("--image_size: arrays are taken as they are; leave it out")
    limits = value_range(items, f"--data_dir {config.data_dir}")
    lowest, highest = np.min(limits), np.max(limits)
    if config.range:
        limits = low, high = config.range
        if not (low < high and low <= lowest and highest <= high):
            found = f"the values are from {lowest:g} to {highest:g}"
            raise UsageError(f"--range {low:g} {high:g}: {found}; give a range around")
    names, labels = (None, None) if y is None else np.unique(y, return_inverse=True)
    classes = None if names is None or len(names) < 2 else [str(name) for name in names]
    height, width, channels = (*items.shape[1:], 1)[:3]
    size = f"{height}×{width}, {channels} channel{'s' * (channels > 1)}"
    print(f"{config.data_dir}: {len(items):,} images of {size}, {items.dtype} from {lowest:g} to {highest:g}")
    parts = {"items": items, "labels": labels if classes else None, "classes": classes}
    train, test = split(len(items))
    facts = {"limits": limits, "dtype": items.dtype.name, "flat": items.ndim == 3}
    return Images("array", (channels, height, width), **facts, **parts, train=train, test=test)


def own_points(config) -> Points:
    """Your own points: `--data_dir` is a .npy of (n, dimensions), or a .npz with such an `x`."""
    items, _ = read_array(Path(config.data_dir))
    if items.ndim != 2:
        raise UsageError(f"--data_dir {config.data_dir}: its shape is {items.shape}, not (n, dimensions)")
    value_range(items, f"--data_dir {config.data_dir}")
    print(f"{config.data_dir}: {len(items):,} points of {items.shape[1]} dimensions, {items.dtype}")
    train, test = split(len(items))
    facts = points_facts(items[train].astype(np.float64)) | {"dtype": items.dtype.name}
    return Points("points", items.shape[1:], items=items, train=train, test=test, **facts)


SAMPLE_RATE = 16000  # of sound, in Hz; a clip lasts one second
WINDOW, HOP = 800, 250  # of the Fourier transform, in samples: a frame of 50 ms, every 16 ms
FRAMES = SAMPLE_RATE // HOP  # of a spectrogram
BANDS, LOWEST, HIGHEST = 64, 60, 8000  # Mel bands, from and to Hz
QUIETEST, LOUDEST = -36, 44  # dB in a Mel band, of a clip whose peak is 1: what the 256 levels span
LEVELS_PER_DECIBEL = 255 / (LOUDEST - QUIETEST)
CLIPS = f"clips {SAMPLE_RATE} {WINDOW} {LOWEST} {HIGHEST} {QUIETEST} {LOUDEST}"  # of which a cache holds one kind
PEAK = 0.9  # of the sound that is written
VOCODED = 64  # clips at a time
MAX_TILES = 100  # clips in a picture
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Spectrograms(Pixels):
    """Clips of one second as log-Mel spectrograms. Raw: (Mel bands, frames, 1) uint8, levels of loudness."""

    modality = "audio"

    @staticmethod
    def whole(shape, flat=False, **facts):
        return shape == [1, BANDS, FRAMES] and not flat and Pixels.whole(shape, **facts)

    def render(self, x):
        return grid(in_colour(self.decode(x)))

    def save(self, x, folder, label=None):
        """Also as sound, audio/WORD_NUMBER.wav, with its picture; samples.png shows the first with their waveforms."""
        import soundfile

        levels, audio = self.decode(x), folder / "audio"
        write(folder / "samples.npy", lambda file: np.save(file, levels))
        shutil.rmtree(audio, ignore_errors=True)
        audio.mkdir()
        numbers = self.condition(range(len(x)), label, "cpu")
        words = ["sound"] * len(x) if numbers is None else [self.classes[i] for i in numbers.tolist()]
        tiles, starts = [], range(0, len(x), VOCODED)
        for i in tqdm(starts, "vocoding", unit_scale=VOCODED, unit=" clips", leave=False, disable=None):
            waves = vocode(levels[i : i + VOCODED])
            tiles += labelled_tiles(levels[i : i + VOCODED], waves, words[i:])
            for j, wave in enumerate(waves, start=i):
                name = file_name(words[j], f"{j:03d}")
                sound = functools.partial(soundfile.write, data=wave, samplerate=SAMPLE_RATE, format="WAV")
                write(audio / f"{name}.wav", sound)
                write_picture(audio / f"{name}.png", tiles[j])
        write_picture(folder / "samples.png", grid(np.stack(tiles[:MAX_TILES])))


def in_colour(levels: np.ndarray) -> np.ndarray:
    """Spectrograms (n, bands, frames, 1) uint8 as RGB, the low frequencies at the bottom."""
    return colormaps["magma"](levels[:, ::-1, :, 0], bytes=True)[..., :3]


def labelled_tiles(levels: np.ndarray, waves: np.ndarray, words: list[str], zoom: int = 2, height: int = 40) -> list:
    """RGB pictures, one a clip: its word, its spectrogram, and the range of its waveform in each column."""
    spectrograms = in_colour(levels).repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = waves.reshape(len(waves), spectrograms.shape[2], -1)
    low, high = (limit[:, None] * height / 2 for limit in (columns.min(2), columns.max(2)))
    row = height / 2 - np.arange(height)[:, None]
    waveforms = np.where((low - 0.5 <= row) & (row <= high + 0.5), 220, 20).astype(np.uint8)
    tiles = []
    for spectrogram, waveform, word in zip(spectrograms, waveforms, words):
        title = Image.new("RGB", (spectrogram.shape[1], 14))
        ImageDraw.Draw(title).text((4, 1), word, fill="white")
        tiles.append(np.concatenate([title, spectrogram, waveform[..., None].repeat(3, axis=2)]))
    return tiles


@functools.cache
def mel_spectrogram():
    """From sound (..., samples) to the power in each Mel band, (..., Mel bands, frames + 1)."""
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(SAMPLE_RATE, WINDOW, hop_length=HOP, f_min=LOWEST, f_max=HIGHEST, n_mels=BANDS, power=2.0)


def log_mel(waves: Tensor) -> Tensor:
    """Sound (..., samples) of peak 1 as levels of loudness, (..., Mel bands, frames) uint8; 0 is silence."""
    decibels = 10 * mel_spectrogram()(waves)[..., :FRAMES].clamp(min=1e-9).log10()
    return ((decibels - QUIETEST) * LEVELS_PER_DECIBEL).round().clamp(0, 255).byte()


def vocode(levels: np.ndarray) -> np.ndarray:
    """The way back: levels (n, Mel bands, frames, 1) uint8 as sound (n, samples) float32 of peak PEAK, without DC.

    The power at each frequency by non-negative least squares, the phases by the fast Griffin-Lim algorithm
    (Perraudin et al. 2013).
    """
    from torchaudio.transforms import GriffinLim

    levels = torch.from_numpy(levels[..., 0]).float()
    mel = torch.where(levels > 0, 10 ** ((QUIETEST + levels / LEVELS_PER_DECIBEL) / 10), 0)
    power = nonnegative_least_squares(mel_spectrogram().mel_scale.fb.T, mel)
    power = torch.nn.functional.pad(power, (0, 1))  # the last frame, which `log_mel` left out
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the initial phases
        waves = GriffinLim(WINDOW, 32, hop_length=HOP, power=2.0, momentum=0.99, length=SAMPLE_RATE)(power)
    waves -= waves.mean(1, keepdim=True)
    return (PEAK * waves / waves.abs().amax(1, keepdim=True).clamp(min=1e-5)).numpy()


def nonnegative_least_squares(matrix: Tensor, target: Tensor, steps: int = 100) -> Tensor:
    """x >= 0 that makes |matrix @ x - target| small, for each column of `target`: FISTA (Beck & Teboulle 2009)."""
    step_size = torch.linalg.matrix_norm(matrix, 2) ** -2
    x = y = (torch.linalg.pinv(matrix) @ target).clamp(min=0)
    momentum = 1.0
    for _ in range(steps):
        last, x = x, (y - step_size * (matrix.T @ (matrix @ y - target))).clamp(min=0)
        last_momentum, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y = x + (last_momentum - 1) / momentum * (x - last)
    return x


def decode_clip(path: Path) -> np.ndarray | None:
    """The middle second of a sound, brought to a peak of 1, as levels (Mel bands, frames, 1) uint8.

    None if it is silent. Shorter sounds get silence on both sides.
    """
    import soundfile
    from torchaudio.functional import resample

    with soundfile.SoundFile(path) as file:
        rate, length = file.samplerate, int(1.1 * file.samplerate)  # a little more, for the filter
        file.seek(max(0, file.frames - length) // 2)
        wave = file.read(length, dtype="float32", always_2d=True).mean(1)
    if len(wave) == 0 or rate > 10**6:
        return None
    rate = max(100, round(rate, -2))  # a filter for rates without a large common divisor would fill the memory
    wave = resample(torch.from_numpy(wave), rate, SAMPLE_RATE)
    wave = wave[max(0, len(wave) - SAMPLE_RATE) // 2 :][:SAMPLE_RATE]
    wave = wave - wave.mean()
    peak = wave.abs().max()
    if not 0 < peak < np.inf:
        return None
    missing = SAMPLE_RATE - len(wave)
    wave = torch.nn.functional.pad(wave / peak, (missing // 2, missing - missing // 2))
    return log_mel(wave)[..., None].numpy()


def speech_commands(config) -> Spectrograms:
    """Spoken words (Warden 2018), by default the digits; its own lists say which clips are held out."""
    from torchaudio.datasets import SPEECHCOMMANDS

    home = Path(config.data_dir) / "SpeechCommands"
    root = home / "speech_commands_v0.02"
    if not home.is_dir():
        partial = home.with_name(".SpeechCommands.part")  # an archive in it is whole, what was unpacked may not be
        shutil.rmtree(partial / home.name, ignore_errors=True)
        with download("speech-commands", config, f"unpack {root.name}.tar.gz into {root}"):
            partial.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(partial, download=True)
        (partial / home.name).rename(home)
        shutil.rmtree(partial)
    with reading(f"--data_dir {config.data_dir}: {home} is not whole ({{error}}); delete it"):
        parts = [SPEECHCOMMANDS(config.data_dir, subset=subset) for subset in ("training", "testing")]
        train, test = ([home / part.get_metadata(i)[0] for i in range(len(part))] for part in parts)
    words, cache = config.words or DIGITS, home.parent / ".cache"
    return spectrograms("speech-commands", train + test, root, cache, words, set(test))


def sounds(config) -> Spectrograms:
    """Your own sounds: all below `--data_dir`, of each the middle second; folders are words, as for images."""
    root = Path(config.data_dir)
    paths = files_below(root, {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"})
    return spectrograms("sounds", paths, root, root / ".cache", config.words)


def spectrograms(name, paths, root: Path, cache: Path, words, held_out: set | None = None) -> Spectrograms:
    """The clips at `paths`, or those of `words` among them: the name of the folder right below `root`."""
    if words:
        spoken = sorted({path.relative_to(root).parts[0] for path in paths})
        words = list(dict.fromkeys(words))
        if not set(words) <= set(spoken):
            raise UsageError(f"--words {' '.join(words)}: choose among {', '.join(spoken)}")
        paths = [path for path in paths if path.relative_to(root).parts[0] in words]
    kept, items = decoded(CLIPS, paths, root, cache, decode_clip, (BANDS, FRAMES, 1))
    paths = [paths[i] for i in kept]
    train, test = split(len(items))
    if held_out is not None:
        is_held_out = np.array([path in held_out for path in paths])
        train, test = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if not len(train) or not len(test):
        raise UsageError(f"--words: no {'test' if len(train) else 'training'} clips of these words; name others")
    counts = sum(np.bincount(item.ravel(), minlength=256) for item in items[train])
    mean = float(np.average(range(256), weights=counts))
    std = float(np.average((np.arange(256) - mean) ** 2, weights=counts) ** 0.5)
    classes, labels = labels_by_folder(paths, root, words)
    facts = {"mean": mean, "std": std, "classes": classes}
    return Spectrograms(name, (1, BANDS, FRAMES), items=items, labels=labels, train=train, test=test, **facts)


QUANTILES = np.arange(1, 20) / 20  # of the quantiles that the mean weighted quantile loss is the mean over
PANELS = 8  # forecasts at most in a picture
JOINT = 30  # series at most that are learned together unless --form says so: more crowd the encoder's inputs
EPOCH_WINDOWS = 10000  # training windows at most in an epoch
PANEL_CONTEXT = 2  # forecast lengths that are read before a forecast of one series; of several, one
LAGS = {"D": [1, 7, 14, 28, 364], "W": [1, 2, 4, 13, 26, 52]}  # in steps, where a season is no day
LAGS |= {"M": [1, 2, 3, 12, 24, 36], "Q": [1, 2, 4, 8, 12], "Y": [1, 2, 3]}
LARGEST = 1e30  # size of a value that is taken for a mistake
MOST_ROWS = 10**7  # of a CSV, missing ones included


class Group(NamedTuple):
    """Series that are forecast together: all of a data set, or one of many. `number` counts the latter.

    Rows before `train_end` are learned from; forecasts to be scored begin at the rows `begins`, none before it.
    """

    number: int
    start: pd.Period
    values: np.ndarray  # (time, dimensions), NaN where missing
    covariates: np.ndarray  # (time and perhaps more, covariates)
    train_end: int
    begins: list[int]


class Windows(NamedTuple):
    """Where forecasts begin. `numbers` are those of the groups: as many as there are for a series never seen before."""

    pasts: np.ndarray  # (windows, past_length, dimensions), NaN where a value is missing
    starts: list[pd.Period]  # of the forecasts
    numbers: np.ndarray
    covariates: np.ndarray  # (windows, past_length + prediction_length, covariates)
    truth: np.ndarray | None = None  # (windows, prediction_length, dimensions)


class Past(NamedTuple):
    """What a forecast is conditioned on, as `models.RNN` describes it."""

    values: Tensor
    location: Tensor
    scale: Tensor
    features: Tensor
    categories: Tensor


class Series(Data):
    """Time series, forecast from their own past. Raw: (time, dimensions), NaN where a value is missing.

    A vector of series that share a calendar is learned jointly, as one group of several dimensions; a panel of many
    series one by one, by the same network, as groups of one dimension. `names` are those of all.

    Model space: the change over `difference` steps (the value itself where that is 0), minus the location and divided
    by the scale of the window's context, each dimension by itself. A sample is a path (prediction_length, dimensions);
    sample i of a batch continues window i % histories. Of each group there are the `typical` scales over the training
    data and the `categories`, its number first; `recent` values before `ends` and what is `known` then, as text of
    float32, are to be forecast from without data. With data, `items` are groups, `train` and `validated` are rows of
    `table` where the pasts of windows begin, `test` are the values before each of `windows`, where forecasts begin.
    """

    modality = "series"
    time_axes = 2

    def __init__(
        self, name, shape, freq, names, context_length, difference, scaling, typical, categories,
        covariates, recent, known, ends, windows=None, validated=None, **items,
    ):  # fmt: skip
        super().__init__(name, shape, **items)
        allow_old_frequencies()
        self.freq, self.names, self.prediction_length, self.context_length = freq, names, shape[0], context_length
        self.difference, self.scaling, self.covariates = difference, scaling, covariates
        self.facts |= {"freq": freq, "names": names, "context_length": context_length, "difference": difference}
        self.facts |= {"scaling": scaling, "typical": typical, "categories": categories, "covariates": covariates}
        self.facts |= {"recent": recent, "known": known, "ends": ends}
        self.validated = validated
        self.typical = np.array([*typical, [np.nan] * shape[1]], np.float32)  # of a new series it is not known
        self.categories = np.array([*categories, [max(column) + 1 for column in zip(*categories)]], int)
        self.lags = lags_of(freq, shape[1])
        self.past_length = reach_of(freq, shape[1], difference, context_length)
        if windows is None:
            pasts, seen = (np.frombuffer(text.encode("latin-1"), np.float32) for text in (recent, known))
            pasts = pasts.reshape(len(ends), self.past_length, shape[1])
            seen = seen.reshape(len(ends), self.past_length + shape[0], len(covariates))
            windows = Windows(pasts, [pd.Period(end, freq) for end in ends], np.arange(len(ends)), seen)
        self.windows, self.histories = windows, len(windows.starts)
        self.animated = int(np.clip(40000 // (self.histories * math.prod(shape)), 1, 40))
        self.past = self.read_past(windows)

    @staticmethod
    def whole(shape, freq, names, context_length, difference, typical, categories, covariates, recent, ends, **_):
        scales, moments = np.array(typical, np.float32), np.array([*covariates.values(), [0, 1]], np.float32)
        numbers = np.frombuffer(recent.encode("latin-1"), np.float32)
        "".join((freq, *names, *ends, *covariates)).encode()  # an error where one is no text, or half a character
        steps = type(context_length) is type(difference) is int and 0 <= difference < 2**17 > context_length > 0
        sizes = scales.shape == (len(ends), shape[1]) and scales.size == len(names) and not (scales <= 0).any()
        grouped = are_numbers(categories, len(ends), len(categories[0])) and np.min(categories, initial=0) >= 0
        known = np.isfinite(moments).all() and moments[:, 1].min() > 0 and not np.isinf(numbers).any()
        return steps and sizes and grouped and known

    def network_settings(self):
        cardinalities = (self.categories[-1] + 1).tolist()
        features = self.past.features.shape[2]
        return {"lags": self.lags, "difference": self.difference, "features": features, "categories": cardinalities}

    def steps_per_epoch(self, batch_size):
        return max(1, min(len(self.train), EPOCH_WINDOWS) // batch_size)

    def read_past(self, windows: Windows) -> Past:
        """What forecasts from `windows` are conditioned on."""
        typical = self.typical[windows.numbers]
        for window in np.flatnonzero(np.isnan(typical).any(1)):
            typical[window] = typical_scale(windows.pasts[window], self.difference)
        context = torch.from_numpy(changes(windows.pasts, self.difference)[:, -self.context_length :])
        location, scale = self.location_and_scale(context, torch.from_numpy(typical))
        values = torch.from_numpy(np.stack([last_seen(past) for past in windows.pasts]))
        length = self.past_length + self.prediction_length
        times = np.stack([calendar(start - self.past_length, length, self.freq) for start in windows.starts])
        known = torch.from_numpy(np.concatenate([times, self.standardised(windows.covariates)], 2))
        categories = torch.from_numpy(self.categories[windows.numbers])
        return Past(values, location, scale, self.features(scale, torch.from_numpy(typical), known), categories)

    def check_covariates(self) -> None:
        """Raises UsageError where a covariate is not known to the end of a forecast."""
        unknown = np.argwhere(np.isnan(self.windows.covariates[:, self.past_length :]))
        if len(unknown):
            window, step, column = unknown[0]
            name, time = list(self.covariates)[column], self.windows.starts[window] + int(step)
            raise UsageError(f"--covariates {name}: not known for {time}; a forecast needs it to its last step")

    def standardised(self, covariates: np.ndarray) -> np.ndarray:
        """Covariates (..., covariates) by their mean and standard deviation over the training data, 0 where missing."""
        mean, std = np.array(list(self.covariates.values()), np.float32).reshape(-1, 2).T
        return np.nan_to_num((covariates - mean) / std)

    def location_and_scale(self, context: Tensor, typical: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale (windows, dimensions) of a context (windows, time, dimensions), NaN where missing.

        `mean`: 0 and the mean size; `standard`: the mean and the standard deviation. No scale is below half of the
        typical one: a series that has stood still for a while may move again.
        """
        count = (~context.isnan()).sum(1).clamp(min=1)
        location = torch.zeros_like(typical)
        if self.scaling == "standard":
            location = context.nansum(1) / count
            scale = ((context - location[:, None]) ** 2).nansum(1).div(count).sqrt()
        else:
            scale = context.abs().nansum(1) / count
        return location, scale.maximum(typical / 2)

    def features(self, scale: Tensor, typical: Tensor, known: Tensor) -> Tensor:
        """What is known of each step of context and forecast beside the values, (windows, time, features).

        How large the scale is for these series; calendar and covariates, the last columns of `known`, which goes back
        to the beginning of the past; and how covariates have changed over `difference`, as the values that are learned.
        """
        length = self.context_length + self.prediction_length
        relative = (scale / typical).log().mean(1)[:, None, None].expand(-1, length, 1)
        covariates = known[:, :, known.shape[2] - len(self.covariates) :]
        changed = changes(covariates, self.difference)[:, -length:]
        return torch.cat([relative, known[:, -length:], *([changed] if self.difference else [])], 2)

    @functools.cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All groups' training rows one below the other, each group after `past_length` rows of nothing.

        Values, where one is missing the last one seen; what is missing; calendar and covariates; the group's number.
        """
        groups = [group for group in self.items if group.train_end]
        first = min((group.start for group in groups), key=lambda start: start.ordinal)
        offsets = [steps_between(first, group.start) for group in groups]
        times = calendar(first, max(offset + group.train_end for offset, group in zip(offsets, groups)), self.freq)
        above = ((self.past_length, 0), (0, 0))
        values, missing, known, numbers = [], [], [], []
        for offset, group in zip(offsets, groups):
            part = np.pad(group.values[: group.train_end], above, constant_values=np.nan)
            values.append(last_seen(part))
            missing.append(np.isnan(part))
            part = self.standardised(group.covariates[: group.train_end])
            part = np.concatenate([times[offset : offset + group.train_end], part], 1)
            known.append(np.pad(part, above))
            numbers.append(np.full(len(values[-1]), group.number))
        return tuple(torch.from_numpy(np.concatenate(part)) for part in (values, missing, known, numbers))

    def read(self, batches, device):
        """Yield (x_0, Past, weight) for windows whose pasts begin at the given rows of `table`."""
        values, missing, known, numbers = (part.to(device) for part in self.table)
        typical, categories = (torch.from_numpy(part).to(device) for part in (self.typical, self.categories))
        steps = torch.arange(self.past_length + self.prediction_length, device=device)
        length = self.context_length + self.prediction_length
        for index in batches:
            rows = torch.from_numpy(index).to(device)[:, None] + steps
            past, unseen, seen = (
                part.index_select(0, rows.flatten()).unflatten(0, rows.shape) for part in (values, missing, known)
            )
            number = numbers[rows[:, 0]]
            unseen = unseen[:, -length:] | unseen[:, -length - self.difference :][:, :length]
            change = changes(past, self.difference)[:, -length:].masked_fill(unseen, torch.nan)
            location, scale = self.location_and_scale(change[:, : self.context_length], typical[number])
            x_0 = (change[:, self.context_length :] - location[:, None]) / scale[:, None]
            features = self.features(scale, typical[number], seen)
            yield x_0.nan_to_num(0), Past(past, location, scale, features, categories[number]), (~x_0.isnan()).float()

    def validation(self, batch_size, number, device):
        order = np.resize(np.random.default_rng(0).permutation(self.validated), number)
        yield from self.read(np.split(order, range(batch_size, number, batch_size)), device)

    def held_out(self, batch_size, number, device):
        """Yield (x_0, None, None) of the true values of the windows, in turn."""
        known = np.concatenate([self.windows.pasts, self.windows.truth], 1)
        change = torch.from_numpy(changes(known, self.difference)[:, -self.prediction_length :])
        x_0 = ((change - self.past.location[:, None]) / self.past.scale[:, None]).nan_to_num(0)
        for first in range(0, number, batch_size):
            yield x_0[torch.arange(first, min(number, first + batch_size)) % len(x_0)].to(device), None, None

    def condition(self, samples, label, device):
        """What the forecaster samples with: the past of all windows, and which window each sample continues."""
        self.check_covariates()
        past = Past(*(part.to(device) for part in self.past))
        return past, torch.tensor(samples, device=device) % self.histories

    def decode(self, x):
        """Paths in the units of the data, (n, prediction_length, dimensions)."""
        window = torch.arange(len(x)) % self.histories
        steps = (x.cpu() * self.past.scale[window][:, None] + self.past.location[window][:, None]).numpy()
        if self.difference:
            past = self.past.values[:, -self.difference :].numpy()
            for t in range(self.prediction_length):
                earlier = t - self.difference  # below 0: before the forecast
                steps[:, t] += steps[:, earlier] if earlier >= 0 else past[window, earlier]
        return steps

    def by_window(self, x) -> np.ndarray:
        """`decode`, as (paths, windows, prediction_length, dimensions)."""
        return self.decode(x).reshape(-1, self.histories, *self.shape)

    def render(self, x):
        return pixels_of(self.picture(x, paths=True))

    def save(self, x, folder, label=None):
        """samples.npy, (paths, windows, prediction_length, dimensions), their quantiles and the picture of them."""
        paths = self.by_window(x)
        table = self.table_of(paths).to_csv(index=False, float_format="%.7g")
        write(folder / "samples.npy", lambda file: np.save(file, paths))
        write(folder / "forecast.csv", lambda file: file.write(table.encode()))
        write(folder / "forecast.png", functools.partial(self.picture(x, paths=False).savefig, dpi=110))

    def number_of(self, name) -> int:
        """The number of the group that is called `name`, or of a new one."""
        names = self.names[:: self.shape[1]]
        if len(self.categories[0]) == 0:
            return 0  # a vector
        return names.index(str(name)) if str(name) in names else len(names)

    def name_of(self, window: int, dimension: int) -> str:
        """The name of one of the series forecast."""
        place = self.windows.numbers[window] * self.shape[1] + dimension
        return self.names[place] if place < len(self.names) else "new"

    def table_of(self, paths: np.ndarray) -> pd.DataFrame:
        """Mean and quantiles of paths (n, windows, prediction_length, dimensions), a row for each time and series."""
        rows = list(itertools.product(range(self.histories), range(self.shape[1]), range(self.prediction_length)))
        starts = self.windows.starts
        table = {"time": [starts[window] + step for window, _, step in rows]}
        table |= {"series": [self.name_of(window, i) for window, i, _ in rows], "mean": by_series(paths.mean(0))}
        return pd.DataFrame(table | {f"{level:.2f}": by_series(q) for level, q in zip(QUANTILES, quantiles(paths))})

    def picture(self, x, paths: bool) -> Figure:
        """A few forecasts with their past and, where it is known, the truth.

        With `paths`, the paths themselves, else their median and the intervals of 50% and 90%.
        """
        values = self.by_window(x)
        panels = PANELS // 2 if paths else PANELS
        dimensions = min(self.shape[1], panels)
        spread = np.unique(np.linspace(0, self.histories - 1, panels // dimensions).astype(int))
        shown = [(window, i) for i in range(dimensions) for window in spread]
        columns = 1 if len(shown) == 1 else 2
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(5 * columns, 0.8 + 1.7 * rows), dpi=80, layout="constrained")
        for number, (window, i) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, number + 1)
            self.panel(axes, values[:, window, :, i], window, i, paths)
            axes.set_title(self.name_of(window, i), fontsize=9, loc="left", parse_math=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        return figure

    def panel(self, axes, values: np.ndarray, window: int, i: int, paths: bool) -> None:
        """One dimension of one window: `values` are its paths (n, prediction_length)."""
        starts, truth = self.windows.starts, self.windows.truth
        history = self.windows.pasts[window, -3 * self.prediction_length :, i]
        times = pd.period_range(starts[window] - len(history), periods=len(history) + self.prediction_length)
        before, after = np.split(times.to_timestamp(), [len(history)])
        axes.plot(before, history, color="0.3", linewidth=1, label="past")
        if paths:
            axes.plot(after, values.T, color="tab:blue", linewidth=0.5, alpha=0.5)
        else:
            for inside, alpha in ((0.9, 0.2), (0.5, 0.4)):
                low, high = np.quantile(values, [0.5 - inside / 2, 0.5 + inside / 2], axis=0)
                axes.fill_between(after, low, high, color="tab:blue", alpha=alpha, linewidth=0, label=f"{inside:.0%}")
            axes.plot(after, np.median(values, 0), color="tab:blue", linewidth=1, label="median")
        true = history if truth is None else np.append(history, truth[window, :, i])
        if truth is not None:
            axes.plot(after, truth[window, :, i], color="black", linewidth=1, label="truth")
        middle, reach = np.nanmean(true), 1.2 * (np.nanmax(true) - np.nanmin(true))
        if reach > 0:
            axes.set_ylim(middle - reach, middle + reach)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(AutoDateLocator()))
        axes.tick_params(labelsize=7)

    def score(self, x, device="cpu", thorough=False):
        """Scores on the test windows, beside those of two forecasts that learn nothing."""
        number = len(x) // self.histories
        scores = {"paths": number, "windows": self.histories} | self.evaluate(self.by_window(x))
        scores["seasonal_naive"] = self.evaluate(self.last_season())
        return scores | {"random_walk": self.evaluate(self.random_walk(number))}

    def evaluate(self, paths: np.ndarray) -> dict:
        """Scores of paths (n, windows, prediction_length, dimensions) as GluonTS's evaluator defines them."""
        truth, season = self.windows.truth, get_seasonality(self.freq)
        levels = quantiles(paths)
        scores = {"crps": weighted_quantile_loss(levels, truth)}
        if self.shape[1] > 1:
            scores["crps_sum"] = weighted_quantile_loss(quantiles(paths.sum(-1)), truth.sum(-1))
        error = np.abs(truth - levels[len(QUANTILES) // 2])
        with (
            warnings.catch_warnings(),
            np.errstate(divide="ignore", invalid="ignore"),
        ):  # of what is constant or missing
            warnings.simplefilter("ignore", RuntimeWarning)
            lags = (season if season < len(known) else 1 for known in self.test)
            naive = [np.nanmean(np.abs(changes(known[None], lag)[0]), 0) for known, lag in zip(self.test, lags)]
            relative = np.nanmean(error, 1) / np.stack(naive)
        scores["mase"] = float(np.ma.masked_invalid(relative).mean())
        scores["nd"] = float(np.nansum(error) / np.nansum(np.abs(truth)))
        for share, low, high in ((50, 4, 14), (90, 0, 18)):
            inside = (levels[low] < truth) & (truth <= levels[high])
            scores[f"coverage_{share}"] = float(inside[~np.isnan(truth)].mean())
        return scores

    def last_season(self) -> np.ndarray:
        """The seasonal-naive forecast: the last season over and over."""
        season = self.past.values[:, -get_seasonality(self.freq) :].numpy()
        return season[None][:, :, np.arange(self.prediction_length) % season.shape[1]]

    def random_walk(self, number: int) -> np.ndarray:
        """Paths whose changes over `difference` steps, or 1, are drawn from those of each window's own past."""
        generator, paths = np.random.default_rng(0), []
        for known, past in zip(self.test, self.past.values.numpy()):
            difference = self.difference if 0 < 2 * self.difference <= len(known) else 1
            moves = np.nan_to_num(changes(known[None], difference)[0])
            seasons = -(-self.prediction_length // difference)
            first = generator.integers(len(moves) - difference + 1, size=(number, seasons, 1))
            drawn = moves[first + np.arange(difference)].cumsum(1) + past[-difference:]
            paths.append(drawn.reshape(number, -1, self.shape[1])[:, : self.prediction_length])
        return np.stack(paths, 1)


def by_series(values: np.ndarray) -> np.ndarray:
    """(windows, prediction_length, dimensions) as one column, window by window and series by series."""
    return values.swapaxes(1, 2).ravel()


def quantiles(paths: np.ndarray) -> np.ndarray:
    """The quantiles at QUANTILES of paths (n, ...), as GluonTS takes them: the nearest path, (levels, ...)."""
    nearest = np.round((len(paths) - 1) * QUANTILES).astype(int)
    return np.partition(paths, np.unique(nearest), axis=0)[nearest]


def weighted_quantile_loss(levels: np.ndarray, truth: np.ndarray) -> float:
    """The CRPS as Rasul et al. (2021) report it: the mean over QUANTILES of 2 sum |y - q| |[y <= q] - p| / sum |y|."""
    level = QUANTILES.reshape(-1, *[1] * truth.ndim)
    loss = np.abs((truth - levels) * ((truth <= levels) - level))
    return float(2 * np.nansum(loss) / len(QUANTILES) / np.nansum(np.abs(truth)))


def predictor(data: Series, sample):
    """A GluonTS Predictor; `sample(series, number)` draws that many paths of each of the series' windows.

    It takes entries whose target has `data`'s dimensions, (dimensions, time) or, for a single one, (time,), and with
    covariates `feat_dynamic_real` to the end of the forecast. Of many series `item_id` names one; others are new to it.
    Raises ValueError for entries that do not fit.
    """
    from gluonts.model.forecast import SampleForecast
    from gluonts.model.predictor import Predictor

    def window(entry: dict) -> Windows:
        """The one window that forecasts what comes after an entry."""
        values, covariates = target_and_covariates(entry)
        expected, given = (data.shape[1], data.freq), (values.shape[1], entry["start"].freqstr)
        if given != expected:
            raise ValueError("made for {} dimensions every {}, not {} every {}".format(*expected, *given))
        if covariates.shape[1] != len(data.covariates):
            raise ValueError(f"feat_dynamic_real: made for {len(data.covariates)}, not {covariates.shape[1]}")
        group = Group(data.number_of(entry.get("item_id")), entry["start"], values, covariates, 0, [len(values)])
        return windows_of(group, data.past_length, data.prediction_length)

    class Forecaster(Predictor):
        def predict(self, dataset, num_samples: int = 100):
            """A SampleForecast of `num_samples` paths for each entry of `dataset`."""
            entries = list(dataset)
            windows = concatenated([window(entry) for entry in entries])._replace(truth=None)
            series = Series(**data.facts, windows=windows)
            paths = series.by_window(sample(series, num_samples))
            paths = paths[..., 0] if data.shape[1] == 1 else paths
            for i, entry in enumerate(entries):
                yield SampleForecast(paths[:, i], windows.starts[i], entry.get("item_id"))

    return Forecaster(data.prediction_length)


def allow_old_frequencies() -> None:
    """GluonTS counts business days by periods and names years "Y"; pandas 2 warns of both at every turn."""
    for message in ("Period.*B.*deprecated", "'.*' is deprecated"):
        warnings.filterwarnings("ignore", message, FutureWarning)


def changes(values, difference: int):
    """values_t - values_(t - difference) of (windows, time, dimensions), shorter by the difference; or the values."""
    return values[:, difference:] - values[:, :-difference] if difference else values


def last_seen(values: np.ndarray) -> np.ndarray:
    """(time, dimensions) with the value before it wherever one is missing."""
    return pd.DataFrame(values).ffill().to_numpy()


def steps_between(first: pd.Period, last: pd.Period) -> int:
    """How many periods after `first` is `last`."""
    return (last.ordinal - first.ordinal) // first.freq.n


def calendar(start: pd.Period, length: int, freq: str) -> np.ndarray:
    """GluonTS's features of the time of day, the weekday and the month from `start` on, (length, features) float32.

    Those of the date are left out: with a few years to learn from, they teach single days by heart.
    """
    index = pd.period_range(start, periods=length)
    kept = [f for f in time_features_from_frequency_str(freq) if f not in (day_of_month, day_of_year, week_of_year)]
    return np.array([feature(index) for feature in kept], np.float32).reshape(len(kept), length).T


def lags_of(freq: str, dimensions: int) -> list[int]:
    """How far back the RNN looks, in steps: one, a day and a week; for one dimension all days of it, and two weeks."""
    season, unit = get_seasonality(freq), freq.split("-")[0]
    days = [1, 2, 3, 4, 5, 6, 7, 14] if dimensions == 1 else [1, 7]
    return LAGS.get(unit) or [1, *(season * day for day in days if season > 1)]


def reach_of(freq: str, dimensions: int, difference: int, context_length: int) -> int:
    """How many steps before a forecast it depends on."""
    return max(lags_of(freq, dimensions)) + difference + context_length


def typical_scale(values: np.ndarray, difference: int) -> np.ndarray:
    """Root mean square of each dimension's changes, and a little above zero for what never changes."""
    squares = np.ma.masked_invalid(changes(values[None], difference)[0].astype(float) ** 2)
    largest = np.ma.masked_invalid(np.abs(values)).max(0).filled(0)
    return np.fmax(np.ma.filled(squares.mean(0), 0) ** 0.5, 1e-6 * np.where(largest > 0, largest, 1))


def windows_of(group: Group, past_length: int, prediction_length: int) -> Windows:
    """The windows of one group, with the truth as far as there is one."""
    values = np.pad(group.values, ((past_length, 0), (0, 0)), constant_values=np.nan)
    length = past_length + prediction_length
    covariates = np.pad(group.covariates, ((past_length, length), (0, 0)), constant_values=np.nan)
    return Windows(
        np.stack([values[begin:][:past_length] for begin in group.begins]),
        [group.start + begin for begin in group.begins],
        np.full(len(group.begins), group.number),
        np.stack([covariates[begin:][:length] for begin in group.begins]),
        np.stack([values[past_length + begin :][:prediction_length] for begin in group.begins]),
    )


def concatenated(windows: list[Windows]) -> Windows:
    """All of them as one."""
    pasts, starts, numbers, covariates, truth = zip(*windows)
    pasts, numbers, covariates, truth = map(np.concatenate, (pasts, numbers, covariates, truth))
    return Windows(pasts, [*itertools.chain(*starts)], numbers, covariates, truth)


def arranged(name: str, series: list[list[Group]], names, covariates, categories, length: int, config) -> Series:
    """A data set out of the groups of each single series: a few that share a calendar become a vector, others a panel.

    `covariates` are names, `categories` those of each series. Raises UsageError.
    """
    calendars = {tuple((g.start, len(g.values), g.train_end, *g.begins) for g in groups) for groups in series}
    form = config.form or ("vector" if len(calendars) == 1 and len(series) <= JOINT else "panel")
    if form == "vector" and len(calendars) > 1:
        raise UsageError(f"--form vector: the series of {name} do not begin and end together; leave it out")
    if form == "vector":
        return series_of(name, [*map(side_by_side, zip(*series))], names, covariates, [[]], length, config)
    print(f"{len(series)} series, learned one by one")
    columns = [column for column in zip(*categories) if 1 < len(set(column)) < len(series)]
    categories = [list(row) for row in zip(range(len(series)), *columns)]
    return series_of(name, [*itertools.chain(*series)], names, covariates, categories, length, config)


def side_by_side(groups: tuple[Group, ...]) -> Group:
    """Groups that share a calendar and covariates, as one of several dimensions."""
    return groups[0]._replace(values=np.concatenate([group.values for group in groups], 1))


def series_of(name: str, groups: list[Group], names, covariates, categories, length: int, config) -> Series:
    """A data set out of its groups, in the order of their numbers. Raises UsageError."""
    shape, freq = (length, groups[0].values.shape[1]), groups[0].start.freqstr
    context_length = config.context_length or (PANEL_CONTEXT if shape[1] == 1 else 1) * length
    difference, longest = config.difference, max(group.train_end for group in groups)
    if config.context_length and context_length > longest:
        raise UsageError(f"--context_length {context_length}: {name} has only {longest} steps; make it smaller")
    try:
        season, _ = get_seasonality(freq), time_features_from_frequency_str(freq)
    except ValueError as error:
        raise UsageError(f"--freq {freq}: no such time between rows; choose one of h, 30min, D, B, W, M") from error
    if difference is None:
        difference = season if season > 7 and longest >= 2 * season + context_length + length else 1
    past_length = reach_of(freq, shape[1], difference, context_length)
    learned = [group for group in groups if group.train_end]
    train, validated = training_rows(learned, difference, past_length, context_length, length)
    if not len(train):
        raise UsageError(
            f"--prediction_length {length}: {name} has {longest} steps to learn from, too few for "
            f"a forecast and a context of {context_length}, after --difference {difference}; make them smaller"
        )
    typical = [[None] * len(names)] if categories == [[]] else [[None] for _ in names]
    for group in learned:
        typical[group.number] = typical_scale(group.values[: group.train_end], difference).tolist()
    seen = np.concatenate([group.covariates[: group.train_end] for group in learned])
    moments = zip(np.nanmean(seen, 0).tolist(), np.fmax(np.nanstd(seen, 0), 1e-6).tolist())
    last = {group.number: group._replace(begins=[len(group.values)]) for group in groups}
    recent = concatenated([windows_of(group, past_length, length) for group in last.values()])
    facts = {"freq": freq, "names": names, "context_length": context_length, "difference": difference}
    facts |= {"scaling": config.scaling, "typical": typical, "categories": categories}
    facts |= {"covariates": dict(zip(covariates, map(list, moments))), "ends": [str(start) for start in recent.starts]}
    facts |= {
        "recent": recent.pasts.tobytes().decode("latin-1"),
        "known": recent.covariates.tobytes().decode("latin-1"),
    }
    scored = [group for group in groups if group.begins]
    if not scored:
        raise UsageError(
            f"--prediction_length {length}: no series of {name} is long enough to be scored; make it smaller"
        )
    windows, test = concatenated([windows_of(group, past_length, length) for group in scored]), []
    for group in scored:
        test += [group.values[:begin] for begin in group.begins]
    items = {"items": groups, "train": train, "validated": validated, "test": test}
    data = Series(name, shape, windows=windows, **items, **facts)
    data.check_covariates()
    return data


def training_rows(groups: list[Group], difference: int, past_length: int, context_length: int, length: int) -> tuple:
    """Where in `Series.table` the pasts of windows begin: of those to train on, and of those to validate with.

    A context begins with a known change, or where the series does. Of 20 forecasts one is validated; none that is
    trained on overlaps it. Where all series are too short for that, training windows are validated.
    """
    train, validated, above = [np.empty(0, int)], [np.empty(0, int)], context_length
    for group in groups:
        last = group.train_end - context_length - length  # begins the last context; before 0, it is not whole
        if group.train_end > difference + length:
            begins = np.arange(min(difference, last), last + 1)
            kept = begins[10 * length :: 20 * length]
            free = np.abs(begins[:, None] - kept).min(1, initial=length) >= length
            train.append(above + begins[free])
            validated.append(above + kept)
        above += past_length + group.train_end
    train, validated = map(np.concatenate, (train, validated))
    return train, validated if len(validated) else train


def target_and_covariates(entry: dict) -> tuple[np.ndarray, np.ndarray]:
    """Of a GluonTS entry, (time, dimensions) and (time and perhaps more, covariates)."""
    values = np.atleast_2d(np.asarray(entry["target"], np.float32)).T
    known = entry.get("feat_dynamic_real")
    covariates = np.empty((len(values), 0)) if known is None else np.atleast_2d(known).T
    if (np.abs(values) > LARGEST).any():
        raise ValueError(f"a value larger than {LARGEST:g}")
    return values, covariates.astype(np.float32)


def as_groups(number: int, train: dict | None, tests: list[dict], length: int) -> list[Group]:
    """One of GluonTS's series: its training entry, if any, and a test entry for each forecast, one longer than another.

    Two groups where the test entries do not go on from the training entry. Raises ValueError.
    """
    entries = [train] * (train is not None) + tests
    groups = [Group(number, entry["start"], *target_and_covariates(entry), 0, []) for entry in entries]
    groups, tests = groups[: len(entries) - len(tests)], groups[len(entries) - len(tests) :]
    groups = [group._replace(train_end=len(group.values)) for group in groups]
    if not tests:
        return groups
    whole = max(tests, key=lambda group: len(group.values))
    if not all(goes_on(group, whole, len(group.values)) for group in tests):
        raise ValueError("the test series of a window do not go on from those of the one before")
    whole = whole._replace(begins=[len(group.values) - length for group in tests])
    if min(whole.begins) < 1:
        raise ValueError(f"a test series has no more than {length} steps; make --prediction_length smaller")
    for group in groups:  # what is learned ends before the first forecast begins
        until = int(np.clip(steps_between(group.start, whole.start + min(whole.begins)), 0, group.train_end))
        if goes_on(group, whole, until):
            return [whole._replace(train_end=until)]
        groups = [group._replace(train_end=until)]
    return [*groups, whole]


def goes_on(group: Group, whole: Group, length: int) -> bool:
    """Whether `whole` has the first `length` steps of `group`."""
    same = np.array_equal(group.values[:length], whole.values[:length], equal_nan=True)
    return group.start == whole.start and same


class NotWhole(UsageError):
    """A data set of which files are missing or damaged."""


def gluonts_folder(name: str, root: Path, config) -> Series:
    """A data set in GluonTS's layout: `train`, and in `test` the same series again for each window.

    Series of the test that are not in `train`, by `item_id`, are forecast all the same. Raises UsageError, and
    NotWhole where files are missing or damaged.
    """
    from gluonts.dataset.common import load_datasets

    allow_old_frequencies()
    try:
        parts = load_datasets(root, root / "train", root / "test")
        train, tests = list(parts.train), list(parts.test)
        if not (train and tests):
            raise EOFError("no series in it")
    except Exception as error:  # of several libraries
        raise NotWhole(f"--data_dir {root}: not there or not whole ({type(error).__name__}: {error})") from error
    length = config.prediction_length or parts.metadata.prediction_length
    if not length:
        raise UsageError("--prediction_length: the data set does not say how many steps to forecast; give it")
    names, test_names = ([str(entry.get("item_id", i)) for i, entry in enumerate(part)] for part in (train, tests))
    counted = test_names == [str(i) for i in range(len(tests))] and len(tests) % len(train) == 0
    if counted or len(set(names)) < len(train) or not set(names) & set(test_names):  # no names: they come in turn
        if len(tests) % len(train):
            raise UsageError(
                f"--data_dir {root}: {len(tests)} test series, no multiple of {len(train)} training series"
            )
        names, test_names = ([str(i % len(train)) for i in range(len(part))] for part in (train, tests))
    windows = {name: [] for name in (*names, *test_names)}
    for test_name, entry in zip(test_names, tests):
        windows[test_name].append(entry)
    entries = dict(zip(names, train))
    try:
        series = [as_groups(i, entries.get(key), windows[key], length) for i, key in enumerate(windows)]
    except ValueError as error:
        raise UsageError(f"--data_dir {root}: {error}") from error
    firsts = [entries.get(key) or windows[key][0] for key in windows]
    categories = [[int(category) for category in entry.get("feat_static_cat", [])] for entry in firsts]
    covariates = [f"feat_dynamic_real_{i}" for i in range(series[0][0].covariates.shape[1])]
    return arranged(name, series, list(windows), covariates, categories, length, config)


def gluonts(recipe: str, config) -> Series:
    """A data set that GluonTS makes, downloaded to `--data_dir`/gluonts if it is not there or not whole."""
    name, home = f"gluonts:{recipe}", Path(config.data_dir) / "gluonts" / recipe
    try:
        return gluonts_folder(name, home, config)
    except NotWhole as error:
        state = str(error)
    from gluonts.dataset.repository.datasets import dataset_recipes, materialize_dataset

    if recipe not in dataset_recipes:
        known = ", ".join(dataset_recipes)
        raise UsageError(f"{state}, and GluonTS cannot make {recipe}; it makes {known}")
    print(f"{state}: making it")
    partial = home.with_name(f".{recipe}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with download(recipe, config, f"put it into {home}"):
        made = materialize_dataset(recipe, partial)
    shutil.rmtree(home, ignore_errors=True)
    made.rename(home)
    partial.rmdir()
    return gluonts_folder(name, home, config)


def series(config) -> Series:
    """Your own series: `--data_dir` is a CSV, or a folder in GluonTS's layout."""
    path = Path(config.data_dir)
    if path.is_file():
        return from_csv(path, config)
    if (path / "metadata.json").is_file():
        return gluonts_folder("series", path, config)
    raise UsageError(f"--data_dir {path}: neither a CSV nor a folder with metadata.json, train and test")


def from_csv(path: Path, config) -> Series:
    """The first column is the time, each other a series, or one of `--covariates`; of each the end is held out.

    A series begins and ends where its column does, if that is more than a forecast's length from where others do.
    """
    if config.prediction_length is None:
        raise UsageError("--prediction_length: say how many rows to forecast")
    allow_old_frequencies()
    frame, length = evenly_spaced(read_csv(path), path, config), config.prediction_length
    unknown = set(config.covariates or []) - set(frame)
    if unknown:
        raise UsageError(f"--covariates {' '.join(unknown)}: not among the columns {', '.join(frame)}")
    covariates = frame[config.covariates or []]
    frame = frame.drop(columns=covariates.columns)
    empty = [column for column in frame if frame[column].isna().all()]
    if empty:
        raise UsageError(f"--data_dir {path}: column {empty[0]} has no values; take it out")
    if not len(frame.columns):
        raise UsageError(f"--covariates {' '.join(covariates)}: no column is left to forecast; name fewer")
    frame = frame[: frame.last_valid_index()]
    series = []
    for number, column in enumerate(frame):
        known = np.flatnonzero(frame[column].notna())
        first, last = known[0] * (known[0] > length), known[-1] + 1
        last = last if len(frame) - last > length else len(frame)
        rows = last - first
        windows = config.test_windows or int(np.clip(HELD_OUT * rows // length, 1, 5))
        begins = [rows - length * i for i in range(windows, 0, -1) if rows - length * i > 0]
        if config.test_windows and len(begins) < windows:
            raise UsageError(f"--test_windows {windows}: {column} has {rows} rows, too few; make it smaller")
        values = frame[column].to_numpy(np.float32)[first:last, None]
        known = covariates.to_numpy(np.float32)[first:]
        series.append([Group(number, frame.index[first], values, known, min(begins, default=rows), begins)])
    return arranged("series", series, [*map(str, frame)], list(covariates), [[] for _ in series], length, config)


def read_csv(path: Path) -> pd.DataFrame:
    """Numbers by their time, in the order of time, of a CSV with commas, semicolons or tabs. Raises UsageError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        frame = pd.read_csv(path, sep=separator, decimal="," if separator == ";" else ".", index_col=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--data_dir {path}: not a CSV ({error})") from error
    if separator == ";":
        print("read with semicolons between columns, and decimal commas")
    frame = frame.dropna(how="all")
    frame = frame.drop(columns=[name for name in frame if name.startswith("Unnamed: ") and frame[name].isna().all()])
    if frame.shape[1] < 2:
        raise UsageError(f"--data_dir {path}: no series; the first column is the time, all others are numbers")
    stamps = times_of(frame.pop(frame.columns[0]), path)
    for name in frame:
        numbers = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = np.flatnonzero((numbers.isna() & frame[name].notna()) | (numbers.abs() > LARGEST))
        if len(wrong):
            place = f"{frame[name].iloc[wrong[0]]} in column {name}, row {frame.index[wrong[0]] + 2}"
            raise UsageError(f"--data_dir {path}: {place}; must be a number, or empty where it is missing")
        frame[name] = numbers
    return frame.set_index(stamps).sort_index()


def times_of(column: pd.Series, path: Path) -> pd.DatetimeIndex:
    """Dates, in UTC if they have an offset, or numbers: years, dates (20240131), seconds or milliseconds since 1970."""
    kinds = {"years": (1000, 1e4), "dates": (1e7, 1e8), "seconds since 1970": (1e8, 1e11)}
    kinds["milliseconds since 1970"] = (1e11, 1e14)
    try:
        if not pd.api.types.is_numeric_dtype(column):
            if column.astype(str).str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)$").any():
                print(f"times with an offset from UTC in column {column.name}: counted in UTC")
            return pd.DatetimeIndex(pd.to_datetime(column, utc=True)).tz_localize(None)
        whole = column.astype("int64")
        fits = [kind for kind, (low, high) in kinds.items() if whole.between(low, high, inclusive="left").all()]
        if not (whole == column).all() or not fits:
            raise ValueError("numbers that are neither years nor seconds since 1970")
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"--data_dir {path}: {error}; the first column must be dates, all others numbers") from error
    print(f"times in column {column.name} read as {fits[0]}")
    if "since" in fits[0]:
        return pd.DatetimeIndex(pd.to_datetime(whole, unit="ms" if "milli" in fits[0] else "s"))
    return pd.DatetimeIndex(pd.to_datetime(whole.astype(str), format="%Y" if "years" in fits[0] else "%Y%m%d"))


def evenly_spaced(frame: pd.DataFrame, path: Path, config) -> pd.DataFrame:
    """By periods of `--freq`, one row each: missing ones are empty, and several of a period become their mean."""
    if frame.index.has_duplicates:
        time = frame.index[frame.index.duplicated()][0]
        raise UsageError(f"--data_dir {path}: several rows for {time}; leave one")
    freq = config.freq or frame.index.inferred_freq
    if freq is None:
        raise UsageError("--freq: the time between rows cannot be told; give it: h, 30min, D, B, W, M")
    try:
        periods = frame.index.to_period(config.freq)
    except ValueError as error:
        raise UsageError(f"--freq {freq}: no such time between rows; choose one of h, 30min, D, B, W, M") from error
    steps = (periods.asi8 - periods.asi8[0]) // periods.freq.n
    rows = int(steps[-1]) + 1
    if rows > min(MOST_ROWS, 1000 + 100 * len(frame)):
        span = f"{len(frame)} rows from {frame.index[0]} to {frame.index[-1]} would make {rows:,}"
        raise UsageError(f"--freq {freq}: {span}; correct the times, or choose a longer --freq")
    if len(np.unique(steps)) < len(steps):
        print(f"--freq {freq}: {len(steps)} rows become the means of {len(np.unique(steps))}")
    whole = frame.groupby(steps).mean().reindex(range(rows))
    whole.index = pd.period_range(periods[0], periods=rows)
    missing = np.setdiff1d(np.arange(rows), steps)
    if len(missing):
        print(f"{len(missing)} of {rows} rows are missing, the first {whole.index[missing[0]]}")
    return whole


DATASETS = {  # name: (modality, function that reads it)
    "circle": (Points, functools.partial(points, "circle", circle)),
    "dino": (Points, functools.partial(points, "dino", dino)),
    "line": (Points, functools.partial(points, "line", line)),
    "moons": (Points, functools.partial(points, "moons", moons)),
    "digits": (Images, digits),
    "mnist": (Images, functools.partial(from_torchvision, "mnist", "MNIST")),
    "fashion-mnist": (Images, functools.partial(from_torchvision, "fashion-mnist", "FashionMNIST")),
    "pets": (Images, functools.partial(from_kaggle, "pets", "borhanitrash/cat-dataset")),
    "faces": (Images, functools.partial(from_kaggle, "faces", "imcr00z/flickr-faces-70k-thumbnails-128x128")),
    "folder": (Images, image_folder),
    "array": (Images, array),
    "points": (Points, own_points),
    "speech-commands": (Spectrograms, speech_commands),
    "sounds": (Spectrograms, sounds),
    "electricity": (Series, functools.partial(gluonts, "electricity_nips")),
    "exchange-rate": (Series, functools.partial(gluonts, "exchange_rate_nips")),
    "solar": (Series, functools.partial(gluonts, "solar_nips")),
    "taxi": (Series, functools.partial(gluonts, "taxi_30min")),
    "traffic": (Series, functools.partial(gluonts, "traffic_nips")),
    "wiki": (Series, functools.partial(gluonts, "wiki2000_nips")),
    "series": (Series, series),
}


def lookup(name: str) -> tuple:
    """Modality and reader of the data set called `name`; gluonts:NAME is any that GluonTS knows. Raises UsageError."""
    if name.startswith("gluonts:"):
        return Series, functools.partial(gluonts, name.removeprefix("gluonts:"))
    if name not in DATASETS:
        raise UsageError(f"--dataset {name}: choose among {', '.join(DATASETS)}, or gluonts:NAME")
    return DATASETS[name]


def load(config) -> Data:
    """The data set that the configuration names; with `limit`, only its first training items. Raises UsageError."""
    _, read = lookup(config.dataset)
    if getattr(config, "range", None) and config.dataset != "array":
        raise UsageError("--range: only --dataset array takes it; leave it out")
    data = read(config)
    data.train = data.train[: config.limit]
    return data


def restore(facts: dict) -> Data:
    """A data set as a checkpoint remembers it: it encodes, decodes, renders and saves, but has no items.

    Raises ValueError, or what wrong types lead to, where these are not the facts of a data set.
    """
    modality, _ = lookup(facts["name"])
    sizes, classes = facts["shape"], facts["classes"]
    named = classes is None or (len(classes) > 0 and all(type(title) is str for title in classes))
    if not (named and all(type(size) is int and 0 < size < 2**20 for size in sizes) and modality.whole(**facts)):
        raise ValueError("not the facts of a data set")
    return modality(**facts)


def are_numbers(values, *shape: int) -> bool:
    """Whether these are finite numbers of a sensible size, in lists of this shape."""
    array = np.array(values)
    return array.shape == shape and array.dtype.kind in "iuf" and bool((np.abs(array) < 2.0**100).all())
