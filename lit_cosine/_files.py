"""Files that are written whole or not at all, names that are not taken yet, and a lock for one writer.

Convention: a file is written under a temporary name beside its place, synced, and moved there in one rename, so that a
path holds the old contents or the new ones.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WriterLock", "new_file", "replacing", "sync"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, in a folder that is made, and move it to ``path`` in one step.

    Its name is unique, as two processes may write one path. After an error ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    beside = Path(name)
    try:
        beside.chmod(0o666 & ~_umask())  # mkstemp's files are private
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)
    finally:
        # also where two names were links of one file: renaming one over the other leaves both
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file or a folder to the disk; a system that cannot sync folders does nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():
            raise


def new_file(path: Path) -> Path:
    """Create an empty file at ``path``, or at the next numbered name such as ``curves-1.png``, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        new = path.with_stem(f"{path.stem}-{number}") if number else path
        with suppress(FileExistsError):
            new.touch(exist_ok=False)
            break
    return new


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


class WriterLock:
    """The right to write to a folder, held by one process at a time; the system releases it when the process ends.

    A POSIX record lock is not inherited by forked processes, such as loader workers, and works on NFS. Where the system
    has none every process gets it.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def acquire(self, path: Path) -> str | None:
        """Take the lock of the file ``path``, which is created and stays, or return what is known of its holder."""
        if fcntl is None:
            return None
        self.release()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
            file.seek(0)
            holder = file.read(200).strip() or "an unknown process"
            file.close()
            return holder
        except OSError:  # a file system without locks
            file.close()
            return None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._file = file
        return None

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, None]:
        # a copy holds nothing, and a file cannot be pickled
        return {"_file": None}
