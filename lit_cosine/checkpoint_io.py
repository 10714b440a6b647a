"""Checkpoint files that a crash cannot break and a stranger cannot abuse: how they are written, read and found.

Convention: a file is written beside its target, synced, read back and put in place in one rename, so that a path holds
either the old checkpoint or the new one, whole. Its checksum is the zip comment of the file itself: the two cannot come
apart, and plain torch still reads the file. Reading unpickles tensors and plain data, never anything that could run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol, _load
from lightning.pytorch.utilities import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint

__all__ = [
    "LAST",
    "CheckpointError",
    "CheckpointWriteError",
    "DamagedCheckpointError",
    "SafeCheckpointIO",
    "SafeLoading",
    "check_plain",
    "link_in_place",
    "newest_intact",
    "put_in_place",
    "read_checkpoint",
    "write_checkpoint",
]

LAST = "last.ckpt"
"""The name that stands for the newest checkpoint of its folder, and falls back to an older one where it is damaged."""

_SEAL = b"lit_cosine sha256="
_SEAL_LENGTH = len(_SEAL) + 64
_ZIP_END = b"PK\5\6"
_ZIP_END_LENGTH = 22
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(ValueError):
    """A checkpoint that is refused."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is not whole, or not as it was written."""


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written, as on a full disk; what was there is untouched."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, made safe. ``ExactResume`` brings it along.

    Loading is always ``weights_only=True``, whatever ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD`` or the path's scheme says. A
    ``last.ckpt`` that is damaged falls back to the newest intact checkpoint of its folder, with a warning.

    >>> import tempfile
    >>> checkpoint_io = SafeCheckpointIO()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint_io.save_checkpoint({"state_dict": {"weight": torch.ones(1)}}, folder + "/last.ckpt")
    ...     checkpoint_io.load_checkpoint(folder + "/last.ckpt")
    {'state_dict': {'weight': tensor([1.])}}
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; see :func:`write_checkpoint`.

        Raises:
            ValueError: If ``path`` is not local: only there is a rename a rename.
            TypeError: If ``storage_options`` is given.
        """
        if storage_options is not None:
            raise TypeError(f"SafeCheckpointIO takes no storage_options, got {storage_options!r}")
        if not _is_local_file_protocol(path):
            raise ValueError(f"SafeCheckpointIO writes to local folders only, got {str(path)!r}")
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the checkpoint at ``path``; see :func:`read_checkpoint`.

        Raises:
            CheckpointError: If ``weights_only`` is False.
        """
        _refuse_trust(weights_only)
        return _read_or_fall_back(path, map_location)


class SafeLoading:
    """Gives a LightningModule or LightningDataModule a ``load_from_checkpoint`` that trusts no file; the first base.

    >>> import lightning.pytorch as pl
    >>> class Model(SafeLoading, pl.LightningModule): ...
    """

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the object whose hyperparameters and weights are in a checkpoint; ``kwargs`` replace hyperparameters.

        Args:
            checkpoint_path: A local path, an address that Lightning can read, or an open file.
            map_location: Where tensors go, as in ``torch.load``; by default where they were.
            hparams_file: A YAML file whose values take the place of the checkpoint's hyperparameters.
            strict: Whether the weights must be exactly the module's.
            weights_only: True or None, which are the same here.
            **kwargs: Further arguments of the constructor.

        Raises:
            FileNotFoundError: If there is no such file.
            CheckpointError: If the file is damaged, holds anything but tensors and plain data or says by which class
                or function it wants to be built, or ``weights_only`` is False.
        """
        _refuse_trust(weights_only)
        checkpoint = _read_or_fall_back(checkpoint_path, map_location)
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            values = checkpoint.get(key, {})
            if wanted := [name for name in ("_instantiator", "_class_path") if name in values]:
                raise CheckpointError(
                    f"checkpoint {checkpoint_path} is refused: it says by what it wants to be built "
                    f"({wanted[0]}={values[wanted[0]]!r}); {cls.__name__} is built by its constructor alone"
                )
        checkpoint.pop("hparams_type", None)  # a callable, for the hyperparameters to go through
        plain = io.BytesIO()
        torch.save(checkpoint, plain)
        plain.seek(0)
        if strict is not None:  # a DataModule knows no such argument
            kwargs["strict"] = strict
        load: Any = super()
        return load.load_from_checkpoint(plain, map_location, hparams_file, weights_only=True, **kwargs)


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write ``checkpoint`` to the local ``path`` in one rename, synced and read back.

    Args:
        checkpoint: Tensors and plain data.
        path: The target; its folder is made where it is missing.

    Raises:
        CheckpointError: If ``checkpoint`` holds something that could not be loaded again.
        CheckpointWriteError: If the file cannot be written, as on a full disk. What was at ``path`` is untouched.
    """
    path = Path(path)
    contents = bytearray(_saved(checkpoint, f"checkpoint {path}").getbuffer())
    digest = hashlib.sha256(contents).hexdigest()
    # a zip ends in the length of its comment: here 0, and the digest is taken with that 0
    seal = _SEAL + digest.encode()
    contents[-2:] = _length(seal)
    contents += seal
    with put_in_place(path) as beside:
        with beside.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        with beside.open("rb") as file:
            if not _check_seal(file, path):
                raise OSError("what was written reads back without its checksum")


