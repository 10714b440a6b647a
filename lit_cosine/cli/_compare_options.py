"""The command line of ``lit-cosine compare``: parsed and checked before torch is imported.

Convention: what is not refused here depends on the data, the network or the machines.
"""

from __future__ import annotations

import math
from argparse import ArgumentError
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_cosine._checks import as_integer, as_number, shown
from lit_cosine.cli import _parser
from lit_cosine.cli._parser import with_underscores
from lit_cosine.cli._yaml import read_yaml
from lit_cosine.comparison import (
    OPTIMIZERS,
    SECONDS,
    check_grid,
    check_lrs,
    check_memory,
    check_optimizer,
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
    build_schedule,
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)

__all__ = ["DATA", "FIELD", "FLOORS", "LRS", "MODULE_OPTIONS", "OF_BOTH", "parse"]

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

TASKS: dict[str, str | None] = {"char": None, "mnist1d": "mnist1d"}
"""Data sets with a module of their own, each a configuration in ``lit_cosine/example``, and the package it needs."""

_NAMES = DATA + tuple(TASKS)

_OF_ANY = ("constant", "linear", "cosine", "warmup-stable-decay")
"""The schedules that are compared by default on a module of the user's own."""

MODULE_OPTIONS = {"metric", "mode", "lr_scales", "split_arg", "cpus", "gpus", "retry_failed", "fraction"}
"""The options of a comparison on a module of the user's own."""

OF_BOTH = {
    *("schedules", "baseline", "lrs", "seeds", "max_epochs", "splits", "engine", "workers", "timeout", "address"),
    *("folder", "help"),
}
"""Those that the stacked networks have too."""

_OF_LIGHTNING_CLI = ("seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")
_OF_FIT = ("ckpt_path", "weights_only")  # its config.yaml has them

_CLAIMS_FILES = {"claims.json", *SECONDS}


def parse(arguments: Sequence[str]) -> Namespace:
    """Return the options of ``lit-cosine compare``; ``schedules`` by name, None for the default ones.

    Args:
        arguments: The command line after ``compare``.

    Raises:
        ArgumentError: If an argument is wrong; the message is one sentence.

    >>> parse(["--seeds", "2", "--lrs", "0.1"]).lrs
    (0.1,)
    >>> len(parse([]).lrs)
    7
    >>> parse(["--seeds", "0"])
    Traceback (most recent call last):
    argparse.ArgumentError: seeds must be an integer >= 1, got 0
    """
    arguments = with_underscores(arguments)
    given = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
    options = _parser.parse(_compare_parser(), arguments)
    options.lrs = None if options.lrs == ["auto"] else options.lrs
    try:
        if options.claims:
            _check_claims(options, given)
        else:
            if options.data in TASKS and options.config is None:
                _resolve_task(options, given)
            _check_module(options, given) if options.config else _check(options, given)
    except (ValueError, TypeError) as error:
        raise ArgumentError(None, str(error)) from None
    return options


def _check_claims(options: Namespace, given: set[str]) -> None:
    """Check the options of the claims, whose schedules, LRs and networks are fixed."""
    if wrong := sorted(given - {"claims", "data", "splits", "seeds", "max_epochs", "workers", "folder", "help"}):
        raise ValueError(f"--{wrong[0]} must be left out with --claims, whose schedules and LRs are fixed")
    for name, default in {"splits": 10, "seeds": 4, "max_epochs": None, "workers": None}.items():
        value = getattr(options, name) if name in given else default
        setattr(options, name, None if value is None else as_integer(name, value, least=1))
    for name in [options.data] if options.data else TASKS:
        _check_installed(name)
    if options.data and options.data not in SECONDS:
        raise ValueError(f"--data must be one of {', '.join(SECONDS)} with --claims, got {options.data}")
    options.folder = Path(options.folder or Path("runs", "claims"))
    _check_folder(options.folder, claims=True)


def _check_installed(name: str) -> None:
    if (package := TASKS.get(name)) is not None and find_spec(package) is None:
        raise ValueError(f"--data {name} needs the package {package}: pip install 'lit-cosine[evidence]'")


