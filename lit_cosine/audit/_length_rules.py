"""Rules on the length of a curve: whether it is stepped as its horizon is counted, and fits the run.

Convention: every rule takes a :class:`Curve` and yields at most one finding. A fault that a torch class tells of is an
error; what only the values of a curve show is a hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine._compat import milestones_of
from lit_cosine.audit._curve import PER_STEP, Curve
from lit_cosine.audit._finding import Finding, Severity
from lit_cosine.audit._horizon import horizon, is_known
from lit_cosine.audit._situation import Scheduled, Situation
from lit_cosine.training import ScheduleLR, TrainerLR

__all__ = ["END_RULES", "STEPPING_RULES", "horizon_findings", "idle_start"]

_RISING = (torch_schedulers.LinearLR, torch_schedulers.ConstantLR, torch_schedulers.CyclicLR)


def horizon_findings(scheduled: Scheduled, situation: Situation) -> Iterator[Finding]:
    """Yield what is wrong with the horizon as a number, whether the LR can be planned or not."""
    length, built, restored = horizon(scheduled.scheduler), scheduled.built, scheduled.restored
    name, trace, fix = scheduled.name, situation.trace, situation.reader.fix
    goes = f"the LR goes from {trace.first[0]:.4g} to {trace.last[0]:.4g}"
    if length is not None and not (math.isfinite(length) and 0 < length <= 1e12):
        yield Finding(
            "endless-horizon",
            f"{name} was given a horizon of {length:g}, which is no length: in {trace.updates:,} updates {goes}",
            fix(
                "trainer.estimated_stepping_batches is -1 for a loader without a length and inf for a run without an "
                "end: give the Trainer max_steps, and use lit_cosine.total_steps(trainer), which raises instead"
            ),
        )
    elif not isinstance(scheduled.scheduler, ScheduleLR) and None not in (built, restored) and built != restored:
        still = "it still has" if length == restored else "its LR was computed for"
        yield Finding(
            "old-horizon",
            f"configure_optimizers asked for a {name} over {built:g} steps, but {still} the {restored:g} of "
            f"the checkpoint: over the {trace.updates:,} updates left {goes} and is {trace.peaks.max():.4g} at its "
            "highest",
            fix('use lr_scheduler_config or LearningRateScheduler, whose on_resize="continue" leads to the new end'),
        )


def _raises(curve: Curve) -> Iterator[Finding]:
    """Yield that the scheduler raises an exception within the run."""
    if curve.trace.error is not None:
        update, error = curve.trace.error
        yield Finding(
            "raises",
            f"{curve.name} will raise {type(error).__name__} after update {curve.situation.done + update + 1:,} of "
            f"{curve.total:,} ({' '.join(str(error).split())})",
            curve.fix(curve.length_fix),
        )


def _never_steps(curve: Curve) -> Iterator[Finding]:
    """Yield that Lightning steps the scheduler in no batch and no epoch of the run."""
    updates, timeline, frequency = curve.trace.updates, curve.situation.timeline, curve.scheduled.frequency
    if curve.made or updates < 2:
        return
    if curve.scheduled.interval == "epoch":
        ends = int(timeline.ends_epoch.sum())
        why = (
            f'interval="epoch" with frequency={frequency} steps it at the end of no epoch that the run ends ({ends:,})'
        )
        fix = PER_STEP
    else:
        why = (
            f"frequency={frequency} counts the {timeline.batches:,} batches of an epoch, and none of those batches "
            "ends an accumulated update"
        )
        fix = "use frequency=1, with a horizon in updates"
    yield Finding(
        "never-steps",
        f"{curve.name} is never stepped in {updates:,} updates, the LR stays {curve.first:.4g}: {why}",
        curve.fix(fix),
    )


def _epoch_interval(curve: Curve) -> Iterator[Finding]:
    """Yield that a scheduler which is stepped once an epoch has a horizon in updates."""
    length = curve.length_seen
    if length is None or curve.scheduled.interval != "epoch" or curve.situation.open_end:
        return
    total, far = curve.total, length / max(1, curve.reached)
    if far <= 2.0 or not (
        abs(length - total) <= 0.1 * total or (far > 8.0 and abs(math.log(length / total)) < math.log(far))
    ):
        return
    yield Finding(
        "epoch-interval",
        f"{curve.name} has a horizon of {length:g} steps, as many as updates (the run has {total:,}), but is stepped "
        f"once an epoch, {curve.made:,} times: the LR goes from {curve.first:.4g} to {curve.last:.4g}",
        curve.fix(f'{PER_STEP} (the default is "epoch"), or give the horizon in epochs'),
    )


def idle_start(curve: Curve) -> Iterator[Finding]:
    """Yield that the first updates have an LR of 0."""
    at_zero, updates = curve.trace.updates_below(0.0), curve.trace.updates
    if not at_zero or at_zero < 0.01 * updates:
        return
    if at_zero == updates and curve.situation.done:
        yield Finding(
            "idle-tail",
            f"all {updates:,} updates that are left are made at LR 0 and change nothing: {curve.name} had ended before",
            curve.fix(
                'anneal again, with on_resize="restart" or "rescale" of lr_scheduler_config or LearningRateScheduler',
                "anneal again, with --model.on_resize restart or rescale",
            ),
        )
        return
    if at_zero == updates and not curve.bases.any():
        yield Finding(
            "bad-value",
            f"{curve.situation.label} has the LR 0, so all {updates:,} updates under {curve.name} change nothing",
            "give the optimizer an LR above 0",
        )
        return
    which = f"all {updates:,}" if at_zero == updates else f"the first {at_zero:,} of {updates:,}"
    does = "updates are made at LR 0 and change nothing"
    if at_zero == 1:
        which, does = f"the first of {updates:,}", "updates is made at LR 0 and changes nothing"
    yield Finding(
        "idle-warmup",
        f"under {curve.name} {which} {does}",
        curve.fix(
            "begin the warmup above 0: ScheduleLR(warmup_steps=W) runs update k of it at (k+1)/(W+1) of the peak",
            "begin above 0: --model.warmup 5% runs update k of W at (k+1)/(W+1) of the peak",
        ),
        "hint" if at_zero == 1 else "error",
    )


def _ends_early(curve: Curve) -> Iterator[Finding]:
    """Yield that the run ends before the curve does, or within its warmup."""
    name, reached, end = curve.name, curve.reached, curve.end
    if isinstance(curve.scheduler, torch_schedulers.MultiStepLR):
        late = sorted(step for step in curve.scheduler.milestones if step > reached)
        if late and curve.moves:
            yield Finding(
                "ends-early",
                f"{name} makes {reached:,} steps, fewer than its milestone{'s'[: len(late) > 1]} "
                f"{', '.join(map(str, late[:5]))}",
                curve.fix(f"place the milestones in the run, or {PER_STEP}"),
                "hint",
            )
        return
    milestones = milestones_of(curve.scheduler)
    length = curve.length_seen
    if curve.length is None and milestones:
        length = float(milestones[-1])
        if reached > length:
            return
    one_more = curve.scheduled.interval != "epoch"  # a usual way around the error that OneCycleLR raises at its end
    if length is None or reached + one_more >= 0.98 * length or isinstance(curve.scheduler, TrainerLR):
        return
    severity: Severity = "error" if milestones else curve.certain
    rises = (milestones and reached < milestones[0]) or (end is not None and end.kind == "peaks")
    rises = rises or isinstance(curve.scheduler, _RISING)
    if rises and curve.last > curve.first:
        until = milestones[0] if milestones else length
        yield Finding(
            "ends-in-warmup",
            f"the warmup of {name} takes {until:g} steps, and the run makes {reached:,} of them: the LR is still "
            f"rising at the end, {curve.last:.4g}",
            curve.fix(f"shorten it, or {PER_STEP}" if curve.scheduled.interval == "epoch" else curve.length_fix),
            severity,
        )
        return
    yield Finding(
        "ends-early",
        f"{name} has a horizon of {length:g} steps and makes {reached:,} of them: the run ends after "
        f"{reached / length:.0%} of the curve, at LR {curve.last:.4g}",
        curve.fix(curve.length_fix),
        severity,
    )


def _climbs(curve: Curve) -> Iterator[Finding]:
    """Yield that the LR climbs again after the end of the curve."""
    length, trace = curve.length, curve.trace
    if length is None and curve.end is not None and curve.end.kind == "turns":
        length = float(curve.end.step + curve.before)
    if length is None or (steps := length - curve.before) < 0:
        return
    made = np.concatenate([[0], np.cumsum(curve.stepping.steps[: trace.updates])])
    ends = int(np.searchsorted(made, steps))
    if ends >= trace.updates:
        return
    after = trace.used[np.searchsorted(trace.at, ends, side="right") - 1 :]
    highest = np.fmax.reduce(after, axis=0)
    climbing = np.flatnonzero(highest - after[0] > 0.01 * trace.peaks)
    if len(climbing):
        low, high = float(after[0, climbing[0]]), float(highest[climbing[0]])
        yield Finding(
            "climbs-after-end",
            f"{curve.name} ends its curve of {length:g} steps at update {curve.situation.done + ends:,} of "
            f"{curve.total:,}, and the LR then climbs from {low:.4g} to {high:.4g}",
            curve.fix(f"{curve.length_fix}; the schedules of lit_cosine hold their end"),
            curve.certain,
        )


def _idle_tail(curve: Curve) -> Iterator[Finding]:
    """Yield that the last updates have an LR of 0, or one so small that they change nothing."""
    trace, bases = curve.trace, curve.bases
    idle = trace.updates_below(1e-6 * bases, tail=True)
    at_zero = trace.updates_below(0.0, tail=True) == idle
    # a steep power of a cosine or a polynomial is that low for a while
    if idle < max(2, (0.05 if at_zero else 0.1) * trace.updates):
        return
    at = "at LR 0" if at_zero else f"at an LR below a millionth of the optimizer's, {curve.last:.4g} at the end,"
    yield Finding(
        "idle-tail",
        f"the last {idle:,} of {trace.updates:,} updates are made {at} under {curve.name} and change nothing",
        curve.fix(f"{curve.length_fix}, or a floor above 0"),
    )


def _constant(curve: Curve) -> Iterator[Finding]:
    """Yield that the LR never moves in a run, although the scheduler would move it in a longer one."""
    if curve.trace.updates < 2 or curve.moves or curve.beyond is None or len(curve.beyond.at) == 1:
        return
    if curve.before:  # it has moved before, in the part of the run that was resumed
        return
    yield Finding(
        "constant",
        f"{curve.name} is stepped {curve.made:,} time{'s'[: curve.made != 1]}, but it first changes the LR with step "
        f"{int(curve.beyond.at[1]):,}: all {curve.trace.updates:,} updates run at {curve.first:.4g}",
        curve.fix(f"shorten its period, or {PER_STEP}"),
        "error" if is_known(curve.scheduler) else "hint",
    )


def _restarts(curve: Curve) -> Iterator[Finding]:
    """Yield that warm restarts come many times an epoch, as with a period in epochs that is counted in steps."""
    scheduler: Any = curve.scheduler
    if not isinstance(scheduler, torch_schedulers.CosineAnnealingWarmRestarts) or scheduler.T_mult != 1:
        return
    if curve.made < 10 * scheduler.T_i or curve.scheduled.interval == "epoch":
        return
    an_epoch = int(np.count_nonzero(curve.situation.timeline.epoch == curve.situation.timeline.epoch[0]))
    if scheduler.T_i < an_epoch:
        yield Finding(
            "restarts",
            f"{curve.name} restarts after every {scheduler.T_i:,} steps, {curve.made // scheduler.T_i:,} times in this "
            f"run, and an epoch has {an_epoch:,} updates",
            curve.fix("give T_0 in updates"),
            "hint",
        )


STEPPING_RULES = (_raises, _never_steps, _epoch_interval)
END_RULES = (_ends_early, _climbs, _idle_tail, _constant, _restarts)
