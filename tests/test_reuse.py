"""The same names in other people's set-ups: callbacks in the other namespace, two processes; see test_projects.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from torch import Tensor, nn

from lit_cosine import Cosine, LearningRateScheduler
from tests.helpers.nets import Net, trainer

# 2026-11, pytorch_lightning 2.6.6 on torch 2.13: the second namespace repeats the first one's import-time warnings
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")


class OtherNet(pytorch_lightning.LightningModule):
    """Net, in a project that imports pytorch_lightning."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.finish = lambda optimizer, run: optimizer
        self.lr, self.sgd = 0.1, {}
        self.used: list[list[float]] = []

    lrs, watch, configure_optimizers = Net.lrs, Net.watch, Net.configure_optimizers
    train_dataloader = Net.train_dataloader

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])


def expected(warmup: int) -> list[float]:
    model = Net()
    trainer(LearningRateScheduler(Cosine(end=0.1), warmup=f"{warmup}step"), max_epochs=2).fit(model)
    return model.lrs


def test_the_callback_in_the_other_namespace(tmp_path: Path) -> None:
    model, monitor = OtherNet(), LearningRateMonitor("step")
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    run = trainer(
        LearningRateScheduler(Cosine(end=0.1), warmup="2step"),
        monitor,
        cls=pytorch_lightning.Trainer,
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
    )
    run.fit(model)
    assert model.lrs == expected(2)
    assert [float(lr) for lr in monitor.lrs["lr-SGD"]] == model.lrs


def test_two_in_a_trainer_of_the_other_namespace_are_refused() -> None:
    callbacks = [LearningRateScheduler(), LearningRateScheduler()]
    with pytest.raises(ValueError, match="a Trainer takes one LearningRateScheduler"):
        trainer(*callbacks, cls=pytorch_lightning.Trainer, max_epochs=1).fit(OtherNet())


def environment(home: Path) -> dict[str, str]:
    """These tests' helpers and the package they lie beside, and nothing of the machine."""
    return {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "HOME": str(home)}


TWO_PROCESSES = """
import json, sys
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, DistributedSampler
from tests.helpers.nets import Net, rows, trainer
from lit_cosine import Cosine, LearningRateScheduler

torch.set_num_threads(1)
devices, folder = int(sys.argv[1]), sys.argv[2]

class Sharded(Net):
    def train_dataloader(self):
        # the same global batch of 8: whole in one process, rows 0::2 and 1::2 in two; Lightning's own sampler shuffles
        dataset = rows().dataset
        sampler = DistributedSampler(dataset, devices, self.trainer.global_rank, shuffle=False)
        return DataLoader(dataset, batch_size=8 // devices, sampler=sampler)

model = Sharded()
strategy = "ddp_fork" if devices == 2 else "auto"
run = trainer(LearningRateScheduler(Cosine(end=0.1), warmup="2step"), devices=devices, strategy=strategy, max_epochs=2)

class Report(Callback):
    def on_train_end(self, trainer, pl_module):
        report = {"lrs": pl_module.lrs, "weight": pl_module.layer.weight.tolist()}
        with open(f"{folder}/{devices}-{trainer.global_rank}.json", "w") as file:
            json.dump(report, file)

run.callbacks.append(Report())
run.fit(model)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_are_one(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(TWO_PROCESSES)
    for devices in (1, 2):
        command = [sys.executable, "job.py", str(devices), str(tmp_path)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment(tmp_path),
            check=False,
            timeout=140,
        )
        assert done.returncode == 0, done.stderr
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert len(one["lrs"]) == 8
    assert first["lrs"] == second["lrs"] == one["lrs"]
    assert first["weight"] == second["weight"]
    assert first["weight"][0] == pytest.approx(one["weight"][0], rel=1e-5)
