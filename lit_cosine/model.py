"""The article's network, and a LightningModule that trains any classifier under a schedule.

Convention: everything that goes into a checkpoint as a hyperparameter is plain data (numbers, strings, dicts), so that
it loads with ``weights_only=True``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from lit_cosine.checkpoint_io import SafeLoading
from lit_cosine.horizon import Duration, OnResize, check_on_resize
from lit_cosine.schedule import Schedule, check_schedule
from lit_cosine.schedules import Cosine
from lit_cosine.trainer import Interval, lr_scheduler_config

__all__ = ["LitClassifier", "SimpleNN"]


class SimpleNN(nn.Module):
    """A perceptron with one hidden layer: fc2(relu(fc1(x))).

    Args:
        in_features: Number of features, >= 1.
        hidden: Width of the hidden layer, >= 1.
        classes: Number of classes, >= 1.

    Raises:
        ValueError: If a size is not an integer >= 1.

    >>> SimpleNN(classes=3)(torch.zeros(5, 20)).shape
    torch.Size([5, 3])
    """

    def __init__(self, in_features: int = 20, hidden: int = 64, classes: int = 2) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("hidden", hidden), ("classes", classes)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"SimpleNN.{name} must be an integer >= 1, got {size!r}")
        self.fc1 = nn.Linear(in_features, hidden)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of ``x`` (batch, in_features)."""
        return cast("Tensor", self.fc2(self.relu(self.fc1(x))))


