"""Tabular data for classification: features and labels, held as tensors and split into three parts.

Conventions: features are float32 (rows, columns), labels int64 0 … C-1. The first half of the held-out rows is for
validation and the second for the test, so that a model chosen on validation is tested on other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lit_cosine._checks import as_flag, as_integer, as_number, check_choice, in_one_line, shown
from lit_cosine.checkpoint import EpochSampler, SafeLoading

__all__ = ["SyntheticDataModule", "TabularDataModule"]

DATASETS = ("breast_cancer", "digits", "iris", "wine")  # scikit-learn contains them: nothing is downloaded
_MOST_VALUES = 1_000_000_000  # 8 GB


class TabularDataModule(SafeLoading, LightningDataModule):  # type: ignore[misc]
    """Features and labels for classification, as loaders for training, validation, test and prediction.

    Args:
        dataset: ``(features, labels)`` of the shapes (rows, columns) and (rows,): arrays, tensors, nested lists or
            pandas objects. Features are numbers; labels are integers 0 … C-1, or text, which is numbered in sorted
            order. Or the name of a data set in scikit-learn: breast_cancer, digits, iris or wine.
        batch_size: Rows per batch, from 1 to the length of the training part.
        test_size: Fraction of the rows that is held out, in (0, 1); half of it is for validation, half for the test.
        standardize: Whether to scale every feature to mean 0 and variance 1, measured on the training part only.
            ``LitClassifier`` saves both in its checkpoints and applies them to raw rows.
        split_seed: Seed of the split into training, validation and test rows, >= 0.
        seed: Seed of the order of the training rows, which is another one in each epoch, >= 0.
        num_workers: Processes that load batches, >= 0. For data in memory 0 is the fastest.

    Attributes:
        num_features, num_classes: Number of feature columns, and of classes C.
        classes: The labels as they were given; the tensors hold ``classes[k]`` as k.
        scaling: Mean and scale of every feature, both float64 (columns,); None without ``standardize``.

    Raises:
        TypeError: If an argument has the wrong type, or the data is sparse.
        ValueError: If an argument is out of range, or the data cannot be used.

    >>> data = TabularDataModule("iris", batch_size=30)
    >>> data.num_features, data.num_classes
    (4, 3)
    """

    def __init__(
        self, dataset: str | tuple[Any, Any] = "digits", batch_size: int = 64, test_size: float = 0.2,
        standardize: bool = False, split_seed: int = 42, seed: int = 42, num_workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dataset = dataset
        self.batch_size = as_integer("batch_size", batch_size, least=1)
        self.test_size = as_number("test_size", test_size)
        if not 0.0 < self.test_size < 1.0:
            raise ValueError(f"test_size must be a fraction in (0, 1), got {shown(test_size)}")
        self.standardize = as_flag("standardize", standardize)
        self.split_seed = as_integer("split_seed", split_seed, least=0, most=2**32 - 1)  # the range of RandomState
        self.seed = as_integer("seed", seed, least=0)
        self.num_workers = as_integer("num_workers", num_workers, least=0)
        if isinstance(dataset, str):
            check_choice("dataset", dataset, DATASETS)
            dataset = getattr(datasets, f"load_{dataset}")(return_X_y=True)
        elif not (isinstance(dataset, (tuple, list)) and len(dataset) == 2):
            got = f"{type(dataset).__name__} of {len(dataset)}" if hasattr(dataset, "__len__") else shown(dataset)
            raise TypeError(f"dataset must be (features, labels) or one of {', '.join(DATASETS)}, got {got}")
        x, (y, self.classes) = _as_features(dataset[0]), _as_labels(dataset[1])
        self.num_features, self.num_classes = x.shape[1], len(self.classes)
        self._parts, self.scaling = self._split(x, y)
        self.setup()

    def _split(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[dict[str, _Rows], tuple[Tensor, Tensor] | None]:
        """Return the rows of each part, and the mean and scale that they were standardized by."""
        if len(x) != len(y):
            raise ValueError(f"features and labels must have the same number of rows, got {len(x)} and {len(y)}")
        split = train_test_split(x, y, test_size=self.test_size, random_state=self.split_seed)
        x_train, x_rest, y_train, y_rest = split
        if len(x_rest) < 2:
            raise ValueError(f"test_size must hold out at least 2 of the {len(x)} rows, got {self.test_size}")
        if (rows := len(x_train)) < self.batch_size:
            raise ValueError(f"batch_size must be at most the {rows} rows of the training part, got {self.batch_size}")
        scaling = None
        if self.standardize:
            scaler = StandardScaler().fit(x_train)
            x_train, x_rest = scaler.transform(x_train), scaler.transform(x_rest)
            scaling = torch.tensor(scaler.mean_), torch.tensor(scaler.scale_)
        half = len(x_rest) // 2
        arrays = {"train": (x_train, y_train), "val": (x_rest[:half], y_rest[:half])}
        arrays["test"] = x_rest[half:], y_rest[half:]
        parts = {name: _Rows(torch.tensor(x).float(), torch.tensor(y)) for name, (x, y) in arrays.items()}
        return {**parts, "predict": _Rows(parts["test"].tensors[0])}, scaling

    @override
    def setup(self, stage: str | None = None) -> None:
        # a new run starts at its first row; a resumed one loads its state after this hook
        self._sampler = EpochSampler(self._parts["train"], self.batch_size, self.seed)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.trainer is None else self._sampler.state_dict(self.trainer)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state_dict)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train", self._sampler)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("predict")

    def _loader(self, part: str, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        generator = torch.Generator() if sampler is None else sampler.generator  # torch's default is the global one
        # _Rows fetches whole batches; collate_fn leaves them as they are
        return DataLoader(
            self._parts[part], batch_size=self.batch_size, sampler=sampler, generator=generator,
            collate_fn=tuple, num_workers=self.num_workers, persistent_workers=self.num_workers > 0,
        )  # fmt: skip


class SyntheticDataModule(TabularDataModule):
    """Data of ``sklearn.datasets.make_classification``, by default the article's 1000 rows.

    Args:
        n_samples: Number of rows.
        n_features: Number of columns.
        n_informative: Columns that decide the class.
        n_redundant: Columns that are linear combinations of those.
        n_repeated: Columns that are copies of others.
        n_classes: Number of classes.
        n_clusters_per_class: Clusters of each class; ``n_classes * n_clusters_per_class`` is at most 2**n_informative.
        weights: Share of each class; equal if None.
        flip_y: Fraction of labels that are drawn at random, in [0, 1].
        class_sep: Distance between the clusters, as a factor.
        hypercube: Whether the clusters are on the corners of a hypercube, or on those of a random polytope.
        shift: Added to each feature: a number, or one for each; random if None.
        scale: Factor of each feature: a number, or one for each; random if None.
        shuffle: Whether rows and columns are shuffled.
        random_state: Seed of the data.
        loading: Arguments of ``TabularDataModule``, without ``dataset``.

    Raises:
        TypeError, ValueError: As in ``TabularDataModule``; ``make_classification`` checks its own arguments.

    >>> len(SyntheticDataModule().train_dataloader().dataset)
    800
    """

    def __init__(
        self, n_samples: int = 1000, n_features: int = 20, n_informative: int = 2, n_redundant: int = 2,
        n_repeated: int = 0, n_classes: int = 2, n_clusters_per_class: int = 2, weights: list[float] | None = None,
        flip_y: float = 0.01, class_sep: float = 1.0, hypercube: bool = True, shift: float | list[float] | None = 0.0,
        scale: float | list[float] | None = 1.0, shuffle: bool = True, random_state: int = 42, **loading: Any,
    ) -> None:  # fmt: skip
        if isinstance(n_samples, int) and isinstance(n_features, int):
            as_integer("n_samples * n_features", max(n_samples * n_features, 0), least=0, most=_MOST_VALUES)
        try:
            dataset = datasets.make_classification(
                n_samples, n_features, n_informative=n_informative, n_redundant=n_redundant, n_repeated=n_repeated,
                n_classes=n_classes, n_clusters_per_class=n_clusters_per_class, class_sep=class_sep, flip_y=flip_y,
                weights=_listed("weights", weights, 0, 1), shift=_listed("shift", shift, -1e30, 1e30),
                scale=_listed("scale", scale, 0, 1e30), hypercube=hypercube, shuffle=shuffle, random_state=random_state,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            # scikit-learn's InvalidParameterError is both; the message names the parameter, the rule and the value
            raise type(error)(in_one_line(str(error), 280)) from error
        super().__init__(dataset, **loading)


class _Rows(TensorDataset):
    """A TensorDataset whose ``__getitems__``, which DataLoader prefers, fetches a whole batch at once."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)


