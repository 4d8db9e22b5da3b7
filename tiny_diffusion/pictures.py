"""Image files as arrays: what a folder of them is kept as, and their pixels.

>>> looks = [picture_heads.look(path) for path in paths]
>>> kind, said = common_kind(looks, paths, "--data_dir mine")
>>> pixels = decode(paths[0], (64, 48), kind)  # (48, 64, kind.channels) of kind.dtype

What has 8 bits is Pillow's; of deeper files Pillow keeps the high byte or the wrong sign, so these have readers of
their own: torchvision for PNG, tifffile for TIFF.
"""

from __future__ import annotations

import collections
import contextlib
import io
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tiny_diffusion.messages import UsageError, many
from tiny_diffusion.picture_heads import (
    DEEP_MODES,
    KEPT_AS,
    Look,
    first_bytes,
    grey_dtype,
    is_deep,
    is_foreign,
    opened,
    orientation,
    tags,
    tiff_channels,
    tiff_pages,
)

LARGE_IMAGE = threading.Lock()  # they take gigabytes: one at a time
WORDS = {"uint8": "8 bits", "uint16": "16 bits", "int16": "signed 16 bits", "int32": "32 bits", "float32": "floats"}
BITS = (8, 10, 12, 14, 16)  # that files of 16 bits use
ALMOST_GREY = 2  # levels between the channels of a grey picture after lossy compression and resizing
TURNED = {  # what makes pixels (height, width, ...) upright, by their orientation
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
REMEDIES = {".heic": "save as JPEG or PNG", ".heif": "save as JPEG or PNG", ".jxl": "save as PNG"}
REMEDIES |= {".exr": "save as TIFF", ".hdr": "save as TIFF", ".svg": "save as PNG", ".pdf": "save as PNG"}
REMEDIES |= dict.fromkeys([".dcm", ".nii", ".npy", ".npz", ".mat", ".h5", ".hdf5"], "see --dataset array")
REMEDIES |= dict.fromkeys([".nef", ".cr2", ".arw", ".dng", ".orf", ".rw2"], "save as TIFF or JPEG")
REMEDIES |= dict.fromkeys([".zip", ".tar", ".gz", ".tgz"], "name it as --data_dir, or unpack it")


class Kind(NamedTuple):
    """What images are kept as. `bits` are those that files of 16 bits use, where these are kept in 8."""

    channels: int
    dtype: str
    bits: int = 16


class Values(NamedTuple):
    """Pixels of a deep file: (height, width, channels), `alpha` (height, width, 1) from 0 to 1 or None, and white."""

    pixels: np.ndarray
    alpha: np.ndarray | None
    white: float


def common_kind(looks: list[Look], names: list, name: str, read) -> tuple[Kind, list[str]]:
    """What all images of a folder are kept as, and lines to print. `read()` yields their files again.

    Grey and RGB become RGB, 8 and 16 bits 8: how many bits the latter use is seen from their pixels. Raises UsageError
    for other mixtures, whose values cannot be compared.
    """
    channels = 1 if all(one.channels == 1 for one in looks) else 3
    found = collections.Counter(one.dtype for one in looks)
    if len(found) == 1:
        return Kind(channels, *found), []
    if set(found) != {"uint8", "uint16"}:
        examples = [next(i for i, one in enumerate(looks) if one.dtype == dtype) for dtype in found]
        kinds = " and ".join(f"{n} of {WORDS[dtype]} ({names[i]})" for (dtype, n), i in zip(found.items(), examples))
        raise UsageError(f"{name}: images {kinds} cannot be compared; keep one kind in the folder")
    deep = ((file, frame) for file, one in zip(read(), looks) if one.dtype == "uint16" for frame in range(one.frames))
    most = max(int(deep_values(*one).pixels.max()) for one in deep)
    bits = next(bits for bits in BITS if most < 2**bits)
    line = f"{many(found['uint16'], 'image')} of 16 bits with values up to {most:,}, taken for {bits} bits"
    return Kind(channels, "uint8", bits), [f"{line}, are kept in 8, as the rest are"]


def found_line(looks: list[Look], kind: Kind, size: tuple[int, int], name: str) -> str:
    """A line on what lies there, and on what is cut away where that is more than a quarter of most images."""
    (width, height), _ = collections.Counter(one.size for one in looks).most_common(1)[0]
    colours = "RGB" if kind.channels == 3 else "grey"
    line = f"{name}: {len(looks):,} images, {colours}, {WORDS[kind.dtype]}, most {height}×{width}"
    if more := sum(one.more for one in looks):
        line += f"; of {more:,} a further channel is left out"
    scale = min(width / size[0], height / size[1])
    share = scale**2 * size[0] * size[1] / (width * height)
    if share >= 0.75:
        return line
    kept, small = f"{round(scale * size[1])}×{round(scale * size[0])}", min(width, height)
    whole = [max(1, round(side * min(size) / small)) for side in (height, width)]
    return f"{line}; of those only the middle {kept} is kept: --image_size {whole[0]} {whole[1]} keeps all"


def items_of(looks: list, every_frame: bool, name: str) -> tuple[list[tuple[int, int]], list[str]]:
    """Which frame of which file is an item: the first of each, or every one; and lines to print.

    Files of which there is no look have one: they fail again where they are decoded, which tells of them.
    """
    frames = [one.frames if isinstance(one, Look) else 1 for one in looks]
    films = [number for number in frames if number > 1]
    if every_frame:
        said = f"{name}: {many(sum(frames), 'frame')} of {many(len(looks), 'file')}"
        return [(i, frame) for i, number in enumerate(frames) for frame in range(number)], [said]
    said = f"{name}: {many(len(films), 'file')} of several frames ({sum(films):,}): the first of each is taken; "
    return [(i, 0) for i in range(len(looks))], [f"{said}--frames all takes every one"] if films else []


def all_grey(items: np.ndarray) -> bool:
    """Whether decoded images (n, height, width, 3) are grey in truth, so that one channel holds all."""
    most = ALMOST_GREY if items.dtype.kind in "iu" else 0
    for item in items:
        values = item.astype(np.float64) if items.dtype.kind == "f" else item.astype(np.int64)
        if (values.max(2) - values.min(2)).max() > most:
            return False
    return items.shape[3] == 3


def decode(file: Path | io.BytesIO, size: tuple[int, int], kind: Kind, frame: int = 0) -> np.ndarray:
    """The middle of an image, (height, width, kind.channels) of kind.dtype, upright, on white where transparent.

    `size` is (width, height). Raises UsageError with the reason alone, and what Pillow raises for broken files.
    """
    with opened(file) as image:
        if image is None:
            return fitted(tiff_values(file, frame), size, kind)
        if frame:
            image.seek(frame)
        image.draft("RGB", (2 * size[0], 2 * size[1]))  # lets JPEG decode at a fraction of its size
        with LARGE_IMAGE if image.width * image.height > 2**24 else contextlib.nullcontext():
            return fitted(values_of(image, file, frame), size, kind) if is_deep(image) else shallow(image, size, kind)


def shallow(image, size: tuple[int, int], kind: Kind) -> np.ndarray:
    """An image of 8 bits as `decode` gives it."""
    if kind.dtype != "uint8":
        raise UsageError(f"8 bits, the others have {WORDS[kind.dtype]}")
    mode = "RGB" if kind.channels == 3 else "L"
    with contextlib.suppress(Exception):  # broken EXIF, of which each parser makes another error
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    image = image if image.mode == mode else image.convert(mode)
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.LANCZOS)).reshape(size[1], size[0], -1)


