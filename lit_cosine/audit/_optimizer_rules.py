"""Rules for one optimizer: what sets its LR, which groups are covered, and what is logged.

Convention: every rule in ``RULES`` takes a :class:`Situation`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from lightning.pytorch import Trainer
from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine._compat import (
    batches_that_stepped,
    callbacks_of,
    last_written_lrs,
    log_every_n_steps,
)
from lit_cosine.audit._finding import Finding
from lit_cosine.audit._horizon import parts_of
from lit_cosine.audit._playback import Stepping, Trace, play
from lit_cosine.audit._situation import Scheduled, Situation
from lit_cosine.training import ScheduleLR

__all__ = ["RULES", "logging_findings", "never_stepped"]

_FLOORS = ("eta_min", "min_lr")
# step() of these computes the LR from the base LR and overwrites what another scheduler has set
_OVERWRITING = (
    torch_schedulers.LambdaLR,
    torch_schedulers.OneCycleLR,
    torch_schedulers.CyclicLR,
    torch_schedulers.CosineAnnealingWarmRestarts,
    ScheduleLR,
)


def _conflicts(situation: Situation) -> Iterator[Finding]:
    """Yield that something besides one scheduler sets the LR."""
    active = [one for one in situation.scheduled if one.stepping is None or one.stepping.steps.any()]
    fix = "compose one schedule with Sequential, and keep one scheduler for each optimizer"
    if any(isinstance(one.scheduler, torch_schedulers.ReduceLROnPlateau) for one in active):
        fix = (
            "let ReduceLROnPlateau set the LR alone, or one schedule with CooldownOnPlateau, which waits for the metric"
        )
    if len(active) > 1 and not any(one.manual for one in active):
        overwrites = any(isinstance(one.scheduler, _OVERWRITING) for one in active)
        yield Finding(
            "lr-conflict",
            f"{' and '.join(one.name for one in active)} both set the LR of {situation.label}, "
            + ("and one overwrites what the other has set" if overwrites else "each from what the other has left"),
            situation.reader.fix(fix),
            "error" if overwrites else "hint",
        )
    elif active and situation.swa_epoch is not None:
        yield Finding(
            "lr-conflict",
            f"from epoch {situation.swa_epoch + 1} on StochasticWeightAveraging replaces {active[0].name} as the "
            f"scheduler of {situation.label}, and anneals the LR to its own swa_lrs",
            "average with WeightAveraging, which does not change the LR",
            "hint",
        )
    elif active and active[0].stepping is not None and not isinstance(active[0].scheduler, ScheduleLR):
        yield from _lost(active[0], active[0].stepping, situation)


def _lost(scheduled: Scheduled, stepping: Stepping, situation: Situation) -> Iterator[Finding]:
    """Yield that an LR which the LR finder or other code has set does not last."""
    trace = situation.trace
    now = [float(group["lr"]) for group in situation.optimizer.param_groups]
    written = last_written_lrs(scheduled.scheduler)
    if written is None or len(written) != len(now) or trace.error is not None:
        return
    who, value, lasts = "other code", now[0], None
    if situation.found is not None:
        who, value = "the LR finder", situation.found
    if not np.allclose(now, written, rtol=1e-9, atol=0.0, equal_nan=True):
        # is it the run that it would be if the LR had not been set?
        shared, joins = situation.shared, situation.joins
        other = play(situation.optimizer, [stepping], trace.updates, shared=shared, joins=joins, start=written)
        at = np.union1d(trace.at, other.at)
        at = at[at < trace.updates]  # neither changes in between
        same = np.isclose(trace.at_updates(at), other.at_updates(at), rtol=1e-6, atol=0.0, equal_nan=True).all(axis=1)
        if same.any() and trace.updates > 1:
            lasts = f"lasts for {at[same.argmax()]:,} of {trace.updates:,} updates"
    elif situation.found is not None and not np.isclose(np.fmax.reduce(trace.peaks), situation.found, rtol=1e-6):
        lasts = "is lost"
    if lasts is not None:
        base = float(parts_of(scheduled.scheduler)[-1].base_lrs[0])
        yield Finding(
            "lr-conflict",
            f"{who} has set the LR of {situation.label} to {value:.4g}, which {lasts}: {scheduled.name} has a base LR "
            f"of its own, {base:.4g}",
            situation.reader.fix(
                "use lr_scheduler_config or LearningRateScheduler, for which an LR set from outside is the new peak LR"
            ),
        )


def _floors(situation: Situation) -> Iterator[Finding]:
    """Yield groups whose LR rises to a floor that is absolute."""
    for scheduler in (part for one in situation.scheduled for part in parts_of(one.scheduler)):
        floor = next((getattr(scheduler, name) for name in _FLOORS if hasattr(scheduler, name)), None)
        if not isinstance(floor, (int, float)) or isinstance(scheduler, ScheduleLR):
            continue
        bases = zip(situation.names, getattr(scheduler, "base_lrs", ()), strict=False)
        low = [f"{name} ({float(base):.4g})" for name, base in bases if float(base) < floor * (1 - 1e-9)]
        if low:
            yield Finding(
                "floor-above-base",
                f"{type(scheduler).__name__} has a floor of {floor:.4g}, above the base LR of {', '.join(low)}, which "
                "therefore rises",
                situation.reader.fix("use a floor that is a factor of each group's own LR, such as Cosine(end=0.01)"),
            )


def _not_covered(situation: Situation) -> Iterator[Finding]:
    """Yield groups that no scheduler moves although others are moved."""
    trace, names = situation.trace, situation.names
    if not situation.scheduled and situation.others_scheduled:
        yield Finding(
            "group-not-covered",
            f"{situation.label} ({', '.join(names)}) has no scheduler, though another optimizer has: its LR stays "
            f"{trace.first[0]:.4g}",
            situation.reader.fix(
                "return a scheduler for it too, or use LearningRateScheduler, which schedules every optimizer"
            ),
            "hint",
        )
    for scheduled in situation.scheduled:
        parts = parts_of(scheduled.scheduler)
        built = min((len(part.base_lrs) for part in parts if hasattr(part, "base_lrs")), default=0)
        groups = len(situation.optimizer.param_groups) + len(situation.joins)
        if not 0 < built < groups or isinstance(scheduled.scheduler, ScheduleLR) or scheduled.stepping is None:
            continue
        if trace.error is not None:
            update, error = trace.error
            what = f"raises {type(error).__name__} after update {situation.done + update + 1:,} ({error})"
        elif _moves(trace, range(built)) and not _moves(trace, range(built, trace.lrs.shape[1])):
            what = "leaves the rest at their LR"
        else:
            continue
        yield Finding(
            "group-not-covered",
            f"{scheduled.name} was built for {built} of the {groups} param groups that {situation.label} "
            f"{'will have' if situation.joins else 'has'}, and {what}",
            situation.reader.fix(
                "use lr_scheduler_config or LearningRateScheduler, under which groups join with their own base LR"
            ),
            "hint" if trace.error is None else "error",
        )


def _idle(situation: Situation) -> Iterator[Finding]:
    """Yield that an optimizer has an LR of 0, and no scheduler that could raise it."""
    if not situation.scheduled and situation.trace.updates_below(0.0) == situation.trace.updates > 0:
        yield Finding(
            "bad-value",
            f"{situation.label} has the LR 0 and no scheduler: its {situation.trace.updates:,} updates change nothing",
            "give the optimizer an LR above 0, unless the module sets it while it trains",
            "hint",
        )


def never_stepped(situation: Situation, batches: int) -> list[Finding]:
    """Return a finding for every scheduler that manual optimization did not step in the first ``batches`` batches."""
    return [
        Finding(
            "never-steps",
            f"{one.name} was not stepped in the first {batches:,} batches: under manual optimization Lightning steps "
            "no scheduler",
            situation.reader.fix("call self.lr_schedulers().step() in training_step, or use LearningRateScheduler"),
            "hint",
        )
        for one in situation.scheduled
        if one.manual and one.position is not None and one.scheduler.last_epoch == one.position
    ]


def logging_findings(trainer: Trainer, situation: Situation) -> list[Finding]:
    """Return a finding if LearningRateMonitor will write no point."""
    if not trainer.loggers or callbacks_of(trainer, "LearningRateLogger"):
        return []
    stepped = batches_that_stepped(trainer)
    every, updates = log_every_n_steps(trainer), situation.trace.updates
    in_steps = 0 if not every else (stepped + updates) // every - stepped // every
    for callback in callbacks_of(trainer, "LearningRateMonitor"):
        interval, configs = callback.logging_interval, trainer.lr_scheduler_configs
        # without an interval of its own it logs a scheduler at the scheduler's interval, other optimizers at both
        only_steps = interval == "step" or (
            interval is None
            and bool(configs)
            and all(config.interval == "step" for config in configs)
            and len({id(config.scheduler.optimizer) for config in configs}) == len(trainer.optimizers)
        )
        if only_steps and not in_steps:
            return [
                Finding(
                    "unlogged",
                    f"LearningRateMonitor will write no point: it writes every log_every_n_steps={every} updates, and "
                    f"the run makes {updates:,}",
                    "use LearningRateLogger, which writes every update, or Trainer(log_every_n_steps=1)",
                    "hint",
                )
            ]
    return []


def _moves(trace: Trace, groups: range) -> bool:
    return any(trace.changes(group) for group in groups)


RULES = (_conflicts, _floors, _not_covered, _idle)
