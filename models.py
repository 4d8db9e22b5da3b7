"""The denoisers. Each is called `model(x_t, t, cond)` and returns a tensor of x_t's shape.

>>> sizes = {"hidden_size": 64, "hidden_layers": 1, "channel_multipliers": None, "patch_size": 2}
>>> embeddings = {"embedding_size": 128, "time_embedding": "sinusoidal"}
>>> model = UNet((1, 28, 28), num_classes=10, num_timesteps=1000, **sizes, **embeddings)
>>> model(torch.randn(16, 1, 28, 28), torch.randint(1, 1001, (16,)), torch.randint(0, 10, (16,))).shape
torch.Size([16, 1, 28, 28])

The scheduler decides what the result stands for: the noise, v or x_0. The time t belongs to the leading axes of x_t; an
axis of length one holds for all. Keyword arguments are the command line's flags of the same names; constructors raise
ValueError where they do not fit together.
"""

import collections
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from positional_embeddings import embedding

ADAMW_SHARE = 0.15  # of Muon's learning rate
CATEGORY_SIZE = 16  # of a series' embedding


class Denoiser(nn.Module):
    """A network that samples of `shape` are drawn with."""

    large = True  # enough to gain from bfloat16

    def __init__(self, shape: tuple[int, ...], num_timesteps: int):
        super().__init__()
        self.shape, self.num_timesteps = tuple(shape), num_timesteps

    def sample(self, reverse, cond) -> Tensor:
        """x_0 given cond. `reverse(denoiser, shape, cond)` runs a whole reverse process for samples of `shape`."""
        return reverse(self, self.shape, cond)

    def fit(self, batches) -> None:
        """Before the first step, set what follows from the data in closed form; batches are (x_0, cond, weight)."""

    def residual(self, x_0: Tensor, cond) -> Tensor:
        """What is left of x_0 to be learned by denoising."""
        return x_0

    @property
    def called(self) -> nn.Module:
        """The network that a reverse process calls, which alone a distillation changes."""
        return self

    def called_with(self, cond):
        """What `called` is conditioned on."""
        return cond

    def guided(self, x_t: Tensor, t: Tensor, cond, guidance: float) -> Tensor:
        """The prediction with classifier-free guidance: uncond + guidance * (cond - uncond).

        Ho & Salimans (2022), eq. 6, with guidance = 1 + w: 1 leaves the prediction as it is. One t for all samples, or
        for each.
        """
        if guidance == 1:
            return self(x_t, t, cond)
        no_class = torch.full_like(cond, self.num_classes)
        t = t if len(t) == 1 else torch.cat([t, t])
        with_class, without_class = self(torch.cat([x_t, x_t]), t, torch.cat([cond, no_class])).chunk(2)
        return without_class + guidance * (with_class - without_class)


class MLP(Denoiser):
    """Residual layers over the embedded coordinates, time and class, for x_t of shape (batch, dimensions).

    cond: a class number each, (batch,), or `num_classes` for none.
    """

    large = False

    def __init__(
        self,
        shape: tuple[int],
        *,
        num_classes: int,
        num_timesteps: int,
        hidden_size: int,
        hidden_layers: int,
        embedding_size: int,
        time_embedding: str,
        input_embedding: str,
    ):
        super().__init__(shape, num_timesteps)
        self.embed_time = embedding(time_embedding, embedding_size, scale=1000)
        self.embed_input = embedding(input_embedding, embedding_size, scale=25)
        self.num_classes = num_classes
        self.embed_class = nn.Embedding(num_classes + 1, embedding_size) if num_classes else None
        known = self.embed_time.size + embedding_size * bool(num_classes)
        self.sizes = [shape[0] * self.embed_input.size, known]
        self.stem = nn.Linear(sum(self.sizes), hidden_size)
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(hidden_layers))
        self.head = nn.Linear(hidden_size, shape[0])

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        known = self.embed_time(t / self.num_timesteps)  # once where all points share t
        if self.embed_class is not None:
            known = torch.cat([known.expand(len(x_t), -1), self.embed_class(cond)], dim=1)
        of_x_t, of_known = self.stem.weight.split(self.sizes, dim=1)
        known = F.linear(known, of_known, self.stem.bias)
        h = F.gelu(torch.addmm(known, self.embed_input(x_t).flatten(1), of_x_t.mT))
        for layer in self.layers:
            h = h + F.gelu(layer(h))
        return self.head(h)


