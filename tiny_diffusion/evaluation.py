"""How good a model is: the loss by noise level, bits per dimension, and a verdict on a run in words.

`model` is a `ddpm.Model`. It is scored in float32 whatever `--precision` is, so that scores compare.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tiny_diffusion.length import RISE, checks, only_rises
from tiny_diffusion.machine import of_the_first, process, progress_bar
from tiny_diffusion.messages import command_line
from tiny_diffusion.report import write_losses

LABEL_DROPOUT = 0.1  # how often training hides the class, for classifier-free guidance (Ho & Salimans 2022)
CHECKED = (100, 1000)  # held-out items for the loss after an epoch: a twentieth of the epoch's, within these bounds
CHECKED_SHARE = 0.06  # of all items are they at most: a call takes a third of a training step, so 2% of the time
LEVELS = 20  # of noise, in the picture of the loss
FALL = 0.03  # of the held-out loss: what counts as worth twice the epochs
CHANCE = 1e-3  # how seldom it makes samples so near to training items that they are called copies
COPIED = 0.7  # of held-out items' distance to the nearest training item: samples nearer than that are copies


@torch.inference_mode()
def losses(model, batches, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Times, and the loss there of one of the `number` items in `batches` each, without dropout.

    Times are as in training, but evenly spread; they and the noises are the same at every call.
    """
    scheduler, data, config, device = model.scheduler, model.data, model.config, model.scheduler.device
    generator, was_training = torch.Generator(device).manual_seed(config.seed), model.denoiser.training
    u = (torch.randperm(number, generator=generator, device=device) + 0.5) / number
    times, found = scheduler.training_times(u, config.time_power), []
    model.denoiser.eval()
    for x_0, cond, weight in batches:
        t = times[sum(map(len, found)) :][: len(x_0)].view(-1, *(1,) * (data.time_axes - 1))
        noise = torch.randn(x_0.shape, generator=generator, device=device)
        if data.classes:
            hidden = torch.rand(len(x_0), generator=generator, device=device) < LABEL_DROPOUT
            cond = cond.masked_fill(hidden, len(data.classes))
        x_0 = model.denoiser.residual(x_0, cond)
        prediction = model.denoiser(scheduler.add_noise(x_0, noise, t), t, cond)
        error = (prediction - scheduler.target(x_0, noise, t)) ** 2
        weight = torch.ones_like(error) if weight is None else weight
        found.append((weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1))
    model.denoiser.train(was_training)
    return times.cpu().numpy(), torch.cat(found).cpu().numpy()


