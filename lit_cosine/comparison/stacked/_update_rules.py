"""Update rules of torch.optim on many members' weights at once, each member at its own LR.

Convention: all weights are one flat buffer and all gradients another; the pieces are the parameters' views of the
weights, with the members as their first dimension. A rule computes the update at LR 1 in few passes over the flat
buffers, then each member's LR scales its part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim.adam import adam

from lit_cosine._compat import in_place

__all__ = ["OptimizerName", "UpdateRule", "update_rule"]

OptimizerName = Literal["adam", "adamw", "sgd"]

_ADAM: Any = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
"""The defaults of torch.optim.Adam."""


@dataclass(eq=False)
class UpdateRule(ABC):
    """One optimizer for all members.

    Args:
        weights: Flat buffer of all parameters of all members.
        gradients: Flat buffer of the same length and order.
        pieces: Views of ``weights``, (members, …) each.
        weight_decay: As in ``torch.optim``.
    """

    weights: Tensor
    gradients: Tensor
    pieces: list[Tensor]
    weight_decay: float

    def __post_init__(self) -> None:
        self._update = torch.zeros_like(self.weights)
        self._updates = [self._update.as_strided(p.shape, p.stride(), p.storage_offset()) for p in self.pieces]
        self._scale = self.weights.new_zeros(self.pieces[0].shape[0])
        # one number for each member, shaped to multiply each piece
        self._scales = [self._scale.view(-1, *[1] * (piece.dim() - 1)) for piece in self.pieces]

    @abstractmethod
    def reset(self) -> None:
        """Reset the state to that before the first step."""

    @abstractmethod
    def step(self, lr: Tensor) -> None:
        """Update the weights from the gradients, each member at its entry of ``lr`` (members,)."""

    def _decay_gradients(self) -> None:
        if self.weight_decay:
            self.gradients.add_(self.weights, alpha=self.weight_decay)

    def _apply(self) -> None:
        """Weights += scale * update."""
        in_place("addcmul_", self.pieces, self._updates, self._scales)


@final
@dataclass(eq=False)
class _SGD(UpdateRule):
    """update = momentum * update + gradient; weights -= lr * update."""

    momentum: float

    def reset(self) -> None:
        self._update.zero_()

    def step(self, lr: Tensor) -> None:
        self._decay_gradients()
        self._update.mul_(self.momentum).add_(self.gradients)
        torch.neg(lr, out=self._scale)
        self._apply()


@final
@dataclass(eq=False)
class _Adam(UpdateRule):
    """Adam by torch's fused kernel, which makes a step from zero at LR 1: the result is the update itself."""

    decoupled: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        self._mean, self._square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self._count = torch.tensor(0.0)

    def reset(self) -> None:
        for state in (self._mean, self._square, self._count):
            state.zero_()

    def step(self, lr: Tensor) -> None:
        if not self.decoupled:
            self._decay_gradients()
        elif self.weight_decay:
            torch.mul(lr, -self.weight_decay, out=self._scale).add_(1.0)
            in_place("mul_", self.pieces, self._scales)
        self._update.zero_()
        mean, square, count = [self._mean], [self._square], [self._count]
        adam([self._update], [self.gradients], mean, square, [], count, fused=True, lr=1.0, **_ADAM)
        self._scale.copy_(lr)
        self._apply()


def update_rule(
    name: OptimizerName,
    weights: Tensor,
    gradients: Tensor,
    pieces: list[Tensor],
    weight_decay: float,
    momentum: float,
) -> UpdateRule:
    """Return the rule ``name`` with :class:`UpdateRule`'s arguments; AdamW's weight decay is decoupled.

    >>> weights, gradients = torch.ones(2), torch.ones(2)
    >>> rule = update_rule("sgd", weights, gradients, [weights.view(2, 1)], 0.0, momentum=0.0)
    >>> rule.step(torch.tensor([0.5, 0.25]))
    >>> weights
    tensor([0.5000, 0.7500])
    """
    if name == "sgd":
        return _SGD(weights, gradients, pieces, weight_decay, momentum)
    return _Adam(weights, gradients, pieces, weight_decay, name == "adamw")