def _resolve_task(options: Namespace, given: set[str]) -> None:
    """Put the configuration of a task in the place of its name."""
    name = options.data
    _check_installed(name)
    options.config = Path(__file__).parents[1] / "example" / f"{name}.yaml"
    options.metric = options.metric or "val/loss"
    options.folder = options.folder or Path("runs", f"compare_{name}")
    given.remove("data")


def _check_module(options: Namespace, given: set[str]) -> None:
    """Check the options of a comparison on a module of the user's own."""
    if wrong := sorted(given - {"config", *MODULE_OPTIONS, *OF_BOTH}):
        raise ValueError(f"--{wrong[0]} must be left out with --config, whose file says what is trained")
    if options.metric is None:
        raise ValueError("--metric must name a metric that the module logs, such as --metric val/loss")
    options.lrs = check_lrs(options.lrs) if options.lrs is not None else "auto"
    options.seeds = options.seeds if "seeds" in given else 3
    options.schedules = _read_schedules(options.schedules) or {name: FIELD[name] for name in _OF_ANY}
    check_grid(options.schedules, options.seeds, options.baseline)
    options.config = _read_configuration(options.config)
    epochs = options.max_epochs if "max_epochs" in given else None
    options.shortened = _shorten(options.config, epochs, options.fraction)
    options.folder = Path(options.folder or Path("runs", "compare_module"))
    _check_folder(options.folder, claims=False)


def _read_configuration(path: str | Path) -> dict[str, Any]:
    """Return the configuration of a LightningCLI, or of its ``fit``, without what only ``fit`` has."""
    content = read_yaml(path)
    content = content["fit"] if isinstance(content, dict) and isinstance(content.get("fit"), dict) else content
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"--config must be a LightningCLI configuration with the class of the model; {path} has none")
    if wrong := sorted(map(str, content.keys() - {*_OF_LIGHTNING_CLI, *_OF_FIT})):
        raise ValueError(f"--config must be a LightningCLI configuration; {path} has {wrong[0]!r}, of another command")
    model = content["model"]
    if not isinstance(model, str) and not (isinstance(model, dict) and "class_path" in model):
        raise ValueError(
            f"--config must name the class of the model; in {path} write model: {{class_path: my_project.Model, "
            "init_args: ...}"
        )
    return {name: value for name, value in content.items() if name in _OF_LIGHTNING_CLI}


def _shorten(config: dict[str, Any], max_epochs: int | None, fraction: float | None) -> str:
    """Make the run of a configuration shorter, and return a sentence about it."""
    trainer = config.get("trainer") or {}
    if not isinstance(trainer, dict):
        raise ValueError(f"trainer must hold options by name, got {shown(trainer)}")
    trainer = config["trainer"] = dict(trainer)
    for name in ("max_epochs", "max_steps"):
        if trainer.get(name) is not None:
            as_integer(f"trainer.{name}", trainer[name], least=-1)
    if max_epochs is not None and fraction is not None:
        raise ValueError("--max_epochs and --fraction exclude each other")
    limits = {unit: trainer[f"max_{unit}"] for unit in ("epochs", "steps") if (trainer.get(f"max_{unit}") or -1) > 0}
    if max_epochs is not None:
        trainer["max_epochs"] = as_integer("max_epochs", max_epochs, least=1)
        if max_epochs >= limits.get("epochs", math.inf):
            return ""
        return f"Trained for {'at most ' if 'steps' in limits else ''}{max_epochs} epochs"
    if fraction is None:
        return ""
    if not 0.0 < as_number("fraction", fraction) <= 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if not limits:
        raise ValueError("--fraction needs trainer.max_epochs or trainer.max_steps in the configuration")
    for unit, whole in limits.items():
        if (left := round(whole * fraction)) < 1:
            hint = "" if "steps" in limits else "; give trainer.max_steps"
            raise ValueError(f"fraction must leave at least one of the {whole} {unit}, got {fraction}{hint}")
        trainer[f"max_{unit}"] = left
    of = " or ".join(f"{trainer[f'max_{unit}']} of {whole} {unit}" for unit, whole in limits.items())
    return f"Trained for {of}" if fraction < 1.0 else ""