def deep_values(file: Path | io.BytesIO, frame: int) -> Values:
    """The values of an image of more than 8 bits, as they are in the file."""
    with opened(file) as image:
        if image is not None and frame:
            image.seek(frame)
        return tiff_values(file, frame) if image is None else values_of(image, file, frame)


def values_of(image, file: Path | io.BytesIO, frame: int) -> Values:
    """The same, of an open image. Raises UsageError where no reader keeps more than 8 bits."""
    if is_foreign(image):
        return tiff_values(file, frame)
    if image.mode in DEEP_MODES:
        return grey_values(image)
    if image.format not in DEEP_READERS:
        raise UsageError(f"more than 8 bits a channel in {image.format}, of which 8 could be read; save as PNG or TIFF")
    return DEEP_READERS[image.format](image, file)


def grey_values(image) -> Values:
    """Grey images that Pillow reads whole. Raises UsageError."""
    dtype, pixels, transparent = grey_dtype(image), np.asarray(image), image.info.get("transparency")
    if image.mode == "I":
        unsigned = image.format == "TIFF" and 2 not in tags(image, "SampleFormat")
        pixels = pixels.view(np.uint32) if unsigned else pixels.astype(dtype)
    white = 1 if image.mode == "F" else 65535
    check_missing(pixels, "".join(map(str, tags(image, "NoData"))))
    if tags(image, "Photometric") == (0,) and pixels.dtype.kind == "u":  # white is zero; bytes Pillow inverts itself
        pixels = 2 ** tags(image, "BitsPerSample")[0] - 1 - pixels
    alpha = None if transparent is None else (pixels != transparent)[..., None].astype(np.float32)
    return upright(Values(pixels[..., None], alpha, white), orientation(image))


def upright(values: Values, turned: int) -> Values:
    """Values turned as `orientation` says."""
    turn = TURNED.get(turned, lambda pixels: pixels)
    return values._replace(pixels=turn(values.pixels), alpha=None if values.alpha is None else turn(values.alpha))


