"""ScheduleLR plays the closed form: at every step, after every resume, for floats and for tensor LRs alike.

Convention: every test that builds its optimizer with ``make`` runs twice: with float LRs and with float64 tensor LRs.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from lit_cosine import Constant, Cosine, Linear, Restarts, Schedule, ScheduleLR, Sequential
from lit_cosine.schedules import OnResize
from tests.helpers import oracles, strategies
from tests.helpers.hf_trainer import trained
from tests.helpers.players import PEAK

POLICIES: list[OnResize] = ["continue", "rescale", "keep", "restart"]
CURVE = Sequential((Linear(start=0.2, end=1), Cosine(end=0.1)), milestones=(0.25,))
Make = Callable[..., Optimizer]


def exactly(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=0.0)


@pytest.fixture(params=["float", "tensor"])
def make(request: pytest.FixtureRequest) -> Make:
    """Builds an SGD with one group for every LR given."""

    def build(*lrs: float, cls: Any = SGD) -> Optimizer:
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": number(lr)} for lr in lrs]
        optimizer: Optimizer = cls(groups)
        return optimizer

    def number(lr: float) -> float | Tensor:
        return lr if request.param == "float" else torch.tensor(lr, dtype=torch.float64)

    build.number = number  # type: ignore[attr-defined]
    return build


def lrs_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def update(optimizer: Optimizer) -> None:
    """One update, with the gradient of sum(parameter**2)."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = 2 * parameter.detach()
    optimizer.step()


def play(scheduler: ScheduleLR, steps: int) -> list[list[float]]:
    """The LRs of ``steps`` updates from here on, one list for each."""
    used = []
    for _ in range(steps):
        used.append(lrs_of(scheduler.optimizer))
        update(scheduler.optimizer)
        scheduler.step()
    return used


# --- the closed form ---


@pytest.mark.parametrize("schedule", [Cosine(), CURVE, Restarts(Cosine(end=0.1), 3, 2.0, 0.5), Constant(value=0.3)])
def test_every_group_plays_its_own_base_lr_times_the_factor(make: Make, schedule: Schedule) -> None:
    played = play(ScheduleLR(make(0.1, 0.003), schedule, total_steps=60), 61)
    expected = [[0.1 * schedule(k / 60), 0.003 * schedule(k / 60)] for k in range(61)]
    assert played == [exactly(lrs) for lrs in expected]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=strategies.schedules)
def test_a_run_twice_as_long_meets_the_same_lrs(make: Make, schedule: Schedule) -> None:
    once = play(ScheduleLR(make(0.1), schedule, total_steps=20), 21)
    twice = play(ScheduleLR(make(0.1), schedule, total_steps=40), 41)
    assert twice[::2] == once


@pytest.mark.parametrize("warmup", [0, 1, 10, 59])
def test_warmup_and_cosine_are_nanogpts(make: Make, warmup: int) -> None:
    scheduler = ScheduleLR(make(6e-4), Cosine(end=0.1), total_steps=60, warmup_steps=warmup)
    expected = [oracles.nanogpt_get_lr(it, 6e-4, 6e-5, warmup, 60) for it in range(80)]
    assert [lr for (lr,) in play(scheduler, 80)] == exactly(expected)


def test_warmup_is_linear_and_never_zero(make: Make) -> None:
    played = play(ScheduleLR(make(0.1), Constant(), total_steps=20, warmup_steps=4), 20)
    assert [lr for (lr,) in played] == exactly([0.1 * oracles.linear_warmup(k, 4) for k in range(20)])
    assert min(played) == exactly([0.02])


def test_extra_steps_hold_the_end(make: Make) -> None:
    played = play(ScheduleLR(make(0.1), Cosine(end=0.1), total_steps=10), 45)
    assert [lr for (lr,) in played[10:]] == exactly([0.01] * 35)


