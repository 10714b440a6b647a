"""A character-level transformer on Python's own help texts: weight decay for matrices alone, accumulation, clipping.

Where the schedule comes in: ``configure_optimizers`` returns AdamW and no scheduler, ``main`` adds a callback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_cosine import Cosine, ExactResume, LearningRateLogger, LearningRateScheduler, ScheduleAudit
from lit_cosine.checkpoint import EpochSampler

CONTEXT = 32


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a text, each with the same window one character on."""

    def __init__(self, tokens: Tensor, count: int) -> None:
        self.tokens, self.count = tokens, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.tokens[index * CONTEXT : (index + 1) * CONTEXT + 1]
        return window[:-1], window[1:]


class HelpTexts(pl.LightningDataModule):
    """What ``help("...")`` says, in ASCII: 240 windows for training and 60 for validation."""

    vocabulary = 128

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "ignore")
        tokens = torch.tensor(list(text[: 300 * CONTEXT + 1]))
        self.train, self.val = Windows(tokens, 240), Windows(tokens[240 * CONTEXT :], 60)
        self.sampler = EpochSampler(self.train, self.hparams.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.hparams.batch_size, sampler=self.sampler, generator=self.sampler.generator)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 60)

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.trainer)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class LanguageModel(pl.LightningModule):
    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2, lr: float = 3e-3, decay: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.token = nn.Embedding(HelpTexts.vocabulary, width)
        self.position = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, HelpTexts.vocabulary, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token(tokens) + self.position(torch.arange(length, device=tokens.device))
        x = self.blocks(x, mask=self.mask[:length, :length], is_causal=True)
        return self.head(self.norm(x))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, following = batch
        return nn.functional.cross_entropy(self(tokens).flatten(0, 1), following.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        matrices = [parameter for parameter in self.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.hparams.decay, "name": "decay"},
            {"params": vectors, "weight_decay": 0.0, "name": "no_decay"},
        ]
        return torch.optim.AdamW(groups, lr=self.hparams.lr, betas=(0.9, 0.95))


def main(folder: Path, callbacks: Sequence[pl.Callback] = (), ckpt_path: str | None = None) -> pl.Trainer:
    pl.seed_everything(7, verbose=False)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=TensorBoardLogger(folder, name=None, version="logs"),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        callbacks=[
            LearningRateScheduler(Cosine(end=0.1), warmup="25%"),
            LearningRateLogger(loss_tag="train/loss_step"),
            ScheduleAudit(),
            ExactResume(folder / "checkpoints", every_n_train_steps=2),
            *callbacks,
        ],
    )
    trainer.fit(LanguageModel(), HelpTexts(), ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
