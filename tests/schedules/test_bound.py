"""The convergence bound beside its formula, summed term by term, and beside the published ratios."""

import math
import random
import re
from pathlib import Path

import pytest

from lit_cosine import Constant, Cosine, Linear, OneMinusSqrt, Restarts, Schedule, Sequential, Step, convergence_bound
from lit_cosine.schedules import PlannedFactor, names

DOCS = Path(__file__).parents[2] / "docs" / "schedules.md"


def by_the_formula(h: list[float]) -> tuple[float, float]:
    """The sums of the formula, each written out: O(N^2)."""
    T = len(h)
    H = [math.fsum(h[k:]) for k in range(T)]
    Q = [math.fsum(x * x for x in h[k:]) for k in range(T)]
    t1 = 1 / (2 * H[0])
    t2 = 0.5 * (Q[0] / H[0] + math.fsum(h[k] / H[k + 1] * Q[k] / H[k] for k in range(T - 1) if H[k + 1] > 0))
    return 2 * math.sqrt(t1 * t2), math.sqrt(t1 / t2)


def random_schedule(generator: random.Random) -> Schedule:
    """A schedule with random fields, falling, rising, or 0 from somewhere on."""
    start, end = generator.uniform(0, 2), generator.choice([0.0, generator.uniform(0, 2)])
    curve = generator.choice([Linear, Cosine, OneMinusSqrt])(start=start, end=end)
    stairs = Step(gamma=generator.choice([0.0, 0.3, 1.5]), milestones=(generator.uniform(0.1, 0.9),))
    return generator.choice([curve, stairs, Restarts(curve, 3, decay=0.5), Sequential((curve, stairs), (0.6,))])


def test_random_schedules() -> None:
    generator = random.Random(0)
    for _ in range(150):
        schedule = random_schedule(generator)
        total = generator.randint(1, 200)
        warmup = generator.randint(0, total - 1)
        cooldown = generator.randint(0, total - 1 - warmup)
        planned = PlannedFactor.of_run(schedule, total, warmup, cooldown, Linear())
        factors = [planned(k) for k in range(total)]
        if max(factors) > 0.0:
            bound = convergence_bound(schedule, total, warmup, cooldown, Linear())
            assert (bound.value, bound.peak) == pytest.approx(by_the_formula(factors), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "share", "cooldown_schedule", "long", "short"),
    [
        (Cosine(), 0.0, Linear(), (1.0300, 0.9709), (1.0274, 0.9733)),
        (Cosine(end=0.1), 0.0, Linear(), (1.1392, 0.7984), None),
        (Constant(), 0.0, Linear(), (1.7609, 0.2848), (1.3668, 0.3667)),
        (Constant(), 0.2, Linear(), (1.0805, 0.5155), (1.0864, 0.5119)),
        (Constant(), 0.2, OneMinusSqrt(), (1.0636, 0.5438), (1.0662, 0.5417)),
        (Constant(), 0.6, Linear(), (1.0088, 0.7093), (1.0093, 0.7082)),
        (OneMinusSqrt(), 0.0, Linear(), (1.0067, 1.4855), (1.0061, 1.4890)),
    ],
)
def test_known_ratios(schedule, share, cooldown_schedule, long, short) -> None:
    """50,000 steps with 300 of warmup, and 400 without; the cooldown is a share of what follows the warmup."""
    for expected, total, warmup in ((long, 50_000, 300), (short, 400, 0)):
        if expected is not None:
            linear = convergence_bound(Linear(), total, warmup)
            bound = convergence_bound(schedule, total, warmup, round(share * (total - warmup)), cooldown_schedule)
            assert (round(bound.value / linear.value, 4), round(bound.peak / linear.peak, 4)) == expected


def test_only_the_peak_depends_on_the_scale() -> None:
    one, large = convergence_bound(Linear(), 50), convergence_bound(Linear(start=1e200), 50)
    assert (large.value, large.peak * 1e200) == pytest.approx((one.value, one.peak), rel=1e-12)


def test_the_page_has_a_section_for_every_schedule() -> None:
    """Its table of bounds is computed when the page is built."""
    assert {*re.findall(r"^## `(\w+)`$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)} == {*names()}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Cosine(), 0), ValueError, "total_steps must be an integer >= 1, got 0"),
        ((Constant(value=0.0), 5), ValueError, "the schedule must be above 0 at one step at least, got 0 at every"),
        ((Cosine(), 10, 6, 4), ValueError, "warmup_steps 6 and cooldown_steps 4 must be shorter than the run, got tot"),
        (("Cosine", 5), TypeError, "schedule must be a schedule such as Cosine"),
        (
            (Cosine(), 5, 0, 2, Step),
            TypeError,
            "cooldown_schedule must be a schedule, got the class Step: write Step()",
        ),
    ],
)
def test_bad_input(arguments, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        convergence_bound(*arguments)
