"""The checkpoint file: written atomically, sealed with a checksum, read as tensors and plain data.

Convention: the file is what ``torch.save`` writes, and the SHA-256 of all before it is the comment of that zip archive.
Contents and checksum are thus one file, and plain torch can still read it. Reading never unpickles anything that could
run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch.serialization import get_unsafe_globals_in_checkpoint

from lit_cosine._checks import as_integer, shown
from lit_cosine._compat import is_local
from lit_cosine._files import replacing

__all__ = [
    "CheckpointError",
    "CheckpointWriteError",
    "DamagedCheckpointError",
    "check_plain",
    "link_checkpoint",
    "local_path",
    "progress_of",
    "read_checkpoint",
    "read_plain",
    "verify_checkpoint",
    "write_checkpoint",
    "write_errors",
]

_SEAL = b"lit_cosine sha256="
_SEAL_LENGTH = len(_SEAL) + 64
# a zip archive ends with this record of 22 bytes, whose last two are the length of the comment that follows
_ZIP_END = b"PK\5\6"
_ZIP_END_LENGTH = 22
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_STRUCTURE = {
    "epoch": int,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "hyper_parameters": dict,
    "datamodule_hyper_parameters": dict,
}
"""Entries of Lightning's checkpoints, which Lightning uses without looking at their types."""


class CheckpointError(ValueError):
    """A checkpoint that is refused."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is incomplete, or that differs from what was written."""


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written, for example on a full disk; the file that was there is unchanged."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise a CheckpointWriteError where ``path`` could not be written."""
    try:
        yield
    except CheckpointWriteError:
        raise
    except (OSError, DamagedCheckpointError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        before = "the previous file is unchanged" if path.exists() else "no file was left there"
        raise CheckpointWriteError(f"checkpoint {path} could not be written: {reason}; {before}") from error


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write ``checkpoint`` to the local ``path`` in one rename, synced and verified; see :func:`check_plain`."""
    path = Path(path)
    contents = bytearray(check_plain(checkpoint, f"checkpoint {path}").getbuffer())
    contents[-2:] = _SEAL_LENGTH.to_bytes(2, "little")
    contents += _SEAL + hashlib.sha256(contents).hexdigest().encode()
    with write_errors(path), replacing(path) as temporary:
        temporary.write_bytes(contents)
        with temporary.open("rb") as file:
            if not _check_seal(file, path):
                raise OSError("the file was written but reads back without its checksum")


def link_checkpoint(source: Path, path: Path) -> None:
    """Make ``path`` a second name of the file or folder ``source`` beside it, in one rename."""
    with write_errors(path), replacing(path) as temporary:
        temporary.unlink()  # a link cannot take the place of a file
        if source.is_dir():
            temporary.symlink_to(source.name, target_is_directory=True)
            return
        try:
            os.link(source, temporary)
        except OSError:  # FAT and some network file systems have no hard links
            shutil.copyfile(source, temporary)


def read_checkpoint(path: str | Path | IO[bytes], map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint at ``path``, also an address that Lightning can read, as tensors and plain data.

    Every other file is refused by a CheckpointError, a damaged one by a DamagedCheckpointError.
    """
    checkpoint = read_plain(path, map_location)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"checkpoint {path} is not a Lightning checkpoint: it has no state_dict")
    for key, kind in _STRUCTURE.items():
        if key in checkpoint and (not isinstance(checkpoint[key], kind) or checkpoint[key] is True):
            raise CheckpointError(
                f"checkpoint {path} is refused: {key} must be of type {kind.__name__}, got {shown(checkpoint[key])}"
            )
    return checkpoint


