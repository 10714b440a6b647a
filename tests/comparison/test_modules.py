"""Comparisons on modules as users and libraries write them; the witness is a Trainer run made by hand.

Each is compared by function and by command, in this process and in processes (on Ray in ``test_ray``): all give the
same rows, and each row is that of the run by hand, bit for bit.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import Constant, Cosine, LearningRateScheduler, compare
from lit_cosine.cli.main import main
from tests.comparison.test_compare import Data, Regression

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

SCHEDULES = {"constant": Constant(), "cosine": Cosine()}


class GAN(pl.LightningModule):
    """Two optimizers under manual optimization, as in Lightning's documentation."""

    def __init__(self, lr: float = 0.0078125) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        self.discriminator = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        real, loss = batch[0], nn.functional.binary_cross_entropy_with_logits
        fake = self.generator(torch.randn(len(real), 2))
        for optimizer, value in (
            (first, lambda: loss(self.discriminator(fake), torch.ones(len(real), 1))),
            (second, lambda: loss(self.discriminator(fake.detach()), torch.zeros(len(real), 1))
             + loss(self.discriminator(real), torch.ones(len(real), 1))),
        ):  # fmt: skip
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(value())
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        fake = self.generator(torch.ones(len(batch[0]), 2))
        self.log("val/distance", (fake.mean() - batch[0].mean()).abs())

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.Adam(self.generator.parameters(), lr=self.lr),
            torch.optim.Adam(self.discriminator.parameters(), lr=2.0 * self.lr),
        )


class Normal(pl.LightningDataModule):
    def rows(self, shuffle: bool = False) -> DataLoader[Any]:
        x = 3.0 + torch.randn(48, 1, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), batch_size=8, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.rows(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.rows()


class LogsLoss(pl.Callback):
    """Lightning's demo logs nothing."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("train/loss", outputs["loss"], on_step=False, on_epoch=True)


def regression(lr: float) -> Regression:
    module = Regression()
    module.lr = lr
    return module


def demo(lr: float) -> Any:
    return DemoModel(learning_rate=lr)


@dataclass(frozen=True)
class Case:
    module: Any
    data: Any
    metric: str
    by_hand: Callable[[float], Any]
    lr: float
    callbacks: tuple[Any, ...] = ()

    @property
    def plain_callbacks(self) -> list[dict[str, str]]:
        return [{"class_path": f"{type(one).__module__}.{type(one).__qualname__}"} for one in self.callbacks]

    def trainer(self) -> dict[str, Any]:
        return {"max_epochs": 2, "accelerator": "cpu", "callbacks": self.plain_callbacks}


CASES = {
    "batch norm, two groups, AdamW": Case(Regression, Data, "val/loss", regression, 0.1),
    "manual GAN": Case(GAN, Normal, "val/distance", GAN, 0.015625),
    "LightningCLI's demo": Case(DemoModel, BoringDataModule, "train/loss", demo, 0.005, (LogsLoss(),)),
}


def made_by_hand(case: Case, schedule: Any, seed: int) -> float:
    pl.seed_everything(seed, workers=True, verbose=False)
    module = case.by_hand(case.lr)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [LearningRateScheduler(schedule, replace=True), *case.callbacks]
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(module, datamodule=case.data())
    return float(trainer.callback_metrics[case.metric])


def all_by_hand(case: Case) -> list[list[float]]:
    return [[made_by_hand(case, schedule, seed) for schedule in SCHEDULES.values()] for seed in range(2)]


def check(case: Case, folder: Path) -> None:
    rows = []
    for engine in ("serial", "local"):
        found = compare(
            case.module, case.data, SCHEDULES, [case.lr], 2, metric=case.metric, trainer=case.trainer(),
            engine=engine, workers=None if engine == "serial" else 2,
        )  # fmt: skip
        assert found.problems == ()
        rows.append(found.members[case.metric][..., -1][..., 0])
    hand = all_by_hand(case)
    for each in rows:
        np.testing.assert_array_equal(each, hand)
    np.testing.assert_array_equal(by_command(case, folder, "--engine", "serial"), hand)


def by_command(case: Case, folder: Path, *engine: str) -> list[list[float]]:
    described = {"class_path": f"{case.module.__module__}.{case.module.__qualname__}"}
    data = {"class_path": f"{case.data.__module__}.{case.data.__qualname__}"}
    config = {"model": described, "data": data, "trainer": case.trainer()}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "schedules.yaml").write_text("constant: Constant\ncosine: Cosine\n")
    command = ["compare", "--config", str(folder / "run.yaml"), "--metric", case.metric, "--lrs", str(case.lr)]
    command += ["--schedules", str(folder / "schedules.yaml"), "--seeds", "2", *engine]
    assert main([*command, "--folder", str(folder / "run")]) == 0
    members = list(csv.DictReader((folder / "run" / "members.csv").read_text().splitlines()))
    found = {(int(row["seed"]), row["schedule"]): float(row[case.metric]) for row in members}
    return [[found[seed, name] for name in SCHEDULES] for seed in range(2)]


# 2026-11: true of Lightning's demo, which has no validation_step
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_each_row_is_a_run_by_hand_by_command_and_by_function(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.published
def test_each_row_of_a_published_module_is_a_run_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("chemprop")
    from tests.helpers.chemprop_module import Alkanes, SmallMPNN

    check(Case(SmallMPNN, Alkanes, "val_loss", SmallMPNN, 0.02), tmp_path)
