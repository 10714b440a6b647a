"""Tabular data for classification, held once as tensors and fetched in batches.

Conventions: features are float32 (rows, columns), labels int64 0 … C-1. The rows are shuffled once by ``split_seed``
into a training part, exactly ``sklearn.model_selection.train_test_split``'s, and a held-out part; the held-out part is
cut in half into validation and test, so that a model chosen on validation is still tested honestly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from lit_cosine.checkpoint_io import SafeLoading
from lit_cosine.rows import RowLoader, TensorRows, as_fetched
from lit_cosine.sampler import EpochSampler
from lit_cosine.synthetic import BLOCK, classification

__all__ = ["SyntheticDataModule", "TabularDataModule"]

DATASETS = ("breast_cancer", "digits", "iris", "wine")
"""scikit-learn's real data sets for classification that are shipped with it, so that nothing is downloaded."""

_SEVERAL = (list, tuple, np.ndarray)

_LARGEST_SEED = 2**32 - 1
"""Of numpy's generators that draw the data and split it."""

_GPU_SHARE = 0.5
"""Share of the GPU's free memory that the data may take; the rest is the training's."""


class TabularDataModule(SafeLoading, LightningDataModule):  # type: ignore[misc]
    """Features and labels as loaders for training, validation, test and prediction.

    Args:
        dataset: ``(features, labels)`` as arrays, tensors or nested lists, of the shapes (rows, columns) and (rows,);
            or the name of one of scikit-learn's shipped data sets: ``"digits"``, ``"breast_cancer"``, ``"wine"``,
            ``"iris"``.
        batch_size: Rows per batch, from 1 to the length of the training part.
        test_size: Fraction of the rows that is held out, in (0, 1); half of it is validation, half test.
        standardize: Whether to scale every feature to mean 0 and variance 1, as measured on the training part alone.
        split_seed: Seed of the split, an integer >= 0.
        seed: Seed of the order of the training rows, another one in each epoch; an integer >= 0.
        num_workers: Processes that load batches, >= 0. 0 is the fastest for data that is in memory.

    Raises:
        TypeError: If ``dataset`` is neither a name nor a pair.
        ValueError: If an argument is out of range, at once; if the data cannot be used, when it is loaded, which is
            before training.

    >>> data = TabularDataModule("iris", batch_size=30)
    >>> data.num_features, data.num_classes
    (4, 3)
    >>> features, labels = next(iter(data.train_dataloader()))
    >>> features.shape, labels.dtype
    (torch.Size([30, 4]), torch.int64)
    """

    def __init__(
        self,
        dataset: str | tuple[Any, Any] = "digits",
        batch_size: int = 64,
        test_size: float = 0.2,
        standardize: bool = False,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(dataset, str):
            if dataset not in DATASETS:
                raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
        elif not (isinstance(dataset, (tuple, list)) and len(dataset) == 2):
            got = type(dataset).__name__ + (f" of {len(dataset)}" if isinstance(dataset, (tuple, list)) else "")
            raise TypeError(f"dataset must be (features, labels) or one of {', '.join(DATASETS)}, got {got}")
        self.batch_size = _check_integer("batch_size", batch_size, 1)
        self.num_workers = _check_integer("num_workers", num_workers, 0)
        if isinstance(test_size, bool) or not isinstance(test_size, (int, float)) or not 0.0 < test_size < 1.0:
            raise ValueError(f"test_size must be a fraction in (0, 1), got {test_size!r}")
        self.dataset = dataset
        self.test_size = float(test_size)
        self.standardize = _check_flag("standardize", standardize)
        self.split_seed = _check_integer("split_seed", split_seed, 0, _LARGEST_SEED)
        self.seed = _check_integer("seed", seed, 0)
        self._parts: dict[str, TensorRows] | None = None
        self._num_classes = 0
        self._sampler: EpochSampler | None = None

    def arrays(self) -> tuple[Any, Any]:
        """Return the features and the labels of all rows, as they come; called once."""
        if not isinstance(self.dataset, str):
            return self.dataset[0], self.dataset[1]
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{self.dataset}")()
        return bunch.data, bunch.target

    @property
    def num_features(self) -> int:
        """Number of feature columns."""
        return int(self._load()["train"].tensors[0].shape[1])

    @property
    def num_classes(self) -> int:
        """Number of classes C; the labels are 0 … C-1."""
        self._load()
        return self._num_classes

    def setup(self, stage: str | None = None) -> None:
        """Load, check and split the data, once, and bring it to the GPU where there is one that it fits on."""
        parts = self._load()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device.type == "cuda" and self.num_workers == 0:  # elsewhere nobody says how much would fit
            left, _ = torch.cuda.mem_get_info(device)
            if sum(rows.nbytes for rows in parts.values()) <= left * _GPU_SHARE:
                self._parts = {part: rows.to(device) for part, rows in parts.items()}
        self._sampler = None  # a new run begins at its beginning

    def state_dict(self) -> dict[str, Any]:
        """Return how far training is in its rows, so that a resumed run goes on there."""
        return {} if self._sampler is None or self.trainer is None else self._sampler.state_dict(self.trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._train_sampler().load_state_dict(state_dict)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training part in batches of (features, labels), its order a function of seed and epoch."""
        return self._loader(self._load()["train"], self._train_sampler())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation part in batches of (features, labels)."""
        return self._loader(self._load()["val"])

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test part in batches of (features, labels)."""
        return self._loader(self._load()["test"])

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the test part in batches of features alone, in the order of :meth:`test_dataloader`."""
        return self._loader(TensorRows(self._load()["test"].tensors[0]))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on ``device``; one that is there is not looked through for what could be moved."""
        if type(batch) is tuple and all(isinstance(part, Tensor) and part.device == device for part in batch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _train_sampler(self) -> EpochSampler:
        if self._sampler is None:
            self._sampler = EpochSampler(self._load()["train"], self.batch_size, self.seed)
        return self._sampler

    def _loader(self, rows: TensorRows, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        return RowLoader(
            rows,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=as_fetched,
            # its own, so that nothing is drawn from the global one
            generator=torch.Generator() if sampler is None else sampler.generator,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _load(self) -> dict[str, TensorRows]:
        if self._parts is None:
            features, labels = _check_arrays(*self.arrays())
            order, train = _split(len(labels), self.test_size, self.split_seed)
            if train < self.batch_size:
                raise ValueError(
                    f"batch_size must be at most the {train} rows of the training part, got {self.batch_size}"
                )
            features = features[order]
            if self.standardize:
                features = _standardized(features, train)
            x = torch.from_numpy(features.astype(np.float32, copy=False))
            y = torch.from_numpy(labels[order])
            self._num_classes = int(y.max()) + 1
            middle = train + (len(y) - train) // 2
            cuts = {"train": slice(train), "val": slice(train, middle), "test": slice(middle, None)}
            # slices of the one tensor, not copies of it
            self._parts = {part: TensorRows(x[rows], y[rows]) for part, rows in cuts.items()}
        return self._parts


class SyntheticDataModule(TabularDataModule):
    """Data from ``sklearn.datasets.make_classification``; as it stands, the article's 1000 rows.

    Args:
        n_samples: Number of rows, >= 4.
        n_features: Number of columns.
        n_informative: Columns that the class depends on.
        n_redundant: Columns that are linear combinations of the informative ones.
        n_repeated: Columns that are copies of others.
        n_classes: Number of classes, >= 2; n_classes * n_clusters_per_class must be at most 2**n_informative.
        n_clusters_per_class: Clusters of each class.
        weights: Share of each class; equal where None.
        flip_y: Fraction of labels drawn at random, in [0, 1].
        class_sep: Distance between the classes.
        hypercube: Whether clusters sit on the corners of a hypercube, not of a random polytope.
        shift: What is added to each feature, a number or one for each; random where None.
        scale: What each feature is multiplied by, a number or one for each; random where None.
        shuffle: Whether make_classification shuffles rows and columns.
        random_state: Seed of the data, an integer >= 0.
        batch_size: Rows per batch, from 1 to the length of the training part.
        test_size: Fraction of the rows that is held out, in (0, 1); half of it is validation, half test.
        standardize: Whether to scale every feature to mean 0 and variance 1, as measured on the training part alone.
        split_seed: Seed of the split, an integer >= 0.
        seed: Seed of the order of the training rows, another one in each epoch; an integer >= 0.
        num_workers: Processes that load batches, >= 0.

    Raises:
        ValueError: If an argument is out of range or the features cannot hold the classes.

    >>> len(SyntheticDataModule().train_dataloader().dataset)
    800
    """

    def __init__(
        self,
        n_samples: int = 1000,
        n_features: int = 20,
        n_informative: int = 2,
        n_redundant: int = 2,
        n_repeated: int = 0,
        n_classes: int = 2,
        n_clusters_per_class: int = 2,
        weights: list[float] | None = None,
        flip_y: float = 0.01,
        class_sep: float = 1.0,
        hypercube: bool = True,
        shift: float | list[float] | None = 0.0,
        scale: float | list[float] | None = 1.0,
        shuffle: bool = True,
        random_state: int = 42,
        batch_size: int = 64,
        test_size: float = 0.2,
        standardize: bool = False,
        split_seed: int = 42,
        seed: int = 42,
        num_workers: int = 0,
    ) -> None:
        super().__init__(((), ()), batch_size, test_size, standardize, split_seed, seed, num_workers)
        _check_integer("n_samples", n_samples, 4)
        for name, value, least in (
            ("n_features", n_features, 1),
            ("n_informative", n_informative, 1),
            ("n_redundant", n_redundant, 0),
            ("n_repeated", n_repeated, 0),
            ("n_classes", n_classes, 2),
            ("n_clusters_per_class", n_clusters_per_class, 1),
        ):
            _check_integer(name, value, least)
        _check_integer("random_state", random_state, 0, _LARGEST_SEED)
        for name, flag in (("hypercube", hypercube), ("shuffle", shuffle)):
            _check_flag(name, flag)
        if weights is not None and not isinstance(weights, _SEVERAL):
            raise TypeError(f"weights must be a list of numbers, got {weights!r}")
        for name, given in (
            ("flip_y", flip_y),
            ("class_sep", class_sep),
            ("weights", [] if weights is None else weights),
        ):
            _check_numbers(name, given)
        used = n_informative + n_redundant + n_repeated
        if used > n_features:
            raise ValueError(
                f"n_features must be at least n_informative + n_redundant + n_repeated, got {n_features} "
                f"< {n_informative} + {n_redundant} + {n_repeated} = {used}"
            )
        clusters = n_classes * n_clusters_per_class
        if clusters > 2**n_informative:
            raise ValueError(
                f"n_classes * n_clusters_per_class must be at most 2**n_informative, got {n_classes} * "
                f"{n_clusters_per_class} = {clusters} > 2**{n_informative} = {2**n_informative}: n_informative must be "
                f"at least {math.ceil(math.log2(clusters))}"
            )
        if not 0.0 <= flip_y <= 1.0:
            raise ValueError(f"flip_y must be a fraction in [0, 1], got {flip_y}")
        if weights is not None and len(weights) not in (n_classes, n_classes - 1):
            raise ValueError(f"weights must be {n_classes} numbers, one for each class, got {len(weights)}")
        if weights is not None and not (min(weights) >= 0.0 and sum(weights) <= 1.0 + 1e-9):
            raise ValueError(f"weights must be shares of the rows, >= 0 and at most 1 together, got {weights}")
        if not (math.isfinite(class_sep) and class_sep > 0.0):
            raise ValueError(f"class_sep must be finite and > 0, got {class_sep}")
        for name, numbers in (("shift", shift), ("scale", scale)):
            if numbers is None:
                continue
            _check_numbers(name, numbers)
            if isinstance(numbers, _SEVERAL) and len(numbers) != n_features:
                raise ValueError(f"{name} must be one number or {n_features}, one for each feature, got {len(numbers)}")
            if not np.isfinite(numbers).all():
                raise ValueError(f"{name} must be finite, got {numbers}")
        self.arguments: dict[str, Any] = {
            "n_samples": n_samples, "n_features": n_features, "n_informative": n_informative,
            "n_redundant": n_redundant, "n_repeated": n_repeated, "n_classes": n_classes,
            "n_clusters_per_class": n_clusters_per_class, "weights": weights, "flip_y": flip_y,
            "class_sep": class_sep, "hypercube": hypercube, "shift": shift, "scale": scale,
            "shuffle": shuffle, "random_state": random_state,
        }  # fmt: skip

    def arrays(self) -> tuple[Any, Any]:
        """Return the features and the labels that ``make_classification`` draws, float32 where they are many."""
        return classification(**self.arguments)


def _check_integer(name: str, value: int, least: int, most: int | None = None) -> int:
    rule = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} must be {rule}, got {value}")
    return int(value)


def _check_flag(name: str, value: bool) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _check_numbers(name: str, numbers: Any) -> None:
    kind, values = ("numbers", numbers) if isinstance(numbers, _SEVERAL) else ("a number", [numbers])
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{name} must be {kind}, got {value!r}")


def _split(rows: int, test_size: float, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return the row numbers, training part first, and the length of the training part."""
    held_out = math.ceil(rows * test_size)  # as train_test_split rounds
    if held_out < 2 or held_out >= rows:
        raise ValueError(
            f"test_size must hold out at least 2 of the {rows} rows and leave some to train on, got {test_size}"
        )
    order = np.random.RandomState(seed).permutation(rows)  # train_test_split's, whose import takes a second
    return np.concatenate([order[held_out:], order[:held_out]]), rows - held_out


def _standardized(features: NDArray[Any], train: int) -> NDArray[Any]:
    """Return features of mean 0 and variance 1 over the first ``train`` rows, made in place where they are floats."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for start in range(0, train, BLOCK):  # scikit-learn holds two more copies of what it is given at once
        scaler.partial_fit(features[start : min(start + BLOCK, train)])
    if features.dtype.kind != "f":
        features = features.astype(np.float64)
    for start in range(0, len(features), BLOCK):
        features[start : start + BLOCK] = scaler.transform(features[start : start + BLOCK])
    return features


def _check_arrays(features: Any, labels: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return features (rows, columns) and labels (rows,) as arrays, or say what is wrong with them."""
    x, y = _as_array("features", features), _as_array("labels", labels)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"features must have the shape (rows, columns), got {x.shape}")
    if y.ndim != 1:
        raise ValueError(f"labels must have the shape (rows,), got {y.shape}")
    if len(x) != len(y):
        raise ValueError(f"features and labels must have the same number of rows, got {len(x)} and {len(y)}")
    if len(x) == 0:
        raise ValueError("features must have at least one row, got none")
    if x.dtype.kind not in "fiub":
        raise ValueError(f"features must be numbers, got the dtype {x.dtype}")
    largest = np.finfo(np.float32).max
    if not -largest <= x.min() <= x.max() <= largest:  # nan is not
        row, column = np.argwhere(~(np.abs(x) <= largest))[0]
        raise ValueError(f"features must be finite as float32, got {x[row, column]} in row {row}, column {column}")
    if y.dtype.kind not in "fiub" or not np.array_equal(y, np.trunc(y)):
        raise ValueError(f"labels must be integers 0 … C-1, got {_some(y)}")
    classes = np.unique(y)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(f"labels must be integers 0 … C-1 without a gap, got {_some(classes)}")
    if len(classes) < 2:
        raise ValueError("labels must be of at least 2 classes, got only 0")
    return x, y.astype(np.int64, copy=False)


def _as_array(name: str, values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers, got rows of different lengths") from error


def _some(values: NDArray[Any]) -> str:
    shown = ", ".join(repr(value.item()) for value in values[:5])
    return f"{shown}, …" if len(values) > 5 else shown
