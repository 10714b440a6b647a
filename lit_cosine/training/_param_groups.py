"""Entries of an optimizer's param groups: their names, checks, and an update that was skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_cosine._checks import check_text, in_one_line
from lit_cosine._compat import last_written_lrs, tensor_version
from lit_cosine.schedules import with_hint

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = [
    "IdleScheduler",
    "check_key",
    "check_order",
    "group_names",
    "has_entry",
    "loss_scale",
    "lr_names",
    "optimizer_names",
    "own_names",
    "read_entry",
    "restore_peaks",
    "same_value",
    "set_entry",
    "set_own_names",
    "skipped_update",
]

_BETAS = {"beta1": 0, "beta2": 1}


def read_entry(group: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a param group, None where it has none; ``beta1`` and ``beta2`` are the two of ``betas``."""
    if key in _BETAS and key not in group:
        return group["betas"][_BETAS[key]] if "betas" in group else None
    return group.get(key)


def has_entry(optimizer: Optimizer, key: str) -> bool:
    """Return whether one of the groups has the entry."""
    return any(read_entry(group, key) is not None for group in optimizer.param_groups)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | Tensor) and not isinstance(value, bool)


def check_key(optimizer: Optimizer, key: str, others: Sequence[str] = ()) -> None:
    """Refuse an entry that no param group has, or that is no number; ``others`` are what else may have been meant."""
    check_text("key", key)
    values = [read_entry(group, key) for group in optimizer.param_groups]
    if not all(value is None or _is_number(value) for value in values) or all(value is None for value in values):
        group = optimizer.param_groups[0]
        known = [name for name in (*group, *_BETAS) if name != "params" and _is_number(read_entry(group, name))]
        which = f"{in_one_line(key, 80)} is not a number in the param groups of {type(optimizer).__name__}"
        raise ValueError(with_hint(f"{which}, so it cannot be scheduled", key, (*known, *others)))


def own_names(optimizer: Optimizer) -> list[str | None]:
    """Return the names that the groups were given."""
    return [group.get("name") for group in optimizer.param_groups]


def set_own_names(optimizer: Optimizer, names: Sequence[str | None]) -> None:
    """Give the groups their names in the code, after ``Optimizer.load_state_dict`` gave them the checkpoint's."""
    for group, name in zip(optimizer.param_groups, names, strict=False):
        if name is not None:
            group["name"] = name


def group_names(optimizer: Optimizer, index: int, label: str | None = None) -> tuple[str, ...]:
    """Return all names of a group: its own, ``pg1``, and what loggers call it, ``label/pg1``."""
    label, place = label or f"lr-{type(optimizer).__name__}", f"pg{index + 1}"
    name = optimizer.param_groups[index].get("name")
    names = (place, f"{label}/{place}") if name is None else (str(name), place, f"{label}/{name}", f"{label}/{place}")
    return (*names, label) if len(optimizer.param_groups) == 1 else names


def check_order(names: Sequence[str | None], saved: Sequence[str | None]) -> None:
    """Refuse groups that stand in another order than in the checkpoint, which torch restores by position."""
    for index, name in enumerate(saved):
        if name is not None and name in names and names.index(name) != index:
            raise ValueError(
                f"the param group {name} is number {names.index(name) + 1} in this run and {index + 1} in the "
                "checkpoint, and torch restores groups by position: give the optimizer its groups in the old order"
            )


def optimizer_names(optimizers: Sequence[Any]) -> list[str]:
    """Return a name for every optimizer, its class and from the second of a class on a number: ``Adam``, ``Adam-1``."""
    names, seen = [], Counter[str]()
    for optimizer in optimizers:
        cls = type(optimizer).__name__
        names.append(f"{cls}-{seen[cls]}" if seen[cls] else cls)
        seen[cls] += 1
    return names


