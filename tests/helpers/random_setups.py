"""Set-ups of an LR schedule drawn at random, half of them right and half wrong, each with a witness from its training.

``python -m tests.helpers.random_setups [SEED ...]`` counts the errors that the ScheduleAudit makes, and names them.
The witness of a wrong set-up looks at the LRs of its updates and at the exception that ended it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import lr_scheduler as lrs_of
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import Cosine, LearningRateScheduler, Linear, ScheduleAudit, lr_scheduler_config
from tests.helpers.nets import QUIET


@dataclass
class Drawn:
    """A set-up; ``make(optimizer, module)`` returns its scheduler, ``expected`` are right answers to a wrong one."""

    name: str
    make: Callable[..., Any]
    interval: str = "step"
    expected: tuple[str, ...] = ()
    witness: Callable[[list[float], Exception | None], bool] | None = None
    frequency: int = 1
    kind: str = "plain"
    callbacks: Callable[[], list[Any]] = list
    epochs: int = 3
    batches: int = 8
    trainer: dict[str, Any] = field(default_factory=dict)


class Net(pl.LightningModule):
    """One layer at LR 0.1; ``used`` holds the LR of every update."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.layer, self.drawn = nn.Linear(2, 1), drawn
        self.used: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.used.append(float(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = self.drawn.make(optimizer, self)
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, dict):
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        several = scheduler if isinstance(scheduler, list) else [scheduler]
        options = {"interval": self.drawn.interval, "frequency": self.drawn.frequency, "monitor": "loss"}
        return [optimizer], [{"scheduler": one, **options} for one in several]

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(4 * self.drawn.batches, 2)), batch_size=4)


class ByTrainer(Net):
    """Steps its scheduler once an epoch, in a step of its own."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self.trainer.is_last_batch:
            scheduler.step()


class Manual(Net):
    """Steps its optimizer under manual optimization, and no scheduler."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__(drawn)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def step_all(schedulers: Any) -> None:
    for scheduler in schedulers:
        scheduler.step()


class ManualInDict(Manual):
    """Steps the schedulers that it keeps in a dict, in a helper function."""

    def configure_optimizers(self) -> Any:
        optimizers, configs = super().configure_optimizers()
        self.kept = {"all": [config["scheduler"] for config in configs]}
        return optimizers, configs

    def on_train_epoch_end(self) -> None:
        step_all(self.kept["all"])


class OwnCosine(lrs_of.LRScheduler):
    """A scheduler of a user's own, with its length in epochs or in steps under any name."""

    def __init__(self, optimizer: Any, length: int, name: str, scale: int = 1, warmup: int = 0) -> None:
        self.length, self.warmup = length * scale, warmup
        setattr(self, name, length)
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        if self.last_epoch < self.warmup:
            return [base * (self.last_epoch + 1) / (self.warmup + 1) for base in self.base_lrs]
        along = (self.last_epoch - self.warmup) / (self.length - self.warmup)
        return [base * 0.5 * (1 + math.cos(math.pi * along)) for base in self.base_lrs]


def cosine(n: float, floor: float = 0.0) -> Callable[[int], float]:
    return lambda k: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * k / n))


