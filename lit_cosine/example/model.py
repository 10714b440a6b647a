"""The article's network, and a LightningModule that trains any classifier under a schedule.

Convention: everything that goes into a checkpoint is tensors and plain data (numbers, strings, dicts), so that it loads
with ``weights_only=True``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_integer, as_number, check_choice, read_state, shown
from lit_cosine._compat import attached_datamodule, evaluating
from lit_cosine.checkpoint import SafeLoading
from lit_cosine.example.data import TabularDataModule
from lit_cosine.schedules import Cosine, Duration, OnResize, Schedule, check_on_resize, check_schedule, public_path
from lit_cosine.training import Interval, lr_scheduler_config

__all__ = ["LitClassifier", "SimpleNN", "check_network"]

_MOST_WEIGHTS = 100_000_000


class SimpleNN(nn.Module):
    """A perceptron with one hidden layer: fc2(relu(fc1(x))).

    Args:
        in_features: Number of features, >= 1.
        hidden: Width of the hidden layer, >= 1.
        classes: Number of classes, >= 1.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If it is < 1, or the network would be too large for memory.

    >>> SimpleNN(classes=3)(torch.zeros(5, 20)).shape
    torch.Size([5, 3])
    """

    def __init__(self, in_features: int = 20, hidden: int = 64, classes: int = 2) -> None:
        super().__init__()
        self.sizes = {"in_features": in_features, "hidden": hidden, "classes": classes}
        for name, size in self.sizes.items():
            as_integer(f"SimpleNN.{name}", size, least=1)
        if (weights := hidden * (in_features + classes)) > _MOST_WEIGHTS:
            raise ValueError(f"SimpleNN must have at most {_MOST_WEIGHTS:,} weights, got {shown(weights)}")
        self.fc1 = nn.Linear(in_features, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.fc2(self.relu(self.fc1(x))))


class LitClassifier(SafeLoading, LightningModule):
    """A classifier with cross-entropy, accuracy, Adam, and an LR that follows ``schedule`` to the end of the run.

    Logs ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy``, each
    the mean over the rows of an epoch. ``model(features)`` returns logits (batch, classes), ``predict_step`` class
    probabilities. For regression, see the module in the documentation: this class is for classification alone.

    Args:
        network: Any module that maps (batch, features) to logits (batch, classes); ``SimpleNN()`` if None.
        lr: Adam's LR, the peak LR of the schedule; finite and > 0.
        schedule: The curve of factors that the LR is multiplied by.
        interval: ``"epoch"`` to change the LR once an epoch, ``"step"`` once an optimizer step.
        warmup: Length of the run's first part, a duration such as ``"500step"``, ``"2ep"`` or ``"5%"``.
        on_resize: What a run does whose length changes: continue, rescale, keep or restart; see ``Clock.reanchor``.
        cooldown: Length of the run's last part, a duration too.

    Checkpoints hold a ``SimpleNN`` and the schedule as plain data, so ``load_from_checkpoint(path)`` rebuilds them. Any
    other network must be passed again: ``load_from_checkpoint(path, network=…)``. After training on a
    ``TabularDataModule(…, standardize=True)`` they also hold the mean and scale of every feature: ``model(features)``
    and loaders of your own then take raw rows. ``classes`` are the labels in the order of the logits.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; before training, if the network does not fit the data.

    >>> LitClassifier(SimpleNN(in_features=4, classes=3), lr=0.1)(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, network: nn.Module | None = None, lr: float = 0.01, schedule: Schedule = Cosine(),
        interval: Interval = "epoch", warmup: str | Duration = "0step", on_resize: OnResize = "continue",
        cooldown: str | Duration = "0step",
    ) -> None:  # fmt: skip
        super().__init__()
        # load_from_checkpoint passes the plain data that save_hyperparameters wrote below
        network = _network_from_plain(network) if isinstance(network, dict) else network
        schedule = Schedule.from_dict(schedule) if isinstance(schedule, dict) else schedule
        network = SimpleNN() if network is None else network
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {shown(network)}")
        check_schedule("schedule", schedule)
        check_choice("interval", interval, ("epoch", "step"))
        check_on_resize(on_resize)
        self.network, self.schedule = network, schedule
        self.lr = as_number("lr", lr, above=0.0)
        self.interval, self.on_resize = interval, on_resize
        self.warmup, self.cooldown = Duration.parse(warmup, "warmup"), Duration.parse(cooldown, "cooldown")
        plain: dict[str, Any] = {"class_path": public_path(type(network))}
        if type(network) is SimpleNN:  # of any other network the name alone is known
            plain["init_args"] = network.sizes
        self.save_hyperparameters(
            {"network": plain, "lr": self.lr, "schedule": schedule.to_dict(), "interval": interval,
             "warmup": str(self.warmup), "on_resize": on_resize, "cooldown": str(self.cooldown)}
        )  # fmt: skip
        # A self.log in every step takes longer than the step of a small network: means are logged once an epoch.
        self.train_means, self.val_means, self.test_means = _means("train"), _means("val"), _means("test")
        self.scaling: tuple[Tensor, Tensor] | None = None
        self.classes: tuple[int | str, ...] = ()
        self._raw_batches = True

    @override
    def setup(self, stage: str) -> None:
        for means in (self.train_means, self.val_means, self.test_means):
            means.reset()  # an earlier run may have ended within an epoch
        self._raw_batches = True
        data = attached_datamodule(self.trainer)
        if not isinstance(data, TabularDataModule):
            return  # nothing is known of the rows of other loaders
        check_network(self, data.num_features, data.num_classes)
        self.example_input_array = torch.zeros(1, data.num_features)  # for the graph in TensorBoard
        self.classes = data.classes if stage == "fit" else self.classes or data.classes
        if data.scaling is not None:
            if stage != "fit" and self.scaling and not all(map(torch.allclose, data.scaling, self.scaling)):
                remedy = "pass the raw rows (standardize=False), which the model standardizes itself"
                raise ValueError(f"the data is standardized by another mean and scale than in training: {remedy}")
            self.scaling, self._raw_batches = data.scaling, False

    @override
    def forward(self, x: Tensor) -> Tensor:
        if self.scaling is not None:
            mean, scale = (value.to(x.device) for value in self.scaling)
            x = ((x - mean) / scale).to(self.dtype)
        return cast("Tensor", self.network(x))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, self.train_means)

    @override
    def on_train_epoch_end(self) -> None:
        self.log_dict(self.train_means)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, self.val_means)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_means)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch, self.test_means)

    @override
    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_means)

    @override
    def predict_step(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor], batch_idx: int) -> Tensor:
        # a loader gives features alone, (features,) or (features, labels)
        return torch.softmax(self._logits(batch[0] if isinstance(batch, (tuple, list)) else batch), dim=-1)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = lr_scheduler_config(
            optimizer, self.schedule, self.trainer, interval=self.interval,
            warmup=self.warmup, cooldown=self.cooldown, on_resize=self.on_resize,
        )  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"scaling": self.scaling, "classes": list(self.classes)}
        checkpoint["LitClassifier"] = {"version": STATE_VERSION, **state}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("LitClassifier", {"version": STATE_VERSION})
        known = read_state("LitClassifier", state, {"scaling": None, "classes": ()})
        self.scaling, self.classes = known["scaling"], tuple(known["classes"])

    def _step(self, batch: tuple[Tensor, Tensor], means: MetricCollection) -> Tensor:
        features, labels = batch
        logits = self._logits(features)
        loss = cross_entropy(logits, labels)
        means["loss"].update(loss.detach().expand(len(labels)))  # one value a row: a batch counts by its rows
        means["accuracy"].update((logits.argmax(dim=-1) == labels).float())
        return loss

    def _logits(self, features: Tensor) -> Tensor:
        return self(features) if self._raw_batches else cast("Tensor", self.network(features))


