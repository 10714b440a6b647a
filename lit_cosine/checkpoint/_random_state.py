"""The states of this process's random number generators, as plain data that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lit_cosine._checks import shown
from lit_cosine.checkpoint._checkpoint_file import CheckpointError
from lit_cosine.checkpoint._sampler import EpochSampler

__all__ = ["random_state", "set_random_state"]


def random_state(device: torch.device, loaders: Sequence[Any]) -> dict[str, Any]:
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


def set_random_state(state: Any, device: torch.device, loaders: Sequence[Any]) -> None:
    """Restore what :func:`random_state` returned; refuse anything else."""
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
