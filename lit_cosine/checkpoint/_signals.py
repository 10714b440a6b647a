"""Signals that ask a run to stop or to be requeued: recorded at once, acted on between two updates.

Convention: SIGTERM and Ctrl-C ask the run to stop, SLURM's requeue signal to be requeued. A second stop signal is
passed to the previous handler at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

__all__ = ["Signals"]


class Signals:
    """What this process was asked to do since :meth:`listen`."""

    def __init__(self) -> None:
        self.stop_asked = 0
        self.requeue_asked = False
        self._requeue_signal: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self, trainer: Trainer) -> None:
        """Install handlers in place of Lightning's, which act at once, even in the middle of an update."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.forget()
        requeue = getattr(getattr(trainer.strategy, "cluster_environment", None), "requeue_signal", None)
        self._take(signal.SIGTERM, self._stop)
        self._take(signal.SIGINT, self._stop)
        requeue = requeue or getattr(signal, "SIGUSR1", None)  # Windows has none
        # Lightning installs a handler for this signal under SLURM only
        if requeue is not None and callable(signal.getsignal(requeue)):
            self._requeue_signal = requeue
            self._take(requeue, self._ask_requeue)

    def forget(self) -> None:
        """Restore the previous handlers, except where Lightning's teardown has restored older ones."""
        for signum, handler in self._before.items():
            if signal.getsignal(signum) in (self._stop, self._ask_requeue):
                signal.signal(signum, handler)
        self._before.clear()
        self.stop_asked, self.requeue_asked = 0, False

    def requeue(self) -> None:
        """Call Lightning's own handler, which saves its checkpoint and asks SLURM to requeue the job."""
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
