"""Damage checkpoints, images, sounds and CSVs at random: each must end in a result or in one line, and nothing else.

    python tests/benchmarks/fuzz.py --cases 3000

Every case follows from its kind and number. What escapes is printed with them; the exit code is 1 then.
"""

import argparse
import contextlib
import copy
import io
import math
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import datasets
import ddpm
from tiny_diffusion.machine import progress_bar
from tiny_diffusion.messages import UsageError

IMAGES = ["png", "jpg", "gif", "bmp", "webp", "tiff", "ppm", "tga", "ico", "jp2", "pcx", "sgi", "dds", "avif"]
SOUNDS = ["wav", "flac", "ogg", "mp3", "aiff"]
STRANGE = [None, math.nan, math.inf, -1, 0, 1.5, 2**70, True, "", "../up", "dino", "\udcff", [], {}, [1], torch.ones(2)]
CHECKPOINTS = {  # flags of the runs whose checkpoints are damaged
    "moons": {},
    "digits": {"hidden_size": 16},
    "sounds": {"data_dir": "sound", "hidden_size": 16},
    "series": {"data_dir": "table.csv", "prediction_length": 4, "hidden_size": 8},
}


def prepare() -> dict:
    """Whole files in the current folder, by kind: a list of (suffix, content), which for checkpoints are states."""
    generator, kinds = np.random.default_rng(0), {"image": [], "sound": [], "csv": [], "checkpoint": []}
    picture = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: turned
    for suffix in IMAGES:
        with contextlib.suppress(OSError, KeyError, ValueError):  # what this Pillow was not built with
            picture.save(f"whole.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
            kinds["image"].append((suffix, Path(f"whole.{suffix}").read_bytes()))
    Path("sound").mkdir()
    for i, suffix in enumerate(SOUNDS):
        wave = 0.5 * np.sin(np.arange(8000) * (0.05 + 0.01 * i)) * generator.random(8000)
        soundfile.write(f"sound/whole.{suffix}", wave, 16000)
        kinds["sound"].append((suffix, Path(f"sound/whole.{suffix}").read_bytes()))
    times = pd.date_range("2024-01-01", periods=80, freq="h", name="time")
    pd.DataFrame(generator.normal(size=(80, 2)).round(3), times, ["a", "b"]).to_csv("table.csv")
    kinds["csv"].append(("csv", Path("table.csv").read_bytes()))
    for dataset, flags in CHECKPOINTS.items():
        config = ddpm.resolve({"dataset": dataset, "num_timesteps": 10, "sampling_steps": 2, "limit": 16} | flags)
        run = ddpm.Run(ddpm.new_model(config, datasets.load(config), "cpu"))
        with progress_bar("", 1, "") as bar:
            run.history.append(ddpm.train_epoch(run, 16, bar))
        kinds["checkpoint"].append(("pt", run.state_dict() | {"samples": torch.zeros(2, *run.model.data.shape)}))
    return kinds


def damaged(content: bytes, generator) -> bytes:
    """Some bytes changed, lost, doubled, inserted or overwritten, once or several times."""
    data = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        i, j = sorted(generator.integers(0, len(data) + 1, 2))
        j = min(j, i + int(2 ** generator.uniform(0, 10)))
        new = generator.bytes(j - i)
        change = generator.integers(6)
        data[i:j] = [new, b"", bytes(data[i:j]) * 2, new + bytes(data[i:j]), b"\0" * (j - i), b"\xff" * (j - i)][change]
        if generator.random() < 0.1:
            del data[i:]
    return bytes(data)


def altered(state: dict, generator) -> dict:
    """A checkpoint in which one thing, at any depth, is another, or is gone."""
    state = copy.deepcopy(state)
    place = state
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[generator.integers(len(keys))]
        if not (isinstance(place[key], (dict, list)) and place[key] and generator.random() < 0.9):
            break
        place = place[key]
    value = place[key]
    changes = [STRANGE[generator.integers(len(STRANGE))]]
    if isinstance(value, torch.Tensor):
        changes += [value[..., None], value.double(), value.flatten()[:1].expand(2**40), value / 0, value.to_sparse()]
    elif isinstance(value, (int, float)):
        changes += [value * 1000, -value, str(value)]
    if generator.random() < 0.2:
        del place[key]
    else:
        place[key] = changes[generator.integers(len(changes))]
    return state


def write_case(kind: str, number: int, kinds: dict, path: Path) -> Path:
    """The damaged file that belongs to this kind and number, at `path` with its suffix."""
    generator = np.random.default_rng((number, *kind.encode()))
    suffix, content = kinds[kind][generator.integers(len(kinds[kind]))]
    path = path.with_suffix(f".{suffix}")
    if kind == "checkpoint":
        buffer, alter = io.BytesIO(), generator.random() < 0.7
        torch.save(altered(content, generator) if alter else content, buffer)
        content = buffer.getvalue()
        if alter:
            path.write_bytes(content)
            return path
    path.write_bytes(damaged(content, generator))
    return path


def use(kind: str, path: Path) -> None:
    """What the program does with such a file. Raises UsageError, or what escapes."""
    if kind == "checkpoint":
        model = ddpm.load_model(path, num_samples=2)
        x_0, _ = ddpm.sample(model, 2)
        if model.data.modality == "audio":  # whose vocoder takes seconds; its names have a test of their own
            model.data.render(x_0)
        else:
            Path("out").mkdir(exist_ok=True)
            model.data.save(x_0, Path("out"))
        saved = ddpm.load_checkpoint(path)
        config = ddpm.resolve({"epochs": 2}, saved["config"])
        data = datasets.load(config)
        if not data.facts.equal(datasets.restore(saved["data"]).facts):
            raise UsageError("not the data")
        run = ddpm.Run(ddpm.new_model(config, data, "cpu", saved))
        run.load_state_dict(saved)
        with progress_bar("", 1, "") as bar:
            ddpm.train_epoch(run, 16, bar)
    else:
        flags = {"image": {"dataset": "folder", "image_size": 8}, "sound": {"dataset": "sounds"}}
        flags |= {"csv": {"dataset": "series", "prediction_length": 4}}
        data = datasets.load(ddpm.resolve(flags[kind] | {"data_dir": str(path if kind == "csv" else path.parent)}))
        next(data.batches(2, 0, 1, "cpu"))
        data.render(torch.zeros(2 * data.histories, *data.shape))


def escaped(kind: str, number: int, kinds: dict, folder: Path) -> str | None:
    """What is wrong about how this case ends, or None."""
    folder.mkdir()
    path = write_case(kind, number, kinds, folder / "case")
    if kind in ("image", "sound"):  # beside two that are whole
        for i, (suffix, content) in enumerate(kinds[kind][:2]):
            (folder / f"whole_{i}.{suffix}").write_bytes(content)
    try:
        use(kind, path)
    except UsageError as error:
        return None if len(str(error)) < 1000 else f"says too much: {error}"
    except BaseException:
        return traceback.format_exc()
    return None


def main() -> int:
    """Run as many cases of each kind, and tell what escaped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["checkpoint", "image", "sound", "csv"])
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as around:
        home = Path(around, "home")
        home.mkdir()
        os.chdir(home)
        kinds = prepare()
        for kind in arguments.kinds:
            start = time.monotonic()
            for number in range(arguments.first, arguments.first + arguments.cases):
                with contextlib.redirect_stdout(io.StringIO()):
                    wrong = escaped(kind, number, kinds, home / f"{kind}_{number}")
                if wrong:
                    failures += 1
                    print(f"--- {kind} {number}\n{wrong}", flush=True)
            print(f"{kind}: {arguments.cases} cases in {time.monotonic() - start:.0f} s", flush=True)
        outside = [path.name for path in Path(around).iterdir() if path != home]
        print(f"escaped: {failures}; files outside: {outside}")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    return failures > 0 or len(outside) > 0


if __name__ == "__main__":
    sys.exit(main())
