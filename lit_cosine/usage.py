"""What is wrong with a command line, as far as it can be told without torch and lightning.

Convention: what is not refused here may still be refused by the command, which knows the types and the ranges; so a
slip in an option's name is answered at once, and not after everything that a training needs has been imported.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence

from lit_cosine.compare_options import parse
from lit_cosine.spelling import names, with_hint

__all__ = ["check_usage"]

_OF_ALL = {"help", "config", "print_config", "seed_everything", "model", "data", "trainer", "audit", "threads"}
_OPTIONS = {
    "train": _OF_ALL | {"checkpoint", "resume"},
    "test": _OF_ALL | {"ckpt_path"},
    "predict": _OF_ALL | {"ckpt_path", "output"},
}
"""Subcommand -> what its options begin with, up to the first dot."""


def check_usage(command: str, arguments: Sequence[str]) -> None:
    """Refuse what is wrong with a command line whatever its values mean.

    That is an option that the subcommand does not have, a schedule that there is not, a test or prediction without its
    checkpoint, and anything about a comparison.

    Args:
        command: The subcommand; of one that is not in the table nothing is known.
        arguments: The command line after it.

    Raises:
        ArgumentError: With the sentence to show.

    >>> check_usage("train", ["--model.lr", "0.1"])
    >>> check_usage("test", [])
    Traceback (most recent call last):
    argparse.ArgumentError: ckpt_path must name a checkpoint: lit-cosine test --ckpt_path FILE
    """
    if command == "compare":
        parse(arguments)
    known = _OPTIONS.get(command)
    if known is None:
        return
    given = [argument.partition("=")[0] for argument in arguments]
    for name in given:
        if name.startswith("--") and name[2:].partition(".")[0] not in known:
            listed = ", ".join(f"--{option}" for option in sorted(known))
            raise ArgumentError(None, f"unrecognized arguments: {name}; options begin with {listed}")
    for name, argument, after in zip(given, arguments, [*arguments, ""][1:], strict=True):
        schedule = argument.partition("=")[2] or after
        if name == "--model.schedule" and schedule.isidentifier() and schedule not in names():
            raise ArgumentError(None, with_hint(f"model.schedule: unknown schedule {schedule!r}", schedule, names()))
        if name == "--model.schedule" and schedule.islower() and schedule in names():
            sentence = f"model.schedule must be a class, got the function {schedule}; a warmup is --model.warmup 5%"
            raise ArgumentError(None, sentence)
    asks_only = {"--help", "-h", "--print_config", "--config", "-c"} & {*given}
    if "ckpt_path" in known and "--ckpt_path" not in given and not asks_only:
        raise ArgumentError(None, f"ckpt_path must name a checkpoint: lit-cosine {command} --ckpt_path FILE")
