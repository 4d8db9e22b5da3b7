"""The embeddings: their sizes, and the formula of the one that is a default."""

import numpy as np
import pytest
import torch

from positional_embeddings import EMBEDDINGS, embedding


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_embeddings_append_an_axis_of_the_size_they_tell(kind):
    embed = embedding(kind, 32, scale=1000)
    assert embed(torch.rand(5, 3)).shape == (5, 3, embed.size)


def test_sinusoidal_embedding_is_the_transformer_s():
    """At t in steps: sin and cos of t / 10000^(i / (half - 1)) (Vaswani et al. 2017, in the order of DDPM's code)."""
    t, half = 123, 16
    angles = t * 10000.0 ** (-np.arange(half) / (half - 1))
    ours = embedding("sinusoidal", 32, scale=1000)(torch.tensor([t / 1000]))
    np.testing.assert_allclose(ours[0], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-4)
