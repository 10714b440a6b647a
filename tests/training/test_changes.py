"""Random runs that change, update by update beside the naive model of tests/helpers/naive_run.py."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from lit_cosine import ScheduleLR
from tests.helpers.histories import PEAK, Change, History, histories
from tests.helpers.naive_run import NaiveRun


def make(run: History | Change, start: History, lr: float = PEAK) -> ScheduleLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    return ScheduleLR(
        optimizer,
        run.schedule,
        total_steps=run.N,
        warmup_steps=run.W,
        cooldown_steps=run.C,
        cooldown_schedule=start.cooldown_schedule,
        on_resize=start.policy,
    )


def resumed(scheduler: ScheduleLR, change: Change, start: History, lr: float = PEAK) -> ScheduleLR:
    """Another process's scheduler, from a checkpoint on disk."""
    file = io.BytesIO()
    torch.save([scheduler.optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make(change, start, lr)
    other.optimizer.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    return other


def all_left_are_zero(naive: NaiveRun, step: int, end: int) -> bool:
    """Whether every update that is left would run at LR 0, though some are left."""
    return step < end and all(naive.lr(later) == 0.0 for later in range(step, end)) and naive.base > 0.0


def play(run: History) -> tuple[list[float], list[float]]:
    """The LR of every update, as it was and as the naive model has it."""
    scheduler, code = make(run, run), run.schedule
    naive = NaiveRun(PEAK, run.schedule, run.N, run.W, run.C, run.cooldown_schedule, run.policy)
    changes, floors = {change.step: change for change in run.changes}, dict[int, float]()
    found, expected = [], []
    last = max([run.N, *(change.N for change in run.changes)])
    for k in range(last + 2):
        change = changes.get(k)
        if change is not None and change.kind == "copy":
            scheduler = pickle.loads(pickle.dumps(scheduler)) if k % 2 else copy.deepcopy(scheduler)
        elif change is not None and change.kind == "resume":
            scheduler = resumed(scheduler, change, run)
        elif change is not None and change.kind == "other code":
            other = Change(**{**vars(change), "W": max(change.W - 1, 0)})
            scheduler = resumed(scheduler, other, run, lr=3 * PEAK)
        elif change is not None and change.kind == "length in place":
            scheduler.resize(change.N, change.W, change.C)
            naive.resume(k, change.N, change.W, change.C)
        elif change is not None and change.kind in ("length", "schedule"):
            naive.resume(k, change.N, change.W, change.C, change.schedule if change.schedule != code else None)
            if all_left_are_zero(naive, k, change.N) and (change.N, change.schedule) != (scheduler.total_steps, code):
                with pytest.raises(ValueError, match="would run at LR 0"):
                    resumed(scheduler, change, run)
                return found, expected
            scheduler = resumed(scheduler, change, run)
            code = change.schedule
        elif change is not None and change.kind == "start cooldown":
            scheduler.start_cooldown(change.updates)
            naive.start_cooldown(k, change.updates)
        elif change is not None:
            floors |= {k + later: change.lr for later in range(change.updates)}
        group = scheduler.optimizer.param_groups[0]
        lr = naive.lr(k)
        if k in floors and ((change is not None and change.kind == "outside") or lr < floors[k]):
            group["lr"] = lr = floors[k]
            naive.set_lr(k, lr)
        found.append(float(group["lr"]))
        expected.append(lr)
        scheduler.optimizer.step()
        scheduler.step()
    return found, expected


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_every_update_of_a_run_that_changes_has_the_lr_of_the_table(run: History) -> None:
    found, expected = play(run)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-18)
