"""A sampler whose order is a function of (seed, epoch), and whose position within the epoch can be saved and restored.

Convention: the position is counted in batches of this rank. It belongs in the DataModule's state, which Lightning
restores before anything asks for a loader. Every rank computes the same order and takes every ``num_replicas``-th row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_flag, as_integer, read_state
from lit_cosine._compat import train_position

__all__ = ["EpochSampler", "resumes_within_epoch"]


class EpochSampler(DistributedSampler[Any]):
    """Row order as a function of ``seed`` and epoch, with a position that a DataModule can save and restore.

    Create it in ``setup``, pass it to the loader together with its generator, and save its state:

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

    Under several processes the rows of the order go to the ranks in turn. If the number of rows is not divisible by the
    number of ranks, the first rows are used twice (``drop_last=True`` leaves the remainder out instead), so that every
    rank makes the same number of steps. Batch b of two ranks together holds the rows of batch b of a single rank with
    twice the batch size.

    Args:
        dataset: The rows, or any object whose length is their number.
        batch_size: Rows in a batch of the loader, on one rank, >= 1.
        seed: Seed of the order, >= 0.
        shuffle: Whether the order is random; otherwise it is 0, 1, 2, ...
        drop_last: Whether rows that do not divide evenly among the ranks are left out.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``dataset`` is empty, or ``batch_size`` or ``seed`` is out of range.
    """

    def __init__(
        self, dataset: Sized, batch_size: int, seed: int = 0, *, shuffle: bool = True, drop_last: bool = False
    ) -> None:
        batch_size = as_integer("EpochSampler.batch_size", batch_size, least=1)
        seed = as_integer("EpochSampler.seed", seed, least=0)
        shuffle = as_flag("EpochSampler.shuffle", shuffle)
        drop_last = as_flag("EpochSampler.drop_last", drop_last)
        if len(dataset) == 0:
            raise ValueError("EpochSampler.dataset must hold at least one row, got none")
        several = distributed.is_available() and distributed.is_initialized()
        ranks, rank = (distributed.get_world_size(), distributed.get_rank()) if several else (1, 0)
        # torch's annotation asks for a Dataset; its code reads the length only
        super().__init__(dataset, ranks, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.generator = torch.Generator()
        """For the loader, so that the seeds of its workers are a function of (seed, epoch) too."""
        self._resume_at = (0, 0)
        self.set_epoch(0)

    @override
    def set_epoch(self, epoch: int) -> None:
        """Use the order of ``epoch``. Lightning calls this; without it every complete pass moves to the next epoch."""
        super().set_epoch(epoch)
        if epoch != self._resume_at[0]:
            self._resume_at = (epoch, 0)
        self.generator.manual_seed(self._seed_of(epoch))

    def __getstate__(self) -> dict[str, Any]:
        # torch 2.13 pickles a generator as a new tensor, whose memory is closed before a spawned process can open it
        return {**vars(self), "generator": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.generator = torch.Generator().manual_seed(self._seed_of(self.epoch))

    def _seed_of(self, epoch: int) -> int:
        # hashed rather than added: seed 0 in epoch 1 must differ from seed 1 in epoch 0
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
        """Yield this rank's row numbers; in the epoch that was resumed, those that are left."""
        # a generator function: Lightning calls iter() before set_epoch, and the order is read at the first row
        yield from self._left().tolist()
        self.set_epoch(self.epoch + 1)

    def batches(self, size: int, device: torch.device, *, drop_last: bool = False) -> Iterator[torch.Tensor]:
        """Yield the same row numbers as tensors, one for each batch.

        Args:
            size: Rows in a batch, >= 1.
            device: Device of the row numbers.
            drop_last: Whether a smaller last batch is left out.
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

    def state_dict(self, trainer: Trainer) -> dict[str, int]:
        """Return the position of training: its epoch, and how many batches of it are done.

        Args:
            trainer: The Trainer that trains on this sampler's rows.
        """
        epoch, batches = train_position(trainer)
        return {"version": STATE_VERSION, "epoch": epoch, "batches": batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the position in ``state``: its epoch leaves out the batches that were done.

        Raises:
            TypeError: If the position is not made of integers.
            ValueError: If ``state`` is not an EpochSampler's, or of another version.
        """
        known = read_state("EpochSampler", state, {"epoch": 0, "batches": 0})
        epoch = as_integer("epoch in the state of EpochSampler", known["epoch"], least=0)
        batches = as_integer("batches in the state of EpochSampler", known["batches"], least=0)
        self._resume_at = (epoch, batches)
        self.set_epoch(epoch)


def resumes_within_epoch(loader: Any) -> bool:
    """Return whether ``loader`` resumes within an epoch: by a state of its own, or by an EpochSampler.

    Raises:
        ValueError: If the batch size of an EpochSampler, in which its position is counted, is not its loader's.
    """
    if hasattr(loader, "load_state_dict"):  # torchdata's StatefulDataLoader, or a user's own loader
        return True
    if not isinstance(loader, DataLoader):
        return False
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, EpochSampler):
        return False
    size = getattr(loader.batch_sampler, "batch_size", 1)
    if size != sampler.batch_size:
        raise ValueError(f"EpochSampler.batch_size must be the loader's, which is {size}, got {sampler.batch_size}")
    return loader.generator is not None
