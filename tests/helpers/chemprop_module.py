"""A small network of chemprop's and some molecules; importing it needs chemprop (extra ``published``)."""

from typing import Any

import lightning.pytorch as pl
from chemprop import data, models
from chemprop import nn as layers


class SmallMPNN(models.MPNN):
    """chemprop's message passing network."""

    def __init__(self, lr: float = 0.01) -> None:
        passing, predictor = layers.BondMessagePassing(d_h=8, depth=2), layers.RegressionFFN(input_dim=8)
        rates = dict.fromkeys(("init_lr", "max_lr", "final_lr"), lr)  # its own peak is max_lr, a comparison's init_lr
        super().__init__(passing, layers.MeanAggregation(), predictor, **rates)


class Alkanes(pl.LightningDataModule):
    def rows(self, lengths: range, shuffle: bool) -> Any:
        molecules = [data.MoleculeDatapoint.from_smi("C" * n, [float(n)]) for n in lengths]
        return data.build_dataloader(data.MoleculeDataset(molecules), batch_size=4, num_workers=0, shuffle=shuffle)

    def train_dataloader(self) -> Any:
        return self.rows(range(1, 21), shuffle=True)

    def val_dataloader(self) -> Any:
        return self.rows(range(21, 29), shuffle=False)
