"""Every curve that holds no other schedule, as a value: progress in [0, 1] -> factor of the base LR.

Conventions, the same for every schedule:

* Progress is the fraction of the run done. Optimizer step k of N runs at progress k/N: the first update runs at
  progress 0, and progress 1 is reached after the last one.
* Outside [0, 1] progress is clamped: extra steps hold the end, the curve never climbs back.
* At a milestone the later schedule applies (curves are continuous from the right).
* A factor multiplies each param group's own base LR. The peak LR is written once, in the optimizer.
* Arguments are given by name: ``Cosine(100)`` would look like a length of 100 steps and be a start of 100.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from dataclasses import dataclass

from lit_cosine._checks import check_power, set_milestones, set_number
from lit_cosine.schedules._base import ROUNDING, Schedule, final

__all__ = ["Constant", "Cosine", "Exponential", "InverseSqrt", "Linear", "OneMinusSqrt", "Polynomial", "Step"]


@final
@dataclass(frozen=True, kw_only=True)
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
        return self.value


@dataclass(frozen=True, kw_only=True)
class _StartToEnd(Schedule):
    """A curve from ``start`` to ``end``, by the part of the way that is left: 1 at progress 0 and 0 at progress 1."""

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        set_number(self, "start", "end", least=0.0)

    @abstractmethod
    def _left(self, progress: float) -> float: ...

    def factor(self, progress: float) -> float:
        left = self._left(progress)
        return self.start * left + self.end * (1.0 - left)  # exact at both ends


@final
@dataclass(frozen=True, kw_only=True)
class Linear(_StartToEnd):
    """A straight line: start + (end - start) * progress.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.

    >>> Linear(start=1, end=0.5)(0.5)
    0.75

    Equivalent to: ``torch.optim.lr_scheduler.LinearLR`` with ``total_iters`` at the run's length.
    """

    def _left(self, progress: float) -> float:
        return 1.0 - progress


@final
@dataclass(frozen=True, kw_only=True)
class Cosine(_StartToEnd):
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

    k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "k", above=0.0)

    def _left(self, progress: float) -> float:
        return (1.0 + math.cos(math.pi * progress**self.k)) / 2.0


@final
@dataclass(frozen=True, kw_only=True)
class Polynomial(_StartToEnd):
    """A power of what is left: end + (start - end) * (1 - progress)^power.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.
        power: Exponent, > 0.

    >>> Polynomial()(0.5)
    0.25

    Equivalent to: ``torch.optim.lr_scheduler.PolynomialLR`` with ``total_iters`` at the run's length and ``end`` 0.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "power", above=0.0)

    def _left(self, progress: float) -> float:
        return float((1.0 - progress) ** self.power)


@final
@dataclass(frozen=True, kw_only=True)
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
        return float(self.start ** (1.0 - progress) * self.end**progress)


@final
@dataclass(frozen=True, kw_only=True)
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
        return float(self.gamma ** bisect_right(self.milestones, progress + ROUNDING))

    def all_milestones(self) -> tuple[float, ...]:
        return self.milestones


@final
@dataclass(frozen=True, kw_only=True)
class OneMinusSqrt(_StartToEnd):
    """A fall that is steep first: end + (start - end) * (1 - sqrt(progress)).

    Made for the decay after a constant phase.

    Args:
        start: Factor at progress 0, >= 0.
        end: Factor at progress 1, >= 0.

    >>> OneMinusSqrt()(0.25)
    0.5

    Source: Hägele et al. 2024, https://arxiv.org/abs/2405.18392, eq. 2.
    """

    def _left(self, progress: float) -> float:
        return 1.0 - math.sqrt(progress)


@final
@dataclass(frozen=True, kw_only=True)
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
        return 1.0 / math.sqrt(1.0 + progress / self.timescale)
