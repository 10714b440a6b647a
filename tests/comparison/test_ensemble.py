from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lit_cosine import Constant, Cosine, Schedule, SimpleNN, Step, one_cycle, warmup_cosine
from lit_cosine.comparison.stacked import (
    Ensemble,
    NotStackable,
    Training,
    batch_orders,
    cross_entropy,
    dropout_seed,
    initial_network,
    learning_rates,
)
from lit_cosine.comparison.stacked._member import accuracy

SCHEDULES: list[Schedule] = [Constant(), Cosine(end=0.1), Step(), one_cycle(), warmup_cosine()]
OPTIMIZERS = {
    "adam": ({"optimizer": "adam"}, torch.optim.Adam, {}),
    "adam-decay": ({"optimizer": "adam", "weight_decay": 0.1}, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": ({"optimizer": "adamw", "weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": ({"optimizer": "sgd", "momentum": 0.0}, torch.optim.SGD, {}),
    "sgd-momentum-decay": (
        {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.01},
    ),
}


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3))


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 3, bias=False)
        )


class Tied(nn.Module):
    """One weight used twice, a frozen one, and a random buffer that belongs to the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.frozen, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.frozen.requires_grad_(False)
        self.register_buffer("mixing", torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.sigmoid(self.frozen(self.inner(x @ self.mixing)))))


def data(dtype: torch.dtype, rows: int = 40, features: int = 6, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3 * rows, features, generator=generator, dtype=dtype)
    y = (x @ torch.randn(features, classes, generator=generator, dtype=dtype)).argmax(1)
    return list(zip(x.split(rows), y.split(rows), strict=True))


def train_alone(training, make_optimizer, lrs, train, seed) -> nn.Module:
    """The witness: one network, torch.optim and autograd, the LR set by hand at every step."""
    network = initial_network(training, seed)
    optimizer = make_optimizer([p for p in network.parameters() if p.requires_grad], lr=1.0)
    state = torch.get_rng_state()
    torch.manual_seed(dropout_seed(seed))
    step = 0
    for order in batch_orders(training, len(train[0]), seed):
        for indices in order.split(training.batch_size):
            optimizer.param_groups[0]["lr"] = float(lrs[step])
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(train[0][indices]), train[1][indices]).backward()
            optimizer.step()
            step += 1
    torch.set_rng_state(state)
    return network.eval()


def distance(block, ensemble, member: int, network: nn.Module) -> float:
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    assert block.weights.keys() == trained.keys()
    return max(float((block.weights[name][member] - value.detach()).abs().max()) for name, value in trained.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("network", "name"), [*((Plain, name) for name in OPTIMIZERS), (WithDropout, "adam")])
def test_members_equal_networks_trained_alone(name: str, network: type[nn.Module], dtype: torch.dtype) -> None:
    arguments, optimizer, options = OPTIMIZERS[name]
    train, val, test = data(dtype)
    training = Training(lambda: network().to(dtype), max_epochs=13, batch_size=12, **arguments)  # 52 steps
    table = learning_rates(SCHEDULES, [0.02], training.total_steps(40))
    ensemble = Ensemble(training, train, val, test, seeds=1, arms=table.shape[1])
    assert ensemble.draws_random == (network is WithDropout)
    block = ensemble.run([5], table)
    for member in range(ensemble.members):
        alone = train_alone(training, partial(optimizer, **options), table[:, member], train, seed=5)
        assert distance(block, ensemble, member, alone) < (1e-5 if dtype == torch.float32 else 1e-10)
        with torch.no_grad():
            expected = nn.functional.cross_entropy(alone(test[0]), test[1])
            accuracy = (alone(test[0]).argmax(1) == test[1]).double().mean()
        assert float(block.finals["test_loss"][member]) == pytest.approx(float(expected), rel=1e-4)
        assert float(block.finals["test_accuracy"][member]) == pytest.approx(float(accuracy), abs=1 / 39)


@pytest.mark.parametrize("network", [Convolutions, Tied, lambda: SimpleNN(6, 10, 3)])
@pytest.mark.parametrize("seeds", [1, 3])
def test_any_network_that_vmap_takes(network, seeds: int) -> None:
    train, val, test = data(torch.float64)
    training = Training(lambda: network().double(), max_epochs=2, batch_size=16)
    table = learning_rates([Cosine(), Constant()], [0.01], training.total_steps(40))
    ensemble = Ensemble(training, train, val, test, seeds, arms=2)
    for first in (0, 10):  # a second block starts anew
        block = ensemble.run(range(first, first + seeds), table)
        for member in range(ensemble.members):
            seed = first + member // 2
            alone = train_alone(training, torch.optim.Adam, table[:, member % 2], train, seed)
            assert distance(block, ensemble, member, alone) < 1e-10


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if out.sum() > 0 else -out


class BranchingOnRows(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class NumpyNoise(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(np.random.rand())


class WrongGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * (2.0 if torch._C._functorch.maybe_current_level() else 1.0)


class Lying(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return WrongGradient.apply(super().forward(x))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), r"changes its buffers 1\.running_mean.*BatchNorm"),
        (lambda: Branching(6, 3), "network cannot be stacked: .*data-dependent"),
        (lambda: BranchingOnRows(6, 3), "network cannot be stacked: "),
        (lambda: NumpyNoise(6, 3), "random numbers from Python or numpy"),
        (lambda: Lying(6, 3), "the gradient of 'weight' is off by 1 of its largest entry"),
        (lambda: nn.Flatten(), "no parameter to train"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(network, reason: str) -> None:
    train, val, test = data(torch.float32)
    with pytest.raises(NotStackable, match=reason):
        Ensemble(Training(network, max_epochs=1), train, val, test, seeds=1, arms=2)


def test_batch_norm_without_running_statistics_can_be_stacked() -> None:
    def network() -> nn.Module:
        norm = nn.BatchNorm1d(3, track_running_stats=False, affine=True)
        return nn.Sequential(nn.Linear(6, 3), norm)

    train, val, test = data(torch.float64)
    training = Training(lambda: network().double(), max_epochs=2, batch_size=20, optimizer="sgd")
    table = learning_rates([Cosine()], [0.01, 0.02], training.total_steps(40))
    ensemble = Ensemble(training, train, val, test, seeds=1, arms=2)
    block = ensemble.run([3], table)
    for member in range(2):
        alone = train_alone(training, partial(torch.optim.SGD, momentum=0.9), table[:, member], train, 3)
        assert distance(block, ensemble, member, alone) < 1e-10


def test_arms_of_a_seed_differ_by_their_lr_alone() -> None:
    train, val, test = data(torch.float32)
    training = Training(WithDropout, max_epochs=2, batch_size=20)
    table = learning_rates([Constant(), Constant()], [0.01], training.total_steps(40))
    block = Ensemble(training, train, val, test, seeds=1, arms=2).run([4], table)
    assert all(torch.equal(value[0], value[1]) for value in block.weights.values())


def test_a_diverged_member_leaves_the_others_alone() -> None:
    train, val, test = data(torch.float32)
    training = Training(Plain, max_epochs=3, batch_size=20, optimizer="sgd", momentum=0.0)
    steps = training.total_steps(40)
    tame = learning_rates([Constant()], [0.01, 0.01, 0.01], steps)
    wild = tame.clone()
    wild[:, 1] = float("inf")
    ensemble = Ensemble(training, train, val, test, seeds=1, arms=3)
    blocks = [ensemble.run([0], table) for table in (tame, wild)]
    assert torch.isnan(blocks[1].finals["test_loss"]).tolist() == [False, True, False]
    for member in (0, 2):
        for name, value in blocks[0].weights.items():
            assert torch.equal(value[member], blocks[1].weights[name][member])


def test_nothing_draws_from_the_global_generator() -> None:
    train, val, test = data(torch.float32)
    training = Training(WithDropout, max_epochs=1, batch_size=20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Ensemble(training, train, val, test, 1, 1).run([0], learning_rates([Cosine()], [0.01], 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_learning_rates_are_the_closed_form() -> None:
    table = learning_rates(SCHEDULES, [0.1, 0.3], steps=7)
    assert table.dtype == torch.float64
    for step in range(7):
        expected = [lr * schedule(step / 7) for schedule in SCHEDULES for lr in (0.1, 0.3)]
        assert table[step].tolist() == expected


def test_cross_entropy_is_torchs() -> None:
    logits = torch.randn(9, 5, dtype=torch.float64)
    labels = torch.arange(9) % 5
    expected = nn.functional.cross_entropy(logits, labels)
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(expected), rel=1e-14)


@given(st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=8), st.data())
def test_accuracy_is_argmaxs_and_torchmetrics_ties_included(logits: list[list[int]], data: st.DataObject) -> None:
    outputs = torch.tensor(logits, dtype=torch.float64)
    targets = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits))))
    assert float(accuracy(outputs, targets)) == float((outputs.argmax(1) == targets).double().mean())
    witness = multiclass_accuracy(outputs, targets, num_classes=3, average="micro")
    assert float(accuracy(outputs, targets)) == pytest.approx(float(witness), rel=1e-6)


def test_wrong_shapes_are_refused() -> None:
    train, val, test = data(torch.float32)
    ensemble = Ensemble(Training(Plain, max_epochs=1, batch_size=20), train, val, test, seeds=1, arms=2)
    with pytest.raises(ValueError, match=r"learning_rates must be \(2, 2\), got \(3, 2\)"):
        ensemble.run([0], torch.zeros(3, 2))
    with pytest.raises(ValueError, match="seeds must be 1, got 2"):
        ensemble.run([0, 1], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="seeds must be 1 for a network that draws random numbers"):
        Ensemble(Training(WithDropout, max_epochs=1), train, val, test, seeds=2, arms=2)
