"""The length a Trainer's run really has, counted; and the scheduler that follows it when that length changes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor, Timer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from lit_cosine import Constant, Cosine, LearningRateScheduler, Linear, Step, lr_scheduler_config, total_steps
from lit_cosine.schedules import OnResize
from tests.helpers import oracles
from tests.helpers.nets import Net, rows, trainer

POLICIES: list[OnResize] = ["continue", "rescale", "keep", "restart"]
CURVE = Cosine(end=0.1)


def exactly(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=0.0)


def scheduled(**settings: Any) -> Callable[[torch.optim.Optimizer, Any], Any]:
    """configure_optimizers of a module that uses lr_scheduler_config."""

    def finish(optimizer: torch.optim.Optimizer, run: Any) -> Any:
        config = lr_scheduler_config(optimizer, settings.pop("schedule", CURVE), run, **settings)
        return {"optimizer": optimizer, "lr_scheduler": config}

    return finish


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Rows without a length."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            yield torch.ones(2, 3), torch.ones(2, 1)


class SizedStream(Stream):
    def __len__(self) -> int:
        return self.batches


class Two(Net):
    """A Net whose batches come from two loaders; it learns from whichever has one."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(next(part for part in batch if part is not None), batch_idx)


class Remembering:
    """A loader of numbered batches that can go on in the middle of an epoch."""

    def __init__(self, batches: int) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.position + 1, self.batches + 1):
            self.position = number % self.batches
            yield torch.full((2, 3), float(number)), torch.ones(2, 1)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def stream(batches: int, cls: type[Stream] = Stream) -> DataLoader[Any]:
    return DataLoader(cls(batches), batch_size=None)


def batch_sampled(drop_last: bool) -> DataLoader[Any]:
    data = TensorDataset(torch.ones(30, 3), torch.ones(30, 1))
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 4, drop_last))


