"""``lit-cosine compare``: schedules put to the test from the command line.

Convention: everything goes into one folder, which the same command continues and no other command touches. Of several
processes the first alone prints and writes.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from lit_cosine.blocks import is_first
from lit_cosine.claims import LATE, LENGTHS, Evidence, flatter_cross_entropy, judge
from lit_cosine.compare_options import FIELD, FLOORS, parse
from lit_cosine.comparison import compare
from lit_cosine.data import SyntheticDataModule, TabularDataModule
from lit_cosine.ensemble import NotStackable
from lit_cosine.model import SimpleNN
from lit_cosine.plots import schedule_curves
from lit_cosine.report import MEASURES, findings_table, table, write, write_findings
from lit_cosine.results import Comparison
from lit_cosine.schedules import Cosine, Schedule

__all__ = ["DATA", "compare_schedules"]

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


def compare_schedules(arguments: Sequence[str]) -> None:
    """Run ``lit-cosine compare``.

    Args:
        arguments: The command line after ``compare``.

    Raises:
        ArgumentError: If an argument is wrong; the message is one sentence.
    """
    options = parse(arguments)
    first = True
    try:
        first = is_first(options.num_nodes)
        console = Console(width=None if sys.stdout.isatty() else 150, quiet=not first)
        _claims(options, console) if options.claims else _compare(options, console)
    except (ValueError, TypeError) as error:
        if not first:  # it has been said once
            sys.exit(2)
        hint = "; --one-by-one trains it with a Trainer" if isinstance(error, NotStackable) else ""
        raise ArgumentError(None, f"{error}{hint}") from None
    except KeyboardInterrupt:
        if first:
            print("stopped: finished blocks are kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _compare(options: argparse.Namespace, console: Console) -> None:
    name = options.data or "article"
    data = DATA[name]()
    schedules, folder = options.schedules or FIELD, options.folder
    make = _network(options.network, data)
    common = {**_common(options), "one_by_one": options.one_by_one}

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
        floors = _watched("floors", make, data, FLOORS, folder=folder / "floors", **{**common, "idle": True})
    if console.quiet:
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
    folder = options.folder
    findings = []
    for name in [options.data] if options.data else list(DATA):
        evidence = _evidence(options, name, folder / name)
        findings += judge(evidence, name)
        if not console.quiet:
            columns = {"data": name, "network_size": _size(_network(options.network, DATA[name]()))}
            write(evidence.field, folder / name / "report", evidence.floors, columns)
    if not console.quiet:
        lrs = ", ".join(f"{lr:g}" for lr in options.lrs)
        trained = f"{options.seeds} seeds, {options.max_epochs} epochs, {options.optimizer}, initial LRs {lrs}"
        write_findings(findings, folder, trained)
    console.print(findings_table(findings))
    console.print(f"Written to {folder}: claims.json, claims.md; tables and figures in DATA/report", soft_wrap=True)


def _evidence(options: argparse.Namespace, name: str, folder: Path) -> Evidence:
    """Train what the claims are judged by on one data set."""
    data = DATA[name]()
    make = _network(options.network, data)
    common = {**_common(options), "idle": True}

    def watched(what: str, schedules: dict[str, Schedule], **changed: Any) -> Comparison:
        where = folder / what.replace(" ", "_")
        return _watched(f"{name}, {what}", make, data, schedules, folder=where, **{**common, **changed})

    field = watched("schedules", {**FIELD, **LATE}, idle=False)
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


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """Return what every comparison of a command is given."""
    names = (
        "lrs",
        "seeds",
        "max_epochs",
        "batch_size",
        "optimizer",
        "weight_decay",
        "momentum",
        "devices",
        "num_nodes",
    )
    return {name: getattr(options, name) for name in names}


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
    total, first = len(schedules) * len(options["lrs"]) * options["seeds"], is_first(options["num_nodes"])
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trainings,")),
        *(TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left")),
    )
    # no thread of its own: processes are forked while it is shown
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, disable=not first)
    task = bar.add_task(what, total=total)

    def show(trained: int) -> None:
        nonlocal begun
        if begun is not None and first:
            begun()
            begun = None
        bar.start()
        bar.update(task, completed=trained, refresh=True)

    try:
        found = compare(network, data, schedules, on_progress=show, **options)
        show(total)
    finally:
        if bar.live.is_started:  # not where the arguments were refused
            bar.stop()
    return found


def _network(path: str | None, data: TabularDataModule) -> Callable[[], nn.Module]:
    """Return what makes the network, its sizes those of the data where it has arguments for them."""
    sizes = {"in_features": data.num_features, "classes": data.num_classes}
    if path is None:
        return lambda: SimpleNN(**sizes)
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        made: Callable[..., nn.Module] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--network must be module.Class, got {path!r}: {error}") from None
    try:
        taken = {key: size for key, size in sizes.items() if key in inspect.signature(made).parameters}
        network = made(**taken)
    except Exception as error:  # of whatever type the module's is
        text = str(error) or "no message"
        raise ValueError(f"--network {path} raised {type(error).__name__}: {text.splitlines()[0]}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network must make a torch.nn.Module, {path} made {type(network).__name__}")
    return lambda: made(**taken)


def _size(make: Callable[[], nn.Module]) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in make().parameters())
