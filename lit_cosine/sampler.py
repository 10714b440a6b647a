"""A sampler whose order is a function of (seed, epoch), and that knows where in the epoch a resumed run goes on.

Convention: the position is counted in batches of this rank, and is kept in the DataModule's state: that is restored
before anything asks for a loader. Every rank draws the same order and takes every ``num_replicas``-th row of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from lit_cosine.checks import as_integer

__all__ = ["EpochSampler"]


class EpochSampler(DistributedSampler[Any]):
    """Row order as a function of ``seed`` and epoch, with a position that a DataModule can save and restore.

    Make it in ``setup``, hand it to the loader together with its generator, and keep its state:

    >>> import lightning.pytorch as pl
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> class Data(pl.LightningDataModule):
    ...     def setup(self, stage):
    ...         self.rows = TensorDataset(torch.arange(10.0))
    ...         self.sampler = EpochSampler(self.rows, batch_size=4, seed=1)
    ...     def train_dataloader(self):
    ...         return DataLoader(self.rows, 4, sampler=self.sampler, generator=self.sampler.generator)
    ...     def state_dict(self):
    ...         return self.sampler.state_dict(self.trainer)
    ...     def load_state_dict(self, state):
    ...         self.sampler.load_state_dict(state)

    Under several processes the order is dealt out in turn; where it does not divide, its first rows are dealt again
    (``drop_last=True`` leaves the remainder out instead), so that every rank makes as many steps. Batch b of two
    ranks holds together the rows of batch b of one rank with twice the batch size.

    Args:
        dataset: The rows, or anything with their number as its length.
        batch_size: Rows in a batch of the loader, on one rank, >= 1.
        seed: Seed of the order, >= 0.
        shuffle: Whether the order is random; else it is 0, 1, 2, ...
        drop_last: Whether rows that do not divide among the ranks are left out.

    Raises:
        ValueError: If ``dataset`` is empty, or ``batch_size`` or ``seed`` is out of range.
    """

    def __init__(
        self, dataset: Sized, batch_size: int, seed: int = 0, *, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        batch_size = as_integer("EpochSampler.batch_size", batch_size, least=1)
        seed = as_integer("EpochSampler.seed", seed, least=0)
        if len(dataset) == 0:
            raise ValueError("EpochSampler.dataset must hold at least one row, got none")
        several = distributed.is_available() and distributed.is_initialized()
        ranks, rank = (distributed.get_world_size(), distributed.get_rank()) if several else (1, 0)
        # torch asks for a Dataset, and for nothing but its length
        super().__init__(dataset, ranks, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.generator = torch.Generator()
        """For the loader, so that its workers' seeds too are a function of (seed, epoch)."""
        self._resume_at = (0, 0)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of ``epoch``; Lightning calls this, and without it every whole pass is the next epoch."""
        super().set_epoch(epoch)
        if epoch != self._resume_at[0]:
            self._resume_at = (epoch, 0)
        self.generator.manual_seed(self._seed_of(epoch))

    def _seed_of(self, epoch: int) -> int:
        # mixed, not added: seed 0 in epoch 1 must not be seed 1 in epoch 0
        return int(np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0])

    def order(self, epoch: int) -> torch.Tensor:
        """Return the row numbers of all ranks in ``epoch``, shape (rows,).

        >>> EpochSampler(range(5), batch_size=2, seed=3).order(0).sort().values
        tensor([0, 1, 2, 3, 4])
        """
        rows = len(self.dataset)  # type: ignore[arg-type]
        if not self.shuffle:
            return torch.arange(rows)
        return torch.randperm(rows, generator=torch.Generator().manual_seed(self._seed_of(epoch)))

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's row numbers; in the epoch that was resumed, from the first that is left."""
        # a generator function: nothing is drawn before the first row is asked for, by when the epoch is set
        yield from self._left().tolist()
        self.set_epoch(self.epoch + 1)

    def batches(self, size: int, device: torch.device, *, drop_last: bool = False) -> Iterator[torch.Tensor]:
        """Yield the same row numbers as tensors, one for each batch.

        Args:
            size: Rows in a batch, >= 1.
            device: Where the rows are, and so their numbers.
            drop_last: Whether a last batch of fewer rows is left out.
        """
        left = self._left().to(device)
        for start in range(0, len(left) - (size - 1 if drop_last else 0), size):
            yield left[start : start + size]
        self.set_epoch(self.epoch + 1)

    def _left(self) -> torch.Tensor:
        order = self.order(self.epoch)
        if self.drop_last:
            order = order[: self.total_size]
        else:
            order = order.repeat(-(-self.total_size // len(order)))[: self.total_size]
        return order[self.rank :: self.num_replicas][self._resume_at[1] * self.batch_size :]

    def state_dict(self, trainer: Any) -> dict[str, int]:
        """Return where the run is: its epoch, and how many batches of it are done.

        Args:
            trainer: The Trainer whose run it is.
        """
        loop = trainer.fit_loop
        epoch: int = loop.epoch_progress.current.processed
        # from the end of an epoch on, until the next one begins, its batches are still counted
        under_way = loop.epoch_progress.current.ready > epoch
        return {"epoch": epoch, "batches": loop.epoch_loop.batch_progress.current.ready if under_way else 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken: in its epoch the batches that were done are left out.

        Raises:
            ValueError: If ``state`` is not an EpochSampler's.
        """
        if not isinstance(state, dict) or state.keys() != {"epoch", "batches"}:
            raise ValueError(f"the state must be an EpochSampler's, with epoch and batches; got {state!r}")
        self._resume_at = (state["epoch"], state["batches"])
        self.set_epoch(state["epoch"])
