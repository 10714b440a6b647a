"""Schedules against independent witnesses, their properties over random nested ones, and what they refuse."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from jsonargparse import ArgumentParser
from matplotlib.figure import Figure
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

import lit_cosine
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
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)
from tests.helpers import oracles, strategies

PEAK = 0.3


def close(expected: list[float]) -> Any:
    """Equal to 12 digits; 1e-15 of the peak is what 1 + cos(pi u) loses beside its zero, on both sides."""
    return pytest.approx(expected, rel=1e-12, abs=1e-15)


def torch_lrs(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """The LR of each of ``steps`` updates, as fractions of the peak."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=PEAK)
    scheduler, lrs = make(optimizer), []
    for _ in range(steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]) / PEAK)
        optimizer.step()
        scheduler.step()
    return lrs


# --- torch ---


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing(steps: int, end: float) -> None:
    witness = torch_lrs(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=end * PEAK), steps + 1)
    curve = Cosine(end=end)
    # torch's form is a recursion that multiplies the LR: where it nears 0, what it rounded stays in it
    assert [*curve.sample(steps), curve(1.0)] == pytest.approx(witness, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("t_0", [1, 3, 10, 25])
@pytest.mark.parametrize("t_mult", [1, 2, 3])
@pytest.mark.parametrize("cycles", [1, 2, 4])
def test_restarts_are_torchs_warm_restarts(t_0: int, t_mult: int, cycles: int) -> None:
    steps = sum(t_0 * t_mult**cycle for cycle in range(cycles))
    witness = torch_lrs(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, t_0, T_mult=t_mult, eta_min=0.05 * PEAK), steps
    )
    assert Restarts(Cosine(end=0.05), cycles, t_mult).sample(steps) == close(witness)


@pytest.mark.parametrize("t_0", [2, 10, 33])
@pytest.mark.parametrize("t_mult", [1, 2])
def test_restarts_are_sgdr_down_to_zero(t_0: int, t_mult: int) -> None:
    steps = sum(t_0 * t_mult**cycle for cycle in range(4))
    expected = [oracles.sgdr(k, t_0, t_mult, 0.0, 1.0) for k in range(steps)]
    assert Restarts(Cosine(), 4, t_mult).sample(steps) == close(expected)


@pytest.mark.parametrize("steps", [10, 100, 501])
@pytest.mark.parametrize("warmup", [0.2, 0.3, 0.5])
def test_one_cycle_is_torchs(steps: int, warmup: float) -> None:
    witness = torch_lrs(
        lambda o: lr_scheduler.OneCycleLR(
            o, PEAK, total_steps=steps, pct_start=warmup, div_factor=20, final_div_factor=1e3, cycle_momentum=False
        ),
        steps,
    )
    # torch peaks at step warmup * N - 1 and gives its last update, N - 1, the end: one step less than a run of N
    curve = one_cycle((warmup * steps - 1) / (steps - 1), start=1 / 20, end=1 / 20e3)
    assert [*curve.sample(steps - 1), curve(1.0)] == close(witness)


def test_one_cycle_defaults_are_torchs() -> None:
    witness = torch_lrs(lambda o: lr_scheduler.OneCycleLR(o, PEAK, total_steps=10), 10)
    assert [one_cycle()(0.0), one_cycle()(1.0)] == close([witness[0], witness[-1]])
    assert one_cycle()(0.3) == 1.0


@pytest.mark.parametrize("milestones", [(1,), (30, 60), (33, 66, 99), (7, 8, 9)])
def test_step_is_torchs_multi_step(milestones: tuple[int, ...]) -> None:
    witness = torch_lrs(lambda o: lr_scheduler.MultiStepLR(o, milestones, gamma=0.2), 100)
    curve = Step(gamma=0.2, milestones=tuple(milestone / 100 for milestone in milestones))
    assert curve.sample(100) == close(witness)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
def test_polynomial_is_torchs(power: float) -> None:
    witness = torch_lrs(lambda o: lr_scheduler.PolynomialLR(o, total_iters=100, power=power), 101)
    curve = Polynomial(power=power)
    assert [*curve.sample(100), curve(1.0)] == close(witness)


