"""How long a Trainer's run is, and how much of it is done.

Convention: the Trainer's attributes are read, never its class, so ``lightning.pytorch`` and ``pytorch_lightning`` both
work. Reading costs no loader its restored position: ``trainer.estimated_stepping_batches`` would set the loaders up
before the checkpoint's loop state is restored, so the length is read off a loader that is then dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_cosine._checks import shown
from lit_cosine._compat import (
    callbacks_of,
    combined_mode,
    is_fast_dev_run,
    loop_progress,
    optimizer_steps_begun,
    timer_seconds,
    train_dataloader,
    tree_leaves,
    uses_distributed_sampler,
)
from lit_cosine.schedules import Duration, Unit
from lit_cosine.training._changes import ENDLESS, Lengths

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["Interval", "Plan", "Run", "counted", "length_in_run", "plan", "replicas", "total_steps"]

Interval = Literal["step", "epoch"]

_PLURAL = {"step": "steps", "epoch": "epochs", "batch": "batches", "ms": "ms"}


def total_steps(trainer: Trainer) -> int:
    """Return how many optimizer steps the fit that is beginning will take, from its optimizer's first to its last.

    Counts ``max_epochs``, ``max_steps`` or both; accumulation, also by ``GradientAccumulationScheduler``;
    ``limit_train_batches`` and ``overfit_batches``; a rank's share of the data; in a second ``fit`` only what is left
    to it, in a resumed one the whole run. Call it in ``configure_optimizers`` or ``on_train_start``.

    Args:
        trainer: The Trainer, with a module attached.

    Raises:
        TypeError: If ``trainer`` is no Trainer.
        ValueError: If the run's length in steps cannot be determined; the message names the Trainer argument that
            gives one.

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
    """A run's length, warmup and cooldown, in the unit its progress is counted in."""

    unit: Unit
    lengths: Lengths
    run: Run  # the reading of the Trainer that these come from
    warmup: Duration  # as it was given, like the cooldown
    cooldown: Duration

    def with_parts(self, warmup: Duration, cooldown: Duration) -> Plan:
        """Return the plan of this run with another warmup and cooldown."""
        run, unit, total = self.run, self.unit, self.lengths.total
        parts = {"warmup": warmup, "cooldown": cooldown}
        if total == ENDLESS and "run" in {one.unit for one in parts.values() if one.value}:
            raise ValueError("a run without a known end has no shares: write warmup and cooldown in steps or epochs")
        planned = Plan(unit, self.lengths, run, warmup, cooldown)
        lengths = planned.lengths_of(total, run)
        if lengths.warmup + lengths.cooldown >= total and not is_fast_dev_run(run.trainer):
            both = " and ".join(f'{name} ("{parts[name]}", {n:,})' for name in parts if (n := getattr(lengths, name)))
            raise ValueError(f"{both} must be shorter than the run, got a run of {counted(total, unit)}")
        # a smoke test of a few batches says nothing about the warmup and the cooldown of the real run
        return replace(planned, lengths=lengths.fitted())

    def lengths_of(self, total: int, run: Run) -> Lengths:
        """Return the lengths of this plan in a run of another ``total``, which the parts may not fit."""
        parts = (("warmup", self.warmup), ("cooldown", self.cooldown))
        return Lengths(total, *(length_in_run(run, part, self.unit, total, name) for name, part in parts))


def plan(
    trainer: Trainer,
    warmup: str | Duration = "0step",
    interval: Interval = "step",
    cooldown: str | Duration = "0step",
    *,
    endless: bool = False,
) -> Plan:
    """Return how progress is counted in this Trainer's run, and for how long."""
    run = Run(trainer)
    unit: Unit = interval
    if (seconds := run.max_seconds()) is not None:
        unit, total = "ms", max(1, round(seconds * 1000))
    else:
        if interval == "step" and not trainer.lightning_module.automatic_optimization:
            unit = "batch"
        total = ENDLESS if endless and run.has_no_end else _finite(run, unit)
    nothing = Duration(value=0, unit="step")
    whole = Plan(unit, Lengths(total, 0, 0), run, nothing, nothing)
    return whole.with_parts(Duration.parse(warmup, "warmup"), Duration.parse(cooldown, "cooldown"))


