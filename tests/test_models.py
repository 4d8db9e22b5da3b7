"""The denoisers: shapes, what they depend on, and that they begin where they should; their optimizers."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import HOURS, LENGTH, load, rnn, row

from models import MLP, Attention, LinearForecast, Muon, UNet, autocast, optimizers, orthogonal

EMBEDDING = {"embedding_size": 128, "time_embedding": "sinusoidal"}


def unet(
    shape, num_classes=0, num_timesteps=100, hidden_size=64, hidden_layers=1, channel_multipliers=None, patch_size=2
):
    """A UNet with the command line's defaults where nothing else is said."""
    sizes = {"hidden_layers": hidden_layers, "channel_multipliers": channel_multipliers, "patch_size": patch_size}
    model = {"num_classes": num_classes, "num_timesteps": num_timesteps, "hidden_size": hidden_size}
    return UNet(shape, **model, **sizes, **EMBEDDING)


def wake(model):
    """Give weights that start at zero random values, so that the output depends on everything."""
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("time_embedding", ["sinusoidal", "fourier", "learnable", "linear", "zero"])
@pytest.mark.parametrize("input_embedding", ["sinusoidal", "fourier", "learnable", "linear", "identity"])
def test_mlp_takes_every_embedding(time_embedding, input_embedding):
    sizes = {"num_timesteps": 50, "hidden_size": 128, "hidden_layers": 3, "embedding_size": 128}
    model = MLP((2,), num_classes=0, **sizes, time_embedding=time_embedding, input_embedding=input_embedding)
    x_t, t = torch.randn(7, 2), torch.full((7,), 10)
    assert model(x_t, t).shape == x_t.shape
    knows_time = not torch.equal(model(x_t, t), model(x_t, t + 30))
    assert knows_time == (time_embedding != "zero")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("height, width", [(4, 4), (8, 12), (28, 28), (36, 20), (100, 64)])
def test_unet_takes_any_size_divisible_by_4_and_any_channels(channels, height, width):
    model = wake(unet((channels, height, width), hidden_size=16))
    x_t = torch.randn(2, channels, height, width)
    assert model(x_t, torch.tensor([1, 100])).shape == x_t.shape


@pytest.mark.parametrize(
    "hidden_size, hidden_layers, multipliers, patch_size", [(20, 2, [1, 2], 1), (48, 3, [1, 1, 2], 2)]
)
def test_unet_takes_other_sizes(hidden_size, hidden_layers, multipliers, patch_size):
    sizes = {"hidden_size": hidden_size, "hidden_layers": hidden_layers, "patch_size": patch_size}
    model = unet((1, 16, 16), channel_multipliers=multipliers, **sizes)
    assert model(torch.randn(2, 1, 16, 16), torch.tensor([1, 100])).shape == (2, 1, 16, 16)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 30), (25, 31), (40, 24), (133, 9)])
def test_unet_takes_any_sides_and_sees_their_last_row_and_column(height, width):
    model = wake(unet((2, height, width), hidden_size=16))
    x_t, t = torch.randn(1, 2, height, width), torch.tensor([40])
    changed = x_t.clone()
    changed[..., -1, -1] += 1
    before, after = model(x_t, t), model(changed, t)
    assert before.shape == x_t.shape and not torch.equal(before[..., -1, -1], after[..., -1, -1])


def test_unet_refuses_more_stages_than_a_size_has_and_names_the_remedies():
    with pytest.raises(ValueError, match=r"--image_size.*--patch_size.*--channel_multipliers"):
        unet((1, 30, 30), channel_multipliers=[1, 2, 2, 2, 2, 2])


def test_unet_begins_with_zero_and_blocks_as_identity():
    model = unet((1, 8, 8))
    assert not model(torch.randn(2, 1, 8, 8), torch.tensor([1, 100])).any()
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(model.middle[0][0](x, torch.randn(2, 128)), x)


def test_unet_sees_time_class_and_every_pixel():
    model = wake(unet((1, 8, 8), num_classes=3, hidden_size=32)).double()
    x_t, t, cond = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.tensor([40]), torch.tensor([1])
    outputs = [model(x_t, t, c) for c in (cond, cond + 1, None)] + [model(x_t, t + 1, cond)]
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.allclose(one, other)
    assert torch.equal(model(x_t, t, None), model(x_t, t, torch.tensor([3])))  # class 3 of 3 is no class
    gradient = torch.autograd.functional.jacobian(lambda x: model(x, t, cond)[0, 0, 0, 0], x_t)
    assert (gradient != 0).all()


