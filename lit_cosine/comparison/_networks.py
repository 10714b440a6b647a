"""Comparisons of schedules: the same trainings under every schedule at every LR, for each of several seeds.

Conventions: a member is one training, a (split, seed, schedule, LR). A seed has the same initial weights, batches and
dropout under every schedule, so schedules are compared by differences within a seed. A block is a rectangle of members
that are trained as one. Blocks are cut from the members that are missing: after a stop they are the same as without
it, in a grid that has grown they are others. A member's numbers depend on its block by their rounding alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_cosine._checks import as_integer
from lit_cosine._compat import evaluating
from lit_cosine.comparison._arguments import EXPLODED, check_grid, check_lrs, check_memory, check_optimizer
from lit_cosine.comparison._engines import Engine, EngineName, Failure
from lit_cosine.comparison._journal import Journal, key_of
from lit_cosine.comparison._results import Comparison, OnProgress, showing_so_far
from lit_cosine.comparison.stacked import (
    CURVES,
    FINALS,
    Ensemble,
    OptimizerName,
    Rows,
    Training,
    cross_entropy,
    initial_network,
    learning_rates,
)
from lit_cosine.example import TabularDataModule
from lit_cosine.schedules import Schedule

__all__ = ["Comparison", "compare_networks"]

_BLOCK_BYTES = 16 * 2**20  # the memory of a block should fit into the caches
_MOST_MEMBERS = 128
_MEMBERS = 64  # fewer members spend their time on the overhead of calls; more gain nothing

Parts = tuple[Rows, Rows, Rows]
"""Training, validation and test rows."""


def compare_networks(
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
    splits: int = 1,
    engine: EngineName = "local",
    workers: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
    folder: str | Path | None = None,
    on_progress: OnProgress = lambda done, total, running, failed: None,
) -> Comparison:
    """Train ``network`` under every schedule at every LR for every seed, many at once, and return the results.

    Args:
        network: A class or function without arguments that returns a network, which maps features (batch, …) to
            outputs.
        data: A ``TabularDataModule``, or ``(features, labels)``, split as a ``TabularDataModule`` does.
        schedules: By name, or a list whose names are their descriptions.
        lrs: Peak LRs, each finite and > 0.
        seeds: The number of seeds, or a list of them.
        max_epochs: Length of each training in epochs, >= 1.
        baseline: Name of the schedule that others are compared to; the first where None.
        batch_size: Rows per step, at most the training rows; the DataModule's where None.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        weight_decay: As in ``torch.optim``, >= 0.
        momentum: Of SGD, in [0, 1).
        loss: Maps (outputs, targets) to the mean loss of a batch.
        splits: How many splits of the data, by ``split_seed`` 0, 1, …; with 1 the data is split as it is given. With
            more than one, the split is the unit of inference.
        engine: ``"serial"``, ``"local"`` (processes of one thread each) or ``"ray"``.
        workers: Blocks at a time; the CPUs where None.
        timeout: Seconds that a block of trainings may take, with ``engine="local"``.
        address: ``host:port`` of a Ray cluster.
        folder: Keeps finished blocks: the same call continues after a stop, and a larger grid trains what is new.
        on_progress: Called with the numbers of trainings that are done, in all, running, and failed or diverged.

    Raises:
        NotStackable: If members of this network cannot be trained as one.
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or ``folder`` holds another comparison.

    At Ctrl-C the table of the trainings so far is printed.

    >>> from lit_cosine import Constant, Cosine, SimpleNN, SyntheticDataModule
    >>> schedules = [Constant(), Cosine()]
    >>> found = compare_networks(SimpleNN, SyntheticDataModule(), schedules, [0.01], 2, max_epochs=1, engine="serial")
    >>> found.values("test_accuracy").shape
    (2, 2, 1)
    """
    lrs, (named, seeds, baseline) = check_lrs(lrs), check_grid(schedules, seeds, baseline)
    max_epochs, splits = as_integer("max_epochs", max_epochs, least=1), as_integer("splits", splits, least=1)
    batch_size = None if batch_size is None else as_integer("batch_size", batch_size, least=1)
    check_optimizer(optimizer, weight_decay, momentum)
    check_memory(splits * len(seeds), len(named) * len(lrs), max_epochs)
    runs = Engine(engine, workers, timeout, address, fork=True)
    seeds = tuple(seeds)
    if not isinstance(data, TabularDataModule):
        data = TabularDataModule(data, **({} if batch_size is None else {"batch_size": batch_size}))  # type: ignore[arg-type]
    batch_size = data.batch_size if batch_size is None else batch_size
    training = Training(network, max_epochs, batch_size, optimizer, weight_decay, momentum, loss)
    example = initial_network(training, 0)  # not of the first seed: a folder takes further seeds in any order
    given = (data.dataset, data.batch_size, data.test_size, data.standardize)
    each = [data] if splits == 1 else [TabularDataModule(*given, split_seed=seed) for seed in range(splits)]
    parts = [_rows(split, example) for split in each]
    rows = len(parts[0][0][0])
    if batch_size > rows:
        raise ValueError(f"batch_size must be at most the {rows} training rows, got {batch_size}")
    _check_network(example, training, parts[0])
    arms = list(product(named.values(), lrs))
    size = _block_size(training, parts[0], len(seeds), len(arms))
    digests = [_digest(value for part in each for value in part) for each in parts]
    question = {
        "max_epochs": training.max_epochs,
        "batch_size": training.batch_size,
        "optimizer": {"name": optimizer, "weight_decay": weight_decay, "momentum": momentum},
        # by a value too: lambdas share their name, and modules with other settings their class
        "loss": [
            getattr(loss, "__qualname__", type(loss).__qualname__),
            f"{_initial_loss(training, parts[0][0], 0):.6g}",
        ],
        "network": {"name": type(example).__qualname__, "weights": _digest(example.state_dict().values())},
        "data": digests[0],
    }
    table = learning_rates(list(named.values()), lrs, training.total_steps(rows))
    members = np.full((splits, len(seeds), len(arms)), np.nan, dtype=_member_type(max_epochs))
    there = np.zeros(members.shape, dtype=bool)
    problems: list[str] = []
    plain = [[schedule.to_dict(), lr] for schedule, lr in arms]
    at_seed = {seed: place for place, seed in enumerate(seeds)}
    at_arm = {json.dumps(arm): place for place, arm in enumerate(plain)}

    def fill(row: Mapping[str, Any]) -> None:
        """Take what the grid has of a block that was trained before."""
        rows = {at: at_seed[seed] for at, seed in enumerate(row["seeds"]) if seed in at_seed}
        columns = {at: at_arm[name] for at, arm in enumerate(row["arms"]) if (name := json.dumps(arm)) in at_arm}
        for split in (place for place, digest in enumerate(digests) if digest == row["data"]):
            place = np.ix_([split], [*rows.values()], [*columns.values()])
            for name, values in row["values"].items():
                members[name][place] = np.asarray(values)[np.ix_([*rows], [*columns])]
            there[place] = True

    def found() -> Comparison:
        shape = (splits * len(seeds), len(named), len(lrs))
        return Comparison(
            named,
            lrs,
            seeds,
            baseline,
            training.total_steps(rows) // training.max_epochs,
            members.reshape(shape),
            {
                **question,
                "schedules": {name: schedule.to_dict() for name, schedule in named.items()},
                "lrs": list(lrs),
                "seeds": list(seeds),
                "splits": splits,
                "trained": f"in blocks of {size[0]} seeds x {size[1]} arms",
            },
            splits=tuple(range(splits)),
            overlap=len(parts[0][2][0]) / rows if splits > 1 else 0.0,
            problems=tuple(problems),
            trained=None if there.all() else there.reshape(shape),
        )

    def tell(running: int) -> None:
        bad = there & ~np.isfinite(members["val_loss"]).all(axis=-1)
        running = min(running * size[0] * size[1], int((~there).sum()))
        on_progress(int(there.sum()), there.size, running, int(bad.sum()))

    with Journal(folder, question) as journal, showing_so_far(lambda: (found(), f"{there.sum()} of {there.size}")):
        for row in journal.rows.values():
            fill(row)
        blocks = _cut(~there, size)
        for number, part in runs.run(_Train(training, parts, seeds, table), blocks, tell):
            block = blocks[number]
            there[block.place] = True
            if isinstance(part, Failure):
                problems.append(f"split {block.split}, seeds {[seeds[at] for at in block.seeds]} failed: {part.reason}")
            else:
                row = {
                    "data": digests[block.split],
                    "seeds": [seeds[at] for at in block.seeds],
                    "arms": [plain[at] for at in block.arms],
                    "values": {name: part[name].tolist() for name in part.dtype.names},
                }
                journal.add(key_of({name: row[name] for name in ("data", "seeds", "arms")}), row)
                members[block.place] = part
    for (split, (_, val, _)), (place, seed) in product(enumerate(parts), enumerate(seeds)):
        start = _initial_loss(training, val, seed)
        ends = members["val_loss"][split, place, :, -1]
        members[split, place, (ends > EXPLODED * start) & (start > 0.0)] = np.nan
    return found()


class Block(NamedTuple):
    """A block's place in the grid (splits, seeds, arms)."""

    split: int
    seeds: tuple[int, ...]
    arms: tuple[int, ...]

    @property
    def place(self) -> Any:
        """The index of its members."""
        return np.ix_([self.split], self.seeds, self.arms)


