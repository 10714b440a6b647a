"""A planned learning rate beside the one that was used, and where they part.

Convention: update k of an optimizer is counted from where the plan begins; under manual optimization the plan is in
batches, and all updates of a batch are compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_cosine.situation import Situation

__all__ = ["Followup"]

_KEPT = 10_000
"""Points of a curve that are kept for the picture."""


class Followup:
    """Compares the LRs of updates, as they come, with the plan.

    Args:
        situations: What was planned, for every optimizer.
        done: The updates that each optimizer had made when the plan began.
    """

    def __init__(self, situations: Sequence[Situation], done: Sequence[int]) -> None:
        self._situations = situations
        self._begin = list(done)
        self._compared = [0] * len(situations)
        self._next = [0] * len(situations)
        self._stride = 1
        self._parted: dict[tuple[int, int], str] = {}
        self.curves: dict[str, tuple[list[int], list[float]]] = {}

    def compare(self, index: int, update: int, lrs: Sequence[Any], skipped: int, batch: int | None = None) -> None:
        """Compare the LRs that one update used with the plan.

        Args:
            index: Which optimizer.
            update: Which of its updates, counted over the whole run.
            lrs: The LR of each group.
            skipped: Updates that were due before this one and not made.
            batch: Where the plan is now, if it is counted in batches.
        """
        situation = self._situations[index]
        trace = situation.trace
        position = update - self._begin[index] if batch is None else batch
        self._next[index] = position + 1
        if position % self._stride == 0:
            self._keep(index, position, lrs)
        if any(one.depends for one in situation.scheduled) or position >= trace.updates or not trace.knows(position):
            return
        self._compared[index] += 1
        planned = trace.lr(position)
        for group, value in enumerate(lrs):
            lr, plan = float(value), planned[group] if group < len(planned) else math.nan
            if (index, group) in self._parted or math.isclose(lr, plan, rel_tol=1e-5, abs_tol=1e-12):
                continue
            where = f"at update {update + 1:,}" if batch is None else f"in batch {batch + 1:,}"
            if math.isnan(plan):
                why = f"this group joined {where} and was not planned"
            else:
                because = f"updates before it were skipped ({skipped:,})" if skipped else "the LR was set from outside"
                why = f"{where} the plan was {plan:.6g} and {lr:.6g} was used: {because}"
            self._parted[index, group] = why

    def _keep(self, index: int, position: int, lrs: Sequence[Any]) -> None:
        names = self._situations[index].names
        for group, value in enumerate(lrs):
            name = names[group] if group < len(names) else f"{names[0].partition('/')[0]}/pg{group + 1}"
            steps, values = self.curves.setdefault(name, ([], []))
            steps.append(position)
            values.append(float(value))
            if len(steps) > _KEPT:
                self._stride *= 2
                for kept_steps, kept_values in self.curves.values():
                    del kept_steps[1::2], kept_values[1::2]

    def report(self, why_ended: str = "") -> list[str]:
        """Return, a sentence each, where plan and use have parted; empty if they have not."""
        lines = []
        for index, situation in enumerate(self._situations):
            for (_, group), why in sorted(parted for parted in self._parted.items() if parted[0][0] == index):
                joined = group >= len(situation.names)
                lines.append(f"{'a group that joined' if joined else situation.names[group]}: {why}")
            if situation.open_end:
                continue
            made, planned = self._next[index], situation.trace.updates
            if made < planned:
                lines.append(
                    f"{situation.label} made {made:,} of {planned:,} planned updates, {made / planned:.0%} of the plan"
                    f"{why_ended}"
                )
            elif made > planned:
                lines.append(f"{situation.label} made {made:,} updates, {made - planned:,} more than were planned")
        return lines

    @property
    def compared(self) -> int:
        """How many updates were compared."""
        return sum(self._compared)
