"""No callback waits for the device at an update: it reads no tensor, or reads many at once, later."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_cosine import Cosine, ExactResume, LearningRateLogger, LearningRateScheduler, ScheduleAudit, TrainingCurves
from lit_cosine.checkpoint import _finite
from lit_cosine.dashboard import Dashboard
from lit_cosine.monitors import EpochLine, _listener
from tests.helpers.nets import Net, fit, rows

pytestmark = [
    pytest.mark.slow,
    # 2026-11, lightning 2.6.6: true of every short run with a logger
    pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning"),
    pytest.mark.filterwarnings("ignore:batches after a resume within an epoch:UserWarning"),
]

Make = Callable[[Path], list[Any]]
CALLBACKS: dict[str, Make] = {
    "LearningRateScheduler": lambda _: [LearningRateScheduler(Cosine())],
    "LearningRateLogger": lambda _: [LearningRateLogger(loss_tag="train/loss_step")],
    "TrainingCurves": lambda _: [TrainingCurves()],
    "ScheduleAudit": lambda _: [ScheduleAudit()],
    "Dashboard": lambda _: [Dashboard(every_n_steps=1)],
    "EpochLine": lambda _: [EpochLine()],
    "ExactResume": lambda folder: [ExactResume(folder / "checkpoints", monitor=None)],
}
CALLBACKS["all"] = lambda folder: [one for name, make in CALLBACKS.items() if name != "all" for one in make(folder)]


class Scalars(TorchDispatchMode):
    """Counts ``item()``, ``float(tensor)`` and ``bool(tensor)``, which are one operator of ATen."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts ``tolist()`` and ``numpy()``, which are no operator."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (Tensor.tolist, Tensor.numpy)
        return func(*args, **(kwargs or {}))


class Long(Net):
    def __init__(self, batches: int, lr: Any = 0.1, fused: bool = False) -> None:
        super().__init__(lr=lr, fused=fused)
        self.batches = batches

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def train_dataloader(self) -> Any:
        return rows(4 * self.batches)


def nothing(folder: Path) -> list[Any]:
    return []


def reads(folder: Path, make: Make, tensor: bool = False, scaled: bool = False) -> int:
    """Return how many values ten more updates read: of 20, without those of 10."""
    counts = []
    for batches in (10, 20):
        plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))] if scaled else []
        model = Long(batches, torch.tensor(0.1) if tensor else 0.1, fused=scaled)
        logger = TensorBoardLogger(folder / str(batches))
        options = {"max_epochs": 1, "logger": logger, "plugins": plugins, "enable_checkpointing": True}

        class Begins(pl.Callback):
            """Forgets what was read before the second update: the audit plays the whole plan before the first."""

            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx == 1:
                    scalars.count = lists.count = 0

        with Scalars() as scalars, Lists() as lists:
            fit(model, *make(folder / str(batches)), Begins(), **options)
        counts.append(scalars.count + lists.count)
    return counts[1] - counts[0]


@pytest.fixture
def _one_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listener, "_SECONDS", math.inf)  # points are read when they are written
    monkeypatch.setattr(_finite, "_SECONDS", math.inf)  # losses before a checkpoint


@pytest.mark.usefixtures("_one_bundle")
@pytest.mark.parametrize("tensor", [False, True], ids=["float LR", "tensor LR"])
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_an_update_reads_no_tensor(make: Make, tensor: bool, tmp_path: Path) -> None:
    assert reads(tmp_path, make, tensor=tensor) == reads(tmp_path, nothing, tensor=tensor)


@pytest.mark.usefixtures("_one_bundle")
def test_all_callbacks_together_read_once_an_update_whether_a_fused_optimizer_has_skipped_it(tmp_path: Path) -> None:
    without, together = (reads(tmp_path, make, scaled=True) for make in (nothing, CALLBACKS["all"]))
    assert together - without == 10


def test_what_is_counted_is_seen(tmp_path: Path) -> None:
    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            float(outputs["loss"]), outputs["loss"].tolist()

    assert reads(tmp_path, lambda _: [Reads()]) - reads(tmp_path, nothing) == 20


@pytest.mark.gpu
@pytest.mark.usefixtures("_one_bundle")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_an_update_on_a_gpu_does_not_wait(make: Make, tmp_path: Path) -> None:
    def waits(made: Make, batches: int) -> int:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                folder, options = tmp_path / str(batches), {"max_epochs": 1, "enable_checkpointing": True}
                fit(Long(batches), *made(folder), default_root_dir=folder, accelerator="gpu", **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(one.message) for one in caught)

    assert waits(make, 20) - waits(make, 10) == waits(nothing, 20) - waits(nothing, 10)
