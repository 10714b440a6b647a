"""What decides the learning rates of a run: its optimizers, their schedulers, and how the Trainer will step them.

Convention: the Trainer's attributes are asked, never its class. What nobody can know before the run (a metric, the
clock, a module's own manual optimization) is named, not guessed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, SimpleNamespace
from typing import Any

import numpy as np
from torch.optim import Optimizer

from lit_cosine.playback import Join, Master, Run, Trace, play
from lit_cosine.scheduler import ScheduleLR
from lit_cosine.trainer import TrainerLR, lr_names

__all__ = ["Scheduled", "Situation", "has_class", "horizon", "horizon_of_state", "situations"]

# what schedulers, and the functions handed to them, call their length
_HORIZON_NAMES = (
    "total_steps", "T_max", "num_training_steps", "max_num_iters", "max_iters", "max_steps", "max_epochs", "t_initial",
    "total_iters",
)  # fmt: skip
_ASKING = ("lr_schedulers", "lr_scheduler_configs")
_OPEN = 10_000
"""Updates that are played of a run without a known end."""


@dataclass
class Scheduled:
    """A scheduler of a run, and what moves it.

    Args:
        scheduler: The scheduler.
        interval: ``"step"``, ``"epoch"``, or ``"update"`` where a callback moves it.
        frequency: Lightning's frequency.
        master: How it is played, or None where nobody can know.
        depends: What it depends on, if nobody can know.
        manual: Whether Lightning leaves its steps to the module.
        built: The horizon it was built with, before a checkpoint was restored.
        restored: The horizon that the checkpoint holds.
    """

    scheduler: Any
    interval: str
    frequency: int
    master: Master | None
    depends: str = ""
    manual: bool = False
    built: float | None = None
    restored: float | None = None

    @property
    def name(self) -> str:
        """The class's name; of ours, the curve in words."""
        own = isinstance(self.scheduler, ScheduleLR)
        return str(self.scheduler.schedule) if own else type(self.scheduler).__name__


@dataclass
class Situation:
    """One optimizer of a run, its schedulers and its planned LRs.

    Args:
        optimizer: The optimizer.
        names: Its groups' names.
        scheduled: Its schedulers.
        trace: The planned LRs.
        run: How the Trainer will walk.
        done: Updates made before, in an earlier part of the run.
        open_end: Whether the trace ends before the run does.
        joins: Param groups that will join.
        shared: What copies of the schedulers may share.
        found: The LR that an LR finder has set.
        others_scheduled: Whether another optimizer has a scheduler.
        swa_epoch: The epoch from which StochasticWeightAveraging has the LR.
    """

    optimizer: Optimizer
    names: list[str]
    scheduled: list[Scheduled]
    trace: Trace
    run: Run
    done: int = 0
    open_end: bool = False
    joins: Sequence[Join] = ()
    shared: Sequence[Any] = ()
    found: float | None = None
    others_scheduled: bool = False
    swa_epoch: int | None = None

    @property
    def label(self) -> str:
        """The optimizer's name."""
        return type(self.optimizer).__name__


def horizon(scheduler: Any) -> float | None:
    """Return the length, in its own steps, that a scheduler was given, or None if it has none or does not tell.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> horizon(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10))
    10
    """
    children = getattr(scheduler, "_schedulers", None)
    if children:
        lengths = [horizon(child) for child in children]
        milestones = getattr(scheduler, "_milestones", None)
        if milestones is None:
            return max((length for length in lengths if length is not None), default=None)
        return None if lengths[-1] is None else milestones[-1] + lengths[-1]
    if isinstance(scheduler, ScheduleLR):
        return scheduler.total_steps
    holders = [vars(scheduler), *map(_held_by, getattr(scheduler, "lr_lambdas", None) or ())]
    for holder in holders:
        for name in _HORIZON_NAMES:
            value = holder.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value
    return None


def _held_by(function: Any) -> dict[str, Any]:
    """Return the values a function carries: a partial's arguments, a closure's variables, an object's attributes."""
    if isinstance(function, dict):  # what a state_dict holds of an object
        return function
    if isinstance(function, partial):
        return {**_held_by(function.func), **function.keywords}
    if inspect.isfunction(function):
        return dict(inspect.getclosurevars(function).nonlocals) if function.__closure__ else {}
    return dict(getattr(function, "__dict__", {}))


