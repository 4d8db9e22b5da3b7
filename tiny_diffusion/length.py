"""How long a run is, when it has had enough, and which of its weights are drawn from."""

import math

import pandas as pd

from tiny_diffusion import distillation
from tiny_diffusion.data import Data
from tiny_diffusion.machine import process
from tiny_diffusion.messages import UsageError

KEPT = 10  # checkpoints, unless drawing from so many takes longer than the training
TRAINING_CALL = 3  # a network call with its gradient takes as long as three without
RISE = 0.03  # of the held-out loss: what counts as memorising
PATIENCE = 1.5  # times the steps to the lowest held-out loss, after which training stops if it has risen
CLEARLY = 1.01  # times the lowest held-out loss is more than chance makes of the last one


def batch_size_of(config, data: Data) -> int:
    """Items in a step, a multiple of the number of processes. Raises UsageError."""
    _, world_size = process()
    batch_size = min(config.train_batch_size, len(data.train)) // world_size * world_size
    if batch_size == 0:
        raise UsageError(f"--train_batch_size {config.train_batch_size}: too small for {world_size} processes")
    return batch_size


def settle(config, given: dict, data: Data) -> None:
    """Choose, unless it is given, what depends on the data: its recipe, and how many epochs to train and to keep."""
    recipe = distillation.recipe(data) if config.distill else data.recipe()
    vars(config).update({flag: value for flag, value in recipe.items() if flag not in config.given})
    batch_size = batch_size_of(config, data)
    steps_per_epoch = distillation.STEPS if config.distill else data.steps_per_epoch(batch_size)
    if "epochs" not in given:
        needed = math.ceil(config.steps / steps_per_epoch)
        config.epochs = needed if "steps" in given else max(needed, config.epochs)
    if "save_every" not in config.given:
        training = TRAINING_CALL * config.epochs * steps_per_epoch * batch_size
        drawing = config.sampling_steps * data.animated * data.histories  # both in network calls for an item
        config.save_every = max(1, int(config.epochs / min(KEPT, max(1, training / drawing))))


def checks(history: list[dict]) -> pd.DataFrame:
    """The epochs of a log at which the held-out loss was measured."""
    log = pd.DataFrame(history, columns=["epoch", "step", "held_out_loss"], dtype=float)
    return log.dropna().set_index("epoch")


def only_rises(history: list[dict]) -> bool:
    """Whether the held-out loss has risen by RISE since its lowest, and for half as many steps as that took."""
    if not history or history[-1].get("held_out_loss") is None or len(found := checks(history)) < 3:
        return False
    best, last = found.loc[found["held_out_loss"].idxmin()], found.iloc[-1]
    risen = last["held_out_loss"] > (1 + RISE) * best["held_out_loss"]
    return bool(risen and last["step"] >= PATIENCE * best["step"])


def chosen_weights(state: dict, keep: str) -> tuple[int, dict]:
    """Epoch and weights of a checkpoint's moving average: of the lowest held-out loss, if that is clearly lower."""
    history, best = state.get("history", []), state.get("best")
    last = next((row["held_out_loss"] for row in history[::-1] if row.get("held_out_loss")), 0)
    if keep == "best" and best and last > CLEARLY * best["held_out_loss"]:
        return best["epoch"], best["average"]
    return len(history), state["average"]
