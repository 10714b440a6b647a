import math
import os
import re
import signal
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from resumable import BATCHES, EPOCHS, Own, OwnData, Trace, build, weights
from torch.utils.data import DataLoader

from lit_cosine import ExactResume
from lit_cosine.checkpoint_io import read_checkpoint


def finish(folder, path=None, **arguments):
    trace = Trace()
    run, model, data = build(folder, trace=trace, **arguments)
    run.fit(model, data, ckpt_path=path)
    return trace.rows, weights(model), run.global_step


@pytest.mark.parametrize(
    ("road", "accumulate", "workers"),
    [
        ("module", 1, 0),
        ("module", 4, 0),
        ("callback", 1, 0),
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
def test_whatever_ends_an_epoch_and_wherever_validation_comes(tmp_path, trainer):
    rows, digest, steps = finish(tmp_path, **trainer)
    updates = [index for index, row in enumerate(rows) if row[-1] is not None]
    for step in range(2, steps + 1, 2):  # at ends of epochs and within them
        (path,) = (tmp_path / "checkpoints").glob(f"epoch=*-step={step}.ckpt")
        again = finish(tmp_path / f"from-{step}", path, **trainer)
        assert again == (rows[updates[step - 1] + 1 :], digest, steps), path.name


def test_files_are_the_newest_the_last_and_the_best(tmp_path):
    losses = []

    class Losses(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            losses.append((trainer.callback_metrics["val/loss"].item(), trainer.global_step))

    checkpoints = ExactResume(tmp_path / "c", every_n_train_steps=4)
    run, model, data = build(tmp_path, checkpoints=checkpoints, callbacks=[Losses()], max_epochs=4)
    run.fit(model, data)
    best = min(losses)
    names = {path.name for path in (tmp_path / "c").iterdir()}
    # steps 4, 8, 16, 20 and the ends of epochs 6, 12, 18, 24; 12 is both, and saved once
    assert names == {"last.ckpt", "best.ckpt", "epoch=3-step=20.ckpt", "epoch=3-step=24.ckpt"} | {
        f"epoch={best[1] // BATCHES - 1}-step={best[1]}.ckpt"
    }
    assert read_checkpoint(tmp_path / "c" / "best.ckpt")["global_step"] == best[1]
    assert read_checkpoint(tmp_path / "c" / "last.ckpt")["global_step"] == 24
    assert checkpoints.best_model_score.item() == pytest.approx(best[0], rel=1e-6)
    # "best" means this file to the Trainer
    assert run.validate(model, data, ckpt_path="best", verbose=False)[0]["val/loss"] == pytest.approx(best[0], rel=1e-6)


def test_time_between_checkpoints(tmp_path):
    checkpoints = ExactResume(tmp_path, train_time_interval="0.05s", keep=-1, monitor=None, every_n_epochs=9)
    run, model, data = build(tmp_path / "x", trace=Trace(pause=0.03), checkpoints=checkpoints, max_epochs=1)
    run.fit(model, data)
    steps = sorted(int(path.stem.split("=")[-1]) for path in tmp_path.glob("epoch=*.ckpt"))
    assert steps[0] == 2  # 0.06 s in
    assert steps[-1] == BATCHES  # the run's end, always
    assert 1 not in steps
    assert not (tmp_path / "best.ckpt").exists()


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize(("accumulate", "batch", "stops_at"), [(1, 2, 3), (1, 5, 6), (4, 1, 1), (4, 4, 2)])
def test_a_signal_waits_for_the_update_and_leaves_a_checkpoint(tmp_path, name, status, accumulate, batch, stops_at):
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


def test_a_second_signal_does_not_wait(tmp_path):
    class TwoSignals(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run, model, data = build(tmp_path, accumulate=4, callbacks=[TwoSignals()])
    with pytest.raises(SystemExit):  # what Lightning makes of KeyboardInterrupt
        run.fit(model, data)
    assert run.global_step == 0
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_of_it_is_saved(tmp_path, value):
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


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    class Spoil(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 3:
                pl_module.network[0].weight.grad.fill_(math.inf)

    run, model, data = build(tmp_path, callbacks=[Spoil()])
    with pytest.raises(FloatingPointError, match=r"^network.0.weight holds nan or infinity at epoch 0, step 4"):
        run.fit(model, data)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_damaged_last_falls_back_and_ends_the_same(tmp_path):
    whole = finish(tmp_path)
    folder = tmp_path / "checkpoints"
    newest = folder / "epoch=2-step=18.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])  # last.ckpt is a link to it
    trace = Trace()
    run, model, data = build(tmp_path, trace=trace)
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged.*taken instead: .*epoch=2-step=17.ckpt"):
        run.fit(model, data, ckpt_path="last")
    assert (trace.rows, weights(model), run.global_step) == (whole[0][17:], *whole[1:])


def test_a_new_run_does_not_mix_with_another(tmp_path):
    run, model, data = build(tmp_path, max_epochs=1)
    run.fit(model, data)
    run.fit_loop.max_epochs = 2
    run.fit(model, data)  # the same run goes on
    assert run.global_step == 2 * BATCHES
    run, model, data = build(tmp_path, max_epochs=1)
    message = r"""checkpoints already holds a run's checkpoints .last.ckpt.: resume it with ckpt_path="last" """
    with pytest.raises(FileExistsError, match=message):
        run.fit(model, data)


def test_what_could_not_be_resumed_is_refused_before_training(tmp_path):
    run, model, data = build(tmp_path)
    model.save_hyperparameters({"folder": tmp_path})
    with pytest.raises(ValueError, match="Own's hyperparameters must hold only tensors and plain data"):
        run.fit(model, data)
    assert run.global_step == 0


def test_other_ways_of_saving_are_named(tmp_path):
    run, model, data = build(tmp_path, plugins=[AsyncCheckpointIO()])
    with pytest.raises(TypeError, match="brings its own CheckpointIO: take AsyncCheckpointIO out of plugins"):
        run.fit(model, data)


def test_a_sampler_with_another_batch_size_than_its_loader_is_refused(tmp_path):
    run, model, data = build(tmp_path)
    data.batch_size = 5  # the loader's; the sampler would leave out twice the rows that were done
    data.setup = lambda stage: (OwnData.setup(data, stage), setattr(data.sampler, "batch_size", 10))
    with pytest.raises(ValueError, match=r"^EpochSampler.batch_size must be the loader's, which is 5, got 10$"):
        run.fit(model, data)
    assert run.global_step == 0


class OwnLoader:
    """A loader of somebody's own, that begins every epoch anew."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return BATCHES

    def __iter__(self):
        return iter(DataLoader(self.rows, 10))


@pytest.mark.parametrize("loader", [lambda rows: DataLoader(rows, 10, shuffle=True), OwnLoader])
def test_a_loader_is_told_that_it_will_not_resume(tmp_path, loader):
    run, model, data = build(tmp_path, max_epochs=1)
    data.train_dataloader = lambda: loader(data.rows)
    with pytest.warns(UserWarning, match=r"batches after a resume will not be those of the uninterrupted run"):
        run.fit(model, data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_train_steps": 0}, ValueError, "every_n_train_steps must be an integer >= 1, got 0"),
        ({"every_n_train_steps": 1.5}, ValueError, "every_n_train_steps must be an integer >= 1, got 1.5"),
        ({"every_n_epochs": -1}, ValueError, "every_n_epochs must be an integer >= 1, got -1"),
        ({"every_n_epochs": None}, ValueError, "every_n_epochs must be an integer >= 1, got None"),
        ({"keep": 0}, ValueError, "keep must be an integer >= 1, or -1 for all, got 0"),
        ({"mode": "best"}, ValueError, 'mode must be "min" or "max", got \'best\''),
        ({"dirpath": "s3://bucket"}, ValueError, "dirpath must be a local folder, got 's3://bucket'"),
        ({"dirpath": None}, ValueError, "dirpath must be a local folder, got None"),
        (
            {"train_time_interval": "5ep"},
            ValueError,
            'train_time_interval must be a time > 0 such as "30min", got "5ep"',
        ),
        ({"train_time_interval": timedelta(0)}, ValueError, "train_time_interval must be a time > 0"),
        ({"train_time_interval": 30}, TypeError, "train_time_interval must name its unit, got 30"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ExactResume(**arguments)


def test_the_best_is_found_again_whatever_a_kill_left(tmp_path):
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
    losses = {path.name: read_checkpoint(path)["callbacks"]["ExactResume"]["best"][0] for path in folder.glob("*.ckpt")}
    assert losses["best.ckpt"] == min(losses.values())
    assert run.checkpoint_callback.best_model_path == str(folder / "best.ckpt")


def test_the_best_of_another_folder_is_not_ones_own(tmp_path):
    finish(tmp_path, max_epochs=2)
    checkpoints = ExactResume(tmp_path / "new", monitor=None)
    run, model, data = build(tmp_path, checkpoints=checkpoints, max_epochs=2)
    run.fit(model, data, ckpt_path=tmp_path / "checkpoints" / "epoch=1-step=8.ckpt")
    assert checkpoints.best_model_path == ""


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_chain_of_stops_at_the_ends_of_epochs_and_within_them(tmp_path, accumulate):
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
