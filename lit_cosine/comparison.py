"""Schedules compared: the same trainings under every schedule at every LR, seed by seed.

Conventions: a member is one training, a (seed, schedule, LR). A seed has the same initial weights, batches and dropout
under every schedule, so schedules are compared by differences within a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_cosine.block_files import BlockFiles, Rectangle
from lit_cosine.blocks import cut, launched, train_blocks
from lit_cosine.compare_arguments import (
    check_baseline,
    check_lrs,
    check_memory,
    check_optimizer,
    check_schedules,
    check_seeds,
    check_whole,
)
from lit_cosine.data import TabularDataModule
from lit_cosine.ensemble import Block, Ensemble
from lit_cosine.member import Rows, Training, cross_entropy, initial_network, learning_rates
from lit_cosine.one_by_one import train_one_by_one
from lit_cosine.results import Comparison
from lit_cosine.schedules import Schedule
from lit_cosine.update_rules import OptimizerName

__all__ = ["Comparison", "compare"]

_BLOCK_BYTES = 16 * 2**20  # what a block computes on should stay in the caches
_MOST_MEMBERS = 128
_MEMBERS = 64  # below this the cost of a call shows, above it nothing is gained


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
    idle: bool = False,
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
        batch_size: Rows per step, at most the training rows; the DataModule's where None.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        weight_decay: As in ``torch.optim``, >= 0.
        momentum: Of SGD, in [0, 1).
        loss: Maps (outputs, targets) to the mean loss of a batch.
        folder: Keeps finished blocks, so that the same call goes on where this one was stopped.
        devices: Processes on this machine, of one thread each; where None two, if there is work for two.
        num_nodes: Machines. What torchrun or SLURM has started takes the place of both.
        idle: Whether there may be more processes than blocks; some have nothing to do then.
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
    named, lrs, seeds = check_schedules(schedules), check_lrs(lrs), check_seeds(seeds)
    baseline = check_baseline(baseline, named)
    check_whole("max_epochs", max_epochs)
    check_whole("num_nodes", num_nodes)
    for name, value in (("batch_size", batch_size), ("devices", devices)):
        if value is not None:
            check_whole(name, value)
    check_optimizer(optimizer, weight_decay, momentum)
    check_memory(len(seeds), len(named) * len(lrs), max_epochs)
    seeds = tuple(seeds)
    data = data if isinstance(data, TabularDataModule) else TabularDataModule(data)
    data.setup()
    batch_size = data.batch_size if batch_size is None else batch_size
    training = Training(network, max_epochs, batch_size, optimizer, weight_decay, momentum, loss)
    example = initial_network(training, seeds[0])
    parts = _rows(data, example)
    rows = len(parts[0][0])
    if batch_size > rows:
        raise ValueError(f"batch_size must be at most the {rows} training rows, got {batch_size}")
    _check_network(example, training, parts)
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
    devices, num_nodes = _processes(devices, num_nodes, len(blocks), idle)
    empty = np.zeros((len(seeds), arms), dtype=_member_type(training.max_epochs))
    members = train_blocks(
        blocks,
        empty,
        lambda: _trainer(training, parts, named, lrs, seeds, size, one_by_one),
        None if folder is None else BlockFiles(Path(folder), description),
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


def _processes(devices: int | None, num_nodes: int, blocks: int, idle: bool) -> tuple[int, int]:
    """Return the processes of each machine and the machines; refuse more than there are blocks, or leave some out."""
    if started := launched():
        devices, num_nodes = started
    elif devices is None or idle:
        most = min(2, torch.multiprocessing.cpu_count()) if devices is None else devices
        devices = max(1, min(most, blocks // num_nodes))
    if devices * num_nodes > blocks and not idle:
        raise ValueError(
            f"devices * num_nodes must be at most the {blocks} blocks of this comparison, got {devices} * {num_nodes}"
        )
    return devices, num_nodes


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


def _check_network(network: nn.Module, training: Training, parts: tuple[Rows, Rows, Rows]) -> None:
    """Refuse a network that does not take the features, or gives what the loss does not take."""
    features, labels = (rows[: training.batch_size] for rows in parts[0])
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            outputs = network(features)
            training.loss(outputs, labels)
    except Exception as error:  # of whatever type the network's is
        raise ValueError(
            f"network must map features {tuple(features.shape)} to what the loss takes, "
            f"but there was {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        ) from error
    finally:
        network.train()
    if training.loss is cross_entropy:
        classes = 1 + max(int(targets.max()) for _, targets in parts)
        if outputs.shape != (len(features), outputs.shape[-1]) or outputs.shape[-1] < classes:
            raise ValueError(
                f"network must give outputs (rows, classes) with an output for each of the {classes} classes, "
                f"got {tuple(outputs.shape)}"
            )


def _digest(values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(str((tuple(value.shape), value.dtype)).encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