class UNet(Denoiser):
    """Convolutions at falling, then rising resolution (Ho et al. 2020), for x_t (batch, channels, height, width).

    `patch_size` trades pixels for channels before the first and after the last layer, which makes it several times as
    fast. Then come a stage for each of `channel_multipliers`, each at half the resolution of the one before and
    `hidden_size` times its multiplier wide; attention is at the lowest resolution alone. Sides that cannot be halved so
    often are padded with zeros. cond: a class number each, (batch,), or `num_classes` for none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        num_classes: int,
        num_timesteps: int,
        hidden_size: int,
        hidden_layers: int,
        embedding_size: int,
        time_embedding: str,
        channel_multipliers: list[int] | None,
        patch_size: int,
    ):
        super().__init__(shape, num_timesteps)
        channels, height, width = shape
        multipliers = channel_multipliers or default_multipliers(height, width, patch_size)
        factor = patch_size * 2 ** (len(multipliers) - 1)
        if factor > 2 * max(height, width):
            raise ValueError(
                f"images of {height}x{width} cannot be halved that often: choose a larger --image_size, a smaller "
                "--patch_size or fewer --channel_multipliers"
            )
        self.num_classes, self.patch_size = num_classes, patch_size
        self.padding = (0, -width % factor, 0, -height % factor)  # at the right and at the bottom
        embed = embedding(time_embedding, embedding_size, scale=1000)
        self.embed_time = nn.Sequential(
            embed, nn.Linear(embed.size, embedding_size), nn.SiLU(), nn.Linear(embedding_size, embedding_size)
        )
        self.embed_class = nn.Embedding(num_classes + 1, embedding_size) if num_classes else None

        def blocks(in_channels, channels):
            sizes = [in_channels] + [channels] * (hidden_layers - 1)
            return nn.ModuleList(ResidualBlock(size, channels, embedding_size) for size in sizes)

        widths = [hidden_size * multiplier for multiplier in multipliers]
        self.stem = nn.Conv2d(channels * patch_size**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(blocks(w, w) for w in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(w, v, 2, stride=2) for w, v in itertools.pairwise(widths))
        self.middle = nn.ModuleList(blocks(widths[-1], widths[-1]) for _ in range(2))
        self.attention = nn.ModuleList(Attention(widths[-1]) for _ in range(2))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(v, w, 2, stride=2) for w, v in itertools.pairwise(widths))
        self.up = nn.ModuleList(blocks(2 * w, w) for w in widths[:-1])
        self.norm = group_norm(widths[0])
        self.head = zero(nn.Conv2d(widths[0], channels * patch_size**2, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        e = self.embed_time(t / self.num_timesteps)
        if self.embed_class is not None:
            e = e + self.embed_class(torch.full_like(t, self.num_classes) if cond is None else cond)
        e = F.silu(e)
        h = F.pad(x_t, self.padding) if any(self.padding) else x_t
        h = F.pixel_unshuffle(h, self.patch_size).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)  # (batch, hidden_size, height / patch_size, width / patch_size)
        skips = []
        for blocks, shrink in zip(self.down, self.shrink):
            for block in blocks:
                h = block(h, e)
            skips.append(h)
            h = shrink(h)  # the next stage's channels at half the height and width
        for blocks, attention in zip(self.middle, self.attention):
            for block in blocks:
                h = block(h, e)
            h = attention(h)
        for blocks, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips)):
            h = torch.cat([grow(h), skip], dim=1)
            for block in blocks:
                h = block(h, e)
        h = F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch_size)
        return h[..., : x_t.shape[2], : x_t.shape[3]] if any(self.padding) else h

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What it sees in x_t, of no class: means over the pixels of the lowest resolution, (batch, channels)."""
        found = []
        hook = self.attention[-1].register_forward_hook(lambda layer, inputs, h: found.append(h.mean((2, 3))))
        self(x_t, t)
        hook.remove()
        return found[0]