RUNS: dict[str, tuple[dict[str, Any], Any, int]] = {
    # settings of the Trainer, the loader (8 batches where it is None), steps derived by hand
    "max_epochs": ({"max_epochs": 3}, None, 24),
    "max_steps": ({"max_steps": 11, "max_epochs": -1}, None, 11),
    "max_steps within max_epochs": ({"max_epochs": 3, "max_steps": 11}, None, 11),
    "max_steps beyond max_epochs": ({"max_epochs": 2, "max_steps": 100}, None, 16),
    "accumulation": ({"max_epochs": 3, "accumulate_grad_batches": 4}, None, 6),
    "accumulation with a rest": ({"max_epochs": 3, "accumulate_grad_batches": 3}, None, 9),
    "accumulation over more than an epoch": ({"max_epochs": 3, "accumulate_grad_batches": 100}, None, 3),
    "accumulation and max_steps": ({"max_epochs": 9, "max_steps": 7, "accumulate_grad_batches": 3}, None, 7),
    "accumulation by epoch": ({"max_epochs": 4, "accumulate": {0: 1, 1: 4, 3: 3}}, None, 8 + 2 + 2 + 3),
    "accumulation by epoch and max_steps": ({"max_epochs": 4, "max_steps": 11, "accumulate": {0: 1, 1: 4}}, None, 11),
    "limited to some batches": ({"max_epochs": 3, "limit_train_batches": 5}, None, 15),
    "limited to a share": ({"max_epochs": 3, "limit_train_batches": 0.4}, None, 9),
    "limited to one batch": ({"max_epochs": 3, "limit_train_batches": 1}, None, 3),
    "limited, accumulated": ({"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2}, None, 6),
    "limited to more than there is": ({"max_epochs": 2, "limit_train_batches": 100}, None, 16),
    "overfitting some batches": ({"max_epochs": 3, "overfit_batches": 2}, None, 6),
    "overfitting a share": ({"max_epochs": 3, "overfit_batches": 0.25}, None, 6),
    "fast_dev_run": ({"fast_dev_run": 3}, None, 3),
    "an epoch of one step": ({"max_epochs": 1}, lambda: rows(4), 1),
    "a last batch that is short": ({"max_epochs": 2}, lambda: rows(33), 18),
    "a stream, max_steps": ({"max_steps": 11, "max_epochs": -1}, lambda: stream(5), 11),
    "a stream, limited": ({"max_epochs": 3, "limit_train_batches": 4}, lambda: stream(5), 12),
    "a stream, limited, max_steps": ({"max_epochs": 9, "max_steps": 7, "limit_train_batches": 4}, lambda: stream(5), 7),
    "a stream with a length": ({"max_epochs": 3}, lambda: stream(5, SizedStream), 15),
    "a batch sampler": ({"max_epochs": 2}, lambda: batch_sampled(drop_last=False), 16),
    "a batch sampler that drops": ({"max_epochs": 2}, lambda: batch_sampled(drop_last=True), 14),
    "a loader of one's own": ({"max_epochs": 2}, lambda: Remembering(3), 6),
    "two loaders, the shorter": ({"max_epochs": 2}, lambda: CombinedLoader([rows(12), rows(32)], "min_size"), 6),
    "two loaders, the longer": ({"max_epochs": 2}, lambda: CombinedLoader([rows(12), rows(32)], "max_size"), 16),
    "two loaders in a cycle": ({"max_epochs": 2}, lambda: [rows(12), rows(32)], 16),
    "two loaders, limited": (
        {"max_epochs": 2, "limit_train_batches": 0.5},
        lambda: CombinedLoader([rows(12), rows(32)], "max_size_cycle"),
        8,
    ),
    "reloaded every epoch": ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, None, 24),
    "validated in between": ({"max_epochs": 2, "val_check_interval": 3}, None, 16),
    "min_epochs": ({"max_epochs": 3, "min_epochs": 2, "min_steps": 1}, None, 24),
    "max_time is longer": ({"max_epochs": 2, "max_time": timedelta(hours=1)}, None, 16),
}


# 2026-11: Lightning warns of loaders without workers or shuffling and of few batches, which are not what is tested
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("name", RUNS)
def test_total_steps_is_the_number_of_steps_taken(name: str) -> None:
    settings, loader, derived = RUNS[name]
    settings = dict(settings)
    callbacks = [GradientAccumulationScheduler(settings.pop("accumulate"))] if "accumulate" in settings else []
    said: list[int] = []

    def finish(optimizer: torch.optim.Optimizer, run: Any) -> Any:
        said.append(total_steps(run))
        return scheduled(warmup="0step")(optimizer, run)

    model = (Two if "two loaders" in name else Net)(finish)
    trainer(*callbacks, **settings).fit(model, loader and loader())
    assert (said, len(model.used)) == ([derived], derived)
    assert model.lrs == exactly([0.1 * CURVE(k / derived) for k in range(derived)])


def test_a_datamodule_may_bring_the_loader() -> None:
    class Rows(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return rows(20)

    model = Net(scheduled())
    trainer(max_epochs=2).fit(model, datamodule=Rows())
    assert model.lrs == exactly([0.1 * CURVE(k / 10) for k in range(10)])


def test_a_second_fit_has_its_own_length() -> None:
    model = Net(scheduled())
    run = trainer(max_epochs=2)
    run.fit(model)
    run.fit_loop.max_epochs = 5
    run.fit(model)
    assert model.lrs == exactly([0.1 * CURVE(k / 16) for k in range(16)] + [0.1 * CURVE(k / 24) for k in range(24)])


# --- resume ---


class SaveAt(pl.Callback):
    """Saves once, after ``step``."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def saved_at(step: int, path: Path, loader: Any = None, **settings: Any) -> Path:
    """Train a module with lr_scheduler_config over 2 epochs of 8 batches, and return its checkpoint after ``step``."""
    trainer(SaveAt(step, path / "run.ckpt"), max_epochs=2).fit(Net(scheduled(**settings)), loader)
    return path / "run.ckpt"


@pytest.mark.parametrize("step", [3, 8, 13])
def test_a_stateful_loader_keeps_its_position(tmp_path: Path, step: int) -> None:
    class Noting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(int(batch[0][0, 0]))
            return super().training_step(batch, batch_idx)

    checkpoint = saved_at(step, tmp_path, Remembering(8), warmup="1ep")
    seen: list[int] = []
    model = Noting(scheduled(warmup="1ep"))
    trainer(max_epochs=2).fit(model, Remembering(8), ckpt_path=checkpoint)
    assert seen == [*range(1, 9), *range(1, 9)][step:]
    expected = [oracles.linear_warmup(k, 8) * CURVE(max(k - 8, 0) / 8) for k in range(step, 16)]
    assert model.lrs == exactly([0.1 * factor for factor in expected])


# 2026-11: Lightning warns of resuming inside an epoch with a loader that cannot; the LR is what matters here
INSIDE_AN_EPOCH = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")


@INSIDE_AN_EPOCH
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("epochs", [4, 1])
def test_a_run_resumed_with_other_epochs_follows_its_policy(tmp_path: Path, policy: OnResize, epochs: int) -> None:
    checkpoint = saved_at(5, tmp_path)
    model = Net(scheduled(on_resize=policy))
    trainer(max_epochs=epochs).fit(model, ckpt_path=checkpoint)
    progress = [oracles.resumed_progress(k, 5, policy, 16, 8 * epochs) for k in range(5, 8 * epochs)]
    assert model.lrs == exactly([0.1 * CURVE(p) for p in progress])


@pytest.mark.parametrize(
    ("arguments", "settings", "units"),
    [
        ({"interval": "epoch"}, {"max_epochs": 2}, "'step', this scheduler 'epoch'"),
        ({}, {"max_epochs": -1, "max_time": timedelta(hours=1)}, "'step', this scheduler 'ms'"),
    ],
)
def test_a_run_resumed_in_another_unit_is_refused(
    tmp_path: Path, arguments: dict[str, Any], settings: dict[str, Any], units: str
) -> None:
    model = Net(scheduled(**arguments))
    with pytest.raises(ValueError, match=f"^the state has the unit {units}: resume with the same interval and"):
        trainer(**settings).fit(model, ckpt_path=saved_at(8, tmp_path))
    assert model.used == []


@INSIDE_AN_EPOCH
@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("step", [CURVE(0), *(CURVE(k / 16) for k in range(6, 16))]),
        ("epoch", [CURVE(0)] * 3 + [CURVE(1 / 2)] * 8),
    ],
)
def test_a_run_that_began_without_the_scheduler_goes_on_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, interval: str, expected: list[float]
) -> None:
    trainer(SaveAt(5, tmp_path / "run.ckpt"), max_epochs=2).fit(Net())
    model = Net(scheduled(interval=interval))
    trainer(max_epochs=2).fit(model, ckpt_path=tmp_path / "run.ckpt")
    assert model.lrs == exactly([0.1 * factor for factor in expected])
    assert "the checkpoint has no state of this schedule" in caplog.text


@INSIDE_AN_EPOCH
def test_a_trainer_that_resumes_after_a_fit_counts_the_whole_run(tmp_path: Path) -> None:
    model = Net(scheduled())
    run = trainer(SaveAt(5, tmp_path / "run.ckpt"), max_epochs=2)
    run.fit(model)
    run.fit(model, ckpt_path=tmp_path / "run.ckpt")
    expected = [0.1 * CURVE(k / 16) for k in range(16)]
    assert model.lrs == exactly(expected + expected[5:])


# --- a horizon that changes while training ---


class Raise(pl.Callback):
    """Sets the Trainer's limit to another value when ``epoch`` starts."""

    def __init__(self, epoch: int, **limits: int) -> None:
        self.epoch, self.limits = epoch, limits

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            for name, value in self.limits.items():
                loop: Any = trainer.fit_loop if name == "max_epochs" else trainer.fit_loop.epoch_loop
                setattr(loop, name, value)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("limits", "accumulate", "total"),
    [({"max_epochs": 4}, 1, 32), ({"max_epochs": 4}, 3, 12), ({"max_epochs": 2}, 1, 16), ({"max_steps": 13}, 1, 13)],
)
def test_a_limit_changed_by_a_callback(policy: OnResize, limits: dict[str, int], accumulate: int, total: int) -> None:
    model = Net(scheduled(on_resize=policy))
    trainer(Raise(1, **limits), max_epochs=3, accumulate_grad_batches=accumulate).fit(model)
    planned = 24 if accumulate == 1 else 9
    # heard at the first step after the change
    heard = planned // 3 + 1
    progress = [oracles.resumed_progress(k, heard, policy, planned, total) for k in range(total)]
    assert model.lrs == exactly([0.1 * CURVE(p) for p in progress])


def test_a_share_of_warmup_is_a_share_of_the_rescaled_run() -> None:
    model = Net(scheduled(on_resize="rescale", warmup="25%"))
    trainer(Raise(1, max_epochs=4), max_epochs=2).fit(model)
    planned = [oracles.linear_warmup(k, 4) * CURVE(max(k - 4, 0) / 12) for k in range(9)]
    rescaled = [oracles.linear_warmup(k, 8) * CURVE(max(k - 8, 0) / 24) for k in range(9, 32)]
    assert model.lrs == exactly([0.1 * factor for factor in planned + rescaled])


def test_an_accumulation_changed_by_a_callback() -> None:
    class Accumulate(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.accumulate_grad_batches = 4 if trainer.current_epoch else 1

    model = Net(scheduled())
    trainer(Accumulate(), max_epochs=3).fit(model)
    progress = [oracles.resumed_progress(k, 9, "continue", 24, 12) for k in range(12)]
    assert model.lrs == exactly([0.1 * CURVE(p) for p in progress])


class Reloading(Net):
    """Has another number of batches in every epoch."""

    def __init__(self, finish: Any, batches: tuple[int, int, int]) -> None:
        super().__init__(finish)
        self.batches = batches

    def train_dataloader(self) -> DataLoader[Any]:
        return rows(4 * self.batches[self.trainer.current_epoch])


@pytest.mark.parametrize("way", ["callback", "module"])
@pytest.mark.parametrize(
    ("batches", "windows"),
    [((8, 10, 12), None), ((8, 5, 4), None), ((8, 4, 12), {0: 1, 1: 2}), ((8, 12, 5), {0: 2, 2: 1})],
)
def test_a_loader_that_grows_or_shrinks_on_reload(
    way: str, batches: tuple[int, int, int], windows: dict[int, int] | None
) -> None:
    model = Reloading(scheduled() if way == "module" else None, batches)
    callbacks: list[Any] = [LearningRateScheduler(CURVE)] if way == "callback" else []
    if windows:
        callbacks.append(GradientAccumulationScheduler(windows))
    trainer(*callbacks, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model)

    def updates(rows: int, epoch: int) -> int:
        return math.ceil(rows / (windows or {0: 1})[max(first for first in windows or {0: 1} if first <= epoch)])

    # one line through the whole run, planned anew after the first update of an epoch, when its batches are known
    line, done, expected = (0.0, 0.0, sum(updates(batches[0], epoch) for epoch in range(3))), 0, []
    for epoch in range(3):
        for update in range(updates(batches[epoch], epoch)):
            step, progress, end = line
            now = progress + (1 - progress) * (done - step) / (end - step)
            if update == 1:
                end = done + sum(updates(batches[epoch], later) for later in range(epoch, 3)) - 1
                line = (done, now, end)
            expected.append(0.1 * CURVE(now))
            done += 1
    assert model.lrs == exactly(expected)


# --- a schedule that cannot go on ---


@pytest.mark.parametrize("way", ["callback", "module"])
@pytest.mark.parametrize(
    ("schedule", "policy", "message"),
    [
        (Step(gamma=2.0, milestones=(0.5,)), "continue", "is neither constant nor a curve that falls"),
        (Linear(), "keep", "plays the old plan"),
    ],
)
def test_a_resume_with_a_schedule_that_cannot_go_on_is_refused_before_training(
    way: str, schedule: Any, policy: OnResize, message: str, tmp_path: Path
) -> None:
    def run(schedule: Any, *callbacks: Any) -> tuple[Net, Any]:
        ours = [LearningRateScheduler(schedule, on_resize=policy)] if way == "callback" else []
        model = Net(scheduled(schedule=schedule, on_resize=policy) if way == "module" else None)
        return model, trainer(*ours, *callbacks, max_epochs=2)

    model, first = run(Cosine(), SaveAt(8, tmp_path / "run.ckpt"))
    first.fit(model)
    model, second = run(schedule)
    with pytest.raises(ValueError, match=f'{message}.*use on_resize="rescale" or "restart"'):
        second.fit(model, ckpt_path=tmp_path / "run.ckpt")
    assert model.used == []


# --- epochs ---


def test_an_lr_that_moves_once_an_epoch() -> None:
    model = Net(scheduled(interval="epoch", warmup="1ep"))
    trainer(max_epochs=4).fit(model)
    factors = [0.5 * CURVE(0), CURVE(0), CURVE(1 / 3), CURVE(2 / 3)]
    assert model.lrs == exactly([0.1 * factor for factor in factors for _ in range(8)])


def test_epochs_follow_max_steps_and_other_epochs(tmp_path: Path) -> None:
    model = Net(scheduled(interval="epoch"))
    trainer(max_epochs=10, max_steps=20).fit(model)
    assert model.lrs == exactly([0.1 * CURVE(epoch / 3) for epoch in (0,) * 8 + (1,) * 8 + (2,) * 4])
    model = Net(scheduled(interval="epoch"))
    trainer(Raise(1, max_epochs=5), max_epochs=3).fit(model)
    progress = [oracles.resumed_progress(epoch, 2, "continue", 3, 5) for epoch in range(5)]
    assert model.lrs == exactly([0.1 * CURVE(p) for p in progress for _ in range(8)])


# --- warmup in every unit ---


@pytest.mark.parametrize(
    ("warmup", "settings", "steps"),
    [
        ("5step", {"max_epochs": 3}, 5),
        ("1ep", {"max_epochs": 3}, 8),
        ("0.5ep", {"max_epochs": 3}, 4),
        ("2ep", {"max_epochs": 3, "accumulate_grad_batches": 3}, 6),
        ("25%", {"max_epochs": 3}, 6),
        ("0.25run", {"max_epochs": 9, "max_steps": 12}, 3),
        ("0step", {"max_epochs": 3}, 0),
    ],
)
def test_warmup(warmup: str, settings: dict[str, Any], steps: int) -> None:
    model = Net(scheduled(schedule=Constant(), warmup=warmup))
    trainer(**settings).fit(model)
    assert model.lrs == exactly([0.1 * oracles.linear_warmup(k, steps) for k in range(len(model.used))])


def test_warmup_in_epochs_under_accumulation_by_epoch() -> None:
    model = Net(scheduled(schedule=Constant(), warmup="2ep"))
    trainer(GradientAccumulationScheduler({0: 1, 1: 4}), max_epochs=4).fit(model)
    assert model.lrs == exactly([0.1 * oracles.linear_warmup(k, 8 + 2) for k in range(14)])


def test_the_name_is_what_the_monitor_logs(tmp_path: Path) -> None:
    monitor = LearningRateMonitor()
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer(monitor, max_epochs=1, logger=logger, log_every_n_steps=1).fit(Net(scheduled(name="my-lr")))
    assert list(monitor.lrs) == ["my-lr"]


# --- the clock on the wall ---


def played(progress: float) -> float:
    return 0.1 * Linear()(progress)


class Slow(Net):
    """Notes when each update ran, in fractions of ``seconds``."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        time.sleep(0.02)


@INSIDE_AN_EPOCH
def test_under_max_time_progress_is_the_elapsed_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Slow(scheduled(schedule=Linear()))
    timer = Timer(timedelta(seconds=0.6))
    elapsed: list[float] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            elapsed.append(timer.time_elapsed())

    run = trainer(Note(), timer, SaveAt(10, tmp_path / "run.ckpt"), max_epochs=-1)
    run.fit(model)
    assert 11 <= len(model.used) <= 31
    assert model.lrs[0] == 0.1
    # what update k + 1 runs at was written after update k, between the two notes
    for k in range(len(model.used) - 1):
        earlier = elapsed[k - 1] if k else 0.0
        assert played(elapsed[k] / 0.6) <= model.lrs[k + 1] <= played(earlier / 0.6)
    last = float(run.optimizers[0].param_groups[0]["lr"])
    assert played(elapsed[-1] / 0.6) <= last <= played(elapsed[-2] / 0.6)

    resumed = Slow(scheduled(schedule=Linear()))
    timer, before, elapsed = Timer(timedelta(seconds=0.6)), elapsed, []
    trainer(Note(), timer, max_epochs=-1).fit(resumed, ckpt_path=tmp_path / "run.ckpt")
    # the time of the first run counts: the LR goes on from where it was, not from the peak
    assert played(elapsed[0] / 0.6) <= resumed.lrs[0] <= played(before[8] / 0.6)
    assert resumed.lrs[0] < 0.09
    assert "total_steps changed" not in caplog.text


def test_max_time_of_the_trainer_with_a_warmup_in_seconds() -> None:
    model = Slow(scheduled(schedule=Constant(), warmup="0.2s"))
    trainer(max_epochs=-1, max_time=timedelta(seconds=0.4)).fit(model)
    assert model.lrs[0] == exactly(0.1 / 201)
    assert sorted(model.lrs) == model.lrs
    assert model.lrs[-1] == 0.1
    assert 3 <= sum(lr < 0.1 for lr in model.lrs) <= 11


TWO = """
import json, os, sys, time
from datetime import timedelta
sys.path.insert(0, sys.argv[1])
from torch.utils.data import DataLoader
from tests.helpers.nets import Net, rows, trainer
from tests.training.test_trainer import SizedStream, stream
from lit_cosine import Cosine, lr_scheduler_config, total_steps

class Rank(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.max_epochs == -1:
            time.sleep(0.01 * (1 + 2 * self.global_rank))

    def on_train_end(self):
        with open(f"{sys.argv[2]}/{name}-{self.global_rank}.json", "w") as file:
            json.dump([said, self.lrs], file)

def finish(optimizer, run):
    if run.max_epochs != -1:
        said.append(total_steps(run))
    return {"optimizer": optimizer, "lr_scheduler": lr_scheduler_config(optimizer, Cosine(end=0.1), run, warmup=warmup)}

for name, loader, warmup, settings in (
    ("steps", rows(33), "2step", {"max_epochs": 2}),
    ("accumulated", rows(34), "1ep", {"max_epochs": 2, "accumulate_grad_batches": 2}),
    ("dropped", DataLoader(rows(34).dataset, batch_size=4, drop_last=True), "1step", {"max_epochs": 2}),
    ("streamed", stream(5, SizedStream), "1step", {"max_epochs": 2}),
    ("timed", rows(40), "0.05s", {"max_epochs": -1, "max_time": timedelta(seconds=0.8)}),
):
    said = []
    os.environ.pop("MASTER_PORT", None)  # Lightning would listen once more on a port that it has hardly left
    trainer(devices=2, strategy="ddp_fork", **settings).fit(Rank(finish), loader)
"""


@pytest.mark.xdist_group("processes")
def test_two_processes_use_one_learning_rate(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-W", "ignore", script, str(Path(__file__).parents[2]), str(tmp_path)]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def read(name: str) -> list[Any]:
        first, second = (json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(2))
        assert first == second
        return first

    # 33 rows are 17 for each of two ranks, hence 5 batches of 4; 34 rows are 17 too, 5 batches, 3 updates an epoch, or
    # 4 full batches; a stream is no rank's but each rank's own
    for name, total, warmup in (("steps", 10, 2), ("accumulated", 6, 3), ("dropped", 8, 1), ("streamed", 10, 1)):
        factors = [
            oracles.linear_warmup(k, warmup) * CURVE(max(k - warmup, 0) / (total - warmup)) for k in range(total)
        ]
        assert read(name) == [[total], exactly([0.1 * factor for factor in factors])]
    _, lrs = read("timed")
    peak = lrs.index(max(lrs))
    assert peak <= 6
    assert len(lrs) >= 5
    assert sorted(lrs[peak:], reverse=True) == lrs[peak:]
    assert lrs[-1] < 0.05


# --- refused, before training ---


def refused(message: str, error: type[Exception] = ValueError, loader: Any = None, **settings: Any) -> None:
    arguments = {key: settings.pop(key) for key in ("schedule", "warmup", "interval", "on_resize") if key in settings}
    model = Net(scheduled(**arguments))
    with pytest.raises(error, match=message):
        trainer(**settings).fit(model, loader)
    assert model.used == []


def test_an_endless_run_is_refused() -> None:
    message = r"^the run has no end, so no number of steps: give the Trainer max_epochs or max_steps$"
    refused(message, max_epochs=-1)
    refused(message, loader=stream(5), max_epochs=-1)
    refused(message.replace("steps:", "epochs:"), max_epochs=-1, interval="epoch")


def test_a_stream_without_max_steps_is_refused() -> None:
    message = (
        r"^the train loader has no length, so the run has no number of steps: give the Trainer max_steps or limit_"
    )
    refused(message, loader=stream(5), max_epochs=3)
    message = (
        r"^the train loader has no length, so the run has no number of epochs: give the Trainer limit_train_batches$"
    )
    refused(message, loader=stream(5), max_epochs=-1, max_steps=9, interval="epoch")


def test_total_steps_under_max_time_is_refused() -> None:
    model = Net(lambda optimizer, run: total_steps(run))
    with pytest.raises(ValueError, match=r"^the run has no end, so no number of steps: give the Trainer max_epochs or"):
        trainer(max_epochs=-1, max_time=timedelta(seconds=5)).fit(model)


def test_manual_optimization_has_no_number_of_steps() -> None:
    model = Net(lambda optimizer, run: total_steps(run))
    model.automatic_optimization = False
    with pytest.raises(
        ValueError, match=r"^under manual optimization a Trainer does not know how often each optimizer"
    ):
        trainer(max_epochs=1).fit(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": "24step"}, r'warmup \("24step", 24\) must be shorter than the run, got a run of 24 steps'),
        ({"warmup": "4ep"}, r'warmup \("4ep", 32\) must be shorter than the run, got a run of 24 steps'),
        ({"warmup": "100%"}, r'warmup \("100%", 24\) must be shorter than the run, got a run of 24 steps'),
        (
            {"warmup": "3ep", "interval": "epoch"},
            r'warmup \("3ep", 3\) must be shorter than the run, got a run of 3 e',
        ),
        (
            {"warmup": "30s"},
            r'warmup="30s" cannot be used in a run that is limited by steps or epochs',
        ),
        (
            {"warmup": "5step", "interval": "epoch"},
            r'warmup="5step" must be whole epochs when interval is "epoch", got ',
        ),
        ({"warmup": "5m"}, r"warmup has the unknown unit 'm'; known are step, "),
        ({"interval": "batch"}, r"interval must be one of step, epoch, got 'batch'"),
        ({"on_resize": "stretch"}, r"on_resize must be one of continue, rescale, keep, restart, got 'stretch'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    refused(f"^{message}", **arguments, max_epochs=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 500}, r'warmup must name its unit, got 500: write "500step" \(or "500ep"\)$'),
        ({"schedule": Cosine}, r"schedule must be a schedule, got the class Cosine: write Cosine\("),
        ({"schedule": 0.1}, r"schedule must be a schedule such as Cosine\(end=0.1\), got 0.1$"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    refused(f"^{message}", TypeError, **arguments, max_epochs=3)


@pytest.mark.parametrize("no_trainer", [None, 100, Net()])
def test_what_is_no_trainer_is_refused(no_trainer: Any) -> None:
    message = r"^trainer must be a Trainer, as self.trainer is in configure_optimizers, got (None|100|Net\()"
    with pytest.raises(TypeError, match=message):
        total_steps(no_trainer)
    with pytest.raises(TypeError, match=message):
        lr_scheduler_config(torch.optim.SGD(Net().parameters(), lr=0.1), CURVE, no_trainer)


def test_a_trainer_that_has_no_module_yet_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^the Trainer has no module yet: ask for the length of its run in configure_"
    ):
        total_steps(trainer(max_epochs=2))


def test_a_warmup_that_does_not_fit_the_kind_of_run_is_refused() -> None:
    refused(
        r'^warmup="5step" cannot be used in a run that is limited by max_time: write it as "30s" or "5%"$',
        warmup="5step",
        max_epochs=-1,
        max_time=timedelta(seconds=5),
    )
    refused(
        r'^warmup="2ep" needs the length of an epoch, which is unknown$',
        loader=stream(5),
        warmup="2ep",
        max_epochs=-1,
        max_steps=9,
    )


def test_a_run_of_no_steps_is_refused() -> None:
    model = Net(scheduled())
    run = trainer(max_epochs=1)
    run.fit(model)
    with pytest.raises(ValueError, match=r"^the run has no steps to take: max_epochs=1, .*, 1 epochs done$"):
        run.fit(model)
    for interval in ("step", "epoch"):
        refused(
            rf"^the run has no {interval}s to take: max_epochs=3, max_steps=5, limit_train_batches=0, 0 epochs done$",
            interval=interval,
            max_epochs=3,
            max_steps=5,
            limit_train_batches=0,
        )
