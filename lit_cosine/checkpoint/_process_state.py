"""What every process adds to a checkpoint beside Lightning's entries: random states and the metrics of the epoch.

Convention: it is one entry of the checkpoint, ``lit_cosine``, with a list that holds one dict for each process.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed

from lit_cosine._checks import STATE_VERSION, read_state, shown
from lit_cosine._compat import restart_iterators, tree_leaves
from lit_cosine.checkpoint._checkpoint_file import CheckpointError
from lit_cosine.checkpoint._epoch_metrics import check_epoch_metrics, epoch_metrics, merge_epoch_metrics
from lit_cosine.checkpoint._sampler import EpochSampler

__all__ = ["ProcessState"]

_KEY = "lit_cosine"


class ProcessState:
    """This process's part of a checkpoint."""

    def __init__(self) -> None:
        self._loaded: Mapping[str, Any] | None = None
        self._metrics: dict[str, Any] = {}

    def save(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the state of every process into ``checkpoint``."""
        mine = {
            "random": _random_state(pl_module.device, tree_leaves(trainer.train_dataloader)),
            "metrics": epoch_metrics(trainer, pl_module),
        }
        states = [mine]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            distributed.all_gather_object(states, mine)
        checkpoint[_KEY] = {"version": STATE_VERSION, "processes": states}

    def load(self, trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's state out of ``checkpoint``; refuse that of another number of processes."""
        if _KEY not in checkpoint:
            rank_zero_warn("the checkpoint was written without ExactResume: it has no random states; resuming the rest")
            return
        states = read_state("ExactResume", checkpoint[_KEY], {"processes": []})["processes"]
        if not isinstance(states, list) or not all(isinstance(state, Mapping) for state in states):
            raise CheckpointError(f"the states of processes in a checkpoint must be dicts, got {shown(states)}")
        if len(states) != trainer.world_size:
            raise ValueError(
                f"the checkpoint was written by {len(states)} processes and this run has {trainer.world_size}: batches "
                f"and random numbers would differ; resume with {len(states)}, or start a new run from its weights"
            )
        self._loaded = states[trainer.global_rank]

    def restore(self, trainer: Trainer, pl_module: LightningModule, loaders: Sequence[Any], batches: int) -> bool:
        """In ``on_train_start``, ``batches`` into the epoch, restore what was loaded; return whether anything was."""
        if self._loaded is None:
            return False
        loaded, self._loaded = self._loaded, None
        _set_random_state(loaded.get("random"), pl_module.device, loaders)
        if batches == 0:
            restart_iterators(trainer)
        else:
            self._metrics = loaded.get("metrics", {})
            check_epoch_metrics(self._metrics)
        return True

    def after_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the metrics of a resumed epoch, once its first batch has updated them."""
        if self._metrics:
            merge_epoch_metrics(self._metrics, trainer, pl_module)

    def after_epoch(self) -> None:
        """Forget the metrics of an epoch that has ended."""
        self._metrics = {}


def _random_state(device: torch.device, loaders: Sequence[Any]) -> dict[str, Any]:
    """Return the states of torch's, Python's and numpy's global generators and those of ``device`` and ``loaders``."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],  # an array would not load with weights_only=True
        "loaders": [None if generator is None else generator.get_state() for generator in _generators(loaders)],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random_state(state: Any, device: torch.device, loaders: Sequence[Any]) -> None:
    """Restore what :func:`_random_state` returned; refuse anything else."""
    try:
        torch.set_rng_state(state["torch"])
        version, keys, gauss = state["python"]
        random.setstate((version, tuple(keys), gauss))
        np.random.set_state(tuple(state["numpy"]))
        for generator, saved in zip(_generators(loaders), state.get("loaders", ()), strict=False):
            if generator is not None and saved is not None:
                generator.set_state(saved)
        if device.type != "cpu" and "device" in state:
            torch.get_device_module(device).set_rng_state(state["device"], device)
    except (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the random states in the checkpoint cannot be restored: {shown(str(error))}") from error


def _generators(loaders: Sequence[Any]) -> list[torch.Generator | None]:
    """Return the generator of each loader that has one; an EpochSampler seeds its own anew in every epoch."""
    found = []
    for loader in loaders:
        sampler = getattr(loader, "sampler", None)
        # torchdata's RandomSampler has a generator even where its loader was given none
        generator = getattr(loader, "generator", None) or getattr(sampler, "generator", None)
        known = isinstance(generator, torch.Generator) and not isinstance(sampler, EpochSampler)
        found.append(generator if known else None)
    return found