def test_exponential_is_torchs() -> None:
    witness = torch_lrs(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.01 ** (1 / 100)), 101)
    assert [*Exponential(end=0.01).sample(100), Exponential(end=0.01)(1.0)] == close(witness)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.1, 1.0), (0.25, 0.75)])
def test_linear_is_torchs(start: float, end: float) -> None:
    witness = torch_lrs(lambda o: lr_scheduler.LinearLR(o, start, end, total_iters=100), 101)
    # torch multiplies the LR from step to step: near 0 what it rounded stays in it
    assert [*Linear(start=start, end=end).sample(100), Linear(start=start, end=end)(1.0)] == pytest.approx(
        witness, rel=1e-12, abs=1e-14
    )


def test_constant_is_torchs() -> None:
    assert Constant(value=0.3).sample(10) == close(
        torch_lrs(lambda o: lr_scheduler.ConstantLR(o, 0.3, total_iters=10), 10)
    )


def test_sequential_is_torchs() -> None:
    def make(optimizer: torch.optim.Optimizer) -> LRScheduler:
        parts: list[LRScheduler] = [
            lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=20),
            lr_scheduler.CosineAnnealingLR(optimizer, T_max=60, eta_min=0.1 * PEAK),
            lr_scheduler.LinearLR(optimizer, 0.5, 1.0, total_iters=20),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[20, 80])

    curve = Sequential((Linear(start=0.1, end=1), Cosine(end=0.1), Linear(start=0.5, end=1)), milestones=(0.2, 0.8))
    assert curve.sample(100) == close(torch_lrs(make, 100))


# --- transformers, nanoGPT, papers ---


@pytest.mark.parametrize("warmup", [0, 1, 5, 50, 99])
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_warmup_cosine_is_transformers(warmup: int, end: float) -> None:
    expected = [oracles.transformers_cosine(k, warmup, 100, end) for k in range(101)]
    curve = warmup_cosine(warmup / 100, end, start=0.0)
    assert [*curve.sample(100), curve(1.0)] == close(expected)


@pytest.mark.parametrize("cycles", [1, 3, 7])
def test_restarts_after_a_warmup_are_transformers_hard_restarts(cycles: int) -> None:
    curve = Sequential((Linear(start=0, end=1), Restarts(Cosine(), cycles)), milestones=(0.1,))
    expected = [oracles.transformers_hard_restarts(k, 10, 100, cycles) for k in range(101)]
    assert [*curve.sample(100), curve(1.0)] == close(expected)


DECAYS: dict[str, Schedule] = {"linear": Linear(end=0.1), "cosine": Cosine(end=0.1), "1-sqrt": OneMinusSqrt(end=0.1)}


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("lengths", [(10, 70, 20), (5, 90, 5), (1, 1, 98), (30, 60, 10)])
def test_warmup_stable_decay_is_transformers_wsd(shape: str, lengths: tuple[int, int, int]) -> None:
    warmup, _, decay = (length / 100 for length in lengths)
    expected = [oracles.transformers_wsd(k, *lengths, shape, 0.1) for k in range(101)]
    curve = warmup_stable_decay(warmup, decay, end=0.1, start=0.1)
    if shape != "1-sqrt":
        assert isinstance(curve, Sequential)
        curve = replace(curve, schedules=(*curve.schedules[:-1], DECAYS[shape]))
    assert [*curve.sample(100), curve(1.0)] == close(expected)


def test_a_decay_begins_at_its_peak_where_rounding_puts_a_step_beside_the_milestone() -> None:
    curve = warmup_stable_decay(0.0, 0.9)
    assert Fraction(curve.all_milestones()[0]) != Fraction(10 / 100)
    assert curve(10 / 100) == 1.0


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_polynomial_with_a_floor_is_transformers(power: float) -> None:
    expected = [oracles.transformers_polynomial(k, 100, PEAK, 0.02, power) for k in range(101)]
    curve = Polynomial(end=0.02 / PEAK, power=power)
    assert [*curve.sample(100), curve(1.0)] == close(expected)


