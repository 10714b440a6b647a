"""Stops a run whose loss or weights are nan or infinite, before a checkpoint of it is saved.

Convention: losses stay on the device and are read together, so that no update waits for one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

__all__ = ["FiniteCheck"]

_SECONDS = 1.0
"""Seconds after which losses are read although no checkpoint is due."""


_Where = tuple[int, int, list[Any]]
"""Epoch, step and LRs."""


class FiniteCheck:
    """The losses of a run that have not been checked yet."""

    def __init__(self, last: Path) -> None:
        self._last = last
        self._losses: list[tuple[Tensor, _Where]] = []
        self._looked = time.monotonic()

    def add(self, trainer: Trainer, loss: Tensor) -> None:
        """Take the loss of a batch."""
        self._losses.append((loss.detach(), _now(trainer)))
        if time.monotonic() - self._looked >= _SECONDS:
            self.losses(trainer)

    def losses(self, trainer: Trainer) -> None:
        """Stop at the first loss that is not finite."""
        losses, self._losses, self._looked = self._losses, [], time.monotonic()
        if not losses:
            return
        finite = torch.stack([loss.isfinite().all().to(trainer.strategy.root_device) for loss, _ in losses]).tolist()
        if not all(finite):
            loss, where = losses[finite.index(False)]
            self._stop(f"the loss is {loss.float().mean().item()}", where)

    def weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at the first weight that is not finite."""
        for name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                self._stop(f"{name} holds nan or infinity", _now(trainer))

    def _stop(self, what: str, where: _Where) -> None:
        epoch, step, lrs = where
        kept = f"the last good checkpoint is {self._last}" if self._last.exists() else "no checkpoint was saved yet"
        used = ", ".join(f"{float(lr):g}" for lr in lrs)
        raise FloatingPointError(f"{what} at epoch {epoch}, step {step}, with LR {used}: stopped; {kept}")


def _now(trainer: Trainer) -> _Where:
    lrs = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return trainer.current_epoch, trainer.global_step, lrs
