"""Signals that ask a run to end or to be requeued: heard at once, answered between two updates.

Convention: SIGTERM and Ctrl-C ask for an end, SLURM's requeueing signal for a requeue; a second one does not wait.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Signals"]


class Signals:
    """What has been asked of this process, while it listens.

    >>> signals = Signals()
    >>> signals.stop_asked, signals.requeue_asked
    (0, False)
    """

    def __init__(self) -> None:
        self.stop_asked = 0
        self.requeue_asked = False
        self._requeue_signal: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self, trainer: Any) -> None:
        """Take the signals over from Lightning, which would answer them wherever the run is."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.forget()
        requeue = getattr(getattr(trainer.strategy, "cluster_environment", None), "requeue_signal", None)
        self._take(signal.SIGTERM, self._stop)
        self._take(signal.SIGINT, self._stop)
        requeue = requeue or getattr(signal, "SIGUSR1", None)  # Windows has none
        if requeue is not None and callable(signal.getsignal(requeue)):
            self._requeue_signal = requeue
            self._take(requeue, self._ask_requeue)

    def forget(self) -> None:
        """Give the signals back to whom they were taken from."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
        self.stop_asked, self.requeue_asked = 0, False

    def requeue(self) -> None:
        """Have Lightning save its own checkpoint and ask SLURM, now that nothing is under way."""
        self.requeue_asked = False
        if self._requeue_signal is not None and callable(handler := self._before.get(self._requeue_signal)):
            handler(self._requeue_signal, None)

    def _take(self, signum: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[signum] = signal.getsignal(signum)
        signal.signal(signum, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.stop_asked and callable(before := self._before[signum]):
            before(signum, frame)
        self.stop_asked = signum

    def _ask_requeue(self, signum: int, frame: FrameType | None) -> None:
        self.requeue_asked = True
