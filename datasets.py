"""The data sets: what --dataset can be.

>>> data = load(ddpm.resolve({"dataset": "dino"}))
>>> x_0, cond, weight = next(data.batches(512, seed=0, epoch=1, device="cpu"))

To add one, write a function that reads it in the file of its modality in tiny_diffusion/, and add a row to `DATASETS`.
Such a function takes the configuration, whose settings are the command line's flags, and raises UsageError.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tiny_diffusion.messages import UsageError, shortened

DATASETS = {  # name: (modality, the function that reads it, what that takes before the configuration)
    "circle": ("points", "points.circle"),
    "dino": ("points", "points.dino"),
    "line": ("points", "points.line"),
    "moons": ("points", "points.moons"),
    "digits": ("images", "images.digits"),
    "mnist": ("images", "images.from_torchvision", "MNIST"),
    "fashion-mnist": ("images", "images.from_torchvision", "FashionMNIST"),
    "pets": ("images", "images.from_kaggle", "borhanitrash/cat-dataset"),
    "faces": ("images", "images.from_kaggle", "imcr00z/flickr-faces-70k-thumbnails-128x128"),
    "kmnist": ("images", "images.from_torchvision", "KMNIST"),
    "emnist": ("images", "images.from_torchvision", "EMNIST"),
    "cifar-10": ("images", "images.from_torchvision", "CIFAR10"),
    "folder": ("images", "images.folder"),
    "array": ("images", "images.array"),
    "points": ("points", "points.points_file"),
    "speech-commands": ("audio", "sounds.speech_commands"),
    "sounds": ("audio", "sounds.sounds"),
    "electricity": ("series", "series_files.gluonts", "electricity_nips"),
    "exchange-rate": ("series", "series_files.gluonts", "exchange_rate_nips"),
    "solar": ("series", "series_files.gluonts", "solar_nips"),
    "taxi": ("series", "series_files.gluonts", "taxi_30min"),
    "traffic": ("series", "series_files.gluonts", "traffic_nips"),
    "wiki": ("series", "series_files.gluonts", "wiki2000_nips"),
    "series": ("series", "series_files.series"),
}
TAKERS = {  # of images, by flag
    "range": ("array", "folder", "hf-images"),
    "frames": ("folder", "hf-images"),
    "channels": ("array",),
}
PREFIXES = {  # of names: the same, before what follows the prefix
    "gluonts": ("series", "series_files.gluonts"),
    "hf-images": ("images", "images.hub"),
    "hf-audio": ("audio", "sounds.hub"),
}
MODALITIES = {  # the class of each
    "points": "points.Points",
    "images": "images.Images",
    "audio": "sounds.Spectrograms",
    "series": "series.Series",
}


def lookup(name: str) -> tuple:
    """The row of the data set called `name`. Raises UsageError.

    gluonts:NAME is any that GluonTS knows, hf-images:OWNER/NAME and hf-audio:OWNER/NAME are any of the Hub.
    """
    prefix, _, rest = name.partition(":")
    if rest and prefix in PREFIXES:
        return (*PREFIXES[prefix], rest)
    if name not in DATASETS:
        raise UsageError(f"--dataset {name}: choose among {', '.join(DATASETS)}, gluonts:NAME or hf:OWNER/NAME")
    return DATASETS[name]


def modality_of(name: str) -> str:
    """The modality of the data set called `name`. Raises UsageError."""
    return lookup(name)[0]


def recognised(name: str, data_dir: str) -> str:
    """The data set that `name` means: an array of (n, dimensions) is one of points. Raises UsageError.

    What hf:OWNER/NAME has, images or sounds, is seen once it is downloaded.
    """
    if name.startswith("hf:"):
        return find("parquet.recognised")(name.removeprefix("hf:"), Path(data_dir))
    if name == "array" and find("arrays.holds_points")(Path(data_dir)):
        return "points"
    return name


def find(place: str):
    """The function or class that stands at module.name in tiny_diffusion/, imported only now."""
    module, name = place.split(".")
    return getattr(importlib.import_module(f"tiny_diffusion.{module}"), name)


def load(config):
    """The data set that the configuration names, a `data.Data`; with `limit`, a random part of its training items.

    Raises UsageError.
    """
    modality, reader, *arguments = lookup(config.dataset)
    for flag, takers in TAKERS.items() if modality == "images" else ():
        if getattr(config, flag, None) and config.dataset.partition(":")[0] not in takers:
            raise UsageError(f"--{flag}: only --dataset {takers[0]} takes it; leave it out")
    try:
        data = find(reader)(*arguments, config)
        data.check()
    except (UsageError, OSError, MemoryError):
        raise
    except Exception as error:  # of any library, about any file
        raise UsageError(f"--data_dir {config.data_dir}: cannot be read ({shortened(error)})") from error
    data.train = find("arrays.chosen")(data.train, config.limit, data.labels)
    return data


def restore(facts: dict):
    """A data set as a checkpoint remembers it: it encodes, decodes, renders and saves, but has no items.

    Raises ValueError, or what wrong types lead to, where these are not the facts of a data set.
    """
    modality = find(MODALITIES[modality_of(facts["name"])])
    data = modality(modality.Facts.model_validate(facts))
    data.check()
    return data
