"""Curves and hyperparameters of single param groups, beside closed forms written out for every update."""

import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lit_cosine import (
    Constant,
    Cosine,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    ScheduleAudit,
    lr_scheduler_config,
)
from tests.helpers.nets import Transfer, finetuning, fit, rows

# a resumed run saves beside the first one, so that Lightning finds one and the same checkpointing
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended"),
]

ADAMW = torch.optim.AdamW


class Two(pl.LightningModule):
    """A backbone and a head; ``used`` holds what every group had at every update, ``audit`` whether it goes well."""

    def __init__(self, order: tuple[str, ...] = ("backbone", "head"), **config: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.order, self.config, self.used = order, config, []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.head(self.backbone(batch[0])), batch[1])

    def train_dataloader(self) -> Any:
        return rows()  # 8 batches

    def configure_optimizers(self) -> Any:
        peaks = {"backbone": 0.01, "head": 0.1}
        groups = [
            {"params": list(getattr(self, name).parameters()), "name": name, "lr": peaks[name]} for name in self.order
        ]
        optimizer = ADAMW(groups, weight_decay=0.02)
        optimizer.register_step_pre_hook(
            lambda watched, args, kwargs: self.used.append(
                [{**group, "params": None} for group in watched.param_groups]
            )
        )
        if not self.config:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler_config(optimizer, trainer=self.trainer, **self.config),
        }

    def of(self, key: str, group: int = 0) -> list[Any]:
        return [groups[group][key] for groups in self.used if group < len(groups)]


SETTINGS: dict[str, Any] = {
    "schedule": Cosine(),
    "warmup": "2step",
    "groups": {
        "back*": Cosine(end=0.1),
        "head": {"schedule": Constant(), "warmup": "4step", "cooldown": "25%", "cooldown_schedule": "Linear"},
    },
}


def backbone(k: int, N: int) -> float:
    """Two steps of warmup, as the run's, then a cosine to a tenth."""
    u = max(0, k - 2) / (N - 2)
    return 0.01 * min(1.0, (k + 1) / 3) * (0.1 + 0.9 * (1 + math.cos(math.pi * u)) / 2)


def head(k: int, N: int) -> float:
    """Four steps of warmup, constant, a line to 0 over the last quarter."""
    return 0.1 * min(1.0, (k + 1) / 5) * (1 - max(0.0, k - 0.75 * N) / (0.25 * N))


def module_and_callbacks(way: str, settings: dict[str, Any] = SETTINGS, **kwargs: Any) -> tuple[Two, list[Any]]:
    if way == "callback":
        return Two(**kwargs), [LearningRateScheduler(**settings)]
    return Two(**kwargs, **settings), []


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")


@pytest.mark.parametrize("way", ["callback", pytest.param("config", marks=pytest.mark.slow)])
def test_every_group_follows_its_own_curve(way: str) -> None:
    module, callbacks = module_and_callbacks(way)
    audit = ScheduleAudit()
    fit(module, *callbacks, audit, max_epochs=3)
    assert module.of("lr", 0) == pytest.approx([backbone(k, 24) for k in range(24)], rel=1e-12)
    assert module.of("lr", 1) == pytest.approx([head(k, 24) for k in range(24)], rel=1e-12)
    assert [(one.first, one.last) for one in audit.plan] == [
        (pytest.approx(lrs(0, 24)), pytest.approx(lrs(23, 24))) for lrs in (backbone, head)
    ]


