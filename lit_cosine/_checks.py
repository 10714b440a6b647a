"""Checks of arguments, fields and states, each written once.

Convention: a wrong type is a TypeError, a wrong value a ValueError. The message names the argument, the rule and the
value; numpy's numbers count as numbers, booleans do not.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

__all__ = [
    "STATE_VERSION",
    "as_flag",
    "as_fraction",
    "as_integer",
    "as_number",
    "as_tuple",
    "check_choice",
    "check_power",
    "check_text",
    "in_one_line",
    "read_state",
    "set_milestones",
    "set_number",
    "shown",
]

STATE_VERSION = 2
"""The version in every state dict and file that lit_cosine 2 writes."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def shown(value: Any) -> str:
    """Return the ``repr`` of ``value`` on one line, shortened to at most 120 characters, for a message."""
    return in_one_line(_SHORT.repr(value), 120)


def in_one_line(text: str, most: int) -> str:
    """Return ``text`` on one line; what exceeds ``most`` characters is left out of its middle."""
    text = " ".join(text.split())
    tail = (most - 5) // 2
    return text if len(text) <= most else f"{text[: most - 5 - tail]} ... {text[-tail:]}"


def as_number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> float:
    """Return ``value`` as a float; with a bound it must also be finite. Text and booleans are no numbers."""
    number = math.nan
    is_number = not isinstance(value, bool) and hasattr(value, "__float__")
    if is_number:
        try:
            number = float(value)
        except OverflowError:  # 10**400
            number = math.inf
        except (TypeError, ValueError, RuntimeError):  # an array, a tensor of several numbers
            is_number = False
    if not is_number:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if least is not None and not (math.isfinite(number) and number >= least):
        raise ValueError(f"{name} must be finite and >= {least:g}, got {shown(value)}")
    if above is not None and not (math.isfinite(number) and number > above):
        raise ValueError(f"{name} must be finite and > {above:g}, got {shown(value)}")
    return number


def as_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` as an int from ``least`` to ``most``, by default the largest of 64 bits; 3.0 is no integer."""
    rule = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    integer = None
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        with suppress(TypeError):  # an array or a tensor of several integers
            integer = operator.index(value)
    if integer is None:
        raise TypeError(f"{name} must be {rule}, got {shown(value)}")
    if not least <= integer <= (2**63 - 1 if most is None else most):
        below = " and below 2**63" if integer > least else ""
        raise ValueError(f"{name} must be {rule}{below if most is None else ''}, got {shown(integer)}")
    return integer


def as_flag(name: str, value: Any) -> bool:
    """Return ``value``, True or False, as a bool; numpy's booleans count."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def as_fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float in [0, 1)."""
    number = as_number(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be a fraction of the run in [0, 1), got {shown(value)}")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a ``value`` that is not one of ``choices``."""
    if value not in choices:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")


def check_text(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse a ``value`` that is no string, nor None where it is ``optional``."""
    if not isinstance(value, str) and not (optional and value is None):
        raise TypeError(f"{name} must be text{' or None' * optional}, got {shown(value)}")


def as_tuple(self: Any, field: str) -> tuple[Any, ...]:
    """Return the field ``field`` of a dataclass, a list or a tuple, as a tuple."""
    value = getattr(self, field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{type(self).__name__}.{field} must be a tuple, got {shown(value)}")
    return tuple(value)


def set_number(self: Any, *names: str, least: float | None = None, above: float | None = None) -> None:
    """Store the fields ``names`` of a frozen dataclass as floats, checked by :func:`as_number`."""
    for field in names:
        number = as_number(f"{type(self).__name__}.{field}", getattr(self, field), least=least, above=above)
        object.__setattr__(self, field, number)


def set_milestones(self: Any) -> None:
    """Store the field ``milestones`` of a frozen dataclass as a tuple of floats that rise inside (0, 1)."""
    name, values = f"{type(self).__name__}.milestones", as_tuple(self, "milestones")
    milestones = tuple(as_number(f"{name}[{index}]", value) for index, value in enumerate(values))
    if not all(0.0 < milestone < 1.0 for milestone in milestones):
        raise ValueError(f"{name} must be progress points in (0, 1), got {shown(milestones)}")
    if any(left >= right for left, right in pairwise(milestones)):
        raise ValueError(f"{name} must rise, got {shown(milestones)}")
    object.__setattr__(self, "milestones", milestones)


def check_power(name: str, base: float, exponent: int) -> None:
    """Refuse a ``base`` whose power is too large for a float."""
    try:
        base**exponent
    except OverflowError:
        raise ValueError(f"{name} must keep every factor finite, got {base} to the power of {exponent}") from None


def read_state(owner: str, state: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known entries of the state of ``owner``, the default where one is missing; others are ignored."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {owner} must be a dict, got {shown(state)}")
    version = state.get("version", 1)
    if type(version) is int and version == 1:
        raise ValueError(
            f"this checkpoint was written by lit_cosine 1.x, whose state of {owner} cannot be resumed; load its "
            "weights with load_from_checkpoint and start a new run"
        )
    if type(version) is not int or version != STATE_VERSION:  # a tensor has no truth value
        raise ValueError(
            f"the state of {owner} has version {shown(version)} and this lit_cosine reads version {STATE_VERSION}: "
            "resume with the lit_cosine that wrote it"
        )
    return {key: state.get(key, default) for key, default in defaults.items()}
