"""Known faults of LR schedules: each with a stock scheduler that has it, and with this package, which does not."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_cosine import Cosine, LearningRateLogger, LearningRateScheduler, Linear, ScheduleLR
from lit_cosine.schedules import OnResize
from tests.helpers.nets import COSINE, TORCH_IS_STRICT, Gan, Net, Transfer, curve, finetuning, fit, rows, with_cosine

# 2026-11, lightning 2.6.6: these tests resume without the callback that saved
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Unsized(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(rows().dataset)


def test_fault_1_a_horizon_in_steps_played_once_an_epoch() -> None:
    stock, ours = Net(with_cosine(24)), Net()
    run = fit(stock, max_epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0962, abs=1e-4)
    run = fit(ours, LearningRateScheduler(), max_epochs=3)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.0


def test_fault_2_a_resume_with_more_epochs_climbs(tmp_path: Path) -> None:
    def trace(name: str, model: Net, *callbacks: Any) -> list[float]:
        folder = tmp_path / name
        fit(model, *callbacks, ModelCheckpoint(folder, filename="end"), max_epochs=2)
        model.used.clear()
        fit(model, *callbacks, ckpt_path=folder / "end.ckpt", max_epochs=4)
        return model.lrs

    stock = trace("stock", Net(with_cosine(16, interval="step")))
    assert max(stock) > 0.09
    with pytest.raises(ValueError, match="all 16 steps that are left would run at LR 0"):
        trace("ours", Net(), LearningRateScheduler())
    again = trace("again", Net(), LearningRateScheduler(on_resize="restart"))
    assert again == pytest.approx(curve(16, end=0.0), rel=1e-12, abs=1e-17)


def test_fault_3_the_curve_climbs_back_after_its_end() -> None:
    stock, ours = (
        Net(with_cosine(8, interval="step")),
        Net(
            lambda optimizer, run: {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": ScheduleLR(optimizer, Cosine(), total_steps=8), "interval": "step"},
            }
        ),
    )
    fit(stock, max_epochs=2)
    fit(ours, max_epochs=2)
    assert stock.lrs[-1] > 0.09
    assert ours.lrs[8:] == [0.0] * 8


def test_fault_4_lengths_that_the_trainer_gets_wrong() -> None:
    estimates: list[float] = []

    def finish(optimizer: Any, run: Any) -> Any:
        estimates.append(run.estimated_stepping_batches)
        return optimizer

    class Endless(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(Unsized(), batch_size=4)

    fit(Endless(finish), max_epochs=1)
    assert estimates == [-1]
    with pytest.raises(ValueError, match=r"the train loader has no length.* give the Trainer max_steps"):
        fit(Endless(), LearningRateScheduler(), max_epochs=1)
    sized = Endless()
    fit(sized, LearningRateScheduler(COSINE), max_steps=6)
    assert sized.lrs == pytest.approx(curve(6), rel=1e-12)

    accumulating = Net(finish)
    run = fit(accumulating, GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=3)
    assert (estimates[-1], run.global_step) == (24, 12)
    accumulating = Net()
    fit(accumulating, LearningRateScheduler(COSINE), GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=3)
    assert accumulating.lrs == pytest.approx(curve(12), rel=1e-12)

    limit = {"max_time": {"seconds": 1}, "max_epochs": -1}
    assert fit(Net(finish), **limit).global_step > 0
    assert estimates[-1] == math.inf
    timed = Net()
    fit(timed, LearningRateScheduler(Linear()), **limit)
    assert timed.lrs[-1] < 0.01 < timed.lrs[len(timed.lrs) // 2] < timed.lrs[0] == 0.1
    assert timed.lrs == sorted(timed.lrs, reverse=True)


def test_fault_5_groups_that_join_break_stock_schedulers() -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)]

    with pytest.raises(ValueError, match="zip") if TORCH_IS_STRICT else nullcontext():
        fit(Transfer(finish), finetuning(), max_epochs=3)
    fit(Transfer(), LearningRateScheduler(), finetuning(), max_epochs=3)


def test_fault_6_frequency_counts_batches() -> None:
    stock, ours = Net(with_cosine(4, interval="step", frequency=5)), Net()
    fit(stock, max_epochs=2, accumulate_grad_batches=4)
    fit(ours, LearningRateScheduler(COSINE), max_epochs=2, accumulate_grad_batches=4)
    assert set(stock.lrs) == {0.1}
    assert ours.lrs == pytest.approx(curve(4), rel=1e-12)


class Overflows(Net):
    """Batches 1, 4 and 5 overflow, and the GradScaler skips their updates; ``used`` holds the real ones."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.before = self.trainer.optimizers[0].param_groups[0]["lr"]
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx in (1, 4, 5) else loss

    def watch(self, optimizer: Any) -> Any:
        return optimizer

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx not in (1, 4, 5):
            self.used.append([self.before])