def _check(options: Namespace, given: set[str]) -> None:
    if wrong := sorted(given & MODULE_OPTIONS):
        raise ValueError(f"--{wrong[0]} needs --config with the module to compare on")
    if options.lrs is None and "lrs" in given:
        raise ValueError("--lrs auto needs --config; without it give numbers")
    options.lrs = check_lrs(LRS if options.lrs is None else options.lrs)
    for name in ("max_epochs", "batch_size", "splits", "workers"):
        if getattr(options, name) is not None:
            as_integer(name, getattr(options, name), least=1)
    check_optimizer(options.optimizer, options.weight_decay, options.momentum)
    options.schedules = _read_schedules(options.schedules)
    named, seeds, _ = check_grid(options.schedules or FIELD, options.seeds, options.baseline)
    check_memory(options.splits * len(seeds), len(named) * len(options.lrs), options.max_epochs)
    options.folder = Path(options.folder or Path("runs", f"compare_{options.data or 'article'}"))
    _check_folder(options.folder, claims=False)


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


def _compare_parser() -> ArgumentParser:
    parser = _parser.command_parser(
        "compare", "Train every schedule at every LR over many seeds, and report the differences with intervals."
    )
    add = parser.add_argument
    add(
        "--data",
        type=Literal[_NAMES] | None,
        help="The data set; article by default, all of them with --claims.",
    )
    add("--network", help="module.Class of the network; its in_features and classes follow the data.")
    add("--schedules", help="A YAML file {name: schedule}, as for preview; 11 schedules by default.")
    add("--baseline", help="The schedule that the others are compared to; the first by default.")
    add(
        "--lrs",
        type=float | Literal["auto"],
        nargs="+",
        help="The peak LRs; 0.0003 to 0.3 by default, auto with --config.",
    )
    add("--seeds", type=int, default=32, help="The number of seeds; 3 by default with --config.")
    add("--max_epochs", type=int, default=10, help="The epochs of each training; the configuration's with --config.")
    add("--batch_size", type=int, help="The rows per step; those of the data set by default.")
    add("--optimizer", type=Literal[OPTIMIZERS], default="adam", help="The optimizer.")
    add("--weight_decay", type=float, default=0.0, help="The optimizer's weight decay.")
    add("--momentum", type=float, default=0.9, help="The momentum of sgd.")
    add("--folder", help="The folder of the results; runs/compare_DATA or runs/claims by default.")
    add("--splits", type=int, default=1, help="The number of splits of the data.")
    add("--engine", type=Literal["serial", "local", "ray"], default="local", help="Where trainings run.")
    add("--workers", type=int, help="Processes that train at a time; the CPUs by default.")
    add("--timeout", type=float, help="Seconds that a training, or a block of them, may take, with the engine local.")
    add("--address", help="host:port of a Ray cluster; a local one is started by default.")
    add("--config", help="A LightningCLI configuration: compare on its module, with the options below.")
    add("--metric", help="The logged metric that counts, such as val/loss.")
    add("--fraction", type=float, help="Train for this share of the configuration's epochs, or steps.")
    add("--mode", type=Literal["min", "max"], default="min", help="Whether less or more of it is better.")
    add("--lr_scales", type=float, nargs="+", help="Multiples of the module's own LR, in place of --lrs.")
    add("--split_arg", default="data.init_args.split_seed", help="The key of the split's seed in the configuration.")
    add("--cpus", type=float, default=1.0, help="CPUs of a training under Ray.")
    add("--gpus", type=float, default=0.0, help="GPUs of a training under Ray.")
    add("--retry_failed", action="store_true", help="Start trainings again that failed before.")
    add("--claims", action="store_true", help="Test claims about schedules on five data sets, or on --data.")
    return parser


def _read_schedules(path: str | None) -> dict[str, Schedule] | None:
    """Return the schedules of the file by name."""
    if path is None:
        return None
    entries = read_yaml(path)
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path} must hold schedules by name, got {shown(entries)}")
    named = [(str(name), build_schedule(plain, str(name))) for name, plain in entries.items()]
    return check_grid(named, 1, None)[0]  # two keys may be one text, as null and None
