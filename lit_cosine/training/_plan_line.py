"""The plan of a run in one line, for the log, and the number of samples behind each of its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_cosine._compat import tree_leaves
from lit_cosine.schedules import Schedule
from lit_cosine.training._changes import ENDLESS
from lit_cosine.training._own_curves import OwnCurve, unmatched
from lit_cosine.training._param_groups import lr_names
from lit_cosine.training._run_length import Plan, Run, counted, replicas
from lit_cosine.training._trainer_lr import TrainerLR

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["GlobalBatch", "joined", "plan_line"]


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one update, over all devices.

    >>> str(GlobalBatch(64, 4, 2)), str(GlobalBatch(64, 1, 1))
    ('global batch 512 = 64 × 4 accumulated × 2 devices', 'global batch 64')
    """

    per_device: int  # the batch size of the train loader; the sum of several
    accumulated: int  # the batches of one update
    devices: int  # the processes that each have their own batches

    @classmethod
    def of(cls, trainer: Trainer) -> GlobalBatch | None:
        """Return that of a run that is beginning; None where a loader has no ``batch_size``."""
        sizes: list[Any] = []
        for loader in tree_leaves(trainer.train_dataloader):
            sampler = getattr(loader, "batch_sampler", None)
            sizes.append(getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None))
        if not all(isinstance(size, int) for size in sizes):
            return None
        automatic = trainer.lightning_module.automatic_optimization
        accumulated = Run(trainer).accumulate(trainer.current_epoch) if automatic else 1
        return cls(sum(sizes), accumulated, replicas(trainer))

    @property
    def size(self) -> int:
        """The samples of one update."""
        return self.per_device * self.accumulated * self.devices

    def __str__(self) -> str:
        """Return it with its parts, as a plan line shows it."""
        parts = [f" × {self.accumulated} accumulated"] * (self.accumulated > 1)
        parts += [f" × {self.devices} devices"] * (self.devices > 1)
        return f"global batch {self.size:,}" + (f" = {self.per_device:,}{''.join(parts)}" if parts else "")


def plan_line(
    planned: Plan,
    schedules: Mapping[str, Schedule],
    schedulers: Sequence[TrainerLR],
    groups: Mapping[str, OwnCurve],
    cooldown: Schedule,
    batch: str,
) -> str:
    """Return the plan in one line."""
    unit, first, trainer = planned.unit, schedulers[0], planned.run.trainer

    def words(length: float) -> str:
        if length == ENDLESS:
            return "a run without a known end"
        return f"{length / 1000:,g} s" if unit == "ms" else counted(length, unit)

    epochs = ""
    if trainer.max_epochs not in (-1, None):
        epochs = f" ({counted(trainer.max_epochs - planned.run.epochs_before, 'epoch')})"
    schedule = schedules["lr"]
    parts = [f"{schedule} over {words(first.total_steps or ENDLESS)}{epochs}"]
    if first.warmup_steps:
        parts.append(f"warmup {words(first.warmup_steps)}")
    if planned.lengths.cooldown:
        parts.append(f"cooldown {words(first.cooldown_steps)} ({cooldown})")
    if first.last_epoch:
        parts.append(f"from progress {first.clock(first.last_epoch):.4g}")
    parts += [batch] * bool(batch)
    for names, scheduler in zip(lr_names(trainer.optimizers), schedulers, strict=True):
        peaks = scheduler.base_lrs
        if len(peaks) > 4:
            parts.append(f"{names[0]} to {names[-1]} peaks {min(peaks):.4g} to {max(peaks):.4g}")
        else:
            parts += [f"{name} peak {peak:.4g}" for name, peak in zip(names, peaks, strict=True)]
    parts += [f"{key} {curve}" for key, curve in schedules.items() if key != "lr"]
    parts += [f"{pattern} {own}" for pattern, own in groups.items()]
    if missing := unmatched(groups, trainer.optimizers):
        parts.append(f"no param group yet for {', '.join(missing)}")
    return ", ".join(parts) + _doubts(schedule, first.base_lrs[0])


def _doubts(schedule: Schedule, peak: float) -> str:
    """Return a remark where a factor looks like an absolute LR: an end just above 0, or a factor above 1."""
    highest = max(end := schedule(1.0), *schedule.sample(100))
    if peak and 0.0 < end < 1e-4 and end != 4e-6:  # the end of one_cycle
        return (
            f"; end={end:g} is a factor: the floor is {end * peak:.3g}; for an absolute floor of {end:g} write "
            f"end={end / peak:.3g}"
        )
    return f"; the factor rises to {highest:.4g}, above the peak LR" if highest > 1.0 else ""


def joined(lrs: Sequence[float]) -> str:
    """Return LRs in words."""
    return ", ".join(f"{lr:.4g}" for lr in lrs)
