"""One training of a comparison, as plain data, and how it is run with a Trainer.

Convention: a training that raises or diverges is a row with a reason. Module, data and Trainer are built from their
description in the process that trains, with every generator at the training's seed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lit_cosine._checks import shown
from lit_cosine._compat import tree_leaves
from lit_cosine.comparison._arguments import EXPLODED
from lit_cosine.schedules import as_schedule
from lit_cosine.training import LearningRateScheduler

__all__ = ["Train", "importable_name", "resolve"]

Maker = Callable[..., Any]

_QUIET: dict[str, Any] = {
    "logger": DummyLogger(),  # modules that log pictures ask for self.logger.experiment
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def resolve(name: str, given: Any) -> Maker:
    """Return the class or function that ``given`` is, or that it names as ``module:Name`` or ``module.Name``.

    Another type, and what no other process could import, is a TypeError; a name that is none a ValueError.
    """
    if isinstance(given, str):
        module, _, attribute = given.replace(":", ".").rpartition(".")
        try:
            given = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"{name} must be importable as module:Name, got {shown(given)}: {error}") from None
    if not callable(given) or "<" in getattr(given, "__qualname__", "<"):
        raise TypeError(
            f"{name} must be a class or a function at the top level of a module, which other processes can import; "
            f"instead of a lambda, a local function or an object write def make(): return ..., got {shown(given)}"
        )
    return given  # type: ignore[no-any-return]


def importable_name(maker: Maker | None) -> str | None:
    """Return ``module:Name``."""
    return None if maker is None else f"{maker.__module__}:{maker.__qualname__}"


@dataclass(frozen=True)
class Train:
    """Runs a training and returns its row: status, reason, metrics, curve, LR, digest of its start, and counts.

    A training is a dict with ``seed``, ``split``, ``schedule`` and ``scale`` or ``lr``; ``trainer`` with the Trainer's
    arguments, or ``config`` with LightningCLI's; ``metric`` and ``mode``; ``split_arg``. ``module`` makes the module
    (None with ``config``), ``data`` the DataModule (None where the module has its own loaders).
    """

    module: Maker | None
    data: Maker | None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        watch = _Watch(item)
        row: dict[str, Any] = {"status": "ok", "reason": ""}
        began = time.perf_counter()
        with isolate_rng(), _undisturbed():
            seed_everything(item["seed"], workers=True, verbose=False)
            callbacks = [
                LearningRateScheduler(as_schedule("schedule", item["schedule"], imports=True), replace=True),
                watch,
            ]
            try:
                if item.get("config") is not None:
                    model, datamodule, trainer = _from_config(item, callbacks)
                else:
                    split = {item["split_arg"]: item["split"]} if item["split_arg"] else {}
                    model = self.module()  # type: ignore[misc]
                    datamodule = None if self.data is None else self.data(**split)
                    trainer = _trainer(model, item["trainer"], callbacks)
                trainer.fit(model, datamodule=datamodule)
                finals = _numbers(trainer.callback_metrics)
                if _tests(model, datamodule):
                    for found in trainer.test(model, datamodule=datamodule, verbose=False):  # one for each loader
                        finals |= _numbers(found)
                row |= {"metrics": finals, "ends_early": trainer.global_step < watch.planned < math.inf}
            except Exception as error:  # the module is the user's
                row |= {
                    "status": "failed",
                    "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                    "metrics": {},
                }
        curve = [[step, value] for step, value in watch.curve.items()]
        row |= {"curve": curve, "lr": watch.lr, "start": watch.digest.hexdigest()[:16], "sizes": watch.sizes}
        if row["status"] == "ok" and (reason := _diverged(row["metrics"], [value for _, value in curve], item)):
            row |= {"status": "diverged", "reason": reason}
        return {**row, "seconds": round(time.perf_counter() - began, 3)}


class _Watch(Callback):
    """Sets the peak LR, and records the metric's curve and what the training started from."""

    def __init__(self, item: dict[str, Any]) -> None:
        self._item = item
        self.curve: dict[int, float] = {}
        self._after: str | None = None
        self.digest = hashlib.sha256()
        self.lr = math.nan
        self.planned = 0.0
        self.sizes: list[int] = []
        self._begun = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # listed behind LearningRateScheduler, which has put the peak of a replaced scheduler back by now
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        own = float(groups[0]["lr"])
        ratio = self._item["scale"] if self._item.get("lr") is None else self._item["lr"] / own
        for group in groups:
            group["lr"] = group["lr"] * ratio if ratio != 1.0 else group["lr"]
        if self._item.get("lr") is not None:
            groups[0]["lr"] = self._item["lr"]  # without the rounding of the ratio
        self.lr = float(groups[0]["lr"])
        self._update(pl_module.state_dict())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.planned = float(trainer.estimated_stepping_batches)
        loaders = (trainer.train_dataloader, trainer.val_dataloaders)
        self.sizes = [_rows(loader) for loader in loaders]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._begun:
            self._begun = True
            self._update(batch)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._record(trainer, "validation")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "epoch")  # the module's own on_train_epoch_end has logged by now

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "epoch")

    def _record(self, trainer: Trainer, after: str) -> None:
        value = trainer.callback_metrics.get(self._item["metric"])
        # a metric is taken after the validation or after the epoch, where it was first seen: the other has an old value
        if value is not None and self._begun and self._after in (None, after):
            self._after = after
            self.curve[trainer.global_step] = float(value)

    def _update(self, values: Any) -> None:
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                self.digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _rows(loader: Any) -> int:
    """Return the rows of a loader's data set; 0 where they cannot be counted."""
    try:
        return sum(len(one.dataset) for one in tree_leaves(loader))  # one loader, or several
    except (AttributeError, TypeError):
        return 0


