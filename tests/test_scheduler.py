"""The scheduler against diffusers, and its samplers against the closed form for Gaussian data."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from ddpm import NoiseScheduler, forward_process, make_betas, reverse_process

SCHEDULES = ["linear", "quadratic", "cosine", "sigmoid"]
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # ours: diffusers'


def peer(scheduler_class, scheduler, **options):
    """A scheduler of diffusers' with the same tables; its t = 0 is our t = 1."""
    return scheduler_class(
        num_train_timesteps=scheduler.num_timesteps,
        trained_betas=scheduler.betas[1:],
        prediction_type=PREDICTIONS[scheduler.prediction_type],
        timestep_spacing="trailing",
        **options,
    )


def denoiser(scheduler, x_t, t):
    """What a denoiser says that takes x_0 for something smooth of x_t and t, in the scheduler's prediction type."""
    signal, sigma = scheduler.signal_and_noise(x_t, t)
    x_0 = 1.5 * torch.tanh(x_t + np.cos(t / 300))
    return scheduler.target(x_0, (x_t - signal * x_0) / sigma, t)


def sample(scheduler, x_T, sampling_steps, sampler, eta=0.0, noises=()):
    """x_0 by our reverse process, with the noise of each step given."""
    draws = iter(noises)
    chain = reverse_process(
        lambda x_t, t: denoiser(scheduler, x_t, t), scheduler, scheduler.timesteps(sampling_steps), x_T, sampler, eta,
        lambda: next(draws),
    )  # fmt: skip
    *_, (_, x_0, _) = chain
    return x_0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [20, 200, 1000])
def test_every_schedule_goes_from_data_to_noise_at_any_length(schedule, num_timesteps):
    scheduler = NoiseScheduler(num_timesteps, schedule, "v")
    assert scheduler.alphas_cumprod[0] == 1
    assert (np.diff(scheduler.alphas_cumprod) < 0).all()
    assert scheduler.alphas_cumprod[1] > 1 - 2.5 / num_timesteps
    assert scheduler.alphas_cumprod[-1] < 1e-3