def test_last_lr_is_what_the_optimizer_has(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1, 0.2), CURVE, total_steps=7, warmup_steps=2)
    for _ in range(9):
        assert scheduler.get_last_lr() == lrs_of(scheduler.optimizer)
        assert scheduler.get_lr() == scheduler.get_last_lr()
        play(scheduler, 1)


def test_move_to_is_the_step_it_names(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), CURVE, total_steps=60, warmup_steps=5)
    factors = {17: CURVE(12 / 55), 3: CURVE(0) * 4 / 6, 59.5: CURVE(54.5 / 55), 60: CURVE(1), 1000: CURVE(1)}
    for step, factor in factors.items():
        scheduler.move_to(step)
        assert lrs_of(scheduler.optimizer) == exactly([0.1 * factor])
        assert scheduler.lrs_at(step) == exactly([0.1 * factor])


def test_a_second_scheduler_keeps_the_optimizers_base_lr(make: Make) -> None:
    optimizer = make(0.1)
    play(ScheduleLR(optimizer, Cosine(), total_steps=10), 5)
    assert play(ScheduleLR(optimizer, Cosine(), total_steps=10), 1) == [exactly([0.1])]


def test_another_entry_of_the_groups(make: Make) -> None:
    optimizer = make(0.1, 0.2, cls=AdamW)
    scheduler = ScheduleLR(optimizer, Linear(start=1, end=3), total_steps=10, key="weight_decay")
    play(scheduler, 5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == exactly([0.02, 0.02])
    assert lrs_of(optimizer) == [0.1, 0.2]


# --- resume ---


def states_of_a_run(make: Make, total: int, warmup: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The optimizer's and the scheduler's state before each update of a run, and after the last one."""
    scheduler = ScheduleLR(make(0.1, 0.004), CURVE, total, warmup)
    for _ in range(total + 1):
        yield copy.deepcopy((scheduler.optimizer.state_dict(), scheduler.state_dict()))
        play(scheduler, 1)


def resume(make: Make, saved: Any, total: int, warmup: int = 0, on_resize: OnResize = "continue") -> ScheduleLR:
    scheduler = ScheduleLR(make(0.1, 0.004), CURVE, total, warmup, on_resize)
    scheduler.optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    return scheduler


def trace(scheduler: ScheduleLR, until: int) -> list[list[float]]:
    """The LRs from here to ``until``, without training."""
    found = []
    for _ in range(scheduler.last_epoch, until):
        found.append(lrs_of(scheduler.optimizer))
        scheduler.move_to(scheduler.last_epoch + 1)
    return found


@pytest.mark.parametrize("warmup", [0, 8])
@pytest.mark.parametrize("total", [60, 90, 30])
@pytest.mark.parametrize("policy", POLICIES)
def test_resumed_at_every_step(make: Make, policy: OnResize, total: int, warmup: int) -> None:
    for resumed_at, saved in enumerate(states_of_a_run(make, 60, warmup)):
        played = trace(resume(make, saved, total, warmup, policy), 100)
        if total == 60 or resumed_at == 0:  # before the first update another length is no change
            progress = [min(max(k - warmup, 0) / (total - warmup), 1) for k in range(resumed_at, 100)]
        else:
            progress = [
                oracles.resumed_progress(k, resumed_at, policy, 60, total, warmup) for k in range(resumed_at, 100)
            ]
        factors = [CURVE(p) * oracles.linear_warmup(resumed_at + i, warmup) for i, p in enumerate(progress)]
        assert [lr for lr, _ in played] == exactly([0.1 * factor for factor in factors])
        assert [lr for _, lr in played] == exactly([0.004 * factor for factor in factors])


def test_continue_neither_jumps_nor_misses_its_end(make: Make) -> None:
    for resumed_at, saved in enumerate(states_of_a_run(make, 60, 5)):
        scheduler = resume(make, saved, 90, 5)
        assert lrs_of(scheduler.optimizer) == exactly([float(group["lr"]) for group in saved[0]["param_groups"]])
        scheduler.move_to(90)
        assert lrs_of(scheduler.optimizer) == exactly([0.01, 0.0004])
        if 5 < resumed_at < 60:
            scheduler.move_to(89)
            assert lrs_of(scheduler.optimizer) > [0.01, 0.0004]


def test_rescale_takes_the_warmup_of_the_new_plan(make: Make) -> None:
    saved = list(states_of_a_run(make, 60, 4))[10]
    fresh = trace(ScheduleLR(make(0.1, 0.004), CURVE, 90, 30), 90)
    assert trace(resume(make, saved, 90, 30, "rescale"), 90) == [exactly(lrs) for lrs in fresh[10:]]
    kept = resume(make, saved, 90, 30, "continue")
    assert kept.warmup_steps == 4


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("first", "second"), [(1, 2), (10, 11), (10, 70), (40, 89), (59, 60)])
def test_resuming_twice_is_resuming_once(make: Make, policy: OnResize, first: int, second: int) -> None:
    saved = list(states_of_a_run(make, 60, 3))[first]
    once = resume(make, saved, 90, 3, policy)
    trace(once, second)
    again = resume(make, (once.optimizer.state_dict(), once.state_dict()), 90, 3, policy)
    assert again.state_dict() == once.state_dict()
    assert trace(again, 95) == trace(once, 95)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_resized_while_it_trains_is_a_resumed_one(make: Make, policy: OnResize) -> None:
    saved = list(states_of_a_run(make, 60, 3))[20]
    live = resume(make, saved, 60, 3, policy)
    live.resize(90)
    assert trace(live, 95) == trace(resume(make, saved, 90, 3, policy), 95)


def test_the_first_resumed_update_runs_at_the_policys_lr(make: Make) -> None:
    saved = list(states_of_a_run(make, 60, 0))[40]
    scheduler = resume(make, saved, 90, on_resize="restart")
    assert lrs_of(scheduler.optimizer) == scheduler.get_last_lr() == exactly([0.1 * 0.2, 0.004 * 0.2])
    assert play(scheduler, 1) == [exactly([0.02, 0.0008])]


@pytest.mark.parametrize(
    ("policy", "step", "line"),
    [
        (
            "continue",
            30,
            '60 to 90 at step 30 (progress 0.5), on_resize="continue": factor 0.775 -> 0.775, its end at step 90',
        ),
        (
            "rescale",
            30,
            '60 to 90 at step 30 (progress 0.5), on_resize="rescale": factor 0.775 -> 0.9729, its end at step 90',
        ),
        ("keep", 30, '60 to 90 at step 30 (progress 0.5), on_resize="keep": factor 0.775 -> 0.775, its end at step 60'),
        (
            "restart",
            30,
            '60 to 90 at step 30 (progress 0.5), on_resize="restart": factor 0.775 -> 0.2, its end at step 90',
        ),
        (
            "continue",
            60,
            '60 to 90 at step 60 (progress 1), on_resize="continue": the schedule had ended and holds its '
            'end; "restart" or "rescale" would anneal again',
        ),
    ],
)
def test_one_line_says_what_applies(
    make: Make, caplog: pytest.LogCaptureFixture, policy: OnResize, step: int, line: str
) -> None:
    saved = list(states_of_a_run(make, 60, 0))[step]
    with caplog.at_level(logging.WARNING):
        resume(make, saved, 90, on_resize=policy)
    assert [record.getMessage() for record in caplog.records] == [f"total_steps changed from {line}"]


def test_no_line_where_nothing_changed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = resume(make, list(states_of_a_run(make, 60, 3))[20], 60, 3)
    scheduler.resize(60)
    assert caplog.records == []


def test_rescale_names_the_factor_it_leaves(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    resume(make, list(states_of_a_run(make, 60, 0))[30], 90, 60, "rescale")
    assert f"factor {CURVE(0.5):.4g} -> {CURVE(0.0) * 31 / 61:.4g}" in caplog.text


def test_another_warmup_alone_is_not_taken_up_in_silence(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = resume(make, list(states_of_a_run(make, 60, 3))[20], 60, 9)
    assert scheduler.warmup_steps == 3
    assert caplog.messages == ["warmup_steps: 3, from the checkpoint; the code has 9"]


def test_a_resumed_training_is_the_uninterrupted_one(make: Make) -> None:
    def train(scheduler: ScheduleLR, steps: int) -> list[Tensor]:
        play(scheduler, steps)
        return [
            parameter.detach().clone() for group in scheduler.optimizer.param_groups for parameter in group["params"]
        ]

    whole = ScheduleLR(make(0.1, 0.01, cls=torch.optim.Adagrad), CURVE, 20, 3)
    part = ScheduleLR(make(0.1, 0.01, cls=torch.optim.Adagrad), CURVE, 20, 3)
    at_11 = train(part, 11)
    file = io.BytesIO()
    torch.save({"optimizer": part.optimizer.state_dict(), "scheduler": part.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = ScheduleLR(make(0.1, 0.01, cls=torch.optim.Adagrad), CURVE, 20, 3)
    for parameter, value in zip(
        [p for group in resumed.optimizer.param_groups for p in group["params"]], at_11, strict=True
    ):
        parameter.data = value
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    for one, other in zip(train(resumed, 9), train(whole, 20), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_state_is_small_and_plain(make: Make) -> None:
    state = ScheduleLR(make(0.1, 0.2), CURVE, 60, 3).state_dict()
    assert json.loads(json.dumps(state)) == state
    assert {"version": 2, "key": "lr", "schedule": CURVE.to_dict()}.items() <= state.items()
    assert len(json.dumps(state)) < 1000


@pytest.mark.parametrize("total", [60, 90])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_optimizer_loaded_after_the_scheduler_moves_no_base_lr(make: Make, policy: OnResize, total: int) -> None:
    saved = list(states_of_a_run(make, 60, 3))[30]
    right = resume(make, saved, total, 3, policy)
    late = ScheduleLR(make(0.1, 0.004), CURVE, total, 3, policy)
    late.load_state_dict(saved[1])
    late.optimizer.load_state_dict(saved[0])
    expected, played = play(right, 40), play(late, 40)
    assert played[1:] == [exactly(lrs) for lrs in expected[1:]]
    if total == 60:
        assert played[0] == exactly(expected[0])


def test_once_a_step_was_taken_the_checkpoints_lr_is_a_change_like_any_other(make: Make) -> None:
    saved = list(states_of_a_run(make, 60, 0))[50]
    scheduler = resume(make, saved, 90, on_resize="restart")
    play(scheduler, 5)
    for group, old in zip(scheduler.optimizer.param_groups, saved[1]["last_lr"], strict=True):
        set_lr(group, old, "assigned")
    play(scheduler, 1)
    expected = [old / CURVE(5 / 40) for old in saved[1]["last_lr"]]
    assert scheduler.base_lrs == exactly(expected)


def test_groups_the_checkpoint_does_not_know_keep_their_own_base_lr(make: Make) -> None:
    saved = ScheduleLR(make(0.1), CURVE, 60, 9)
    play(saved, 20)
    scheduler = ScheduleLR(make(0.5, 0.3), CURVE, 60, 9)
    scheduler.load_state_dict(saved.state_dict())
    assert scheduler.base_lrs == exactly([0.1, 0.3])


def test_a_group_added_before_loading_is_scheduled_at_once(make: Make) -> None:
    saved = ScheduleLR(make(0.1), CURVE, 60)
    play(saved, 20)
    scheduler = ScheduleLR(make(0.5), CURVE, 60)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.3})
    scheduler.load_state_dict(saved.state_dict())
    assert lrs_of(scheduler.optimizer) == exactly([0.1 * CURVE(20 / 60), 0.3 * CURVE(20 / 60)])


# --- copies ---


@pytest.mark.parametrize("after", [0, 7])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_scheduler_and_optimizer_goes_on_alone(make: Make, how: Callable[[Any], Any], after: int) -> None:
    scheduler = ScheduleLR(make(0.1, 0.2), CURVE, 20, 3)
    play(scheduler, after)
    copied, optimizer = how((scheduler, scheduler.optimizer))
    assert copied.optimizer is optimizer
    before = lrs_of(scheduler.optimizer)
    played = play(copied, 15)
    assert lrs_of(scheduler.optimizer) == before
    assert play(scheduler, 15) == played
    for group in optimizer.param_groups:
        group["lr"] *= 2
    play(copied, 1)
    assert copied.base_lrs == exactly([0.2, 0.4])
    assert scheduler.base_lrs == exactly([0.1, 0.2])


# --- tensor LRs ---


def test_tensor_lrs_are_filled_in_place(make: Make) -> None:
    optimizer = make(0.1, 0.2)
    before = [group["lr"] for group in optimizer.param_groups]
    scheduler = ScheduleLR(optimizer, Cosine(), 10)
    saved = scheduler.state_dict()
    play(scheduler, 4)
    scheduler.load_state_dict(saved)
    scheduler.resize(20)
    after = [group["lr"] for group in optimizer.param_groups]
    assert [type(lr) for lr in after] == [type(lr) for lr in before]
    if isinstance(before[0], Tensor):
        assert all(lr is old for lr, old in zip(after, before, strict=True))


def sgd_takes(lr: Tensor) -> bool:
    """Whether torch's own SGD makes a step with it: torch 2.6 has no words for an LR of shape (1,)."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    try:
        SGD([parameter], lr=lr).step()
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_lrs_of_any_precision_are_not_taken_for_changed(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    lr = torch.full(shape, 0.1, dtype=dtype)
    if shape and not sgd_takes(lr):
        pytest.skip("torch's own SGD refuses this LR")
    base = float(lr)
    scheduler = ScheduleLR(SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), CURVE, 60)
    saved = copy.deepcopy(scheduler.optimizer.state_dict())
    for _ in range(60):
        play(scheduler, 1)
        lr.add_(0)  # touched, not changed
    assert scheduler.base_lrs == [base]
    scheduler.optimizer.load_state_dict(saved)
    play(scheduler, 1)
    assert scheduler.base_lrs == pytest.approx([base * CURVE(0.0) / CURVE(1.0)], rel=2 * torch.finfo(dtype).eps)


def test_a_tensor_put_in_the_place_of_another_is_heard() -> None:
    scheduler = ScheduleLR(SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1)), Constant(), 60)
    for value in (0.5, 0.25):
        old = scheduler.optimizer.param_groups[0]["lr"]
        other = torch.tensor(0.0)
        while other._version < old._version:
            other.fill_(value)
        assert other._version == old._version
        scheduler.optimizer.param_groups[0]["lr"] = other
        play(scheduler, 1)
        assert scheduler.base_lrs == [value]
        assert scheduler.optimizer.param_groups[0]["lr"] is other


