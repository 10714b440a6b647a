"""LearningRateScheduler: a schedule for any LightningModule, without a change of the module.

Convention: the schedulers are stepped at the end of the batch that made an update, once for every update that the
Trainer counts; TrainerLR finds those that a GradScaler skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_flag, as_integer, as_number, check_choice, read_state, shown
from lit_cosine._compat import callbacks_of, finder_sets_lr, forget_module, has_class, own_attributes
from lit_cosine.schedules import (
    Constant,
    Cosine,
    Duration,
    OneMinusSqrt,
    OnResize,
    Schedule,
    as_schedule,
    check_on_resize,
    check_schedule,
)
from lit_cosine.training._changes import log_warning
from lit_cosine.training._own_curves import as_own_curves, check_keys_of, check_patterns, unmatched
from lit_cosine.training._param_groups import IdleScheduler, has_entry, optimizer_names, own_names, restore_peaks
from lit_cosine.training._plan_line import GlobalBatch, joined, plan_line
from lit_cosine.training._run_length import Run, plan
from lit_cosine.training._trainer_lr import TrainerLR, check_cooldown, may_be_endless

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["LearningRateScheduler"]

_CHECKPOINT_KEY = "lit_cosine.LearningRateScheduler"


class LearningRateScheduler(Callback):
    """Gives any LightningModule a schedule; nothing in the module changes.

    The length is that of the Trainer's run. Under automatic optimization progress counts real updates, under manual
    optimization the run's batches, and where ``max_time`` is the only limit the time: every optimizer is at its end
    when the run ends. Resumes exactly from any checkpoint; from one that was made without it, it continues where the
    run is. Param groups that join while training bring their own base LR, and a group's LR that is changed from outside
    (an LR finder, a finetuning callback) moves its base LR. Give ``BackboneFinetuning`` a ``backbone_initial_lr``: its
    ratio is of the LR of that moment, which has the factor in it. Where a LearningRateMonitor is listed before this
    callback and a finetuning callback behind it, the monitor's first point of a group is its LR before it joined.

    Args:
        schedule: The curve of the learning rate.
        warmup: Linear warmup before it: ``"500step"``, ``"2ep"``, ``"5%"``; ``"30s"`` under ``max_time``. Under manual
            optimization a step is a batch.
        cooldown: Length of the cooldown at the run's end, like ``warmup``.
        cooldown_schedule: The curve of the cooldown, which scales the schedule's end.
        on_resize: What a changed run length does to the rest of the run: ``"continue"``, ``"rescale"``, ``"keep"`` or
            ``"restart"``, see ``Clock.reanchor``.
        replace: Whether to take the place of the schedulers that ``configure_optimizers`` returns.
        groups: Curves of their own for some param groups, by pattern of their names: ``"head"`` (which is also
            ``"head.no_decay"``), ``"backbone*"``, ``"pg2"`` by place, ``"lr-Adam/pg2"``; the first that matches counts.
            A schedule, or a mapping with any of ``schedule``, ``warmup``, ``cooldown``, ``cooldown_schedule`` and names
            of other entries; the rest is the run's. A group that joins has its own warmup from the step it joins.
        reference_batch_size: The global batch (samples of one update: batch size, accumulation and devices) that the
            optimizer's LRs are meant for. A run with another one multiplies them by the ratio, once, before its first
            update; a resume with another one by the ratio of the two. An LR that a finder has found is left as it is,
            and so is that of a group that joins later. None scales nothing.
        batch_scaling: ``"linear"``, or ``"sqrt"`` for the square root of the ratio.
        **hyperparameters: Schedules for other entries of the param groups, by name, each a factor of the group's own
            value over the whole run: ``weight_decay=Linear(start=1, end=10)``, ``momentum``, ``eps``, ``beta1``,
            ``beta2``. Optimizers and groups that lack the entry are left alone.

    Raises:
        TypeError: If a schedule, a duration or ``replace`` has the wrong type.
        ValueError: If ``lr`` is among the hyperparameters; before training, if the module has no optimizer or already
            has a scheduler, the run's length cannot be determined, a part of the plan does not fit, no group has an
            entry that is scheduled or the name of a pattern, or a beta would reach 1.

    >>> import lightning.pytorch as pl
    >>> trainer = pl.Trainer(max_epochs=10, callbacks=[LearningRateScheduler(Cosine(end=0.01), warmup="500step")],
    ...                      accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        schedule: Schedule = Cosine(),
        *,
        warmup: str | Duration = "0step",
        cooldown: str | Duration = "0step",
        cooldown_schedule: Schedule = OneMinusSqrt(),
        on_resize: OnResize = "continue",
        replace: bool = False,
        groups: Mapping[str, Any] | None = None,
        reference_batch_size: int | None = None,
        batch_scaling: Literal["linear", "sqrt"] = "linear",
        **hyperparameters: Schedule,
    ) -> None:
        check_on_resize(on_resize)
        check_schedule("schedule", schedule)
        check_schedule("cooldown_schedule", cooldown_schedule)
        if "interval" in hyperparameters:
            raise TypeError(
                "LearningRateScheduler has no interval, it follows every update; lr_scheduler_config takes one, in the "
                f"module, got {shown(hyperparameters['interval'])}"
            )
        if "lr" in hyperparameters:
            raise ValueError(
                f"lr is scheduled by the first argument: write LearningRateScheduler({shown(hyperparameters['lr'])})"
            )
        self.schedules = {"lr": schedule}
        for key, curve in hyperparameters.items():
            try:  # YAML gives plain data where no signature names a type
                self.schedules[key] = as_schedule(key, curve, imports=True)
            except (TypeError, ValueError) as error:  # a misspelt argument ends up here too
                known = "warmup, cooldown, on_resize, replace, groups, reference_batch_size and batch_scaling"
                raise type(error)(f"{str(error)[:170]}; arguments that are no schedules: {known}") from None
        self.groups = as_own_curves(groups)
        for own in self.groups.values():
            for key in own.schedules:
                self.schedules.setdefault(key, Constant())
        self.warmup = Duration.parse(warmup, "warmup")
        self.cooldown = Duration.parse(cooldown, "cooldown")
        self.cooldown_schedule = cooldown_schedule
        self.on_resize: OnResize = on_resize
        self.replace = as_flag("replace", replace)
        batch = reference_batch_size
        self.reference_batch_size = None if batch is None else as_integer("reference_batch_size", batch, least=1)
        check_choice("batch_scaling", batch_scaling, ("linear", "sqrt"))
        self.batch_scaling = batch_scaling
        self._schedulers: dict[str, TrainerLR] = {}  # by the optimizer and the entry, "Adam/weight_decay"
        self._state: Any = None  # of the checkpoint, until it is restored
        self._own_lrs: list[list[float]] = []
        self._own_names: list[list[str | None]] = []
        self._ended: dict[str, Any] = {}  # what a checkpoint of a run that has ended holds of the schedulers
        self._counted = 0
        self._scale: float | None = None  # what the LRs of the reference batch size are multiplied by
        self._finder: Any = False  # the callback that finds the LR; after a fit, whether one has found it

    @property
    def schedulers(self) -> tuple[TrainerLR, ...]:
        """The schedulers of the present training, one for each optimizer and scheduled entry; empty otherwise."""
        return tuple(self._schedulers.values())

    @property
    def _of_lr(self) -> list[TrainerLR]:
        return [scheduler for scheduler in self.schedulers if scheduler.key == "lr"]

    def start_cooldown(self, cooldown: str | Duration | None = None) -> None:
        """Begin the cooldown now, at the present LR; the run ends after it.

        Args:
            cooldown: Its length; the callback's own where None. A share x of the run is s * x / (1 - x) after s steps.

        Raises:
            TypeError: If ``cooldown`` is no duration.
            ValueError: If it has no length, no training is under way or has a step left, or a cooldown was started.
        """
        length = self.cooldown if cooldown is None else Duration.parse(cooldown, "cooldown")
        check_cooldown(length)
        if not self._of_lr:
            raise ValueError("a cooldown can only be started while the Trainer is training")
        for scheduler in self._of_lr:
            scheduler.start_cooldown_of(length)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # what cannot work together is refused before anything is built
        if stage != "fit":
            return
        self._schedulers, self._ended, self._state, self._scale = {}, {}, None, None
        others = [callback for callback in callbacks_of(trainer) if callback is not self]
        # a Tuner adds one for its own fit, before the training
        finders = [one for one in others if has_class(one, "LearningRateFinder") and finder_sets_lr(one)]
        self._finder = finders[-1] if finders else self._finder
        if any(isinstance(callback, LearningRateScheduler) for callback in others):
            raise ValueError("a Trainer takes one LearningRateScheduler, got several: join their schedules into one")
        if any(has_class(callback, "StochasticWeightAveraging") for callback in others):
            raise ValueError(
                "LearningRateScheduler cannot work beside StochasticWeightAveraging, which anneals the LR to its own "
                "swa_lrs: use WeightAveraging instead, or end the schedule in a Constant"
            )
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise ValueError(
                f"LearningRateScheduler cannot follow the optimizer inside {type(trainer.strategy).__name__}: "
                "use lr_scheduler_config in configure_optimizers"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # by now configure_optimizers has run, and the checkpoint's optimizer states are not loaded yet
        optimizers = trainer.optimizers
        if not any("lr" in group for optimizer in optimizers for group in optimizer.param_groups):
            raise ValueError("LearningRateScheduler needs an optimizer, but configure_optimizers returned none")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise ValueError(
                    "LearningRateScheduler follows torch.optim.Optimizer, which "
                    f"{type(optimizer).__name__} is not: use lr_scheduler_config in configure_optimizers"
                )
        if trainer.lr_scheduler_configs:
            self._replace_schedulers(trainer, pl_module)
        check_keys_of(optimizers, self.schedules, self.groups)
        check_patterns(self.groups, optimizers, callbacks_of(trainer))
        self._own_names = [own_names(optimizer) for optimizer in optimizers]
        # a finetuning callback may have put groups of the first run here, which have the LR of that moment
        self._own_lrs = [[float(g.get("initial_lr", g["lr"])) for g in one.param_groups] for one in optimizers]

    def _replace_schedulers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        configs = trainer.lr_scheduler_configs
        if not self.replace:
            names = ", ".join(type(config.scheduler).__name__ for config in configs)
            raise ValueError(
                f"the module's configure_optimizers already returns a scheduler ({names}): let it return the "
                "optimizer alone, or pass replace=True to LearningRateScheduler"
            )
        for config in configs:
            peaks, reached = restore_peaks(config.scheduler)
            if any(high > 1.01 * peak for peak, high in zip(peaks, reached, strict=True)):
                rank_zero_warn(
                    f"the {type(config.scheduler).__name__} that was replaced reaches {joined(reached)}; the peak LR "
                    f"of this schedule is the optimizer's, {joined(peaks)}"
                )
        # a module that steps its schedulers itself finds some that do nothing
        stand_ins: list[Any] = [IdleScheduler(config.scheduler.optimizer) for config in configs]
        idle = [replace(config, scheduler=one) for config, one in zip(configs, stand_ins, strict=True)]
        trainer.strategy.lr_scheduler_configs = [] if pl_module.automatic_optimization else idle

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizers, endless = trainer.optimizers, may_be_endless(trainer, self.schedules["lr"], self.groups)
        planned = plan(trainer, self.warmup, cooldown=self.cooldown, endless=endless)
        self._schedulers = {
            f"{name}/{key}": TrainerLR(
                optimizer,
                schedule,
                planned if key == "lr" else planned.with_parts(_NONE, _NONE),
                self.on_resize,
                cooldown_schedule=self.cooldown_schedule,
                key=key,
                groups=self.groups,
                label=f"lr-{name}",
                names=names,
            )
            for optimizer, name, names in zip(optimizers, optimizer_names(optimizers), self._own_names, strict=True)
            for key, schedule in self.schedules.items()
            if has_entry(optimizer, key)
        }
        batch = self._scale_of_batch(trainer)
        if self._state is not None:
            self._restore(trainer)
        elif trainer.ckpt_path:  # of a run that began without this callback
            for scheduler in self.schedulers:
                scheduler.adopt(planned.run)
        elif not self._found_an_lr():
            self._scale_lrs(self._scale or 1.0)
        self._counted = trainer.global_step
        rank_zero_info(plan_line(planned, self.schedules, self._of_lr, self.groups, self.cooldown_schedule, batch))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for scheduler in self.schedulers:
            scheduler.join()  # param groups that a finetuning callback has just added

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for scheduler in self.schedulers:
            scheduler.join()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # an LR finder trains with callbacks of its own: this hook does not run then
        self._step(trainer, pl_module)

    def _step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedulers if the Trainer has made an update since the last call. One that raised does not count."""
        before, self._counted = self._counted, trainer.global_step
        if pl_module.automatic_optimization and self._counted == before:
            return
        for scheduler in self.schedulers:
            # after an error on one rank, the broadcast of the clock would wait for the others
            if scheduler.unit != "ms" or not trainer.interrupted:
                scheduler.step()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if states := self._states(trainer, pl_module):
            checkpoint[_CHECKPOINT_KEY] = {"version": STATE_VERSION, "schedulers": states, "batch_scale": self._scale}

    def _states(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        if self._schedulers and self._state is not None:  # the resume is refused
            return dict(self._state["schedulers"])
        # a callback that saves in on_train_batch_end may be listed before this one
        self._step(trainer, pl_module)
        return {name: scheduler.state_dict() for name, scheduler in self._schedulers.items()} or self._ended

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        if (state := checkpoint.get(_CHECKPOINT_KEY)) is not None:
            state = {} if isinstance(state, list) else state  # how lit_cosine 1.x wrote it
            state = read_state("LearningRateScheduler", state, {"schedulers": {}, "batch_scale": None})
            if not isinstance(states := state["schedulers"], dict):
                raise ValueError(f"LearningRateScheduler's state must hold schedulers by name, got {shown(states)}")
        self._state = state
        if self._schedulers and state is not None:  # an LR finder in the middle of the run puts everything back
            self._restore(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if missing := unmatched(self.groups, trainer.optimizers):
            rank_zero_warn(f"groups: no param group that joined was named by {', '.join(missing)}")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(Exception):  # the exception that ended the run is the one that is raised
            self._leave(trainer, pl_module)  # Lightning calls no teardown after it

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer, pl_module)

    def _leave(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Release the Trainer, the module and the optimizers; a checkpoint can still be saved after that."""
        for scheduler in self.schedulers:
            scheduler.remove_hooks()
        forget_module(self)
        self._finder = self._found_an_lr()
        self._ended, self._schedulers = self._states(trainer, pl_module), {}

    def __getstate__(self) -> dict[str, Any]:
        # a copy, among hyperparameters or in a spawned process, has no part in the run
        return {**own_attributes(self), "_schedulers": {}, "_ended": {}, "_finder": self._found_an_lr()}

    def _restore(self, trainer: Trainer) -> None:
        states, scale = self._state["schedulers"], self._state["batch_scale"]
        for name, scheduler in self._schedulers.items():
            if name in states:
                scheduler.load_state_dict(states[name])
            else:
                log_warning("the checkpoint has no schedule of %s, which continues where the run is", name)
                scheduler.adopt(Run(trainer))
        if unknown := [name for name in states if name not in self._schedulers]:
            log_warning("schedules of the checkpoint that this run does not have: %s", ", ".join(unknown))
        if scale is not None and self._scale is not None:
            ratio = self._scale / as_number("batch_scale", scale, above=0.0)
            if ratio != 1.0:
                log_warning("another global batch than in the checkpoint: its LRs are multiplied by %.4g", ratio)
            self._scale_lrs(ratio)
        for own, scheduler in zip(self._own_lrs, self._of_lr, strict=True):
            saved, code = scheduler.base_lrs[: len(own)], [lr * (self._scale or 1.0) for lr in own]
            if any(not math.isclose(one, base, rel_tol=1e-6) for one, base in zip(code, saved, strict=False)):
                log_warning("peak LR: %s, from the checkpoint; the code has %s", joined(saved), joined(code))
        self._state = None

    def _scale_of_batch(self, trainer: Trainer) -> str:
        """Take the scale of this run's global batch, and return the batch in words."""
        batch, reference = GlobalBatch.of(trainer), self.reference_batch_size
        if reference is None:
            return str(batch or "")
        if batch is None:
            raise ValueError(
                "reference_batch_size needs the global batch, and the train loader has no batch_size: give it one, or "
                "scale the LR in configure_optimizers"
            )
        ratio = batch.size / reference
        self._scale = math.sqrt(ratio) if self.batch_scaling == "sqrt" else ratio
        if self._found_an_lr():
            return f"{batch} (not scaled: the LR that was found)"
        return f"{batch} (LRs × {self._scale:.4g} of those at {reference:,})"

    def _found_an_lr(self) -> bool:
        """Return whether an LR finder has set the LRs, which then are those of the present batch."""
        found = getattr(self._finder, "optimal_lr", None)
        return self._finder is True or (found is not None and found.suggestion() is not None)

    def _scale_lrs(self, ratio: float) -> None:
        if ratio != 1.0:
            for scheduler in self._of_lr:
                scheduler.scale(ratio)


_NONE = Duration(value=0, unit="step")
