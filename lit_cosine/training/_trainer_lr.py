"""The scheduler that takes its length from a Trainer and follows it.

Convention: a change of the Trainer's limits is read at the next step, and only then is the rest planned again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from torch.optim import Optimizer
from typing_extensions import override

from lit_cosine._checks import check_choice, in_one_line
from lit_cosine._compat import callbacks_of, has_class, has_step_hooks
from lit_cosine.schedules import Constant, Duration, OneMinusSqrt, OnResize, Schedule, Unit
from lit_cosine.training._changes import ENDLESS, Lengths, log_warning
from lit_cosine.training._clock import SharedClock
from lit_cosine.training._own_curves import OwnCurve, as_own_curves, check_patterns
from lit_cosine.training._param_groups import loss_scale, set_own_names, skipped_update
from lit_cosine.training._played import Played
from lit_cosine.training._run_length import Interval, Plan, Run, length_in_run, plan
from lit_cosine.training._schedule_lr import ScheduleLR
from lit_cosine.training._step_hooks import StepHooks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["TrainerLR", "check_cooldown", "lr_scheduler_config", "may_be_endless", "schedulers_of"]


def lr_scheduler_config(
    optimizer: Optimizer,
    schedule: Schedule,
    trainer: Trainer,
    *,
    warmup: str | Duration = "0step",
    cooldown: str | Duration = "0step",
    cooldown_schedule: Schedule = OneMinusSqrt(),
    interval: Interval = "step",
    on_resize: OnResize = "continue",
    name: str | None = None,
    groups: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the ``"lr_scheduler"`` entry for ``configure_optimizers``: ``schedule`` over exactly this Trainer's run.

    The scheduler follows the Trainer: if the run's length changes while it trains (``max_epochs`` raised, a loader that
    grows on reload) the rest is planned again as ``on_resize`` says. With ``max_time`` as the only limit, progress is
    the elapsed share of it, the same on every rank.

    Args:
        optimizer: The optimizer that ``configure_optimizers`` returns.
        schedule: The curve.
        trainer: ``self.trainer``.
        warmup: Linear warmup before the schedule: ``"500step"``, ``"2ep"``, ``"5%"``; ``"30s"`` under ``max_time``.
        cooldown: Length of the cooldown at the run's end, like ``warmup``; it stays at the end when the length changes.
        cooldown_schedule: The curve of the cooldown, which scales the schedule's end.
        interval: Whether the LR moves after every optimizer ``"step"`` or after every ``"epoch"``.
        on_resize: What a changed length does, see ``Clock.reanchor``.
        name: What LearningRateMonitor calls the curve; by default ``lr-<optimizer class>``.
        groups: Curves of their own for some param groups, as in ``LearningRateScheduler``.

    Raises:
        ValueError: If the run's length cannot be determined, warmup and cooldown do not fit into it, or a pattern of
            ``groups`` names no param group.
        TypeError: If an argument has the wrong type.

    >>> import torch, lightning.pytorch as pl
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> from lit_cosine import Cosine
    >>> class Model(BoringModel):
    ...     def configure_optimizers(self):
    ...         optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
    ...         config = lr_scheduler_config(optimizer, Cosine(end=0.01), self.trainer, warmup="2step")
    ...         return {"optimizer": optimizer, "lr_scheduler": config}
    """
    check_choice("interval", interval, get_args(Interval))
    own = as_own_curves(groups)
    if isinstance(optimizer, Optimizer):
        check_patterns(own, [optimizer], getattr(trainer, "callbacks", ()))
    planned = plan(trainer, warmup, interval, cooldown, endless=may_be_endless(trainer, schedule, own))
    scheduler = TrainerLR(optimizer, schedule, planned, on_resize, cooldown_schedule=cooldown_schedule, groups=own)
    config: dict[str, Any] = {"scheduler": scheduler, "interval": interval, "frequency": 1}
    return _Config(config if name is None else {**config, "name": name})


class _Config(dict[str, Any]):
    """What Lightning takes for the key ``lr_scheduler``; returned alone, Lightning asks it for an optimizer."""

    def __missing__(self, key: str) -> Any:
        if key == "optimizer":
            raise TypeError(
                "configure_optimizers must return the optimizer too: "
                'return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(...)}'
            )
        raise KeyError(key)


def may_be_endless(trainer: Trainer, schedule: Schedule, groups: Mapping[str, OwnCurve]) -> bool:
    """Return whether the run needs no known end: constant LRs whose cooldown a CooldownOnPlateau begins."""
    triggered = any(has_class(one, "CooldownOnPlateau") for one in getattr(trainer, "callbacks", ()))
    curves = [schedule, *(own.schedules.get("lr", schedule) for own in groups.values())]
    return triggered and all(isinstance(curve, Constant) for curve in curves)


