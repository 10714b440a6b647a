"""Every learning-rate curve, as a value: progress in [0, 1] -> factor of the base LR.

Conventions, the same for every schedule here:

* Progress is the fraction of the run done. Optimizer step k of N runs at progress k/N, so the first update runs at
  progress 0 and progress 1 is reached after the last one.
* Outside [0, 1] progress is clamped: extra steps hold the end, the curve never climbs back.
* At a milestone the later schedule has the word (curves are continuous from the right).
* A factor multiplies each param group's own base LR. The peak LR is written once, in the optimizer.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from lit_cosine.checks import as_fraction, as_integer, as_tuple, check_power, set_milestones, set_number
from lit_cosine.schedule import Schedule, check_schedule

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "OneMinusSqrt",
    "Polynomial",
    "Restarts",
    "Schedule",
    "Sequential",
    "Step",
    "one_cycle",
    "warmup_cosine",
    "warmup_stable_decay",
]

if TYPE_CHECKING:
    from typing import final
else:

    def final(cls: type) -> type:
        """Mark ``cls`` as final for type checkers alone.

        ``typing.final`` marks it at run time too, and jsonargparse would then read ``Restarts.schedule``, whose default
        is a Cosine, as the arguments of the abstract Schedule.
        """
        return cls


# A nested schedule sees progress that was rescaled, hence rounded: step k of N can land 1e-15 before a milestone that
# it meets exactly on paper. Milestones this close count as reached; steps of any real run are further apart.
_ROUNDING = 1e-12


@final
@dataclass(frozen=True)
class Constant(Schedule):
    """The base LR times ``value``, from start to end.

    Args:
        value: Factor, >= 0.

    >>> Constant()(0.3)
    1.0

    Equivalent to: ``torch.optim.lr_scheduler.ConstantLR`` with ``total_iters`` at the run's length.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        set_number(self, "value", least=0.0)

    def factor(self, progress: float) -> float:
        """Return ``value``."""
        return self.value


@final
@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: start + (end - start) * progress.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.

    >>> Linear(1, 0.5)(0.5)
    0.75

    Equivalent to: ``torch.optim.lr_scheduler.LinearLR`` with ``total_iters`` at the run's length.
    """

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "start", "end", least=0.0)

    def factor(self, progress: float) -> float:
        """Return start + (end - start) * progress."""
        return _blend(self.start, self.end, 1.0 - progress)


@final
@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave: end + (start - end) * (1 + cos(pi * progress^k)) / 2.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0. A floor in absolute LR is ``eta_min / lr``.
        k: k-decay exponent on progress, > 0; larger values stay near ``start`` for longer.

    >>> Cosine()(0.5)
    0.5
    >>> Cosine(end=0.1)(1.0)
    0.1

    Equivalent to: ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``T_max`` at the run's length.
    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983, eq. 5 with one cycle; ``k``: Zhang & Li
    2020, k-decay, https://arxiv.org/abs/2004.05909.
    """

    start: float = 1.0
    end: float = 0.0
    k: float = 1.0

    def __post_init__(self) -> None:
        set_number(self, "start", "end", least=0.0)
        set_number(self, "k", above=0.0)

    def factor(self, progress: float) -> float:
        """Return end + (start - end) * (1 + cos(pi * progress^k)) / 2."""
        return _blend(self.start, self.end, (1.0 + math.cos(math.pi * progress**self.k)) / 2.0)


@final
@dataclass(frozen=True)
class Polynomial(Schedule):
    """A power of what is left: end + (start - end) * (1 - progress)^power.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.
        power: Exponent, > 0.

    >>> Polynomial()(0.5)
    0.25

    Equivalent to: ``torch.optim.lr_scheduler.PolynomialLR`` with ``total_iters`` at the run's length and ``end`` 0.
    """

    start: float = 1.0
    end: float = 0.0
    power: float = 2.0

    def __post_init__(self) -> None:
        set_number(self, "start", "end", least=0.0)
        set_number(self, "power", above=0.0)

    def factor(self, progress: float) -> float:
        """Return end + (start - end) * (1 - progress)^power."""
        return _blend(self.start, self.end, (1.0 - progress) ** self.power)


@final
@dataclass(frozen=True)
class Exponential(Schedule):
    """A geometric fall: start^(1 - progress) * end^progress.

    Args:
        start: Factor at progress 0, > 0.
        end: Factor at progress 1, > 0: an exponential never reaches 0.

    >>> round(Exponential(end=0.01)(0.5), 12)
    0.1

    Equivalent to: ``torch.optim.lr_scheduler.ExponentialLR`` with ``gamma = (end / start) ** (1 / N)``.
    """

    start: float = 1.0
    end: float = 0.01

    def __post_init__(self) -> None:
        set_number(self, "start", "end", above=0.0)

    def factor(self, progress: float) -> float:
        """Return start^(1 - progress) * end^progress."""
        return float(self.start ** (1.0 - progress) * self.end**progress)


