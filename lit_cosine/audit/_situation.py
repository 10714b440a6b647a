"""What decides the learning rates of a run: its optimizers, their schedulers, and when the Trainer steps them.

Convention: the Trainer's attributes are read, its class is not checked. What is not known before the run (a metric, the
time, a module's own code) is named in ``depends`` and not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lit_cosine._compat import callbacks_of, finder_sets_lr, has_class
from lit_cosine.audit._finding import Reader
from lit_cosine.audit._horizon import horizon
from lit_cosine.audit._playback import Join, Stepping, Timeline, Trace, play
from lit_cosine.training import Run, ScheduleLR, TrainerLR, lr_names

__all__ = ["Scheduled", "Situation", "situations"]

_LONGEST = 20_000_000  # batches of a run that is played, which takes a minute
_OPEN = 10_000
"""The number of updates that are played of a longer run, and of one without a known end."""


@dataclass
class Scheduled:
    """A scheduler of a run, and what steps it."""

    scheduler: Any
    interval: str  # "step", "epoch", or "update" where a callback steps it
    frequency: int  # Lightning's
    stepping: Stepping | None  # when it is stepped; None if that is not known
    depends: str = ""  # what its LR depends on that is not known before the run
    manual: bool = False  # whether the module steps it, under manual optimization
    built: float | None = None  # its horizon before a checkpoint was restored
    restored: float | None = None  # its horizon in the checkpoint
    position: int | None = None  # its last_epoch when the plan was made

    @property
    def name(self) -> str:
        """The class's name; for a ScheduleLR, its schedule in words."""
        own = isinstance(self.scheduler, ScheduleLR)
        return str(self.scheduler.schedule) if own else type(self.scheduler).__name__

    @property
    def in_words(self) -> list[str]:
        """The name, and the curves that some groups have of their own."""
        own = self.scheduler.group_schedules if isinstance(self.scheduler, TrainerLR) else {}
        return [self.name, *(f"{pattern} {schedule}" for pattern, schedule in own.items())]


@dataclass
class Situation:
    """One optimizer of a run, its schedulers and its planned LRs."""

    optimizer: Optimizer
    names: list[str]  # of its param groups
    scheduled: list[Scheduled]
    trace: Trace
    timeline: Timeline
    done: int = 0  # updates made before, in an earlier part of the run
    open_end: bool = False  # whether the trace ends before the run does
    joins: Sequence[Join] = ()  # param groups that will join
    shared: Sequence[Any] = ()  # objects that are not copied with the schedulers
    found: float | None = None  # the LR that an LR finder has set
    others_scheduled: bool = False  # whether another optimizer has a scheduler
    swa_epoch: int | None = None  # in which StochasticWeightAveraging replaces the scheduler
    reader: Reader = field(default_factory=Reader)

    @property
    def label(self) -> str:
        """The optimizer's name."""
        return type(self.optimizer).__name__


def situations(
    trainer: Trainer,
    pl_module: LightningModule,
    first_batch: int = 0,
    built: Mapping[int, float | None] | None = None,
    restored: Sequence[Any] = (),
) -> list[Situation]:
    """Return the situation of every optimizer of a run that is about to make its first batch."""
    timeline, open_end = _timeline(trainer, pl_module, first_batch)
    scheduled = [
        *_configured(trainer, pl_module, timeline, built or {}, restored),
        *_callback_schedulers(trainer, pl_module, timeline),
    ]
    shared = [trainer, pl_module, *pl_module.modules(), *pl_module.parameters(), *trainer.loggers]
    joins, reader = _joins(trainer, timeline), _reader(trainer, pl_module)
    found_lr, swa_epoch = _found(trainer), _swa_epoch(trainer, timeline)
    made = []
    for optimizer, names in zip(trainer.optimizers, lr_names(trainer.optimizers), strict=True):
        if not optimizer.param_groups:  # what Lightning returns as the optimizer of a module without one
            continue
        own = [one for one in scheduled if getattr(one.scheduler, "optimizer", None) is optimizer]
        try:
            steppings = [one.stepping for one in own if one.stepping is not None]
            trace = play(optimizer, steppings, timeline.updates, shared=shared, joins=joins)
        except Exception as error:  # a foreign scheduler may fail when it is copied, and the run does not copy it
            for one in own:
                one.stepping, one.depends = None, f"a scheduler that cannot be copied ({type(error).__name__}: {error})"
            trace = play(optimizer, [], timeline.updates)
        made.append(
            Situation(
                optimizer,
                names,
                own,
                trace,
                timeline,
                done=trainer.global_step // max(1, len(trainer.optimizers)),
                open_end=open_end or trace.updates < timeline.updates,
                joins=joins,
                shared=shared,
                found=found_lr,
                others_scheduled=len(own) < len(scheduled),
                swa_epoch=swa_epoch,
                reader=reader,
            )
        )
    return made


