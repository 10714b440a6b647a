"""The folder of a run: order by progress, one writer, nothing half-written left, and copies of the callback."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from lit_cosine import ExactResume
from lit_cosine.checkpoint import read_checkpoint, read_newest, write_checkpoint
from tests.helpers.resumable import BATCHES, build


def named(folder):
    return sorted(path.name for path in folder.glob("epoch=*.ckpt"))


def test_clock_that_was_set_back_changes_neither_what_stays_nor_the_fallback(tmp_path):
    folder = tmp_path / "checkpoints"

    def train(epochs, path=None):
        run, model, data = build(tmp_path, checkpoints=ExactResume(folder, monitor=None), max_epochs=epochs)
        run.fit(model, data, ckpt_path=path)

    train(2)
    for path in folder.glob("*.ckpt"):
        os.utime(path, (time.time() + 3600,) * 2)
    train(5, "last")
    assert named(folder) == [f"epoch={epoch}-step={(epoch + 1) * BATCHES}.ckpt" for epoch in (3, 4)]
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1])  # the newest is a link to it
    with pytest.warns(UserWarning, match=r"epoch=4-step=30.ckpt is damaged.* instead: .*epoch=3-step=24.ckpt"):
        assert read_newest(folder)[0].name == "epoch=3-step=24.ckpt"


def test_checkpoints_beyond_the_one_resumed_from_are_removed_first(tmp_path):
    folder = tmp_path / "checkpoints"
    run, model, data = build(tmp_path, max_epochs=1)
    run.fit(model, data)
    checkpoints = ExactResume(folder, every_n_train_steps=1, monitor=None)

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 4:
                assert named(folder) == ["epoch=0-step=3.ckpt", "epoch=0-step=4.ckpt"]

    run, model, data = build(tmp_path, checkpoints=checkpoints, callbacks=[Look()], max_epochs=1)
    run.fit(model, data, ckpt_path=folder / "epoch=0-step=2.ckpt")
    assert named(folder) == ["epoch=0-step=5.ckpt", "epoch=0-step=6.ckpt"]


HOLDS = """
import os, sys, time
from lightning.pytorch import Callback
from lit_cosine import ExactResume
from tests.helpers.resumable import build

class Waits(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            open(os.path.join(sys.argv[1], "checkpoints", ".half.ckpt.x.tmp"), "w").close()
            print("waiting", flush=True)
            time.sleep(600)

run, model, data = build(sys.argv[1], callbacks=[Waits()])
run.fit(model, data)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
@pytest.mark.slow
def test_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "checkpoints"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    first = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert "waiting\n" in first.stdout
        before = read_checkpoint(folder / "last.ckpt")["global_step"]
        run, model, data = build(tmp_path)
        message = (
            rf"checkpoints is in use: process {first.pid} on .* is writing its checkpoints there; wait for its end"
        )
        with pytest.raises(BlockingIOError, match=message):
            run.fit(model, data, ckpt_path="last")
        assert read_checkpoint(folder / "last.ckpt")["global_step"] == before
        assert (folder / ".half.ckpt.x.tmp").exists()
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        first.stdout.close()
    run, model, data = build(tmp_path)
    run.fit(model, data, ckpt_path="last")  # the lock has died with its process
    assert run.global_step == 18
    assert not list(folder.glob("*.tmp"))
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.slow
def test_two_writers_of_one_path_leave_a_whole_file(tmp_path):
    path = tmp_path / "last.ckpt"
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom lit_cosine.checkpoint import write_checkpoint\n"
        "for _ in range(30):\n"
        "    write_checkpoint({'state_dict': {'w': torch.full((30_000,), float(sys.argv[1]))}}, Path(sys.argv[2]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    write_checkpoint({"state_dict": {}}, path)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(number), str(path)], env=environment) for number in (1, 2)
    ]
    end = time.monotonic() + 200
    try:
        while any(writer.poll() is None for writer in writers) and time.monotonic() < end:
            read_checkpoint(path)  # raises if it is not whole
            time.sleep(0.005)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(60)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert read_checkpoint(path)["state_dict"]["w"].unique().item() in (1.0, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Copies(Callback):
    """Copies and pickles the other callbacks in the middle of training."""

    def __init__(self, checkpoints):
        self.checkpoints, self.sizes = checkpoints, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        copied = copy.deepcopy(self.checkpoints)
        assert copied.state_dict() == self.checkpoints.state_dict()
        self.sizes.append(len(pickle.dumps(self.checkpoints)))


def test_callback_is_copied_and_pickled_before_while_and_after_training(tmp_path):
    checkpoints = ExactResume(tmp_path / "c", every_n_train_steps=1, keep=-1)
    copies = Copies(checkpoints)
    before = pickle.dumps(checkpoints)
    run, model, data = build(tmp_path, checkpoints=checkpoints, callbacks=[copies], max_epochs=2)
    run.fit(model, data)
    after = pickle.loads(pickle.dumps(checkpoints))
    assert max(copies.sizes) < 10_000
    assert after.state_dict() == checkpoints.state_dict()
    # a copy from before or after a run trains as the original
    for number, callback in enumerate((pickle.loads(before), after)):
        run, model, data = build(tmp_path / str(number), checkpoints=callback, max_epochs=2)
        run.fit(model, data, ckpt_path=tmp_path / "c" / "epoch=0-step=4.ckpt")
        assert run.global_step == 12
