"""Durations are read as they are written; a clock is the straight line of DESIGN.md's table."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from jsonargparse import ArgumentParser

from lit_cosine.horizon import Clock, Duration, OnResize, check_on_resize

POLICIES: list[OnResize] = ["continue", "rescale", "keep", "restart"]
lengths = st.integers(1, 10**6)
durations = st.one_of(
    st.builds(Duration, st.integers(0, 10**9), st.just("step")),
    st.builds(Duration, st.floats(0.0, 1.0), st.just("run")),
    st.builds(Duration, st.floats(0.0, 1e9), st.sampled_from(["ep", "s"])),
)


# --- durations ---


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("500step", 500, "step"),
        ("500steps", 500, "step"),
        ("5e3step", 5000, "step"),
        ("5ep", 5, "ep"),
        ("0.5ep", 0.5, "ep"),
        ("1 epoch", 1, "ep"),
        (" 2 Epochs ", 2, "ep"),
        ("5%", 0.05, "run"),
        ("57%", 0.57, "run"),
        (".5 %", 0.005, "run"),
        ("100%", 1, "run"),
        ("0.05run", 0.05, "run"),
        ("90s", 90, "s"),
        ("30min", 1800, "s"),
        ("2h", 7200, "s"),
        ("1.5h", 5400, "s"),
        ("0step", 0, "step"),
    ],
)
def test_spellings(text: str, value: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(value, unit)


@given(durations)
def test_a_duration_comes_back(duration: Duration) -> None:
    assert Duration.parse(str(duration)) == duration
    assert Duration.parse(duration) is duration
    assert eval(repr(duration), {"Duration": Duration}) == duration
    for back in (pickle.loads(pickle.dumps(duration)), copy.deepcopy(duration)):
        assert back == duration
        assert hash(back) == hash(duration)


@pytest.mark.parametrize("text", ["5%", "500step", "30min"])
def test_a_duration_on_the_command_line(text: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--warmup", type=str | Duration)
    assert Duration.parse(parser.parse_args(["--warmup", text]).warmup) == Duration.parse(text)


@pytest.mark.parametrize(
    ("number", "meant"),
    [
        (500, 'write "500step" (or "500ep")'),
        (1234567, 'write "1234567step" (or "1234567ep")'),
        (0.05, 'write "5%" (or "0.05run")'),
        (0.1234567, 'write "12.34567%" (or "0.1234567run")'),
        (2.5, 'write "2.5ep"'),
        (-5, 'write "500step", "5ep", "5%" or "30min"'),
        (math.nan, 'write "500step", "5ep", "5%" or "30min"'),
        (math.inf, 'write "500step", "5ep", "5%" or "30min"'),
    ],
)
def test_a_bare_number_is_refused_with_what_was_meant(number: float, meant: str) -> None:
    with pytest.raises(TypeError) as raised:
        Duration.parse(number, "warmup")  # type: ignore[arg-type]
    assert str(raised.value) == f"warmup must name its unit, got {number!r}: {meant}"
    if math.isfinite(number) and number > 0:
        with pytest.raises(ValueError, match=r"^warmup must name its unit, got '") as raised_too:
            Duration.parse(str(number), "warmup")
        assert str(raised_too.value).endswith(meant)
        for spelling in meant.split('"')[1::2]:
            assert Duration.parse(spelling).value == pytest.approx(number, rel=1e-15)


@pytest.mark.parametrize("text", ["", "ep", "5 ep 3", "five steps", "5-ep", "1e", "nanstep", "infs"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^warmup (must be a duration such as|has the unknown unit)"):
        Duration.parse(text, "warmup")


@pytest.mark.parametrize("value", [None, [5], True, {"value": 5}])
def test_another_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r'^warmup must be a duration such as "500step", "5ep", "5%" or "30min", got '):
        Duration.parse(value, "warmup")


@pytest.mark.parametrize("unit", ["m", "hours", "days", "batch"])
def test_an_unknown_unit_is_refused(unit: str) -> None:
    with pytest.raises(ValueError, match=rf"^warmup has the unknown unit '{unit}'; known are step, steps, ep, .*, h$"):
        Duration.parse(f"5{unit}", "warmup")
    with pytest.raises(ValueError, match=rf"^Duration.unit must be one of step, ep, run, s, got '{unit}'$"):
        Duration(5, unit)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("-5step", "Duration.value must be finite and >= 0, got -5.0"),
        ("1e999s", "Duration.value must be finite and >= 0, got inf"),
        ("2.5step", "Duration.value must be whole for steps, got 2.5"),
        ("110%", r"Duration.value must be at most 1 run \(100%\), got 1.1"),
    ],
)
def test_a_duration_that_cannot_be_is_refused(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^warmup: {rule} from '{text}'$"):
        Duration.parse(text, "warmup")


@pytest.mark.parametrize("value", ["5", None, True, torch.zeros(2)])
def test_a_durations_value_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^Duration.value must be a number, got "):
        Duration(value, "step")


# --- the clock ---


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


def test_numpys_numbers_are_numbers() -> None:
    assert Clock(np.int64(100), np.float32(50), np.float64(0.5))(75) == 0.75
    assert Duration(np.int64(5), "step") == Duration(5, "step")


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