def _cut(missing: NDArray[np.bool_], size: tuple[int, int]) -> list[Block]:
    """Return blocks of at most ``size`` (seeds, arms) of all members that are missing (splits, seeds, arms).

    The seeds of a split that miss the same arms make blocks together. What is missing after a stop are whole blocks of
    the grid, which are cut as they were before.
    """
    blocks = []
    for split, of_split in enumerate(missing):
        groups: dict[tuple[int, ...], list[int]] = {}
        for seed, of_seed in enumerate(of_split):
            groups.setdefault(tuple(np.flatnonzero(of_seed).tolist()), []).append(seed)
        blocks += [
            Block(split, tuple(seeds[seed : seed + size[0]]), arms[arm : arm + size[1]])
            for arms, seeds in groups.items()
            for seed, arm in product(range(0, len(seeds), size[0]), range(0, len(arms), size[1]))
        ]
    return blocks


_ready: dict[tuple[str, int, int, int], Ensemble] = {}
"""The programs that this process has used last; Ray sends the function anew with every block."""


class _Train:
    """Trains blocks of the grid."""

    def __init__(self, training: Training, parts: Sequence[Parts], seeds: tuple[int, ...], table: Tensor) -> None:
        self._training, self._parts, self._seeds, self._table = training, parts, seeds, table
        self._name = uuid4().hex

    def __call__(self, block: Block) -> NDArray[Any]:
        seeds, arms = len(block.seeds), len(block.arms)
        name = (self._name, block.split, seeds, arms)
        if name not in _ready:
            if len(_ready) == 4:  # the blocks of a split have at most four sizes, because of those at the edges
                _ready.clear()
            _ready[name] = Ensemble(self._training, *self._parts[block.split], seeds, arms)
        result = _ready[name].run([self._seeds[at] for at in block.seeds], self._table[:, block.arms])
        members = np.zeros(seeds * arms, dtype=_member_type(self._training.max_epochs))
        for field, value in {**result.curves, **result.finals}.items():
            members[field] = value.movedim(-1, 0).numpy()
        return members.reshape(seeds, arms)