def _listed(name: str, value: Any, low: float, high: float) -> Any:
    """Return a tuple or an array as a list, else ``value``; refuse what scikit-learn refuses without its name."""
    value = [*value] if isinstance(value, tuple | np.ndarray) else value
    numbers = value if isinstance(value, list) else [0 if value is None else value]
    if not all(isinstance(number, int | float | np.number) and low <= number <= high for number in numbers):
        raise ValueError(f"{name} must be a number or a list of numbers from {low} to {high}, got {shown(value)}")
    return value


def _as_features(features: Any) -> NDArray[Any]:
    """Return features (rows, columns) as numbers, or say what is wrong with them."""
    array = _as_array("features", features)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features must have the shape (rows, columns) with at least one of each, got {array.shape}")
    names = getattr(features, "columns", range(array.shape[1]))  # a pandas DataFrame has names
    x = _as_numbers("features", array, names)
    wrong = np.argwhere(~(np.abs(x) <= np.finfo(np.float32).max))  # nan fails the comparison too
    if len(wrong):
        i, j = wrong[0]
        raise ValueError(f"features must be finite as float32, got {x[i, j]} in row {i}, column {shown(names[j])}")
    return x


def _as_labels(labels: Any) -> tuple[NDArray[np.int64], tuple[int | str, ...]]:
    """Return labels (rows,) as 0 … C-1 and what they stand for, or say what is wrong with them."""
    y = _as_array("labels", labels)
    if y.ndim != 1:
        raise ValueError(f"labels must have the shape (rows,), got {y.shape}")
    text = len(y) > 0 and all(isinstance(label, str) for label in y.tolist())
    names, numbers = np.unique(y.astype(str) if text else _as_numbers("labels", y), return_inverse=True)
    if not text and not np.array_equal(names, np.arange(len(names))):
        raise ValueError(f"labels must be text or integers 0 … C-1 without a gap, got {shown(names.tolist())}")
    if len(names) < 2:
        raise ValueError(f"labels must be of at least 2 classes, got only {shown(names.tolist())}")
    return numbers, tuple(names.tolist() if text else range(len(names)))


