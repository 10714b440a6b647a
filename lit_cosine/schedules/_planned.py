"""What multiplies the base LR at a step of a run: warmup times schedule times cooldown.

Convention: positions and lengths are in the unit that the caller counts in: steps, epochs, batches or milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from lit_cosine._checks import as_integer
from lit_cosine.schedules._base import Schedule
from lit_cosine.schedules._clock import Clock
from lit_cosine.schedules._curves import OneMinusSqrt

__all__ = ["PlannedFactor", "check_lengths"]


@final
@dataclass(frozen=True)
class PlannedFactor:
    """The factor at step k: warmup(k) * schedule(clock(k)) * cooldown(k).

    With W warmup steps, warmup(k) = (k+1)/(W+1) at step k < W and 1 from step W on. The cooldown is
    cooldown_schedule(cooldown(k)) from the step on at which its clock starts, and 1 before.

    >>> from lit_cosine.schedules import Constant, Linear
    >>> planned = PlannedFactor.of_run(Constant(), 8, warmup_steps=1, cooldown_steps=4, cooldown_schedule=Linear())
    >>> [planned(step) for step in range(9)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    schedule: Schedule
    clock: Clock
    warmup_steps: float = 0
    cooldown: Clock | None = None
    cooldown_schedule: Schedule = field(default_factory=OneMinusSqrt)

    @classmethod
    def of_run(
        cls,
        schedule: Schedule,
        total_steps: int,
        warmup_steps: int = 0,
        cooldown_steps: int = 0,
        cooldown_schedule: Schedule = OneMinusSqrt(),
    ) -> PlannedFactor:
        """Return the plan of a run of N = ``total_steps`` with W warmup and C cooldown steps, seen from its start.

        The schedule is at progress (k-W)/(N-C-W) at step k; from step N-C on the cooldown is at (k-(N-C))/C.
        """
        total, warmup, cooldown = check_lengths(total_steps, warmup_steps, cooldown_steps)
        last = Clock(total, total - cooldown) if cooldown else None
        return cls(schedule, Clock(total - cooldown, warmup), warmup, last, cooldown_schedule)

    def __call__(self, step: float, joined: float = 0) -> float:
        """Return the factor at ``step``, >= 0; a param group that ``joined`` at a later step has its warmup then."""
        factor = self.schedule(self.clock(step))
        if step - joined < self.warmup_steps:
            factor *= (step - joined + 1) / (self.warmup_steps + 1)
        if self.cooldown is not None and step >= self.cooldown.step:
            factor *= self.cooldown_schedule(self.cooldown(step))
        return factor


def check_lengths(total_steps: int, warmup_steps: int = 0, cooldown_steps: int = 0) -> tuple[int, int, int]:
    """Return the three lengths as ints."""
    total = as_integer("total_steps", total_steps, least=1)
    warmup = as_integer("warmup_steps", warmup_steps, least=0)
    cooldown = as_integer("cooldown_steps", cooldown_steps, least=0)
    if warmup + cooldown >= total:
        parts = f"warmup_steps {warmup:,}" + (f" and cooldown_steps {cooldown:,}" if cooldown else "")
        raise ValueError(f"{parts} must be shorter than the run, got total_steps {total:,}")
    return total, warmup, cooldown
