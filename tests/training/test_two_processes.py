"""A run that changes, in two processes: under DDP and under FSDP2, both ranks play the curve of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_cosine import Cosine

SCRIPT = """
import json, sys, time
from datetime import timedelta
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from lit_cosine import Cosine, LearningRateScheduler, lr_scheduler_config

folder, kind = sys.argv[1:]

class Net(pl.LightningModule):
    def __init__(self, way):
        super().__init__()
        self.layer, self.way, self.used = torch.nn.Linear(8, 2), way, []

    def configure_model(self):
        if kind == "fsdp2":
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        if self.trainer.max_epochs == -1:
            time.sleep(0.01 * (1 + 2 * self.global_rank))
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        self.used.append(float(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        if self.way == "callback":
            return optimizer
        return [optimizer], [lr_scheduler_config(optimizer, Cosine(), self.trainer)]

class Stop(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch == 1

def strategy():
    return "ddp" if kind == "ddp" else ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)

def fit(way, *callbacks, batch_size, ckpt_path=None, reference=None, **limits):
    own = [LearningRateScheduler(Cosine(), reference_batch_size=reference)] if way == "callback" else []
    model = Net(way)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy(), logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False, callbacks=[*own, *callbacks], **limits)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(64, 8, generator=generator), torch.randint(0, 2, (64,), generator=generator))
    trainer.fit(model, DataLoader(data, batch_size=batch_size), ckpt_path=ckpt_path)
    return trainer, model.used

found = {}
for way in ("callback", "config"):
    trainer, first = fit(way, Stop(), batch_size=4, max_epochs=4)
    trainer.save_checkpoint(f"{folder}/{way}.ckpt")
    _, second = fit(way, batch_size=8, max_epochs=4, ckpt_path=f"{folder}/{way}.ckpt")
    found[way] = [first, second]
accumulated = {"reference": 4, "max_epochs": 4, "accumulate_grad_batches": 2}
trainer, first = fit("callback", Stop(), batch_size=4, **accumulated)
trainer.save_checkpoint(f"{folder}/scaled.ckpt")
_, second = fit("callback", batch_size=8, ckpt_path=f"{folder}/scaled.ckpt", **accumulated)
found["scaled"] = [first, second]
trainer, found["timed"] = fit("callback", batch_size=4, max_epochs=-1, max_time=timedelta(seconds=1))
with open(f"{folder}/{trainer.global_rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_resume_with_another_batch_size_is_the_curve_of_one_process(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, str(script), str(tmp_path), kind], timeout=250, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]

    # 64 rows are 32 a rank: 8 updates of 4 in an epoch. 16 of 32 are done, at progress 0.5; 2 epochs of 4 are left
    first = [0.1 * Cosine()(k / 32) for k in range(16)]
    second = [0.1 * Cosine()(0.5 + 0.5 * j / 8) for j in range(8)]
    for way in ("callback", "config"):
        assert found[0][way] == [pytest.approx(first, rel=1e-12), pytest.approx(second, rel=1e-12)]
    # 4 and 8 times the reference of 4 samples: 4 × 2 accumulated × 2 devices, and 8 × 2 × 2
    first = [0.4 * Cosine()(k / 16) for k in range(8)]
    second = [0.8 * Cosine()(0.5 + 0.5 * j / 4) for j in range(4)]
    assert found[0]["scaled"] == [pytest.approx(first, rel=1e-12), pytest.approx(second, rel=1e-12)]
    timed = found[0]["timed"]
    assert len(timed) >= 5
    assert timed[0] == 0.1
    assert timed == sorted(timed, reverse=True)
    assert timed[-1] < 0.05
