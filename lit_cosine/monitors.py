"""Callbacks that watch a training and change nothing: the LR written down, the curves drawn.

Convention: point s of an LR curve is the LR that update s used, counted from 0; the last point, after the final update,
is the LR that the next one would have used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor
from torch.optim import Optimizer

from lit_cosine.plots import pixels, training_curves
from lit_cosine.points import Point, write_points
from lit_cosine.updates import UsedLRs

__all__ = ["LearningRateLogger", "TrainingCurves", "new_file"]

Curve = tuple[list[int], list[float]]
"""Steps and values."""

_BUFFER = 1000
"""Updates after which the buffer is written although the epoch is not over."""

_SECONDS = 0.5
"""Seconds after which it is written although it is not full."""

_SHARE, _FIRST_COST = 0.02, 1.0
"""Share of the time that drawing may take, and the seconds that the first picture is taken to cost."""

_KEPT = 1000
"""Points of a curve that a checkpoint holds."""


class _Listener(Callback):
    """A callback that has the used LRs recorded during a fit."""

    def __init__(self) -> None:
        self._used = UsedLRs(self)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin a new record."""
        if stage == "fit":
            self._used.detach()
            self._used = UsedLRs(self)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen to the optimizers."""
        self._used.attach(trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Read the LRs."""
        self._used.read(optimizer)


