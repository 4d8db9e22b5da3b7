"""What several test files need: data in small, on the disk or in memory, and runs that are about to train."""

import contextlib
import errno
import gzip
import http.server
import json
import os
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import datasets
import ddpm
from datasets import restore
from models import RNN
from tiny_diffusion.machine import progress_bar

ROOT = Path(__file__).parent.parent
HOURS, LENGTH = 400, 6  # of the series below, and of forecasts of them
TINY = ["--epochs", 1, "--hidden_size", 8, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 20]


def load(dataset, data_dir="data", **flags):
    """The data set that the command line's flags name."""
    return datasets.load(ddpm.resolve({"dataset": dataset, "data_dir": data_dir} | flags))


def waves(hours=HOURS, dimensions=3, seed=0):
    """Hourly series with a daily rhythm and noise, (hours, dimensions)."""
    generator = np.random.default_rng(seed)
    rhythm = np.sin(2 * np.pi * np.arange(hours)[:, None] / 24 + np.arange(dimensions))
    return 10 * (1 + np.arange(dimensions)) + 3 * rhythm + generator.normal(size=(hours, dimensions))


def write_csv(path, values, freq="h", start="2024-01-01"):
    """A CSV of values (time, series): plant 0, plant 1 ..."""
    frame = pd.DataFrame(values, pd.date_range(start, periods=len(values), freq=freq))
    frame.rename(columns=lambda i: f"plant {i}").to_csv(path, index_label="time")
    return path


def write_gluonts(folder, values, windows=3, freq="h"):
    """A data set in GluonTS's layout with `windows` rolling test windows."""
    for part, lengths in (
        ("train", [len(values) - windows * LENGTH]),
        ("test", [len(values) - (windows - 1 - i) * LENGTH for i in range(windows)]),
    ):
        (folder / part).mkdir(parents=True)
        rows = [
            {"target": values[:length, i].tolist(), "start": "2024-01-01 00:00", "item_id": f"site {i}"}
            for length in lengths
            for i in range(values.shape[1])
        ]
        text = "".join(json.dumps(row).replace("NaN", '"NaN"') + "\n" for row in rows)
        (folder / part / "data.json.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "metadata.json").write_text(json.dumps({"freq": freq, "prediction_length": LENGTH}))
    return folder


def row(data, *starts):
    """The rows of the table of a single group that make contexts begin there."""
    return np.array(starts) + data.context_length


def rnn(data):
    """A forecaster of `data` whose every weight matters."""
    settings = {"num_timesteps": 10, "hidden_size": 8, "hidden_layers": 2, "embedding_size": 16, "dropout": 0.0}
    torch.manual_seed(0)
    model = RNN(data.shape, time_embedding="sinusoidal", **settings, **data.network_settings()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_panel(folder, lengths=(90, 150, 60), tests=2, categories=(0, 1, 1), prediction_length=LENGTH, extra=()):
    """A data set in GluonTS's layout whose series have lengths and starts of their own; `extra` are tested alone."""
    rows = []
    for number, length in enumerate([*lengths, *extra]):
        values = waves(length, 1, seed=number)[:, 0] * 10.0**number
        start = str(pd.Timestamp("2024-01-01") + pd.Timedelta(hours=7 * number))
        rows.append({"target": values.tolist(), "start": start, "item_id": f"s{number}"})
        rows[-1]["feat_static_cat"] = [categories[number % len(categories)]]
    cut = lambda row, steps: row | {"target": row["target"][: len(row["target"]) - steps]}  # noqa: E731
    train = [cut(row, tests * LENGTH) for row in rows[: len(lengths)]]
    test = [cut(row, i * LENGTH) for i in reversed(range(tests)) for row in rows]
    for part, entries in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / part / "data.json.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "metadata.json").write_text(json.dumps({"freq": "h", "prediction_length": prediction_length}))
    return folder


def write_images(folder, number, size=(40, 30)):
    """RGB images of noise, 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


@contextlib.contextmanager
def server(folder):
    """The address under which a folder can be downloaded."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def numbers(shape, dtype, low=0, high=255):
    """Random numbers that reach both ends."""
    values = np.random.default_rng(0).uniform(low, high, shape).astype(dtype)
    values.flat[0], values.flat[-1] = low, high
    return values


def begin(**flags):
    """A run that the flags describe, untrained."""
    config = ddpm.resolve(flags)
    return ddpm.Run(ddpm.new_model(config, ddpm.load(config), "cpu"))


def train_epochs(run, number, batch_size):
    """Train so many epochs more; returns the losses of all."""
    with progress_bar("", 1, "") as bar:
        for _ in range(number):
            run.history.append(ddpm.train_epoch(run, batch_size, bar))
    return [row["loss"] for row in run.history]


def remembered(facts, path):
    """A data set as a checkpoint at `path` that holds these facts remembers it. Raises UsageError."""
    dataset = facts["name"] if type(facts["name"]) is str and facts["name"] in datasets.DATASETS else "dino"
    ddpm.save({"config": vars(ddpm.resolve({"dataset": dataset})), "data": facts, "average": {}}, path)
    return restore(ddpm.load_checkpoint(path)["data"])


def files(folder):
    """What is in each file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(done, *told):
    """Exit code 2 and one line that says all of `told`."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in told), done.stderr


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_):
    raise KeyboardInterrupt(15)
