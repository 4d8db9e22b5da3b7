"""Out of a model that draws in many calls of its network, the teacher, one that draws in few, the student.

Points and series are few numbers at a time. The teacher takes noise x_T to an x_0 without further noise, and the
student learns to take the same x_T to the same x_0 (`imitation_loss` in ddpm.py).

Of an image or a sound that gives a blur, with which a student only begins, if there are no classes. Not single samples
are learned but their distribution: distribution matching distillation. A sample x of the student's is noised to
x_t = signal_t x + sigma_t noise, and two denoisers say what they would make of it: the teacher, mu_real, who knows the
data, and mu_fake, which learns from the student's samples by the ordinary training loss. Where they disagree, the
student's distribution is not the teacher's. (Yin et al. 2024, "One-step Diffusion with Distribution Matching
Distillation", DMD, and "Improved Distribution Matching Distillation", DMD2: several steps of mu_fake to one of the
student.)
"""

import itertools

import torch
from torch import Tensor

from tiny_diffusion.messages import many

STEPS = 50  # of the student in an epoch
FAKE_STEPS = 2  # of mu_fake to one of the student (DMD2, sec. 4.2, takes 5)
FAKE_RATE = 5 / 3  # learning rate of mu_fake over the student's
WARMUP = 20  # steps until the learning rates are reached
GUIDANCE = 1.15  # of the teacher, where there are classes
MATCHED = {"images", "audio"}  # learned by distribution matching
COMPARED = {"points": 4000, "images": 1000, "audio": 500, "series": 256}  # samples that are scored
FEATURES_AT = 0.03  # of the chain: the noise at which the teacher looks at images and sounds; more hides the detail
IMITATED = 250  # first steps of those without classes: what begins with the mean of all may never leave it
TEACHER_CALLS = {"points": 20, "images": 10, "audio": 10, "series": 20}  # on the way that is imitated


def recipe(data) -> dict:
    """Flags that such data needs other defaults of: pictures of all kinds of things are matched more carefully."""
    return {"learning_rate": 5e-4, "time_power": 1.0} if data.modality in MATCHED and not data.classes else {}


def finer(times: list[int], calls: int) -> list[int]:
    """The teacher's times on the way through the student's, for some `calls`: closer before each of the latter."""
    parts, found = -(-calls // (len(times) - 1)), set(times)
    for t, s in itertools.pairwise(times):
        found |= {round(s + (t - s) * (i / parts) ** 1.5) for i in range(1, parts)}
    return sorted(found, reverse=True)


def matching_loss(x: Tensor, cond, teacher, fake, scheduler, guidance: float, t: Tensor, noise: Tensor) -> Tensor:
    """A number whose gradient with respect to the student's samples x is (mu_fake - mu_real) / |mu_real - x|.

    That is the gradient of KL(student || teacher) at noise level t (DMD, eq. 7), as the score of x_t is
    (signal mu - x_t) / sigma^2, with the weight of eq. 8, by which every sample pulls as hard. mu_real has
    classifier-free guidance.
    """
    with torch.no_grad():
        x_t = scheduler.add_noise(x, noise, t)
        mu_real = scheduler.predict_x_0(teacher.guided(x_t, t, cond, guidance).float(), x_t, t)
        mu_fake = scheduler.predict_x_0(fake(x_t, t, cond).float(), x_t, t)
        size = (mu_real - x).abs().mean(tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-6)
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


def compared(student):
    """Items, what their class or past is to the network, and noise, to score a student on: the same at every call.

    Items that train, or windows that validate; None where there are too few.
    """
    data, device, size = student.data, student.scheduler.device, student.config.eval_batch_size
    number = COMPARED[data.modality]
    if data.modality == "series":
        batches = data.validation(size, number, device)
    else:
        size = min(size, number, len(data.train))
        epochs = (data.batches(size, 0, epoch, device) for epoch in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), number // size)
    generator = torch.Generator(device).manual_seed(student.config.seed)
    return batches and (
        (x_0, student.denoiser.called_with(cond), torch.randn(x_0.shape, generator=generator, device=device))
        for x_0, cond, _ in batches
    )


@torch.inference_mode()
def score(student, teacher, draw, imitation_loss) -> float | None:
    """How far samples of the student are from the teacher's, or from the data; None where there is too little data.

    Both are `ddpm.Model`s; `draw` and `imitation_loss` are ddpm.py's.
    """
    if (batches := compared(student)) is None:
        return None
    if student.data.modality not in MATCHED:
        losses = [imitation_loss(student, teacher, cond, x_T) for _, cond, x_T in batches]
        return torch.stack(losses).mean().item()
    x_0, x = zip(*((x_0, draw(student, cond, x_T)) for x_0, cond, x_T in batches))
    return seen_apart(torch.cat(x), torch.cat(x_0), teacher)


def verdict(metrics: dict, epoch: int) -> str:
    """What has become of the student, whose samples are of this epoch."""
    teacher = metrics["teacher"]
    fewer = f"{many(metrics['network_calls'], 'call')} of the network instead of {teacher['network_calls']}"
    faster = f"{teacher['seconds'] / metrics['seconds']:.0f} times as fast as its teacher"
    return f"Draws in {fewer}, {faster}. Samples are those of epoch {epoch}."
