"""MNIST-1D, generated on this machine, and a small convolutional network for it (extra ``evidence``)."""

from __future__ import annotations

import random
from functools import cache
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from typing_extensions import override

from lit_cosine._checks import as_integer
from lit_cosine.example.data import TabularDataModule

__all__ = ["ConvNet", "MNIST1DDataModule"]


class MNIST1DDataModule(TabularDataModule):
    """5,000 signals of 40 values, each a deformed digit: 4,000 for training, 500 for validation, 500 for the test.

    Args:
        batch_size: Rows per batch.
        split_seed: Seed of the split, >= 0.
        seed: Seed of the order of the training rows, >= 0.

    Raises:
        ValueError: If the package mnist1d is missing.

    Source: Greydanus and Kobak 2024, https://arxiv.org/abs/2011.14439.
    """

    def __init__(self, batch_size: int = 100, split_seed: int = 0, seed: int = 0) -> None:
        super().__init__(_signals(), batch_size, split_seed=split_seed, seed=seed)


class ConvNet(nn.Module):
    """Three convolutions and a linear layer: (batch, 40) to logits (batch, 10).

    Args:
        channels: Channels of each convolution, >= 1.

    >>> import torch
    >>> ConvNet()(torch.zeros(2, 40)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        c = as_integer("ConvNet.channels", channels, least=1)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            *(nn.Conv1d(1, c, 5, 2, 2), nn.ReLU()),
            *(nn.Conv1d(c, c, 3, 2, 1), nn.ReLU()),
            *(nn.Conv1d(c, c, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(5 * c, 10)),
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.layers(x))


@cache
def _signals() -> tuple[Any, Any]:
    try:
        from mnist1d.data import make_dataset
    except ImportError:
        raise ValueError("mnist1d is not installed: pip install 'lit-cosine[evidence]'") from None
    states = random.getstate(), np.random.get_state()  # the package seeds the global generators
    try:
        made = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return np.concatenate([made["x"], made["x_test"]]), np.concatenate([made["y"], made["y_test"]])