def check_network(model: LitClassifier, features: int, classes: int) -> None:
    """Refuse a model whose network does not map (batch, features) to (batch, classes)."""
    try:
        with evaluating(model.network):  # leaves dropout's random state and batch statistics as they are
            logits = model.network(torch.zeros(2, features, device=model.device).type(model.dtype))
    except RuntimeError as error:
        raise ValueError(f"network must take features of the shape (batch, {features}): {error}") from error
    if logits.shape != (2, classes):
        rule = f"to (batch, {classes}), one output for each of the {classes} classes"
        got = f"(2, {features}) to {tuple(logits.shape)}"
        raise ValueError(f"network must map (batch, {features}) {rule}; it maps {got}")


def _means(part: str) -> MetricCollection:
    """Return the means over an epoch's rows, of all processes, which Lightning logs and resets."""
    # "disable" logs a loss of nan as nan. It also ignores weights (torchmetrics 1.9), so values must come row by row.
    loss, accuracy = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
    return MetricCollection({"loss": loss, "accuracy": accuracy}, prefix=f"{part}/", compute_groups=False)


def _network_from_plain(data: dict[str, Any]) -> SimpleNN:
    if data.get("class_path") != public_path(SimpleNN):
        holds = f"the checkpoint holds the weights of a {shown(data.get('class_path'))}, not how to build one"
        raise ValueError(f"network must be passed: {holds}; write load_from_checkpoint(path, network=…)")
    return SimpleNN(**data["init_args"])
