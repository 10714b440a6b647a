"""A grid of members cut into blocks, trained in however many processes, kept on disk as they finish.

Convention: the cut depends on the grid and the size of a block alone, and every process computes with one thread, so
that the numbers are the same whoever trains a block. A block's file is written beside its place and moved there.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from numpy.typing import NDArray

__all__ = ["Rectangle", "cut", "train_blocks"]

Members = NDArray[Any]
"""A structured array; its fields are what a training gives."""


@dataclass(frozen=True)
class Rectangle:
    """One block's place in the grid.

    Attributes:
        number: Its number, from 0.
        seeds: Its rows.
        arms: Its columns.
    """

    number: int
    seeds: slice
    arms: slice


def cut(seeds: int, arms: int, seeds_per_block: int, arms_per_block: int) -> list[Rectangle]:
    """Return the blocks that cover a grid of ``seeds`` x ``arms``, those of a block's size or less.

    >>> [(block.seeds, block.arms) for block in cut(3, 2, seeds_per_block=2, arms_per_block=2)]
    [(slice(0, 2, None), slice(0, 2, None)), (slice(2, 3, None), slice(0, 2, None))]
    """
    places = [
        (slice(seed, min(seed + seeds_per_block, seeds)), slice(arm, min(arm + arms_per_block, arms)))
        for seed in range(0, seeds, seeds_per_block)
        for arm in range(0, arms, arms_per_block)
    ]
    return [Rectangle(number, *place) for number, place in enumerate(places)]


def train_blocks(
    blocks: Sequence[Rectangle],
    empty: Members,
    make_train: Callable[[], Callable[[Rectangle], Members]],
    folder: Path | None = None,
    devices: int = 1,
    num_nodes: int = 1,
    on_progress: Callable[[int], None] = lambda trained: None,
) -> Members:
    """Train what is not yet on disk, and return the whole grid; the same in every process.

    Under torchrun or SLURM the processes that they started share the work; else ``devices`` processes are forked where
    that is more than one.

    Args:
        blocks: The cut, from :func:`cut`.
        empty: Zeros in the shape (seeds, arms) and the type of the grid.
        make_train: Called once in each process; what it returns trains one block.
        folder: Where finished blocks are kept; nothing is kept where None.
        devices: Processes on this machine.
        num_nodes: Machines.
        on_progress: Called in the first process with the number of members that are done so far.

    Raises:
        ValueError: If there are more processes than blocks.
    """
    launched = TorchElasticEnvironment.detect() or SLURMEnvironment.detect()
    if launched:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or devices)
    if devices * num_nodes > len(blocks):
        raise ValueError(
            f"devices * num_nodes must be at most the {len(blocks)} blocks of this comparison, "
            f"got {devices} * {num_nodes}"
        )
    # forked processes share memory with this one: how many members each has trained, and the whole grid at the end,
    # because Fabric's own way back is a pipe, which nobody empties before a process has ended
    trained = torch.from_numpy(_shared(8 * devices * num_nodes).view(np.int64))
    grid = _shared(empty.nbytes).view(empty.dtype).reshape(empty.shape)

    def work(fabric: Fabric) -> None:
        if fabric.world_size > 1 and not launched:
            signal.signal(signal.SIGINT, _leave)
        with _one_thread():
            members = _work(fabric, blocks, empty.copy(), make_train, folder, trained, on_progress)
        if fabric.local_rank == 0 or launched:
            grid[:] = members

    if devices * num_nodes == 1 and not launched:
        work(Fabric(accelerator="cpu", devices=1))
    else:
        strategy = "ddp" if launched else "ddp_fork"
        if not launched:
            # Fabric keeps the port of the last launch, on which the system may not let it listen again so soon
            os.environ.pop("MASTER_PORT", None)
        with _quiet():
            Fabric(accelerator="cpu", devices=devices, num_nodes=num_nodes, strategy=strategy).launch(work)
    members: Members = grid.copy()
    return members


def _work(
    fabric: Fabric,
    blocks: Sequence[Rectangle],
    members: Members,
    make_train: Callable[[], Callable[[Rectangle], Members]],
    folder: Path | None,
    trained: torch.Tensor,
    on_progress: Callable[[int], None],
) -> Members:
    kept = _read(blocks, members, folder) if fabric.is_global_zero else {}
    done: set[int] = fabric.broadcast(set(kept))
    for number, part in kept.items():
        members[blocks[number].seeds, blocks[number].arms] = part
    todo = [block for block in blocks if block.number not in done]
    mine = todo[fabric.global_rank :: fabric.world_size]
    before = sum(_size(block) for block in blocks if block.number in done)
    on_progress(before)
    train = make_train() if mine else None
    for block in mine:
        part = train(block)  # type: ignore[misc]
        members[block.seeds, block.arms] = part
        _write(folder, block, part)
        trained[fabric.global_rank] += _size(block)
        on_progress(before + int(trained.sum()))
    if fabric.world_size > 1:
        # every member is zero but in the one process that has it, so the sum is that one's bits
        flat = torch.from_numpy(members.view(np.float64).reshape(-1))
        torch.distributed.all_reduce(flat)
        if fabric.is_global_zero:  # where the processes share no disk
            for block in todo:
                place = _place(folder, block)
                if place is not None and not place.exists():
                    _write(folder, block, members[block.seeds, block.arms])
    on_progress(members.size)
    return members


def _size(block: Rectangle) -> int:
    return len(range(block.seeds.start, block.seeds.stop)) * len(range(block.arms.start, block.arms.stop))


def _place(folder: Path | None, block: Rectangle) -> Path | None:
    return None if folder is None else folder / "blocks" / f"{block.number:05d}.npy"


def _read(blocks: Sequence[Rectangle], members: Members, folder: Path | None) -> dict[int, Members]:
    """Return the blocks that are on disk whole; one that is damaged is trained again."""
    kept = {}
    for block in blocks:
        place = _place(folder, block)
        if place is None or not place.exists():
            continue
        try:
            part = np.load(place)
        except (OSError, ValueError, EOFError):
            continue
        if part.dtype == members.dtype and part.shape == members[block.seeds, block.arms].shape:
            kept[block.number] = part
    return kept


def _write(folder: Path | None, block: Rectangle, part: Members) -> None:
    place = _place(folder, block)
    if place is None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".unfinished-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _shared(nbytes: int) -> NDArray[np.uint8]:
    """Return zeros that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, nbytes), dtype=np.uint8)


def _leave(*_: object) -> None:
    """End a forked process at Ctrl-C without a word: its parent speaks."""
    os._exit(130)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the messages about process groups down."""
    names = ("fabric.utilities.distributed", "fabric.utilities.rank_zero", "pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(f"lightning.{name}") for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
