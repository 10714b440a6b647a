"""What the article says about cosine annealing, as statements that a comparison can settle, and their verdicts.

Convention: a claim is *supported* where its statement's difference has the claimed sign and its interval (95 %, Holm's
over the claim's own differences) leaves out 0; *not supported* where it does not; *not testable* where there is no
interval: one seed, or trainings that diverged. Choices (best LR, best floor, …) are made on validation rows, and
differences over seeds measured on test rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_cosine.ensemble import cross_entropy
from lit_cosine.results import Comparison
from lit_cosine.schedules import Constant, Cosine, Schedule, Sequential
from lit_cosine.statistics import PairedDifference, paired_differences

__all__ = ["CLAIMS", "LATE", "LENGTHS", "Claim", "Evidence", "Finding", "Verdict", "flatter_cross_entropy", "judge"]

Verdict = Literal["supported", "not supported", "not testable"]

LATE: dict[str, Schedule] = {"late cosine": Sequential((Constant(), Cosine()), milestones=(0.8,))}
"""Constant but for the last fifth of the run, which a cosine anneals."""

LENGTHS = (2, 5, 10, 20, 40)
"""Epochs of the trainings that ask whether their number matters."""

FLATNESS = 0.1


def flatter_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy on a surface that is ten times flatter everywhere."""
    return FLATNESS * cross_entropy(logits, labels)


@dataclass(frozen=True)
class Evidence:
    """The comparisons on one data set that the claims are judged by.

    Attributes:
        field: All schedules; has ``"constant"``, ``"step"``, ``"cosine"`` and ``"late cosine"``.
        floors: Cosines with several floors.
        lengths: The cosine alone for several numbers of epochs, at the field's best LR for it.
        steep: The cosine under plain SGD.
        flat: The same on the flatter surface.
    """

    field: Comparison
    floors: Comparison
    lengths: Mapping[int, Comparison]
    steep: Comparison
    flat: Comparison


@dataclass(frozen=True)
class Finding:
    """A claim's verdict on one data set.

    Attributes:
        claim: What the article says.
        statement: What was measured.
        data: Name of the data set.
        verdict: ``"supported"``, ``"not supported"`` or ``"not testable"``.
        figure: The numbers behind it, in words.
    """

    claim: str
    statement: str
    data: str
    verdict: Verdict
    figure: str


@dataclass(frozen=True)
class Claim:
    """What the article says, the measurable statement, and what measures it."""

    claim: str
    statement: str
    measure: Callable[[Evidence], tuple[Verdict, str]]


def judge(evidence: Evidence, data: str) -> list[Finding]:
    """Return a finding for every claim on the data set named ``data``."""
    return [Finding(claim.claim, claim.statement, data, *claim.measure(evidence)) for claim in CLAIMS]


def _faster(evidence: Evidence) -> tuple[Verdict, str]:
    field = evidence.field
    best = field.best_lr("constant")
    if best is None:
        return "not testable", "constant diverged at every LR"
    target = float(np.nanmean(field.values("val_loss")[:, list(field.schedules).index("constant"), best]))
    never = field.total_steps + field.steps_per_epoch

    def steps(name: str) -> NDArray[np.float64]:
        reached = field.steps_to(target, name)
        return np.where(np.isinf(reached), never, reached)

    return _less(
        [(f"cosine minus {other}", steps("cosine"), steps(other)) for other in ("constant", "step")],
        f"optimizer steps to a validation loss of {target:.3g}",
    )


def _better(evidence: Evidence) -> tuple[Verdict, str]:
    return _less(
        [
            (f"cosine minus {other}", _at_best(evidence.field, "cosine"), _at_best(evidence.field, other))
            for other in ("constant", "step")
        ],
        "test loss",
    )


def _steadier(evidence: Evidence) -> tuple[Verdict, str]:
    def climbs(name: str) -> NDArray[np.float64]:
        field, best = evidence.field, evidence.field.best_lr(name)
        if best is None:
            return np.full(len(field.seeds), np.nan)
        curves = field.members["val_loss"][:, list(field.schedules).index(name), best]
        return np.asarray(np.maximum(np.diff(curves, axis=-1), 0.0).sum(axis=-1), dtype=float)

    return _less([("cosine minus step", climbs("cosine"), climbs("step"))], "sum of the climbs of the validation loss")


def _fine_tunes(evidence: Evidence) -> tuple[Verdict, str]:
    field = evidence.field
    best = field.best_lr("constant")
    if best is None:
        return "not testable", "constant diverged at every LR"
    names, values = list(field.schedules), field.values()
    late, constant = (values[:, names.index(name), best] for name in ("late cosine", "constant"))
    return _less([("late cosine minus constant", late, constant)], f"test loss at LR {field.lrs[best]:g}")


def _initial_lr(evidence: Evidence) -> tuple[Verdict, str]:
    field, at = evidence.field, list(evidence.field.schedules).index("cosine")
    options = {
        f"LR {lr:g}": (field.values("val_loss")[:, at, index], field.values()[:, at, index])
        for index, lr in enumerate(field.lrs)
    }
    return _matters(options)


