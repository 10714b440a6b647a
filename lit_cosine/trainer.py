"""What a Trainer knows about the length of its run, and the scheduler that follows it.

Convention: the Trainer's attributes are asked, never its class, so ``lightning.pytorch`` and ``pytorch_lightning`` both
work. Asking costs no loader its restored position: ``trainer.estimated_stepping_batches`` would set the loaders up
before the checkpoint's loop state is restored, so the length is read off a loader that is then thrown away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lit_cosine.horizon import Duration, OnResize
from lit_cosine.scheduler import ScheduleLR
from lit_cosine.schedules import Schedule

__all__ = ["Plan", "TrainerLR", "counted", "lr_names", "lr_scheduler_config", "plan", "skipped_update", "total_steps"]

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
    if not trainer.lightning_module.automatic_optimization:
        raise ValueError(
            "under manual optimization a Trainer does not know how often each optimizer will step: "
            "use the LearningRateScheduler callback, or ScheduleLR with your own total_steps"
        )
    return _finite(_Run(trainer), "step")


def lr_scheduler_config(
    optimizer: Optimizer,
    schedule: Schedule,
    trainer: Any,
    *,
    warmup: str | Duration = "0step",
    interval: Interval = "step",
    on_resize: OnResize = "continue",
    name: str | None = None,
) -> dict[str, Any]:
    """Return the ``"lr_scheduler"`` entry for ``configure_optimizers``: ``schedule`` over exactly this Trainer's run.

    The scheduler follows the Trainer: if the run's length changes while it trains (``max_epochs`` raised, a loader that
    grows on reload) the rest is planned anew as ``on_resize`` says. With ``max_time`` as the only limit, progress is
    the elapsed share of it, the same on every rank.

    Args:
        optimizer: The optimizer that ``configure_optimizers`` returns.
        schedule: The curve.
        trainer: ``self.trainer``.
        warmup: Linear warmup before the schedule: ``"500step"``, ``"2ep"``, ``"5%"``; ``"30s"`` under ``max_time``.
        interval: Whether the LR moves after every optimizer ``"step"`` or after every ``"epoch"``.
        on_resize: What a changed length does, see ``Clock.reanchor``.
        name: What LearningRateMonitor calls the curve; by default ``lr-<optimizer class>``.

    Raises:
        ValueError: If the run has no honest length, or the warmup does not fit in it.
        TypeError: If ``schedule`` or ``warmup`` has the wrong type.

    >>> import torch, lightning.pytorch as pl
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> from lit_cosine import Cosine
    >>> class Model(BoringModel):
    ...     def configure_optimizers(self):
    ...         optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    ...         config = lr_scheduler_config(optimizer, Cosine(end=0.01), self.trainer, warmup="2step")
    ...         return {"optimizer": optimizer, "lr_scheduler": config}
    """
    if interval not in get_args(Interval):
        raise ValueError(f'interval must be "step" or "epoch", got {interval!r}')
    scheduler = TrainerLR(optimizer, schedule, plan(trainer, warmup, interval), on_resize)
    config: dict[str, Any] = {"scheduler": scheduler, "interval": interval, "frequency": 1}
    return config if name is None else {**config, "name": name}


@dataclass(frozen=True)
class Plan:
    """A run's length and its warmup, in the unit its progress is counted in.

    Args:
        unit: ``"step"`` (optimizer steps), ``"epoch"``, ``"batch"`` (manual optimization) or ``"ms"`` (``max_time``).
        total: Length of the run.
        warmup: Length of the warmup, < ``total``.
        run: The reading of the Trainer that these come from.
    """

    unit: Unit
    total: int
    warmup: int
    run: _Run


def plan(trainer: Any, warmup: str | Duration = "0step", interval: Interval = "step") -> Plan:
    """Return how progress is counted in this Trainer's run, and for how long.

    Raises:
        ValueError: If the run has no honest length, or ``warmup`` cannot be placed in it.
    """
    duration = Duration.parse(warmup, "warmup")
    run = _Run(trainer)
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
    return Plan(unit, total, length, run)


class TrainerLR(ScheduleLR):
    """A ScheduleLR that takes its length from a Trainer and follows it: what the module road and the callback share.

    Its copies and pickles leave the Trainer behind and are plain closed-form schedulers.

    Args:
        optimizer: Any torch optimizer.
        schedule: The curve.
        planned: The Trainer's run, from :func:`plan`.
        on_resize: What a changed length does.
        key: The entry of the param groups to drive.
    """

    unit: Unit

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        planned: Plan,
        on_resize: OnResize = "continue",
        *,
        key: str = "lr",
    ) -> None:
        self.unit = planned.unit
        self._run: _Run | None = None  # torch's constructor makes the first step, on nobody's clock
        super().__init__(optimizer, schedule, planned.total, planned.warmup, on_resize, key=key)
        self._run = planned.run
        self._limits = planned.run.limits()

    def step(self, epoch: int | None = None) -> None:
        """Move on with the Trainer: by one step or epoch, to the batch it is at, or to the time that has passed."""
        run = self._run
        if run is None or epoch is not None or not self._catch_up(run):
            super().step(epoch)
        if run is not None and self._limits != (limits := run.limits()):
            self._limits = limits
            self._follow(_Run(run.trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore as ScheduleLR does; progress that is the Trainer's own is read off it again."""
        super().load_state_dict(state_dict)
        if self._run is not None:
            self._catch_up(self._run)

    def _catch_up(self, run: _Run) -> bool:
        """Go to where the Trainer is, and return True, if that is not counted in calls of ``step()``."""
        if self.unit == "ms":
            self.move_to(min(run.elapsed_ms(), self.total_steps))
        elif self.unit == "batch":
            self.move_to(run.batch_position(self.total_steps))
        return self.unit in ("ms", "batch")

    def _follow(self, run: _Run) -> None:
        """Plan what is left anew, now that the Trainer's limits are others."""
        if self.unit == "ms":
            return
        left = run.left(self.unit, *run.done_now(self.unit))
        if 0 < left < math.inf and self.last_epoch + left != self.total_steps:
            self.resize(math.ceil(self.last_epoch + left))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