def _timeline(trainer: Trainer, pl_module: LightningModule, first_batch: int) -> tuple[Timeline, bool]:
    """Return the updates that are left, and whether the run has no known end."""
    run, automatic, epoch = Run(trainer), pl_module.automatic_optimization, trainer.current_epoch

    def accumulate(epoch: int) -> int:
        return run.accumulate(epoch) if automatic else 1

    epochs, batches = max(1, run.max_epochs - epoch), run.batches
    updates = max(0, run.max_steps - trainer.global_step)
    endless = math.inf in (epochs, batches)
    open_end = endless and updates == math.inf
    updates = _OPEN if open_end else updates
    # under manual optimization a batch makes any number of the steps that max_steps counts
    most = int(updates) if updates < math.inf and (automatic or endless) else None
    if batches == math.inf:  # an epoch that does not end before the run does
        batches, epochs = first_batch + updates * accumulate(epoch) + 1, 1
    elif epochs == math.inf:
        epochs = updates + 1  # each makes one or more, and the present one may be half done
    if min(epochs * batches, math.inf if most is None else most) > _LONGEST:
        most, open_end = _OPEN, True
    return Timeline(int(batches), int(epochs), accumulate, epoch, first_batch, most), open_end


def _configured(
    trainer: Trainer,
    pl_module: LightningModule,
    timeline: Timeline,
    built: Mapping[int, float | None],
    restored: Sequence[Any],
) -> Iterator[Scheduled]:
    """Yield the schedulers from ``configure_optimizers``."""
    endless_epoch = trainer.num_training_batches == math.inf
    manual = not pl_module.automatic_optimization
    finetuning = callbacks_of(trainer, "BaseFinetuning")
    for index, config in enumerate(trainer.lr_scheduler_configs):
        scheduler: Any = config.scheduler
        depends = ""
        if manual:  # lightning 2.6.6 then steps no scheduler: the module's code does, or nothing
            depends = "the module's own manual optimization"
        elif config.reduce_on_plateau:
            depends = f"the metric {config.monitor}"
        elif isinstance(scheduler, TrainerLR) and scheduler.unit == "ms":
            depends = "the clock"
        elif config.interval == "epoch" and endless_epoch:
            depends = "the length of an epoch, which the train loader does not tell"
        elif not (pl_module.lr_scheduler_step.__module__ or "").startswith(("lightning.", "pytorch_lightning.")):
            depends = "the module's own lr_scheduler_step"
        elif finetuning and not isinstance(scheduler, ScheduleLR):
            # BackboneFinetuning says when its one group joins; what another one does is up to its code
            depends = "" if has_class(finetuning[0], "BackboneFinetuning") else type(finetuning[0]).__name__
        steps = timeline.stepping(config.interval, config.frequency)
        yield Scheduled(
            scheduler,
            config.interval,
            config.frequency,
            None if depends else Stepping(scheduler, steps),
            depends,
            manual=manual,
            built=built.get(id(scheduler)),
            restored=horizon(scheduler, restored[index]) if index < len(restored) else None,
            position=getattr(scheduler, "last_epoch", None),
        )


def _callback_schedulers(trainer: Trainer, pl_module: LightningModule, timeline: Timeline) -> Iterator[Scheduled]:
    """Yield the LR schedulers of a LearningRateScheduler, which steps them from hooks on the optimizers."""
    for callback in callbacks_of(trainer, "LearningRateScheduler"):
        for scheduler in callback.schedulers:
            if scheduler.key != "lr":
                continue
            depends = "the clock" if scheduler.unit == "ms" else ""
            if not pl_module.automatic_optimization and trainer.max_steps != -1:
                depends = "how often the module steps its optimizers, which max_steps counts"
            stepping = None if depends else Stepping(scheduler, np.ones(timeline.updates, dtype=bool), joins=True)
            yield Scheduled(scheduler, "update", 1, stepping, depends)


def _joins(trainer: Trainer, timeline: Timeline) -> list[Join]:
    """Return the param group that BackboneFinetuning will add."""
    for callback in callbacks_of(trainer, "BackboneFinetuning"):
        begins = np.flatnonzero(timeline.epoch == callback.unfreeze_backbone_at_epoch)
        if callback.previous_backbone_lr is None and len(begins):
            return [Join(int(begins[0]), callback.backbone_initial_lr, callback.backbone_initial_ratio_lr)]
    return []


def _found(trainer: Trainer) -> float | None:
    """Return the LR that a LearningRateFinder has set."""
    for callback in callbacks_of(trainer, "LearningRateFinder"):
        if finder_sets_lr(callback) and callback.optimal_lr is not None:
            suggestion = callback.optimal_lr.suggestion()
            return None if suggestion is None else float(suggestion)
    return None


def _swa_epoch(trainer: Trainer, timeline: Timeline) -> int | None:
    """Return the epoch in which a StochasticWeightAveraging begins, if it does in this run."""
    begins = [int(callback.swa_start) for callback in callbacks_of(trainer, "StochasticWeightAveraging")]
    return next((epoch for epoch in begins if (timeline.epoch >= epoch).any()), None)


def _reader(trainer: Trainer, pl_module: LightningModule) -> Reader:
    """Return who reads the findings, by where ``configure_optimizers`` is written."""
    # what LightningCLI and `lit-cosine audit` add to their Trainer
    yaml = bool(callbacks_of(trainer, "SaveConfigCallback", "StopBeforeTraining"))
    path = getattr(getattr(pl_module.configure_optimizers, "__code__", None), "co_filename", "")
    # LightningCLI 2.6.6 sets configure_optimizers on the module where --optimizer or --lr_scheduler is given
    installed = "site-packages" in path or "dist-packages" in path or "configure_optimizers" in vars(pl_module)
    kind: Literal["code", "library", "command"] = "library" if installed else "code"
    if (type(pl_module).__module__ or "").startswith("lit_cosine."):
        kind = "command" if yaml else "code"
    return Reader(kind, type(pl_module).__name__, yaml, bool(trainer.lr_scheduler_configs))
