"""Kill runs at random moments and resume them: none may be lost, differ by a bit, or leave files behind.

    python tests/benchmarks/kills.py --kills 200 --data_dir data
    python tests/benchmarks/kills.py --kills 20 --torchrun

Runs are forks of this process, which has imported PyTorch already. Each may be killed up to three times; then the
command is repeated, with --resume where there is a checkpoint, and what it leaves is compared with a run in peace.
"""

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import ddpm

SMALL = "--num_timesteps 10 --sampling_steps 3 --num_samples 10 --train_batch_size 32 --hidden_size 8"
RUNS = {
    "dino": f"{SMALL} --epochs 12 --save_every 2 --limit 1000",
    "digits": f"{SMALL} --epochs 12 --save_every 1 --limit 300",
    "folder": f"{SMALL} --epochs 5 --data_dir images --image_size 16",
    "sounds": f"{SMALL} --epochs 3 --data_dir sounds",
    "exchange-rate": f"{SMALL} --epochs 2 --limit 500",
}


def write_data(generator) -> None:
    """Images and sounds whose decoding takes a while."""
    for name in ("images", "sounds"):
        Path(name).mkdir()
    for i in range(60):
        Image.fromarray(generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(f"images/{i}.png")
        soundfile.write(f"sounds/{i}.wav", generator.normal(size=44100) / 10, 44100)


def start(arguments: list[str]) -> int:
    """The number of a process that does what `python ddpm.py ARGUMENTS` does; its last words go into `stderr`."""
    if pid := os.fork():
        return pid
    for name, stream in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ddpm.interrupt)
    os._exit(ddpm.main(ddpm.parse_arguments(arguments)))


def finish(pid: int) -> int:
    """The exit code of a process, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def left_in(folder: Path) -> dict:
    """What a run has left: the names of its files, and of its checkpoint the weights."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {"files": names, "weights": {part: state[part] for part in ("model", "average")}, "step": state["step"]}


def same(one: dict, other: dict) -> bool:
    """Whether two runs have ended with the same weights, to the bit."""
    pairs = ((one["weights"][part], other["weights"][part]) for part in one["weights"])
    return one["step"] == other["step"] and all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def kill_and_resume(flags: list[str], seconds: float, number: int, generator) -> tuple[int, int]:
    """Kill a run of about so many `seconds` by a signal, up to three times; the last exit code, and how often."""
    killed, resume = 0, []
    for _ in range(generator.integers(1, 4)):
        pid = start([*flags, *resume])
        time.sleep(generator.uniform(0, seconds))
        os.kill(pid, number)
        code = finish(pid)
        killed += code in (-signal.SIGKILL, 128 + number)
        resume = ["--resume"] if Path("exps/run/checkpoint.pt").exists() else []
        if code == 0:
            return code, killed
    return finish(start([*flags, *resume])), killed


def kill_one_of_two(flags: list[str], rank: int, seconds: float) -> tuple[bool, list[str]]:
    """Kill one of torchrun's two processes after its first epoch; whether all ends then, and what ddpm.py says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", ddpm.__file__]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    with open("stderr", "w") as stderr:
        agent = subprocess.Popen([*command, *flags], env=alone, stdout=subprocess.DEVNULL, stderr=stderr)
    while not Path("exps/run/log.csv").exists():
        time.sleep(0.05)
        if agent.poll() is not None:
            return False, [f"torchrun ended with {agent.returncode}"]
    time.sleep(seconds)
    for entry in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in f"\0{Path(f'/proc/{entry}/environ').read_text()}":
            os.kill(int(entry), signal.SIGKILL)
    try:
        agent.wait(60)
    except subprocess.TimeoutExpired:
        agent.terminate()
        return False, ["hangs"]
    return True, [line for line in Path("stderr").read_text().splitlines() if line.startswith("ddpm.py: error")]


def main() -> int:
    """Kill runs of each data set in turn, and tell what was lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--data_dir", type=Path, help="with gluonts/exchange_rate_nips; without it, this is left out")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGINT"])
    parser.add_argument("--torchrun", action="store_true", help="kill one of two processes of digits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    home, generator = arguments.data_dir and arguments.data_dir.resolve(), np.random.default_rng(0)
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_data(generator)
        names = [name for name in arguments.runs if home or name != "exchange-rate"]
        for i in range(10**6):
            name = "digits" if arguments.torchrun else names[i % len(names)]
            flags = ["--dataset", name, *RUNS[name].split(), "--experiment_name", "run"]
            flags += ["--data_dir", str(home)] if name == "exchange-rate" else []
            check(name, flags, arguments, generator, counts)
            if counts["kills"] >= arguments.kills:
                break
    print(dict(counts))
    return sum(counts[what] for what in ("lost", "not identical", "left behind", "hangs or says nothing")) > 0


REFERENCES = {}  # name: how long it took in peace, and what it left


def check(name: str, flags: list[str], arguments, generator, counts: collections.Counter) -> None:
    """Kill and resume one run, and count what is wrong with what it leaves."""

    def clean():
        for path in (Path("exps"), *Path().glob("*/.cache")):
            shutil.rmtree(path, ignore_errors=True)

    if name not in REFERENCES and not arguments.torchrun:
        clean()
        began = time.monotonic()
        assert finish(start(flags)) == 0, Path("stderr").read_text()
        REFERENCES[name] = time.monotonic() - began, left_in(Path("exps/run")), sorted(Path().glob("*/.cache/*"))
    clean()
    if arguments.torchrun:
        ended, said = kill_one_of_two([*flags, "--epochs", "400"], int(generator.integers(2)), generator.uniform(0, 2))
        counts["kills"] += 1
        counts["hangs or says nothing"] += not ended or len(said) != 1
        reached = len(torch.load("exps/run/checkpoint.pt", weights_only=True)["history"])
        code = finish(start(["--resume", "--experiment_name", "run", "--epochs", str(reached + 1)]))
        counts["lost"] += code != 0
        print(f"{name}: {'; '.join(said)}; resumed after epoch {reached} with {code}", flush=True)
        return
    seconds, reference, cached = REFERENCES[name]
    code, killed = kill_and_resume(flags, seconds, getattr(signal, arguments.signal), generator)
    counts["kills"] += killed
    counts["runs"] += 1
    counts["lost"] += code != 0
    if code:
        print(f"{name}: {code}, {Path('stderr').read_text()}", flush=True)
        return
    found = left_in(Path("exps/run"))
    counts["not identical"] += not same(found, reference)
    counts["left behind"] += found["files"] != reference["files"] or sorted(Path().glob("*/.cache/*")) != cached
    if found["files"] != reference["files"]:
        print(f"{name}: {set(found['files']) ^ set(reference['files'])}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