def horizon_of_state(state: Any) -> float | None:
    """Return the :func:`horizon` that a scheduler's ``state_dict`` holds."""
    if not isinstance(state, Mapping):
        return None
    children = [SimpleNamespace(**child) for child in state.get("_schedulers", ()) if isinstance(child, Mapping)]
    return horizon(SimpleNamespace(**{**state, "_schedulers": children}))


def has_class(thing: Any, name: str) -> bool:
    """Return whether ``thing`` is of a class of that name, from whichever of Lightning's namespaces."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def situations(
    trainer: Any,
    pl_module: Any,
    first_batch: int = 0,
    built: Mapping[int, float | None] | None = None,
    restored: Sequence[float | None] = (),
) -> list[Situation]:
    """Return the situation of every optimizer of a run that is about to make its first batch.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        first_batch: The batch of the present epoch that the run begins at.
        built: The horizons the schedulers were built with, by the schedulers' ids.
        restored: The horizons that the checkpoint holds, in the order of the Trainer's schedulers.
    """
    run, open_end = _run(trainer, pl_module, first_batch)
    scheduled = [*_configured(trainer, pl_module, run, built or {}, restored), *_hung_on(trainer, pl_module, run)]
    shared = [trainer, pl_module, *pl_module.modules(), *pl_module.parameters(), *trainer.loggers]
    joins, found = _joins(trainer, run), []
    for optimizer, names in zip(trainer.optimizers, lr_names(trainer.optimizers), strict=True):
        if not optimizer.param_groups:  # what Lightning puts in the place of none
            continue
        own = [one for one in scheduled if getattr(one.scheduler, "optimizer", None) is optimizer]
        try:
            masters = [one.master for one in own if one.master is not None]
            trace = play(optimizer, masters, run.updates, shared=shared, joins=joins)
        except Exception as error:  # whatever a foreign scheduler does when it is copied is no fault of the run's
            for one in own:
                one.master, one.depends = None, f"a scheduler that cannot be copied ({type(error).__name__}: {error})"
            trace = play(optimizer, [], run.updates)
        found.append(
            Situation(
                optimizer,
                names,
                own,
                trace,
                run,
                done=trainer.global_step // max(1, len(trainer.optimizers)),
                open_end=open_end or trace.updates < run.updates,
                joins=joins,
                shared=shared,
                found=_found(trainer),
                others_scheduled=len(own) < len(scheduled),
                swa_epoch=_swa_epoch(trainer, run),
            )
        )
    return found


def _run(trainer: Any, pl_module: Any, first_batch: int) -> tuple[Run, bool]:
    """Return the run that is left, and whether its end is not known."""
    automatic = pl_module.automatic_optimization
    counter = next((one for one in trainer.callbacks if hasattr(one, "get_accumulate_grad_batches")), None)
    constant = trainer.accumulate_grad_batches if automatic else 1

    def accumulate(epoch: int) -> int:
        return int(counter.get_accumulate_grad_batches(epoch)) if counter is not None and automatic else constant

    epochs, batches, updates = math.inf, trainer.num_training_batches, math.inf
    if trainer.max_epochs is not None and trainer.max_epochs != -1:
        epochs = max(1, trainer.max_epochs - trainer.current_epoch)
    if trainer.max_steps != -1:
        updates = max(0, trainer.max_steps - trainer.global_step)
    open_end = updates == math.inf and (epochs == math.inf or batches == math.inf)
    if open_end:
        updates = _OPEN
    if batches == math.inf:  # an epoch that does not end before the run does
        batches, epochs = first_batch + int(updates) * accumulate(trainer.current_epoch) + 1, 1
    most = None if updates == math.inf or not (automatic or open_end) else int(updates)
    if epochs == math.inf:
        epochs = math.ceil(updates / math.ceil(batches / max(1, constant))) + 1
    return Run(int(batches), int(epochs), accumulate, trainer.current_epoch, first_batch, most), open_end


def _configured(
    trainer: Any, pl_module: Any, run: Run, built: Mapping[int, float | None], restored: Sequence[float | None]
) -> Iterator[Scheduled]:
    """Yield what ``configure_optimizers`` returned."""
    endless_epoch = trainer.num_training_batches == math.inf
    for index, config in enumerate(trainer.lr_scheduler_configs):
        scheduler, depends = config.scheduler, ""
        steps = run.stepping(config.interval, config.frequency)
        if not pl_module.automatic_optimization:
            steps = np.zeros(run.updates, dtype=bool)
            depends = "the module's own manual optimization" if _steps_itself(trainer, pl_module, scheduler) else ""
        elif config.reduce_on_plateau:
            depends = f"the metric {config.monitor}"
        elif isinstance(scheduler, TrainerLR) and scheduler.unit == "ms":
            depends = "the clock"
        elif config.interval == "epoch" and endless_epoch:
            depends = "the length of an epoch, which the train loader does not tell"
        master = None if depends else Master(scheduler, steps, _own_step(trainer, pl_module, run))
        yield Scheduled(
            scheduler,
            config.interval,
            config.frequency,
            master,
            depends,
            manual=not pl_module.automatic_optimization,
            built=built.get(id(scheduler)),
            restored=restored[index] if index < len(restored) else None,
        )


def _hung_on(trainer: Any, pl_module: Any, run: Run) -> Iterator[Scheduled]:
    """Yield what the LearningRateScheduler callback has hung on the optimizers."""
    for callback in trainer.callbacks:
        if not has_class(callback, "LearningRateScheduler"):
            continue
        for scheduler in callback.schedulers:
            if scheduler.key != "lr":
                continue
            depends = "the clock" if scheduler.unit == "ms" else ""
            if not pl_module.automatic_optimization and trainer.max_steps != -1:
                depends = "how often the module steps its optimizers, which max_steps counts"
            master = None if depends else Master(scheduler, np.ones(run.updates, dtype=bool), joins=True)
            yield Scheduled(scheduler, "update", 1, master, depends)


def _own_step(trainer: Any, pl_module: Any, run: Run) -> Any:
    """Return how the module steps a scheduler, if it has an ``lr_scheduler_step`` of its own, on a stand-in of it."""
    kind = type(pl_module)
    written_in = kind.lr_scheduler_step.__module__ or ""  # None: compiled from text
    if written_in.startswith(("lightning.", "pytorch_lightning.")):
        return None
    place = SimpleNamespace(epoch=trainer.current_epoch, step=trainer.global_step)
    stands_for: Any = type(
        kind.__name__,
        (kind,),
        {
            "current_epoch": property(lambda self: place.epoch),
            "global_step": property(lambda self: place.step),
            "log": lambda self, *args, **kwargs: None,
        },
    )
    stand_in = stands_for.__new__(stands_for)
    stand_in.__dict__.update(pl_module.__dict__)
    before = trainer.global_step

    def step(scheduler: Any, update: int) -> None:
        place.epoch, place.step = int(run.epoch[update]), before + update + 1
        stand_in.lr_scheduler_step(scheduler, None)

    return step


def _steps_itself(trainer: Any, pl_module: Any, scheduler: Any) -> bool:
    """Return whether the module or a callback seems to step the scheduler: asks for schedulers, or holds this one."""
    if any(value is scheduler for value in vars(pl_module).values()):
        return True
    classes = [cls for owner in (pl_module, *trainer.callbacks) for cls in type(owner).__mro__]
    codes = [
        function.__code__
        for cls in classes
        if not cls.__module__.startswith(("lightning.", "pytorch_lightning.", "torch.", "lit_cosine."))
        for function in vars(cls).values()
        if inspect.isfunction(function)
    ]
    return any(name in _ASKING for code in codes for name in _names_in(code))


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _joins(trainer: Any, run: Run) -> list[Join]:
    """Return the param group that BackboneFinetuning will add."""
    for callback in trainer.callbacks:
        if has_class(callback, "BackboneFinetuning") and callback.previous_backbone_lr is None:
            begins = np.flatnonzero(run.epoch == callback.unfreeze_backbone_at_epoch)
            if len(begins):
                return [Join(int(begins[0]), callback.backbone_initial_lr, callback.backbone_initial_ratio_lr)]
    return []


def _found(trainer: Any) -> float | None:
    """Return the LR that LearningRateFinder has set."""
    for callback in trainer.callbacks:
        if has_class(callback, "LearningRateFinder") and callback._update_attr and callback.optimal_lr is not None:
            suggestion = callback.optimal_lr.suggestion()
            return None if suggestion is None else float(suggestion)
    return None


def _swa_epoch(trainer: Any, run: Run) -> int | None:
    for callback in trainer.callbacks:
        if has_class(callback, "StochasticWeightAveraging") and (run.epoch >= callback.swa_start).any():
            return int(callback.swa_start)
    return None
