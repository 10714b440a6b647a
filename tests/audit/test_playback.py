import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

from lit_cosine import Cosine, Restarts, ScheduleLR, warmup_stable_decay
from lit_cosine.audit._playback import Join, Stepping, Timeline, play
from tests.helpers.setups import transformers_cosine

N = 1_000_000
WITH_CLOSED_FORM = {
    "cosine": lambda o: CosineAnnealingLR(o, N, eta_min=1e-3),
    "cosine, over and over": lambda o: CosineAnnealingLR(o, 700),
    "one cycle": lambda o: OneCycleLR(o, 0.1, total_steps=N + 451),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, 900, mode="triangular2"),
    "cyclic, exponential": lambda o: CyclicLR(o, 0.01, 0.1, 300, mode="exp_range", gamma=0.9999),
    "lambda": lambda o: LambdaLR(o, lambda step: 1 - step / N),
    "transformers": lambda o: LambdaLR(o, partial(transformers_cosine, num_warmup_steps=100, num_training_steps=N)),
    "step": lambda o: StepLR(o, 900, 0.9),
    "multistep": lambda o: MultiStepLR(o, [500, 1500, 900_000]),
    "constant, then full": lambda o: ConstantLR(o, 0.3, 1_200),
    "linear": lambda o: LinearLR(o, 0.01, 1.0, 1_500),
    "polynomial": lambda o: PolynomialLR(o, N, 2.0),
    "exponential": lambda o: ExponentialLR(o, 0.99999),
    "sequence": lambda o: SequentialLR(
        o, [LinearLR(o, 0.01, 1.0, 1_100), CosineAnnealingLR(o, N - 1_100)], milestones=[1_100]
    ),
    "chain": lambda o: ChainedScheduler([ExponentialLR(o, 0.99999), LinearLR(o, 0.5, 1.0, 1_300)]),
    "ours": lambda o: ScheduleLR(o, Restarts(Cosine(end=0.1), 7), N, 1_234),
    "ours, nested": lambda o: ScheduleLR(o, warmup_stable_decay(), N),
}


def sgd(*lrs, **options):
    lrs = lrs or (0.1, 0.02)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, momentum=0.9, **options)


def always(scheduler, n):
    return [Stepping(scheduler, np.ones(n, dtype=bool))]


def stepped_by_hand(optimizer, scheduler, n):
    """Return the LRs of ``n`` updates, made one by one."""
    rows = []
    for _ in range(n):
        rows.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rows


@pytest.mark.parametrize("make", WITH_CLOSED_FORM.values(), ids=WITH_CLOSED_FORM.keys())
def test_a_million_updates_are_sampled_and_the_samples_are_the_lrs(make):
    optimizer = sgd()
    scheduler = make(optimizer)
    stepped_by_hand(optimizer, scheduler, 450)
    trace = play(optimizer, always(scheduler, N), N)
    assert trace.sampled
    assert 20_000 < len(trace.at) < 30_000
    used = stepped_by_hand(optimizer, scheduler, 3_000)
    known = [update for update in range(3_000) if trace.knows(update)]
    assert len(known) > 2_000
    for update in known:
        assert trace.lr(update) == pytest.approx(used[update], rel=1e-9, abs=1e-15)


def test_a_scheduler_whose_curve_is_not_a_function_of_the_step_is_played_exactly():
    n = 101_000

    class Falls(LRScheduler):
        def get_lr(self):
            return [group["lr"] * 0.9999 ** (self.last_epoch > 0) for group in self.optimizer.param_groups]

    optimizer = sgd()
    scheduler = Falls(optimizer)
    trace = play(optimizer, always(scheduler, n), n)
    assert not trace.sampled
    assert trace.changes(0) == n - 1
    assert trace.lr(n - 1)[0] == pytest.approx(0.1 * 0.9999 ** (n - 1), rel=1e-9)


def test_a_subclass_with_another_curve_is_played_exactly():
    class Halved(CosineAnnealingLR):
        def get_lr(self):
            return [lr / 2 if self.last_epoch == 100_500 else lr for lr in super().get_lr()]

    optimizer = sgd()
    scheduler = Halved(optimizer, 150_000)
    trace = play(optimizer, always(scheduler, 101_000), 101_000)
    assert not trace.sampled
    assert trace.lr(100_500)[0] < 0.6 * trace.lr(100_499)[0]


def test_a_closed_form_that_the_first_steps_contradict_is_not_used():
    optimizer = sgd()
    scheduler = ExponentialLR(optimizer, 0.99999)
    optimizer.param_groups[0]["lr"] = 0.5  # what an LR finder does: the recursion continues from it
    trace = play(optimizer, always(scheduler, 101_000), 101_000)
    assert not trace.sampled
    assert trace.lr(100_000)[0] == pytest.approx(0.5 * 0.99999**100_000, rel=1e-6)


