"""A job as SLURM runs it: told to be requeued in the middle of a batch, then ended, then started again."""

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback
from resumable import run


class Requeued(Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == 3 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGUSR1)
        if trainer.global_step == 7 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGTERM)


def job(name):
    """Run in the folder ``name``; what is called requeued is."""
    folder = Path(name)
    folder.mkdir(exist_ok=True)
    run(folder, "callback", 1, callbacks=[Requeued()] if name == "requeued" else [])
