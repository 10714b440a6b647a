"""Curves as matplotlib figures.

Convention: a function takes plain numbers and returns a ``Figure`` of its own, outside pyplot: nothing global is
changed, no window opens, and the caller saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["pixels", "schedule_curves", "style", "training_curves"]

Points = tuple[Sequence[float], Sequence[float]]

# Okabe and Ito's colours, which no colour blindness confuses, without the yellow that white swallows
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", "-.", ":")


def style(index: int) -> dict[str, Any]:
    """Return how curve ``index`` is drawn: the first 28 differ in colour and line, and one shows beneath another.

    >>> style(0), style(1)
    ({'color': '#0072B2', 'linestyle': '-'}, {'color': '#D55E00', 'linestyle': '--'})
    """
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": _LINES[index % len(_LINES)]}


def training_curves(
    lrs: Mapping[str, Points],
    losses: Mapping[str, Points],
    epoch_ends: Mapping[int, int],
    planned: Mapping[str, Points] | None = None,
) -> Figure:
    """Return the article's two panels: the LR and the losses, over optimizer steps, with the epochs along the top.

    ``epoch_ends`` holds for each epoch, counted from 1, the steps done at its end. The planned LRs are drawn beneath
    the used ones; an LR holds until the next step. Losses of few points are drawn with markers.

    >>> figure = training_curves({"lr-Adam": ([0, 1], [0.1, 0.05])}, {"train": ([0, 1], [2.0, 1.0])}, {1: 2})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['learning rate', 'loss']
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, (steps, values)) in enumerate((planned or {}).items()):
        drawn = {"color": style(index)["color"], "alpha": 0.35, "linewidth": 4.0}
        left.step(steps, values, where="post", label=f"{name} planned", **drawn)
    for index, (name, (steps, values)) in enumerate(lrs.items()):
        left.step(steps, values, where="post", label=name, **style(index))
    for index, (name, (steps, values)) in enumerate(losses.items()):
        few = len(steps) <= 50
        drawn = {"marker": "o", "linewidth": 1.5} if few else {"linewidth": 0.8}
        right.plot(steps, values, markersize=4, label=name, **drawn, **style(index))
    _label(left, "Learning rate", "learning rate", epoch_ends)
    _label(right, "Loss", "loss", epoch_ends)
    return figure


def schedule_curves(curves: Mapping[str, Points], title: str = "Learning rate") -> Figure:
    """Return one panel with the LR over optimizer steps.

    >>> figure = schedule_curves({"cosine": ([0, 1, 2], [0.1, 0.05, 0.0])})
    >>> len(figure.axes[0].lines)
    1
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(steps, values, label=name, **style(index))
    axes.set_ylim(bottom=0.0)
    _label(axes, title, "learning rate", {})
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the figure as an image of the shape (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]


def _label(axes: Any, title: str, ylabel: str, epoch_ends: Mapping[int, int]) -> None:
    axes.set(title=title, xlabel="optimizer step", ylabel=ylabel)
    axes.grid(alpha=0.3)
    if curves := len(axes.get_legend_handles_labels()[0]):
        # the legend of many param groups must not take the axes' room
        size = "medium" if curves <= 10 else "xx-small"
        axes.legend(ncols=-(-curves // 16), fontsize=size).set_in_layout(False)
    if epoch_ends:
        every = -(-len(epoch_ends) // 10)  # at most ten ticks
        shown = list(epoch_ends)[every - 1 :: every]
        top = axes.secondary_xaxis("top")
        top.set_xticks([epoch_ends[epoch] for epoch in shown], labels=[str(epoch) for epoch in shown])
        top.set_xlabel("epoch")
