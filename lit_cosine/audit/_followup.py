"""The planned LR compared with the LR that was used.

Convention: update k of an optimizer is counted from where the plan begins. Under manual optimization the plan is in
batches, and all updates of a batch are compared with it. LRs may be tensors on a device: they are collected and read
together, so that no update waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lit_cosine.audit._situation import Situation
from lit_cosine.monitors import numbers

__all__ = ["Followup"]

_KEPT = 10_000
"""Points of a curve that are kept for the picture."""

_WAITING = 1_000
"""Updates that are collected before they are compared."""


class Followup:
    """Compares the LR of every update with the plan."""

    def __init__(self, situations: Sequence[Situation], done: Sequence[int]) -> None:
        self._situations = situations
        self._begin = list(done)
        self._compared = [0] * len(situations)
        self._next = [0] * len(situations)
        self._stride = 1
        self._waiting: list[tuple[int, int, Sequence[float | Tensor], int, int | None]] = []
        self._differences: dict[tuple[int, int], str] = {}
        self.curves: dict[str, tuple[list[int], list[float]]] = {}

    def add(
        self, index: int, update: int, lrs: Sequence[float | Tensor], skipped: int, batch: int | None = None
    ) -> None:
        """Take the LRs of one update, to be compared with the plan, or with its ``batch`` if the plan is in batches."""
        self._waiting.append((index, update, lrs, skipped, batch))
        if len(self._waiting) >= _WAITING:
            self.compare()

    def compare(self) -> None:
        """Compare the updates that were added since the last call."""
        waiting, self._waiting = self._waiting, []
        values = iter(numbers([lr for _, _, lrs, _, _ in waiting for lr in lrs]))
        for index, update, lrs, skipped, batch in waiting:
            self._compare(index, update, [next(values) for _ in lrs], skipped, batch)

    def _compare(self, index: int, update: int, lrs: Sequence[float], skipped: int, batch: int | None) -> None:
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
        for group, lr in enumerate(lrs[: len(situation.names)]):  # a group that joins later has no plan
            if (index, group) in self._differences or math.isclose(lr, planned[group], rel_tol=1e-5, abs_tol=1e-12):
                continue
            where = f"at update {update + 1:,}" if batch is None else f"in batch {batch + 1:,}"
            because = f"updates before it were skipped ({skipped:,})" if skipped else "the LR was set from outside"
            self._differences[index, group] = (
                f"{where} the plan was {planned[group]:.6g} and {lr:.6g} was used: {because}"
            )

    def _keep(self, index: int, position: int, lrs: Sequence[float]) -> None:
        names = self._situations[index].names
        for group, lr in enumerate(lrs):
            name = names[group] if group < len(names) else f"{names[0].partition('/')[0]}/pg{group + 1}"
            steps, values = self.curves.setdefault(name, ([], []))
            steps.append(position)
            values.append(lr)
            if len(steps) > _KEPT:
                self._stride *= 2
                for kept_steps, kept_values in self.curves.values():
                    del kept_steps[1::2], kept_values[1::2]

    def report(self, why_ended: str = "") -> list[str]:
        """Return one sentence for each difference between the plan and the run; empty if there is none."""
        self.compare()
        lines = []
        for index, situation in enumerate(self._situations):
            of_this = sorted(entry for entry in self._differences.items() if entry[0][0] == index)
            lines += [f"{situation.names[group]}: {why}" for (_, group), why in of_this]
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
        """The number of updates that were compared."""
        return sum(self._compared)
