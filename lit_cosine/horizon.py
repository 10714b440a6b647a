"""How long a run is: durations with their unit, and the clock that maps a step to progress.

Convention: step k of N is at progress k/N; a clock is a straight line from an anchor (step, progress) to (total, 1).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Literal, final, get_args

from lit_cosine.checks import as_number

__all__ = ["Clock", "Duration", "OnResize"]

OnResize = Literal["continue", "rescale", "keep", "restart"]
"""What happens to a clock whose total changes; the table is in :meth:`Clock.reanchor`."""

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
    Duration(value=0.05, unit='run')
    >>> str(Duration.parse("30min"))
    '1800s'
    """

    value: float
    unit: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", as_number("Duration.value", self.value))
        if not (math.isfinite(self.value) and self.value >= 0.0):
            raise ValueError(f"Duration.value must be finite and >= 0, got {self.value}")
        if self.unit not in _UNITS:
            raise ValueError(f"Duration.unit must be one of {', '.join(_UNITS)}, got {self.unit!r}")
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
        Duration(value=500.0, unit='step')
        >>> Duration.parse(500, "warmup")
        Traceback (most recent call last):
        TypeError: warmup must name its unit, got 500: write "500step" (or "500ep")
        """
        if isinstance(text, Duration):
            return text
        if not isinstance(text, str):
            if isinstance(text, bool) or not isinstance(text, Real):
                raise TypeError(f'{name} must be a duration such as "500step", "5ep", "5%" or "30min", got {text!r}')
            raise TypeError(f"{name} must name its unit, got {text!r}: {_meant(float(text))}")
        match = _NUMBER_AND_UNIT.fullmatch(text)
        if match is None:
            raise ValueError(f'{name} must be a duration such as "500step", "5ep", "5%" or "30min", got {text!r}')
        value, spelling = float(match[1]), match[2].lower()
        if not spelling:
            raise ValueError(f"{name} must name its unit, got {text!r}: {_meant(value)}")
        if spelling not in _SPELLINGS:
            raise ValueError(f"{name} has the unknown unit {match[2]!r}; known are {', '.join(_SPELLINGS)}")
        unit, scale = _SPELLINGS[spelling]
        # dividing keeps "5%" the double nearest to 0.05, which 5 * 0.01 is not for every number
        value = value / 100.0 if spelling == "%" else value * scale
        try:
            return cls(value, unit)
        except ValueError as error:
            raise ValueError(f"{name}: {error} from {text!r}") from None

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


@final
@dataclass(frozen=True)
class Clock:
    """Maps a step to progress: the straight line from (``step``, ``progress``) to (``total``, 1), clamped to [0, 1].

    The unit is the caller's: optimizer steps, epochs, batches or seconds.

    Args:
        total: Where progress 1 is reached, finite and > 0.
        step: Where the line starts, finite and >= 0.
        progress: Progress at ``step``, in [0, 1].

    >>> clock = Clock(total=100)
    >>> clock(25)
    0.25
    >>> clock.reanchor(50, 200)
    Clock(total=200, step=50, progress=0.5)
    >>> clock.reanchor(50, 200)(125)
    0.75
    """

    total: float
    step: float = 0
    progress: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("total", self.total), ("step", self.step), ("progress", self.progress)):
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"Clock.{name} must be a number, got {value!r}")
        if not 0 < self.total < math.inf:
            raise ValueError(f"Clock.total must be finite and > 0, got {self.total}")
        if not 0 <= self.step < math.inf:
            raise ValueError(f"Clock.step must be finite and >= 0, got {self.step}")
        if not 0.0 <= self.progress <= 1.0:
            raise ValueError(f"Clock.progress must be in [0, 1], got {self.progress}")

    def __call__(self, step: float) -> float:
        """Return the progress at ``step``; at and after ``total`` it is 1."""
        if step >= self.total:
            return 1.0
        if step <= self.step:
            return self.progress
        return self.progress + (1.0 - self.progress) * ((step - self.step) / (self.total - self.step))

    def reanchor(self, step: float, total: float, on_resize: OnResize = "continue", *, origin: float = 0) -> Clock:
        """Return the clock from ``step`` on, now that the run is ``total`` long.

        With p = self(step), the progress reached:

        ============ ============================== ==================================================
        on_resize    line                           what the LR does
        ============ ============================== ==================================================
        "continue"   (step, p) -> (total, 1)        no jump; reaches its end exactly at the new total
        "rescale"    (origin, 0) -> (total, 1)      jumps to where a run planned so from the start is
        "keep"       as it was                      the old plan; holds its end afterwards
        "restart"    (step, 0) -> (total, 1)        warm restart from the peak over what is left
        ============ ============================== ==================================================

        Args:
            step: Where the run is now, >= 0.
            total: How long the run is now, > 0.
            on_resize: The policy.
            origin: Where progress 0 was planned: the end of the warmup. A run still inside its warmup finishes it.

        Raises:
            ValueError: If ``on_resize`` is unknown.
        """
        check_on_resize(on_resize)
        if on_resize == "keep":
            return self
        if on_resize == "rescale":
            return Clock(total, origin, 0.0)
        return Clock(total, max(step, origin), self(step) if on_resize == "continue" else 0.0)


def check_on_resize(on_resize: str) -> None:
    """Refuse an unknown policy."""
    if on_resize not in get_args(OnResize):
        raise ValueError(f"on_resize must be one of {', '.join(get_args(OnResize))}, got {on_resize!r}")
