"""Schedules compared: the same trainings under every schedule at every LR, seed by seed, and what differs.

Conventions: a member is one training, a (seed, schedule, LR). A seed has the same initial weights, batches and dropout
under every schedule, so schedules are compared by differences within a seed. A schedule's best LR is chosen on
validation rows and judged on test rows. A member whose loss is not finite has diverged: it is counted, and left out of
means and differences.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_cosine.blocks import Rectangle, cut, train_blocks
from lit_cosine.data import TabularDataModule
from lit_cosine.ensemble import (
    Block,
    Ensemble,
    Rows,
    Training,
    cross_entropy,
    initial_network,
    learning_rates,
)
from lit_cosine.one_by_one import train_one_by_one
from lit_cosine.schedule import Schedule, check_schedule
from lit_cosine.statistics import Mean, PairedDifference, mean, paired_differences
from lit_cosine.update_rules import OptimizerName

__all__ = ["Comparison", "Row", "compare"]

Measure = Literal["test_loss", "test_accuracy", "val_loss", "train_loss", "val_accuracy"]

_BLOCK_BYTES = 16 * 2**20  # what a block computes on should stay in the caches
_MOST_MEMBERS = 128
_MEMBERS = 64  # below this the cost of a call shows, above it nothing is gained


@dataclass(frozen=True)
class Row:
    """One line of a table: a schedule at one LR.

    Attributes:
        schedule: Its name.
        lr: The peak LR; nan where every LR of the schedule diverged for every seed.
        mean: Mean over seeds, with its interval.
        difference: Mean difference to the baseline over seeds; None for the baseline itself.
        diverged: Seeds that diverged.
    """

    schedule: str
    lr: float
    mean: Mean
    difference: PairedDifference | None
    diverged: int


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        schedules: The schedules by name.
        lrs: The peak LRs.
        seeds: The seeds.
        baseline: The schedule that the others are compared to.
        steps_per_epoch: Optimizer steps in an epoch.
        members: The trainings (seeds, schedules, lrs), a structured array with the fields ``train_loss``,
            ``val_loss``, ``val_accuracy`` (epochs,), ``test_loss`` and ``test_accuracy``.
        description: What was compared, as plain data.
    """

    schedules: dict[str, Schedule]
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str
    steps_per_epoch: int
    members: NDArray[Any]
    description: dict[str, Any]

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return int(self.members["val_loss"].shape[-1])

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of each member."""
        return self.epochs * self.steps_per_epoch

    def values(self, measure: Measure = "test_loss") -> NDArray[np.float64]:
        """Return a measure of every member after its training (seeds, schedules, lrs); nan where it diverged."""
        values = self.members[measure]
        final = values if values.ndim == 3 else values[..., -1]
        return np.where(self.diverged, np.nan, final)

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Whether a member's loss was ever not finite (seeds, schedules, lrs)."""
        finite = [np.isfinite(self.members[name]).all(axis=-1) for name in ("train_loss", "val_loss")]
        return np.asarray(~(finite[0] & finite[1] & np.isfinite(self.members["test_loss"])))

    def best_lr(self, schedule: str) -> int | None:
        """Return the place in ``lrs`` of the LR with the lowest mean validation loss after the last epoch.

        LRs at which the fewest seeds diverged go before others; None where all members diverged.
        """
        at = self._place(schedule)
        losses, diverged = self.values("val_loss")[:, at], self.diverged[:, at].sum(axis=0)
        if (diverged == len(self.seeds)).all():
            return None
        fewest = [index for index in range(len(self.lrs)) if diverged[index] == diverged.min()]
        return min(fewest, key=lambda index: float(np.nanmean(losses[:, index])))

    def table(self, measure: Measure = "test_loss", confidence: float = 0.95) -> list[Row]:
        """Return a row for every schedule at its best LR; differences are one family for Holm's correction."""
        return self._rows([(name, self.best_lr(name)) for name in self.schedules], measure, confidence)

    def table_by_lr(self, measure: Measure = "test_loss", confidence: float = 0.95) -> list[Row]:
        """Return a row for every schedule at every LR, each against the baseline at the same LR; one family."""
        places = [(name, index) for name in self.schedules for index in range(len(self.lrs))]
        return self._rows(places, measure, confidence, same_lr=True)

    def _rows(
        self, places: Sequence[tuple[str, int | None]], measure: Measure, confidence: float, same_lr: bool = False
    ) -> list[Row]:
        values, diverged = self.values(measure), self.diverged
        # less is better in a loss, more in an accuracy: `won` follows
        sign = -1.0 if measure.endswith("accuracy") else 1.0
        best = self.best_lr(self.baseline)
        nothing = np.full(len(self.seeds), np.nan)

        def of(name: str, index: int | None) -> NDArray[np.float64]:
            return nothing if index is None else values[:, self._place(name), index]

        others = [(name, index) for name, index in places if name != self.baseline]
        pairs = [
            (sign * of(name, index), sign * of(self.baseline, index if same_lr else best)) for name, index in others
        ]
        differences = dict(zip(others, paired_differences(pairs, confidence), strict=True))
        rows = []
        for name, index in places:
            difference = differences.get((name, index))
            count = len(self.seeds) if index is None else int(diverged[:, self._place(name), index].sum())
            lr = math.nan if index is None else self.lrs[index]
            turned = difference if difference is None or sign > 0 else _turned(difference)
            rows.append(Row(name, lr, mean(of(name, index), confidence), turned, count))
        return rows

    def steps_to(self, loss: float, schedule: str, lr: int | None = None) -> NDArray[np.float64]:
        """Return for each seed the optimizer steps after which the validation loss was first at most ``loss``.

        Measured after each epoch; inf where the loss was never reached, nan where the member diverged.

        Args:
            loss: The loss to reach.
            schedule: Name of the schedule.
            lr: Place in ``lrs``; the schedule's best where None.
        """
        index = self.best_lr(schedule) if lr is None else lr
        if index is None:
            return np.full(len(self.seeds), np.nan)
        at = self._place(schedule)
        reached = self.members["val_loss"][:, at, index] <= loss
        steps = (reached.argmax(axis=-1) + 1.0) * self.steps_per_epoch
        steps = np.where(reached.any(axis=-1), steps, np.inf)
        return np.where(self.diverged[:, at, index], np.nan, steps)

    def spread(self, schedule: str, measure: Measure = "test_loss") -> float:
        """Return how much the mean over seeds varies over LRs, its standard deviation: small is forgiving.

        LRs at which every seed diverged are left out; nan where fewer than two remain.
        """
        means = [mean(column).value for column in self.values(measure)[:, self._place(schedule)].T]
        finite = [value for value in means if math.isfinite(value)]
        return float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan

    def _place(self, schedule: str) -> int:
        if schedule not in self.schedules:
            raise ValueError(f"schedule must be one of {', '.join(self.schedules)}, got {schedule!r}")
        return list(self.schedules).index(schedule)


