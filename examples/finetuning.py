"""Fine-tuning on scikit-learn's digits: the head alone at first, then the backbone with it at a tenth of the LR.

Where the schedule comes in: ``configure_optimizers`` returns an optimizer and no scheduler, ``main`` adds a callback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import Cosine, ExactResume, LearningRateLogger, LearningRateScheduler, ScheduleAudit
from lit_cosine.checkpoint import EpochSampler


class Digits(pl.LightningDataModule):
    """1437 images for training and 360 for validation, 8 x 8 pixels, ten classes."""

    def __init__(self, batch_size: int = 120) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
        x, x_val, y, y_val = (torch.from_numpy(part) for part in parts)
        self.train = TensorDataset(x.float().view(-1, 1, 8, 8) / 16, y)
        self.val = TensorDataset(x_val.float().view(-1, 1, 8, 8) / 16, y_val)
        self.sampler = EpochSampler(self.train, self.hparams.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.hparams.batch_size, sampler=self.sampler, generator=self.sampler.generator)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 360)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.trainer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class DigitsClassifier(pl.LightningModule):
    """A convolutional backbone, whose weights a real project would load, and a head."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.log("val/loss", nn.functional.cross_entropy(logits, y))
        self.log("val/accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=self.hparams.lr)  # the backbone joins later


class Finetuning(BackboneFinetuning):
    """Thaws the backbone once and leaves its LR to the schedule; a resumed run finds it as thawed as it was.

    Lightning's own sets the backbone's LR anew in every later epoch, and freezes it for good when a run is resumed
    after the thaw: the LR goes on and no weight moves (PL#21901).
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.previous_backbone_lr is not None:
            self.make_trainable(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == self.unfreeze_backbone_at_epoch:
            super().finetune_function(pl_module, epoch, optimizer)


def main(folder: Path, callbacks: Sequence[pl.Callback] = (), ckpt_path: str | None = None) -> pl.Trainer:
    pl.seed_everything(7, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name=None, version="logs"),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        callbacks=[
            # the backbone's base LR, a tenth of the head's: the schedule has a factor for it as for the head's
            Finetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3),
            LearningRateScheduler(Cosine(end=0.05), warmup="4step"),
            LearningRateLogger(),
            ScheduleAudit(),
            ExactResume(folder / "checkpoints"),
            *callbacks,
        ],
    )
    trainer.fit(DigitsClassifier(), Digits(), ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
