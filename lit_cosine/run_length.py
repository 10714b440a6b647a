"""How long a Trainer's run is, and how much of it is done.

Convention: the Trainer's attributes are asked, never its class, so ``lightning.pytorch`` and ``pytorch_lightning`` both
work. Asking costs no loader its restored position: ``trainer.estimated_stepping_batches`` would set the loaders up
before the checkpoint's loop state is restored, so the length is read off a loader that is then thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_cosine.horizon import Duration

__all__ = ["Interval", "Plan", "Run", "Unit", "counted", "plan", "total_steps"]

Interval = Literal["step", "epoch"]
Unit = Literal["step", "epoch", "batch", "ms"]

_PLURAL = {"step": "steps", "epoch": "epochs", "batch": "batches", "ms": "ms"}


def total_steps(trainer: Any) -> int:
    """Return how many optimizer steps the fit that is beginning will take, from its optimizer's first to its last.

    Counts ``max_epochs``, ``max_steps`` or both; accumulation, also by ``GradientAccumulationScheduler``;
    ``limit_train_batches`` and ``overfit_batches``; a rank's share of the data; in a second ``fit`` only what is left
    to it, in a resumed one the whole run. Ask in ``configure_optimizers`` or ``on_train_start``.

    Args:
        trainer: The Trainer, with a module attached.

    Raises:
        TypeError: If ``trainer`` is no Trainer.
        ValueError: If the run has no honest length in steps; the message names the Trainer argument that gives one.

    >>> import torch, lightning.pytorch as pl
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> class Model(BoringModel):
    ...     def configure_optimizers(self):
    ...         self.steps = total_steps(self.trainer)
    ...         return torch.optim.SGD(self.parameters(), lr=0.1)
    >>> model = Model()
    >>> quiet = dict(logger=False, barebones=True, accelerator="cpu", limit_val_batches=0)
    >>> pl.Trainer(max_epochs=2, limit_train_batches=5, accumulate_grad_batches=2, **quiet).fit(model)
    >>> model.steps
    6
    """
    run = Run(trainer)
    if not trainer.lightning_module.automatic_optimization:
        raise ValueError(
            "under manual optimization a Trainer does not know how often each optimizer will step: "
            "use the LearningRateScheduler callback, or ScheduleLR with your own total_steps"
        )
    return _finite(run, "step")


@dataclass(frozen=True)
class Plan:
    """A run's length and its warmup, in the unit its progress is counted in.

    Args:
        unit: ``"step"`` (optimizer steps), ``"epoch"``, ``"batch"`` (manual optimization) or ``"ms"`` (``max_time``).
        total: Length of the run.
        warmup: Length of the warmup, < ``total``.
        run: The reading of the Trainer that these come from.
        share: The warmup's part of ``total``, where it was asked for as one.
    """

    unit: Unit
    total: int
    warmup: int
    run: Run
    share: float | None = None


def plan(trainer: Any, warmup: str | Duration = "0step", interval: Interval = "step") -> Plan:
    """Return how progress is counted in this Trainer's run, and for how long.

    Raises:
        ValueError: If the run has no honest length, or ``warmup`` cannot be placed in it.
    """
    duration = Duration.parse(warmup, "warmup")
    run = Run(trainer)
    unit: Unit = interval
    if (seconds := run.max_seconds()) is not None:
        unit, total = "ms", max(1, round(seconds * 1000))
    else:
        if interval == "step" and not trainer.lightning_module.automatic_optimization:
            unit = "batch"
        total = _finite(run, unit)
    length = _length(run, duration, unit, total)
    if length >= total and trainer.fast_dev_run:
        length = total - 1  # a smoke test of a few batches says nothing about the warmup of the real run
    if length >= total:
        raise ValueError(f'warmup must be shorter than the run: "{duration}" is {length:,} of {counted(total, unit)}')
    return Plan(unit, total, length, run, duration.value if duration.unit == "run" else None)


class Run:
    """One reading of a Trainer: what limits its run, and what an earlier fit has already done of it."""

    def __init__(self, trainer: Any) -> None:
        if not hasattr(trainer, "fit_loop"):
            raise TypeError(f"trainer must be a Trainer, as self.trainer is in configure_optimizers, got {trainer!r}")
        if trainer.lightning_module is None:
            raise ValueError(
                "the Trainer has no module yet: ask for the length of its run in configure_optimizers or on_train_start"
            )
        self.trainer = trainer
        self.max_epochs: float = math.inf if trainer.max_epochs == -1 else trainer.max_epochs
        self.max_steps: float = math.inf if trainer.max_steps == -1 else trainer.max_steps
        self.accumulation = _callback_with(trainer, "get_accumulate_grad_batches")
        self.timer = _callback_with(trainer, "time_elapsed", "time_remaining")
        # a resumed run has its optimizer restored, and counts from that optimizer's first step
        resumed = bool(trainer.ckpt_path)
        self.epochs_before: int = 0 if resumed else trainer.fit_loop.epoch_progress.current.processed
        self.steps_before: int = 0 if resumed else trainer.global_step
        self.batches_before: int = 0 if resumed else trainer.fit_loop.total_batch_idx + 1

    def limits(self) -> tuple[float, ...]:
        """Return what decides the run's length; while it stays the same, so does the length. Asked at every step."""
        trainer = self.trainer
        batches: float = 0
        if trainer.max_epochs != -1:
            batches = trainer.num_training_batches if trainer.train_dataloader is not None else self.batches
        accumulate = 0 if self.accumulation else trainer.accumulate_grad_batches
        return trainer.max_epochs, trainer.max_steps, batches, accumulate

    @cached_property
    def batches(self) -> float:
        """The batches of one training epoch on this rank, or inf where the loader does not know."""
        trainer = self.trainer
        if trainer.train_dataloader is not None:
            return float(trainer.num_training_batches)
        loader: Any = trainer.fit_loop._data_source.dataloader()
        leaves = loader.flattened if hasattr(loader, "flattened") else tree_leaves(loader)
        lengths = [_limited(_length_on_rank(trainer, leaf), trainer.limit_train_batches) for leaf in leaves]
        shortest = getattr(loader, "_mode", "max_size_cycle") == "min_size"
        return min(lengths) if shortest else max(lengths)

    def updates(self, epochs: float, first: int = 0) -> float:
        """Return the optimizer steps of ``epochs`` epochs; the last batch of an epoch always makes one."""
        whole, part = int(epochs), epochs - int(epochs)
        if self.accumulation is None:
            steps = whole * self._updates_of(self.batches, first)
        else:
            steps = sum(self._updates_of(self.batches, epoch) for epoch in range(first, first + whole))
        return steps + round(part * self._updates_of(self.batches, first + whole))

    def _updates_of(self, batches: float, epoch: int) -> int:
        scheduled = self.accumulation and self.accumulation.get_accumulate_grad_batches(epoch)
        return math.ceil(batches / int(scheduled or self.trainer.accumulate_grad_batches))

    def left(self, unit: Unit, epochs_done: int, steps_done: int, batches_done: int = 0) -> float:
        """Return how many ``unit`` are left when so many whole epochs, steps, and batches of this epoch are done."""
        epochs = self.max_epochs - epochs_done
        steps = max(self.max_steps - steps_done, 0)
        if unit == "epoch":
            return min(epochs, self._epochs_of(steps, epochs_done)) if steps < math.inf else epochs
        if epochs < math.inf and self.batches == math.inf:
            epochs = math.inf
        if unit == "batch":
            # how many steps a batch makes is the module's own affair: max_steps only sets a pace, see batch_position
            return epochs * self.batches - batches_done if epochs < math.inf else steps
        if epochs < math.inf:
            steps = min(steps, self.updates(epochs, epochs_done) - self._updates_of(batches_done, epochs_done))
        return steps

    def _epochs_of(self, steps: float, first: int) -> float:
        """Return how many epochs, the last one perhaps cut short, ``steps`` optimizer steps take."""
        if self.batches in (0, math.inf):
            return self.batches
        if self.accumulation is None:
            return math.ceil(steps / self.updates(1))
        epochs = 0
        while steps > 0:
            steps -= self.updates(1, first + epochs)
            epochs += 1
        return epochs

    def done_now(self, unit: Unit) -> tuple[int, int, int]:
        """Return the whole epochs, the steps and the batches of this epoch done, seen from inside a training step."""
        loop = self.trainer.fit_loop
        # `ready`, not `global_step`: the step that is being made counts, whether its optimizer has returned or not
        steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.ready
        epochs = loop.epoch_progress.current
        # an epoch's scheduler steps inside its last batch, before the epoch counts as processed
        return (epochs.ready, steps, 0) if unit == "epoch" else (epochs.processed, steps, loop.batch_idx + 1)

    def batch_position(self, total: int) -> float:
        """Return how far a run of ``total`` batches is; where ``max_steps`` ends it sooner, that sets the pace."""
        trainer = self.trainer
        steps: int = trainer.global_step - self.steps_before
        by_steps = total * steps / max(self.max_steps - self.steps_before, 1)
        if self.max_epochs == math.inf:
            return min(by_steps, total)
        batches: int = trainer.fit_loop.total_batch_idx + 1 - self.batches_before
        return min(max(batches, by_steps), total)

    def max_seconds(self) -> float | None:
        """Return ``max_time`` where it is the run's only limit."""
        if self.timer is None or self.max_epochs < math.inf or self.max_steps < math.inf:
            return None
        remaining = self.timer.time_remaining()
        return None if remaining is None else float(remaining + self.timer.time_elapsed())

    def elapsed_ms(self) -> float:
        """Return the training time so far, earlier runs of a resumed one included, the same on every rank."""
        elapsed = self.timer.time_elapsed() * 1000
        return float(self.trainer.strategy.broadcast(elapsed) if self.trainer.world_size > 1 else elapsed)


