"""Arrays in files, .npy, .npz and .mat: pictures or points, their classes, their split and their range.

>>> array = read_array(Path("mine.npz"))
>>> array = taken(array, rows)  # where only some items are wanted: nothing else is read of a .npy
>>> array = narrowed(array, "--data_dir mine.npz")
>>> limits, said = value_range(array.items, "--data_dir mine.npz")
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiny_diffusion.folders import SPLITS, several
from tiny_diffusion.messages import LONGEST, UsageError

DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")  # that items have
NARROWER = ("uint8", "uint16", "int16", "int32")  # what other integers become, the first that holds them
SCANNED = 2**22  # values that are looked at together
SAMPLED = 2**20  # values whose quantiles stand for those of all
FEW_VALUES = 16  # different ones of uint8, such as those of a mask, which have a range of their own
RARE = 1e-3  # share of the values that may lie outside --range
FAR = 10  # times the range of nearly all values: what lies further away is told
HIGH_DIMENSION = 50  # of points: more are probably pictures or signals
HELD_OUT = 1000  # items to test with, at most, where the number of those that train is limited
LARGEST = 1e30  # size of a value that is taken for a mistake
CHUNK = 2**24  # values that are compared at once: 64 MB as float32
CHANNELS = (1, 2, 3, 4)  # of pictures, as most have
TAKEN = "give a .npy or .npz of (n, height, width[, channels]) or (n, dimensions), with np.save or np.savez"


class Array(NamedTuple):
    """Items (n, height, width[, channels]) or (n, dimensions), perhaps where they lie on the disk.

    `labels` are numbers of `classes`, `split` is "train", "validation" or "test" of each item; they are None where the
    file has none. `said` are lines to print.
    """

    items: np.ndarray
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    split: np.ndarray | None = None
    said: tuple[str, ...] = ()


def read_array(path: Path, channels: str | None = None) -> Array:
    """The array in a file. `channels`, "first" or "last", says where they are, or else the shape does.

    Raises UsageError, which says what the file really is.
    """
    name = f"--data_dir {path}"
    if path.is_dir():
        raise UsageError(f"{name}: a folder; name the file in it, or read pictures with --dataset folder")
    if not path.is_file():
        raise UsageError(f"{name}: no such file; {TAKEN}")
    with open(path, "rb") as file:
        head = file.read(1024)
    reader = next((reader for begins, reader in READERS.items() if head.startswith(begins)), None)
    if reader is None:
        raise UsageError(f"{name}: {what_it_is(path, head)}; {TAKEN}")
    try:
        array = reader(path)
    except UsageError:
        raise
    except Exception as error:  # of a broken file; each library has its own
        objects = re.search("allow_pickle|Python objects", str(error))
        reason = "its values are Python objects, not numbers" if objects else str(error)[:LONGEST]
        raise UsageError(f"{name}: {' '.join(reason.split()) or type(error).__name__}; {TAKEN}") from error
    check_shape(array.items, name)
    return channels_last(array, channels)


def holds_points(path: Path) -> bool:
    """Whether an array is of (n, dimensions). Raises UsageError."""
    return read_array(path).items.ndim == 2


def read_npy(path: Path) -> Array:
    """A .npy, read where it is looked at."""
    return Array(np.load(path, mmap_mode="r", allow_pickle=False))


def read_npz(path: Path) -> Array:
    """A .npz: x and perhaps y, or the parts of a split as MedMNIST and Keras name them."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith(".npy") for name in names):
        raise UsageError(f"--data_dir {path}: {what_a_zip_is(names)}; {TAKEN}")
    with np.load(path, allow_pickle=False) as arrays:
        return assembled(path, arrays)


def read_mat(path: Path) -> Array:
    """A .mat of MATLAB's up to version 7, such as SVHN's: items may be counted along the last axis."""
    from scipy.io import loadmat

    trial = [sys.executable, "-c", "import sys, scipy.io; scipy.io.loadmat(sys.argv[1])", path]
    if subprocess.run(trial, capture_output=True).returncode not in (0, 1):  # scipy crashes on a type it does not know
        raise ValueError("damaged")
    found = loadmat(path)
    numbers = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    return assembled(path, {key: value for key, value in numbers.items() if value.dtype.kind in "uifbU"}, matlab=True)


