"""What ``benchmark.py train``, ``startup`` and ``data`` time: one task trained in three ways, as functions and scripts.

Convention: every way trains the article's network on the article's 800 rows in batches of 64, for as many epochs, with
one intra-op thread. "Everything on" means the LR and the loss of every step in TensorBoard, validation and a checkpoint
after each epoch, and a progress bar.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from benchmark_article import BATCH, article_loop, article_rows
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lit_cosine import LearningRateLogger, LitClassifier, SimpleNN, SyntheticDataModule
from lit_cosine.monitors import SteadyProgressBar

SCRIPTS = Path(__file__).parent
PARTS = ("logger", "validation", "checkpoint", "bar")
"""What "everything" is, in the order in which the benchmark adds it."""


def article(epochs: int) -> None:
    """Train as the article does, its data made anew as in the other ways."""
    train, _, _ = article_rows()
    article_loop(train, epochs)


class Port(pl.LightningModule):
    """The article's training as Lightning's documentation would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.accuracy = SimpleNN(), MulticlassAccuracy(num_classes=2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Log the loss of every step and its mean over the epoch."""
        x, y = batch
        loss = torch.nn.functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy."""
        x, y = batch
        logits = self.network(x)
        self.accuracy(logits, y)
        self.log("val_loss", torch.nn.functional.cross_entropy(logits, y))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        """Return Adam and the article's scheduler."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs or 1)]


def port(epochs: int) -> None:
    """Train the plain port, everything on."""
    train, val, _ = article_rows()
    loaders = [DataLoader(TensorDataset(*train), batch_size=BATCH, shuffle=True)]
    loaders += [DataLoader(TensorDataset(*val), batch_size=BATCH)]
    callbacks = [LearningRateMonitor(logging_interval="step"), ModelCheckpoint(monitor="val_loss", save_last=True)]
    with _trainer(epochs, PARTS, callbacks) as trainer:
        trainer.fit(Port(), *loaders)


def ours(epochs: int, parts: tuple[str, ...] = PARTS) -> None:
    """Train with lit_cosine, with some parts on."""
    callbacks: list[pl.Callback] = []
    if "logger" in parts:
        callbacks.append(LearningRateLogger(loss_tag="train/loss_step"))
    if "checkpoint" in parts:
        monitor = "val/loss" if "validation" in parts else "train/loss"
        callbacks.append(ModelCheckpoint(monitor=monitor, save_last=True))
    if "bar" in parts:
        callbacks.append(SteadyProgressBar())  # as `lit-cosine train --trainer.enable_progress_bar true`
    with _trainer(epochs, parts, callbacks) as trainer:
        trainer.fit(LitClassifier(), SyntheticDataModule(batch_size=BATCH))


@contextlib.contextmanager
def _trainer(epochs: int, parts: tuple[str, ...], callbacks: list[pl.Callback]) -> Iterator[pl.Trainer]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(redirect(io.StringIO()))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=TensorBoardLogger(folder, max_queue=1000) if "logger" in parts else False,
            log_every_n_steps=1,
            limit_val_batches=1.0 if "validation" in parts else 0,
            num_sanity_val_steps=0,
            enable_checkpointing="checkpoint" in parts,
            enable_progress_bar="bar" in parts,
            enable_model_summary=False,
            callbacks=callbacks,
        )


def process(*arguments: str | Path) -> Callable[[], None]:
    """Return a function that runs Python with ``arguments`` in a process and a folder of its own."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "MPLBACKEND": "Agg"}
            done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, env=environment)
            if b"Traceback" in done.stderr:
                raise RuntimeError(done.stderr.decode())

    return run


def scale(rows: int) -> tuple[float, float]:
    """Return the seconds that ``SyntheticDataModule(n_samples=rows)`` takes, and its peak over the float32 bytes."""
    code = (
        "import resource, sys, time; from lit_cosine import SyntheticDataModule; rows = int(sys.argv[1])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "SyntheticDataModule().setup(); before, start = peak(), time.process_time()\n"
        "SyntheticDataModule(n_samples=rows).setup()\n"
        "print(time.process_time() - start, (peak() - before) / (rows * 20 * 4))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(rows)], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    return seconds, peak
