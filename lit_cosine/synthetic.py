"""``sklearn.datasets.make_classification`` in blocks of rows: the same draws, a fraction of the memory.

Convention: every random number is drawn in scikit-learn's order from the same generator, so that the rows are
scikit-learn's own, bit for bit up to ``BLOCK`` rows and to the rounding of a float32 beyond. What takes the memory
there (float64 rows, a copy to shuffle them, a copy to permute the columns) is held here for one block at a time; and
scikit-learn, whose import takes longer than the article's training, need not be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

__all__ = ["BLOCK", "classification"]

BLOCK = 65_536
"""Rows in a block; up to here the features are float64."""

Rows = NDArray[Any]


def classification(
    n_samples: int = 1000,
    n_features: int = 20,
    *,
    n_informative: int = 2,
    n_redundant: int = 2,
    n_repeated: int = 0,
    n_classes: int = 2,
    n_clusters_per_class: int = 2,
    weights: Sequence[float] | None = None,
    flip_y: float = 0.01,
    class_sep: float = 1.0,
    hypercube: bool = True,
    shift: float | Sequence[float] | None = 0.0,
    scale: float | Sequence[float] | None = 1.0,
    shuffle: bool = True,
    random_state: int = 42,
) -> tuple[Rows, NDArray[np.int64]]:
    """Return the features (n_samples, n_features) and the labels (n_samples,) of make_classification.

    The arguments are its own. The features are float64 up to ``BLOCK`` rows, float32 beyond.

    >>> x, y = classification(5, random_state=0)
    >>> x.shape, y.dtype
    ((5, 20), dtype('int64'))

    Source: sklearn/datasets/_samples_generator.py, whose algorithm is that of I. Guyon, "Design of experiments for the
    NIPS 2003 variable selection benchmark", 2003.
    """
    generator = RandomState(random_state)
    shares = [1.0 / n_classes] * n_classes if weights is None else list(weights)
    if len(shares) == n_classes - 1:
        shares.append(1.0 - sum(shares))
    clusters = n_classes * n_clusters_per_class
    sizes = [int(n_samples * shares[k % n_classes] / n_clusters_per_class) for k in range(clusters)]
    for k in range(n_samples - sum(sizes)):
        sizes[k % clusters] += 1
    ends = np.cumsum(sizes)

    centroids = _corners(clusters, n_informative, generator).astype(float)
    centroids *= 2 * class_sep
    centroids -= class_sep
    if not hypercube:
        centroids *= generator.uniform(size=(clusters, 1))
        centroids *= generator.uniform(size=(1, n_informative))

    # What becomes of the informative columns is drawn after them: they are drawn, left behind, and drawn again when it
    # is known.
    informative = RandomState()
    informative.set_state(generator.get_state())
    for rows in _blocks(n_samples):
        generator.standard_normal(size=(rows.stop - rows.start, n_informative))
    mixings = [2 * generator.uniform(size=(n_informative, n_informative)) - 1 for _ in range(clusters)]
    redundant = 2 * generator.uniform(size=(n_informative, n_redundant)) - 1 if n_redundant else None
    useful = n_informative + n_redundant
    repeated = ((useful - 1) * generator.uniform(size=n_repeated) + 0.5).astype(np.intp) if n_repeated else None

    x = np.empty((n_samples, n_features), np.float64 if n_samples <= BLOCK else np.float32)
    y = np.empty(n_samples, np.int64)
    for rows in _blocks(n_samples):
        block = np.empty((rows.stop - rows.start, useful + n_repeated))
        block[:, :n_informative] = informative.standard_normal(size=(len(block), n_informative))
        for k, end in enumerate(ends):
            members = slice(max(end - sizes[k], rows.start), min(end, rows.stop))
            if members.start < members.stop:
                y[members] = k % n_classes
                own = block[members.start - rows.start : members.stop - rows.start, :n_informative]
                own[...] = own @ mixings[k]
                own += centroids[k]
        if redundant is not None:
            block[:, n_informative:useful] = block[:, :n_informative] @ redundant
        if repeated is not None:
            block[:, useful:] = block[:, repeated]
        x[rows, : useful + n_repeated] = block
    noise = n_features - useful - n_repeated
    if noise:
        for rows in _blocks(n_samples):
            x[rows, -noise:] = generator.standard_normal(size=(rows.stop - rows.start, noise))

    flipped = generator.uniform(size=n_samples) < flip_y
    y[flipped] = generator.randint(n_classes, size=int(flipped.sum()))
    added = (2 * generator.uniform(size=n_features) - 1) * class_sep if shift is None else shift
    x += np.asarray(added, x.dtype)
    factor = 1 + 100 * generator.uniform(size=n_features) if scale is None else scale
    x *= np.asarray(factor, x.dtype)
    if shuffle:
        order = np.arange(n_samples)
        generator.shuffle(order)
        x, y = x[order], y[order]
        columns = np.arange(n_features)
        generator.shuffle(columns)
        for rows in _blocks(n_samples):
            x[rows] = x[rows, columns]
    return x, y


def _blocks(rows: int) -> Iterator[slice]:
    """Yield the blocks that ``rows`` rows make."""
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def _corners(number: int, dimensions: int, generator: RandomState) -> NDArray[np.integer[Any]]:
    """Return different corners of the unit hypercube, shape (number, dimensions)."""
    if dimensions > 30:
        more = generator.randint(2, size=(number, dimensions - 30))
        return np.hstack([more, _corners(number, 30, generator)])
    bits = np.array(_different(2**dimensions, number, generator), dtype=">u4")
    return np.unpackbits(bits.view(np.uint8)).reshape(number, 32)[:, -dimensions:]


def _different(population: int, number: int, generator: RandomState) -> list[int]:
    """Return different integers below ``population``, as ``sklearn.utils.random.sample_without_replacement`` does."""
    share = number / population
    if 0.01 < share < 0.99:
        return [int(chosen) for chosen in generator.permutation(population)[:number]]
    if share < 0.2:
        drawn: dict[int, None] = {}
        while len(drawn) < number:
            drawn[generator.randint(population)] = None
        return list(drawn)
    reservoir = list(range(number))
    for candidate in range(number, population):
        place = generator.randint(0, candidate + 1)
        if place < number:
            reservoir[place] = candidate
    return reservoir
