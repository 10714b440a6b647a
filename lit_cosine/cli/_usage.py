"""Command lines of ``train``, ``test``, ``predict`` and ``audit``: help and first checks without torch and lightning.

Convention: top-level options and groups are known here; what is below a group, as ``--model.lr``, is checked by the
command, which knows the classes. A misspelt option or key is refused with the known name that was probably meant.
"""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from lit_cosine._checks import shown
from lit_cosine.cli._parser import given, with_underscores
from lit_cosine.cli._yaml import lines_of, read_yaml
from lit_cosine.schedules import names, with_hint

__all__ = ["HELP", "OF_TRAIN", "check_audit", "check_predict", "check_test", "check_train", "configurations", "located"]

HELP = {
    "config": "A YAML file with any of these options, such as the config.yaml of a run.",
    "print_config": "Print the configuration as YAML, and stop.",
    "seed_everything": "The seed of everything that is random.",
    "model": "The network, its LR and its schedule; --help.model lists the options.",
    "data": "The data set; --data.help CLASS lists the options of a DataModule.",
    "trainer": "Lightning's Trainer; --help.trainer lists the options.",
    "checkpoint": "When checkpoints are saved; --help.checkpoint lists the options.",
    "audit": "What to do before training about a planned LR that is wrong: warn, raise, print or off.",
    "threads": "CPU threads; by default 1 for a network that is too small to benefit from more.",
    "trust": "Let the config.yaml of a run that is resumed or loaded name any class or function.",
    "resume": "Continue the last run, or the run or checkpoint that follows.",
    "ckpt_path": "The checkpoint to load.",
    "output": "The file to write: predictions as .csv, a plan as .png or .json.",
}
_OF_ALL = ("config", "print_config", "seed_everything", "model", "data", "trainer", "audit", "threads", "trust")
OF_TRAIN = ("checkpoint", "resume")
_OPTIONS = {
    "train": (*_OF_ALL, *OF_TRAIN),
    "test": (*_OF_ALL, "ckpt_path"),
    "predict": (*_OF_ALL, "ckpt_path", "output"),
    "audit": ("config", "seed_everything", "model", "data", "trainer", "ckpt_path", "output"),
}
"""Subcommand -> first parts of its options, up to the first dot."""

_KEYS = sorted({*HELP} - {"config", "print_config", "trust"})
"""Top-level keys of a configuration; that of a training serves every command."""

_ABOUT = {
    "train": (
        "Train a classifier under a schedule, test its best checkpoint, and write everything into a new run folder.",
        "lit-cosine train --data.dataset digits --trainer.max_epochs 30",
        "lit-cosine train --model.schedule Restarts --model.schedule.cycles 3 --model.interval step",
        "lit-cosine train --resume --trainer.max_epochs 20 --model.on_resize restart",
    ),
    "test": (
        "Measure a checkpoint on the held-out test rows of its data.",
        "lit-cosine test --ckpt_path runs/run_1/checkpoints/best.ckpt",
        "lit-cosine test --ckpt_path best.ckpt --config runs/run_1/config.yaml",
        "lit-cosine test --ckpt_path best.ckpt --data.dataset digits",
    ),
    "predict": (
        "Write a checkpoint's class probabilities of the test rows as CSV.",
        "lit-cosine predict --ckpt_path runs/run_1/checkpoints/best.ckpt",
        "lit-cosine predict --ckpt_path best.ckpt --output probabilities.csv",
        "lit-cosine predict --ckpt_path best.ckpt --data.dataset digits",
    ),
    "audit": (
        "Show the planned LR of a LightningCLI run and what is wrong with it, without training.",
        "lit-cosine audit --config config.yaml",
        "lit-cosine audit --config config.yaml --trainer.max_epochs 20 --output plan.png",
        "lit-cosine audit --model my_project.MyModule --data my_project.MyData --trainer.max_epochs 20",
    ),
}

_FIRST = {
    "--model.lr LR": "The peak LR (0.01).",
    "--model.schedule NAME": "The schedule: Cosine, Linear, Step, Restarts, ...; lit-cosine preview draws them.",
    "--model.schedule.ARGUMENT VALUE": "An argument of the schedule, as --model.schedule.end 0.1.",
    "--model.warmup DURATION": 'The warmup, such as "500step", "2ep" or "5%".',
    "--model.interval step": "Change the LR at every step; by default once an epoch.",
    "--model.network MODULE.CLASS": "A network of your own.",
    "--data.dataset NAME": "breast_cancer, digits, iris or wine; by default the article's synthetic data.",
    "--data.batch_size N": "The rows per step (64).",
    "--trainer.max_epochs N": "The epochs of the run (10).",
    "--trainer.default_root_dir FOLDER": "The folder of runs (runs).",
    "--checkpoint.every_n_train_steps N": "Save a checkpoint every N steps as well.",
}

_MEANT = {
    **dict.fromkeys(("lr", "learning_rate", "peak_lr"), "model.lr"),
    **dict.fromkeys(("schedule", "scheduler", "lr_scheduler", "lr_schedule"), "model.schedule"),
    **{name: f"model.{name}" for name in ("warmup", "interval", "network", "on_resize", "cooldown")},
    **{name: f"data.{name}" for name in ("batch_size", "dataset", "standardize", "num_workers", "test_size")},
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs"), "trainer.max_epochs"),
    **{
        name: f"trainer.{name}"
        for name in ("max_steps", "max_time", "accelerator", "devices", "precision", "callbacks", "logger", "strategy",
                     "accumulate_grad_batches", "gradient_clip_val", "default_root_dir", "log_every_n_steps")
    },
    "seed": "seed_everything",
    "output_dir": "trainer.default_root_dir",
    "checkpoint_path": "ckpt_path",
}  # fmt: skip
"""What people write at the top level -> the option they mean."""


