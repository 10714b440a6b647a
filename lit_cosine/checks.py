"""What arguments and fields must be, in one place: numbers, integers, rising milestones.

Convention: a message names argument, rule and value. What numpy calls a number is one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

__all__ = ["as_fraction", "as_integer", "as_number", "as_tuple", "check_power", "set_milestones", "set_number"]


def as_number(name: str, value: Any) -> float:
    """Return ``value`` as a float, or say that ``name`` must be one."""
    if not isinstance(value, bool) and hasattr(value, "__float__"):
        with suppress(TypeError, ValueError, OverflowError):  # an array, a tensor of several numbers, 10**400
            return float(value)
    raise TypeError(f"{name} must be a number, got {value!r}")


def as_integer(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int, or say that ``name`` must be one from ``least`` up."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return operator.index(value)


def as_fraction(name: str, value: Any) -> float:
    """Return ``value`` as a float in [0, 1), or say that ``name`` must be one."""
    number = as_number(name, value)
    if not 0.0 <= number < 1.0:
        raise ValueError(f"{name} must be a fraction of the run in [0, 1), got {value!r}")
    return number


def as_tuple(self: Any, field: str) -> tuple[Any, ...]:
    """Return ``field`` as a tuple, or say that it must be one."""
    value = getattr(self, field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{type(self).__name__}.{field} must be a tuple, got {value!r}")
    return tuple(value)


def set_number(self: Any, *names: str, least: float | None = None, above: float | None = None) -> None:
    """Store the fields ``names`` as floats, or say what is wrong with one."""
    for field in names:
        name, value = f"{type(self).__name__}.{field}", getattr(self, field)
        number = as_number(name, value)
        if least is not None and not (math.isfinite(number) and number >= least):
            raise ValueError(f"{name} must be finite and >= {least:g}, got {value!r}")
        if above is not None and not (math.isfinite(number) and number > above):
            raise ValueError(f"{name} must be finite and > {above:g}, got {value!r}")
        object.__setattr__(self, field, number)


def set_milestones(self: Any) -> None:
    """Store the field ``milestones`` as a tuple of floats that rise inside (0, 1), or say what is wrong with it."""
    name, values = f"{type(self).__name__}.milestones", as_tuple(self, "milestones")
    milestones = tuple(as_number(f"{name}[{index}]", value) for index, value in enumerate(values))
    if not all(0.0 < milestone < 1.0 for milestone in milestones):
        raise ValueError(f"{name} must be progress points in (0, 1), got {milestones}")
    if any(left >= right for left, right in pairwise(milestones)):
        raise ValueError(f"{name} must rise, got {milestones}")
    object.__setattr__(self, "milestones", milestones)


def check_power(name: str, base: float, exponent: int) -> None:
    """Refuse a ``base`` whose power is too large for a float."""
    try:
        base**exponent
    except OverflowError:
        raise ValueError(f"{name} must keep every factor finite, got {base} to the power of {exponent}") from None