class TrainerLR(ScheduleLR):
    """A ScheduleLR that takes its length from a Trainer and follows it, for both ways in.

    Its copies and pickles leave the Trainer behind and are plain closed-form schedulers.
    """

    unit: Unit
    _curves_of_groups: dict[str, Played]

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        planned: Plan,
        on_resize: OnResize = "continue",
        *,
        cooldown_schedule: Schedule = OneMinusSqrt(),
        key: str = "lr",
        groups: Mapping[str, OwnCurve] | None = None,
        label: str | None = None,
        names: Sequence[str | None] | None = None,
    ) -> None:
        self.unit = planned.unit
        self._plans, self._curves_of_groups, self._label = [planned], {}, label
        if names is not None:
            self._names = names
            set_own_names(optimizer, names)
        for pattern, own in (groups or {}).items():
            if key == "lr" or key in own.schedules:
                self._add_curve(pattern, own, key, schedule, cooldown_schedule)
        self._run: Run | None = None  # torch's constructor makes the first step, without a Trainer
        self._settled = False
        lengths = planned.lengths
        super().__init__(
            optimizer,
            schedule,
            lengths.total,
            lengths.warmup,
            on_resize,
            cooldown_steps=lengths.cooldown,
            cooldown_schedule=cooldown_schedule,
            key=key,
        )
        self._run = planned.run
        self._limits = planned.run.limits()
        self._clock_of_ranks = SharedClock(planned.run.trainer)
        self._unknown = bool(planned.run.trainer.ckpt_path)  # to the checkpoint, until its state is loaded
        self._heard = self._ever_heard = False  # whether a step hook has fired since the last step
        self._silent = not has_step_hooks(optimizer)
        self._scale = loss_scale(planned.run.trainer)
        self._hooks = StepHooks()
        if not self._silent:
            self._hooks.add(optimizer, before=self._before_update, after=self._after_update)

    def _add_curve(self, pattern: str, own: OwnCurve, key: str, schedule: Schedule, cooldown: Schedule) -> None:
        """Plan a curve of some groups' own; what they do not have is the run's."""
        of_run, parts = self._plans[0], (own.warmup, own.cooldown) if key == "lr" else (None, None)
        try:
            planned = of_run.with_parts(parts[0] or of_run.warmup, parts[1] or of_run.cooldown)
        except ValueError as error:
            raise ValueError(f"groups.{in_one_line(pattern, 80)}: {error}") from None
        self._plans.append(planned)
        self._curves_of_groups[pattern] = Played.of_run(
            own.schedules.get(key, schedule),
            planned.lengths,
            own.cooldown_schedule or cooldown,
            own_warmup=parts[0] is not None,
        )

    @property
    def group_schedules(self) -> dict[str, Schedule]:
        """The curves that some groups have of their own, by the pattern of their names."""
        return {pattern: curve.schedule for pattern, curve in self._curves_of_groups.items()}

    @override
    def step(self, epoch: int | None = None) -> None:
        """Move on with the Trainer: by one step or epoch, to the batch it is at, or to the time that has passed."""
        run = self._run
        if run is not None and self._was_skipped(run):
            # the run makes one update less: as "continue", under every policy and without a line
            self._resize_to(self.last_epoch + run.left(self.unit, *run.done_now(self.unit)), "continue", quiet=True)
            return
        if run is not None and self._unknown:
            self.adopt(run)
            at, total = f"{self.last_epoch:,.0f}", f"{self.total_steps or ENDLESS:,}"
            where = "the checkpoint has no state of this schedule, which continues where the run is: %s %s of %s"
            log_warning(where, self.unit, at, total)
        elif run is None or epoch is not None or not self._catch_up(run):
            super().step(epoch)
        if run is not None:
            self._follow(run)
            if self.cooling_down and self.total_steps is not None and self.last_epoch >= self.total_steps:
                run.trainer.should_stop = True

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore as ScheduleLR does; progress that is the Trainer's own is read from it again."""
        super().load_state_dict(state_dict)
        self._unknown = self._settled = False
        if self._run is not None:
            self._limits, self._scale = self._run.limits(), loss_scale(self._run.trainer)
            self._catch_up(self._run)

    def adopt(self, run: Run) -> None:
        """Go to where a resumed Trainer is whose checkpoint was made without this scheduler."""
        self._unknown = False
        if not self._catch_up(run):
            epochs, steps, *_ = run.done_now(self.unit)
            self.move_to(epochs if self.unit == "epoch" else steps)

    def scale(self, ratio: float) -> None:
        """Multiply every base LR by ``ratio``, at the present step; it is no change from outside."""
        self._sync_external_changes()
        self.base_lrs = [base * ratio for base in self.base_lrs]
        self._write()

    def remove_hooks(self) -> None:
        """Stop listening to the optimizer."""
        self._hooks.remove()

    def start_cooldown_of(self, cooldown: Duration) -> None:
        """Begin the cooldown now, for a duration; a share x of the run is C = s * x / (1 - x) after s steps."""
        run, done = self._run, float(self.last_epoch)
        if run is None:
            raise ValueError("a copy of a scheduler has no Trainer: use start_cooldown with a number of steps")
        if cooldown.unit == "run":
            steps = round(done * cooldown.value / (1.0 - cooldown.value))
        else:
            steps = length_in_run(run, cooldown, self.unit, ENDLESS, "cooldown")
        self.start_cooldown(max(1, steps))

    @override
    def _asked(self, code: list[Lengths]) -> list[Lengths]:
        """Return what was done plus what is really left, which is the length that a resumed run has."""
        run = self._run
        if run is None or self.unit == "ms" or self._plans[0].lengths.total == ENDLESS:
            return code
        run = Run(run.trainer)
        left = run.left(self.unit, *run.done_before())
        done = run.trainer.fit_loop.total_batch_idx + 1 if self.unit == "batch" else self.last_epoch
        total = self._plans[0].lengths.total if left == math.inf else max(1, math.ceil(done + left))
        return [planned.lengths_of(total, run) for planned in self._plans]

    def _after_update(self, optimizer: Optimizer, *_: Any) -> None:
        self._heard |= not skipped_update(optimizer)

    def _was_skipped(self, run: Run) -> bool:
        """Return whether the update that Lightning counts was none, because a GradScaler skipped it."""
        # a hook that fires twice, as for a subclass that calls super().step(), is one update
        heard, self._heard = self._heard, False
        self._ever_heard |= heard
        if self.unit != "step" or heard:
            return False
        if self._ever_heard and getattr(run.trainer.precision_plugin, "scaler", None) is not None:
            return True
        # torch 2.13: a wrapper that skips Optimizer.__init__ calls no hooks; where a GradScaler skips, its scale falls
        before, self._scale = self._scale, loss_scale(run.trainer)
        if self._scale < before:
            return True
        if not self._silent:
            self._silent = True
            log_warning("%s calls no step hooks: its updates are counted by the Trainer", type(self.optimizer).__name__)
        return False

    def _before_update(self, *_: Any) -> None:
        """Before the first update settle base LRs and the length: everything that can set them has run by then."""
        run = self._run
        if self._settled or run is None or self.unit not in ("step", "epoch"):
            return
        if all(one is not self for one in schedulers_of(run.trainer)):
            return  # an LR finder trains with a scheduler of its own, and puts the run back after it
        self._settled = True
        if self.last_epoch == 0:  # an LR finder has set the peak, not the first LR
            self._sync_external_changes()
            self._write()
        if self.unit == "step" and not self._unknown:
            # loops that were restored have found their place by now: correct what was asked for at the resume
            done = run.done_now(self.unit)
            self._resize_to(self.last_epoch + 1 + Run(run.trainer).left(self.unit, *done), self.on_resize, quiet=True)

    def _catch_up(self, run: Run) -> bool:
        """Go to where the Trainer is, and return True, if that is not counted in calls of ``step()``."""
        if self.unit == "ms":
            self.move_to(min(self._clock_of_ranks.read(run.elapsed_ms()), self._curves.total))
        elif self.unit == "batch":
            self.move_to(run.batch_position(self._curves.total))
        return self.unit in ("ms", "batch")

    def _follow(self, run: Run) -> None:
        """Plan what is left again where the Trainer's limits have changed."""
        if self.unit == "ms" or self._curves.total == ENDLESS:
            return
        if self._limits != (limits := run.limits()):
            self._limits = limits
            left = Run(run.trainer).left(self.unit, *run.done_now(self.unit))
            self._resize_to(self.last_epoch + left, self.on_resize)

    def _resize_to(self, total: float, on_resize: OnResize, *, quiet: bool = False) -> None:
        if self.last_epoch < total < math.inf and self._run is not None:
            run = Run(self._run.trainer)
            lengths = [planned.lengths_of(math.ceil(total), run) for planned in self._plans]
            self._change_lengths(lengths, on_resize, quiet=quiet)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None, "_plans": [], "_clock_of_ranks": None}


def check_cooldown(cooldown: Duration) -> None:
    """Refuse what :meth:`TrainerLR.start_cooldown_of` cannot begin."""
    if cooldown.value == 0.0 or (cooldown.unit == "run" and cooldown.value == 1.0):
        raise ValueError(f'cooldown must have a length below that of the run, such as "20%", got {cooldown}')


def schedulers_of(trainer: Trainer) -> list[TrainerLR]:
    """Return the schedulers that follow ``trainer``: its module's and those of a LearningRateScheduler."""
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    for callback in callbacks_of(trainer):
        if has_class(callback, "LearningRateScheduler"):
            found += callback.schedulers
    return [one for one in found if isinstance(one, TrainerLR)]
