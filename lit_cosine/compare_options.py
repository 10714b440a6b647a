"""The command line of ``lit-cosine compare``: read, and refused where it is wrong, before torch is imported.

Convention: what is not refused here is what only the data, the network or the machines can tell.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lit_cosine.compare_arguments import (
    OPTIMIZERS,
    check_baseline,
    check_lrs,
    check_memory,
    check_optimizer,
    check_schedules,
    check_seeds,
    check_whole,
)
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

__all__ = ["DATA", "FIELD", "FLOORS", "LRS", "parse"]

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

DATA = ("article", "harder", "digits", "breast_cancer", "wine")
"""The names of the data sets."""

_CLAIMS_FILES = {"claims.json", "claims.md", *DATA}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(None, message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of ``lit-cosine compare``; ``schedules`` by name, None for the default ones.

    Args:
        arguments: The command line after ``compare``.

    Raises:
        ArgumentError: If an argument is wrong; the message is one sentence.

    >>> parse(["--seeds", "2", "--lrs", "0.1"]).lrs
    (0.1,)
    >>> parse(["--seeds", "0"])
    Traceback (most recent call last):
    argparse.ArgumentError: seeds must be at least 1, got 0
    """
    options = _parser().parse_args(arguments)
    try:
        _check(options)
    except (ValueError, TypeError) as error:
        raise ArgumentError(None, str(error)) from None
    return options


def _check(options: argparse.Namespace) -> None:
    options.lrs = check_lrs(options.lrs)
    for name in ("max_epochs", "num_nodes", "batch_size", "devices"):
        if getattr(options, name) is not None:
            check_whole(name, getattr(options, name))
    check_optimizer(options.optimizer, options.weight_decay, options.momentum)
    if options.claims:
        for name in ("schedules", "baseline", "one_by_one"):
            if getattr(options, name):
                raise ValueError(
                    f"--{name.replace('_', '-')} must be left out with --claims, whose schedules are fixed"
                )
    elif options.schedules is not None:
        options.schedules = check_schedules(_read_schedules(options.schedules))
    schedules = options.schedules or FIELD
    check_baseline(options.baseline, schedules)
    check_memory(len(check_seeds(options.seeds)), len(schedules) * len(options.lrs), options.max_epochs)
    if options.network is not None and not all(options.network.replace(":", ".").rpartition(".")):
        raise ValueError(f"--network must be module.Class, got {options.network!r}")
    default = "claims" if options.claims else f"compare_{options.data or 'article'}"
    options.folder = options.folder or Path("runs", default)
    _check_folder(options.folder, options.claims)


def _check_folder(folder: Path, claims: bool) -> None:
    """Refuse a folder with anything but what this command wrote there."""
    try:
        there = {path.name for path in folder.iterdir() if path.name != ".DS_Store"}
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"--folder must be a folder or not exist yet; {folder}: {error.strerror}") from None
    ours = there <= _CLAIMS_FILES if claims else "trainings" in there or not there
    if not ours:
        what = "claims" if claims else "a comparison"
        raise ValueError(f"--folder must be empty or hold {what}; {folder} holds something else")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lit-cosine compare",
        description="Train every schedule at every LR over many seeds, and say with intervals what differs.",
    )
    add = parser.add_argument
    add("--data", choices=DATA, help="data set (article; with --claims all of them)")
    add("--network", help="module.Class of a network; its in_features and classes follow the data (SimpleNN)")
    add("--schedules", type=Path, help="YAML file {name: schedule}, as preview reads them; 11 schedules otherwise")
    add("--baseline", help="name of the schedule that the others are compared to (the first)")
    add("--lrs", type=float, nargs="+", default=list(LRS), help="peak LRs")
    add("--seeds", type=int, default=32, help="number of seeds (32)")
    add("--max-epochs", type=int, default=10, help="epochs of each training (10)")
    add("--batch-size", type=int, help="rows per step (64)")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="(adam)")
    add("--weight-decay", type=float, default=0.0, help="(0)")
    add("--momentum", type=float, default=0.9, help="of sgd (0.9)")
    add("--folder", type=Path, help="where everything is written (runs/compare_DATA, runs/claims)")
    add("--devices", type=int, help="processes of one thread each on this machine (2)")
    add("--num-nodes", type=int, default=1, help="machines, each with this command (1)")
    add("--one-by-one", action="store_true", help="train with a Trainer, for networks that cannot be stacked")
    add("--claims", action="store_true", help="put the article's claims to the test, on every data set")
    return parser


def _read_schedules(path: Path) -> list[tuple[str, Schedule]]:
    """Return what the file lists, a name that it lists twice twice."""
    import yaml  # not every call has a file to read

    try:
        text = path.read_text(encoding="utf-8")
        entries, nodes = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError:
        raise ValueError(f"{path} is not YAML") from None
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} must hold schedules by name, got {entries!r}")
    # a mapping that is read keeps the last of two entries of one name without a word
    names = [key.value for key, _ in getattr(nodes, "value", ())]
    if doubles := sorted(name for name in {*names} if names.count(name) > 1):
        raise ValueError(f"schedules must have different names, {path} has {doubles[0]!r} twice")
    return [(str(name), build_schedule(spelled, str(name))) for name, spelled in entries.items()]
