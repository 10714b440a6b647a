#!/usr/bin/env python
"""The README's pictures of curves: ``python scripts/pictures.py`` writes docs/schedules.png and docs/resume.png."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from lit_cosine import (
    Clock,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneMinusSqrt,
    Polynomial,
    Restarts,
    Schedule,
    Step,
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)
from lit_cosine.horizon import OnResize
from lit_cosine.plots import style

DOCS = Path(__file__).parents[1] / "docs"
SCHEDULES: dict[str, Schedule] = {
    "Constant()": Constant(),
    "Linear()": Linear(),
    "Cosine()": Cosine(),
    "Cosine(end=0.1, k=2)": Cosine(end=0.1, k=2),
    "Polynomial()": Polynomial(),
    "Exponential()": Exponential(),
    "Step()": Step(),
    "OneMinusSqrt()": OneMinusSqrt(),
    "InverseSqrt()": InverseSqrt(),
    "Restarts(t_mult=2, decay=0.5)": Restarts(t_mult=2, decay=0.5),
    "warmup_cosine()": warmup_cosine(),
    "warmup_stable_decay()": warmup_stable_decay(),
    "one_cycle()": one_cycle(),
}


def schedules() -> Figure:
    """Return a panel for each schedule."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(3, 5, sharex=True, sharey=True).ravel()
    for axes, (name, schedule) in zip(panels, SCHEDULES.items(), strict=False):
        axes.plot([k / 1000 for k in range(1001)], [schedule(k / 1000) for k in range(1001)], **style(0))
        axes.set_title(name, fontsize=7, family="monospace")
        axes.tick_params(labelsize=7)
    for axes in panels[len(SCHEDULES) :]:
        axes.set_axis_off()
    figure.supxlabel("progress", fontsize=8)
    figure.supylabel("factor of the base LR", fontsize=8)
    return figure


def resume(planned: int = 100, stopped: int = 60, now: int = 150) -> Figure:
    """Return the LR of a run that was planned ``planned`` updates long, stopped and resumed as one of ``now``."""
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    schedule, clock = Cosine(), Clock(planned)
    panels = figure.subplots(1, 4, sharey=True)
    for axes, policy in zip(panels, get_args(OnResize), strict=True):
        resumed = clock.reanchor(stopped, now, policy)
        after = range(stopped, now + 1)
        axes.plot(range(planned + 1), [schedule(clock(k)) for k in range(planned + 1)], ":", color="grey")
        axes.plot(range(stopped + 1), [schedule(clock(k)) for k in range(stopped + 1)], **style(0))
        axes.plot(after, [schedule(resumed(k)) for k in after], color=style(1)["color"])
        axes.axvline(stopped, color="grey", linewidth=0.6)
        axes.set_title(f'on_resize="{policy}"', fontsize=9, family="monospace")
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("factor of the base LR", fontsize=8)
    return figure


if __name__ == "__main__":
    for name, draw in {"schedules": schedules, "resume": resume}.items():
        draw().savefig(DOCS / f"{name}.png", dpi=90)
        print(f"docs/{name}.png")
