"""Schedules as people spell them, by name with flags or in YAML, and what to say about a misspelling.

Convention: a schedule is spelled as LightningCLI reads it, ``{class_path: Cosine, init_args: {end: 0.1}}`` or just
``Cosine``; the presets (``one_cycle``, …) are spelled the same way. Nothing but lit_cosine's own schedules is called.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from lit_cosine import schedules
from lit_cosine.schedules import Schedule

__all__ = ["arguments", "build_schedule", "check_keys", "names", "with_hint"]

_PREFIXES = ("", "lit_cosine", "lit_cosine.schedules")


def names() -> tuple[str, ...]:
    """Return what can be spelled: the schedules and the presets.

    >>> names()[:3]
    ('Constant', 'Cosine', 'Exponential')
    """
    return tuple(name for name in schedules.__all__ if name != "Schedule")


def arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of the schedule or preset ``name``.

    Raises:
        ValueError: If there is none of that name; the message suggests the nearest.

    >>> arguments("Cosine")
    ('start', 'end', 'k')
    """
    return tuple(inspect.signature(_maker(name)).parameters)


def build_schedule(spelled: Any, where: str = "schedule") -> Schedule:
    """Return the schedule that ``spelled`` means.

    Args:
        spelled: A name, or a mapping with ``class_path`` and ``init_args``; nested ones likewise.
        where: Where it was written, for the message.

    Raises:
        ValueError: If a name, a key or a value is wrong; the message names it and suggests the nearest.

    >>> build_schedule({"class_path": "Restarts", "init_args": {"schedule": "Linear", "cycles": 2}})
    Restarts(schedule=Linear(start=1.0, end=0.0), cycles=2, t_mult=1.0, decay=1.0)
    >>> build_schedule("Cosinus")
    Traceback (most recent call last):
    ValueError: schedule: unknown schedule 'Cosinus'; did you mean Cosine?
    """
    if isinstance(spelled, str):
        spelled = {"class_path": spelled}
    if not isinstance(spelled, dict):
        raise ValueError(f"{where}: a schedule is a name or has the keys class_path and init_args, got {spelled!r}")
    check_keys(spelled, ("class_path", "init_args"), where)
    if not isinstance(spelled.get("class_path"), str):
        raise ValueError(f"{where}: class_path must name a schedule, got {spelled.get('class_path')!r}")
    try:
        name, maker = spelled["class_path"].rpartition(".")[2], _maker(spelled["class_path"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    init_args = spelled.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise ValueError(f"{where}.init_args must hold the arguments by name, got {init_args!r}")
    parameters = inspect.signature(maker).parameters
    for key in init_args:
        if key not in parameters:
            raise ValueError(
                with_hint(f"{where}.init_args.{key}: {name} has no argument {key!r}", str(key), tuple(parameters))
            )
    needed = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [key for key in needed if key not in init_args]:
        raise ValueError(f"{where}: {name} needs {' and '.join(missing)}")
    values = {key: _value(key, value, f"{where}.init_args.{key}") for key, value in init_args.items()}
    try:
        return maker(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def check_keys(mapping: dict[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key of ``mapping`` that is not ``known``, by its name."""
    known = tuple(known)
    for key in mapping:
        if key not in known:
            raise ValueError(with_hint(f"{where}: unknown key {key!r}", str(key), known))


def with_hint(problem: str, word: str, known: tuple[str, ...]) -> str:
    """Return ``problem`` and the name that ``word`` was probably meant to be, or all there are.

    >>> with_hint("unknown key 'stepz'", "stepz", ("steps", "lr"))
    "unknown key 'stepz'; did you mean steps?"
    """
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"{problem}; did you mean {by_lower[near[0]]}?" if near else f"{problem}; known are {', '.join(known)}"


def _maker(path: str) -> Callable[..., Schedule]:
    prefix, _, name = path.rpartition(".")
    if prefix not in _PREFIXES or name not in names():
        raise ValueError(with_hint(f"unknown schedule {path!r}", name, names()))
    maker: Callable[..., Schedule] = getattr(schedules, name)
    return maker


def _value(key: str, value: Any, where: str) -> Any:
    if key == "schedule":
        return build_schedule(value, where)
    if key == "schedules":
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list of schedules, got {value!r}")
        return tuple(build_schedule(item, f"{where}[{index}]") for index, item in enumerate(value))
    return [_number(item) for item in value] if isinstance(value, (list, tuple)) else _number(value)


def _number(value: Any) -> Any:
    """Return the number in a string such as ``1e-3``, which YAML 1.1 does not take for one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
