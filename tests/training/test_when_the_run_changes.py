"""One test for every cell of the table in docs/when-the-run-changes.md, each with values derived by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from lit_cosine import Constant, Cosine, Linear, OneMinusSqrt, Schedule, ScheduleLR, Step, warmup_stable_decay
from lit_cosine.schedules import OnResize

PEAK = 0.5
POLICIES: list[OnResize] = ["continue", "rescale", "keep", "restart"]
DOCS = Path(__file__).parents[2] / "docs" / "when-the-run-changes.md"


def make(
    schedule: Schedule,
    total: int,
    warmup: int = 0,
    cooldown: int = 0,
    on_resize: OnResize = "continue",
    *,
    lr: float = PEAK,
    cooldown_schedule: Schedule = Linear(),
) -> ScheduleLR:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    return ScheduleLR(
        optimizer,
        schedule,
        total,
        warmup,
        cooldown_steps=cooldown,
        cooldown_schedule=cooldown_schedule,
        on_resize=on_resize,
    )


def update(scheduler: ScheduleLR, updates: int) -> list[float]:
    """The LR of each of so many updates, as factors of the peak."""
    lrs = []
    for _ in range(updates):
        lrs.append(lr(scheduler))
        scheduler.optimizer.step()
        scheduler.step()
    return lrs


def lr(scheduler: ScheduleLR) -> float:
    return float(scheduler.optimizer.param_groups[0]["lr"]) / PEAK


def resume(scheduler: ScheduleLR, other: ScheduleLR) -> ScheduleLR:
    """``other``, which another process has made, from the state of ``scheduler``."""
    other.optimizer.load_state_dict(scheduler.optimizer.state_dict())
    other.load_state_dict(scheduler.state_dict())
    return other


def close(expected: list[float]) -> object:
    return pytest.approx(expected, rel=1e-12, abs=1e-15)


# --- nothing ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stop", [0, 1, 3, 7, 9])
def test_nothing_changed(policy: OnResize, stop: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = update(make(Cosine(), 10, 2, 4, policy), 12)
    first = make(Cosine(), 10, 2, 4, policy)
    lrs = update(first, stop)
    assert lrs + update(resume(first, make(Cosine(), 10, 2, 4, policy)), 12 - stop) == whole  # bit for bit
    assert caplog.records == []


# --- the length: 10 updates of a line from 1 to 0, stopped after 5 and resumed as 15 ---

LENGTH = {
    "continue": [0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.0],
    "rescale": [10 / 15, 9 / 15, 8 / 15, 7 / 15, 6 / 15, 5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15, 0.0],
    "keep": [0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "restart": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0],
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("in_place", [False, True])
def test_another_length(policy: OnResize, in_place: bool, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = make(Linear(), 10, on_resize=policy)
    update(scheduler, 5)
    if in_place:
        scheduler.resize(15)
    else:
        scheduler = resume(scheduler, make(Linear(), 15, on_resize=policy))
    assert update(scheduler, 11) == close(LENGTH[policy])
    (record,) = caplog.records
    assert "from 10 to 15" in record.getMessage()
    assert policy in record.getMessage()


IN_WARMUP = {
    "continue": [3 / 5, 4 / 5, *(1 - k / 10 for k in range(10))],
    "rescale": [3 / 7, 4 / 7, 5 / 7, 6 / 7, *(1 - k / 8 for k in range(8))],
    "keep": [3 / 5, 4 / 5, 1.0, 0.75, 0.5, 0.25, *[0.0] * 6],
    "restart": [3 / 5, 4 / 5, *(1 - k / 10 for k in range(10))],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_another_length_within_the_warmup(policy: OnResize) -> None:
    """The warmup of 4 goes on as it was, and the line begins at its end; under "rescale" the warmup is the new 6."""
    scheduler = make(Linear(), 8, 4, on_resize=policy)
    update(scheduler, 2)
    scheduler = resume(scheduler, make(Linear(), 14, 6, on_resize=policy))
    assert update(scheduler, 12) == close(IN_WARMUP[policy])


@pytest.mark.parametrize("policy", POLICIES)
def test_another_length_before_the_first_update_is_no_change(policy: OnResize) -> None:
    resumed = resume(make(Linear(), 8, 4, on_resize=policy), make(Linear(), 20, 4, on_resize=policy))
    assert update(resumed, 20) == update(make(Linear(), 20, 4), 20)


# --- within a cooldown: 10 updates, the last 4 of them a cooldown from 1 to 0; stopped after 8, at half of it ---

IN_COOLDOWN = {
    "continue": [0.5, 3 / 8, 1 / 4, 1 / 8, 0.0],
    "rescale": [1.0, 0.75, 0.5, 0.25, 0.0],
    "keep": [0.5, 0.25, 0.0, 0.0, 0.0],
    "restart": [1.0, 0.75, 0.5, 0.25, 0.0],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_another_length_within_a_cooldown(policy: OnResize) -> None:
    scheduler = make(Constant(), 10, 0, 4, policy)
    update(scheduler, 8)
    assert update(resume(scheduler, make(Constant(), 12, 0, 4, policy)), 5) == close(IN_COOLDOWN[policy])


# --- the cooldown ---


@pytest.mark.parametrize("policy", ["continue", "rescale", "restart"])
def test_a_cooldown_moves_with_the_end_of_the_run(policy: OnResize) -> None:
    """A WSD run of 100 with 20 % cooldown, extended at 60 to 200: constant until 160."""
    scheduler = make(Constant(), 100, 0, 20, policy, cooldown_schedule=OneMinusSqrt())
    update(scheduler, 60)
    lrs = update(resume(scheduler, make(Constant(), 200, 0, 40, policy, cooldown_schedule=OneMinusSqrt())), 141)
    assert lrs[:101] == [1.0] * 101
    assert lrs[110] == 0.5  # a quarter of the cooldown: 1 - sqrt(1/4)
    assert lrs[140] == 0.0


def test_a_cooldown_stays_where_it_was_under_keep() -> None:
    scheduler = make(Constant(), 10, 0, 4, "keep")
    update(scheduler, 5)
    lrs = update(resume(scheduler, make(Constant(), 20, 0, 4, "keep")), 7)
    assert lrs == close([1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_a_cooldown_is_shortened_to_what_is_left() -> None:
    scheduler = make(Constant(), 100, 0, 20)
    update(scheduler, 6)
    assert update(resume(scheduler, make(Constant(), 10, 0, 8)), 5) == close([1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_cooldown_begins_now() -> None:
    """A cosine at its half, 0.5, is held there while the cooldown of 4 goes to 0; the run ends after it."""
    scheduler = make(Cosine(), 20)
    update(scheduler, 10)
    scheduler.start_cooldown(4)
    assert scheduler.total_steps == 14
    assert update(scheduler, 6) == close([0.5, *(0.5 * (1 - (k / 4)) for k in (1, 2, 3)), 0.0, 0.0])


def test_a_cooldown_that_was_begun_goes_on_after_a_resume() -> None:
    scheduler = make(Constant(), 20)
    update(scheduler, 10)
    scheduler.start_cooldown(4)
    update(scheduler, 2)
    assert update(resume(scheduler, make(Constant(), 20)), 3) == close([0.5, 0.25, 0.0])


# --- the schedule ---


def test_another_schedule_with_the_same_factor_plays_as_planned() -> None:
    """A constant trunk that is resumed as warmup-stable-decay, which is constant there too."""
    scheduler = make(Constant(), 10)
    update(scheduler, 5)
    lrs = update(resume(scheduler, make(warmup_stable_decay(0.0, 0.25), 20)), 16)
    assert lrs[:11] == [1.0] * 11
    assert lrs[11:] == close([1 - math.sqrt(k / 5) for k in range(1, 6)])


def test_a_constant_holds_the_factor() -> None:
    scheduler = make(Linear(), 10)
    update(scheduler, 4)
    assert update(resume(scheduler, make(Constant(), 10)), 8) == close([0.6] * 8)


def test_a_falling_schedule_begins_at_the_factor() -> None:
    """A cosine to 0 at half-way goes on to the floor of another: from 0.5 to 0.1."""
    scheduler = make(Cosine(), 8)
    update(scheduler, 4)
    lrs = update(resume(scheduler, make(Cosine(end=0.1), 8)), 5)
    assert lrs == close([0.1 + 0.4 * (1 + math.cos(math.pi * u)) / 2 for u in (0, 0.25, 0.5, 0.75, 1)])


@pytest.mark.parametrize(
    ("schedule", "shape"), [(Linear(), lambda u: 1 - u), (OneMinusSqrt(), lambda u: 1 - math.sqrt(u))]
)
def test_a_trunk_branches_into_a_cooldown(schedule: Schedule, shape: object) -> None:
    """A trunk of 100 stopped at 60 and resumed to 70: 1 -> 0 over the last 10."""
    scheduler = make(Constant(), 100)
    update(scheduler, 60)
    lrs = update(resume(scheduler, make(schedule, 70)), 11)
    assert lrs == close([shape(k / 10) for k in range(11)])  # type: ignore[operator]


def test_a_mapped_schedule_is_in_the_state() -> None:
    scheduler = make(Constant(), 100)
    update(scheduler, 60)
    branch = resume(scheduler, make(Linear(), 70))
    update(branch, 5)
    assert update(resume(branch, make(Linear(), 70)), 6) == close([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_another_schedule_under_rescale_is_where_a_run_planned_so_would_be() -> None:
    scheduler = make(Constant(), 10, on_resize="rescale")
    update(scheduler, 4)
    assert update(resume(scheduler, make(Linear(), 10, on_resize="rescale")), 7) == close(
        [k / 10 for k in range(6, -1, -1)]
    )


def test_another_schedule_under_restart_plays_over_what_is_left() -> None:
    scheduler = make(Linear(), 10, on_resize="restart")
    update(scheduler, 6)
    lrs = update(resume(scheduler, make(Linear(end=0.2), 10, on_resize="restart")), 5)
    assert lrs == close([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("schedule", "policy"), [(Linear(start=0.0, end=1.0), "continue"), (Linear(end=0.5), "keep"), (Constant(), "keep")]
)
def test_another_schedule_that_cannot_go_on_is_refused(schedule: Schedule, policy: OnResize) -> None:
    scheduler = make(Step(milestones=(0.5,)), 10, on_resize=policy)
    update(scheduler, 6)
    with pytest.raises(ValueError, match=r"(?s)rescale.*restart"):
        resume(scheduler, make(schedule, 10, on_resize=policy))


# --- peak LR and warmup in the code of a resumed run ---


def test_the_peak_lr_and_the_warmup_of_the_checkpoint_stay(caplog: pytest.LogCaptureFixture) -> None:
    first = make(Linear(), 10, 2)
    lrs = update(first, 1)
    lrs += update(resume(first, make(Linear(), 10, 5, lr=3 * PEAK)), 10)
    assert lrs == update(make(Linear(), 10, 2), 11)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert re.search(r"warmup.*\b2\b.*\b5\b", text)


# --- an LR from outside ---


def set_lr(scheduler: ScheduleLR, factor: float) -> None:
    scheduler.optimizer.param_groups[0]["lr"] = factor * PEAK


def test_an_lr_before_the_first_update_is_the_base() -> None:
    scheduler = make(Linear(), 10)
    set_lr(scheduler, 3.0)
    assert update(scheduler, 3) == close([3.0, 2.7, 2.4])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.5, 2.0])
def test_an_lr_lowered_or_raised_at_most_twice_moves_the_base_by_the_ratio(ratio: float) -> None:
    scheduler = make(Linear(), 10)
    update(scheduler, 5)
    set_lr(scheduler, ratio * 0.5)
    assert update(scheduler, 3) == close([ratio * 0.5, ratio * 0.4, ratio * 0.3])


@pytest.mark.parametrize(("value", "base"), [(0.5, 1.0), (0.9, 1.0), (4.0, 4.0)])
def test_an_lr_raised_more_is_the_base_if_it_is_above_it(value: float, base: float) -> None:
    """Near the zero of the curve, at 0.1, a value of 0.5 is five times the LR and half of the base."""
    scheduler = make(Linear(), 10)
    update(scheduler, 9)
    set_lr(scheduler, value)
    scheduler.optimizer.step()
    scheduler.resize(20)  # at 0.9 of the curve until the 20th update
    assert lr(scheduler) == pytest.approx(base * 0.1, rel=1e-12)


def test_a_clamp_leaves_the_base_alone() -> None:
    """A callback that keeps the LR at 0.6 or above: when it stops, the LR is the plan's."""
    scheduler, lrs = make(Linear(), 10), []
    for _ in range(8):
        if lr(scheduler) < 0.55:
            set_lr(scheduler, 0.55)
        lrs += update(scheduler, 1)
    assert lrs == close([1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.55, 0.55])
    assert update(scheduler, 3) == close([0.2, 0.1, 0.0])


# --- the page ---


def test_every_cell_of_the_page_names_a_test_that_exists() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for table in re.findall(r"(?m)^\|[-|]+\|\n((?:\|.*\n)+)", page):
        cells = [cell for row in table.splitlines() for cell in row.split("|")[2:-1]]
        assert [cell for cell in cells if "`test_" not in cell and "the same" not in cell] == []
    named = {*re.findall(r"`(test_\w+)`", page)}
    tests = Path(__file__).parents[1]
    defined = {name for file in tests.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert named <= defined
    assert len(named) >= 25
