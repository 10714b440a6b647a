"""Small LightningModules that note what their optimizers really used, and a quiet Trainer: shared by several tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import Cosine

TORCH_IS_STRICT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10)
"""Whether torch's schedulers raise once a param group has joined; before 2.10 they leave it where it is, silently."""

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


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
    saves = any("Checkpoint" in type(callback).__name__ for callback in callbacks)
    return cls(**{**QUIET, "enable_checkpointing": saves, **kwargs}, callbacks=list(callbacks))


def fit(model: Any, *callbacks: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
    run = trainer(*callbacks, **kwargs)
    run.fit(model, ckpt_path=ckpt_path)
    return run


COSINE = Cosine(end=0.1)


def factor(k: int, total: int, warmup: int = 0, end: float = 0.1) -> float:
    """The closed form, written from the definition: warmup (k+1)/(W+1), then half a cosine over what is left."""
    if k < warmup:
        return (k + 1) / (warmup + 1)
    u = (k - warmup) / (total - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * u)) / 2


def curve(total: int, warmup: int = 0, lr: float = 0.1, end: float = 0.1) -> list[float]:
    return [lr * factor(k, total, warmup, end) for k in range(total)]


def with_cosine(t_max: int, **config: Any) -> Any:
    def finish(optimizer: Any, run: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, t_max)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **config}}

    return finish


class Gan(pl.LightningModule):
    """Manual optimization, two optimizers, the generator every third batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)
        self.used: dict[str, list[float]] = {"generator": [], "critic": []}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        noise = torch.randn(4, 2)
        for name, optimizer in zip(("generator", "critic"), optimizers, strict=True):
            if name == "generator" and batch_idx % 3:
                continue
            fake = self.critic(self.generator(noise)).mean()
            loss = -fake if name == "generator" else fake - self.critic(batch[0]).mean()
            self.used[name].append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-3),
            torch.optim.Adam(self.critic.parameters(), lr=4e-3),
        ], []

    def train_dataloader(self) -> DataLoader[Any]:
        return rows()


class Transfer(Net):
    def __init__(self, finish: Any = None) -> None:
        super().__init__(finish)
        self.backbone, self.layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
        return self.finish(self.watch(optimizer), self.trainer)


def finetuning(**kwargs: Any) -> BackboneFinetuning:
    settings = {"unfreeze_backbone_at_epoch": 1, "backbone_initial_lr": 0.01, "should_align": False}
    return BackboneFinetuning(**{**settings, **kwargs})


class Dropping(nn.Sequential):
    """A network with dropout: a block of a comparison is one seed then, so that a few make several blocks."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__(nn.Linear(in_features, 8), nn.Dropout(0.2), nn.Linear(8, classes))
