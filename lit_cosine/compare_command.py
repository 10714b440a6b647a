"""``lit-cosine compare``: schedules put to the test from the command line.

Convention: everything goes into one folder, which the same command continues and no other command touches.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from lit_cosine.claims import LATE, LENGTHS, Evidence, flatter_cross_entropy, judge
from lit_cosine.comparison import Comparison, compare
from lit_cosine.data import SyntheticDataModule, TabularDataModule
from lit_cosine.model import SimpleNN
from lit_cosine.plots import schedule_curves
from lit_cosine.report import MEASURES, findings_table, table, write, write_findings
from lit_cosine.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Polynomial,
    Restarts,
    Schedule,
    Step,
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)
from lit_cosine.spelling import build_schedule

__all__ = ["DATA", "FIELD", "FLOORS", "LRS", "compare_schedules"]

FIELD: dict[str, Schedule] = {
    "constant": Constant(),
    "step": Step(),
    "exponential": Exponential(),
    "linear": Linear(),
    "polynomial": Polynomial(),
    "cosine": Cosine(),
    "cosine with floor": Cosine(end=0.1),
    "warmup + cosine": warmup_cosine(),
    "warm restarts": Restarts(),
    "warmup-stable-decay": warmup_stable_decay(),
    "one-cycle": one_cycle(),
}
"""The schedules that are compared by default; the first is the baseline."""

LRS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""The peak LRs that are compared by default."""

FLOORS: dict[str, Schedule] = {f"floor {end:g}": Cosine(end=end) for end in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)}
"""Cosines for the heat map."""

