"""The figure of a comparison: curves of the LR and the loss, the loss against the peak LR, and a heat map.

Convention: one colour a schedule, in every panel the same; lines are labelled beside their ends.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from lit_cosine.comparison._results import Comparison, Measure
from lit_cosine.comparison._statistics import Mean, mean
from lit_cosine.monitors import _figures as plots
from lit_cosine.schedules import Cosine

__all__ = ["draw"]

_COLOURS = (*(plots.style(index)["color"] for index in range(7)), "#7F7F7F")
"""Of the schedules in a panel."""


class _Picture(Figure):
    """A figure that Jupyter shows also where nothing has imported pyplot."""

    def _repr_png_(self) -> bytes:
        drawn = BytesIO()
        self.savefig(drawn, format="png")
        return drawn.getvalue()


def draw(comparison: Comparison, floors: Comparison | None = None) -> Figure:
    """Return the figure: LR curves, loss curves with bands, loss against peak LR, and a heat map of LR x floor.

    Where there is one LR, the means of the schedules take the place of the last two. Panels of curves show at most
    eight schedules: the baseline and the best. Without ``floors``, cosines, the heat map is of LR x schedule.
    """
    one_lr = len(comparison.lrs) == 1
    figure = _Picture(figsize=(13.6, 4) if one_lr else (12, 8), dpi=125, layout="constrained")
    panels = figure.subplots(1, 3) if one_lr else figure.subplots(2, 2).ravel()
    lrs, losses, last = panels[:3]
    drawn = _chosen(comparison)
    steps = np.arange(comparison.total_steps)
    ends = np.arange(1, comparison.epochs + 1) * comparison.steps_per_epoch
    for (index, name), colour in zip(drawn, _COLOURS, strict=False):
        factors = comparison.schedules[name].sample(comparison.total_steps)
        lrs.step(steps, factors, where="post", label=name, color=colour)
        best = comparison.best_index(name)
        if best is not None:
            means = [mean(column, overlap=comparison.overlap) for column in _curves(comparison, index, best).T]
            _line_with_band(losses, ends, means, f"{name}, LR {comparison.lrs[best]:.3g}", {"color": colour})
        if not one_lr:
            order = [place for place in np.argsort(comparison.lrs) if comparison.has(name, int(place))]
            means = [mean(comparison.values()[:, index, place], overlap=comparison.overlap) for place in order]
            _line_with_band(last, np.asarray(comparison.lrs)[order], means, name, {"color": colour, "marker": "o"})
    lrs.set(title="Learning rate", xlabel="optimizer step", ylabel="factor of the peak LR")
    at_best = f"{_title(comparison.select)} at the best LR"
    losses.set(title=at_best, xlabel="optimizer step", ylabel=f"{_title(comparison.select).lower()}, mean")
    of_all = (
        f", {len(drawn)} of {len(comparison.schedules)} schedules" if len(drawn) < len(comparison.schedules) else ""
    )
    figure.supxlabel(f"bands: 95 % intervals; {comparison.scope}{of_all}", fontsize=9)
    if one_lr:
        _means(last, comparison)
    else:
        against = f"{_title(comparison.report)} against peak LR"
        last.set(title=against, xlabel="peak LR", ylabel=f"{_title(comparison.report).lower()}, mean")
        if not comparison.diverged.all():  # otherwise nothing is drawn, and a logarithmic axis has no limits
            last.set_xscale("log")
            lrs_shown = sorted(comparison.lrs)[:: math.ceil(len(comparison.lrs) / 8)]
            last.set_xticks(lrs_shown, [f"{lr:.3g}" for lr in lrs_shown])
            last.set_xticks([], minor=True)
    for axes in (lrs, losses, *([] if one_lr else [last])):
        axes.grid(alpha=0.3)
        values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines] or [np.empty(0)])
        if axes is not lrs and _fits_log_scale(values):
            axes.set_yscale("log")
            _label_plainly(axes.yaxis)
        _label_lines(axes)
    if not one_lr:
        _heat_map(figure, panels[3], comparison if floors is None else floors)
    return figure


def _chosen(comparison: Comparison) -> list[tuple[int, str]]:
    """Return index and name of the schedules that are drawn as curves: the baseline and the best, in their order."""
    sign = -1.0 if comparison.higher_is_better(comparison.report) else 1.0
    means = {row.schedule: sign * row.mean.value for row in comparison.table()}
    best = sorted(means, key=lambda name: (name != comparison.baseline, math.isnan(means[name]), means[name]))
    kept = best[: len(_COLOURS)]
    return [(index, name) for index, name in enumerate(comparison.schedules) if name in kept]


def _label_lines(axes: Any) -> None:
    """Write the name of each line beside its end, moved apart where ends lie close."""
    ends = []
    for line in axes.lines:
        values = np.asarray(line.get_ydata(), dtype=float)
        finite = values[np.isfinite(values)]
        if len(finite):
            _, y = axes.transAxes.inverted().transform(axes.transData.transform((axes.get_xlim()[0], finite[-1])))
            ends.append((float(np.nan_to_num(y)), line))
    gap, floor = 0.05, -math.inf
    ends.sort(key=lambda end: end[0])
    room = 1.0 - gap * (len(ends) - 1)  # how far the lowest may be moved up without the highest leaving the panel
    for number, (y, line) in enumerate(ends):
        floor = max(floor + gap, min(max(y, 0.0), room + gap * number))
        place = {"xycoords": "axes fraction", "va": "center", "fontsize": 8, "annotation_clip": False}
        axes.annotate(line.get_label(), (1.01, floor), color=line.get_color(), **place)


def _curves(comparison: Comparison, schedule: int, lr: int) -> NDArray[np.float64]:
    """Return the curves of trainings that did not diverge, averaged over the seeds of a split if there are several."""
    lost = comparison.diverged[:, schedule, lr, None]
    curves = np.ma.masked_invalid(np.where(lost, np.nan, comparison.members[comparison.select][:, schedule, lr]))
    units = len(comparison.splits) if len(comparison.splits) > 1 else len(curves)
    averaged = curves.reshape(units, -1, comparison.epochs).mean(axis=1)
    return np.asarray(np.ma.filled(averaged, np.nan), dtype=np.float64)


def _means(axes: Any, comparison: Comparison) -> None:
    """Draw the mean of each schedule with its interval, the first on top."""
    colours = dict(zip((name for _, name in _chosen(comparison)), _COLOURS, strict=False))
    for place, row in enumerate(comparison.table()):
        colour = colours.get(row.schedule, "black")
        axes.plot(row.mean.value, place, "o", color=colour)
        axes.plot([row.mean.low, row.mean.high], [place, place], color=colour)
    axes.set_yticks(range(len(comparison.schedules)), list(comparison.schedules))
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    title = f"{_title(comparison.report)} at LR {comparison.lrs[0]:g}"
    axes.set(title=title, xlabel=f"{_title(comparison.report).lower()}, mean and 95 % interval")


def _title(measure: Measure) -> str:
    """Return a measure's name for a title.

    >>> _title("val_loss"), _title("valid/loss")
    ('Validation loss', 'valid/loss')
    """
    return measure.replace("val_", "Validation ").replace("test_", "Test ")


def _heat_map(figure: Figure, axes: Any, comparison: Comparison) -> None:
    values = np.array([[mean(cell).value for cell in row.T] for row in comparison.values().transpose(1, 0, 2)])
    columns = np.argsort(comparison.lrs)
    floors = [s.end if isinstance(s, Cosine) else None for s in comparison.schedules.values()]
    are_floors = None not in floors and len(floors) > 1
    names = [f"{floor:g}" for floor in floors] if are_floors else list(comparison.schedules)
    image = axes.imshow(
        values[:, columns], aspect="auto", cmap="viridis_r", norm="log" if _fits_log_scale(values) else None
    )
    for (row, column), value in np.ndenumerate(values[:, columns]):
        text = f"{value:.3f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
        there = comparison.has(list(comparison.schedules)[row], int(columns[column]))
        lost = {"s": "diverged" if there else ""}
        shown = {"s": text, "color": _ink(image, value)} if math.isfinite(value) else lost
        axes.text(column, row, ha="center", va="center", fontsize=8, **shown)
    axes.set_xticks(range(len(columns)), [f"{comparison.lrs[column]:.3g}" for column in columns])
    axes.tick_params(axis="x", rotation=45 if len(columns) > 7 else 0)
    axes.set_yticks(range(len(names)), names)
    what = "minimum LR / peak LR" if are_floors else "schedule"
    axes.set(title=f"{_title(comparison.report)} by peak LR and {what}", xlabel="peak LR", ylabel=what)
    if np.isfinite(values).any():
        _label_plainly(figure.colorbar(image, ax=axes, label=f"mean {_title(comparison.report).lower()}").ax.yaxis)


def _fits_log_scale(values: NDArray[np.float64]) -> bool:
    """Return whether a logarithmic axis shows the finite values: they are positive, and not too far apart for one."""
    finite = values[np.isfinite(values)]
    # matplotlib 3.11 takes a range below 2e-287 for an empty one, which a logarithm cannot widen
    return bool(finite.size and finite.min() >= 1e-280 and math.log10(finite.max()) - math.log10(finite.min()) < 100.0)


def _label_plainly(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, between the powers of ten too where it spans few of them."""
    axis.set_major_formatter("{x:g}")
    low, high = axis.get_view_interval()
    some = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.set_minor_formatter("{x:g}" if high < 10.0 * low else some if high < 1000.0 * low else NullFormatter())


def _ink(image: Any, value: float) -> str:
    """Return black or white, whichever is legible on the colour of ``value``."""
    # of an array: where all cells are equal, the norm of a single number is an array of one
    red, green, blue, _ = image.to_rgba(np.array([value]))[0]
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _line_with_band(axes: Any, x: Any, means: list[Mean], label: str, style: dict[str, Any]) -> None:
    axes.plot(x, [m.value for m in means], label=label, markersize=3, **style)
    axes.fill_between(x, [m.low for m in means], [m.high for m in means], color=style["color"], alpha=0.12, linewidth=0)