def default_multipliers(height: int, width: int, patch_size: int) -> list[int]:
    """1, 1, 2, 2, 3 ... for as many halvings as bring the shorter side to 8 or, where a side is odd, to 32 or below."""
    stages, height, width = 1, -(-height // patch_size), -(-width // patch_size)
    while min(height, width) > (8 if height % 2 == width % 2 == 0 else 32):
        stages, height, width = stages + 1, -(-height // 2), -(-width // 2)
    return [1 + stage // 2 for stage in range(stages)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, with scale and shift from the embedding between them (Dhariwal & Nichol 2021, sec. 3)."""

    def __init__(self, in_channels: int, channels: int, embedding_size: int):
        super().__init__()
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding_size, 2 * channels)
        self.norm_2 = group_norm(channels)
        self.conv_2 = zero(nn.Conv2d(channels, channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        return self.skip(x) + self.conv_2(F.silu(h))


class Attention(nn.Module):
    """Self-attention among all pixels (Vaswani et al. 2017), as a residual."""

    def __init__(self, channels: int, head_size: int = 32):
        super().__init__()
        self.heads = channels // head_size if channels % head_size == 0 else 1
        self.norm = group_norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.query_key_value(self.norm(x)).permute(0, 2, 3, 1)
        h = h.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        h = h.permute(2, 0, 3, 1, 4)  # (3, batch, heads, pixels, channels / heads)
        with torch.autocast("cpu", enabled=False):  # where attention in bfloat16 is several times as slow
            h = F.scaled_dot_product_attention(*(h.to(self.norm.weight.dtype) if h.is_cpu else h))
        return x + self.out(h.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2))


class RNN(Denoiser):
    """A recurrent network reads the past, and its state conditions the denoiser of what comes next (TimeGrad, Rasul et
    al. 2021), for x_t (batch, prediction_length, dimensions) and t (batch, prediction_length).

    x_t are changes over `difference` steps (values where that is 0), minus `location` and divided by `scale`. cond is
    the past: `values` (batch, time, dimensions), in the units of the data, as far back as `lags`, and `means` over so
    many last values, reach before the context, and `missing`, which of those before the forecast stand for a missing
    one; `location` and `scale` (batch, dimensions); `features` (batch, context and forecast, features), known for every
    step; `categories` (batch, columns), numbers below those of the keyword, the last of which is never trained and
    stands for what is new. In training the values go on to the end of the forecast.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        lags: list[int],
        means: list[int],
        difference: int,
        features: int,
        categories: list[int],
        linear: bool,
        num_timesteps: int,
        hidden_size: int,
        hidden_layers: int,
        embedding_size: int,
        time_embedding: str,
        dropout: float,
    ):
        super().__init__(shape, num_timesteps)
        self.lags, self.difference = lags, difference
        least = 1 if shape[1] == 1 else 2  # a vector of levels beside the last ones is more than few changes teach
        self.level_lags = [lag for lag in lags if lag > difference >= least]
        self.means = means if difference else []
        regressors = len(self.lags) + len(self.level_lags) + len(self.means)
        self.embed_categories = nn.ModuleList(zero(nn.Embedding(number + 1, CATEGORY_SIZE)) for number in categories)
        inputs = shape[1] * regressors + features + CATEGORY_SIZE * len(categories)
        self.encoder = Encoder(inputs, hidden_size)
        self.linear = LinearForecast(shape[1], regressors) if linear else None
        self.dropout = nn.Dropout(dropout)
        embed = embedding(time_embedding, embedding_size, scale=1000)
        self.denoiser = VectorDenoiser(shape[1], 2 * hidden_size, hidden_layers, num_timesteps, embed)
        self.project = ExactLinear(hidden_size, self.denoiser.cond_size)

    def features(self, past) -> Tensor:
        """What is known of each step beside the values, with the embeddings of the series' categories."""
        known = [past.features]
        for embed, category in zip(self.embed_categories, past.categories.T):
            known.append(embed(category)[:, None].expand(-1, past.features.shape[1], -1))
        return torch.cat(known, 2)

    def inputs(self, lagged, location: Tensor, scale: Tensor, features: Tensor) -> Tensor:
        """What the encoder reads, (batch, time, inputs): the regressors and the features. What is missing is 0."""
        past = self.regressors(lagged, location, scale).transpose(2, 3).flatten(2)
        return torch.cat([past.nan_to_num(0).clamp(-10, 10), features], 2)

    def regressors(self, lagged, location: Tensor, scale: Tensor) -> Tensor:
        """What is known of earlier values, (batch, time, dimensions, regressors), NaN where one is missing.

        In units of `scale`: earlier changes and, for one dimension or where these are over a season, how far the values
        then, and their means over the last steps, are from where the change begins. `lagged(lag)` are the values `lag`
        steps before each step.
        """
        past = [self.change(lagged, lag) - location[:, None] for lag in self.lags]
        past += [lagged(lag) - lagged(self.difference) for lag in self.level_lags]
        sums = list(itertools.accumulate(map(lagged, range(1, 1 + max(self.means, default=0)))))
        past += [sums[steps - 1] / steps - lagged(self.difference) for steps in self.means]
        return torch.stack(past, 3) / scale[:, None, :, None]

    def of_forecast(self, cond) -> Tensor:
        """The regressors of the steps to forecast, where their past goes on to the end of the forecast."""
        length = self.shape[0]
        first = cond.values.shape[1] - length
        return self.regressors(lambda lag: cond.values[:, first - lag :][:, :length], cond.location, cond.scale)

    def fit(self, batches) -> None:
        if self.linear:
            self.linear.fit((self.of_forecast(cond), x_0, weight) for x_0, cond, weight in batches)

    def residual(self, x_0: Tensor, cond) -> Tensor:
        return self.linear.residual(x_0, self.of_forecast(cond)) if self.linear else x_0

    def change(self, lagged, lag: int) -> Tensor:
        """The change over `difference` steps that ended `lag` steps ago."""
        return lagged(lag) - lagged(lag + self.difference) if self.difference else lagged(lag)

    def forward(self, x_t: Tensor, t: Tensor, cond) -> Tensor:
        return self.denoiser(x_t, t, self.called_with(cond))

    @property
    def called(self) -> nn.Module:
        return self.denoiser

    def called_with(self, cond) -> Tensor:
        length = cond.features.shape[1]
        first = cond.values.shape[1] - length

        def lagged(lag):
            return cond.values[:, first - lag : first - lag + length]

        hidden, _ = self.encoder(self.inputs(lagged, cond.location, cond.scale, self.features(cond)))
        return self.project(self.dropout(hidden[:, -self.shape[0] :]))

    def sample(self, reverse, cond) -> Tensor:
        """Paths (batch, prediction_length, dimensions), step by step: each is sampled, then read (Rasul et al. 2021).

        cond is (past, window): the past of several windows, and for each path the number of its window. Last values
        that are missing are sampled too.
        """
        past, window = cond
        context = past.features.shape[1] - self.shape[0]
        first = past.values.shape[1] - context
        missing = past.missing[:, -context:].int()
        gap = min(int(missing.flip(1).cumprod(1).sum(1).max()), context - 1)
        context -= gap
        sampled, path = [], []  # in the units of the data, from the gap on, and in those of x_0

        def in_context(lag):
            return past.values[:, first - lag : first - lag + context]

        def before_next(lag):
            step = len(sampled) - lag
            values = sampled[step] if step >= 0 else past.values[window, step - gap]  # below 0: before the gap
            return values[:, None]

        features = self.features(past)
        hidden, state = self.encoder(self.inputs(in_context, past.location, past.scale, features[:, :context]))
        state, features = tuple(part[:, window] for part in state), features[window, context:]
        location, scale = past.location[window], past.scale[window]
        for step in range(-gap, self.shape[0]):
            inputs = self.inputs(before_next, location, scale, features[:, step + gap : step + gap + 1])
            hidden, state = self.encoder(inputs, state)
            drawn = reverse(self.denoiser, (1, self.shape[1]), self.project(hidden))
            if self.linear:
                drawn = self.linear.forecast(drawn, self.regressors(before_next, location, scale))
            begin = before_next(self.difference)[:, 0] if self.difference else torch.zeros_like(location)
            value = drawn[:, 0] * scale + location + begin
            if step < 0:
                value = torch.where(past.missing[window, step], value, past.values[window, step])
            else:
                shown = past.values[window, step - self.difference] if step < self.difference else begin
                path.append(drawn[:, 0] + ((begin - shown) / scale).nan_to_num(0))
            sampled.append(value)
        return torch.stack(path, 1)

    def compile(self, **settings) -> None:
        """Compile both halves, which sampling calls one by one."""
        self.encoder.compile(**settings)
        self.denoiser.compile(**settings)


class LinearForecast(nn.Module):
    """A linear autoregression, of which the denoiser learns what is left; untrained, that is Gaussian noise.

    Regressors are (batch, time, dimensions, lags), NaN where one is missing; each dimension has its own weights.
    """

    def __init__(self, dimensions: int, lags: int):
        super().__init__()
        self.register_buffer("weights", torch.zeros(dimensions, 1 + lags))
        self.register_buffer("spread", torch.ones(dimensions))

    def mean(self, regressors: Tensor) -> Tensor:
        """The forecast (batch, time, dimensions)."""
        return (F.pad(regressors.nan_to_num(0), (1, 0), value=1.0) * self.weights).sum(3)

    def residual(self, x_0: Tensor, regressors: Tensor) -> Tensor:
        """What is left of x_0, in units of its spread."""
        return (x_0 - self.mean(regressors)) / self.spread

    def forecast(self, residual: Tensor, regressors: Tensor) -> Tensor:
        """x_0 that leaves this residual."""
        return self.mean(regressors) + self.spread * residual

    @torch.no_grad()
    def fit(self, batches) -> None:
        """Fit by ridge regression to batches of (regressors, x_0, weight).

        A step that lacks a regressor counts a third. The penalty is that of the least generalised cross-validation
        (Golub, Heath & Wahba 1979), whose error, larger than that of the fit, is the spread.
        """
        regressors, x_0, weight = (torch.cat(part).double() for part in zip(*batches))
        length = x_0.shape[1]
        weight = weight * (1 + 2 * regressors.isfinite().all(3)) / 3
        regressors = F.pad(regressors.nan_to_num(0), (1, 0), value=1.0)
        for i, (x, y, w) in enumerate(zip(regressors.unbind(2), x_0.unbind(2), weight.unbind(2))):
            count = (w > 0).sum()
            root = (w / w.sum()).sqrt().flatten()
            x, y = x.flatten(0, 1) * root[:, None], y.flatten() * root
            size = (x**2).sum(0).clamp(min=1e-12).sqrt()
            u, s, v = torch.linalg.svd(x / size, full_matrices=False)
            projection = u.T @ y
            penalties = 10.0 ** torch.arange(-6, 3.01, 0.5, dtype=torch.float64)[:, None]
            shrink = s**2 / (s**2 + penalties)
            error = (y**2).sum() - (shrink * (2 - shrink) * projection**2).sum(1)
            effective = max(2, count / length)  # a time is in as many windows as a forecast has steps
            score = error.clamp(min=1e-12) / (1 - shrink.sum(1) / effective).clamp(min=0.05) ** 2
            best = score.argmin()
            self.weights[i] = (v.T @ (shrink[best] / s.clamp(min=1e-12) * projection) / size).float()
            self.spread[i] = score[best].sqrt().float()


class Encoder(nn.Module):
    """An LSTM over (batch, time, inputs); gives (batch, time, hidden_size) and its state, tensors (1, batch, ·)."""

    def __init__(self, inputs: int, hidden_size: int):
        super().__init__()
        self.stem = nn.Linear(inputs, hidden_size)
        self.recurrent = nn.LSTM(hidden_size, hidden_size, batch_first=True)

    def forward(self, inputs: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        return self.recurrent(F.silu(self.stem(inputs)), state)


class VectorDenoiser(Denoiser):
    """Residual layers over a vector, x_t (..., dimensions), t (...), cond (..., `cond_size`).

    Beside them goes x_t itself, each dimension with a weight of its own: if all were independent and normal, that
    would be the whole answer. cond and the embedding of t are added, so that neither is computed anew for the other.
    """

    def __init__(self, dimensions: int, width: int, layers: int, num_timesteps: int, embed_time: nn.Module):
        super().__init__((dimensions,), num_timesteps)
        self.embed_time, self.cond_size = embed_time, (1 + layers) * width
        self.embed = ExactLinear(embed_time.size, self.cond_size)
        self.stem = ExactLinear(dimensions, width)
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(layers))
        self.head = zero(ExactLinear(width, dimensions))
        self.gain = zero(ExactLinear(width, dimensions))

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        e = cond + self.embed(self.embed_time(t / self.num_timesteps))
        e, *shifts = e.chunk(1 + len(self.layers), dim=-1)
        h = self.stem(x_t)
        for layer, shift in zip(self.layers, shifts):
            h = layer(h, shift)
        return self.head(F.silu(h)) + self.gain(F.silu(e)) * x_t


class ExactLinear(nn.Linear):
    """A linear layer that is computed in float32 whatever the precision: what is small gains nothing from less."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


class ResidualLayer(nn.Module):
    """Two linear layers after a shift, as a residual."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.second = zero(nn.Linear(width, width))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(self.norm(x) + shift)))


def autocast(denoiser: Denoiser, precision: str):
    """bfloat16 arithmetic where `precision` asks for it; `auto`: where a large denoiser's device has it in hardware."""
    device = next(denoiser.parameters()).device
    enabled = precision == "bf16" or (precision == "auto" and denoiser.large and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies numbers of type bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def optimizers(denoiser: Denoiser, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon at `learning_rate` for the matrices between the first and the last layer, AdamW for all else.

    Embeddings, first and last layers, norms and biases get ADAMW_SHARE of the rate.
    """
    inner, outer = [], []
    for name, weight in denoiser.named_parameters():
        is_outer = any(part.startswith(("embed", "stem", "head", "gain")) for part in name.split("."))
        (outer if is_outer or weight.ndim < 2 else inner).append(weight)
    return [Muon(inner, learning_rate), torch.optim.AdamW(outer, ADAMW_SHARE * learning_rate, fused=True)]


def load_optimizer(optimizer, state: dict, expected: set) -> None:
    """Give an optimizer its state, of each weight what is `expected`; its settings stay. Raises ValueError."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight in optimizer.param_groups[0]["params"]:
        found = optimizer.state[weight]
        if set(found) != expected or any(value.shape not in (weight.shape, ()) for value in found.values()):
            raise ValueError("not of these weights")


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal (Jordan et al. 2024, "Muon").

    The kernel of a convolution is the matrix (out_channels, all else).
    """

    def __init__(self, weights, lr: float, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Move each weight against its orthogonal update; those of matrices of one shape are computed together."""
        for group in self.param_groups:
            updates = collections.defaultdict(list)
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["average"] = torch.zeros_like(weight)
                average = state["average"]
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"]).flatten(1)  # Nesterov's momentum
                updates[update.shape].append((weight, update))
            for (rows, columns), pairs in updates.items():
                weights, moves = zip(*pairs)
                moves = group["lr"] * max(1, rows / columns) ** 0.5 * orthogonal(torch.stack(moves))
                for weight, move in zip(weights, moves):
                    weight.sub_(move.view(weight.shape))


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V^T for each matrix U S V^T of (n, rows, columns): singular values between 0.7 and 1.2.

    By Newton-Schulz iterations: X <- 3.4445 X + (2.0315 A A - 4.775 A) X, A = X X^T, with Jordan's coefficients.
    """
    upright = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if upright else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x.mT if upright else x


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels where they divide, a size that vector units take whole; else one group."""
    return nn.GroupNorm(channels // 16 if channels % 16 == 0 else 1, channels)


def zero(layer: nn.Module) -> nn.Module:
    """`layer` with weights of zero: a residual branch that ends with it begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
