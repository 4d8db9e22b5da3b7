"""Points in the plane, or of any dimension: how they are drawn, read, shown and scored."""

import functools
import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from tiny_diffusion.arrays import DTYPES, limited, points_hint, read_array, value_range
from tiny_diffusion.data import MAX_PICTURED, Data, Facts, Number, Positive, cast, pixels_of, scores_with_copies, split
from tiny_diffusion.files import STATIC
from tiny_diffusion.folders import several
from tiny_diffusion.messages import UsageError
from tiny_diffusion.sources import tell

TRAINED, HELD_OUT = 8000, 20000  # of a shape: points to train on, and to compare samples with
SLICED = 20  # dimensions at most of which a sliced distance tells something


class PointsFacts(Facts):
    """Of each coordinate of the training points: mean, standard deviation, lowest and highest value."""

    mean: list[Number]
    std: list[Positive]
    limits: tuple[list[Number], list[Number]]
    dtype: Literal[DTYPES] = "float32"


class Points(Data):
    """Model space: standardised, each coordinate by itself."""

    Facts = PointsFacts
    modality = "points"
    animated = 1000
    pictured = MAX_PICTURED

    def __init__(self, facts: PointsFacts, **items):
        super().__init__(facts, **items)
        reach = (np.array(facts.limits) - facts.mean) / facts.std
        self.interval = (1.25 * reach.min().item(), 1.25 * reach.max().item())  # wide enough to shape nothing

    def network_settings(self):
        return {"num_classes": len(self.classes or ())}

    def encode(self, raw):
        raw = raw.double() if raw.dtype in (torch.float64, torch.int32) else raw.float()
        return ((raw - raw.new_tensor(self.facts.mean)) / raw.new_tensor(self.facts.std)).float()

    def decode(self, x):
        """The same but for coordinates that never change, which stay so."""
        low, high = np.array(self.facts.limits)
        raw = x.cpu().double().numpy() * self.facts.std + self.facts.mean
        return cast(np.where(low < high, raw, low), self.facts.dtype)

    def render(self, x):
        """Each pair of the first three coordinates, each coordinate of more than two on a scale of its own."""
        pairs = list(itertools.combinations(range(min(self.shape[0], 3)), 2)) or [(0, 0)]
        figure, points = Figure(figsize=(4 * len(pairs), 4), dpi=100), self.decode(x)
        low, high = np.array(self.facts.limits)
        middle, reach = (low + high) / 2, 0.65 * (high - low).clip(min=1e-9)
        reach = reach if self.shape[0] > 2 else reach.max().repeat(self.shape[0])
        low, high = middle - reach, middle + reach
        for k, (i, j) in enumerate(pairs):
            axes = figure.add_axes((k / len(pairs), 0, 1 / len(pairs), 1))
            axes.set(xlim=(low[i], high[i]), ylim=(low[j], high[j]))
            axes.set_axis_off()
            axes.plot(points[:, i], points[:, j], ".", markersize=4, markeredgewidth=0, color="#2b5c8a", alpha=0.7)
        return pixels_of(figure)

    def score(self, x, device="cpu", thorough=False):
        """Distances to true samples of the same size and to training items, beside those of true samples.

        Of samples as they are saved, whole numbers rounded. Above SLICED dimensions the sliced distance is left out: a
        projection of many coordinates is nearly normal, whether they belong together or are shuffled.
        """
        train, true = (self.encoded(part).numpy() for part in (self.train, self.test[:HELD_OUT]))
        if len(true) < 2:
            return {}
        x = self.encode(torch.from_numpy(self.decode(x[: len(true) // 2]))).numpy()
        true = true[: len(true) // len(x) * len(x)].reshape(-1, *x.shape)
        scores, floors = {"samples": len(x)}, {}
        compared = {"sliced_wasserstein": sliced_wasserstein} if self.shape[0] <= SLICED else {}
        for name, distance in (compared | {"distance_to_data": nearest_distance}).items():
            scores[name] = float(np.mean([distance(x, other) for other in true]))
            floors[name] = float(np.mean([distance(one, other) for one, other in zip(true, np.roll(true, 1, axis=0))]))
        return scores_with_copies(scores, floors, *(nearest_distances(one, train) for one in (x, true[0])))


def nearest_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean distance of the points x to the nearest of the points y, both (n, dimensions)."""
    return float(nearest_distances(x, y).mean())


def nearest_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The distance of each of the points x to the nearest of the points y."""
    from scipy.spatial import KDTree

    return KDTree(y).query(x)[0]


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


def from_points(name: str, items: np.ndarray, known: np.ndarray, classes=None, **parts) -> Points:
    """Points (n, dimensions), of which those that are `known`, all or the training points, give mean and scale."""
    std = known.std(0)
    facts = {"mean": known.mean(0).tolist(), "std": np.where(std > 0, std, 1).tolist()}
    facts |= {"limits": [known.min(0).tolist(), known.max(0).tolist()], "dtype": items.dtype.name}
    return Points(PointsFacts(name=name, shape=list(items.shape[1:]), classes=classes, **facts), items=items, **parts)


def points_file(config) -> Points:
    """Your own points: `--data_dir` is a .npy of (n, dimensions), or a .npz or .mat with such an x, classes as y."""
    path, name = Path(config.data_dir), f"--data_dir {config.data_dir}"
    array = read_array(path)
    if array.items.ndim != 2:
        raise UsageError(f"{name}: its shape is {array.items.shape}, not (n, dimensions)")
    array, parts = limited(array, split(len(array.items), array.split), name, config.limit)
    (low, high), _ = value_range(array.items, name)
    number, dimensions = array.items.shape
    found = f"{number:,} points of {dimensions} dimensions, {array.items.dtype} from {low:g} to {high:g}"
    found += f", {len(array.classes)} classes: {several(array.classes)}" if array.classes else ""
    tell("", [*array.said, f"{path}: {found}", *filter(None, [points_hint(dimensions)])])
    known, labelled = array.items[parts["train"]].astype(np.float64), {"classes": array.classes, "labels": array.labels}
    return from_points(config.dataset, array.items, known, **labelled, **parts)


def drawn(sample):
    """Turn `sample(number, generator)`, which draws points (number, 2), into the reader of a data set."""

    @functools.wraps(sample)
    def read(config) -> Points:
        items = sample(TRAINED + HELD_OUT, np.random.default_rng(0)).astype(np.float32)
        train, test = np.split(np.arange(len(items)), [TRAINED])
        return from_points(config.dataset, items, items[train], train=train, test=test)

    return read


@drawn
def circle(number: int, generator) -> np.ndarray:
    """A unit circle, blurred by 0.02."""
    angle = generator.uniform(0, 2 * np.pi, number)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.02 * generator.normal(size=(number, 2))


@drawn
def dino(number: int, generator) -> np.ndarray:
    """Alberto Cairo's Datasaurus (Matejka & Fitzmaurice 2017): 142 points, blurred by 0.5 of about 100."""
    outline = np.loadtxt(STATIC / "datasaurus_dino.csv", delimiter=",", skiprows=1)
    return generator.permutation(np.resize(outline, (number, 2))) + 0.5 * generator.normal(size=(number, 2))


@drawn
def line(number: int, generator) -> np.ndarray:
    """A thick upright line: a filled rectangle, one wide and two high."""
    return generator.uniform((-0.5, -1), (0.5, 1), (number, 2))


@drawn
def moons(number: int, generator) -> np.ndarray:
    """scikit-learn's two half circles, blurred by 0.05."""
    from sklearn.datasets import make_moons

    return make_moons(number, noise=0.05, random_state=int(generator.integers(2**31)))[0]