def test_a_change_from_outside_is_sampled_under_ours():
    optimizer = sgd()
    scheduler = ScheduleLR(optimizer, Cosine(), N)
    optimizer.param_groups[0]["lr"] = 0.5
    trace = play(optimizer, always(scheduler, N), N)
    assert trace.sampled
    assert trace.lr(N // 2) == pytest.approx([0.25, 0.01])


def test_a_play_changes_nothing():
    count = 0

    def factor(step):
        nonlocal count
        count += 1
        return 0.9**step

    class Factor:
        calls = 0

        def __call__(self, step):
            self.calls += 1
            return 0.8**step

    optimizer, called = sgd(torch.tensor(0.1), torch.tensor(0.2)), Factor()
    scheduler = LambdaLR(optimizer, [factor, called])
    cyclic_optimizer = sgd()
    cyclic = CyclicLR(cyclic_optimizer, 0.01, 0.1, 3)
    before = [repr(each) for each in (optimizer, scheduler.state_dict(), cyclic_optimizer, vars(cyclic))]
    calls, tensors = (count, called.calls), [group["lr"] for group in optimizer.param_groups]
    random = torch.get_rng_state()
    play(optimizer, always(scheduler, 50), 50)
    trace = play(cyclic_optimizer, always(cyclic, 50), 50)
    assert [repr(each) for each in (optimizer, scheduler.state_dict(), cyclic_optimizer, vars(cyclic))] == before
    assert (count, called.calls) == calls
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert len(trace.at) == 51


def test_neither_the_optimizer_nor_shared_objects_are_copied():
    class Uncopied(torch.optim.SGD):
        def __deepcopy__(self, memo):
            raise AssertionError("an optimizer holds as much memory as its model, twice")

    class Model:
        def __deepcopy__(self, memo):
            raise AssertionError("a model is large")

    optimizer, model = Uncopied([torch.nn.Parameter(torch.zeros(2))], lr=0.1), Model()
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    scheduler.model = model
    assert len(play(optimizer, always(scheduler, 5), 5, shared=[model]).at) == 6


def test_an_error_ends_the_play_where_it_would_end_the_training():
    optimizer = sgd()
    trace = play(optimizer, always(OneCycleLR(optimizer, 0.1, total_steps=5), 20), 20)
    update, error = trace.error
    assert update == 5
    assert "Tried to step 6 times" in str(error)
    assert len(trace.at) == 6


def test_groups_join():
    optimizer = sgd(0.1)
    scheduler = ScheduleLR(optimizer, Cosine(), 10)
    trace = play(optimizer, always(scheduler, 10), 10, joins=[Join(5, None, 0.1)])
    assert math.isnan(trace.lr(4)[1])
    assert trace.lr(5) == pytest.approx([0.05, 0.005])
    assert trace.lr(9)[1] < 0.005
    given = play(optimizer, always(scheduler, 10), 10, joins=[Join(0, 0.3, 0.1)])
    assert given.lr(0) == [0.1, 0.3]


@pytest.mark.parametrize(
    ("at_zero", "start", "tail"),
    [([], 0, 0), ([0], 1, 0), ([0, 1, 2], 3, 0), ([8, 9], 0, 2), ([0, 5, 9], 1, 1), (range(10), 10, 10), ([5], 0, 0)],
)
def test_updates_below(at_zero, start, tail):
    optimizer = sgd(1.0)
    trace = play(optimizer, always(LambdaLR(optimizer, lambda step: float(step not in at_zero)), 10), 10)
    assert (trace.updates_below(0.0), trace.updates_below(0.0, tail=True)) == (start, tail)


@pytest.mark.parametrize("batches", [1, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("first_batch", [0, 3])
@pytest.mark.parametrize("most", [None, 4])
def test_the_timeline_is_that_of_lightnings_loops(batches, accumulate, first_batch, most):
    run = Timeline(batches, 3, lambda epoch: accumulate + epoch, 2, first_batch, most)
    naive = []
    for epoch in (2, 3, 4):
        for batch in range(batches):
            ends_window, ends_epoch = (batch + 1) % (accumulate + epoch) == 0, batch + 1 == batches
            if (ends_window or ends_epoch) and not (epoch == 2 and batch < first_batch):
                naive.append((epoch, batch, ends_epoch))
    assert list(zip(run.epoch.tolist(), run.batch.tolist(), run.ends_epoch.tolist(), strict=True)) == naive[:most]
    assert run.stepping("step", 2).tolist() == [(batch + 1) % 2 == 0 for _, batch, _ in naive[:most]]
    assert run.stepping("epoch", 2).tolist() == [ends and (epoch + 1) % 2 == 0 for epoch, _, ends in naive[:most]]


def test_a_scheduler_that_raises_after_a_long_run_is_played_up_to_there():
    optimizer = sgd()
    trace = play(optimizer, always(OneCycleLR(optimizer, 0.1, total_steps=101_000), N), N)
    update, error = trace.error
    assert update == 101_000
    assert isinstance(error, ValueError)
