"""Checkpoints of plain data that are wrong: one sentence each, before training, and nothing large is allocated."""

import re

import pytest
import torch

from lit_cosine import ExactResume, LitClassifier
from lit_cosine.checkpoint import CheckpointError, EpochSampler, read_checkpoint, write_checkpoint
from tests.helpers.resumable import build


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The contents of a checkpoint within an epoch."""
    folder = tmp_path_factory.mktemp("good")
    run, model, data = build(folder)
    run.fit(model, data)
    return folder / "checkpoints" / "epoch=1-step=8.ckpt"


def put(*keys):
    def change(contents, value):
        *parents, last = keys
        for key in parents:
            contents = contents[key]
        contents[last] = value

    return change


best = put("callbacks", "ExactResume", "best")
batches = put("loops", "fit_loop", "epoch_loop.batch_progress", "current")
many = {"ready": 10**12, "started": 10**12, "processed": 10**12, "completed": 10**12}


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        (put("loops"), [], r"changed.ckpt is refused: loops must be of type dict, got \[\]"),
        (put("callbacks"), ["x"], r"changed.ckpt is refused: callbacks must be of type dict, got \['x'\]"),
        (put("optimizer_states"), {}, r"changed.ckpt is refused: optimizer_states must be of type list, got \{\}"),
        (put("lr_schedulers"), None, "changed.ckpt is refused: lr_schedulers must be of type list, got None"),
        (put("hyper_parameters"), [1], r"changed.ckpt is refused: hyper_parameters must be of type dict, got \[1\]"),
        (put("global_step"), "8", "changed.ckpt is refused: global_step must be of type int, got '8'"),
        (put("callbacks", "ExactResume"), [1], r"the state of ExactResume must be a dict, got \[1\]"),
        (best, [0.1, "a"], r"the state of ExactResume cannot be restored: \[0.1, 'a'\]"),
        (best, {"value": "low", "file": "a", "last": None}, "the state of ExactResume cannot be restored: "),
        (best, {"value": 0.1, "file": "../../x.ckpt", "last": None}, "the state of ExactResume cannot be restored: "),
        (put("lit_cosine"), 3, "the state of ExactResume must be a dict, got 3"),
        (put("lit_cosine", "processes"), 10**12, "the states of processes in a checkpoint must be dicts, got 10000"),
        (put("lit_cosine", "processes", 0), [1], r"the states of processes in a checkpoint must be dicts, got \[\[1\]"),
        (put("lit_cosine", "processes", 0, "random"), [1], "the random states in the checkpoint cannot be restored: "),
        (put("lit_cosine", "processes", 0, "random", "numpy"), ["MT19937", [1]], "the random states in the checkpoint"),
        (put("lit_cosine", "processes", 0, "random", "torch"), torch.zeros(3), "the random states in the checkpoint"),
        (put("lit_cosine", "processes", 0, "metrics"), [2], "the metrics in the checkpoint cannot be restored: "),
        (batches, many, "the checkpoint was saved after 1000000000000 batches of its epoch, and an epoch has 6 now"),
        (put("OwnData"), [], r"the state of EpochSampler must be a dict, got \[\]"),
        (put("OwnData", "epoch"), "1", "epoch in the state of EpochSampler must be an integer >= 0, got '1'"),
    ],
)
def test_wrong_states_are_refused_in_one_sentence(tmp_path, good, change, value, message):
    contents = read_checkpoint(good)
    change(contents, value)
    write_checkpoint(contents, tmp_path / "changed.ckpt")
    run, model, data = build(tmp_path, checkpoints=ExactResume(tmp_path / "new", monitor=None))
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        run.fit(model, data, ckpt_path=tmp_path / "changed.ckpt")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert run.global_step in (0, 8)  # before or after the loops are restored; nothing was trained


@pytest.mark.parametrize("value", [[], 7, "x"])
def test_hyperparameters_that_are_no_dict_are_refused_by_load_from_checkpoint(tmp_path, value):
    write_checkpoint({"state_dict": {}, "hyper_parameters": value}, tmp_path / "a.ckpt")
    sentence = f"a.ckpt is refused: hyper_parameters must be of type dict, got {re.escape(repr(value))}$"
    with pytest.raises(CheckpointError, match=sentence):
        LitClassifier.load_from_checkpoint(tmp_path / "a.ckpt")


def test_position_beyond_every_epoch_allocates_nothing():
    sampler = EpochSampler(range(10), 2)
    sampler.load_state_dict({"version": 2, "epoch": 10**12, "batches": 10**18})
    assert list(sampler) == []
