"""Kills `lit-cosine train` at random moments, resumes it, and compares it with the run that was not killed.

`python -m tests.helpers.killed_commands FOLDER [--kills 10] [--seed 0] [--only NAME ...]` prints the results as JSON:
for each set-up the number of kills and what differs from the whole run. A kill takes all processes of the command;
what it does after the last update is not compared. A run under max_time has no equal: its LR follows the clock, must
not rise, and must reach its end.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path

import torch

from lit_cosine.checkpoint import read_checkpoint
from lit_cosine.cli.main import main as command
from tests.helpers.soak import points_of

SMALL = [
    "--trainer.accelerator=cpu",
    "--data.n_samples=120",
    "--data.batch_size=12",
    "--checkpoint.every_n_train_steps=1",
]
EPOCHS = ["--trainer.max_epochs=4", "--model.interval=step"]
SETUPS = {
    "two processes": [*EPOCHS, "--trainer.devices=2", "--trainer.strategy=ddp_fork"],
    "bf16-mixed": [*EPOCHS, "--trainer.precision=bf16-mixed"],
    "max_time": ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:04", "--model.interval=step"],
}


def begin(folder, setup):
    """Start the command, or resume its run, in a forked process group; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.chdir(folder)
            os.environ.pop("MASTER_PORT", None)
            with Path("log").open("a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                torch.set_num_threads(1)
                os._exit(command(["train", "--resume"] if checkpoints(Path()) else ["train", *SMALL, *setup]))
        finally:
            traceback.print_exc()
            os._exit(1)
    return pid


def end(pid, folder):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the command ended with status {status}:\n{(folder / 'log').read_text()[-3000:]}")
    return status


def checkpoints(folder):
    return [*folder.glob("runs/*/checkpoints/last.ckpt")]


def finish(folder, setup):
    """Run the command to its end; return its last checkpoint, its points, and the seconds that it took."""
    began = time.monotonic()
    end(begin(folder, setup), folder)
    (last,) = checkpoints(folder)
    trained = ("lr-", "train/loss", "train/accuracy", "val/")
    points = {at: values for at, values in points_of(last.parents[1]).items() if at[0].startswith(trained)}
    return read_checkpoint(last), points, time.monotonic() - began


def compared(killed, whole):
    """Return what differs between a run that was killed and the whole one."""
    (last, points, _), (expected, expected_points, _) = killed, whole
    differ = [
        name for name, tensor in expected["state_dict"].items() if not torch.equal(tensor, last["state_dict"][name])
    ]
    differ += [key for key in ("epoch", "global_step", "lr_schedulers") if last[key] != expected[key]]
    made = expected["global_step"]
    return differ + [
        f"{tag} at {step}"
        for (tag, step), value in expected_points.items()
        if step < made and points.get((tag, step)) != value
    ]


def of_the_clock(killed):
    """Return what is wrong with the LRs of a run under max_time; an update that a kill took is made again, later."""
    last, points, _ = killed
    lrs = [max(points.get(("lr-Adam", step), {2.0})) for step in range(last["global_step"])]
    wrong = [
        f"update {step}: {after} after {before}"
        for step, (before, after) in enumerate(pairwise(lrs), 1)
        if after > before
    ]
    # a busy machine makes few updates in the time, so that the LR of the last one can be anywhere
    (scheduler,) = last["lr_schedulers"]
    reached, total = scheduler["step"], scheduler["total_steps"]
    return wrong + ([] if reached >= 0.95 * total else [f"ends at {reached} of {total} ms"])


def soak(folder, name, kills, chance):
    whole = folder / "whole"
    whole.mkdir(parents=True)
    expected = finish(whole, SETUPS[name])
    made, runs, differ = 0, 0, []
    while made < kills:
        here = folder / f"run-{runs}"
        here.mkdir()
        for _ in range(chance.randint(1, 4)):
            pid = begin(here, SETUPS[name])
            time.sleep(chance.uniform(0.0, 1.1 * expected[2]))
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                os.kill(pid, signal.SIGKILL)  # before its setpgid
            made += end(pid, here) != 0
        found = finish(here, SETUPS[name])
        differ += [
            f"run {runs}: {what}" for what in (of_the_clock(found) if name == "max_time" else compared(found, expected))
        ]
        runs += 1
    return {"kills": made, "runs": runs, "differ": differ}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="kills of each set-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=SETUPS, default=list(SETUPS))
    options = parser.parse_args()
    results = {}
    for number, name in enumerate(options.only):
        chance = random.Random(f"{options.seed} {name}")
        results[name] = soak(options.folder / str(number), name, options.kills, chance)
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
