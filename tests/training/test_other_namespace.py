"""A run under ``pytorch_lightning``'s Trainer that changes: the LR is the one of the table, on both ways in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from lit_cosine import Constant, CooldownOnPlateau, Cosine, LearningRateScheduler, Linear, lr_scheduler_config
from tests.helpers.nets import rows

pytestmark = [
    pytest.mark.slow,
    # 2026-11, pytorch_lightning 2.6.6 on torch 2.13: the second namespace repeats the first one's import-time warnings
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning"),
    pytest.mark.parametrize("way", ["callback", "module"]),
]


class Net(pl.LightningModule):
    def __init__(self, way: str, schedule: Any, batches: int) -> None:
        super().__init__()
        self.layer, self.way, self.schedule, self.batches = torch.nn.Linear(3, 1), way, schedule, batches
        self.lrs: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", torch.tensor(max(1.0, 3.0 - self.current_epoch)))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.way == "callback":
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(optimizer, self.schedule, self.trainer)}

    def train_dataloader(self) -> Any:
        return rows(4 * self.batches)

    val_dataloader = train_dataloader


def fit(
    way: str, schedule: Any, *callbacks: Any, batches: int = 8, ckpt_path: Any = None, max_epochs: int = 4
) -> tuple[Any, list[float]]:
    model = Net(way, schedule, batches)
    ours = [LearningRateScheduler(schedule)] if way == "callback" else []
    run = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        callbacks=[*ours, *callbacks],
    )
    run.fit(model, ckpt_path=ckpt_path)
    return run, model.lrs


class Stop(pl.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def test_a_resume_with_other_epochs_of_other_lengths(way: str, tmp_path: Path) -> None:
    run, first = fit(way, Cosine(), Stop())
    run.save_checkpoint(tmp_path / "run.ckpt")
    _, second = fit(way, Cosine(), batches=4, ckpt_path=tmp_path / "run.ckpt", max_epochs=5)
    expected = [Cosine()(k / 32) for k in range(16)] + [Cosine()(0.5 + 0.5 * k / 12) for k in range(12)]
    assert first + second == pytest.approx([0.1 * factor for factor in expected], rel=1e-12)


def test_a_cooldown_that_a_plateau_begins(way: str) -> None:
    # epochs 0, 1, 2 improve and 3 does not: the cooldown begins after 4 epochs, 32 updates, and takes 4
    plateau = CooldownOnPlateau(patience=1, cooldown="4step")
    _, lrs = fit(way, Constant(), plateau, max_epochs=-1)
    assert lrs == pytest.approx([0.1] * 32 + [0.1 * (1 - (k / 4) ** 0.5) for k in range(4)], rel=1e-12)


def test_an_lr_that_a_callback_sets(way: str) -> None:
    class Sets(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 8:
                trainer.optimizers[0].param_groups[0]["lr"] /= 2

    _, lrs = fit(way, Linear(), Sets(), max_epochs=2)
    assert lrs == pytest.approx([0.1 * (1 - k / 16) / (2 if k >= 8 else 1) for k in range(16)], rel=1e-12)