DATA: dict[str, Callable[[], TabularDataModule]] = {
    "article": SyntheticDataModule,
    "harder": lambda: SyntheticDataModule(
        n_samples=2000, n_features=40, n_informative=10, n_redundant=10, n_clusters_per_class=4, flip_y=0.1
    ),
    "digits": lambda: TabularDataModule("digits", standardize=True),
    "breast_cancer": lambda: TabularDataModule("breast_cancer", standardize=True),
    "wine": lambda: TabularDataModule("wine", standardize=True),
}
"""The data sets by name: the article's, one with label noise and more features, and real ones."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(None, message)


def compare_schedules(arguments: Sequence[str]) -> None:
    """Run ``lit-cosine compare``.

    Args:
        arguments: The command line after ``compare``.

    Raises:
        ArgumentError: If an argument is wrong; the message is one sentence.
    """
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    try:
        if options.claims:
            _claims(options, console)
            return
        _compare(options, console)
    except (ValueError, TypeError) as error:
        raise ArgumentError(None, str(error)) from None
    except KeyboardInterrupt:
        print("stopped: finished blocks are kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _compare(options: argparse.Namespace, console: Console) -> None:
    name = options.data or "article"
    data = DATA[name]()
    schedules = _schedules(options.schedules)
    folder = options.folder or Path("runs", f"compare_{name}")
    make = _network(options.network, data)
    common: dict[str, Any] = {
        "lrs": options.lrs,
        "seeds": options.seeds,
        "max_epochs": options.max_epochs,
        "batch_size": options.batch_size,
        "optimizer": options.optimizer,
        "weight_decay": options.weight_decay,
        "momentum": options.momentum,
        "devices": options.devices,
        "num_nodes": options.num_nodes,
        "one_by_one": options.one_by_one,
    }

    def draw_schedules() -> None:
        picture = folder / "schedules.png"
        if picture.exists():  # drawn by a forked process, or by the run that this one continues
            return
        rows, batch_size = len(data.train_dataloader().dataset), options.batch_size or data.batch_size  # type: ignore[arg-type]
        steps = list(range(options.max_epochs * -(-rows // batch_size)))
        curves = {name: (steps, schedule.sample(len(steps))) for name, schedule in schedules.items()}
        schedule_curves(curves, "Factor of the initial LR").savefig(picture)
        console.print(f"The schedules are drawn: {picture}", soft_wrap=True)

    where = {"folder": folder / "trainings", "baseline": options.baseline}
    found = _watched("schedules", make, data, schedules, begun=draw_schedules, **where, **common)
    floors = None
    if options.schedules is None and not options.one_by_one:
        floors = _watched("floors", make, data, FLOORS, folder=folder / "floors", **common)
    if not _first():
        return
    paths = write(found, folder, floors, {"data": name, "network_size": _size(make)})
    for measure in MEASURES:
        console.print(table(found, measure))
    if count := int(found.diverged.sum()):
        console.print(f"{count} of {found.members.size} trainings diverged; they are in no mean.")
    if len(found.seeds) == 1:
        console.print("One seed: differences have no interval. Give --seeds at least 2.")
    console.print(f"Written to {folder}: {', '.join(path.name for path in paths.values())}", soft_wrap=True)
    console.print(f"Show the curves: lit-cosine board {paths['tensorboard']}", soft_wrap=True)


def _claims(options: argparse.Namespace, console: Console) -> None:
    """Judge the claims on each data set, and write findings, tables and figures."""
    folder = options.folder or Path("runs", "claims")
    findings = []
    for name in [options.data] if options.data else list(DATA):
        evidence = _evidence(options, name, folder / name)
        findings += judge(evidence, name)
        if _first():
            columns = {"data": name, "network_size": _size(_network(options.network, DATA[name]()))}
            write(evidence.field, folder / name / "report", evidence.floors, columns)
    if _first():
        write_findings(findings, folder)
        console.print(findings_table(findings))
        console.print(f"Written to {folder}: claims.json, claims.md; tables and figures in DATA/report", soft_wrap=True)


def _evidence(options: argparse.Namespace, name: str, folder: Path) -> Evidence:
    """Train what the claims are judged by on one data set."""
    data = DATA[name]()
    make = _network(options.network, data)
    common = {key: getattr(options, key) for key in ("lrs", "seeds", "max_epochs", "devices")}

    def watched(what: str, schedules: dict[str, Schedule], **changed: Any) -> Comparison:
        where = folder / what.replace(" ", "_")
        return _watched(f"{name}, {what}", make, data, schedules, folder=where, **{**common, **changed})

    field = watched("schedules", {**FIELD, **LATE})
    best = field.best_lr("cosine") or 0
    cosine: dict[str, Schedule] = {"cosine": Cosine()}
    sgd: dict[str, Any] = {"lrs": [0.1], "optimizer": "sgd", "momentum": 0.0}
    return Evidence(
        field,
        watched("floors", FLOORS),
        {epochs: watched(f"{epochs} epochs", cosine, max_epochs=epochs, lrs=[field.lrs[best]]) for epochs in LENGTHS},
        watched("plain SGD", cosine, **sgd),
        watched("plain SGD flatter", cosine, loss=flatter_cross_entropy, **sgd),
    )


def _watched(
    what: str,
    network: Callable[[], nn.Module],
    data: Any,
    schedules: dict[str, Schedule],
    begun: Callable[[], None] | None = None,
    **options: Any,
) -> Comparison:
    """Compare under a progress bar on stderr, with the trainings done and the time left.

    ``begun`` is called by the process that writes, as soon as trainings are done: the folder is ours by then.
    """
    seeds = options["seeds"]
    total = len(schedules) * len(options["lrs"]) * (seeds if isinstance(seeds, int) else len(seeds))
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trainings,")),
        *(TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left")),
    )
    # no thread of its own: processes are forked while it is shown
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, disable=not _first()) as bar:
        task = bar.add_task(what, total=total)

        def show(trained: int) -> None:
            nonlocal begun
            if begun is not None and _first():
                begun()
                begun = None
            bar.update(task, completed=trained, refresh=True)

        found = compare(network, data, schedules, on_progress=show, **options)
        show(total)
    return found


def _first() -> bool:
    """Return whether this is the process that prints and writes."""
    return not getattr(rank_zero_only, "rank", 0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lit-cosine compare",
        description="Train every schedule at every LR over many seeds, and say with intervals what differs.",
    )
    add = parser.add_argument
    add("--data", choices=list(DATA), help="data set (article; with --claims all of them)")
    add("--network", help="module:Class of a network; its in_features and classes follow the data (SimpleNN)")
    add("--schedules", type=Path, help="YAML file {name: schedule}, as preview reads them; 11 schedules otherwise")
    add("--baseline", help="name of the schedule that the others are compared to (the first)")
    add("--lrs", type=float, nargs="+", default=list(LRS), help="peak LRs")
    add("--seeds", type=int, default=32, help="number of seeds (32)")
    add("--max-epochs", type=int, default=10, help="epochs of each training (10)")
    add("--batch-size", type=int, help="rows per step (64)")
    add("--optimizer", choices=("adam", "adamw", "sgd"), default="adam", help="(adam)")
    add("--weight-decay", type=float, default=0.0, help="(0)")
    add("--momentum", type=float, default=0.9, help="of sgd (0.9)")
    add("--folder", type=Path, help="where everything is written (runs/compare_DATA)")
    add("--devices", type=int, help="processes of one thread each (2)")
    add("--num-nodes", type=int, default=1, help="machines (1)")
    add("--one-by-one", action="store_true", help="train with a Trainer, for networks that cannot be stacked")
    add("--claims", action="store_true", help="put the article's claims to the test, on every data set")
    return parser


def _schedules(path: Path | None) -> dict[str, Schedule]:
    if path is None:
        return dict(FIELD)
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError:
        raise ValueError(f"{path} is not YAML") from None
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} must hold schedules by name, got {entries!r}")
    return {str(name): build_schedule(spelled, str(name)) for name, spelled in entries.items()}


def _network(path: str | None, data: TabularDataModule) -> Callable[[], nn.Module]:
    """Return what makes the network, its sizes those of the data where it has arguments for them."""
    sizes = {"in_features": data.num_features, "classes": data.num_classes}
    if path is None:
        return lambda: SimpleNN(**sizes)
    module, _, name = path.partition(":")
    try:
        made: Callable[..., nn.Module] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--network must be module:Class, got {path!r}: {error}") from None
    taken = {key: size for key, size in sizes.items() if key in inspect.signature(made).parameters}
    return lambda: made(**taken)


def _size(make: Callable[[], nn.Module]) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in make().parameters())
