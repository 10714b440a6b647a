"""The article's rows and its training loop as functions; ``article.py`` is its script as a reader types it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import SimpleNN, SyntheticDataModule

__all__ = ["BATCH", "article_loop", "article_rows"]

BATCH = 64


def article_rows() -> tuple[Any, ...]:
    """Return (features, labels) of the training, the validation and the test part."""
    data = SyntheticDataModule()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return tuple(loader.dataset.tensors for loader in loaders)  # type: ignore[attr-defined]


def article_loop(train: tuple[Tensor, Tensor], epochs: int) -> None:
    """Train as the article does: DataLoader, Adam, CosineAnnealingLR."""
    network, criterion = SimpleNN(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    loader = DataLoader(TensorDataset(*train), batch_size=BATCH, shuffle=True)
    for _ in range(epochs):
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(network(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
        scheduler.step()
