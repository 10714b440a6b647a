"""Timings side by side in one process: contenders take turns with a baseline, and a ratio compares two of one round.

Convention: every round runs the baseline and each contender once, in an order that turns from round to round; so what
else the machine is doing meets them alike.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

__all__ = ["CLOCKS", "Row", "side_by_side", "table"]


def _processor_time() -> float:
    """Return the seconds that this process and the children it has waited for have had a processor."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


CLOCKS = {"wall": time.perf_counter, "processor": _processor_time}


@dataclass(frozen=True)
class Row:
    """What one contender took against its baseline.

    Args:
        name: The contender.
        baseline: What it was measured against.
        seconds: The contender's median.
        ratios: Its time over the baseline's, round by round.
    """

    name: str
    baseline: str
    seconds: float
    ratios: tuple[float, ...]

    def summary(self) -> dict[str, str | float | int]:
        """Return the row as plain data, with the figures the table shows."""
        figures = {"median": statistics.median(self.ratios), "min": min(self.ratios), "max": max(self.ratios)}
        return {**asdict(self), **figures, "runs": len(self.ratios)}


def side_by_side(
    contenders: Mapping[str, Callable[[], object]],
    runs: int,
    number: int | Mapping[str, int] = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Return a row for every contender but the first, which is the baseline.

    Args:
        contenders: What is timed, by name.
        runs: Rounds, >= 1; a round before the first warms up and is not counted.
        number: Repetitions of one thing in one call, the same for all or by name; a time is that of one of them.
        clock: What tells the seconds.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(runs + 1):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            contenders[name]()
            taken = clock() - start
            seconds[name].append(taken / (number if isinstance(number, int) else number[name]))
    baseline, *others = names
    return [
        Row(
            name,
            baseline,
            statistics.median(seconds[name][1:]),
            tuple(own / base for own, base in zip(seconds[name][1:], seconds[baseline][1:], strict=True)),
        )
        for name in others
    ]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, a line each."""
    header = ("what", "against", "time", "ratio", "min", "max", "runs")
    lines = [header]
    for row in rows:
        figures = row.summary()
        ratios = (f"{figures[key]:.3f}" for key in ("median", "min", "max"))
        lines.append((row.name, row.baseline, _time(row.seconds), *ratios, str(figures["runs"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _time(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns")) if abs(seconds) >= s)
    return f"{seconds / scale:.3g} {unit}"