# 2026-11: torch 2.13 itself still defines torch.jit script methods when dynamo first looks at an optimizer
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_optimizer_step_is_compiled_once() -> None:
    torch._dynamo.reset()
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.1))
    scheduler = ScheduleLR(optimizer, Cosine(), 10)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.grad = torch.ones(2)
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(optimizer.step, backend=count)
    expected = parameter.detach().clone()
    for k in range(10):
        expected -= 0.1 * Cosine()(k / 10)
        step()
        scheduler.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-7)
    assert len(graphs) == 1


# --- changes from outside ---


def set_lr(group: dict[str, Any], lr: float, how: str) -> None:
    if how == "in place" and isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = torch.tensor(lr, dtype=torch.float64) if isinstance(group["lr"], Tensor) else lr


@pytest.mark.parametrize("how", ["assigned", "in place"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_an_lr_set_before_the_first_step_is_the_base_lr(make: Make, warmup: int, how: str) -> None:
    scheduler = ScheduleLR(make(0.1, 0.2), CURVE, 20, warmup)
    set_lr(scheduler.optimizer.param_groups[1], 0.05, how)
    play(scheduler, 1)
    expected = [oracles.linear_warmup(k, warmup) * CURVE(max(k - warmup, 0) / (20 - warmup)) for k in range(1, 20)]
    assert play(scheduler, 19) == [exactly([0.1 * factor, 0.05 * factor]) for factor in expected]


@pytest.mark.parametrize("how", ["assigned", "in place"])
def test_an_lr_changed_while_training_moves_the_base_lr_by_the_same_ratio(make: Make, how: str) -> None:
    scheduler = ScheduleLR(make(0.1, 0.2), CURVE, 20, 2)
    play(scheduler, 8)
    group = scheduler.optimizer.param_groups[0]
    set_lr(group, float(group["lr"]) * 1.5, how)
    play(scheduler, 1)
    assert scheduler.base_lrs == exactly([0.15, 0.2])
    assert play(scheduler, 11) == [exactly([0.15 * CURVE(k / 18), 0.2 * CURVE(k / 18)]) for k in range(7, 18)]


def test_an_lr_changed_where_the_factor_is_zero_becomes_the_base_lr_if_it_is_larger(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), Restarts(Linear(start=0, end=1), 2), 20)
    play(scheduler, 10)
    assert lrs_of(scheduler.optimizer) == [0.0]
    smaller, larger = copy.deepcopy(scheduler), scheduler
    for one, lr, base in ((smaller, 0.05, 0.1), (larger, 0.3, 0.3)):
        set_lr(one.optimizer.param_groups[0], lr, "assigned")
        play(one, 1)
        assert play(one, 9) == [exactly([base * k / 10]) for k in range(1, 10)]


def test_an_lr_set_to_zero_stays_there_until_it_is_set_again(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), CURVE, 20)
    play(scheduler, 8)
    set_lr(scheduler.optimizer.param_groups[0], 0.0, "in place")
    assert play(scheduler, 3) == [[0.0]] * 3
    set_lr(scheduler.optimizer.param_groups[0], 0.05, "in place")
    play(scheduler, 1)
    assert scheduler.base_lrs == exactly([0.05])


