"""The plan of a run: the LR of every param group, as numbers, as a line of text and as curves.

Convention: steps are counted from where the plan begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_cosine.audit._situation import Situation
from lit_cosine.monitors import Points

__all__ = ["POINTS", "PlannedLR", "plan_line", "planned_lrs", "planned_points"]

POINTS = 2000
"""Points of a planned curve: more than a screen is wide."""


@dataclass(frozen=True)
class PlannedLR:
    """The planned LR of one param group.

    Args:
        name: The group's name, as the loggers call it.
        first: LR of the first update.
        peak: Highest LR that an update uses.
        last: LR of the last update.
        after: LR after the last update.
        changes: How often the LR changes between two updates; in a sampled plan, at least so often.
        depends: What the LR depends on that is not known before the run; empty if it is known.
    """

    name: str
    first: float
    peak: float
    last: float
    after: float
    changes: int
    depends: str = ""


def planned_lrs(situation: Situation) -> list[PlannedLR]:
    """Return the planned LR of every param group of one optimizer."""
    trace = situation.trace
    depends = ", ".join(one.depends for one in situation.scheduled if one.depends)
    # a group that joins later has no name yet
    columns = zip(situation.names, trace.first, trace.peaks.tolist(), trace.last, trace.lr(trace.updates), strict=False)
    return [PlannedLR(*column, trace.changes(group), depends) for group, column in enumerate(columns)]


def plan_line(situations: Sequence[Situation]) -> str:
    """Return the length of a run and the plan of its optimizers in one line."""
    if not situations:
        return "the module has no optimizer"
    updates, timeline = situations[0].trace.updates, situations[0].timeline
    length = f"the first {updates:,} updates" if situations[0].open_end else f"{updates:,} updates"
    epochs = len(np.unique(timeline.epoch))
    parts = [f"{length} ({epochs:,} epoch{'s'[: epochs != 1]})", *map(_of_groups, situations)]
    if any(one.trace.sampled for one in situations):
        points = max(len(one.trace.at) for one in situations)
        parts.append(f"sampled at {points:,} points of the closed form")
    return "; ".join(parts)


def _of_groups(situation: Situation) -> str:
    """Return the plan of one optimizer as one phrase, however many groups it has."""
    planned = planned_lrs(situation)
    of = f" ({', '.join(part for one in situation.scheduled for part in one.in_words) or 'no scheduler'})"
    if planned[0].depends:
        return f"{planned[0].name} {planned[0].first:.4g}, then depends on {planned[0].depends}{of}"
    if len(planned) > 4:
        first, last = planned[0].name, planned[-1].name
        phrases = [f"{first} to {last} peak {_span(planned, 'peak')}, last {_span(planned, 'last')}"]
    else:
        phrases = [
            f"{one.name} {one.first:.4g} -> {one.last:.4g}, peak {one.peak:.4g}, after the end {one.after:.4g}, "
            f"{'at least ' if situation.trace.sampled else ''}{one.changes:,} change{'s'[: one.changes != 1]}"
            for one in planned
        ]
    return ", ".join(phrases) + of


def _span(planned: list[PlannedLR], field: str) -> str:
    values = [getattr(one, field) for one in planned]
    return f"{min(values):.4g} to {max(values):.4g}"


def planned_points(situation: Situation) -> dict[str, Points]:
    """Return the planned LR of every param group on the run's own steps, as no more points than a screen is wide."""
    trace = situation.trace
    # an LR applies up to the next change: two points each, so that a line through them is a staircase
    ends = np.append(trace.at[1:], max(trace.updates, trace.at[-1] + 1)) - 1
    steps = np.union1d(trace.at, ends)
    every = -(-len(steps) // POINTS)
    kept = np.append(steps[:-1:every], steps[-1])
    lrs, steps = trace.at_updates(kept), situation.done + kept
    return {name: (steps.tolist(), lrs[:, group].tolist()) for group, name in enumerate(situation.names)}
