"""The ``lit-cosine`` command: finds a subcommand and calls it.

Convention: a subcommand is a function that takes the rest of the command line as strings. It is imported when it is
called, after a check of the command line, so that neither ``lit-cosine --help`` nor a refused command line imports
torch or lightning. It refuses its input by raising ``argparse.ArgumentError(None, sentence)``, which becomes one line
and exit status 2.
"""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from lit_cosine._checks import in_one_line, shown
from lit_cosine.cli._shell import STOPPED, rank_zero_ended, safe_streams, stop_signals, warnings_as_warnings

__all__ = ["main"]

_MOST_CHARACTERS = 260
"""The longest error message, in characters."""


class _Command(NamedTuple):
    """A subcommand, with its functions as ``module:function``."""

    run: str
    what: str
    check: str | None = None
    """A check of the command line that imports neither torch nor lightning, where the command itself imports them."""


_COMMANDS = {
    "train": _Command(
        "train:train", "fit a classifier under a schedule, test the best checkpoint", "_usage:check_train"
    ),
    "test": _Command("train:test", "measure a checkpoint on the held-out test rows", "_usage:check_test"),
    "predict": _Command(
        "train:predict", "write a checkpoint's class probabilities of the test rows", "_usage:check_predict"
    ),
    "audit": _Command(
        "audit:audit",
        "show the planned LR of a LightningCLI run and its faults, without training",
        "_usage:check_audit",
    ),
    "compare": _Command(
        "compare:compare_schedules", "train under many schedules, and compare them", "_compare_options:parse"
    ),
    "board": _Command("board:board", "show a folder of runs in TensorBoard"),
    "preview": _Command("preview:preview", "draw schedules before anything is trained"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lit-cosine`` and return its exit status.

    Args:
        arguments: The command line without the program's name; ``sys.argv[1:]`` where None.

    >>> main(["dance"])
    2
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    program = f"lit-cosine {name}" if name in _COMMANDS else "lit-cosine"
    with safe_streams(), warnings_as_warnings():
        try:
            with stop_signals():
                return _run(name, rest)
        except ArgumentError as error:
            if rank_zero_ended():
                return 2
            sentence = _function("_usage:located")(str(error), rest)
            print(f"{program}: error: {in_one_line(sentence, _MOST_CHARACTERS)}", file=sys.stderr)
            return 2
        except SystemExit as stop:
            if stop.code not in STOPPED:
                if isinstance(stop.code, str) and rank_zero_ended():
                    return 1
                raise
            if os.environ.get("LOCAL_RANK", "0") == "0":  # the processes of a distributed run are stopped together
                sentence = getattr(stop, "sentence", "")
                print(f"{program}: stopped by {STOPPED[stop.code]}{sentence and '; '}{sentence}", file=sys.stderr)
            return int(stop.code)


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        from importlib import metadata

        print(f"lit-cosine {metadata.version('lit-cosine')}")
        return 0
    if name not in _COMMANDS:
        near = get_close_matches(name, _COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_COMMANDS)}"
        raise ArgumentError(None, f"unknown subcommand {shown(name)}; {hint}")
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ArgumentError(None, "the working directory no longer exists: change to another one") from None
    if here not in sys.path:
        sys.path.append(here)  # for a network of the user's own; last, so that it hides no installed module
    # figures are written to files; an interactive or unknown backend would be loaded, or refused, at import
    os.environ["MPLBACKEND"] = "agg"
    command = _COMMANDS[name]
    if command.check is not None:
        _function(command.check)(arguments)
    return int(_function(command.run)(arguments) or 0)  # audit returns a status, the others nothing


def _function(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(_imported(f"lit_cosine.cli.{module}"), name)


def _imported(module: str) -> Any:
    """Return the module, imported without garbage collection, which finds nothing and takes a third of the time.

    Freezing what torch and lightning have loaded keeps later collections from looking through it.
    """
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _help() -> str:
    width = max(map(len, _COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.what}" for name, command in _COMMANDS.items())
    return (
        "usage: lit-cosine [--help] [--version] SUBCOMMAND ...\n\n"
        f"The learning-rate curve you plan is the curve you get.\n\nsubcommands:\n{commands}\n\n"
        "lit-cosine SUBCOMMAND --help lists a subcommand's options."
    )
