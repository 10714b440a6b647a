"""Checks of the arguments of :func:`lit_cosine.compare_networks`, which the command line uses too.

Convention: nothing here imports torch or numpy, so that a wrong command line is refused within a second. A message
names the argument, the rule and the value.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_cosine._checks import as_number, check_choice, check_text, shown
from lit_cosine.schedules import Schedule, check_schedule

__all__ = [
    "EXPLODED",
    "OPTIMIZERS",
    "SECONDS",
    "check_baseline",
    "check_lrs",
    "check_memory",
    "check_optimizer",
    "check_schedules",
    "check_seeds",
]

OPTIMIZERS = ("adam", "adamw", "sgd")

EXPLODED = 1000.0
"""A loss that ends above this multiple of its first value has diverged."""

SECONDS = {"article": 100, "digits": 200, "breast_cancer": 100, "char": 1000, "mnist1d": 700}
"""The data sets on which claims are judged, with the approximate seconds that their trainings take on one core."""


def check_schedules(schedules: Any) -> dict[str, Schedule]:
    """Return the schedules by name, from a mapping or from a list of schedules and (name, schedule).

    >>> from lit_cosine import Cosine
    >>> check_schedules([Cosine(), ("low", Cosine(end=0.1))])
    {'cosine 1 -> 0': Cosine(start=1.0, end=0.0, k=1.0), 'low': Cosine(start=1.0, end=0.1, k=1.0)}
    """
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


def check_baseline(baseline: str | None, schedules: Mapping[str, Schedule]) -> str:
    """Return the name of the baseline; the first schedule's where None."""
    baseline = next(iter(schedules)) if baseline is None else baseline
    if baseline not in schedules:
        raise ValueError(f"baseline must be one of {', '.join(schedules)}, got {shown(baseline)}")
    return baseline


def check_lrs(lrs: Any) -> tuple[float, ...]:
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
        raise TypeError(f"lrs must be a list of numbers, got {shown(lrs)}") from None
    if not values:
        raise ValueError("lrs must hold at least one LR, got none")
    if wrong := [lr for lr in values if not (math.isfinite(lr) and lr > 0.0)]:
        raise ValueError(f"lrs must be finite and > 0, got {wrong[0]}")
    if len(set(values)) < len(values):
        raise ValueError(f"lrs must differ from each other, got {shown(list(values))}")
    return values


def check_seeds(seeds: Any) -> Sequence[int]:
    """Return the seeds; a number n of seeds stands for 0, …, n - 1 and gives a range, which needs no memory."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {shown(seeds)}")
        if seeds > sys.maxsize:
            raise ValueError(f"seeds must be at most {sys.maxsize}, got {shown(seeds)}")
        return range(seeds)
    if not isinstance(seeds, Sequence) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise TypeError(f"seeds must be a number of seeds or a list of integers, got {shown(seeds)}")
    if not seeds:
        raise ValueError("seeds must hold at least one seed, got none")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be >= 0, got {shown(min(seeds))}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ from each other, got {list(seeds)}")
    return seeds


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
