"""A comparison as a table in the terminal, CSV, JSON, a figure and TensorBoard runs.

Convention: what is written is a function of the comparison alone, so the same comparison gives the same files; but
TensorBoard's, which carry the time of writing.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from lit_cosine import plots
from lit_cosine.claims import CLAIMS, Finding
from lit_cosine.events import write_hyperparameters, write_layout, write_success
from lit_cosine.member import learning_rates
from lit_cosine.results import Comparison, Measure, Row
from lit_cosine.run_page import schedule_columns
from lit_cosine.schedules import Cosine
from lit_cosine.statistics import Mean, mean

__all__ = ["MEASURES", "draw", "findings_table", "rows_as_records", "table", "write", "write_findings"]

MEASURES: tuple[Measure, ...] = ("test_loss", "test_accuracy")
_CURVES = {"train/loss": "train_loss", "val/loss": "val_loss", "val/accuracy": "val_accuracy"}


def table(comparison: Comparison, measure: Measure = "test_loss") -> Table:
    """Return the schedules at their best LR as a rich table, the best mean first."""
    seeds = len(comparison.seeds)
    interval = "95 % interval" if seeds > 1 else "no interval: one seed"
    shown = Table(title=f"{measure.replace('_', ' ')}, {seeds} seed{'s' * (seeds > 1)}, LR chosen on validation")
    shown.add_column("schedule")
    for heading in ("LR", "mean", interval, f"minus {comparison.baseline}", "interval (Holm)", "p", "won"):
        shown.add_column(heading, justify="right")
    for heading in ("diverged", "spread over LRs"):
        shown.add_column(heading, justify="right")
    sign = -1.0 if measure.endswith("accuracy") else 1.0
    rows = comparison.table(measure)
    for row in sorted(rows, key=lambda row: (math.isnan(row.mean.value), sign * row.mean.value)):
        difference = row.difference
        cells = ["", "", "", ""]
        if difference is not None:
            ends = _ends(difference.low, difference.high)
            cells = [_number(difference.value, "+"), ends, _number(difference.p), _share(difference.won)]
        shown.add_row(
            row.schedule,
            _number(row.lr),
            _number(row.mean.value),
            _ends(row.mean.low, row.mean.high),
            *cells,
            f"{row.diverged} of {seeds}" if row.diverged else "0",
            _number(comparison.spread(row.schedule, measure)),
        )
    return shown


def rows_as_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return both tables, at each schedule's best LR and at every LR, as plain records; nan as None."""
    records = []
    for measure in MEASURES:
        for at, rows in (("best lr", comparison.table(measure)), ("same lr", comparison.table_by_lr(measure))):
            records += [_record(measure, at, row) for row in rows]
    return records


def write(
    comparison: Comparison,
    folder: Path,
    floors: Comparison | None = None,
    columns: Mapping[str, str | float] | None = None,
) -> dict[str, Path]:
    """Write ``table.csv``, ``members.csv``, ``curves.csv``, ``results.json``, ``figure.png`` and ``tensorboard/``.

    Args:
        comparison: What to write.
        folder: Where; made if it does not exist.
        floors: A comparison of cosines with several floors, for the heat map.
        columns: What the HParams table is to say besides, by the names of ``events.HYPERPARAMETERS``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = rows_as_records(comparison)
    paths = {name: folder / name for name in ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png")}
    _write_csv(paths["table.csv"], records)
    _write_csv(paths["members.csv"], _member_records(comparison))
    _write_csv(paths["curves.csv"], _curve_records(comparison))
    results = {
        "description": comparison.description,
        "baseline": comparison.baseline,
        "diverged": int(comparison.diverged.sum()),
        "spread": {name: _plain(comparison.spread(name)) for name in comparison.schedules},
        "tables": records,
    }
    paths["results.json"].write_text(json.dumps(results, indent=1) + "\n")
    figure = draw(comparison, floors)
    figure.savefig(paths["figure.png"], dpi=100)
    paths["tensorboard"] = folder / "tensorboard"
    if not paths["tensorboard"].exists():
        _write_tensorboard(comparison, paths["tensorboard"], figure, columns or {})
    return paths


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return the article's claims and their verdicts as a rich table."""
    shown = Table(title="The article's claims", show_lines=True)
    for heading in ("claim", "data", "verdict", "figure"):
        shown.add_column(heading)
    for finding in sorted(findings, key=lambda finding: [claim.claim for claim in CLAIMS].index(finding.claim)):
        shown.add_row(finding.claim, finding.data, finding.verdict, finding.figure)
    return shown