@pytest.mark.parametrize("way", ["callback", pytest.param("config", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 11, pytest.param(20, marks=pytest.mark.slow)])
def test_a_resumed_run_continues_every_curve(way: str, at: int, tmp_path: Path) -> None:
    """In the warmup, between, and in the cooldown."""
    first, callbacks = module_and_callbacks(way)
    fit(first, *callbacks, every_step(tmp_path), max_epochs=3)
    resumed, callbacks = module_and_callbacks(way)
    fit(resumed, *callbacks, every_step(tmp_path), max_epochs=3, ckpt_path=tmp_path / f"step={at}.ckpt")
    assert [resumed.of("lr", 0), resumed.of("lr", 1)] == [first.of("lr", 0)[at:], first.of("lr", 1)[at:]]


@pytest.mark.parametrize("way", ["callback", pytest.param("config", marks=pytest.mark.slow)])
def test_a_longer_run_continues_every_curve_to_the_new_end(way: str, tmp_path: Path) -> None:
    """After 8 of 16 steps the run has 32: what is left of each curve is stretched over the rest, cooldowns move."""
    module, callbacks = module_and_callbacks(way)
    fit(module, *callbacks, every_step(tmp_path), max_epochs=2)
    module, callbacks = module_and_callbacks(way)
    fit(module, *callbacks, every_step(tmp_path), max_epochs=4, ckpt_path=tmp_path / "step=8.ckpt")
    p = 6 / 14
    line = [p + (1 - p) * (k - 8) / 24 for k in range(8, 32)]
    assert module.of("lr", 0) == pytest.approx([0.01 * (0.55 + 0.45 * math.cos(math.pi * u)) for u in line], rel=1e-12)
    assert module.of("lr", 1) == pytest.approx([0.1 * (1 - max(0, k - 24) / 8) for k in range(8, 32)], rel=1e-12)


@pytest.mark.parametrize("way", ["callback", pytest.param("config", marks=pytest.mark.slow)])
def test_groups_in_another_order_are_refused(way: str, tmp_path: Path) -> None:
    module, callbacks = module_and_callbacks(way)
    fit(module, *callbacks, every_step(tmp_path), max_epochs=1)
    module, callbacks = module_and_callbacks(way, order=("head", "backbone"))
    with pytest.raises(ValueError, match="the param group backbone is number 2 in this run and 1 in the checkpoint"):
        fit(module, *callbacks, every_step(tmp_path), max_epochs=2, ckpt_path=tmp_path / "step=8.ckpt")


def test_a_curve_that_is_new_or_lost_in_a_resumed_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A Constant holds what the run's curve had reached; without a curve of its own the head follows the run's."""
    fit(Two(), LearningRateScheduler(Linear()), every_step(tmp_path), max_epochs=2)
    module, save = Two(), every_step(tmp_path)
    callback = LearningRateScheduler(Linear(), groups={"head": Constant()})
    fit(module, callback, save, max_epochs=2, ckpt_path=tmp_path / "step=4.ckpt")
    assert module.of("lr", 0) == pytest.approx([0.01 * (1 - k / 16) for k in range(4, 16)], rel=1e-12)
    assert module.of("lr", 1) == pytest.approx([0.1 * 0.75] * 12, rel=1e-12)
    assert "the schedule of head changed from linear 1 -> 0 to constant 1 -> 1 at step 4 of 16" in caplog.text
    lost = Two()
    fit(lost, LearningRateScheduler(Linear()), save, max_epochs=2, ckpt_path=tmp_path / "step=8-v1.ckpt")
    assert lost.of("lr", 1) == pytest.approx([0.1 * (1 - k / 16) for k in range(8, 16)], rel=1e-12)
    assert "groups of the checkpoint whose curve is the run's now: head" in caplog.text


class Unfreezes(Two):
    """BackboneFinetuning's module: its optimizer begins with the head."""

    def configure_optimizers(self) -> Any:
        self.order = ("head",)
        return super().configure_optimizers()


@pytest.mark.parametrize("way", ["callback", pytest.param("config", marks=pytest.mark.slow)])
def test_a_group_that_joins_has_its_own_warmup_from_then_on(way: str, tmp_path: Path) -> None:
    settings = {"schedule": Cosine(), "groups": {"pg2": {"schedule": Linear(), "warmup": "3step"}}}
    finetuning = {"unfreeze_backbone_at_epoch": 1, "backbone_initial_lr": 0.02, "lambda_func": lambda epoch: 1.0}

    def run(ckpt_path: Any, folder: Path) -> Two:
        module = Unfreezes(**settings) if way == "config" else Unfreezes()
        ours = [LearningRateScheduler(**settings)] if way == "callback" else []
        callbacks = BackboneFinetuning(**finetuning, verbose=False), *ours, every_step(folder)
        fit(module, *callbacks, max_epochs=2, ckpt_path=ckpt_path)
        return module

    module = run(None, tmp_path)
    # progress (k - 3) / (16 - 3) of the whole run, the warmup from step 8 on
    after = [0.02 * min(1.0, (k - 8 + 1) / 4) * (1 - (k - 3) / 13) for k in range(8, 16)]
    first = 0 if way == "callback" else 1  # a scheduler of the module takes a new group in at its next step
    assert module.of("lr", 1)[first:] == pytest.approx(after[first:], rel=1e-12)
    assert module.of("lr", 0) == pytest.approx([0.05 + 0.05 * math.cos(math.pi * k / 16) for k in range(16)], rel=1e-12)
    resumed = run(tmp_path / "step=10.ckpt", tmp_path)
    assert resumed.of("lr", 1) == module.of("lr", 1)[2:]


@pytest.mark.parametrize("at", [5, 10])
def test_no_other_peak_is_named_in_a_resumed_run_of_a_finetuning_callback(
    at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(ckpt_path: Any = None) -> Transfer:
        module, callback = Transfer(), LearningRateScheduler(Cosine(), warmup="3step")
        fit(module, finetuning(verbose=False), callback, every_step(tmp_path), max_epochs=2, ckpt_path=ckpt_path)
        return module

    whole = run()
    assert run(tmp_path / f"step={at}.ckpt").used == whole.used[at:]
    assert "peak LR:" not in caplog.text


def test_a_pattern_without_a_group_is_named_where_groups_will_join(caplog: pytest.LogCaptureFixture) -> None:
    module, callback = Unfreezes(), LearningRateScheduler(groups={"backbone*": Linear()})
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=9, backbone_initial_lr=0.1, verbose=False)
    caplog.set_level(logging.INFO)
    with pytest.warns(UserWarning, match=re.escape("no param group that joined was named by backbone*")):
        fit(module, finetuning, callback, max_epochs=1)
    assert "backbone* linear 1 -> 0, no param group yet for backbone*" in caplog.text


def test_other_entries_of_single_groups() -> None:
    callback = LearningRateScheduler(
        Constant(),
        groups={"head": {"weight_decay": Linear(), "beta1": Linear(end=0.5)}, "pg1": {"eps": Linear(start=1, end=10)}},
        beta2=Linear(end=0.9),
    )
    module = Two()
    fit(module, callback, max_epochs=1)
    assert module.of("lr", 1) == [0.1] * 8
    assert module.of("weight_decay", 0) == [0.02] * 8
    assert module.of("weight_decay", 1) == pytest.approx([0.02 * (1 - k / 8) for k in range(8)], rel=1e-12)
    for group, lowest in ((0, 1.0), (1, 0.5)):
        beta1, beta2 = zip(*module.of("betas", group), strict=True)
        assert beta1 == pytest.approx([0.9 * (1 - (1 - lowest) * k / 8) for k in range(8)], rel=1e-12)
        assert beta2 == pytest.approx([0.999 * (1 - 0.1 * k / 8) for k in range(8)], rel=1e-12)
    assert module.of("eps", 0) == pytest.approx([1e-8 * (1 + 9 * k / 8) for k in range(8)], rel=1e-12)


class MuonAndAdamW(pl.LightningModule):
    """The matrices by Muon, the rest by AdamW, under manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.layer, self.used = nn.Linear(3, 1), []

    def configure_optimizers(self) -> Any:
        return torch.optim.Muon([self.layer.weight], lr=0.02), ADAMW([self.layer.bias], lr=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.manual_backward(loss)
        self.used.append([{**optimizer.param_groups[0]} for optimizer in self.optimizers()])
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def train_dataloader(self) -> Any:
        return rows()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_beside_adamw(caplog: pytest.LogCaptureFixture) -> None:
    module = MuonAndAdamW()
    callback = LearningRateScheduler(
        Linear(), groups={"lr-AdamW": Constant()}, momentum=Linear(end=0.5), beta1=Linear(end=0.5)
    )
    fit(module, callback, max_epochs=2)
    assert [used[0]["lr"] for used in module.used] == pytest.approx([0.02 * (1 - k / 16) for k in range(16)], rel=1e-12)
    assert [used[1]["lr"] for used in module.used] == [0.1] * 16
    half = [1 - 0.5 * k / 16 for k in range(16)]
    assert [used[0]["momentum"] for used in module.used] == pytest.approx([0.95 * f for f in half], rel=1e-12)
    assert [used[1]["betas"][0] for used in module.used] == pytest.approx([0.9 * f for f in half], rel=1e-12)
    assert "momentum is scheduled, and AdamW has none" in caplog.text
    assert "beta1 is scheduled, and Muon has none" in caplog.text


def test_the_logger_writes_the_entries_that_a_group_has(tmp_path: Path) -> None:
    class Kept(pl.loggers.CSVLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            seen.update(metrics)

    seen: dict[str, float] = {}
    logger = LearningRateLogger()
    callback = LearningRateScheduler(beta1=Linear(end=0.5), groups={"head": {"beta1": Constant()}})
    fit(Two(), callback, logger, max_epochs=1, logger=Kept(tmp_path), log_every_n_steps=1)
    assert seen["beta1-AdamW/backbone"] == pytest.approx(0.45)
    assert seen["beta1-AdamW/head"] == pytest.approx(0.9)


YAML = """
trainer: {max_epochs: 3, accelerator: cpu, logger: false, enable_checkpointing: false, enable_progress_bar: false,
  callbacks: [{class_path: lit_cosine.LearningRateScheduler, init_args: {warmup: 2step, groups: {
    back*: {class_path: Cosine, init_args: {end: 0.1}},
    head: {schedule: Constant, warmup: 4step, cooldown: 25%, cooldown_schedule: Linear}}}}]}
"""


def cli(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Two:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["run", "fit", "--config", str(path)])
    return LightningCLI(Two, save_config_callback=None, seed_everything_default=False).model


@pytest.mark.slow
def test_curves_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = cli(YAML, tmp_path, monkeypatch)
    assert module.of("lr", 0) == pytest.approx([backbone(k, 24) for k in range(24)], rel=1e-12)
    assert module.of("lr", 1) == pytest.approx([head(k, 24) for k in range(24)], rel=1e-12)


@pytest.mark.slow
def test_a_misspelt_schedule_in_yaml_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"groups\.head\.schedule: unknown schedule 'Constnat'; did you mean Constant"):
        cli(YAML.replace("Constant", "Constnat"), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"groups": {"heads": Constant()}}, ValueError, "groups: 'heads' names no param group; the groups are"),
        ({"groups": {"pg3": Constant()}}, ValueError, "groups: 'pg3' names no param group; the groups are"),
        ({"groups": ["head"]}, TypeError, "groups must be such as"),
        ({"groups": {"head": 0.1}}, TypeError, "groups.head must be a schedule such as"),
        ({"groups": {"head": {"warm": "2step"}}}, ValueError, "Step?; keys that are no schedules: warmup and cooldown"),
        ({"groups": {"head": {"schedle": Linear()}}}, ValueError, "schedle is not a number in the param groups of"),
        ({"wieght_decay": Linear()}, ValueError, "cannot be scheduled; did you mean weight_decay?"),
        ({"groups": {"head": {"warmup": 5}}}, TypeError, "groups.head.warmup must name its unit, got 5"),
        ({"groups": {"head": {"lr": Constant()}}}, ValueError, "groups.head: the curve of the LR is its schedule"),
        ({"groups": {"head": {"warmup": "9step"}}}, ValueError, 'groups.head: warmup ("9step", 9) must be shorter'),
        ({"groups": {"head": {"name": Constant()}}}, ValueError, "name is not a number in the param groups of AdamW"),
        ({"momentum": Linear()}, ValueError, "momentum is not a number in the param groups of AdamW"),
        (
            {"beta2": Linear(start=1, end=1.01)},
            ValueError,
            "beta2 must stay below 1, got 0.999 times a factor of up to",
        ),
        ({"groups": {"head": {"beta1": Linear(end=2)}}}, ValueError, "beta1 must stay below 1, got 0.9 times a factor"),
    ],
)
def test_bad_input(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fit(Two(), LearningRateScheduler(**settings), max_epochs=1)


def test_lr_scheduler_config_refuses_a_pattern_without_a_group() -> None:
    with pytest.raises(ValueError, match="groups: 'heads' names no param group; the groups are backbone, head"):
        fit(Two(schedule=Cosine(), groups={"heads": Constant()}), max_epochs=1)
