"""Are generated digits well formed? A small classifier that knows real digits alone judges them.

    python tests/benchmarks/handwritten_digits.py --data_dir data exps/mnist_base exps/mnist_base/samples/*

It learns MNIST's training digits in a few minutes and judges samples.npy in each folder. `fréchet` is the Fréchet
distance of its features to those of 5,000 test digits (as Heusel et al. 2017 do it with Inception's), beside it the
floor: that of as many other test digits. `sure` is the share of samples given one class with a probability above 0.9;
`as asked` the share that it takes for their class, which is i modulo 10 for sample i, or that of --label; `spread` the
variance of its features within a class, which falls where samples become alike; `classes` the smallest and the largest
share of a class.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
import datasets
import ddpm
from tiny_diffusion.images import frechet_distances

FEATURES = 64


class Judge(nn.Module):
    """Called with RGB images (n, 3, 28, 28) uint8 it gives its features (n, FEATURES), as torchmetrics wants it."""

    num_features = FEATURES

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for width in (24, 48, FEATURES):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images[:, :1].float() / 127.5 - 1)

    @torch.inference_mode()
    def seen(self, images: np.ndarray) -> Tensor:
        """The features of images (n, 28, 28, 1) uint8."""
        return torch.cat([self(batch) for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(500)])

    @torch.inference_mode()
    def probabilities(self, images: np.ndarray) -> Tensor:
        """Of the ten digits, for images (n, 28, 28, 1) uint8."""
        return self.head(self.seen(images)).softmax(1)


def moved(images: Tensor) -> Tensor:
    """Images (n, 1, 28, 28), each batch moved by up to two pixels."""
    down, right = torch.randint(0, 5, (2,)).tolist()
    return F.pad(images, (2, 2, 2, 2))[:, :, down : down + 28, right : right + 28]


def train(images: np.ndarray, labels: np.ndarray, epochs: int) -> Judge:
    torch.manual_seed(0)
    judge, steps = Judge(), len(images) // 128
    images, labels = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * steps)
    with tqdm(total=epochs * steps, desc="judge", unit=" steps", disable=None) as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(128)[:steps]:
                loss = F.cross_entropy(judge.head(judge(moved(images[batch]))), labels[batch], label_smoothing=0.02)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return judge.eval()


def trained(data, epochs: int = 3, kept: Path | None = None) -> Judge:
    """A judge of `data`'s digits; out of the file `kept` if that is there, else written to it."""
    if kept and kept.exists():
        judge = Judge()
        judge.load_state_dict(torch.load(kept))
        return judge.eval()
    judge = train(data.items[data.train], data.labels[data.train], epochs)
    if kept:
        torch.save(judge.state_dict(), kept)
    return judge


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="with samples.npy")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--label", type=int, help="class of all samples (default: the first ten are 0 to 9, and so on)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--judge", type=Path, metavar="FILE", help="where the judge is, or else goes once trained")
    arguments = parser.parse_args()
    data = datasets.load(ddpm.resolve({"dataset": "mnist", "data_dir": arguments.data_dir}))
    test, test_labels = data.items[data.test], data.labels[data.test]
    judge = trained(data, arguments.epochs, arguments.judge)
    accuracy = (judge.probabilities(test).argmax(1).numpy() == test_labels).mean()
    print(f"right on {accuracy:.2%} of {len(test)} test digits")
    print(f"{'samples':>8}{'fréchet':>9}{'floor':>9}{'sure':>9}{'as asked':>9}{'spread':>9}  classes")
    reference, others = test[::2], test[1::2]
    judged = {"other test digits": (others, test_labels[1::2])}
    for folder in arguments.folders:
        samples = np.load(folder / "samples.npy")
        asked = np.arange(len(samples)) % 10 if arguments.label is None else np.full(len(samples), arguments.label)
        judged[str(folder)] = samples, asked
    for name, (samples, asked) in judged.items():
        distance, floor = frechet_distances(reference, [samples, others[: len(samples)]], feature=judge)
        probabilities = judge.probabilities(samples)
        found = probabilities.argmax(1).numpy()
        shares = np.bincount(found, minlength=10) / len(found)
        sure, right = (probabilities.amax(1) > 0.9).float().mean(), (found == asked).mean()
        features = judge.seen(samples).numpy()
        spread = np.mean([features[asked == label].var(0, ddof=1).sum() for label in np.unique(asked)])
        figures = f"{len(samples):8d}{distance:9.3f}{floor:9.3f}{sure:9.1%}{right:9.1%}{spread:9.2f}"
        print(f"{figures}  {shares.min():.1%} to {shares.max():.1%}  {name}")


if __name__ == "__main__":
    main()