def _minimum_lr(evidence: Evidence) -> tuple[Verdict, str]:
    floors = evidence.floors
    first = next(iter(floors.schedules))
    best = floors.best_lr(first)
    if best is None:
        return "not testable", f"{first} diverged at every LR"
    options = {
        name: (floors.values("val_loss")[:, index, best], floors.values()[:, index, best])
        for index, name in enumerate(floors.schedules)
    }
    return _matters(options, f" at LR {floors.lrs[best]:g}")


def _epochs(evidence: Evidence) -> tuple[Verdict, str]:
    options = {
        f"{epochs} epochs": (found.values("val_loss")[:, 0, 0], found.values()[:, 0, 0])
        for epochs, found in evidence.lengths.items()
    }
    return _matters(options)


def _flat_surface(evidence: Evidence) -> tuple[Verdict, str]:
    steep, flat = evidence.steep, evidence.flat
    steps = steep.total_steps
    rates = [np.array(next(iter(c.schedules.values())).sample(steps)) * c.lrs[0] for c in (steep, flat)]
    gap = float(np.abs(rates[0] - rates[1]).max())
    # the fall of the training loss over the run, in units of its own surface, says how far the weights went
    fell = [
        float(np.nanmean(c.members["train_loss"][:, 0, 0, 0] - c.members["train_loss"][:, 0, 0, -1])) / scale
        for c, scale in ((steep, 1.0), (flat, FLATNESS))
    ]
    verdict: Verdict = "not supported" if gap == 0.0 else "supported"
    return verdict, (
        f"LR on a surface {1 / FLATNESS:g} times flatter minus LR on the surface: {gap:g} at each of {steps} steps (a "
        f"schedule sees only time); plain SGD, whose step is LR times gradient, went down by {fell[0]:.3g} on the "
        f"surface and by {fell[1]:.3g} of the same height on the flatter one"
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Converges faster than a constant or a stepped LR",
        "At its best LR the cosine needs fewer steps than either to the loss that constant ends with",
        _faster,
    ),
    Claim(
        "Generalises better",
        "At its best LR the cosine has a lower test loss than constant and than step",
        _better,
    ),
    Claim(
        "Is steadier than step decay",
        "At its best LR the cosine's validation loss climbs less from epoch to epoch, in all, than step's",
        _steadier,
    ),
    Claim(
        "Helps late fine-tuning",
        "At constant's best LR, annealing the last fifth of the run lowers the test loss",
        _fine_tunes,
    ),
    Claim(
        "The initial LR needs care",
        "The cosine's test loss differs between the best and the worst initial LR",
        _initial_lr,
    ),
    Claim(
        "The minimum LR needs care",
        "The cosine's test loss differs between the best and the worst floor, at the best LR of the cosine to 0",
        _minimum_lr,
    ),
    Claim(
        "The number of epochs needs care",
        f"The cosine's test loss differs between the best and the worst of {', '.join(map(str, LENGTHS))} epochs",
        _epochs,
    ),
    Claim(
        "Takes larger steps where the surface is flat",
        "On a flatter surface the LR is larger at some step",
        _flat_surface,
    ),
)
"""The article's claims; the last is wrong as stated."""


def _at_best(comparison: Comparison, name: str) -> NDArray[np.float64]:
    best = comparison.best_lr(name)
    if best is None:
        return np.full(len(comparison.seeds), np.nan)
    return comparison.values()[:, list(comparison.schedules).index(name), best]


def _less(pairs: list[tuple[str, NDArray[np.float64], NDArray[np.float64]]], what: str) -> tuple[Verdict, str]:
    """Judge that every first is less than its second."""
    differences = paired_differences([(first, second) for _, first, second in pairs])
    figure = f"{what}: " + "; ".join(
        f"{name} {_shown(difference)}" for (name, _, _), difference in zip(pairs, differences, strict=True)
    )
    return _verdict(differences, all(difference.high < 0.0 for difference in differences)), figure


def _matters(
    options: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], where: str = ""
) -> tuple[Verdict, str]:
    """Judge that the worst option, chosen on validation, is worse on test than the best, chosen likewise."""
    means = {name: float(np.nanmean(val)) for name, (val, _) in options.items() if np.isfinite(val).any()}
    if len(means) < 2:
        return "not testable", "fewer than two options did not diverge"
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    differences = paired_differences([(options[worst][1], options[best][1])])
    figure = f"test loss{where}: {worst} minus {best} {_shown(differences[0])}"
    return _verdict(differences, differences[0].low > 0.0), figure


def _verdict(differences: list[PairedDifference], holds: bool) -> Verdict:
    if any(math.isnan(difference.low) for difference in differences):
        return "not testable"
    return "supported" if holds else "not supported"


def _shown(difference: PairedDifference) -> str:
    if math.isnan(difference.low):
        return f"{difference.value:+.3g}, no interval from {difference.n} pairs"
    return f"{difference.value:+.3g} ({difference.low:+.3g} … {difference.high:+.3g})"
