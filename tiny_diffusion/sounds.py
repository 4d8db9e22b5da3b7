"""Sounds of one second as log-Mel spectrograms: how they are read, shown, and turned back into sound."""

import functools
import shutil
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from tiny_diffusion import clips
from tiny_diffusion.clips import SAMPLE_RATE
from tiny_diffusion.data import split, write_picture
from tiny_diffusion.files import decoded, write
from tiny_diffusion.folders import Member
from tiny_diffusion.images import Pixels, PixelsFacts, grid
from tiny_diffusion.messages import UsageError, downloading, file_name, reading
from tiny_diffusion.sources import Sources, content, found, home_of, of_hub, of_paths

WINDOW, HOP = 800, 250  # of the Fourier transform, in samples: a frame of 50 ms, every 16 ms
FRAMES = SAMPLE_RATE // HOP  # of a spectrogram
BANDS, LOWEST, HIGHEST = 64, 60, 8000  # Mel bands, from and to Hz
QUIETEST, LOUDEST = -36, 44  # dB in a Mel band, of a clip whose peak is 1: what the 256 levels span
LEVELS_PER_DECIBEL = 255 / (LOUDEST - QUIETEST)
CLIPS = f"clips 2 {SAMPLE_RATE} {WINDOW} {LOWEST} {HIGHEST} {QUIETEST} {LOUDEST}"  # what a cache holds
PEAK = 0.9  # of the sound that is written
VOCODED = 64  # clips at a time
MAX_TILES = 100  # clips in a picture
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class Spectrograms(Pixels):
    """Raw: (Mel bands, frames, 1) uint8, levels of loudness."""

    modality = "audio"

    def __init__(self, facts: PixelsFacts, **items):
        super().__init__(facts, **items)
        if self.shape != (1, BANDS, FRAMES):
            raise ValueError("not the shape of a spectrogram")

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
        ImageDraw.Draw(title).text((4, 1), word.encode(errors="replace").decode(), fill="white")
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
    """x >= 0 that makes |matrix @ x - target| small, for each column of `target`: FISTA (Beck & Teboulle 2009).

    All columns at once: SciPy's `nnls`, which takes one at a time, is slower.
    """
    step_size = torch.linalg.matrix_norm(matrix, 2) ** -2
    x = y = (torch.linalg.pinv(matrix) @ target).clamp(min=0)
    momentum = 1.0
    for _ in range(steps):
        last, x = x, (y - step_size * (matrix.T @ (matrix @ y - target))).clamp(min=0)
        last_momentum, momentum = momentum, (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        y = x + (last_momentum - 1) / momentum * (x - last)
    return x


def decode_clip(source: Path | Member | bytes | None) -> np.ndarray:
    """A second of a sound, as `clips.one_second` takes it, as levels (Mel bands, frames, 1) uint8.

    Raises UsageError for silence, with the reason alone.
    """
    wave = clips.one_second(content(source))
    if wave is None:
        raise UsageError("silent")
    return log_mel(torch.from_numpy(wave))[..., None].numpy()


def speech_commands(config) -> Spectrograms:
    """Spoken words (Warden 2018), by default the digits; its own lists say which clips are held out."""
    from torchaudio.datasets import SPEECHCOMMANDS

    home = Path(config.data_dir) / "SpeechCommands"
    root = home / "speech_commands_v0.02"
    if not home.is_dir():
        partial = home.with_name(".SpeechCommands.part")  # an archive in it is whole, what was unpacked may not be
        shutil.rmtree(partial / home.name, ignore_errors=True)
        with downloading(config.dataset, config.data_dir, f"unpack {root.name}.tar.gz into {root}"):
            partial.mkdir(parents=True, exist_ok=True)
            SPEECHCOMMANDS(partial, download=True)
        (partial / home.name).rename(home)
        shutil.rmtree(partial)
    with reading(f"--data_dir {config.data_dir}: {home} is not whole ({{error}}); delete it"):
        parts = [SPEECHCOMMANDS(config.data_dir, subset=subset) for subset in ("training", "testing")]
        train, test = ([home / part.get_metadata(i)[0] for i in range(len(part))] for part in parts)
    sources = of_paths(train + test, root, quiet=True)
    held_out = {str(path.relative_to(root)) for path in test}
    parts = np.array(["test" if name in held_out else "train" for name in sources.names])
    return spectrograms(sources._replace(split=parts), home.parent / ".cache", config.words or DIGITS, config)


def sounds(config) -> Spectrograms:
    """Your own sounds: all below `--data_dir`, of each one second; folders are words, as for images."""
    sources = found(Path(config.data_dir), "audio", clips.SUFFIXES, clips.REMEDIES)
    print(f"{sources.root}: {len(sources.names):,} sounds, of each the middle second, or the loudest")
    return spectrograms(sources, home_of(sources.root) / ".cache", config.words, config)


def hub(name: str, config) -> Spectrograms:
    """The sounds of a data set of the Hugging Face Hub, OWNER/NAME or OWNER/NAME:CONFIG, downloaded to `--data_dir`."""
    sources = of_hub(name, "audio", config)
    return spectrograms(sources, sources.root / ".cache", config.words, config)


def spectrograms(sources: Sources, cache: Path, words: list[str] | None, config) -> Spectrograms:
    """The clips in files, or those of the classes `words` among them. Raises UsageError."""
    classes, labels, wanted = sources.classes, sources.labels, range(len(sources.names))
    if words:
        words = list(dict.fromkeys(words))
        if not set(words) <= set(classes or ()):
            raise UsageError(f"--words {' '.join(words)}: choose among {', '.join(classes or ['none: no classes'])}")
        number = {classes.index(word): i for i, word in enumerate(words)}
        wanted = [i for i, label in enumerate(labels.tolist()) if label in number]
        classes, labels = words, np.array([number.get(label, 0) for label in labels.tolist()])
    chosen = set(wanted)
    names, stamps = ([values[i] for i in wanted] for values in (sources.names, sources.stamps))

    def requests():
        return (one for i, one in enumerate(sources.read()) if i in chosen)

    kept, items = decoded(CLIPS, sources.root, names, stamps, requests, cache, decode_clip, (BANDS, FRAMES, 1))
    files = np.array(wanted)[kept]
    labels, parts = (None if values is None else values[files] for values in (labels, sources.split))
    parts = split(len(items), parts, "--words")
    counts = sum(np.bincount(item.ravel(), minlength=256) for item in items[parts["train"]])
    mean = float(np.average(range(256), weights=counts))
    std = float(np.average((np.arange(256) - mean) ** 2, weights=counts) ** 0.5)
    facts = PixelsFacts(name=config.dataset, shape=[1, BANDS, FRAMES], mean=mean, std=std, classes=classes)
    return Spectrograms(facts, items=items, labels=labels, **parts)
