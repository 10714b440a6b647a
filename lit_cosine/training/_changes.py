"""What changes in a run: its lengths, a schedule that begins at another factor, an LR that is set from outside."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from lit_cosine.schedules import Schedule

__all__ = ["ENDLESS", "Lengths", "Mapped", "OutsideChanges", "log_warning"]

ENDLESS = 2**53
"""The total of a run without a known end, which only a constant schedule plays."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lengths:
    """The lengths of a run, in steps: N, W and C."""

    total: int
    warmup: int
    cooldown: int

    def fitted(self, warmup: int | None = None) -> Lengths:
        """Return them with parts that leave a step between them; ``warmup`` is one that has begun, and stays."""
        most = self.total - 1
        warmup = min(self.warmup, most) if warmup is None else warmup
        return Lengths(self.total, warmup, max(0, min(self.cooldown, most - warmup)))


@dataclass(frozen=True)
class Mapped(Schedule):
    """A falling schedule that begins at another factor: f' = end + (new(u) - end) * (begin - end) / (new(0) - end)."""

    schedule: Schedule
    begin: float

    def factor(self, progress: float) -> float:
        """Return the mapped factor; a constant schedule holds ``begin``."""
        start, end = self.schedule(0.0), self.schedule(1.0)
        if start == end:
            return self.begin
        return max(0.0, end + (self.schedule(progress) - end) * (self.begin - end) / (start - end))


@dataclass
class OutsideChanges:
    """The last change from outside of one group."""

    at: float = -2.0  # the position it was found at; -2 for none
    to: float = 0.0  # the LR that was set
    base: float = 0.0  # the base LR before it, and before equal ones at the positions just before it

    def base_after(self, step: float, lr: float, written: float, base: float) -> float:
        """Return the base LR after ``lr`` was found at ``step`` in place of ``written``, and remember the change."""
        again = step == self.at + 1 and lr == self.to
        self.base = self.base if again else base
        self.at, self.to = step, lr
        if step == 0:  # before the first step the value is the base LR
            return lr
        if again:  # a clamp
            return self.base
        # near a zero of the curve a ratio would have no meaning
        return base * (lr / written) if lr <= 2.0 * written and written > 0.0 else max(base, lr)


def log_warning(message: str, *numbers: object) -> None:
    """Log one line, on one rank."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        _log.warning(message, *numbers)
