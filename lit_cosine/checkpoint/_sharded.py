"""Checkpoints of sharded models: folders of shards, written under one rename, and checked before torch unpickles them.

Convention: a strategy that shards restores after ``setup`` and reads files itself, without a CheckpointIO. Its
``load_checkpoint`` is therefore wrapped. torch's distributed checkpoints hold pickles that torch 2.13 loads with
``pickle.load`` and ``weights_only=False`` (``FileSystemReader.read_metadata``, ``DefaultLoadPlanner.load_bytes``); each
of them is read here first by an unpickler that knows a few harmless classes only.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch.serialization import get_unsafe_globals_in_checkpoint

from lit_cosine._checks import shown
from lit_cosine._files import sync
from lit_cosine.checkpoint._checkpoint_file import CheckpointError, verify_checkpoint
from lit_cosine.checkpoint._checkpoint_io import SafeCheckpointIO

__all__ = ["check_shards", "make_files_safe", "publish_folder"]

_METADATA = ".metadata"
_MODULES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
}  # fmt: skip
"""What the index of a distributed checkpoint is made of; dtypes are allowed besides."""


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index of a distributed checkpoint, and refuses every class and function that it is not made of."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _MODULES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def check_shards(folder: Path) -> None:
    """Refuse a folder of shards that holds more than tensors and plain data, before anything of it is unpickled."""
    refused = f"checkpoint {folder} is refused: it holds more than tensors and plain data"
    try:
        with (folder / _METADATA).open("rb") as file:
            index = _IndexUnpickler(file).load()
        for key, stored in index.storage_data.items():
            if Path(stored.relative_path).name != stored.relative_path:
                raise CheckpointError(f"checkpoint {folder} is refused: a shard is outside it: {stored.relative_path}")
            if type(index.state_dict_metadata[key.fqn]).__name__ != "BytesStorageMetadata":
                continue  # a tensor, which torch loads with weights_only=True
            with (folder / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                value = io.BytesIO(file.read(stored.length))
            if unsafe := get_unsafe_globals_in_checkpoint(value):
                raise CheckpointError(f"{refused} ({', '.join(sorted(unsafe))}); nothing in it was run")
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{refused} ({error}); nothing in it was run") from error
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(f"checkpoint {folder} is incomplete: {error.filename} is missing") from error
    except Exception as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {shown(str(error))}; nothing in it was run") from error


def make_files_safe(strategy: Strategy) -> None:
    """Make ``strategy`` read and write its checkpoints safely, whole or sharded; refuse one that has its own format."""
    present = strategy.checkpoint_io
    if type(present).__name__ == "TorchCheckpointIO":  # by name: pytorch_lightning has another class of that name
        strategy.checkpoint_io = SafeCheckpointIO()
    elif not isinstance(present, SafeCheckpointIO):
        raise TypeError(f"ExactResume uses its own CheckpointIO: remove {type(present).__name__} from plugins")
    if strategy.restore_checkpoint_after_setup and "load_checkpoint" not in vars(strategy):
        if type(strategy).__name__ not in ("ModelParallelStrategy", "FSDPStrategy"):  # DeepSpeed
            raise TypeError(f"ExactResume cannot read what {type(strategy).__name__} writes")
        strategy.load_checkpoint = _checked_load(strategy)  # type: ignore[method-assign]


def _checked_load(strategy: Strategy) -> Callable[..., dict[str, Any]]:
    """Return ``strategy.load_checkpoint`` with the checks in front of it; every process makes them."""
    load = strategy.load_checkpoint

    def checked(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(strategy.broadcast(checkpoint_path))
        check_shards(path) if path.is_dir() else verify_checkpoint(path)
        # explicitly: None leaves the choice to an environment variable
        return load(path, weights_only=True)

    return checked


def publish_folder(written: Path, path: Path) -> None:
    """Bring a complete folder of shards to the disk and rename it to ``path``, in the place of an older one."""
    for part in (*written.iterdir(), written):
        sync(part)
    old = path.with_name(f".{path.name}.old.tmp")
    if path.exists():  # a rename cannot replace a folder
        path.rename(old)
    written.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)
