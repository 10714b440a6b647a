"""LearningRateScheduler on modules that know nothing of it: every trace against the closed form f(k / N)."""

from __future__ import annotations

import copy
import csv
import math
import pickle
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_cosine import (
    Constant,
    Cosine,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    Schedule,
    Sequential,
    Step,
    lr_scheduler_config,
    one_cycle,
)
from tests.helpers.nets import COSINE, Gan, Net, Transfer, curve, factor, finetuning, fit, rows, trainer, with_cosine

# 2026-11, lightning 2.6.6: these tests resume without the callback that saved, train without an optimizer on purpose,
# and save by steps under manual optimization, where it is the weights after the step that are wanted
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning"),
]


@pytest.mark.parametrize(
    ("schedule", "doubt"),
    [
        (
            Cosine(end=1e-5),
            "; end=1e-05 is a factor: the floor is 1e-06; for an absolute floor of 1e-05 write end=0.0001",
        ),
        (Linear(end=2.0), "; the factor rises to 2, above the peak LR"),
        (one_cycle(), ""),  # its end, torch's default, is meant
    ],
)
def test_the_plan_line_doubts_a_factor_that_looks_like_an_lr(
    schedule: Schedule, doubt: str, caplog: pytest.LogCaptureFixture
) -> None:
    fit(Net(), LearningRateScheduler(schedule), max_epochs=1)
    (line,) = [line for line in caplog.messages if " over 8 steps" in line]
    assert line.partition("lr-SGD peak 0.1")[2] == doubt


@pytest.mark.parametrize(
    ("accumulate", "warmup", "limit", "precision"),
    [
        *product((1, 3), ("0step", "2step", "1ep"), ({"max_epochs": 2}, {"max_steps": 10}), ("32-true",)),
        (3, "2step", {"max_epochs": 2}, "bf16-mixed"),
    ],
)
def test_both_roads_are_one(accumulate: int, warmup: str, limit: dict[str, int], precision: str) -> None:
    settings = {"accumulate_grad_batches": accumulate, "precision": precision, **limit}
    module = Net(
        lambda optimizer, run: {
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler_config(optimizer, COSINE, run, warmup=warmup),
        }
    )
    fit(module, **settings)
    dropped_in = Net()
    fit(dropped_in, LearningRateScheduler(COSINE, warmup=warmup), **settings)

    per_epoch = math.ceil(8 / accumulate)
    total = limit.get("max_steps", 2 * per_epoch)
    assert dropped_in.lrs == pytest.approx(curve(total, {"0step": 0, "2step": 2, "1ep": per_epoch}[warmup]), rel=1e-12)
    assert module.lrs == dropped_in.lrs
    assert torch.equal(module.layer.weight, dropped_in.layer.weight)