def test_attention_is_the_formula():
    """softmax(Q K^T / sqrt(d)) V, head by head (Vaswani et al. 2017, eq. 1)."""
    attention = wake(Attention(64)).double()
    x = torch.randn(2, 64, 3, 5, dtype=torch.float64)
    query_key_value = attention.query_key_value(attention.norm(x)).flatten(2)  # (batch, 3 * heads * 32, pixels)
    q, k, v = query_key_value.view(2, 3, 2, 32, 15).transpose(0, 1)
    weights = torch.softmax(q.transpose(-1, -2) @ k / 32**0.5, dim=-1)
    h = (v @ weights.transpose(-1, -2)).reshape(2, 64, 3, 5)
    torch.testing.assert_close(attention(x), x + attention.out(h))


def test_samples_of_a_batch_do_not_mix():
    model = wake(unet((1, 8, 8))).double()
    x_t, t = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 30, 60, 100])
    torch.testing.assert_close(model(x_t, t)[1:2], model(x_t[1:2], t[1:2]))


def test_torch_torchvision_and_torchaudio_fit_together():
    import torchaudio
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]
    assert torchaudio.functional.resample(torch.zeros(8), 2, 1).shape == (4,)


@pytest.mark.parametrize("shape", [(8, 8), (8, 72), (96, 16)])
def test_orthogonal_keeps_the_singular_vectors_and_makes_the_values_nearly_one(shape):
    """U V^T by a singular value decomposition; the iteration leaves values between 0.7 and 1.2."""
    matrices = torch.randn(2, *shape, dtype=torch.float64)
    for matrix, found in zip(matrices, orthogonal(matrices)):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ found @ v.T
        torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-9)
        large = s > 0.02 * s.max()  # what is nearly zero needs more steps
        assert ((inner.diagonal() > 0.65) & (inner.diagonal() < 1.25))[large].all()


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_muon_is_that_of_pytorch_for_matrices(shape):
    """Theirs iterates in bfloat16."""
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    pair = Muon(weights[:1], lr=0.02), torch.optim.Muon(weights[1:], lr=0.02, weight_decay=0)
    for gradient in gradients:
        for weight, optimizer in zip(weights, pair):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (weights[1] - start).norm()
    assert (weights[0] - weights[1]).norm() < 0.02 * moved


def test_muon_takes_a_kernel_for_a_matrix():
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    for weight in (kernel, matrix):
        weight.grad = torch.arange(288.0).sin().view(weight.shape)
        Muon([weight], lr=0.02).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_muon_gets_the_inner_matrices_and_adamw_every_other_weight():
    model = unet((1, 8, 8), num_classes=3, hidden_size=16, channel_multipliers=[1, 2])
    names = {id(weight): name for name, weight in model.named_parameters()}
    inner, outer = (
        [names[id(weight)] for weight in part.param_groups[0]["params"]] for part in optimizers(model, 0.02)
    )
    assert sorted(inner + outer) == sorted(names.values())
    assert {name.split(".")[0] for name in inner} == {"down", "shrink", "middle", "attention", "grow", "up"}
    assert all(name.endswith("weight") and "norm" not in name for name in inner)
    assert {"stem.weight", "head.weight", "embed_class.weight", "embed_time.1.weight"} <= set(outer)


@torch.no_grad()
@pytest.mark.parametrize("difference", [0, 1, 24])
def test_a_step_is_denoised_knowing_the_past_and_nothing_else(gluonts_folder, difference):
    data = load("series", gluonts_folder, difference=difference)
    model = rnn(data)
    assert model.lags == [1, 24, 168] and model.level_lags == ([168] if difference == 24 else [])
    start, step = 250, 2  # of the forecast; the context comes before
    (x_0, past, _), *_ = data.read([row(data, start)], "cpu")
    values = data.items[0].values.copy()
    values[start + data.context_length + step :] += 1
    data.items = [data.items[0]._replace(values=values)]
    del data.table
    (changed, future, _), *_ = data.read([row(data, start)], "cpu")
    t = torch.full((1, LENGTH), 5)
    before, after = (model(x_0, t, cond) for cond in (past, future))
    torch.testing.assert_close(before[:, : step + 1], after[:, : step + 1])
    assert not torch.allclose(before[:, step + 1], after[:, step + 1]) and not torch.allclose(x_0, changed)