def counted(number: int, unit: Unit) -> str:
    """Return a number with its unit in words.

    >>> counted(1, "step"), counted(2000, "batch")
    ('1 step', '2,000 batches')
    """
    return f"{number:,} {unit if number == 1 else _PLURAL[unit]}"


def _callback_with(trainer: Any, *methods: str) -> Any:
    """Return the Trainer's callback that has ``methods``: found by what it does, whichever namespace it is from."""
    return next((callback for callback in trainer.callbacks if all(hasattr(callback, name) for name in methods)), None)


def _length_on_rank(trainer: Any, loader: Iterable[Any]) -> float:
    try:
        length: int = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return math.inf
    if (
        trainer.world_size == 1
        or not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or isinstance(loader.sampler, DistributedSampler)
        or not trainer._accelerator_connector.use_distributed_sampler
    ):
        return length
    # Lightning will put a DistributedSampler in: every rank gets the same share, padded where it does not divide
    share: int = math.ceil(len(loader.sampler) / trainer.world_size)  # type: ignore[arg-type]
    batches: Any = loader if loader.batch_size is not None else loader.batch_sampler
    return share // int(batches.batch_size) if batches.drop_last else math.ceil(share / int(batches.batch_size))


def _limited(length: float, limit: float) -> float:
    """Return ``length`` under ``limit_train_batches``: an int is a number of batches, a float a share."""
    if isinstance(limit, int):
        return min(length, limit)
    return length if length == math.inf or limit == 1.0 else int(length * limit)