@pytest.mark.parametrize("warmup", ["0step", "3step", "25%"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_resume_is_exact_from_every_step(tmp_path: Path, accumulate: int, warmup: str) -> None:
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    whole = Net()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit(whole, LearningRateScheduler(COSINE, warmup=warmup), saver, **settings)
    for path in sorted(tmp_path.glob("*.ckpt")):
        steps = torch.load(path, weights_only=True)["global_step"]
        resumed = Net()
        fit(resumed, LearningRateScheduler(COSINE, warmup=warmup), ckpt_path=path, **settings)
        assert resumed.lrs == whole.lrs[steps:]


@pytest.mark.parametrize(
    ("on_resize", "lr"),
    [
        ("continue", lambda k: 0.1 * (1 - (0.375 + 0.625 * (k - 6) / (32 - 6)))),
        ("rescale", lambda k: 0.1 * (1 - k / 32)),
        ("keep", lambda k: 0.1 * max(0.0, 1 - k / 16)),
        ("restart", lambda k: 0.1 * (1 - (k - 6) / (32 - 6))),
    ],
)
def test_resume_with_more_epochs(tmp_path: Path, on_resize: Any, lr: Any, caplog: pytest.LogCaptureFixture) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    fit(Net(), LearningRateScheduler(Linear(), on_resize=on_resize), saver, max_epochs=2)
    caplog.clear()
    resumed = Net()
    fit(resumed, LearningRateScheduler(Linear(), on_resize=on_resize), ckpt_path=tmp_path / "step=6.ckpt", max_epochs=4)
    assert resumed.lrs == pytest.approx([lr(k) for k in range(6, 32)], rel=1e-12, abs=1e-17)
    lines = [record.getMessage() for record in caplog.records if "on_resize" in record.getMessage()]
    assert len(lines) == 1
    assert "16" in lines[0]
    assert "32" in lines[0]
    assert on_resize in lines[0]


@pytest.mark.parametrize("stock", [True, False])
def test_a_run_that_began_without_the_callback_goes_on_where_it_is(
    tmp_path: Path, stock: bool, caplog: pytest.LogCaptureFixture
) -> None:
    finish = with_cosine(16, interval="step") if stock else None
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    fit(Net(finish), saver, max_epochs=2)
    resumed = Net(finish)
    ours = LearningRateScheduler(COSINE, warmup="2step", replace=True)
    fit(resumed, ours, ckpt_path=tmp_path / "step=5.ckpt", max_epochs=2)
    assert resumed.lrs == pytest.approx(curve(16, 2)[5:], rel=1e-12)
    assert "from progress 0.2143" in caplog.text


def test_a_gan_that_began_without_the_callback_goes_on_where_it_is(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    fit(Gan(), saver, max_epochs=2)  # the sixth update is the generator's in batch 3
    resumed = Gan()
    fit(resumed, LearningRateScheduler(COSINE), ckpt_path=tmp_path / "step=6.ckpt", max_epochs=2)
    assert resumed.used["critic"] == pytest.approx(curve(16, lr=4e-3)[4:], rel=1e-12)


def test_the_plan_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    fit(Net(), LearningRateScheduler(warmup="2step", weight_decay=Linear(start=1, end=10)), max_epochs=2)
    length = "cosine 1 -> 0 over 16 steps (2 epochs), warmup 2 steps"
    assert f"{length}, global batch 4, lr-SGD peak 0.1, weight_decay linear 1 -> 10" in caplog.messages


def test_a_closure_that_runs_many_times_is_one_update() -> None:
    class WithLBFGS(Net):
        def configure_optimizers(self) -> Any:
            return self.watch(torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3))

    model = WithLBFGS()
    fit(model, LearningRateScheduler(COSINE), max_epochs=1)
    assert model.lrs == pytest.approx(curve(8), rel=1e-12)


def test_a_gan_reaches_both_floors(caplog: pytest.LogCaptureFixture) -> None:
    model = Gan()
    run = fit(model, LearningRateScheduler(COSINE, warmup="2step"), max_epochs=2)
    every_batch = [factor(k, 16, 2) for k in range(16)]
    assert model.used["critic"] == pytest.approx([4e-3 * f for f in every_batch], rel=1e-12)
    third = [f for k, f in enumerate(every_batch) if k % 8 % 3 == 0]
    assert model.used["generator"] == pytest.approx([1e-3 * f for f in third], rel=1e-12)
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([1e-4, 4e-4], rel=1e-12)
    assert "over 16 batches (2 epochs), warmup 2 batches, global batch 4, lr-Adam peak 0.001, lr-Ad" in caplog.text


def test_a_warmup_as_long_as_the_run_of_a_gan_is_refused() -> None:
    with pytest.raises(ValueError, match="must be shorter than the run, got a run of 16 batches"):
        fit(Gan(), LearningRateScheduler(COSINE, warmup="2ep"), max_epochs=2)


def test_max_steps_sets_the_pace_of_manual_optimization() -> None:
    model = Gan()
    run = fit(model, LearningRateScheduler(COSINE), max_epochs=-1, max_steps=22)
    assert run.global_step == 22
    assert model.used["critic"][0] == 4e-3
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([1e-4, 4e-4], rel=1e-12)


def test_the_nearer_limit_sets_the_pace_of_manual_optimization() -> None:
    model = Gan()
    run = fit(model, LearningRateScheduler(COSINE), max_epochs=5, max_steps=22)  # 40 batches would make 55 steps
    assert run.global_step == 22
    assert [o.param_groups[0]["lr"] for o in run.optimizers] == pytest.approx([1e-4, 4e-4], rel=1e-12)


def test_manual_optimization_resumes_exactly(tmp_path: Path) -> None:
    class SavesFirst(Callback):
        """Saves before LearningRateScheduler has moved on, which stands behind it."""

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx}.ckpt")

    whole = Gan()
    fit(whole, SavesFirst(), LearningRateScheduler(COSINE, warmup="3step"), max_epochs=2)
    for batch in (0, 2, 5, 9):
        resumed = Gan()
        fit(resumed, LearningRateScheduler(COSINE, warmup="3step"), ckpt_path=tmp_path / f"{batch}.ckpt", max_epochs=2)
        assert resumed.used["critic"] == whole.used["critic"][batch + 1 :]


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_backbone_joins_under_the_schedule(ours_first: bool) -> None:
    model = Transfer()
    grows = finetuning(lambda_func=lambda epoch: 2.0)
    ours = LearningRateScheduler(COSINE)
    fit(model, *([ours, grows] if ours_first else [grows, ours]), max_epochs=3)
    whole = [factor(k, 24) for k in range(24)]
    assert model.lrs == pytest.approx([0.1 * f for f in whole], rel=1e-12)
    backbone = [lrs[1] for lrs in model.used[8:]]
    assert backbone[:8] == pytest.approx([0.01 * f for f in whole[8:16]], rel=1e-12)
    # the third epoch begins at the callback's own 0.02, more than twice what was written: the base LR from there
    assert backbone[8:] == pytest.approx([0.02, *(0.02 * f for f in whole[17:])], rel=1e-12)


def test_twelve_groups_keep_their_own_learning_rates(caplog: pytest.LogCaptureFixture) -> None:
    class LayerWise(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(*(nn.Linear(3, 3) for _ in range(11)), nn.Linear(3, 1))

        def configure_optimizers(self) -> Any:
            groups = [{"params": part.parameters(), "lr": 0.1 * 0.8**i} for i, part in enumerate(self.layer)]
            return self.watch(torch.optim.Adam(groups))

    model = LayerWise()
    fit(model, LearningRateScheduler(COSINE, warmup="25%"), max_epochs=1)
    expected = [[0.1 * 0.8**i * factor(k, 8, 2) for i in range(12)] for k in range(8)]
    for used, lrs in zip(model.used, expected, strict=True):
        assert used == pytest.approx(lrs, rel=1e-12)
    assert "lr-Adam/pg1 to lr-Adam/pg12 peaks 0.00859 to 0.1" in caplog.text


@pytest.mark.parametrize("monitor_first", [True, False])
def test_the_monitor_and_the_logger_log_what_was_used(tmp_path: Path, monitor_first: bool) -> None:
    monitor, ours = LearningRateMonitor("step"), LearningRateScheduler(COSINE, warmup="2step")
    model = Net()
    logger = pl.loggers.CSVLogger(tmp_path)
    order = [monitor, ours] if monitor_first else [ours, monitor]
    fit(model, *order, max_epochs=1, logger=logger, log_every_n_steps=1)
    assert [float(lr) for lr in monitor.lrs["lr-SGD"]] == model.lrs


def test_other_hyperparameters_run_over_the_whole_run(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            seen.append((optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[0]["momentum"]))

    callback = LearningRateScheduler(
        COSINE, warmup="2step", weight_decay=Linear(start=1, end=10), momentum=Linear(start=1, end=0.5)
    )
    logger = pl.loggers.CSVLogger(tmp_path)
    model = Net(weight_decay=0.01, momentum=0.9)
    fit(model, LearningRateLogger(), callback, Note(), max_epochs=1, logger=logger, log_every_n_steps=1)
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        logged = [(float(row["weight_decay-SGD"]), float(row["momentum-SGD"])) for row in csv.DictReader(file)]
    assert logged[:-1] == seen
    assert logged[-1] == pytest.approx((0.1, 0.45), rel=1e-12)  # after the final update
    assert seen == [pytest.approx((0.01 * (1 + 9 * k / 8), 0.9 * (1 - 0.5 * k / 8)), rel=1e-12) for k in range(8)]


def test_hyperparameters_are_restored_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    curves = {"momentum": Linear(start=1, end=0.5), "weight_decay": Linear(start=1, end=2)}
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(Net(momentum=0.9, weight_decay=0.01), LearningRateScheduler(COSINE, **curves), saver, max_epochs=1)

    def last(**curves: Any) -> dict[str, Any]:
        model = Net(momentum=0.9, weight_decay=0.01)
        run = fit(model, LearningRateScheduler(COSINE, **curves), ckpt_path=tmp_path / "step=4.ckpt", max_epochs=1)
        assert model.lrs == pytest.approx(curve(8)[4:], rel=1e-12)
        return dict(run.optimizers[0].param_groups[0])

    for names in (["momentum", "weight_decay"], ["weight_decay", "momentum"]):
        ended = last(**{name: curves[name] for name in names})
        assert (ended["momentum"], ended["weight_decay"]) == pytest.approx((0.45, 0.02), rel=1e-12)
    ended = last(dampening=Constant(), weight_decay=curves["weight_decay"])
    assert ended["weight_decay"] == pytest.approx(0.02, rel=1e-12)
    assert "the checkpoint has no schedule of SGD/dampening, which continues where the run is" in caplog.text
    assert "schedules of the checkpoint that this run does not have: SGD/momentum" in caplog.text


@dataclass(frozen=True)
class ForeignNumbers(Schedule):
    """A schedule of one's own that returns numpy's or torch's numbers."""

    kind: str

    def factor(self, progress: float) -> Any:
        factor = np.interp(progress, [0, 0.5, 1], [0.1, 1, 0])
        return torch.tensor(factor) if self.kind == "torch" else factor


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_factors_of_numpy_and_torch_become_plain_numbers_that_resume(tmp_path: Path, kind: str) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run = fit(Net(), LearningRateScheduler(ForeignNumbers(kind)), saver, max_epochs=1)
    assert type(run.optimizers[0].param_groups[0]["lr"]) is float
    model = Net()
    trainer(LearningRateScheduler(ForeignNumbers(kind)), max_epochs=1).fit(
        model, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True
    )
    expected = [0.1 * f for f in (0.1 + 0.9 * 0.75, 1, 0.75, 0.5, 0.25)]
    assert model.lrs == pytest.approx(expected, rel=1e-12)


def test_hooks_are_gone_afterwards_and_the_module_is_its_own() -> None:
    model, callback = Net(), LearningRateScheduler(COSINE)
    run = fit(model, callback, max_epochs=1)
    assert not run.optimizers[0]._optimizer_step_post_hooks
    pickle.loads(pickle.dumps(model.layer))
    model.finish = None  # type: ignore[assignment]  # a lambda of this test's, which no pickle takes
    pickle.loads(pickle.dumps(model))
    copy.deepcopy(callback)

    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            copy.deepcopy(trainer.lightning_module)
            raise RuntimeError("stop")

    stopped = trainer(LearningRateScheduler(COSINE), Stops(), max_epochs=1)
    with pytest.raises(RuntimeError, match="stop"):
        stopped.fit(Net())
    assert not stopped.optimizers[0]._optimizer_step_post_hooks


def test_a_callback_of_the_users_may_have_schedulers_of_its_own_kind() -> None:
    class Own(Callback):
        schedulers = None

    model = Net()
    fit(model, Own(), LearningRateScheduler(COSINE), max_epochs=1)
    assert model.lrs == pytest.approx(curve(8), rel=1e-12)


def test_a_second_fit_has_its_own_length(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model, callback = Net(), LearningRateScheduler(COSINE)
    run = fit(model, callback, max_epochs=1)
    assert "over 8 steps (1 epoch)" in caplog.text
    run.fit_loop.max_epochs = 3
    model.used.clear()
    run.fit(model)
    assert "over 16 steps (2 epochs)" in caplog.text
    assert model.lrs == pytest.approx(curve(16), rel=1e-12)
    assert not run.optimizers[0]._optimizer_step_post_hooks


def test_the_state_is_plain_and_saved_after_the_fit_too(tmp_path: Path) -> None:
    run = fit(Net(), LearningRateScheduler(COSINE), max_epochs=1)
    run.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["lit_cosine.LearningRateScheduler"]
    assert {name: saved["step"] for name, saved in state["schedulers"].items()} == {"SGD/lr": 8}
    longer = Net()
    fit(longer, LearningRateScheduler(COSINE, on_resize="restart"), ckpt_path=tmp_path / "end.ckpt", max_epochs=2)
    assert longer.lrs == pytest.approx(curve(8), rel=1e-12)


def test_a_refused_resume_says_one_thing_and_keeps_the_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(Net(), LearningRateScheduler(Cosine()), max_epochs=1).save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["lit_cosine.LearningRateScheduler"]
    caplog.clear()
    run, again = trainer(LearningRateScheduler(Cosine()), max_epochs=2), tmp_path / "again.ckpt"
    with pytest.raises(ValueError, match="would run at LR 0"):
        run.fit(Net(), ckpt_path=tmp_path / "end.ckpt")
    assert not [line for line in caplog.messages if "step hooks" in line or "no state" in line]
    run.save_checkpoint(again)  # as OnExceptionCheckpoint does
    assert torch.load(again, weights_only=True)["lit_cosine.LearningRateScheduler"]["schedulers"] == saved["schedulers"]


def test_another_checkpoint_that_is_validated_leaves_the_state_alone(tmp_path: Path) -> None:
    class Validates(Net):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            pass

        def val_dataloader(self) -> DataLoader[Any]:
            return rows()

    model, callback = Validates(), LearningRateScheduler(COSINE)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run = fit(model, callback, saver, max_epochs=1, limit_val_batches=1)
    run.validate(model, ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    run.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["lit_cosine.LearningRateScheduler"]
    assert {name: saved["step"] for name, saved in state["schedulers"].items()} == {"SGD/lr": 8}


def test_an_lr_finder_restarts_a_resumed_run_and_its_schedule(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(Net(), LearningRateScheduler(COSINE), saver, max_epochs=2)
    resumed = Net()
    finder = LearningRateFinder(num_training_steps=10, early_stop_threshold=None, update_attr=False)
    callbacks = [finder, LearningRateScheduler(COSINE)]
    run = fit(resumed, *callbacks, ckpt_path=tmp_path / "step=3.ckpt", max_epochs=2, default_root_dir=tmp_path)
    # lightning 2.6.6 forgets where the checkpoint was when its finder puts the run back: 16 steps are taken again
    assert run.global_step == 16
    assert resumed.lrs[10:] == pytest.approx(curve(16), rel=1e-12)


def test_a_copy_of_the_scheduler_leaves_the_trainer_behind() -> None:
    class Copies(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                self.copy = pickle.loads(pickle.dumps(ours.schedulers[0]))

    ours, copies = LearningRateScheduler(COSINE), Copies()
    fit(Net(), ours, copies, max_epochs=1)
    played = []
    for _ in range(5):
        played += copies.copy.get_last_lr()
        copies.copy.step()
    assert played == pytest.approx(curve(8)[3:], rel=1e-12)


def test_weight_averaging_changes_no_learning_rate() -> None:
    model = Net()
    fit(model, LearningRateScheduler(COSINE), WeightAveraging(), max_epochs=1)
    assert model.lrs == pytest.approx(curve(8), rel=1e-12)


def test_replace_takes_the_place_of_a_scheduler() -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=30)]

    model = Net(finish, momentum=0.9)
    run = fit(model, LearningRateScheduler(COSINE, replace=True), max_epochs=1)
    assert model.lrs == pytest.approx(curve(8), rel=1e-12)
    assert not run.lr_scheduler_configs
    # OneCycleLR had written its own momentum, and the bounds of both into the group
    (group,) = run.optimizers[0].param_groups
    assert group["momentum"] == 0.9
    assert {*group} - {*run.optimizers[0].defaults} == {"params", "initial_lr"}


def test_replace_leaves_a_group_alone_that_the_other_scheduler_does_not_know() -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.04})
        return [optimizer], [scheduler]

    model = Net(finish)
    fit(model, LearningRateScheduler(COSINE, replace=True), max_epochs=1)
    assert model.used == [pytest.approx([lr, 0.4 * lr], rel=1e-12) for lr in curve(8)]


@settings(max_examples=10)
@given(st.lists(st.floats(0.1, 20.0), min_size=1, max_size=12))
def test_replace_tells_of_a_function_that_climbs_above_the_peak(factors: list[float]) -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        # defined for the steps of its own run alone: behind its end it raises IndexError
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factors.__getitem__)]

    model = Net(finish)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, LearningRateScheduler(COSINE, replace=True), max_epochs=1)
    said = [str(warning.message) for warning in caught if "that was replaced" in str(warning.message)]
    assert model.lrs == pytest.approx(curve(8), rel=1e-12)
    assert len(said) == (max(factors) > 1.01)
    assert all(f"LambdaLR that was replaced reaches {0.1 * max(factors):.4g}; " in line for line in said)


