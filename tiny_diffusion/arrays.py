"""Arrays in .npy and .npz files, and the range of their values."""

from pathlib import Path

import numpy as np

from tiny_diffusion.messages import UsageError, reading

DTYPES = ("uint8", "uint16", "float16", "float32", "float64")  # that are taken
LARGEST = 2.0**100  # size of a value that is taken for a mistake
CHUNK = 2**24  # values that are looked at, or compared, at once: 64 MB as float32


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


def holds_points(path: Path) -> bool:
    """Whether an array is of (n, dimensions). Raises UsageError."""
    return read_array(path)[0].ndim == 2


def value_range(items: np.ndarray, argument: str) -> list:
    """The lowest and the highest of all values, of each channel where these are floats; of uint8 0 and 255.

    Raises UsageError if a value is not a finite number, or if all are the same.
    """
    if items.dtype == np.uint8:
        return [0, 255]
    channels = items.shape[3] if items.ndim == 4 and items.dtype.kind == "f" else 1
    lows, highs, size = [], [], max(1, CHUNK // items[0].size)
    for first in range(0, len(items), size):
        part = items[first : first + size]
        sound = np.abs(part) < LARGEST  # false for what is no number
        if not sound.all():
            bad = first + sound.reshape(len(part), -1).all(1).argmin()
            raise UsageError(f"{argument}: item {bad} has values that are no finite numbers; take it out")
        lows.append(part.reshape(-1, channels).min(0))
        highs.append(part.reshape(-1, channels).max(0))
    low, high = np.min(lows, 0), np.max(highs, 0)
    if (low == high).all():
        raise UsageError(f"{argument}: all values are the same; there is nothing to learn")
    return [low.tolist(), high.tolist()] if channels > 1 else [low.item(), high.item()]
