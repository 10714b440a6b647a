"""Regression on scikit-learn's diabetes data, in a project that imports ``pytorch_lightning``.

Where the schedule comes in: ``configure_optimizers`` asks for it with ``lr_scheduler_config``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lit_cosine import LearningRateLogger, Polynomial, ScheduleAudit, lr_scheduler_config


class Diabetes(pl.LightningDataModule):
    """392 patients for training and 50 for validation, ten features, one target."""

    def __init__(self, batch_size: int = 49) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        x, y = load_diabetes(return_X_y=True)
        y = (y - y.mean()) / y.std()
        rows = TensorDataset(torch.from_numpy(x * 20).float(), torch.from_numpy(y).float().unsqueeze(1))
        self.train, self.val = random_split(rows, [392, 50], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 50)


class Regressor(pl.LightningModule):
    def __init__(self, hidden: int = 32, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.network(x), y))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        schedule = Polynomial(end=0.1, power=2)
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(optimizer, schedule, self.trainer)}


def main(
    folder: Path, callbacks: Sequence[pl.Callback] = (), ckpt_path: Path | None = None, max_epochs: int = 3
) -> pl.Trainer:
    pl.seed_everything(7)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, version="logs"),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=4,
        callbacks=[
            LearningRateLogger(),
            ScheduleAudit(),
            ModelCheckpoint(folder / "checkpoints", save_last=True, monitor="val_loss"),
            *callbacks,
        ],
    )
    trainer.fit(Regressor(), Diabetes(), ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
