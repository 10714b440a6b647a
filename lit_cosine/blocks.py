"""A grid of members cut into blocks, trained in however many processes on however many machines.

Convention: the cut depends on the grid and the size of a block alone, and every process computes with one thread, so
that the numbers are the same whoever trains a block.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from numpy.typing import NDArray

from lit_cosine.block_files import BlockFiles, Members, Rectangle

__all__ = ["cut", "is_first", "launched", "train_blocks"]

_PATIENCE = timedelta(days=30)  # processes that have nothing left to do wait for those that have


def launched() -> tuple[int, int] | None:
    """Return the processes of each node and the nodes that torchrun or SLURM has started; None where neither has.

    Raises:
        ValueError: If they have been started in a way that Lightning cannot work with.
    """
    environment = os.environ
    if TorchElasticEnvironment.detect():
        processes, of_node = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        if processes % of_node:
            raise ValueError(f"torchrun must start as many processes on every node, got {of_node} of {processes}")
    elif SLURMEnvironment.detect() and int(environment["SLURM_NTASKS"]) > 1:
        processes, of_node = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NTASKS_PER_NODE", 0))
        if of_node < 1 or processes % of_node:
            raise ValueError(f"srun must be given --ntasks-per-node, a divisor of the {processes} tasks, got {of_node}")
    else:
        return None
    return of_node, processes // of_node


def is_first(num_nodes: int = 1) -> bool:
    """Return whether this is the process that speaks and writes for all, of all that have been started by hand."""
    if launched() is None:
        return num_nodes == 1 or LightningEnvironment().node_rank() == 0
    environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else SLURMEnvironment()
    return environment.global_rank() == 0


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
    files: BlockFiles | None = None,
    devices: int = 1,
    num_nodes: int = 1,
    on_progress: Callable[[int], None] = lambda trained: None,
) -> Members:
    """Train what is not yet on disk, and return the whole grid; the same in every process.

    Under torchrun or SLURM the processes that they have started share the work; else ``devices`` processes are forked
    where that is more than one, on each of ``num_nodes`` machines that this is called on.

    Args:
        blocks: The cut, from :func:`cut`.
        empty: Zeros in the shape (seeds, arms) and the type of the grid.
        make_train: Called once in each process; what it returns trains one block.
        files: Where finished blocks are kept; nothing is kept where None. Machines need not share the disk.
        devices: Processes on this machine.
        num_nodes: Machines.
        on_progress: Called in the first process with the number of members that are done so far, as far as it knows:
            what other machines have trained it hears at the end.

    Raises:
        ValueError: If the folder is not for this comparison, or the machines cannot find each other.
    """
    started = launched()
    devices, num_nodes = (devices, num_nodes) if started is None else started
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if started is None and num_nodes > 1 and missing:
        raise ValueError(
            f"num_nodes must be 1 where neither torchrun nor SLURM has started the processes and the environment lacks "
            f"{', '.join(missing)}, got {num_nodes}"
        )
    # forked processes share memory with this one: how many members each has trained, and the whole grid at the end,
    # because Fabric's own way back is a pipe, which nobody empties before a process has ended
    trained = torch.from_numpy(_shared(8 * devices * num_nodes).view(np.int64))
    grid = _shared(empty.nbytes).view(empty.dtype).reshape(empty.shape)

    def work(fabric: Fabric) -> str | None:
        if fabric.world_size > 1 and started is None:
            signal.signal(signal.SIGINT, _leave)
        if refusal := _claim(fabric, files):
            return refusal
        with _one_thread():
            members = _work(fabric, blocks, empty.copy(), make_train, files, trained, on_progress)
        if fabric.local_rank == 0 or started:
            grid[:] = members
        return None

    if devices * num_nodes == 1:
        refusal = work(Fabric(accelerator="cpu", devices=1, plugins=LightningEnvironment()))
    else:
        strategy = DDPStrategy(start_method="popen" if started else "fork", timeout=_PATIENCE)
        plugins = None if started else LightningEnvironment()
        if num_nodes == 1 and not started:
            # Fabric keeps the port of the last launch, on which the system may not let it listen again so soon
            os.environ.pop("MASTER_PORT", None)
        fabric = Fabric(accelerator="cpu", devices=devices, num_nodes=num_nodes, strategy=strategy, plugins=plugins)
        if started:
            atexit.register(_leave_group)
        with _quiet(), _no_orphans():
            refusal = fabric.launch(work)
    if refusal:
        raise ValueError(refusal)
    members: Members = grid.copy()
    return members


def _claim(fabric: Fabric, files: BlockFiles | None) -> str | None:
    """Let one process after the other look at the folder; return what any of them says against it, to all of them."""
    refusals = []
    for rank in range(fabric.world_size):
        mine = files.claim() if files is not None and rank == fabric.global_rank else None
        refusals.append(fabric.broadcast(mine, src=rank))
    return next((refusal for refusal in refusals if refusal), None)


def _work(
    fabric: Fabric,
    blocks: Sequence[Rectangle],
    members: Members,
    make_train: Callable[[], Callable[[Rectangle], Members]],
    files: BlockFiles | None,
    trained: torch.Tensor,
    on_progress: Callable[[int], None],
) -> Members:
    kept = files.read(blocks, members) if files else {}
    # the first process that has a block on its disk hands it to all
    has: list[set[int]] = [set(kept)] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(has, set(kept))
    done = {number: rank for rank in reversed(range(fabric.world_size)) for number in has[rank]}
    for number, rank in done.items():
        if rank == fabric.global_rank:
            members[blocks[number].seeds, blocks[number].arms] = kept[number]
    todo = [block for block in blocks if block.number not in done]
    mine = todo[fabric.global_rank :: fabric.world_size]
    before = sum(_size(block) for block in blocks if block.number in done)
    tell = on_progress if fabric.is_global_zero else lambda trained: None
    tell(before)
    train = make_train() if mine else None
    for block in mine:
        part = train(block)  # type: ignore[misc]
        members[block.seeds, block.arms] = part
        if files:
            files.write(block, part)
        trained[fabric.global_rank] += _size(block)
        tell(before + int(trained.sum()))
    if fabric.world_size > 1:
        # every member is zero but in the one process that has it, so the sum is that one's, bit by bit
        torch.distributed.all_reduce(torch.from_numpy(members.view(np.int64).reshape(-1)))
    if files and fabric.is_global_zero:
        files.complete(blocks, members)
    tell(members.size)
    return members


def _size(block: Rectangle) -> int:
    return len(range(block.seeds.start, block.seeds.stop)) * len(range(block.arms.start, block.arms.stop))


def _shared(nbytes: int) -> NDArray[np.uint8]:
    """Return zeros that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, nbytes), dtype=np.uint8)


def _leave_group() -> None:
    """End the threads of the process group before the interpreter does, which now and then aborts over them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _leave(*_: object) -> None:
    """End a forked process at Ctrl-C without a word: its parent speaks."""
    os._exit(130)


@contextmanager
def _no_orphans() -> Iterator[None]:
    """End the processes that were forked inside if this one is told to stop alone."""
    before = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            if process not in before:
                process.terminate()
                process.join()
        raise


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
