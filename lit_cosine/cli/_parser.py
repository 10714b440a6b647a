"""The argument parser of the commands, and a parser's errors as one sentence.

Convention: an option is written with underscores or hyphens, ``--max_epochs`` or ``--max-epochs``, and is never
abbreviated. A command line that is refused is an ``argparse.ArgumentError`` whose message is the sentence to show.
"""

from __future__ import annotations

import re
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from textwrap import dedent

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lit_cosine import schedules
from lit_cosine.schedules import with_hint

__all__ = [
    "command_parser",
    "given",
    "group_help",
    "one_sentence",
    "option_names",
    "parse",
    "refuse_unknown",
    "up_to_help",
    "with_name_hint",
    "with_underscores",
]


class _Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of the description and the examples, and adds types and defaults to the options."""


def command_parser(command: str, description: str, examples: str = "") -> ArgumentParser:
    """Return the parser of ``lit-cosine COMMAND``; ``examples`` are command lines to copy, one a line."""
    epilog = f"examples:\n{dedent(examples).strip()}" if examples else None
    return ArgumentParser(
        prog=f"lit-cosine {command}",
        description=description,
        epilog=epilog,
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Return the options that ``arguments`` give, or raise an ``ArgumentError``."""
    arguments = with_underscores(arguments)
    refuse_unknown(arguments, option_names(parser))
    try:
        return parser.parse_args(arguments)
    except (ArgumentError, OSError, TypeError, ValueError) as error:
        raise ArgumentError(None, one_sentence(str(error))) from None


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the options of ``parser`` with their dashes, ``--help`` included."""
    return ["--help", *(f"--{name}" for name in vars(parser.get_defaults().as_flat()))]


def group_help(parser: ArgumentParser, group: str) -> str:
    """Return the help of the options below ``--GROUP``, without the lists of every class that an option could name."""
    lines, inside = [], False
    for line in parser.format_help().splitlines():
        if re.match(r"  -", line):
            inside = line.startswith((f"  --{group}.", f"  --{group} "))
        elif not line.startswith(" " * 3):
            inside = False
        if inside:
            lines.append(line)
    text = re.sub(r",\s+known\s+subclasses:[^)]*", "", "\n".join(lines))
    return text or f"there are no options below --{group}"


def with_underscores(arguments: Iterable[str]) -> list[str]:
    """Return the command line with every option's hyphens as underscores.

    >>> with_underscores(["--max-epochs=3", "--data.n_samples", "-5"])
    ['--max_epochs=3', '--data.n_samples', '-5']
    """
    return [_with_underscores(argument) if argument.startswith("--") else argument for argument in arguments]


def _with_underscores(argument: str) -> str:
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def up_to_help(arguments: Sequence[str]) -> list[str]:
    """Return the command line up to the first ``--NAME.help [CLASS]``, after which jsonargparse exits by itself.

    >>> up_to_help(["--a", "1", "--trainer.strategy.help", "DDPStrategy", "--b=2"])
    ['--a', '1', '--trainer.strategy.help', 'DDPStrategy']
    """
    for at, (argument, after) in enumerate(zip(arguments, [*arguments, "--"][1:], strict=True)):
        name, equals, _ = argument.partition("=")
        if name.startswith("--") and name.endswith(".help"):
            return list(arguments[: at + 1 + (not equals and not after.startswith("-"))])
    return list(arguments)


def given(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every option with its value, which is empty where there is none.

    >>> list(given(["--a", "1", "--b=2", "--c"]))
    [('--a', '1'), ('--b', '2'), ('--c', '')]
    """
    for argument, after in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("-"):
            yield name, value if equals else after * (not after.startswith("--"))


def refuse_unknown(arguments: Iterable[str], known: Sequence[str]) -> None:
    """Refuse an option that is not ``known``, with the nearest one that is.

    >>> refuse_unknown(["--seed", "3"], ["--seeds", "--lrs"])
    Traceback (most recent call last):
    argparse.ArgumentError: unknown option --seed; did you mean --seeds?
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise ArgumentError(None, with_hint(f"unknown option {name}", name, tuple(sorted(known))))


_ALIASES = {"learning_rate": "lr", "eta_min": "end", "scheduler": "schedule", "epochs": "max_epochs"}
_REFUSED_NAME = re.compile(r"(?i:unrecognized arguments: --([\w.]+))|Group '([\w.]+)' does not accept option '(\w+)'")


def with_name_hint(message: str, options: Sequence[str]) -> str:
    """Return jsonargparse's refusal of a name, with the one of ``options`` that was probably meant.

    >>> with_name_hint("Unrecognized arguments: --model.lrr 0.1", ["model.lr", "model.warmup"])
    'Unrecognized arguments: --model.lrr 0.1; did you mean model.lr?'
    """
    found = _REFUSED_NAME.search(message[:2000])  # its time grows with the square of a long value
    if found is None:
        return message
    group, _, name = (found[1] or f"{found[2]}.{found[3]}").rpartition(".")
    below = (option.removeprefix(f"{group}.") for option in options if option.startswith(f"{group}."))
    known = tuple(option.partition(".")[0] for option in below)
    near = _ALIASES.get(name, name)
    near = near if near in known else next(iter(get_close_matches(name, known, n=1)), "")
    return f"{message}; did you mean {group}.{near}?" if near else f"{message}; --help.{group} lists the options"


def one_sentence(message: str) -> str:
    """Return a message as one line; of jsonargparse's report on a union of types, the reasons and the value."""
    # where a class is accepted, a file that describes one is too; a misspelt class was not meant as a file
    message = re.sub(r"\n *- Expected a path but .* invalid", "", message)
    # in a list of classes, one that refused an argument was not meant as a list of another form
    message = re.sub(r"(- (?!Not a valid).*)\n *- Not a valid subclass of .*(\n    .*)*", r"\1", message)
    head, errors, rest = message.partition("Errors:")
    if errors:
        reasons, _, given = rest.partition("Given value:")
        lines = [line.strip(" -") for line in reasons.splitlines() if line.strip()]
        message = "; ".join(line for line in lines if "NoneType" not in line and not line.startswith("Given value"))
        if "Namespace(" not in given:  # a class that refused one of its arguments has said which
            message = f"{head.splitlines()[0]} {message}; got {given}"
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r"(a )?typing\.Literal\[(.*?)\]", r"one of \2", message)
    message = re.sub(r"Expected (a )?int\b", "Expected an integer", message)
    message = re.sub(r"Expected (a )?float\b", "Expected a number", message)
    message = re.sub(r'Parser key "([\w.]+)"([ \w]*):', r"\1\2:", message)
    message = " ".join(message.replace("\n  - ", "\n").split()).replace(":;", ":")
    return re.sub(r"Problem with given class_path '([\w.]+)': Option '(\w+)' is not accepted", _in_its_words, message)


def _in_its_words(refusal: re.Match[str]) -> str:
    """Return what a schedule of lit_cosine says of an argument that it does not have."""
    name = refusal[1].rpartition(".")[2]
    if name in schedules.names():
        try:
            getattr(schedules, name)(**{refusal[2]: 0})
        except TypeError as error:
            return str(error)
    return refusal[0]