def test_inverse_sqrt_is_transformers() -> None:
    assert InverseSqrt(timescale=0.05).sample(200) == close(
        [oracles.transformers_inverse_sqrt(k, 10) for k in range(200)]
    )


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_cosine_with_k_is_k_decay(k: float) -> None:
    assert Cosine(end=0.1, k=k).sample(100) == close([oracles.k_decay(step, 100, k, 0.1) for step in range(100)])


def test_points_derived_by_hand() -> None:
    root = math.sqrt(0.5)
    assert Cosine()(0.25) == pytest.approx((1 + root) / 2, rel=1e-15)
    assert Cosine(start=2, end=1)(0.75) == pytest.approx(1.5 - root / 2, rel=1e-15)
    assert Cosine(k=2)(root) == pytest.approx(0.5, rel=1e-15)
    assert OneMinusSqrt(start=2, end=1)(0.25) == 1.5
    assert Exponential(start=4, end=0.25)(0.5) == 1.0
    assert InverseSqrt(timescale=1)(1.0) == pytest.approx(root, rel=1e-15)
    assert Restarts(Linear(), cycles=2, t_mult=3, decay=0.5).sample(8) == close(
        [1, 0.5, 0.5, 5 / 12, 4 / 12, 3 / 12, 2 / 12, 1 / 12]
    )


# --- properties of random nested schedules ---


@given(strategies.schedules)
def test_ends_are_those_of_the_fields(schedule: Schedule) -> None:
    assert schedule(0.0) == strategies.first(schedule)
    assert schedule(1.0) == pytest.approx(strategies.last(schedule), rel=1e-15, abs=0.0)


@given(strategies.schedules, strategies.progresses)
def test_factors_stay_within_those_of_the_fields(schedule: Schedule, progress: float) -> None:
    low, high = strategies.extremes(schedule)
    assert low * (1 - 1e-14) <= schedule(progress) <= high * (1 + 1e-14)


@given(strategies.schedules, st.floats(0.0, math.inf, exclude_min=True))
def test_outside_the_run_the_ends_hold(schedule: Schedule, beyond: float) -> None:
    assert schedule(-beyond) == schedule(0.0)
    assert schedule(1.0 + beyond) == schedule(1.0)


@given(strategies.schedules)
def test_curves_are_continuous_from_the_right(schedule: Schedule) -> None:
    _, high = strategies.extremes(schedule)
    for milestone in schedule.all_milestones():
        assert 0.0 < milestone < 1.0
        assert schedule(milestone + 1e-10) == pytest.approx(schedule(milestone), abs=0.01 * high)


@given(strategies.schedules)
def test_between_milestones_no_curve_jumps(schedule: Schedule) -> None:
    _, high = strategies.extremes(schedule)
    bounds = [0.0, *schedule.all_milestones(), 1.0]
    for start, stop in itertools.pairwise(bounds):
        middle = (start + stop) / 2
        assert schedule(middle + 1e-10) == pytest.approx(schedule(middle), abs=0.01 * high)


@given(strategies.stairs())
def test_the_later_schedule_applies_at_every_milestone(stairs: tuple[Schedule, list[float]]) -> None:
    schedule, expected = stairs
    assert schedule.sample(len(expected)) == expected


def test_a_nested_staircase_steps_down_on_its_steps() -> None:
    for milestone, length in itertools.combinations(range(1, 60), 2):
        curve = Sequential(
            (Constant(), Step(gamma=0.5, milestones=(milestone / length,))), milestones=(10 / (10 + length),)
        )
        assert curve.sample(10 + length) == [1.0] * (10 + milestone) + [0.5] * (length - milestone)


def test_milestones_of_nested_schedules() -> None:
    inner = Restarts(Step(milestones=(0.5,)), cycles=2)
    assert inner.all_milestones() == (0.25, 0.5, 0.75)
    assert Sequential((Cosine(), inner), (0.5,)).all_milestones() == (0.5, 0.625, 0.75, 0.875)
    assert Restarts(Cosine(), cycles=3).all_milestones() == close((1 / 3, 2 / 3))


