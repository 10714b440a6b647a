import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split

from lit_cosine import SyntheticDataModule, TabularDataModule


def rows(loader):
    features, labels = zip(*loader, strict=True)
    return torch.cat(features), torch.cat(labels)


def parts(data):
    return data.train_dataloader().dataset, data.val_dataloader().dataset, data.test_dataloader().dataset


def test_the_training_rows_are_the_articles_bit_for_bit():
    x, y = make_classification(n_samples=1000, n_features=20, n_classes=2, random_state=42)
    x_train, x_rest, y_train, y_rest = train_test_split(x, y, test_size=0.2, random_state=42)
    train, val, test = parts(SyntheticDataModule())
    assert torch.equal(train.tensors[0], torch.tensor(x_train, dtype=torch.float32))
    assert torch.equal(train.tensors[1], torch.tensor(y_train, dtype=torch.long))
    assert torch.equal(torch.cat([val.tensors[0], test.tensors[0]]), torch.tensor(x_rest, dtype=torch.float32))
    assert torch.equal(torch.cat([val.tensors[1], test.tensors[1]]), torch.tensor(y_rest, dtype=torch.long))
    assert (len(val), len(test)) == (100, 100)


def test_loaders_serve_each_row_once_and_shuffle_training_alone():
    data = SyntheticDataModule(batch_size=96)
    train = data.train_dataloader()
    assert [len(labels) for _, labels in train] == [96] * 8 + [32]
    first, second = rows(train), rows(train)
    assert not torch.equal(first[0], second[0])  # anew each epoch
    for features, _ in (first, second):
        assert torch.equal(features.sort(dim=0).values, train.dataset.tensors[0].sort(dim=0).values)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert torch.equal(rows(loader)[0], loader.dataset.tensors[0])
        assert torch.equal(rows(loader)[1], loader.dataset.tensors[1])
    assert torch.equal(torch.cat(list(data.predict_dataloader())), rows(data.test_dataloader())[0])


def test_shuffling_is_owned_by_the_modules_seed():
    def order(seed):
        return rows(SyntheticDataModule(seed=seed).train_dataloader())[0]

    torch.manual_seed(1)
    one = order(7)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    two = order(7)
    assert torch.equal(one, two)
    assert not torch.equal(one, order(8))
    torch.manual_seed(1)
    for loader in (SyntheticDataModule().val_dataloader(), SyntheticDataModule().predict_dataloader()):
        list(loader)
    assert torch.equal(before, torch.get_rng_state())  # nothing was drawn from the global generator


def test_a_batch_is_fetched_at_once_from_tensors_held_once():
    train, val, test = parts(SyntheticDataModule())
    features, labels = train.__getitems__([5, 3])
    assert torch.equal(features[0], train[5][0])
    assert torch.equal(labels, torch.stack([train[5][1], train[3][1]]))
    storages = {part.tensors[0].untyped_storage().data_ptr() for part in (train, val, test)}
    assert len(storages) == 1


def test_standardize_measures_the_training_part_alone():
    x, y = load_digits(return_X_y=True)
    x_train, x_rest, _, _ = train_test_split(x, y, test_size=0.2, random_state=42)
    mean, std = x_train.mean(axis=0), x_train.std(axis=0)
    std[std == 0] = 1  # pixels that are always black stay 0
    train, val, _ = parts(TabularDataModule("digits", standardize=True))
    np.testing.assert_allclose(train.tensors[0], (x_train - mean) / std, atol=1e-5)
    np.testing.assert_allclose(val.tensors[0], ((x_rest - mean) / std)[: len(val)], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "features", "classes", "total"),
    [("digits", 64, 10, 1797), ("breast_cancer", 30, 2, 569), ("wine", 13, 3, 178), ("iris", 4, 3, 150)],
)
def test_shipped_data_sets(name, features, classes, total):
    data = TabularDataModule(name)
    assert (data.num_features, data.num_classes) == (features, classes)
    assert sum(len(part) for part in parts(data)) == total


def bfloat16(values):
    return torch.tensor(values, dtype=torch.bfloat16)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, list, bfloat16])
def test_any_arrays(convert):
    x = [[float(i), 1.0] for i in range(10)]
    data = TabularDataModule((convert(x), convert([0, 1] * 5)), batch_size=8)
    features, labels = rows(data.train_dataloader())
    assert features.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(features[:, 0] % 2, labels.float())  # rows and labels still belong together