class Run:
    """One reading of a Trainer: what limits its run, and what an earlier fit has already done of it."""

    def __init__(self, trainer: Trainer) -> None:
        if not hasattr(trainer, "fit_loop"):
            raise TypeError(
                f"trainer must be a Trainer, as self.trainer is in configure_optimizers, got {shown(trainer)}"
            )
        if trainer.lightning_module is None:
            raise ValueError(
                "the Trainer has no module yet: ask for the length of its run in configure_optimizers or on_train_start"
            )
        self.trainer = trainer
        self.max_epochs: float = math.inf if (epochs := trainer.max_epochs) is None or epochs == -1 else epochs
        self.max_steps: float = math.inf if trainer.max_steps == -1 else trainer.max_steps
        self.accumulation = _callback_with(trainer, "get_accumulate_grad_batches")
        self.timer = _callback_with(trainer, "time_elapsed", "time_remaining")
        # a resumed run has its optimizer restored, and counts from that optimizer's first step
        resumed = bool(trainer.ckpt_path)
        self.epochs_before: int = 0 if resumed else loop_progress(trainer)[0].current.processed
        self.steps_before: int = 0 if resumed else trainer.global_step
        self.batches_before: int = 0 if resumed else trainer.fit_loop.total_batch_idx + 1

    @property
    def has_no_end(self) -> bool:
        """Whether neither epochs nor steps nor time limit the run."""
        return self.max_epochs == math.inf and self.max_steps == math.inf

    def limits(self) -> tuple[float | None, ...]:
        """Return what decides the run's length; while it stays the same, so does the length. Read at every step."""
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
        loader: Any = train_dataloader(trainer)
        leaves = loader.flattened if hasattr(loader, "flattened") else tree_leaves(loader)
        lengths = [_limited(_length_on_rank(trainer, leaf), trainer.limit_train_batches) for leaf in leaves]
        return min(lengths) if combined_mode(loader) == "min_size" else max(lengths)

    def updates(self, epochs: float, first: int = 0) -> float:
        """Return the optimizer steps of ``epochs`` epochs; the last batch of an epoch always makes one."""
        whole, part = int(epochs), epochs - int(epochs)
        if self.accumulation is None:
            steps = whole * self._updates_of(first)
        else:
            steps = sum(self._updates_of(epoch) for epoch in range(first, first + whole))
        return steps + round(part * self._updates_of(first + whole))

    def accumulate(self, epoch: int) -> int:
        """Return the number of batches of one optimizer step in ``epoch``, counted from 0."""
        if self.accumulation is None:
            return int(self.trainer.accumulate_grad_batches)
        return int(self.accumulation.get_accumulate_grad_batches(epoch))

    def _updates_of(self, epoch: int) -> int:
        return math.ceil(self.batches / self.accumulate(epoch))

    def left(
        self, unit: Unit, epochs_done: int, steps_done: int, batches_done: int = 0, window: int | None = None
    ) -> float:
        """Return how many ``unit`` are left; an update of this epoch takes ``window`` batches, by default its own."""
        epochs = self.max_epochs - epochs_done
        steps = max(self.max_steps - steps_done, 0)
        if unit == "epoch":
            epochs -= batches_done >= self.batches  # a checkpoint from the last batch of an epoch
            return min(epochs, self._epochs_of(steps, epochs_done)) if steps < math.inf else epochs
        if epochs < math.inf and self.batches == math.inf:
            epochs = math.inf
        if unit == "batch":
            # how many steps a batch makes is up to the module: max_steps only sets a pace, see batch_position
            return epochs * self.batches - min(batches_done, self.batches) if epochs < math.inf else steps
        if epochs < math.inf:
            # an update is made where the number of batches is a multiple of the window, and after the last batch
            window = window or self.accumulate(epochs_done)
            in_epoch = math.ceil(self.batches / window) - batches_done // window if batches_done < self.batches else 0
            steps = min(steps, in_epoch + self.updates(epochs - 1, epochs_done + 1) if epochs > 0 else 0)
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

    def done_now(self, unit: Unit) -> tuple[int, int, int, int]:
        """Return what ``left`` takes, seen from inside a training step."""
        loop, window = self.trainer.fit_loop, int(self.trainer.accumulate_grad_batches)
        # the step that is being made counts, whether its optimizer has returned or not
        steps = optimizer_steps_begun(self.trainer)
        epochs = loop_progress(self.trainer)[0].current
        # an epoch's scheduler steps inside its last batch, before the epoch counts as processed
        return (epochs.ready, steps, 0, 0) if unit == "epoch" else (epochs.processed, steps, loop.batch_idx + 1, window)

    def done_before(self) -> tuple[int, int, int, int | None]:
        """Return what ``left`` takes, seen from before the first batch of a resumed run."""
        epoch, batches, under_way = _resumed_position(self.trainer, self.batches)
        # a GradientAccumulationScheduler sets its window in on_train_epoch_start, which is not called in such an epoch
        window = int(self.trainer.accumulate_grad_batches) if under_way else None
        return epoch, self.trainer.global_step, batches, window

    def batch_position(self, total: float) -> float:
        """Return how far a run of ``total`` batches is; where ``max_steps`` ends it sooner, that sets the pace."""
        trainer = self.trainer
        steps: int = trainer.global_step - self.steps_before
        by_steps = total * steps / max(self.max_steps - self.steps_before, 1)
        if self.max_epochs == math.inf and self.max_steps < math.inf:
            return min(by_steps, total)
        batches: int = trainer.fit_loop.total_batch_idx + 1 - self.batches_before
        return min(max(batches, by_steps), total)

    def max_seconds(self) -> float | None:
        """Return ``max_time`` where it is the run's only limit."""
        return None if self.timer is None or not self.has_no_end else timer_seconds(self.timer)

    def elapsed_ms(self) -> float:
        """Return the training time so far on this rank, earlier parts of a resumed run included."""
        return float(self.timer.time_elapsed() * 1000)


