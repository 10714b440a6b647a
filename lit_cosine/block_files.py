"""The folder of a comparison: what is compared, and the blocks of it that are done.

Convention: ``comparison.json`` says what the folder is for, and nothing is read from or written to a folder that is for
something else. Files are written beside their place and moved there, so that one that is there is whole.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockFiles", "Members", "Rectangle"]

Members = NDArray[Any]
"""A structured array; its fields are what a training gives."""


@dataclass(frozen=True)
class Rectangle:
    """One block's place in the grid.

    Attributes:
        number: Its number, from 0.
        seeds: Its rows.
        arms: Its columns.
    """

    number: int
    seeds: slice
    arms: slice


@dataclass(frozen=True)
class BlockFiles:
    """Where the blocks of one comparison are kept.

    Args:
        folder: The folder; made by :meth:`claim` if it does not exist.
        description: What is compared, as plain data.
    """

    folder: Path
    description: dict[str, Any]

    def claim(self) -> str | None:
        """Write down what the folder is for; return what is wrong where it is for something else, or no folder."""
        file, text = self.folder / "comparison.json", json.dumps(self.description, indent=1, sort_keys=True)
        try:
            if file.exists():
                return self._difference(file.read_text(), json.loads(text))
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                return f"folder must hold this comparison or nothing; {self.folder} holds something else"
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(file, (text + "\n").encode())
        except OSError as error:
            return f"folder must be one that can be written to; {self.folder}: {error.strerror}"
        return None

    def read(self, blocks: Sequence[Rectangle], like: Members) -> dict[int, Members]:
        """Return the blocks that are there, by number; one that is damaged is not."""
        kept = {}
        for block in blocks:
            place = self._place(block)
            if not place.exists():
                continue
            try:
                part = np.load(place)
            except (OSError, ValueError, EOFError):
                continue
            if part.dtype == like.dtype and part.shape == like[block.seeds, block.arms].shape:
                kept[block.number] = part
        return kept

    def write(self, block: Rectangle, part: Members) -> None:
        """Keep a block."""
        self._place(block).parent.mkdir(exist_ok=True)
        _write(self._place(block), part)

    def complete(self, blocks: Sequence[Rectangle], members: Members) -> None:
        """Write the blocks that other machines have on disks of their own, and remove what killed processes left."""
        for block in blocks:
            if not self._place(block).exists():
                self.write(block, members[block.seeds, block.arms])
        for unfinished in self.folder.rglob(".unfinished-*"):
            unfinished.unlink(missing_ok=True)

    def _place(self, block: Rectangle) -> Path:
        return self.folder / "blocks" / f"{block.number:05d}.npy"

    def _difference(self, text: str, ours: dict[str, Any]) -> str | None:
        try:
            there = json.loads(text)
        except ValueError:
            there = None
        if not isinstance(there, dict):
            return f"folder must hold this comparison or nothing; {self.folder / 'comparison.json'} cannot be read"
        if differing := [key for key in ours if ours[key] != there.get(key)]:
            return (
                f"folder must hold this comparison or nothing; {self.folder} holds another, "
                f"which differs in {', '.join(differing)}"
            )
        return None


def _write(place: Path, content: bytes | Members) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".unfinished-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
