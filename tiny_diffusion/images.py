"""Images: what they share with spectrograms, where they are read from, how they are shown and scored."""

import functools
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tiny_diffusion import picture_heads, pictures
from tiny_diffusion.arrays import CHUNK, DTYPES, limited, read_array, value_range
from tiny_diffusion.data import (
    RESIDENT_BYTES,
    Data,
    Facts,
    Number,
    Positive,
    cast,
    scores_with_copies,
    split,
    write_picture,
)
from tiny_diffusion.files import attempt, decoded, read_ahead
from tiny_diffusion.folders import files_below, several
from tiny_diffusion.messages import UsageError, downloading
from tiny_diffusion.sources import Sources, content, found, home_of, of_hub, of_paths, tell

FRECHET_SAMPLES = 2048  # as many as Inception has features, for their covariance to have full rank
FEW, SMALL_BATCH = 1000, 32  # of fewer items than that, a step takes so many
COLUMNS = 10  # of a grid of images: with ten classes, one for each
PAIRS = 25  # samples in a picture with their nearest training items
COMPARED = 200  # samples, and held-out items, whose nearest training items are looked for
FILMS = 20  # from so many on, whole films are held out, not single frames
DECODING = 2  # the version, to be counted up where pictures would be decoded otherwise


class PixelsFacts(Facts):
    """Raw values are of `dtype` within `limits`, lowest and highest; of `flat` data without an axis for the channel.

    Limits, `mean` and `std` are numbers, or lists of one for each channel.
    """

    limits: tuple[Number, Number] | tuple[list[Number], list[Number]] = (0.0, 255.0)
    mean: Number | list[Number] = 127.5
    std: Positive | list[Positive] = 127.5
    dtype: Literal[DTYPES] = "uint8"
    flat: bool = False


class Pixels(Data):
    """Raw: (height, width, channels), of `flat` data (height, width).

    Model space: (channels, height, width), (raw - mean) / std.
    """

    Facts = PixelsFacts
    animated = 40

    def __init__(self, facts: PixelsFacts, **items):
        super().__init__(facts, **items)
        low, high = np.array(facts.limits)
        if (low > high).any() or (low == high).all():
            raise ValueError("values without a range")
        low, high = (low - facts.mean) / facts.std, (high - facts.mean) / facts.std
        self.interval = low.min().item(), high.max().item()
        self.bin_width = 1 / facts.std if np.issubdtype(facts.dtype, np.integer) else None

    def recipe(self):
        return {"train_batch_size": SMALL_BATCH} if len(self.train) < FEW else {}

    def network_settings(self):
        return {"num_classes": len(self.classes or ())}

    def encode(self, raw):
        raw = raw[..., None] if self.facts.flat else raw
        raw = raw.double() if raw.dtype in (torch.float64, torch.int32) else raw.float()
        x = raw.sub(raw.new_tensor(self.facts.mean)).div_(raw.new_tensor(self.facts.std))
        return x.permute(0, 3, 1, 2).float().clamp_(*self.interval)

    def decode(self, x):
        raw = x.cpu().double().permute(0, 2, 3, 1).numpy() * self.facts.std + self.facts.mean
        raw = raw.clip(*self.facts.limits)
        return cast(raw[..., 0] if self.facts.flat else raw, self.facts.dtype)

    def score(self, x, device="cpu", thorough=False):
        """Distance to the nearest training item, and mean and contrast of each channel, beside those of held-out items.

        The distance is the median of root mean squares of differences in model space.
        """
        x = x[:COMPARED]
        true = self.encoded(np.random.default_rng(0).permutation(self.test)[: len(x)])
        scores, floors = {"samples": len(x)} | self.tones(x), self.tones(true)
        return scores_with_copies(scores, floors, *(self.nearest(one)[0].numpy() for one in (x, true)))

    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distance from each of x to the training item nearest to it, and the number of that item."""
        x, best, which = x.flatten(1), torch.full((len(x),), math.inf), torch.zeros(len(x), dtype=torch.int64)
        size = max(1, CHUNK // x.shape[1])
        for index in np.split(self.train, range(size, len(self.train), size)):
            distance, position = torch.cdist(x, self.encoded(index).flatten(1)).min(1)
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
        items = self.encoded(self.nearest(x)[1].numpy())
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

    def __init__(self, facts: PixelsFacts, flip: bool = False, **items):
        super().__init__(facts, **items)
        self.flip = flip

    def batches(self, batch_size, seed, epoch, device, rank=0, world_size=1):
        """The batches of `Data.batches`, of which `flip` mirrors images chosen by seed and epoch."""
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
        scores, number = super().score(x, device, thorough), min(len(x), len(self.train) // 2)
        if not thorough:
            return scores
        if number < FRECHET_SAMPLES:
            needed = f"--num_samples {FRECHET_SAMPLES} and twice as many training images, better 10000"
            print(f"Fréchet distance left out: it needs at least {needed}")
            return scores
        if self.facts.dtype != "uint8" or self.facts.limits != (0, 255) or self.shape[0] not in (1, 3):
            print("Fréchet distance left out: Inception takes grey and RGB images of 8 bits")
            return scores
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


def from_pixels(name: str, items: np.ndarray, limits=(0, 255), flip: bool = False, classes=None, **parts) -> Images:
    """Images (n, height, width[, channels]); in model space their limits become -1 and 1."""
    low, high = np.array(limits, float)
    facts = {"limits": (low.tolist(), high.tolist()), "mean": ((low + high) / 2).tolist(), "classes": classes}
    facts |= {"std": np.where(high > low, (high - low) / 2, 1).tolist(), "dtype": items.dtype.name}
    height, width, channels = (*items.shape[1:], 1)[:3]
    facts = PixelsFacts(name=name, shape=[channels, height, width], flat=items.ndim == 3, **facts)
    return Images(facts, flip, items=items, **parts)


def resized(name: str, items: np.ndarray, labels, number: int, classes: list[str], config) -> Images:
    """Images (n, height, width[, channels]) uint8 scaled to `--image_size`; the first `number` of them train."""
    items = items.reshape(*items.shape[:3], -1)
    if config.image_size:
        from torchvision.transforms.functional import resize

        height, width = sides(config.image_size)
        if len(items) * height * width * items.shape[3] > 2 * RESIDENT_BYTES:
            raise UsageError(f"--image_size {height} {width}: too large for {len(items)} images; make it smaller")
        parts = torch.from_numpy(items).permute(0, 3, 1, 2).split(256)
        items = torch.cat([resize(part, [height, width], antialias=True) for part in parts]).permute(0, 2, 3, 1).numpy()
    train, test = np.split(np.arange(len(items)), [number])
    return from_pixels(name, items, labels=labels, train=train, test=test, classes=classes)


def digits(config) -> Images:
    """The 1,797 handwritten digits, 8x8, that come inside scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    items = (bunch.images * (255 / 16)).round().astype(np.uint8)
    return resized(config.dataset, items, bunch.target, 1500, [str(digit) for digit in range(10)], config)


