"""Lightning's interface to checkpoint files: safe reading and writing, and the newest intact file of a folder.

Convention: loading is always ``weights_only=True``, regardless of environment variables and of the path's scheme.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_cosine._checks import shown
from lit_cosine._compat import is_local
from lit_cosine.checkpoint._checkpoint_file import (
    CheckpointError,
    DamagedCheckpointError,
    local_path,
    progress_of,
    read_checkpoint,
    read_plain,
    write_checkpoint,
)

__all__ = ["LAST", "SafeCheckpointIO", "SafeLoading", "read_newest"]

LAST = "last.ckpt"
"""The name of the newest checkpoint of its folder; reading it falls back to an older one if it is damaged."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoints safely. ``ExactResume`` installs it.

    A ``last.ckpt`` that is damaged falls back to the newest intact checkpoint of its folder, with a warning.

    >>> import tempfile
    >>> checkpoint_io = SafeCheckpointIO()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint_io.save_checkpoint({"state_dict": {"weight": torch.ones(1)}}, folder + "/last.ckpt")
    ...     checkpoint_io.load_checkpoint(folder + "/last.ckpt")
    {'state_dict': {'weight': tensor([1.])}}
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError(f"SafeCheckpointIO takes no storage_options, got {shown(storage_options)}")
        if not is_local(path):  # elsewhere a rename is not atomic
            raise ValueError(f"SafeCheckpointIO writes to local folders only, got {shown(str(path))}")
        write_checkpoint(checkpoint, local_path(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        _check_weights_only(weights_only)
        # lightning 2.6.6: the workers of ddp_fork and ddp_spawn hand back bare weights in a file of this name
        if Path(path).name == ".temp.ckpt":
            return dict(read_plain(path, map_location))
        return _read_or_fall_back(path, map_location)


class SafeLoading:
    """Gives a LightningModule or LightningDataModule a safe ``load_from_checkpoint``. Must be the first base class.

    >>> import lightning.pytorch as pl
    >>> class Model(SafeLoading, pl.LightningModule): ...
    """

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes] | dict[str, Any],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the object with the hyperparameters and weights of a checkpoint, with Lightning's own arguments.

        ``checkpoint_path`` may also be a checkpoint that ``SafeCheckpointIO`` has read; ``kwargs`` replace
        hyperparameters.

        Raises:
            FileNotFoundError: If there is no such file.
            CheckpointError: If the file is damaged, holds anything but tensors and plain data or names the class or
                function to build it with, or if ``weights_only`` is False.
        """
        _check_weights_only(weights_only)
        if isinstance(checkpoint_path, dict):
            checkpoint, source = dict(checkpoint_path), "in memory"
        else:
            checkpoint, source = _read_or_fall_back(checkpoint_path, map_location), str(checkpoint_path)
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            values = checkpoint.get(key, {})
            # LightningCLI's entries, by which Lightning would import and call what the file names
            for name in ("_instantiator", "_class_path"):
                if name in values:
                    raise CheckpointError(
                        f"checkpoint {source} is refused: it names what to build it with "
                        f"({name}={shown(values[name])}); {cls.__name__} is built by its constructor only"
                    )
        checkpoint.pop("hparams_type", None)  # a callable that Lightning would pass the hyperparameters to
        plain = io.BytesIO()
        torch.save(checkpoint, plain)
        plain.seek(0)
        if strict is not None:  # a DataModule has no such argument
            kwargs["strict"] = strict
        load: Any = super()
        return load.load_from_checkpoint(plain, map_location, hparams_file, weights_only=True, **kwargs)


def read_newest(
    folder: str | Path, instead_of: DamagedCheckpointError | None = None, map_location: Any = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """Return the newest undamaged checkpoint of ``folder``: ``last.ckpt``, else the one with the most progress.

    Progress is the epoch and step in the file itself, as the times of files are no order. A warning names the damaged.
    """
    folder = Path(folder)
    paths = sorted(
        (path for path in folder.glob("*.ckpt") if not path.name.startswith(".")),
        key=lambda path: (path.name == LAST, progress_of(path), path.name),
        reverse=True,
    )
    damages = [] if instead_of is None else [str(instead_of)]
    for path in paths:
        if instead_of is not None and path.name == LAST:
            continue
        try:
            checkpoint = read_checkpoint(path, map_location)
        except DamagedCheckpointError as damage:
            damages.append(str(damage))
        else:
            if damages:
                rank_zero_warn(f"{'; '.join(damages)}; using the newest intact checkpoint instead: {path}")
            return path, checkpoint
    raise FileNotFoundError("; ".join(damages) or f"there is no checkpoint in {folder}") from instead_of


def _read_or_fall_back(path: str | Path | IO[bytes], map_location: Any) -> dict[str, Any]:
    """Return the checkpoint at ``path``, or the newest intact one beside it if it is a damaged ``last.ckpt``."""
    try:
        return read_checkpoint(path, map_location)
    except DamagedCheckpointError as damage:
        if not isinstance(path, (str, Path)) or Path(path).name != LAST or not is_local(path):
            raise
        return read_newest(local_path(path).parent, damage, map_location)[1]


def _check_weights_only(weights_only: bool | None) -> None:
    if weights_only is not None and not weights_only:
        raise CheckpointError(f"weights_only must be True, got {shown(weights_only)}: other loading is not supported")
