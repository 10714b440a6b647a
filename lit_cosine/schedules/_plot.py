"""A schedule as a picture: SVG from the standard library for notebooks, or curves in matplotlib's axes.

Convention: nothing is imported before a picture is asked for; matplotlib is not needed for SVG.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from lit_cosine._checks import as_integer, as_number
from lit_cosine.schedules._base import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot", "svg"]

_POINTS = 400
_JUST_BEFORE = 1e-9
"""Progress before a milestone at which the earlier piece is drawn, so that a jump is a vertical line."""


def _progress(schedule: Schedule) -> list[float]:
    """Return where the curve is drawn: evenly, and on both sides of each milestone."""
    grid = {k / _POINTS for k in range(_POINTS + 1)}
    for milestone in schedule.all_milestones():
        grid |= {milestone - _JUST_BEFORE, milestone}
    return sorted(grid)


def plot(schedule: Schedule, ax: Any, lr: float, steps: int | None) -> Axes:
    """Draw the curve; see :meth:`Schedule.plot`."""
    lr = as_number("lr", lr, above=0.0)
    xs = _progress(schedule)
    factors = [schedule(x) for x in xs]
    if steps is not None:
        steps = as_integer("steps", steps, least=1)
        xs = [x * steps for x in xs]
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(layout="constrained")
    ax.plot(xs, [lr * factor for factor in factors], label=repr(schedule))
    ax.set_xlabel("progress" if steps is None else "optimizer step")
    ax.set_ylabel("factor of the peak LR" if lr == 1.0 else "learning rate")
    ax.set_ylim(bottom=0.0)
    return ax  # type: ignore[no-any-return]


def svg(schedule: Schedule, width: int = 420, height: int = 160) -> str:
    """Return the curve as an SVG image with the schedule's repr as its title."""
    left, top = 50, 28
    xs = _progress(schedule)
    factors = [schedule(x) for x in xs]
    highest = max(factors) or 1.0
    points = " ".join(
        f"{left + width * x:.1f},{top + height * (1 - factor / highest):.1f}"
        for x, factor in zip(xs, factors, strict=True)
    )
    bottom, right = top + height, left + width
    title, text = escape(repr(schedule)), "font-family='sans-serif' font-size='12' fill='#333'"
    labels = [
        f"<text x='{left - 6}' y='{y + 4}' text-anchor='end' {text}>{value:.4g}</text>"
        for y, value in ((top, highest), (bottom, 0.0))
    ]
    labels += [
        f"<text x='{x}' y='{bottom + 16}' text-anchor='middle' {text}>{label}</text>"
        for x, label in ((left, "0"), (left + width // 2, "progress"), (right, "1"))
    ]
    size = f"{right + 20} {bottom + 26}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 20}" height="{bottom + 26}" viewBox="0 0 {size}">'
        f"<title>{title}</title><rect width='100%' height='100%' fill='white'/>"
        f"<text x='{left}' y='18' {text}>{title if len(title) <= 64 else escape(str(schedule))}</text>"
        f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='#999'/>{''.join(labels)}"
        f"<polyline points='{points}' fill='none' stroke='#0072B2' stroke-width='2'/></svg>"
    )
