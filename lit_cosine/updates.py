"""The LRs that each optimizer update really used.

Convention: update s of an optimizer, counted from 0 over the whole run, is point s of its curves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lit_cosine.points import Point
from lit_cosine.trainer import lr_names, skipped_update

__all__ = ["UsedLRs"]

Used = dict[str, list[float | Tensor]]
"""Entry of the param groups, ``"lr"`` first -> its value in each group."""


class UsedLRs:
    """Records the LRs that each update used.

    They are read as late as can be, in ``on_before_optimizer_step``, so that whoever set them has done so in whichever
    order the callbacks stand; they count once the update is made, which a GradScaler may refuse.

    Args:
        owner: The callback that records.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        # index of the optimizer, number of its update, what each of its groups used, when (seconds since 1970)
        self.updates: list[tuple[int, int, Used, float]] = []
        self.done: list[int] = []
        self.tags: list[list[str]] = []
        self._optimizers: list[Optimizer] = []
        self._trainer: Any = None
        self._read: dict[int, Used] = {}
        self._keys = ["lr"]
        self._handles: list[Any] = []

    def attach(self, trainer: Any, keys: Iterable[str] = ()) -> None:
        """Begin to listen to the Trainer's optimizers, going on from a restored ``done`` where there is one.

        Args:
            trainer: The Trainer.
            keys: Entries of the param groups to record besides the LR.
        """
        self.detach()
        self._keys = ["lr", *keys]
        self._optimizers = list(trainer.optimizers)
        if len(self.done) != len(self._optimizers):
            self.done = [trainer.global_step // max(len(self._optimizers), 1)] * len(self._optimizers)
        self._trainer = trainer
        tags = self._names()
        if len(self.tags) == len(tags):
            # a curve keeps the name it had, also when its optimizer has more groups than it began with
            tags = [old + new[len(old) :] for old, new in zip(self.tags, tags, strict=True)]
        self.tags = tags
        for index, optimizer in enumerate(self._optimizers):
            self._handles.append(optimizer.register_step_pre_hook(partial(self._before, index)))
            self._handles.append(optimizer.register_step_post_hook(partial(self._after, index)))

    def detach(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, optimizer: Optimizer) -> None:
        """Take the LRs that ``optimizer`` is about to use."""
        for index, known in enumerate(self._optimizers):
            if known is optimizer:
                self._before(index, optimizer)

    def add_last(self) -> None:
        """Record the LRs as they stand now, after the final update."""
        for index, optimizer in enumerate(self._optimizers):
            self.updates.append((index, self.done[index], self._values(optimizer), time.time()))

    def take(self) -> Iterator[Point]:
        """Yield every update recorded since the last time."""
        updates, self.updates = self.updates, []
        for index, step, used, when in updates:
            tags = self.tags[index]
            if len(tags) < len(used["lr"]):  # groups have joined
                tags += self._names()[index][len(tags) :]
            yield (
                step,
                {
                    _tag(key, tag): float(value)
                    for key, values in used.items()
                    for tag, value in zip(tags, values, strict=False)
                },
                when,
            )

    def _values(self, optimizer: Optimizer) -> Used:
        """Return what every group holds; a tensor as a copy that is read later, so that nobody waits for its device."""
        return {
            key: [
                value.detach().clone() if isinstance(value, Tensor) else value
                for value in (group[key] for group in optimizer.param_groups)
            ]
            for key in self._keys
        }

    def _names(self) -> list[list[str]]:
        return lr_names(self._optimizers, configs=self._trainer.lr_scheduler_configs)

    def _before(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        self._read[index] = self._values(optimizer)

    def _after(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        # an LR finder trains with callbacks of its own, and puts the run back after it
        if self._owner not in self._trainer.callbacks or skipped_update(optimizer):
            return
        self.updates.append((index, self.done[index], self._read[index], time.time()))
        self.done[index] += 1


def _tag(key: str, tag: str) -> str:
    """Return the tag of ``key`` beside the LR's: ``weight_decay-Adam/pg1`` beside ``lr-Adam/pg1``."""
    if key == "lr":
        return tag
    return f"{key}{tag.removeprefix('lr')}" if tag.startswith("lr-") else f"{tag}-{key}"
