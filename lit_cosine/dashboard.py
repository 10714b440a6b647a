"""Dashboard: what TensorBoard shows of a run beyond its curves, so that the page answers at once.

Convention: written once, before the first update, when every other callback has set itself up; a resumed run goes on
in the files of the run it resumes.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lit_cosine.audit import ScheduleAudit, planned_curves
from lit_cosine.events import (
    PLANNED,
    begin_again,
    write_hyperparameters,
    write_layout,
    write_success,
)
from lit_cosine.points import board_of, write_points
from lit_cosine.run_page import configuration, hyperparameters, page
from lit_cosine.situation import situations
from lit_cosine.trainer import lr_names

__all__ = ["Dashboard"]

_POINTS = 2000
"""Points of a planned curve: more than a screen is wide."""

_SECONDS = 0.5
"""Seconds that a point waits to be written."""

_BUFFER = 1000
"""Points that are written although they have not waited so long."""


class Dashboard(Callback):
    """Writes TensorBoard's pages of a run: layout, planned LR, HParams row, text and graph; and the gradient norm.

    The layout "Schedule" is under Custom Scalars: planned and used LR, losses, metrics and gradient norm of all runs.
    The gradient norm and the training time go to loggers of every kind, the rest to TensorBoard. A run that is resumed
    in its folder goes on without a zigzag: what the killed process wrote after the checkpoint is dropped.

    Give it beside ``LearningRateLogger(loss_tag="train/loss_step")``, which writes the LR and the loss of every update,
    and after ScheduleAudit where there is one (its findings are put into the text). Make the logger with
    ``TensorBoardLogger(…, default_hp_metric=False)``: HParams rows of Lightning's own take the place of these. The
    graph is that of a module with an ``example_input_array``.

    Args:
        command: The command line, for the text.
        configuration: The configuration as YAML, for the text; by default what the Trainer and the module can tell.
        every_n_steps: Between two gradient norms, in optimizer steps, >= 1.

    Raises:
        ValueError: If ``every_n_steps`` is not an integer >= 1.

    >>> Dashboard(every_n_steps=0)
    Traceback (most recent call last):
    ValueError: every_n_steps must be an integer >= 1, got 0
    """

    def __init__(self, command: str = "", configuration: str = "", every_n_steps: int = 10) -> None:
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps must be an integer >= 1, got {every_n_steps!r}")
        self.command = command
        self.configuration = configuration
        self.every_n_steps = every_n_steps
        self._seconds = 0.0
        self._clear()

    def _clear(self) -> None:
        self._written = False
        self._points: list[tuple[int, str, Tensor, float]] = []
        self._began = self._saved = time.monotonic()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin a new page."""
        if stage == "fit":
            self._seconds = 0.0
            self._clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds trained so far."""
        return {"seconds": self._seconds + time.monotonic() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting the seconds."""
        self._seconds = float(state_dict["seconds"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Drop what lies ahead in the files of a run that is resumed; begin to count the seconds."""
        self._clear()
        if trainer.global_step:
            for writer in self._boards(trainer):
                begin_again(writer, trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Write everything that is known before the first update."""
        if self._written:
            return
        self._written = True
        if trainer.fast_dev_run or not (boards := self._boards(trainer)):
            return
        audits = [callback for callback in trainer.callbacks if isinstance(callback, ScheduleAudit)]
        audited = audits[0].audited if audits else []
        plans = audited or situations(trainer, pl_module, batch_idx)
        tags = lr_names(trainer.optimizers, configs=trainer.lr_scheduler_configs)
        curves = [
            (tag, *_thinned(steps, lrs, plan.done))
            for plan, names in zip(plans, tags, strict=True)
            for tag, (_, (steps, lrs)) in zip(names, planned_curves(plan), strict=False)
        ]
        row = hyperparameters(trainer, pl_module)
        told = self.configuration or configuration(trainer, pl_module)
        plan_in_words = [_in_words(tag, lrs, steps) for tag, steps, lrs in curves]
        text = page(self.command, told, row, plan_in_words, audits[0].findings if audited else None)
        step, now = trainer.global_step, time.time()
        for writer in boards:
            write_layout(writer, [tag for tag, _, _ in curves])
            write_hyperparameters(writer, row, now)
            writer.add_text("run", text, step)
            for tag, steps, lrs in curves:
                for at, lr in zip(steps, lrs, strict=True):
                    writer.add_scalar(f"{PLANNED}{tag}", lr, at, now)
            if not step:
                _write_graph(writer, pl_module)
            writer.flush()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Measure the gradient norm, before clipping."""
        step = int(trainer.global_step) // max(1, len(trainer.optimizers))  # of each optimizer
        if step % self.every_n_steps or not trainer.loggers:
            return
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            self._points.append((step, "train/gradient_norm", torch.nn.utils.get_total_norm(gradients), time.time()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write points that have waited long enough."""
        if len(self._points) >= _BUFFER or (self._points and time.monotonic() - self._saved >= _SECONDS):
            self._write(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Write the points."""
        self._write(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write what the checkpoint counts as done."""
        self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the points, the training time, and that the run came to its end."""
        self._write(trainer)
        if trainer.fast_dev_run:
            return
        now = time.time()
        write_points(trainer.loggers, [(trainer.global_step, {"train/seconds": self.state_dict()["seconds"]}, now)])
        for writer in self._boards(trainer):
            write_success(writer, now)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write the points."""
        self._write(trainer)

    def _write(self, trainer: Any) -> None:
        kept, self._points, self._saved = self._points, [], time.monotonic()
        if not kept or trainer.fast_dev_run:
            return
        values = torch.stack([value.float() for _, _, value, _ in kept]).tolist()  # at once: the device is asked once
        points = [(step, {tag: value}, when) for (step, tag, _, when), value in zip(kept, values, strict=True)]
        write_points(trainer.loggers, points)

    def _boards(self, trainer: Any) -> list[Any]:
        """Return the SummaryWriters, in the process that has some."""
        if not trainer.is_global_zero:
            return []
        return [board for logger in trainer.loggers if (board := board_of(logger)) is not None]


def _thinned(steps: Sequence[float], lrs: Sequence[float], done: int) -> tuple[list[int], list[float]]:
    """Return a planned curve, on the run's own steps, as at most ``_POINTS`` points."""
    every = -(-len(steps) // _POINTS)
    kept = [*range(0, len(steps), every), len(steps) - 1]
    points = {done + int(steps[i]): lrs[i] for i in kept if lrs[i] == lrs[i]}  # nan before a group has joined
    return list(points), list(points.values())


def _in_words(tag: str, lrs: Sequence[float], steps: Sequence[int]) -> str:
    if not lrs:
        return f"{tag}: a group that joins later"
    return f"{tag}: {lrs[0]:.4g} at step {steps[0]}, highest {max(lrs):.4g}, {lrs[-1]:.4g} after step {steps[-1]}"


def _write_graph(writer: Any, pl_module: Any) -> None:
    example = getattr(pl_module, "example_input_array", None)
    if example is None:
        return
    try:
        with _untouched(pl_module), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of itself, and of every branch
            example = pl_module._apply_batch_transfer_handler(pl_module._on_before_batch_transfer(example))
            writer.add_graph(pl_module, example)
    except Exception as error:  # whatever a foreign forward does when it is traced is no fault of the run's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        rank_zero_info(f"Dashboard: no graph in TensorBoard, the module cannot be traced: {reason[0]}")


@contextmanager
def _untouched(pl_module: Any) -> Iterator[None]:
    """Leave modes and random numbers as they were, also those of modules that stay in eval mode while training."""
    modes = [(module, module.training) for module in pl_module.modules()]
    devices = [pl_module.device] if pl_module.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            pl_module.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
