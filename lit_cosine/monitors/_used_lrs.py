"""The LRs that each optimizer update really used.

Convention: update s of an optimizer, counted from 0 over the whole run, is point s of its curves. Tensors are kept as
they are and read later, many at once, so that no update waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_cosine._compat import callbacks_of, has_step_hooks
from lit_cosine.monitors._points import Point, numbers
from lit_cosine.training import StepHooks, loss_scale, lr_names, optimizer_names, read_entry, skipped_update

__all__ = ["Update", "UsedLRs"]

Used = dict[str, list[Any]]
"""Entry of the param groups, ``"lr"`` first -> its value in each group, None where a group has none."""


@dataclass(slots=True)
class Update:
    """One update of one optimizer.

    ``step`` is counted over the whole run; ``loss`` is the mean of the accumulated batches, for the first optimizer.
    """

    index: int
    step: int
    used: Used
    when: float
    loss: Tensor | None = None


class UsedLRs:
    """Records the updates that optimizers make, with the LRs that they use.

    The LRs are read as late as possible, in ``on_before_optimizer_step``, so that the order of the callbacks does not
    matter; they count once the update is made, which a GradScaler may refuse. Hooks that fire twice for an update, or
    never, make one point all the same.
    """

    def __init__(self, owner: Callback) -> None:
        self._owner = owner
        self.updates: list[Update] = []
        self.done: list[int] = []
        self.tags: list[list[str]] = []
        self.labels: list[str] = []
        self._restored: dict[str, dict[str, Any]] = {}
        self._optimizers: list[Optimizer] = []
        self._trainer: Trainer | None = None
        self._read: dict[int, Used] = {}  # what the update that is being made uses
        self._steps, self._scale = 0, 1.0  # made before that update, and its GradScaler's scale
        self._heard: set[int] = set()  # optimizers whose hooks have fired
        self._window: list[Tensor] = []
        self._with_loss = 0
        self._keys = ["lr"]
        self._hooks = StepHooks()

    def attach(self, trainer: Trainer, keys: Iterable[str] = ()) -> None:
        """Begin to listen to the Trainer's optimizers; ``keys`` are recorded besides the LR."""
        self.detach()
        self._keys = ["lr", *keys]
        self._optimizers = list(trainer.optimizers)
        self._trainer = trainer
        self.labels = optimizer_names(self._optimizers)  # by which a state finds its optimizer
        self.done = [trainer.global_step // max(len(self._optimizers), 1)] * len(self._optimizers)
        self.tags = self._names()
        self._restore()
        self._with_loss = self.done[0] if self.done else 0
        for index, optimizer in enumerate(self._optimizers):
            if has_step_hooks(optimizer):
                self._hooks.add(optimizer, before=partial(self._before, index), after=partial(self._after, index))

    def state(self) -> dict[str, dict[str, Any]]:
        """Return for every optimizer, by its name, the number of its updates and the tags of its groups."""
        if not self.labels:
            return self._restored
        return {
            label: {"updates": done, "tags": list(tags)}
            for label, done, tags in zip(self.labels, self.done, self.tags, strict=True)
        }

    def load(self, state: dict[str, dict[str, Any]]) -> None:
        """Continue from ``state``, now or once the optimizers are known; one that it does not name keeps its own."""
        self._restored = state
        self._restore()

    def _restore(self) -> None:
        for index, label in enumerate(self.labels):
            saved = self._restored.get(label, {})
            self.done[index] = int(saved.get("updates", self.done[index]))
            # a curve keeps the name it had, also when its optimizer has more groups than it began with
            old = list(saved.get("tags", ()))
            self.tags[index] = old + self.tags[index][len(old) :]

    def detach(self) -> None:
        """Stop listening."""
        self._hooks.remove()

    def release(self) -> None:
        """Stop listening, and drop every reference to the Trainer and its optimizers."""
        self.detach()
        self._optimizers, self._trainer, self._read = [], None, {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without the Trainer, its optimizers and what was read off them."""
        return {**vars(self), "_optimizers": [], "_trainer": None, "_read": {}, "_window": []}

    def index(self, optimizer: Optimizer) -> int | None:
        """Return which of the optimizers this is; None of another one."""
        return next((index for index, known in enumerate(self._optimizers) if known is optimizer), None)

    def read(self, optimizer: Optimizer) -> None:
        """Take the LRs that ``optimizer`` is about to use."""
        if (index := self.index(optimizer)) is not None and self._trainer is not None:
            self._steps = self._trainer.global_step
            if index not in self._heard:
                self._scale = loss_scale(self._trainer)
            self._before(index, optimizer)

    def end_batch(self, outputs: Any = None) -> None:
        """Take what ``training_step`` returned for a batch; the update that the batch ends gets the mean loss."""
        trainer = self._trainer
        if trainer is None:
            return
        if self._read and trainer.global_step != self._steps and trainer.lightning_module.automatic_optimization:
            # hooks of these optimizers have not fired: they never do, or a GradScaler has skipped the update
            for index in {*self._read} - self._heard:
                if loss_scale(trainer) >= self._scale:  # it falls where an update is skipped
                    self._record(index)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach() if loss.dim() == 0 else loss.detach().mean()
            # lightning 2.6.6 hands the loss over divided by the length of the window
            accumulated = trainer.accumulate_grad_batches
            self._window.append(loss * accumulated if accumulated > 1 else loss)
        if self._window and self.done and self.done[0] > self._with_loss:
            self._with_loss = self.done[0]
            # none where a checkpoint was saved in between, and with it the update
            last = next((update for update in reversed(self.updates) if update.index == 0), None)
            if last is not None:
                last.loss = self._window[0] if len(self._window) == 1 else torch.stack(self._window).mean()
            self._window.clear()

    def add_last(self) -> None:
        """Record the LRs as they stand now, after the final update."""
        for index, optimizer in enumerate(self._optimizers):
            self.updates.append(Update(index, self.done[index], self._values(optimizer), time.time()))

    def drain(self) -> list[Update]:
        """Return every update recorded since the last time."""
        updates, self.updates = self.updates, []
        return updates

    def points(self, loss_tag: str | None = None) -> Iterator[Point]:
        """Yield a point for every update recorded since the last time: the LRs, and the loss where it has a tag."""
        updates = self.drain()
        tagged = [self._tagged(update, loss_tag) for update in updates]
        values = iter(numbers([value for entries in tagged for value in entries.values()]))
        for update, entries in zip(updates, tagged, strict=True):
            yield update.step, {tag: next(values) for tag in entries}, update.when

    def last(self) -> dict[str, float | Tensor]:
        """Return the LRs of the last recorded update of every optimizer, by their tags."""
        latest = {update.index: replace(update, used={"lr": update.used["lr"]}) for update in self.updates}
        return {tag: lr for index in sorted(latest) for tag, lr in self._tagged(latest[index]).items()}

    def _tagged(self, update: Update, loss_tag: str | None = None) -> dict[str, float | Tensor]:
        tags = self.tags[update.index]
        if len(tags) < len(update.used["lr"]):  # groups have joined
            tags += self._names()[update.index][len(tags) :]
        entries = {
            _tag(key, tag): value
            for key, values in update.used.items()
            for tag, value in zip(tags, values, strict=False)
            if value is not None  # the group has no such entry
        }
        return entries if loss_tag is None or update.loss is None else {**entries, loss_tag: update.loss}

    def _values(self, optimizer: Optimizer) -> Used:
        """Return what every group holds; a tensor as a copy, since it is filled in place."""
        groups = optimizer.param_groups
        used = {key: [read_entry(group, key) for group in groups] for key in self._keys}
        for values in used.values():
            for place, value in enumerate(values):
                if isinstance(value, Tensor):
                    values[place] = value.detach().clone()
        return used

    def _names(self) -> list[list[str]]:
        return lr_names(self._optimizers, configs=[] if self._trainer is None else self._trainer.lr_scheduler_configs)

    def _before(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        self._read[index] = self._values(optimizer)

    def _after(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        self._heard.add(index)
        # an LR finder trains with callbacks of its own, and puts the run back after it
        if self._trainer is None or self._owner not in callbacks_of(self._trainer) or skipped_update(optimizer):
            self._read.pop(index, None)
        elif index in self._read:  # not so at the second call for an update, of a subclass that calls super().step()
            self._record(index)

    def _record(self, index: int) -> None:
        self.updates.append(Update(index, self.done[index], self._read.pop(index), time.time()))
        self.done[index] += 1


def _tag(key: str, tag: str) -> str:
    """Return the tag of ``key`` beside the LR's: ``weight_decay-Adam/pg1`` beside ``lr-Adam/pg1``."""
    if key == "lr":
        return tag
    return f"{key}{tag.removeprefix('lr')}" if tag.startswith("lr-") else f"{tag}-{key}"
