"""Runs killed with SIGKILL at random moments end as the run that was not killed.

A few set-ups and kills here; `python -m tests.helpers.soak FOLDER` is the soak of all set-ups, some minutes long, and
`python -m tests.helpers.killed_commands FOLDER` that of `lit-cosine train`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.helpers.killed_commands import SETUPS as COMMANDS
from tests.helpers.resumable import BATCHES, EPOCHS, build
from tests.helpers.soak import SETUPS, Logging

KILLS = int(os.environ.get("LIT_COSINE_KILLS", "2"))
"""Kills of each set-up."""
FEW = [
    "callback, accumulate 4",
    "validation in the epoch, accumulate 2",
    "StatefulDataLoader",
    "max_steps",
    "two processes, accumulate 2, validation in the epoch",
]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")
@pytest.mark.parametrize(
    ("module", "names"), [("soak", FEW), ("killed_commands", list(COMMANDS))], ids=["package", "command"]
)
def test_killed_runs_end_as_the_run_that_was_not_killed(module, names, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", f"tests.helpers.{module}", str(tmp_path)]
    command += ["--kills", str(KILLS), "--seed", str(os.getpid()), "--only", *names]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert all(results[name]["kills"] >= KILLS for name in names)
    assert {name: result["differ"] for name, result in results.items() if result["differ"]} == {}


def test_the_soak_has_24_setups():
    assert len(SETUPS) == 24


class Points(DummyLogger):
    """Keeps every point, and which were there at each checkpoint."""

    def __init__(self):
        super().__init__()
        self.points, self.at_checkpoints = [], []

    def log_metrics(self, metrics, step=None):
        self.points += [(tag, step, value) for tag, value in metrics.items()]

    def after_save_checkpoint(self, checkpoint_callback):
        self.at_checkpoints.append(list(self.points))


class Plateau(Logging):
    """Reads an epoch's mean after the checkpoint of its end is written."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train/loss_epoch"}}


class Bar(pl.Callback):
    """Reads what a progress bar and a callback would show, after each epoch."""

    def __init__(self):
        self.shown = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.shown.append(dict(trainer.callback_metrics))

    on_train_end = on_train_epoch_start


@pytest.mark.parametrize("accumulate", [1, 2])
def test_points_are_logged_once_and_before_the_checkpoint_of_their_step(tmp_path, accumulate):
    def train(folder, **arguments):
        logger, bar = Points(), Bar()
        arguments |= {"logger": logger, "callbacks": [bar], "log_every_n_steps": 1, "accumulate": accumulate}
        run, _, data = build(folder, "noiseless", **arguments)
        run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "LearningRateScheduler"]
        if folder.name == "without":
            run.callbacks = [callback for callback in run.callbacks if type(callback).__name__ != "ExactResume"]
        run.fit(Plateau(noise=False), data)
        return logger, bar.shown

    (logger, shown), (without, expected) = train(tmp_path / "with"), train(tmp_path / "without")
    # in the order of Lightning, with the same values: nothing twice, nothing lost
    assert logger.points == without.points
    assert shown == expected
    steps = BATCHES // accumulate
    assert len(logger.at_checkpoints) == EPOCHS * steps
    for step, points in enumerate(logger.at_checkpoints, 1):
        tags = {tag for tag, at, _ in points if at == step - 1}
        assert "train/loss_step" in tags
        assert ("train/loss_epoch" in tags) == (step % steps == 0)
