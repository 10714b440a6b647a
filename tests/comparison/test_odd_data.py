"""Data that no comparison can be made of is refused in a sentence; trainings that diverge are counted."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from lit_cosine import Constant, Cosine, SimpleNN, TabularDataModule, compare_networks

X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
Y = (X[:, 0] > 0).astype(int)


def found(rows: Any, labels: Any, *lrs: float) -> Any:
    data = TabularDataModule((rows, labels), batch_size=8)
    schedules = {"cosine": Cosine(), "constant": Constant()}
    return compare_networks(partial(SimpleNN, 4, 2), data, schedules, lrs=list(lrs), seeds=2, max_epochs=1)


@pytest.mark.parametrize(
    ("rows", "labels", "sentence"),
    [
        (np.where(X[3, 1] == X, np.nan, X), Y, r"^features must be finite as float32, got nan in row 3, column 1$"),
        (X, Y * 0, r"^labels must be of at least 2 classes, got only \[0\]$"),
        (X[:3], [0, 1, 0], r"^test_size must hold out at least 2 of the 3 rows, got 0.2$"),
        (X[:0], Y[:0], r"^features must have the shape \(rows, columns\) with at least one of each, got \(0, 4\)$"),
    ],
    ids=["nan", "one class", "three rows", "no rows"],
)
def test_data_that_cannot_be_compared_is_refused(rows: Any, labels: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        found(rows, labels, 0.1)


def test_diverging_trainings_are_counted_and_a_constant_column_trains() -> None:
    assert found(X, Y, 0.1, 1e30).diverged.sum() == 4
    assert np.isfinite(found(X * 0, Y, 0.1).values()).all()
