"""Damage files of every kind that is read, at random: each must end in a result or in one line, and nothing else.

    python tests/benchmarks/fuzz.py --cases 3000

Every case follows from its kind and number. What escapes is printed with them; the exit code is 1 then.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.io
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
CELLS = [*STRANGE, 10**12, -(10**400), 1e300, "1e400", "1,5", "0x1f", "１２", "∞", "1;2", '"', "\0", "a\nb", "=A1", "-"]
CELLS += [
    "1066-01-01",
    "2262-04-12",
    "9999-12-31",
    "0000-00-00",
    "31/12/1999",
    "NaT",
    "ns",
    "Y",
    "time",
    "y",
    "x" * 999,
]
SERIES = {"dataset": "series", "prediction_length": 4, "hidden_size": 8}
PICTURES = {"dataset": "folder", "image_size": 8, "hidden_size": 8}
CHECKPOINTS = {  # flags of the runs whose checkpoints are damaged
    "moons": {},
    "digits": {"hidden_size": 16},
    "sounds": {"data_dir": "sound", "hidden_size": 16},
    "series": {"data_dir": "table.csv", "prediction_length": 4, "hidden_size": 8},
}


class Whole(NamedTuple):
    """A file before it is damaged: its suffix, what its writer takes or bytes, and the flags that it is read with."""

    suffix: str
    content: Any
    flags: dict


def pictures() -> list[Whole]:
    """Noise in every format of pictures that this Pillow was built with."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif, found = Image.Exif(), []
    exif[0x0112] = 6  # the orientation: turned
    for suffix in IMAGES:
        with contextlib.suppress(OSError, KeyError, ValueError):
            picture.save(f"whole.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
            found.append(Whole(suffix, Path(f"whole.{suffix}").read_bytes(), PICTURES))
    return found


def sounds() -> list[Whole]:
    """Half a second in every format of sounds; they stay in the folder sound."""
    Path("sound").mkdir()
    for i, suffix in enumerate(SOUNDS):
        wave = 0.5 * np.sin(np.arange(8000) * (0.05 + 0.01 * i)) * np.random.default_rng(0).random(8000)
        soundfile.write(f"sound/whole.{suffix}", wave, 16000)
    flags = {"dataset": "sounds", "hidden_size": 8}
    return [Whole(suffix, Path(f"sound/whole.{suffix}").read_bytes(), flags) for suffix in SOUNDS]


def rows_of(freq: str, ids: list) -> list[list]:
    """A table of hours, days ...: a column for each series, or below each other by `ids`."""
    times, values = pd.date_range("2024-01-01", periods=60, freq=freq), np.random.default_rng(0).normal(size=(60, 2))
    values = values.round(3).tolist()
    if not ids:
        return [["time", "a", "b"], *([t, *pair] for t, pair in zip(times, values))]
    return [["item_id", "ds", "y", "price"], *([i, t, *pair] for i in ids for t, pair in zip(times, values))]


def tables(suffix: str) -> list[Whole]:
    """Tables of series, wide and long."""
    made = [("h", []), ("D", []), ("MS", [1001, 1002]), ("W", ["A", "B"])]
    return [Whole(suffix, rows_of(freq, ids), SERIES) for freq, ids in made]


def gluonts() -> list[Whole]:
    """A folder in GluonTS's layout."""
    values = np.random.default_rng(0).normal(size=(3, 48)).round(3).tolist()
    more = {"start": "2024-01-01 00:00", "feat_dynamic_real": [values[0]]}
    entries = [{"target": part, "item_id": f"s{i}", "feat_static_cat": [i % 2]} | more for i, part in enumerate(values)]
    cut = [entry | {"target": entry["target"][:-4]} for entry in entries]
    files = {"metadata.json": {"freq": "h", "prediction_length": 4}, "train/data.json": cut, "test/data.json": entries}
    return [Whole("", files, SERIES | {"prediction_length": None}), Whole("", files, SERIES)]


def monash() -> list[Whole]:
    """Monash's format, line by line."""
    head = ["@relation x", "@attribute series_name string", "@attribute start_timestamp date", "@frequency daily"]
    head += ["@horizon 4", "@missing true", "@equallength false", "@data"]
    values = np.random.default_rng(0).normal(size=(3, 40)).round(3)
    rows = [[f"T{i}:2020-01-01 00-00-00:{row[0]}", *map(str, row[1:])] for i, row in enumerate(values)]
    return [Whole("tsf", [*([line] for line in head), *rows], SERIES)]


def arrays(*suffixes: str) -> list[Whole]:
    """Arrays of pictures and points, alone and with classes, whole and in parts."""
    generator, flags = np.random.default_rng(0), {"dataset": "array", "hidden_size": 8}
    images, points = generator.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), generator.normal(size=(60, 3))
    labels = np.arange(20) % 3
    parts = {"train_images": images[:15], "train_labels": labels[:15], "test_images": images, "test_labels": labels}
    several = [{"x": images, "y": labels}, {"x": points.astype(np.float32), "note": labels}, parts]
    contents = {"npy": [{"x": array} for array in (images, images[..., 0] / 255, points)]}
    return [Whole(suffix, content, flags) for suffix in suffixes for content in contents.get(suffix, several)]