@pytest.mark.parametrize("difference", [0, 1, 24])
def test_the_first_inputs_are_the_changes_of_the_step_before(gluonts_folder, difference):
    data = load("series", gluonts_folder, difference=difference, scaling="standard")
    model, (x_0, past, _) = rnn(data), next(data.read([row(data, 250)], "cpu"))
    seen = []
    model.encoder.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    model(x_0, torch.full((1, LENGTH), 5), past)
    torch.testing.assert_close(seen[0][0, data.context_length + 1 :, :3], x_0[0, :-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("difference", [0, 1, 24])
def test_forecasting_reads_what_training_reads_and_goes_on_from_what_it_drew(gluonts_folder, difference):
    """With the truth in place of what is drawn, the network reads the same step by step as at once."""
    data = load("series", gluonts_folder, difference=difference, scaling="standard")
    model, (x_0, _, _) = rnn(data), next(data.held_out(3, 3, "cpu"))
    steps, conds = iter(x_0.split(1, dim=1)), []

    def reverse(denoiser, shape, cond):
        assert denoiser is model.denoiser and shape == (1, 3)
        conds.append(cond)
        return next(steps)

    torch.testing.assert_close(model.sample(reverse, data.condition(range(3), None, "cpu")), x_0)
    begins, truth = [begin for group in data.items for begin in group.begins], data.windows.truth
    data.items = [data.items[-1]._replace(train_end=HOURS)]
    (x_again, past, _), *_ = data.read([row(data, *(begin - data.context_length for begin in begins))], "cpu")
    torch.testing.assert_close(x_again, x_0, rtol=1e-3, atol=1e-4)
    t = torch.randint(1, 11, (3, LENGTH))
    by_step = model.denoiser(x_0, t, torch.cat(conds, 1))
    torch.testing.assert_close(by_step, model(x_0, t, past), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(data.decode(x_0), truth, rtol=1e-4)


@torch.no_grad()
def test_each_path_continues_its_own_window(gluonts_folder):
    """Several paths of each window, with the same draws, are the paths of the windows one by one."""
    data = load("series", gluonts_folder, difference=24)
    model, draws = rnn(data), torch.randn(LENGTH, 1, 1, 3)

    def paths(samples):
        steps = iter(draws)
        return model.sample(
            lambda denoiser, shape, cond: next(steps) + cond[..., :3], data.condition(samples, None, "cpu")
        )

    whole = paths(range(7))
    for i in range(7):
        torch.testing.assert_close(paths(range(i, i + 1))[0], whole[i], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[6], whole[0])


def test_a_linear_forecast_is_ridge_regression_and_its_residual_undoes_it():
    """On as good as noiseless data the weights are the true ones; on noise alone they are next to nothing."""
    generator = torch.Generator().manual_seed(0)
    lagged = torch.randn(200, 6, 2, 3, generator=generator)
    true = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, 0.3]])
    noise = torch.randn(200, 6, 2, generator=generator)
    x_0 = 0.7 + (lagged * true).sum(3) + 0.01 * noise
    linear = LinearForecast(2, 3)
    linear.fit([(lagged[:150], x_0[:150], torch.ones(150, 6, 2)), (lagged[150:], x_0[150:], torch.ones(50, 6, 2))])
    torch.testing.assert_close(linear.weights, F.pad(true, (1, 0), value=0.7), rtol=0.01, atol=0.01)
    assert linear.spread.tolist() == pytest.approx([0.01, 0.01], rel=0.2)
    torch.testing.assert_close(linear.forecast(linear.residual(x_0, lagged), lagged), x_0)
    linear.fit([(lagged, noise, torch.ones(200, 6, 2))])
    assert linear.weights.abs().max() < 0.1 and linear.spread.tolist() == pytest.approx([1, 1], abs=0.1)


def test_a_linear_forecast_learns_nothing_from_unknown_values_and_little_where_it_lacks_one():
    lagged = torch.randn(100, 4, 1, 2, generator=torch.Generator().manual_seed(0))
    x_0, weight = 2 * lagged[..., 0] - lagged[..., 1], torch.ones(100, 4, 1)
    x_0[:20], weight[:20] = 1e6, 0
    lagged[20:40, :, :, 1] = torch.nan
    linear = LinearForecast(1, 2)
    linear.fit([(lagged, x_0, weight)])
    x, y = lagged[20:].nan_to_num(0).reshape(-1, 2), x_0[20:].reshape(-1, 1)
    root = torch.where(torch.arange(len(x)) < 80, 1 / 3, 1.0)[:, None] ** 0.5
    expected = torch.linalg.lstsq(root * torch.cat([torch.ones(len(x), 1), x], 1), root * y).solution.T
    torch.testing.assert_close(linear.weights, expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("has", [{"avx512_bf16": True}, {"amx_bf16": True}, {"avx512_bf16": False}, {}])
def test_large_denoisers_compute_in_bfloat16_where_the_processor_does(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)

    def precision(denoiser, asked):
        with autocast(denoiser, asked):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    sizes = {"num_timesteps": 50, "hidden_size": 128, "hidden_layers": 3, **EMBEDDING}
    images, points = unet((1, 8, 8)), MLP((2,), num_classes=0, **sizes, input_embedding="identity")
    assert precision(images, "auto") is (torch.bfloat16 if any(has.values()) else torch.float32)
    assert precision(images, "fp32") is precision(points, "auto") is torch.float32
    assert precision(images, "bf16") is precision(points, "bf16") is torch.bfloat16