def compare(
    network: Callable[[], nn.Module],
    data: Any,
    schedules: Mapping[str, Schedule] | Sequence[Schedule | tuple[str, Schedule]],
    lrs: Sequence[float],
    seeds: int | Sequence[int],
    max_epochs: int,
    *,
    baseline: str | None = None,
    batch_size: int | None = None,
    optimizer: OptimizerName = "adam",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    folder: str | Path | None = None,
    devices: int | None = None,
    num_nodes: int = 1,
    one_by_one: bool = False,
    on_progress: Callable[[int], None] = lambda trained: None,
) -> Comparison:
    """Train ``network`` under every schedule at every LR for every seed, many at once, and return what came of it.

    Args:
        network: Makes a network that maps features (batch, …) to outputs; a class or a function without arguments.
        data: A ``TabularDataModule``, or ``(features, labels)``, split as a ``TabularDataModule`` does.
        schedules: By name, or a list whose names are their descriptions.
        lrs: Peak LRs, each finite and > 0.
        seeds: How many, or which.
        max_epochs: Length of each training in epochs, >= 1.
        baseline: Name of the schedule that others are compared to; the first where None.
        batch_size: Rows per step; the DataModule's where None.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        weight_decay: As in ``torch.optim``, >= 0.
        momentum: Of SGD, in [0, 1).
        loss: Maps (outputs, targets) to the mean loss of a batch.
        folder: Keeps finished blocks, so that the same call goes on where this one was stopped.
        devices: Processes on this machine, of one thread each; where None two, if there is work for two.
        num_nodes: Machines.
        one_by_one: Whether a Trainer trains one member after the other, for a network that cannot be stacked.
        on_progress: Called with the number of trainings done.

    Raises:
        NotStackable: If members of this network cannot be trained as one.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or ``folder`` holds another comparison.

    >>> from lit_cosine import Constant, Cosine, SimpleNN, SyntheticDataModule
    >>> found = compare(SimpleNN, SyntheticDataModule(), [Constant(), Cosine()], [0.01], 2, max_epochs=1, devices=1)
    >>> found.values("test_accuracy").shape
    (2, 2, 1)
    """
    named = _check_schedules(schedules)
    lrs, seeds = _check_lrs(lrs), _check_seeds(seeds)
    baseline = next(iter(named)) if baseline is None else baseline
    if baseline not in named:
        raise ValueError(f"baseline must be one of {', '.join(named)}, got {baseline!r}")
    data = data if isinstance(data, TabularDataModule) else TabularDataModule(data)
    data.setup()
    training = Training(
        network,
        _check_whole("max_epochs", max_epochs),
        _check_whole("batch_size", data.batch_size if batch_size is None else batch_size),
        optimizer,
        weight_decay,
        momentum,
        loss,
    )
    if devices is not None:
        _check_whole("devices", devices)
    _check_whole("num_nodes", num_nodes)
    if optimizer not in get_args(OptimizerName):
        raise ValueError(f"optimizer must be one of {', '.join(get_args(OptimizerName))}, got {optimizer!r}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0.0):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    example = initial_network(training, seeds[0])
    parts = _rows(data, example)
    rows = len(parts[0][0])
    arms = len(named) * len(lrs)
    size = (1, 1) if one_by_one else _block_size(training, parts, len(seeds), arms)
    blocks = cut(len(seeds), arms, *size)
    description = {
        "schedules": {name: schedule.to_dict() for name, schedule in named.items()},
        "lrs": list(lrs),
        "seeds": list(seeds),
        "max_epochs": training.max_epochs,
        "batch_size": training.batch_size,
        "optimizer": {"name": optimizer, "weight_decay": weight_decay, "momentum": momentum},
        "loss": getattr(loss, "__qualname__", repr(loss)),
        "network": {"name": type(example).__qualname__, "weights": _digest(example.state_dict().values())},
        "data": _digest(value for part in parts for value in part),
        "trained": "one by one" if one_by_one else f"in blocks of {size[0]} seeds x {size[1]} arms",
    }
    folder = None if folder is None else _check_folder(Path(folder), description)
    if devices is None:
        devices = max(1, min(2, torch.multiprocessing.cpu_count(), len(blocks) // num_nodes))
    empty = np.zeros((len(seeds), arms), dtype=_member_type(training.max_epochs))
    members = train_blocks(
        blocks,
        empty,
        lambda: _trainer(training, parts, named, lrs, seeds, size, one_by_one),
        folder,
        devices,
        num_nodes,
        on_progress,
    )
    return Comparison(
        named,
        lrs,
        seeds,
        baseline,
        training.total_steps(rows) // training.max_epochs,
        members.reshape(len(seeds), len(named), len(lrs)),
        description,
    )


def _trainer(
    training: Training,
    parts: tuple[Rows, Rows, Rows],
    schedules: Mapping[str, Schedule],
    lrs: Sequence[float],
    seeds: Sequence[int],
    size: tuple[int, int],
    one_by_one: bool,
) -> Callable[[Rectangle], NDArray[Any]]:
    """Return what trains one block of the grid."""
    if one_by_one:
        grid = [(schedule, lr) for schedule in schedules.values() for lr in lrs]

        def train_one(block: Rectangle) -> NDArray[Any]:
            schedule, lr = grid[block.arms.start]
            return _as_members(train_one_by_one(training, parts, schedule, lr, seeds[block.seeds.start]), (1, 1))

        return train_one
    ensemble = Ensemble(training, *parts, *size)
    table = learning_rates(list(schedules.values()), lrs, training.total_steps(len(parts[0][0])))

    def train(block: Rectangle) -> NDArray[Any]:
        # a block at the edge of the grid is filled up with copies of its last members
        rows = [*seeds[block.seeds], *[seeds[block.seeds][-1]] * size[0]][: size[0]]
        columns = table[:, block.arms]
        columns = torch.cat([columns, columns[:, -1:].expand(-1, size[1] - columns.shape[1])], dim=1)
        members = _as_members(ensemble.run(rows, columns), size)
        return members[: block.seeds.stop - block.seeds.start, : block.arms.stop - block.arms.start]

    return train


def _member_type(epochs: int) -> np.dtype[Any]:
    curves = [(name, np.float64, (epochs,)) for name in ("train_loss", "val_loss", "val_accuracy")]
    return np.dtype([*curves, ("test_loss", np.float64), ("test_accuracy", np.float64)])


def _as_members(block: Block, size: tuple[int, int]) -> NDArray[Any]:
    members = np.zeros(size[0] * size[1], dtype=_member_type(len(block.val_loss)))
    for name in members.dtype.names or ():
        members[name] = getattr(block, name).movedim(-1, 0).numpy()
    return members.reshape(size)


def _block_size(training: Training, parts: tuple[Rows, Rows, Rows], seeds: int, arms: int) -> tuple[int, int]:
    """Return the seeds and arms of a block; a function of the work, not of the processes that share it."""
    probe = Ensemble(training, *parts, seeds=1, arms=1)
    most = max(1, min(_MOST_MEMBERS, _BLOCK_BYTES // max(1, probe.bytes_per_member)))
    per_block = -(-arms // -(-arms // most))  # as equal as can be
    return 1 if probe.draws_random else max(1, min(seeds, min(most, _MEMBERS) // per_block)), per_block


def _rows(data: TabularDataModule, network: nn.Module) -> tuple[Rows, Rows, Rows]:
    """Return training, validation and test rows in the network's precision."""
    dtype = next((value.dtype for value in network.parameters()), torch.float32)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    parts = [cast("Any", loader.dataset).tensors for loader in loaders]
    train, val, test = ((features.to(dtype), labels) for features, labels in parts)
    return train, val, test


def _turned(difference: PairedDifference) -> PairedDifference:
    return PairedDifference(
        -difference.value, -difference.high, -difference.low, difference.p, difference.won, difference.n
    )


def _check_schedules(schedules: Any) -> dict[str, Schedule]:
    if isinstance(schedules, Schedule) or not isinstance(schedules, (Mapping, Sequence)):
        raise TypeError(f"schedules must be a mapping or a list of schedules, got {schedules!r}")
    pairs = list(schedules.items()) if isinstance(schedules, Mapping) else []
    for entry in () if isinstance(schedules, Mapping) else schedules:
        pairs.append(entry if isinstance(entry, tuple) and len(entry) == 2 else (str(entry), entry))
    if not pairs:
        raise ValueError("schedules must hold at least one schedule, got none")
    for name, schedule in pairs:
        check_schedule(f"schedules[{name!r}]", schedule)
    if doubles := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"schedules must have different names, got {doubles[0]!r} twice")
    return dict(pairs)


def _check_lrs(lrs: Any) -> tuple[float, ...]:
    if isinstance(lrs, (int, float)) or not isinstance(lrs, (Sequence, np.ndarray, Tensor)) or isinstance(lrs, str):
        raise TypeError(f"lrs must be a list of numbers, got {lrs!r}")
    if not len(lrs):
        raise ValueError("lrs must hold at least one LR, got none")
    values = tuple(float(lr) for lr in lrs)
    if wrong := [lr for lr in values if not (math.isfinite(lr) and lr > 0.0)]:
        raise ValueError(f"lrs must be finite and > 0, got {wrong[0]}")
    if len(set(values)) < len(values):
        raise ValueError(f"lrs must differ from each other, got {list(values)}")
    return values


def _check_seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        return tuple(range(seeds))
    if not isinstance(seeds, Sequence) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise TypeError(f"seeds must be a number of seeds or a list of integers, got {seeds!r}")
    if not seeds:
        raise ValueError("seeds must hold at least one seed, got none")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be >= 0, got {min(seeds)}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, got {list(seeds)}")
    return tuple(seeds)


def _check_whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value}")
    return value


def _check_folder(folder: Path, description: dict[str, Any]) -> Path:
    """Write down what is compared in ``folder``, or refuse one that holds something else."""
    file = folder / "comparison.json"
    text = json.dumps(description, indent=1, sort_keys=True)
    if file.exists():
        try:
            there = json.loads(file.read_text())
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise ValueError(f"folder must hold this comparison or nothing; {file} cannot be read")
        ours = json.loads(text)
        if differing := [key for key in ours if ours[key] != there.get(key)]:
            raise ValueError(
                f"folder must hold this comparison or nothing; {folder} holds another, "
                f"which differs in {', '.join(differing)}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder must hold this comparison or nothing; {folder} holds something else")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(str((tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
