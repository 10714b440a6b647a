"""What the theory of convex optimization says about a schedule before a run: a bound on the loss, and its best peak.

Convention: the bound is that of a problem with distance D = 1 to the solution and gradients of norm G = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lit_cosine.schedules._base import Schedule, check_schedule
from lit_cosine.schedules._curves import OneMinusSqrt
from lit_cosine.schedules._planned import PlannedFactor

__all__ = ["ConvergenceBound", "bound_of_factors", "convergence_bound"]


@final
@dataclass(frozen=True)
class ConvergenceBound:
    """The bound of a schedule.

    Args:
        value: The bound on the loss of the last iterate at the best peak LR.
        peak: That peak LR.
    """

    value: float
    peak: float


def convergence_bound(
    schedule: Schedule,
    total_steps: int,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    cooldown_schedule: Schedule = OneMinusSqrt(),
) -> ConvergenceBound:
    """Return how far the last iterate of subgradient descent may be from the optimum, and the peak LR for it.

    With h_k the factor of step k of T, H_k the sum and Q_k the sum of squares of h_k … h_T::

        T1 = 1 / (2 H_1)        T2 = (Q_1/H_1 + sum_{k<T} (h_k / H_{k+1}) (Q_k / H_k)) / 2
        value = 2 sqrt(T1 T2)   peak = sqrt(T1 / T2)

    A step after which every factor is 0 has no term in the sum. Only ratios between schedules mean anything: a bound
    1.1 times as high as another's, a peak half as high. The formula holds for convex losses and SGD; that the order of
    schedules is the same for networks under Adam is an observation. It says nothing about the batch size.

    Args:
        schedule: The curve.
        total_steps: Length of the run, an integer >= 1.
        warmup_steps: Length of the warmup, an integer >= 0.
        cooldown_steps: Length of the cooldown, an integer >= 0; with the warmup it is shorter than the run.
        cooldown_schedule: The curve of the cooldown.

    Raises:
        TypeError: If a schedule is none, or a length is no integer.
        ValueError: If the lengths do not fit, or the factor is 0 at every step.

    >>> from lit_cosine import Constant, Linear
    >>> linear, constant = convergence_bound(Linear(), 400), convergence_bound(Constant(), 400)
    >>> round(constant.value / linear.value, 4), round(constant.peak / linear.peak, 4)
    (1.3668, 0.3667)

    Source: Schaipp et al. 2025, https://arxiv.org/abs/2501.18965.
    """
    check_schedule("schedule", schedule)
    check_schedule("cooldown_schedule", cooldown_schedule)
    planned = PlannedFactor.of_run(schedule, total_steps, warmup_steps, cooldown_steps, cooldown_schedule)
    return bound_of_factors([planned(step) for step in range(total_steps)])


def bound_of_factors(factors: Sequence[float]) -> ConvergenceBound:
    """Return the bound of a run with one factor a step, in one pass from its end."""
    highest = max(factors)
    if highest == 0.0:
        raise ValueError("the schedule must be above 0 at one step at least, got 0 at every step: it has no bound")
    total = squares = terms = 0.0
    for factor in reversed(factors):
        h = factor / highest  # the bound does not depend on the scale, and no square overflows
        after, total, squares = total, total + h, squares + h * h
        if after > 0.0:
            terms += h / after * (squares / total)
    t1, t2 = 0.5 / total, 0.5 * (squares / total + terms)
    return ConvergenceBound(2.0 * math.sqrt(t1 * t2), math.sqrt(t1 / t2) / highest)
