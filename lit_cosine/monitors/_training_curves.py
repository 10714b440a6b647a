"""TrainingCurves: the LR and the losses of a run as one picture.

Convention: steps are optimizer steps; a validation loss stands at the number of updates made before it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from matplotlib.image import imsave
from torch import Tensor
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, check_text, read_state, shown
from lit_cosine._compat import callbacks_of, is_fast_dev_run, own_attributes
from lit_cosine._files import new_file
from lit_cosine.monitors._figures import Points, pixels, training_curves
from lit_cosine.monitors._listener import BUFFER, Listener
from lit_cosine.monitors._watching import watching

__all__ = ["TrainingCurves", "validation_loss"]

Curve = tuple[list[int], list[float]]
"""Steps and values."""

_SHARE, _FIRST_COST = 0.02, 1.0
"""Share of the time that drawing may take, and the seconds that the first picture is taken to cost."""

_KEPT = 1000
"""Points of a curve that a checkpoint holds."""

_USUAL = ("val/loss", "val_loss", "valid_loss")
_VALIDATION = re.compile(r"(^|[^a-z])val(id(ation)?)?([^a-z]|$)", re.IGNORECASE)
_TRAINING, _MEAN, _VALIDATED = "training", "training, epoch mean", "validation"


def validation_loss(logged: Iterable[str], monitored: Sequence[str | None] = ()) -> str | None:
    """Return the name of the validation loss among the names that are logged.

    It is ``val/loss``, ``val_loss`` or ``valid_loss``; else the only name with "val" and "loss"; of several the one
    that is monitored; None where there is none, or several.

    >>> validation_loss(["train/loss", "loss/val", "loss/val_epoch"]), validation_loss(["val_loss_a", "val_loss_b"])
    ('loss/val', None)
    >>> validation_loss(["val_loss_a", "val_loss_b"], ["val_loss_b"])
    'val_loss_b'
    """
    names = {name for name in logged if _VALIDATION.search(name) and "loss" in name.lower()}
    # a metric that is logged by step and by epoch has three names
    names -= {name + suffix for name in names for suffix in ("_step", "_epoch")}
    return next((name for name in (*_USUAL, *monitored) if name in names), names.pop() if len(names) == 1 else None)


@watching()
class TrainingCurves(Listener):
    """Draws the LR and the losses over the run: a PNG beside the logs and an image in TensorBoard.

    Drawn when training ends, also by an interruption, and before that at the ends of epochs, as often as costs two
    percent of the time. Works with any LightningModule whose ``training_step`` returns its loss. Beside a ScheduleAudit
    the planned LR is drawn too. A file of that name that is already there is left alone, the new one gets a number; a
    resumed run draws the whole run into its own. One log line says what is drawn and where.

    Args:
        monitor: The validation loss, under the name it is logged by. By default ``val/loss``, ``val_loss``,
            ``valid_loss`` or the only logged name with "val" and "loss"; of several the one ModelCheckpoint monitors.
        filename: Name of the PNG, inside the logger's folder, or in ``default_root_dir`` where there is no logger.

    After training, ``figure`` is the matplotlib figure and ``path`` where its PNG is; before, they are None.

    >>> TrainingCurves(filename="curves.png").path is None
    True
    """

    _takes_losses = True

    def __init__(self, monitor: str | None = None, filename: str = "training_curves.png") -> None:
        super().__init__()
        check_text("monitor", monitor, optional=True)
        check_text("filename", filename)
        self.monitor = monitor
        self.filename = filename
        self._clear()

    def __repr__(self) -> str:
        where = "" if self.path is None else f", path={str(self.path)!r}"
        return f"TrainingCurves({self.monitor!r}, {self.filename!r}{where})"

    def _repr_png_(self) -> bytes | None:
        """Return the figure that Jupyter shows; None before there is one."""
        if self.figure is None:
            return None
        drawn = BytesIO()
        imsave(drawn, pixels(self.figure))
        return drawn.getvalue()

    @override
    def _clear(self) -> None:
        self._lrs: dict[str, Curve] = {}
        self._planned: dict[str, Points] | None = None
        self._losses: dict[str, Curve] = {name: ([], []) for name in (_TRAINING, _MEAN, _VALIDATED)}
        self._epoch_ends: dict[int, int] = {}
        self._epoch_sum, self._epoch_count = 0.0, 0
        self._folder = Path()
        self.figure: Figure | None = None
        self.path: Path | None = None
        self._validation: str | None = None
        self._told = False
        self._drawn, self._cost = time.monotonic(), _FIRST_COST

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the figure, which holds functions that do not pickle."""
        return {**own_attributes(self), "figure": None}

    @override
    def state_dict(self) -> dict[str, Any]:
        self._fetch()
        return {
            "version": STATE_VERSION,
            "optimizers": self._used.state(),
            "lrs": {name: _as_tensors(curve) for name, curve in self._lrs.items()},
            "losses": {name: _as_tensors(curve) for name, curve in self._losses.items()},
            "epoch_ends": dict(self._epoch_ends),
            "epoch": [self._epoch_sum, self._epoch_count],
            "path": None if self.path is None else str(self.path),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.figure is not None:
            return  # the best checkpoint is tested: what was drawn of the whole run stays
        defaults: dict[str, Any] = {"optimizers": {}, "lrs": {}, "losses": {}, "epoch_ends": {}, "path": None}
        state = read_state("TrainingCurves", state_dict, {**defaults, "epoch": [0.0, 0]})
        self._used.load(state["optimizers"])
        self._lrs = {name: _as_lists(curve) for name, curve in state["lrs"].items()}
        self._losses |= {name: _as_lists(curve) for name, curve in state["losses"].items()}
        self._epoch_ends = dict(state["epoch_ends"])
        self._epoch_sum, self._epoch_count = state["epoch"]
        self.path = None if state["path"] is None else Path(state["path"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks: not to be left to the end
        if self.path is not None and self.path.parent != self._folder:
            self.path = None  # resumed in another folder
        self._drawn = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._planned is None:  # a ScheduleAudit has made its plan by now, and drops it in its on_exception
            audits = callbacks_of(trainer, "ScheduleAudit")
            self._planned = audits[0].planned_points if audits else {}
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self._used.updates) >= BUFFER:
            self._fetch()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fetch()
        done = max(self._used.done, default=0)
        self._epoch_ends[trainer.current_epoch + 1] = done
        if self._epoch_count:
            _append(self._losses[_MEAN], done, self._epoch_sum / self._epoch_count)
            self._epoch_sum, self._epoch_count = 0.0, 0
        if (time.monotonic() - self._drawn) * _SHARE >= self._cost:
            self._draw(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._find(trainer)
        if self._validation in trainer.callback_metrics:
            value = float(trainer.callback_metrics[self._validation])
            _append(self._losses[_VALIDATED], max(self._used.done, default=0), value)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._used.add_last()
        self._used.detach()
        self._find(trainer)  # for the warning, where no validation has taken place
        self._draw(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._draw(trainer)
        super().on_exception(trainer, pl_module, exception)

    def _find(self, trainer: Trainer) -> None:
        """Find the name of the validation loss, once; warn where ``monitor`` names nothing."""
        if self._validation is not None:
            return
        logged = sorted(trainer.callback_metrics)
        monitored = [getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks]
        self._validation = validation_loss(logged, monitored) if self.monitor is None else self.monitor
        if self._validation is not None and self._validation not in logged:
            names = ", ".join(logged) or "nothing"
            rank_zero_warn(
                f"TrainingCurves: monitor must name a metric that is logged ({names}), got {shown(self.monitor)}"
            )

    def _fetch(self) -> None:
        """Add the updates recorded since the last time to the curves."""
        for step, values, _ in self._used.points(_TRAINING):
            if (loss := values.pop(_TRAINING, None)) is not None:
                _append(self._losses[_TRAINING], step, loss)
                self._epoch_sum, self._epoch_count = self._epoch_sum + loss, self._epoch_count + 1
            for name, value in values.items():
                _append(self._lrs.setdefault(name, ([], [])), step, value)

    def _draw(self, trainer: Trainer) -> None:
        begin = time.monotonic()
        self._fetch()
        # a resume that is refused has curves, and no optimizers yet
        if not self._lrs or not self._used.done or not trainer.is_global_zero or is_fast_dev_run(trainer):
            return
        losses = {name: curve for name, curve in self._losses.items() if curve[0]}
        self.figure = training_curves(self._lrs, losses, self._epoch_ends, self._planned)
        if self.path is None:
            self.path = new_file(self._folder / self.filename)
        image = pixels(self.figure)  # drawn once for both
        imsave(self.path, image)
        self._tell(losses)
        done = max(self._used.done)
        self._each_board(trainer, lambda board: board.add_image("training_curves", image, done, dataformats="HWC"))
        self._drawn = time.monotonic()
        self._cost = self._drawn - begin

    def _tell(self, losses: Mapping[str, Curve]) -> None:
        """Log what is drawn and where, once."""
        if self._told:
            return
        self._told = True
        drawn = [*self._lrs, *(["the planned LR"] if self._planned else [])]
        drawn += ["the training loss"] if _TRAINING in losses else []
        drawn += [f"the validation loss {self._validation}"] if _VALIDATED in losses else []
        rank_zero_info(f"TrainingCurves: {', '.join(drawn)} in {self.path}")


def _as_tensors(curve: Curve) -> list[Tensor]:
    every = max(1, -(-len(curve[0]) // _KEPT))
    # the last point always stays: a curve that is thinned still ends where it ended
    return [torch.tensor(values[::-1][::every][::-1], dtype=torch.float64) for values in curve]  # quicker than lists


def _as_lists(curve: Sequence[Tensor]) -> Curve:
    steps, values = curve
    return steps.long().tolist(), values.tolist()


def _append(curve: Curve, step: int, value: float) -> None:
    curve[0].append(step)
    curve[1].append(value)
