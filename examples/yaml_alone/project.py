"""Wine classified by a LightningCLI project that knows nothing of lit_cosine: the schedule is in run.yaml.

``python project.py fit --config run.yaml``, and after a stop the same with ``--ckpt_path last``.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_wine
from sklearn.preprocessing import scale
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Wine(pl.LightningDataModule):
    """128 wines for training and 50 for validation, thirteen features, three classes."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        x, y = load_wine(return_X_y=True)
        rows = TensorDataset(torch.from_numpy(scale(x)).float(), torch.from_numpy(y))
        self.train, self.val = random_split(rows, [128, 50], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 50)


class WineClassifier(pl.LightningModule):
    def __init__(self, hidden: int = 16, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(13, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.network(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main() -> LightningCLI:
    return LightningCLI(WineClassifier, Wine, seed_everything_default=7)


if __name__ == "__main__":
    main()
