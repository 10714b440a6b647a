import math
import os
import re
import signal
import time
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch.utils.data import DataLoader

from lit_cosine import ExactResume
from lit_cosine.checkpoint import read_checkpoint, write_checkpoint
from tests.helpers.resumable import BATCHES, EPOCHS, Own, OwnData, Trace, build, weights


def finish(folder, path=None, **arguments):
    trace = Trace()
    run, model, data = build(folder, trace=trace, **arguments)
    run.fit(model, data, ckpt_path=path)
    return trace.rows, weights(model), run.global_step


@pytest.mark.parametrize(
    ("road", "accumulate", "workers"),
    [
        ("module", 1, 0),
        pytest.param("module", 4, 0, marks=pytest.mark.slow),
        pytest.param("callback", 1, 0, marks=pytest.mark.slow),
        ("callback", 4, 0),
        pytest.param("module", 1, 2, marks=pytest.mark.slow),
        pytest.param("callback", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_every_checkpoint_resumes_exactly(tmp_path, road, accumulate, workers):
    arguments = {"road": road, "accumulate": accumulate, "workers": workers}
    rows, digest, steps = finish(tmp_path, **arguments)
    paths = sorted((tmp_path / "checkpoints").glob("epoch=*.ckpt"))
    windows = -(-BATCHES // accumulate)
    assert len(paths) == EPOCHS * windows
    for path in paths:
        epoch, step = (int(part.split("=")[1]) for part in path.stem.split("-"))
        within = step - epoch * windows
        done = epoch * BATCHES + min(within * accumulate, BATCHES)
        resumed, resumed_digest, resumed_steps = finish(tmp_path / path.stem, path, **arguments)
        assert resumed == rows[done:], path.name
        assert resumed_digest == digest, path.name
        assert resumed_steps == steps


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_steps": 9},
        {"max_steps": 9, "max_epochs": -1},
        {"limit_train_batches": 4, "reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 1},
        {"val_check_interval": 0.5, "max_epochs": 2},
        {"check_val_every_n_epoch": 2, "accumulate": 2},
    ],
    ids=lambda trainer: "-".join(trainer),
)
def test_resumes_exactly_with_other_run_limits_and_validation_times(tmp_path, trainer):
    rows, digest, steps = finish(tmp_path, **trainer)
    updates = [index for index, row in enumerate(rows) if row[-1] is not None]
    for step in range(2, steps + 1, 2):  # at ends of epochs and within them
        (path,) = (tmp_path / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
        again = finish(tmp_path / f"from-{step}", path, **trainer)
        assert again == (rows[updates[step - 1] + 1 :], digest, steps), path.name


def test_folder_holds_the_newest_checkpoints_last_and_best(tmp_path):
    losses = []

    class Losses(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append((trainer.callback_metrics["val/loss"].item(), trainer.global_step))

    checkpoints = ExactResume(tmp_path / "c", every_n_train_steps=4)
    run, model, data = build(tmp_path, checkpoints=checkpoints, callbacks=[Losses()], max_epochs=4)
    run.fit(model, data)
    best = min(losses)
    names = {path.name for path in (tmp_path / "c").glob("[!.]*")}
    # steps 4, 8, 16, 20 and the ends of epochs 6, 12, 18, 24; 12 is both, and saved once
    assert names == {"last.ckpt", "best.ckpt", "epoch=3-step=20.ckpt", "epoch=3-step=24.ckpt"} | {
        f"epoch={best[1] // BATCHES - 1}-step={best[1]}.ckpt"
    }
    assert read_checkpoint(tmp_path / "c" / "best.ckpt")["global_step"] == best[1]
    assert read_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == 24
    assert checkpoints.best_model_score.item() == pytest.approx(best[0], rel=1e-6)
    # ckpt_path="best" finds this file
    assert run.validate(model, data, ckpt_path="best", verbose=False)[0]["val/loss"] == pytest.approx(best[0], rel=1e-6)


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        ("2.5min", [3, 6]),  # updates end at 1, 2, 3 minutes; the last checkpoint is the run's end
        (timedelta(hours=1), [6]),
    ],
)
def test_time_between_checkpoints(tmp_path, monkeypatch, interval, steps):
    class Minute(Callback):
        now = 0.0

        def on_train_batch_start(self, *_):
            self.now += 60.0

    clock = Minute()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    checkpoints = ExactResume(tmp_path, train_time_interval=interval, keep=-1, monitor=None, every_n_epochs=9)
    run, model, data = build(tmp_path / "x", checkpoints=checkpoints, callbacks=[clock], max_epochs=1)
    run.fit(model, data)
    assert sorted(int(path.stem.split("=")[-1]) for path in tmp_path.glob("epoch=*.ckpt")) == steps
    assert not (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(("accumulate", "batch", "stops_at"), [(1, 2, 3), (1, 5, 6), (4, 1, 1), (4, 4, 2)])
def test_signal_waits_for_the_update_and_saves_a_checkpoint(tmp_path, name, status, accumulate, batch, stops_at):
    class Signal(Callback):
        def on_train_batch_start(self, trainer, pl_module, _, batch_idx):
            if batch_idx == batch:
                os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    whole = finish(tmp_path / "whole", accumulate=accumulate)
    checkpoints = ExactResume(tmp_path / "c")
    run, model, data = build(tmp_path, accumulate=accumulate, checkpoints=checkpoints, callbacks=[Signal()])
    with pytest.raises(SystemExit) as left:
        run.fit(model, data)
    assert left.value.code == status
    assert run.global_step == stops_at
    assert signal.getsignal(getattr(signal, name)) is before
    rows, *rest = finish(tmp_path / "again", tmp_path / "c" / "last.ckpt", accumulate=accumulate)
    assert rest == list(whole[1:])
    assert rows == whole[0][-len(rows) :]


def test_second_signal_does_not_wait(tmp_path):
    class TwoSignals(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run, model, data = build(tmp_path, accumulate=4, callbacks=[TwoSignals()])
    with pytest.raises(SystemExit):  # Lightning turns KeyboardInterrupt into it
        run.fit(model, data)
    assert run.global_step == 0
    assert not list((tmp_path / "checkpoints").glob("[!.]*"))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("sender", ["callback", "module"])  # the module's hook comes after every callback's
def test_signal_after_the_last_update_ends_the_run_with_its_status(tmp_path, name, status, sender):
    def send(*_):
        os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    run, model, data = build(tmp_path, callbacks=[drawing := Callback()], max_epochs=1)
    (drawing if sender == "callback" else model).on_train_end = send
    with pytest.raises(SystemExit) as left:
        run.fit(model, data)
    assert signal.getsignal(getattr(signal, name)) is before
    assert left.value.code == status
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == BATCHES


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_the_run_before_a_checkpoint(tmp_path, value):
    class Spoiled(Own):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + (value if self.global_step == 8 else 0.0)

    run, _, data = build(tmp_path)
    sentence = (
        rf"^the loss is {value} at epoch 1, step 8, with LR 0.0\d+: stopped; the last good checkpoint is .*last.ckpt$"
    )
    with pytest.raises(FloatingPointError, match=sentence):
        run.fit(Spoiled(), data)
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8
    assert all(torch.isfinite(tensor).all() for tensor in last["state_dict"].values())


def test_non_finite_weight_stops_the_run_before_a_checkpoint(tmp_path):
    class Spoil(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 3:
                pl_module.network[0].weight.grad.fill_(math.inf)

    run, model, data = build(tmp_path, callbacks=[Spoil()])
    with pytest.raises(FloatingPointError, match=r"^network.0.weight holds nan or infinity at epoch 0, step 4"):
        run.fit(model, data)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_resume_from_a_damaged_last_ends_with_the_same_weights(tmp_path):
    whole = finish(tmp_path)
    folder = tmp_path / "checkpoints"
    newest = folder / "epoch=2-step=18.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])  # last.ckpt is a link to it
    trace = Trace()
    run, model, data = build(tmp_path, trace=trace)
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged.*intact checkpoint instead: .*epoch=2-step=17.ckpt"):
        run.fit(model, data, ckpt_path="last")
    assert (trace.rows, weights(model), run.global_step) == (whole[0][17:], *whole[1:])


def test_new_run_in_the_folder_of_another_is_refused(tmp_path):
    run, model, data = build(tmp_path, max_epochs=1)
    run.fit(model, data)
    run.fit_loop.max_epochs = 2
    run.fit(model, data)  # the same run continues
    assert run.global_step == 2 * BATCHES
    run, model, data = build(tmp_path, max_epochs=1)
    message = r"""checkpoints already holds a run's checkpoints .last.ckpt.: resume it with ckpt_path="last" """
    with pytest.raises(FileExistsError, match=message):
        run.fit(model, data)


def test_hyperparameters_that_could_not_be_loaded_are_refused_before_training(tmp_path):
    run, model, data = build(tmp_path)
    model.save_hyperparameters({"folder": tmp_path})
    sentence = r"^Own's hyperparameters must hold only tensors and plain data .*; where that cannot change, use ModelCh"
    with pytest.raises(ValueError, match=sentence):
        run.fit(model, data)
    assert run.global_step == 0


def test_other_checkpoint_plugins_are_refused_by_name(tmp_path):
    run, model, data = build(tmp_path, plugins=[AsyncCheckpointIO()])
    with pytest.raises(TypeError, match=r"remove AsyncCheckpointIO from plugins; where .* use ModelCheckpoint\(save_l"):
        run.fit(model, data)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch ended")
def test_way_that_the_refusals_name_resumes_the_lr_exactly(tmp_path):
    """ModelCheckpoint beside LearningRateScheduler, in a module with an object among its hyperparameters."""

    def rows(path=None, trusted=None):
        trace = Trace()
        kept = ModelCheckpoint(tmp_path / "c", save_last=True, every_n_train_steps=4, save_top_k=-1)
        run, model, data = build(tmp_path, trace=trace, checkpoints=kept)
        model.save_hyperparameters({"folder": tmp_path})
        run.fit(model, data, ckpt_path=path, weights_only=trusted)
        return [row[-1] for row in trace.rows]

    lrs = rows()
    assert rows(tmp_path / "c" / "epoch=1-step=8.ckpt", trusted=False) == lrs[8:]


def test_sampler_batch_size_must_be_its_loaders(tmp_path):
    run, model, data = build(tmp_path)
    data.batch_size = 5  # the loader's; on resume the sampler would skip twice the rows that were trained
    data.setup = lambda stage: (OwnData.setup(data, stage), setattr(data.sampler, "batch_size", 10))
    with pytest.raises(ValueError, match=r"^EpochSampler.batch_size must be the loader's, which is 5, got 10$"):
        run.fit(model, data)
    assert run.global_step == 0


class OwnLoader:
    """A custom loader without a position: every epoch starts at its first batch."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return BATCHES

    def __iter__(self):
        return iter(DataLoader(self.rows, 10))


@pytest.mark.parametrize("loader", [lambda rows: DataLoader(rows, 10, shuffle=True), OwnLoader])
def test_loader_that_does_not_resume_is_warned_about(tmp_path, loader):
    run, model, data = build(tmp_path, max_epochs=1)
    data.train_dataloader = lambda: loader(data.rows)
    with pytest.warns(UserWarning, match=r"batches after a resume within an epoch will not be those of the unint"):
        run.fit(model, data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_train_steps": 0}, ValueError, "every_n_train_steps must be an integer >= 1, got 0"),
        ({"every_n_train_steps": 1.5}, TypeError, "every_n_train_steps must be an integer >= 1, got 1.5"),
        ({"every_n_epochs": -1}, ValueError, "every_n_epochs must be an integer >= 1, got -1"),
        ({"every_n_epochs": None}, TypeError, "every_n_epochs must be an integer >= 1, got None"),
        ({"keep": 0}, ValueError, "keep must be an integer >= 1, or -1 for all, got 0"),
        ({"mode": "best"}, ValueError, "mode must be one of min, max, got 'best'"),
        ({"dirpath": "s3://bucket"}, ValueError, "dirpath must be a local folder, got 's3://bucket'"),
        ({"dirpath": None}, TypeError, "dirpath must be a local folder, got None"),
        (
            {"train_time_interval": "5ep"},
            ValueError,
            "train_time_interval must be a time > 0 such as \"30min\", got '5ep'",
        ),
        ({"train_time_interval": timedelta(0)}, ValueError, "train_time_interval must be a time > 0"),
        ({"train_time_interval": 30}, TypeError, "train_time_interval must name its unit, got 30"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ExactResume(**arguments)


def test_best_files_are_restored_after_a_kill(tmp_path):
    run, model, data = build(tmp_path, max_epochs=1)
    run.fit(model, data)
    folder = tmp_path / "checkpoints"
    for path in folder.glob("*.ckpt"):
        if path.name != "last.ckpt":  # the first to be written
            path.unlink()

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert trainer.global_step > BATCHES or (folder / "best.ckpt").exists()

    run, model, data = build(tmp_path, max_epochs=2, callbacks=[Look()])
    run.fit(model, data, ckpt_path="last")
    states = {path.name: read_checkpoint(path)["callbacks"]["ExactResume"] for path in folder.glob("*.ckpt")}
    losses = {name: state["best"]["value"] for name, state in states.items()}
    assert losses["best.ckpt"] == min(losses.values())
    assert run.checkpoint_callback.best_model_path == str(folder / "best.ckpt")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_best_that_a_run_resumes_from_is_taken_into_its_new_folder(tmp_path, scheme):
    run, model, data = build(tmp_path / "old", max_epochs=1)
    run.fit(model, data)
    run, model, data = build(tmp_path, checkpoints=ExactResume(tmp_path / "new"), max_epochs=2)
    run.fit(model, data, ckpt_path=f"{scheme}{tmp_path}/old/checkpoints/last.ckpt")
    names = {path.name for path in (tmp_path / "new").glob("*.ckpt")}
    assert names == {"last.ckpt", "best.ckpt", f"epoch=0-step={BATCHES}.ckpt", f"epoch=1-step={2 * BATCHES}.ckpt"}


def test_best_of_another_folder_is_not_adopted(tmp_path):
    finish(tmp_path, max_epochs=2)
    checkpoints = ExactResume(tmp_path / "new", monitor=None)
    run, model, data = build(tmp_path, checkpoints=checkpoints, max_epochs=2)
    run.fit(model, data, ckpt_path=tmp_path / "checkpoints" / "epoch=1-step=8.ckpt")
    assert checkpoints.best_model_path == ""


@pytest.mark.parametrize("accumulate", [1, 4])
def test_chain_of_stops_within_epochs_and_at_their_ends(tmp_path, accumulate):
    whole = finish(tmp_path / "whole", accumulate=accumulate)
    stops = [(0, 5), (1, 0), (1, 5), (2, 2)]

    class Stop(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if stops and (trainer.current_epoch, batch_idx) == stops[0]:
                stops.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)

    rows, path = [], None
    for last_run in (False, False, False, False, True):
        trace = Trace()
        checkpoints = ExactResume(tmp_path / "c")
        run, model, data = build(
            tmp_path, accumulate=accumulate, trace=trace, checkpoints=checkpoints, callbacks=[Stop()]
        )
        with nullcontext() if last_run else pytest.raises(SystemExit):
            run.fit(model, data, ckpt_path=path)
        rows, path = rows + trace.rows, "last"
    assert (rows, weights(model), run.global_step) == whole


def changed_state(tmp_path, change):
    """Run to the end; return the path of the checkpoint of step 8, changed by ``change``, and the final weights."""
    whole = finish(tmp_path)[1]
    contents = read_checkpoint(tmp_path / "checkpoints" / "epoch=1-step=8.ckpt")
    change(contents)
    write_checkpoint(contents, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt", whole


def test_unknown_entries_of_a_state_are_ignored_and_missing_ones_have_defaults(tmp_path):
    def change(contents):
        contents["callbacks"]["ExactResume"] = {"version": 2, "added_later": 1}
        contents["lit_cosine"]["added_later"] = 1

    path, whole = changed_state(tmp_path, change)
    checkpoints = ExactResume(tmp_path / "new", monitor=None)
    assert finish(tmp_path, path, checkpoints=checkpoints)[1] == whole
    assert checkpoints.best_model_path == ""


@pytest.mark.parametrize("entry", [("callbacks", "ExactResume"), ("lit_cosine",)], ids="-".join)
@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "was written by lit_cosine 1.x, whose state of ExactResume cannot be resumed"), (3, "has version 3 and")],
)
def test_states_of_another_version_are_refused(tmp_path, entry, version, message):
    def change(contents):
        *parents, last = entry
        state = contents[parents[0]][last] if parents else contents[last]
        state.update(version=version) if version else state.pop("version")

    path, _ = changed_state(tmp_path, change)
    run, model, data = build(tmp_path, checkpoints=ExactResume(tmp_path / "new", monitor=None))
    with pytest.raises(ValueError, match=message):
        run.fit(model, data, ckpt_path=path)
    assert run.global_step == 0


@pytest.mark.parametrize("ends", ["max_steps", "should_stop"])
def test_the_last_weights_are_saved_wherever_a_run_ends(tmp_path, ends):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = ends == "should_stop" and trainer.global_step == BATCHES

    checkpoints = ExactResume(tmp_path, monitor=None, every_n_epochs=3)
    limits = {"max_steps": BATCHES + 2, "max_epochs": -1} if ends == "max_steps" else {"max_epochs": 9}
    run, model, data = build(tmp_path / "x", checkpoints=checkpoints, callbacks=[Stop()], **limits)
    run.fit(model, data)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == run.global_step
