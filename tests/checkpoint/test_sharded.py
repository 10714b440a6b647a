"""Sharded models: two gloo processes under ModelParallelStrategy (FSDP2), and shards that would run something."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from lit_cosine.checkpoint import CheckpointError
from lit_cosine.checkpoint._checkpoint_file import link_checkpoint
from lit_cosine.checkpoint._sharded import check_shards, publish_folder

JOB = """
import json, os, signal, sys, warnings
from pathlib import Path
import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader
from torch.distributed.fsdp import fully_shard
from lit_cosine import Cosine, ExactResume, LearningRateScheduler
from tests.helpers.resumable import Own, OwnData

warnings.simplefilter("ignore")
folder, sharded, path, die = Path(sys.argv[1]), sys.argv[2] == "sharded", sys.argv[3] or None, int(sys.argv[4])

class Sharded(Own):
    def configure_model(self):
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

class Record(pl.Callback):
    def __init__(self):
        self.lrs = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))
        if trainer.global_step == die:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer, pl_module):
        whole = [parameter.full_tensor().flatten().tolist() for parameter in pl_module.parameters()]
        report = {"lrs": self.lrs, "weights": whole, "step": trainer.global_step}
        (folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(report))

if __name__ == "__main__":
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=sharded)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    callbacks = [LearningRateScheduler(Cosine()), Record(), ExactResume(folder / "c", every_n_train_steps=3)]
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy=strategy, callbacks=callbacks, **quiet)
    try:
        trainer.fit(Sharded(), OwnData(batch_size=5), ckpt_path=path)
    except FileExistsError as error:
        print("refused:", error)
"""


def job(folder, kind, path="", die=-1):
    (folder / "job.py").write_text(JOB)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    environment.pop("MASTER_PORT", None)
    command = [sys.executable, "job.py", str(folder), kind, path, str(die)]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    if die >= 0:
        process.wait(200)
        time.sleep(0.2)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the rank that has not died by itself
    out, error = process.communicate(timeout=200)
    assert die >= 0 or process.returncode == 0, error
    return out


def reports(folder):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_killed_run_of_a_sharded_model_resumes_exactly(tmp_path, kind):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    job(whole, kind)
    job(broken, kind, die=7)
    last = broken / "c" / "last.ckpt"
    assert last.is_dir() == (kind == "sharded")
    assert "refused: " in (out := job(broken, kind))
    assert "already holds a run's checkpoints" in out
    assert "c is in use" not in out
    assert not (broken / "rank-0.json").exists()
    job(broken, kind, "last")
    assert [report["step"] for report in reports(broken)] == [12, 12]
    for resumed, uninterrupted in zip(reports(broken), reports(whole), strict=True):
        assert resumed["lrs"] == uninterrupted["lrs"][-len(resumed["lrs"]) :]
        assert len(resumed["lrs"]) == 6  # from step 6
        assert resumed["weights"] == uninterrupted["weights"]
    assert not list((broken / "c").glob(".*.tmp"))


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def shards(folder, index=None, value=None, place="__0_0.distcp"):
    """Write a folder of shards that holds one number of an optimizer's."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir()
    buffer = io.BytesIO()
    torch.save(0.1 if value is None else value, buffer)
    (folder / "__0_0.distcp").write_bytes(buffer.getvalue())
    name = "optimizer_0.param_groups.0.lr"
    stored = {MetadataIndex(name): _StorageInfo(place, 0, len(buffer.getvalue()))}
    found = Metadata({name: BytesStorageMetadata()}, storage_data=stored)
    (folder / ".metadata").write_bytes(pickle.dumps(found if index is None else index))
    torch.save({"epoch": 0}, folder / "meta.pt")
    return folder


def test_harmless_shards_pass(tmp_path):
    check_shards(shards(tmp_path / "a"))


@pytest.mark.parametrize("place", ["index", "value"])
def test_shards_that_would_run_something_are_refused(tmp_path, place):
    malicious = shards(tmp_path / "a", **{place: Runs(f"touch {tmp_path}/pwned")})
    with pytest.raises(CheckpointError, match=r"a is refused: .* plain data \(posix.system\); nothing in it was run$"):
        check_shards(malicious)
    assert not (tmp_path / "pwned").exists()
    # a reader that trusts the file runs it
    path = malicious / (".metadata" if place == "index" else "__0_0.distcp")
    pickle.loads(path.read_bytes()) if place == "index" else torch.load(path, weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_incomplete_damaged_and_straying_shards_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*none is incomplete: .*metadata is missing$"):
        check_shards(tmp_path / "none")
    cut = shards(tmp_path / "cut")
    (cut / ".metadata").write_bytes((cut / ".metadata").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"checkpoint .*cut is (refused|damaged)"):
        check_shards(cut)
    with pytest.raises(CheckpointError, match=r"b is refused: a shard is outside it: \.\./a/__0_0.distcp$"):
        check_shards(shards(tmp_path / "b", place="../a/__0_0.distcp"))
    with pytest.raises(CheckpointError, match=r"checkpoint .*list is damaged"):
        check_shards(shards(tmp_path / "list", index=[1]))


def test_folders_are_replaced_and_linked_by_rename(tmp_path):
    for number in (1, 2, 3):
        written = tmp_path / ".a.ckpt.tmp"
        written.mkdir()
        (written / "shard").write_text(str(number))
        publish_folder(written, tmp_path / "a.ckpt")
        link_checkpoint(tmp_path / "a.ckpt", tmp_path / "last.ckpt")
        assert (tmp_path / "last.ckpt" / "shard").read_text() == str(number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "last.ckpt"]
