"""Anything as an argument of anything public in schedules: a value that works, or one short line; never a hang."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_cosine import schedules
from lit_cosine.schedules import (
    Clock,
    Cosine,
    Duration,
    PlannedFactor,
    Restarts,
    Schedule,
    Sequential,
    Step,
    as_schedule,
    build_schedule,
    check_lengths,
)

CYCLE: list[Any] = []
CYCLE += [CYCLE, CYCLE]
CYCLIC: dict[str, Any] = {"class_path": "Restarts"}
CYCLIC["init_args"] = {"schedule": CYCLIC}

# name -> what is called, and its parameters
CONSTRUCTORS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    **{name: (getattr(schedules, name), [*schedules.arguments(name)]) for name in schedules.names()},
    "Duration": (Duration, ["value", "unit"]),
    "Duration.parse": (Duration.parse, ["text"]),
    "Duration.length": (Duration(0.5, "run").length, ["unit", "total"]),
    "Clock": (Clock, ["total", "step", "progress"]),
    "Clock.reanchor": (Clock(10).reanchor, ["step", "total", "on_resize", "origin"]),
    "PlannedFactor.of_run": (
        PlannedFactor.of_run,
        ["schedule", "total_steps", "warmup_steps", "cooldown_steps", "cooldown_schedule"],
    ),
    "check_lengths": (check_lengths, ["total_steps", "warmup_steps", "cooldown_steps"]),
    "build_schedule": (build_schedule, ["plain"]),
    "from_dict": (Schedule.from_dict, ["data"]),
    "as_schedule": (lambda value: as_schedule("schedule", value), ["value"]),
    "sample": (Cosine().sample, ["n"]),
    "call": (Cosine(), ["progress"]),
}

NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.floats(allow_nan=True),
    st.floats(0, 1),
    st.sampled_from([True, 0, -0.0, 1e308, 5e-324, 2**63, 10**7, 10**40, 10**400, -(10**400), 1j, Fraction(1, 3)]),
    st.sampled_from([np.float64(0.5), np.int64(3), np.float32("nan"), torch.tensor(0.5), torch.tensor(2)]),
)
ODD = st.sampled_from(
    [
        None,
        CYCLE,
        CYCLIC,
        "x" * 10**5,
        "two\nlines",
        b"bytes",
        object(),
        Cosine,
        Step,
        len,
        {},
        {1: 2},
        {"class_path": "Cosine", "init_args": {"end": "two\nlines"}},
        np.linspace(0, 1, 1000),
        torch.zeros(2, 3),
        [0.5] * 10**5,
        range(10**5),
        "5" * 10**4 + "step",
        "9" * 10**4,
    ]
)
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["5%", "500step", "-1ep", "1e999h", "nan", "inf", "step", "ms", "run", "restart", "Cosine", "1e-3"]
    ),
)
SCHEDULES = st.sampled_from(
    [Cosine(), Step(milestones=(0.5,)), Restarts(cycles=5000), Sequential((Cosine(), Cosine()), (0.5,))]
)
LEAVES = st.one_of(NUMBERS, ODD, TEXT, SCHEDULES)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.floats(0, 1), max_size=4).map(sorted).map(tuple),
        st.dictionaries(
            st.sampled_from(["class_path", "init_args", "schedule", "schedules", "end", "milestones"]), inner
        ),
    ),
    max_leaves=8,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[Any], dict[str, Any]]:
    name = draw(st.sampled_from(sorted(CONSTRUCTORS)))
    parameters = CONSTRUCTORS[name][1]
    positional = draw(st.lists(VALUES, max_size=len(parameters)))
    keys = st.sampled_from([*parameters[len(positional) :], "T_max"])
    return name, positional, draw(st.dictionaries(keys, VALUES, max_size=3))


def check(call: tuple[str, list[Any], dict[str, Any]]) -> None:
    name, positional, named = call
    started = time.process_time()
    try:
        made = CONSTRUCTORS[name][0](*positional, **named)
        if isinstance(made, Schedule):
            for progress in (0.0, 0.3, 1.0):
                assert 0.0 <= made(progress) < math.inf
            made.to_dict(), made.all_milestones(), str(made), hash(made)
        elif isinstance(made, PlannedFactor):
            assert 0.0 <= made(0) < math.inf
    except (TypeError, ValueError) as error:
        message = str(error)
        if "positional argument" not in message and "keyword argument" not in message:  # Python's own, of a signature
            assert "\n" not in message, message
            assert len(message) < 300, message
    assert time.process_time() - started < 2.0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(calls())
def test_anything_gets_a_value_or_one_short_line(call: tuple[str, list[Any], dict[str, Any]]) -> None:
    check(call)


@pytest.mark.slow
@settings(
    max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example]
)
@given(calls())
def test_anything_at_length(call: tuple[str, list[Any], dict[str, Any]]) -> None:
    check(call)
