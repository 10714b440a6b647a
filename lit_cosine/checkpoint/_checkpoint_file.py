"""The checkpoint file: written atomically, sealed with a checksum, read as tensors and plain data.

Convention: the file is what ``torch.save`` writes, and its SHA-256 is the comment of that zip archive. Contents and
checksum are thus one file, and plain torch can still read it. Reading never unpickles anything that could run code.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
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


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write ``checkpoint`` to the local ``path`` in one rename, synced and verified.

    Raises:
        CheckpointError: If ``checkpoint`` holds something that could not be loaded again.
        CheckpointWriteError: If the file cannot be written. The file at ``path`` is then unchanged.
    """
    path = Path(path)
    contents = bytearray(_saved(checkpoint, f"checkpoint {path}").getbuffer())
    # the digest is taken while the length of the comment is still 0, as torch.save wrote it
    seal = _SEAL + hashlib.sha256(contents).hexdigest().encode()
    contents[-2:] = _comment_length(seal)
    contents += seal
    with _replacing_checkpoint(path) as temporary:
        temporary.write_bytes(contents)
        with temporary.open("rb") as file:
            if not _check_seal(file, path):
                raise OSError("the file was written but reads back without its checksum")


def link_checkpoint(source: Path, path: Path) -> None:
    """Make ``path`` a second name of the file ``source``, in one rename; a copy where there are no hard links.

    Raises:
        CheckpointWriteError: If that fails. The file at ``path`` is then unchanged.
    """
    with _replacing_checkpoint(path) as temporary:
        temporary.unlink()  # a link cannot take the place of a file
        try:
            os.link(source, temporary)
        except OSError:  # FAT and some network file systems have no hard links
            shutil.copyfile(source, temporary)


@contextmanager
def _replacing_checkpoint(path: Path) -> Iterator[Path]:
    """Yield a temporary name that becomes ``path``; every failure is a CheckpointWriteError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, CheckpointError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        before = "the previous file is unchanged" if path.exists() else "no file was left there"
        raise CheckpointWriteError(f"checkpoint {path} could not be written: {reason}; {before}") from error


def read_checkpoint(path: str | Path | IO[bytes], map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint at ``path`` as tensors and plain data.

    Args:
        path: A local path, an address that Lightning can read, or an open file.
        map_location: Device of the tensors, as in ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If the file is incomplete, or its contents do not match its checksum.
        CheckpointError: If the file holds anything but tensors and plain data, or is not a Lightning checkpoint.
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
    if not isinstance(path, (str, Path)):
        return _from_file(path, getattr(path, "name", "in memory"), map_location)
    if not is_local(path):
        from_address = partial(TorchCheckpointIO().load_checkpoint, path, map_location, weights_only=True)
        return _unpickled(path, from_address)
    try:
        file = local_path(path).open("rb")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"checkpoint {path} was not found") from None
    with file:
        return _from_file(file, path, map_location)


def verify_checkpoint(path: Path) -> None:
    """Refuse a local file that :func:`read_checkpoint` would refuse, without loading its tensors.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or holds anything but tensors and plain data.
    """
    try:
        with path.open("rb") as file:
            _check_seal(file, path)
            file.seek(0)
            unsafe = _unpickled(path, lambda: get_unsafe_globals_in_checkpoint(file))
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"checkpoint {path} was not found") from None
    if unsafe:
        raise CheckpointError(
            f"checkpoint {path} is refused: it holds more than tensors and plain data ({', '.join(sorted(unsafe))}); "
            "nothing in it was run"
        )


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


def check_plain(value: Any, name: str) -> None:
    """Refuse ``value`` if it holds something that a checkpoint could save but never load again.

    Raises:
        CheckpointError: If ``value`` holds anything but tensors and plain data.

    >>> check_plain({"lr": 0.1, "betas": (0.9, 0.999)}, "hyperparameters")
    >>> check_plain({"folder": Path("data")}, "hyperparameters")
    Traceback (most recent call last):
    lit_cosine.checkpoint._checkpoint_file.CheckpointError: hyperparameters must hold only tensors and plain data ...
    """
    _saved(value, name)


def _saved(value: Any, name: str) -> io.BytesIO:
    """Return ``value`` as a file in memory, or refuse it if it could not be loaded again."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    if unsafe := get_unsafe_globals_in_checkpoint(buffer):
        raise CheckpointError(
            f"{name} must hold only tensors and plain data (numbers, strings, lists, dicts); this could be saved but "
            f"never loaded again: {', '.join(sorted(unsafe))}"
        )
    return buffer


def _from_file(file: IO[bytes], name: object, map_location: Any) -> Any:
    sealed = _check_seal(file, name)
    file.seek(0)
    return _unpickled(name, lambda: torch.load(file, map_location=map_location, weights_only=True), sealed)


def _check_seal(file: IO[bytes], name: object) -> bool:
    """Return whether ``file`` carries a checksum; refuse it if its contents do not match."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: it is empty")
    file.seek(max(size - _ZIP_END_LENGTH - _SEAL_LENGTH, 0))
    tail = file.read()
    end = tail.rfind(_ZIP_END)
    if end >= 0 and tail[end:][_ZIP_END_LENGTH - 2 : _ZIP_END_LENGTH] != _comment_length(tail[end + _ZIP_END_LENGTH :]):
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: its end is missing")
    seal = tail[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        if end >= 0 and len(tail) - end - _ZIP_END_LENGTH == _SEAL_LENGTH:
            raise DamagedCheckpointError(f"checkpoint {name} is damaged: its checksum is unreadable")
        return False  # written by another program; if it is truncated, torch.load will find no zip archive
    left = size - _SEAL_LENGTH - 2
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    digest.update(b"\0\0")  # the length of the comment when the digest was taken
    if digest.hexdigest().encode() != seal[len(_SEAL) :]:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: its contents do not match its checksum")
    return True


def _comment_length(comment: bytes) -> bytes:
    """Return the length of a zip comment as the archive records it."""
    return len(comment).to_bytes(2, "little")


def _unpickled(name: object, load: Callable[[], Any], sealed: bool = False) -> Any:
    """Return what ``load`` unpickles; every failure is one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old pickle formats that it then refuses
            return load()
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint {name} was not found") from None
    except OSError as error:
        raise DamagedCheckpointError(f"checkpoint {name} could not be read: {error}") from error
    except Exception as error:
        found = _GLOBAL.search(str(error))
        if found or "TorchScript" in str(error) or (isinstance(error, UnpicklingError) and sealed):
            what = f" ({found[1]})" if found else ""
            raise CheckpointError(
                f"checkpoint {name} is refused: it holds more than tensors and plain data{what}; nothing in it was run"
            ) from error
        raise DamagedCheckpointError(
            f"checkpoint {name} is damaged or not a checkpoint; nothing in it was run"
        ) from error
