"""Sound files of any kind as one second of mono at 16 kHz.

>>> wave = one_second(Path("word.ogg"))  # (16000,) float32 of peak 1, or None where there is no sound
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

SAMPLE_RATE = 16000  # in Hz
MARGIN = 0.1  # seconds that are read beside the one that is kept, for the filter
SILENCE = 1e-4  # peak, -80 dB of full scale, below which there are only rounding errors
MUCH_QUIETER = 1e-3  # power of the middle second, of that of the loudest, below which the latter is taken: -30 dB
CANCELLED = 0.2  # power of the mean of channels, of what it would be if they had nothing in common
SECTIONS = 20  # of a second whose power is measured
BLOCK = 2**16  # frames that are read at a time

SUFFIXES = {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf"}
SUFFIXES |= {".w64", ".rf64", ".bwf", ".voc", ".sph", ".nist", ".avr", ".htk", ".8svx", ".svx", ".iff", ".paf", ".pvf"}
SUFFIXES |= {".sd2", ".sds", ".sf", ".ircam", ".wve", ".xi"}
FFMPEG = "convert with ffmpeg -i IN OUT.wav"
REMEDIES = dict.fromkeys([".m4a", ".aac", ".mp4", ".wma", ".amr", ".webm", ".mka", ".ac3", ".3gp", ".mov"], FFMPEG)
REMEDIES |= dict.fromkeys([".raw", ".pcm"], "has no head that tells its rate; save as WAV")
REMEDIES |= dict.fromkeys([".zip", ".tar", ".gz", ".tgz"], "name it as --data_dir, or unpack it")


@np.errstate(invalid="ignore", over="ignore")  # of values that are no numbers
def one_second(source: Path | io.BytesIO) -> np.ndarray | None:
    """The middle second of a sound as (16000,) float32, without its mean and of peak 1; None where that is silent.

    Of a sound whose middle is 30 dB quieter than its loudest second, that one. Shorter sounds get silence on both
    sides. Raises what soundfile raises for files that are no sound.
    """
    with opened(source) as file:
        rate, length = file.samplerate, int((1 + MARGIN) * file.samplerate)
        if rate > 10**6:
            return None
        if sought := can_be_sought(file):
            if start := max(0, file.frames - length) // 2:
                file.seek(start)
            wave = file.read(length, dtype="float32", always_2d=True)
            sought = 0 < len(wave) == min(length, file.frames) and (file.frames <= length or is_loud(file, wave))
    if not sought:
        wave = best_part(source, length, rate)
    if len(wave) == 0:
        return None
    wave = mono(wave)
    if rate != SAMPLE_RATE:
        wave = soxr.resample(wave, max(100, rate), SAMPLE_RATE, quality="HQ")
    return levelled(wave)


def levelled(wave: np.ndarray) -> np.ndarray | None:
    """The middle second of sound at 16 kHz, brought to a peak of 1, or None."""
    wave = torch.from_numpy(wave[max(0, len(wave) - SAMPLE_RATE) // 2 :][:SAMPLE_RATE])
    wave = wave - wave.mean()
    peak = wave.abs().max()
    if not SILENCE <= peak < np.inf:
        return None
    missing = SAMPLE_RATE - len(wave)
    return torch.nn.functional.pad(wave / peak, (missing // 2, missing - missing // 2)).numpy()


class Straight(soundfile.SoundFile):
    """A file that is read straight through: soundfile seeks after each read, which some formats only claim to do."""

    def seekable(self):
        return False


@contextlib.contextmanager
def opened(source: Path | io.BytesIO, kind=soundfile.SoundFile):
    """Around soundfile's view of a file, at its beginning; MP3 is told its length where it does not say it."""
    if not isinstance(source, Path):
        source.seek(0)
    name = os.fsencode(source) if isinstance(source, Path) and os.name == "posix" else source  # may not be UTF-8
    with kind(name) as file:
        if file.format == "MP3":
            content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
            if (told := with_length(content)) is not content:
                with kind(io.BytesIO(told)) as whole:
                    yield whole
                    return
        yield file


def can_be_sought(file) -> bool:
    """Whether a file's length is known and any place in it can be read."""
    return file.seekable() and file.frames < 2**48 and not file.subtype.startswith("DWVW")