def read_plain(path: str | Path | IO[bytes], map_location: Any = "cpu") -> Any:
    """Return the tensors and plain data at ``path``, like :func:`read_checkpoint`; any that were saved."""
    name = path if isinstance(path, (str, Path)) else getattr(path, "name", "in memory")
    with _read_errors(name):
        if not isinstance(path, (str, Path)):
            return _load(path, name, map_location)
        if not is_local(path):
            return TorchCheckpointIO().load_checkpoint(path, map_location, weights_only=True)
        with local_path(path).open("rb") as file:
            return _load(file, path, map_location)


def verify_checkpoint(path: Path) -> None:
    """Refuse a local file that :func:`read_checkpoint` would refuse, without loading its tensors."""
    with _read_errors(path), path.open("rb") as file:
        _check_seal(file, path)
        file.seek(0)
        if unsafe := get_unsafe_globals_in_checkpoint(file):
            raise CheckpointError(_refused(path, ", ".join(sorted(unsafe))))


def progress_of(path: Path) -> tuple[int, int]:
    """Return the epoch and the step in a local checkpoint; if it is damaged those in its name, or (-1, -1)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # mapped, not read: only the pickle in the archive is
            contents = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return as_integer("epoch", contents["epoch"], 0), as_integer("global_step", contents["global_step"], 0)
    except Exception:  # damaged or refused, which is reported when the file is read
        found = re.search(r"epoch=(\d{1,18})-step=(\d{1,18})", path.name)
        return (int(found[1]), int(found[2])) if found else (-1, -1)


def local_path(path: str | Path) -> Path:
    """Return the local ``path`` without the scheme ``file://``."""
    return Path(os.fspath(path).removeprefix("file://"))


def check_plain(value: Any, name: str) -> io.BytesIO:
    """Return ``value`` as ``torch.save`` writes it; refuse what could be saved but never loaded again."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    if unsafe := get_unsafe_globals_in_checkpoint(buffer):
        raise CheckpointError(
            f"{name} must hold only tensors and plain data (numbers, strings, lists, dicts); this could be saved but "
            f"never loaded again: {', '.join(sorted(unsafe))}"
        )
    return buffer


def _load(file: IO[bytes], name: object, map_location: Any) -> Any:
    _check_seal(file, name)
    file.seek(0)
    return torch.load(file, map_location=map_location, weights_only=True)


def _check_seal(file: IO[bytes], name: object) -> bool:
    """Return whether ``file`` carries a checksum; refuse it if its contents do not match."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: it is empty")
    file.seek(max(size - _ZIP_END_LENGTH - _SEAL_LENGTH, 0))
    tail = file.read()
    seal = tail[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        end = tail.rfind(_ZIP_END)
        if end >= 0 and tail[end + _ZIP_END_LENGTH - 2 :] != b"\0\0":  # torch.save alone writes no comment
            raise DamagedCheckpointError(f"checkpoint {name} is damaged: its end is missing or unreadable")
        return False  # written by another program; if it is truncated, torch.load will find no zip archive
    left = size - _SEAL_LENGTH
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    if digest.hexdigest().encode() != seal[len(_SEAL) :]:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: its contents do not match its checksum")
    return True


@contextmanager
def _read_errors(name: object) -> Iterator[None]:
    """Raise every failure to read as one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickle formats that it then refuses
            yield
    except CheckpointError:
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"checkpoint {name} was not found") from None
    except Exception as error:
        # torch 2.13 seeks to before the beginning of a truncated archive
        if isinstance(error, OSError) and error.errno != EINVAL:
            raise DamagedCheckpointError(f"checkpoint {name} could not be read: {error.strerror or error}") from error
        if (found := _GLOBAL.search(str(error))) or "TorchScript" in str(error):
            raise CheckpointError(_refused(name, found[1] if found else "")) from error
        raise DamagedCheckpointError(
            f"checkpoint {name} is damaged or not a checkpoint; nothing in it was run"
        ) from error


def _refused(name: object, what: str = "") -> str:
    held = f" ({what})" if what else ""
    return f"checkpoint {name} is refused: it holds more than tensors and plain data{held}; nothing in it was run"
