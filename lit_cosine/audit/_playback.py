"""Computes which LR every update of a run will use, without touching optimizer or scheduler.

Convention: update k is the k-th optimizer step from now, counted from 0. Schedulers are copied onto stand-ins of their
optimizers, which have the same param groups with one empty parameter each, and the copies are stepped as Lightning's
loops would step them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer
from typing_extensions import override

from lit_cosine._compat import mark_step_called
from lit_cosine.audit._closed_form import closed_form

__all__ = ["Join", "Stepping", "Timeline", "Trace", "play"]

EXACT = 100_000
"""The number of scheduler steps up to which every step is played."""

MOST = 1_000_000
"""The number of scheduler steps at which the play of a scheduler without a closed form stops early."""

_EDGE, _GRID, _CHECKED = 2_000, 20_000, 1_000


@dataclass(frozen=True)
class Timeline:
    """The epoch and the batch of every update that a Trainer will make.

    >>> timeline = Timeline(batches=5, epochs=2, accumulate=lambda epoch: 2)
    >>> timeline.batch.tolist(), timeline.ends_epoch.tolist()
    ([1, 3, 4, 1, 3, 4], [False, False, True, False, False, True])
    """

    batches: int  # of an epoch, >= 1
    epochs: int  # left, the present one included, >= 1
    accumulate: Callable[[int], int] = lambda epoch: 1  # batches of an update, by epoch
    first_epoch: int = 0  # where it begins, counted from 0
    first_batch: int = 0  # of that epoch
    max_updates: int | None = None  # after which it ends, if it does not end sooner
    epoch: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    batch: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    ends_epoch: NDArray[np.bool_] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        limit = math.inf if self.max_updates is None else self.max_updates
        epochs, batches, made = [], [], 0
        for epoch in range(self.first_epoch, self.first_epoch + self.epochs):
            if made >= limit:
                break
            window = self.accumulate(epoch)
            # the last batch of an epoch always makes an update
            ends = np.unique(np.append(np.arange(window - 1, self.batches, window), self.batches - 1))
            if epoch == self.first_epoch:
                ends = ends[ends >= self.first_batch]
            ends = ends[: int(min(limit - made, len(ends)))]
            made += len(ends)
            batches.append(ends)
            epochs.append(np.full(len(ends), epoch))
        empty = [np.zeros(0, dtype=np.int64)]
        object.__setattr__(self, "epoch", np.concatenate(epochs or empty))
        object.__setattr__(self, "batch", np.concatenate(batches or empty))
        object.__setattr__(self, "ends_epoch", self.batch == self.batches - 1)

    @property
    def updates(self) -> int:
        """The number of updates left."""
        return len(self.batch)

    def stepping(self, interval: str, frequency: int = 1) -> NDArray[np.bool_]:
        """Return after which updates Lightning steps a scheduler with this interval and frequency.

        lightning 2.6.6, ``_TrainingEpochLoop._update_learning_rates``: "epoch" counts epochs, "step" counts the batches
        of an epoch, and a batch that ends no update never steps a scheduler.
        """
        if interval == "epoch":
            return np.asarray(self.ends_epoch & ((self.epoch + 1) % frequency == 0))
        return np.asarray((self.batch + 1) % frequency == 0)


@dataclass
class Stepping:
    """A scheduler and when it is stepped."""

    scheduler: Any
    steps: NDArray[np.bool_]
    joins: bool = False  # whether its join() is called for a param group that joins, before the group's first update


@dataclass(frozen=True)
class Join:
    """A param group that will join before ``update``, at ``lr`` or else at ``ratio`` times the first group's LR."""

    update: int
    lr: float | None
    ratio: float