def held_out_loss(model, epoch: int, items: int) -> float | None:
    """The loss, after an epoch of `items`, at held-out items, times and noises that stay the same; None if not due."""
    number = int(np.clip(items // 20, *CHECKED))
    every = math.ceil(number / (CHECKED_SHARE * items))
    batches = model.data.validation(model.config.eval_batch_size, number, model.scheduler.device)
    if batches is None or (epoch % every and epoch != model.config.epochs):
        return None
    loss = losses(model, batches, number)[1].mean() if process()[0] == 0 else 0
    return of_the_first(loss, model.scheduler.device)


def write_noise_levels(model, folder: Path, number: int) -> dict:
    """noise_levels.png, the loss of training and of held-out items over log-SNR; returns the mean of each curve.

    Both have the same `number` of times and noises: where they part, the denoiser knows its training items by heart.
    """
    data, config, device = model.data, model.config, model.scheduler.device
    size = min(config.eval_batch_size, len(data.train), number)
    number -= number % size
    epochs = (data.batches(size, config.seed, epoch, device) for epoch in itertools.count())
    items = {"training items": itertools.islice(itertools.chain.from_iterable(epochs), number // size)}
    if held_out := data.validation(size, number, device):
        items["held-out items"] = held_out
    curves, means = {}, {}
    for name, batches in items.items():
        times, found = losses(model, batches, number)
        order, snr = np.array_split(times.argsort(), LEVELS), np.log(model.scheduler.snr(times))
        curves[name] = [[values[part].mean() for part in order] for values in (snr, found)]
        means[f"loss_of_{name}".replace(" ", "_").replace("-", "_")] = found.mean().item()
    write_losses(folder / "noise_levels.png", curves, "logarithm of the signal-to-noise ratio")
    return means


@torch.inference_mode()
def bits_per_dim(model, number: int) -> dict:
    """The variational bound on held-out data in bits per dimension (Ho et al. 2020, eq. 5), and its standard error.

    Each of `number` items pays for one t, drawn with probability proportional to 1 / t, where the bound has its weight.
    The denoiser knows the item's class, where there are classes.
    """
    scheduler, data, config, device = model.scheduler, model.data, model.config, model.scheduler.device
    generator = torch.Generator(device).manual_seed(config.seed)
    odds = 1 / np.arange(1, config.num_timesteps + 1)
    odds /= odds.sum()
    quantiles = torch.randperm(number, generator=generator, device=device).cpu().numpy() + 0.5
    times = 1 + np.searchsorted(odds.cumsum(), quantiles / number).clip(max=config.num_timesteps - 1)
    batches, bits = data.held_out(config.eval_batch_size, number, device), []
    with progress_bar("evaluating", number, "items") as bar:
        for (x_0, cond, _), t in zip(batches, torch.from_numpy(times).to(device).split(config.eval_batch_size)):
            x_t = scheduler.add_noise(x_0, torch.randn(x_0.shape, generator=generator, device=device), t)
            predicted = scheduler.predict_x_0(model.denoiser(x_t, t, cond), x_t, t).cpu().double()
            t, x_0 = t.cpu(), x_0.cpu().double()
            terms = bound_terms(scheduler, x_0, predicted, t, data.bin_width).flatten(1).sum(1)
            bits.append(terms / torch.from_numpy(odds)[t - 1] + prior_term(scheduler, x_0).flatten(1).sum(1))
            bar.update(len(x_0))
    bits = torch.cat(bits) / (math.prod(data.shape) * math.log(2))
    return {"bits_per_dim": bits.mean().item(), "bits_per_dim_standard_error": (bits.std() / number**0.5).item()}


def prior_term(scheduler, x_0: Tensor) -> Tensor:
    """L_T: KL(q(x_T | x_0) || N(0, 1)) in nats, for each value."""
    alpha_T = scheduler.alphas_cumprod[-1].item()
    return (alpha_T * x_0**2 - alpha_T - math.log1p(-alpha_T)) / 2


def bound_terms(scheduler, x_0: Tensor, predicted: Tensor, t: Tensor, bin_width: float) -> Tensor:
    """L_{t-1} in nats, for each value of x_0: a KL divergence for t > 1, the decoder's -log p(x_0 | x_1) for t = 1.

    The reverse process has the posterior's variance, for t = 1 beta_1. The decoder gives each bin of raw values the
    normal distribution's mass in it, the outermost bins all that lies beyond (Ho et al. 2020, eq. 13); the mass is
    taken for 1e-12 at least. All in float64, on the CPU.
    """
    t = t.view(-1, *(1,) * (x_0.ndim - 1))
    divergence = torch.from_numpy(scheduler.snr(t - 1) - scheduler.snr(t)) / 2 * (x_0 - predicted) ** 2
    low, high = x_0 - predicted - bin_width / 2, x_0 - predicted + bin_width / 2
    low = low.masked_fill(x_0 < scheduler.interval[0] + bin_width / 2, -math.inf) / math.sqrt(scheduler.betas[1])
    high = high.masked_fill(x_0 > scheduler.interval[1] - bin_width / 2, math.inf) / math.sqrt(scheduler.betas[1])
    flip = low > 0  # far above the mean: by symmetry the same mass below it, where floating point has digits left
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    mass = torch.special.ndtr(high) - torch.special.ndtr(low)
    return torch.where(t > 1, divergence, -mass.clamp(min=1e-12).log())


def verdict_on_curve(history: list[dict], folder, taken: int) -> str:
    """What the log of the run in `folder`, whose samples are of epoch `taken`, says, and what to do about it.

    The first that holds of these, once the second half has three held-out losses:

    - unstable: over the five epochs before, the training loss jumps by half and by six times its usual change;
    - memorising: the held-out loss, smoothed over a tenth of the run, has risen by RISE since its lowest;
    - still falling: a straight line through the second half, on logarithmic axes, falls by FALL when epochs double;
    - long enough.
    """
    log = pd.DataFrame(history, columns=["epoch", "loss"], dtype=float).set_index("epoch")
    loss, held_out, epochs = np.log(log["loss"]), checks(history)["held_out_loss"], len(log)
    longer = command_line({"resume": True, "experiment_name": folder.name, "epochs": 2 * epochs})
    if held_out.empty:
        return "Not judged: too little data to validate with. The length follows from the size of the data."
    later = held_out[held_out.index >= epochs / 2]
    if len(later) < 3:
        return f"Too short to judge. Train longer: {longer}"
    jump, usual = loss - loss.rolling(5, min_periods=1).median().shift(), loss.diff().abs().median()
    if jump.max() > np.clip(6 * usual, math.log(1.5), math.log(10)):
        rise = f"in epoch {jump.idxmax():.0f} the training loss rose to {math.exp(jump.max()):.3g} times what it was"
        return f"Unstable: {rise}. Train anew with a quarter of the --learning_rate."
    smooth = held_out.rolling(1 + len(held_out) // 10, center=True, min_periods=1).mean()
    rise, best = smooth.iloc[-1] / smooth.min() - 1, smooth.idxmin()
    if rise > RISE or (taken < epochs and only_rises(history)):
        which = "the last epoch's; --keep best draws from the lowest" if taken == epochs else f"those of epoch {taken}"
        since = f"since epoch {best:.0f} of {epochs}, the held-out loss has risen by {rise:.0%}"
        return f"Memorising: {since}. Samples are {which}. More data would help, more epochs would not."
    fall = 1 - math.exp(np.polyfit(np.log2(later.index), np.log(later), 1)[0])
    if fall > FALL:
        return f"Still falling: twice the epochs would lower the held-out loss by about {fall:.0%}. Go on: {longer}"
    return "Long enough: the held-out loss is flat, more epochs would change little."


def verdict_on_samples(metrics: dict) -> list[str]:
    """Copies, a shift in brightness, a tint, each where it is more than chance makes of so many samples."""
    true, remarks = metrics.get("true_samples", {}), []
    ratio = metrics.get("distance_to_training_items_ratio", 1)
    if ratio < COPIED and metrics.get("distance_to_training_items_p_value", 0) < CHANCE:
        remarks.append(f"Samples copy: {ratio:.2f} times as far from the nearest training item as held-out items are.")
    shifts = {}
    for channel in (name.removeprefix("mean") for name in true if name.startswith("mean")):
        difference = metrics[f"mean{channel}"] - true[f"mean{channel}"]
        if true[f"contrast{channel}"] > 0:
            shifts[channel] = difference / true[f"contrast{channel}"]
    if not shifts:
        return remarks
    shift, chance = np.mean(list(shifts.values())), 1 / math.sqrt(metrics["samples"])
    tint = {name[1:]: part - shift for name, part in shifts.items() if abs(part - shift) > max(0.05, chance)}
    if abs(shift) > max(0.1, 2 * chance):
        how = "brighter" if shift > 0 else "darker"
        far, figure = ("", f", by {abs(shift):.0%} of its contrast") if abs(shift) <= 1 else ("far ", "")
        remarks.append(f"Samples are {far}{how} than the data{figure}.")
    if tint and abs(shift) <= 1:
        told = ", ".join(f"{name} {part:+.0%}" for name, part in tint.items())
        remarks.append(f"Samples have a tint, in parts of the data's contrast: {told}.")
    return remarks