@given(strategies.leaves.filter(lambda leaf: not isinstance(leaf, Step)), st.tuples(*[strategies.progresses] * 2))
def test_leaves_are_monotone(leaf: Schedule, pair: tuple[float, float]) -> None:
    values = [leaf(0.0), leaf(min(pair)), leaf(max(pair)), leaf(1.0)]
    rising = leaf(1.0) >= leaf(0.0)
    slack = 1e-14 * max(values)
    assert all(right >= left - slack if rising else right <= left + slack for left, right in itertools.pairwise(values))


@given(strategies.schedules)
def test_repr_evaluates_back(schedule: Schedule) -> None:
    back = eval(repr(schedule), {name: getattr(lit_cosine.schedules, name) for name in dir(lit_cosine.schedules)})
    assert back == schedule
    assert hash(back) == hash(schedule)
    assert back.sample(7) == schedule.sample(7)


@given(strategies.schedules)
def test_copies_are_equal_and_play_the_same(schedule: Schedule) -> None:
    plays = schedule.sample(7)  # fills what is cached, which must not take part in ==
    for back in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), Schedule.from_dict(schedule.to_dict())):
        assert back == schedule
        assert hash(back) == hash(schedule)
        assert type(back) is type(schedule)
        assert back.sample(7) == plays


@given(strategies.schedules, strategies.schedules)
def test_equal_means_equal_fields(one: Schedule, other: Schedule) -> None:
    assert (one == other) == (repr(one).replace("-0.0", "0.0") == repr(other).replace("-0.0", "0.0"))


@given(strategies.schedules, st.integers(1, 200))
def test_a_run_twice_as_long_meets_the_same_factors(schedule: Schedule, steps: int) -> None:
    assert schedule.sample(2 * steps)[::2] == schedule.sample(steps)
    assert schedule.sample(steps) == [schedule(k / steps) for k in range(steps)]


@given(strategies.schedules)
def test_plain_data_survives_yaml(schedule: Schedule) -> None:
    assert Schedule.from_dict(yaml.safe_load(yaml.safe_dump(schedule.to_dict()))) == schedule


# --- YAML and the command line ---


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--schedule", type=Schedule)
    return parser


def instantiated(parser: ArgumentParser, parsed: Any) -> Any:
    """``parser.instantiate``, which older releases call ``instantiate_classes``."""
    name = "instantiate" if hasattr(parser, "instantiate") else "instantiate_classes"
    return getattr(parser, name)(parsed)


@settings(max_examples=25)
@given(schedule=strategies.schedules)
def test_every_schedule_survives_jsonargparse(parser: ArgumentParser, schedule: Schedule) -> None:
    parsed = parser.parse_object({"schedule": schedule.to_dict()})
    assert instantiated(parser, parsed).schedule == schedule
    again = parser.parse_string(parser.dump(parsed))
    assert instantiated(parser, again).schedule == schedule