@contextlib.contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """Lend a name beside ``path`` for a file to be made under, and then rename that to ``path`` in one step.

    Raises:
        CheckpointWriteError: If anything fails; what was at ``path`` is untouched and the file beside it is gone.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # left by a process that was killed
        yield beside
        os.replace(beside, path)
        _sync_folder(path.parent)
    except (OSError, CheckpointError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        before = "the one before it is untouched" if path.exists() else "no file was left there"
        raise CheckpointWriteError(f"checkpoint {path} could not be written: {reason}; {before}") from error
    # renaming one hard link over another of the same file leaves both
    beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, where the system can: the file itself is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def link_in_place(source: Path, path: Path) -> None:
    """Make ``path`` name the same contents as ``source``, in one rename and, where links exist, without a copy."""
    with put_in_place(path) as beside:
        try:
            os.link(source, beside)
        except OSError:  # FAT and some network drives have no hard links
            shutil.copyfile(source, beside)
            with beside.open("rb") as file:
                os.fsync(file.fileno())


def read_checkpoint(path: str | Path | IO[bytes], map_location: Any = "cpu") -> dict[str, Any]:
    """Return the checkpoint at ``path``: tensors and plain data, whatever else the file tries to be.

    Args:
        path: A local path, an address that Lightning can read, or an open file.
        map_location: Where tensors go, as in ``torch.load``.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedCheckpointError: If the file is not whole, or its contents do not fit its checksum.
        CheckpointError: If the file holds anything but tensors and plain data, or is no Lightning checkpoint.
    """
    checkpoint: Any
    if isinstance(path, (str, Path)) and not _is_local_file_protocol(path):
        checkpoint = _unpickled(path, lambda: _load(path, map_location=map_location, weights_only=True))
    elif isinstance(path, (str, Path)):
        try:
            file = _local(path).open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"checkpoint {path} was not found") from None
        with file:
            checkpoint = _from_file(file, path, map_location)
    else:
        checkpoint = _from_file(path, getattr(path, "name", "in memory"), map_location)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"checkpoint {path} is not one of Lightning's: it has no state_dict")
    return checkpoint


def _read_or_fall_back(path: str | Path | IO[bytes], map_location: Any) -> dict[str, Any]:
    try:
        return read_checkpoint(path, map_location)
    except DamagedCheckpointError as damage:
        if not isinstance(path, (str, Path)) or Path(path).name != LAST or not _is_local_file_protocol(path):
            raise
        return read_checkpoint(newest_intact(_local(path).parent, instead_of=damage), map_location)


def _local(path: str | Path) -> Path:
    return Path(os.fspath(path).removeprefix("file://"))


def newest_intact(folder: str | Path, instead_of: DamagedCheckpointError | None = None) -> Path:
    """Return the newest checkpoint of ``folder`` that is whole: ``last.ckpt``, else by the time of writing.

    Each damaged one on the way is named in a warning, together with the one taken instead.

    Args:
        folder: A local folder.
        instead_of: What was found wrong with ``last.ckpt``, which is then left out.

    Raises:
        FileNotFoundError: If ``folder`` holds no checkpoint, or only damaged ones.
    """
    folder = Path(folder)
    paths = sorted(
        (path for path in folder.glob("*.ckpt") if not path.name.startswith(".")),
        key=lambda path: (path.name == LAST, path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    damages = [] if instead_of is None else [str(instead_of)]
    for path in paths:
        if instead_of is not None and path.name == LAST:
            continue
        try:
            read_checkpoint(path)
        except DamagedCheckpointError as damage:
            damages.append(str(damage))
        else:
            if damages:
                rank_zero_warn(f"{'; '.join(damages)}; the newest intact one is taken instead: {path}")
            return path
    raise FileNotFoundError("; ".join(damages) or f"there is no checkpoint in {folder}") from instead_of


def check_plain(value: Any, name: str) -> None:
    """Refuse ``value`` where it holds what a checkpoint could save but never load again.

    Args:
        value: What is to be saved.
        name: What an error message calls it.

    Raises:
        CheckpointError: If ``value`` holds anything but tensors and plain data.

    >>> check_plain({"lr": 0.1, "betas": (0.9, 0.999)}, "hyperparameters")
    >>> check_plain({"folder": Path("data")}, "hyperparameters")
    Traceback (most recent call last):
    lit_cosine.checkpoint_io.CheckpointError: hyperparameters must hold only tensors and plain data ...
    """
    _saved(value, name)


def _refuse_trust(weights_only: bool | None) -> None:
    if weights_only is not None and not weights_only:
        raise CheckpointError(f"weights_only must be True, got {weights_only!r}: nothing else is loaded here")


def _saved(value: Any, name: str) -> io.BytesIO:
    """Return ``value`` as a file in memory, or refuse it where it could not be loaded again."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    if unsafe := get_unsafe_globals_in_checkpoint(buffer):
        raise CheckpointError(
            f"{name} must hold only tensors and plain data (numbers, strings, lists, dicts), or it could be saved but "
            f"never loaded again: found {', '.join(sorted(unsafe))}"
        )
    return buffer


