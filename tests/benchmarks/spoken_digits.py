"""Are generated digits understood? A recogniser that knows real clips alone listens to them.

    python tests/benchmarks/spoken_digits.py --data_dir data exps/speech-commands_base/audio

It learns from the training clips of Speech Commands (or a set in its layout) in a few minutes and is tried on the test
clips, on these after the round trip through their spectrograms, and on the WAVs named WORD_NUMBER.wav in each folder.
Diversity is the mean distance between two clips of one word; `nearest` is the mean distance to the nearest training
clip of the word, which is small for a generator that repeats what it has heard. Distances are the root mean square of
the difference of two log-Mel spectrograms, in dB.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.transforms import MelSpectrogram
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny_diffusion import sounds

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RATE = sounds.SAMPLE_RATE
MEL = MelSpectrogram(
    RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, f_min=60, f_max=7600
)  # not the model's


def read(paths: list[Path]) -> torch.Tensor:
    """Clips of one second (n, samples), silence on both sides of shorter ones."""
    waves = torch.zeros(len(paths), RATE)
    for wave, path in zip(waves, paths):
        sound, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE and sound.ndim == 1, path
        sound = sound[max(0, len(sound) - RATE) // 2 :][:RATE]
        start = (RATE - len(sound)) // 2
        wave[start : start + len(sound)] = torch.from_numpy(sound)
    return waves


def features(waves: torch.Tensor) -> torch.Tensor:
    """Log-Mel spectrograms (n, 1, bands, frames) of sound brought to one loudness."""
    waves = waves - waves.mean(1, keepdim=True)
    waves = waves / waves.abs().amax(1, keepdim=True).clamp(min=1e-6)
    return ((MEL(waves) + 1e-4).log()[:, None] + 4) / 4


def augmented(waves: torch.Tensor) -> torch.Tensor:
    """Features of clips moved by up to 0.1 s, with noise, a band and a stretch of time hidden (Park et al. 2019)."""
    waves = torch.stack([wave.roll(int(torch.randint(-RATE // 10, RATE // 10, ()))) for wave in waves])
    waves = waves / waves.abs().amax(1, keepdim=True)
    x = features(waves + torch.randn_like(waves) * 10 ** (-1.5 - 2 * torch.rand(len(waves), 1)))
    band, moment = int(torch.randint(34, ())), int(torch.randint(89, ()))
    x[:, :, band : band + 6] = x.mean()
    x[:, :, :, moment : moment + 12] = x.mean()
    return x


def recogniser() -> nn.Sequential:
    layers, channels = [], 1
    for width in (32, 64, 96, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels, 10))


def train(waves: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model, steps = recogniser(), len(waves) // 64
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * steps)
    for _ in tqdm(range(epochs), "recogniser", unit=" epochs"):
        for batch in torch.randperm(len(waves)).split(64)[:steps]:
            loss = F.cross_entropy(model(augmented(waves[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def understood(model: nn.Module, waves: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which clips are taken for the word they are."""
    return torch.cat([model(features(batch)).argmax(1) for batch in waves.split(250)]) == labels


def distances(waves: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Of each clip to each of the others, in dB."""
    waves, others = (sounds.log_mel(w / w.abs().amax(1, keepdim=True).clamp(min=1e-6)) for w in (waves, others))
    decibels = (sounds.LOUDEST - sounds.QUIETEST) / 255
    return torch.cdist(waves.flatten(1).float(), others.flatten(1).float()) * decibels / waves[0].numel() ** 0.5


def diversity(waves, labels, train_waves, train_labels) -> tuple[float, float]:
    """Mean distance between two clips of a word, and to the nearest training clip of the word."""
    between, nearest = [], []
    for word in labels.unique():
        mine = waves[labels == word]
        between.append(distances(mine, mine).sum() / (len(mine) * max(1, len(mine) - 1)))
        nearest.append(distances(mine, train_waves[train_labels == word]).amin(1).mean())
    return torch.stack(between).mean().item(), torch.stack(nearest).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of generated WAVs")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    root = arguments.data_dir / "SpeechCommands" / "speech_commands_v0.02"
    held_out = {name: (root / f"{name}_list.txt").read_text().split() for name in ("testing", "validation")}
    hidden = {name for names in held_out.values() for name in names}
    paths = {
        "train": [p for w in WORDS for p in sorted((root / w).glob("*.wav")) if f"{w}/{p.name}" not in hidden],
        "test": [root / name for name in held_out["testing"] if name.split("/")[0] in WORDS],
    }
    labels = {part: torch.tensor([WORDS.index(p.parent.name) for p in found]) for part, found in paths.items()}
    waves = {part: read(found) for part, found in paths.items()}
    trip = sounds.vocode(np.stack([sounds.decode_clip(path) for path in paths["test"]]))
    waves["round trip"], labels["round trip"] = torch.from_numpy(trip), labels["test"]
    for folder in arguments.folders:
        found = sorted(folder.glob("*.wav"))
        waves[str(folder)] = read(found)
        labels[str(folder)] = torch.tensor([WORDS.index(p.stem.split("_")[0]) for p in found])
    model = train(waves["train"], labels["train"], arguments.epochs)
    print("understood   clips   diversity   nearest")
    for part in list(waves)[1:]:
        share = understood(model, waves[part], labels[part]).float()
        between, nearest = diversity(waves[part], labels[part], waves["train"], labels["train"])
        print(f"{share.mean():10.1%} {len(share):7d} {between:8.1f} dB {nearest:6.1f} dB   {part}")
        wrong = {word: 1 - share[labels[part] == i].mean().item() for i, word in enumerate(WORDS)}
        print("            missed:", ", ".join(f"{word} {rate:.0%}" for word, rate in wrong.items() if rate) or "none")


if __name__ == "__main__":
    main()
