"""A null experiment through the real code: no name stands for a better schedule, so every interval should hold 0.

`python -m tests.helpers.null_families` trains the stored rows and prints in how many of the simulated families some
interval excludes 0: by the splits, and as with one split, whose intervals are of the noise of the seeds.

- same: every name is one schedule, with other seeds in each split.
- swapped: in each split the names stand for three schedules in an order drawn at random, so that none is better over
  splits, while in one split they do differ.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lit_cosine import Comparison, Constant, Cosine, SimpleNN, Step, SyntheticDataModule, compare_networks

SPLITS, SEEDS, NAMES, TAKEN = 10, 24, 3, 8


def stored(folder: Path | None = None) -> Comparison:
    """Train three schedules on ten splits of the article's task."""
    schedules = {"constant": Constant(), "step": Step(), "cosine": Cosine()}
    return compare_networks(
        SimpleNN, SyntheticDataModule(), schedules, [0.03], SEEDS, 10, splits=SPLITS, engine="serial", folder=folder
    )


def families(rows: Comparison, kind: str, number: int) -> Iterator[Comparison]:
    """Yield comparisons of NAMES names with TAKEN seeds in each split."""
    generator = np.random.default_rng(0)
    members = rows.members.reshape(SPLITS, SEEDS, NAMES, 1)
    names = dict(zip("abc", [Constant()] * NAMES, strict=True))
    for _ in range(number):
        parts = []
        for split in members:
            seeds = generator.permutation(SEEDS)[: NAMES * TAKEN].reshape(TAKEN, NAMES)
            if kind == "same":
                parts.append(split[seeds, 2])
            else:
                parts.append(split[seeds[:, 0]][:, generator.permutation(NAMES)])
        yield replace(rows, schedules=names, seeds=tuple(range(TAKEN)), baseline="a", members=np.concatenate(parts))


def one_split(family: Comparison) -> Comparison:
    """Return what the family's first split alone gives."""
    return replace(family, members=family.members[:TAKEN], splits=(0,), overlap=0.0)


def excludes_zero(family: Comparison) -> bool:
    """Return whether the interval of some difference of the family excludes 0."""
    found = [row.difference for row in family.table() if row.difference is not None]
    return any(difference.low > 0.0 or difference.high < 0.0 for difference in found)


def shares(rows: Comparison, kind: str, number: int) -> tuple[float, float]:
    """Return the share of families that exclude 0: over the splits, and with one split."""
    drawn = list(families(rows, kind, number))
    over, one = ([excludes_zero(each) for each in group] for group in (drawn, map(one_split, drawn)))
    return float(np.mean(over)), float(np.mean(one))


if __name__ == "__main__":
    trained = stored()
    for which in ("same", "swapped"):
        over, one = shares(trained, which, 1000)
        print(f"{which}: {over:.1%} of 1000 families exclude 0 over {SPLITS} splits, {one:.1%} with one split")
