"""Claims about schedules as differences of two quantities, and the verdicts on all of them as one family.

Convention: each schedule runs at the best LR of its own grid, chosen on validation rows; losses are measured on test
rows. The split is the unit, seeds are averaged within it. A claim says that one quantity is lower than another. It is
*supported* if the 95 % interval of the difference lies below 0, *opposite* if it lies above 0, otherwise *undecided*.
The intervals hold together (Holm) over all claims on all data sets. A claim whose schedule has its best LR at the edge
of the grid stays undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_cosine.comparison._results import Comparison
from lit_cosine.comparison._statistics import PairedDifference, paired_differences
from lit_cosine.comparison.stacked import cross_entropy
from lit_cosine.schedules import Schedule

__all__ = ["CLAIMS", "HALF", "Claim", "ClaimVerdict", "Evidence", "Found", "Verdict", "flatter_cross_entropy", "judge"]

Verdict = Literal["supported", "opposite", "undecided"]

HALF = "cosine, half the epochs"
FLATNESS = 0.1
CARE = 1.0
"""A choice needs care if it changes the loss by more than this many percent."""


def flatter_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy on a surface that is ten times flatter everywhere."""
    return FLATNESS * cross_entropy(logits, labels)


@dataclass(frozen=True)
class Found:
    """A schedule at the best LR of its grid, where ``grid`` is the mean validation loss by LR.

    ``tried`` are the trainings of the grid, ``final`` those at the best LR over every split.
    """

    schedule: Schedule
    lr: float
    grid: Mapping[float, float]
    at_edge: bool
    tried: Comparison
    final: Comparison

    @property
    def test(self) -> NDArray[np.float64]:
        """The test loss of each split (splits,); nan where every seed diverged."""
        return self.final.values()[:, 0, 0]


@dataclass(frozen=True)
class Evidence:
    """What was trained on one data set: the contestants by name, and the cosine in ``HALF`` the epochs.

    ``steep`` is the cosine under plain SGD, ``flat`` the same on a surface that is ten times flatter.
    """

    field: Mapping[str, Found]
    steps: int
    steep: Comparison | None = None
    flat: Comparison | None = None


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict on a claim on one data set.

    ``effect`` is the difference with its interval as text, and why there is no verdict. The claim says that the
    difference is negative; ``p`` is Holm's adjusted p-value over the family.
    """

    claim: str
    data: str
    verdict: Verdict
    effect: str
    difference: float
    low: float
    high: float
    p: float


_Quantities = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Claim:
    """A claim: that the first of two quantities of every split, which ``measure`` returns, is lower than the second.

    The best LRs of the contestants that it ``needs`` must be inside their grids.
    """

    claim: str
    measure: Callable[[Evidence], _Quantities]
    needs: tuple[str, ...]
    unit: str = "nats"


def judge(evidence: Mapping[str, Evidence]) -> list[ClaimVerdict]:
    """Return the verdict on every claim on every data set on which its contestants were trained."""
    asked = [
        (claim, name, given)
        for claim in CLAIMS
        for name, given in evidence.items()
        if {*claim.needs} <= {*given.field, *(["SGD"] if given.steep else [])}
    ]
    differences = paired_differences(
        [claim.measure(given) for claim, _, given in asked],
        overlap=[next(iter(given.field.values())).final.overlap for *_, given in asked],
    )
    return [_judged(*each, difference) for each, difference in zip(asked, differences, strict=True)]


def _judged(claim: Claim, data: str, given: Evidence, found: PairedDifference) -> ClaimVerdict:
    edges = [name for name in claim.needs if name in given.field and given.field[name].at_edge]
    why = ""
    if math.isnan(found.low):
        why = f"no interval from {found.n} split{'s' * (found.n != 1)}"
    elif edges:
        at = given.field[edges[0]]
        why = f"the best LR of {edges[0]}, {at.lr:g}, is at the edge of its grid after {len(at.grid) - 3} widenings"
    verdict: Verdict = "undecided"
    if not why and (found.high < 0.0 or found.low > 0.0):
        verdict = "supported" if found.high < 0.0 else "opposite"
    effect = _effect(found, claim.unit)
    return ClaimVerdict(
        claim.claim, data, verdict, f"{effect}; {why}" if why else effect, found.value, found.low, found.high, found.p
    )


def _effect(found: PairedDifference, unit: str) -> str:
    """Return a difference in words.

    >>> _effect(PairedDifference(-0.13, -0.15, -0.11, 0.001, 1.0, 10), "nats")
    '0.13 nats lower, 0.11 to 0.15'
    >>> _effect(PairedDifference(0.5, -1.0, 2.0, 1.0, 0.5, 10), "steps")
    '0.5 steps higher, 1 lower to 2 higher'
    """
    if unit == "%":  # the first quantity is the threshold, and the second the loss
        value, low, high = (_digits(CARE - end) for end in (found.value, found.high, found.low))
        return f"{value} % of the loss, {low} to {high} %"
    low, high = map(_digits, sorted((abs(found.low), abs(found.high))))
    interval = f", {low} to {high}"
    if math.isnan(found.low):
        interval = ""
    elif found.low < 0.0 < found.high:
        interval = f", {_digits(-found.low)} lower to {_digits(found.high)} higher"
    return f"{_digits(abs(found.value))} {unit} {'higher' if found.value > 0.0 else 'lower'}{interval}"


def _digits(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 10.0 else f"{value:.0f}"


def _losses(first: str, second: str) -> Callable[[Evidence], _Quantities]:
    return lambda given: (given.field[first].test, given.field[second].test)


def _by_split(final: Comparison, of_member: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each split of a value for every training; nan where one diverged."""
    values = np.where(final.diverged[:, 0, 0], np.nan, of_member)
    return np.asarray(values.reshape(len(final.splits), -1).mean(axis=1))