def write_findings(findings: Sequence[Finding], folder: Path, trainings: str) -> None:
    """Write ``claims.json``, and ``claims.md`` with a table of verdicts and the figures behind them.

    Args:
        findings: What was found on each data set.
        folder: Where.
        trainings: How it was trained, in words.
    """
    (folder / "claims.json").write_text(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    data = list(dict.fromkeys(finding.data for finding in findings))
    verdicts = {(finding.claim, finding.data): finding for finding in findings}
    lines = [f"| claim | {' | '.join(data)} |", f"|---|{'---|' * len(data)}"]
    for claim in CLAIMS:
        cells = [verdicts[claim.claim, name].verdict for name in data if (claim.claim, name) in verdicts]
        lines.append(f"| {claim.claim} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{trainings}. Differences are paired by seed, on one split of the data. Their 95 % intervals, in brackets, "
        "hold together (Holm) over the differences of one claim on one data set, not over the table. *Not supported* "
        "is also a claim of which the opposite was found: the interval says which.",
    ]
    for claim in CLAIMS:
        lines += ["", f"**{claim.claim}.** Measured: {claim.statement[0].lower()}{claim.statement[1:]}.", ""]
        lines += [f"- {name}: {verdicts[claim.claim, name].figure}" for name in data]
    (folder / "claims.md").write_text("\n".join(lines) + "\n")


def draw(comparison: Comparison, floors: Comparison | None = None) -> Figure:
    """Return the figure: LR curves, loss curves with bands, loss against initial LR, and a heat map of LR x floor.

    Args:
        comparison: What to draw.
        floors: A comparison of cosines with several floors; without one, the heat map is of LR x schedule.
    """
    figure = Figure(figsize=(15, 10), layout="constrained")
    (lrs, losses), (initial, heat) = figure.subplots(2, 2)
    steps = np.arange(comparison.total_steps)
    ends = np.arange(1, comparison.epochs + 1) * comparison.steps_per_epoch
    for index, (name, schedule) in enumerate(comparison.schedules.items()):
        style: dict[str, Any] = plots.style(index)
        lrs.plot(steps, schedule.sample(comparison.total_steps), label=name, **style)
        best = comparison.best_lr(name)
        if best is not None:
            means = [mean(column) for column in comparison.members["val_loss"][:, index, best].T]
            _line_with_band(losses, ends, means, f"{name}, LR {comparison.lrs[best]:g}", style)
        order = np.argsort(comparison.lrs)
        means = [mean(comparison.values()[:, index, place]) for place in order]
        _line_with_band(initial, np.asarray(comparison.lrs)[order], means, name, {**style, "marker": "o"})
    lrs.set(title="Learning rate", xlabel="optimizer step", ylabel="factor of the initial LR")
    losses.set(title="Validation loss at the best LR", xlabel="optimizer step", ylabel="mean loss, 95 % band")
    initial.set(title="Test loss against initial LR", xlabel="initial LR", ylabel="mean loss, 95 % band")
    for axes in (lrs, losses, initial):
        axes.grid(alpha=0.3)
    # the other panels have the same lines
    figure.legend(*lrs.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    if not comparison.diverged.all():  # else there is nothing to scale to
        initial.set_xscale("log")
        initial.xaxis.set_major_formatter("{x:g}")
        for axes in (losses, initial):
            axes.set_yscale("log")
            _label_plainly(axes.yaxis)
        losses.legend(fontsize=8)
    _heat_map(figure, heat, comparison if floors is None else floors)
    return figure


def _heat_map(figure: Figure, axes: Any, comparison: Comparison) -> None:
    values = np.array([[mean(cell).value for cell in row.T] for row in comparison.values().transpose(1, 0, 2)])
    columns = np.argsort(comparison.lrs)
    floors = [s.end if isinstance(s, Cosine) else None for s in comparison.schedules.values()]
    are_floors = None not in floors and len(floors) > 1
    names = [f"{floor:g}" for floor in floors] if are_floors else list(comparison.schedules)
    there = bool(np.isfinite(values).any())
    image = axes.imshow(values[:, columns], aspect="auto", cmap="viridis_r", norm="log" if there else None)
    for (row, column), value in np.ndenumerate(values[:, columns]):
        shown = {"s": f"{value:.3f}", "color": _ink(image, value)} if math.isfinite(value) else {"s": "diverged"}
        axes.text(column, row, ha="center", va="center", fontsize=8, **shown)
    axes.set_xticks(range(len(columns)), [f"{comparison.lrs[column]:g}" for column in columns])
    axes.set_yticks(range(len(names)), names)
    what = "minimum LR (of the initial)" if are_floors else "schedule"
    axes.set(title=f"Test loss by initial LR and {what}", xlabel="initial LR", ylabel=what)
    if there:
        _label_plainly(figure.colorbar(image, ax=axes).ax.yaxis)


def _label_plainly(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers; between the powers of ten too, where there are few of those."""
    axis.set_major_formatter("{x:g}")
    low, high = axis.get_view_interval()
    if high < 20.0 * low:
        axis.set_minor_formatter("{x:g}")


def _ink(image: Any, value: float) -> str:
    """Return the colour, black or white, that can be read on the colour of ``value``."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _line_with_band(axes: Any, x: Any, means: list[Mean], label: str, style: dict[str, Any]) -> None:
    axes.plot(x, [m.value for m in means], label=label, markersize=3, **style)
    axes.fill_between(x, [m.low for m in means], [m.high for m in means], color=style["color"], alpha=0.12)


def _record(measure: str, at: str, row: Row) -> dict[str, Any]:
    difference = row.difference
    record = {
        "measure": measure,
        "at": at,
        "schedule": row.schedule,
        "lr": row.lr,
        "seeds": row.mean.n,
        "diverged": row.diverged,
        "mean": row.mean.value,
        "mean_low": row.mean.low,
        "mean_high": row.mean.high,
        "difference": None if difference is None else difference.value,
        "difference_low": None if difference is None else difference.low,
        "difference_high": None if difference is None else difference.high,
        "p_holm": None if difference is None else difference.p,
        "won": None if difference is None else difference.won,
    }
    return {key: _plain(value) for key, value in record.items()}


def _member_records(comparison: Comparison) -> list[dict[str, Any]]:
    names, diverged = list(comparison.schedules), comparison.diverged
    return [
        {
            "seed": comparison.seeds[seed],
            "schedule": names[schedule],
            "lr": comparison.lrs[lr],
            "diverged": int(diverged[seed, schedule, lr]),
            "train_loss": member["train_loss"][-1].item(),
            "val_loss": member["val_loss"][-1].item(),
            "val_accuracy": member["val_accuracy"][-1].item(),
            "test_loss": member["test_loss"].item(),
            "test_accuracy": member["test_accuracy"].item(),
        }
        for (seed, schedule, lr), member in np.ndenumerate(comparison.members)
    ]


def _curve_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the mean curves over seeds of every schedule at every LR."""
    records = []
    for schedule, name in enumerate(comparison.schedules):
        for lr, value in enumerate(comparison.lrs):
            members = comparison.members[:, schedule, lr]
            for epoch in range(comparison.epochs):
                curves = {
                    field: _plain(mean(members[field][:, epoch]).value)
                    for field in ("train_loss", "val_loss", "val_accuracy")
                }
                step = (epoch + 1) * comparison.steps_per_epoch
                records.append({"schedule": name, "lr": value, "epoch": epoch + 1, "step": step, **curves})
    return records


def _write_tensorboard(
    comparison: Comparison, folder: Path, figure: Figure, columns: Mapping[str, str | float]
) -> None:
    """Write a run for each schedule at its best LR: the LR of every step, means over seeds, and its row in HParams."""
    from torch.utils.tensorboard import SummaryWriter

    description = comparison.description
    for index, (name, schedule) in enumerate(comparison.schedules.items()):
        best = comparison.best_lr(name)
        if best is None:
            continue
        peak, members = comparison.lrs[best], comparison.members[:, index, best]
        run = f"{name} lr={peak:g}".replace("/", "_")
        with SummaryWriter(str(folder / run)) as writer:
            rates = learning_rates([schedule], [peak], comparison.total_steps)
            for step, lr in enumerate(rates[:, 0].tolist()):
                writer.add_scalar("lr", lr, step)
            for tag, field in _CURVES.items():
                for epoch, column in enumerate(members[field].T):
                    writer.add_scalar(tag, mean(column).value, (epoch + 1) * comparison.steps_per_epoch - 1)
            for measure in MEASURES:
                writer.add_scalar(measure.replace("_", "/"), mean(members[measure]).value, comparison.total_steps)
            write_layout(writer)
            row = {
                **schedule_columns(schedule),
                "lr": peak,
                "interval": "step",
                "warmup": "0step",  # what is warmed up is so by its schedule
                "epochs": comparison.epochs,
                "batch_size": description["batch_size"],
                **columns,
            }
            # the schedule first: of a long name TensorBoard shows the beginning
            write_hyperparameters(writer, row, time.time(), f"{run} ({folder.parent})")
            write_success(writer, time.time())
            if index == 0:  # the picture is of all of them
                writer.add_image("comparison", plots.pixels(figure), comparison.total_steps, dataformats="HWC")


def _write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.3g}"


def _ends(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:.3g} … {high:.3g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"
