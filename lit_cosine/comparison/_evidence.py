"""Each schedule at the best LR of a grid of its own, on several data sets: what the claims are judged by.

Convention: a grid is a part of 0.01 · 2^k. It starts with three LRs around the one that the convergence bound suggests,
and gets further ones until the best, by the mean validation loss, has a neighbour on both sides. Tasks that take long
choose their LRs on the first five splits alone.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lit_cosine.comparison._claims import HALF, ClaimVerdict, Evidence, Found, flatter_cross_entropy
from lit_cosine.comparison._compare import compare
from lit_cosine.comparison._networks import compare_networks
from lit_cosine.comparison._results import Comparison
from lit_cosine.example import SimpleNN, SyntheticDataModule, TabularDataModule
from lit_cosine.schedules import (
    Constant,
    Cosine,
    Linear,
    OneMinusSqrt,
    Schedule,
    Sequential,
    Step,
    convergence_bound,
    warmup_stable_decay,
)

__all__ = ["CONTESTANTS", "gather", "record"]

CONTESTANTS: dict[str, Schedule] = {
    "constant": Constant(),
    "linear": Linear(),
    "cosine": Cosine(),
    "cosine to 10 %": Cosine(end=0.1),
    "constant, last 20 % 1-sqrt": warmup_stable_decay(0.0, 0.2),
    "constant, last 20 % linear": Sequential((Constant(), Linear()), (0.8,)),
    "1-sqrt": OneMinusSqrt(),
    "step": Step(),
    "late cosine": Sequential((Constant(), Cosine()), (0.8,)),
}
AVERAGED = "constant + averaging"
_AVERAGING = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.98}}

_TABULAR: dict[str, Callable[..., TabularDataModule]] = {
    "article": SyntheticDataModule,
    "digits": partial(TabularDataModule, "digits", standardize=True),
    "breast_cancer": partial(TabularDataModule, "breast_cancer", standardize=True),
}
_LATTICE, _LINEAR_PEAK = 0.01, 0.02
_WIDE = [_LATTICE * 2.0**k for k in range(-4, 5)]
_GRID_SPLITS = 5
_MOST_WIDENINGS = 6

_Train = Callable[[str, Mapping[str, Schedule], Sequence[float], int], Comparison]
"""Trains schedules at LRs over a number of splits; the first argument names a variant of the training."""


def gather(
    name: str,
    folder: Path,
    *,
    splits: int = 10,
    seeds: int = 4,
    max_epochs: int | None = None,
    contestants: Mapping[str, Schedule] = CONTESTANTS,
    workers: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evidence:
    """Train the contestants on a data set, one of ``SECONDS``, and return each at its best LR.

    Args:
        name: The data set.
        folder: Keeps finished trainings: the same call continues after a stop.
        splits: How many splits of the data the best LRs are measured on, >= 1.
        seeds: Seeds in each split of tabular data, >= 1; the other tasks have one.
        max_epochs: Length of each training; the task's where None.
        contestants: The schedules.
        workers: Processes of a task that has a module of its own; None trains in this one.
        say: Called with a line for each schedule that is done.
    """
    tabular = name in _TABULAR
    steps, train = (
        _networks(name, folder, seeds, max_epochs, contestants, splits)
        if tabular
        else _module(name, folder, max_epochs, workers)
    )
    few = splits if tabular else min(splits, _GRID_SPLITS)

    def found(called: str, schedule: Schedule, variant: str = "") -> Found:
        one = _search(partial(train, variant), called, schedule, steps, splits, few)
        say(f"{name}, {called}: best LR {one.lr:g} of {min(one.grid):g} to {max(one.grid):g}")
        return one

    field = {called: found(called, schedule) for called, schedule in contestants.items()}
    field[HALF] = found(HALF, Cosine(), "half")
    if not tabular:
        return Evidence({**field, AVERAGED: found(AVERAGED, Constant(), "averaged")}, steps)
    cosine = {"cosine": Cosine()}
    return Evidence(field, steps, *(train(which, cosine, [0.1], splits) for which in ("steep", "flat")))


def _search(train: Any, name: str, schedule: Schedule, steps: int, splits: int, few: int) -> Found:
    """Return a schedule at the best LR of its grid, widened until the best on the first few splits is inside."""
    ratio = convergence_bound(schedule, steps).peak / convergence_bound(Linear(), steps).peak
    start = round(math.log2(_LINEAR_PEAK * ratio / _LATTICE))
    exponents = [start - 1, start, start + 1]
    for left in range(_MOST_WIDENINGS, -1, -1):
        tried: Comparison = train({name: schedule}, [_LATTICE * 2.0**k for k in exponents], few)
        best = tried.best_index(name) or 0
        at_edge = best in (0, len(exponents) - 1)
        if not at_edge or not left:
            break
        exponents = [exponents[0] - 1, *exponents] if best == 0 else [*exponents, exponents[-1] + 1]
    values = tried.values(tried.select)[:, 0].mean(axis=0).tolist()
    final = train({name: schedule}, [tried.lrs[best]], splits)
    return Found(schedule, tried.lrs[best], dict(zip(tried.lrs, values, strict=True)), at_edge, tried, final)


def record(evidence: Mapping[str, Evidence], verdicts: Sequence[ClaimVerdict], command: str) -> dict[str, Any]:
    """Return all that tables and figures need, as plain data, with versions and machine; nan as None."""
    packages = ("lit-cosine", "torch", "lightning", "numpy", "mnist1d")
    versions = {name: metadata.version(name) for name in packages if find_spec(name.replace("-", "_"))}
    machine = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    return {
        "command": command,
        "versions": {"python": platform.python_version(), **versions},
        "machine": machine,
        "data": {name: _plain_evidence(each) for name, each in evidence.items()},
        "verdicts": [{**asdict(each), **{k: _number(getattr(each, k)) for k in _FLOATS}} for each in verdicts],
    }


_FLOATS = ("difference", "low", "high", "p")


def _plain_evidence(given: Evidence) -> dict[str, Any]:
    linear, found = convergence_bound(Linear(), given.steps), {}
    for name, each in given.field.items():
        found[name] = {
            "lr": each.lr,
            "grid": [[lr, _number(value)] for lr, value in sorted(each.grid.items())],
            "at_edge": each.at_edge,
            "test": [_number(value) for value in each.test],
        }
        if name in CONTESTANTS:
            bound = convergence_bound(each.schedule, given.steps)
            found[name] |= {"bound": bound.value / linear.value, "peak": bound.peak / linear.peak}
    first = next(iter(given.field.values())).final
    return {"steps": given.steps, "splits": len(first.splits), "seeds": len(first.seeds), "schedules": found}


def _number(value: float) -> float | None:
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _module(name: str, folder: Path, max_epochs: int | None, workers: int | None) -> tuple[int, _Train]:
    """Return the steps of a task that has a module of its own, and how it is trained: a Trainer run each."""
    path = Path(__file__).parents[1] / "example" / f"{name}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    epochs = max_epochs or config["trainer"]["max_epochs"]

    def train(variant: str, schedules: Mapping[str, Schedule], lrs: Sequence[float], splits: int) -> Comparison:
        trainer = {**config["trainer"], "max_epochs": max(1, epochs // 2) if variant == "half" else epochs}
        if variant == "averaged":
            trainer["callbacks"] = [_AVERAGING]
        return compare(
            None, None, schedules, lrs, 1, config={**config, "trainer": trainer}, metric="val/loss", splits=splits,
            split_arg="data.init_args.split_seed", engine="local" if workers else "serial", workers=workers,
            folder=folder / name / (variant or "field"),
        )  # fmt: skip

    return epochs * config["trainer"].get("limit_train_batches", 40), train  # 40 are those of MNIST-1D


def _networks(
    name: str, folder: Path, seeds: int, max_epochs: int | None, contestants: Mapping[str, Schedule], splits: int
) -> tuple[int, _Train]:
    """Return the steps of a task of tabular data, and how it is trained: many small networks at once."""
    data, epochs = _TABULAR[name](split_seed=0), max_epochs or 10
    network = partial(SimpleNN, data.num_features, classes=data.num_classes)
    plain = {"optimizer": "sgd", "momentum": 0.0}
    variants: dict[str, dict[str, Any]] = {"flat": {**plain, "loss": flatter_cross_entropy}, "steep": plain}

    def trained(variant: str, schedules: Mapping[str, Schedule], lrs: Sequence[float], splits: int) -> Comparison:
        return compare_networks(
            network, data, schedules, lrs, seeds, max(1, epochs // 2) if variant == "half" else epochs, splits=splits,
            engine="serial", folder=folder / name / (variant or "field"), **variants.get(variant, {}),
        )  # fmt: skip

    @cache
    def field() -> Comparison:
        """All contestants at once, which take little longer than one of them."""
        return trained("", contestants, _WIDE, splits)

    def train(variant: str, schedules: Mapping[str, Schedule], lrs: Sequence[float], splits: int) -> Comparison:
        (called,) = schedules
        if variant or called not in contestants or not {*lrs} <= {*_WIDE}:
            return trained(variant, schedules, lrs, splits)
        places = np.ix_(range(splits * seeds), [list(contestants).index(called)], list(map(_WIDE.index, lrs)))
        return replace(
            field(), schedules=dict(schedules), lrs=tuple(lrs), baseline=called, members=field().members[places],
            splits=tuple(range(splits)),
        )  # fmt: skip

    return epochs * len(data.train_dataloader()), train