def test_linear_and_cosine_betas_equal_diffusers():
    for ours, theirs in (("linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        peer_betas = DDPMScheduler(1000, beta_schedule=theirs).betas
        np.testing.assert_allclose(make_betas(ours, 1000), peer_betas, rtol=0, atol=1e-5)


def test_add_noise_and_velocity_equal_diffusers():
    scheduler = NoiseScheduler(1000, "linear", "v")
    theirs = peer(DDPMScheduler, scheduler)
    x_0, noise, t = torch.randn(64, 3, 4, 4), torch.randn(64, 3, 4, 4), torch.randint(1, 1001, (64,))
    torch.testing.assert_close(
        scheduler.add_noise(x_0, noise, t), theirs.add_noise(x_0, noise, t - 1), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        scheduler.target(x_0, noise, t), theirs.get_velocity(x_0, noise, t - 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_predict_x_0_inverts_add_noise_for_every_prediction_type(prediction_type):
    """In float64 for a single time, as in sampling; with float32 tables for a time each, as in training."""
    scheduler = NoiseScheduler(1000, "linear", prediction_type)
    x_0, noise = torch.randn(2, 64, 5, dtype=torch.float64)
    for t, tolerance in ((700, 1e-12), (torch.randint(1, 1001, (64,)), 1e-4)):
        predicted = scheduler.predict_x_0(scheduler.target(x_0, noise, t), scheduler.add_noise(x_0, noise, t), t)
        torch.testing.assert_close(predicted, x_0, rtol=0, atol=tolerance)


def test_the_forward_process_step_by_step_is_add_noise_at_once():
    scheduler, times = NoiseScheduler(1000, "cosine", "v"), [0, 10, 400, 1000]
    chain = forward_process(scheduler, torch.ones(100_000), times, torch.Generator().manual_seed(0))
    for expected, (t, x_t) in zip(times, chain, strict=True):
        signal, sigma = scheduler.signal_and_noise(x_t, t)
        assert t == expected
        assert x_t.mean().item() == pytest.approx(signal, abs=4 * sigma / 100_000**0.5 + 1e-6)
        assert x_t.std().item() == pytest.approx(sigma, rel=2e-2, abs=1e-6)


def test_times_may_belong_to_several_leading_axes():
    scheduler = NoiseScheduler(100, "cosine", "v")
    x_0, noise, t = torch.randn(4, 7, 3), torch.randn(4, 7, 3), torch.randint(1, 101, (4, 7))
    each = [scheduler.add_noise(x_0[:, i], noise[:, i], t[:, i]) for i in range(7)]
    torch.testing.assert_close(scheduler.add_noise(x_0, noise, t), torch.stack(each, dim=1))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("sampling_steps", [10, 100])
@pytest.mark.parametrize("interval", [None, (-1.0, 1.0)])
def test_ancestral_sampling_equals_diffusers(prediction_type, sampling_steps, interval):
    scheduler = NoiseScheduler(100, "linear", prediction_type, interval)
    theirs = peer(DDPMScheduler, scheduler, clip_sample=interval is not None)
    theirs.set_timesteps(sampling_steps)
    start = x_t = torch.randn(8, 2, 3)
    noises = []
    for i, t in enumerate(theirs.timesteps):
        seeded = torch.Generator().manual_seed(i)
        noises.append(torch.randn(x_t.shape, generator=torch.Generator().manual_seed(i)))
        x_t = theirs.step(denoiser(scheduler, x_t, int(t) + 1), t, x_t, generator=seeded).prev_sample
    torch.testing.assert_close(
        sample(scheduler, start, sampling_steps, "ddpm", noises=noises), x_t, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("interval", [None, (-1.0, 1.0)])
def test_ddim_equals_diffusers(prediction_type, eta, interval):
    scheduler = NoiseScheduler(1000, "linear", prediction_type, interval)
    theirs = peer(DDIMScheduler, scheduler, clip_sample=interval is not None)
    theirs.set_timesteps(20)
    start = x_t = torch.randn(8, 2, 3)
    noises = torch.randn(20, *start.shape)
    for noise, t in zip(noises, theirs.timesteps):
        prediction, clipped = denoiser(scheduler, x_t, int(t) + 1), interval is not None
        x_t = theirs.step(prediction, t, x_t, eta, use_clipped_model_output=clipped, variance_noise=noise).prev_sample
    torch.testing.assert_close(sample(scheduler, start, 20, "ddim", eta, noises), x_t, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "schedule, prediction_type",
    [("linear", "epsilon"), ("linear", "v"), ("linear", "sample"), ("cosine", "v"), ("cosine", "sample")],
)  # cosine ends without signal, where noise says nothing of x_0 in single precision
@pytest.mark.parametrize("eta, algorithm", [(0.0, "dpmsolver++"), (1.0, "sde-dpmsolver++")])
def test_dpm_solver_equals_diffusers(schedule, prediction_type, eta, algorithm):
    scheduler = NoiseScheduler(1000, schedule, prediction_type, None)
    settings = {"algorithm_type": algorithm, "final_sigmas_type": "zero", "lower_order_final": True}
    theirs = peer(DPMSolverMultistepScheduler, scheduler, **settings)
    theirs.set_timesteps(20)
    start = x_t = torch.randn(8, 2, 3)
    noises = torch.randn(20, *start.shape)
    for noise, t in zip(noises, theirs.timesteps):
        x_t = theirs.step(denoiser(scheduler, x_t, int(t) + 1), t, x_t, variance_noise=noise).prev_sample
    torch.testing.assert_close(sample(scheduler, start, 20, "dpm++", eta, noises), x_t, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler, eta", [("ddpm", 0.0), ("ddim", 0.5), ("dpm++", 0.0), ("dpm++", 1.0)])
def test_samples_do_not_depend_on_what_the_denoiser_predicts(schedule, sampler, eta):
    x_T, noises = torch.randn(8, 2, dtype=torch.float64), torch.randn(25, 8, 2, dtype=torch.float64)
    epsilon, v, x_0 = (
        sample(NoiseScheduler(1000, schedule, prediction_type), x_T, 25, sampler, eta, noises)
        for prediction_type in PREDICTIONS
    )
    torch.testing.assert_close(v, x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(epsilon, x_0, rtol=1e-6, atol=1e-6)


def test_the_reverse_process_yields_every_state_with_its_prediction():
    scheduler, x_T = NoiseScheduler(100, "cosine", "sample"), torch.randn(4, 2)
    states = list(reverse_process(lambda x_t, t: x_t * 0 + t, scheduler, [100, 60, 10, 0], x_T, "ddim"))
    assert [t for t, _, _ in states] == [100, 60, 10, 0]
    assert torch.equal(states[0][1], x_T)
    assert [x_0.unique().tolist() for _, _, x_0 in states] == [[100], [60], [10], [10]]
    assert torch.equal(states[-1][1], states[-1][2])


def test_posterior_is_the_paper_s():
    """Ho et al. (2020), eq. 7, spelled out."""
    scheduler = NoiseScheduler(1000, "linear", "v")
    x_0, x_t = torch.randn(2, 16, dtype=torch.float64)
    t = 300
    beta, alpha_bar, before = scheduler.betas[t], scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[t - 1]
    mean = before**0.5 * beta / (1 - alpha_bar) * x_0 + (1 - beta) ** 0.5 * (1 - before) / (1 - alpha_bar) * x_t
    ours, deviation = scheduler.posterior(x_0, x_t, t, t - 1)
    torch.testing.assert_close(ours, mean)
    assert deviation**2 == pytest.approx((1 - before) / (1 - alpha_bar) * beta)


MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)


def best_x_0(scheduler, x_t, t):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, COVARIANCE)."""
    alpha = scheduler.alphas_cumprod[t]
    gain = alpha**0.5 * COVARIANCE @ torch.linalg.inv(alpha * COVARIANCE + (1 - alpha) * torch.eye(2))
    return MEAN + (x_t - alpha**0.5 * MEAN) @ gain.T


def gaussian_states(scheduler, times, x_T, sampler, eta=0.0):
    """The states of the reverse process with the best denoiser of Gaussian data."""
    generator = torch.Generator().manual_seed(1)
    chain = reverse_process(
        lambda x_t, t: best_x_0(scheduler, x_t, t), scheduler, times, x_T, sampler, eta,
        lambda: torch.randn(x_T.shape, generator=generator, dtype=x_T.dtype),
    )  # fmt: skip
    return [x_t for _, x_t, _ in chain]


@pytest.mark.parametrize(
    "sampler, eta", [("ddpm", 0.0), ("ddim", 0.5), ("ddim", 0.0), ("dpm++", 0.0), ("dpm++", 0.5), ("dpm++", 1.0)]
)
def test_each_sampler_draws_gaussian_data_with_its_mean_and_covariance(sampler, eta):
    scheduler, number = NoiseScheduler(1000, "cosine", "sample"), 100_000
    noise = torch.randn(number, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x_0 = gaussian_states(scheduler, scheduler.timesteps(500), noise, sampler, eta)[-1]
    standard_error = (COVARIANCE.diagonal() / number).sqrt()
    assert ((x_0.mean(0) - MEAN).abs() < 4 * standard_error + 2e-3).all()
    torch.testing.assert_close(x_0.T.cov(), COVARIANCE, rtol=0, atol=4 * 0.5 * (2 / number) ** 0.5 + 2e-3)


@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpm++", 2)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_error_falls_with_the_steps_at_the_paper_s_order(sampler, order, schedule):
    """ddim is of first order in the step (Song et al. 2021), dpm++ of second (Lu et al. 2022, theorem 4.1).

    As there, the steps are even in log(signal / noise) and end before t = 0. Both samplers are affine in x_T, so
    three starts tell all, without statistical error. The exact probability flow maps the distribution at T to that
    at s: x_s = mean_s + (covariance_s / covariance_T)^(1/2) (x_T - mean_T).
    """
    scheduler = NoiseScheduler(100_000, schedule, "sample")
    first, last = 90_000, 2_000
    values, vectors = torch.linalg.eigh(COVARIANCE)
    alpha_t, alpha_s = scheduler.alphas_cumprod[[first, last]]
    stretch = ((alpha_s * values + 1 - alpha_s) / (alpha_t * values + 1 - alpha_t)).sqrt()
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    exact = alpha_s**0.5 * MEAN + (start - alpha_t**0.5 * MEAN) @ vectors @ torch.diag(stretch) @ vectors.T
    log_snr = np.log(scheduler.snr(np.arange(1, 100_001)))
    steps, errors = np.array([20, 40, 80, 160]), []
    for n in steps:
        even = np.linspace(log_snr[first - 1], log_snr[last - 1], n + 1)
        times = (100_000 - np.searchsorted(log_snr[::-1], even)).tolist()
        errors.append((gaussian_states(scheduler, times, start, sampler)[-1] - exact).abs().max().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.15 < slope < order + 0.5, (slope, errors)


def test_short_last_steps_keep_the_spread_of_narrow_data():
    """x_0 ~ N(0, 0.1^2), ten calls of dpm++: spaced evenly, their last step loses half of the spread."""
    scheduler, x_T = NoiseScheduler(100, "cosine", "sample"), torch.ones(1, dtype=torch.float64)

    def spread(power):
        alpha = scheduler.alphas_cumprod
        best = lambda x_t, t: 0.01 * alpha[t] ** 0.5 / (0.01 * alpha[t] + 1 - alpha[t]) * x_t  # noqa: E731
        *_, (_, x_0, _) = reverse_process(best, scheduler, scheduler.timesteps(10, power), x_T, "dpm++")
        return x_0.item()

    assert spread(1.0) < 0.051 and spread(2.0) == pytest.approx(0.1, rel=0.02), (spread(1.0), spread(2.0))


def test_times_of_sampling_never_repeat():
    for number in range(1, 101):
        for power in (1.0, 1.5, 2.0, 3.0):
            times = NoiseScheduler(100, "cosine", "v").timesteps(number, power)
            assert len(times) == number + 1 and times[0] == 100 and times[-1] == 0 and (np.diff(times) < 0).all()
    assert NoiseScheduler(100, "cosine", "v").timesteps(10, 2.0) == [n * n for n in range(10, -1, -1)]