def test_every_argument_of_make_classification_reaches_it():
    arguments = {
        "n_samples": 60, "n_features": 9, "n_informative": 4, "n_redundant": 1, "n_repeated": 2, "n_classes": 3,
        "n_clusters_per_class": 1, "weights": [0.5, 0.3, 0.2], "flip_y": 0.2, "class_sep": 2.0, "hypercube": False,
        "shift": None, "scale": [2.0] * 9, "shuffle": False, "random_state": 3,
    }  # fmt: skip
    ours, theirs = SyntheticDataModule(**arguments).arrays(), make_classification(**arguments)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(got, expected)
    plain = SyntheticDataModule(n_samples=60, n_features=9, n_informative=4, n_classes=3).arrays()
    assert not np.array_equal(plain[0], ours[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnist"}, "dataset must be one of breast_cancer, digits, iris, wine, got 'mnist'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"test_size": 0.0}, r"test_size must be a fraction in \(0, 1\), got 0.0"),
        ({"test_size": 1.0}, r"test_size must be a fraction in \(0, 1\), got 1.0"),
        ({"test_size": float("nan")}, r"test_size must be a fraction in \(0, 1\), got nan"),
        ({"num_workers": -1}, "num_workers must be an integer >= 0, got -1"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"split_seed": 2**32}, "split_seed must be an integer from 0 to 4294967295, got 4294967296"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabularDataModule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"n_classes": 8},
            r"got 8 \* 2 = 16 > 2\*\*2 = 4: n_informative must be at least 4",
        ),
        ({"n_features": 3}, r"n_features must be at least .*, got 3 < 2 \+ 2 \+ 0 = 4"),
        ({"n_classes": 1}, "n_classes must be an integer >= 2, got 1"),
        ({"flip_y": 1.5}, r"flip_y must be a fraction in \[0, 1\], got 1.5"),
        ({"weights": [1.0, 1.0, 1.0]}, "weights must be 2 numbers, one for each class, got 3"),
        ({"weights": [1.5, -0.5]}, r"weights must be shares of the rows, .*, got \[1.5, -0.5\]"),
        ({"weights": [0.9, 0.2]}, r"weights must be shares of the rows, .*, got \[0.9, 0.2\]"),
        ({"class_sep": 0.0}, "class_sep must be finite and > 0, got 0.0"),
        ({"class_sep": float("inf")}, "class_sep must be finite and > 0, got inf"),
        ({"shift": float("nan")}, "shift must be finite, got nan"),
        ({"scale": [1.0]}, "scale must be one number or 20, one for each feature, got 1"),
        ({"shift": np.zeros(3)}, "shift must be one number or 20, one for each feature, got 3"),
        ({"random_state": 2**32}, "random_state must be an integer from 0 to 4294967295, got 4294967296"),
        ({"n_samples": 3}, "n_samples must be an integer >= 4, got 3"),
    ],
)
def test_synthetic_arguments_that_clash_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticDataModule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"standardize": "no"}, "standardize must be True or False, got 'no'"),
        ({"shuffle": 1}, "shuffle must be True or False, got 1"),
        ({"flip_y": "0.1"}, "flip_y must be a number, got '0.1'"),
        ({"class_sep": None}, "class_sep must be a number, got None"),
        ({"weights": 0.5}, "weights must be a list of numbers, got 0.5"),
        ({"weights": ["a", 0.5]}, "weights must be numbers, got 'a'"),
        ({"shift": "x"}, "shift must be a number, got 'x'"),
        ({"batch_size": 8.0}, r"batch_size must be an integer >= 1, got 8\.0"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_at_once(arguments, message):
    with pytest.raises(TypeError, match=message):
        SyntheticDataModule(**arguments)


X, Y = np.zeros((10, 2)), np.arange(10) % 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:9], Y, "the same number of rows, got 9 and 10"),
        (X[:, 0], Y, r"features must have the shape \(rows, columns\), got \(10,\)"),
        (X, np.stack([Y, Y], 1), r"labels must have the shape \(rows,\), got \(10, 2\)"),
        (
            np.where(np.arange(20).reshape(10, 2) == 5, np.nan, X),
            Y,
            "must be finite as float32, got nan in row 2, column 1",
        ),
        (
            np.where(np.arange(20).reshape(10, 2) == 4, np.inf, X),
            Y,
            "must be finite as float32, got inf in row 2, column 0",
        ),
        (X - 1e39, Y, r"must be finite as float32, got -1e\+39 in row 0, column 0"),
        (X, Y + 1, r"labels must be integers 0 … C-1 without a gap, got 1, 2"),
        (X, Y * 2, r"labels must be integers 0 … C-1 without a gap, got 0, 2"),
        (X, Y - 1, r"labels must be integers 0 … C-1 without a gap, got -1, 0"),
        (X, Y + 0.5, r"labels must be integers 0 … C-1, got 0.5, 1.5"),
        (X, np.array(["a", "b"] * 5), r"labels must be integers 0 … C-1, got 'a', 'b'"),
        (X, Y * 0, "at least 2 classes, got only 0"),
        (X.astype(str), Y, "features must be numbers, got the dtype"),
        ([[1.0], [1.0, 2.0]] * 5, Y, "features must be an array of numbers, got rows of different lengths"),
    ],
)
def test_data_that_cannot_be_used_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        TabularDataModule((x, y), batch_size=2).setup()


def test_parts_that_would_be_empty_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at most the 8 rows of the training part, got 9"):
        TabularDataModule((X, Y), batch_size=9).setup()
    with pytest.raises(ValueError, match=r"test_size must hold out at least 2 of the 10 rows.*, got 0.05"):
        TabularDataModule((X, Y), batch_size=2, test_size=0.05).setup()
    with pytest.raises(ValueError, match=r"leave some to train on, got 0.95"):
        TabularDataModule((X, Y), batch_size=1, test_size=0.95).setup()


def test_a_dataset_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"dataset must be \(features, labels\) or one of .*, got ndarray"):
        TabularDataModule(X)
    with pytest.raises(TypeError, match="got tuple of 3"):
        TabularDataModule((X, Y, Y))


def test_a_batch_moves_only_where_it_is_not():
    data = SyntheticDataModule()
    cpu, meta = torch.zeros(2, 20), torch.zeros(2, 20, device="meta")
    batch = (cpu, cpu)
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device((cpu, meta), torch.device("meta"), 0)
    assert [part.device.type for part in moved] == ["meta", "meta"]
    (moved,) = data.transfer_batch_to_device([cpu], torch.device("meta"), 0)
    assert moved.device.type == "meta"
