"""A job as SLURM runs it: told to be requeued in the middle of a batch, then ended, then started again."""

import os
import signal
import sys
import warnings
from pathlib import Path

from lightning.pytorch import Callback

from tests.helpers.resumable import run


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


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1:]:
        pid = os.fork()  # a process for each, which need not import everything again
        if pid == 0:
            try:
                job(name)
            except SystemExit as stop:
                os._exit(int(stop.code))
            os._exit(0)
        print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
