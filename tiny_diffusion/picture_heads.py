"""The heads of image files: what Pillow tells of them, and of TIFFs, where that is not the truth, tifffile."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from tiny_diffusion.messages import UsageError, many

warnings.filterwarnings("ignore", module="PIL")  # of images that are read all the same
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says of broken files is raised as well

STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}  # formats whose names Pillow knows, and nothing else of them
FILMS = {"AVIF", "DCX", "FLI", "GIF", "IM", "PNG", "TIFF", "WEBP"}  # whose frames are pictures, not layers or previews
DEEP_MODES = {"F", "I", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's, all grey
GREY = {"1", "L", "LA", "La", *DEEP_MODES}
KEPT_AS = {"bool": "uint8", "int8": "int16", "uint32": "int32", "int64": "int32", "uint64": "int32"}
KEPT_AS |= {"float16": "float32", "float64": "float32"}
ORIENTATION = 0x0112  # EXIF and TIFF
PACKBITS = 32773  # of TIFF's compressions
TAGS = {"NewSubfileType": 254, "BitsPerSample": 258, "Compression": 259, "Photometric": 262, "Predictor": 317}
TAGS |= {"ExtraSamples": 338, "SampleFormat": 339, "NoData": 42113}


class Look(NamedTuple):
    """What the head of an image file tells.

    `size` is (width, height), upright. `channels` is 1, grey, or 3, RGB, without transparency (`alpha`). `dtype` is
    that of the values: "uint8", "uint16", "int16", "int32" or "float32". `more` tells of a further channel, neither
    colour nor transparency, that is not read.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    alpha: bool = False
    frames: int = 1
    more: bool = False


def suffixes() -> set[str]:
    """Those of the files that can be read."""
    Image.init()
    return {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN and name not in STUBS}


def look(file: Path | io.BytesIO) -> Look:
    """What an image is, out of its head. Raises UsageError with the reason alone, to be put after the file's name."""
    with opened(file) as image:
        if image is None or is_foreign(image):
            return tiff_look(file)
        raw, mode = raw_mode(image), image.mode
        depth = 16 if ";16" in raw else 8
        channels = 1 if mode in GREY or raw.startswith("LA;16") else 3
        turned = image.format != "TIFF" and orientation(image) > 4  # of a TIFF, Pillow tells the upright size itself
        size = image.size[::-1] if turned else image.size
        dtype = grey_dtype(image) if mode in DEEP_MODES else f"uint{depth}"
        return Look(size, channels, dtype, image.has_transparency_data, frames_of(image), has_more(image))


@contextlib.contextmanager
def opened(file: Path | io.BytesIO):
    """Around Pillow's image of a file; None for a TIFF of which Pillow knows no such pixels. Raises UsageError.

    Pillow gets no name: of a file by name it maps raw pixels with the sides of the upright image, which scrambles those
    of a TIFF that lies on its side.
    """
    with contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else open(file, "rb") as stream:
        try:
            image = Image.open(stream)
        except Image.DecompressionBombError as error:
            most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
            raise UsageError(f"more than {most} million pixels, which Pillow refuses; make it smaller") from error
        except UnidentifiedImageError as error:
            head = first_bytes(file, 12)
            if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                phone = head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"hevc")
                kind = "HEIC, as phones write it; save as JPEG" if phone else "no image that Pillow knows"
                raise UsageError(kind if head else "empty") from error
            image = contextlib.nullcontext()
        with image as found:
            yield found