READERS = {b"\x93NUMPY": read_npy, b"PK\x03\x04": read_npz, b"MATLAB 5.0 MAT-file": read_mat}
HDF5 = b"\x89HDF\r\n\x1a\n"
ROLES = {"x": ("x", "image", "images", "img", "imgs", "data", "features", "inputs", "arr_0")}
ROLES |= {"y": ("y", "label", "labels", "target", "targets", "arr_1")}


def role_and_part(key: str) -> tuple[str, str] | None:
    """What an array is by its name: "x" or "y", and a part of a split or ""; None for others.

    >>> role_and_part("train_images"), role_and_part("y_test"), role_and_part("X")
    (('x', 'train'), ('y', 'test'), ('x', ''))
    """
    words, parts = "|".join(word for role in ROLES.values() for word in role), "|".join(SPLITS)
    match = re.fullmatch(rf"(?:({parts})[_ ]?)?({words})(?:[_ ]?({parts}))?", key.lower())
    if not match or (match[1] and match[3]):
        return None
    role = "x" if match[2] in ROLES["x"] else "y"
    return role, SPLITS.get(match[1] or match[3], "")


def assembled(path: Path, arrays, matlab: bool = False) -> Array:
    """The items, classes and split of arrays by their names. Raises UsageError, which names the arrays."""
    keys, found = list(arrays), {}
    for key in keys:
        found.setdefault(role_and_part(key), []).append(key)
    doubled = [names for role, names in found.items() if role and len(names) > 1]
    if not any(role and role[0] == "x" for role in found) and len(keys) == 1:
        found = {("x", ""): keys}
    parts = [role[1] for role in found if role and role[0] == "x"]
    if doubled or not parts or ("" in parts and len(parts) > 1):
        held = f"holds {several(keys, 20)}" if keys else "holds no arrays of numbers"
        raise UsageError(
            f"--data_dir {path}: {held}; name the one to learn x, and classes y: np.savez(FILE, x=..., y=...)"
        )
    items, labels, split = [], [], []
    for part in parts:
        x = arrays[found["x", part][0]]
        y = arrays[found["y", part][0]] if ("y", part) in found else None
        items.append(items_first(x, None if y is None else y.size) if matlab else x)
        labels.append(y)
        split += [part] * len(items[-1])
    if len({(x.shape[1:], x.dtype) for x in items}) > 1:
        shapes = several(f"{part} {x.dtype} {x.shape}" for part, x in zip(parts, items))
        raise UsageError(f"--data_dir {path}: the parts differ: {shapes}; make them alike")
    x = items[0] if len(items) == 1 else np.concatenate(items)
    named = [found["x", part][0] for part in parts]
    if labelled := all(("y", part) in found for part in parts):
        named += [found["y", part][0] for part in parts]
    unused = [key for key in keys if key not in named]
    said = [f"{path}: {', '.join(named)} read" + f"; {several(unused)} left out" * bool(unused)]
    classes, numbers = as_classes(x, labels_of(labels, items, said), said) if labelled else (None, None)
    return Array(x, classes, numbers, np.array(split) if len(parts) > 1 else None, tuple(said))


def items_first(x: np.ndarray, number: int | None) -> np.ndarray:
    """An array whose items are counted along the first axis, of one that may count them along the last, as MATLAB's."""
    counted_last = x.shape[0] != number and x.shape[-1] == number
    unlabelled = (
        number is None and x.ndim == 4 and x.shape[0] == x.shape[1] and x.shape[2] in CHANNELS and x.shape[3] > 4
    )
    return np.ascontiguousarray(np.moveaxis(x, -1, 0)) if counted_last or unlabelled else x


def labels_of(labels: list[np.ndarray], items: list[np.ndarray], said: list[str]) -> np.ndarray | None:
    """One label for each item, of arrays (n,), (n, 1), (1, n), or (n, classes) with a single 1 in each row."""
    found = []
    for y, x in zip(labels, items):
        if y.shape == (1, len(x)) or y.shape == (len(x), 1):
            y = y.reshape(-1)
        if y.ndim == 2 and len(y) == len(x) and y.dtype.kind in "uifb":
            if ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
                y = y.argmax(1)
            else:
                said.append(f"labels {y.shape} left out: several of them to an item")
                return None
        found.append(y)
    return np.concatenate(found)


