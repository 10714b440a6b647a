"""Real set-ups of an LR schedule, right and wrong, each with what the audit must find and a witness that it is true.

The witness looks at a training without the audit: at the LRs of its updates, in ``lrs`` (a row an update, a column a
group), at the exception that ended it, and at the Trainer.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    StochasticWeightAveraging,
)
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_cosine import (
    Constant,
    Cosine,
    LearningRateScheduler,
    Linear,
    Restarts,
    ScheduleLR,
    Sequential,
    lr_scheduler_config,
    one_cycle,
    total_steps,
    warmup_stable_decay,
)
from tests.helpers.nets import TORCH_IS_STRICT

BATCHES = 8


class Unsized(IterableDataset):
    def __iter__(self):
        for _ in range(4 * BATCHES):
            yield torch.ones(4)


class Net(pl.LightningModule):
    """A backbone and a head; ``configure(self)`` is its configure_optimizers."""

    def __init__(self, configure, unsized=False):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 1)
        self.configure, self.unsized, self.lr = configure, unsized, 0.1

    def training_step(self, batch, batch_idx):
        loss = self.head(self.backbone(batch[0] if isinstance(batch, list) else batch)).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return self.configure(self)

    def train_dataloader(self):
        rows = torch.randn(4 * BATCHES, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(Unsized() if self.unsized else TensorDataset(rows), batch_size=4)


class Manual(Net):
    """Steps its optimizer itself, and its scheduler not at all."""

    automatic_optimization = False

    def __init__(self, configure):
        super().__init__(configure)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class ManualSteps(Manual):
    """Steps its scheduler too."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.lr_schedulers().step()


class TwoOptimizers(Manual):
    def training_step(self, batch, batch_idx):
        loss = Net.training_step(self, batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()
        self.step_schedulers()

    def step_schedulers(self):
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()


class ByEpochNumber:
    """A scheduler in timm's form: no torch class, told the epoch by the module's own lr_scheduler_step."""

    def __init__(self, optimizer, t_initial):
        self.optimizer, self.t_initial = optimizer, t_initial
        self.base = [group["lr"] for group in optimizer.param_groups]

    def step(self, epoch):
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * max(0.1, 1 - epoch / self.t_initial)

    def state_dict(self):
        return {"t_initial": self.t_initial}

    def load_state_dict(self, state):
        self.t_initial = state["t_initial"]


class Timm(Net):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(epoch=self.current_epoch + 1)


class BoltsWarmupCosine(LRScheduler):
    """The recursion of bolts' LinearWarmupCosineAnnealingLR, where warmup_epochs=0 never leaves warmup_start_lr."""

    def __init__(self, optimizer, warmup_epochs, max_epochs, warmup_start_lr=0.0, eta_min=0.0):
        self.warmup_epochs, self.max_epochs = warmup_epochs, max_epochs
        self.warmup_start_lr, self.eta_min = warmup_start_lr, eta_min
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch == self.warmup_epochs > 0:
            return list(self.base_lrs)
        if self.last_epoch == 0:
            return [self.warmup_start_lr] * len(self.base_lrs)
        if self.last_epoch < self.warmup_epochs:
            rise = [(base - self.warmup_start_lr) / (self.warmup_epochs - 1) for base in self.base_lrs]
            return [group["lr"] + step for group, step in zip(self.optimizer.param_groups, rise, strict=True)]
        span = self.max_epochs - self.warmup_epochs
        now = 1 + math.cos(math.pi * (self.last_epoch - self.warmup_epochs) / span)
        before = 1 + math.cos(math.pi * (self.last_epoch - 1 - self.warmup_epochs) / span)
        return [now / before * (group["lr"] - self.eta_min) + self.eta_min for group in self.optimizer.param_groups]


def transformers_cosine(step, *, num_warmup_steps, num_training_steps, num_cycles=0.5):
    """The function behind transformers' get_cosine_schedule_with_warmup."""
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    progress = (step - num_warmup_steps) / max(1, num_training_steps - num_warmup_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))


