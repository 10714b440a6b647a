"""The clock that maps a step of a run to progress, and what it does when the run's length changes.

Convention: step k of N is at progress k/N; a clock is a straight line from an anchor (step, progress) to (total, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

from lit_cosine._checks import as_number, check_choice, shown

__all__ = ["Clock", "OnResize", "check_on_resize"]

OnResize = Literal["continue", "rescale", "keep", "restart"]
"""What happens to a clock whose total changes; the table is in :meth:`Clock.reanchor`."""


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
        for name, above, least in (("total", 0, None), ("step", None, 0), ("progress", None, None)):
            value = getattr(self, name)
            number = as_number(f"Clock.{name}", value, above=above, least=least)
            object.__setattr__(self, name, value if isinstance(value, int) else number)
        if not 0.0 <= self.progress <= 1.0:
            raise ValueError(f"Clock.progress must be in [0, 1], got {shown(self.progress)}")

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
        "rescale"    (origin, 0) -> (total, 1)      jumps to where a run of the new length would be
        "keep"       as it was                      the old plan; holds its end afterwards
        "restart"    (step, 0) -> (total, 1)        warm restart from the peak over what is left
        ============ ============================== ==================================================

        Args:
            step: Where the run is now, >= 0.
            total: How long the run is now, > 0.
            on_resize: The policy.
            origin: Where progress 0 was planned: the end of the warmup. A run still inside its warmup finishes it.

        Raises:
            TypeError: If ``step`` or ``origin`` is no number.
            ValueError: If ``on_resize`` is unknown, or a number is out of range.
        """
        check_on_resize(on_resize)
        as_number("step", step, least=0.0)
        as_number("origin", origin, least=0.0)
        if on_resize == "keep":
            return self
        if on_resize == "rescale":
            return Clock(total, origin, 0.0)
        return Clock(total, max(step, origin), self(step) if on_resize == "continue" else 0.0)


def check_on_resize(on_resize: str) -> None:
    """Refuse an unknown policy."""
    check_choice("on_resize", on_resize, get_args(OnResize))
