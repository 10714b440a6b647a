"""Fine-tuning a vision transformer on scikit-learn's digits: layer-wise LR decay, the head at ten times the LR.

``python project.py fit --config run.yaml``, and after a stop the same with ``--ckpt_path last``. The head is trained
alone for two epochs, then all layers of the backbone join. The schedules are in run.yaml.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import param_groups


class Digits(pl.LightningDataModule):
    """240 images for training and 60 for validation, 8 x 8 pixels, ten classes."""

    def __init__(self, batch_size: int = 40) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.from_numpy(images[:300]).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels[:300])
        self.train, self.val = TensorDataset(x[:240], y[:240]), TensorDataset(x[240:], y[240:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 60)


class Backbone(nn.Module):
    """Sixteen patches of 2 x 2 pixels, and three blocks; a real project would load its weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens.mean(1))


class Classifier(pl.LightningModule):
    def __init__(self, lr: float = 1e-3, layer_decay: float = 0.75, weight_decay: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone, self.head = Backbone(), nn.Linear(16, 10)

    def groups(self) -> list[dict[str, Any]]:
        """Return the param groups of what is trained now."""
        settings = {name: self.hparams[name] for name in ("lr", "layer_decay", "weight_decay")}
        return param_groups(self, **settings, rules={r"^head\.": {"lr": 10 * self.hparams.lr}})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.backbone(x)), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.head(self.backbone(x)), y))


class Thaw(BaseFinetuning):
    """Freezes the backbone, and adds its groups to the optimizer when epoch ``epoch`` begins."""

    def __init__(self, epoch: int = 2) -> None:
        super().__init__()
        self.epoch = epoch

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        if len(trainer.optimizers[0].param_groups) > 2:  # a resumed run, in which the backbone has joined
            self.make_trainable(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == self.epoch:
            self.make_trainable(pl_module.backbone)
            for group in pl_module.groups():
                if group["name"].startswith("backbone"):
                    optimizer.add_param_group(group)


def main() -> LightningCLI:
    return LightningCLI(Classifier, Digits, seed_everything_default=7)


if __name__ == "__main__":
    main()
