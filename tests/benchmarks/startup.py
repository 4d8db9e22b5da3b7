"""What whole commands take, from start to finish, beside another copy of this project: seconds and peak memory.

    git worktree add ../before COMMIT
    python tests/benchmarks/startup.py ../before

Both copies run each command in turn, several rounds, in an empty folder; the figures are medians, and the ratio is that
of this copy's wall time to the other's. With --busy N as many processes that do nothing but count run beside them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

HERE = Path(__file__).parents[2]
COMMANDS = {
    "help": "-h",
    "a hundred digits": "--sample mnist --num_samples 100",
    "dinosaur": "--overwrite",
    "600 days, 60 epochs": "--dataset series --data_dir days.csv --prediction_length 14 --epochs 60 --overwrite",
}


def measure(copy: Path, flags: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and megabytes of a command."""
    start = time.monotonic()
    command = [sys.executable, str(copy.resolve() / "ddpm.py"), *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} has failed")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_days(path: Path) -> None:
    """600 days, more on weekdays, with noise."""
    days = pd.date_range("2022-01-03", periods=600)
    values = 100 + 10 * (days.dayofweek < 5) + np.random.default_rng(0).normal(size=600)
    pd.DataFrame({"date": days, "value": values}).to_csv(path, index=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the other copy's folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep the cores busy")
    arguments = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)]
    print(f"{'':22}{'s':>8}{'other':>8}{'ratio':>8}{'CPU s':>9}{'other':>8}{'MB':>8}{'other':>8}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_days(Path(folder) / "days.csv")
            for name, flags in COMMANDS.items():
                copies = (HERE, arguments.other)
                rounds = [[measure(copy, flags.split(), folder) for copy in copies] for _ in range(arguments.rounds)]
                (wall, cpu, memory), (wall_2, cpu_2, memory_2) = (
                    [median(figures) for figures in zip(*of_copy)] for of_copy in zip(*rounds)
                )
                seconds = f"{wall:8.1f}{wall_2:8.1f}{wall / wall_2:8.2f}"
                print(f"{name:22}{seconds}{cpu:9.1f}{cpu_2:8.1f}{memory:8.0f}{memory_2:8.0f}", flush=True)
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