def test_a_change_just_before_saving_is_saved(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1, 0.004), CURVE, 60)
    play(scheduler, 20)
    for group in scheduler.optimizer.param_groups:
        set_lr(group, float(group["lr"]) / 2, "in place")
    resumed = resume(make, copy.deepcopy((scheduler.optimizer.state_dict(), scheduler.state_dict())), 60)
    assert resumed.base_lrs == exactly([0.05, 0.002])


def test_a_change_just_before_a_resize_is_heard(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1, 0.004), CURVE, 60)
    play(scheduler, 20)
    for group in scheduler.optimizer.param_groups:
        set_lr(group, float(group["lr"]) / 2, "in place")
    scheduler.resize(90)
    assert scheduler.base_lrs == exactly([0.05, 0.002])
    assert lrs_of(scheduler.optimizer) == exactly([0.05 * CURVE(20 / 60), 0.002 * CURVE(20 / 60)])


def test_a_group_added_later_joins_with_its_own_base_lr(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), CURVE, 20)
    play(scheduler, 8)
    added = {"params": [torch.nn.Parameter(torch.ones(1))], "lr": make.number(0.04)}  # type: ignore[attr-defined]
    scheduler.optimizer.add_param_group(added)
    play(scheduler, 1)
    assert play(scheduler, 11) == [exactly([0.1 * CURVE(k / 20), 0.04 * CURVE(k / 20)]) for k in range(9, 20)]
    assert scheduler.state_dict()["base_lrs"] == exactly([0.1, 0.04])