def parquets() -> list[Whole]:
    """Tables, series in cells, and pictures with classes."""
    times = pd.date_range("2024-01-01", periods=3)
    cells = [["item_id", "start", "freq", "target"], *([i, t, "D", [1.0 * i] * 40] for i, t in enumerate(times))]
    content = {"bytes": Path("whole.png").read_bytes(), "path": None}
    held = [["image", "label"], *([content, i % 2] for i in range(6))]
    lists = Whole("parquet", cells, SERIES | {"freq": "D"})
    return [*tables("parquet"), lists, Whole("parquet", held, PICTURES)]


def checkpoints() -> list[Whole]:
    """States of small runs, one of each modality; they need the sounds, and leave a table."""
    Path("table.csv").write_bytes(written("csv", rows_of("h", [])))
    found = []
    for dataset, flags in CHECKPOINTS.items():
        config = ddpm.resolve({"dataset": dataset, "num_timesteps": 10, "sampling_steps": 2, "limit": 16} | flags)
        run = ddpm.Run(ddpm.new_model(config, datasets.load(config), "cpu"))
        with progress_bar("", 1, "") as bar:
            run.history.append(ddpm.train_epoch(run, 16, bar))
        found.append(Whole("pt", run.state_dict() | {"samples": torch.zeros(2, *run.model.data.shape)}, {}))
    return found


KINDS = {  # kind: its whole files, made in this order
    "image": pictures,
    "sound": sounds,
    "csv": lambda: tables("csv"),
    "excel": lambda: tables("xlsx"),
    "feather": lambda: tables("feather"),
    "parquet": parquets,
    "gluonts": gluonts,
    "tsf": monash,
    "array": lambda: arrays("npy", "npz"),
    "mat": lambda: arrays("mat"),
    "checkpoint": checkpoints,
}


def prepare() -> dict[str, list[Whole]]:
    """Whole files of each kind, made in the current folder."""
    return {kind: make() for kind, make in KINDS.items()}


def written(suffix: str, content) -> bytes:
    """The file that holds `content`, without a suffix JSON. Raises what its library does where it cannot be written."""
    buffer = io.BytesIO()
    if not suffix:
        lines = content if isinstance(content, list) else [content]
        return "\n".join(json.dumps(line, default=str) for line in lines).encode("utf-8", "surrogatepass")
    if suffix in ("csv", "tsf"):
        lines = [",".join("" if cell is None else str(cell) for cell in np.atleast_1d(row)) for row in content]
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    if suffix == "pt":
        torch.save(content, buffer)
    elif suffix == "npy":
        np.save(buffer, content["x"])
    elif suffix == "npz":
        np.savez(buffer, **content)
    elif suffix == "mat":
        scipy.io.savemat(buffer, content)
    else:
        frame = pd.DataFrame(content[1:], columns=content[0])
        write = {"xlsx": frame.to_excel, "feather": frame.to_feather, "parquet": frame.to_parquet}[suffix]
        write(buffer, index=False) if suffix == "xlsx" else write(buffer)
    return buffer.getvalue()


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


def altered(state, generator, odd: list):
    """Content in which one thing, at any depth, is another, an `odd` one perhaps, has another name, or is gone."""
    state = copy.deepcopy(state)
    place = state
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[generator.integers(len(keys))]
        if not (isinstance(place[key], (dict, list)) and place[key] and generator.random() < 0.9):
            break
        place = place[key]
    value = place[key]
    changes = [odd[generator.integers(len(odd))]]
    if isinstance(value, torch.Tensor):
        changes += [value[..., None], value.double(), value.flatten()[:1].expand(2**40), value / 0, value.to_sparse()]
    elif isinstance(value, np.ndarray):
        changes += [value[..., None], value.T, value[:0], value[:1], value.ravel(), value.flat[0], value / 0]
        changes += [value.astype(kind) for kind in ("?", "i1", ">i2", "u8", "f2", "c8", "O", "U3", "S3", "M8[s]")]
        changes += [1e300 * value]
    elif isinstance(value, (int, float)):
        changes += [value * 1000, -value, str(value)]
    fate = generator.random()
    if fate < 0.2:
        del place[key]
    elif fate < 0.25 and isinstance(place, dict):
        place["x"] = place.pop(key)
    else:
        place[key] = changes[generator.integers(len(changes))]
    return state


