"""A whole run played ahead: which LR every update will use, without touching optimizer or scheduler.

Convention: update k is the k-th optimizer step from where the run stands now, counted from 0. Schedulers are copied
onto stand-ins of their optimizers that have the same param groups but one empty parameter each, and stepped as
Lightning's loops would step them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from lit_cosine.closed_form import closed_form

__all__ = ["Join", "Master", "Run", "Trace", "play"]

EXACT = 100_000
"""Scheduler steps up to which every one is played."""

MOST = 1_000_000
"""Scheduler steps after which a play without a closed form ends, before the run does."""

_EDGE, _GRID, _CHECKED = 2_000, 20_000, 1_000


@dataclass(frozen=True)
class Run:
    """How a Trainer's loops will walk: batches into updates, updates into epochs.

    Args:
        batches: Batches of an epoch, >= 1.
        epochs: Epochs left, the present one included, >= 1.
        accumulate: Batches of an update, by epoch.
        first_epoch: The epoch it begins in, counted from 0.
        first_batch: The batch of that epoch it begins at.
        max_updates: Updates after which it ends, if it does not end sooner.

    >>> run = Run(batches=5, epochs=2, accumulate=lambda epoch: 2)
    >>> run.batch.tolist(), run.ends_epoch.tolist()
    ([1, 3, 4, 1, 3, 4], [False, False, True, False, False, True])
    """

    batches: int
    epochs: int
    accumulate: Callable[[int], int] = lambda epoch: 1
    first_epoch: int = 0
    first_batch: int = 0
    max_updates: int | None = None
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
        """How many updates are left."""
        return len(self.batch)

    def stepping(self, interval: str, frequency: int = 1) -> NDArray[np.bool_]:
        """Return after which updates Lightning steps a scheduler with this interval and frequency."""
        if interval == "epoch":
            return np.asarray(self.ends_epoch & ((self.epoch + 1) % frequency == 0))
        return np.asarray((self.batch + 1) % frequency == 0)


@dataclass
class Master:
    """A scheduler and what moves it.

    Args:
        scheduler: Any scheduler.
        steps: After which updates it is stepped.
        step: How it is stepped, given the copy and the number of the update just made; by default ``.step()``.
        joins: Whether its ``join()`` is called for a param group that joins, before the group's first update.
    """

    scheduler: Any
    steps: NDArray[np.bool_]
    step: Callable[[Any, int], None] | None = None
    joins: bool = False


@dataclass(frozen=True)
class Join:
    """A param group that will join before ``update``, at ``lr`` or else at ``ratio`` times the first group's LR."""

    update: int
    lr: float | None
    ratio: float


