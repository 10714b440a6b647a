"""One member of an ensemble: its training, and its network, batches, random numbers and LR as functions of its seed.

Convention: nothing here depends on other members, so that a member trains alone as it does among thousands. Nothing
draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_cosine.comparison.stacked._update_rules import OptimizerName
from lit_cosine.schedules import Schedule

__all__ = [
    "CURVES",
    "FINALS",
    "METRICS",
    "Metric",
    "Rows",
    "Training",
    "accuracy",
    "batch_orders",
    "cross_entropy",
    "dropout_seed",
    "initial_network",
    "learning_rates",
]

Rows = tuple[Tensor, Tensor]
"""Inputs and targets with the same number of rows."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``logits`` (rows, classes) against ``labels`` (rows,), as torch's does.

    Written with the classes first, so that the rows, which are more, are contiguous when members are stacked.

    >>> logits, labels = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])
    >>> torch.allclose(cross_entropy(logits, labels), nn.functional.cross_entropy(logits, labels))
    True
    """
    log_probabilities = torch.log_softmax(logits.transpose(-1, -2), dim=0)
    classes = torch.arange(logits.shape[-1], device=labels.device).unsqueeze(1)
    chosen = torch.where(labels == classes, log_probabilities, 0.0)
    return -chosen.sum() / labels.shape[0]


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of rows whose largest output is the target's; nan where targets are no class numbers.

    Of several largest outputs the first counts, as in ``argmax`` and torchmetrics. Written with the classes first and
    without argmax, which is slow on stacked members.

    >>> accuracy(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    if targets.is_floating_point() or outputs.dim() != 2 or targets.dim() != 1:
        return outputs.sum() * float("nan")
    scores = outputs.transpose(-1, -2)
    classes = torch.arange(outputs.shape[-1], device=targets.device).unsqueeze(1)
    own = torch.where(targets == classes, scores, 0.0).sum(0)
    # the target's output must exceed those of the classes before it and reach those of the classes after it
    reached = torch.where(classes < targets, own > scores, own >= scores)
    return reached.all(0).to(outputs.dtype).mean()


class Metric(NamedTuple):
    """A quantity beside the loss; ``measure`` maps (outputs, targets) of some rows to their mean."""

    measure: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool


METRICS = {"accuracy": Metric(accuracy, higher_is_better=True)}
"""The metrics by name. Results, tables, files and TensorBoard runs follow this table."""

CURVES = ("train_loss", "val_loss", *(f"val_{name}" for name in METRICS))
"""What is kept of every epoch."""

FINALS = ("test_loss", *(f"test_{name}" for name in METRICS))
"""What is kept of the trained network."""


@dataclass(frozen=True)
class Training:
    """The settings that all members share.

    Args:
        network: Makes a network; called once for each seed, with torch's generator at that seed.
        max_epochs: Passes over the training rows, >= 1.
        batch_size: Rows per step, >= 1; an epoch's last batch may be smaller.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``, with the formulas and defaults of ``torch.optim``.
        weight_decay: Added to the gradient times the weights (Adam, SGD), or decoupled from it (AdamW); >= 0.
        momentum: Of SGD, in [0, 1).
        loss: Maps (outputs, targets) of one batch to their mean loss.
    """

    network: Callable[[], nn.Module]
    max_epochs: int
    batch_size: int = 64
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def measure(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Return the loss and the metrics of some rows, in the order of ``FINALS``."""
        return self.loss(outputs, targets), *(metric.measure(outputs, targets) for metric in METRICS.values())

    def total_steps(self, rows: int) -> int:
        """Return the number of optimizer steps over ``rows`` training rows."""
        return self.max_epochs * -(-rows // self.batch_size)


def learning_rates(schedules: Sequence[Schedule], lrs: Sequence[float], steps: int) -> Tensor:
    """Return the LR of every arm at every step, lr * schedule(k / steps), as float64 (steps, arms).

    Arms are ordered by schedule, then LR.

    >>> from lit_cosine import Constant, Cosine
    >>> learning_rates([Constant(), Cosine()], [0.1, 0.2], steps=2)[1]
    tensor([0.1000, 0.2000, 0.0500, 0.1000], dtype=torch.float64)
    """
    factors = torch.tensor([schedule.sample(steps) for schedule in schedules], dtype=torch.float64)
    peaks = torch.tensor(lrs, dtype=torch.float64)
    return (factors[:, None, :] * peaks[None, :, None]).flatten(0, 1).T.contiguous()


def initial_network(training: Training, seed: int) -> nn.Module:
    """Return the network that every member of ``seed`` starts from; the global generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_stream(seed, 0))
        return training.network()


def batch_orders(training: Training, rows: int, seed: int) -> Tensor:
    """Return the order of the training rows in each epoch (max_epochs, rows), a function of ``seed`` alone."""
    generator = torch.Generator().manual_seed(_stream(seed, 1))
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(training.max_epochs)])


def dropout_seed(seed: int) -> int:
    """Return the seed of torch's generator before the first step of the members of ``seed``."""
    return _stream(seed, 2)


def _stream(seed: int, purpose: int) -> int:
    """Return one of several independent seeds that belong to ``seed``."""
    return int(np.random.SeedSequence((seed, purpose)).generate_state(1, np.uint32)[0])
