"""The folder of a run's checkpoints: its names, their order, the oldest ones removed, the lock for one writer.

Convention: ``epoch=E-step=S.ckpt`` are the run's checkpoints, ``last.ckpt`` and ``best.ckpt`` further names of two of
them. Their order is the progress of training, never the time of a file, as clocks are set back. Hidden names are
temporary.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lit_cosine._checks import shown
from lit_cosine._files import WriterLock
from lit_cosine.checkpoint._checkpoint_file import link_checkpoint
from lit_cosine.checkpoint._checkpoint_io import LAST
from lit_cosine.checkpoint._sharded import publish_folder

__all__ = ["BEST", "RunFolder"]

BEST = "best.ckpt"
_NAME = re.compile(r"epoch=(\d+)-step=(\d+)\.ckpt")


class RunFolder:
    """The folder ``path`` of one run's checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = WriterLock()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.path / BEST

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint ``name``, as read from a state; refuse another name."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"a checkpoint's name must be epoch=E-step=S.ckpt, got {shown(name)}")
        return self.path / name

    def found(self) -> str | None:
        """Return the name of a checkpoint that is in the folder, if there is one."""
        return max((path.name for path in self.path.glob("*.ckpt")), default=None)

    def lock(self) -> str | None:
        """Take the folder and remove what was left half-written, or return the process that holds the folder."""
        if holder := self._lock.acquire(self.path / ".lock"):
            return holder
        for path in self.path.glob(".*.tmp"):
            _remove(path)
        return None

    def release(self) -> None:
        """Give the folder back."""
        self._lock.release()

    def temporary(self, name: str) -> Path:
        """Return where the shards of the checkpoint ``name`` are written before they are complete."""
        return self.path / f".{name}.tmp"

    def publish(self, name: str, *, sharded: bool, best: bool) -> None:
        """Give its names to a checkpoint: the shards at :meth:`temporary`, or else the file :attr:`last`."""
        path = self.path / name
        if sharded:
            publish_folder(self.temporary(name), path)
            link_checkpoint(path, self.last)
        else:
            link_checkpoint(self.last, path)
        if best:
            self.set_best(path)

    def set_best(self, path: Path) -> None:
        """Make ``best.ckpt`` a further name of the checkpoint ``path``."""
        link_checkpoint(path, self.best)

    def prune(self, keep: int, step: int, spare: str | None) -> None:
        """Remove all but ``spare`` and the newest ``keep`` checkpoints (-1: all)."""
        if keep == -1:
            return
        found = []
        for path in self.path.glob("epoch=*-step=*.ckpt"):
            if (match := _NAME.fullmatch(path.name)) and path.name != spare:
                saved = int(match[2])
                # those beyond the present step go first: they are of a run that was resumed at an earlier one
                found.append((saved <= step, saved, int(match[1]), path))
        for *_, path in sorted(found)[:-keep]:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; a folder under another name first, so that no part of it stays visible."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    hidden = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.old.tmp"))
    shutil.rmtree(hidden, ignore_errors=True)