@dataclass
class Trace:
    """The LRs of one optimizer's groups over the run.

    ``lrs[i]`` holds from update ``at[i]`` on; where the trace was sampled, it is what update ``at[i]`` uses. Groups
    that join later are nan before. The last row may be at update ``updates``: after the end. ``updates`` is less
    than the run's where playing all of it would take too long.

    ``stepped[i]`` counts the steps of master i; ``error`` is the update and the exception that ended the play.
    """

    updates: int
    at: NDArray[np.int64]
    lrs: NDArray[np.float64]
    stepped: list[int]
    sampled: bool = False
    error: tuple[int, Exception] | None = None

    def lr(self, update: int) -> list[float]:
        """Return the LR of every group at ``update``; ``updates`` is after the end."""
        row: list[float] = self.at_updates(update).tolist()
        return row

    def at_updates(self, updates: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the LRs at ``updates``, a row for each."""
        return self.lrs[np.searchsorted(self.at, updates, side="right") - 1]

    def knows(self, update: int) -> bool:
        """Return whether the LR of ``update`` was played, not left out between samples."""
        return not self.sampled or bool(self.at[np.searchsorted(self.at, update, side="right") - 1] == update)

    @property
    def used(self) -> NDArray[np.float64]:
        """The rows that updates use, without what comes after the end."""
        return self.lrs[self.at < self.updates] if self.updates else self.lrs[:1]

    def changes(self, group: int) -> int:
        """Return how often the LR of ``group`` changes from one update to the next; of the sampled ones, if sampled."""
        lrs = self.used[:, group]
        return int(np.count_nonzero(np.diff(lrs[~np.isnan(lrs)])))

    def updates_at_zero(self, *, tail: bool = False) -> int:
        """Return how many updates every group makes at LR 0 without a break, from the start or up to the end."""
        zero = np.all((self.used == 0.0) | np.isnan(self.used), axis=1)
        starts = self.at[self.at < self.updates]
        others = np.flatnonzero(~zero)
        if not len(others):
            return self.updates
        if tail:
            return int(self.updates - starts[others[-1] + 1]) if others[-1] + 1 < len(starts) else 0
        return int(starts[others[0]])


def play(
    optimizer: Optimizer,
    masters: Sequence[Master],
    updates: int,
    *,
    shared: Iterable[Any] = (),
    joins: Sequence[Join] = (),
    start: Sequence[float] | None = None,
) -> Trace:
    """Return the LRs that ``updates`` updates of ``optimizer`` will use under ``masters``.

    Up to 100,000 scheduler steps every one is played. Beyond, a scheduler whose curve has a closed form is sampled, the
    form being checked against its first 1,000 steps; any other is played step by step.

    Args:
        optimizer: The optimizer; only its param groups are read.
        masters: The schedulers that act on it.
        updates: Length of the play.
        shared: Objects that copies of the schedulers may go on sharing, such as the module and its parameters.
        joins: Param groups that will join.
        start: The groups' LRs to start from, where it is not those they have.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever torch says about the copies, it has said about the originals
        stand_in, copies = _copies(optimizer, [master.scheduler for master in masters], shared)
        events = _events(masters, updates, joins)
        for group, lr in zip(stand_in.param_groups, start or (), strict=False):
            group["lr"] = lr
        if start is None and len(events) > EXACT and len(masters) == 1 and not joins and masters[0].step is None:
            with suppress(Exception):  # a scheduler that raises somewhere is played up to there
                trace = _sample(optimizer, masters[0], updates, shared)
                if trace is not None:
                    return trace
        return _play(stand_in, list(zip(masters, copies, strict=True)), updates, events, joins)


def _play(
    stand_in: Optimizer,
    played: list[tuple[Master, Any]],
    updates: int,
    events: NDArray[np.int64],
    joins: Sequence[Join],
) -> Trace:
    at, rows, stepped = [0], [_lrs(stand_in)], [0] * len(played)
    error: tuple[int, Exception] | None = None
    # what each master does after each event: whether it steps, and how
    moves = [
        (index, scheduler, master.step, master.steps[:updates][events].tolist())
        for index, (master, scheduler) in enumerate(played)
    ]
    joining = {join.update - 1: join for join in joins}
    if -1 in joining:
        _join(stand_in, joining[-1], played)
        rows[0] = _lrs(stand_in)
    for event, update in enumerate(events[:MOST].tolist()):
        try:
            for index, scheduler, own_step, steps in moves:
                if steps[event]:
                    scheduler.step() if own_step is None else own_step(scheduler, update)
                    stepped[index] += 1
        except Exception as caught:  # whatever it is will end the training too, and is reported
            error = (update, caught)
            break
        if update in joining:
            _join(stand_in, joining[update], played)
        row = _lrs(stand_in)
        if row != rows[-1]:
            at.append(update + 1)
            rows.append(row)
    width = max(map(len, rows))
    padded = np.array([(*row, *[math.nan] * (width - len(row))) for row in rows])
    reached = int(events[MOST]) if len(events) > MOST else updates
    return Trace(reached, np.array(at), padded, stepped, error=error)


def _sample(optimizer: Optimizer, master: Master, updates: int, shared: Iterable[Any]) -> Trace | None:
    """Return a trace from the scheduler's closed form, or None where it has none that can be trusted."""
    stand_in, (scheduler,) = _copies(optimizer, [master.scheduler], shared)
    lr_after = closed_form(scheduler)
    if lr_after is None:
        return None
    checked, (walked,) = _copies(optimizer, [master.scheduler], shared)
    for step in range(1, _CHECKED + 1):
        walked.step()
        if not np.allclose(lr_after(step), _lrs(checked), rtol=1e-9, atol=0.0):
            return None
    steps_before = np.concatenate([[0], np.cumsum(master.steps[:updates])])
    grid = np.arange(0, updates, max(1, updates // _GRID))
    at = np.unique(np.concatenate([np.arange(_EDGE), grid, np.arange(updates - _EDGE, updates + 1)]))
    rows = [_lrs(stand_in) if steps == 0 else tuple(lr_after(steps)) for steps in steps_before[at].tolist()]
    return Trace(updates, at, np.array(rows, dtype=np.float64), [int(steps_before[-1])], sampled=True)


def _events(masters: Sequence[Master], updates: int, joins: Sequence[Join]) -> NDArray[np.int64]:
    """Return the updates after which something can change."""
    moving = np.zeros(updates, dtype=bool)
    for master in masters:
        moving |= master.steps[:updates]
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
    """Has the options of another optimizer's param groups, and one empty parameter in each."""

    def __init__(self, optimizer: Optimizer, memo: dict[int, Any]) -> None:
        groups = []
        for group in optimizer.param_groups:
            options = {key: copy.deepcopy(value, memo) for key, value in group.items() if key != "params"}
            groups.append({"params": [torch.nn.Parameter(torch.empty(0))], **options})
        super().__init__(groups, dict(optimizer.defaults))
        self._opt_called = True  # what torch's schedulers look at to see whether they are stepped too early

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


def _join(stand_in: Optimizer, join: Join, played: list[tuple[Master, Any]]) -> None:
    lr = join.ratio * float(stand_in.param_groups[0]["lr"]) if join.lr is None else join.lr
    stand_in.add_param_group({"params": [torch.nn.Parameter(torch.empty(0))], "lr": lr})
    for master, scheduler in played:
        if master.joins:
            scheduler.join()


def _lrs(optimizer: Optimizer) -> tuple[float, ...]:
    # a tuple: the garbage collector looks once at a million of them, at lists again and again
    return tuple([float(group["lr"]) for group in optimizer.param_groups])


def _with_own_cells(function: Any, memo: dict[int, Any]) -> Any:
    """Return ``function`` with copies of the plain variables it has closed over, so that it may count in them."""
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
