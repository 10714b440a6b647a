import math
import statistics as stdlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_cosine.comparison._statistics import holm, mean, paired_differences
from tests.helpers import null_families

finite = st.floats(-100, 100, allow_subnormal=False)


@given(st.lists(finite, min_size=2, max_size=40))
def test_the_mean_and_its_interval_are_scipys(values: list[float]) -> None:
    result = mean(values)
    assert result.n == len(values)
    assert result.value == pytest.approx(stdlib.fmean(values), rel=1e-12, abs=1e-12)
    error = stats.sem(values)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
        assert (result.low, result.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_an_interval_agrees_with_a_bootstrap() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 1.0, 200)
    means = generator.choice(values, (20_000, 200)).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    result = mean(values)
    assert (result.low, result.high) == pytest.approx((low, high), abs=0.015)  # the half width is 0.14


def test_a_95_percent_interval_holds_the_truth_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    held = sum(r.low <= 3.0 <= r.high for r in (mean(generator.normal(3.0, 2.0, 8)) for _ in range(4000)))
    assert held / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_what_is_not_finite_is_left_out_and_not_counted() -> None:
    result = mean([1.0, math.nan, 3.0, math.inf])
    assert (result.value, result.n) == (2.0, 2)
    assert mean([math.nan]).n == 0
    assert math.isnan(mean([math.nan]).value)
    difference = paired_differences([([1.0, math.nan, 3.0, 5.0], [0.0, 1.0, math.inf, 3.0])])[0]
    assert (difference.value, difference.n) == (1.5, 2)


def test_one_value_has_no_interval() -> None:
    result = mean([4.0])
    assert result.value == 4.0
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    difference = paired_differences([([4.0], [1.0])])[0]
    assert difference.value == 3.0
    assert math.isnan(difference.low)
    assert math.isnan(difference.p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - rank) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-12)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_nan = holm([0.01, math.nan, 0.04])
    assert [with_nan[0], with_nan[2]] == [0.02, 0.04]
    assert math.isnan(with_nan[1])


def test_one_pair_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(2)
    treatment, baseline = generator.normal(size=(2, 17))
    witness = stats.ttest_rel(treatment, baseline)
    interval = witness.confidence_interval(0.95)
    result = paired_differences([(treatment, baseline)])[0]
    assert result.p == pytest.approx(witness.pvalue, rel=1e-10)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert result.won == np.mean(treatment < baseline)


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 1.5))
def test_an_interval_leaves_out_zero_exactly_where_holm_rejects(seed: int, family: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    pairs = [(generator.normal(i * shift / 3, 1, 9), generator.normal(0, 1, 9)) for i in range(family)]
    raw = [stats.ttest_rel(left, right).pvalue for left, right in pairs]
    results = paired_differences(pairs)
    assert [r.p for r in results] == pytest.approx(holm(raw), rel=1e-9)
    for result in results:
        assert (result.p <= 0.05) == (not result.low <= 0.0 <= result.high)


def test_no_difference_and_a_constant_one() -> None:
    same = paired_differences([([1.0, 2.0], [1.0, 2.0])])[0]
    assert (same.value, same.low, same.high, same.p, same.won) == (0.0, 0.0, 0.0, 1.0, 0.5)
    constant = paired_differences([([0.0, 1.0], [1.0, 2.0])])[0]
    assert (constant.value, constant.p, constant.won) == (-1.0, 0.0, 1.0)


def test_more_questions_make_wider_intervals() -> None:
    generator = np.random.default_rng(3)
    pairs = [tuple(generator.normal(size=(2, 12))) for _ in range(10)]
    alone, together = paired_differences(pairs[:1])[0], paired_differences(pairs)[0]
    assert together.high - together.low > alone.high - alone.low
    assert together.value == alone.value


def test_after_the_first_hypothesis_that_is_kept_no_interval_leaves_out_zero() -> None:
    # three p-values of 0.03, 0.035 and 0.04: the last is below 0.05 / 1, but Holm stops at 0.03 > 0.05 / 3
    # Student's t of 2 degrees of freedom is (1 - p) / sqrt(p (1 - p / 2)): scipy 1.12's isf is off by 2e-9
    spread = np.array([-1.0, 0.0, 1.0])
    error = 1.0 / math.sqrt(3.0)
    pairs = [(spread + (1 - p) / math.sqrt(p * (1 - p / 2)) * error, np.zeros(3)) for p in (0.03, 0.035, 0.04)]
    results = paired_differences(pairs)
    assert [stats.ttest_rel(*pair).pvalue for pair in pairs] == pytest.approx([0.03, 0.035, 0.04], rel=1e-9)
    assert [result.p for result in results] == pytest.approx([0.09] * 3, rel=1e-9)
    assert all(result.low < 0.0 < result.high for result in results)


@pytest.mark.slow
def test_over_splits_a_null_family_excludes_0_in_at_most_5_of_100_cases_and_one_split_in_far_more() -> None:
    rows = null_families.stored()
    over, _ = null_families.shares(rows, "same", 200)
    assert over <= 0.05
    over, one = null_families.shares(rows, "swapped", 200)
    assert over <= 0.05
    assert one > 0.5
