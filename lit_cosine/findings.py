"""What is wrong with a planned learning rate, in words: the rules of the audit.

Convention: a finding has a code, one sentence with the numbers, and the fix. One fault is one finding: the rule that
names a cause comes first, and its symptoms are then not reported again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_cosine.playback import Master, Trace, play
from lit_cosine.scheduler import ScheduleLR
from lit_cosine.situation import Scheduled, Situation, horizon

__all__ = ["Finding", "findings_of"]

_LENGTH = "give it the run's length, lit_cosine.total_steps(trainer), or use lr_scheduler_config, which asks for it"
_PER_STEP = 'return {"scheduler": scheduler, "interval": "step"} from configure_optimizers'
_FLOORS = ("eta_min", "min_lr")


@dataclass(frozen=True)
class Finding:
    """Something wrong with the plan.

    Args:
        code: What kind of fault, such as ``"epoch-interval"``.
        message: One sentence with the numbers.
        fix: What to do.

    >>> print(Finding("constant", "the LR stays 0.1", "step it"))
    [constant] the LR stays 0.1. Fix: step it.
    """

    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        """Return it in one line."""
        return f"[{self.code}] {self.message}. Fix: {self.fix}."


def findings_of(situation: Situation) -> list[Finding]:
    """Return what is wrong with the LRs of one optimizer; empty if nothing is."""
    found = [*_masters(situation), *_floors(situation), *_not_covered(situation)]
    played = 0
    for scheduled in situation.scheduled:
        length = horizon(scheduled.scheduler)
        stepped = situation.trace.stepped[played] if scheduled.master is not None else 0
        played += scheduled.master is not None
        if length is not None and (not math.isfinite(length) or length <= 0 or length > 1e12):
            found.append(_endless(scheduled, length, situation))
        elif _has_old_horizon(scheduled):
            found.append(_old_horizon(scheduled, length, situation))
        elif scheduled.master is not None and not any(finding.code == "group-not-covered" for finding in found):
            found += _of_curve(scheduled, scheduled.master, stepped, length, situation)
    return found


def _of_curve(
    scheduled: Scheduled, master: Master, stepped: int, length: float | None, situation: Situation
) -> Iterator[Finding]:
    """Yield what is wrong with a scheduler's curve in this run."""
    trace, name = situation.trace, scheduled.name
    reached = getattr(scheduled.scheduler, "last_epoch", 0) + stepped
    if trace.error is not None:
        yield _raises(name, situation, *trace.error)
    elif stepped == 0 and trace.updates > 1:
        yield _never_steps(scheduled, situation)
    elif length is not None and _counts_updates(scheduled, length, reached, situation):
        yield _epoch_interval(name, stepped, length, situation)
    else:
        at_zero = trace.updates_at_zero()
        if at_zero and at_zero >= 0.01 * trace.updates:
            yield _idle_start(name, at_zero, situation)
        if not situation.open_end and at_zero < trace.updates:
            yield from _of_end(scheduled, master, stepped, reached, length, situation)


def _of_end(
    scheduled: Scheduled, master: Master, stepped: int, reached: int, length: float | None, situation: Situation
) -> Iterator[Finding]:
    """Yield what is wrong with how far a curve gets."""
    trace, name = situation.trace, scheduled.name
    idle = trace.updates_at_zero(tail=True)
    if length is not None and reached + 1 < 0.98 * length:
        yield Finding(
            "ends-early",
            f"{name} has a horizon of {length:g} steps and makes {reached:,} of them: the run ends after "
            f"{reached / length:.0%} of the curve, at LR {_last(trace):.4g}",
            _LENGTH,
        )
    elif length is not None and (climb := _climb(master, length - reached + stepped, trace)) is not None:
        update, low, high = climb
        yield Finding(
            "climbs-after-end",
            f"{name} ends its curve of {length:g} steps at update {situation.done + update:,} of "
            f"{situation.done + trace.updates:,}, and the LR then climbs from {low:.4g} to {high:.4g}",
            f"{_LENGTH}, and holds its end",
        )
    elif idle >= max(2, 0.05 * trace.updates):
        yield Finding(
            "idle-tail",
            f"the last {idle:,} of {trace.updates:,} updates are made at LR 0 under {name} and change nothing",
            f"{_LENGTH}, or a floor above 0",
        )
    else:
        yield from _constant(scheduled, master, stepped, situation)