def _finite(run: Run, unit: Unit) -> int:
    length = run.left(unit, run.epochs_before, run.steps_before)
    if 0 < length < math.inf:
        return int(length)
    trainer = run.trainer
    if length <= 0:
        raise ValueError(
            f"the run has no {_PLURAL[unit]} to take: max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}, "
            f"limit_train_batches={trainer.limit_train_batches}, {run.epochs_before} epochs done"
        )
    if run.max_epochs == run.max_steps:
        raise ValueError(
            f"the run has no end, so no number of {_PLURAL[unit]}: give the Trainer max_epochs or max_steps"
        )
    raise ValueError(
        f"the train loader has no length, so the run has no number of {_PLURAL[unit]}: "
        f"give the Trainer {'limit_train_batches' if unit == 'epoch' else 'max_steps or limit_train_batches'}"
    )


def _length(run: Run, duration: Duration, unit: Unit, total: int) -> int:
    """Return ``duration`` in ``unit``."""
    value = duration.value
    if value == 0.0:
        return 0
    if duration.unit != "run" and (duration.unit == "s") != (unit == "ms"):
        limit, write = ("max_time", "30s") if unit == "ms" else ("steps or epochs", "500step")
        raise ValueError(f'warmup="{duration}" has no place in a run limited by {limit}: write it as "{write}" or "5%"')
    counts_epochs = (duration.unit == "ep") != (unit == "epoch") and duration.unit in ("ep", "step")
    if counts_epochs and run.batches == math.inf:
        raise ValueError(f'warmup="{duration}" needs the length of an epoch, which the train loader does not tell')
    if duration.unit == "run":
        length = value * total
    elif unit == "ms":
        length = value * 1000
    elif duration.unit == "step":
        length = value / run.updates(1, run.epochs_before) if unit == "epoch" else value
    elif unit == "step":
        length = run.updates(value, run.epochs_before)
    else:
        length = value * run.batches if unit == "batch" else value
    if unit == "epoch" and abs(length - round(length)) > 1e-9:
        raise ValueError(
            f'warmup="{duration}" must be whole epochs when interval is "epoch", got {length:g} epochs; '
            'interval "step" takes any'
        )
    return round(length)
