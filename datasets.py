"""The data sets: a class for each modality, a function for each data set, and one table of them all.

>>> data = load("dino")
>>> x_0, cond, weight = next(data.batches(512, seed=0, epoch=1, device="cpu"))

To add a data set, write a function that returns its modality and add a row to `DATASETS`. PyTorch and the readers of
the single data sets are imported where they are used, so that `ddpm.py -h` answers at once.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import os
import shutil
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    import torch

STATIC = Path(__file__).parent / "static"
RESIDENT_BYTES = 2**30  # data up to this size lives on the device, larger data streams from the disk
HELD_OUT = 0.1  # the share of a folder of images that is kept for scoring
PICTURED = 2000  # samples at most in a picture
FRECHET_SAMPLES = 2048  # as many as Inception has features, for their covariance to have full rank
COLUMNS = 10  # of a grid of images: with ten classes, one for each

SAMPLE_RATE = 16000  # of sound, in Hz; a clip lasts one second
WINDOW, HOP = 800, 250  # of the Fourier transform, in samples: a frame of 50 ms, every 16 ms
BANDS, LOWEST, HIGHEST = 64, 60, 8000  # Mel bands, from and to Hz
QUIETEST, LOUDEST = -36, 44  # dB in a Mel band, of a clip whose peak is 1: what the 256 levels span
FRAMES = SAMPLE_RATE // HOP
CLIPS = f"clips {SAMPLE_RATE} {WINDOW} {LOWEST} {HIGHEST} {QUIETEST} {LOUDEST}"  # of which a cache holds one kind
PEAK = 0.9  # of the sound that is written
VOCODED = 64  # clips at a time
HEARD = 100  # clips at most in a picture

warnings.filterwarnings("ignore", "Period.*B.*deprecated", FutureWarning)  # GluonTS counts business days by periods
PANELS = 8  # forecasts at most in a picture


class UsageError(ValueError):
    """What the person at the keyboard can mend: the message names the argument and the remedy."""


class Data:
    """What every modality offers, and all that training and sampling know of it.

    `items` are raw, as they are stored; a batch `x` is in model space, float32 of shape (n, *shape). `facts` are what
    a checkpoint keeps, so that `restore(facts)` draws, saves and names samples without the data.
    """

    modality = ""
    interval = None  # (low, high): the range of x_0 in model space, where it has one
    bin_width = None  # of the raw values in model space, where they are discrete
    time_axes = 1  # how many leading axes of a batch have a diffusion time of their own
    animated = 0  # how many samples a GIF shows
    draws = 1  # reverse processes for a sample
    starts = (None,)  # the pasts that samples go on from

    def __init__(self, name, shape, classes=None, items=None, labels=None, train=None, test=None, **statistics):
        self.name, self.shape, self.classes = name, tuple(shape), classes
        self.items, self.labels, self.train, self.test = items, labels, train, test
        self.statistics = statistics
        self.cond_size = len(classes or ())
        self.facts = {"name": name, "shape": list(shape), "classes": classes, **statistics}
        self._resident = None

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw items to model space."""
        raise NotImplementedError

    def decode(self, x: torch.Tensor) -> np.ndarray:
        """Model space to raw items."""
        raise NotImplementedError

    def draw(self, x: torch.Tensor) -> np.ndarray:
        """A batch as one picture, (height, width, 3) uint8."""
        raise NotImplementedError

    def save(self, x: torch.Tensor, folder: Path, cond: torch.Tensor | None = None) -> None:
        """Write a batch, drawn with `cond`, as samples.npy, in raw units, and samples.png."""
        import imageio.v3 as imageio

        np.save(folder / "samples.npy", self.decode(x))
        imageio.imwrite(folder / "samples.png", self.draw(x[:PICTURED]))

    def score(self, x: torch.Tensor, thorough: bool = False) -> dict:
        """Figures for samples against held-out data; `thorough` adds those that take minutes or a download."""
        return {}

    def condition(self, samples: range, label: str | None, device) -> torch.Tensor | None:
        """cond to draw `samples` with: the class called `label`, by name or number, or else every class in turn."""
        import torch

        if label is None:
            return torch.tensor(samples, device=device) % len(self.classes) if self.classes else None
        if not self.classes:
            raise UsageError(f"--label {label}: {self.name} has no classes; leave --label out")
        if label not in self.classes and not (label.isdecimal() and int(label) < len(self.classes)):
            raise UsageError(f"--label {label}: {self.name} has the classes {', '.join(self.classes)}")
        number = self.classes.index(label) if label in self.classes else int(label)
        return torch.full((len(samples),), number, device=device)

    def generate(self, model, reverse, number: int, cond):
        """`number` samples and their way from noise; `reverse(denoiser, shape, cond)` is the whole reverse process."""
        return reverse(model, (number, *self.shape), cond)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch; what does not fill one is left out, others in each epoch."""
        return max(1, len(self.train) // batch_size)

    def batches(self, batch_size: int, seed: int, epoch: int, device, rank: int = 0, world_size: int = 1):
        """Yield (x_0, cond, weight) once through the training set, in an order given by `seed` and `epoch` alone.

        Of each batch, process `rank` of `world_size` gets its share. `weight`, of x_0's shape or None, says how much
        each value counts in the loss.
        """
        order = np.random.default_rng((seed, epoch)).permutation(self.train)
        steps = self.steps_per_epoch(batch_size)
        chosen = [order[i * batch_size : (i + 1) * batch_size][rank::world_size] for i in range(steps)]
        yield from self.read(chosen, device)

    def held_out(self, batch_size: int, number: int, device):
        """Yield (x_0, cond, weight) for `number` held-out items, over and over if there are fewer."""
        order = np.resize(np.random.default_rng(0).permutation(self.test), number)
        yield from self.read(np.split(order, range(batch_size, number, batch_size)), device)

    def read(self, chosen, device):
        """Yield (x_0, cond, weight) for each array of indices, out of the device's memory or ahead from the disk."""
        import torch

        if self.items.nbytes <= RESIDENT_BYTES:
            if self._resident is None or self._resident.device != torch.device(device):
                self._resident = torch.from_numpy(np.array(self.items)).to(device)
            for index in chosen:
                index = torch.from_numpy(index)
                yield self.encode(self._resident[index.to(device)]), self.labels_of(index, device), None
        else:
            for index, raw in read_ahead(lambda index: (index, torch.from_numpy(self.items[index])), chosen):
                if torch.device(device).type == "cuda":
                    raw = raw.pin_memory()
                yield self.encode(raw.to(device, non_blocking=True)), self.labels_of(index, device), None

    def labels_of(self, index, device):
        import torch

        return None if self.labels is None else torch.as_tensor(self.labels[index]).to(device)


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