def in_epochs(max_epochs: int, steps_per_epoch: int, warmup: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        n = max_epochs * steps_per_epoch
        return (step + 1) / (warmup + 1) if step < warmup else cosine(n - warmup)(step - warmup)

    return factor


def per_epoch(total_steps: int, batches: int) -> Callable[[int], float]:
    return lambda epoch: max(0.0, 1 - epoch * batches / total_steps)


def floored(n: float) -> Callable[[int], float]:
    return lambda k: 0.1 if k > n else cosine(n, 0.1)(k)


def transformers_linear(step: int, *, num_warmup_steps: int, num_training_steps: int) -> float:
    if step < num_warmup_steps:
        return step / max(1, num_warmup_steps)
    return max(0.0, (num_training_steps - step) / max(1, num_training_steps - num_warmup_steps))


def hard_restarts(step: int, *, num_training_steps: int, num_cycles: int) -> float:
    along = step / num_training_steps
    return 0.0 if along >= 1.0 else 0.5 * (1 + math.cos(math.pi * ((num_cycles * along) % 1.0)))


def lambdas(function: Callable[[int], float]) -> Callable[..., Any]:
    return lambda o, m: lrs_of.LambdaLR(o, function)


def own(length: int) -> Callable[..., Any]:
    return lambda o, m: OwnCosine(o, length, "size")


def right(draw: random.Random) -> list[Drawn]:
    """Return one right set-up of every family."""
    e, b = draw.randint(3, 5), draw.randint(5, 10)
    n, w = e * b, draw.randint(2, 4)
    gamma, floor = draw.uniform(0.8, 0.97), draw.choice([0.0, 0.01, 0.1])

    def family(name: str, make: Callable[..., Any], *args: Any, **options: Any) -> Drawn:
        return Drawn(name, make, *args, epochs=e, batches=b, **options)

    return [
        family("CosineAnnealingLR per step", lambda o, m: lrs_of.CosineAnnealingLR(o, n, floor / 10)),
        family("CosineAnnealingLR per epoch", lambda o, m: lrs_of.CosineAnnealingLR(o, e), "epoch"),
        family("OneCycleLR", lambda o, m: lrs_of.OneCycleLR(o, draw.choice([0.1, 1.0]), total_steps=n)),
        family("a closure in steps, any name", lambdas(cosine(n, floor))),
        family("a closure in epochs and steps an epoch", lambdas(in_epochs(e, b, w))),
        family("an own class that names epochs", lambda o, m: OwnCosine(o, e, "max_epochs", b, w)),
        family("an own class that names steps", lambda o, m: OwnCosine(o, n, "total_steps")),
        family(
            "warmup, then cosine",
            lambda o, m: lrs_of.SequentialLR(
                o, [lrs_of.LinearLR(o, 0.1, total_iters=w), lrs_of.CosineAnnealingLR(o, n - w)], [w]
            ),
        ),
        family("StepLR per epoch", lambda o, m: lrs_of.StepLR(o, draw.randint(1, e - 1)), "epoch"),
        family("MultiStepLR per step", lambda o, m: lrs_of.MultiStepLR(o, [n // 2, 3 * n // 4])),
        family("ExponentialLR per epoch", lambda o, m: lrs_of.ExponentialLR(o, gamma), "epoch"),
        family("ExponentialLR per step", lambda o, m: lrs_of.ExponentialLR(o, gamma)),
        family("warm restarts", lambda o, m: lrs_of.CosineAnnealingWarmRestarts(o, n // draw.randint(2, 4))),
        family("doubling restarts", lambda o, m: lrs_of.CosineAnnealingWarmRestarts(o, w, 2)),
        family("CyclicLR", lambda o, m: lrs_of.CyclicLR(o, 0.01, 0.1, w)),
        family("CyclicLR as a test of LRs", lambda o, m: lrs_of.CyclicLR(o, 1e-4, 0.1, n)),
        family("an inverse root after a warmup", lambdas(lambda k: min((k + 1) / w, math.sqrt(w / (k + 1))))),
        family("an exponential with a floor", lambdas(lambda k: max(1e-4, 0.9**k))),
        family("nanoGPT's floor", lambdas(floored(n))),
        family("a function of epochs over total_steps", lambdas(per_epoch(n, b)), "epoch"),
        family("own lr_scheduler_step", lambda o, m: lrs_of.CosineAnnealingLR(o, e), kind="trainer"),
        family("a dict of schedulers, by hand", lambda o, m: lrs_of.ExponentialLR(o, gamma), "epoch", kind="dict"),
        family(
            "lr_scheduler_config",
            lambda o, m: lr_scheduler_config(o, Cosine(end=floor), m.trainer, warmup=f"{w}step"),
        ),
        family("the callback", lambda o, m: None, callbacks=lambda: [LearningRateScheduler(Linear(end=floor))]),
        family("a triangle", lambdas(lambda k: 0.1 + 0.9 * abs((k % (2 * w)) / w - 1))),
        family("transformers' hard restarts", lambdas(partial(hard_restarts, num_training_steps=n, num_cycles=2))),
        family("a longer cosine's floor", lambdas(lambda k: max(0.3, cosine(2 * n)(k)))),
        family("a cubed cosine", lambdas(lambda k: cosine(n)(k) ** 3)),
        family("one step more", lambda o, m: lrs_of.OneCycleLR(o, 0.1, total_steps=n + 1)),
        family("warmup, stable, decay", lambdas(lambda k: min((k + 1) / w, 1.0, max(0.0, (n - k) / w)))),
        family("constant on purpose", lambdas(lambda k: 1.0)),
        family("warmup, then constant", lambdas(lambda k: min(1.0, (k + 1) / w))),
        family("ReduceLROnPlateau", lambda o, m: lrs_of.ReduceLROnPlateau(o, patience=1), "epoch"),
        family("PolynomialLR", lambda o, m: lrs_of.PolynomialLR(o, n, draw.choice([1.0, 2.0]))),
        family("a chain", lambda o, m: lrs_of.ChainedScheduler([lrs_of.ExponentialLR(o, gamma), lrs_of.LinearLR(o)])),
        family("a steady rise", lambdas(lambda k: 0.2 + 0.8 * k / n)),
        family("MultiplicativeLR", lambda o, m: lrs_of.MultiplicativeLR(o, lambda k: gamma)),
        family("frequency 2", lambda o, m: lrs_of.CosineAnnealingLR(o, e * (b // 2), 1e-3), frequency=2),
        family("transformers' linear", lambdas(partial(transformers_linear, num_warmup_steps=0, num_training_steps=n))),
    ]


def ends_high(lrs: list[float], error: Exception | None) -> bool:
    return error is None and lrs[-1] > 0.5 * max(lrs)


def never_moves(lrs: list[float], error: Exception | None) -> bool:
    return error is None and len(set(lrs)) == 1


def climbs(lrs: list[float], error: Exception | None) -> bool:
    lowest = lrs.index(min(lrs))
    return error is None and max(lrs[lowest:]) > 0.3 * max(lrs)


def at_most(share: float, bound: float) -> Callable[[list[float], Exception | None], bool]:
    return lambda lrs, error: sum(lr <= bound for lr in lrs) >= share * len(lrs)


def wrong(draw: random.Random) -> list[Drawn]:
    """Return one wrong set-up of every family."""
    e, b = draw.randint(3, 4), draw.randint(6, 10)
    n, many = e * b, draw.randint(3, 12)
    half, bad = n // 2, draw.choice([math.nan, math.inf])

    def family(name: str, make: Callable[..., Any], interval: str, codes: str, witness: Any, **options: Any) -> Drawn:
        return Drawn(name, make, interval, tuple(codes.split()), witness, epochs=e, batches=b, **options)

    cos, lam = lrs_of.CosineAnnealingLR, lambdas
    linear, low = partial(transformers_linear, num_warmup_steps=0), at_most(0.1, 1e-7)
    small = at_most(1, 1.01e-4)

    def polynomial(optimizer: Any, module: Any) -> Any:
        return lrs_of.PolynomialLR(optimizer, many * n)

    return [
        family("T_max in steps per epoch", lambda o, m: cos(o, n), "epoch", "epoch-interval", ends_high),
        family("T_max in epochs per step", lambda o, m: cos(o, e), "step", "climbs-after-end", climbs),
        family("T_max of half the run", lambda o, m: cos(o, half), "step", "climbs-after-end", climbs),
        family("T_max of a longer run", lambda o, m: cos(o, many * n), "step", "ends-early", ends_high),
        family(
            "OneCycleLR of half the run",
            lambda o, m: lrs_of.OneCycleLR(o, 0.1, total_steps=half),
            "step",
            "raises",
            lambda lrs, error: isinstance(error, ValueError),
        ),
        family(
            "OneCycleLR per epoch",
            lambda o, m: lrs_of.OneCycleLR(o, 0.1, total_steps=n),
            "epoch",
            "epoch-interval",
            lambda lrs, error: max(lrs) < 0.05,
        ),
        family("below 0", lam(lambda k: 1 - k / (0.7 * n)), "step", "bad-value", lambda lrs, error: min(lrs) < 0),
        family(
            "nan or inf",
            lam(lambda k: bad if k > half else 1.0),
            "step",
            "bad-value",
            lambda lrs, error: not math.isfinite(lrs[-1]),
        ),
        family("halved at each step", lambda o, m: lrs_of.ExponentialLR(o, 0.4), "step", "idle-tail", low),
        family(
            "grown at each step",
            lambda o, m: lrs_of.ExponentialLR(o, draw.uniform(1.4, 2.0)),
            "step",
            "grows",
            lambda lrs, error: max(lrs) > 1,
        ),
        family(
            "a warmup longer than the run",
            lambda o, m: lrs_of.SequentialLR(
                o, [lrs_of.LinearLR(o, 0.01, total_iters=many * n), lrs_of.ExponentialLR(o, 0.99)], [many * n]
            ),
            "step",
            "ends-in-warmup",
            lambda lrs, error: max(lrs) == lrs[-1] < 0.05,
        ),
        family(
            "a closure's warmup longer than the run",
            lam(lambda k: min((k + 1) / (many * n), cosine(20 * many * n)(k))),
            "step",
            "ends-in-warmup",
            lambda lrs, error: max(lrs) == lrs[-1] < 0.05,
        ),
        family(
            "a restart after the run",
            lambda o, m: lrs_of.CosineAnnealingWarmRestarts(o, many * n),
            "step",
            "ends-early",
            ends_high,
        ),
        family(
            "T_0 in steps per epoch",
            lambda o, m: lrs_of.CosineAnnealingWarmRestarts(o, n),
            "epoch",
            "epoch-interval",
            ends_high,
        ),
        family("StepLR after the run", lambda o, m: lrs_of.StepLR(o, many * n), "step", "constant", never_moves),
        family(
            "milestones in steps per epoch",
            lambda o, m: lrs_of.MultiStepLR(o, [half, n - 2]),
            "epoch",
            "constant",
            never_moves,
        ),
        family(
            "a milestone after the run",
            lambda o, m: lrs_of.MultiStepLR(o, [half, many * n]),
            "step",
            "ends-early",
            lambda lrs, error: len(set(lrs)) == 2,
        ),
        family(
            "LinearLR's default per epoch",
            lambda o, m: lrs_of.LinearLR(o),
            "epoch",
            "ends-in-warmup",
            lambda lrs, error: lrs[-1] < 0.09,
        ),
        family(
            "CyclicLR's default",
            lambda o, m: lrs_of.CyclicLR(o, 1e-3, 0.1),
            "step",
            "ends-in-warmup",
            lambda lrs, error: lrs[-1] == max(lrs) < 0.01,
        ),
        family("an LR of 0", lambda o, m: o.param_groups[0].update(lr=0.0), "step", "bad-value", at_most(1, 0.0)),
        family("a closure of a longer run", lam(cosine(many * n)), "step", "ends-early", ends_high),
        family("a closure of half the run", lam(cosine(half)), "step", "climbs-after-end", climbs),
        family("an own class of a longer run", own(many * n), "step", "ends-early", ends_high),
        family("an own class of half the run", own(half), "step", "climbs-after-end", climbs),
        family(
            "an absolute LR",
            lam(lambda k: 0.1 * cosine(n)(k)),
            "step",
            "absolute-factor",
            lambda lrs, error: max(lrs) < 0.011,
        ),
        family("a small absolute LR", lam(lambda k: 1e-3 * cosine(n)(k)), "step", "absolute-factor", small),
        family(
            "no length",
            lambda o, m: cos(o, draw.choice([-1, math.inf])),
            "step",
            "endless-horizon",
            lambda lrs, error: len(set(map(partial(round, ndigits=9), lrs))) <= 2,
        ),
        family(
            "frequency and accumulation never meet",
            lambda o, m: cos(o, n),
            "step",
            "never-steps",
            never_moves,
            frequency=b + 1,
        ),
        family(
            "a floor above the LR",
            lambda o, m: cos(o, n, eta_min=0.5),
            "step",
            "floor-above-base",
            lambda lrs, error: lrs[-1] > lrs[0],
        ),
        family("by hand, forgotten", lambda o, m: cos(o, n), "step", "never-steps", never_moves, kind="manual"),
        family(
            "two schedulers, one overwrites",
            lambda o, m: [lrs_of.ExponentialLR(o, 0.9), lrs_of.LambdaLR(o, cosine(n))],
            "step",
            "lr-conflict",
            lambda lrs, error: error is None,
        ),
        family(
            "transformers' linear per epoch",
            lam(partial(linear, num_training_steps=n)),
            "epoch",
            "epoch-interval",
            ends_high,
        ),
        family(
            "transformers' linear in epochs per step",
            lam(partial(linear, num_training_steps=e)),
            "step",
            "idle-tail",
            at_most(0.5, 0.0),
        ),
        family("a closure in steps per epoch", lam(lambda k: max(0, 1 - k / n)), "epoch", "epoch-interval", ends_high),
        family(
            "PolynomialLR of a longer run",
            lambda o, m: lrs_of.PolynomialLR(o, many * n),
            "step",
            "ends-early",
            ends_high,
        ),
        family("nanoGPT's floor of a longer run", lam(floored(many * n)), "step", "ends-early", ends_high),
        # no code: a floor may be meant to be met in the middle of a decay
        family(
            "a linear floor of a longer run",
            lam(lambda k: max(0.1, 1 - k / (many * n))),
            "step",
            "",
            ends_high,
        ),
        family("a warmup from 0, per epoch", lam(lambda k: min(1.0, k / 2)), "epoch", "idle-warmup", at_most(0.2, 0.0)),
    ]


KINDS: dict[str, type[Net]] = {"plain": Net, "trainer": ByTrainer, "manual": Manual, "dict": ManualInDict}


def train(drawn: Drawn) -> tuple[list[str], list[float], Exception | None]:
    """Return what the audit finds of a set-up, the LRs of its updates and the exception that ended it."""
    torch.manual_seed(0)
    audit, module, error = ScheduleAudit("print"), KINDS[drawn.kind](drawn), None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".* stopped, and training continues")  # an error of the audit's own
        trainer = pl.Trainer(max_epochs=drawn.epochs, callbacks=[*drawn.callbacks(), audit], **QUIET)
        try:
            trainer.fit(module)
        except Exception as caught:
            error = caught
    return [finding.code for finding in audit.findings], module.used, error


def drawn_setups(seed: int, families: Callable[[random.Random], list[Drawn]]) -> list[Drawn]:
    return families(random.Random(seed))


def main(seeds: list[int]) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    missed, accused, failed = [], [], []
    wrongs, rights = ([one for seed in seeds for one in drawn_setups(seed, families)] for families in (wrong, right))
    for setup in wrongs:
        codes, lrs, error = train(setup)
        if setup.witness is None or not setup.witness(lrs, error):
            failed.append(setup.name)
        if set(codes).isdisjoint(setup.expected) if setup.expected else codes:
            missed.append(f"{setup.name}: {' '.join(codes)}")
    for setup in rights:
        codes, lrs, error = train(setup)
        if error is not None or min(lrs) < 0:
            failed.append(f"{setup.name}: {error}")
        if codes:
            accused.append(f"{setup.name}: {' '.join(codes)}")
    print(f"{len(wrongs)} wrong set-ups, {len(missed)} judged wrong: {missed}")
    print(f"{len(rights)} right set-ups, {len(accused)} accused: {accused}")
    print(f"without a witness: {failed}")


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [7, 8])
