"""The process around a training: its threads, its warnings, and how it ends.

Convention: an error in the input becomes an ``ArgumentError`` as long as training has not begun. A later error is one
of the program and keeps its traceback.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessRaisedException
from typing_extensions import override

from lit_cosine.checkpoint import CheckpointWriteError
from lit_cosine.cli._parser import one_sentence
from lit_cosine.cli._shell import STOPPED, Stopped, command_line

__all__ = ["TrainingBegan", "in_one_process", "quiet", "refusing", "stopping", "threads"]

_TINY = 10_000_000
"""Multiplications that one core does in about a millisecond; below it, threads wait for each other longer than that."""

_PATIENCE = 3.0
"""Seconds in which the processes of a run end by the signal that they share with this one."""

_REFUSED = (ArgumentError, MemoryError, MisconfigurationException, OSError, TypeError, ValueError)


class TrainingBegan(Callback):
    """Records in ``yes`` whether training has begun in this process."""

    def __init__(self) -> None:
        self.yes = False

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.yes = True


@contextmanager
def in_one_process(*known: type[Exception]) -> Iterator[None]:
    """Raise what ended a forked or spawned process, of which torch gives the traceback as text; stop them with this.

    Args:
        known: What else is raised as it is, and not as torch's report.
    """
    try:
        yield
    except SystemExit:
        launched = [child for child in active_children() if not child.daemon]
        for child in launched:  # Ctrl-C reaches them too; without a signal they train on, and this process waits
            child.join(_PATIENCE / len(launched))
            if child.is_alive():
                child.terminate()
        raise
    except ProcessRaisedException as error:
        name, _, message = error.msg.rstrip().rpartition("\n")[2].partition(": ")
        kind = locate(name)
        kinds: list[type[Exception]] = [FloatingPointError, CheckpointWriteError, *known]
        kinds += [] if "training_epoch_loop.py" in error.msg else [*_REFUSED[1:]]  # training had begun
        for one in kinds:
            if isinstance(kind, type) and issubclass(kind, one):
                raise one(message) from None
        raise


@contextmanager
def refusing(unless: TrainingBegan | None = None, made: Path | None = None) -> Iterator[None]:
    """Turn an error in the input into an ``ArgumentError`` of one sentence, ``unless`` training has begun.

    The run's new folder ``made`` is removed then, if it has no checkpoint, as of a training in forked processes.
    """
    try:
        yield
    except BaseException as error:
        if unless is not None and unless.yes:
            raise
        if made is not None and not any(made.glob("checkpoints/*.ckpt")):
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, _REFUSED):
            sentence = str(error)
            if isinstance(error, OSError) and error.filename:
                sentence = f"{os.fsdecode(error.filename)}: {error.strerror}"
            raise ArgumentError(None, one_sentence(sentence)) from error
        raise


@contextmanager
def stopping(run: str | Path) -> Iterator[None]:
    """Say why a run stopped, and which command continues it."""
    try:
        yield
    except SystemExit as stop:
        if stop.code in STOPPED and any(Path(run, "checkpoints").glob("*.ckpt")):
            raise Stopped(int(stop.code), f"continue with: {command_line('train', '--resume', run)}") from None
        raise
    except (FloatingPointError, CheckpointWriteError) as error:
        raise SystemExit(f"lit-cosine train: {one_sentence(str(error))}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what Lightning says of every run of this command and what requires nothing of its user."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "torch.multiprocessing.spawn")
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.* is deprecated")
        for logger in loggers:
            logger.addFilter(_is_news)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether it is not that training ended, which another line says, or that processes end with the first."""
    return not record.getMessage().startswith(("`Trainer.fit` stopped: `max_epochs=", "Terminating process"))


@contextmanager
def threads(number: int | None, trainer: Trainer, model: LightningModule, batch_size: int) -> Iterator[None]:
    """Train with ``number`` threads; where None, with one if waking the others takes longer than their work."""
    before = torch.get_num_threads()
    if number is None:
        work = batch_size * sum(parameter.numel() for parameter in model.parameters())
        on_cpu = trainer.strategy.root_device.type == "cpu"
        number = 1 if on_cpu and work < _TINY and "OMP_NUM_THREADS" not in os.environ else before
        if number < before:
            rank_zero_only(print)(
                f"Using 1 of {before} CPU threads: the batch is too small to benefit (override with --threads)"
            )
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
