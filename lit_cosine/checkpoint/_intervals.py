"""When a checkpoint is due: by optimizer steps, by time and by epochs."""

from __future__ import annotations

import time
from datetime import timedelta

from lit_cosine._checks import as_integer, shown
from lit_cosine.schedules import Duration

__all__ = ["Intervals"]


class Intervals:
    """The intervals between checkpoints, and what has passed since the last one."""

    def __init__(self, steps: int | None, seconds: str | timedelta | None, epochs: int) -> None:
        self._steps = None if steps is None else as_integer("every_n_train_steps", steps, least=1)
        self._epochs = as_integer("every_n_epochs", epochs, least=1)
        self._seconds = _seconds(seconds)
        self.due = False
        self._step = 0
        self._saved_at = 0.0

    def begin(self, step: int) -> None:
        """Begin at the optimizer step ``step``."""
        self._step = step
        self.saved()

    def saved(self) -> None:
        """Note that a checkpoint was saved."""
        self.due, self._saved_at = False, time.monotonic()

    def after_batch(self, step: int) -> bool:
        """Note that training is at the optimizer step ``step``; return whether the last batch made an update."""
        if step == self._step:
            return False
        self.due |= self._steps is not None and step // self._steps > self._step // self._steps
        self._step = step
        return True

    def after_epoch(self, epochs: int, max_epochs: int | None) -> None:
        """Note that ``epochs`` epochs are done; after the last one a checkpoint is always due."""
        self.due |= epochs % self._epochs == 0 or epochs == max_epochs

    def elapsed(self) -> bool:
        """Return whether the time has passed."""
        return self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds


def _seconds(interval: str | timedelta | None) -> float | None:
    if interval is None:
        return None
    if isinstance(interval, timedelta):
        seconds = interval.total_seconds()
    else:
        duration = Duration.parse(interval, "train_time_interval")
        seconds = duration.value if duration.unit == "s" else 0.0
    if seconds <= 0.0:
        raise ValueError(f'train_time_interval must be a time > 0 such as "30min", got {shown(interval)}')
    return seconds
