"""What a run prints in the terminal while it trains: a line for each epoch, a progress bar.

Convention: nothing is measured here; logged values are shown.
"""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from lit_cosine.monitors._watching import watching

__all__ = ["EpochLine", "SteadyProgressBar"]

_SECONDS = 0.1
"""Between two states of the bar: what an eye can follow."""


@watching()
class EpochLine(Callback):
    """Prints a line for every epoch in the article's form: ``Epoch 1/10, Loss: 0.3937, LR: 0.00975528``.

    The LR is the one after the epoch, with which the next would begin; the first group's.
    """

    def __init__(self) -> None:
        self._epoch: int | None = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = trainer.current_epoch  # whose scheduler is only stepped after this hook

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        """Print the epoch that has ended, if it is not printed yet."""
        if self._epoch is None:
            return
        parts = [_epoch(self._epoch, trainer)]
        if "train/loss" in trainer.callback_metrics:
            parts.append(f"Loss: {float(trainer.callback_metrics['train/loss']):.4f}")
        if trainer.optimizers:
            parts.append(f"LR: {float(trainer.optimizers[0].param_groups[0]['lr']):.8f}")
        trainer.print(", ".join(parts))
        self._epoch = None


class SteadyProgressBar(RichProgressBar):
    """Lightning's bar with loss and LR, moved at most ten times a second instead of with every batch.

    >>> SteadyProgressBar().is_enabled
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved = 0.0
        self._loss: Any = None

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if self._loss is not None:
            shown = {"loss": f"{float(self._loss):.4f}", **shown}
        if trainer.optimizers:
            shown["lr"] = f"{float(trainer.optimizers[0].param_groups[0]['lr']):.4g}"
        return shown

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        # as EpochLine writes it; Lightning's bar counts from 0, and shows "/-2" for no limit
        return f"{_epoch(current_epoch, self.trainer):{len(self.validation_description)}}"

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._moved >= _SECONDS or trainer.is_last_batch:
            self._moved = now
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            # lightning 2.6.6 hands the loss over divided by the length of the window
            self._loss = None if loss is None else loss * trainer.accumulate_grad_batches
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.teardown(trainer, pl_module, "fit")  # or what other callbacks log at the end is printed on the bar's line


def _epoch(epoch: int, trainer: Trainer) -> str:
    return f"Epoch {epoch + 1}" + (f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else "")