class LearningRateLogger(_Listener):
    """Writes every group's LR at every optimizer step to the Trainer's loggers, the last value included.

    Point s is the LR that update s really used, whoever set it; under accumulation there is one point for each update.
    The tags are LearningRateMonitor's: ``lr-<optimizer class>`` or the scheduler's name, with ``/pg1``, ``/pg2``, …
    where an optimizer has several groups. A group that joins later gets a tag of its own and renames none. Other
    hyperparameters that LearningRateScheduler drives are written beside it: ``weight_decay-<optimizer class>``.

    Args:
        loss_tag: Tag under which the loss of every update is written too, such as ``"train/loss_step"``; None for not.
            Batches that are accumulated into one update make one point, their mean; of several optimizers the updates
            of the first count.

    Points are written in bundles, with the time at which each update was made: twice a second, at the end of 1000
    updates, of an epoch and of the run, with every checkpoint, and when training is interrupted. What a killed process
    leaves behind lacks at most the last second.

    >>> import lightning.pytorch as pl
    >>> trainer = pl.Trainer(callbacks=[LearningRateLogger()], accelerator="cpu", logger=False)
    """

    def __init__(self, loss_tag: str | None = None) -> None:
        super().__init__()
        self.loss_tag = loss_tag
        self._written = 0.0
        self._window: list[Tensor] = []
        self._losses: list[tuple[int, Tensor]] = []
        self._counted = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen to the optimizers, also for what a LearningRateScheduler drives besides the LR."""
        self._written = time.monotonic()
        driven = [getattr(callback, "schedules", {}) for callback in trainer.callbacks]
        self._used.attach(trainer, [key for schedules in driven for key in schedules if key != "lr"])
        self._window.clear()
        self._counted = self._used.done[0] if self._used.done else 0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates made and the tags, as plain data."""
        return {"done": list(self._used.done), "tags": [list(tags) for tags in self._used.tags]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the numbers and the tags of the run that is resumed."""
        self._used.done, self._used.tags = list(state_dict["done"]), [list(tags) for tags in state_dict["tags"]]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss; write a full buffer, or an old one."""
        if self.loss_tag is not None:
            _keep_loss(self._window, outputs, trainer)
            done = self._used.done[0] if self._used.done else 0
            if self._window and done > self._counted:
                self._counted = done
                loss = self._window[0] if len(self._window) == 1 else torch.stack(self._window).mean()
                self._losses.append((done - 1, loss))
                self._window.clear()
        if len(self._used.updates) >= _BUFFER or time.monotonic() - self._written >= _SECONDS:
            self._write(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Write what there is: it may be long until the next batch."""
        self._write(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the epoch's LRs."""
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write what the checkpoint counts as done."""
        self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the rest and the LRs after the final update."""
        self._used.add_last()
        self._write(trainer)
        self._used.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the rest."""
        self._write(trainer)
        self._used.detach()

    def _write(self, trainer: Any) -> None:
        write_points(trainer.loggers, self._with_losses(self._used.take()))
        self._written = time.monotonic()

    def _with_losses(self, points: Iterator[Point]) -> Iterator[Point]:
        losses: dict[int, float] = {}
        if self._losses:  # brought to the CPU all at once
            values = torch.stack([loss for _, loss in self._losses]).tolist()
            losses = dict(zip((step for step, _ in self._losses), values, strict=True))
            self._losses.clear()
        for step, lrs, when in points:
            if step in losses:
                lrs = {**lrs, str(self.loss_tag): losses.pop(step)}
            yield step, lrs, when


class TrainingCurves(_Listener):
    """Draws the LR and the losses over the run: a PNG beside the logs and an image in TensorBoard.

    Drawn when training ends, also by an interruption, and before that at the ends of epochs, as often as costs two
    percent of the time. Works with any LightningModule whose ``training_step`` returns its loss. A file of that name
    that is already there is left alone, the new one gets a number; a resumed run draws the whole run into its own.

    Args:
        monitor: The validation loss, under the name it is logged by.
        filename: Name of the PNG, inside the logger's folder, or in ``default_root_dir`` where there is no logger.

    After training, ``figure`` is the matplotlib figure and ``path`` where its PNG is; before, they are None.

    >>> TrainingCurves(filename="curves.png").path is None
    True
    """

    def __init__(self, monitor: str = "val/loss", filename: str = "training_curves.png") -> None:
        super().__init__()
        self.monitor = monitor
        self.filename = filename
        self.path: Path | None = None
        self.figure: Figure | None = None
        self._fits = True
        self._clear()

    def _clear(self) -> None:
        self._lrs: dict[str, Curve] = {}
        self._losses: dict[str, Curve] = {name: ([], []) for name in ("training", "training, epoch mean", "validation")}
        self._epoch_ends: dict[int, int] = {}
        self._window: list[Tensor] = []
        self._pending: list[Tensor] = []
        self._epoch_sum, self._epoch_count = 0.0, 0
        self._folder = Path()
        self.path = None
        self._drawn, self._cost = time.monotonic(), _FIRST_COST

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin new curves."""
        super().setup(trainer, pl_module, stage)
        self._fits = stage == "fit"
        if self._fits:
            self._clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the curves, with no more points than a picture shows, and the picture's name."""
        self._fetch()
        return {
            "lrs": {name: _as_tensors(curve) for name, curve in self._lrs.items()},
            "losses": {name: _as_tensors(curve) for name, curve in self._losses.items()},
            "epoch_ends": dict(self._epoch_ends),
            "epoch": [self._epoch_sum, self._epoch_count],
            "path": None if self.path is None else str(self.path),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves of the run that is resumed."""
        if not self._fits:
            return  # the best checkpoint is tested: what was drawn of the whole run stays
        self._lrs = {name: _as_lists(curve) for name, curve in state_dict["lrs"].items()}
        self._losses = {name: _as_lists(curve) for name, curve in state_dict["losses"].items()}
        self._epoch_ends = dict(state_dict["epoch_ends"])
        self._epoch_sum, self._epoch_count = state_dict["epoch"]
        self.path = None if state_dict["path"] is None else Path(state_dict["path"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen to the optimizers."""
        super().on_train_start(trainer, pl_module)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks: not to be left to the end
        if self.path is not None and self.path.parent != self._folder:
            self.path = None  # resumed in another folder
        self._drawn = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss; the batches that are accumulated into one update make one point."""
        _keep_loss(self._window, outputs, trainer)
        if not self._used.updates:
            return
        if self._window:
            self._losses["training"][0].append(self._used.updates[-1][1])
            self._pending.append(torch.stack(self._window).mean())
            self._window.clear()
        _extend(self._lrs, self._used.take())
        if len(self._pending) >= _BUFFER:
            self._fetch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the mean of the epoch's losses."""
        self._fetch()
        done = max(self._used.done, default=0)
        self._epoch_ends[trainer.current_epoch + 1] = done
        if self._epoch_count:
            _append(self._losses["training, epoch mean"], done, self._epoch_sum / self._epoch_count)
            self._epoch_sum, self._epoch_count = 0.0, 0
        if (time.monotonic() - self._drawn) * _SHARE >= self._cost:
            self._draw(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the validation loss."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and not trainer.sanity_checking and trainer.state.fn == "fit":
            _append(self._losses["validation"], max(self._used.done, default=0), float(value))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Draw."""
        self._used.add_last()
        self._used.detach()
        self._draw(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Draw what there is."""
        self._used.detach()
        self._draw(trainer)

    def _fetch(self) -> None:
        """Bring the pending losses to the CPU, all at once."""
        if self._pending:
            losses = torch.stack(self._pending).tolist()
            self._losses["training"][1].extend(losses)
            self._epoch_sum, self._epoch_count = self._epoch_sum + sum(losses), self._epoch_count + len(losses)
            self._pending.clear()

    def _draw(self, trainer: Any) -> None:
        begin = time.monotonic()
        self._fetch()
        _extend(self._lrs, self._used.take())
        began = bool(self._used.done)  # a resume that is refused has curves, and no folder yet
        if not self._lrs or not began or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self.figure = training_curves(
            self._lrs, {name: curve for name, curve in self._losses.items() if curve[0]}, self._epoch_ends
        )
        if self.path is None:
            self.path = new_file(self._folder / self.filename)
        image = pixels(self.figure)  # drawn once for both
        imsave(self.path, image)
        for logger in trainer.loggers:
            if hasattr(logger.experiment, "add_image"):
                logger.experiment.add_image("training_curves", image, max(self._used.done), dataformats="HWC")
        self._drawn = time.monotonic()
        self._cost = self._drawn - begin


def _keep_loss(window: list[Tensor], outputs: Any, trainer: Any) -> None:
    """Append the loss of the batch, where ``training_step`` returned one."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if isinstance(loss, Tensor):
        # Lightning hands the loss over divided by the length of the window
        window.append(loss.detach() * trainer.accumulate_grad_batches)


def _as_tensors(curve: Curve) -> list[Tensor]:
    every = max(1, -(-len(curve[0]) // _KEPT))
    # the last point always stays: a curve that is thinned still ends where it ended
    return [torch.tensor(values[::-1][::every][::-1], dtype=torch.float64) for values in curve]


def _as_lists(curve: Sequence[Tensor]) -> Curve:
    steps, values = curve
    return steps.long().tolist(), values.tolist()


def _append(curve: Curve, step: int, value: float) -> None:
    curve[0].append(step)
    curve[1].append(value)


def _extend(curves: dict[str, Curve], points: Iterator[Point]) -> None:
    for step, values, _ in points:
        for name, value in values.items():
            _append(curves.setdefault(name, ([], [])), step, value)


def new_file(path: Path) -> Path:
    """Return ``path``, or the next numbered name if there is such a file, as an empty file of one's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        new = path.with_stem(f"{path.stem}-{number}") if number else path
        with suppress(FileExistsError):
            new.touch(exist_ok=False)
            break
    return new