def is_loud(file, wave: np.ndarray) -> bool:
    """Whether no second of a file can be much louder than `wave` (frames, channels), as full scale is a limit."""
    return file.subtype not in ("FLOAT", "DOUBLE") and wave.var(0).mean() > MUCH_QUIETER


def best_part(source: Path | io.BytesIO, length: int, rate: int) -> np.ndarray:
    """`length` frames, (frames, channels), around the middle or else the loudest second, of a file read throughout."""
    frames, powers = measured(source, max(1, rate // SECTIONS))
    start = max(0, frames - length) // 2
    sums = np.convolve(powers, np.ones(min(SECTIONS, len(powers))), "valid") if len(powers) else np.zeros(1)
    middle = min(round(len(powers) * (start + (length - rate) / 2) / max(1, frames)), len(sums) - 1)
    if sums[middle] < MUCH_QUIETER * sums.max():
        start = int(sums.argmax()) * max(1, rate // SECTIONS) - (length - rate) // 2
        start = int(np.clip(start, 0, max(0, frames - length)))
    with opened(source, Straight) as file:
        for first in range(0, start, BLOCK):
            file.read(min(BLOCK, start - first), dtype="float32")
        return file.read(length, dtype="float32", always_2d=True)


def measured(source: Path | io.BytesIO, section: int) -> tuple[int, np.ndarray]:
    """How many frames a file has, and the power of each `section` of so many frames, a mean over channels."""
    frames, powers = 0, []
    with opened(source, Straight) as file:
        size = section * max(1, BLOCK // section)
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            frames += len(block)
            whole = block[: len(block) // section * section].reshape(-1, section, block.shape[1])
            squares = np.einsum("ijk,ijk->ik", whole, whole) / section
            powers += (squares - whole.mean(1) ** 2).mean(1).tolist()
    return frames, np.nan_to_num(powers)


def mono(wave: np.ndarray) -> np.ndarray:
    """The mean of the channels of (frames, channels), or the loudest of them where they cancel each other."""
    mean, channels = wave.mean(1), wave.shape[1]
    if channels == 1:
        return mean
    powers = wave.var(0)
    return mean if mean.var() >= CANCELLED * powers.mean() / channels else wave[:, powers.argmax()].copy()


BITRATES = (  # of MPEG layer III, in kbit/s: version 1, then versions 2 and 2.5
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # in Hz, by version


def with_length(content: bytes) -> bytes:
    """An MP3 whose first frame says how many there are: without that, mpg123 guesses from the first frame's bit rate.

    Of a variable bit rate the guess may be a fifth of the truth, and libsndfile reads no further.
    """
    start = 0
    while content[start : start + 3] == b"ID3":
        sizes = content[start + 6 : start + 10]
        start += 10 + sum(byte << shift for byte, shift in zip(sizes, (21, 14, 7, 0)))
    while start < len(content) and not (mp3_frame(content, start) and mp3_frame(content, start, following=True)):
        start = content.find(b"\xff", start + 1)
        if start < 0:
            return content
    head = content[start : start + 4]
    if len(head) < 4 or any(tag in content[start : start + 64] for tag in (b"Xing", b"Info", b"VBRI")):
        return content
    frames, place = 0, start
    while length := mp3_frame(content, place):
        frames, place = frames + 1, place + length
    head = bytes([head[0], head[1] | 1, head[2] & 0x0C | 0xE0, head[3]])  # no checksum, the highest bit rate
    first, alone = head[1] & 0x08, head[3] >> 6 == 3
    side = (17 if alone else 32) if first else (9 if alone else 17)
    tag = head + bytes(side) + b"Xing" + struct.pack(">II", 1, frames)
    return tag.ljust(mp3_frame(tag, 0), b"\0") + content[start:]


def mp3_frame(content: bytes, place: int, following: bool = False) -> int:
    """Bytes of the frame of MPEG layer III at `place`, or of the one after it; 0 where there is none."""
    head = content[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, bits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return 0
    bitrate = BITRATES[version != 3][bits - 1]
    length = (144000 if version == 3 else 72000) * bitrate // RATES[version][rate] + (head[2] >> 1 & 1)
    return mp3_frame(content, place + length) if following else length
