"""The files of checkpoints: the last one, those that are kept every few epochs, and the models that come along."""

import functools
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tiny_diffusion.files import STATIC, write
from tiny_diffusion.report import GIF_FRAMES

MODELS = STATIC / "models"  # that come along, to be named without a path


def save(state: dict, path: Path) -> None:
    """Write a checkpoint. Raises UsageError."""
    path.parent.mkdir(exist_ok=True)
    write(path, functools.partial(torch.save, state))


def save_last(state: dict, folder: Path) -> None:
    """Write the log, then the checkpoint that --resume goes on from."""
    write(folder / "log.csv", lambda file: file.write(pd.DataFrame(state["history"]).to_csv(index=False).encode()))
    save(state, folder / "checkpoint.pt")


def save_kept(state: dict, samples: Tensor, folder: Path) -> None:
    """Keep the epoch's average with its samples; where the spacing has grown, those in between go."""
    save_every, epoch = state["config"]["save_every"], len(state["history"])
    kept = {name: state[name] for name in ("config", "data", "average")}
    save(kept | {"samples": samples}, folder / f"epoch_{epoch:04d}.pt")
    apart = spacing(save_every, epoch)
    for other in range(1, epoch) if apart > save_every else []:
        if other % apart:
            (folder / f"epoch_{other:04d}.pt").unlink(missing_ok=True)


def spacing(save_every: int, epoch: int) -> int:
    """Epochs between kept checkpoints: doubled as often as it takes to have no more than a GIF has frames."""
    while epoch > GIF_FRAMES * save_every:
        save_every *= 2
    return save_every


def kept_epochs(folder: Path) -> dict[int, Path]:
    """The checkpoints that an experiment has kept, by epoch."""
    paths = (folder / "checkpoints").glob("epoch_*.pt")
    return dict(sorted((int(path.stem[6:]), path) for path in paths if path.stem[6:].isdecimal()))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at `path`, or the model of that name that comes along."""
    along = MODELS / f"{path}.pt"
    return along if along.is_file() and not Path(path).is_file() else Path(path)
