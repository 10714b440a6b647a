"""Kills runs of 24 set-ups at random moments, and compares each with the same run that was not killed.

`python -m tests.helpers.soak FOLDER [--kills 5] [--seed 0] [--only NAME ...]` kills runs of every set-up with SIGKILL,
lets them finish, and compares every batch, LR, validation, logged point and weight. It prints a line for each set-up
and, last, all results as JSON. TMPDIR is on another file system than the checkpoints.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_cosine import ExactResume, LearningRateLogger
from tests.helpers.resumable import Own, OwnData, Trace, build, weights


class Logging(Own):
    """Logs in every way, and draws random numbers in validation too."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        super().validation_step((x + torch.randn(x.shape), y), batch_idx)


class StatefulData(OwnData):
    def train_dataloader(self):
        return StatefulDataLoader(self.rows, 10, shuffle=True)

    def state_dict(self):
        return {}


class PlainValidation(OwnData):
    """Validates with a loader that draws its seed from torch's global generator."""

    def val_dataloader(self):
        return DataLoader(self.held_out, 5, shuffle=True)


class Validations(pl.Callback):
    """Writes every validation's loss into the trace."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero and not trainer.sanity_checking:
            row = ["validation", trainer.fit_loop.epoch_loop.total_batch_idx + 1]
            row.append(float(trainer.callback_metrics["val/loss"]))
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


IN_EPOCH = {"val_check_interval": 0.34}
ACROSS = {"check_val_every_n_epoch": None}
DDP = {"devices": 2, "strategy": "ddp_fork"}
SETUPS = {
    "article": {"road": "module"},
    "article, accumulate 4": {"road": "module", "accumulate": 4},
    "article, two workers": {"road": "module", "workers": 2},
    "callback": {},
    "callback, accumulate 4": {"accumulate": 4},
    "callback, accumulate 5, two workers": {"accumulate": 5, "workers": 2},
    "validation in the epoch": IN_EPOCH,
    "validation in the epoch, accumulate 2": {**IN_EPOCH, "accumulate": 2},
    "validation every 4 batches": {**ACROSS, "val_check_interval": 4},
    "validation every 8 batches, accumulate 2": {**ACROSS, "val_check_interval": 8, "accumulate": 2},
    "validation every other epoch": {"check_val_every_n_epoch": 2},
    "validation with a shuffled loader": {**IN_EPOCH, "data": PlainValidation},
    "no validation": {"limit_val_batches": 0},
    "sanity check": {"num_sanity_val_steps": 2},
    "max_steps": {"max_steps": 14},
    "max_steps, endless epochs": {"max_steps": 14, "max_epochs": -1},
    "reloaded, limited loader": {"limit_train_batches": 4, "reload_dataloaders_every_n_epochs": 1},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "clipped gradients": {"gradient_clip_val": 0.1},
    "checkpoints every 4 steps": {"checkpoints": {"every_n_train_steps": 4}},
    "checkpoints at the ends of epochs": {"checkpoints": {}},
    "StatefulDataLoader": {"data": StatefulData, **IN_EPOCH},
    "two processes": DDP,
    "two processes, accumulate 2, validation in the epoch": {**DDP, "accumulate": 2, **IN_EPOCH},
}


def train(folder, pause, setup):
    """Start or resume the run of ``folder``; its rows go into the file trace, its final weights into done."""
    setup = {"checkpoints": {"every_n_train_steps": 1}, "data": OwnData, **setup}
    kept, data_class, trace = setup.pop("checkpoints"), setup.pop("data"), folder / "trace"
    started = any((folder / "checkpoints").glob("*.ckpt"))
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    os.environ.pop("MASTER_PORT", None)  # of the process that this one was forked from
    setup |= {"logger": logger, "log_every_n_steps": 1, "checkpoints": ExactResume(folder / "checkpoints", **kept)}
    watching = [Validations(trace), LearningRateLogger()]
    trainer, model, data = build(folder, trace=Trace(trace, pause), callbacks=watching, **setup)
    if "road" not in setup:
        model, data = Logging(), data_class(data.workers, data.batch_size)
    trainer.fit(model, data, ckpt_path="last" if started else None, weights_only=True if started else None)
    if trainer.is_global_zero:
        (folder / "done").write_text(weights(model))


def forked(folder, pause, setup):
    """Run in a forked process group, which needs no second to import; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            with (folder / "log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                train(folder, pause, dict(setup))
                os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return pid


def rows_of(folder):
    path = folder / "trace"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("]")]


def points_of(folder):
    """Return the scalars on the disk: (tag, step) -> the different values that were written."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    points = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            points.setdefault((tag, event.step), set()).add(event.value)
    return points


def kill(folder, setup, chance, pause=0.01):
    """Start the run and kill it at a random moment; return whether it was killed rather than finished."""
    pid = forked(folder, pause, setup)
    rows = chance.randrange(4)
    wanted, deadline = len(rows_of(folder)) + rows, time.monotonic() + 120
    while rows and len(rows_of(folder)) < wanted and not (folder / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    # with no row to wait for, somewhere in the set-up; else somewhere in an update, a validation or a write
    time.sleep(chance.uniform(0.0, 0.02 if rows else 0.3))
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # before its setpgid, or it has ended
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the run failed by itself:\n{(folder / 'log').read_text()[-3000:]}")
    return os.WIFSIGNALED(status)


def soak(folder, setup, kills, chance):
    """Kill runs of one set-up ``kills`` times; return how many runs that took, and what differs from the whole run."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    os.waitpid(forked(whole, 0.0, setup), 0)
    if not (whole / "done").exists():
        raise RuntimeError((whole / "log").read_text()[-3000:])
    made, runs, differ = 0, 0, []
    while made < kills:
        here = folder / f"run-{runs}"
        here.mkdir()
        before = made
        while made < kills and kill(here, setup, chance):
            made += 1
            if made - before >= 6:
                break
        if not (here / "done").exists():
            os.waitpid(forked(here, 0.0, setup), 0)
        runs += 1
        seen, rows = rows_of(here), rows_of(whole)
        points, expected = points_of(here), points_of(whole)
        found = {
            "weights": (here / "done").exists() and (here / "done").read_text() == (whole / "done").read_text(),
            "batches, LR and validations": all(row in rows for row in seen) and all(row in seen for row in rows),
            "logged points": points == expected,
        }
        differ += [f"run {runs - 1}: {name}" for name, same in found.items() if not same]
    return {"kills": made, "runs": runs, "differ": differ}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=5, help="kills of each set-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SETUPS, default=list(SETUPS))
    options = parser.parse_args()
    os.environ["TMPDIR"] = "/dev/shm"
    warnings.simplefilter("ignore")
    results = {}
    for number, name in enumerate(options.only):
        chance = random.Random(f"{options.seed} {name}")
        results[name] = soak(options.folder / str(number), SETUPS[name], options.kills, chance)
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
