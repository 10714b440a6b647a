"""Means with intervals, paired differences, and Holm's correction for several comparisons at once.

Convention: values that are not finite (diverged trainings) are excluded, and every result states how many remain.
Intervals are Student's t; with fewer than two values their ends are nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

__all__ = ["Mean", "PairedDifference", "holm", "mean", "paired_differences"]

_ALPHA = 0.05
"""The intervals are of 95 %."""


@dataclass(frozen=True)
class Mean:
    """A mean and its interval.

    Attributes:
        value: Mean of the finite values; nan if there are none.
        low: Lower end of the interval.
        high: Upper end.
        n: Number of finite values.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between a treatment and a baseline on the same subjects.

    Attributes:
        value: Mean of treatment - baseline over the pairs.
        low: Lower end of its interval; the intervals of a family hold together (Holm).
        high: Upper end.
        p: Holm's adjusted p-value of the hypothesis that the difference is 0.
        won: Share of pairs in which the treatment is below the baseline; a tie counts half.
        n: Number of pairs with both values finite.
    """

    value: float
    low: float
    high: float
    p: float
    won: float
    n: int


def mean(values: ArrayLike, overlap: float = 0.0) -> Mean:
    """Return the mean of ``values`` and its interval; ``overlap`` as in :func:`paired_differences`.

    >>> mean([1.0, 2.0, 3.0, float("nan")])
    Mean(value=2.0, low=-0.484137..., high=4.484137..., n=3)
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    finite = array[np.isfinite(array)]
    return Mean(*_interval(finite, _error(_spread(finite), len(finite), overlap), _ALPHA), len(finite))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: each is at most alpha where Holm's procedure rejects at alpha.

    The i-th smallest of m is max over j <= i of min(1, (m - j + 1) * p_j). nan stays nan and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = _rising(p_values)
    adjusted = list(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def paired_differences(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    *,
    overlap: float | Sequence[float] = 0.0,
    paired: bool = True,
) -> list[PairedDifference]:
    """Return for each pair of (treatment, baseline) their mean difference over the subjects, as one family.

    Each interval has the level at which Holm's procedure tests its hypothesis: alpha / (m - i + 1) for the i-th
    smallest p-value, and from the first hypothesis that is not rejected on the level of that one. An interval excludes
    0 exactly where the adjusted p-value is at most alpha, which is 0.05.

    Args:
        pairs: Values of treatment and baseline, of equal length and with the subjects in the same order.
        overlap: Test rows over training rows where the subjects are splits of one data set, one number or one for each
            pair. The variance of the mean of J differences is (1/J + overlap) times theirs; 0 gives Student's t.
        paired: Whether the subjects are the same on both sides. If not, the variances of both sides add up, with
            J - 1 degrees of freedom, which is at most what Welch's formula gives.

    Source: Nadeau and Bengio 2003, Inference for the generalization error.

    >>> difference = paired_differences([([1.0, 2.0, 4.0], [2.0, 4.0, 5.0])])[0]
    >>> round(difference.value, 3), round(difference.p, 3), difference.won
    (-1.333, 0.057, 1.0)
    """
    overlaps = [overlap] * len(pairs) if isinstance(overlap, (int, float)) else overlap
    differences, errors = [], []
    for (treatment, baseline), share in zip(pairs, overlaps, strict=True):
        left, right = np.asarray(treatment, dtype=float), np.asarray(baseline, dtype=float)
        both = np.isfinite(left) & np.isfinite(right)
        left, right = left[both], right[both]
        spread = _spread(left - right) if paired else math.hypot(_spread(left), _spread(right))
        differences.append(left - right)
        errors.append(_error(spread, len(left), share))
    p_values = list(map(_p_value, differences, errors))
    adjusted = holm(p_values)
    levels, level = [math.nan] * len(pairs), 0.0
    order = _rising(p_values)
    for rank, index in enumerate(order):
        if rank == 0 or adjusted[order[rank - 1]] <= _ALPHA:
            level = _ALPHA / (len(order) - rank)
        levels[index] = level
    return [
        PairedDifference(*_interval(difference, error, level), p, _won(difference), len(difference))
        for difference, error, level, p in zip(differences, errors, levels, adjusted, strict=True)
    ]


def _spread(values: NDArray[np.float64]) -> float:
    """Return the standard deviation; nan of fewer than two values."""
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _error(spread: float, n: int, overlap: float) -> float:
    """Return the standard error of the mean of ``n`` values."""
    return spread * math.sqrt(1.0 / n + overlap) if n else math.nan


def _interval(values: NDArray[np.float64], error: float, alpha: float) -> tuple[float, float, float]:
    """Return the mean, and the ends of its interval."""
    value = float(values.mean()) if len(values) else math.nan
    half = float(stdtrit(len(values) - 1, 1.0 - alpha / 2.0)) * error
    return value, value - half, value + half


def _p_value(differences: NDArray[np.float64], error: float) -> float:
    """Return the two-sided p-value of Student's test that the mean is 0."""
    if math.isnan(error):
        return math.nan
    value = float(differences.mean())
    if error == 0.0:
        return 1.0 if value == 0.0 else 0.0
    return float(2.0 * stdtr(len(differences) - 1, -abs(value) / error))


def _won(differences: NDArray[np.float64]) -> float:
    if not len(differences):
        return math.nan
    return float(np.mean(differences < 0.0) + np.mean(differences == 0.0) / 2.0)


def _rising(p_values: Sequence[float]) -> list[int]:
    """Return the indices of the p-values that are not nan, smallest first."""
    return sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