def _raises(name: str, situation: Situation, update: int, error: Exception) -> Finding:
    done, updates = situation.done, situation.trace.updates
    return Finding(
        "raises",
        f"{name} will raise {type(error).__name__} after update {done + update + 1:,} of {done + updates:,} "
        f"({' '.join(str(error).split())})",
        _LENGTH,
    )


def _never_steps(scheduled: Scheduled, situation: Situation) -> Finding:
    updates, run = situation.trace.updates, situation.run
    if scheduled.manual:
        why = "under manual optimization Lightning steps no scheduler, and no method asks for self.lr_schedulers()"
        fix = "call self.lr_schedulers().step() in training_step, or use LearningRateScheduler"
    elif scheduled.interval == "epoch":
        why = (
            f'interval="epoch" with frequency={scheduled.frequency} names the end of no epoch that the run completes '
            f"({int(run.ends_epoch.sum()):,})"
        )
        fix = _PER_STEP
    else:
        why = (
            f"frequency={scheduled.frequency} counts the {run.batches:,} batches of an epoch, and no batch that it "
            "names ends an accumulated update"
        )
        fix = "use frequency=1, with a horizon in updates"
    message = (
        f"{scheduled.name} is never stepped in {updates:,} updates, the LR stays {_first(situation.trace):.4g}: {why}"
    )
    return Finding("never-steps", message, fix)


def _epoch_interval(name: str, stepped: int, length: float, situation: Situation) -> Finding:
    return Finding(
        "epoch-interval",
        f"{name} has a horizon of {length:g} steps, as many as updates (the run has "
        f"{situation.done + situation.trace.updates:,}), but is stepped once an epoch, {stepped:,} times: "
        f"the LR goes from {_first(situation.trace):.4g} to {_last(situation.trace):.4g}",
        f'{_PER_STEP} (the default is "epoch"), or give the horizon in epochs',
    )


def _counts_updates(scheduled: Scheduled, length: float, reached: int, situation: Situation) -> bool:
    """Return whether a scheduler that is stepped per epoch has a horizon in updates."""
    total, far = situation.done + situation.trace.updates, length / max(1, reached)
    if scheduled.interval != "epoch" or far <= 2.0 or situation.open_end:
        return False
    return abs(length - total) <= 0.1 * total or (far > 8.0 and abs(math.log(length / total)) < math.log(far))


def _idle_start(name: str, at_zero: int, situation: Situation) -> Finding:
    updates = situation.trace.updates
    if at_zero == updates and situation.done:
        return Finding(
            "idle-tail",
            f"all {updates:,} updates that are left are made at LR 0 and change nothing: {name} had ended before",
            'anneal again, with on_resize="restart" or "rescale" of lr_scheduler_config or LearningRateScheduler',
        )
    which = f"all {updates:,} updates are made at LR 0 and change"
    if at_zero < updates:
        which = f"the first {at_zero:,} of {updates:,} updates are made at LR 0 and change"
    if at_zero == 1:
        which = f"the first of {updates:,} updates is made at LR 0 and changes"
    return Finding(
        "idle-warmup",
        f"under {name} {which} nothing",
        "begin the warmup above 0: ScheduleLR(warmup_steps=W) runs update k of it at (k+1)/(W+1) of the peak",
    )


