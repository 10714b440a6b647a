"""The training time that all ranks agree on, without a broadcast at every update."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = ["SharedClock"]

_MOST_READS = 32
"""Reads between two broadcasts at most."""


class SharedClock:
    """Rank 0's elapsed milliseconds on every rank.

    One process reads its own clock. Several broadcast rank 0's at reads 1, 2, 4, 8, …, then at every 32nd, and between
    two broadcasts continue at the pace of the last two. The time never runs backwards: where that pace was too high, it
    stands still until rank 0 has caught up. The arithmetic is the same on every rank, and so is the LR.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reads = 0
        self._next, self._gap = 1, 1
        self._last, self._pace, self._last_read = 0.0, 0.0, 0
        self._latest = 0.0

    def read(self, elapsed_ms: float) -> float:
        """Return the elapsed time, given this rank's own."""
        if self._trainer.world_size == 1:
            return elapsed_ms
        self._reads += 1
        self._latest = max(self._latest, self._estimate(elapsed_ms))
        return self._latest

    def _estimate(self, elapsed_ms: float) -> float:
        if self._reads < self._next:
            return self._last + self._pace * (self._reads - self._last_read)
        now = float(self._trainer.strategy.broadcast(elapsed_ms))
        if self._last_read:
            self._pace = max(0.0, now - self._last) / (self._reads - self._last_read)
        self._last, self._last_read = now, self._reads
        self._next, self._gap = self._reads + self._gap, min(2 * self._gap, _MOST_READS)
        return now
