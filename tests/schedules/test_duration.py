"""Durations: their spellings, and their conversion to the unit of a run."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from jsonargparse import ArgumentParser

from lit_cosine.schedules import Duration, Unit

durations = st.one_of(
    st.builds(Duration, st.integers(0, 10**9), st.just("step")),
    st.builds(Duration, st.floats(0.0, 1.0), st.just("run")),
    st.builds(Duration, st.floats(0.0, 1e9), st.sampled_from(["ep", "s"])),
)


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


def test_numpys_numbers_are_numbers() -> None:
    assert Duration(np.int64(5), "step") == Duration(5, "step")


# --- in the unit of a run ---


def updates(epochs: float) -> float:
    """Epochs of 40 updates."""
    return 40 * epochs


@pytest.mark.parametrize(
    ("text", "unit", "total", "expected"),
    [
        ("500step", "step", 2000, 500),
        ("2ep", "step", 2000, 80),
        ("0.25ep", "step", 2000, 10),
        ("5%", "step", 2000, 100),
        ("80step", "epoch", 50, 2),
        ("3ep", "epoch", 50, 3),
        ("10%", "epoch", 50, 5),
        ("500step", "batch", 2000, 500),
        ("2ep", "batch", 2000, 80),
        ("30min", "ms", 7_200_000, 1_800_000),
        ("0.5s", "ms", 7_200_000, 500),
        ("5%", "ms", 7_200_000, 360_000),
        ("0step", "ms", 7_200_000, 0),
        ("0s", "step", 2000, 0),
    ],
)
def test_a_duration_in_the_unit_of_a_run(text: str, unit: Unit, total: int, expected: int) -> None:
    length = Duration.parse(text).length(unit, total, steps_of=updates)
    assert length == expected
    assert type(length) is int


@pytest.mark.parametrize(
    ("text", "unit", "rule"),
    [
        ("30s", "step", r"cannot be used in a run that is limited by steps or epochs: write it as \"500step\" or "),
        ("500step", "ms", r"cannot be used in a run that is limited by max_time: write it as \"30s\" or \"5%\""),
        ("2ep", "ms", r"cannot be used in a run that is limited by max_time"),
        ("50step", "epoch", r"must be whole epochs when interval is \"epoch\", got 1.25 epochs"),
        ("1%", "epoch", r"must be whole epochs when interval is \"epoch\", got 0.5 epochs"),
    ],
)
def test_a_duration_that_a_run_cannot_have(text: str, unit: Unit, rule: str) -> None:
    with pytest.raises(ValueError, match=rf'^cooldown="{text}" {rule}'):
        Duration.parse(text).length(unit, 50, steps_of=updates, name="cooldown")


@pytest.mark.parametrize(("text", "unit"), [("2ep", "step"), ("2ep", "batch"), ("80step", "epoch")])
def test_the_length_of_an_epoch_may_be_unknown(text: str, unit: Unit) -> None:
    with pytest.raises(ValueError, match=rf'^warmup="{text}" needs the length of an epoch, which is unknown$'):
        Duration.parse(text).length(unit, 50)