class RowMean(Metric):
    """The mean over rows of something that is measured in batches: of an epoch, and over all processes.

    A Metric and not numbers handed to ``self.log``, because Lightning reads a Metric once an epoch: logged with the
    epoch's first batch, it costs the others next to nothing, for batches are only kept until ``_WINDOW`` of them can be
    reduced together, or somebody asks for the mean.

    Args:
        dtype: Of the sum: float32 for losses, int64 for counts, which then are exact.
    """

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self, measured: Tensor, labels: Tensor) -> None:
        """Take in a batch, later.

        Args:
            measured: Its loss or its logits.
            labels: Its labels, shape (rows,).
        """
        self._kept.append((measured.detach(), labels))
        if len(self._kept) == _WINDOW or not self._update_count:
            self._reduce()

    def update(self, total: Tensor, rows: int) -> None:
        """Take in what was measured, summed over ``rows`` rows."""
        self.total.add_(total)
        self.rows.add_(rows)

    def compute(self) -> Tensor:
        """Return the mean over all rows since the last reset."""
        return self.total / self.rows

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._kept.clear()

    @contextmanager
    def sync_context(self, *arguments: Any, **keywords: Any) -> Iterator[None]:
        """Reduce what is kept before it is read or added to the other processes'."""
        self._reduce()
        with super().sync_context(*arguments, **keywords):
            yield

    def _reduce(self) -> None:
        if self._kept:
            measured, labels = zip(*self._kept, strict=True)
            self._kept.clear()
            self.update(self._total(measured, labels), sum(map(len, labels)))

    def _total(self, measured: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError


@final
class MeanLoss(RowMean):
    """The mean loss.

    >>> loss = MeanLoss()
    >>> loss.keep(torch.tensor(1.0), torch.zeros(3))  # a batch of 3 rows
    >>> loss.keep(torch.tensor(0.0), torch.zeros(1))
    >>> loss.compute()
    tensor(0.7500)
    """

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def _total(self, measured: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        losses = torch.stack([*measured])
        return (losses * torch.tensor([*map(len, labels)], device=losses.device)).sum()


@final
class Accuracy(RowMean):
    """The share of rows whose largest logit is that of their label.

    >>> accuracy = Accuracy()
    >>> accuracy.keep(torch.tensor([[0.1, 0.2], [0.4, 0.3]]), torch.tensor([1, 1]))
    >>> accuracy.compute()
    tensor(0.5000)
    """

    def __init__(self) -> None:
        super().__init__(torch.int64)

    def _total(self, measured: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        return (torch.cat([*measured]).argmax(-1) == torch.cat([*labels])).sum()


_WINDOW = 64
"""Batches whose losses and logits are kept to be reduced at once."""

_SIMPLE_NN = f"{SimpleNN.__module__}.{SimpleNN.__qualname__}"


class LitClassifier(SafeLoading, LightningModule):
    """Cross-entropy, accuracy, fused Adam, and an LR that follows ``schedule`` to the end of the run.

    Logs ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``test/loss`` and ``test/accuracy``, each
    the mean over the rows of an epoch. ``predict_step`` returns class probabilities (batch, classes).

    Args:
        network: Any module that maps (batch, features) to logits (batch, classes); ``SimpleNN()`` where None.
        lr: Adam's LR, the peak of the schedule; finite and > 0.
        schedule: The curve that scales it.
        interval: ``"epoch"`` to move the LR once an epoch, ``"step"`` once an optimizer step.
        warmup: A duration such as ``"500step"``, ``"2ep"`` or ``"5%"``.
        on_resize: What a run of another length does when it is resumed: ``"continue"``, ``"rescale"``, ``"keep"`` or
            ``"restart"``, see ``Clock.reanchor``.

    A ``SimpleNN`` and the schedule are saved with a checkpoint as plain data: ``load_from_checkpoint(path)`` rebuilds
    them. Any other network has to be handed in again: ``load_from_checkpoint(path, network=…)``.

    Raises:
        TypeError: If ``network`` is not a module, ``lr`` not a number or ``schedule`` not a schedule.
        ValueError: If another argument is out of range; before training, if the network does not fit the data.

    >>> model = LitClassifier(SimpleNN(in_features=4, classes=3), lr=0.1)
    >>> model(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    >>> model.hparams["network"]["init_args"]
    {'in_features': 4, 'hidden': 64, 'classes': 3}
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        lr: float = 0.01,
        schedule: Schedule = Cosine(),
        interval: Interval = "epoch",
        warmup: str | Duration = "0step",
        on_resize: OnResize = "continue",
    ) -> None:
        super().__init__()
        # load_from_checkpoint hands in what save_hyperparameters wrote below; the annotations name what users write
        network = _network_from_plain(network) if isinstance(network, dict) else network
        schedule = Schedule.from_dict(schedule) if isinstance(schedule, dict) else schedule
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {network!r}")
        if isinstance(lr, bool) or not hasattr(lr, "__float__"):
            raise TypeError(f"lr must be a number, got {lr!r}")
        if not (math.isfinite(lr) and lr > 0.0):
            raise ValueError(f"lr must be finite and > 0, got {lr}")
        check_schedule("schedule", schedule)
        if interval not in ("epoch", "step"):
            raise ValueError(f'interval must be "epoch" or "step", got {interval!r}')
        check_on_resize(on_resize)
        self.network = SimpleNN() if network is None else network
        self.lr = float(lr)
        self.schedule = schedule
        self.interval: Interval = interval
        self.warmup = Duration.parse(warmup, "warmup")
        self.on_resize: OnResize = on_resize
        self.save_hyperparameters(
            {
                "network": _network_to_plain(self.network),
                "lr": self.lr,
                "schedule": schedule.to_dict(),
                "interval": interval,
                "warmup": str(self.warmup),
                "on_resize": on_resize,
            }
        )
        self.train_loss, self.train_accuracy = MeanLoss(), Accuracy()
        self.val_loss, self.val_accuracy = MeanLoss(), Accuracy()
        self.test_loss, self.test_accuracy = MeanLoss(), Accuracy()

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes here which hook it calls, some fifty times a step; that need not be looked at as a parameter
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Refuse a network that does not fit the DataModule's features and classes."""
        for metric in self.modules():
            if isinstance(metric, RowMean):
                metric.reset()  # of a run that was broken off
        datamodule = getattr(self.trainer, "datamodule", None)
        features, classes = (getattr(datamodule, name, None) for name in ("num_features", "num_classes"))
        if features is not None:
            self.example_input_array = torch.zeros(1, features)  # the graph that loggers draw
        if features is not None and classes is not None:  # of loaders of the user's own nothing is known
            self.check_network(features, classes)

    def check_network(self, features: int, classes: int) -> None:
        """Refuse a network that does not map (batch, features) to (batch, classes).

        Args:
            features: Number of features.
            classes: Number of classes.

        Raises:
            ValueError: If it takes other features or gives other classes.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()  # neither dropout's draws nor batch statistics are spent on the question
        try:
            with torch.no_grad():
                logits = self.network(torch.zeros(2, features, device=self.device).type(self.dtype))
        except RuntimeError as error:
            raise ValueError(f"network must take features of the shape (batch, {features}): {error}") from error
        finally:
            for module, mode in modes:
                module.training = mode
        if logits.shape != (2, classes):
            raise ValueError(
                f"network must map (batch, {features}) to (batch, {classes}), one output for each of the {classes} "
                f"classes; it maps (2, {features}) to {tuple(logits.shape)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of ``x`` (batch, features)."""
        return cast("Tensor", self.network(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch of (features, labels)."""
        return self._step("train", batch, self.train_loss, self.train_accuracy)

    # Lightning asks for it at every batch; made once
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one batch of (features, labels)."""
        self._step("val", batch, self.val_loss, self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure one batch of (features, labels)."""
        self._step("test", batch, self.test_loss, self.test_accuracy)

    def predict_step(self, batch: Tensor | tuple[Tensor, ...] | list[Tensor], batch_idx: int) -> Tensor:
        """Return the class probabilities (batch, classes) of features, or of the features of (features, labels)."""
        features = batch[0] if isinstance(batch, (tuple, list)) else batch
        return torch.softmax(self(features), dim=-1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return Adam and the scheduler that plays ``schedule`` on it."""
        optimizer = self._adam()
        scheduler = lr_scheduler_config(
            optimizer,
            self.schedule,
            self.trainer,
            warmup=self.warmup,
            interval=self.interval,
            on_resize=self.on_resize,
        )
        return {"optimizer": optimizer, "lr_scheduler": cast("LRSchedulerConfigType", scheduler)}

    def _adam(self) -> torch.optim.Adam:
        """Return Adam; its whole update is one call of a fused kernel where there is one for where the weights are."""
        # a fused step unscales by itself, so that Lightning cannot clip what a GradScaler has scaled
        if self.trainer.gradient_clip_val is None or self.trainer.precision != "16-mixed":
            with suppress(RuntimeError):  # how torch says that there is none
                return torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _step(self, part: str, batch: tuple[Tensor, Tensor], mean_loss: MeanLoss, accuracy: Accuracy) -> Tensor:
        features, labels = batch
        logits = self(features)
        loss = cross_entropy(logits, labels)
        first = not mean_loss.update_count
        mean_loss.keep(loss, labels)
        accuracy.keep(logits, labels)
        if first:  # Lightning reads the metrics when the epoch ends, however it ends
            self.log_dict({f"{part}/loss": mean_loss, f"{part}/accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss


def _network_to_plain(network: nn.Module) -> dict[str, Any]:
    """Return a SimpleNN as plain data, in the form LightningCLI reads; of any other network the name alone."""
    if type(network) is SimpleNN:
        sizes = {
            "in_features": network.fc1.in_features,
            "hidden": network.fc1.out_features,
            "classes": network.fc2.out_features,
        }
        return {"class_path": _SIMPLE_NN, "init_args": sizes}
    return {"class_path": f"{type(network).__module__}.{type(network).__qualname__}"}


def _network_from_plain(data: dict[str, Any]) -> SimpleNN:
    if data.get("class_path") != _SIMPLE_NN:
        raise ValueError(
            f"network must be handed in: the checkpoint holds the weights of a {data.get('class_path')}, not how to "
            "build one; write load_from_checkpoint(path, network=…)"
        )
    return SimpleNN(**data["init_args"])
