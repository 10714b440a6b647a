"""Validation within an epoch: a resumed run makes every validation that the interrupted run had not made, once."""

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from lit_cosine import ExactResume
from tests.helpers.resumable import BATCHES, EPOCHS, Own, Trace, build, weights


class Noisy(Own):
    """Draws random numbers in validation too, so that a lost or repeated validation changes all later weights."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        super().validation_step((x + torch.randn(x.shape), y), batch_idx)


class Validations(pl.Callback):
    """Records every validation: the batches trained before it, and its loss."""

    def __init__(self):
        self.points = []

    def on_validation_epoch_end(self, trainer, pl_module):
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self.points.append((batches, float(trainer.callback_metrics["val/loss"])))


def finish(folder, path=None, **arguments):
    trace, validations = Trace(), Validations()
    run, _, data = build(folder, trace=trace, callbacks=[validations], **arguments)
    model = Noisy()
    run.fit(model, data, ckpt_path=path)
    return trace.rows, weights(model), validations.points


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    ("trainer", "validated_after"),
    [
        ({"val_check_interval": 0.34}, [2, 4, 6]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12, 16]),
        ({"val_check_interval": 8, "check_val_every_n_epoch": None}, [8, 16]),
        ({"val_check_interval": 3, "check_val_every_n_epoch": 2}, [9, 12]),
    ],
    ids=["share", "batches", "across epochs", "every other epoch"],
)
def test_every_checkpoint_resumes_with_the_same_validations(tmp_path, accumulate, trainer, validated_after):
    whole = finish(tmp_path, accumulate=accumulate, **trainer)
    if trainer["val_check_interval"] == 0.34:  # the same in every epoch
        validated_after = [epoch * BATCHES + batch for epoch in range(EPOCHS) for batch in validated_after]
    assert [batches for batches, _ in whole[2]] == validated_after
    paths = sorted((tmp_path / "checkpoints").glob("epoch=*.ckpt"))
    assert len(paths) == EPOCHS * BATCHES // accumulate
    for path in paths:
        done = int(path.stem.split("=")[-1]) * accumulate
        # a validation that follows the update of the checkpoint comes before the checkpoint
        left = [point for point in whole[2] if point[0] > done]
        rows, *rest = finish(tmp_path / path.stem, path, accumulate=accumulate, **trainer)
        assert rows == whole[0][done:], path.name
        assert rest == [whole[1], left], path.name


def test_batch_that_raised_is_trained_after_the_resume(tmp_path):
    class Raises(Own):
        at = None

        def training_step(self, batch, batch_idx):
            if self.global_step == self.at:
                raise RuntimeError("the training step failed")
            return super().training_step(batch, batch_idx)

    def rows(folder, path=None, at=None):
        trace = Trace()
        checkpoints = ExactResume(folder / "checkpoints")
        saves = OnExceptionCheckpoint(folder)  # whose file is removed at the end of a run that has no exception
        run, _, data = build(folder, trace=trace, callbacks=[saves], checkpoints=checkpoints)
        model = Raises(noise=False)
        model.at = at
        with pytest.raises(RuntimeError, match="the training step failed") if at else nullcontext():
            run.fit(model, data, ckpt_path=path or tmp_path / "start.ckpt")
        return trace.rows

    run, _, data = build(tmp_path / "start", max_epochs=0)
    run.fit(Raises(noise=False), data)
    run.save_checkpoint(tmp_path / "start.ckpt")  # a path for every run: without one Lightning looks for "last"
    whole = rows(tmp_path / "whole")
    first = rows(tmp_path / "first", at=8)
    assert first == whole[:8]
    assert rows(tmp_path / "rest", tmp_path / "first" / "on_exception.ckpt") == whole[8:]
