"""Curves as text: a line chart in Braille dots, or in plain ASCII, for the terminal.

Convention: a curve is a function of an integer x in [0, last] with finite values >= 0; the y axis begins at 0.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["aligned", "chart", "letter", "of_stdout"]

# bit of the dot in column x % 2, row y % 4 (from the top) of a Braille character, which starts at U+2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_COLOURS = (36, 33, 35, 32, 31, 34)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # at least as many as preview draws of a file
_PROBES = 8  # points looked at in one column of dots, so that a dense curve shows its whole height

Extents = list[tuple[float, float]]


def of_stdout() -> dict[str, Any]:
    """Return the options of :func:`chart` that suit standard output: its width, colours, and whether it is ASCII."""
    try:
        "⠿│".encode(sys.stdout.encoding or "ascii")
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    return {
        "width": max(20, min(100, shutil.get_terminal_size().columns - 14)),
        "colour": sys.stdout.isatty() and "NO_COLOR" not in os.environ,
        "ascii_only": ascii_only,
    }


def chart(
    curves: Mapping[str, Callable[[int], float]],
    last: int,
    *,
    width: int = 72,
    height: int = 16,
    colour: bool = False,
    ascii_only: bool = False,
) -> str:
    """Return a chart of ``curves`` over x = 0 … ``last``; several are told apart by letters on the curves.

    Args:
        curves: Name -> y of an integer x.
        last: Largest x, >= 1.
        width: Columns of the plot area, >= 20; the y labels come on top.
        height: Rows of the plot area, >= 4.
        colour: Whether to colour the curves with ANSI codes.
        ascii_only: Whether to draw with ``*`` instead of Braille.

    >>> print(chart({"line": lambda x: 1 - x / 10}, 10, width=20, height=4, ascii_only=True))
           1 |******
             |     *****
         0.5 |         ******
           0 |              ******
             +--------------------
              0         5        10
    """
    all_extents = [_extents(curve, last, 2 * width) for curve in curves.values()]
    top = max((high for extents in all_extents for _, high in extents), default=0.0) or 1.0
    dots = [[0] * width for _ in range(height)]
    owner = [[-1] * width for _ in range(height)]
    for index, extents in enumerate(all_extents):
        for x, (low, high) in enumerate(extents):
            for y in range(_row(high, top, height), _row(low, top, height) + 1):
                dots[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
                owner[y // 4][x // 2] = index
    canvas = [[_glyph(bits, ascii_only) for bits in row] for row in dots]
    if len(curves) > 1:
        _put_letters(canvas, owner, all_extents, top)
    if colour:
        canvas = [
            [
                f"\x1b[{_COLOURS[k % len(_COLOURS)]}m{glyph}\x1b[0m" if k >= 0 else glyph
                for glyph, k in zip(*both, strict=True)
            ]
            for both in zip(canvas, owner, strict=True)
        ]
    lines = _with_axes(canvas, top, last, ("|", "+", "-") if ascii_only else ("│", "└", "─"))
    if len(curves) > 1:
        lines += [f"  {letter(index)}  {name}" for index, name in enumerate(curves)]
    return "\n".join(lines)


def _extents(curve: Callable[[int], float], last: int, columns: int) -> Extents:
    """Return the lowest and the highest y of every column; neighbours touch, so that a jump is a vertical line."""
    extents: Extents = []
    before: list[float] = []
    for column in range(columns):
        start, stop = last * column / columns, last * (column + 1) / columns
        xs = {round(start + (stop - start) * probe / (_PROBES - 1)) for probe in range(_PROBES)}
        ys = [curve(x) for x in sorted(xs)]
        extents.append((min(before + ys), max(before + ys)))
        before = ys[-1:]
    return extents


def _row(y: float, top: float, height: int) -> int:
    """Return the row of dots, from the top, that holds ``y``."""
    return round((1.0 - y / top) * (4 * height - 1))


def _glyph(bits: int, ascii_only: bool) -> str:
    if not bits:
        return " "
    return "*" if ascii_only else chr(0x2800 + bits)


def letter(index: int) -> str:
    """Return the letter that stands for curve ``index`` in a chart of several."""
    return _LETTERS[index % len(_LETTERS)]


def _put_letters(canvas: list[list[str]], owner: list[list[int]], all_extents: Sequence[Extents], top: float) -> None:
    """Write each curve's letter on the curve, in three places that differ from curve to curve."""
    height, width, count = len(canvas), len(canvas[0]), len(all_extents)
    for index, extents in enumerate(all_extents):
        for third in range(3):
            x = int(width * (third + (index + 0.5) / count) / 3)
            low, high = extents[2 * x]
            y = _row((low + high) / 2, top, height) // 4
            canvas[y][x], owner[y][x] = letter(index), index


def _with_axes(canvas: list[list[str]], top: float, last: int, strokes: tuple[str, str, str]) -> list[str]:
    height, width = len(canvas), len(canvas[0])
    side, corner, floor = strokes
    labels = {0: f"{top:.4g}", height // 2: f"{top / 2:.4g}", height - 1: "0"}
    margin = max(8, *(len(label) for label in labels.values()))
    lines = [f"{labels.get(y, ''):>{margin}} {side}{''.join(row)}".rstrip() for y, row in enumerate(canvas)]
    lines.append(" " * (margin + 1) + corner + floor * width)
    ticks = [(0, "0")] + [
        (width * part // 4, f"{last * part // 4:,}") for part in ((2, 4) if width < 40 else (1, 2, 3, 4))
    ]
    below = [" "] * (width + margin + 20)
    for column, text in ticks:
        start = margin + 2 + (column - (len(text) // 2 if column else 0))
        below[start : start + len(text)] = text
    return [*lines, "".join(below).rstrip()]


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return the rows as lines; the column ``left`` is aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if column == left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
