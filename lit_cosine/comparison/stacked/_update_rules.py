"""Update rules of torch.optim on many members' weights at once, each member at its own LR.

Convention: all weights are one flat buffer and all gradients another; the pieces are the parameters' views of the
weights, with the members as their first dimension. A rule computes the update at LR 1 in few passes over the flat
buffers, then each member's LR scales its part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.adam import adam

from lit_cosine._compat import add_products, multiply_all

__all__ = ["OptimizerName", "UpdateRule", "update_rule"]

OptimizerName = Literal["adam", "adamw", "sgd"]

_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch.optim's defaults


class UpdateRule(ABC):
    """One optimizer for all members.

    Args:
        weights: Flat buffer of all parameters of all members.
        gradients: Flat buffer of the same length and order.
        pieces: Views of ``weights``, (members, …) each.
        weight_decay: As in ``torch.optim``.
    """

    def __init__(self, weights: Tensor, gradients: Tensor, pieces: Sequence[Tensor], weight_decay: float) -> None:
        self._weights, self._gradients, self._pieces = weights, gradients, list(pieces)
        self._weight_decay = weight_decay
        self._update = torch.zeros_like(weights)
        self._updates = [self._update.as_strided(p.shape, p.stride(), p.storage_offset()) for p in pieces]
        self._scale = weights.new_zeros(pieces[0].shape[0])
        # one number for each member, shaped to multiply each piece
        self._scales = [self._scale.view(-1, *[1] * (piece.dim() - 1)) for piece in pieces]

    @abstractmethod
    def reset(self) -> None:
        """Reset the state to that before the first step."""

    @abstractmethod
    def step(self, lr: Tensor) -> None:
        """Update the weights from the gradients, each member at its entry of ``lr`` (members,)."""

    def _decay_gradients(self) -> None:
        if self._weight_decay:
            self._gradients.add_(self._weights, alpha=self._weight_decay)

    def _apply(self) -> None:
        """Weights += scale * update."""
        add_products(self._pieces, self._updates, self._scales)


@final
class _SGD(UpdateRule):
    """update = momentum * update + gradient; weights -= lr * update."""

    def __init__(
        self,
        weights: Tensor,
        gradients: Tensor,
        pieces: Sequence[Tensor],
        weight_decay: float,
        momentum: float,
    ) -> None:
        super().__init__(weights, gradients, pieces, weight_decay)
        self._momentum = momentum

    def reset(self) -> None:
        self._update.zero_()

    def step(self, lr: Tensor) -> None:
        self._decay_gradients()
        self._update.mul_(self._momentum).add_(self._gradients)
        torch.neg(lr, out=self._scale)
        self._apply()


@final
class _Adam(UpdateRule):
    """Adam by torch's fused kernel, which makes a step from zero at LR 1: the result is the update itself."""

    def __init__(
        self,
        weights: Tensor,
        gradients: Tensor,
        pieces: Sequence[Tensor],
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        super().__init__(weights, gradients, pieces, weight_decay)
        self._decoupled = decoupled
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._count = torch.tensor(0.0)

    def reset(self) -> None:
        for state in (self._mean, self._square, self._count):
            state.zero_()

    def step(self, lr: Tensor) -> None:
        if not self._decoupled:
            self._decay_gradients()
        elif self._weight_decay:
            torch.mul(lr, -self._weight_decay, out=self._scale).add_(1.0)
            multiply_all(self._pieces, self._scales)
        self._update.zero_()
        adam(
            [self._update],
            [self._gradients],
            [self._mean],
            [self._square],
            [],
            [self._count],
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=1.0,
            weight_decay=0.0,
            eps=_EPS,
            maximize=False,
        )
        self._scale.copy_(lr)
        self._apply()


def update_rule(
    name: OptimizerName, weight_decay: float, momentum: float
) -> Callable[[Tensor, Tensor, Sequence[Tensor]], UpdateRule]:
    """Return a function that makes the rule ``name`` from weights, gradients and pieces.

    Args:
        name: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        weight_decay: Added to the gradient times the weights (Adam, SGD), or decoupled from it (AdamW); >= 0.
        momentum: Of SGD, in [0, 1); the others ignore it.

    >>> weights, gradients = torch.ones(2), torch.ones(2)
    >>> rule = update_rule("sgd", 0.0, 0.0)(weights, gradients, [weights.view(2, 1)])
    >>> rule.step(torch.tensor([0.5, 0.25]))
    >>> weights
    tensor([0.5000, 0.7500])
    """
    if name == "sgd":
        return partial(_SGD, weight_decay=weight_decay, momentum=momentum)
    return partial(_Adam, weight_decay=weight_decay, decoupled=name == "adamw")