def _from_file(file: IO[bytes], name: object, map_location: Any) -> Any:
    sealed = _check_seal(file, name)
    file.seek(0)
    return _unpickled(name, lambda: torch.load(file, map_location=map_location, weights_only=True), sealed)


def _check_seal(file: IO[bytes], name: object) -> bool:
    """Return whether ``file`` carries a checksum; refuse it where its contents do not fit."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: it is empty")
    file.seek(max(size - _ZIP_END_LENGTH - _SEAL_LENGTH, 0))
    tail = file.read()
    end = tail.rfind(_ZIP_END)
    if end >= 0 and tail[end:][_ZIP_END_LENGTH - 2 : _ZIP_END_LENGTH] != _length(tail[end + _ZIP_END_LENGTH :]):
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: its end is cut off")
    seal = tail[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        if end >= 0 and len(tail) - end - _ZIP_END_LENGTH == _SEAL_LENGTH:
            raise DamagedCheckpointError(f"checkpoint {name} is damaged: its checksum is")
        return False  # another program's, or cut off: then it is no whole zip either
    left = size - _SEAL_LENGTH - 2
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (part := file.read(min(left, 1 << 20))):
        digest.update(part)
        left -= len(part)
    digest.update(b"\0\0")
    if digest.hexdigest().encode() != seal[len(_SEAL) :]:
        raise DamagedCheckpointError(f"checkpoint {name} is damaged: its contents do not fit its checksum")
    return True


def _length(comment: bytes) -> bytes:
    """Return how a zip writes down the length of its comment."""
    return len(comment).to_bytes(2, "little")


def _unpickled(name: object, load: Callable[[], Any], sealed: bool = False) -> Any:
    """Return what ``load`` unpickles, every failure of it told in one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about pickles that it then refuses
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
            f"checkpoint {name} is damaged, or no checkpoint at all; nothing in it was run"
        ) from error