def shaken(rows: list[list], generator, odd: list) -> list[list]:
    """A table with a column gone, renamed, moved or of one odd value, or with rows gone, doubled or out of order."""
    rows, value = [list(row) for row in rows], odd[generator.integers(len(odd))]
    i, j = generator.integers(len(rows[0]), size=2)
    first, last = sorted(generator.integers(0, len(rows) + 1, 2))
    part, change = rows[first:last], generator.integers(7)
    for row in rows[:1] if change == 0 else part if change == 1 else []:
        row[-1] = value
    for row in rows if change in (2, 3) and len({*map(len, rows)}) == 1 else []:
        row[i], row[j] = row[j], row[i]
        if change == 3:
            row.pop()
    if change > 3:
        rows[first:last] = [[], part * 2, part[::-1]][change - 4]
    return rows


def write_case(kind: str, number: int, kinds: dict, folder: Path) -> dict:
    """Write the damaged file that belongs to this kind and number into `folder`; returns the flags to read it with."""
    generator = np.random.default_rng((number, *kind.encode()))
    whole = kinds[kind][generator.integers(len(kinds[kind]))]
    content, path = whole.content, folder / f"case.{whole.suffix}".rstrip(".")
    alter = not isinstance(content, bytes) and generator.random() < 0.7
    if alter:
        shake = isinstance(content, list) and generator.random() < 0.3
        odd = STRANGE if kind == "checkpoint" else CELLS
        content = (shaken if shake else altered)(content, generator, odd)
    parts = {path / name: part for name, part in content.items()} if kind == "gluonts" else {path: content}
    hit = [*parts][generator.integers(len(parts))] if parts else None
    for target, part in parts.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = part if isinstance(part, bytes) else written(whole.suffix, part)
        except Exception:  # what a library does not write cannot come to be
            data, alter = written(whole.suffix, whole.content), False
        target.write_bytes(data if alter or target != hit else damaged(data, generator))
    if kind in ("image", "sound"):  # beside two that are whole
        for i, (suffix, data, _) in enumerate(kinds[kind][:2]):
            (folder / f"whole_{i}.{suffix}").write_bytes(data)
    return whole.flags | {"data_dir": str(folder if kind in ("image", "sound") else path)}


def use_checkpoint(path: str) -> None:
    """Draw from a checkpoint and train on."""
    model = ddpm.load_model(path, num_samples=2)
    x_0, _ = ddpm.sample(model, 2)
    if model.data.modality == "audio":  # whose vocoder takes seconds; its names have a test of their own
        model.data.render(x_0)
    else:
        Path("out").mkdir(exist_ok=True)
        model.data.save(x_0, Path("out"))
    saved = ddpm.load_checkpoint(Path(path))
    config = ddpm.resolve({"epochs": 2}, saved["config"])
    data = datasets.load(config)
    if not data.facts.equal(datasets.restore(saved["data"]).facts):
        raise UsageError("not the data")
    run = ddpm.Run(ddpm.new_model(config, data, "cpu", saved))
    run.load_state_dict(saved)
    with progress_bar("", 1, "") as bar:
        ddpm.train_epoch(run, 16, bar)


def use_data(flags: dict, draw: bool) -> None:
    """Read data, keep it in a checkpoint, take a step of training, score samples, and draw it, which takes longest."""
    config = ddpm.resolve({flag: value for flag, value in flags.items() if value is not None} | {"num_timesteps": 5})
    data = datasets.load(config)
    datasets.restore(data.facts.model_dump())
    run = ddpm.Run(ddpm.new_model(config, data, "cpu"))
    loss, _ = ddpm.train_step(run, next(data.batches(2, 0, 1, "cpu")))
    ddpm.check_finite(run, loss)
    x_0 = torch.zeros(2 * data.histories, *data.shape)
    if data.modality in ("points", "series"):
        data.score(x_0)
    if draw:
        data.render(x_0)
        data.overview()


def escaped(kind: str, number: int, kinds: dict, folder: Path) -> str | None:
    """What is wrong about how this case ends, or None."""
    folder.mkdir()
    flags = write_case(kind, number, kinds, folder)
    try:
        use_checkpoint(flags["data_dir"]) if kind == "checkpoint" else use_data(flags, number % 50 == 0)
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
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
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
