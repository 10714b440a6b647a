"""A run that is killed and resumed: `python -m tests.helpers.killed_run FOLDER` leaves the folders whole and broken.

`broken` was killed after update 11 and again, from its checkpoint of step 8, resumed to its end; `whole` was not. The
wall times at which `broken` was killed and the points that were then on disk are printed as JSON.
"""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_cosine.monitors._listener
from lit_cosine import ExactResume, LearningRateLogger
from lit_cosine.dashboard import Dashboard
from tests.helpers.resumable import build

SECONDS = 0.2


class Dies(Callback):
    """Kills its process after an update, once the callbacks before it have done what they do."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.11)
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, *callbacks, resume=None):
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    watch = [LearningRateLogger(loss_tag="train/loss_step"), Dashboard(every_n_steps=1), *callbacks]
    checkpoints = ExactResume(folder / "checkpoints", every_n_train_steps=4)
    arguments = {"checkpoints": checkpoints, "logger": logger, "log_every_n_steps": 1}
    run, model, data = build(folder, "module", callbacks=watch, **arguments)
    run.fit(model, data, ckpt_path=resume, weights_only=True if resume else None)


def forked(*arguments, **options):
    """Train in a process of its own, which needs no second to import."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train(*arguments, **options)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def main(folder):
    warnings.simplefilter("ignore")
    lit_cosine.monitors._listener._SECONDS = SECONDS
    assert forked(folder / "whole") == 0
    assert os.WIFSIGNALED(forked(folder / "broken", Dies(11)))
    left = EventAccumulator(str(folder / "broken"), size_guidance={"scalars": 0}).Reload()
    print(json.dumps([event.step for event in left.Scalars("lr-Adam")]))
    assert forked(folder / "broken", resume="last") == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
