"""A comparison as a table in the terminal, CSV, JSON, a figure and TensorBoard runs.

Convention: the same comparison gives the same files, except for those of TensorBoard, which hold the time of writing.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_cosine.comparison._claims import ClaimVerdict
from lit_cosine.comparison._figure import draw
from lit_cosine.comparison._results import Comparison, Measure, Row
from lit_cosine.comparison._statistics import mean
from lit_cosine.comparison.stacked import learning_rates
from lit_cosine.dashboard import schedule_columns, write_hyperparameters, write_layout, write_success
from lit_cosine.monitors import _figures as plots

__all__ = [
    "as_text",
    "member_records",
    "notes",
    "rows_as_records",
    "show",
    "table",
    "verdicts_table",
    "write",
]

_MOST_PROBLEMS = 8


def table(comparison: Comparison, measure: Measure | None = None) -> Table:
    """Return the schedules at their best LR as a rich table, the best mean first."""
    measure = comparison.report if measure is None else measure
    seeds, units = len(comparison.seeds), max(len(comparison.seeds), len(comparison.splits))
    chosen = "validation" if comparison.select == "val_loss" else comparison.select
    heading = f"{measure.replace('_', ' ')}, {seeds} seed{'s' * (seeds > 1)}, LR chosen on {chosen}"
    shown = Table(
        title=Text(f"{heading}\n{comparison.scope}"), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    shown.add_column("schedule", overflow="fold")
    intervals = ["95 % (Holm)", "p", "won"] if units > 1 else []
    lost = ["diverged or failed"] if comparison.diverged.any() else []
    for heading in ("LR", "within 1 SE", "mean", f"minus {comparison.baseline}", *intervals, *lost):
        shown.add_column(Text(heading), justify="right")
    sign = -1.0 if comparison.higher_is_better(measure) else 1.0
    rows = comparison.table(measure)
    for row in sorted(rows, key=lambda row: (math.isnan(row.mean.value), sign * row.mean.value)):
        difference, near = row.difference, comparison.lr_range(row.schedule)
        cells = ["", "", "", ""]
        if difference is not None:
            ends = _ends(difference.low, difference.high)
            cells = [_number(difference.value, "+"), ends, _number(difference.p, digits=2), _share(difference.won)]
        shown.add_row(
            Text(row.schedule),  # no markup
            _number(row.lr),
            "" if near is None or near[0] == near[1] else _ends(*near),
            _number(row.mean.value, digits=4),
            *cells[: 1 + len(intervals)],
            *([f"{row.diverged} of {len(comparison.members)}"] if lost else []),
        )
    return shown


def as_text(comparison: Comparison) -> str:
    """Return the table as text, with what it cannot show below it."""
    # Jupyter would show it twice, and sets FORCE_COLOR
    console = Console(file=StringIO(), width=150, force_jupyter=False, force_terminal=False)
    show(comparison, console, comparison.report)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def show(comparison: Comparison, console: Console, *measures: Measure) -> None:
    """Print a table of each measure, and below them what they cannot show."""
    for measure in measures:
        console.print(table(comparison, measure))
    for note in notes(comparison):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def notes(comparison: Comparison) -> list[str]:
    """Return sentences on best LRs at the edge of the grid, and on trainings that diverged or failed."""
    edge = [name for name in comparison.schedules if comparison.at_edge(name)]
    one = max(len(comparison.seeds), len(comparison.splits)) == 1
    found = ["One seed: differences have no interval. Give at least 2 seeds."] if one else []
    if edge:
        found.append(
            f"The best LR is at the edge of the grid for {', '.join(edge)}: a wider grid may reverse the order."
        )
    if count := int(comparison.diverged.sum()):
        total = comparison.members.size if comparison.trained is None else int(comparison.trained.sum())
        found.append(f"{count} of {total} trainings diverged or failed; they are excluded from every mean.")
    more = len(comparison.problems) - _MOST_PROBLEMS
    return [*found, *comparison.problems[:_MOST_PROBLEMS], *([f"… and {more} more"] if more > 0 else [])]


def rows_as_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return both tables, at each schedule's best LR and at every LR, as plain records; nan as None."""
    records = []
    for measure in dict.fromkeys((comparison.report, *comparison.finals)):  # a curve reports its end
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

    ``floors`` are cosines with several floors for the heat map, ``columns`` further cells of the HParams table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = rows_as_records(comparison)
    paths = {name: folder / name for name in ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png")}
    _write_csv(paths["table.csv"], records)
    _write_csv(paths["members.csv"], member_records(comparison))
    _write_csv(paths["curves.csv"], _curve_records(comparison))
    results = {
        "description": comparison.description,
        "baseline": comparison.baseline,
        "scope": comparison.scope,
        "diverged": int(comparison.diverged.sum()),
        "problems": list(comparison.problems),
        "spread": {name: _plain(comparison.spread(name)) for name in comparison.schedules},
        "tables": records,
    }
    paths["results.json"].write_text(json.dumps(results, indent=1) + "\n")
    figure = draw(comparison, floors)
    figure.savefig(paths["figure.png"], dpi=100)
    paths["tensorboard"] = folder / "tensorboard"
    for old in paths["tensorboard"].glob("* lr=*/events.out.tfevents.*"):  # of a smaller grid
        old.unlink()
    _write_tensorboard(comparison, paths["tensorboard"], figure, columns or {})
    return paths


def verdicts_table(verdicts: Sequence[ClaimVerdict]) -> Table:
    """Return claims and verdicts as a rich table."""
    shown = Table(title=f"{len(verdicts)} claims, intervals hold together (Holm)")
    for heading in ("claim", "data", "verdict", "effect"):
        shown.add_column(heading)
    for judged in verdicts:
        shown.add_row(judged.claim, judged.data, judged.verdict, judged.effect)
    return shown


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


def member_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a record for every training: its place, and every measure at its end."""
    names, diverged = list(comparison.schedules), comparison.diverged
    records = []
    for (seed, schedule, lr), member in np.ndenumerate(comparison.members):
        if comparison.trained is not None and not comparison.trained[seed, schedule, lr]:
            continue
        place = {
            **({"split": comparison.splits[seed // len(comparison.seeds)]} if len(comparison.splits) > 1 else {}),
            "seed": comparison.seeds[seed % len(comparison.seeds)],
            "schedule": names[schedule],
            "lr": comparison.lrs[lr],
            "diverged": int(diverged[seed, schedule, lr]),
        }
        curves = {name: member[name][-1].item() for name in comparison.curves}
        finals = {name: member[name].item() for name in comparison.finals}
        records.append({**place, **curves, **finals, **place})  # a module may log a metric "lr"
    return records


def _curve_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the mean curves over seeds of every schedule at every LR."""
    records = []
    for schedule, name in enumerate(comparison.schedules):
        for lr, value in enumerate(comparison.lrs):
            if not comparison.has(name, lr):
                continue
            members = comparison.members[:, schedule, lr]
            for epoch in range(comparison.epochs):
                curves = {name: _plain(mean(members[name][:, epoch]).value) for name in comparison.curves}
                step = (epoch + 1) * comparison.steps_per_epoch
                records.append({"schedule": name, "lr": value, "epoch": epoch + 1, "step": step, **curves})
    return records


def _write_tensorboard(
    comparison: Comparison, folder: Path, figure: Figure, columns: Mapping[str, str | float]
) -> None:
    """Write a run for each schedule at its best LR: the LR of every step, means over seeds, and its row in HParams."""
    from torch.utils.tensorboard import SummaryWriter

    description = comparison.description
    first = next((name for name in comparison.schedules if comparison.best_index(name) is not None), None)
    for index, (name, schedule) in enumerate(comparison.schedules.items()):
        best = comparison.best_index(name)
        if best is None:
            continue
        peak, members = comparison.lrs[best], comparison.members[:, index, best]
        run = f"{name} lr={peak:g}".replace("/", "_")
        with SummaryWriter(str(folder / run)) as writer:
            rates = learning_rates([schedule], [peak], comparison.total_steps)
            for step, lr in enumerate(rates[:, 0].tolist()):
                writer.add_scalar("lr", lr, step)
            for field in comparison.curves:
                for epoch, column in enumerate(members[field].T):
                    writer.add_scalar(
                        field.replace("_", "/"), mean(column).value, (epoch + 1) * comparison.steps_per_epoch - 1
                    )
            for measure in comparison.finals:
                writer.add_scalar(
                    measure.replace("_", "/"),
                    mean(comparison.values(measure)[:, index, best]).value,
                    comparison.total_steps,
                )
            write_layout(writer)
            row = {
                **schedule_columns(schedule),
                "lr": peak,
                "interval": "step",
                "warmup": "0step",  # a warmup is part of the schedule here
                "epochs": comparison.epochs,
                "batch_size": description.get("batch_size", ""),
                **columns,
            }
            # the schedule comes first because TensorBoard cuts long names at their end
            write_hyperparameters(writer, row, time.time(), f"{run} ({folder.parent})")
            write_success(writer, time.time())
            if name == first:  # the picture shows all schedules, so one run has it
                writer.add_image("comparison", plots.pixels(figure), comparison.total_steps, dataformats="HWC")


def _write_csv(path: Path, records: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float, sign: str = "", digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value + 0.0:{sign}.{digits}g}"  # -0.0 + 0.0 is 0.0


def _ends(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low + 0.0:.2g} … {high + 0.0:.2g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.0f} %"