def in_pixels(figure) -> np.ndarray:
    """A figure of matplotlib's as a picture, (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


class Points(Data):
    """Points in the plane. Model space: standardised, each coordinate by itself."""

    modality = "points"
    animated = 1000

    def __init__(self, *args, **facts):
        super().__init__(*args, **facts)
        limits = (np.array(self.statistics["limits"]) - self.statistics["mean"]) / self.statistics["std"]
        self.interval = (1.25 * limits.min(), 1.25 * limits.max())  # wide enough to shape nothing

    def encode(self, raw):
        return (raw - raw.new_tensor(self.statistics["mean"])) / raw.new_tensor(self.statistics["std"])

    def decode(self, x):
        x = x.float().cpu().numpy()
        return x * np.float32(self.statistics["std"]) + np.float32(self.statistics["mean"])

    def draw(self, x):
        from matplotlib.figure import Figure

        points, (low, high) = self.decode(x), np.array(self.statistics["limits"])
        figure = Figure(figsize=(4, 4), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        middle, reach = (low + high) / 2, 0.65 * (high - low).max()
        axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
        axes.set_axis_off()
        axes.plot(*points.T, ".", markersize=4, markeredgewidth=0, color="#2b5c8a", alpha=0.7)
        return in_pixels(figure)

    def score(self, x, thorough=False):
        """Sliced Wasserstein distance to true samples of the same size, and the same between two true samples."""
        true = self.encode(x.new_tensor(self.items[self.test])).cpu().numpy()
        x = x[: len(true) // 2].float().cpu().numpy()
        true = true[: len(true) // len(x) * len(x)].reshape(-1, len(x), 2)
        distance = np.mean([sliced_wasserstein(x, other) for other in true])
        floor = np.mean([sliced_wasserstein(one, other) for one, other in zip(true, np.roll(true, 1, axis=0))])
        figures = {"sliced_wasserstein": distance, "sliced_wasserstein_floor": floor, "ratio": distance / floor}
        return {"samples": len(x)} | {name: float(value) for name, value in figures.items()}


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, directions: int = 128) -> float:
    """Sliced 2-Wasserstein distance of two equally large sets of points, (n, 2) (Bonneel et al. 2015, eq. 9)."""
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    theta = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.sqrt(np.mean((np.sort(x @ theta, axis=0) - np.sort(y @ theta, axis=0)) ** 2)))


def points(name: str, sample) -> Points:
    """8,000 training points and 20,000 held out, drawn by `sample(number, generator)`."""
    number = 8000
    items = sample(number + 20000, np.random.default_rng(0)).astype(np.float32)
    train, test = np.arange(number), np.arange(number, len(items))
    statistics = {"mean": items[train].mean(0), "std": items[train].std(0)}
    statistics["limits"] = np.stack([items[train].min(0), items[train].max(0)])
    return Points(
        name, (2,), items=items, train=train, test=test, **{key: value.tolist() for key, value in statistics.items()}
    )


def circle(options) -> Points:
    """A unit circle, blurred by 0.02."""

    def sample(number, generator):
        angle = generator.uniform(0, 2 * np.pi, number)
        return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.02 * generator.normal(size=(number, 2))

    return points("circle", sample)


def dino(options) -> Points:
    """Alberto Cairo's Datasaurus (Matejka & Fitzmaurice 2017): 142 points, blurred by 0.5 of about 100."""
    outline = np.loadtxt(STATIC / "datasaurus_dino.csv", delimiter=",", skiprows=1)

    def sample(number, generator):
        return generator.permutation(np.resize(outline, (number, 2))) + 0.5 * generator.normal(size=(number, 2))

    return points("dino", sample)


def line(options) -> Points:
    """A thick upright line: a filled rectangle, one wide and two high."""
    return points("line", lambda number, generator: generator.uniform((-0.5, -1), (0.5, 1), (number, 2)))


def moons(options) -> Points:
    """scikit-learn's two half circles, blurred by 0.05."""
    from sklearn.datasets import make_moons

    def sample(number, generator):
        return make_moons(number, noise=0.05, random_state=int(generator.integers(2**31)))[0]

    return points("moons", sample)


class Pixels(Data):
    """Raw: (height, width, channels) uint8; model space: (channels, height, width), (raw - mean) / std."""

    animated = 40

    def __init__(self, *args, **facts):
        super().__init__(*args, **facts)
        self.mean, self.std = (self.statistics.get(name, 127.5) for name in ("mean", "std"))  # else [-1, 1]
        self.interval, self.bin_width = (-self.mean / self.std, (255 - self.mean) / self.std), 1 / self.std

    def encode(self, raw):
        return raw.permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)

    def decode(self, x):
        raw = x.float().mul(self.std).add(self.mean).round().clamp(0, 255).byte()
        return raw.permute(0, 2, 3, 1).cpu().numpy()