def _check(command: str, arguments: Sequence[str]) -> None:
    """Print help, or refuse an unknown option, key or schedule, and a test or prediction without its checkpoint.

    >>> _check("train", ["--model.lr", "0.1"])
    >>> _check("test", [])
    Traceback (most recent call last):
    argparse.ArgumentError: ckpt_path must name a checkpoint: lit-cosine test --ckpt_path FILE
    """
    arguments, known = with_underscores(arguments), _OPTIONS[command]
    options = dict(given(arguments))
    if {"-h", "--help"} & {*options}:
        print(_help(command))
        raise SystemExit(0)
    contents = list(configurations(arguments))
    if command == "audit":  # options and keys are those of a project of the user's
        named = [*("model" in content for _, content in contents), *(name.startswith("--model") for name in options)]
        if contents and not any(named):
            raise ArgumentError(None, "config names no model: add --model module.Class")
        return
    for name in options:
        if name.startswith("--") and name[2:].partition(".")[0] not in (*known, "help"):
            raise ArgumentError(None, _unknown(f"unknown option {name}", name[2:], known, "--"))
    for path, content in contents:
        for key in content:
            if key not in _KEYS:
                where = ", line ".join([path, *map(str, lines_of(path, str(key))[:1])])
                raise ArgumentError(None, _unknown(f"{where}: unknown key {shown(key)}", str(key), _KEYS))
        model = content.get("model")
        schedule = model.get("schedule") if isinstance(model, dict) else None
        if isinstance(schedule, str) and schedule.isidentifier():
            where = ", line ".join([path, *map(str, lines_of(path, "model.schedule")[:1])])
            _check_schedule(f"{where}: model.schedule", schedule)
    if (schedule := options.get("--model.schedule", "")).isidentifier():
        _check_schedule("model.schedule", schedule)
    asks_only = {"--print_config", "--config", "-c"} & {*options} or any(name.startswith("--help.") for name in options)
    if "ckpt_path" in known and "--ckpt_path" not in options and not asks_only:
        raise ArgumentError(None, f"ckpt_path must name a checkpoint: lit-cosine {command} --ckpt_path FILE")


def _check_schedule(where: str, name: str) -> None:
    if name not in names():
        raise ArgumentError(None, with_hint(f"{where}: unknown schedule {shown(name)}", name, names()))
    if name.islower():
        raise ArgumentError(None, f"{where} must be a class, got the function {name}; a warmup is --model.warmup 5%")


def configurations(arguments: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the path and contents of every ``--config FILE``."""
    for name, path in given(arguments):
        if name not in ("--config", "-c"):
            continue
        if not path:
            raise ArgumentError(None, f"{name} needs a file")
        try:
            content = read_yaml(path)
        except ValueError as error:
            raise ArgumentError(None, f"config: {error}") from None
        if not Path(path).is_file():
            raise ArgumentError(None, f"config: {path} must be a regular file, as it is read more than once")
        if not isinstance(content, dict):
            raise ArgumentError(None, f"config: {path} must hold options by name, got {shown(content)}")
        yield path, content


def located(message: str, arguments: Sequence[str]) -> str:
    """Return a refusal with the file and line of the key it begins with, where a ``--config`` alone has given that."""
    found = re.match(r"(?i:Group '([\w.]+)' does not accept option ')?(\w+(?:\.\w+)*)", message)
    options = list(given(with_underscores(arguments)))
    files = [path for name, path in options if name in ("--config", "-c")]
    if found is None or not files:
        return message
    key = ".".join(filter(None, found.groups())).replace(".init_args", "")
    try:
        places = [f"{path}, line {line}" for path in files for line in lines_of(path, key)]
    except ValueError:  # the refusal is of that file, and names it
        return message
    elsewhere = any(f".{name.lstrip('-').replace('.init_args', '')}".endswith(f".{key}") for name, _ in options)
    return message if elsewhere or len(places) != 1 else f"{places[0]}: {message}"


def _unknown(problem: str, name: str, known: Sequence[str], dashes: str = "") -> str:
    """Return the refusal of an option or key, with the known name that was probably meant."""
    group, _, rest = name.partition(".")
    if meant := _MEANT.get(name):
        where = f"did you mean {dashes}{meant}" if dashes else f"did you mean {meant.replace('.', ': {', 1)}"
        return f"{problem}; {where}{'}' if not dashes and '.' in meant else ''}?"
    near = difflib.get_close_matches(group, known, n=1)
    if near:
        return f"{problem}; did you mean {dashes}{near[0]}{rest and '.'}{rest}?"
    return f"{problem}; known are {', '.join(f'{dashes}{option}' for option in known)}"


def _help(command: str) -> str:
    about, *examples = _ABOUT[command]
    listed = {f"--{name}": HELP[name] for name in _OPTIONS[command]}
    if command == "train":
        listed = {**_FIRST, **listed}
    width = max(map(len, listed))
    options = "\n".join(f"  {option:{width}}  {text}" for option, text in listed.items())
    return (
        f"usage: lit-cosine {command} [OPTION VALUE] ...\n\n{about}\n\nexamples:\n  "
        + "\n  ".join(examples)
        + f"\n\noptions:\n{options}\n\n"
        "Every option can stand in the YAML file of --config: --model.lr 0.1 is model: {lr: 0.1}."
    )


check_train, check_test, check_predict, check_audit = (partial(_check, command) for command in _OPTIONS)