def _as_array(name: str, values: Any) -> NDArray[Any]:
    """Return ``values`` as an array, or refuse a sparse, masked or ragged one."""
    if hasattr(values, "toarray") or getattr(values, "layout", torch.strided) is not torch.strided:
        raise TypeError(f"{name} must be dense, got a sparse {type(values).__name__}: convert it first")
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()  # numpy has no bfloat16
    try:
        array = np.ma.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers, got rows of different lengths") from error
    if np.ma.is_masked(array):
        place = np.argwhere(np.ma.getmaskarray(array))[0].tolist()
        raise ValueError(f"{name} must have no masked entries, got one at {place}")
    return np.asarray(array)


def _as_numbers(name: str, array: NDArray[Any], columns: Sequence[Any] = ()) -> NDArray[Any]:
    """Return ``array`` as numbers; mixed and nullable columns arrive as objects, of which each must be a number."""
    if array.dtype.kind in "fiub":
        return array
    if array.dtype.kind in "mM":  # as objects, some of them would be integers
        raise ValueError(f"{name} must be numbers, got the type {in_one_line(str(array.dtype), 80)}")
    array = array.astype(object)  # of text, str and not numpy.str_
    wrong = ~np.frompyfunc(lambda value: isinstance(value, Real), 1, 1)(array).astype(bool)
    if wrong.any():
        row, *column = place = tuple(np.argwhere(wrong)[0])
        where = f"row {row}" + (f", column {shown(columns[column[0]])}" if column else "")
        remedy = "fill in missing values, and encode text first, for example with pandas.get_dummies"
        raise ValueError(f"{name} must be numbers, got {shown(array[place])} in {where}: {remedy}")
    return array.astype(np.float64)
