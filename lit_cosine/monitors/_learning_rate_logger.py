"""LearningRateLogger: the LR of every update, in the loggers.

Convention: point s of an LR curve is the LR that update s used, counted from 0; the last point, after the final update,
is the LR that the next one would have used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_flag, check_text, read_state, shown
from lit_cosine._compat import callbacks_of
from lit_cosine.monitors._listener import Writer
from lit_cosine.monitors._points import Point
from lit_cosine.monitors._watching import watching

__all__ = ["LearningRateLogger"]

_MOST_SHOWN = 4
"""LRs in the progress bar."""


@watching()
class LearningRateLogger(Writer):
    """Writes every group's LR at every optimizer step to the Trainer's loggers, the last value included.

    Point s is the LR that update s used, whatever code set it; under accumulation there is one point for each update.
    The tags are LearningRateMonitor's: ``lr-<optimizer class>`` or the scheduler's name, with ``/pg1``, ``/pg2``, …
    where an optimizer has several groups. A group that joins later gets a tag of its own and renames none. Other
    hyperparameters that LearningRateScheduler drives are written beside it: ``weight_decay-<optimizer class>``.

    Args:
        loss_tag: Tag under which the loss of every update is written too, such as ``"train/loss_step"``; None for not.
            Batches that are accumulated into one update make one point, their mean; of several optimizers the updates
            of the first count.
        prog_bar: Whether the progress bar shows the LRs of the last update, at most four.
        prefix: What every LR's tag begins with, such as ``"optim/"``.
        names: Tag -> the name to use instead: ``{"lr-AdamW/pg1": "head"}``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If two tags get one name.

    Points are written in bundles, with the time at which each update was made: twice a second, at the end of 1000
    updates, of an epoch and of the run, with every checkpoint, and when training is interrupted. What a killed process
    leaves behind lacks at most the last second. A logger that fails is left out with one warning.

    >>> import lightning.pytorch as pl
    >>> trainer = pl.Trainer(callbacks=[LearningRateLogger()], accelerator="cpu", logger=False)
    """

    def __init__(
        self,
        loss_tag: str | None = None,
        *,
        prog_bar: bool = False,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        check_text("loss_tag", loss_tag, optional=True)
        self.loss_tag, self._takes_losses = loss_tag, loss_tag is not None
        self.prog_bar = as_flag("prog_bar", prog_bar)
        check_text("prefix", prefix)
        given = {} if names is None else names
        if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
            raise TypeError(f"names must map tags to names, as {{'lr-AdamW/pg1': 'head'}}, got {shown(names)}")
        self.prefix, self.names = prefix, dict(given)
        if len({*self.names.values()}) < len(given):
            raise ValueError(f"names must give every tag a name of its own, got {shown(self.names)}")
        self._unseen = {*self.names}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, "optimizers": self._used.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._used.load(read_state("LearningRateLogger", state_dict, {"optimizers": {}})["optimizers"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        driven = [getattr(callback, "schedules", {}) for callback in callbacks_of(trainer)]
        self._used.attach(trainer, [key for schedules in driven for key in schedules if key != "lr"])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._used.add_last()
        super().on_train_end(trainer, pl_module)
        if self._unseen:
            rank_zero_warn(f"LearningRateLogger.names: no curve was called {', '.join(sorted(self._unseen))}")

    @override
    def _points(self) -> Iterator[Point]:
        for step, values, when in self._used.points(self.loss_tag):
            yield step, {self._name(tag): value for tag, value in values.items()}, when

    @override
    def _show(self, pl_module: LightningModule) -> None:
        if self.prog_bar and self._used.updates:
            last = list(self._used.last().items())[:_MOST_SHOWN]
            pl_module.log_dict({self._name(tag): lr for tag, lr in last}, prog_bar=True, logger=False)

    def _name(self, tag: str) -> str:
        self._unseen.discard(tag)
        return tag if tag == self.loss_tag else self.prefix + self.names.get(tag, tag)
