"""Schedules made of other schedules: one after another, restarts, and presets of these."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from lit_cosine._checks import as_fraction, as_integer, as_tuple, check_power, set_milestones, set_number, shown
from lit_cosine.schedules._base import MOST_PIECES, ROUNDING, Schedule, as_schedule, final, set_depth
from lit_cosine.schedules._curves import Constant, Cosine, Linear, OneMinusSqrt

__all__ = ["PRESETS", "Restarts", "Sequential", "one_cycle", "warmup_cosine", "warmup_stable_decay"]


@final
@dataclass(frozen=True)
class Sequential(Schedule):
    """One schedule after another, each stretched over the part between its milestones. Itself a schedule: nests.

    Args:
        schedules: One or more schedules.
        milestones: Progress points in (0, 1), rising, one fewer than ``schedules``. From a milestone on, the later
            schedule applies.

    Raises:
        ValueError: If the milestones do not rise inside (0, 1) or their number does not fit.
        TypeError: If one of ``schedules`` is not a schedule.

    >>> Sequential((Linear(start=0, end=1), Cosine(end=0.1), Linear(start=0.1, end=0)), milestones=(0.05, 0.9))(0.05)
    1.0

    Equivalent to: ``torch.optim.lr_scheduler.SequentialLR`` of schedulers whose lengths are those parts.
    """

    schedules: tuple[Schedule, ...]
    milestones: tuple[float, ...]

    def __post_init__(self) -> None:
        given = as_tuple(self, "schedules")
        schedules = tuple(as_schedule(f"Sequential.schedules[{index}]", item) for index, item in enumerate(given))
        object.__setattr__(self, "schedules", schedules)
        if not schedules:
            raise ValueError("Sequential.schedules must hold at least one schedule, got none")
        set_milestones(self)
        if len(self.milestones) != len(schedules) - 1:
            raise ValueError(
                f"Sequential.milestones must be one fewer than its {len(schedules)} schedules, "
                f"got {len(self.milestones)}: {shown(self.milestones)}"
            )
        set_depth(self, schedules)
        _check_pieces("Sequential", sum(_pieces(schedule) for schedule in schedules))

    @cached_property
    def _bounds(self) -> tuple[float, ...]:
        return (0.0, *self.milestones, 1.0)

    def factor(self, progress: float) -> float:
        index, local = _locate(self._bounds, progress)
        return self.schedules[index](local)

    def all_milestones(self) -> tuple[float, ...]:
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

    schedule: Schedule = Cosine()  # noqa: RUF009  # frozen, so safe to share
    cycles: int = 3
    t_mult: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule("Restarts.schedule", self.schedule))
        object.__setattr__(self, "cycles", as_integer("Restarts.cycles", self.cycles, least=1))
        set_depth(self, (self.schedule,))
        _check_pieces("Restarts", self.cycles * _pieces(self.schedule))
        set_number(self, "t_mult", above=0.0)
        set_number(self, "decay", least=0.0)
        check_power("Restarts.decay", self.decay, self.cycles - 1)
        if any(stop - start <= ROUNDING for start, stop in pairwise(self._bounds)):
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
        index, local = _locate(self._bounds, progress)
        return float(self.decay**index * self.schedule(local))

    def all_milestones(self) -> tuple[float, ...]:
        return _nested_milestones(self._bounds, [self.schedule] * self.cycles)


def warmup_cosine(warmup: float = 0.05, end: float = 0.0, *, start: float = 0.01) -> Schedule:
    """Return a linear warmup from ``start`` to 1, then a cosine to ``end``.

    Args:
        warmup: Length of the warmup as a fraction of the run, in [0, 1). For a warmup in steps, epochs or seconds use
            the argument ``warmup`` of ``lr_scheduler_config`` or ``LearningRateScheduler`` instead.
        end: Factor at progress 1, >= 0.
        start: Factor at progress 0, >= 0. Above 0 by default: at 0 the first update of a run changes nothing.

    >>> warmup_cosine(0.1)
    Sequential(schedules=(Linear(start=0.01, end=1.0), Cosine(start=1.0, end=0.0, k=1.0)), milestones=(0.1,))

    Equivalent to: transformers' ``get_cosine_schedule_with_warmup`` where ``start`` is 0.
    """
    return _after_warmup(warmup, Linear(start=start, end=1.0), (Cosine(end=end),))


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
    warmup, decay = as_fraction("warmup", warmup), as_fraction("decay", decay)
    if not 0.0 < decay < 1.0 - warmup:
        raise ValueError(f"decay must be in (0, 1 - warmup) with warmup {warmup}, got {decay}")
    return _after_warmup(warmup, Linear(start=start, end=1.0), (Constant(), OneMinusSqrt(end=end)), (1.0 - decay,))


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
    return _after_warmup(warmup, Cosine(start=start, end=1.0), (Cosine(end=end),))


PRESETS = (one_cycle, warmup_cosine, warmup_stable_decay)
"""Functions that return a schedule and are written by name like one."""


def _pieces(schedule: Schedule) -> int:
    return len(schedule.all_milestones()) + 1


def _check_pieces(name: str, pieces: int) -> None:
    """Refuse a curve of so many pieces that listing its milestones would take long."""
    if pieces > MOST_PIECES:
        raise ValueError(f"{name} has {shown(pieces)} pieces between milestones; at most {MOST_PIECES:,} are possible")


def _locate(bounds: Sequence[float], progress: float) -> tuple[int, float]:
    """Return the index of the part of ``bounds`` that holds ``progress``, and the progress within that part."""
    index = min(bisect_right(bounds, progress + ROUNDING), len(bounds) - 1) - 1
    start, stop = bounds[index], bounds[index + 1]
    done = progress - start
    # a remainder of rounding is not progress: a curve as steep as 1 - sqrt would turn 1e-16 into 1e-8
    return index, 0.0 if done <= ROUNDING else done / (stop - start)


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
    warmup = as_fraction("warmup", warmup)
    if warmup > 0.0:
        then, milestones = (ramp, *then), (warmup, *milestones)
    return Sequential(then, milestones) if milestones else then[0]
