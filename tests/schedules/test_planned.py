"""The planned factor beside the formula LR = base * warmup(k) * S(k) * cooldown(k), and the lengths it refuses."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_cosine import Constant, Cosine, Linear, OneMinusSqrt
from lit_cosine.schedules import Clock, PlannedFactor, check_lengths


@st.composite
def lengths(draw: st.DrawFn) -> tuple[int, int, int]:
    """(N, W, C) with W + C < N."""
    total = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, total - 1))
    return total, warmup, draw(st.integers(0, total - 1 - warmup))


@given(lengths(), st.integers(0, 320))
def test_the_factor_is_warmup_times_schedule_times_cooldown(run: tuple[int, int, int], k: int) -> None:
    N, W, C = run
    warmup = (k + 1) / (W + 1) if k < W else 1.0
    p = min(max((k - W) / (N - C - W), 0.0), 1.0)
    S = 0.25 + 0.75 * (1 + math.cos(math.pi * p)) / 2
    q = min(max((k - (N - C)) / C, 0.0), 1.0) if C else 0.0
    planned = PlannedFactor.of_run(Cosine(end=0.25), N, W, C)
    assert planned(k) == pytest.approx(warmup * S * (1 - math.sqrt(q)), rel=1e-12, abs=1e-15)


def test_points_by_hand() -> None:
    """10 steps: 2 of warmup at 1/3 and 2/3, 4 of a line from 1 to 0.5, 4 of a line to 0 on top of the 0.5."""
    planned = PlannedFactor.of_run(Linear(end=0.5), 10, 2, 4, Linear())
    factors = [1 / 3, 2 / 3, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0]
    assert [planned(k) for k in range(12)] == pytest.approx(factors, rel=1e-15)


def test_a_cooldown_schedule_applies_from_its_first_step_alone() -> None:
    planned = PlannedFactor.of_run(Constant(), 4, cooldown_steps=2, cooldown_schedule=Linear(start=0.5, end=0.0))
    assert [planned(k) for k in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.0]


def test_a_cooldown_that_a_longer_run_continues() -> None:
    """Half of the cooldown is done at step 8; the rest takes until step 18."""
    planned = PlannedFactor(Constant(), Clock(6), 0, Clock(18, 8, 0.5), OneMinusSqrt())
    assert planned(8) == pytest.approx(1 - math.sqrt(0.5), rel=1e-15)
    assert planned(13) == pytest.approx(1 - math.sqrt(0.75), rel=1e-15)
    assert planned(18) == 0.0


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        ((0,), ValueError, "total_steps must be an integer >= 1, got 0"),
        ((5.0,), TypeError, "total_steps must be an integer >= 1, got 5.0"),
        ((5, -1), ValueError, "warmup_steps must be an integer >= 0, got -1"),
        ((5, 5), ValueError, "warmup_steps 5 must be shorter than the run, got total_steps 5"),
        ((5, 0, True), TypeError, "cooldown_steps must be an integer >= 0, got True"),
        (
            (2000, 1000, 1000),
            ValueError,
            "warmup_steps 1,000 and cooldown_steps 1,000 must be shorter than the run, got total_steps 2,000",
        ),
    ],
)
def test_lengths_that_do_not_fit_are_refused(run: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        check_lengths(*run)
    with pytest.raises(error, match=f"^{message}$"):
        PlannedFactor.of_run(Constant(), *run)
