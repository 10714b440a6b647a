"""What the callbacks that watch a training have in common: a record of the updates, and loggers to write to.

Convention: a logger that fails is left out up to the next ``fit``, with one warning; the others are written to.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from typing_extensions import override

from lit_cosine._compat import is_fast_dev_run
from lit_cosine.monitors._points import Point, board_of, write_points
from lit_cosine.monitors._used_lrs import UsedLRs
from lit_cosine.monitors._watching import reason

__all__ = ["BUFFER", "Listener", "Writer"]

BUFFER = 1000
"""Updates after which what was recorded is read, although the epoch is not over."""

_SECONDS = 0.5
"""Seconds that a point waits to be written."""


class Listener(Callback):
    """A callback that has the updates of a fit recorded."""

    _takes_losses = False

    def __init__(self) -> None:
        self._used = UsedLRs(self)
        self._left_out: set[int] = set()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._used.detach()
            self._used, self._left_out = UsedLRs(self), set()
            self._clear()

    def _clear(self) -> None:
        """Forget the run before."""

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._used.release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._used.release()  # lightning 2.6.6 calls no teardown after an exception

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._used.attach(trainer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._used.read(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._used.end_batch(outputs if self._takes_losses else None)

    def _each_logger(self, trainer: Trainer, write: Callable[[Logger], None]) -> None:
        """Call ``write`` with every logger that has not failed in this fit."""
        for place, logger in enumerate(trainer.loggers):
            if place in self._left_out:
                continue
            try:
                write(logger)
            except Exception as error:  # whatever a user's logger raises
                self._left_out.add(place)
                who, what = type(self).__name__, type(logger).__name__
                warnings.warn(f"{who} writes no more to {what}, and training continues: {reason(error)}", stacklevel=2)

    def _each_board(self, trainer: Trainer, write: Callable[[Any], None]) -> None:
        """Call ``write`` with the SummaryWriter of every TensorBoard logger, in the process that writes."""

        def to_board(logger: Logger) -> None:
            if (board := board_of(logger)) is not None:
                write(board)

        if trainer.is_global_zero and not is_fast_dev_run(trainer):
            self._each_logger(trainer, to_board)


class Writer(Listener):
    """A Listener that writes points of the updates to the loggers.

    They are written in bundles: twice a second, at the end of 1000 updates, of an epoch and of the run, with every
    checkpoint, before a validation, which may take long, and when training is interrupted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written = 0.0

    @abstractmethod
    def _points(self) -> Iterable[Point]:
        """Return the points of the updates recorded since the last time."""

    def _show(self, pl_module: LightningModule) -> None:
        """Show what was recorded of the batch, before it is written."""

    def _write(self, trainer: Trainer) -> None:
        self._written = time.monotonic()
        if self._used.updates and (points := list(self._points())):
            self._each_logger(trainer, lambda logger: write_points(logger, points))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._show(pl_module)
        if len(self._used.updates) >= BUFFER or time.monotonic() - self._written >= _SECONDS:
            self._write(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)
        self._used.detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(trainer)
        super().on_exception(trainer, pl_module, exception)