def lr_names(optimizers: Sequence[Any], configs: Sequence[Any] = ()) -> list[list[str]]:
    """Return LearningRateMonitor's names for every group of every optimizer: ``lr-Adam``, ``lr-Adam-1/pg2``.

    A ``name`` in ``configs``, the Trainer's ``lr_scheduler_configs``, replaces ``lr-Adam``.
    """
    given = {id(config.scheduler.optimizer): config.name for config in reversed(configs) if config.name}
    by_class = iter(optimizer_names([optimizer for optimizer in optimizers if id(optimizer) not in given]))
    names = []
    for optimizer in optimizers:
        name, groups = given.get(id(optimizer)) or f"lr-{next(by_class)}", optimizer.param_groups
        suffixes = [group.get("name", f"pg{index}") for index, group in enumerate(groups, start=1)]
        if len(groups) == 1 and "name" not in groups[0]:
            names.append([name])
        else:
            names.append([f"{name}/{suffix}" for suffix in suffixes])
    return names


def skipped_update(optimizer: Optimizer) -> bool:
    """Return whether the step just made changed no weight: a fused optimizer skips in its kernel."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and _is_true(found_inf, tensor_version(found_inf))


def loss_scale(trainer: Trainer) -> float:
    """Return the factor of a GradScaler, which falls where it has skipped an update; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


@lru_cache(maxsize=1)
def _is_true(tensor: Tensor, version: int) -> bool:
    # of one update, every callback asks, and the first answer is kept: it waits for the device
    return bool(tensor)


def same_value(entry: float | Tensor, value: float) -> bool:
    """Return whether ``entry`` holds ``value``, to its own precision."""
    return bool(entry == torch.tensor(value, dtype=entry.dtype)) if isinstance(entry, Tensor) else entry == value


def set_entry(group: dict[str, Any], key: str, value: float) -> None:
    """Write ``value`` to an entry of a param group; a tensor is filled in place, for captured optimizer steps."""
    entry = read_entry(group, key)
    if isinstance(entry, Tensor):
        entry.fill_(value)
    elif key in group:
        group[key] = value
    elif entry is not None:
        betas = [*group["betas"]]
        betas[_BETAS[key]] = value
        group["betas"] = tuple(betas)


# what schedulers of torch add to a param group
_EXTRA = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")

_MOST_SAMPLES = 10_000
"""Steps of a LambdaLR that are looked at for the highest LR that it reaches."""


def restore_peaks(scheduler: Any) -> tuple[list[float], list[float]]:
    """Undo what a replaced scheduler has written; return the groups' peak LRs, and the highest that it would reach."""
    optimizer, written = scheduler.optimizer, last_written_lrs(scheduler)
    lambdas = getattr(scheduler, "lr_lambdas", None) or ()
    peaks, reached = [], []
    for index, group in enumerate(optimizer.param_groups):
        peak = group.get("max_lr", group.get("initial_lr", group["lr"]))
        peaks.append(float(peak))
        reached.append(float(peak) * (_highest_factor(lambdas[index]) if index < len(lambdas) else 1.0))
        # otherwise an LR finder has set the LR since, or the group joined later
        if written is None or (index < len(written) and float(group["lr"]) == written[index]):
            set_entry(group, "lr", peak)
        if "max_momentum" in group or "base_momentum" in group:  # by OneCycleLR and CyclicLR
            for entry in ("momentum", "betas"):
                if entry in group and entry in optimizer.defaults:
                    group[entry] = optimizer.defaults[entry]
        for entry in _EXTRA:
            group.pop(entry, None)
    return peaks, reached


def _highest_factor(function: Callable[[int], float]) -> float:
    """Return the highest factor of a LambdaLR's function, at least 1."""
    highest = 1.0
    with suppress(Exception):  # a function may know the steps of its own run only, as one that reads a list
        for step in range(_MOST_SAMPLES):
            highest = max(highest, float(function(step)))
    return highest


class IdleScheduler:
    """What ``self.lr_schedulers()`` returns under manual optimization in place of a replaced scheduler."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the module may go on calling it."""

    def get_last_lr(self) -> list[float]:
        """Return the LR of every group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state: it may be of the scheduler that was replaced."""
