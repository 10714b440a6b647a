"""Callbacks that give any LightningModule a schedule and show the learning rates it really used.

Convention: callbacks hang on the optimizer, not on the loop: an optimizer's step hook fires once per real update, so
accumulation, skipped updates and ``frequency`` need no special case.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lit_cosine.horizon import Duration, OnResize, check_on_resize
from lit_cosine.run_length import Plan, counted, plan
from lit_cosine.schedule import Schedule, check_schedule
from lit_cosine.scheduler import check_key
from lit_cosine.schedules import Cosine
from lit_cosine.trainer import TrainerLR, lr_names, skipped_update

__all__ = ["LearningRateScheduler"]

_CHECKPOINT_KEY = "lit_cosine.LearningRateScheduler"


class LearningRateScheduler(Callback):
    """Gives any LightningModule a schedule; nothing in the module changes.

    The length is the Trainer's own run. Under automatic optimization progress counts real updates, under manual
    optimization the run's batches, and where ``max_time`` is the only limit the time: every optimizer is at its end
    when the run ends. Resumes exactly from any checkpoint, and goes on where the run is from one made without it. Param
    groups that join while training bring their own base LR, and a group's LR that is changed from outside (an LR
    finder, a finetuning callback) moves its base LR. So give ``BackboneFinetuning`` a ``backbone_initial_lr``: its
    ratio is of the LR of the moment, which has the factor in it. A LearningRateMonitor before it and a finetuning
    callback behind it is the one order in which a group's first point is its LR before it joined.

    Args:
        schedule: The curve of the learning rate.
        warmup: Linear warmup before it: ``"500step"``, ``"2ep"``, ``"5%"``; ``"30s"`` under ``max_time``. Under manual
            optimization a step is a batch.
        on_resize: What a changed run length does to the rest of the run: ``"continue"``, ``"rescale"``, ``"keep"`` or
            ``"restart"``, see ``Clock.reanchor``.
        replace: Whether to take the place of the schedulers that ``configure_optimizers`` returns.
        **hyperparameters: Schedules for other entries of the param groups, by name, each a factor of the group's own
            value over the whole run: ``weight_decay=Linear(1, 10)``.

    Raises:
        TypeError: If a schedule or the warmup has the wrong type.
        ValueError: If ``lr`` is among the hyperparameters; before training, if the module has no optimizer or already
            has a scheduler, the run has no honest length, or the warmup or a hyperparameter does not fit.

    >>> import lightning.pytorch as pl
    >>> trainer = pl.Trainer(max_epochs=10, callbacks=[LearningRateScheduler(Cosine(end=0.01), warmup="500step")],
    ...                      accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        schedule: Schedule = Cosine(),
        *,
        warmup: str | Duration = "0step",
        on_resize: OnResize = "continue",
        replace: bool = False,
        **hyperparameters: Schedule,
    ) -> None:
        check_on_resize(on_resize)
        check_schedule("schedule", schedule)
        if "interval" in hyperparameters:
            raise TypeError(
                "LearningRateScheduler has no interval, it follows every update; lr_scheduler_config takes one, in the "
                f"module, got {hyperparameters['interval']!r}"
            )
        if "lr" in hyperparameters:
            raise ValueError(
                f"lr is scheduled by the first argument: write LearningRateScheduler({hyperparameters['lr']!r})"
            )
        self.schedules = {"lr": schedule}
        for key, curve in hyperparameters.items():
            # YAML gives plain data where no signature names a type
            self.schedules[key] = Schedule.from_dict(curve) if isinstance(curve, dict) else curve
            try:
                check_schedule(key, self.schedules[key])
            except TypeError as error:  # a misspelt argument ends up here too
                raise TypeError(f"{error}; arguments that are none: warmup, on_resize and replace") from None
        self.warmup = Duration.parse(warmup, "warmup")
        self.on_resize: OnResize = on_resize
        self.replace = replace
        self._schedulers: list[TrainerLR] = []
        self._handles: list[Any] = []
        self._state: list[dict[str, Any]] | None = None

    @property
    def schedulers(self) -> tuple[TrainerLR, ...]:
        """What plays the schedules, for every optimizer and hyperparameter one; empty before training starts."""
        return tuple(self._schedulers)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work together, before anything is built."""
        if stage != "fit":
            return
        self._schedulers, self._state = [], None
        others = [callback for callback in trainer.callbacks if callback is not self]
        if any(isinstance(callback, LearningRateScheduler) for callback in others):
            raise ValueError("a Trainer takes one LearningRateScheduler, got several: join their schedules into one")
        if any(cls.__name__ == "StochasticWeightAveraging" for callback in others for cls in type(callback).__mro__):
            raise ValueError(
                "LearningRateScheduler cannot work beside StochasticWeightAveraging, which anneals the LR to its own "
                "swa_lrs: use WeightAveraging instead, or end the schedule in a Constant"
            )
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise ValueError(
                f"LearningRateScheduler cannot hang on the optimizer inside {type(trainer.strategy).__name__}: "
                "use lr_scheduler_config in configure_optimizers"
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the optimizers, and take the place of the module's own schedulers where asked to."""
        self._detach()
        optimizers = trainer.optimizers
        if not any("lr" in group for optimizer in optimizers for group in optimizer.param_groups):
            raise ValueError("LearningRateScheduler needs an optimizer, but configure_optimizers returned none")
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer):
                raise ValueError(
                    "LearningRateScheduler hangs on torch.optim.Optimizer.register_step_post_hook, which "
                    f"{type(optimizer).__name__} does not have: use lr_scheduler_config in configure_optimizers"
                )
            for key in self.schedules:
                check_key(optimizer, key)
        if trainer.lr_scheduler_configs:
            if not self.replace:
                names = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
                raise ValueError(
                    f"the module's configure_optimizers already returns a scheduler ({names}): let it return the "
                    "optimizer alone, or pass replace=True to LearningRateScheduler"
                )
            for config in trainer.lr_scheduler_configs:
                _forget(config.scheduler)
            trainer.strategy.lr_scheduler_configs = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Settle the length, write the first LR and hang on the optimizers."""
        planned = plan(trainer, self.warmup)
        for optimizer in trainer.optimizers:
            for key, schedule in self.schedules.items():
                own = planned if key == "lr" else replace(planned, warmup=0, share=None)
                self._schedulers.append(TrainerLR(optimizer, schedule, own, self.on_resize, key=key))
        if self._state is not None:
            self._restore(self._state)
        elif trainer.ckpt_path:  # of a run that began without this callback
            for scheduler in self._schedulers:
                scheduler.adopt(planned.run)
        if pl_module.automatic_optimization:
            hook = partial(self._on_update, trainer)
            self._handles = [optimizer.register_step_post_hook(hook) for optimizer in trainer.optimizers]
        rank_zero_info(self._describe(planned, trainer))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let param groups join that a finetuning callback has just added."""
        for scheduler in self._schedulers:
            scheduler.join()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let param groups join that were added since."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Under manual optimization, go to where the run is now."""
        if not pl_module.automatic_optimization:
            for scheduler in self._schedulers:
                scheduler.step()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the schedulers' state: plain numbers and lists."""
        if self._schedulers:
            checkpoint[_CHECKPOINT_KEY] = [scheduler.state_dict() for scheduler in self._schedulers]

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the schedulers' state up, now or when they are built."""
        if trainer.state.fn == "fit":
            self._state = checkpoint.get(_CHECKPOINT_KEY)
            if self._schedulers and self._state is not None:
                self._restore(self._state)  # an LR finder in the middle of the run puts everything back

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the optimizers; Lightning calls no teardown after an exception."""
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the optimizers."""
        self._detach()

    def _on_update(self, trainer: Any, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # an LR finder trains with callbacks of its own, and puts the run back after it
        if self not in trainer.callbacks or skipped_update(optimizer):
            return
        for scheduler in self._schedulers:
            scheduler.step()

    def _restore(self, state: list[dict[str, Any]]) -> None:
        if len(state) != len(self._schedulers):
            raise ValueError(
                f"the checkpoint holds {len(state)} schedules of LearningRateScheduler, this run has "
                f"{len(self._schedulers)}: resume with the same optimizers and hyperparameters"
            )
        for scheduler, saved in zip(self._schedulers, state, strict=True):
            scheduler.load_state_dict(saved)
        self._state = None

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _describe(self, planned: Plan, trainer: Any) -> str:
        """Return the plan in one line."""
        unit, first = planned.unit, self._schedulers[0]
        lengths = [
            f"{length / 1000:,g} s" if unit == "ms" else counted(length, unit)
            for length in (planned.total, planned.warmup)
        ]
        epochs = f" ({counted(trainer.max_epochs, 'epoch')})" if trainer.max_epochs != -1 else ""
        parts = [f"{self.schedules['lr']} over {lengths[0]}{epochs}"]
        if planned.warmup:
            parts.append(f"warmup {lengths[1]}")
        if first.last_epoch:
            parts.append(f"from progress {first.clock(first.last_epoch):.4g}")
        of_lr = [scheduler for scheduler in self._schedulers if scheduler.key == "lr"]
        for names, scheduler in zip(lr_names(trainer.optimizers), of_lr, strict=True):
            peaks = scheduler.base_lrs
            if len(peaks) > 4:
                parts.append(f"{names[0]} to {names[-1]} peaks {min(peaks):.4g} to {max(peaks):.4g}")
            else:
                parts += [f"{name} peak {peak:.4g}" for name, peak in zip(names, peaks, strict=True)]
        parts += [f"{key} {schedule}" for key, schedule in self.schedules.items() if key != "lr"]
        return ", ".join(parts)


def _forget(scheduler: Any) -> None:
    """Undo what a scheduler that is replaced has written: give its optimizer's groups their peak LR back."""
    written = getattr(scheduler, "_last_lr", None)
    for index, group in enumerate(scheduler.optimizer.param_groups):
        peak = group.get("max_lr", group.get("initial_lr", group["lr"]))
        # an LR finder that came first has the last word; a group that joined later is none of the scheduler's
        if written is None or (index < len(written) and float(group["lr"]) == float(written[index])):
            group["lr"] = group["lr"].fill_(peak) if isinstance(group["lr"], Tensor) else peak
        group.pop("initial_lr", None)
