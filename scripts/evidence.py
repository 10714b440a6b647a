#!/usr/bin/env python
"""The tables and the picture of docs/evidence.md: ``python scripts/evidence.py`` makes them from docs/evidence.json.

``lit-cosine compare --claims`` writes that file as ``runs/claims/claims.json``.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.stats import spearmanr

from lit_cosine.monitors._figures import style

DOCS = Path(__file__).parents[1] / "docs"
TASKS = ("char", "mnist1d")


def mean(values: list[float | None]) -> float:
    """Return the mean of the splits in which a training did not diverge."""
    return float(np.mean([value for value in values if value is not None]))


def peak(grid: list[tuple[float, float]]) -> float:
    """Return the minimum of a parabola in log LR through the best LR and its neighbours; the best LR at an edge."""
    lrs, losses = zip(*[(lr, loss) for lr, loss in grid if loss is not None], strict=True)
    at = int(np.argmin(losses))
    if at in (0, len(lrs) - 1):
        return float(lrs[at])
    left, middle, right = losses[at - 1 : at + 2]
    shift = 0.5 * (left - right) / (left - 2.0 * middle + right)
    return float(lrs[at] * (lrs[at + 1] / lrs[at]) ** shift)


def measured(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schedules with a bound, the lowest test loss first."""
    schedules = task["schedules"]
    of_linear = peak(schedules["linear"]["grid"])
    rows = [
        {"name": name, **row, "loss": mean(row["test"]), "own_peak": peak(row["grid"]) / of_linear}
        for name, row in schedules.items()
        if "bound" in row
    ]
    return sorted(rows, key=lambda row: row["loss"])