def transformers_linear(step, *, num_warmup_steps, num_training_steps):
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    return max(0.0, (num_training_steps - step) / max(1, num_training_steps - num_warmup_steps))


def with_scheduler(make, interval=None, frequency=None, *, lr=0.1, **optimizer):
    """Return a configure_optimizers with SGD and the scheduler ``make(optimizer)``."""

    def configure(module):
        own_lr = lr.clone() if isinstance(lr, torch.Tensor) else lr
        sgd = torch.optim.SGD(module.parameters(), lr=own_lr, **optimizer)
        entry = {"scheduler": make(sgd)}
        entry |= {} if interval is None else {"interval": interval}
        entry |= {} if frequency is None else {"frequency": frequency}
        if isinstance(entry["scheduler"], ReduceLROnPlateau):
            entry["monitor"] = "loss"
        return {"optimizer": sgd, "lr_scheduler": entry}

    return configure


def per_step(make, **options):
    return with_scheduler(make, "step", **options)


def without(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def estimated(make):
    """Return a configure_optimizers whose scheduler asks trainer.estimated_stepping_batches."""

    def configure(module):
        steps = module.trainer.estimated_stepping_batches
        return per_step(lambda sgd: make(sgd, steps))(module)

    return configure


def ours(schedule, **options):
    def configure(module):
        sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": lr_scheduler_config(sgd, schedule, module.trainer, **options)}

    return configure


def two_groups(make, low=1e-4):
    def configure(module):
        groups = [{"params": module.backbone.parameters(), "lr": low}, {"params": module.head.parameters()}]
        sgd = torch.optim.SGD(groups, lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": make(sgd), "interval": "step"}}

    return configure


def head_alone(make):
    def configure(module):
        sgd = torch.optim.SGD(module.head.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": make(sgd), "interval": "step"}}

    return configure


def two_schedulers(module):
    sgd = torch.optim.SGD(module.parameters(), lr=0.1)
    return [sgd], [
        {"scheduler": CosineAnnealingLR(sgd, 24), "interval": "step"},
        {"scheduler": ExponentialLR(sgd, 0.9), "interval": "epoch"},
    ]


def one_of_two(module):
    first = torch.optim.SGD(module.backbone.parameters(), lr=0.1)
    second = torch.optim.Adam(module.head.parameters(), lr=0.01)
    return [first, second], [{"scheduler": CosineAnnealingLR(first, 24), "interval": "step"}]


def group_added_late(module):
    sgd = torch.optim.SGD(module.head.parameters(), lr=0.1)
    scheduler = LambdaLR(sgd, lambda step: 1 - step / 24)
    sgd.add_param_group({"params": module.backbone.parameters(), "lr": 0.01})
    return {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass
class SetUp:
    """A set-up: ``net`` makes the module, ``expected`` are the codes the audit must find, ``witness`` proves them."""

    name: str
    net: object
    expected: tuple = ()
    witness: object = None
    trainer: dict = field(default_factory=lambda: {"max_epochs": 3})
    callbacks: object = tuple
    logged: bool = False
    exact: bool = True  # whether planned and used LRs can be compared


def net(configure, kind=Net, **options):
    return lambda: kind(configure, **options)


def never_moves(lrs, error, trainer):
    return len({tuple(row) for row in lrs}) == 1


def climbs(lrs, error, trainer):
    lowest = min(range(len(lrs)), key=lambda index: lrs[index][0])
    return max(row[0] for row in lrs[lowest:]) > lrs[lowest][0] + 0.001


def zeros(count):
    return lambda lrs, error, trainer: sum(row[0] == 0.0 for row in lrs) == count


def raises(kind):
    return lambda lrs, error, trainer: isinstance(error, kind)


def joined_stays(lrs, error, trainer):
    """Whether the first group moves in the second epoch while the new group does not."""
    moved = [{row[group] for row in lrs[8:16]} for group in (0, 1)]
    return error is None and len(moved[0]) == 8 and len(moved[1]) == 1


WRONG = [
    SetUp(
        "row 1: T_max in steps, stepped per epoch by default",
        net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 24))),
        ("epoch-interval",),
        lambda lrs, error, trainer: lrs[-1][0] > 0.095 and trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3,
    ),
    SetUp(
        "transformers' cosine, stepped per epoch",
        net(
            with_scheduler(
                lambda sgd: LambdaLR(sgd, partial(transformers_cosine, num_warmup_steps=0, num_training_steps=24))
            )
        ),
        ("epoch-interval",),
        lambda lrs, error, trainer: lrs[-1][0] > 0.095,
    ),
    SetUp(
        "OneCycleLR over the updates, stepped per epoch",
        net(with_scheduler(lambda sgd: OneCycleLR(sgd, 0.1, total_steps=24), "epoch", momentum=0.9)),
        ("epoch-interval",),
        lambda lrs, error, trainer: max(row[0] for row in lrs) < 0.03,
    ),
    SetUp(
        "row 3: the LR climbs back after T_max",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 12))),
        ("climbs-after-end",),
        climbs,
    ),
    SetUp(
        "row 3: T_max in epochs, stepped per step",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 3))),
        ("climbs-after-end",),
        climbs,
    ),
    SetUp(
        "transformers' cosine beyond its end",
        net(
            per_step(lambda sgd: LambdaLR(sgd, partial(transformers_cosine, num_warmup_steps=2, num_training_steps=12)))
        ),
        ("idle-warmup", "climbs-after-end"),
        climbs,
    ),
    SetUp(
        "row 4: a loader without a length: T_max = -1",
        net(estimated(CosineAnnealingLR), unsized=True),
        ("endless-horizon",),
        lambda lrs, error, trainer: {round(row[0], 12) for row in lrs} == {0.1, 0.0},
        {"max_epochs": 2},
    ),
    SetUp(
        "row 4: T_max = inf",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, math.inf))),
        ("endless-horizon",),
        lambda lrs, error, trainer: never_moves(lrs, error, trainer),
    ),
    SetUp(
        "row 4: GradientAccumulationScheduler halves the updates",
        net(estimated(CosineAnnealingLR)),
        ("ends-early",),
        lambda lrs, error, trainer: len(lrs) == 12 and lrs[-1][0] > 0.04,
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 4})],
    ),
    SetUp(
        "the horizon of ten epochs in a run of three",
        net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 10))),
        ("ends-early",),
        lambda lrs, error, trainer: lrs[-1][0] > 0.08,
    ),
    SetUp(
        "max_steps ends the run halfway",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24))),
        ("ends-early",),
        lambda lrs, error, trainer: len(lrs) == 12 and lrs[-1][0] > 0.05,
        {"max_epochs": 3, "max_steps": 12},
    ),
    SetUp(
        "row 5: LambdaLR and BackboneFinetuning",
        net(head_alone(lambda sgd: LambdaLR(sgd, lambda step: 1 - step / 24))),
        ("group-not-covered",),
        raises(ValueError) if TORCH_IS_STRICT else joined_stays,
        callbacks=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
        exact=TORCH_IS_STRICT,  # without the error, the callback moves the group at epochs to come
    ),
    SetUp(
        "row 5: WarmRestarts and BackboneFinetuning",
        net(head_alone(lambda sgd: CosineAnnealingWarmRestarts(sgd, 24))),
        ("group-not-covered",),
        raises(ValueError) if TORCH_IS_STRICT else joined_stays,
        callbacks=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
        exact=TORCH_IS_STRICT,  # without the error, the callback moves the group at epochs to come
    ),
    SetUp(
        "row 5: OneCycleLR and BackboneFinetuning",
        net(head_alone(lambda sgd: OneCycleLR(sgd, 0.1, total_steps=24))),
        ("group-not-covered",),
        raises(KeyError),
        callbacks=lambda: [BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
    ),
    SetUp(
        "a group added after the scheduler was built",
        net(group_added_late),
        ("group-not-covered",),
        raises(ValueError) if TORCH_IS_STRICT else joined_stays,
    ),
    SetUp(
        "an optimizer without a scheduler beside one that has",
        net(one_of_two, TwoOptimizers),
        ("group-not-covered",),
        lambda lrs, error, trainer: {row[0] for row in lrs[1::2]} == {0.01} and len({row[0] for row in lrs[::2]}) > 20,
        exact=False,
    ),
    SetUp(
        "row 6: frequency and accumulation never meet",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 6), frequency=5)),
        ("never-steps",),
        lambda lrs, error, trainer: trainer.lr_scheduler_configs[0].scheduler.last_epoch == 0,
        {"max_epochs": 3, "accumulate_grad_batches": 4},
    ),
    SetUp(
        "frequency longer than the run, in epochs",
        net(with_scheduler(lambda sgd: StepLR(sgd, 1), "epoch", 5)),
        ("never-steps",),
        lambda lrs, error, trainer: trainer.lr_scheduler_configs[0].scheduler.last_epoch == 0,
    ),
    SetUp(
        "the run ends inside its first epoch",
        net(with_scheduler(lambda sgd: ExponentialLR(sgd, 0.9))),
        ("never-steps",),
        never_moves,
        {"max_steps": 6, "max_epochs": -1},
    ),
    SetUp(
        "row 11: manual optimization without a step",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24)), Manual),
        ("never-steps",),
        never_moves,
    ),
    SetUp(
        "StepLR whose first step comes after the run",
        net(with_scheduler(lambda sgd: StepLR(sgd, 30))),
        ("constant",),
        never_moves,
    ),
    SetUp(
        "ConstantLR that never ends its part",
        net(with_scheduler(lambda sgd: ConstantLR(sgd, 0.5, total_iters=3))),
        ("constant",),
        never_moves,
    ),
    SetUp(
        "one epoch, stepped after it",
        net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 1))),
        ("constant",),
        never_moves,
        {"max_epochs": 1},
    ),
    SetUp(
        "row 8: LearningRateMonitor on a run shorter than log_every_n_steps",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24))),
        ("unlogged",),
        lambda lrs, error, trainer: not any(trainer.callbacks[0].lrs.values()),
        callbacks=lambda: [LearningRateMonitor()],
        logged=True,
    ),
    SetUp(
        "row 9: StochasticWeightAveraging",
        net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 3))),
        ("lr-conflict",),
        lambda lrs, error, trainer: type(trainer.lr_scheduler_configs[0].scheduler).__name__ == "SWALR",
        callbacks=lambda: [StochasticWeightAveraging(0.05, swa_epoch_start=2)],
        exact=False,
    ),
    SetUp(
        "two schedulers on one optimizer",
        net(two_schedulers),
        ("lr-conflict",),
        lambda lrs, error, trainer: lrs[12][0] < 0.9 * 0.05,
    ),
    SetUp(
        "an optimizer at LR 0 under a schedule",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24), lr=0.0)),
        ("bad-value",),
        zeros(24),
    ),
    SetUp(
        "row 10: a warmup of no epochs that never leaves LR 0",
        net(with_scheduler(lambda sgd: BoltsWarmupCosine(sgd, 0, 3))),
        ("idle-warmup",),
        zeros(24),
    ),
    SetUp(
        "row 10: a warmup from 0, a whole epoch at LR 0",
        net(with_scheduler(lambda sgd: BoltsWarmupCosine(sgd, 2, 3))),
        ("idle-warmup",),
        zeros(8),
    ),
    SetUp(
        "transformers' warmup: the first update changes nothing",
        net(
            per_step(lambda sgd: LambdaLR(sgd, partial(transformers_linear, num_warmup_steps=4, num_training_steps=24)))
        ),
        ("idle-warmup",),
        zeros(1),
    ),
    SetUp(
        "transformers' linear with its length in epochs, stepped per step",
        net(
            per_step(lambda sgd: LambdaLR(sgd, partial(transformers_linear, num_warmup_steps=0, num_training_steps=3)))
        ),
        ("idle-tail",),
        zeros(21),
    ),
    SetUp(
        "row 12: eta_min above a group's LR",
        net(two_groups(lambda sgd: CosineAnnealingLR(sgd, 24, eta_min=1e-3))),
        ("floor-above-base",),
        lambda lrs, error, trainer: lrs[0][0] == 1e-4 and lrs[-1][0] > 9e-4,
    ),
    SetUp(
        "row 12: the floor inside a SequentialLR",
        net(
            two_groups(
                lambda sgd: SequentialLR(
                    sgd, [LinearLR(sgd, 0.1, total_iters=4), CosineAnnealingLR(sgd, 20, eta_min=1e-3)], [4]
                )
            )
        ),
        ("floor-above-base",),
        lambda lrs, error, trainer: lrs[-1][0] > 9e-4,
    ),
    SetUp(
        "warm restarts that count epochs, stepped per step",
        net(per_step(lambda sgd: CosineAnnealingWarmRestarts(sgd, 2))),
        ("restarts",),
        lambda lrs, error, trainer: sum(row[0] == 0.1 for row in lrs) == 12,
    ),
    SetUp(
        "ours, with a factor above 1",
        net(ours(Linear(start=1, end=3))),
        ("unusual-factor",),
        lambda lrs, error, trainer: lrs[-1][0] > 0.28,
    ),
    SetUp(
        "ours, with an LR as its end",
        net(ours(Linear(end=1e-5))),
        ("unusual-factor",),
        lambda lrs, error, trainer: lrs[-1][0] < 0.1 / 24 + 1e-6,
    ),
    SetUp(
        "OneCycleLR stepped beyond its end",
        net(per_step(lambda sgd: OneCycleLR(sgd, 0.1, total_steps=12), momentum=0.9)),
        ("raises",),
        raises(ValueError),
    ),
]

