"""Out of a model that draws in many calls of its network, one that draws in few: distribution matching distillation.

The student turns noise x_T into a sample x in its few calls. x is noised to x_t = signal_t x + sigma_t noise, and two
denoisers say what they would make of it: the teacher, mu_real, who knows the data, and mu_fake, which learns from the
student's samples by the ordinary training loss. Where they disagree, the student's distribution is not the teacher's.
(Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation", DMD, and "Improved Distribution Matching
Distillation", DMD2: a start from the teacher's weights, several steps of mu_fake to one of the student.)

Of a few series the student learns from the data instead: the next values are FEW numbers, for which the energy score, a
proper one, says all that is to be learned. Validation windows prefer that; of more series they prefer the teacher.
"""

import itertools
import math

import torch
from torch import Tensor

from tiny_diffusion.messages import many
from tiny_diffusion.points import nearest_distance, sliced_wasserstein

STEPS = 50  # of the student in an epoch
FAKE_STEPS = 2  # of mu_fake to one of the student (DMD2, sec. 4.2, takes 5)
FAKE_RATE = 5 / 3  # learning rate of mu_fake over the student's
WARMUP = 20  # steps until the learning rates are reached
GUIDANCE = 1.15  # of mu_real, where there are classes
FEW = 8  # values of a sample: of fewer the mean may be as good as zero
COMPARED = {"points": 4000, "images": 1000, "audio": 500, "series": 256}  # items that samples are scored against
FEATURES_AT = 0.03  # of the chain: the noise at which the teacher looks at images and sounds; more hides the detail
PATHS = 16  # drawn for each step of a window, to score them
LEARNED_PATHS = 4  # the same, to learn from


def matching_loss(x: Tensor, cond, teacher, fake, scheduler, guidance: float, t: Tensor, noise: Tensor) -> Tensor:
    """A number whose gradient with respect to the student's samples x is (mu_fake - mu_real) / |mu_real - x|.

    That is the gradient of KL(student || teacher) at noise level t (DMD, eq. 7), as the score of x_t is
    (signal mu - x_t) / sigma^2, with the weight of eq. 8, by which every sample pulls as hard: the mean over the sample
    of |mu_real - x|, or sigma if that are FEW values. mu_real has classifier-free guidance. t is as in training, one
    for each of x's leading axes.
    """
    with torch.no_grad():
        x_t = scheduler.add_noise(x, noise, t)
        mu_real = scheduler.predict_x_0(teacher.guided(x_t, t, cond, guidance).float(), x_t, t)
        mu_fake = scheduler.predict_x_0(fake(x_t, t, cond).float(), x_t, t)
        values = tuple(range(t.ndim, x.ndim))
        size = (mu_real - x).abs().mean(values, keepdim=True).clamp(min=1e-6)
        if math.prod(x.shape[t.ndim :]) < FEW:
            _, size = scheduler.signal_and_noise(x, t)  # the size of the error where all is normal
        gradient = (mu_fake - mu_real) / size
    return (gradient * x).mean()


def optimizer(network, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW with little momentum, for a goal that moves; Muon, which trains the teachers, overshoots it."""
    return torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.5, 0.999), weight_decay=0, fused=True)


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of two sets of features, (n, features), as normal distributions (Heusel et al. 2017, eq. 6)."""
    (mean_x, cov_x), (mean_y, cov_y) = ((part.mean(0), part.T.cov()) for part in (x.double(), y.double()))
    cross = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()  # trace of (cov_x cov_y)^(1/2)
    return (((mean_x - mean_y) ** 2).sum() + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def seen_apart(x: Tensor, x_0: Tensor, teacher) -> float:
    """Fréchet distance of samples to as many items in what the teacher's network sees in them."""
    generator = torch.Generator(x.device).manual_seed(0)
    t = torch.full((1,), round(FEATURES_AT * teacher.scheduler.num_timesteps), device=x.device)

    def features(items: Tensor) -> Tensor:
        noise = torch.randn(items.shape, generator=generator, device=x.device)
        noised = teacher.scheduler.add_noise(items, noise, t).split(teacher.config.eval_batch_size)
        return torch.cat([teacher.denoiser.features(part, t).float() for part in noised]).cpu()

    return frechet(features(x.clamp(*teacher.scheduler.interval)), features(x_0))


def points_apart(x: Tensor, x_0: Tensor, teacher) -> float:
    """Sliced Wasserstein distance of samples to items, and the distance of each to the nearest of the others."""
    x, x_0 = x.cpu().numpy(), x_0.cpu().numpy()
    return sliced_wasserstein(x, x_0) + nearest_distance(x, x_0) + nearest_distance(x_0, x)


def energy_score(x: Tensor, x_0: Tensor, paths: int) -> Tensor:
    """Of so many samples x each, one after the other, for items x_0 (n, time, dimensions): E|x - x_0| - E|x - x'| / 2.

    What the CRPS is for vectors (Gneiting & Raftery 2007, eq. 22); the best x are drawn from x_0's distribution.
    """
    x, x_0 = (part.unflatten(0, (-1, paths)) for part in (x, x_0))
    others = torch.stack([x.roll(i, dims=1) for i in range(1, paths)])

    def distance(one, other):
        return ((one - other).square().sum(-1) + 1e-12).sqrt().mean()  # smooth where they are equal

    return distance(x, x_0) - distance(x, others) / 2


def forecasts_apart(x: Tensor, x_0: Tensor, teacher) -> float:
    """Energy score of samples for what came next."""
    return energy_score(x, x_0, PATHS).item()


APART = {"points": points_apart, "images": seen_apart, "audio": seen_apart, "series": forecasts_apart}


@torch.inference_mode()
def score(student, teacher, draw) -> float | None:
    """How far samples of the student are from the data; None where there is too little data to say.

    Both are `ddpm.Model`s; `draw(student, cond, x_T)` gives samples of the student's. They are compared with items that
    train, or windows that validate, of the same classes or pasts; noise and items are the same at every call.
    """
    data, device, size = student.data, student.scheduler.device, student.config.eval_batch_size
    number = COMPARED[data.modality]
    if data.modality == "series":
        size = max(1, size // PATHS)
        batches = data.validation(size, number, device)
    else:
        size = min(size, number, len(data.train))
        epochs = (data.batches(size, 0, epoch, device) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), number // size)
    if batches is None:
        return None
    generator, drawn, compared = torch.Generator(device).manual_seed(student.config.seed), [], []
    for x_0, cond, weight in batches:
        x_0, cond = student.denoiser.residual(x_0, cond), student.denoiser.called_with(cond)
        if data.modality == "series":
            x_0, cond, weight = (part.repeat_interleave(PATHS, 0) for part in (x_0, cond, weight))
        x = draw(student, cond, torch.randn(x_0.shape, generator=generator, device=device))
        known = 1 if weight is None else weight
        drawn.append(known * x)
        compared.append(known * x_0)
    return APART[data.modality](torch.cat(drawn), torch.cat(compared), teacher)


def verdict(metrics: dict, epoch: int) -> str:
    """What has become of the student, whose samples are of this epoch."""
    teacher = metrics["teacher"]
    fewer = f"{many(metrics['network_calls'], 'call')} of the network instead of {teacher['network_calls']}"
    faster = f"{teacher['seconds'] / metrics['seconds']:.0f} times as fast as its teacher"
    return f"Draws in {fewer}, {faster}. Samples are those of epoch {epoch}."
