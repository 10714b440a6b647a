"""A small LightningModule that notes what its optimizers really used, and a quiet Trainer: shared by several tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def rows(n: int = 32, batch_size: int = 4) -> DataLoader[Any]:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size)


class Net(pl.LightningModule):
    """Linear regression; ``used`` holds every group's LR at every real update."""

    def __init__(
        self, finish: Callable[[torch.optim.Optimizer, Any], Any] | None = None, lr: float = 0.1, **sgd: Any
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.lr = lr
        self.sgd = sgd
        self.finish = finish or (lambda optimizer, trainer: optimizer)
        self.used: list[list[float]] = []

    @property
    def lrs(self) -> list[float]:
        return [lrs[0] for lrs in self.used]

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        optimizer.register_step_pre_hook(
            lambda watched, args, kwargs: self.used.append([float(group["lr"]) for group in watched.param_groups])
        )
        return optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.finish(self.watch(torch.optim.SGD(self.parameters(), lr=self.lr, **self.sgd)), self.trainer)

    def train_dataloader(self) -> DataLoader[Any]:
        return rows()


def trainer(*callbacks: Any, cls: Any = pl.Trainer, **kwargs: Any) -> Any:
    """Return a Trainer that logs, saves and shows nothing unless asked to."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return cls(**{**quiet, **kwargs}, callbacks=list(callbacks))
