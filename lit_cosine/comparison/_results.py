"""The results of a comparison: curves of every training, paired differences, steps to a loss, spread over LRs.

Conventions: the best LR of a schedule is selected on validation rows and reported on test rows. A training whose loss
is not finite has diverged: it is counted, and excluded from means and differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_cosine._checks import check_choice, shown
from lit_cosine.comparison._statistics import Mean, PairedDifference, mean, paired_differences
from lit_cosine.comparison.stacked import METRICS
from lit_cosine.schedules import Schedule

__all__ = ["Comparison", "Measure", "OnProgress", "Row", "showing_so_far"]

OnProgress = Callable[[int, int, int, int], None]
"""Gets the numbers of trainings that are done, known, running, and failed or diverged."""

Measure = str
"""A field of the trainings: a metric that the module logs, or for stacked networks one of ``CURVES`` or ``FINALS``."""

_LARGEST = 1e300
"""A loss above it counts as not finite: sums of such losses, and the axes of a figure, overflow."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a schedule at one LR.

    Attributes:
        schedule: Its name.
        lr: The peak LR; nan where every LR of the schedule diverged for every seed.
        mean: Mean over seeds or splits, with its interval.
        difference: Mean difference to the baseline; None for the baseline itself.
        diverged: Trainings that diverged or failed.
    """

    schedule: str
    lr: float
    mean: Mean
    difference: PairedDifference | None
    diverged: int


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """The results of :func:`lit_cosine.compare` or :func:`lit_cosine.compare_networks`; Jupyter shows its table.

    The data split is the unit of inference: with several splits, seeds are averaged within each. With one split the
    unit is the seed, and intervals are of the noise of the seeds: they say nothing about other data.

    Attributes:
        schedules: The schedules by name.
        lrs: The peak LRs.
        seeds: The seeds.
        baseline: The schedule that the others are compared to.
        steps_per_epoch: Optimizer steps between two points of a curve.
        members: The trainings (splits * seeds, schedules, lrs), a structured array. A field of several values is a
            curve; another is measured after the training.
        description: The arguments of the comparison, as plain data.
        splits: The seeds of the data splits.
        select: The measure by which LRs are chosen.
        report: The measure that tables and figures show.
        maximize: Measures of which more is better.
        overlap: Test rows over training rows (of :func:`lit_cosine.compare`: validation rows over training rows), for
            the t test over splits (Nadeau and Bengio 2003).
        paired: Whether a seed had the same weights and first batch under every schedule.
        problems: What went wrong in which training.
        trained: Which training there is (splits * seeds, schedules, lrs); None where each is.

    >>> from lit_cosine import Constant, Cosine, SimpleNN, SyntheticDataModule, compare_networks
    >>> schedules = {"constant": Constant(), "cosine": Cosine()}
    >>> found = compare_networks(SimpleNN, SyntheticDataModule(), schedules, [0.01], 2, max_epochs=1, engine="serial")
    >>> found.best_lr("cosine")
    0.01
    """

    schedules: dict[str, Schedule]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str
    steps_per_epoch: int
    members: NDArray[Any]
    description: dict[str, Any]
    splits: tuple[int, ...] = (0,)
    select: Measure = "val_loss"
    report: Measure = "test_loss"
    maximize: tuple[Measure, ...] = tuple(f"{part}_{name}" for part in ("val", "test") for name in METRICS)
    overlap: float = 0.0
    paired: bool = True
    problems: tuple[str, ...] = ()
    trained: NDArray[np.bool_] | None = None

    def __repr__(self) -> str:
        from lit_cosine.comparison._report import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    @property
    def curves(self) -> tuple[str, ...]:
        """The measures that are kept over the training."""
        return tuple(name for name in self._fields if self.members.dtype[name].shape)

    @property
    def finals(self) -> tuple[str, ...]:
        """The measures that are taken after the training."""
        return tuple(name for name in self._fields if not self.members.dtype[name].shape)

    @property
    def _fields(self) -> tuple[str, ...]:
        return self.members.dtype.names or ()

    @property
    def scope(self) -> str:
        """What the intervals refer to, for titles and files."""
        unpaired = "" if self.paired else "; unpaired: weights or batches differ between schedules"
        if len(self.splits) > 1:
            seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds averaged"
            return f"{len(self.splits)} splits of the data, {seeds} in each{unpaired}"
        return f"seed noise only: says nothing about other data{unpaired}"

    @property
    def epochs(self) -> int:
        """Number of points of the curve of ``select``, one an epoch unless the Trainer validates at other times."""
        return int(self.members[self.select].shape[-1])

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of each member."""
        return self.epochs * self.steps_per_epoch

    def values(self, measure: Measure | None = None, at: Literal["end", "best"] = "end") -> NDArray[np.float64]:
        """Return a measure of every seed, or with several splits the mean of each split (units, schedules, lrs).

        It is nan where the training diverged or failed.

        Args:
            measure: One of ``curves`` or ``finals``; ``report`` where None.
            at: Whether the ``"end"`` of a curve counts or its ``"best"`` point.
        """
        measure = self.report if measure is None else measure
        check_choice("measure", measure, self._fields)
        check_choice("at", at, ("end", "best"))
        values = self.members[measure]
        if values.ndim > 3:
            best = np.max if self.higher_is_better(measure) else np.min
            values = values[..., -1] if at == "end" else best(values, axis=-1)
        values = np.where(self.diverged, np.nan, values)
        if len(self.splits) == 1:
            return values
        of_split = values.reshape(len(self.splits), len(self.seeds), *values.shape[1:])
        with np.errstate(invalid="ignore"):
            counts = np.isfinite(of_split).sum(axis=1)
            return np.asarray(np.nansum(of_split, axis=1) / np.where(counts, counts, np.nan))

    def higher_is_better(self, measure: Measure) -> bool:
        """Return whether more of ``measure`` is better."""
        return measure in self.maximize

    def best_lr(self, schedule: str) -> float | None:
        """Return the LR with which ``schedule`` ends best by ``select``; None where all trainings diverged."""
        best = self.best_index(schedule)
        return None if best is None else self.lrs[best]

    def lr_range(self, schedule: str) -> tuple[float, float] | None:
        """Return the least and the greatest LR of ``schedule`` within a standard error of the best mean."""
        best, losses = self.best_index(schedule), self._losses(schedule)
        if best is None:
            return None
        means = [mean(column).value for column in losses.T]
        finite = losses[:, best][np.isfinite(losses[:, best])]
        error = float(finite.std(ddof=1)) / math.sqrt(len(finite)) if len(finite) > 1 else 0.0
        near = [lr for lr, value in zip(self.lrs, means, strict=True) if value <= means[best] + error]
        return min(near), max(near)

    def at_edge(self, schedule: str) -> bool:
        """Return whether the best LR of ``schedule`` is at an end of several: a wider grid may have a better one."""
        lrs = [lr for index, lr in enumerate(self.lrs) if self.has(schedule, index)]
        return len(lrs) > 1 and self.best_lr(schedule) in (min(lrs), max(lrs))

    def has(self, schedule: str, lr: int) -> bool:
        """Return whether a schedule was trained at an LR.

        Args:
            schedule: Name of the schedule.
            lr: Index in ``lrs``.
        """
        return self.trained is None or bool(self.trained[:, self._place(schedule), lr].any())

    def to_frame(self) -> Any:
        """Return a row for every training as a pandas DataFrame.

        Raises:
            ImportError: If pandas is missing.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ImportError("to_frame needs pandas: pip install pandas") from None
        from lit_cosine.comparison._report import member_records

        return pd.DataFrame(member_records(self))

    def plot(self) -> Any:
        """Return the figure of the report, a ``matplotlib.figure.Figure``."""
        from lit_cosine.comparison._figure import draw

        return draw(self)

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Whether a training failed, or a loss was ever not finite or above 1e300 (splits * seeds, schedules, lrs)."""
        fields = {self.select, self.report, *({"train_loss", "val_loss", "test_loss"} & {*self._fields})}
        good = np.ones(self.members.shape, dtype=bool)
        for name in fields:
            fine = np.abs(self.members[name]) <= _LARGEST
            good &= fine.all(axis=-1) if fine.ndim > 3 else fine
        return np.asarray(~good if self.trained is None else ~good & self.trained)

    def best_index(self, schedule: str) -> int | None:
        """Return the index in ``lrs`` of the best LR of ``schedule``.

        Only the LRs at which the fewest trainings diverged are considered; None where all trainings diverged.
        """
        losses, diverged = self._losses(schedule), self.diverged[:, self._place(schedule)].sum(axis=0)
        there = [index for index in range(len(self.lrs)) if np.isfinite(losses[:, index]).any()]
        return min(there, key=lambda index: (diverged[index], float(np.nanmean(losses[:, index]))), default=None)

    def table(self, measure: Measure | None = None) -> list[Row]:
        """Return a row for every schedule at its best LR; differences are one family for Holm's correction.

        Args:
            measure: The quantity that is averaged; ``report`` where None.
        """
        best = self.best_index(self.baseline)
        return self._rows([(name, self.best_index(name), best) for name in self.schedules], measure)

    def table_by_lr(self, measure: Measure | None = None) -> list[Row]:
        """Return a row for every schedule at every LR, each against the baseline at the same LR; one family.

        Args:
            measure: The quantity that is averaged; ``report`` where None.
        """
        indices = range(len(self.lrs))
        return self._rows([(n, i, i) for n in self.schedules for i in indices if self.has(n, i)], measure)

    def _rows(self, places: Sequence[tuple[str, int | None, int | None]], measure: Measure | None) -> list[Row]:
        """Return a row for each (schedule, its index in ``lrs``, that of the baseline)."""
        measure = self.report if measure is None else measure
        values, diverged = self.values(measure), self.diverged

        def of(name: str, index: int | None) -> NDArray[np.float64]:
            return np.full(len(values), np.nan) if index is None else values[:, self._place(name), index]

        others = [place for place in places if place[0] != self.baseline]
        pairs = [(of(name, index), of(self.baseline, base)) for name, index, base in others]
        found = paired_differences(pairs, overlap=self.overlap, paired=self.paired)
        if self.higher_is_better(measure):
            found = [replace(difference, won=1.0 - difference.won) for difference in found]
        differences = dict(zip(others, found, strict=True))
        rows = []
        for name, index, base in places:
            lr, count = math.nan, len(self.members)
            if index is not None:
                lr, count = self.lrs[index], int(diverged[:, self._place(name), index].sum())
            difference = differences.get((name, index, base))
            rows.append(Row(name, lr, mean(of(name, index), self.overlap), difference, count))
        return rows

    def steps_to(self, loss: float, schedule: str, lr: int | None = None) -> NDArray[np.float64]:
        """Return for each training the optimizer steps after which ``select`` was first at least as good as ``loss``.

        Measured at each point of the curve; inf where it was never reached, nan where the training diverged.

        Args:
            loss: The loss to reach.
            schedule: Name of the schedule.
            lr: Index in ``lrs``; that of the schedule's best LR where None.
        """
        index = self.best_index(schedule) if lr is None else lr
        if index is None:
            return np.full(len(self.members), np.nan)
        at = self._place(schedule)
        curves = self.members[self.select][:, at, index]
        reached = curves >= loss if self.higher_is_better(self.select) else curves <= loss
        steps = (reached.argmax(axis=-1) + 1.0) * self.steps_per_epoch
        steps = np.where(reached.any(axis=-1), steps, np.inf)
        return np.where(self.diverged[:, at, index], np.nan, steps)

    def spread(self, schedule: str, measure: Measure | None = None) -> float:
        """Return the standard deviation over LRs of the mean ``measure`` of ``schedule``.

        It is small where the choice of LR matters little. LRs at which every seed diverged are excluded; nan where
        fewer than two remain.
        """
        means = [mean(column).value for column in self.values(measure)[:, self._place(schedule)].T]
        finite = [value for value in means if math.isfinite(value)]
        return float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan

    def _losses(self, schedule: str) -> NDArray[np.float64]:
        """Return ``select`` of ``schedule`` with the sign with which less is better (units, lrs)."""
        sign = -1.0 if self.higher_is_better(self.select) else 1.0
        return sign * self.values(self.select)[:, self._place(schedule)]

    def _place(self, schedule: str) -> int:
        if schedule not in self.schedules:
            raise ValueError(f"schedule must be one of {', '.join(self.schedules)}, got {shown(schedule)}")
        return list(self.schedules).index(schedule)


@contextmanager
def showing_so_far(found: Callable[[], tuple[Comparison, str]]) -> Iterator[None]:
    """Print the table of the trainings so far when a comparison is stopped.

    ``found`` returns them, and how many of how many they are.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        with suppress(ValueError, OSError):  # every training so far has failed, or the output is closed
            comparison, count = found()
            print(f"\nStopped after {count} trainings:\n{comparison!r}", flush=True)
        raise
