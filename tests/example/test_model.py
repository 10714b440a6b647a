import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lit_cosine import Cosine, LitClassifier, Restarts, SimpleNN, SyntheticDataModule, TabularDataModule


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def trainer(path, **arguments):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 2, "default_root_dir": path, **quiet, **arguments})


def small_data(**arguments):
    return SyntheticDataModule(n_samples=100, batch_size=20, **arguments)


def test_simple_nn_is_the_articles():
    network = SimpleNN()
    assert [tuple(p.shape) for p in network.parameters()] == [(64, 20), (64,), (2, 64), (2,)]
    x = torch.randn(4, 20)
    by_hand = torch.clamp(x @ network.fc1.weight.T + network.fc1.bias, min=0) @ network.fc2.weight.T + network.fc2.bias
    torch.testing.assert_close(network(x), by_hand)
    assert isinstance(network.relu, nn.ReLU)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)])
def test_sizes_are_integers_from_1(size, error):
    with pytest.raises(error, match=f"SimpleNN.hidden must be an integer >= 1, got {size}"):
        SimpleNN(hidden=size)


class LRs(LitClassifier):
    """Writes down the LR that each update is about to use."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.used = []

    def on_before_optimizer_step(self, optimizer):
        self.used.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(("interval", "every"), [("epoch", 4), ("step", 1)])
def test_the_lr_is_cosine_annealing_lrs(tmp_path, interval, every):
    model = LRs(interval=interval)
    trainer(tmp_path, max_epochs=5).fit(model, small_data())
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    beside = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20 // every)
    expected = []
    for _ in range(20 // every):
        expected += [optimizer.param_groups[0]["lr"]] * every
        optimizer.step()
        beside.step()
    assert model.used == pytest.approx(expected, rel=0, abs=1e-12)


def test_losses_and_accuracies_are_those_of_the_rows(tmp_path):
    data, model = small_data(), LitClassifier()
    run = trainer(tmp_path)
    run.fit(model, data)
    logged = dict(run.callback_metrics)
    (tested,) = run.test(model, data, verbose=False)
    x, y = data.val_dataloader().dataset.tensors
    with torch.no_grad():
        logits = model(x)
    assert logged["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert logged["val/accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    x, y = data.test_dataloader().dataset.tensors
    with torch.no_grad():
        logits = model(x)
    assert tested["test/accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert tested["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert {"train/loss", "train/accuracy"} <= logged.keys()
    predicted = torch.cat(run.predict(model, data))
    torch.testing.assert_close(predicted, logits.softmax(1))


def test_the_train_loss_of_an_epoch_is_the_mean_over_its_rows(tmp_path):
    losses = []

    class Losses(LitClassifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item() * len(batch[1]))
            return loss

    run = trainer(tmp_path, max_epochs=1)
    run.fit(Losses(), SyntheticDataModule(n_samples=100, batch_size=30))
    assert run.callback_metrics["train/loss"] == pytest.approx(sum(losses) / 80, rel=1e-6)


def weights(path, seed):
    seed_everything(seed, verbose=False)
    model = LitClassifier()
    run = trainer(path)
    run.fit(model, small_data())
    return run.callback_metrics["train/loss"], torch.cat([p.flatten() for p in model.parameters()])


def test_same_seed_same_run_another_seed_another(tmp_path):
    (loss, one), (same_loss, same), (other_loss, other) = (
        weights(tmp_path / str(i), s) for i, s in enumerate((1, 1, 2))
    )
    assert torch.equal(one, same)
    assert loss == same_loss
    assert not torch.equal(one, other)
    assert loss != other_loss


def test_learns_the_articles_data(tmp_path):
    seed_everything(42, verbose=False)
    model, data = LitClassifier(), SyntheticDataModule()
    run = trainer(tmp_path, max_epochs=10)
    run.fit(model, data)
    assert run.test(model, data, verbose=False)[0]["test/accuracy"] >= 0.85


FRESH = """
import sys, torch
from lit_cosine import LitClassifier
model = LitClassifier.load_from_checkpoint(sys.argv[1], weights_only=True)
from lit_cosine import SyntheticDataModule
x, y = SyntheticDataModule(n_samples=100, n_features=7, n_informative=5, n_classes=3).test_dataloader().dataset.tensors
print(repr((model(x).argmax(1) == y).float().mean().item()), model.network.fc1, model.schedule, model.warmup)
"""


def test_a_checkpoint_loads_in_a_process_that_never_saw_the_package(tmp_path):
    data = small_data(n_features=7, n_informative=5, n_classes=3)
    model = LitClassifier(
        SimpleNN(7, 11, 3), schedule=Restarts(Cosine(end=0.1), cycles=2), interval="step", warmup="10%"
    )
    run = trainer(tmp_path)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    (tested,) = run.test(model, data, verbose=False)
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, tmp_path / "model.ckpt"], capture_output=True, text=True, check=True, timeout=120
    )
    accuracy, rest = fresh.stdout.split(" ", 1)
    assert float(accuracy) == tested["test/accuracy"]
    assert rest.strip() == f"{model.network.fc1} {model.schedule} 10%"


class Deep(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Linear(20, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 2))


def test_any_network_takes_simple_nns_place(tmp_path):
    run = trainer(tmp_path)
    model = LitClassifier(Deep(5), lr=0.1)
    run.fit(model, small_data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"network must be passed: .* a 'tests.example.test_model.Deep', .*network=…"):
        LitClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "model.ckpt", network=Deep(5), weights_only=True)
    assert loaded.lr == 0.1
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_asking_the_network_for_its_width_leaves_it_as_it_was(tmp_path):
    network = Deep(5)
    network[1].eval()  # frozen statistics
    model = LitClassifier(network)
    model.trainer = run = trainer(tmp_path)
    run.datamodule = small_data()
    before = torch.get_rng_state()
    model.setup("fit")
    assert [module.training for module in network.modules()] == [True, True, False, True, True]
    assert torch.equal(network[1].running_mean, torch.zeros(5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SimpleNN(classes=3), r"network must map \(batch, 20\) to \(batch, 2\), .* it maps \(2, 20\) to \(2, 3\)"),
        (SimpleNN(in_features=7), r"network must take features of the shape \(batch, 20\): mat1 and mat2 shapes"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused_before_training(tmp_path, network, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(LitClassifier(network), small_data())


def test_without_a_datamodule_any_loader_trains(tmp_path):
    data = TabularDataModule("iris")
    trainer(tmp_path).fit(LitClassifier(SimpleNN(4, 8, 3)), data.train_dataloader(), data.val_dataloader())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be finite and > 0, got 0.0"),
        ({"lr": -0.1}, ValueError, "lr must be finite and > 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be finite and > 0, got nan"),
        ({"lr": float("inf")}, ValueError, "lr must be finite and > 0, got inf"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"network": 3}, TypeError, "network must be a torch.nn.Module, got 3"),
        ({"schedule": Cosine}, TypeError, "schedule must be a schedule, got the class Cosine"),
        ({"interval": "batch"}, ValueError, "interval must be one of epoch, step, got 'batch'"),
        ({"warmup": 5}, TypeError, "warmup must name its unit"),
        ({"on_resize": "stop"}, ValueError, "on_resize must be one of"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LitClassifier(**arguments)


def unsaved(path, **arguments):
    return trainer(path, enable_checkpointing=False, **arguments)


def test_metrics_are_those_of_logging_at_every_step(tmp_path):
    class Logs(LitClassifier):
        """The same step written as Lightning's documentation does."""

        def __init__(self):
            super().__init__()
            self.accuracies = nn.ModuleList([MulticlassAccuracy(num_classes=2, average="micro") for _ in range(2)])

        def on_train_epoch_end(self):
            pass

        def on_validation_epoch_end(self):
            pass

        def _step(self, batch, means):
            part = means.prefix.rstrip("/")
            features, labels = batch
            logits = self(features)
            loss = nn.functional.cross_entropy(logits, labels)
            accuracy = self.accuracies[part == "val"]
            accuracy(logits, labels)
            measured = {f"{part}/loss": loss, f"{part}/accuracy": accuracy}
            self.log_dict(measured, on_step=False, on_epoch=True, batch_size=len(labels))
            return loss

    seen = []
    for cls in (Logs, LitClassifier):
        seed_everything(3, verbose=False)
        logger = CSVLogger(tmp_path, version=cls.__name__)
        run = unsaved(tmp_path, max_epochs=3, logger=logger, log_every_n_steps=1)
        run.fit(cls(), SyntheticDataModule(n_samples=200, batch_size=30))
        with (tmp_path / "lightning_logs" / cls.__name__ / "metrics.csv").open(newline="") as file:
            seen.append(list(csv.DictReader(file)))
    assert len(seen[0]) == len(seen[1]) == 6  # training and validation of 3 epochs
    for theirs, ours in zip(*seen, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if value and "loss" in name:  # to the rounding of a sum
                assert float(ours[name]) == pytest.approx(float(value), rel=1e-6)
            else:
                assert ours[name] == value


class Breaks(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("broken off")


@pytest.mark.parametrize("way", ["skip", "max_steps"])
def test_an_epoch_that_ends_early_has_the_means_of_its_rows(tmp_path, way):
    class Losses(LitClassifier):
        losses = ()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.losses = [*(self.losses if batch_idx else ()), loss.item()]
            return loss

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if way == "skip" and self.current_epoch == 1 and batch_idx == 2 else None

    model = Losses()
    arguments = {"max_steps": 6, "max_epochs": -1} if way == "max_steps" else {"max_epochs": 2}
    run = unsaved(tmp_path, limit_val_batches=0, **arguments)
    run.fit(model, small_data())
    assert len(model.losses) == 2
    assert run.callback_metrics["train/loss"].item() == pytest.approx(sum(model.losses) / 2, rel=1e-6)


def test_after_a_run_that_broke_off_the_next_measures_its_own_rows_alone(tmp_path):
    model = LitClassifier()
    with pytest.raises(RuntimeError, match="broken off"):
        unsaved(tmp_path, callbacks=[Breaks()]).fit(model, small_data())
    run = unsaved(tmp_path, max_epochs=1)
    run.fit(model, small_data())
    assert {"train/loss", "train/accuracy", "val/loss"} <= run.callback_metrics.keys()


def test_mean_scale_and_classes_travel_with_the_model(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 4))
    raw, labels = x * [1e3, 1.0, 1e-3, 5.0] + [5e4, 0.0, 1.0, -9.0], np.where(x[:, 0] > 0, "yes", "no")
    data = TabularDataModule((raw, labels), standardize=True, batch_size=16)
    model = LitClassifier(SimpleNN(4, 8, 2), lr=0.05, interval="step")
    run = trainer(tmp_path, max_epochs=10)
    run.fit(model, data)
    (measured,) = run.test(model, data, verbose=False)
    predicted = torch.cat(run.predict(model, data))
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LitClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.classes == ("no", "yes")
    train, held_out = train_test_split(np.arange(200), test_size=0.2, random_state=42)
    np.testing.assert_allclose(loaded.scaling[0], raw[train].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(loaded.scaling[1], raw[train].std(axis=0), rtol=1e-12)
    rows, y = torch.tensor(raw[held_out[20:]]), torch.tensor(x[held_out[20:], 0] > 0).long()
    assert (loaded(rows).argmax(1) == y).float().mean().item() == measured["test/accuracy"]
    # rows of a loader of one's own, with and without labels, in the same Trainer and in another
    for loader in (DataLoader(rows, 7), DataLoader(TensorDataset(rows, y), 7)):
        torch.testing.assert_close(torch.cat(run.predict(loaded, loader)), predicted)
    (again,) = trainer(tmp_path).test(loaded, DataLoader(TensorDataset(rows, y), 7), verbose=False)
    assert again["test/accuracy"] == measured["test/accuracy"]
    with pytest.raises(ValueError, match=r"standardized by another mean and scale .*standardize=False"):
        run.test(loaded, TabularDataModule((raw + 1e5, labels), standardize=True, batch_size=16))
    (shifted,) = run.test(loaded, TabularDataModule((raw, labels), batch_size=16), verbose=False)
    assert shifted["test/accuracy"] == measured["test/accuracy"]