def first_bytes(file: Path | io.BytesIO, number: int | None = None) -> bytes:
    """How a file begins, or all of it."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:number]
    with open(file, "rb") as opened_file:
        return opened_file.read(number)


def raw_mode(image) -> str:
    """How an image's pixels lie in the file, in Pillow's words; with ";16" where they have 16 bits."""
    if not image.tile:
        return image.mode
    codec, _, _, arguments = image.tile[0]
    if codec.startswith("ppm"):
        return f"{image.mode};16" if arguments[1] > 255 else image.mode
    if codec == "jpeg2k":
        return f"{image.mode};16" if jpeg2000_bits(image) > 8 else image.mode
    if codec == "SGI16" or (codec == "sgi_rle" and arguments[2] == 2):
        return f"{image.mode};16"
    return arguments if isinstance(arguments, str) else str((*(arguments or ()), "")[0])


def jpeg2000_bits(image) -> int:
    """Bits of a channel, which stand 40 bytes after the size marker begins (ISO 15444-1, A.5.1)."""
    position = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(4096)
    image.fp.seek(position)
    at = head.find(b"\xff\x4f\xff\x51") + 2
    return (head[at + 40] & 127) + 1 if at > 1 and len(head) > at + 40 else 8


def is_foreign(image) -> bool:
    """Whether a TIFF is left to tifffile: for a sign, a high byte or a predictor that Pillow would overlook."""
    if image.format != "TIFF":
        return False
    signed_bytes = image.mode == "L" and 2 in tags(image, "SampleFormat")
    cut = image.mode not in DEEP_MODES and max(tags(image, "BitsPerSample"), default=1) > 8
    return (
        signed_bytes or cut or (tags(image, "Predictor") not in ((), (1,)) and PACKBITS in tags(image, "Compression"))
    )


def is_deep(image) -> bool:
    """Whether an image has more than 8 bits, or bytes with a sign."""
    return image.mode in DEEP_MODES or ";16" in raw_mode(image) or is_foreign(image)


def tags(image, name: str) -> tuple:
    """The values of a tag of a TIFF, none where it has no such tag."""
    found = getattr(image, "tag_v2", {}).get(TAGS[name], ())
    return found if isinstance(found, tuple) else (found,)


def has_more(image) -> bool:
    """Whether a TIFF has a channel that is neither colour nor transparency."""
    return image.format == "TIFF" and 0 in tags(image, "ExtraSamples")


def grey_dtype(image) -> str:
    """What a grey image of more than 8 bits is kept as. Raises UsageError."""
    if image.mode == "F":
        return "float32"
    if image.format == "FITS":
        raise UsageError("FITS of whole numbers, whose zero is not where Pillow takes it to be; save as TIFF")
    if image.mode != "I" or image.format != "TIFF":  # a PGM's values are scaled to 16 bits by Pillow
        return "uint16"
    return "int16" if tags(image, "BitsPerSample") == (16,) else "int32"


def orientation(image) -> int:
    """As EXIF has it, 1 to 8; 1 where that is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of any kind, from a parser that follows the file's own offsets
        return 1


def frames_of(image) -> int:
    """How many pictures a file has; previews at the end of a TIFF do not count."""
    frames = getattr(image, "n_frames", 1) if image.format in FILMS else 1
    if image.format != "TIFF" or frames == 1:
        return frames
    for frame in range(1, frames):
        image.seek(frame)
        if 1 in tags(image, "NewSubfileType"):
            frames = frame
            break
    image.seek(0)
    return frames


def tiff_look(file: Path | io.BytesIO) -> Look:
    """What a TIFF is that is left to tifffile. Raises UsageError."""
    with tiff_pages(file) as pages:
        colours, alpha, more = tiff_channels(pages[0])
        dtype = KEPT_AS.get(pages[0].dtype.name, pages[0].dtype.name)
        previews = [i for i, page in enumerate(pages) if page.is_reduced]
        size = (pages[0].imagewidth, pages[0].imagelength)
        size = size[::-1] if pages[0].tags.valueof("Orientation", 1) > 4 else size
        return Look(size, colours, dtype, alpha, (*previews, len(pages))[0], more)


@contextlib.contextmanager
def tiff_pages(file: Path | io.BytesIO):
    """The pages of a TIFF. Raises UsageError."""
    import tifffile

    if isinstance(file, io.BytesIO):
        file.seek(0)
    try:
        tiff = tifffile.TiffFile(file)
    except tifffile.TiffFileError as error:
        raise UsageError(f"not a whole TIFF ({error})") from error
    with tiff:
        if not len(tiff.pages):
            raise UsageError("a TIFF without pictures")
        yield tiff.pages


def tiff_channels(page) -> tuple[int, bool, bool]:
    """Channels of colour of a TIFF's page, whether it has one of transparency, and whether one of something else.

    Raises UsageError for others.
    """
    if page.dtype is None or page.dtype.kind not in "uifb":
        raise UsageError(f"values of {page.dtype} are no picture; save as floats")
    colours = 3 if page.photometric == 2 else 1
    extra = page.samplesperpixel - colours
    if extra > 1 or page.photometric not in (0, 1, 2) or page.imagedepth > 1:
        channels = many(page.samplesperpixel, "channel")
        raise UsageError(f"{channels} ({page.photometric.name}) are neither grey nor RGB; see --dataset array")
    alpha = extra == 1 and page.extrasamples[:1] in ((1,), (2,))
    return colours, alpha, extra > alpha
