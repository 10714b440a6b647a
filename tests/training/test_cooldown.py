"""Cooldowns that a metric or the user starts, and updates that hooks count wrong."""

from __future__ import annotations

import copy
import csv
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, SequentialLR

from lit_cosine import (
    Constant,
    CooldownOnPlateau,
    Cosine,
    Duration,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    ScheduleLR,
    TrainingCurves,
    lr_scheduler_config,
)
from tests.helpers.nets import Net, trainer


class Stalls(Net):
    """A validation loss that falls for two epochs and then stays; 8 updates an epoch."""

    def __init__(self, finish: Any = None, stays: float = 1.0) -> None:
        super().__init__(finish)
        self.stays = stays

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        value = [3.0, 2.0][self.current_epoch] if self.current_epoch < 2 else self.stays
        self.log("val/loss", torch.tensor(value))

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


def scheduled(optimizer: Any, run: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(optimizer, Constant(), run)}


PLATEAU = {"monitor": "val/loss", "patience": 2, "cooldown": "4step"}
# epochs 0, 1, 2 improve and 3, 4 do not: the cooldown begins after 5 epochs, 40 updates, and takes 4
EXPECTED = [0.1] * 40 + [0.1 * (1 - math.sqrt(k / 4)) for k in range(4)]


@pytest.mark.parametrize("way", ["callback", "module"])
@pytest.mark.parametrize("max_epochs", [-1, 20])
def test_the_cooldown_begins_where_early_stopping_would_stop_and_ends_the_run(way: str, max_epochs: int) -> None:
    model = Stalls(scheduled if way == "module" else None)
    ours = [LearningRateScheduler(Constant())] if way == "callback" else []
    trainer(*ours, CooldownOnPlateau(**PLATEAU), max_epochs=max_epochs, limit_val_batches=1).fit(model)
    assert model.lrs == pytest.approx(EXPECTED, rel=1e-12, abs=1e-17)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("saved_after", [3, 5])
def test_a_run_resumes_before_and_in_the_cooldown(tmp_path: Path, saved_after: int) -> None:
    def callbacks() -> list[Any]:
        return [LearningRateScheduler(Constant()), CooldownOnPlateau(**{**PLATEAU, "cooldown": "12step"})]

    whole, resumed = Stalls(), Stalls()
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(*callbacks(), saver, max_epochs=20, limit_val_batches=1).fit(whole)
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    run = trainer(*callbacks(), saver, max_epochs=20, limit_val_batches=1)
    run.fit(resumed, ckpt_path=tmp_path / f"epoch={saved_after - 1}.ckpt")
    assert len(whole.lrs) == 52
    assert resumed.lrs == pytest.approx(whole.lrs[8 * saved_after :], rel=1e-12, abs=1e-17)


def test_a_metric_that_is_not_finite_stops_the_run() -> None:
    model = Stalls(stays=math.nan)
    callbacks = [LearningRateScheduler(Constant()), CooldownOnPlateau(**PLATEAU)]
    trainer(*callbacks, max_epochs=20, limit_val_batches=1).fit(model)
    assert model.lrs == [0.1] * 24


