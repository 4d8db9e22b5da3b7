"""A model to come along: the weights of a checkpoint that are drawn from, in half precision, named without a path.

    python tests/benchmarks/export_model.py exps/mnist_base/checkpoint.pt static/models/mnist.pt
    python ddpm.py --sample mnist

Where the data lies and what it was trained on and how are left out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
import ddpm
from datasets import restore
from tiny_diffusion.length import chosen_weights
from tiny_diffusion.messages import UsageError

LEFT_OUT = {"data_dir", "device", "threads", "precision", "compile"}  # settings of the machine,
LEFT_OUT |= {"experiment_name", "num_samples"}  # and of one run
LARGEST = 2.5e6  # bytes: as many as the UNet of sound takes


def export(source: Path, target: Path) -> None:
    """Write the model in the checkpoint `source` to `target`. Raises UsageError if it would be too large."""
    saved = ddpm.load_checkpoint(source)
    config = {name: value for name, value in saved["config"].items() if name not in LEFT_OUT}
    config["given"] = {name: value for name, value in config["given"].items() if name in config}
    average = {name: weight.half() for name, weight in chosen_weights(saved, config.get("keep", "best"))[1].items()}
    size = sum(weight.nbytes for weight in average.values())
    if size > LARGEST:
        raise UsageError(f"{source}: {size / 1e6:.1f} MB in half precision; train a smaller model")
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = restore(saved["data"]).facts.model_dump()  # of older checkpoints in the form of today
    ddpm.save({"config": config, "data": facts, "average": average}, target)


if __name__ == "__main__":
    export(*map(Path, sys.argv[1:]))
