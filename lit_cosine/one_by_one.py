"""The members of a comparison trained one after the other by a Lightning Trainer, for networks that cannot be stacked.

Convention: a member gets the initial weights, batches, dropout and LRs that it would have in an :class:`Ensemble`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_cosine.ensemble import Block
from lit_cosine.member import Rows, Training, accuracy, batch_orders, dropout_seed, initial_network
from lit_cosine.schedules import Schedule
from lit_cosine.trainer import lr_scheduler_config

__all__ = ["train_one_by_one"]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class _Batches(Dataset[Any]):
    """Whole batches as items, epoch after epoch in the order of the seed."""

    def __init__(self, rows: Rows, batch_size: int, orders: Tensor) -> None:
        self._rows, self._batch_size, self._orders = rows, batch_size, orders
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self._rows[0]) // self._batch_size)

    def __getitem__(self, index: int) -> Rows:
        if index >= len(self):
            raise IndexError(index)
        indices = self._orders[self.epoch][index * self._batch_size : (index + 1) * self._batch_size]
        return self._rows[0][indices], self._rows[1][indices]


class _Member(LightningModule):
    """One training, measured as an Ensemble measures its members."""

    def __init__(
        self, training: Training, schedule: Schedule, lr: float, seed: int, batches: _Batches, val: Rows
    ) -> None:
        super().__init__()
        self.network = initial_network(training, seed)
        self._seed = seed
        self._training_, self._schedule, self._lr, self._batches, self._val = training, schedule, lr, batches, val
        self.epochs: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_train_start(self) -> None:
        torch.manual_seed(dropout_seed(self._seed))

    def on_train_epoch_start(self) -> None:
        self._batches.epoch = self.current_epoch
        self._loss = torch.zeros((), dtype=torch.float64)
        self._rows = 0

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        loss = self._training_.loss(self.network(batch[0]), batch[1])
        self._loss += loss.detach() * len(batch[0])
        self._rows += len(batch[0])
        return loss

    def on_train_epoch_end(self) -> None:
        self.epochs.append((self._loss / self._rows, *self.measure(self._val)))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        training = self._training_
        options: dict[str, Any] = {"lr": self._lr, "weight_decay": training.weight_decay}
        if training.optimizer == "sgd":
            options["momentum"] = training.momentum
        optimizer = _OPTIMIZERS[training.optimizer](
            [value for value in self.network.parameters() if value.requires_grad], **options
        )
        config = lr_scheduler_config(optimizer, self._schedule, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def measure(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return loss and accuracy on ``rows`` in evaluation."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        with torch.no_grad():
            outputs = self.network(rows[0])
            measured = self._training_.loss(outputs, rows[1]).double(), accuracy(outputs, rows[1]).double()
        for module, mode in modes:
            module.training = mode
        return measured


def train_one_by_one(training: Training, parts: Sequence[Rows], schedule: Schedule, lr: float, seed: int) -> Block:
    """Train one member with a Trainer and return it as a block of one.

    Args:
        training: What all members have in common.
        parts: Training, validation and test rows.
        schedule: The member's curve.
        lr: Its peak LR.
        seed: Its seed.
    """
    train, val, test = parts
    batches = _Batches(train, training.batch_size, batch_orders(training, len(train[0]), seed))
    with torch.random.fork_rng(devices=[]), _quiet():
        member = _Member(training, schedule, lr, seed, batches, val)
        trainer = Trainer(
            max_epochs=training.max_epochs,
            accelerator="cpu",
            devices=1,
            barebones=True,
        )
        trainer.fit(member, DataLoader(batches, batch_size=None, generator=torch.Generator()))
    train_loss, val_loss, val_accuracy = (torch.stack(curve).unsqueeze(1) for curve in zip(*member.epochs, strict=True))
    test_loss, test_accuracy = (value.unsqueeze(0) for value in member.measure(test))
    weights = {
        name: value.detach().unsqueeze(0) for name, value in member.network.named_parameters() if value.requires_grad
    }
    return Block(train_loss, val_loss, val_accuracy, test_loss, test_accuracy, weights)


class _quiet:
    """Keep the Trainer's messages down: there are hundreds of Trainers."""

    _names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")

    def __enter__(self) -> None:
        self._levels = [logging.getLogger(name).level for name in self._names]
        for name in self._names:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in zip(self._names, self._levels, strict=True):
            logging.getLogger(name).setLevel(level)
