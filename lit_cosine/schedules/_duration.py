"""Durations: a length with its unit, and its conversion to the unit that a run is counted in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal, final

from lit_cosine._checks import as_number, check_choice, shown

__all__ = ["Duration", "Unit"]

Unit = Literal["step", "epoch", "batch", "ms"]
"""What the progress of a run is counted in: optimizer steps, epochs, batches or milliseconds."""

# spelling -> (unit it is stored in, how many of them)
_SPELLINGS = {
    "step": ("step", 1.0),
    "steps": ("step", 1.0),
    "ep": ("ep", 1.0),
    "epoch": ("ep", 1.0),
    "epochs": ("ep", 1.0),
    "%": ("run", 0.01),
    "run": ("run", 1.0),
    "s": ("s", 1.0),
    "min": ("s", 60.0),
    "h": ("s", 3600.0),
}
_UNITS = ("step", "ep", "run", "s")
_NUMBER_AND_UNIT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z%]*)\s*", re.IGNORECASE)


@final
@dataclass(frozen=True)
class Duration:
    """A length with its unit.

    Written ``"500step"``, ``"5ep"`` (epochs), ``"5%"`` or ``"0.05run"`` (of the run), ``"90s"``, ``"30min"``, ``"2h"``.

    Args:
        value: How many, finite and >= 0; whole for steps.
        unit: ``"step"``, ``"ep"``, ``"run"`` or ``"s"``.

    >>> Duration.parse("5%")
    Duration.parse('5%')
    >>> str(Duration.parse("30min"))
    '1800s'
    """

    value: float
    unit: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", as_number("Duration.value", self.value, least=0))
        check_choice("Duration.unit", self.unit, _UNITS)
        if self.unit == "step" and not self.value.is_integer():
            raise ValueError(f"Duration.value must be whole for steps, got {self.value}")
        if self.unit == "run" and self.value > 1.0:
            raise ValueError(f"Duration.value must be at most 1 run (100%), got {self.value}")

    @classmethod
    def parse(cls, text: str | Duration, name: str = "duration") -> Duration:
        """Return the duration that ``text`` spells; a ``Duration`` is returned as it is.

        Args:
            text: A number and its unit.
            name: The argument that an error message names.

        Raises:
            TypeError: If ``text`` is a bare number.
            ValueError: If ``text`` is a number without a unit, has an unknown unit, or is negative.

        >>> Duration.parse("500step")
        Duration.parse('500step')
        >>> Duration.parse(500, "warmup")
        Traceback (most recent call last):
        TypeError: warmup must name its unit, got 500: write "500step" (or "500ep")
        """
        if isinstance(text, Duration):
            return text
        examples = '"500step", "5ep", "5%" or "30min"'
        if isinstance(text, Real) and not isinstance(text, bool):
            raise TypeError(f"{name} must name its unit, got {shown(text)}: {_meant(as_number(name, text))}")
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a duration such as {examples}, got {shown(text)}")
        match = _NUMBER_AND_UNIT.fullmatch(text)
        if match is None:
            raise ValueError(f"{name} must be a duration such as {examples}, got {shown(text)}")
        value, spelling = float(match[1]), match[2].lower()
        if not spelling:
            raise ValueError(f"{name} must name its unit, got {shown(text)}: {_meant(value)}")
        if spelling not in _SPELLINGS:
            raise ValueError(f"{name} has the unknown unit {shown(match[2])}; known are {', '.join(_SPELLINGS)}")
        unit, scale = _SPELLINGS[spelling]
        # dividing keeps "5%" the double nearest to 0.05, which 5 * 0.01 is not for every number
        value = value / 100.0 if spelling == "%" else value * scale
        try:
            return cls(value, unit)
        except ValueError as error:
            raise ValueError(f"{name}: {error} from {shown(text)}") from None

    def length(
        self, unit: Unit, total: float, *, steps_of: Callable[[float], float] | None = None, name: str = "warmup"
    ) -> int:
        """Return the duration in ``unit``, rounded to a whole number.

        Args:
            unit: What the run is counted in.
            total: Length of the run in ``unit``, of which a share is taken.
            steps_of: Number of epochs, whole or not -> how many steps they have (batches where ``unit`` is
                ``"batch"``). None where the length of an epoch is unknown.
            name: The argument that an error message names.

        Raises:
            ValueError: If a length in time stands in a run that is counted otherwise or the other way round, the length
                of an epoch is needed and unknown, or the result must be whole epochs and is not.

        >>> Duration.parse("5%").length("step", 2000)
        100
        >>> Duration.parse("2ep").length("step", 2000, steps_of=lambda epochs: epochs * 40)
        80
        """
        value = self.value
        if value == 0.0:
            return 0
        if self.unit != "run" and (self.unit == "s") != (unit == "ms"):
            limit, write = ("max_time", "30s") if unit == "ms" else ("steps or epochs", "500step")
            raise ValueError(
                f'{name}="{self}" cannot be used in a run that is limited by {limit}: write it as "{write}" or "5%"'
            )
        if self.unit == "run":
            length = value * total
        elif self.unit == "s":
            length = value * 1000.0
        elif self.unit == ("ep" if unit == "epoch" else "step"):
            length = value
        elif steps_of is None:
            raise ValueError(f'{name}="{self}" needs the length of an epoch, which is unknown')
        else:
            length = value / steps_of(1.0) if unit == "epoch" else steps_of(value)
        if unit == "epoch" and abs(length - round(length)) > 1e-9:
            raise ValueError(
                f'{name}="{self}" must be whole epochs when interval is "epoch", got {length:g} epochs; '
                'interval "step" takes any'
            )
        return round(length)

    def __repr__(self) -> str:
        return f"Duration.parse({str(self)!r})"

    def __str__(self) -> str:
        """Return the spelling that :meth:`parse` reads back."""
        percent = f"{self.value * 100:.15g}"
        if self.unit == "run" and float(percent) / 100.0 == self.value:
            return percent + "%"
        return f"{self.value!r}".removesuffix(".0") + self.unit


def _meant(value: float) -> str:
    if not 0.0 <= value < math.inf:
        return 'write "500step", "5ep", "5%" or "30min"'
    number = f"{value!r}".removesuffix(".0")
    if value.is_integer():
        return f'write "{number}step" (or "{number}ep")'
    if 0.0 < value < 1.0:
        return f'write "{value * 100:.15g}%" (or "{number}run")'
    return f'write "{number}ep"'