@final
@dataclass(frozen=True)
class Step(Schedule):
    """A staircase: gamma^(number of milestones reached).

    Args:
        gamma: Factor of each stair, >= 0.
        milestones: Progress points in (0, 1), rising.

    >>> Step(gamma=0.1, milestones=(0.5,)).sample(4)
    [1.0, 1.0, 0.1, 0.1]

    Equivalent to: ``torch.optim.lr_scheduler.MultiStepLR`` with ``milestones`` times the run's length.
    """

    gamma: float = 0.1
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)

    def __post_init__(self) -> None:
        set_number(self, "gamma", least=0.0)
        set_milestones(self)
        check_power("Step.gamma", self.gamma, len(self.milestones))

    def factor(self, progress: float) -> float:
        """Return gamma^(number of milestones reached)."""
        return float(self.gamma ** bisect_right(self.milestones, progress + _ROUNDING))

    def all_milestones(self) -> tuple[float, ...]:
        """Return the milestones."""
        return self.milestones


@final
@dataclass(frozen=True)
class OneMinusSqrt(Schedule):
    """A fall that is steep first: end + (start - end) * (1 - sqrt(progress)).

    Made for the decay after a constant phase.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.

    >>> OneMinusSqrt()(0.25)
    0.5

    Source: Hägele et al. 2024, https://arxiv.org/abs/2405.18392, eq. 2.
    """

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "start", "end", least=0.0)

    def factor(self, progress: float) -> float:
        """Return end + (start - end) * (1 - sqrt(progress))."""
        return _blend(self.start, self.end, 1.0 - math.sqrt(progress))


@final
@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """A fall that never quite ends: 1 / sqrt(1 + progress / timescale).

    Args:
        timescale: Progress after which the factor is 1/sqrt(2), > 0.

    >>> InverseSqrt(timescale=1/3)(1.0)
    0.5

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 3, without its warmup and its model width.
    """

    timescale: float = 0.05

    def __post_init__(self) -> None:
        set_number(self, "timescale", above=0.0)

    def factor(self, progress: float) -> float:
        """Return 1 / sqrt(1 + progress / timescale)."""
        return 1.0 / math.sqrt(1.0 + progress / self.timescale)


@final
@dataclass(frozen=True)
class Sequential(Schedule):
    """One schedule after another, each stretched over the part between its milestones. Itself a schedule: nests.

    Args:
        schedules: One or more schedules.
        milestones: Progress points in (0, 1), rising, one fewer than ``schedules``. From a milestone on, the later
            schedule has the word.

    Raises:
        ValueError: If the milestones do not rise inside (0, 1) or their number does not fit.
        TypeError: If one of ``schedules`` is not a schedule.

    >>> Sequential((Linear(0, 1), Cosine(end=0.1), Linear(0.1, 0)), milestones=(0.05, 0.9))(0.05)
    1.0

    Equivalent to: ``torch.optim.lr_scheduler.SequentialLR`` of schedulers whose lengths are those parts.
    """

    schedules: tuple[Schedule, ...]
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", as_tuple(self, "schedules"))
        if not self.schedules:
            raise ValueError("Sequential.schedules must hold at least one schedule, got none")
        for index, schedule in enumerate(self.schedules):
            check_schedule(f"Sequential.schedules[{index}]", schedule)
        set_milestones(self)
        if len(self.milestones) != len(self.schedules) - 1:
            raise ValueError(
                f"Sequential.milestones must be one fewer than its {len(self.schedules)} schedules, "
                f"got {len(self.milestones)}: {self.milestones}"
            )

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        return (0.0, *self.milestones, 1.0)

    def factor(self, progress: float) -> float:
        """Return the factor of the schedule that has the word, at its own progress."""
        index, local = _locate(self._bounds, progress)
        return self.schedules[index](local)

    def all_milestones(self) -> tuple[float, ...]:
        """Return the milestones and those of the schedules between them, rising."""
        return _nested_milestones(self._bounds, self.schedules)


@final
@dataclass(frozen=True)
class Restarts(Schedule):
    """The same schedule again and again, from its peak: warm restarts. The cycles fill the run.

    Cycle i is ``t_mult`` times as long and ``decay`` times as high as the one before.

    Args:
        schedule: The curve of one cycle.
        cycles: Number of cycles, >= 1.
        t_mult: Length of a cycle relative to the one before, > 0.
        decay: Height of a cycle relative to the one before, >= 0.

    >>> Restarts(Cosine(), cycles=2, decay=0.5).sample(4)
    [1.0, 0.5, 0.5, 0.25]

    Equivalent to: ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts`` with ``T_0`` such that ``cycles`` cycles end
    with the run.
    Source: Loshchilov & Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983, eq. 5.
    """

    schedule: Schedule = Cosine()
    cycles: int = 3
    t_mult: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_schedule("Restarts.schedule", self.schedule)
        object.__setattr__(self, "cycles", as_integer("Restarts.cycles", self.cycles, least=1))
        set_number(self, "t_mult", above=0.0)
        set_number(self, "decay", least=0.0)
        check_power("Restarts.decay", self.decay, self.cycles - 1)
        if any(stop - start <= _ROUNDING for start, stop in pairwise(self._bounds)):
            raise ValueError(
                f"Restarts.t_mult must leave every one of {self.cycles} cycles a length, got {self.t_mult}"
            )

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        # relative to the longest cycle, so that no power overflows
        longest = self.cycles - 1 if self.t_mult > 1.0 else 0
        ends = list(accumulate(self.t_mult ** (i - longest) for i in range(self.cycles)))
        return (0.0, *(end / ends[-1] for end in ends))

    def factor(self, progress: float) -> float:
        """Return decay^i * schedule(progress within cycle i)."""
        index, local = _locate(self._bounds, progress)
        return float(self.decay**index * self.schedule(local))

    def all_milestones(self) -> tuple[float, ...]:
        """Return where cycles begin and the milestones of the schedule inside each, rising."""
        return _nested_milestones(self._bounds, [self.schedule] * self.cycles)