class Longer(Callback):
    """Makes four epochs of two when the second begins."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.fit_loop.max_epochs = 4


def test_the_horizon_may_move_while_training() -> None:
    model = Net()
    run = fit(model, LearningRateScheduler(Linear()), Longer(), max_epochs=2)
    before = [0.1 * (1 - k / 16) for k in range(9 + 1)]
    after = [before[9] * (1 - (k - 9) / (32 - 9)) for k in range(9, 32)]
    assert model.lrs == pytest.approx(before[:9] + after, rel=1e-12)
    assert run.optimizers[0].param_groups[0]["lr"] == 0.0


def test_other_hyperparameters_have_no_warmup_under_a_moved_horizon_either() -> None:
    decays: list[float] = []

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            decays.append(optimizer.param_groups[0]["weight_decay"])

    ours = LearningRateScheduler(warmup="50%", on_resize="rescale", weight_decay=Constant())
    fit(Net(weight_decay=0.01), ours, Longer(), Note(), max_epochs=2)
    assert decays == [0.01] * 32


def test_the_tuner_sets_the_peak(tmp_path: Path) -> None:
    model = Net()
    run = trainer(LearningRateScheduler(COSINE), max_epochs=5, default_root_dir=tmp_path)
    Tuner(run).lr_find(model, min_lr=1e-4, max_lr=0.05, num_training=30, early_stop_threshold=None)
    model.used.clear()
    run.fit(model)
    assert model.lr != 0.1
    assert model.lrs == pytest.approx(curve(40, 0, model.lr), rel=1e-12)


# Bad input: one sentence, before the first batch.


class Wrapped:
    """What DeepSpeed and friends return: steps like an optimizer, but has no hooks."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.step, self.zero_grad = optimizer.step, optimizer.zero_grad
        self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict
        self.param_groups, self.defaults, self.state = optimizer.param_groups, optimizer.defaults, optimizer.state


