"""What a change of the run does: another length, another schedule, a cooldown that begins now, an LR from outside.

Convention: ``step`` is the number of steps done; a plan maps a step to the factor of the base LR. The functions return
a new plan and change nothing. docs/when-the-run-changes.md has the table that they follow.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import torch

from lit_cosine.schedules import Clock, Constant, OnResize, PlannedFactor, Schedule

__all__ = [
    "ENDLESS",
    "Lengths",
    "Mapped",
    "OutsideChanges",
    "is_idle",
    "log_warning",
    "with_cooldown_now",
    "with_lengths",
    "with_schedule",
]

ENDLESS = 2**53
"""The total of a run without a known end, which only a constant schedule plays."""

_SAMPLES = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lengths:
    """The lengths of a run, in steps: N, W and C."""

    total: float
    warmup: float
    cooldown: float

    def fitted(self, warmup: float | None = None) -> Lengths:
        """Return them with parts that leave a step between them; ``warmup`` is one that has begun, and stays."""
        most = max(0, math.ceil(self.total) - 1)
        warmup = min(self.warmup, most) if warmup is None else warmup
        return Lengths(self.total, warmup, max(0, min(self.cooldown, most - warmup)))


@dataclass(frozen=True)
class Mapped(Schedule):
    """A falling schedule that begins at another factor: f' = end + (new(u) - end) * (begin - end) / (new(0) - end)."""

    schedule: Schedule
    begin: float

    def factor(self, progress: float) -> float:
        """Return the mapped factor; a constant schedule holds ``begin``."""
        start, end = self.schedule(0.0), self.schedule(1.0)
        if start == end:
            return self.begin
        return max(0.0, end + (self.schedule(progress) - end) * (self.begin - end) / (start - end))


def _planned_anew(planned: PlannedFactor, lengths: Lengths, schedule: Schedule) -> PlannedFactor:
    """Return the plan of a run that has these lengths from its start."""
    end = lengths.total - lengths.cooldown
    cooldown = Clock(lengths.total, end) if lengths.cooldown else None
    return replace(
        planned,
        schedule=schedule,
        clock=Clock(end, lengths.warmup),
        warmup_steps=lengths.warmup,
        cooldown=cooldown,
    )


def with_lengths(
    planned: PlannedFactor, step: float, lengths: Lengths, on_resize: OnResize, schedule: Schedule | None = None
) -> PlannedFactor:
    """Return the plan from ``step`` on, now that the run has other lengths; ``schedule`` replaces the plan's curve."""
    curve = planned.schedule if schedule is None else schedule
    if step == 0 or on_resize == "rescale":  # before the first update nothing is a change
        return _planned_anew(planned, lengths, curve)
    if on_resize == "keep":
        return planned
    cooldown = planned.cooldown
    if on_resize == "continue" and schedule is None and cooldown is not None and cooldown(step) > 0.0:
        return replace(planned, cooldown=cooldown.reanchor(step, lengths.total))
    end = max(step, lengths.total - lengths.cooldown)
    policy = on_resize if schedule is None else "restart"
    return replace(
        planned,
        schedule=curve,
        clock=planned.clock.reanchor(step, end, policy, origin=planned.warmup_steps),
        cooldown=Clock(lengths.total, end) if lengths.cooldown else None,
    )


def with_schedule(
    planned: PlannedFactor, step: float, lengths: Lengths, on_resize: OnResize, schedule: Schedule
) -> PlannedFactor:
    """Return the plan from ``step`` on, now that the run has another schedule, and perhaps other lengths.

    Raises:
        ValueError: If the change is refused: under "keep", and under "continue" where the curve cannot be mapped.
    """
    if step == 0:
        return _planned_anew(planned, lengths, schedule)
    if on_resize == "keep":
        raise ValueError(f'on_resize="keep" plays the old plan, {planned.schedule}')
    factor = planned.schedule(planned.clock(step))
    anew = _planned_anew(planned, lengths, schedule)
    if on_resize == "rescale" or abs(schedule(anew.clock(step)) - factor) <= 1e-9 * factor:
        return anew
    if on_resize == "restart":
        return with_lengths(planned, step, lengths, "restart", schedule)
    if step >= lengths.total - lengths.cooldown or (planned.cooldown is not None and planned.cooldown(step) > 0.0):
        # nothing is left for another curve: it stays where it is, and the cooldown moves with the end
        moved = with_lengths(planned, step, lengths, "continue")
        return replace(moved, schedule=Constant(value=factor))
    if not _falls(schedule):
        raise ValueError(f"{schedule} is neither constant nor a curve that falls from its highest to its lowest factor")
    return with_lengths(planned, step, lengths, "continue", Mapped(schedule, factor))


def with_cooldown_now(planned: PlannedFactor, step: float, steps: float) -> PlannedFactor:
    """Return the plan whose cooldown of ``steps`` begins at ``step``, the schedule held where it is."""
    held = Constant(value=planned.schedule(planned.clock(step)))
    return replace(planned, schedule=held, cooldown=Clock(step + steps, step))


def is_idle(planned: PlannedFactor, step: float) -> bool:
    """Return whether every factor from ``step`` on is 0, because the schedule or the cooldown has ended there."""
    over = planned.schedule(1.0) == 0.0 and planned.clock(step) == 1.0
    cooled = planned.cooldown is not None and planned.cooldown(step) == 1.0 and planned.cooldown_schedule(1.0) == 0.0
    return over or cooled


def _falls(schedule: Schedule) -> bool:
    """Return whether the curve has its highest factor at progress 0 and its lowest at 1, as far as samples show."""
    start, end = schedule(0.0), schedule(1.0)
    points = [*(k / _SAMPLES for k in range(_SAMPLES)), *schedule.all_milestones()]
    return all(end <= schedule(point) <= start for point in points)


@dataclass
class OutsideChanges:
    """The last change from outside of one group."""

    at: float = -2.0  # the position it was found at; -2 for none
    to: float = 0.0  # the LR that was set
    base: float = 0.0  # the base LR before it, and before equal ones at the positions just before it

    def base_after(self, step: float, lr: float, written: float, base: float) -> float:
        """Return the base LR after ``lr`` was found at ``step`` in place of ``written``, and remember the change.

        Before the first step the value is the base LR. The same value again at the next step is a clamp: the base LR is
        what it was before the first. Otherwise the base LR moves by the ratio; a value of more than twice what was
        written, as near a zero of the curve, would make a ratio without meaning: it is the base LR where it is larger.
        """
        again = step == self.at + 1 and lr == self.to
        self.base = self.base if again else base
        self.at, self.to = step, lr
        if step == 0:
            return lr
        if again:
            return self.base
        return base * (lr / written) if lr <= 2.0 * written and written > 0.0 else max(base, lr)


def log_warning(message: str, *numbers: object) -> None:
    """Log one line, on one rank."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        _log.warning(message, *numbers)
