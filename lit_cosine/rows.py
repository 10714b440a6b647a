"""Rows held as tensors, and a DataLoader that serves a whole batch of them with one indexing.

Convention: a batch is what indexing gives, never a collation. The loader is a DataLoader in everything that Lightning
asks of one (sampler, batch size, length, being built again with another sampler); where it knows its sampler's order
as a tensor it only spares the work for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from lit_cosine.sampler import EpochSampler

__all__ = ["RowLoader", "TensorRows", "as_fetched"]


@final
class TensorRows(Dataset[Any]):
    """Rows of tensors of equal length; ``rows[indices]`` fetches a whole batch at once.

    Args:
        tensors: One tensor, whose rows are items, or several, whose rows together are.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Tensor | tuple[Tensor, ...]:
        fetched = tuple(tensor[index] for tensor in self.tensors)
        return fetched if len(fetched) > 1 else fetched[0]

    def __getitems__(self, indices: list[int]) -> Tensor | tuple[Tensor, ...]:
        """Return the batch of ``indices``: one indexing per tensor in place of one per row and a collation."""
        return self[torch.tensor(indices, device=self.tensors[0].device)]

    @property
    def nbytes(self) -> int:
        """Bytes that the rows take."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def to(self, device: torch.device) -> TensorRows:
        """Return the rows on ``device``."""
        return TensorRows(*(tensor.to(device) for tensor in self.tensors))


def as_fetched(batch: Any) -> Any:
    """Collate nothing: return the batch as ``TensorRows.__getitems__`` made it."""
    return batch


class RowLoader(DataLoader[Any]):
    """A DataLoader over :class:`TensorRows` with ``collate_fn=as_fetched``: batches are slices of its sampler's order.

    Worker processes, and samplers other than EpochSampler and SequentialSampler, are served as DataLoader does.

    >>> rows = TensorRows(torch.arange(5))
    >>> [batch.tolist() for batch in RowLoader(rows, batch_size=2, collate_fn=as_fetched)]
    [[0, 1], [2, 3], [4]]
    """

    def __iter__(self) -> Any:
        """Return an iterator over the batches; the order is not asked for before the first of them is."""
        sampler_known = isinstance(self.sampler, EpochSampler) or type(self.sampler) is SequentialSampler
        fetches = self.collate_fn is as_fetched
        if (
            sampler_known
            and fetches
            and type(self.batch_sampler) is BatchSampler
            and self.num_workers == 0
            and isinstance(self.dataset, TensorRows)
        ):
            return self._slices(self.dataset, self.batch_sampler.batch_size)
        return super().__iter__()

    def _slices(self, rows: TensorRows, size: int) -> Iterator[Any]:
        if not isinstance(self.sampler, EpochSampler):
            for start in range(0, len(self) * size, size):
                yield rows[slice(start, start + size)]
            return
        device = rows.tensors[0].device
        for indices in self.sampler.batches(size, device, drop_last=self.drop_last):
            yield rows[indices]