def _trainer(model: Any, arguments: dict[str, Any], callbacks: list[Any]) -> Any:
    """Return a Trainer of the namespace of the module, which the other one's Trainer refuses."""
    foreign = any(cls.__module__.startswith("pytorch_lightning") for cls in type(model).__mro__)
    cls = import_module("pytorch_lightning").Trainer if foreign else Trainer
    given = {**_QUIET, "accelerator": "auto", "devices": 1, **arguments}
    return cls(**{**given, "callbacks": [*map(_built, given.get("callbacks", ())), *callbacks]})


def _built(plain: Any) -> Any:
    """Return the object that ``class_path`` and ``init_args`` describe."""
    return resolve("callbacks", plain["class_path"])(**plain.get("init_args", {}))


class _ConfigCLI(LightningCLI):
    """LightningCLI without a run, whose Trainer gets further callbacks and writes nothing."""

    def __init__(self, item: dict[str, Any], callbacks: list[Any]) -> None:
        self._more = callbacks
        super().__init__(
            save_config_callback=None,
            seed_everything_default=item["seed"],
            parser_kwargs={"exit_on_error": False},
            args={**item["config"], "seed_everything": item["seed"]},
            run=False,
        )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        listed = self.config_init["trainer"]["callbacks"] or []
        listed = listed if isinstance(listed, list) else [listed]
        kept = [callback for callback in listed if not _only_watches(callback)]
        return super().instantiate_trainer(callbacks=[*kept, *self._more], **{**_QUIET, **kwargs})


def _only_watches(callback: Callback) -> bool:
    """Return whether a callback of a configuration shows or saves a run, or sets the LR in place of the comparison."""
    ours = ("lit_cosine.audit", "lit_cosine.checkpoint", "lit_cosine.monitors")
    to_leave_out = (Checkpoint, LearningRateMonitor, LearningRateScheduler, ModelSummary, ProgressBar)
    return isinstance(callback, to_leave_out) or type(callback).__module__.startswith(ours)


def _from_config(item: dict[str, Any], callbacks: list[Any]) -> tuple[Any, Any, Any]:
    item = deepcopy(item)  # LightningCLI turns parts of it into namespaces
    if item["split_arg"]:
        *path, last = item["split_arg"].split(".")
        config = item["config"]
        for name in path:
            inner = config[name] = config.get(name) or {}
            config = inner
        config[last] = item["split"]
    cli = _ConfigCLI(item, callbacks)
    return cli.model, cli.datamodule, cli.trainer


def _tests(model: Any, datamodule: Any) -> bool:
    """Return whether there is a test loop and rows for it."""
    source = model if datamodule is None else datamodule
    return _defines(model, "test_step") and (_defines(source, "test_dataloader") or _defines(model, "test_dataloader"))


def _defines(instance: Any, name: str) -> bool:
    owner = next((cls for cls in type(instance).__mro__ if name in vars(cls)), object)
    return not owner.__module__.startswith(("lightning.pytorch.core", "pytorch_lightning.core", "builtins"))


def _numbers(metrics: Any) -> dict[str, float]:
    return {str(name): float(value) for name, value in metrics.items()}


def _diverged(finals: dict[str, float], curve: list[float], item: dict[str, Any]) -> str:
    metric = item["metric"]
    values = [*curve, *([finals[metric]] if metric in finals else [])]
    if not all(map(math.isfinite, values)):
        return f"{metric} is {next(value for value in values if not math.isfinite(value))}"
    if item["mode"] == "min" and curve and 0.0 < EXPLODED * curve[0] < curve[-1]:
        return f"{metric} ends at {curve[-1]:.3g}, more than {EXPLODED:g} times its first value of {curve[0]:.3g}"
    return ""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep messages down, and the environment as it is: there are hundreds of trainings."""
    seeds = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in seeds.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
