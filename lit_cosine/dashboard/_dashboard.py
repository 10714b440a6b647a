"""Dashboard: what TensorBoard shows of a run besides its curves.

Convention: written once, before the first update, when every other callback has set itself up; a resumed run continues
in the files of the run it resumes.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_integer, read_state
from lit_cosine._compat import callbacks_of, evaluating, gradient_scale, is_fast_dev_run, moved_to_device
from lit_cosine.audit import ScheduleAudit, planned_points, situations
from lit_cosine.dashboard._charts import PLANNED
from lit_cosine.dashboard._layout import begin_again, write_hyperparameters, write_layout, write_success
from lit_cosine.dashboard._run_page import hyperparameters, page
from lit_cosine.monitors import Point, Writer, numbers, watching, write_points
from lit_cosine.training import lr_names

__all__ = ["Dashboard"]


@watching()
class Dashboard(Writer):
    """Writes TensorBoard's pages of a run: layout, planned LR, HParams row, text and graph; and the gradient norm.

    The layout "Schedule" is under Custom Scalars: planned and used LR, losses, metrics and gradient norm of all runs.
    The gradient norm, that of all of an optimizer's weights before clipping, and the training time go to loggers of
    every kind, the rest to TensorBoard. Where a strategy shards the module there is no gradient norm. The curves
    of a run that is resumed in its folder never go back: what the killed process wrote after the checkpoint is dropped.

    Give it beside ``LearningRateLogger(loss_tag="train/loss_step")``, which writes the LR and the loss of every update,
    and after ScheduleAudit where there is one (its findings are put into the text). Make the logger with
    ``TensorBoardLogger(…, default_hp_metric=False)``: HParams rows of Lightning's own take the place of these. The
    graph is that of a module with an ``example_input_array``.

    Args:
        command: The command line, for the text.
        configuration: The configuration as YAML, for the text.
        every_n_steps: Between two gradient norms, in optimizer steps, >= 1.

    Raises:
        TypeError: If ``every_n_steps`` is no integer.
        ValueError: If ``every_n_steps`` is less than 1.

    >>> Dashboard(every_n_steps=0)
    Traceback (most recent call last):
    ValueError: every_n_steps must be an integer >= 1, got 0
    """

    def __init__(self, command: str = "", configuration: str = "", every_n_steps: int = 10) -> None:
        super().__init__()
        self.command = command
        self.configuration = configuration
        self.every_n_steps = as_integer("every_n_steps", every_n_steps, least=1)
        self._clear()

    @override
    def _clear(self) -> None:
        self._described = False
        self._norms: dict[tuple[int, int], Tensor] = {}
        self._seconds, self._began = 0.0, time.monotonic()

    @override
    def state_dict(self) -> dict[str, Any]:
        seconds = self._seconds + time.monotonic() - self._began
        return {"version": STATE_VERSION, "seconds": seconds, "optimizers": self._used.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = read_state("Dashboard", state_dict, {"seconds": 0.0, "optimizers": {}})
        self._seconds = float(state["seconds"])
        self._used.load(state["optimizers"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = time.monotonic()
        if trainer.global_step:
            self._each_board(trainer, lambda board: begin_again(board, trainer.global_step))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._described:
            return
        self._described = True  # not in on_train_start: every other callback has set itself up by now
        boards: list[Any] = []
        self._each_board(trainer, boards.append)
        if boards:
            self._describe(trainer, pl_module, batch_idx)

    def _describe(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        """Write everything that is known before the first update."""
        audits = [callback for callback in callbacks_of(trainer) if isinstance(callback, ScheduleAudit)]
        audited = audits[0].audited if audits else []
        plans = audited or situations(trainer, pl_module, batch_idx)
        tags = lr_names(trainer.optimizers, configs=trainer.lr_scheduler_configs)
        curves = [
            (tag, steps, lrs)
            for plan, names in zip(plans, tags, strict=True)
            for tag, (steps, lrs) in zip(names, planned_points(plan).values(), strict=False)
        ]
        row = hyperparameters(trainer, pl_module)
        plan_in_words = [_in_words(tag, lrs, steps) for tag, steps, lrs in curves]
        text = page(self.command, self.configuration, row, plan_in_words, audits[0].findings if audited else None)
        step, now = trainer.global_step, time.time()

        def write(board: Any) -> None:
            write_layout(board, [tag for tag, _, _ in curves])
            write_hyperparameters(board, row, now)
            board.add_text("run", text, step)
            for tag, steps, lrs in curves:
                for at, lr in zip(steps, lrs, strict=True):
                    board.add_scalar(f"{PLANNED}{tag}", lr, at, now)
            if not step:
                _write_graph(board, pl_module)
            board.flush()

        self._each_board(trainer, write)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        index = self._used.index(optimizer)
        if index is None or not trainer.loggers or self._used.done[index] % self.every_n_steps:
            return
        if trainer.strategy.restore_checkpoint_after_setup:
            return  # the module is sharded (FSDP, DeepSpeed): a process has a part of each gradient
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        found = (parameter.grad for parameter in parameters if parameter.grad is not None)
        gradients = [grad.coalesce().values() if grad.is_sparse else grad for grad in found]  # no norm of sparse ones
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            self._norms[index, self._used.done[index]] = norm / gradient_scale(trainer, optimizer)

    @override
    def _points(self) -> Iterator[Point]:
        updates, names = self._used.drain(), self._used.labels
        measured = [
            (one, self._norms.pop((one.index, one.step))) for one in updates if (one.index, one.step) in self._norms
        ]
        for (one, _), norm in zip(measured, numbers([norm for _, norm in measured]), strict=True):
            tag = "train/gradient_norm" if len(names) == 1 else f"train/gradient_norm-{names[one.index]}"
            yield one.step, {tag: norm}, one.when

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if is_fast_dev_run(trainer):
            return
        now = time.time()
        took = (trainer.global_step, {"train/seconds": self.state_dict()["seconds"]}, now)
        self._each_logger(trainer, lambda logger: write_points(logger, [took]))
        self._each_board(trainer, lambda board: write_success(board, now))


def _in_words(tag: str, lrs: Sequence[float], steps: Sequence[float]) -> str:
    return f"{tag}: {lrs[0]:.4g} at step {steps[0]}, highest {max(lrs):.4g}, {lrs[-1]:.4g} after step {steps[-1]}"


def _write_graph(board: Any, pl_module: LightningModule) -> None:
    example = getattr(pl_module, "example_input_array", None)
    if example is None:
        return
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([pl_module.device] if pl_module.device.type == "cuda" else []))
            stack.enter_context(evaluating(pl_module))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # tracing warns of itself, and of every branch
            example = moved_to_device(pl_module, example)
            board.add_graph(pl_module, example)
    except Exception as error:  # tracing a forward may raise anything, and must not end the run
        reason = str(error).strip().splitlines() or [type(error).__name__]
        rank_zero_info(f"Dashboard: no graph in TensorBoard, the module cannot be traced: {reason[0]}")
