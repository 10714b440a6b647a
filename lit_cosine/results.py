"""What a comparison found: every member's curves, tables with paired differences, steps to a loss, spread over LRs.

Conventions: a schedule's best LR is chosen on validation rows and judged on test rows. A member whose loss is not
finite has diverged: it is counted, and left out of means and differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_cosine.schedules import Schedule
from lit_cosine.statistics import Mean, PairedDifference, mean, paired_differences

__all__ = ["Comparison", "Measure", "Row"]

Measure = Literal["test_loss", "test_accuracy", "val_loss", "train_loss", "val_accuracy"]


@dataclass(frozen=True)
class Row:
    """One line of a table: a schedule at one LR.

    Attributes:
        schedule: Its name.
        lr: The peak LR; nan where every LR of the schedule diverged for every seed.
        mean: Mean over seeds, with its interval.
        difference: Mean difference to the baseline over seeds; None for the baseline itself.
        diverged: Seeds that diverged.
    """

    schedule: str
    lr: float
    mean: Mean
    difference: PairedDifference | None
    diverged: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`lit_cosine.compare` found.

    Attributes:
        schedules: The schedules by name.
        lrs: The peak LRs.
        seeds: The seeds.
        baseline: The schedule that the others are compared to.
        steps_per_epoch: Optimizer steps in an epoch.
        members: The trainings (seeds, schedules, lrs), a structured array with the fields ``train_loss``,
            ``val_loss``, ``val_accuracy`` (epochs,), ``test_loss`` and ``test_accuracy``.
        description: What was compared, as plain data.
    """

    schedules: dict[str, Schedule]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str
    steps_per_epoch: int
    members: NDArray[Any]
    description: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return int(self.members["val_loss"].shape[-1])

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of each member."""
        return self.epochs * self.steps_per_epoch

    def values(self, measure: Measure = "test_loss") -> NDArray[np.float64]:
        """Return a measure of every member after its training (seeds, schedules, lrs); nan where it diverged."""
        values = self.members[measure]
        final = values if values.ndim == 3 else values[..., -1]
        return np.where(self.diverged, np.nan, final)

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Whether a member's loss was ever not finite (seeds, schedules, lrs)."""
        finite = [np.isfinite(self.members[name]).all(axis=-1) for name in ("train_loss", "val_loss")]
        return np.asarray(~(finite[0] & finite[1] & np.isfinite(self.members["test_loss"])))

    def best_lr(self, schedule: str) -> int | None:
        """Return the place in ``lrs`` of the LR at which ``schedule`` has the lowest mean validation loss at the end.

        LRs at which the fewest seeds diverged go before others; None where all members diverged.
        """
        at = self._place(schedule)
        losses, diverged = self.values("val_loss")[:, at], self.diverged[:, at].sum(axis=0)
        if (diverged == len(self.seeds)).all():
            return None
        fewest = [index for index in range(len(self.lrs)) if diverged[index] == diverged.min()]
        return min(fewest, key=lambda index: float(np.nanmean(losses[:, index])))

    def table(self, measure: Measure = "test_loss", confidence: float = 0.95) -> list[Row]:
        """Return a row for every schedule at its best LR; differences are one family for Holm's correction.

        Args:
            measure: What the means are of.
            confidence: Of the intervals, in (0, 1).
        """
        return self._rows([(name, self.best_lr(name)) for name in self.schedules], measure, confidence)

    def table_by_lr(self, measure: Measure = "test_loss", confidence: float = 0.95) -> list[Row]:
        """Return a row for every schedule at every LR, each against the baseline at the same LR; one family.

        Args:
            measure: What the means are of.
            confidence: Of the intervals, in (0, 1).
        """
        places = [(name, index) for name in self.schedules for index in range(len(self.lrs))]
        return self._rows(places, measure, confidence, same_lr=True)

    def _rows(
        self, places: Sequence[tuple[str, int | None]], measure: Measure, confidence: float, same_lr: bool = False
    ) -> list[Row]:
        values, diverged = self.values(measure), self.diverged
        # less is better in a loss, more in an accuracy: `won` follows
        sign = -1.0 if measure.endswith("accuracy") else 1.0
        best = self.best_lr(self.baseline)
        nothing = np.full(len(self.seeds), np.nan)

        def of(name: str, index: int | None) -> NDArray[np.float64]:
            return nothing if index is None else values[:, self._place(name), index]

        others = [(name, index) for name, index in places if name != self.baseline]
        pairs = [
            (sign * of(name, index), sign * of(self.baseline, index if same_lr else best)) for name, index in others
        ]
        differences = dict(zip(others, paired_differences(pairs, confidence), strict=True))
        rows = []
        for name, index in places:
            difference = differences.get((name, index))
            count = len(self.seeds) if index is None else int(diverged[:, self._place(name), index].sum())
            lr = math.nan if index is None else self.lrs[index]
            turned = difference if difference is None or sign > 0 else _turned(difference)
            rows.append(Row(name, lr, mean(of(name, index), confidence), turned, count))
        return rows

    def steps_to(self, loss: float, schedule: str, lr: int | None = None) -> NDArray[np.float64]:
        """Return for each seed the optimizer steps after which the validation loss was first at most ``loss``.

        Measured after each epoch; inf where the loss was never reached, nan where the member diverged.

        Args:
            loss: The loss to reach.
            schedule: Name of the schedule.
            lr: Place in ``lrs``; the schedule's best where None.
        """
        index = self.best_lr(schedule) if lr is None else lr
        if index is None:
            return np.full(len(self.seeds), np.nan)
        at = self._place(schedule)
        reached = self.members["val_loss"][:, at, index] <= loss
        steps = (reached.argmax(axis=-1) + 1.0) * self.steps_per_epoch
        steps = np.where(reached.any(axis=-1), steps, np.inf)
        return np.where(self.diverged[:, at, index], np.nan, steps)

    def spread(self, schedule: str, measure: Measure = "test_loss") -> float:
        """Return the standard deviation over LRs of the mean ``measure`` of ``schedule``: small is forgiving.

        LRs at which every seed diverged are left out; nan where fewer than two remain.
        """
        means = [mean(column).value for column in self.values(measure)[:, self._place(schedule)].T]
        finite = [value for value in means if math.isfinite(value)]
        return float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan

    def _place(self, schedule: str) -> int:
        if schedule not in self.schedules:
            raise ValueError(f"schedule must be one of {', '.join(self.schedules)}, got {schedule!r}")
        return list(self.schedules).index(schedule)


def _turned(difference: PairedDifference) -> PairedDifference:
    return PairedDifference(
        -difference.value, -difference.high, -difference.low, difference.p, difference.won, difference.n
    )