def _resumed_position(trainer: Trainer, batches: float) -> tuple[int, int, bool]:
    """Return where a run of ``batches`` an epoch resumes: the epoch, the batches it skips, whether it is under way."""
    # between the restored state and the first batch FitLoop.reset and TrainingEpochLoop.reset move on: a checkpoint
    # from on_train_batch_end of an epoch's last batch counts that epoch, and skips as many batches of the next one, or
    # none if it has no more; one from the validation makes one batch more where the epoch has fewer now
    loop = trainer.fit_loop
    (epochs, batch), counted = loop_progress(trainer), loop.restarted_mid_epoch  # whether FitLoop.reset has run
    epoch = int(epochs.current.processed)
    under_way = bool(counted or (loop.restarting and epochs.current.ready > epoch))
    done = int(batch.current.processed) if under_way else 0
    if done and batch.total.completed == batch.total.processed - 1:
        epoch += batch.is_last_batch and not counted
        done *= done < batches
    elif done > batches:
        done = int(batches) - 1
    return epoch, done, under_way


def replicas(trainer: Trainer) -> int:
    """Return the number of processes that each train on their own share of the data."""
    kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return int(kwargs.get("num_replicas", trainer.world_size))


def counted(number: float, unit: Unit) -> str:
    """Return a number with its unit in words: ``2,000 batches``."""
    return f"{number:,} {unit if number == 1 else _PLURAL[unit]}"


def _callback_with(trainer: Trainer, *methods: str) -> Any:
    """Return the Trainer's callback that has ``methods``: found by what it does, in either namespace."""
    return next(
        (callback for callback in callbacks_of(trainer) if all(hasattr(callback, name) for name in methods)), None
    )


def _length_on_rank(trainer: Trainer, loader: Iterable[Any]) -> float:
    try:
        length: int = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return math.inf
    if (
        replicas(trainer) == 1
        or not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or isinstance(loader.sampler, DistributedSampler)
        or not uses_distributed_sampler(trainer)
    ):
        return length
    # Lightning will put a DistributedSampler in: every rank gets the same share, padded where it does not divide
    share: int = math.ceil(len(loader.sampler) / replicas(trainer))  # type: ignore[arg-type]
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
    if run.has_no_end:
        raise ValueError(
            f"the run has no end, so no number of {_PLURAL[unit]}: give the Trainer max_epochs or max_steps"
        )
    raise ValueError(
        f"the train loader has no length, so the run has no number of {_PLURAL[unit]}: "
        f"give the Trainer {'limit_train_batches' if unit == 'epoch' else 'max_steps or limit_train_batches'}"
    )


def length_in_run(run: Run, duration: Duration, unit: Unit, total: float, name: str) -> int:
    """Return ``duration`` in ``unit``; the epochs of a warmup are the first ones, those of a cooldown the last."""
    first = run.epochs_before
    if name == "cooldown" and run.max_epochs < math.inf:
        first = max(0, int(run.max_epochs - math.ceil(duration.value if duration.unit == "ep" else 1)))

    def steps_of(epochs: float) -> float:
        return epochs * run.batches if unit == "batch" else run.updates(epochs, first)

    converts = duration.unit in ("ep", "step") and (duration.unit == "ep") != (unit == "epoch")
    known = not converts or run.batches < math.inf
    return duration.length(unit, total, steps_of=steps_of if known else None, name=name)
