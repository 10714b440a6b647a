"""The ``lit-cosine`` command: finds a subcommand and calls it.

Convention: a subcommand is a function that takes the rest of the command line as strings. It is imported when it is
asked for, so that ``lit-cosine --help`` imports neither torch nor lightning. It refuses its input by raising
``argparse.ArgumentError(None, sentence)``, which becomes one line and exit status 2.
"""

from __future__ import annotations

import gc
import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from typing import Any

__all__ = ["main"]

# name -> (where, what)
_COMMANDS = {
    "train": ("lit_cosine.runs:train", "fit a classifier under a schedule, test the best checkpoint"),
    "test": ("lit_cosine.runs:test", "measure a checkpoint on the held-out test rows"),
    "predict": ("lit_cosine.runs:predict", "write a checkpoint's class probabilities of the test rows"),
    "compare": ("lit_cosine.compare_command:compare_schedules", "train under many schedules at once, and compare them"),
    "board": ("lit_cosine.board:board", "show a folder of runs in TensorBoard"),
    "preview": ("lit_cosine.preview:preview", "draw schedules before anything is trained"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lit-cosine`` and return its exit status.

    Args:
        arguments: The command line without the program's name; ``sys.argv[1:]`` where None.

    >>> main(["dance"])
    2
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        from importlib import metadata

        print(f"lit-cosine {metadata.version('lit-cosine')}")
        return 0
    if name not in _COMMANDS:
        return _refuse("lit-cosine", f"unknown subcommand {name!r}; known are {', '.join(_COMMANDS)}")
    from lit_cosine.usage import check_usage  # reads schedules, which help does without

    module, _, function = _COMMANDS[name][0].partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # where a network of the user's own lies; last, so that it hides nothing
    try:
        check_usage(name, rest)
        getattr(_imported(module), function)(rest)
    except ArgumentError as error:
        return _refuse(f"lit-cosine {name}", str(error))
    return 0


def _imported(module: str) -> Any:
    """Return the module, imported without garbage collection.

    Collecting while torch and lightning load finds nothing and takes a third of the time; so would looking through
    what they have loaded at every later collection.
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
    commands = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in _COMMANDS.items())
    return (
        "usage: lit-cosine [--help] [--version] SUBCOMMAND ...\n\n"
        f"The learning-rate curve you plan is the curve you get.\n\nsubcommands:\n{commands}\n\n"
        "lit-cosine SUBCOMMAND --help lists a subcommand's options."
    )


def _refuse(program: str, sentence: str) -> int:
    print(f"{program}: error: {sentence}", file=sys.stderr)
    return 2
