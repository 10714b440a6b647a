"""What a run says in the terminal while it trains: a line for each epoch, a bar.

Convention: nothing here is measured; what was logged is shown.
"""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import RichProgressBar

__all__ = ["EpochLine", "SteadyProgressBar"]

_SECONDS = 0.1
"""Between two states of the bar: what an eye can follow."""


class EpochLine(Callback):
    """Prints a line for every epoch in the article's form: ``Epoch 1/10, Loss: 0.3937, LR: 0.00975528``.

    The LR is the one after the epoch, with which the next would begin; the first group's.

    Args:
        monitor: The training loss, under the name it is logged by.
    """

    def __init__(self, monitor: str = "train/loss") -> None:
        self.monitor = monitor
        self._epoch: int | None = None

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the epoch in mind: its scheduler is only stepped after this hook."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Print the epoch before."""
        self._print(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the last epoch."""
        self._print(trainer)

    def _print(self, trainer: Any) -> None:
        if self._epoch is None:
            return
        parts = [f"Epoch {self._epoch + 1}" + (f"/{trainer.max_epochs}" if trainer.max_epochs > 0 else "")]
        if self.monitor in trainer.callback_metrics:
            parts.append(f"Loss: {float(trainer.callback_metrics[self.monitor]):.4f}")
        if trainer.optimizers:
            parts.append(f"LR: {float(trainer.optimizers[0].param_groups[0]['lr']):.8f}")
        trainer.print(", ".join(parts))
        self._epoch = None


class SteadyProgressBar(RichProgressBar):
    """Lightning's bar, moved ten times a second where it would move with every batch, however many those are.

    >>> SteadyProgressBar().is_enabled
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar, if it is time or the epoch's last batch."""
        now = time.monotonic()
        if now - self._moved >= _SECONDS or trainer.is_last_batch:
            self._moved = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