class _Run:
    """One reading of a Trainer: what limits its run, and what an earlier fit has already done of it."""

    def __init__(self, trainer: Any) -> None:
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


def lr_names(optimizers: Sequence[Any], key: str = "lr", configs: Sequence[Any] = ()) -> list[list[str]]:
    """Return LearningRateMonitor's names for every group of every optimizer: ``lr-Adam``, ``lr-Adam-1/pg2``.

    Args:
        optimizers: The Trainer's.
        key: What is named.
        configs: The Trainer's ``lr_scheduler_configs``; a ``name`` of theirs takes the place of ``lr-<class>``.
    """
    given = {id(config.scheduler.optimizer): config.name for config in reversed(configs) if config.name}
    names, seen = [], Counter[str]()
    for optimizer in optimizers:
        cls, groups = type(optimizer).__name__, optimizer.param_groups
        name = given.get(id(optimizer))
        if name is None:
            name = f"{key}-{cls}-{seen[cls]}" if seen[cls] else f"{key}-{cls}"
            seen[cls] += 1
        suffixes = [group.get("name", f"pg{index}") for index, group in enumerate(groups, start=1)]
        if len(groups) == 1 and "name" not in groups[0]:
            names.append([name])
        else:
            names.append([f"{name}/{suffix}" for suffix in suffixes])
    return names


def counted(number: int, unit: Unit) -> str:
    """Return a number with its unit in words.

    >>> counted(1, "step"), counted(2000, "batch")
    ('1 step', '2,000 batches')
    """
    return f"{number:,} {unit if number == 1 else _PLURAL[unit]}"


def skipped_update(optimizer: Optimizer) -> bool:
    """Return whether the step just made was none: a fused optimizer whose GradScaler has found inf skips in its kernel.

    Other optimizers are not called at all then.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


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


def _finite(run: _Run, unit: Unit) -> int:
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


def _length(run: _Run, duration: Duration, unit: Unit, total: int) -> int:
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
        raise ValueError(f'warmup="{duration}" must be whole epochs when interval is "epoch", got {length:g} epochs')
    return round(length)
