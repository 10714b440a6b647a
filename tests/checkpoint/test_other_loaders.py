"""Loaders that are not ours: what ExactResume resumes exactly with them, and what it says where it cannot."""

import re

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_cosine import ExactResume
from tests.helpers.resumable import BATCHES, EPOCHS, OwnData, Trace, build, weights


class OtherData(OwnData):
    """Rows without our sampler, in a loader that ``make`` returns."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def train_dataloader(self):
        return self.make(self.rows)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise AssertionError("an empty state is not saved")


def finish(folder, make, path=None, **arguments):
    trace = Trace()
    run, model, _ = build(folder, trace=trace, **arguments)
    run.fit(model, OtherData(make), ckpt_path=path)
    return trace.rows, weights(model)


def shuffled(loader, own_generator):
    """Return what makes a shuffling ``loader``."""

    def make(rows):
        generator = torch.Generator().manual_seed(7) if own_generator else None
        return loader(rows, 10, shuffle=True, generator=generator)

    return make


def checkpoints_of(folder, accumulate):
    for path in sorted((folder / "checkpoints").glob("epoch=*.ckpt")):
        epoch, step = (int(part.split("=")[1]) for part in path.stem.split("-"))
        windows = -(-BATCHES // accumulate)
        yield path, epoch * BATCHES + min((step - epoch * windows) * accumulate, BATCHES)


# 2026-11: torchdata 0.11 calls what torch 2.13 has deprecated
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.slow
def test_every_checkpoint_of_a_stateful_loader_resumes_exactly(tmp_path, accumulate, own_generator):
    make = shuffled(StatefulDataLoader, own_generator)
    rows, digest = finish(tmp_path, make, accumulate=accumulate)
    found = list(checkpoints_of(tmp_path, accumulate))
    assert len(found) == EPOCHS * -(-BATCHES // accumulate)
    for path, done in found:
        assert finish(tmp_path / path.stem, make, path, accumulate=accumulate) == (rows[done:], digest), path.name


@pytest.mark.parametrize("own_generator", [False, True])
def test_plain_loader_is_exact_at_the_ends_of_epochs_and_warned_about(tmp_path, own_generator):
    make = shuffled(DataLoader, own_generator)
    warning = re.escape("use torchdata.stateful_dataloader.StatefulDataLoader in place of DataLoader")

    def finish_warned(*arguments, **options):
        with pytest.warns(UserWarning, match=warning):
            return finish(*arguments, **options)

    checkpoints = ExactResume(tmp_path / "checkpoints", keep=-1)
    rows, digest = finish_warned(tmp_path, make, checkpoints=checkpoints)
    found = list(checkpoints_of(tmp_path, 1))
    assert len(found) == EPOCHS
    for path, done in found[:-1]:  # after the last there is nothing to train
        assert finish_warned(tmp_path / path.stem, make, path) == (rows[done:], digest), path.name
