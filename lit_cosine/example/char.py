"""A small character model on a text that every Python has: a task on which the schedule matters, without a download.

Convention: the text is cut into 40 stretches. The split's seed draws three of them for validation and three for the
test; a row is a window of ``length`` + 1 characters within a stretch.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from typing_extensions import override

from lit_cosine._checks import as_integer, as_number

__all__ = ["CharDataModule", "CharTransformer"]

_STRETCHES, _HELD_OUT = 40, 3
_CHARACTERS = 128


class CharDataModule(LightningDataModule):
    """Windows of the texts of ``pydoc_data.topics``, about 465,000 characters that differ with the Python version.

    Args:
        batch_size: Windows per batch, >= 1.
        length: Characters that a window predicts, >= 1.
        split_seed: Seed of the stretches that are held out, >= 0.

    >>> data = CharDataModule(batch_size=4, length=8)
    >>> data.setup()
    >>> [batch.shape for batch in next(iter(data.train_dataloader()))]
    [torch.Size([4, 9])]
    """

    def __init__(self, batch_size: int = 16, length: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = as_integer("batch_size", batch_size, least=1)
        self.length = as_integer("length", length, least=1, most=1000)
        self.split_seed = as_integer("split_seed", split_seed, least=0)
        self._parts: dict[str, TensorDataset] = {}

    @override
    def setup(self, stage: str | None = None) -> None:
        size = len(_text()) // _STRETCHES
        windows = _text()[: size * _STRETCHES].view(_STRETCHES, size).unfold(1, self.length + 1, self.length)
        order = torch.randperm(_STRETCHES, generator=torch.Generator().manual_seed(self.split_seed))
        val, test, train = order.tensor_split([_HELD_OUT, 2 * _HELD_OUT])
        for name, stretches in (("train", train), ("val", val), ("test", test)):
            self._parts[name] = TensorDataset(windows[stretches].flatten(0, 1).contiguous())

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        rows = self._parts["train"]
        return DataLoader(rows, None, sampler=BatchSampler(RandomSampler(rows), self.batch_size, drop_last=True))

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._held_out("val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._held_out("test")

    def _held_out(self, part: str) -> DataLoader[Any]:
        rows = self._parts[part]
        return DataLoader(rows, None, sampler=BatchSampler(SequentialSampler(rows), 128, drop_last=False))


class CharTransformer(LightningModule):
    """A causal transformer of two layers that predicts the next character; AdamW, with the LR left to a callback.

    Logs ``val/loss`` and ``test/loss``, nats per character.

    Args:
        lr: Peak LR, finite and > 0.
        width: Width of the layers, a multiple of 16.
        length: Characters of a window at most, >= 1.
        weight_decay: AdamW's, >= 0.

    >>> CharTransformer()(torch.zeros(2, 32, dtype=torch.long)).shape
    torch.Size([2, 32, 128])
    """

    def __init__(self, lr: float = 0.01, width: int = 32, length: int = 32, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.lr = as_number("lr", lr, above=0.0)
        self.weight_decay = as_number("weight_decay", weight_decay, least=0.0)
        width, length = as_integer("width", width, least=16), as_integer("length", length, least=1)
        if width % 16:
            raise ValueError(f"width must be a multiple of 16, got {width}")
        self.characters = nn.Embedding(_CHARACTERS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 16, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, _CHARACTERS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    @override
    def forward(self, characters: Tensor) -> Tensor:
        n = characters.shape[1]
        embedded = self.characters(characters) + self.positions[:n]
        mask = cast("Tensor", self.mask)[:n, :n]
        return cast("Tensor", self.head(self.layers(embedded, mask=mask, is_causal=True)))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0][:, :-1])
        return cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten())

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch[0]))

    @override
    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx), batch_size=len(batch[0]))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


@cache
def _text() -> Tensor:
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    return torch.tensor(list(text))
