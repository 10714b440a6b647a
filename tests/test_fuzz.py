"""Random arguments of every public class and function, and random states: a value, or one short line; never a hang."""

import inspect
import re
import time
from datetime import timedelta

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import lit_cosine
from lit_cosine import Cosine, Duration, ExactResume, LearningRateScheduler, LitClassifier, ScheduleLR, SimpleNN
from lit_cosine.checkpoint import EpochSampler
from tests.schedules.test_fuzz import CONSTRUCTORS, VALUES

OPTIMIZER = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)

# a constructor with what it cannot do without -> the parameters that are drawn
CALLS = {
    name: (made, [parameter.name for parameter in inspect.signature(made).parameters.values()])
    for name in (
        "CooldownOnPlateau", "ExactResume", "LearningRateLogger", "LearningRateScheduler", "LitClassifier",
        "ScheduleAudit", "ScheduleLR", "SimpleNN", "SyntheticDataModule", "TabularDataModule", "TrainingCurves",
        "convergence_bound", "lr_scheduler_config", "param_groups", "total_steps",
    )
    for made in [getattr(lit_cosine, name)]
} | {
    "ScheduleLR(optimizer)": (
        lambda **arguments: ScheduleLR(OPTIMIZER, **{"schedule": Cosine(), "total_steps": 10, **arguments}),
        [*inspect.signature(ScheduleLR).parameters][1:],
    ),
    "LearningRateScheduler(hyperparameters)": (
        LearningRateScheduler, ["weight_decay", "momentum", "groups", "betas"],
    ),
    "LitClassifier(network)": (
        lambda **arguments: LitClassifier(SimpleNN(2, 2, 2), **arguments),
        [*inspect.signature(LitClassifier).parameters][1:],
    ),
    "EpochSampler": (EpochSampler, ["dataset", "batch_size", "seed"]),
    "EpochSampler(flags)": (lambda **flags: EpochSampler(range(5), 2, **flags), ["shuffle", "drop_last"]),
    "EpochSampler.load_state_dict": (
        lambda **state: EpochSampler(range(5), 2).load_state_dict({"version": 2, **state}),
        ["version", "epoch", "batches"],
    ),
    "ExactResume.load_state_dict": (
        lambda **state: ExactResume("c").load_state_dict({"version": 2, **state}),
        ["version", "best"],
    ),
    "ExactResume.best": (
        lambda **best: ExactResume("c").load_state_dict({"version": 2, "best": best}),
        ["value", "file", "last"],
    ),
}  # fmt: skip
# arguments that are right somewhere, so that others are reached
GOOD = st.sampled_from(
    ["runs/a", "30min", timedelta(hours=1), "min", range(9), -1, 2, "epoch=0-step=1.ckpt", None, "20%",
     Duration(5, "ep"), "rescale", "step", OPTIMIZER, Cosine(end=0.1), nn.Linear(2, 2), "iris",
     ([[0.0], [1.0]] * 9, [0, 1] * 9), 0.5, 10**8, 2**63, 10**40]
)  # fmt: skip


@st.composite
def calls(draw):
    name = draw(st.sampled_from(sorted(CALLS)))
    arguments = st.dictionaries(st.sampled_from(CALLS[name][1]), st.one_of(VALUES, GOOD, GOOD), max_size=4)
    return name, draw(arguments)


def check(call):
    name, arguments = call
    started = time.process_time()
    try:
        CALLS[name][0](**arguments)
    except (TypeError, ValueError) as error:
        message = str(error)
        if "positional argument" not in message and "keyword argument" not in message:  # Python's own, of a signature
            assert "\n" not in message, message
            assert len(message) < 300, message
    assert time.process_time() - started < 2.0


quick = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.large_base_example]}


def test_every_public_name_is_tried():
    tried = {name.partition("(")[0] for name in {*CALLS, *CONSTRUCTORS}}
    # what trains has tests of its own, and Schedule is abstract
    assert {*dir(lit_cosine)} - tried - {"Schedule", "Comparison", "compare", "compare_networks"} == set()


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("LearningRateLogger", "loss_tag", 3),
        ("TrainingCurves", "monitor", 3),
        ("TrainingCurves", "filename", 3),
        ("CooldownOnPlateau", "monitor", None),
        ("CooldownOnPlateau", "mode", 3),
        ("CooldownOnPlateau", "min_delta", "0.1"),
        ("ExactResume", "monitor", 3),
        ("LearningRateScheduler", "replace", "yes"),
    ],
)
def test_wrong_types_are_refused_when_they_are_given(name, argument, value):
    with pytest.raises(TypeError, match=rf"^{argument} must be .*, got {re.escape(repr(value))}"):
        CALLS[name][0](**{argument: value})


@pytest.mark.parametrize(
    "sizes", [(10**12, 64, 2), (20, 10**12, 2), (20, 64, 10**12), (10**4, 10**5, 2), (2**63, 1, 1)]
)
def test_sizes_beyond_memory_allocate_nothing(sizes):
    with pytest.raises(ValueError, match=r"SimpleNN must have at most 100,000,000 weights|below 2\*\*63"):
        SimpleNN(*sizes)


@settings(max_examples=60, **quick)
@given(calls())
def test_any_argument_gets_a_value_or_one_short_line(call):
    check(call)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=2000, **quick)
@given(calls())
def test_any_argument_at_length(call):
    check(call)
