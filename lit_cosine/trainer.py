"""The scheduler that takes its length from a Trainer and follows it, and how Lightning calls what it plays.

Convention: a change of the Trainer's limits is heard at the next step, and only then is the rest planned anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from torch.optim import Optimizer

from lit_cosine.horizon import Duration, OnResize
from lit_cosine.run_length import Interval, Plan, Run, Unit, plan, total_steps
from lit_cosine.schedule import Schedule
from lit_cosine.scheduler import ScheduleLR, log_warning

__all__ = ["Interval", "Plan", "TrainerLR", "lr_names", "lr_scheduler_config", "plan", "skipped_update", "total_steps"]


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
        TypeError: If ``optimizer``, ``schedule``, ``trainer`` or ``warmup`` has the wrong type.

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
        self._run: Run | None = None  # torch's constructor makes the first step, on nobody's clock
        super().__init__(optimizer, schedule, planned.total, planned.warmup, on_resize, key=key)
        self._run = planned.run
        self._limits = planned.run.limits()
        self._share = planned.share
        self._unknown = bool(planned.run.trainer.ckpt_path)  # to the checkpoint, until its state is loaded

    def step(self, epoch: int | None = None) -> None:
        """Move on with the Trainer: by one step or epoch, to the batch it is at, or to the time that has passed."""
        run = self._run
        if run is not None and self._unknown:
            self.adopt(run)
            at, total = f"{self.last_epoch:,.0f}", f"{self.total_steps:,}"
            where = "the checkpoint knows nothing of this schedule, which goes on where the run is: %s %s of %s"
            log_warning(where, self.unit, at, total)
        elif run is None or epoch is not None or not self._catch_up(run):
            super().step(epoch)
        if run is not None and self._limits != (limits := run.limits()):
            self._limits = limits
            self._follow(Run(run.trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore as ScheduleLR does; progress that is the Trainer's own is read off it again."""
        super().load_state_dict(state_dict)
        self._unknown = False
        if self._run is not None:
            self._catch_up(self._run)

    def adopt(self, run: Run) -> None:
        """Go to where a resumed Trainer is whose checkpoint was made without this scheduler."""
        self._unknown = False
        if not self._catch_up(run):
            epochs, steps, _ = run.done_now(self.unit)
            self.move_to(epochs if self.unit == "epoch" else steps)

    def _catch_up(self, run: Run) -> bool:
        """Go to where the Trainer is, and return True, if that is not counted in calls of ``step()``."""
        if self.unit == "ms":
            self.move_to(min(run.elapsed_ms(), self.total_steps))
        elif self.unit == "batch":
            self.move_to(run.batch_position(self.total_steps))
        return self.unit in ("ms", "batch")

    def _follow(self, run: Run) -> None:
        """Plan what is left anew, now that the Trainer's limits are others."""
        if self.unit == "ms":
            return
        left = run.left(self.unit, *run.done_now(self.unit))
        if 0 < left < math.inf and self.last_epoch + left != self.total_steps:
            total = math.ceil(self.last_epoch + left)
            self.resize(total, None if self._share is None else min(round(self._share * total), total - 1))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


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


def skipped_update(optimizer: Optimizer) -> bool:
    """Return whether the step just made was none: a fused optimizer whose GradScaler has found inf skips in its kernel.

    Other optimizers are not called at all then.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)
