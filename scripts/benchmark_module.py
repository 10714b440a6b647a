"""What ``benchmark.py compare_module`` times: trainings of a LightningModule, by a plain Trainer and by ``compare``.

Convention: a training takes some seconds, as a user's do; with one of a tenth of a second, start-up would be measured.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lit_cosine import Constant, Cosine, LearningRateScheduler, compare

__all__ = ["TRAININGS", "Data", "Module", "by_compare", "by_hand"]

SCHEDULES = {"constant": Constant(), "cosine": Cosine()}
SEEDS = 4
TRAININGS = len(SCHEDULES) * SEEDS
EPOCHS = 12  # four seconds a training on one core, beside three for the imports of a process

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Data(pl.LightningDataModule):
    """6,400 rows of 64 features."""

    def __init__(self) -> None:
        super().__init__()
        x = torch.randn(6400, 64, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True))

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=64, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=640)


class Module(pl.LightningModule):
    """A network of three layers on them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def by_hand() -> None:
    """Run every training with a Trainer, in this process."""
    for seed in range(SEEDS):
        for schedule in SCHEDULES.values():
            pl.seed_everything(seed, workers=True, verbose=False)
            callbacks: list[pl.Callback] = [LearningRateScheduler(schedule, replace=True)]
            trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **QUIET)  # type: ignore[arg-type]
            trainer.fit(Module(), datamodule=Data())


def by_compare(**engine: Any) -> None:
    """Run the same trainings with ``compare``, on the engine that the arguments name."""
    trainer = {"max_epochs": EPOCHS, "accelerator": "cpu"}
    compare(Module, Data, SCHEDULES, [1e-3], SEEDS, metric="val/loss", trainer=trainer, **engine)
