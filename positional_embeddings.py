"""Positional embeddings: how one number, a time or a coordinate, becomes a vector.

>>> embed = embedding("sinusoidal", 128, scale=1000)
>>> embed(torch.rand(32)).shape, embed.size
(torch.Size([32, 128]), 128)

Each takes numbers of about unit size in any shape and appends an axis of length `size`.
"""

import torch
from torch import Tensor, nn


class Sinusoidal(nn.Module):
    """Sines and cosines of frequencies falling geometrically from `scale` to scale / 10000 (Vaswani et al. 2017)."""

    def __init__(self, size: int, scale: float):
        super().__init__()
        steps = torch.arange(size // 2, device="cpu")  # on "meta", PyTorch would import its compiler
        exponents = steps / max(size // 2 - 1, 1)
        self.register_buffer("frequencies", scale * 10000.0**-exponents, persistent=False)  # radians per unit
        self.size = size // 2 * 2

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Fourier(Sinusoidal):
    """Sines and cosines of random frequencies, normal with standard deviation `scale` / 4 (Tancik et al. 2020)."""

    def __init__(self, size: int, scale: float):
        super().__init__(size, scale)
        self.register_buffer("frequencies", scale / 4 * torch.randn(size // 2))  # kept in the checkpoint


class Learnable(nn.Module):
    """A learned affine map."""

    def __init__(self, size: int, scale: float):
        super().__init__()
        self.linear = nn.Linear(1, size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[..., None])


class Linear(nn.Module):
    """The number itself; called `linear` for times and `identity` for coordinates."""

    def __init__(self, size: int, scale: float):
        super().__init__()
        self.size = 1

    def forward(self, x: Tensor) -> Tensor:
        return x[..., None]


class Zero(Linear):
    """Nothing: a zero. A denoiser with it does not know the time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)[..., None]


EMBEDDINGS = {
    "sinusoidal": Sinusoidal,
    "fourier": Fourier,
    "learnable": Learnable,
    "linear": Linear,
    "identity": Linear,
    "zero": Zero,
}


def embedding(kind: str, size: int, scale: float) -> nn.Module:
    """The embedding called `kind`, of length `size` (or 1: it tells as `.size`); `scale` is its highest frequency."""
    return EMBEDDINGS[kind](size, scale)
