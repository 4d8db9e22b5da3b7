"""What every modality offers, and all that training and sampling know of it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Annotated

import imageio.v3 as imageio
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from tiny_diffusion.files import read_ahead, write
from tiny_diffusion.machine import noise_of
from tiny_diffusion.messages import UsageError

RESIDENT_BYTES = 2**30  # data up to this size is kept on the device, larger data is read from the disk
HELD_OUT = 0.1  # share of the items held out for scoring, where the data set itself does not say
UNBALANCED = 1.5  # times the mean of all classes' items in one: more, and classes are weighted
MAX_PICTURED = 2000  # samples in a picture


def is_text(value):
    """`value`, which must be a text; pydantic itself refuses names of files that are not UTF-8."""
    if type(value) is not str:
        raise ValueError("not a text")
    return value


def is_small(shape: list[int]) -> list[int]:
    """`shape`, which must be that of a sample that fits into memory."""
    if math.prod(shape) >= 2**24:
        raise ValueError("too large")
    return shape


Text = Annotated[object, BeforeValidator(is_text)]
Size = Annotated[int, Field(strict=True, gt=0, lt=2**20)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**20)]
Number = Annotated[float, Field(strict=True, gt=-(2.0**120), lt=2.0**120)]
Positive = Annotated[float, Field(strict=True, gt=0, lt=2.0**120)]


class Facts(BaseModel):
    """What a checkpoint keeps of a data set: enough to draw, show and name samples without the data."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    name: Text
    shape: Annotated[list[Size], AfterValidator(is_small)]  # of a sample in model space
    classes: Annotated[list[Text], Field(min_length=1)] | None = None

    def equal(self, other: Facts) -> bool:
        """Whether the data set is the same; missing values are equal, and seasons, which are only told, may differ."""
        if type(self) is not type(other):
            return False
        pairs = ((one, two) for (name, one), (_, two) in zip(self, other) if name != "season")
        return all(np.array_equal(one, two, equal_nan=isinstance(one, Tensor)) for one, two in pairs)


