"""Checks of the arguments of :func:`lit_cosine.compare_networks`, which the command line uses too.

Convention: nothing here imports torch or numpy, so that a wrong command line is refused within a second. A message
names the argument, the rule and the value.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_cosine._checks import as_integer, as_number, check_choice, check_text, shown
from lit_cosine.schedules import Schedule, check_schedule

__all__ = [
    "EXPLODED",
    "OPTIMIZERS",
    "SECONDS",
    "check_grid",
    "check_lrs",
    "check_memory",
    "check_optimizer",
]

OPTIMIZERS = ("adam", "adamw", "sgd")

EXPLODED = 1000.0
"""A loss that ends above this multiple of its first value has diverged."""

SECONDS = {"article": 100, "digits": 200, "breast_cancer": 100, "char": 1000, "mnist1d": 700}
"""The data sets on which claims are judged, with the approximate seconds that their trainings take on one core."""


def check_grid(schedules: Any, seeds: Any, baseline: str | None) -> tuple[dict[str, Schedule], Sequence[int], str]:
    """Return the schedules by name, the seeds, and the name of the baseline.

    Args:
        schedules: A mapping, or a list of schedules and (name, schedule).
        seeds: Their number n, which stands for 0, …, n - 1, or a list. A number gives a range, which needs no memory.
        baseline: The first schedule's where None.

    >>> from lit_cosine import Cosine
    >>> check_grid([Cosine(), ("low", Cosine(end=0.1))], 3, None)
    ({'cosine 1 -> 0': Cosine(...), 'low': Cosine(...)}, range(0, 3), 'cosine 1 -> 0')
    """
    named = _check_schedules(schedules)
    baseline = next(iter(named)) if baseline is None else baseline
    if baseline not in named:
        raise ValueError(f"baseline must be one of {', '.join(named)}, got {shown(baseline)}")
    return named, _check_seeds(seeds), baseline


def _check_schedules(schedules: Any) -> dict[str, Schedule]:
    if isinstance(schedules, Schedule) or not isinstance(schedules, (Mapping, Sequence)):
        raise TypeError(f"schedules must be a mapping or a list of schedules, got {shown(schedules)}")
    pairs = list(schedules.items()) if isinstance(schedules, Mapping) else []
    for entry in () if isinstance(schedules, Mapping) else schedules:
        pairs.append(entry if isinstance(entry, tuple) and len(entry) == 2 else (str(entry), entry))
    if not pairs:
        raise ValueError("schedules must hold at least one schedule, got none")
    for name, schedule in pairs:
        check_text("names of schedules", name)
        check_schedule(f"schedules[{shown(name)}]", schedule)
    if doubles := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"schedules must have different names, got {shown(doubles[0])} twice")
    return dict(pairs)


def _check_seeds(seeds: Any) -> Sequence[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return range(as_integer("seeds", seeds, least=1))
    if not isinstance(seeds, Sequence) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise TypeError(f"seeds must be a number of seeds or a list of integers, got {shown(seeds)}")
    if not seeds:
        raise ValueError("seeds must hold at least one seed, got none")
    for seed in seeds:
        as_integer("seeds", seed, 0, most=2**32 - 1)  # Lightning takes 0 for a larger one
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, got {shown(list(seeds))}")
    return seeds


def check_lrs(lrs: Any, name: str = "lrs") -> tuple[float, ...]:
    """Return the LRs; also those of an array or a tensor of one dimension.

    >>> check_lrs([0.1, 0])
    Traceback (most recent call last):
    ValueError: lrs must be finite and > 0, got 0.0
    """
    try:
        if isinstance(lrs, str) or not isinstance(lrs, Iterable):
            raise TypeError
        values = tuple(float(lr) for lr in lrs)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a list of numbers, got {shown(lrs)}") from None
    if not values:
        raise ValueError(f"{name} must hold at least one LR, got none")
    for lr in values:
        as_number(name, lr, above=0.0)
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must differ from each other, got {shown(list(values))}")
    return values


def check_optimizer(optimizer: str, weight_decay: float, momentum: float) -> None:
    """Refuse an unknown optimizer, and a weight decay or a momentum out of range."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    as_number("weight_decay", weight_decay, least=0.0)
    if not 0.0 <= as_number("momentum", momentum) < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")


def check_memory(seeds: int, arms: int, max_epochs: int) -> None:
    """Refuse a grid of trainings whose curves do not fit into this machine's memory.

    >>> check_memory(seeds=10**12, arms=77, max_epochs=10)
    Traceback (most recent call last):
    ValueError: seeds x schedules x lrs x max_epochs must fit into memory; ... need ... GiB and ...
    """
    # three numbers an epoch and two at the end, three times: the grid, the copy of a process, and the gathered result
    needed = 3 * 8 * (3 * max_epochs + 2) * seeds * arms
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"seeds x schedules x lrs x max_epochs must fit into memory; {seeds * arms} trainings of {max_epochs} "
            f"epochs need {needed / 2**30:.0f} GiB and this machine has {there / 2**30:.0f}"
        )
