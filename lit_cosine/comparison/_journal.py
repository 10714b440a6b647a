"""The journal of a comparison: a file of finished trainings, one JSON line each, that is only ever appended to.

Convention: the first line says which question the rows answer. A row is on the disk before it counts as finished. A
line that a crash has torn is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lit_cosine._checks import STATE_VERSION
from lit_cosine._files import WriterLock

__all__ = ["Journal", "key_of"]


def key_of(item: Mapping[str, Any]) -> str:
    """Return the key of an item of plain data.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()[:32]


class Journal:
    """Finished rows by key, in ``folder/journal.jsonl``; without a folder in memory alone.

    The folder holds the rows of this ``question``, what all have in common as plain data, or nothing; another one, and
    that of a running process, is a ValueError.
    """

    def __init__(self, folder: str | Path | None, question: Mapping[str, Any]) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None
        self._lock = WriterLock()
        if folder is None:
            return
        try:
            self._open(Path(folder), {"version": STATE_VERSION, **question})
        except ValueError:
            self._lock.release()
            raise
        except OSError as error:
            self._lock.release()
            raise ValueError(f"folder must be one that can be written to; {folder}: {error.strerror}") from None

    def _open(self, folder: Path, head: dict[str, Any]) -> None:
        path = folder / "journal.jsonl"
        if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"folder must hold this comparison or nothing; {folder} holds something else")
        folder.mkdir(parents=True, exist_ok=True)
        if holder := self._lock.acquire(folder / ".lock"):
            raise ValueError(f"folder must have one writer at a time; {holder} writes to {folder}")
        content = path.read_bytes() if path.exists() else b""
        lines = [line for line in map(_parsed, content.splitlines()) if line is not None]
        if content and (not lines or "version" not in lines[0]):
            raise ValueError(f"folder must hold this comparison or nothing; {path} cannot be read")
        if not any("key" in line for line in lines):
            content, lines = b"", []  # any question is accepted: there is no answer yet
        differing = [key for key in head if lines and json.loads(json.dumps(head[key])) != lines[0].get(key)]
        if differing:
            raise ValueError(
                f"{folder} holds a different comparison (differs in: {', '.join(differing)}); use another folder, or "
                "delete it"
            )
        self.rows = {line["key"]: line["row"] for line in lines[1:] if "key" in line}
        self._file = path.open("ab" if lines else "wb")
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
        if not lines:
            self._append(head)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row; it is on the disk when this returns."""
        self._append({"key": key, "row": row})
        self.rows[key] = row

    def _append(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.release()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