def from_torchvision(class_name: str, config) -> Images:
    """A data set of torchvision's, downloaded to `--data_dir` where it is not there yet.

    Of EMNIST its `balanced` digits and letters, which lie on their sides in its files.
    """
    import torchvision.datasets

    name, data_dir = config.dataset, config.data_dir
    settings, turned = ({"split": "balanced"}, True) if class_name == "EMNIST" else ({}, False)
    kind = getattr(torchvision.datasets, class_name)
    place = Path(data_dir) / getattr(kind, "base_folder", f"{class_name}/raw")
    dataset = functools.partial(kind, data_dir, download=True, **settings)
    with downloading(name, data_dir, f"put its files into {place}"):
        train, test = dataset(train=True), dataset(train=False)
        items = np.concatenate([np.asarray(part.data) for part in (train, test)])
        labels = np.concatenate([np.asarray(part.targets) for part in (train, test)])
        classes = [title.split(" - ")[0] for title in train.classes]  # MNIST's are "0 - zero" ...
        if len(items) != len(labels) or items.ndim < 3 or len(train) * len(test) == 0 or labels.max() >= len(classes):
            raise ValueError("images and labels do not fit together")
    return resized(name, items.swapaxes(1, 2) if turned else items, labels, len(train), classes, config)


def from_kaggle(handle: str, config) -> Images:
    """The images of a public Kaggle data set, downloaded to `--data_dir`/`--dataset` where that folder is absent."""
    home = Path(config.data_dir) / config.dataset
    if not home.is_dir():
        import kagglehub

        partial = home.with_name(f".{home.name}.part")
        with downloading(home.name, config.data_dir, f"unpack kaggle.com/datasets/{handle} into {home}"):
            kagglehub.dataset_download(handle, output_dir=str(partial))
        partial.rename(home)
    sources = of_paths(files_below(home, picture_heads.suffixes()).paths, home, quiet=True)
    frames = [(i, 0) for i in range(len(sources.names))]
    items, _ = decoded_images(sources, frames, pictures.Kind(3, "uint8"), home.parent / ".cache", config)
    return from_pixels(home.name, items, flip=True, **split(len(items)))


def folder(config) -> Images:
    """Your own images: all below `--data_dir`, whose folders are classes, or in the archive or Parquet files there."""
    return from_sources(found(Path(config.data_dir), "image", picture_heads.suffixes(), pictures.REMEDIES), config)


