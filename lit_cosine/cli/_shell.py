"""What a shell gives a command, its streams and signals, made safe to use anywhere in the command.

Convention: Ctrl-C and SIGTERM raise ``Stopped``, a ``SystemExit`` with status 130 or 143, wherever the command is. A
reader that closes its pipe (``| head``) does not end the command: what is written afterwards is discarded. Neither does
a full disk that takes no more output, but the command then ends with status 1.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO, cast

__all__ = [
    "STOPPED",
    "Stopped",
    "command_line",
    "rank_zero_ended",
    "safe_streams",
    "stop_signals",
    "warnings_as_warnings",
]

STOPPED = {128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}
"""Exit status of a command that was stopped -> what stopped it."""

_PATIENCE = 30.0
"""Seconds in which rank 0 ends for the reason for which another process of its run does."""

_parent = os.getppid()  # early: rank 0 may end first
_previous: dict[int, Any] = {}


class Stopped(SystemExit):
    """The command was stopped by a signal: status 128 + its number; ``sentence`` tells what the user can do now."""

    def __init__(self, status: int, sentence: str = "") -> None:
        super().__init__(status)
        self.sentence = sentence


def command_line(*words: object) -> str:
    """Return a command to copy, with its paths quoted.

    >>> command_line("board", "my runs")
    "lit-cosine board 'my runs'"
    """
    return shlex.join(["lit-cosine", *map(str, words)])


def rank_zero_ended() -> bool:
    """Return whether this process belongs to a distributed run whose rank 0 ends too, and waits for that.

    Rank 0, the parent of the others under Lightning's launcher, gives the reason. One that ends alone gives its own.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return False
    deadline = time.monotonic() + _PATIENCE
    while os.getppid() == _parent and time.monotonic() < deadline:
        time.sleep(0.05)
    return os.getppid() != _parent


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise ``Stopped`` at Ctrl-C and SIGTERM; a signal that the shell ignores (``nohup``, ``&``) stays ignored."""
    if threading.current_thread() is not threading.main_thread() or _previous:
        yield
        return
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        raise Stopped(128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            _previous[signum] = signal.signal(signum, stop)
    try:
        yield
    except BaseException as error:
        # numpy 2.4 ignores that the import of one of its parts was interrupted, and an error follows later
        if not received or isinstance(error, SystemExit):
            raise
    finally:
        _restore()
        _previous.clear()
    if received:  # raised where exceptions are ignored, as in a destructor
        raise Stopped(128 + received[0])


def _restore() -> None:
    for signum, handler in _previous.items():
        signal.signal(signum, handler)


# a Python handler does not run while a forked process waits in C code, so that it could not be terminated
os.register_at_fork(after_in_child=_restore)


class _Stream:
    """A text stream that discards what is written after its reader has gone, or after its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        """The error that lost some output; a reader that closed its pipe is none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            if not self._stream.closed:  # a logger may keep this stream longer than the command runs
                self._stream.write(text)
        except OSError as error:
            self._discard(error)
        return len(text)

    def flush(self) -> None:
        try:
            if not self._stream.closed:
                self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        self.lost = None if isinstance(error, BrokenPipeError) else error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def warnings_as_warnings() -> Iterator[None]:
    """Undo ``PYTHONWARNINGS=error``, under which a library's own deprecation would end the command."""
    with warnings.catch_warnings():
        if any(option.startswith("error") for option in sys.warnoptions):
            warnings.simplefilter("default")
        yield


@contextmanager
def safe_streams() -> Iterator[None]:
    """Survive a closed pipe or a full disk, and replace characters that the stream's encoding does not have.

    Raises:
        SystemExit: At the end, if output was lost.
    """
    streams, safe = (sys.stdout, sys.stderr), []
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        if stream is None:  # closed by the shell: >&-
            stream = open(os.devnull, "w")  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        safe.append(_Stream(stream))
        setattr(sys, name, cast("TextIO", safe[-1]))
    try:
        yield
    finally:
        for written in safe:
            written.flush()
        sys.stdout, sys.stderr = streams
        lost = next((written.lost for written in safe if written.lost), None)
        if lost and sys.exc_info()[0] in (None, SystemExit):
            raise SystemExit(f"lit-cosine: error: the output could not be written: {lost.strerror}")