def test_a_group_that_joins_at_once_has_its_first_update_scheduled(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), CURVE, 20)
    play(scheduler, 8)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.04})
    scheduler.join()
    assert lrs_of(scheduler.optimizer) == exactly([0.1 * CURVE(8 / 20), 0.04 * CURVE(8 / 20)])
    assert scheduler.last_epoch == 8


# --- other people's loops ---


@pytest.mark.features
def test_in_the_trainer_of_transformers(tmp_path: Path) -> None:
    run = trained(tmp_path, scheduler=lambda sgd: ScheduleLR(sgd, CURVE, 16, 2), num_train_epochs=2)
    assert run.lrs == exactly([PEAK * oracles.linear_warmup(k, 2) * CURVE(max(k - 2, 0) / 14) for k in range(16)])


@pytest.mark.features
@pytest.mark.parametrize("accumulated", [1, 2])
def test_under_accelerate(make: Make, accumulated: int) -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=accumulated)
    batches = 20 * accumulated  # it passes over the calls of batches without an update
    optimizer = make(0.1)
    optimizer, scheduler = accelerator.prepare(optimizer, ScheduleLR(optimizer, CURVE, 20))
    parameter = optimizer.param_groups[0]["params"][0]
    used = []
    for _ in range(batches):
        with accelerator.accumulate():
            accelerator.backward(parameter.sum())
            if accelerator.sync_gradients:
                used += lrs_of(optimizer)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert used == exactly([0.1 * CURVE(k / 20) for k in range(20)])


