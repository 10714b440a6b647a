"""The planned LR compared with the LR that was used.

Convention: update k of an optimizer is counted from where the plan begins. Under manual optimization the plan is in
batches, and all updates of a batch are compared with it. LRs may be tensors on a device: they are collected and read
together, so that no update waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_cosine.audit._plan import POINTS
from lit_cosine.audit._situation import Situation
from lit_cosine.monitors import Update, numbers

__all__ = ["Followup"]

_WAITING = 1_000
"""Updates that are collected before they are compared."""


class Followup:
    """Compares the LR of every update with the plan."""

    def __init__(self, situations: Sequence[Situation], done: Sequence[int]) -> None:
        self._situations = situations
        self._begin = list(done)
        self._made = [0] * len(situations)
        self._waiting: list[tuple[Update, int, int | None]] = []
        self._differences: dict[tuple[int, int], str] = {}
        self.compared = 0
        self.curves: dict[str, tuple[list[int], list[float]]] = {}

    def add(self, updates: Sequence[Update], skipped: int, batch: int | None = None) -> None:
        """Take updates, to be compared with the plan, or with its ``batch`` if the plan is in batches."""
        self._waiting += [(update, skipped, batch) for update in updates]
        if len(self._waiting) >= _WAITING:
            self._compare_waiting()

    def _compare_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        values = iter(numbers([lr for update, _, _ in waiting for lr in update.used["lr"]]))
        for update, skipped, batch in waiting:
            self._compare(update, [next(values) for _ in update.used["lr"]], skipped, batch)

    def _compare(self, update: Update, lrs: Sequence[float], skipped: int, batch: int | None) -> None:
        situation = self._situations[update.index]
        trace, names = situation.trace, situation.names
        position = update.step - self._begin[update.index] if batch is None else batch
        self._made[update.index] = position + 1
        if position >= trace.updates:
            return
        if position % max(1, trace.updates // POINTS) == 0:
            for group, lr in enumerate(lrs):
                name = names[group] if group < len(names) else f"{names[0].partition('/')[0]}/pg{group + 1}"
                steps, values = self.curves.setdefault(name, ([], []))
                steps.append(situation.done + position)
                values.append(lr)
        if any(one.depends for one in situation.scheduled) or not trace.knows(position):
            return
        self.compared += 1
        planned = trace.lr(position)
        for group, lr in enumerate(lrs[: len(names)]):  # a group that joins later has no plan
            where = update.index, group
            if where not in self._differences and not _same(lr, planned[group]):
                at = f"at update {update.step + 1:,}" if batch is None else f"in batch {batch + 1:,}"
                because = f"updates before it were skipped ({skipped:,})" if skipped else "the LR was set from outside"
                self._differences[where] = f"{at} the plan was {planned[group]:.6g} and {lr:.6g} was used: {because}"

    def report(self, why_ended: str = "") -> list[str]:
        """Return one sentence for each difference between the plan and the run; empty if there is none."""
        self._compare_waiting()
        lines = []
        for index, situation in enumerate(self._situations):
            of_this = sorted(entry for entry in self._differences.items() if entry[0][0] == index)
            lines += [f"{situation.names[group]}: {why}" for (_, group), why in of_this]
            if situation.open_end:
                continue
            made, planned, who = self._made[index], situation.trace.updates, situation.label
            if made < planned:
                share = f"{made / planned:.0%} of the plan{why_ended}"
                lines.append(f"{who} made {made:,} of {planned:,} planned updates, {share}")
            elif made > planned:
                lines.append(f"{who} made {made:,} updates, {made - planned:,} more than were planned")
        return lines


def _same(lr: float, planned: float) -> bool:
    return math.isclose(lr, planned, rel_tol=1e-5, abs_tol=1e-12) or (math.isnan(lr) and math.isnan(planned))
