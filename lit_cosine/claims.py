"""What the article says about cosine annealing, as statements that a comparison can settle, and their verdicts.

Convention: a claim is *supported* where its statement's difference has the claimed sign and its interval (95 %, Holm's
over the claim's own differences) leaves out 0; *not supported* where it does not; *not testable* where there is no
interval: one seed, or trainings that diverged. Where the claim is that a choice needs care, the whole interval must be
above one percent of the loss: with enough seeds any choice makes some difference. Choices (best LR, best floor, …) are
made on validation rows, and differences over seeds measured on test rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_cosine.member import cross_entropy
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

CARE = 0.01
"""Share of the loss that a choice must make a difference of, to need care."""


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

    reached = {name: field.steps_to(target, name) for name in ("cosine", "constant", "step")}
    steps = {name: np.where(np.isinf(each), never, each) for name, each in reached.items()}
    verdict, figure = _less(
        [(f"cosine minus {other}", steps["cosine"], steps[other]) for other in ("constant", "step")],
        f"optimizer steps to a validation loss of {target:.3g}",
    )
    short = ", ".join(f"{name} in {np.isinf(each).sum()}" for name, each in reached.items())
    return verdict, f"{figure}; never there, and counted as {never} steps: {short} of {len(field.seeds)} seeds"


def _better(evidence: Evidence) -> tuple[Verdict, str]:
    return _less(
        [
            (f"cosine minus {other}", _at_best(evidence.field, "cosine"), _at_best(evidence.field, other))
            for other in ("constant", "step")
        ],
        "test loss",
    )


def _steadier(evidence: Evidence) -> tuple[Verdict, str]:
    field = evidence.field
    best = field.best_lr("step")
    if best is None:
        return "not testable", "step diverged at every LR"

    def climbs(name: str) -> NDArray[np.float64]:
        at = list(field.schedules).index(name)
        summed = np.maximum(np.diff(field.members["val_loss"][:, at, best], axis=-1), 0.0).sum(axis=-1)
        return np.where(field.diverged[:, at, best], np.nan, summed)

    return _less(
        [("cosine minus step", climbs("cosine"), climbs("step"))],
        f"sum of the climbs of the validation loss at LR {field.lrs[best]:g}",
    )


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
        for index, (name, floor) in enumerate(floors.schedules.items())
        if isinstance(floor, Cosine) and floor.end < floor.start  # one that does not fall is no cosine
    }
    return _matters(options, f" at LR {floors.lrs[best]:g}")


def _epochs(evidence: Evidence) -> tuple[Verdict, str]:
    options = {
        f"{epochs} epochs": (found.values("val_loss")[:, 0, 0], found.values()[:, 0, 0])
        for epochs, found in evidence.lengths.items()
    }
    lr = next(iter(evidence.lengths.values())).lrs[0]
    return _matters(options, f" at LR {lr:g}")


def _flat_surface(evidence: Evidence) -> tuple[Verdict, str]:
    steep, flat = evidence.steep, evidence.flat
    rates = [np.array(next(iter(c.schedules.values())).sample(c.total_steps)) * c.lrs[0] for c in (steep, flat)]
    gap = float(np.abs(rates[0] - rates[1]).max())

    def rise(found: Comparison, scale: float) -> NDArray[np.float64]:
        """How far up the training loss went over the run, in units of its own surface."""
        curves = np.where(found.diverged[:, 0, 0, None], np.nan, found.members["train_loss"][:, 0, 0])
        return np.asarray((curves[:, -1] - curves[:, 0]) / scale)

    went = {"flatter": rise(flat, FLATNESS), "as it is": rise(steep, 1.0)}
    verdict, figure = _less(
        [("flatter minus as it is", went["flatter"], went["as it is"])],
        "change of the training loss under plain SGD, in units of its surface",
    )
    means = " and ".join(f"{np.nanmean(each):.3g} on the surface {name}" for name, each in went.items())
    return verdict, f"{figure}: {means}; the LRs of the {steep.total_steps} steps differ by at most {gap:g}"


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
        "At step's best LR the cosine's validation loss climbs less from epoch to epoch, in all, than step's",
        _steadier,
    ),
    Claim(
        "Helps late fine-tuning",
        "At constant's best LR, annealing the last fifth of the run lowers the test loss",
        _fine_tunes,
    ),
    Claim(
        "The initial LR needs care",
        f"The cosine's test loss differs by more than {CARE:.0%} between the best and the worst initial LR",
        _initial_lr,
    ),
    Claim(
        "The minimum LR needs care",
        f"The cosine's test loss differs by more than {CARE:.0%} between the best and the worst floor below its LR",
        _minimum_lr,
    ),
    Claim(
        "The number of epochs needs care",
        f"The cosine's test loss differs by more than {CARE:.0%} between the best and the worst of "
        f"{', '.join(map(str, LENGTHS))} epochs",
        _epochs,
    ),
    Claim(
        "Takes larger steps where the surface is flat",
        f"Under plain SGD and the cosine, training goes further down, for its height, where the surface is "
        f"{1 / FLATNESS:g} times flatter",
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
        f"{name} {_shown(difference, len(first))}"
        for (name, first, _), difference in zip(pairs, differences, strict=True)
    )
    return _verdict(differences, all(difference.high < 0.0 for difference in differences)), figure


def _matters(
    options: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], where: str = ""
) -> tuple[Verdict, str]:
    """Judge that the worst option, chosen on validation, is clearly worse on test than the best, chosen likewise."""
    means = {name: float(np.nanmean(val)) for name, (val, _) in options.items() if np.isfinite(val).any()}
    lost = "".join(f"; {name} diverged for every seed" for name in options if name not in means)
    if len(means) < 2:
        return "not testable", f"fewer than two options did not diverge{lost}"
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    tests = options[best][1]
    differences = paired_differences([(options[worst][1], tests)])
    level = float(np.nanmean(tests))
    figure = f"test loss{where}: {worst} minus {best} {_shown(differences[0], len(tests))} on {level:.3g}{lost}"
    return _verdict(differences, differences[0].low > CARE * level), figure


def _verdict(differences: list[PairedDifference], holds: bool) -> Verdict:
    if any(math.isnan(difference.low) for difference in differences):
        return "not testable"
    return "supported" if holds else "not supported"


def _shown(difference: PairedDifference, seeds: int) -> str:
    if math.isnan(difference.low):
        return f"{difference.value:+.3g}, no interval from {difference.n} pairs"
    pairs = "" if difference.n == seeds else f"; {difference.n} of {seeds} pairs, the others diverged"
    return f"{difference.value:+.3g} ({difference.low:+.3g} … {difference.high:+.3g}{pairs})"
