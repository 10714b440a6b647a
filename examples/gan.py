"""A GAN in the shape of Lightning's documentation: two optimizers, manual optimization, on scikit-learn's digits.

Where the schedule comes in: one callback, and both optimizers have it; no ``scheduler.step()`` to forget.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import ExactResume, LearningRateLogger, LearningRateScheduler, ScheduleAudit, warmup_stable_decay
from lit_cosine.checkpoint import EpochSampler


class Images(pl.LightningDataModule):
    """1797 images, 8 x 8 pixels, from -1 to 1."""

    def setup(self, stage: str) -> None:
        images = torch.from_numpy(load_digits().data).float() / 8 - 1
        self.images = TensorDataset(images.view(-1, 1, 8, 8))
        self.sampler = EpochSampler(self.images, batch_size=150)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.images, 150, sampler=self.sampler, generator=self.sampler.generator)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.trainer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class Generator(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(latent_dim, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.Tanh()
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z).view(-1, 1, 8, 8)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)


class GAN(pl.LightningModule):
    def __init__(self, latent_dim: int = 16, lr_g: float = 1e-3, lr_d: float = 4e-4, b1: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = Generator(latent_dim)
        self.discriminator = Discriminator()

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def adversarial_loss(self, logits: Tensor, real: bool) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (images,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(len(images), self.hparams.latent_dim).type_as(images)

        self.toggle_optimizer(optimizer_g)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), real=True)
        self.log("g_loss", g_loss)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(images), real=True)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), real=False)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        betas = (self.hparams.b1, 0.999)
        optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr_g, betas=betas)
        optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr_d, betas=betas)
        return [optimizer_g, optimizer_d], []


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
            LearningRateScheduler(warmup_stable_decay(warmup=0.1, decay=0.5)),
            LearningRateLogger(),
            ScheduleAudit(),
            ExactResume(folder / "checkpoints", monitor=None),
            *callbacks,
        ],
    )
    trainer.fit(GAN(), Images(), ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
