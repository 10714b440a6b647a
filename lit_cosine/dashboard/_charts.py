"""The charts of the Schedule dashboard: which tags stand in which, without torch.

Convention: a tag has one chart. Tags are given as regular expressions, which TensorBoard matches from a tag's start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["CHARTS", "LR", "PLANNED", "exactly", "layout_of"]

PLANNED = "planned/"
"""What stands before the tag of an LR in the tag of its plan."""

LR = "Learning rate"
CHARTS = {
    LR: [f"^{PLANNED}", "^lr(-|$)"],
    "Training loss": ["^(train[/_].*)?loss"],
    "Validation and test loss": ["^(val|test)[/_].*loss"],
    "Validation and test metrics": ["^(val|test)[/_](?!.*loss)"],
    "Gradient norm": ["^train/gradient_norm"],
}
"""Title -> tags, as regular expressions. The older underscores are what many modules still log."""

_NEVER_DRAWN = {"epoch", "hp_metric", "train/seconds"}
"""Tags of no curve: Lightning's own, and what stands in the HParams table."""


def layout_of(tags: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return a layout in which every tag is drawn: category -> title of a chart -> tags, as regular expressions.

    Charts without a tag are left out. What has no chart in the category "Schedule" has one of its own in "Other".

    >>> layout_of(["lr-Adam", "epoch", "speed"])
    {'Schedule': {'Learning rate': ['^planned/', '^lr(-|$)']}, 'Other': {'speed': ['^speed$']}}
    """
    left = {*tags} - _NEVER_DRAWN
    drawn: dict[str, list[str]] = {}
    for title, patterns in CHARTS.items():
        if title == LR:  # a logger may have given the LR another name
            planned = {tag.removeprefix(PLANNED) for tag in left if tag.startswith(PLANNED)}
            patterns = patterns + [exactly(tag) for tag in sorted(planned) if not re.match(patterns[-1], tag)]
        own = {tag for tag in left if any(re.match(pattern, tag) for pattern in patterns)}
        if own:
            drawn[title] = patterns
        left -= own
    other = {tag: [exactly(tag)] for tag in sorted(left)}
    return {title: charts for title, charts in (("Schedule", drawn), ("Other", other)) if charts}


def exactly(tag: str) -> str:
    """Return the regular expression of one tag."""
    return f"^{re.escape(tag)}$"