def schedules_table(task: dict[str, Any]) -> str:
    """Return the schedules of a task at their best LRs, beside the bound."""
    lines = [
        "| schedule | best LR | of the grid | test loss | minus linear, by split | bound | peak: measured | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    linear, bounds = task["schedules"]["linear"]["test"], {row["name"]: row for row in measured(task)}
    rows = {name: mean(row["test"]) for name, row in task["schedules"].items()}
    for name in sorted(rows, key=rows.__getitem__):
        row = task["schedules"][name]
        pairs = [a - b for a, b in zip(row["test"], linear, strict=True) if a is not None and b is not None]
        difference = "" if name == "linear" else f"{np.mean(pairs):+.3f} ± {np.std(pairs, ddof=1):.3f}"
        edge = ", at its edge" if row["at_edge"] else ""
        cells = [name, f"{row['lr']:g}", f"{row['grid'][0][0]:g} to {row['grid'][-1][0]:g}{edge}", f"{rows[name]:.3f}"]
        of_bound = bounds.get(name)
        cells += [difference, f"{of_bound['bound']:.3f}" if of_bound else ""]
        cells += [f"{of_bound['own_peak']:.2f}", f"{of_bound['peak']:.2f}"] if of_bound else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def correlation(task: dict[str, Any]) -> float:
    """Return Spearman's correlation of bound and test loss."""
    rows = measured(task)
    return float(spearmanr([row["bound"] for row in rows], [row["loss"] for row in rows]).statistic)


def agreement_table(data: dict[str, Any]) -> str:
    """Return how far order and peaks agree with the bound, for each task."""
    lines = [
        "| task | schedules | Spearman's correlation of bound and test loss | peak by the bound / measured peak |",
        "|---|---|---|---|",
    ]
    for name in TASKS:
        if name in data:
            rows = measured(data[name])
            ratios = sorted(row["peak"] / row["own_peak"] for row in rows)
            middle = math.exp(float(np.mean(np.log(ratios))))
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, geometric mean {middle:.2f}"
            lines.append(f"| {name} | {len(rows)} | {correlation(data[name]):.2f} | {spread} |")
    return "\n".join(lines)


def verdicts_table(found: dict[str, Any]) -> str:
    """Return a row for each claim and a column for each data set."""
    names = list(found["data"])
    cells: dict[str, dict[str, str]] = {}
    for each in found["verdicts"]:
        cells.setdefault(each["claim"], {})[each["data"]] = f"**{each['verdict']}**: {each['effect']}"
    lines = [f"| claim | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {claim} | {' | '.join(of.get(name, '') for name in names)} |" for claim, of in cells.items()]
    return "\n".join(lines)


def origin(found: dict[str, Any]) -> str:
    """Return command, versions, machine and sizes."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    sizes = "; ".join(
        f"{name}: {task['steps']} steps, {task['splits']} splits, {task['seeds']} seed{'s' * (task['seeds'] > 1)} each"
        for name, task in found["data"].items()
    )
    return f"`{found['command']}` with {versions} on {found['machine']}.\n{sizes}; {len(found['verdicts'])} verdicts."


def page(text: str, found: dict[str, Any]) -> str:
    """Return the page with each table between its two comments made anew."""
    tables = {
        "origin": origin(found),
        "verdicts": verdicts_table(found),
        "agreement": agreement_table(found["data"]),
        **{name: schedules_table(found["data"][name]) for name in TASKS if name in found["data"]},
    }
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


def draw(data: dict[str, Any]) -> Figure:
    """Return the order by the bound beside the measured one, a panel for each task, and the peaks of both."""
    tasks = {name: measured(data[name]) for name in TASKS if name in data}
    ordered = sorted((row for rows in tasks.values() for row in rows), key=lambda row: row["bound"])
    styles = {name: style(index) for index, name in enumerate(dict.fromkeys(row["name"] for row in ordered))}
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    *orders, peaks = figure.subplots(1, len(tasks) + 1, width_ratios=[*[1.25] * len(tasks), 1.0])
    for axes, (task, rows) in zip(orders, tasks.items(), strict=True):
        places = {row["name"]: place for place, row in enumerate(rows)}
        for place, row in enumerate(sorted(rows, key=lambda row: row["bound"])):
            name, drawn = row["name"], styles[row["name"]]
            axes.plot([0, 1], [place, places[name]], **{**drawn, "linestyle": "-"}, linewidth=2.5, marker="o")
            words = {"va": "center", "fontsize": 9, "color": drawn["color"]}
            axes.text(-0.1, place, f"{name}  {row['bound']:.2f}", ha="right", **words)
            axes.text(1.1, places[name], f"{row['loss']:.3f}  {name}", ha="left", **words)
        axes.set(xlim=(-1.6, 2.6), ylim=(len(rows) - 0.5, -1.3))
        axes.text(-0.1, -0.9, "bound", ha="right", fontsize=10, weight="bold")
        axes.text(1.1, -0.9, "test loss", ha="left", fontsize=10, weight="bold")
        axes.set_title(f"{task}: Spearman's correlation {correlation(data[task]):.2f}", fontsize=11)
        axes.set_axis_off()
    for (task, rows), marker in zip(tasks.items(), "os", strict=False):
        for row in rows:
            color = styles[row["name"]]["color"]
            peaks.plot(row["peak"], row["own_peak"], marker, color=color, markersize=8, alpha=0.85)
        peaks.plot([], [], marker, color="grey", label=task)
    peaks.plot([0.25, 2.0], [0.25, 2.0], color="grey", linewidth=1, zorder=0)
    peaks.set(xscale="log", yscale="log", xlabel="by the bound", ylabel="measured")
    for axis in (peaks.xaxis, peaks.yaxis):
        axis.set_major_locator(FixedLocator([0.25, 0.5, 1.0, 2.0]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    peaks.set_title("Best peak LR, as a multiple of linear's", fontsize=11)
    peaks.set_aspect("equal")
    peaks.grid(alpha=0.3)
    peaks.legend()
    return figure


if __name__ == "__main__":
    results = json.loads((DOCS / "evidence.json").read_text(encoding="utf-8"))
    path = DOCS / "evidence.md"
    path.write_text(page(path.read_text(encoding="utf-8"), results), encoding="utf-8")
    draw(results["data"]).savefig(DOCS / "evidence.png", dpi=110)
    print("docs/evidence.md, docs/evidence.png")