NESTED = """
schedule:
  class_path: lit_cosine.Sequential
  init_args:
    schedules:
    - class_path: Linear
      init_args: {start: 0.01, end: 1}
    - class_path: lit_cosine.schedules.Restarts
      init_args: {schedule: {class_path: Cosine, init_args: {end: 0.1}}, cycles: 2}
    milestones: [0.1]
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--schedule", "Cosine"], Cosine()),
        (["--schedule", "lit_cosine.Cosine", "--schedule.end", "0.1"], Cosine(end=0.1)),
        (["--schedule", "Cosine", "--schedule.end=1e-2", "--schedule.k=2"], Cosine(end=0.01, k=2)),
        (["--schedule=Restarts", "--schedule.cycles=4", "--schedule.schedule=Linear"], Restarts(Linear(), cycles=4)),
        (
            ["--schedule=Restarts", "--schedule.schedule=Cosine", "--schedule.schedule.end=0.5"],
            Restarts(Cosine(end=0.5)),
        ),
        (
            ["--schedule=Step", "--schedule.milestones=[0.2,0.4]", "--schedule.gamma=0.5"],
            Step(gamma=0.5, milestones=(0.2, 0.4)),
        ),
        (
            ["--config", NESTED],
            Sequential((Linear(start=0.01, end=1), Restarts(Cosine(end=0.1), cycles=2)), milestones=(0.1,)),
        ),
    ],
)
def test_schedules_on_the_command_line(parser: ArgumentParser, arguments: list[str], expected: Schedule) -> None:
    assert instantiated(parser, parser.parse_args(arguments)).schedule == expected


# --- a schedule of the user's own ---


@dataclass(frozen=True)
class Square(Schedule):
    end: float = 0.0

    def factor(self, progress: float) -> float:
        return 1 - (1 - self.end) * progress**2


def test_a_schedule_of_the_user_nests_and_comes_back() -> None:
    nested = Restarts(Square(end=0.5), cycles=2)
    assert nested.sample(4) == [1.0, 0.875, 1.0, 0.875]
    assert Schedule.from_dict(nested.to_dict()) == nested
    assert Schedule.from_dict({"class_path": f"{__name__}.Square"}) == Square()


@pytest.mark.parametrize(
    "number", [np.float64(0.25), np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25]), Fraction(1, 4)]
)
def test_a_factor_of_the_user_is_a_python_float_whatever_the_number(number: Any) -> None:
    @dataclass(frozen=True)
    class Odd(Schedule):
        def factor(self, progress: float) -> float:
            return number

    for schedule in (Odd(), Sequential((Odd(), Cosine()), (0.9,)), Restarts(Odd(), decay=0.5, cycles=1)):
        assert schedule(0.5) == 0.25
        assert type(schedule(0.5)) is float


@pytest.mark.parametrize("value", [None, True, "1", 1j, torch.zeros(2)])
def test_a_factor_of_the_user_that_is_no_number_is_refused(value: Any) -> None:
    @dataclass(frozen=True)
    class Odd(Schedule):
        def factor(self, progress: float) -> float:
            return value

    with pytest.raises(TypeError, match=r"^a factor of Odd must be a number, got "):
        Odd()(0.5)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_factor_that_cannot_be_played_is_refused(value: float) -> None:
    @dataclass(frozen=True)
    class Odd(Schedule):
        def factor(self, progress: float) -> float:
            return value

    with pytest.raises(ValueError, match=r"a factor must be finite and >= 0, got .* at progress 0.5 from .*Odd\(\)"):
        Odd()(0.5)


# --- refused ---

NUMBERS = [
    (cls, field) for cls in (Linear, Cosine, Polynomial, Exponential, OneMinusSqrt) for field in ("start", "end")
] + [(Constant, "value"), (Step, "gamma"), (Restarts, "decay")]
EXPONENTS = [(Cosine, "k"), (Polynomial, "power"), (InverseSqrt, "timescale"), (Restarts, "t_mult")]


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [(cls, field, -0.1) for cls, field in NUMBERS]
    + [(cls, "end", value) for cls in (Linear, Exponential) for value in (math.nan, math.inf, -math.inf)],
)
def test_factors_must_be_finite_and_not_negative(cls: Any, field: str, value: float) -> None:
    rule = "> 0" if cls is Exponential else ">= 0"
    with pytest.raises(ValueError, match=rf"^{cls.__name__}.{field} must be finite and {rule}, got {value}$"):
        cls(**{field: value})


@pytest.mark.parametrize(("cls", "field"), [*EXPONENTS, (Exponential, "start"), (Exponential, "end")])
def test_exponents_must_be_above_zero(cls: Any, field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{cls.__name__}.{field} must be finite and > 0, got 0$"):
        cls(**{field: 0})


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [(cls, field, None) for cls, field in [*NUMBERS, *EXPONENTS]]
    + [(Constant, "value", value) for value in ("0.1", True, 1j, torch.zeros(2))],
)
def test_what_is_no_number_is_refused(cls: Any, field: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf"^{cls.__name__}.{field} must be a number, got "):
        cls(**{field: value})


@pytest.mark.parametrize(
    "make", [lambda m: Step(gamma=0.1, milestones=m), lambda m: Sequential((Cosine(),) * (len(m) + 1), m)]
)
@pytest.mark.parametrize(
    ("milestones", "rule"),
    [
        ((0.5, 0.2), r"must rise, got \(0.5, 0.2\)"),
        ((0.5, 0.5), r"must rise, got \(0.5, 0.5\)"),
        ((0.0,), r"must be progress points in \(0, 1\), got \(0.0,\)"),
        ((1.0,), r"must be progress points in \(0, 1\), got \(1.0,\)"),
        ((-0.5,), r"must be progress points in \(0, 1\)"),
        ((30,), r"must be progress points in \(0, 1\), got \(30.0,\)"),
        ((math.nan,), r"must be progress points in \(0, 1\)"),
    ],
)
def test_milestones_must_rise_within_the_run(make: Callable[[Any], Schedule], milestones: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^(Step|Sequential).milestones {rule}"):
        make(milestones)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_sequential_wants_one_milestone_fewer_than_schedules(count: int) -> None:
    milestones = tuple((index + 1) / 10 for index in range(count))
    with pytest.raises(
        ValueError, match=rf"^Sequential.milestones must be one fewer than its 3 schedules, got {count}"
    ):
        Sequential((Cosine(),) * 3, milestones)


def test_sequential_wants_schedules() -> None:
    with pytest.raises(ValueError, match=r"^Sequential.schedules must hold at least one schedule, got none$"):
        Sequential((), ())
    with pytest.raises(
        TypeError, match=r"^Sequential.schedules\[1\] must be a schedule, got the class Cosine: write Cos"
    ):
        Sequential((Linear(), Cosine), (0.5,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Sequential.schedules must be a tuple, got Cosine"):
        Sequential(Cosine(), ())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Step.milestones must be a tuple, got '0.5'"):
        Step(milestones="0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Step.milestones\[0\] must be a number, got '0.5'"):
        Step(milestones=("0.5",))  # type: ignore[arg-type]


def test_an_integer_too_large_for_a_float_is_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"^Constant.value must be finite and >= 0, got 1000"):
        Constant(value=10**400)


INTEGERS = [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("3", TypeError), (None, TypeError)]


@pytest.mark.parametrize(("cycles", "error"), INTEGERS)
def test_cycles_must_be_an_integer_from_one(cycles: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^Restarts.cycles must be an integer >= 1, got "):
        Restarts(cycles=cycles)


def chain(depth: int) -> Schedule:
    """A schedule nested ``depth`` deep."""
    schedule: Schedule = Cosine()
    for level in range(depth - 1):
        schedule = Restarts(schedule, cycles=1) if level % 2 else Sequential((schedule,), ())
    return schedule


def test_a_schedule_nests_a_hundred_deep() -> None:
    deepest = chain(100)
    assert deepest(0.5) == 0.5
    for back in (pickle.loads(pickle.dumps(deepest)), copy.deepcopy(deepest), Schedule.from_dict(deepest.to_dict())):
        assert back == deepest
    assert Schedule.from_dict(yaml.safe_load(yaml.safe_dump(deepest.to_dict()))) == deepest
    with pytest.raises(ValueError, match=r"^Restarts: schedules nest at most 100 deep$"):
        Restarts(deepest)
    with pytest.raises(ValueError, match=r"^Sequential: schedules nest at most 100 deep$"):
        Sequential((Cosine(), deepest), (0.5,))


@pytest.mark.timeout(10)
@pytest.mark.parametrize("cycles", [10_001, 10**7, 2**63, 10**40])
def test_so_many_cycles_are_refused_at_once(cycles: int) -> None:
    said = r"^Restarts has [0-9.]+ pieces between milestones; at most 10,000|^Restarts.cycles must be .* below 2\*\*63"
    with pytest.raises(ValueError, match=said):
        Restarts(cycles=cycles)


@pytest.mark.timeout(10)
def test_pieces_of_nested_schedules_multiply() -> None:
    many = Restarts(Step(milestones=(0.5,)), cycles=5_000)
    assert len(many.all_milestones()) == 9_999
    with pytest.raises(ValueError, match=r"^Restarts has 20000 pieces between milestones"):
        Restarts(many, cycles=2)
    with pytest.raises(ValueError, match=r"^Sequential has 10001 pieces between milestones"):
        Sequential((many, Cosine()), (0.5,))


def test_every_cycle_must_have_a_length() -> None:
    with pytest.raises(ValueError, match=r"^Restarts.t_mult must leave every one of 3 cycles a length, got 1e\+200$"):
        Restarts(cycles=3, t_mult=1e200)
    with pytest.raises(ValueError, match=r"^Restarts.t_mult must leave every one of 9 cycles a length, got 0.01$"):
        Restarts(cycles=9, t_mult=0.01)


def test_restarts_want_a_schedule() -> None:
    with pytest.raises(TypeError, match=r"^Restarts.schedule must be a schedule, got the class Cosine: write Cosine\("):
        Restarts(Cosine)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Restarts.schedule must be a schedule such as Cosine\(end=0.1\), got 3$"):
        Restarts(3)  # type: ignore[arg-type]


def test_powers_must_not_overflow() -> None:
    with pytest.raises(ValueError, match=r"^Step.gamma must keep every factor finite, got 1e\+200 to the power of 2$"):
        Step(gamma=1e200)
    with pytest.raises(ValueError, match=r"^Restarts.decay must keep every factor finite, got 1e\+200 to the power of"):
        Restarts(decay=1e200)


@pytest.mark.parametrize("preset", [warmup_cosine, warmup_stable_decay, one_cycle])
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 500, math.nan])
def test_presets_want_a_warmup_within_the_run(preset: Any, warmup: float) -> None:
    with pytest.raises(ValueError, match=rf"^warmup must be a fraction of the run in \[0, 1\), got {warmup}$"):
        preset(warmup)
    with pytest.raises(TypeError, match=r"^warmup must be a number, got '5%'$"):
        preset("5%")


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.95])
def test_a_decay_must_fit_after_its_warmup(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"^decay must be in \(0, 1 - warmup\) with warmup 0.1, got {decay}$"):
        warmup_stable_decay(0.1, decay)


def test_progress_must_be_a_number() -> None:
    with pytest.raises(ValueError, match=r"^progress must be a number, got nan$"):
        Cosine()(math.nan)


@pytest.mark.parametrize("progress", ["0.5", None, np.linspace(0, 1, 3), torch.zeros(2)])
def test_progress_is_one_number(progress: Any) -> None:
    with pytest.raises(TypeError, match=r"^progress must be one number, got .*; for a whole curve see sample\(n\)$"):
        Cosine()(progress)


def test_numpys_integers_are_integers() -> None:
    assert Cosine().sample(np.int64(4)) == Cosine().sample(4)
    cycles = Restarts(cycles=np.int64(2))
    assert cycles == Restarts(cycles=2)
    assert repr(cycles) == repr(Restarts(cycles=2))


@pytest.mark.parametrize(("n", "error"), INTEGERS)
def test_a_sample_has_a_whole_number_of_steps(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^n must be an integer >= 1, got "):
        Cosine().sample(n)


def test_schedules_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Cosine().end = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("cls", [Constant, Linear, Cosine, Polynomial, Exponential, Step, OneMinusSqrt, InverseSqrt])
def test_curves_take_keywords_alone(cls: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^{cls.__name__} takes keyword arguments alone .*, got 100; the length comes "
    ):
        cls(100)


@pytest.mark.parametrize(
    ("cls", "name", "hint"),
    [
        (Cosine, "T_max", ": the length comes from the run"),
        (Linear, "num_training_steps", ": the length comes from the run"),
        (Restarts, "T_0", ": the length comes from the run"),
        (Cosine, "eta_min", ": a floor is a factor of the peak LR, end=floor/peak"),
        (Polynomial, "min_lr", ": a floor is a factor of the peak LR, end=floor/peak"),
        (Cosine, "max_lr", ": the peak LR is the optimizer's lr"),
        (Cosine, "warmup_steps", ": warmup is an argument of lr_scheduler_config, LearningRateScheduler and"),
        (Cosine, "edn", r"; did you mean end\?"),
        (Sequential, "milestone", r"; did you mean milestones\?"),
        (Constant, "zzz", "; known are value"),
    ],
)
def test_an_argument_of_other_libraries_gets_a_hint(cls: Any, name: str, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"^{cls.__name__} has no argument '{name}'{hint}"):
        cls(**{name: 1})
    with pytest.raises(ValueError, match=rf"^schedule.init_args.{name}: {cls.__name__} has no argument '{name}'{hint}"):
        Schedule.from_dict({"class_path": cls.__name__, "init_args": {name: 1}})


def test_a_schedule_of_the_user_may_take_positional_arguments() -> None:
    class Ramp(Square):
        def __init__(self, height: float, **settings: float) -> None:
            super().__init__(end=height)

    assert Square(0.5)(1.0) == 0.5
    assert Ramp(0.25, width=3.0)(1.0) == 0.25


@dataclass(frozen=True)
class Holds(Schedule):
    field: Any

    def factor(self, progress: float) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("field", "plain"),
    [
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (torch.tensor(0.5), 0.5),
        (np.array([[0.5, 1.0]]), [[0.5, 1.0]]),
        ((1, (2.5, None)), [1, [2.5, None]]),
        ("text", "text"),
        ([Constant(value=2.0)], [{"class_path": "lit_cosine.Constant", "init_args": {"value": 2.0}}]),
    ],
)
def test_fields_of_the_user_become_plain(field: Any, plain: Any) -> None:
    assert Holds(field).to_dict()["init_args"] == {"field": plain}
    assert yaml.safe_load(yaml.safe_dump(Holds(field).to_dict()))["init_args"] == {"field": plain}


def test_what_cannot_be_saved_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^Holds.field\[1\] must be a number, text, a schedule, or a tuple of these to be"
    ):
        Holds((1, math.cos)).to_dict()

    class NoDataclass(Schedule):
        def factor(self, progress: float) -> float:
            return 1.0

    with pytest.raises(TypeError, match=r"^NoDataclass must be a dataclass: as plain data a schedule is its fields$"):
        NoDataclass().to_dict()


def test_words_for_log_lines() -> None:
    assert str(Cosine(end=0.1)) == "cosine 1 -> 0.1"
    assert str(OneMinusSqrt()) == "one-minus-sqrt 1 -> 0"


def svg_points(schedule: Schedule) -> list[tuple[float, float]]:
    """The curve as (progress, share of its highest value), read from its SVG picture."""
    root = ElementTree.fromstring(schedule._repr_svg_())
    (line,) = (element for element in root.iter() if element.tag.endswith("polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    return [((x - 50) / 420, (188 - y) / 160) for x, y in points]


def test_the_svg_of_a_schedule_is_its_curve_and_its_repr() -> None:
    for progress, height in svg_points(Cosine()):
        assert height == pytest.approx((1 + math.cos(math.pi * progress)) / 2, abs=1e-3)
    jump = [height for progress, height in svg_points(Step(milestones=(0.3,))) if progress == pytest.approx(0.3)]
    assert [round(height, 2) for height in jump] == [1.0, 0.1]
    title = ElementTree.fromstring(Cosine(end=0.1)._repr_svg_())[0].text
    assert title == repr(Cosine(end=0.1))
    assert {height for _, height in svg_points(Constant(value=0.0))} == {0.0}


def test_a_schedule_is_plotted_over_progress_or_over_the_steps_of_a_run() -> None:
    figure = Figure()
    axes = Linear().plot(figure.subplots())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("progress", "factor of the peak LR")
    axes = Linear(end=0.5).plot(figure.subplots(), lr=0.1, steps=200)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "learning rate")
    (line,) = axes.lines
    assert [line.get_xydata()[index].tolist() for index in (0, -1)] == [[0.0, 0.1], [200.0, pytest.approx(0.05)]]
    with pytest.raises(ValueError, match="lr must be finite and > 0, got 0"):
        Linear().plot(axes, lr=0)
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        Linear().plot(axes, steps=0)