def _curves(found: Found) -> NDArray[np.float64]:
    return np.asarray(found.final.members[found.final.select][:, 0, 0])


def _steps_to(given: Evidence, other: str) -> _Quantities:
    """Return the steps to the loss with which the other schedule ends; one point too many where it is not reached."""
    final = given.field[other].final
    target = _curves(given.field[other])[:, -1:]

    def steps(name: str) -> NDArray[np.float64]:
        reached = _curves(given.field[name]) <= target
        points = np.where(reached.any(axis=1), reached.argmax(axis=1), reached.shape[1])
        return _by_split(given.field[name].final, (points + 1.0) * final.steps_per_epoch)

    return steps("cosine"), steps(other)


def _climbs(given: Evidence) -> _Quantities:
    def climbs(found: Found) -> NDArray[np.float64]:
        return _by_split(found.final, np.maximum(np.diff(_curves(found), axis=1), 0.0).sum(axis=1))

    return climbs(given.field["cosine"]), climbs(given.field["step"])


def _worse(better: NDArray[np.float64], worse: NDArray[np.float64]) -> _Quantities:
    percent = 100.0 * (worse / better - 1.0)
    return np.full(len(percent), CARE), percent


def _initial_lr(given: Evidence) -> _Quantities:
    """Return by how much the worse neighbour of the best LR is worse."""
    found = given.field["cosine"]
    lrs = sorted(found.grid)
    at = lrs.index(found.lr)
    around = [lr for lr in lrs[max(0, at - 1) : at + 2] if lr != found.lr]
    worst = max(around, key=found.grid.__getitem__)
    values = found.tried.values()[:, 0]
    return _worse(*(values[:, found.tried.lrs.index(lr)] for lr in (found.lr, worst)))


def _chosen(first: Found, second: Found) -> _Quantities:
    """Return by how much the option that is worse on validation rows is worse on test rows."""
    better, worse = sorted((first, second), key=lambda found: min(found.grid.values()))
    return _worse(better.test, worse.test)


def _flat_surface(given: Evidence) -> _Quantities:
    def rise(found: Comparison | None, scale: float) -> NDArray[np.float64]:
        assert found is not None  # judge has looked
        curves = found.members["train_loss"][:, 0, 0]
        return _by_split(found, (curves[:, -1] - curves[:, 0]) / scale)

    return rise(given.flat, FLATNESS), rise(given.steep, 1.0)


_CARE = f"matters by more than {CARE:g} %"
_WSD = "constant, last 20 % 1-sqrt"
CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            f"Cosine reaches the final loss of {other} in fewer steps",
            partial(_steps_to, other=other),
            ("cosine", other),
            "steps",
        )
        for other in ("constant", "step")
    ),
    *(
        Claim(f"Cosine generalises better than {other}", _losses("cosine", other), ("cosine", other))
        for other in ("constant", "step")
    ),
    Claim("Cosine is steadier than step: its loss climbs less", _climbs, ("cosine", "step")),
    Claim("Annealing late helps", _losses("late cosine", "constant"), ("late cosine", "constant")),
    Claim(f"The initial LR {_CARE}: half or double the best", _initial_lr, ("cosine",), "%"),
    Claim(
        f"The minimum LR {_CARE}: 0 or 10 %",
        lambda given: _chosen(given.field["cosine"], given.field["cosine to 10 %"]),
        ("cosine", "cosine to 10 %"),
        "%",
    ),
    Claim(
        f"The number of epochs {_CARE}: all or half",
        lambda given: _chosen(given.field["cosine"], given.field[HALF]),
        ("cosine", HALF),
        "%",
    ),
    Claim("Plain SGD under a cosine takes larger steps where the surface is flat", _flat_surface, ("SGD",), "nats"),
    *(
        Claim(f"{first[0].upper()}{first[1:]} ends below {second}", _losses(first, second), (first, second))
        for first, second in (
            ("linear", "constant"),
            ("linear", "cosine"),
            ("cosine", "cosine to 10 %"),
            (_WSD, "constant"),
            (_WSD, "cosine"),
            (_WSD, "constant, last 20 % linear"),
            ("1-sqrt", "linear"),
            ("constant + averaging", "constant"),
            ("constant + averaging", "cosine"),
            ("constant + averaging", _WSD),
        )
    ),
)
"""The article's claims, then those on which the advice of the documentation rests."""
