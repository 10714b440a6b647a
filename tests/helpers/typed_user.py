"""What a user's type checker must know of every public name. Never run: test_packaging.py has it checked.

Right use has no error. Wrong use is marked ``type: ignore``, and a mark without an error is an error of its own.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import assert_type

import lit_cosine
from lit_cosine import (
    Clock,
    Comparison,
    Constant,
    CooldownOnPlateau,
    Cosine,
    Duration,
    ExactResume,
    Exponential,
    InverseSqrt,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    LitClassifier,
    OneMinusSqrt,
    Polynomial,
    Restarts,
    Schedule,
    ScheduleAudit,
    ScheduleLR,
    Sequential,
    SimpleNN,
    Step,
    SyntheticDataModule,
    TabularDataModule,
    TrainingCurves,
    compare,
    compare_networks,
    convergence_bound,
    lr_scheduler_config,
    one_cycle,
    param_groups,
    total_steps,
    warmup_cosine,
    warmup_stable_decay,
)

schedules: list[Schedule] = [
    Constant(value=0.5),
    Linear(start=0.0, end=1.0),
    Cosine(end=0.1, k=2.0),
    Polynomial(power=3.0),
    Exponential(end=0.1),
    Step(gamma=0.5, milestones=(0.5,)),
    OneMinusSqrt(),
    InverseSqrt(timescale=0.1),
    Restarts(Cosine(), cycles=2, t_mult=2.0, decay=0.5),
    Sequential((Linear(start=0, end=1), Cosine()), milestones=(0.1,)),
    warmup_cosine(0.1, end=0.1),
    warmup_stable_decay(0.1, 0.2),
    one_cycle(),
]
assert_type(Cosine()(0.5), float)
assert_type(Cosine().sample(10), list[float])
assert_type(lit_cosine.Cosine(), Cosine)
assert_type(Duration.parse("5ep"), Duration)
assert_type(Clock(total=100).reanchor(50, 200, "restart")(60), float)

network = SimpleNN(20, hidden=8, classes=2)
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
scheduler: torch.optim.lr_scheduler.LRScheduler = ScheduleLR(optimizer, Cosine(), total_steps=100, warmup_steps=5)


class Mine(pl.LightningModule):
    def configure_optimizers(self) -> Any:
        assert_type(total_steps(self.trainer), int)
        own = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": own, "lr_scheduler": lr_scheduler_config(own, Cosine(), self.trainer, warmup="5%")}


audit = ScheduleAudit(on_problem="raise")
plateau = CooldownOnPlateau(monitor="val/loss", patience=3, cooldown="20%")
callbacks: list[pl.Callback] = [
    audit,
    LearningRateScheduler(Cosine(end=0.01), warmup="2ep", on_resize="rescale"),
    LearningRateLogger(loss_tag="train/loss_step"),
    TrainingCurves(monitor="val/loss"),
    ExactResume("runs/mine", every_n_train_steps=100),
]
for finding in audit.findings:
    assert_type((finding.code, finding.message, finding.fix), tuple[str, str, str])

data: pl.LightningDataModule = TabularDataModule("digits", batch_size=32)
module: pl.LightningModule = LitClassifier(network, lr=0.1, schedule=Cosine(), interval="step")
found = compare_networks(lambda: SimpleNN(), SyntheticDataModule(), {"cosine": Cosine()}, [0.01], 2, 1)
for row in found.table("test_accuracy"):
    assert_type(row.lr, float)
    assert_type(row.mean.low, float)
    if row.difference is not None:
        assert_type(row.difference.p, float)

mine: Comparison = compare(Mine, None, {"cosine": Cosine()}, lrs="auto", metric="val/loss", splits=2)
assert_type(mine.best_lr("cosine"), float | None)
assert_type(convergence_bound(Cosine(), 100, warmup_steps=5).peak, float)
torch.optim.AdamW(param_groups(module, lr=1e-3, layer_decay=0.75, rules={"head": {"lr": 1e-2}}))

Cosine(end="0.1")  # type: ignore[arg-type]
Cosine().end = 0.5  # type: ignore[misc]
Cosine(floor=0.1)  # type: ignore[call-arg]
Schedule()  # type: ignore[abstract]
Restarts(0.5)  # type: ignore[arg-type]
Duration.parse(500)  # type: ignore[arg-type]
ScheduleLR(optimizer, Cosine())  # type: ignore[call-arg]
ScheduleLR(optimizer, Cosine(), 100, on_resize="again")  # type: ignore[arg-type]
LearningRateScheduler(Cosine)  # type: ignore[arg-type]
LearningRateScheduler(Cosine(), warmup=500)  # type: ignore[arg-type]
ScheduleAudit("shout")  # type: ignore[arg-type]
ExactResume(every_n_train_steps="100")  # type: ignore[arg-type]
LitClassifier(interval="batch")  # type: ignore[arg-type]
compare_networks(SimpleNN, SyntheticDataModule(), [Cosine()], [0.01], 2, 1, optimizer="lion")  # type: ignore[arg-type]
compare(Mine, None, [Cosine()])  # type: ignore[call-arg]
lr_scheduler_config(optimizer, 0.5, None)  # type: ignore[arg-type]
lit_cosine.Cosin()  # type: ignore[attr-defined]
