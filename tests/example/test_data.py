import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
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
    predicted = torch.cat([features for (features,) in data.predict_dataloader()])
    assert torch.equal(predicted, rows(data.test_dataloader())[0])


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


def test_a_batch_is_fetched_at_once():
    train = SyntheticDataModule().train_dataloader().dataset
    features, labels = train.__getitems__([5, 3])
    assert torch.equal(features[0], train[5][0])
    assert torch.equal(labels, torch.stack([train[5][1], train[3][1]]))


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
    ours, theirs = SyntheticDataModule(batch_size=8, **arguments).dataset, make_classification(**arguments)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(got, expected)
    plain = SyntheticDataModule(n_samples=60, n_features=9, n_informative=4, n_classes=3, batch_size=8).dataset
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
        ({"n_classes": 8}, r"n_classes\(8\) \* n_clusters_per_class\(2\) must be smaller or equal 2\*\*n_informative"),
        ({"n_features": 3}, "must sum to less than the number of total features"),
        ({"n_samples": 0}, "The 'n_samples' parameter of make_classification must be an int .* Got 0 instead"),
        ({"n_samples": -5}, "The 'n_samples' parameter of make_classification must be an int .* Got -5 instead"),
        ({"flip_y": 1.5}, "The 'flip_y' parameter .* Got 1.5 instead"),
        ({"weights": [0.3, 0.3, 0.4]}, "Weights specified but incompatible with number of classes"),
        ({"class_sep": "far"}, "The 'class_sep' parameter .* Got 'far' instead"),
    ],
)
def test_errors_of_make_classification_are_passed_on_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SyntheticDataModule(**arguments).setup()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"standardize": "no"}, "standardize must be True or False, got 'no'"),
        ({"batch_size": 8.0}, r"batch_size must be an integer >= 1, got 8\.0"),
        ({"test_size": "half"}, "test_size must be a number, got 'half'"),
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
        (X[:, 0], Y, r"features must have the shape \(rows, columns\) .*, got \(10,\)"),
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
        (X, Y + 1, r"labels must be text or integers 0 … C-1 without a gap, got \[1, 2\]"),
        (X, Y * 2, r"labels must be text or integers 0 … C-1 without a gap, got \[0, 2\]"),
        (X, Y - 1, r"labels must be text or integers 0 … C-1 without a gap, got \[-1, 0\]"),
        (X, Y + 0.5, r"labels must be text or integers 0 … C-1 without a gap, got \[0.5, 1.5\]"),
        (X, np.array(["a", 1] * 5, dtype=object), "labels must be numbers, got 'a' in row 0: fill in missing values"),
        (X, np.array(["a", None] * 5, dtype=object), "labels must be numbers, got 'a' in row 0"),
        (np.ma.masked_equal(X + np.eye(10, 2), 1.0), Y, r"features must have no masked entries, got one at \[0, 0\]"),
        (X, np.ma.masked_equal(Y, 1), r"labels must have no masked entries, got one at \[1\]"),
        (X[:0], Y[:0], r"features must have the shape \(rows, columns\) with at least one of each, got \(0, 2\)"),
        (X, Y * 0, r"at least 2 classes, got only \[0\]"),
        (X.astype(str), Y, "features must be numbers, got '0.0' in row 0, column 0"),
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
    with pytest.raises(ValueError, match=r"test_size=0.95 .*the resulting train set will be empty"):
        TabularDataModule((X, Y), batch_size=1, test_size=0.95).setup()


def test_a_dataset_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"dataset must be \(features, labels\) or one of .*, got ndarray"):
        TabularDataModule(X)
    with pytest.raises(TypeError, match="got tuple of 3"):
        TabularDataModule((X, Y, Y))


def test_text_labels_are_numbered_in_sorted_order_and_kept():
    for labels in (np.array(["n", "y"] * 50), np.array(["n", "y"] * 50, dtype=object), ["n", "y"] * 50):
        data = TabularDataModule((np.arange(100.0).reshape(100, 1), labels), batch_size=8)
        features, numbers = rows(data.train_dataloader())
        assert data.classes == ("n", "y")
        assert torch.equal(features[:, 0] % 2, numbers.float())


def test_sparse_data_is_refused():
    with pytest.raises(TypeError, match="features must be dense, got a sparse csr_array"):
        TabularDataModule((csr_array(X), Y), batch_size=2).setup()
    with pytest.raises(TypeError, match="features must be dense, got a sparse Tensor"):
        TabularDataModule((torch.tensor(X).to_sparse(), Y), batch_size=2).setup()


def test_frames_with_mixed_and_nullable_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "age": pandas.array([*range(9), 9], dtype="Int64"),
            "member": [True, False] * 5,
            "height": np.linspace(1.5, 1.95, 10),
            "grade": pandas.Categorical([1, 2] * 5),
        }
    )
    data = TabularDataModule((frame, pandas.Series(["no", "yes"] * 5, dtype="category")), batch_size=2)
    assert (data.num_features, data.classes) == (4, ("no", "yes"))
    features, labels = rows(data.train_dataloader())
    assert torch.equal(features[:, 0] % 2, labels.float())
    assert torch.equal(features[:, 1], 1 - labels.float())
    for column, value, message in (
        ("age", pandas.array([*range(9), None], dtype="Int64"), "got (<NA>|nan) in row 9, column 'age'"),
        ("city", pandas.Categorical(["Bern", "Wien"] * 5), "got 'Bern' in row 0, column 'city': .*get_dummies"),
        ("height", [1.5] * 9 + [np.nan], "must be finite as float32, got nan in row 9, column 'height'"),
        (
            "born",
            pandas.date_range("2000-01-01", periods=10),
            r"got Timestamp\('2000-01-01 00:00:00'\) in row 0, column 'born'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            TabularDataModule((frame.assign(**{column: value}), Y), batch_size=2).setup()
