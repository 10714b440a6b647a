"""Random runs of real Trainers, stopped and resumed with other lengths or schedules, beside the naive model."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from lit_cosine import Constant, Cosine, LearningRateScheduler, Linear, OneMinusSqrt, Schedule, lr_scheduler_config
from lit_cosine.schedules import OnResize
from tests.helpers.histories import MAPPABLE, PEAK
from tests.helpers.naive_run import NaiveRun

# the order of the batches does not matter here
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.usefixtures("quiet_lightning"),
]


@pytest.fixture(scope="module")
def quiet_lightning() -> Iterator[None]:
    """Keep hundreds of Trainers from logging; other modules of the same process read these lines."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@dataclass(frozen=True)
class Code:
    """What the code of a run says: its schedule and its limits.

    ``accumulate`` is a number, or what a GradientAccumulationScheduler takes: windows by the epoch they begin in.
    """

    schedule: Schedule
    epochs: int
    batches: int
    accumulate: int | tuple[tuple[int, int], ...]
    max_steps: int = -1

    def window(self, epoch: int) -> int:
        if isinstance(self.accumulate, int):
            return self.accumulate
        return [window for first, window in self.accumulate if first <= epoch][-1]

    def updates_of(self, epoch: int) -> int:
        return math.ceil(self.batches / self.window(epoch))

    @property
    def updates(self) -> int:
        updates = sum(self.updates_of(epoch) for epoch in range(self.epochs))
        return updates if self.max_steps == -1 else min(updates, self.max_steps)

    def position(self, update: int) -> tuple[int, int]:
        """The epoch of an update, and its number there."""
        epoch = 0
        while update >= self.updates_of(epoch):
            update, epoch = update - self.updates_of(epoch), epoch + 1
        return epoch, update


@dataclass(frozen=True)
class Resumed:
    """A run that is stopped after ``stop`` updates and resumed by other code; ``hook`` saves the checkpoint.

    The hooks that a run has at the end of its epochs alone are those of the batch where update ``stop`` is within one.
    """

    way: str
    policy: OnResize
    warmup: str
    cooldown: str | None
    first: Code
    second: Code
    stop: int
    hook: str = "on_train_batch_end"

    def lengths(self, code: Code, total: int) -> tuple[int, int]:
        """W and C of a run of ``total`` updates (or epochs, where these are what is counted)."""
        found = []
        for text, epoch in ((self.warmup, 0), (self.cooldown or "0step", code.epochs - 1)):
            if text.endswith("step"):
                found.append(int(text.removesuffix("step")))
            elif text.endswith("ep"):
                found.append(int(text[:-2]) * (1 if self.way == "epoch" else code.updates_of(epoch)))
            else:
                found.append(round(float(text[:-1]) / 100 * total))
        return found[0], found[1]