def _climb(master: Master, steps: float, trace: Trace) -> tuple[int, float, float] | None:
    """Return where the curve of so many more steps ends, the LR there and the highest after it, if the LR climbs."""
    made = np.concatenate([[0], np.cumsum(master.steps[: trace.updates])])
    ends = int(np.searchsorted(made, steps))
    if steps < 0 or ends >= trace.updates:
        return None
    after = trace.used[np.searchsorted(trace.at, ends, side="right") - 1 :]
    peaks, highest = np.nanmax(trace.used, axis=0), np.nanmax(after, axis=0)
    climbing = np.flatnonzero(highest - after[0] > 0.01 * peaks)
    return (ends, float(after[0, climbing[0]]), float(highest[climbing[0]])) if len(climbing) else None


def _constant(scheduled: Scheduled, master: Master, stepped: int, situation: Situation) -> Iterator[Finding]:
    """Yield that the LR never moves, unless the scheduler would not move it either if it went on: then it is meant."""
    trace, scheduler = situation.trace, scheduled.scheduler
    if trace.updates < 2 or _moves(trace, range(trace.lrs.shape[1])):
        return
    period = getattr(scheduler, "step_size", 0)
    far = min(100_000, max(1_000, 10 * stepped, (period if isinstance(period, int) else 0) + 1))
    further = play(
        situation.optimizer, [Master(scheduler, np.ones(far, dtype=bool), master.step)], far, shared=situation.shared
    )
    if len(further.at) == 1:
        return
    yield Finding(
        "constant",
        f"{scheduled.name} is stepped {stepped:,} time{'s'[: stepped != 1]}, but it first changes the LR with step "
        f"{int(further.at[1]):,}: all {trace.updates:,} updates run at {_first(trace):.4g}",
        f"shorten its period, or {_PER_STEP}",
    )


def _endless(scheduled: Scheduled, length: float, situation: Situation) -> Finding:
    return Finding(
        "endless-horizon",
        f"{scheduled.name} was given a horizon of {length:g}, which is no length: in {situation.trace.updates:,} "
        f"updates the LR goes from {_first(situation.trace):.4g} to {_last(situation.trace):.4g}",
        "trainer.estimated_stepping_batches is -1 for a loader without a length and inf for a run without an end: give "
        "the Trainer max_steps, and use lit_cosine.total_steps(trainer), which raises instead",
    )


def _has_old_horizon(scheduled: Scheduled) -> bool:
    built, restored = scheduled.built, scheduled.restored
    return not (isinstance(scheduled.scheduler, ScheduleLR) or built is None or restored is None or built == restored)


def _old_horizon(scheduled: Scheduled, length: float | None, situation: Situation) -> Finding:
    trace = situation.trace
    still = "it still has" if length == scheduled.restored else "its LR was computed for"
    return Finding(
        "old-horizon",
        f"configure_optimizers asked for a {scheduled.name} over {scheduled.built:g} steps, but {still} the "
        f"{scheduled.restored:g} of the checkpoint: over the {trace.updates:,} updates left the LR goes from "
        f"{_first(trace):.4g} to {_last(trace):.4g} and is {np.nanmax(trace.used):.4g} at its highest",
        'use lr_scheduler_config or LearningRateScheduler, whose on_resize="continue" goes on to the new end',
    )


def _masters(situation: Situation) -> Iterator[Finding]:
    """Yield who else has a hand on the LR."""
    active = [one for one in situation.scheduled if one.master is None or one.master.steps.any()]
    if len(active) > 1:
        yield Finding(
            "two-masters",
            f"{' and '.join(one.name for one in active)} both set the LR of {situation.label}, each from what the "
            "other has left",
            "compose one schedule with Sequential, and keep one scheduler for each optimizer",
        )
    elif active and situation.swa_epoch is not None:
        yield Finding(
            "two-masters",
            f"from epoch {situation.swa_epoch + 1} on StochasticWeightAveraging takes the LR of {situation.label} over "
            f"from {active[0].name}, and anneals it to its own swa_lrs",
            "average with WeightAveraging, which leaves the LR alone",
        )
    elif active and active[0].master is not None and not isinstance(active[0].scheduler, ScheduleLR):
        yield from _lost(active[0], active[0].master, situation)