def _member_type(epochs: int) -> np.dtype[Any]:
    return np.dtype([*((name, np.float64, (epochs,)) for name in CURVES), *((name, np.float64) for name in FINALS)])


def _block_size(training: Training, parts: Parts, seeds: int, arms: int) -> tuple[int, int]:
    """Return the number of seeds and arms of a block, which depends on the work but not on the processes."""
    probe = Ensemble(training, *parts, seeds=1, arms=1)
    most = max(1, min(_MOST_MEMBERS, _BLOCK_BYTES // max(1, probe.bytes_per_member)))
    per_block = -(-arms // -(-arms // most))  # the smallest number of blocks, of nearly equal size
    return 1 if probe.draws_random else max(1, min(seeds, min(most, _MEMBERS) // per_block)), per_block


def _rows(data: TabularDataModule, network: nn.Module) -> Parts:
    """Return training, validation and test rows in the network's precision."""
    dtype = next((value.dtype for value in network.parameters()), torch.float32)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    parts = [cast("Any", loader.dataset).tensors for loader in loaders]
    train, val, test = ((features.to(dtype), labels) for features, labels in parts)
    return train, val, test


def _check_network(network: nn.Module, training: Training, parts: Parts) -> None:
    """Refuse a network that does not take the features, or whose outputs the loss does not take."""
    features, labels = (rows[: training.batch_size] for rows in parts[0])
    try:
        with torch.random.fork_rng(devices=[]), evaluating(network):
            outputs = network(features)
            training.loss(outputs, labels)
    except Exception as error:  # the network is the user's code
        raise ValueError(
            f"network must map features {tuple(features.shape)} to what the loss takes, "
            f"but there was {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    if training.loss is cross_entropy:
        classes = 1 + max(int(targets.max()) for _, targets in parts)
        if outputs.shape != (len(features), outputs.shape[-1]) or outputs.shape[-1] < classes:
            raise ValueError(
                f"network must give outputs (rows, classes) with an output for each of the {classes} classes, "
                f"got {tuple(outputs.shape)}"
            )


def _initial_loss(training: Training, rows: Rows, seed: int) -> float:
    """Return the loss on ``rows`` of a seed's network before its first update."""
    network = initial_network(training, seed)
    with torch.random.fork_rng(devices=[]), evaluating(network):
        return float(training.loss(network(rows[0]), rows[1]))


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(str((tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
