"""Comparisons of schedules on any LightningModule: the same trainings under every schedule at every LR.

Convention: a training is a (split, seed, schedule, LR). All trainings of one split and seed start alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lit_cosine._checks import as_flag, as_integer, check_choice, check_text, shown
from lit_cosine.comparison._arguments import check_grid, check_lrs
from lit_cosine.comparison._engines import Engine, EngineName, Failure
from lit_cosine.comparison._journal import Journal, key_of
from lit_cosine.comparison._results import Comparison, OnProgress, showing_so_far
from lit_cosine.comparison._training import Train, importable_name, resolve
from lit_cosine.schedules import Schedule, convergence_bound

__all__ = ["NoAnswer", "compare"]

_MOST_TRAININGS = 1_000_000
_FIRST_GRID = range(-2, 3)  # powers of 3
_MOST_WIDENINGS = 4
_BOUND_STEPS = 1000  # the ratio of two peaks hardly depends on it


class Place(NamedTuple):
    """A training's place in the grid; ``point`` is an LR, or a multiple of the module's own."""

    split: int
    seed: int
    schedule: str
    point: float


class NoAnswer(ValueError):
    """The trainings do not answer the question: each has failed, or none logs the metric."""


def compare(
    module: Any,
    data: Any,
    schedules: Mapping[str, Schedule] | Sequence[Schedule | tuple[str, Schedule]],
    lrs: Sequence[float] | Literal["auto"] = "auto",
    seeds: int | Sequence[int] = 3,
    *,
    metric: str,
    mode: Literal["min", "max"] = "min",
    lr_scales: Sequence[float] | None = None,
    trainer: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    splits: int = 1,
    split_arg: str = "split_seed",
    baseline: str | None = None,
    engine: EngineName = "local",
    workers: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
    folder: str | Path | None = None,
    retry_failed: bool = False,
    on_progress: OnProgress = lambda done, total, running, failed: None,
) -> Comparison:
    """Train a module under every schedule at every LR for several seeds, each with a Trainer, and return the results.

    Nothing in the module changes: ``LearningRateScheduler(schedule, replace=True)`` gives it the schedule, and all its
    param groups are scaled to the LR. A training that raises or diverges is excluded, with its reason in ``problems``.

    Args:
        module: A class or a function without arguments that returns a LightningModule, or its ``module:Name``. Other
            processes import it: no lambda, no local function. None with ``config``.
        data: The same for a LightningDataModule; None where the module has its own loaders.
        schedules: By name, or a list whose names are their descriptions.
        lrs: Peak LRs of the first param group; the other groups keep their ratio to it. ``"auto"`` searches: 1/9 to 9
            times the module's own LR, wider while the best of a schedule is at an edge, then finer around the best. The
            grids of further schedules are moved by the ratio of the peaks of their :func:`convergence_bound`.
        seeds: The number of seeds, or a list of them.
        metric: A metric that the module logs, such as ``"val/loss"``. LRs are chosen by it. If the module has a test
            loop that logs the same with ``test`` for ``val``, that is what tables report.
        mode: Whether less (``"min"``) or more (``"max"``) of it is better.
        lr_scales: Multiples of the module's own LR, in place of ``lrs``.
        trainer: The Trainer's arguments, as plain data; a callback is ``{"class_path": ..., "init_args": ...}``.
        config: A LightningCLI configuration, in place of module, data and trainer.
        splits: How many splits of the data. With more than one, the split is the unit of inference.
        split_arg: The argument of ``data`` that gets the number of the split, or its key in ``config``, such as
            ``"data.init_args.split_seed"``.
        baseline: Name of the schedule that others are compared to; the first where None.
        engine: ``"serial"``, ``"local"`` (processes of one thread each) or ``"ray"``.
        workers: Trainings at a time; the CPUs where None.
        timeout: Seconds that a training may take, the start of its process included, with ``engine="local"``.
        address: ``host:port`` of a Ray cluster.
        cpus: CPUs of a training under Ray.
        gpus: GPUs of a training under Ray.
        folder: Keeps finished trainings: the same call continues after a stop, a larger grid trains what is new. The
            module counts as the same by its name: after a change of its code take another folder.
        retry_failed: Whether trainings that failed before are started again.
        on_progress: Called with the numbers of trainings that are done, known so far, running, and failed or diverged.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, every training failed, ``metric`` is not logged, or ``folder`` holds
            another comparison.

    At Ctrl-C the table of the trainings so far is printed.

    >>> found = compare(MyModule, MyData, {"cosine": Cosine()}, metric="val/loss",
    ...                 trainer={"max_epochs": 10}, seeds=5)  # doctest: +SKIP
    >>> found.best_lr("cosine")  # doctest: +SKIP
    0.003
    """
    named, seeds, baseline = check_grid(schedules, seeds, baseline)
    check_choice("mode", mode, ("min", "max"))
    check_text("metric", metric)
    splits = as_integer("splits", splits, least=1)
    as_flag("retry_failed", retry_failed)
    absolute = not (isinstance(lrs, str) and lrs == "auto")
    if lr_scales is not None and absolute:
        raise ValueError("lrs and lr_scales exclude each other: give absolute LRs or multiples of the module's own")
    points: tuple[float, ...] | None = None
    if absolute or lr_scales is not None:
        points = check_lrs(lrs) if absolute else check_lrs(lr_scales, "lr_scales")
    if (count := splits * len(seeds) * len(named) * len(points or _FIRST_GRID)) > _MOST_TRAININGS:
        raise ValueError(
            f"splits x seeds x schedules x lrs must be at most {_MOST_TRAININGS:,} trainings, got {count:,}"
        )
    if (config is None) == (module is None):
        raise ValueError("module and config exclude each other: give a module, or a LightningCLI configuration")
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, the content of the file, got {shown(config)}")
    if config is not None and (data is not None or trainer):
        raise ValueError("config takes the place of data and trainer: change them in the configuration")
    if splits > 1 and config is None and data is None:
        raise ValueError(f"splits needs data, a LightningDataModule that takes {split_arg}, got splits={splits}")
    for part in ("model", "data"):
        given = (config or {}).get(part)
        path = given.get("class_path") if isinstance(given, Mapping) else given
        if isinstance(path, str) and "." in path:  # a name alone is one that LightningCLI has registered
            resolve(part, path)
    make_module = None if module is None else resolve("module", module)
    make_data = None if data is None else resolve("data", data)
    runs, train, seeds = (
        Engine(engine, workers, timeout, address, cpus, gpus),
        Train(make_module, make_data),
        tuple(seeds),
    )
    question = {
        "module": importable_name(make_module),
        "data": importable_name(make_data),
        "trainer": _plain("trainer", trainer or {}),
        "config": None if config is None else _plain("config", config),
        "metric": metric,
        "mode": mode,
        "split_arg": split_arg if splits > 1 else None,
    }
    rows: dict[Place, dict[str, Any]] = {}
    items: dict[Place, dict[str, Any]] = {}

    def found() -> Comparison:
        if all(row["status"] != "ok" for row in rows.values()):
            reasons = "; ".join(sorted({row["reason"] for row in rows.values()})[:3])
            again = "" if folder is None else "; after a change, retry_failed starts them again"
            raise NoAnswer(f"every training failed or diverged: {reasons}{again}")
        return _as_comparison(
            question, named, points or sorted({place.point for place in items}), seeds, splits, baseline, rows
        )

    def tell(running: int) -> None:
        on_progress(len(rows), len(items), running, sum(row["status"] != "ok" for row in rows.values()))

    def fill(grids: Mapping[str, Iterable[float]]) -> Comparison:
        """Train what is missing of the points of each schedule."""
        for split, seed, name in product(range(splits), seeds, named):
            for point in grids[name]:
                place = Place(split, seed, name, point)
                of_place = {"split": split, "seed": seed, "schedule": named[name].to_dict()}
                items[place] = {**question, **of_place, "lr" if absolute else "scale": point}
                row = journal.rows.get(key_of(items[place]))
                if row and not (retry_failed and row["status"] == "failed"):
                    rows.setdefault(place, row)
        todo = [place for place in items if place not in rows]
        for number, row in runs.run(train, [items[place] for place in todo], tell):
            if isinstance(row, Failure):
                row = {"status": "failed", "reason": row.reason, "metrics": {}, "curve": []}
            _check_metric(metric, row)
            journal.add(key_of(items[todo[number]]), row)
            rows[todo[number]] = row
        return found()

    with Journal(folder, question) as journal, showing_so_far(lambda: (found(), f"{len(rows)} of {len(items)}")):
        return fill(dict.fromkeys(named, points)) if points else _search(_centres(named), fill)


def _centres(schedules: Mapping[str, Schedule]) -> dict[str, int]:
    """Return the centre of each schedule's grid as a power of 3: the peak of its bound over that of the first."""
    peaks = {name: convergence_bound(schedule, _BOUND_STEPS).peak for name, schedule in schedules.items()}
    first = next(iter(peaks.values()))
    return {name: round(math.log(peak / first, 3.0)) for name, peak in peaks.items()}