def _lost(scheduled: Scheduled, master: Master, situation: Situation) -> Iterator[Finding]:
    """Yield that an LR which the LR finder, or anybody else, has set does not last."""
    trace = situation.trace
    now = [float(group["lr"]) for group in situation.optimizer.param_groups]
    written = [float(lr) for lr in getattr(scheduled.scheduler, "_last_lr", ())]
    if len(written) != len(now) or trace.error is not None:
        return
    who, value, lasts = "somebody", now[0], None
    if situation.found is not None:
        who, value = "the LR finder", situation.found
    if not np.allclose(now, written, rtol=1e-9, atol=0.0):
        # would the run be the same had nobody set it?
        joins = situation.joins
        other = play(situation.optimizer, [master], trace.updates, shared=situation.shared, joins=joins, start=written)
        at = np.union1d(trace.at, other.at)
        at = at[at < trace.updates]  # neither changes in between
        same = np.isclose(trace.at_updates(at), other.at_updates(at), rtol=1e-6, atol=0.0, equal_nan=True).all(axis=1)
        if same.any() and trace.updates > 1:
            lasts = f"lasts for {at[same.argmax()]:,} of {trace.updates:,} updates"
    elif situation.found is not None and not np.isclose(np.nanmax(trace.used), situation.found, rtol=1e-6):
        lasts = "is lost"
    if lasts is not None:
        base = float(_parts(scheduled.scheduler)[-1].base_lrs[0])
        yield Finding(
            "two-masters",
            f"{who} has set the LR of {situation.label} to {value:.4g}, which {lasts}: {scheduled.name} has a base LR "
            f"of its own, {base:.4g}",
            "use lr_scheduler_config or LearningRateScheduler, for which an LR set from outside is the new peak",
        )


def _floors(situation: Situation) -> Iterator[Finding]:
    """Yield groups whose LR rises to a floor that is absolute."""
    for scheduler in (part for one in situation.scheduled for part in _parts(one.scheduler)):
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
                "use a floor that is a factor of each group's own LR, such as Cosine(end=0.01)",
            )


def _not_covered(situation: Situation) -> Iterator[Finding]:
    """Yield groups that no scheduler moves although others are moved."""
    trace, names = situation.trace, situation.names
    if not situation.scheduled and situation.others_scheduled:
        yield Finding(
            "group-not-covered",
            f"{situation.label} ({', '.join(names)}) has no scheduler, though another optimizer has: its LR stays "
            f"{_first(trace):.4g}",
            "return a scheduler for it too, or use LearningRateScheduler, which schedules every optimizer",
        )
    for scheduled in situation.scheduled:
        built = min(
            (len(part.base_lrs) for part in _parts(scheduled.scheduler) if hasattr(part, "base_lrs")), default=0
        )
        groups = len(situation.optimizer.param_groups) + len(situation.joins)
        if not 0 < built < groups or isinstance(scheduled.scheduler, ScheduleLR) or scheduled.master is None:
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
            "use lr_scheduler_config or LearningRateScheduler, under which groups join with their own base LR",
        )


def _parts(scheduler: Any) -> list[Any]:
    """Return the scheduler, and those it is composed of."""
    inside = [part for child in getattr(scheduler, "_schedulers", ()) for part in _parts(child)]
    return [scheduler, *inside]


def _moves(trace: Trace, groups: range) -> bool:
    return any(trace.changes(group) for group in groups)


def _first(trace: Trace) -> float:
    """Return the first group's LR at the first update."""
    return trace.lr(0)[0]


def _last(trace: Trace) -> float:
    """Return the first group's LR at the last update."""
    return trace.lr(max(trace.updates - 1, 0))[0]