# --- Fabric ---


def test_in_fabric(make: Make, tmp_path: Path) -> None:
    def build() -> tuple[Fabric, dict[str, Any]]:
        fabric = Fabric(accelerator="cpu", devices=1)
        model = torch.nn.Linear(2, 1)
        model, optimizer = fabric.setup(model, SGD(model.parameters(), lr=make.number(0.1)))  # type: ignore[attr-defined]
        # on purpose before the optimizer: Fabric loads in this order
        return fabric, {"scheduler": ScheduleLR(optimizer, CURVE, 20, 2), "model": model, "optimizer": optimizer}

    def train(fabric: Fabric, state: dict[str, Any], steps: int) -> list[float]:
        used = []
        for _ in range(steps):
            used += lrs_of(state["optimizer"])
            state["optimizer"].zero_grad()
            fabric.backward(state["model"](torch.ones(4, 2)).sum())
            state["optimizer"].step()
            state["scheduler"].step()
        return used

    fabric, state = build()
    used = train(fabric, state, 12)
    fabric.save(tmp_path / "run.ckpt", state)
    fabric, state = build()
    fabric.load(tmp_path / "run.ckpt", state)
    used += train(fabric, state, 10)
    expected = [oracles.linear_warmup(k, 2) * CURVE(max(k - 2, 0) / 18) for k in range(22)]
    assert used == exactly([0.1 * factor for factor in expected])


