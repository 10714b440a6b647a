"""The global batch: what the plan says of it, and LRs that are scaled to it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner

from lit_cosine import LearningRateScheduler, ScheduleAudit
from tests.helpers.nets import COSINE, Gan, Net, Transfer, curve, finetuning, fit, rows, trainer

# 2026-11, lightning 2.6.6: the order of the batches does not matter here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning"),
]


class Batches(Net):
    """32 rows in batches of ``size``."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size

    def train_dataloader(self) -> Any:
        return rows(batch_size=self.size)


def scaled(**kwargs: Any) -> LearningRateScheduler:
    return LearningRateScheduler(COSINE, reference_batch_size=8, **kwargs)


def test_the_plan_line_and_the_audit_name_the_global_batch(caplog: pytest.LogCaptureFixture) -> None:
    fit(Net(), LearningRateScheduler(COSINE), ScheduleAudit(), max_epochs=1, accumulate_grad_batches=2)
    lines = [line for line in caplog.messages if "global batch 8 = 4 × 2 accumulated" in line]
    assert [line.partition(" ")[0] for line in lines] == ["cosine", "ScheduleAudit:"]


def test_nothing_is_said_of_a_batch_that_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    class Batched:
        def __iter__(self) -> Any:
            return iter(rows())

        def __len__(self) -> int:
            return 8

    class Streams(Net):
        def train_dataloader(self) -> Any:
            return Batched()

    fit(Streams(), LearningRateScheduler(COSINE), ScheduleAudit(), max_epochs=1)
    assert "cosine 1 -> 0.1 over 8 steps" in caplog.text
    assert "global batch" not in caplog.text
    model = Streams()
    with pytest.raises(ValueError, match=r"reference_batch_size needs the global batch, .* has no batch_size"):
        fit(model, scaled(), max_epochs=1)
    assert model.used == []


@pytest.mark.parametrize(
    ("size", "accumulate", "scaling", "ratio"),
    [(8, 1, "linear", 1.0), (4, 4, "linear", 2.0), (4, 4, "sqrt", math.sqrt(2.0)), (2, 1, "linear", 0.25)],
)
def test_base_lrs_are_scaled_and_the_warmup_is_not(size: int, accumulate: int, scaling: Any, ratio: float) -> None:
    model = Batches(size)
    fit(model, scaled(warmup="1step", batch_scaling=scaling), max_epochs=1, accumulate_grad_batches=accumulate)
    updates = 32 // size // accumulate
    assert model.lrs == pytest.approx(curve(updates, 1, lr=0.1 * ratio), rel=1e-12)


def test_every_optimizer_is_scaled_and_manual_optimization_counts_one_batch() -> None:
    model = Gan()
    fit(model, scaled(), max_epochs=1)
    assert model.used["critic"] == pytest.approx(curve(8, lr=2e-3), rel=1e-12)
    assert model.used["generator"][0] == pytest.approx(5e-4, rel=1e-12)


def test_a_group_that_joins_brings_its_own_lr() -> None:
    model = Transfer()
    fit(model, scaled(), finetuning(), max_epochs=2)
    assert model.lrs == pytest.approx(curve(16, lr=0.05), rel=1e-12)
    assert [used[1] for used in model.used[8:]] == pytest.approx(curve(16, lr=0.01)[8:], rel=1e-12)


def test_a_resume_multiplies_by_the_ratio_of_the_two_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(Batches(), scaled(), saver, max_epochs=2)  # 16 updates at 4/8 of the LR
    path = tmp_path / "step=8.ckpt"
    assert torch.load(path, weights_only=True)["lit_cosine.LearningRateScheduler"]["batch_scale"] == 0.5
    caplog.clear()
    same = Batches()
    fit(same, scaled(), max_epochs=2, ckpt_path=path)
    assert same.lrs == pytest.approx(curve(16, lr=0.05)[8:], rel=1e-12)
    assert "multiplied" not in caplog.text
    assert "peak LR" not in caplog.text
    for callback, ratio in (
        (scaled(), 4.0),
        (scaled(batch_scaling="sqrt"), 2 * math.sqrt(2)),
        (LearningRateScheduler(COSINE), 1.0),
    ):
        other = Batches(16)  # 2 updates an epoch
        fit(other, callback, max_epochs=2, ckpt_path=path)
        assert other.lrs == pytest.approx([ratio * lr for lr in curve(4, lr=0.05)[2:]], rel=1e-12)
    assert "another global batch than in the checkpoint: its LRs are multiplied by 4" in caplog.text


def test_a_resume_of_a_run_that_scaled_nothing_keeps_the_lrs_of_its_checkpoint(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(Batches(), LearningRateScheduler(COSINE), saver, max_epochs=1)
    resumed = Batches()
    fit(resumed, scaled(), max_epochs=1, ckpt_path=tmp_path / "step=4.ckpt")
    assert resumed.lrs == pytest.approx(curve(8)[4:], rel=1e-12)


@pytest.mark.parametrize("ours_first", [True, False])
def test_an_lr_that_a_finder_found_is_not_scaled(
    tmp_path: Path, ours_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    finder, model = LearningRateFinder(1e-4, 0.05, 30, early_stop_threshold=None), Net()
    callbacks = (scaled(), finder) if ours_first else (finder, scaled())
    fit(model, *callbacks, max_epochs=5, default_root_dir=tmp_path)
    found = model.lr
    assert finder.optimal_lr is not None
    assert found != 0.1
    assert model.lrs[-40:] == pytest.approx(curve(40, lr=found), rel=1e-12)
    assert "global batch 4 (not scaled: the LR that was found)" in caplog.text


def test_an_lr_that_a_tuner_found_is_not_scaled(tmp_path: Path) -> None:
    model = Net()
    run = trainer(scaled(), max_epochs=5, default_root_dir=tmp_path)
    Tuner(run).lr_find(model, min_lr=1e-4, max_lr=0.05, num_training=30, early_stop_threshold=None)
    model.used.clear()
    run.fit(model)
    assert model.lr != 0.1
    assert model.lrs == pytest.approx(curve(40, lr=model.lr), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reference_batch_size": 0}, ValueError, "reference_batch_size must be an integer >= 1, got 0"),
        ({"reference_batch_size": 64.0}, TypeError, "reference_batch_size must be an integer >= 1, got 64.0"),
        ({"batch_scaling": "cubic"}, ValueError, "batch_scaling must be one of linear, sqrt, got 'cubic'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LearningRateScheduler(COSINE, **arguments)
