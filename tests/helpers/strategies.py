"""Hypothesis strategies: random schedules, nested, and schedules whose every factor is known beforehand.

Convention: parts are never shorter than 1/20 of what they lie in, so that a nested part is far longer than rounding.
"""

from __future__ import annotations

from typing import cast

from hypothesis import strategies as st

from lit_cosine.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneMinusSqrt,
    Polynomial,
    Restarts,
    Schedule,
    Sequential,
    Step,
)


def _zero_or_up_to(most: float) -> st.SearchStrategy[float]:
    """0 or a number far from what floats can no longer halve."""
    return st.one_of(st.just(0.0), st.floats(1e-6, most))


factors = _zero_or_up_to(10.0)
progresses = st.floats(0.0, 1.0)
_above_zero = st.floats(1e-6, 10.0)
_exponents = st.floats(0.5, 4.0)


def milestones(count: int) -> st.SearchStrategy[tuple[float, ...]]:
    """``count`` rising progress points, at least 1/20 from each other and from the ends."""
    points = st.lists(st.integers(1, 19), min_size=count, max_size=count, unique=True)
    return points.map(lambda found: tuple(point / 20 for point in sorted(found)))


leaves: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(Constant, value=factors),
    st.builds(Linear, start=factors, end=factors),
    st.builds(Cosine, start=factors, end=factors, k=_exponents),
    st.builds(Polynomial, start=factors, end=factors, power=_exponents),
    st.builds(Exponential, start=_above_zero, end=_above_zero),
    st.builds(Step, gamma=_zero_or_up_to(2.0), milestones=st.integers(0, 4).flatmap(milestones)),
    st.builds(OneMinusSqrt, start=factors, end=factors),
    st.builds(InverseSqrt, timescale=st.floats(0.01, 10.0)),
)


def _sequential(parts: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.lists(parts, min_size=1, max_size=4).flatmap(
        lambda found: st.builds(Sequential, st.just(tuple(found)), milestones(len(found) - 1))
    )


def _restarts(parts: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.builds(Restarts, parts, st.integers(1, 4), st.floats(0.5, 2.0), _zero_or_up_to(2.0))


_pairs = st.one_of(leaves, _sequential(leaves), _restarts(leaves))
schedules: st.SearchStrategy[Schedule] = st.one_of(leaves, _sequential(_pairs), _restarts(_pairs))


@st.composite
def stairs(draw: st.DrawFn, length: int | None = None, depth: int = 3) -> tuple[Schedule, list[float]]:
    """A schedule of nested constants whose milestones fall on steps, and the factor of each of its steps."""
    length = length or draw(st.integers(1, 300))
    if depth == 0 or length == 1:
        value = float(draw(st.integers(0, 9)))
        return Constant(value=value), [value] * length
    cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=3)))
    lengths = [stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)]
    parts = [draw(stairs(part, depth - 1)) for part in lengths]
    schedule = Sequential(tuple(part for part, _ in parts), tuple(cut / length for cut in cuts))
    return schedule, [factor for _, expected in parts for factor in expected]


def first(schedule: Schedule) -> float:
    """The factor that the fields promise for progress 0."""
    if isinstance(schedule, Sequential):
        return first(schedule.schedules[0])
    if isinstance(schedule, Restarts):
        return first(schedule.schedule)
    if isinstance(schedule, Constant):
        return schedule.value
    return cast("float", getattr(schedule, "start", 1.0))


def last(schedule: Schedule) -> float:
    """The factor that the fields promise for progress 1."""
    if isinstance(schedule, Sequential):
        return last(schedule.schedules[-1])
    if isinstance(schedule, Restarts):
        return float(schedule.decay ** (schedule.cycles - 1) * last(schedule.schedule))
    if isinstance(schedule, Constant):
        return schedule.value
    if isinstance(schedule, Step):
        return float(schedule.gamma ** len(schedule.milestones))
    if isinstance(schedule, InverseSqrt):
        return float((1 + 1 / schedule.timescale) ** -0.5)
    return cast("float", getattr(schedule, "end", None))


def extremes(schedule: Schedule) -> tuple[float, float]:
    """The least and the largest factor that the fields allow."""
    if isinstance(schedule, Sequential):
        lows, highs = zip(*map(extremes, schedule.schedules), strict=True)
        return min(lows), max(highs)
    if isinstance(schedule, Restarts):
        low, high = extremes(schedule.schedule)
        heights = [schedule.decay**cycle for cycle in range(schedule.cycles)]
        return min(heights) * low, max(heights) * high
    ends = first(schedule), last(schedule)
    return min(ends), max(ends)