@pytest.mark.parametrize(
    ("fused", "policy"),
    [(False, "continue"), (True, "continue"), (False, "rescale"), (False, "keep"), (False, "restart")],
)
def test_fault_7_updates_that_the_grad_scaler_skips_use_up_the_schedule(
    fused: bool, policy: OnResize, caplog: pytest.LogCaptureFixture
) -> None:
    def run(model: Net, *callbacks: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        return fit(model, *callbacks, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], max_epochs=1)

    stock, ours = Overflows(with_cosine(8, interval="step"), fused=fused), Overflows(fused=fused)
    assert run(stock).lr_scheduler_configs[0].scheduler.last_epoch == 8
    assert len(stock.lrs) == 5
    run(ours, LearningRateScheduler(COSINE, on_resize=policy))
    assert "total_steps changed" not in caplog.text
    # a skipped update ends the run one update sooner: from progress p at step s the line goes to the new end
    progress = [0, 1 / 8, 1 / 8 + 7 / 8 / 6, 1 / 8 + 7 / 8 * 2 / 6]
    after_two = progress[3]
    progress.append(after_two + (1 - after_two) / 2)
    assert ours.lrs == pytest.approx([0.1 * COSINE(p) for p in progress], rel=1e-12)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")  # that is the fault
def test_fault_8_the_monitor_writes_no_point_on_a_short_run(tmp_path: Path) -> None:
    def points(name: str, model: Net, *callbacks: Any) -> list[float]:
        logger = pl.loggers.TensorBoardLogger(tmp_path, name)
        fit(model, *callbacks, logger=logger, max_epochs=3)
        events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0}).Reload()
        return [e.value for e in events.Scalars("lr-SGD")] if "lr-SGD" in events.Tags()["scalars"] else []

    assert points("stock", Net(with_cosine(24, interval="step")), LearningRateMonitor()) == []
    ours = points("ours", Net(), LearningRateScheduler(COSINE), LearningRateLogger())
    assert ours == pytest.approx([*curve(24), 0.01], rel=1e-6)


def test_fault_9_the_found_learning_rate_lasts_one_step(tmp_path: Path) -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.999**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def found(model: Net, *callbacks: Any, finder_first: bool = True) -> Net:
        finder = LearningRateFinder(min_lr=1e-4, max_lr=0.05, num_training_steps=30, early_stop_threshold=None)
        order = [finder, *callbacks] if finder_first else [*callbacks, finder]
        fit(model, *order, max_epochs=5, default_root_dir=tmp_path)
        del model.used[:30]  # the finder's own updates
        return model

    stock = found(Net(finish))
    assert stock.lrs[0] == stock.lr != 0.1
    assert stock.lrs[1] == pytest.approx(0.1, rel=0.01)
    for finder_first in (True, False):
        ours = found(Net(), LearningRateScheduler(COSINE, warmup="2step"), finder_first=finder_first)
        assert ours.lr != 0.1
        assert ours.lrs == pytest.approx(curve(40, 2, ours.lr), rel=1e-12)
    replaced = found(Net(finish), LearningRateScheduler(COSINE, replace=True))
    assert replaced.lrs == pytest.approx(curve(40, 0, replaced.lr), rel=1e-12)


def test_fault_10_a_warmup_that_spends_updates_at_zero() -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        # the usual recipe: step / warmup_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    stock, ours, none = Net(finish), Net(), Net()
    fit(stock, max_epochs=1)
    fit(ours, LearningRateScheduler(warmup="2step"), max_epochs=1)
    fit(none, LearningRateScheduler(warmup="0ep"), max_epochs=1)
    assert stock.lrs[0] == 0.0
    assert ours.lrs[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1], rel=1e-12)
    assert none.lrs == pytest.approx(curve(8, end=0.0), rel=1e-12)


def test_fault_11_manual_optimization_forgets_the_scheduler() -> None:
    class Forgets(Gan):
        def configure_optimizers(self) -> Any:
            optimizers, _ = super().configure_optimizers()
            return optimizers, [torch.optim.lr_scheduler.CosineAnnealingLR(o, 8) for o in optimizers]

    stock = Forgets()
    fit(stock, max_epochs=1)
    assert set(stock.used["critic"]) == {4e-3}
    ours = Forgets()
    fit(ours, LearningRateScheduler(COSINE, replace=True), max_epochs=1)
    assert ours.used["critic"] == pytest.approx(curve(8, lr=4e-3), rel=1e-12)