def png_values(image, file: Path | io.BytesIO) -> Values:
    """PNG of 16 bits with colours or transparency."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    content = np.frombuffer(first_bytes(file), np.uint8)
    pixels = decode_png(torch.from_numpy(content.copy()), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    colours, alpha = pixels.shape[2] - (pixels.shape[2] + 1) % 2, None
    if colours < pixels.shape[2]:
        alpha = pixels[..., colours:] / np.float32(65535)
    elif "transparency" in image.info:
        alpha = (pixels != image.info["transparency"]).any(2, keepdims=True).astype(np.float32)
    return upright(Values(pixels[..., :colours], alpha, 65535), orientation(image))


def ppm_values(image, file: Path | io.BytesIO) -> Values:
    """Binary PPM of 16 bits, as Pillow reads PGM: scaled to 16 bits where it has fewer."""
    codec, _, offset, (_, most) = image.tile[0]
    if codec != "ppm":
        raise UsageError("more than 8 bits a channel in a PPM of text; save as PNG or TIFF")
    values = np.frombuffer(first_bytes(file), ">u2", image.width * image.height * 3, offset)
    scaled = np.round(values.reshape(image.height, image.width, 3) * (65535 / most))
    return Values(scaled.astype(np.uint16), None, 65535)


DEEP_READERS = {"PNG": png_values, "PPM": ppm_values}


def tiff_values(file: Path | io.BytesIO, frame: int) -> Values:
    """A page of a TIFF. Raises UsageError where that has other channels than grey or RGB, or an unusual compression."""
    with tiff_pages(file) as pages:
        page, (colours, alpha, _) = pages[frame], tiff_channels(pages[frame])
        try:
            pixels = page.asarray()
        except (ValueError, ImportError) as error:
            remedy = "pip install imagecodecs, or save without compression"
            raise UsageError(f"{page.compression.name} compression is not read ({error}); {remedy}") from error
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels = np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else pixels
        check_missing(pixels, page.tags.valueof("GDAL_NODATA", ""))
        white = 255 if pixels.dtype == np.uint8 else 1 if pixels.dtype.kind in "fb" else np.iinfo(pixels.dtype).max
        values = Values(pixels[..., :colours], pixels[..., colours:] / np.float32(white) if alpha else None, white)
        if page.photometric == 0 and pixels.dtype.kind == "u":
            values = values._replace(pixels=white - values.pixels)
        return upright(values, page.tags.valueof("Orientation", 1))


def check_missing(pixels: np.ndarray, marked: str) -> None:
    """Raise UsageError where floats are no numbers, or values are those that a TIFF of GDAL's marks as missing."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UsageError(f"{(~np.isfinite(pixels)).sum():,} of {pixels.size:,} values are no finite numbers; fill them")
    try:
        missing = float(marked.strip("\0 "))
    except ValueError:
        return
    if (pixels == missing).any():
        raise UsageError(f"{(pixels == missing).sum():,} of {pixels.size:,} values are {missing:g}, missing; fill them")


def fitted(values: Values, size: tuple[int, int], kind: Kind) -> np.ndarray:
    """The values of a deep image as `decode` gives them; untouched where they have that size and kind."""
    pixels, alpha, white = values
    if kind.dtype != KEPT_AS.get(pixels.dtype.name, pixels.dtype.name) and kind.dtype != "uint8":
        raise UsageError(f"{pixels.dtype} where the others have {WORDS[kind.dtype]}")
    if pixels.shape[2] > kind.channels:
        raise UsageError("RGB where the others are grey")
    if pixels.dtype == bool or (kind.dtype == "uint8" and pixels.dtype != np.uint8):
        most = 1 if pixels.dtype == bool else 2**kind.bits - 1
        pixels, white = pixels * (255 / most), 255
    if alpha is not None and (alpha < 1).any():
        pixels = alpha * pixels + (1 - alpha) * white
    if pixels.shape[:2] != size[::-1]:
        bands = [Image.fromarray(np.ascontiguousarray(band, np.float32)) for band in np.moveaxis(pixels, 2, 0)]
        low, high = pixels.min(), pixels.max()  # which the filter overshoots at edges
        pixels = np.stack([ImageOps.fit(band, size, Image.Resampling.LANCZOS) for band in bands], 2).clip(low, high)
    if np.issubdtype(kind.dtype, np.integer):
        limits = np.iinfo(kind.dtype)
        if kind.dtype == "int32" and max(int(pixels.max()), -int(pixels.min())) > limits.max:
            raise UsageError(f"values up to {pixels.max():,} are larger than 32 bits with a sign hold")
        pixels = pixels.round().clip(limits.min, limits.max)
    return pixels.astype(kind.dtype).repeat(kind.channels // pixels.shape[2], 2)