# --- refused ---


@pytest.mark.parametrize("total", [0, -1, 10.0, math.inf, math.nan, True])
def test_total_steps_must_be_a_positive_integer(make: Make, total: Any) -> None:
    error = ValueError if type(total) is int else TypeError
    with pytest.raises(error, match=rf"^total_steps must be an integer >= 1, got {total}$"):
        ScheduleLR(make(0.1), Cosine(), total)
    scheduler = ScheduleLR(make(0.1), Cosine(), 10)
    with pytest.raises(error, match=rf"^total_steps must be an integer >= 1, got {total}$"):
        scheduler.resize(total)


@pytest.mark.parametrize("warmup", [-1, -7])
def test_warmup_steps_must_be_an_integer_from_zero(make: Make, warmup: Any) -> None:
    with pytest.raises(ValueError, match=rf"^warmup_steps must be an integer >= 0, got {warmup}$"):
        ScheduleLR(make(0.1), Cosine(), 10, warmup)


@pytest.mark.parametrize("value", ["10", None, 2.5, math.nan])
def test_lengths_of_another_type_are_refused(make: Make, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^total_steps must be an integer >= 1, got "):
        ScheduleLR(make(0.1), Cosine(), value)
    with pytest.raises(TypeError, match=r"^warmup_steps must be an integer >= 0, got "):
        ScheduleLR(make(0.1), Cosine(), 10, value)


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warmup_must_be_shorter_than_the_run(make: Make, warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"^warmup_steps {warmup} must be shorter than the run, got total_steps 10$"):
        ScheduleLR(make(0.1), Cosine(), 10, warmup)


def test_an_unknown_policy_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match=r"^on_resize must be one of continue, rescale, keep, restart, got 'stretch'$"):
        ScheduleLR(make(0.1), Cosine(), 10, on_resize="stretch")  # type: ignore[arg-type]