class Net(BoringModel):
    def __init__(self, run: Resumed, code: Code) -> None:
        super().__init__()
        self.run, self.code = run, code

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=PEAK)
        if self.run.way == "callback":
            return optimizer
        interval = "epoch" if self.run.way == "epoch" else "step"
        return [optimizer], [
            lr_scheduler_config(optimizer, self.code.schedule, self.trainer, interval=interval, **arguments(self.run))
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(RandomDataset(32, self.code.batches))


class Recorder(Callback):
    """The LR of every update; saves in ``hook`` and stops after update ``stop``."""

    def __init__(self, stop: int | None, path: Path, hook: str = "on_train_batch_end") -> None:
        self.lrs: list[float] = []
        self.stop, self.path, self.hook = stop, path, hook

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.lrs.append(float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "on_train_epoch_end")

    def save(self, trainer: Trainer, hook: str) -> None:
        if self.hook == hook and self.stop is not None and trainer.global_step == self.stop == len(self.lrs):
            self.stop = None
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def arguments(run: Resumed) -> dict[str, Any]:
    cooldown = {} if run.cooldown is None else {"cooldown": run.cooldown}
    return {"warmup": run.warmup, "on_resize": run.policy, **cooldown}


def fit(run: Resumed, code: Code, recorder: Recorder, path: Path | None = None) -> list[float]:
    callbacks: list[Callback] = [recorder]
    if run.way == "callback":
        callbacks.append(LearningRateScheduler(code.schedule, **arguments(run)))
    windows = code.accumulate
    if not isinstance(windows, int):
        callbacks.append(GradientAccumulationScheduler(dict(windows)))
    trainer = Trainer(
        max_epochs=code.epochs,
        max_steps=code.max_steps,
        accumulate_grad_batches=windows if isinstance(windows, int) else 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1 if run.hook == "on_validation_end" else 0,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    trainer.fit(Net(run, code), ckpt_path=path, weights_only=True)
    return recorder.lrs


@st.composite
def runs(draw: st.DrawFn) -> Resumed:
    way = draw(st.sampled_from(["step", "epoch", "callback"]))
    policy = draw(st.sampled_from(["continue", "rescale", "keep", "restart"]))
    warmup = draw(st.sampled_from(["0step", "1ep"] if way == "epoch" else ["0step", "3step", "10%", "1ep"]))
    cooldown = draw(st.sampled_from([None, "1ep"] if way == "epoch" else [None, "3step", "25%", "1ep"]))
    windows = [1, 1, 2, 3] if way == "epoch" else [1, 1, 2, 3, ((0, 1), (2, 2)), ((0, 3), (1, 1)), ((0, 2),)]
    codes = [
        Code(
            draw(st.sampled_from(MAPPABLE)),
            draw(st.integers(3, 6)),
            draw(st.integers(2, 7)),
            draw(st.sampled_from(windows)),
            -1 if way == "epoch" else draw(st.sampled_from([-1, -1, 7, 12])),
        )
        for _ in range(2)
    ]
    keys = ("schedule", "epochs", "batches", "accumulate", "max_steps")
    changes = draw(st.sets(st.sampled_from(keys), max_size=2))
    second = Code(**{key: getattr(codes[key in changes], key) for key in keys})
    stop = draw(st.integers(1, codes[0].updates - 1))
    hook = "on_train_batch_end"
    if codes[0].position(stop)[1] == 0:
        # under max_steps Lightning makes a batch too many after on_train_epoch_end, which ExactResume leaves out
        last = "on_train_epoch_end" if second.max_steps == -1 else hook
        hook = draw(st.sampled_from([hook, "on_validation_end", last]))
    run = Resumed(way, policy, warmup, cooldown, codes[0], second, stop, hook)
    assume(is_accepted(run))
    return run


def is_accepted(run: Resumed) -> bool:
    """Whether no run is refused before training, and the second one is not finished already."""
    totals = [code.epochs if run.way == "epoch" else code.updates for code in (run.first, run.second)]
    fit_in = all(sum(run.lengths(code, n)) < n for code, n in zip((run.first, run.second), totals, strict=True))
    finished = run.first.position(run.stop)[0] >= run.second.epochs or run.stop >= run.second.updates
    return fit_in and not finished and not (run.policy == "keep" and run.first.schedule != run.second.schedule)


def check(run: Resumed) -> list[float]:
    """Compare every update of both runs with the naive model; return the LRs."""
    first, second = run.first, run.second
    by_epoch = run.way == "epoch"
    done = first.position(run.stop)
    total = first.epochs if by_epoch else first.updates
    warmup, cooldown = run.lengths(first, total)
    position = done[0] if by_epoch else run.stop
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stopped.ckpt")
        lrs = fit(run, first, Recorder(run.stop, path, run.hook))[: run.stop]
        # the lengths of the second run by the same arithmetic, its number of updates by what it really makes
        second_lrs = fit(run, second, Recorder(None, path), path)
    # from a checkpoint of the validation at an epoch's end Lightning goes on in that epoch if its length is another now
    epochs_done = done[0] - (run.hook == "on_validation_end" and second.batches != first.batches)
    new_total = position + second.epochs - epochs_done if by_epoch else run.stop + len(second_lrs)
    new_warmup, new_cooldown = run.lengths(second, new_total)
    naive = NaiveRun(PEAK, first.schedule, total, warmup, cooldown, OneMinusSqrt(), run.policy)
    expected = [naive.lr(first.position(k)[0] if by_epoch else k) for k in range(run.stop)]
    changed = second.schedule if second.schedule != first.schedule else None
    naive.resume(position, new_total, new_warmup, new_cooldown, changed)
    if by_epoch:
        left = [second.updates_of(epoch) for epoch in range(epochs_done, second.epochs)]
        left[0] = len(second_lrs) - sum(left[1:])
        expected += [naive.lr(done[0] + index) for index, updates in enumerate(left) for _ in range(updates)]
    else:
        expected += [naive.lr(run.stop + k) for k in range(len(second_lrs))]
    assert lrs + second_lrs == pytest.approx(expected, rel=1e-9, abs=1e-18)
    return lrs + second_lrs


def test_a_run_resumed_behind_a_finished_epoch_that_has_more_batches_now() -> None:
    """Lightning counts epoch 0 as done and leaves its 3 batches out of epoch 1: 1 + 4 updates are left, not 9."""
    code = Code(Cosine(end=0.1), epochs=3, batches=3, accumulate=1)
    run = Resumed("step", "continue", "1ep", "1ep", code, replace(code, batches=4), stop=3)
    # W stays 3, N is 3 + 5 and C is 4: after update 3 the cooldown begins at 0.1 of the peak
    expected = [0.05, 0.1, 0.15, 0.2, *(0.02 * (1 - math.sqrt(k / 4)) for k in range(4))]
    assert check(run) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("batches", [2, 5])
@pytest.mark.parametrize("way", ["step", "epoch", "callback"])
def test_checkpoints_of_a_finished_epoch_and_other_numbers_of_batches(way: str, batches: int, hook: str) -> None:
    code = Code(Cosine(end=0.1), epochs=3, batches=3, accumulate=1)
    check(Resumed(way, "continue", "1ep", "1ep", code, replace(code, batches=batches), stop=3, hook=hook))


@pytest.mark.parametrize(
    ("way", "policy"), [("step", "continue"), ("callback", "rescale"), ("callback", "keep"), ("step", "restart")]
)
@pytest.mark.parametrize("windows", [(1, 3), (3, 2), (2, ((0, 2),)), (((0, 3), (1, 1)), 2)])
def test_another_accumulation_within_an_epoch(
    way: str, windows: tuple[Any, Any], policy: OnResize, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Code(Linear(end=0.02), epochs=3, batches=7, accumulate=window) for window in windows)
    made = check(Resumed(way, policy, "1ep", "1ep", first, second, stop=first.updates_of(0) + 1))
    assert f"total_steps changed from {first.updates} to {len(made)} at step" in caplog.text


@pytest.mark.parametrize("policy", ["continue", "rescale", "keep", "restart"])
def test_an_epoch_that_has_fewer_batches_now_than_were_done_begins_again(policy: OnResize) -> None:
    code = Code(Linear(end=0.02), epochs=3, batches=7, accumulate=1)
    check(Resumed("step", policy, "3step", "25%", code, replace(code, batches=3), stop=12))


def test_a_cooldown_that_no_longer_fits_is_shortened_and_said(caplog: pytest.LogCaptureFixture) -> None:
    code = Code(Constant(), epochs=4, batches=6, accumulate=1)
    check(Resumed("step", "continue", "1ep", "5step", code, replace(code, batches=2), stop=2))
    assert "its end at step 10, the cooldown shortened from 5 to 3" in caplog.text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(runs())
def test_every_update_of_a_resumed_run_has_the_lr_of_the_table(run: Resumed) -> None:
    check(run)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(runs())
def test_300_resumed_runs(run: Resumed) -> None:
    check(run)