def as_classes(x: np.ndarray, y: np.ndarray | None, said: list[str]):
    """Names and numbers of the classes of labels, numbers or texts. Raises UsageError."""
    if y is None:
        return None, None
    if y.dtype.kind == "f" and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.shape != x.shape[:1] or y.dtype.kind not in "iubUS":
        raise ValueError(f"y is {y.dtype} of {y.shape}, not a whole number or a text for each of x {x.shape}")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    names, numbers = np.unique(y, return_inverse=True)
    if len(names) > max(10, len(y) // 2):
        raise ValueError(f"y names {len(names):,} classes for {len(y):,} items; leave it out to learn without classes")
    classes = [str(name) for name in names]
    if x.shape[1:] == (32, 32, 3) and classes == [str(i) for i in range(1, 11)] and x.dtype == np.uint8:
        classes[9] = "0"  # as SVHN writes it
        said.append("class 10 is called 0: the file is SVHN's")
    return (classes, numbers) if len(classes) > 1 else (None, None)


def check_shape(x: np.ndarray, name: str) -> None:
    """Raise UsageError unless an array holds two items or more, of numbers, pictures or points."""
    if x.dtype.kind not in "uifb":
        raise UsageError(f"{name}: its values are {x.dtype}; {TAKEN}")
    if x.ndim not in (2, 3, 4) or x.size == 0 or len(x) < 2:
        raise UsageError(f"{name}: its shape is {x.shape}; {TAKEN}")
    if x.ndim == 3 and x.shape[0] == x.shape[1] and x.shape[2] in (3, 4):
        raise UsageError(f"{name}: its shape {x.shape} is that of one picture; {TAKEN}")


def channels_last(array: Array, channels: str | None) -> Array:
    """Pictures with their channels last: moved there where `channels` is "first", or where that is None, as they look.

    Channels come first where there are at most four of them and more columns, or where pictures are then square.
    """
    x = array.items
    if x.ndim != 4:
        return array
    _, a, b, c = x.shape
    first = c > 4 >= a or (b == c > a and a != b and c > 4)
    said = array.said
    if channels is None and (first or c > 4):
        read = f"{a} channel{'s' * (a > 1)} of {b}×{c}" if first else f"{c} channels of {a}×{b}"
        said = (*said, f"{x.shape} read as {read}; --channels {'last' if first else 'first'} if it is not so")
    first = channels == "first" or (channels is None and first)
    return array._replace(items=np.moveaxis(x, 1, 3) if first else x, said=said)


def taken(array: Array, rows: np.ndarray) -> Array:
    """Some of the items, in memory; of a .npy nothing else is read."""
    labels, split = (None if part is None else part[rows] for part in (array.labels, array.split))
    return array._replace(items=np.array(array.items[rows]), labels=labels, split=split)


def chosen(rows: np.ndarray, limit: int | None, labels: np.ndarray | None) -> np.ndarray:
    """`limit` of the rows, drawn at random and always the same, every class among them where they are enough.

    Another --seed chooses no others: a checkpoint would be scored against items that it was not trained on.
    """
    if limit is None or limit >= len(rows):
        return rows
    order = np.random.default_rng(0).permutation(rows)
    if labels is not None:
        _, firsts = np.unique(labels[order], return_index=True)
        rest = np.delete(order, firsts)
        order = np.concatenate([order[np.sort(firsts)], rest])
    return np.sort(order[:limit])


def limited(array: Array, parts: dict, name: str, limit: int | None) -> tuple[Array, dict]:
    """`narrowed` items, and which of them train and test: with a limit, so many and few to test with, and no others."""
    if limit is not None:
        number, parts = len(array.items), parts | {"train": chosen(parts["train"], limit, array.labels)}
        parts["test"] = chosen(parts["test"], HELD_OUT, array.labels)
        array = taken(array, np.concatenate([parts["train"], parts["test"]]))
        train, test = np.split(np.arange(len(array.items)), [len(parts["train"])])
        parts, said = {"train": train, "test": test}, f"{len(train):,} of {number:,} items train, {len(test):,} test"
        array = array._replace(said=(*array.said, said))
    return narrowed(array, name), parts


def narrowed(array: Array, name: str) -> Array:
    """Items of one of DTYPES, in this machine's order of bytes: other integers become one that holds their values.

    Raises UsageError where none does.
    """
    x = array.items
    if x.dtype.name in DTYPES:
        return array._replace(items=x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")))
    if x.dtype.kind == "b":
        return array._replace(items=x.view(np.uint8))
    if x.dtype.kind == "f":
        return array._replace(items=x.astype(np.float64))
    low, high = extremes(x, 1)
    fits = [dtype for dtype in NARROWER if np.iinfo(dtype).min <= low[0] and high[0] <= np.iinfo(dtype).max]
    if not fits:
        raise UsageError(f"{name}: {x.dtype} from {low[0]} to {high[0]} do not fit 32 bits; save as float64")
    return array._replace(items=x.astype(fits[0]), said=(*array.said, f"{x.dtype} kept as {fits[0]}"))


def parts_of(items: np.ndarray):
    """The items, some at a time, each part with the number of its first."""
    size = max(1, SCANNED // max(1, items[0].size))
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


def extremes(items: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest of all values, of each channel, or of all together where `channels` is 1."""
    axes = tuple(range(items.ndim - (channels > 1)))
    found = [(np.min(part, axes), np.max(part, axes)) for _, part in parts_of(items)]
    low, high = (np.stack(values) for values in zip(*found))
    return np.atleast_1d(low.min(0)), np.atleast_1d(high.max(0))


def value_range(items: np.ndarray, name: str, given: list[float] | None = None) -> tuple[list, list[str]]:
    """[low, high] of all values, of each channel of floats a list of them, and lines to print.

    Of uint8 it is 0 and 255, unless there are few different values. `given` is the user's own, outside of which only
    very few values may lie, which the caller clips. Raises UsageError, also for values that are no finite numbers.
    """
    if items.dtype == np.uint8 and given is None and not few_values(items):
        return [0, 255], []
    channels = items.shape[3] if items.ndim == 4 and items.dtype.kind == "f" else 1
    low, high = extremes(items, channels)
    if not (np.abs([low, high], dtype=np.float64) < LARGEST).all():
        bad = next(first + bad_item(part) for first, part in parts_of(items) if bad_item(part) is not None)
        raise UsageError(f"{name}: item {bad} has values that are no finite numbers; take it out")
    if (low == high).all():
        raise UsageError(f"{name}: all values are the same; there is nothing to learn")
    if given is not None:
        return check_given(items, low.min(), high.max(), given)
    return [values.tolist() if channels > 1 else values[0].item() for values in (low, high)], outliers(items, name)


def few_values(items: np.ndarray) -> bool:
    """Whether uint8 has few different values, more than one; a look at the first items settles most."""
    seen = np.zeros(256, bool)
    for _, part in parts_of(items):
        seen |= np.bincount(part.reshape(-1), minlength=256) > 0
        if seen.sum() > FEW_VALUES:
            return False
    return True


def bad_item(part: np.ndarray) -> int | None:
    """The first item with a value that is no finite number."""
    good = (np.abs(part) < LARGEST).reshape(len(part), -1).all(1)  # false for what is no number
    return None if good.all() else int(good.argmin())


def check_given(items: np.ndarray, low: float, high: float, given: list[float]) -> tuple[list, list[str]]:
    """The range that the user gave, and what lies outside. Raises UsageError for more than very few values."""
    outside = 0
    if not given[0] <= low <= high <= given[1]:
        outside = sum(int(((part < given[0]) | (part > given[1])).sum()) for _, part in parts_of(items))
    if not given[0] < given[1] or outside > RARE * items.size:
        found = f"the values are from {low:g} to {high:g}"
        raise UsageError(f"--range {given[0]:g} {given[1]:g}: {found}; give a range around")
    said = f"--range: {outside:,} of {items.size:,} values are outside and clipped" if outside else ""
    return [*given], [said] if said else []


def outliers(items: np.ndarray, name: str) -> list[str]:
    """A line where nearly all values lie in a small part of the range, with the --range that leaves out the rest."""
    rows = np.unique(np.linspace(0, len(items) - 1, max(1, SAMPLED // items[0].size)).astype(int))
    values = items[rows].reshape(-1, items.shape[3] if items.ndim == 4 and items.dtype.kind == "f" else 1)
    low, high = extremes(items, values.shape[1])
    lower, upper = np.quantile(values.astype(np.float64), [RARE / 2, 1 - RARE / 2], axis=0)
    lone = (high - low > FAR * (upper - lower)) & (upper > lower)
    if not lone.any():
        return []
    small, large = lower.min(), upper.max()
    found = f"values from {low.min():g} to {high.max():g}, of which 99.9% are from {small:.4g} to {large:.4g}"
    return [f"{name}: {found}; --range {small:.4g} {large:.4g} clips the rest, and shows more of the others"]


def points_hint(dimensions: int) -> str:
    """A line on points of so many dimensions that they are slow to learn: the shape of what they may be instead."""
    if dimensions <= HIGH_DIMENSION:
        return ""
    side, coloured, shapes = math.isqrt(dimensions), math.isqrt(dimensions // 3), f"x.reshape(-1, 1, {dimensions})"
    if side**2 == dimensions:
        shapes = f"x.reshape(-1, {side}, {side})"
    elif dimensions == 3 * coloured**2:
        shapes = f"x.reshape(-1, 3, {coloured}, {coloured}) or x.reshape(-1, {coloured}, {coloured}, 3)"
    kind = "signals" if side**2 != dimensions != 3 * coloured**2 else "pictures"
    return f"points of {dimensions} dimensions are slow to learn; if they are {kind}, save {shapes}"


def what_a_zip_is(names: list[str]) -> str:
    """A zip without arrays, by the names in it."""
    if any(name.endswith("data.pkl") for name in names):
        return "a file of PyTorch's; save its tensor.numpy()"
    if "[Content_Types].xml" in names:
        return "a document of Office; tables are read by --dataset series"
    return f"a zip without arrays ({several(names, 3)}); zips of pictures are read by --dataset folder"


def what_it_is(path: Path, head: bytes) -> str:
    """What a file is that holds no array, by how it begins."""
    for begins, kind in KINDS.items():
        if head.startswith(begins):
            return kind
    if not head:
        return "empty"
    if HDF5 in head:
        return "an HDF5 file, as MATLAB 7.3 writes; save the array that h5py.File(FILE)[NAME][:] gives"
    if len(head) > 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and head[3] in (1, 2, 3, 4):
        return "an IDX file, as MNIST's; --dataset mnist, fashion-mnist, kmnist and emnist read such"
    if head[0] == 0x80 and len(head) > 1 and head[1] in (2, 3, 4, 5):
        content = path.read_bytes()
        if any(key in content for key in (b"batch_label", b"fine_labels", b"coarse_labels")):
            return "a pickled batch of CIFAR's; read it by --dataset cifar-10, or hf:uoft-cs/cifar10 or cifar100"
        return "a pickle, which could run any program and is not opened; save the array in it"
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return "no array, and nothing else that is known here"
    return "text, such as a CSV; save np.loadtxt(FILE, delimiter=','), or read a table by time with --dataset series"


IDX_TYPES = b"\x08\x09\x0b\x0c\x0d\x0e"
KINDS = {
    b"PAR1": "a Parquet file; pictures in it are read by --dataset folder, tables by --dataset series",
    b"PK\x05\x06": "an empty zip",
    b"\xff\xfe": "text in UTF-16, such as a CSV; tables by time are read by --dataset series",
    b"ARROW1": "a Feather file; tables are read by --dataset series",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"BZh": "packed by bzip2; unpack it",
    b"\x89PNG": "one picture; name its folder with --dataset folder",
    b"\xff\xd8\xff": "one picture; name its folder with --dataset folder",
    b"GIF8": "one picture; name its folder with --dataset folder",
    b"II*\0": "a TIFF; name its folder with --dataset folder, and --frames all for each page",
    b"MM\0*": "a TIFF; name its folder with --dataset folder, and --frames all for each page",
    b"RIFF": "a sound or a film; name the folder of sounds with --dataset sounds",
    b"SIMPLE  =": "a FITS file; save the array that astropy.io.fits gives",
    b"MATLAB 7.3": "an HDF5 file of MATLAB's; save it with '-v7', or the array that h5py.File(FILE)[NAME][:] gives",
}