def test_what_is_no_schedule_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match=r"^schedule must be a schedule, got the class Cosine: write Cosine\(\)$"):
        ScheduleLR(make(0.1), Cosine, 10)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^schedule must be a schedule such as Cosine\(end=0.1\), got 'cosine'$"):
        ScheduleLR(make(0.1), "cosine", 10)  # type: ignore[arg-type]


def test_what_is_no_optimizer_is_refused(make: Make) -> None:
    with pytest.raises(TypeError, match=r"^optimizer must be a torch.optim.Optimizer, got \[\]$"):
        ScheduleLR([], Cosine(), 10)  # type: ignore[arg-type]
    optimizer = make(0.1)
    optimizer.param_groups.clear()
    with pytest.raises(ValueError, match=r"^optimizer must have at least one param group, got none$"):
        ScheduleLR(optimizer, Cosine(), 10)


def test_numpys_numbers_are_learning_rates() -> None:
    scheduler = ScheduleLR(SGD([torch.nn.Parameter(torch.zeros(1))], lr=np.float32(0.5)), Linear(), np.int64(2))
    assert play(scheduler, 2) == [[0.5], [0.25]]
    assert {type(value) for value in (*scheduler.base_lrs, scheduler.total_steps)} == {float, int}


@pytest.mark.parametrize("key", ["nope", "nesterov", "betas"])
def test_an_entry_that_is_no_number_is_refused(make: Make, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} is not a number in the param groups of SGD, .*; known are lr, mom"):
        ScheduleLR(make(0.1), Cosine(), 10, key=key)


@pytest.mark.parametrize("state", [{"last_epoch": 3, "_last_lr": [0.1]}, [], None])
def test_another_schedulers_state_is_refused(make: Make, state: Any) -> None:
    with pytest.raises(ValueError, match=r"^the state (must be a ScheduleLR's, got one|of ScheduleLR must be a dict)"):
        ScheduleLR(make(0.1), Cosine(), 10).load_state_dict(state)


def test_a_state_that_counts_something_else_is_refused(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), Cosine(), 10)
    message = r"^the state has the unit 'epoch', this scheduler 'step': resume with the same interval and the same"
    with pytest.raises(ValueError, match=message):
        scheduler.load_state_dict({**scheduler.state_dict(), "unit": "epoch"})


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_cut_shorter_than_its_warmup_goes_on(make: Make, policy: OnResize) -> None:
    scheduler = ScheduleLR(make(0.1), CURVE, 60, 40, policy)
    play(scheduler, 10)
    scheduler.resize(30)
    warmup = 29 if policy == "rescale" else 40  # the longest that a run of 30 steps can be planned with
    progress = [oracles.resumed_progress(k, 10, policy, 60, 30, warmup) for k in range(10, 50)]
    factors = [CURVE(p) * oracles.linear_warmup(k, warmup) for k, p in enumerate(progress, start=10)]
    assert [lr for (lr,) in play(scheduler, 40)] == exactly([0.1 * factor for factor in factors])


def test_a_step_that_is_none_is_refused(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), Cosine(), 10)
    for step in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"^step must be finite and >= 0, got {step}$"):
            scheduler.move_to(step)


def test_a_step_before_the_optimizers_is_warned_of(make: Make) -> None:
    scheduler = ScheduleLR(make(0.1), Cosine(), 10)
    with pytest.warns(UserWarning, match=r"^ScheduleLR.step\(\) was called before optimizer.step\(\)"):
        scheduler.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.step()
    assert caught == []