def grid(tiles: np.ndarray) -> np.ndarray:
    """RGB tiles (n, height, width, 3) as one picture: rows of COLUMNS, small ones enlarged, a thin line around each."""
    columns = min(len(tiles), COLUMNS)
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1), (0, 0)))
    number, height, width, _ = tiles.shape
    rows = tiles.reshape(number // columns, columns, height, width, 3).swapaxes(1, 2)
    zoom = max(1, 56 // height)
    return rows.reshape(-1, columns * width, 3).repeat(zoom, axis=0).repeat(zoom, axis=1)


class Images(Pixels):
    """Grey or RGB, in [-1, 1]."""

    modality = "images"

    def draw(self, x):
        tiles = self.decode(x)
        return grid(tiles.repeat(3 // tiles.shape[3], axis=3))  # grey becomes RGB

    def score(self, x, thorough=False):
        """Fréchet distance in Inception features to the held-out images (Heusel et al. 2017), where it can be had."""
        if not thorough:
            return {}
        if len(x) < FRECHET_SAMPLES:
            print(f"Fréchet distance left out: it needs --num_samples {FRECHET_SAMPLES} or more, better 10000")
            return {}
        real = np.resize(self.test, min(len(self.test), len(x)))
        try:
            distance = frechet_distance(self.items[real], self.decode(x))
        except (ImportError, OSError) as error:  # no torch-fidelity, or no network for its weights
            print(f"Fréchet distance left out, it needs torch-fidelity and Inception's weights: {error}")
            return {}
        return {"frechet_distance": distance, "frechet_samples": len(x), "frechet_held_out": len(real)}


def frechet_distance(real: np.ndarray, generated: np.ndarray, feature=2048) -> float:
    """Fréchet distance of two sets of images, (n, height, width, channels) uint8, as torchmetrics computes it."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=feature)
    for images, is_real in ((real, True), (generated, False)):
        for batch in np.split(images, range(64, len(images), 64)):
            batch = torch.from_numpy(batch).permute(0, 3, 1, 2)
            metric.update(batch.expand(-1, 3, -1, -1), real=is_real)
    return float(metric.compute())


def resized(items: np.ndarray, size: int | None) -> np.ndarray:
    """Images (n, height, width, channels) uint8 brought to size x size; as they are, without `size`."""
    if size in (None, items.shape[1]):
        return items
    import torch
    from torchvision.transforms.functional import resize

    small = resize(torch.from_numpy(items).permute(0, 3, 1, 2), [size, size], antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def digits(options) -> Images:
    """The 1,797 handwritten digits, 8x8, that come inside scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    read = load_digits()
    items = resized((read.images[..., None] * (255 / 16)).round().astype(np.uint8), options.image_size)
    train, test = np.split(np.arange(len(items)), [1500])
    classes = [str(digit) for digit in range(10)]
    return Images("digits", (1, *items.shape[1:3]), classes, items, read.target, train, test)


def from_torchvision(name: str, dataset, classes: list[str], options) -> Images:
    """A data set of torchvision's in MNIST's form, downloaded to `--data_dir` where it is not there yet."""
    try:
        parts = [dataset(options.data_dir, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        folder = Path(options.data_dir) / dataset.__name__ / "raw"
        raise UsageError(
            f"--data_dir {options.data_dir}: {name} is not there and could not be downloaded ({error}); "
            f"connect to the internet or put its files into {folder}"
        ) from error
    items = resized(np.concatenate([part.data.numpy() for part in parts])[..., None], options.image_size)
    labels = np.concatenate([part.targets.numpy() for part in parts])
    train, test = np.split(np.arange(len(items)), [len(parts[0].data)])
    return Images(name, (1, *items.shape[1:3]), classes, items, labels, train, test)


def mnist(options) -> Images:
    """70,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
    from torchvision.datasets import MNIST

    return from_torchvision("mnist", MNIST, [str(digit) for digit in range(10)], options)


def fashion_mnist(options) -> Images:
    """70,000 pieces of clothing, 28x28 (Xiao et al. 2017)."""
    from torchvision.datasets import FashionMNIST

    return from_torchvision("fashion-mnist", FashionMNIST, FashionMNIST.classes, options)


def from_kaggle(name: str, handle: str, options) -> Images:
    """The images of a public Kaggle data set, downloaded to `--data_dir`/`name` where that folder is absent."""
    folder = Path(options.data_dir) / name
    if not folder.is_dir():
        import kagglehub

        partial = folder.with_name(f".{name}.part")
        try:
            kagglehub.dataset_download(handle, output_dir=str(partial))
        except Exception as error:  # kagglehub documents no errors of its own, and its HTTP library's vary
            raise UsageError(
                f"--data_dir {options.data_dir}: {name} is not there and could not be downloaded ({error}); "
                f"connect to the internet, or unpack kaggle.com/datasets/{handle} into {folder}"
            ) from error
        partial.rename(folder)
    return from_folder(name, folder, folder.parent / ".cache", options, labelled=False)


def pets(options) -> Images:
    """Faces of cats."""
    return from_kaggle("pets", "borhanitrash/cat-dataset", options)


def faces(options) -> Images:
    """70,000 faces from Flickr, thumbnails of 128x128 (Karras et al. 2019)."""
    return from_kaggle("faces", "imcr00z/flickr-faces-70k-thumbnails-128x128", options)


def folder(options) -> Images:
    """Anyone's own images: all below `--data_dir`; the folders right below it, if there are several, are classes."""
    root = own_folder(options, "images")
    return from_folder("folder", root, root / ".cache", options, labelled=True)


def own_folder(options, noun: str) -> Path:
    """`--data_dir`, where it must be given. Raises UsageError."""
    root = Path(options.data_dir)
    if not root.is_dir():
        raise UsageError(f"--data_dir {root}: no such folder; name the one that holds your {noun}")
    return root


def from_folder(name: str, root: Path, cache: Path, options, labelled: bool) -> Images:
    """All images below `root`; one in ten, at least one, is held out."""
    from PIL import Image

    Image.init()
    size = options.image_size or 64
    paths = files_below(root, Image.EXTENSION)
    kept, items = decoded("images", paths, root, cache, lambda path: decode_image(path, size), (size, size, 3))
    classes, labels = labels_by_folder([paths[i] for i in kept], root) if labelled else (None, None)
    return Images(name, (3, size, size), classes, items, labels, *split(len(items)))


def files_below(root: Path, suffixes) -> list[Path]:
    """All files below `root` whose suffix is one of `suffixes`, in order; nothing hidden."""
    found = (path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def labels_by_folder(paths: list[Path], root: Path, classes: list[str] | None = None):
    """Classes, if not given, and labels by the folders right below `root`; None unless there are several."""
    parents = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    if classes is None:
        classes = sorted(set(parents))
        if len(classes) < 2 or "" in classes:
            return None, None
    return classes, np.array([classes.index(parent) for parent in parents])


def split(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `number` items train, and which are held out: one in ten, at least one."""
    order = np.random.default_rng(0).permutation(number)
    test, train = np.split(order, [max(1, round(HELD_OUT * number))])
    return train, test


def decoded(kind: str, paths: list[Path], root: Path, cache: Path, decode, shape) -> tuple[np.ndarray, np.ndarray]:
    """Which of `paths` could be read, and these as a memory map (n, *shape) uint8.

    `decode(path)` is called once for each, in parallel, and gives None for what it cannot read. The results go into
    `cache`, under a name made of `kind`, the shape, and all files' names, sizes and times.
    """
    stats = [path.stat() if path.exists() else None for path in paths]
    files = [f"{path.relative_to(root)} {s and (s.st_size, s.st_mtime_ns)}" for path, s in zip(paths, stats)]
    listing = "\n".join(files)
    key = hashlib.sha256(f"{kind} {shape}\n{listing}".encode()).hexdigest()[:16]
    noun = kind.split()[0]
    values, index = cache / f"{noun}-{key}.raw", cache / f"{noun}-{key}.npy"
    if not index.exists():
        if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
            raise UsageError(
                f"--data_dir {cache.parent}: not writable, and decoded {noun} are kept there; copy it first"
            )
        cache.mkdir(exist_ok=True)
        partial = cache / f"{values.name}.{os.getpid()}"
        items = read_ahead(decode, paths, os.cpu_count())
        kept, skipped = [], []
        with open(partial, "wb") as file:
            for i, item in enumerate(tqdm(items, "decoding", len(paths), unit=f" {noun}", disable=None)):
                if item is None:
                    skipped.append(str(paths[i].relative_to(root)))
                else:
                    kept.append(i)
                    file.write(item.tobytes())
        if skipped:
            print(f"skipped {len(skipped)} unreadable {noun}: {', '.join(skipped[:10])}{' ...' * (len(skipped) > 10)}")
        partial.replace(values)
        np.save(index, np.array(kept, dtype=np.int64))  # last: where it stands, the values are whole
    kept = np.load(index)
    if len(kept) < 2:
        raise UsageError(f"--data_dir: fewer than 2 readable {noun} in {root}; name another folder")
    return kept, np.memmap(values, np.uint8, "r", shape=(len(kept), *shape))


def decode_image(path: Path, size: int) -> np.ndarray | None:
    """The middle square of an image as (size, size, 3) uint8, on white where it is transparent; None if unreadable."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))  # lets JPEG decode at a fraction of its size
            image = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken files
        return None
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return np.asarray(ImageOps.fit(white.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


class Spectrograms(Pixels):
    """Clips of one second as log-Mel spectrograms. Raw: (Mel bands, frames, 1) uint8, levels of loudness."""

    modality = "audio"

    def draw(self, x):
        return grid(in_colour(self.decode(x)))

    def save(self, x, folder, cond=None):
        """Also as sound, audio/WORD_NUMBER.wav, with its picture; samples.png shows the first with their waveforms."""
        import imageio.v3 as imageio
        import soundfile

        levels, audio = self.decode(x), folder / "audio"
        np.save(folder / "samples.npy", levels)
        shutil.rmtree(audio, ignore_errors=True)
        audio.mkdir()
        words = ["sound"] * len(x) if cond is None else [self.classes[i] for i in cond.tolist()]
        tiles, first = [], range(0, len(x), VOCODED)
        for i in tqdm(first, "vocoding", unit_scale=VOCODED, unit=" clips", leave=False, disable=None):
            waves = vocode(levels[i : i + VOCODED])
            tiles += labelled_tiles(levels[i : i + VOCODED], waves, words[i:])
            for j, wave in enumerate(waves, start=i):
                soundfile.write(audio / f"{words[j]}_{j:03d}.wav", wave, SAMPLE_RATE)
                imageio.imwrite(audio / f"{words[j]}_{j:03d}.png", tiles[j])
        imageio.imwrite(folder / "samples.png", grid(np.stack(tiles[:HEARD])))


def in_colour(levels: np.ndarray) -> np.ndarray:
    """Spectrograms (n, bands, frames, 1) uint8 as RGB, the low frequencies at the bottom."""
    from matplotlib import colormaps

    return colormaps["magma"](levels[:, ::-1, :, 0], bytes=True)[..., :3]


def labelled_tiles(levels: np.ndarray, waves: np.ndarray, words: list[str], zoom: int = 2, height: int = 40) -> list:
    """RGB pictures, one a clip: its word, its spectrogram, and the range of its waveform in each column."""
    from PIL import Image, ImageDraw

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


def log_mel(waves: torch.Tensor) -> torch.Tensor:
    """Sound (..., samples) of peak 1 as levels of loudness, (..., Mel bands, frames) uint8; 0 is silence."""
    decibels = 10 * mel_spectrogram()(waves)[..., :FRAMES].clamp(min=1e-9).log10()
    return ((decibels - QUIETEST) * (255 / (LOUDEST - QUIETEST))).round().clamp(0, 255).byte()


def vocode(levels: np.ndarray) -> np.ndarray:
    """The way back: levels (n, Mel bands, frames, 1) uint8 as sound (n, samples) float32 of peak PEAK, without DC.

    The power at each frequency by non-negative least squares, the phases by the fast Griffin-Lim algorithm
    (Perraudin et al. 2013).
    """
    import torch
    from torchaudio.transforms import GriffinLim

    levels = torch.from_numpy(levels[..., 0]).float()
    decibels = QUIETEST + levels * ((LOUDEST - QUIETEST) / 255)
    mel = torch.where(levels > 0, 10 ** (decibels / 10), 0)
    power = nonnegative_least_squares(mel_spectrogram().mel_scale.fb.T, mel)
    power = torch.nn.functional.pad(power, (0, 1))  # the frame at the very end, which `log_mel` left out
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the phases to begin with
        waves = GriffinLim(WINDOW, 32, hop_length=HOP, power=2.0, momentum=0.99, length=SAMPLE_RATE)(power)
    waves -= waves.mean(1, keepdim=True)
    return (PEAK * waves / waves.abs().amax(1, keepdim=True).clamp(min=1e-5)).numpy()


def nonnegative_least_squares(matrix: torch.Tensor, target: torch.Tensor, steps: int = 100) -> torch.Tensor:
    """x >= 0 that makes |matrix @ x - target| small, for each column of `target`: FISTA (Beck & Teboulle 2009)."""
    import torch

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

    None if it is unreadable or silent. What is shorter gets silence on both sides.
    """
    import soundfile
    import torch
    from torchaudio.functional import resample

    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        return None
    if len(wave) == 0:
        return None
    wave = resample(torch.from_numpy(wave.mean(1)), rate, SAMPLE_RATE)
    wave = wave[max(0, len(wave) - SAMPLE_RATE) // 2 :][:SAMPLE_RATE]
    wave = wave - wave.mean()
    peak = wave.abs().max()
    if not 0 < peak < np.inf:
        return None
    missing = SAMPLE_RATE - len(wave)
    wave = torch.nn.functional.pad(wave / peak, (missing // 2, missing - missing // 2))
    return log_mel(wave)[..., None].numpy()


def speech_commands(options) -> Spectrograms:
    """Spoken words (Warden 2018), by default the digits; its own lists say which clips are held out."""
    from torchaudio.datasets import SPEECHCOMMANDS

    home = Path(options.data_dir) / "SpeechCommands"
    if not home.is_dir():
        partial = home.with_name(".SpeechCommands.part")  # keeps a whole archive, not what was unpacked by halves
        shutil.rmtree(partial / home.name, ignore_errors=True)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(partial, download=True)
        except (OSError, RuntimeError, EOFError) as error:
            raise UsageError(
                f"--data_dir {options.data_dir}: speech-commands is not there and could not be downloaded ({error}); "
                f"connect to the internet, or unpack speech_commands_v0.02.tar.gz into {home}/speech_commands_v0.02"
            ) from error
        (partial / home.name).rename(home)
        shutil.rmtree(partial)
    try:
        parts = [SPEECHCOMMANDS(options.data_dir, subset=subset) for subset in ("training", "testing")]
    except (OSError, RuntimeError) as error:
        raise UsageError(f"--data_dir {options.data_dir}: {home} is not whole ({error}); delete it") from error
    train, test = ([home / part.get_metadata(i)[0] for i in range(len(part))] for part in parts)
    words = options.words or ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    root = home / "speech_commands_v0.02"
    return spectrograms("speech-commands", train + test, root, home.parent / ".cache", words, set(test))


def sounds(options) -> Spectrograms:
    """Anyone's own sounds: all below `--data_dir`, of each the middle second; folders are words, as for images."""
    root = own_folder(options, "sounds")
    paths = files_below(root, {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"})
    return spectrograms("sounds", paths, root, root / ".cache", options.words)


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
    mean = np.average(range(256), weights=counts)
    std = np.average((np.arange(256) - mean) ** 2, weights=counts) ** 0.5
    classes, labels = labels_by_folder(paths, root, words)
    facts = {"mean": float(mean), "std": float(std)}
    return Spectrograms(name, (1, BANDS, FRAMES), classes, items, labels, train, test, **facts)


class Series(Data):
    """Time series side by side, forecast from their own past. Raw: (time, dimensions), NaN where a value is missing.

    Model space: the change over `difference` steps (the value itself where that is 0), scaled by the window's context,
    each dimension by itself. A sample is a path (prediction_length, dimensions). Path i of a batch goes on from past
    i % len(self.starts): from each in turn. The facts are `freq`, `names`, `prediction_length`, `context_length`,
    `difference`, `scaling`, `typical` (the scale of each dimension over all training data), and `recent`, the values
    before `end`, to forecast from when there is no data.
    """

    modality = "series"
    time_axes = 2

    def __init__(self, *args, **facts):
        super().__init__(*args, **facts)
        vars(self).update(self.statistics)
        self.lags = lags_of(self.freq)
        self.level_lags = [lag for lag in self.lags if lag > self.difference > 1]
        self.past_length = reach_of(self.freq, self.difference, self.context_length)
        self.cond_size = len(self.names) * (len(self.lags) + len(self.level_lags)) + 1
        self.cond_size += calendar(self.end, 1, self.freq).shape[1]
        self.truth = self.known = None
        self.draws = self.prediction_length
        self.go_on_from(np.array([self.recent], np.float32), [self.end])

    def go_on_from(self, pasts: np.ndarray, starts: list) -> None:
        """Forecast from each of `starts`, before which lie `pasts`, (windows, past_length, dimensions)."""
        import pandas as pd
        import torch

        self.pasts, self.starts = pasts, [pd.Period(start, self.freq) for start in starts]
        past_changes = torch.from_numpy(changes(pasts, self.difference))[:, self.difference :]
        self.location, self.scale = self.scaled_by(past_changes[:, -self.context_length :])
        self.past_x = (past_changes - self.location[:, None]) / self.scale[:, None]
        self.seen = np.stack([last_seen(past) for past in pasts])
        levels = torch.from_numpy(self.seen)[:, self.difference :]
        self.past_levels = (levels - levels[:, -1:]) / self.scale[:, None]
        length = self.context_length + self.prediction_length
        times = [calendar(start - self.context_length, length, self.freq) for start in self.starts]
        self.times = torch.from_numpy(np.stack(times))
        self.animated = len(starts) * int(np.clip(20000 // (len(starts) * len(self.names)), 1, 40))

    def scaled_by(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Location and scale (windows, dimensions) of a context (windows, time, dimensions), NaN where missing.

        `mean`: 0 and the mean size; `standard`: the mean and the standard deviation. No scale is below half of the
        typical one, for a series may stand still for a while, and then it does not.
        """
        typical = context.new_tensor(self.typical)
        count = (~context.isnan()).sum(1).clamp(min=1)
        location = context.new_zeros(len(context), len(typical))
        if self.scaling == "standard":
            location = context.nansum(1) / count
            scale = ((context - location[:, None]) ** 2).nansum(1).div(count).sqrt()
        else:
            scale = context.abs().nansum(1) / count
        return location, scale.maximum(typical / 2)

    def inputs(self, past: torch.Tensor, scale: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """What the RNN reads, (windows, time, cond_size): the past, how large the scale is for these series, the time.

        `past`, in units of `scale`, are earlier changes and, where these are over a season, how far the series stood
        seven seasons ago from where the change begins.
        """
        import torch

        relative = (scale / scale.new_tensor(self.typical)).log().mean(1)[:, None, None].expand(-1, times.shape[1], 1)
        return torch.cat([past.nan_to_num_(0).clamp_(-10, 10), relative, times], 2)

    def read(self, chosen, device):
        """Yield (x_0, inputs, weight) for windows whose contexts begin at the chosen times.

        Inputs are those of the context and the forecast, x_0 and weight of the forecast alone: the scale has not seen
        it.
        """
        import torch

        def earlier(values, lag):
            return np.concatenate([np.full_like(values[:lag], np.nan), values[: len(values) - lag]])

        moves = changes(self.items[None], self.difference)[0]
        past = [earlier(moves, lag) for lag in self.lags]
        past += [earlier(self.items, lag) - earlier(self.items, self.difference) for lag in self.level_lags]
        past, moves = (torch.from_numpy(part).to(device) for part in (np.concatenate(past, 1), moves))
        times = torch.from_numpy(calendar(self.begin, len(self.items), self.freq)).to(device)
        steps = torch.arange(self.context_length + self.prediction_length, device=device)
        missing = bool(moves[self.difference :].isnan().any())

        def window(index):
            now = torch.from_numpy(index).to(device)[:, None] + steps
            before, after, when = (
                part.index_select(0, now.flatten()).unflatten(0, now.shape) for part in (past, moves, times)
            )
            location, scale = self.scaled_by(after[:, : self.context_length])
            if self.scaling == "standard":  # else 0
                before[..., : len(self.lags) * location.shape[1]].sub_(location.repeat(1, len(self.lags))[:, None])
            scales = scale.repeat(1, len(self.lags) + len(self.level_lags))
            inputs = self.inputs(before.div_(scales[:, None]), scale, when)
            x_0 = (after[:, self.context_length :] - location[:, None]) / scale[:, None]
            return x_0.nan_to_num(0), inputs, (~x_0.isnan()).float() if missing else None

        yield from map(window, chosen)

    def held_out(self, batch_size, number, device):
        """Yield the true values of the test windows, in turn."""
        import torch

        before = np.concatenate([self.pasts, self.truth], 1)
        true = torch.from_numpy(changes(before, self.difference)[:, -self.prediction_length :])
        x_0 = ((true - self.location[:, None]) / self.scale[:, None]).nan_to_num(0)
        for first in range(0, number, batch_size):
            yield x_0[torch.arange(first, min(number, first + batch_size)) % len(x_0)].to(device), None, None

    def condition(self, samples, label, device):
        """Which past each of `samples` goes on from."""
        import torch

        if label is not None:
            super().condition(samples, label, device)
        return torch.tensor(samples, device=device) % len(self.starts)

    def generate(self, model, reverse, number, cond):
        """Paths, one step after the other: each is drawn from noise, then read by the RNN (Rasul et al. 2021)."""
        import torch

        def inputs(now: int, length: int):
            """For the `length` steps from `now` on."""
            past = [x[:, now - lag : now - lag + length] for lag in self.lags]
            base = levels[:, now - self.difference : now - self.difference + length]
            past += [levels[:, now - lag : now - lag + length] - base for lag in self.level_lags]
            return self.inputs(torch.cat(past, 2), scale, times[:, now - first : now - first + length])

        x, levels, scale, times = (p.to(cond.device) for p in (self.past_x, self.past_levels, self.scale, self.times))
        shift = (self.location / self.scale).to(cond.device)[cond]
        first, start = x.shape[1] - self.context_length, x.shape[1]
        _, state = model.encode(inputs(first, self.context_length))
        scale, times, state = scale[cond], times[cond], tuple(part[:, cond] for part in state)
        x, levels = (torch.nn.functional.pad(part[cond], (0, 0, 0, self.prediction_length)) for part in (x, levels))
        films = []
        for now in range(start, start + self.prediction_length):
            hidden, state = model.encode(inputs(now, 1), state)
            drawn, way = reverse(model.denoiser, (len(cond), 1, x.shape[2]), hidden)
            x[:, now] = drawn[:, 0]
            levels[:, now] = levels[:, now - self.difference] + x[:, now] + shift
            films.append(way)
        return x[:, start:].cpu(), torch.cat(films, 2)

    def decode(self, x):
        """Paths in the units of the data, (n, prediction_length, dimensions)."""
        rows = np.arange(len(x)) % len(self.starts)
        steps = (x.cpu() * self.scale[rows][:, None] + self.location[rows][:, None]).numpy()
        if self.difference:
            steps = np.concatenate([self.seen[rows, -self.difference :], steps], 1)
            for t in range(self.difference, steps.shape[1]):
                steps[:, t] += steps[:, t - self.difference]
        return steps[:, -self.prediction_length :]

    def by_window(self, x) -> np.ndarray:
        """`decode`, as (paths, windows, prediction_length, dimensions)."""
        return self.decode(x).reshape(-1, len(self.starts), self.prediction_length, len(self.names))

    def draw(self, x):
        return in_pixels(self.picture(x, paths=True))

    def save(self, x, folder, cond=None):
        """samples.npy, (paths, windows, prediction_length, dimensions), and forecast.png."""
        np.save(folder / "samples.npy", self.by_window(x))
        self.picture(x, paths=False).savefig(folder / "forecast.png", dpi=110)

    def picture(self, x, paths: bool):
        """A figure of a few forecasts with their past and, where it is known, the truth.

        With `paths`, the paths themselves, else their median and the intervals of 50% and 90%.
        """
        from matplotlib.figure import Figure

        values = self.by_window(x)
        panels = PANELS // 2 if paths else PANELS
        dimensions = min(len(self.names), panels)
        shown = [(window, i) for i in range(dimensions) for window in range(len(self.starts))[: panels // dimensions]]
        columns = 1 if len(shown) == 1 else 2
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(5 * columns, 0.8 + 1.7 * rows), dpi=80)
        inches = {"left": 0.6, "right": 5 * columns - 0.2, "bottom": 0.7, "top": 1.7 * rows + 0.5}
        width, height = figure.get_size_inches()
        limits = {side: inch / (width if side in ("left", "right") else height) for side, inch in inches.items()}
        figure.subplots_adjust(**limits, hspace=0.45, wspace=0.15)
        for number, (window, i) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, number + 1)
            self.panel(axes, values[:, window, :, i], window, i, paths)
            axes.set_title(self.names[i], fontsize=9, loc="left")
        figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=8)
        return figure

    def panel(self, axes, values: np.ndarray, window: int, i: int, paths: bool) -> None:
        """One dimension of one window: `values` are its paths (n, prediction_length)."""
        import pandas as pd
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        length, start = self.prediction_length, self.starts[window]
        history = self.pasts[window, -3 * length :, i]
        index = pd.period_range(start - len(history), periods=len(history) + length, freq=self.freq).to_timestamp()
        before, after = index[: len(history)], index[len(history) :]
        axes.plot(before, history, color="0.3", linewidth=1, label="past")
        true = history if self.truth is None else np.append(history, self.truth[window, :, i])
        if paths:
            axes.plot(after, values.T, color="tab:blue", linewidth=0.5, alpha=0.5)
        else:
            for inside, alpha in ((0.9, 0.2), (0.5, 0.4)):
                low, high = np.quantile(values, [0.5 - inside / 2, 0.5 + inside / 2], axis=0)
                axes.fill_between(after, low, high, color="tab:blue", alpha=alpha, linewidth=0, label=f"{inside:.0%}")
            axes.plot(after, np.median(values, 0), color="tab:blue", linewidth=1, label="median")
        if self.truth is not None:
            axes.plot(after, self.truth[window, :, i], color="black", linewidth=1, label="truth")
        middle, reach = np.nanmean(true), 1.2 * (np.nanmax(true) - np.nanmin(true))
        if reach > 0:
            axes.set_ylim(middle - reach, middle + reach)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(AutoDateLocator()))
        axes.tick_params(labelsize=7)

    def forecasts(self, paths: np.ndarray) -> list:
        """GluonTS's SampleForecast for each window, of paths (n, windows, prediction_length, dimensions)."""
        from gluonts.model.forecast import SampleForecast

        if len(self.names) == 1:
            paths = paths[..., 0]
        return [SampleForecast(paths[:, i], start) for i, start in enumerate(self.starts)]

    def score(self, x, thorough=False):
        """GluonTS's scores on the test windows; beside each that of two forecasts that learn nothing."""
        paths = self.by_window(x)
        figures = {"paths": len(paths), "windows": len(self.starts)} | self.evaluate(paths)
        for name, others in (("seasonal_naive", self.last_season()), ("random_walk", self.random_walk(len(paths)))):
            figures[name] = self.evaluate(others)
        return figures

    def evaluate(self, paths: np.ndarray) -> dict:
        """Scores of paths (n, windows, prediction_length, dimensions) by GluonTS's evaluator."""
        from gluonts.evaluation import Evaluator, MultivariateEvaluator

        histories = [self.known[: start + self.prediction_length - 1] for start in self.starts]
        settings = {"quantiles": np.arange(1, 20) / 20, "num_workers": 0}
        if len(self.names) == 1:
            evaluator = Evaluator(**settings)
            histories = [history[history.columns[0]] for history in histories]
        else:
            evaluator = MultivariateEvaluator(**settings, target_agg_funcs={"sum": np.sum})
            histories = [history.set_axis(range(len(self.names)), axis=1) for history in histories]
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar for each dimension
            figures, _ = evaluator(histories, self.forecasts(paths))
        scores = {"crps": "mean_wQuantileLoss", "crps_sum": "m_sum_mean_wQuantileLoss", "mase": "MASE", "nd": "ND"}
        scores = {score: float(figures[name]) for score, name in scores.items() if name in figures}
        for share, low, high in ((50, 0.25, 0.75), (90, 0.05, 0.95)):
            scores[f"coverage_{share}"] = float(figures[f"Coverage[{high}]"] - figures[f"Coverage[{low}]"])
        return scores

    def last_season(self) -> np.ndarray:
        """The seasonal-naive forecast: the last season over and over."""
        season = self.seen[:, -seasonality(self.freq) :]
        return season[None][:, :, np.arange(self.prediction_length) % season.shape[1]]

    def random_walk(self, number: int) -> np.ndarray:
        """Paths whose changes over `difference` steps (1 where that is 0) are drawn from those of the training data."""
        generator, difference = np.random.default_rng(0), self.difference or 1
        values = np.nan_to_num(changes(self.items[None], difference)[0, difference:])
        paths = [self.seen[None, :, -difference:].repeat(number, 0)]
        for _ in range(0, self.prediction_length, difference):
            first = generator.integers(len(values) - difference + 1, size=(number, len(self.starts), 1))
            paths.append(paths[-1] + values[first + np.arange(difference)])
        return np.concatenate(paths[1:], 2)[:, :, : self.prediction_length]


def predictor(data: Series, draw):
    """A GluonTS Predictor; `draw(number)` samples that many paths of `data`.

    It takes entries whose target has `data`'s dimensions, (dimensions, time) or, for a single one, (time,), and raises
    ValueError for others.
    """
    from gluonts.model.predictor import Predictor

    class Forecaster(Predictor):
        def predict(self, dataset, num_samples: int = 100):
            pasts, starts, names = [], [], []
            for entry in dataset:
                target = np.atleast_2d(np.asarray(entry["target"], np.float32)).T
                if target.shape[1] != len(data.names) or entry["start"].freqstr != data.freq:
                    raise ValueError(
                        f"made for {len(data.names)} dimensions every {data.freq}, not {target.shape[1]} "
                        f"every {entry['start'].freqstr}"
                    )
                pasts.append(
                    np.pad(target, ((data.past_length, 0), (0, 0)), constant_values=np.nan)[-data.past_length :]
                )
                starts.append(entry["start"] + len(target))
                names.append(entry.get("item_id"))
            data.go_on_from(np.stack(pasts), starts)
            forecasts = data.forecasts(data.by_window(draw(num_samples * len(starts))))
            for forecast, forecast.item_id in zip(forecasts, names):
                yield forecast

    return Forecaster(data.prediction_length)


def changes(values: np.ndarray, difference: int) -> np.ndarray:
    """values_t - values_(t - difference), of (windows, time, dimensions); NaN for the first; the values, without."""
    if not difference:
        return values
    return np.concatenate(
        [np.full_like(values[:, :difference], np.nan), values[:, difference:] - values[:, :-difference]], 1
    )


def last_seen(values: np.ndarray) -> np.ndarray:
    """(time, dimensions) with the value before it wherever one is missing."""
    import pandas as pd

    return pd.DataFrame(values).ffill().to_numpy()


def calendar(start, length: int, freq: str) -> np.ndarray:
    """GluonTS's time features from `start` on, and how near Christmas and New Year are: (length, features) float32."""
    import pandas as pd
    from gluonts.time_feature import time_features_from_frequency_str

    index = pd.period_range(pd.Period(start, freq), periods=length, freq=freq)
    features = [feature(index) for feature in time_features_from_frequency_str(freq)]
    day = index.dayofyear.to_numpy()
    day = np.where(day < 183, day, day - 365 - index.is_leap_year)  # 0 is 31 December
    near = ((-6, 1), (-5, 1), (1, 1), (2, 1), (-2, 12))  # the holidays, the days after, and all between
    features += [np.exp(-((day - middle) ** 2.0) / width) for middle, width in near]
    return np.stack(features, 1).astype(np.float32)


def seasonality(freq: str) -> int:
    """Steps in a season, as GluonTS counts them: a day of hours, a year of months."""
    from gluonts.time_feature import get_seasonality

    return get_seasonality(freq)


def lags_of(freq: str) -> list[int]:
    """How far back the RNN looks, in steps: one, a season, and seven, which makes a week of days."""
    return sorted({1, seasonality(freq), 7 * seasonality(freq)})


def reach_of(freq: str, difference: int, context_length: int) -> int:
    """How many steps before a forecast it depends on."""
    return max(lags_of(freq)) + difference + context_length


def series_of(name: str, train, test, ends: list[int], prediction_length: int, options) -> Series:
    """A data set from frames with a column for each dimension and an index of periods.

    `train` is learned from; for each of `ends`, the `prediction_length` rows of `test` before it are to be forecast.
    """
    names, freq = [str(column) for column in train.columns], test.index.freqstr
    context_length = options.context_length or prediction_length
    difference = options.difference
    if difference is None:
        difference = seasonality(freq) if seasonality(freq) > 7 else 1
    for column in train:
        if train[column].isna().all():
            raise UsageError(f"--data_dir {options.data_dir}: {column} has no values to learn from; take it out")
    window = context_length + prediction_length
    starts = np.arange(difference, len(train) - window + 1)
    if not len(starts):
        raise UsageError(
            f"--prediction_length {prediction_length}: {name} has {len(train)} steps to learn from, too few for "
            f"--context_length and --prediction_length, {window}, after --difference {difference}; make them smaller"
        )
    items, known = train.to_numpy(np.float32), test.to_numpy(np.float32)
    squares = changes(items[None], difference)[0, difference:].astype(float) ** 2
    largest = np.nanmax(np.abs(items), 0)
    least = 1e-6 * np.where(largest > 0, largest, 1)  # for what never changes
    typical = np.fmax(np.nanmean(squares, 0) ** 0.5, least)
    past_length = reach_of(freq, difference, context_length)
    padded = np.pad(known, ((past_length, 0), (0, 0)), constant_values=np.nan)
    recent = [[None if np.isnan(value) else value for value in row] for row in padded[-past_length:].tolist()]
    facts = {"freq": freq, "names": names, "prediction_length": prediction_length, "context_length": context_length}
    facts |= {"difference": difference, "scaling": options.scaling, "typical": typical.tolist(), "recent": recent}
    data = Series(name, (len(names),), items=items, train=starts, end=str(test.index[-1] + 1), **facts)
    data.begin, data.known = train.index[0], test
    begins = [end - prediction_length for end in ends]
    data.go_on_from(np.stack([padded[i : i + past_length] for i in begins]), [test.index[0] + i for i in begins])
    data.truth = np.stack([known[i : i + prediction_length] for i in begins])
    return data


def side_by_side(entries: list[dict]):
    """GluonTS's entries as the columns of one frame, NaN where one has not begun or has ended."""
    import pandas as pd

    first = min(entry["start"] for entry in entries)
    offsets = [(entry["start"] - first).n for entry in entries]
    length = max(offset + len(entry["target"]) for offset, entry in zip(offsets, entries))
    values = np.full((length, len(entries)), np.nan, np.float32)
    for i, (offset, entry) in enumerate(zip(offsets, entries)):
        values[offset : offset + len(entry["target"]), i] = entry["target"]
    names = [str(entry.get("item_id", i)) for i, entry in enumerate(entries)]
    return pd.DataFrame(values, pd.period_range(first, periods=length, freq=first.freq), names)


def gluonts_folder(name: str, root: Path, options) -> Series:
    """A data set in GluonTS's layout: `train`, and in `test` the same series again for each window, in turn."""
    from gluonts.dataset.common import load_datasets

    read = load_datasets(root, root / "train", root / "test")
    train, tests = list(read.train), list(read.test)
    rounds = [tests[i : i + len(train)] for i in range(0, len(tests), len(train))]
    if not rounds or len(rounds[-1]) != len(train):
        raise UsageError(f"--data_dir {root}: {len(tests)} test series are no multiple of {len(train)} training series")
    frames = [side_by_side(entries) for entries in rounds]
    longest = max(frames, key=len)
    ends = [len(frame) for frame in frames]
    if any(not np.array_equal(frame, longest[: len(frame)], equal_nan=True) for frame in frames):
        raise UsageError(f"--data_dir {root}: the test series of a window do not go on from those of the one before")
    length = options.prediction_length or read.metadata.prediction_length
    return series_of(name, side_by_side(train), longest, ends, length, options)


def gluonts(recipe: str):
    """The reader of a data set that GluonTS makes, downloaded to `--data_dir`/gluonts."""

    def read(options) -> Series:
        from gluonts.dataset.repository.datasets import dataset_recipes, materialize_dataset

        home = Path(options.data_dir) / "gluonts" / recipe
        damage = ""
        if home.is_dir():
            try:
                return gluonts_folder(f"gluonts:{recipe}", home, options)
            except UsageError:
                raise
            except (OSError, EOFError, ValueError, zlib.error, KeyError) as error:  # half written, or broken
                damage = f" ({type(error).__name__}: {error})"
        if recipe not in dataset_recipes:
            raise UsageError(
                f"--data_dir {options.data_dir}: {home} is not there or not whole{damage}, and GluonTS cannot make it; "
                f"it makes {', '.join(dataset_recipes)}"
            )
        partial = home.with_name(f".{recipe}.part")
        shutil.rmtree(partial, ignore_errors=True)
        print(f"{home} is not there or not whole{damage}: making it")
        try:
            made = materialize_dataset(recipe, partial)
        except Exception as error:  # each recipe has errors of its own
            raise UsageError(
                f"--data_dir {options.data_dir}: {recipe} could not be made ({type(error).__name__}: {error}); "
                f"connect to the internet or put it into {home}"
            ) from error
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)
        partial.rmdir()
        return gluonts_folder(f"gluonts:{recipe}", home, options)

    read.__doc__ = f"GluonTS's {recipe}."
    return read


def series(options) -> Series:
    """Anyone's own series: `--data_dir` is a CSV, or a folder in GluonTS's layout."""
    path = Path(options.data_dir)
    if path.is_file():
        return from_csv(path, options)
    if (path / "metadata.json").is_file():
        return gluonts_folder("series", path, options)
    raise UsageError(f"--data_dir {path}: neither a CSV nor a folder with metadata.json, train and test")


def from_csv(path: Path, options) -> Series:
    """The first column is the time, each other a series; of the end, a tenth, at most five windows, is held out."""
    import pandas as pd

    try:
        frame = pd.read_csv(path)
        times = pd.to_datetime(frame.iloc[:, 0])
        frame = frame.iloc[:, 1:].apply(pd.to_numeric).set_index(pd.DatetimeIndex(times)).sort_index()
    except (ValueError, TypeError, IndexError) as error:
        raise UsageError(f"--data_dir {path}: {error}; the first column must be dates, all others numbers") from error
    try:
        frame.index = frame.index.to_period(options.freq)
    except ValueError as error:
        raise UsageError(f"--freq {options.freq}: {error}; give the time between rows: h, 30min, D, B, W, M") from error
    if frame.index.has_duplicates:
        time = frame.index[frame.index.duplicated()][0]
        raise UsageError(f"--data_dir {path}: several rows for {time} (--freq {frame.index.freqstr}); leave one")
    whole = frame.reindex(pd.period_range(frame.index[0], frame.index[-1], freq=frame.index.freq))
    if len(whole) > len(frame):
        missing = whole.index.difference(frame.index)
        print(f"{len(missing)} of {len(whole)} rows are missing, the first {missing[0]}")
    if options.prediction_length is None:
        raise UsageError("--prediction_length: say how many rows to forecast")
    length = options.prediction_length
    windows = int(np.clip(HELD_OUT * len(whole) // length, 1, 5))
    ends = [len(whole) - length * i for i in range(windows)][::-1]
    return series_of("series", whole[: ends[0] - length], whole, ends, length, options)


DATASETS = {  # name: (modality, function that reads it)
    "circle": (Points, circle),
    "dino": (Points, dino),
    "line": (Points, line),
    "moons": (Points, moons),
    "digits": (Images, digits),
    "mnist": (Images, mnist),
    "fashion-mnist": (Images, fashion_mnist),
    "pets": (Images, pets),
    "faces": (Images, faces),
    "folder": (Images, folder),
    "speech-commands": (Spectrograms, speech_commands),
    "sounds": (Spectrograms, sounds),
    "electricity": (Series, gluonts("electricity_nips")),
    "exchange-rate": (Series, gluonts("exchange_rate_nips")),
    "solar": (Series, gluonts("solar_nips")),
    "taxi": (Series, gluonts("taxi_30min")),
    "traffic": (Series, gluonts("traffic_nips")),
    "wiki": (Series, gluonts("wiki2000_nips")),
    "series": (Series, series),
}


def entry(name: str) -> tuple:
    """Modality and reader of the data set called `name`; gluonts:NAME is any that GluonTS knows."""
    return (Series, gluonts(name.removeprefix("gluonts:"))) if name.startswith("gluonts:") else DATASETS[name]


def load(
    name: str,
    data_dir: str = "data",
    limit: int | None = None,
    image_size: int | None = None,
    words: list[str] | None = None,
    freq: str | None = None,
    prediction_length: int | None = None,
    context_length: int | None = None,
    difference: int | None = None,
    scaling: str = "mean",
) -> Data:
    """The data set called `name`; with `limit`, only its first training items. Raises UsageError."""
    options = SimpleNamespace(**locals())
    _, read = entry(name)
    data = read(options)
    data.train = data.train[:limit]
    return data


def restore(facts: dict) -> Data:
    """A data set as a checkpoint remembers it: it encodes, decodes, draws and saves, but has no items."""
    modality, _ = entry(facts["name"])
    return modality(**facts)
