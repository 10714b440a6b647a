"""A clock is a straight line from an anchor to the end of the run; a changed length moves it by the policy's rule."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from lit_cosine.schedules import Clock, OnResize, check_on_resize
from tests.helpers import oracles

POLICIES: list[OnResize] = ["continue", "rescale", "keep", "restart"]
lengths = st.integers(1, 10**6)


@given(lengths, st.integers(0, 2 * 10**6))
def test_a_clock_is_k_over_n(total: int, step: int) -> None:
    assert Clock(total)(step) == min(step / total, 1.0)


@given(lengths, st.data())
def test_after_a_warmup_the_clock_spans_what_is_left(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    step = data.draw(st.integers(0, total))
    assert Clock(total, warmup)(step) == pytest.approx(max(step - warmup, 0) / (total - warmup), rel=1e-15)


@pytest.mark.parametrize("policy", POLICIES)
@given(old=lengths, new=lengths, data=st.data())
def test_a_changed_total_is_the_line_of_the_table(policy: OnResize, old: int, new: int, data: st.DataObject) -> None:
    origin = data.draw(st.integers(0, old - 1))
    resumed_at = data.draw(st.integers(0, old))
    step = data.draw(st.integers(resumed_at, 2 * max(old, new)))
    clock = Clock(old, origin).reanchor(resumed_at, new, policy, origin=origin)
    expected = oracles.resumed_progress(step, resumed_at, policy, old, new, origin)
    assert clock(step) == pytest.approx(expected, rel=1e-12)


@given(lengths, lengths, st.data())
def test_continue_keeps_the_progress_and_ends_at_the_new_total(old: int, new: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, min(old, new) - 1))
    clock = Clock(old).reanchor(step, new)
    assert clock(step) == step / old
    assert clock(new) == 1.0
    assert step / old <= clock((step + new) / 2) <= 1.0


@given(lengths, st.data())
def test_continue_twice_is_continue_once(total: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, total - 1))
    second = data.draw(st.integers(first, total - 1))
    once = Clock(1000).reanchor(min(first, 999), total)
    twice = once.reanchor(second, total)
    for step in range(second, total, max(1, total // 5)):
        assert twice(step) == pytest.approx(once(step), rel=1e-9)


def test_a_clock_comes_back() -> None:
    clock = Clock(100, 20, 0.25)
    assert eval(repr(clock), {"Clock": Clock}) == clock
    assert pickle.loads(pickle.dumps(clock)) == clock
    assert hash(copy.deepcopy(clock)) == hash(clock)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "Clock.total must be finite and > 0, got 0"),
        ((-1,), "Clock.total must be finite and > 0, got -1"),
        ((math.inf,), "Clock.total must be finite and > 0, got inf"),
        ((math.nan,), "Clock.total must be finite and > 0, got nan"),
        ((10, -1), "Clock.step must be finite and >= 0, got -1"),
        ((10, math.inf), "Clock.step must be finite and >= 0, got inf"),
        ((10, 0, 1.1), r"Clock.progress must be in \[0, 1\], got 1.1"),
        ((10, 0, math.nan), r"Clock.progress must be in \[0, 1\], got nan"),
    ],
)
def test_a_clock_that_cannot_run_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        Clock(*arguments)


def test_numpys_numbers_become_pythons() -> None:
    clock = Clock(np.int64(100), np.float32(50), np.float64(0.5))
    assert clock(75) == 0.75
    assert {type(clock.total), type(clock.step), type(clock.progress)} == {float}


@pytest.mark.parametrize("field", ["total", "step", "progress"])
@pytest.mark.parametrize("value", [True, "10", None])
def test_a_clocks_fields_are_numbers(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^Clock.{field} must be a number, got {value!r}$"):
        Clock(**{"total": 10, field: value})


def test_an_unknown_policy_is_refused() -> None:
    message = r"^on_resize must be one of continue, rescale, keep, restart, got 'stretch'$"
    with pytest.raises(ValueError, match=message):
        Clock(10).reanchor(5, 20, "stretch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        check_on_resize("stretch")