def hub(name: str, config) -> Images:
    """The images of a data set of the Hugging Face Hub, OWNER/NAME or OWNER/NAME:CONFIG, downloaded to `--data_dir`."""
    return from_sources(of_hub(name, "image", config), config)


def from_sources(sources: Sources, config) -> Images:
    """The images in files, of what size, depth and colours these say."""
    root = sources.root
    looks = list(read_ahead(functools.partial(attempt, lambda one: picture_heads.look(content(one))), sources.read()))
    known = [i for i, one in enumerate(looks) if not isinstance(one, str)]
    if not known:
        told = several(f"{name} ({look})" for name, look in zip(sources.names, looks))
        raise UsageError(f"--data_dir: fewer than 2 readable images in {root} ({told}); name another folder")
    readable, names = [looks[i] for i in known], [sources.names[i] for i in known]
    kept = set(known)
    again = lambda: (content(one) for i, one in enumerate(sources.read()) if i in kept)  # noqa: E731
    kind, said = pictures.common_kind(readable, names, f"--data_dir {root}", again)
    height, width = sides(config.image_size or 64)
    frames, of_frames = pictures.items_of(looks, config.frames == "all", str(root))
    tell("", [pictures.found_line(readable, kind, (width, height), str(root)), *said, *of_frames])
    items, files = decoded_images(sources, frames, kind, home_of(root) / ".cache", config)
    if kind.channels == 3 and pictures.all_grey(items):
        print(f"{root}: all are grey in truth, and kept so")
        items = items[..., :1]
    limits, said = value_range(items, f"--data_dir {root}", config.range)
    if limits != [0, 255]:
        said.append(f"{root}: values from {np.min(limits):g} to {np.max(limits):g}")
    tell("", said)
    labels, parts = (None if values is None else values[files] for values in (sources.labels, sources.split))
    if parts is None and len(looks) >= FILMS and len(files) > len(looks):  # all frames of a film train, or none
        parts = np.where(np.isin(files, split(len(looks))["test"]), "test", "train")
    parts = split(len(items), parts)
    return from_pixels(config.dataset, items, limits, classes=sources.classes, labels=labels, **parts)


def decoded_images(sources: Sources, frames: list, kind, cache: Path, config) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, height, width, channels) of `--image_size` and `kind`, and the number of the file of each.

    `frames` are pairs of a file's number and one of its frames.
    """
    height, width = sides(config.image_size or 64)
    files = np.array([i for i, _ in frames])
    names, stamps = ([values[i] for i in files] for values in (sources.names, sources.stamps))
    stamps = [f"{stamp} {frame}" for stamp, (_, frame) in zip(stamps, frames)]
    numbers = np.bincount(files, minlength=len(sources.names)).tolist()

    def requests():
        return ((one, frame) for one, number in zip(sources.read(), numbers) for frame in range(number))

    def decode(request):
        return pictures.decode(content(request[0]), (width, height), kind, request[1])

    shape = (height, width, kind.channels * np.dtype(kind.dtype).itemsize)  # in bytes
    key = f"images {DECODING} {kind}"
    kept, items = decoded(key, sources.root, names, stamps, requests, cache, decode, shape)
    return items.view(kind.dtype), files[kept]


def sides(image_size: int | list[int]) -> list[int]:
    """Height and width, of `--image_size` with one number for both or one for each. Raises UsageError."""
    if np.size(image_size) > 2:
        raise UsageError(f"--image_size {image_size}: give one number, or a height and a width")
    return np.resize(image_size, 2).tolist()


def array(config) -> Images:
    """Your own images: `--data_dir` is a .npy of (n, height, width[, channels]), or a .npz or .mat with such an x."""
    path, name = Path(config.data_dir), f"--data_dir {config.data_dir}"
    array = read_array(path, config.channels)
    if array.items.ndim == 2:
        raise UsageError(f"{name}: points, (n, dimensions); learn them with --dataset points")
    if config.image_size:
        raise UsageError("--image_size: arrays are taken as they are; leave it out")
    array, parts = limited(array, split(len(array.items), array.split), name, config.limit)
    limits, said = value_range(array.items, name, config.range)
    height, width, channels = (*array.items.shape[1:], 1)[:3]
    size = f"{height}×{width}, {channels} channel{'s' * (channels > 1)}"
    reach = f"from {np.min(limits):g} to {np.max(limits):g}"
    tell("", [*array.said, *said, f"{path}: {len(array.items):,} images of {size}, {array.items.dtype} {reach}"])
    return from_pixels(config.dataset, array.items, limits, classes=array.classes, labels=array.labels, **parts)