RIGHT = [
    SetUp("CosineAnnealingLR per epoch", net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 3)))),
    SetUp("CosineAnnealingLR per step", net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24)))),
    SetUp(
        "CosineAnnealingLR with a frequency",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 12, eta_min=0.01), frequency=2)),
    ),
    SetUp(
        "CosineAnnealingLR under accumulation that does not divide",
        net(estimated(CosineAnnealingLR)),
        trainer={"max_epochs": 3, "accumulate_grad_batches": 3},
    ),
    SetUp(
        "CosineAnnealingLR with max_steps",
        net(estimated(CosineAnnealingLR)),
        trainer={"max_steps": 20, "max_epochs": -1},
    ),
    SetUp("WarmRestarts", net(per_step(lambda sgd: CosineAnnealingWarmRestarts(sgd, 3, 2)))),
    SetUp(
        "OneCycleLR, which moves the momentum too",
        net(per_step(lambda sgd: OneCycleLR(sgd, 0.3, total_steps=24), momentum=0.9)),
    ),
    SetUp("ours, one cycle", net(ours(one_cycle()))),
    SetUp("CyclicLR", net(per_step(lambda sgd: CyclicLR(sgd, 0.01, 0.1, 3), momentum=0.9))),
    SetUp(
        "SequentialLR",
        net(
            per_step(
                lambda sgd: SequentialLR(sgd, [LinearLR(sgd, 0.01, total_iters=4), CosineAnnealingLR(sgd, 20)], [4])
            )
        ),
    ),
    SetUp("ChainedScheduler", net(per_step(lambda sgd: ChainedScheduler([ExponentialLR(sgd, 0.9), LinearLR(sgd)])))),
    SetUp("LambdaLR per epoch", net(with_scheduler(lambda sgd: LambdaLR(sgd, lambda epoch: 0.5**epoch)))),
    SetUp("LambdaLR that is meant to be constant", net(with_scheduler(lambda sgd: LambdaLR(sgd, lambda epoch: 1.0)))),
    SetUp("MultiplicativeLR", net(per_step(lambda sgd: MultiplicativeLR(sgd, lambda step: 0.95)))),
    SetUp("MultiStepLR", net(per_step(lambda sgd: MultiStepLR(sgd, [8, 16])))),
    SetUp("PolynomialLR", net(per_step(lambda sgd: PolynomialLR(sgd, 24, 2.0)))),
    SetUp("ExponentialLR per epoch", net(with_scheduler(lambda sgd: ExponentialLR(sgd, 0.5)))),
    SetUp("ReduceLROnPlateau", net(with_scheduler(lambda sgd: ReduceLROnPlateau(sgd, patience=0, threshold=10.0)))),
    SetUp("a tensor LR", net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24), lr=torch.tensor(0.1)))),
    SetUp("no scheduler", net(without)),
    SetUp("no scheduler under manual optimization", net(without, Manual)),
    SetUp("manual optimization that steps", net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24)), ManualSteps)),
    SetUp(
        "a scheduler of no torch class, with the module's own lr_scheduler_step",
        net(with_scheduler(lambda sgd: ByEpochNumber(sgd, 3)), Timm),
    ),
    SetUp("two groups", net(two_groups(lambda sgd: LambdaLR(sgd, [lambda step: 1.0, lambda step: 0.9**step])))),
    SetUp("ours per step", net(ours(Cosine(end=0.01), warmup="4step"))),
    SetUp("ours per epoch", net(ours(Cosine(), interval="epoch"))),
    SetUp("ours, constant on purpose", net(ours(Constant()))),
    SetUp(
        "ours under a changing accumulation",
        net(ours(warmup_stable_decay())),
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 3})],
    ),
    SetUp(
        "ScheduleLR by hand",
        net(per_step(lambda sgd: ScheduleLR(sgd, Restarts(Cosine(), 3), total_steps=24, warmup_steps=3))),
    ),
    SetUp(
        "the callback",
        net(without),
        callbacks=lambda: [LearningRateScheduler(Sequential((Linear(start=0.1, end=1), Cosine()), (0.2,)))],
    ),
    SetUp(
        "the callback under accumulation and max_steps",
        net(without),
        callbacks=lambda: [LearningRateScheduler(Cosine(), warmup="2step")],
        trainer={"max_steps": 9, "max_epochs": -1, "accumulate_grad_batches": 2},
    ),
    SetUp("the callback under manual optimization", net(without, Manual), callbacks=lambda: [LearningRateScheduler()]),
    SetUp(
        "the callback and BackboneFinetuning",
        net(lambda module: torch.optim.SGD(module.head.parameters(), lr=0.1)),
        callbacks=lambda: [LearningRateScheduler(), BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
        trainer={"max_epochs": 2},  # in later epochs it sets the LR itself
    ),
    SetUp(
        "a loader without a length, and max_steps",
        net(per_step(lambda sgd: CosineAnnealingLR(sgd, 8)), unsized=True),
        trainer={"max_steps": 8, "max_epochs": -1},
    ),
    SetUp(
        "a length from total_steps",
        net(lambda module: per_step(lambda sgd: CosineAnnealingLR(sgd, total_steps(module.trainer)))(module)),
        callbacks=lambda: [GradientAccumulationScheduler({0: 1, 1: 4})],
    ),
    SetUp(
        "LearningRateMonitor per epoch",
        net(with_scheduler(lambda sgd: CosineAnnealingLR(sgd, 3))),
        callbacks=lambda: [LearningRateMonitor()],
        logged=True,
    ),
]