@dataclass
class Trace:
    """The LRs of one optimizer's groups over the run.

    ``lrs[i]`` applies from update ``at[i]`` on; in a sampled trace it is the LR of update ``at[i]`` alone. The last row
    may be at update ``updates``, after the end.
    """

    updates: int  # less than the run's where playing all of it would take too long
    at: NDArray[np.int64]
    lrs: NDArray[np.float64]  # nan before a group joins
    present: NDArray[np.bool_]  # for every row and group, whether it has joined
    sampled: bool = False
    error: tuple[int, Exception] | None = None  # the update and the exception that ended the play

    @property
    def first(self) -> list[float]:
        """The LR of every group at the first update."""
        return self.lr(0)

    @property
    def last(self) -> list[float]:
        """The LR of every group at the last update."""
        return self.lr(max(self.updates - 1, 0))

    @property
    def peaks(self) -> NDArray[np.float64]:
        """The highest LR of every group that an update uses."""
        return np.asarray(np.fmax.reduce(self.used, axis=0))  # ignores nan

    def lr(self, update: int) -> list[float]:
        """Return the LR of every group at ``update``; ``updates`` is after the end."""
        row: list[float] = self.at_updates(update).tolist()
        return row

    def at_updates(self, updates: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return one row of LRs for each of ``updates``."""
        return self.lrs[np.searchsorted(self.at, updates, side="right") - 1]

    def knows(self, update: int) -> bool:
        """Return whether the LR of ``update`` was computed; it was not if it lies between two samples."""
        return not self.sampled or bool(self.at[np.searchsorted(self.at, update, side="right") - 1] == update)

    @property
    def used(self) -> NDArray[np.float64]:
        """The rows that updates use, without the one after the end."""
        return self.lrs[self.at < self.updates] if self.updates else self.lrs[:1]

    def changes(self, group: int) -> int:
        """Return how often the LR of ``group`` changes between two updates; between two samples in a sampled trace."""
        lrs = self.used[:, group]
        return int(np.count_nonzero(np.diff(lrs[~np.isnan(lrs)])))

    def updates_below(self, bound: float | NDArray[np.float64], *, tail: bool = False) -> int:
        """Return the number of consecutive updates from the start, or up to the end, with an LR up to ``bound``.

        It is one for each of the first groups; for the others it is 0.
        """
        bounds = np.zeros(self.lrs.shape[1])
        bounds[: np.size(bound)] = bound
        low = np.all((self.used <= bounds) | np.isnan(self.used), axis=1)
        starts = self.at[self.at < self.updates]
        others = np.flatnonzero(~low)
        if not len(others):
            return self.updates
        if tail:
            return int(self.updates - starts[others[-1] + 1]) if others[-1] + 1 < len(starts) else 0
        return int(starts[others[0]])


def play(
    optimizer: Optimizer,
    steppings: Sequence[Stepping],
    updates: int,
    *,
    shared: Iterable[Any] = (),
    joins: Sequence[Join] = (),
    start: Sequence[float] | None = None,
) -> Trace:
    """Return the LRs that ``updates`` updates of ``optimizer`` will use under ``steppings``.

    Up to 100,000 scheduler steps every step is played. Beyond that, a scheduler with a closed form is sampled, after
    the form was checked against the first 1,000 steps; any other is played step by step.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has given the same warnings for the originals
        stand_in, copies = _copies(optimizer, [stepping.scheduler for stepping in steppings], shared)
        events = _events(steppings, updates, joins)
        for group, lr in zip(stand_in.param_groups, start or (), strict=False):
            group["lr"] = lr
        if start is None and len(events) > EXACT and len(steppings) == 1 and not joins:
            with suppress(Exception):  # a scheduler that raises is played step by step, up to the error
                trace = _sample(optimizer, steppings[0], updates, shared)
                if trace is not None:
                    return trace
        return _play(stand_in, list(zip(steppings, copies, strict=True)), updates, events, joins)


def _play(
    stand_in: Optimizer,
    played: list[tuple[Stepping, Any]],
    updates: int,
    events: NDArray[np.int64],
    joins: Sequence[Join],
) -> Trace:
    at, rows = [0], [_lrs(stand_in)]
    error: tuple[int, Exception] | None = None
    # after which events each scheduler steps
    moves = [(scheduler, stepping.steps[:updates][events].tolist()) for stepping, scheduler in played]
    joining = {join.update - 1: join for join in joins}
    if -1 in joining:
        _join(stand_in, joining[-1], played)
        rows[0] = _lrs(stand_in)
    for event, update in enumerate(events[:MOST].tolist()):
        try:
            for scheduler, steps in moves:
                if steps[event]:
                    scheduler.step()
        except Exception as caught:  # it will end the training too, and is reported
            error = (update, caught)
            break
        if update in joining:
            _join(stand_in, joining[update], played)
        row = _lrs(stand_in)
        if row != rows[-1]:
            at.append(update + 1)
            rows.append(row)
    groups = np.array([len(row) for row in rows])
    present = np.arange(groups.max()) < groups[:, None]
    lrs = np.full(present.shape, math.nan)
    lrs[present] = np.fromiter(chain.from_iterable(rows), dtype=np.float64)
    reached = int(events[MOST]) if len(events) > MOST else updates
    return Trace(reached, np.array(at), lrs, present, error=error)


def _sample(optimizer: Optimizer, stepping: Stepping, updates: int, shared: Iterable[Any]) -> Trace | None:
    """Return a trace from the closed form, or None if there is none or the first steps contradict it."""
    stand_in, (scheduler,) = _copies(optimizer, [stepping.scheduler], shared)
    lr_after = closed_form(scheduler)
    if lr_after is None:
        return None
    checked, (stepped,) = _copies(optimizer, [stepping.scheduler], shared)
    for step in range(1, _CHECKED + 1):
        stepped.step()
        if not np.allclose(lr_after(step), _lrs(checked), rtol=1e-9, atol=0.0):
            return None
    steps_before = np.concatenate([[0], np.cumsum(stepping.steps[:updates])])
    grid = np.arange(0, updates, max(1, updates // _GRID))
    at = np.unique(np.concatenate([np.arange(_EDGE), grid, np.arange(updates - _EDGE, updates + 1)]))
    rows = [_lrs(stand_in) if steps == 0 else tuple(lr_after(steps)) for steps in steps_before[at].tolist()]
    lrs = np.array(rows, dtype=np.float64)
    return Trace(updates, at, lrs, np.ones(lrs.shape, dtype=bool), sampled=True)


def _events(steppings: Sequence[Stepping], updates: int, joins: Sequence[Join]) -> NDArray[np.int64]:
    """Return the updates after which the LR can change."""
    moving = np.zeros(updates, dtype=bool)
    for stepping in steppings:
        moving |= stepping.steps[:updates]
    for join in joins:
        if 0 < join.update <= updates:
            moving[join.update - 1] = True
    return np.flatnonzero(moving)


def _copies(optimizer: Optimizer, schedulers: list[Any], shared: Iterable[Any]) -> tuple[Optimizer, list[Any]]:
    """Return a stand-in of ``optimizer`` and copies of ``schedulers`` that act on it."""
    memo: dict[int, Any] = {id(thing): thing for thing in shared}
    stand_in = _StandIn(optimizer, memo)
    memo[id(optimizer)] = stand_in
    memo[id(optimizer.param_groups)] = stand_in.param_groups
    memo |= {id(old): new for old, new in zip(optimizer.param_groups, stand_in.param_groups, strict=True)}
    copies = copy.deepcopy(schedulers, memo)
    for scheduler in copies:
        if isinstance(getattr(scheduler, "lr_lambdas", None), list):
            scheduler.lr_lambdas = [_with_own_cells(function, memo) for function in scheduler.lr_lambdas]
    return stand_in, copies


class _StandIn(Optimizer):
    """An optimizer with the options of another's param groups, and one empty parameter in each."""

    def __init__(self, optimizer: Optimizer, memo: dict[int, Any]) -> None:
        groups = []
        for group in optimizer.param_groups:
            options = {key: copy.deepcopy(value, memo) for key, value in group.items() if key != "params"}
            groups.append({"params": [torch.nn.Parameter(torch.empty(0))], **options})
        super().__init__(groups, dict(optimizer.defaults))
        mark_step_called(self)  # or torch's schedulers warn that they are stepped before the optimizer

    @override
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


def _join(stand_in: Optimizer, join: Join, played: list[tuple[Stepping, Any]]) -> None:
    lr = join.ratio * float(stand_in.param_groups[0]["lr"]) if join.lr is None else join.lr
    stand_in.add_param_group({"params": [torch.nn.Parameter(torch.empty(0))], "lr": lr})
    for stepping, scheduler in played:
        if stepping.joins:
            scheduler.join()


def _lrs(optimizer: Optimizer) -> tuple[float, ...]:
    # a tuple of floats: the garbage collector stops tracking it; a million lists would be scanned again and again
    return tuple([float(group["lr"]) for group in optimizer.param_groups])


def _with_own_cells(function: Any, memo: dict[int, Any]) -> Any:
    """Return ``function`` with copies of the plain variables in its closure, which it may change.

    ``copy.deepcopy`` returns functions as they are: a function that counts its calls would count those of the play.
    """
    if not isinstance(function, FunctionType) or not function.__closure__:
        return function
    plain = (bool, int, float, str, list, dict, set)
    cells = tuple(
        CellType(copy.deepcopy(cell.cell_contents, memo)) if isinstance(_content(cell), plain) else cell
        for cell in function.__closure__
    )
    own = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return None
