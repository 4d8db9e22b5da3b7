"""A model to come along: of a checkpoint the moving average alone, in half precision, to be drawn from by its name.

    python tests/benchmarks/export_model.py exps/mnist_base/checkpoint.pt static/models/mnist.pt
    python ddpm.py --sample mnist

Where the data lies and what it was trained on are left out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import ddpm
from datasets import restore
from tiny_diffusion.messages import UsageError

LARGEST = 2.5e6  # bytes: as many as the UNet of sound takes


def export(source: Path, target: Path) -> None:
    """Write the model in the checkpoint `source` to `target`. Raises UsageError if it would be too large."""
    saved = ddpm.load_checkpoint(source)
    config = {name: value for name, value in saved["config"].items() if name not in ("data_dir", "device")}
    config["given"] = {name: value for name, value in config["given"].items() if name in config}
    average = {name: weight.half() for name, weight in saved["average"].items()}
    size = sum(weight.nbytes for weight in average.values())
    if size > LARGEST:
        raise UsageError(f"{source}: {size / 1e6:.1f} MB in half precision; train a smaller model")
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = restore(saved["data"]).facts.model_dump()  # of older checkpoints in the form of today
    ddpm.save({"config": config, "data": facts, "average": average}, target)


if __name__ == "__main__":
    export(*map(Path, sys.argv[1:]))
