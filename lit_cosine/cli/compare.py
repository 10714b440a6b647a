"""``lit-cosine compare``: schedules compared from the command line.

Convention: everything is written into one folder, which the same command continues and no other command changes.
"""

from __future__ import annotations

import inspect
import json
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from jsonargparse import Namespace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from lit_cosine.cli._compare_options import FIELD, FLOORS, MODULE_OPTIONS, OF_BOTH, parse
from lit_cosine.cli._process import quiet
from lit_cosine.cli._shell import STOPPED, Stopped, command_line
from lit_cosine.comparison import (
    SECONDS,
    NoAnswer,
    OnProgress,
    compare,
    compare_networks,
    gather,
    judge,
    record,
    resolve,
    show,
    verdicts_table,
    write,
)
from lit_cosine.comparison.stacked import NotStackable
from lit_cosine.example import SimpleNN, SyntheticDataModule, TabularDataModule
from lit_cosine.monitors import schedule_curves

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

_COUNTS = "trainings, {task.fields[running]} running, {task.fields[failed]} failed,"
_KEPT = "finished trainings are kept, and the same command continues from there"


def compare_schedules(arguments: Sequence[str]) -> None:
    """Run ``lit-cosine compare``."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150, markup=False)
    if options.engine == "ray":
        open_door = "Ray listens on all network interfaces and asks for no password, unless RAY_AUTH_MODE=token"
        print(open_door, file=sys.stderr)
    try:
        if options.claims:
            _claims(options, console, arguments)
        else:
            _compare(options, console) if options.config is None else _compare_module(options, console)
    except SystemExit as stop:
        if stop.code not in STOPPED:
            raise
        raise Stopped(int(stop.code), _KEPT) from None
    except OSError as error:  # a disk that is full, or fails
        what = f"cannot write to {error.filename or options.folder}: {error.strerror or error}"
        raise ArgumentError(None, f"{what}; {_KEPT}") from None


@contextmanager
def _refusals(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Show what is raised before any training as a fault of the command line; a later error keeps its traceback."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if begun() and not isinstance(error, NoAnswer):
            raise
        hint = "; --config trains any LightningModule" if isinstance(error, NotStackable) else ""
        raise ArgumentError(None, f"{error}{hint}") from None


def _compare(options: Namespace, console: Console) -> None:
    name = options.data or "article"
    data = DATA[name]()
    schedules, folder = options.schedules or FIELD, options.folder
    with _refusals():
        make = _network(options.network, data)
    names = [*("lrs", "seeds", "max_epochs", "batch_size", "optimizer", "weight_decay", "momentum")]
    names += ["splits", "engine", "workers", "timeout", "address"]
    common = {name: options[name] for name in names}

    def draw_schedules() -> None:
        picture = folder / "schedules.png"
        rows, batch_size = len(data.train_dataloader().dataset), options.batch_size or data.batch_size  # type: ignore[arg-type]
        steps = list(range(options.max_epochs * -(-rows // batch_size)))
        curves = {name: (steps, schedule.sample(len(steps))) for name, schedule in schedules.items()}
        schedule_curves(curves, "Factor of the peak LR").savefig(picture)
        console.print(f"Schedules: {picture}", soft_wrap=True)

    where = {"folder": folder / "trainings", "baseline": options.baseline}
    with _bar("schedules", refresh=False, first=draw_schedules) as count:
        found = compare_networks(make, data, schedules, on_progress=count, **where, **common)
    floors = None
    if options.schedules is None:
        with _bar("floors", refresh=False) as count:
            floors = compare_networks(make, data, FLOORS, on_progress=count, folder=folder / "floors", **common)
    size = sum(parameter.numel() for parameter in make().parameters())
    paths = write(found, folder, floors, {"data": name, "network_size": size})
    show(found, console, *found.finals)
    console.print(f"Written to {folder}: {', '.join(path.name for path in paths.values())}", soft_wrap=True)
    console.print(f"View in TensorBoard: {command_line('board', paths['tensorboard'])}", soft_wrap=True)


def _compare_module(options: Namespace, console: Console) -> None:
    """Compare on the module of a LightningCLI configuration."""
    names = {"config", *MODULE_OPTIONS, *OF_BOTH} - {"folder", "fraction", "help", "max_epochs"}
    arguments = {name: options[name] for name in sorted(names)}
    with quiet(), _bar("trainings", refresh=True) as count:
        found = compare(None, None, folder=options.folder / "trainings", on_progress=count, **arguments)
    show(found, console, found.report)
    if options.shortened:
        console.print(f"{options.shortened}: the peak LR of a short run is too high for a long one", soft_wrap=True)
    paths = write(found, options.folder)
    console.print(f"Written to {options.folder}: {', '.join(path.name for path in paths.values())}", soft_wrap=True)


def _claims(options: Namespace, console: Console, arguments: Sequence[str]) -> None:
    """Judge the claims on each data set, and write verdicts and what they rest on."""
    names = [options.data] if options.data else list(SECONDS)
    minutes = sum(SECONDS[name] for name in names) / 60 * options.splits / 10
    console.print(
        f"About {max(1.0, minutes):.0f} minutes on one core for {', '.join(names)}; what {options.folder} holds "
        "is not trained again",
        soft_wrap=True,
    )
    wanted = {key: options[key] for key in ("splits", "seeds", "max_epochs", "workers")}
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with _refusals(), quiet():
        evidence = {name: gather(name, options.folder, say=say, **wanted) for name in names}
    verdicts = judge(evidence)
    found = record(evidence, verdicts, command_line("compare", *arguments))
    (options.folder / "claims.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(verdicts_table(verdicts))
    console.print(f"Written to {options.folder}: claims.json", soft_wrap=True)


@contextmanager
def _bar(what: str, refresh: bool, first: Callable[[], None] = lambda: None) -> Iterator[OnProgress]:
    """Yield a function that shows a progress bar on stderr; ``first`` is called before it appears.

    With ``refresh`` a thread moves its clock on, which processes that are forked meanwhile do not bear.
    """
    console = Console(stderr=True)
    begins = (TextColumn("{task.description}"), BarColumn(20)) if console.width >= 110 else ()
    counts = (MofNCompleteColumn(), TextColumn(_COUNTS))
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("remaining"))
    bar = Progress(*begins, *counts, *times, console=console, auto_refresh=refresh, refresh_per_second=2)
    task = bar.add_task(what, running=0, failed=0)

    def count(done: int, total: int, running: int, failed: int) -> None:
        if not bar.live.is_started:
            first()
            bar.start()
        bar.update(task, completed=done, total=total, running=running, failed=failed, refresh=True)

    try:
        with _refusals(lambda: bar.live.is_started):
            yield count
    finally:
        if bar.live.is_started:  # False if the arguments were refused
            bar.stop()


def _network(path: str | None, data: TabularDataModule) -> Callable[[], nn.Module]:
    """Return a function that makes the network; ``in_features`` and ``classes``, if it has them, follow the data."""
    sizes = {"in_features": data.num_features, "classes": data.num_classes}
    if path is None:
        return lambda: SimpleNN(**sizes)
    made = resolve("--network", path)
    try:
        taken = {key: size for key, size in sizes.items() if key in inspect.signature(made).parameters}
        network = made(**taken)
    except Exception as error:  # the network is the user's code
        text = str(error) or "no message"
        raise ValueError(f"--network {path} raised {type(error).__name__}: {text.splitlines()[0]}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"--network must make a torch.nn.Module, {path} made {type(network).__name__}")
    return lambda: made(**taken)