def warmup_cosine(warmup: float = 0.05, end: float = 0.0, *, start: float = 0.01) -> Schedule:
    """Return a linear warmup from ``start`` to 1, then a cosine to ``end``.

    Args:
        warmup: Length of the warmup as a fraction of the run, in [0, 1). For a warmup in steps, epochs or seconds see
            the ``warmup`` argument of whoever plays the schedule.
        end: Factor at progress 1, >= 0.
        start: Factor at progress 0, >= 0. Above 0 by default: at 0 the first update of a run changes nothing.

    >>> warmup_cosine(0.1)
    Sequential(schedules=(Linear(start=0.01, end=1.0), Cosine(start=1.0, end=0.0, k=1.0)), milestones=(0.1,))

    Equivalent to: transformers' ``get_cosine_schedule_with_warmup`` where ``start`` is 0.
    """
    return _after_warmup(warmup, Linear(start, 1.0), (Cosine(end=end),))


def warmup_stable_decay(warmup: float = 0.05, decay: float = 0.2, end: float = 0.0, *, start: float = 0.01) -> Schedule:
    """Return a linear warmup, a constant phase, and a 1-sqrt decay to ``end`` over the last ``decay`` of the run.

    Args:
        warmup: Length of the warmup as a fraction of the run, in [0, 1).
        decay: Length of the decay as a fraction of the run, in (0, 1 - warmup).
        end: Factor at progress 1, >= 0.
        start: Factor at progress 0, >= 0.

    Raises:
        ValueError: If no constant phase is left.

    >>> warmup_stable_decay(0.1, 0.2)(0.5)
    1.0

    Source: Hägele et al. 2024, https://arxiv.org/abs/2405.18392, section 3.
    """
    if not 0.0 < as_fraction("decay", decay) < 1.0 - as_fraction("warmup", warmup):
        raise ValueError(f"decay must be in (0, 1 - warmup) with warmup {warmup}, got {decay}")
    return _after_warmup(warmup, Linear(start, 1.0), (Constant(), OneMinusSqrt(end=end)), (1.0 - decay,))


def one_cycle(warmup: float = 0.3, start: float = 1 / 25, end: float = 4e-6) -> Schedule:
    """Return a cosine up from ``start`` to 1 and a cosine down to ``end``: the 1cycle policy.

    Args:
        warmup: Fraction of the run on the way up, in [0, 1).
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.

    >>> one_cycle()(0.3)
    1.0

    Equivalent to: ``torch.optim.lr_scheduler.OneCycleLR`` with ``max_lr`` as the optimizer's LR. torch rewrites the
    base LR to ``max_lr / div_factor``, here it stays the peak; torch ends a step early, its last update is at ``end``.
    Source: Smith & Topin 2018, https://arxiv.org/abs/1708.07120, with the cosine phases of torch's default.
    """
    return _after_warmup(warmup, Cosine(start, 1.0), (Cosine(end=end),))


def _blend(start: float, end: float, weight: float) -> float:
    """Return end + (start - end) * weight, in the form that is exact at weight 0 and 1."""
    return start * weight + end * (1.0 - weight)


def _locate(bounds: Sequence[float], progress: float) -> tuple[int, float]:
    """Return the index of the part of ``bounds`` that holds ``progress``, and the progress within that part."""
    index = min(bisect_right(bounds, progress + _ROUNDING), len(bounds) - 1) - 1
    start, stop = bounds[index], bounds[index + 1]
    done = progress - start
    # what rounding left over is no progress: a curve as steep as 1 - sqrt would make 1e-8 of 1e-16
    return index, 0.0 if done <= _ROUNDING else done / (stop - start)


def _nested_milestones(bounds: Sequence[float], schedules: Sequence[Schedule]) -> tuple[float, ...]:
    inner = [
        start + milestone * (stop - start)
        for start, stop, schedule in zip(bounds[:-1], bounds[1:], schedules, strict=True)
        for milestone in schedule.all_milestones()
    ]
    return tuple(sorted({*bounds[1:-1], *inner}))


def _after_warmup(
    warmup: float, ramp: Schedule, then: tuple[Schedule, ...], milestones: tuple[float, ...] = ()
) -> Schedule:
    if as_fraction("warmup", warmup) > 0.0:
        then, milestones = (ramp, *then), (warmup, *milestones)
    return Sequential(then, milestones) if milestones else then[0]