def _search(centres: Mapping[str, int], fill: Callable[[Mapping[str, list[float]]], Comparison]) -> Comparison:
    """Widen the grid of each schedule by 3 while its best is at an edge, then refine it around the best.

    Grids are powers of 3, so that those of several schedules share their points.
    """
    powers: dict[str, list[float]] = {name: [centre + step for step in _FIRST_GRID] for name, centre in centres.items()}

    def best_powers() -> dict[str, float]:
        found = fill({name: [3.0**power for power in each] for name, each in powers.items()})
        places = sorted({*chain.from_iterable(powers.values())})
        return {name: places[best] for name in powers if (best := found.best_index(name)) is not None}

    for _ in range(_MOST_WIDENINGS):
        edges = [(name, best) for name, best in best_powers().items() if best in (min(powers[name]), max(powers[name]))]
        if not edges:
            break
        for name, best in edges:
            powers[name].append(best - 1 if best == min(powers[name]) else best + 1)
    for name, best in best_powers().items():
        powers[name] += [best - 0.5, best + 0.5]
    return fill({name: [3.0**power for power in each] for name, each in powers.items()})


def _as_comparison(
    question: dict[str, Any],
    schedules: dict[str, Schedule],
    points: Sequence[float],
    seeds: tuple[int, ...],
    splits: int,
    baseline: str,
    rows: Mapping[Place, dict[str, Any]],
) -> Comparison:
    """Return the rows as a grid; a training that failed or diverged is nan in every measure."""
    metric = question["metric"]
    good = [row for row in rows.values() if row["status"] == "ok"]
    logged = sorted({name for row in good for name in row["metrics"]} - {metric})
    length = max((len(row["curve"]) for row in good), default=0) or 1
    longest = max(good, key=lambda row: len(row["curve"]))
    kind = np.dtype([(metric, np.float64, (length,)), *((name, np.float64) for name in logged)])
    members = np.full((splits * len(seeds), len(schedules), len(points)), math.nan, dtype=kind)
    trained = np.zeros(members.shape, dtype=bool)
    problems: list[str] = []
    starts: dict[int, set[str]] = {}
    used = {point: row["lr"] for (*_, point), row in rows.items() if row["status"] == "ok"}
    at, own = next(iter(used.items()))  # where all trainings of an LR failed, it is known by its ratio
    lrs = tuple(used.get(point, own * point / at) for point in points)
    for (i, (split, seed)), (j, name), (k, point) in product(
        enumerate(product(range(splits), seeds)), enumerate(schedules), enumerate(points)
    ):
        if (row := rows.get(Place(split, seed, name, point))) is None:
            continue
        trained[i, j, k] = True
        what = f"{name}, LR {lrs[k]:g}, seed {seed}" + (f", split {split}" if splits > 1 else "")
        if row["status"] != "ok":
            problems.append(f"{what} {row['status']}: {row['reason']}")
            continue
        if row["ends_early"]:
            problems.append(f"{what} ended early, at step {row['curve'][-1][0] if row['curve'] else '?'}")
        values = [value for _, value in row["curve"]] or [row["metrics"][metric]]
        values[-1] = row["metrics"].get(metric, values[-1])
        members[metric][i, j, k] = [*values, *[values[-1]] * (length - len(values))]  # an early stop holds its last
        for each in logged:
            members[each][i, j, k] = row["metrics"].get(each, math.nan)
        starts.setdefault(i, set()).add(row["start"])
    tested = re.sub("validation|valid|val", "test", metric, count=1)
    report = tested if tested in logged and tested != metric else metric
    train_rows, other_rows = (longest.get("sizes") or [0, 0])[:2]
    ends = longest["curve"]
    return Comparison(
        dict(schedules),
        lrs,
        seeds,
        baseline,
        max(1, ends[0][0] if ends else 1),
        members,
        {**question, "schedules": {name: one.to_dict() for name, one in schedules.items()}, "lrs": list(lrs)},
        splits=tuple(range(splits)),
        select=metric,
        report=report,
        maximize=(metric, report) if question["mode"] == "max" else (),
        overlap=(other_rows / train_rows if train_rows and other_rows else 1.0) if splits > 1 else 0.0,
        paired=all(len(each) == 1 for each in starts.values()),
        problems=tuple(problems),
        trained=trained,
    )


def _check_metric(metric: str, row: dict[str, Any]) -> None:
    if row["status"] == "ok" and metric not in row["metrics"] and not row["curve"]:
        names = ", ".join(sorted(row["metrics"])) or "none"
        raise NoAnswer(f"metric must be one that the module logs, which are {names}; got {shown(metric)}")


def _plain(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data, which a journal holds and another process reads."""
    try:
        return json.loads(json.dumps(dict(value)))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be plain data (numbers, texts, lists, dicts; a callback as class_path and init_args), {error}"
        ) from None
