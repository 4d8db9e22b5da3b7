"""How fast is a forecaster of many series trained and asked?

    python tests/benchmarks/forecasting.py

Makes 370 hourly series of the size of electricity_nips, with daily and weekly rhythms, trains on them with the default
flags for a while, forecasts with several numbers of network calls, and prints rates and the most memory ever held.
"""

import itertools
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import datasets
import ddpm

DIMENSIONS, TRAINING, WINDOWS, LENGTH = 370, 5833, 7, 24
BATCH, SECONDS, PATHS = 64, 20, 100


def electricity_like(config) -> datasets.Series:
    """Of every size, with rhythms of a day and a week, and noise that lasts."""
    generator, hours = np.random.default_rng(0), np.arange(TRAINING + WINDOWS * LENGTH)[:, None]
    phase, size = generator.uniform(0, 2 * np.pi, (2, DIMENSIONS)), np.exp(generator.normal(5, 1.5, DIMENSIONS))
    rhythm = np.sin(2 * np.pi * hours / 24 + phase[0]) + 0.4 * np.sin(2 * np.pi * hours / 168 + phase[1])
    noise = pd.DataFrame(generator.normal(size=(len(hours), DIMENSIONS))).ewm(halflife=5).mean().to_numpy()
    values = size * (2 + rhythm / 2 + noise)
    frame = pd.DataFrame(values, pd.period_range("2014-01-01", periods=len(values), freq="h"))
    ends = [TRAINING + (i + 1) * LENGTH for i in range(WINDOWS)]
    return datasets.series_of("electricity", frame[:TRAINING], frame, ends, LENGTH, config)


def main():
    config = ddpm.resolve({"dataset": "electricity"})
    data = electricity_like(config)
    run = ddpm.Run(ddpm.new_model(config, data, "cpu"))
    parameters = sum(parameter.numel() for parameter in run.model.denoiser.parameters())
    print(f"{DIMENSIONS} series, {TRAINING} hours, {parameters:,} parameters, {torch.get_num_threads()} threads")
    batches = itertools.chain.from_iterable(data.batches(BATCH, 0, epoch, "cpu") for epoch in itertools.count())
    for batch in itertools.islice(batches, 5):
        ddpm.train_step(run, batch)
    start, steps = time.monotonic(), 0
    while time.monotonic() - start < SECONDS:
        ddpm.train_step(run, next(batches))
        steps += 1
    print(f"training: {steps / (time.monotonic() - start):.1f} batches of {BATCH} windows a second")
    for calls in (10, 20, 100):
        config.sampling_steps, config.sampler = calls, "ddpm" if calls == 100 else "dpm++"
        start = time.monotonic()
        ddpm.sample(run.average, PATHS)
        rate = WINDOWS * PATHS / (time.monotonic() - start)
        print(f"forecasting, {calls:3d} calls ({config.sampler}): {rate:.0f} paths of {LENGTH} hours a second")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