class Data:
    """A data set. `items` are raw, as they are stored; `train` and `test` are the numbers of those that train, and of
    those held out.

    A batch `x` is in model space, float32 of shape (n, *shape).
    """

    Facts = Facts  # of this modality
    modality = ""
    interval = None  # (low, high): the range of x_0 in model space, where it has one
    bin_width = None  # distance of neighbouring raw values in model space, where they are discrete
    time_axes = 1  # how many leading axes of a batch have a diffusion time of their own
    animated = 0  # samples in a GIF
    pictured = 100  # training items in a picture of the data
    histories = 1  # histories to forecast from; numbers of samples are those of each

    def __init__(self, facts: Facts, items=None, labels=None, train=None, test=None):
        self.facts, self.name, self.shape, self.classes = facts, facts.name, tuple(facts.shape), facts.classes
        self.items, self.labels, self.train, self.test = items, labels, train, test
        self._resident = None

    def recipe(self) -> dict:
        """Settings that suit this much data better than the defaults of its modality do."""
        return {}

    def check(self) -> None:
        """Raise ValueError, or what wrong sizes lead to, unless the facts fit together."""
        x = torch.zeros(1, *self.shape)
        if self.encode(torch.from_numpy(self.decode(x))).shape != x.shape:
            raise ValueError("sizes that do not fit together")

    def network_settings(self) -> dict:
        """Keyword arguments of the denoiser that the data decides."""
        return {}

    def encode(self, raw: Tensor) -> Tensor:
        """Raw items to model space."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> np.ndarray:
        """Model space to raw items."""
        raise NotImplementedError

    def render(self, x: Tensor) -> np.ndarray:
        """A batch as one picture, (height, width, 3) uint8."""
        raise NotImplementedError

    def overview(self) -> np.ndarray:
        """The first training items, as training sees them, as one picture."""
        return self.render(self.encoded(self.train[: self.pictured]))

    def film(self, batches):
        """Yield `render` of each batch."""
        return map(self.render, batches)

    def save(self, x: Tensor, folder: Path, label=None) -> None:
        """Write samples, drawn with `label`, as samples.npy, in raw units, and samples.png."""
        write(folder / "samples.npy", lambda file: np.save(file, self.decode(x)))
        write_picture(folder / "samples.png", self.render(x[:MAX_PICTURED]))

    def score(self, x: Tensor, device="cpu", thorough: bool = False) -> dict:
        """Figures for samples, beside those of `true_samples`; `thorough` adds what takes minutes or a download."""
        return {}

    def save_nearest(self, x: Tensor, folder: Path) -> None:
        """Write nearest.png, samples beside the training items nearest to them, where it can be drawn."""

    def encoded(self, index: np.ndarray) -> Tensor:
        """The items of these numbers in model space, on the CPU."""
        return self.encode(torch.from_numpy(self.items[index]))

    def of_class(self, label) -> Data:
        """The items of one class alone, to compare samples drawn with `label` with; without a label, all.

        Half of its training items stand for those held out where there are none.
        """
        data = copy.copy(self)
        if label is not None:
            number = self.class_number(str(label))
            data.train, data.test = (part[self.labels[part] == number] for part in (self.train, self.test))
            if not len(data.test):
                data.test, data.train = np.array_split(data.train, 2)
        return data if len(data.train) and len(data.test) else self

    def comparable(self, x: Tensor, label) -> tuple[Data, Tensor]:
        """The data to compare samples drawn with `label` with, and the samples to compare.

        Without a label every class is drawn as often: where held-out items are unlike that, the classes that these have
        fewer of lose samples, so that both are mixed alike.
        """
        if label is not None or not self.classes:
            return self.of_class(label), x
        held_out = np.bincount(self.labels[self.test], minlength=len(self.classes))
        if held_out.max() <= UNBALANCED * held_out.mean():
            return self, x
        drawn = np.arange(len(x)) % len(self.classes)
        most = np.bincount(drawn, minlength=len(self.classes))[held_out > 0].min() / held_out.max()
        wanted = np.maximum(1, np.round(held_out * most)) * (held_out > 0)
        return self, x[np.arange(len(x)) // len(self.classes) < wanted[drawn]]

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

    def noise_of(self, seed: int, samples: range, device):
        """Returns draw(shape): noise for these samples, the same in any batch."""
        return noise_of(seed, samples, device)

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
        yield from self.read(in_batches(self.test, batch_size, number), device)

    def validation(self, batch_size: int, number: int, device):
        """`held_out`, for the loss while training: before the test data begins, where there is an order of time.

        None where there is too little data for that.
        """
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


def scores_with_copies(scores: dict, floors: dict, distances: np.ndarray, true: np.ndarray) -> dict:
    """Scores, and those of copies: `distances` of samples to their nearest training items, and those of `true` ones.

    They are compared by their medians, which no outlier moves, and by how often chance alone makes samples so near
    (Mann & Whitney 1947). A ratio to a score of zero, as whole numbers and duplicates have it, is left out.
    """
    from scipy.stats import mannwhitneyu

    name = "distance_to_training_items"
    scores[name], floors[name] = (float(np.median(values)) for values in (distances, true))
    ratios = [key for key, floor in floors.items() if floor > 1e-6 and not key.startswith(("mean", "contrast"))]
    found = {f"{key}_ratio": scores[key] / floors[key] for key in ratios}
    found[f"{name}_p_value"] = float(mannwhitneyu(distances, true, alternative="less").pvalue)
    return scores | found | {"true_samples": floors}


def in_batches(numbers: np.ndarray, batch_size: int, total: int) -> list[np.ndarray]:
    """`total` of the numbers in an order that is always the same, over and over if there are fewer, in batches."""
    order = np.resize(np.random.default_rng(0).permutation(numbers), total)
    return np.split(order, range(batch_size, total, batch_size))


def split(number: int, parts: np.ndarray | None = None, flag: str = "--data_dir") -> dict[str, np.ndarray]:
    """Which of `number` items train, and which are held out, as `test`: one in ten, at least one.

    Where the data set says so itself, `parts` are "train", "validation" or "test" of each item; what is to validate is
    held out where nothing is to test, and else left out.
    """
    if parts is None:
        test, train = np.split(np.random.default_rng(0).permutation(number), [max(1, round(HELD_OUT * number))])
        return {"train": train, "test": test}
    held_out = "test" if (parts == "test").any() else "validation"
    if unused := len(parts) - np.isin(parts, ["train", held_out]).sum():
        print(f"{unused:,} items to validate with are left out, since others are there to test with")
    found = {"train": np.flatnonzero(parts == "train"), "test": np.flatnonzero(parts == held_out)}
    for part, noun in (("train", "training"), ("test", "test")):
        if not len(found[part]):
            raise UsageError(f"{flag}: no {noun} items in these, by the split that they come with; name others")
    return found


def check_tensors(tensors: dict) -> None:
    """Raise ValueError unless all are floats of 16 or 32 bits, finite, and take the memory that their shapes say."""
    for tensor in tensors.values():
        honest = tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
        if tensor.dtype not in (torch.float16, torch.float32) or not (honest and tensor.isfinite().all()):
            raise ValueError("not finite numbers")


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as `dtype`, rounded and clipped where it holds integers."""
    if np.issubdtype(dtype, np.integer):
        values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, (height, width, 3) uint8, as PNG."""
    write(path, lambda file: imageio.imwrite(file, pixels, extension=".png"))


def pixels_of(figure) -> np.ndarray:
    """A matplotlib figure as a picture, (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
