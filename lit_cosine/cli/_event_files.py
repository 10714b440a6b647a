"""The logger of ``lit-cosine train``: TensorBoard's, whose files may end before the run does.

Convention: an event file that cannot be written, on a full disk or in a folder that was removed, is reported once. What
ends a run is a checkpoint that cannot be written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_cosine._checks import shown

__all__ = ["SteadyTensorBoardLogger", "quiet_writers"]


class SteadyTensorBoardLogger(TensorBoardLogger):
    """A TensorBoardLogger that warns once where its files cannot be written, and then writes nothing."""

    _ended = False

    @override
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._unless_ended(super().log_metrics, metrics, step)

    @override
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        self._unless_ended(super().log_hyperparams, params, metrics, step)

    @override
    def save(self) -> None:
        self._unless_ended(super().save)

    @override
    def finalize(self, status: str) -> None:
        self._unless_ended(super().finalize, status)

    def _unless_ended(self, write: Callable[..., None], *arguments: Any) -> None:
        if self._ended:
            return
        try:
            write(*arguments)
        except (OSError, ValueError) as error:  # Lightning raises its own ValueError from any error of log_metrics
            self._ended = True
            reason = shown(str(error.__cause__ or error))
            rank_zero_warn(f"{self.log_dir}: event files end here, and training continues: {reason}")


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Suppress the traceback of TensorBoard's writing thread: the error is raised again by the next call to write."""
    hook = threading.excepthook

    def unless_file(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            hook(arguments)

    threading.excepthook = unless_file
    try:
        yield
    finally:
        threading.excepthook = hook