def test_a_monitor_that_is_not_logged_is_refused_at_the_first_check() -> None:
    plateau = CooldownOnPlateau(monitor="val_loss")
    with pytest.raises(ValueError, match=r"^monitor must be a logged metric, got 'val_loss'; logged are val/loss$"):
        trainer(LearningRateScheduler(Constant()), plateau, max_epochs=3, limit_val_batches=1).fit(Stalls())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"patience": -1}, ValueError, "patience must be an integer >= 0, got -1"),
        ({"patience": 1.5}, TypeError, "patience must be an integer >= 0, got 1.5"),
        (
            {"cooldown": "0step"},
            ValueError,
            'cooldown must have a length below that of the run, such as "20%", got 0step',
        ),
        (
            {"cooldown": "100%"},
            ValueError,
            'cooldown must have a length below that of the run, such as "20%", got 100%',
        ),
        ({"cooldown": 500}, TypeError, "cooldown must name its unit, got 500"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CooldownOnPlateau(**arguments)


def test_a_run_without_an_end_is_refused_without_a_trigger_or_with_another_schedule() -> None:
    for callbacks in ([], [CooldownOnPlateau(**PLATEAU)]):
        schedule = Cosine() if callbacks else Constant()
        with pytest.raises(ValueError, match="the run has no end"):
            trainer(LearningRateScheduler(schedule), *callbacks, max_epochs=-1, limit_val_batches=1).fit(Stalls())


def test_start_cooldown_of_the_callback_takes_a_share_of_the_whole_run() -> None:
    class Starts(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                ours.start_cooldown("20%")
                with pytest.raises(ValueError, match="the cooldown was started already; it ends at step 20"):
                    ours.start_cooldown("20%")

    ours, model = LearningRateScheduler(Cosine(end=0.5), cooldown_schedule=Linear()), Net()
    run = trainer(ours, Starts(), max_epochs=5)
    run.fit(model)
    held = Cosine(end=0.5)(16 / 40)
    expected = [0.1 * Cosine(end=0.5)(k / 40) for k in range(16)] + [0.1 * held * (1 - k / 4) for k in range(4)]
    assert model.lrs == pytest.approx(expected, rel=1e-12, abs=1e-17)


def test_a_cooldown_that_does_not_fit_is_refused_before_training() -> None:
    for cooldown, message in (("24step", '"24step", 24'), ("30s", "cannot be used in a run"), ("100%", '"100%", 24')):
        model = Net()
        with pytest.raises(ValueError, match=message):
            trainer(LearningRateScheduler(cooldown=cooldown), max_epochs=3).fit(model)
        assert model.used == []
    with pytest.raises(
        ValueError, match=r'warmup \("50%", 12\) and cooldown \("50%", 12\) must be shorter than the run'
    ):
        trainer(LearningRateScheduler(warmup="50%", cooldown="50%"), max_epochs=3).fit(Net())


def test_a_cooldown_that_cannot_be_started_is_refused() -> None:
    class Starts(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for cooldown, message in (
                (None, 'cooldown must have a length below that of the run, such as "20%", got 0step'),
                ("0%", "cooldown must have a length"),
                ("100%", "cooldown must have a length"),
                ("30s", 'cooldown="30s" cannot be used in a run that is limited by steps or epochs'),
            ):
                with pytest.raises(ValueError, match=message):
                    ours.start_cooldown(cooldown)
            with pytest.raises(TypeError, match="cooldown must name its unit, got 5"):
                ours.start_cooldown(5)
            with pytest.raises(ValueError, match="a copy of a scheduler has no Trainer"):
                copy.deepcopy(ours.schedulers[0]).start_cooldown_of(Duration.parse("2step"))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            with pytest.raises(ValueError, match="the run has ended at step 8: no cooldown can be started"):
                ours.start_cooldown("2step")

    ours, model = LearningRateScheduler(Constant()), Net()
    with pytest.raises(ValueError, match="a cooldown can only be started while the Trainer is training"):
        ours.start_cooldown("2step")
    trainer(ours, Starts(), max_epochs=1).fit(model)
    assert model.lrs == [0.1] * 8
    with pytest.raises(ValueError, match="a cooldown can only be started while the Trainer is training"):
        ours.start_cooldown("2step")


# --- one update is one update ---


class Twice(torch.optim.SGD):
    """torch calls the step hooks of a subclass that calls super().step() twice once a plain SGD exists."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


class Never(torch.optim.Optimizer):
    """A wrapper that leaves ``Optimizer.__init__`` out, as timm's Lookahead: its hooks never fire."""

    def __init__(self, base: Any) -> None:
        self.base, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state = base.state
        self._optimizer_step_pre_hooks = OrderedDict[int, Any]()
        self._optimizer_step_post_hooks = OrderedDict[int, Any]()

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.base.step(closure)


@pytest.mark.parametrize("kind", ["twice", "never"])
@pytest.mark.parametrize("way", ["callback", "module"])
def test_hooks_that_fire_twice_or_never_count_once(kind: str, way: str, tmp_path: Path) -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)

    def finish(optimizer: Any, run: Any) -> Any:
        groups = optimizer.param_groups
        other = Twice(groups[0]["params"], lr=0.1) if kind == "twice" else Never(optimizer)
        if way == "callback":
            return other
        return {"optimizer": other, "lr_scheduler": lr_scheduler_config(other, Cosine(), run)}

    used = []

    class Reads(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            used.append(optimizer.param_groups[0]["lr"])

    ours = [LearningRateScheduler(Cosine())] if way == "callback" else []
    monitors = [LearningRateLogger("loss"), curves := TrainingCurves(filename=str(tmp_path / "curves.png"))]
    logger = CSVLogger(tmp_path, "", "")
    trainer(*ours, Reads(), *monitors, max_epochs=2, logger=logger, log_every_n_steps=1).fit(Net(finish))
    logged = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    (tag,) = [name for name in logged[0] if name.startswith("lr")]
    assert [(int(row["step"]), float(row[tag])) for row in logged] == [*enumerate(used), (16, 0.0)]
    assert curves.figure.axes[0].lines[0].get_xdata().tolist() == list(range(17))
    assert used == pytest.approx([0.1 * Cosine()(k / 16) for k in range(16)], rel=1e-12)


@pytest.mark.parametrize("overflows", [(), (0, 1, 5)])
@pytest.mark.parametrize("way", ["callback", "module"])
def test_hooks_that_never_fire_count_once_under_a_grad_scaler_too(way: str, overflows: tuple[int, ...]) -> None:
    class Scaled(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (float("inf") if batch_idx in overflows else 1.0)

    class Reads(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            used[-1].append(trainer.optimizers[0].param_groups[0]["lr"])

    used: list[list[float]] = []
    for wrapper in (lambda optimizer: optimizer, Never):
        used.append([])

        def finish(optimizer: Any, run: Any, wrapper: Any = wrapper) -> Any:
            other = wrapper(optimizer)
            if way == "callback":
                return other
            return {"optimizer": other, "lr_scheduler": lr_scheduler_config(other, Cosine(), run)}

        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1.0))
        ours = [LearningRateScheduler(Cosine())] if way == "callback" else []
        trainer(*ours, Reads(), max_epochs=2, plugins=[plugin]).fit(Scaled(finish))
    assert used[1] == used[0]
    assert len(set(used[0])) == 16 - 2 * len(overflows)


def test_an_lr_finder_beside_the_module_way_gives_the_warmup_of_the_peak_that_it_found(tmp_path: Path) -> None:
    def finish(optimizer: Any, run: Any) -> Any:
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(optimizer, Cosine(), run, warmup="4step")}

    used = []

    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            used.append(trainer.lr_scheduler_configs[0].scheduler.base_lrs[0])

    class Found(Net):
        lr = 0.1

    finder = LearningRateFinder(num_training_steps=40, early_stop_threshold=None)
    model = Found(finish)
    run = trainer(finder, Reads(), max_epochs=2, default_root_dir=tmp_path)
    run.fit(model)
    found = finder.optimal_lr.suggestion()
    assert used[-16:] == pytest.approx([found] * 16, rel=1e-12)
    after = model.lrs[-15:]  # what was read before the first update is the finder's own value
    assert after == pytest.approx(
        [found * min(1, (k + 1) / 5) * Cosine()(max(0, k - 4) / 12) for k in range(1, 16)], rel=1e-12
    )


# --- among torch's schedulers ---


def test_schedulers_in_torchs_sequence_play_their_own_parts() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    parts = [ScheduleLR(optimizer, Linear(start=0.5, end=1), 4), ScheduleLR(optimizer, Cosine(), 6)]
    sequence, used = SequentialLR(optimizer, parts, milestones=[4]), []
    for _ in range(10):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        sequence.step()
    expected = [Linear(start=0.5, end=1)(k / 4) for k in range(4)] + [Cosine()(k / 6) for k in range(6)]
    assert used == pytest.approx([0.1 * factor for factor in expected], rel=1e-12)


def test_a_factor_of_another_scheduler_in_a_chain_multiplies() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    chain = ChainedScheduler([ScheduleLR(optimizer, Cosine(end=0.1), 10), ExponentialLR(optimizer, 0.9)])
    used = []
    for _ in range(10):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        chain.step()
    assert used == pytest.approx([0.1 * Cosine(end=0.1)(k / 10) * 0.9**k for k in range(10)], rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": math.nan}, "step must be finite and >= 0, got nan"),
        ({"base_lrs": [0.1, 0.1]}, "base_lrs and last_lr must have one length"),
        ({"base_lrs": [-0.1]}, "base_lrs must be finite and >= 0, got -0.1"),
        ({"total_steps": 0.5}, "total_steps must be an integer >= 1, got 0.5"),
        ({"clock": [1.0, math.inf, 0.0]}, "Clock.step must be finite"),
        ({"names": "weight"}, "names must be a list, got 'weight'"),
        ({"key": "momentum"}, "the state has the key 'momentum', this scheduler 'lr'"),
        ({"version": 3}, "has version 3 and this lit_cosine reads version 2"),
        ({"version": 1}, "written by lit_cosine 1.x"),
        ({"schedule": {"class_path": "somewhere.Else"}}, "the schedule of the checkpoint cannot be built"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = ScheduleLR(optimizer, Cosine(), 10)
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict({**scheduler.state_dict(), **change})
    scheduler.load_state_dict({**scheduler.state_dict(), "of a later release": 1})


def test_a_plateau_at_the_last_check_of_a_run_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    model = Stalls()
    callbacks = [LearningRateScheduler(Constant()), CooldownOnPlateau(**PLATEAU), ModelCheckpoint(tmp_path)]
    trainer(*callbacks, max_epochs=5, limit_val_batches=1).fit(model)
    assert model.lrs == [0.1] * 40
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=4-step=40.ckpt"]


def test_a_callback_cools_a_second_run_down_too() -> None:
    watcher = CooldownOnPlateau(**PLATEAU)
    for _ in range(2):
        model = Stalls()
        trainer(LearningRateScheduler(Constant()), watcher, max_epochs=20, limit_val_batches=1).fit(model)
        assert len(model.lrs) < 8 * 20
        assert model.lrs[-4:] == pytest.approx(EXPECTED[-4:], rel=1e-12, abs=1e-17)


def test_an_lr_of_0_is_no_reason_to_fail_at_the_plan_line() -> None:
    model = Stalls()
    model.lr = 0.0
    trainer(LearningRateScheduler(Cosine(end=1e-5)), max_epochs=1).fit(model)
    assert model.lrs == [0.0] * 8