class DeepSpeedLikeStrategy(pl.strategies.SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__(device="cpu", accelerator=pl.accelerators.CPUAccelerator())


@pytest.mark.parametrize(
    ("finish", "callbacks", "settings", "message"),
    [
        (lambda o, r: None, [LearningRateScheduler()], {"max_epochs": 1}, "configure_optimizers returned none"),
        (with_cosine(8), [LearningRateScheduler()], {"max_epochs": 1}, r"CosineAnnealingLR\): let it return .*replace"),
        (None, [LearningRateScheduler(nope=Linear())], {"max_epochs": 1}, "nope is not a number .* known are lr, mom"),
        (None, [LearningRateScheduler(warmup="9step")], {"max_epochs": 1}, "9. must be shorter .* a run of 8 steps"),
        (None, [LearningRateScheduler(warmup="30s")], {"max_epochs": 1}, '"30s" cannot be used in a run'),
        (None, [LearningRateScheduler()], {"max_epochs": -1}, "the run has no end.* give the Trainer max_epochs"),
        (None, [LearningRateScheduler(), StochasticWeightAveraging(0.1)], {"max_epochs": 1}, "cannot work beside Sto"),
        (None, [LearningRateScheduler(), LearningRateScheduler(Linear())], {"max_epochs": 1}, "takes one"),
        (lambda o, r: Wrapped(o), [LearningRateScheduler()], {"max_epochs": 1}, "Wrapped is not"),
        (
            None,
            [LearningRateScheduler()],
            {"max_epochs": 1, "strategy": DeepSpeedLikeStrategy(), "accelerator": "auto"},
            "inside DeepSpeedL",
        ),
    ],
)
def test_bad_set_ups(finish: Any, callbacks: list[Any], settings: dict[str, Any], message: str) -> None:
    model = Net(finish)
    with pytest.raises(ValueError, match=message):
        fit(model, *callbacks, **settings)
    assert model.used == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": Cosine}, TypeError, r"schedule must be a schedule, got the class Cosine: write Cosine\(\)"),
        ({"schedule": "Cosine"}, TypeError, "schedule must be a schedule such as"),
        ({"weight_decay": 3}, TypeError, "weight_decay must be a schedule"),
        ({"lr": Linear()}, ValueError, r"lr is scheduled by the first argument: write LearningRateScheduler\(Linear"),
        ({"interval": "epoch"}, TypeError, "LearningRateScheduler has no interval, it follows every .*got 'epoch'"),
        ({"wramup": "5%"}, TypeError, "wramup must be a schedule.* '5%'; .* warmup, cooldown, "),
        ({"warmup": 500}, TypeError, 'warmup must name its unit, got 500: write "500step"'),
        ({"on_resize": "stretch"}, ValueError, "on_resize must be one of continue, rescale, keep, restart, got 'str"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LearningRateScheduler(**arguments)


def test_schedules_of_any_shape_play() -> None:
    schedule = Sequential((Linear(start=0.5, end=1), Constant(), Step(gamma=0.5, milestones=(0.5,))), (0.25, 0.5))
    model = Net()
    fit(model, LearningRateScheduler(schedule), max_epochs=1)
    assert model.lrs == pytest.approx([0.1 * f for f in (0.5, 0.75, 1, 1, 1, 1, 0.5, 0.5)], rel=1e-12)
