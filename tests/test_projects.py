"""Whole projects of other people's making: each trained, audited, stopped and resumed, and looked at in TensorBoard.

Witnesses are closed forms written here: update k of N, after a warmup of W, is at u = (k - W) / (N - W).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from examples import finetuning, gan, language_model, other_namespace
from examples.yaml_alone import project as yaml_alone
from lit_cosine import ExactResume, ScheduleAudit
from lit_cosine.audit._schedule_audit import ScheduleProblem
from tests.helpers.nets import trainer
from tests.helpers.witnesses import Rows, Used, audit_of, cosine, curve, points

SLOW = pytest.mark.slow
# 2026-11, pytorch_lightning 2.6.6 on torch 2.13: the second namespace repeats the first one's import-time warnings
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")


class Stop(pl.Callback):
    """Sends the process SIGTERM, as a cluster does, in the middle of batch ``batch`` of the run."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


class Crash(pl.Callback):
    """Raises in the middle of batch ``batch`` of the run."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("the machine is gone")


def weights(run: Any) -> dict[str, torch.Tensor]:
    return run.lightning_module.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stopped_and_resumed(main: Callable[..., Any], folder: Path, batch: int) -> tuple[list[Rows], Any]:
    """Return the LRs of both parts, and the Trainer of the second."""
    first, second = Used(), Used()
    with pytest.raises(SystemExit) as left:
        main(folder, [first, Stop(batch)])
    assert left.value.code == 143
    run = main(folder, [second], ckpt_path="last")
    assert all(second.rows)
    return [one + other for one, other in zip(first.rows, second.rows, strict=True)], run


Whole = tuple[Any, list[Rows], Path]


def whole(main: Callable[..., Any], folders: pytest.TempPathFactory) -> Whole:
    """Return the Trainer of an uninterrupted run, the LRs it used, and its folder."""
    folder, used = folders.mktemp("whole"), Used()
    return main(folder, [used]), used.rows, folder


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(finetuning.main, tmp_path_factory)


class TestFinetuning:
    """36 updates, a warmup of 4, the backbone with its own base LR from update 12 on."""

    head: ClassVar[list[float]] = [0.01 * cosine(k, 36, 4, 0.05) for k in range(37)]
    backbone: ClassVar[list[float]] = [1e-3 * cosine(k, 36, 4, 0.05) for k in range(37)]

    def test_both_groups_have_the_schedule(self, finetuned: Whole) -> None:
        run, (rows,), _ = finetuned
        assert [len(row) for row in rows] == [1] * 12 + [2] * 24
        assert [row[0] for row in rows] == pytest.approx(self.head[:36], rel=1e-12)
        assert [row[1] for row in rows[12:]] == pytest.approx(self.backbone[12:36], rel=1e-12)
        assert run.callback_metrics["val/accuracy"] > 0.5  # guessing is 0.1

    def test_the_audit_has_nothing_to_say(self, finetuned: Whole) -> None:
        audit = audit_of(finetuned[0])
        assert (audit.findings, audit.differences) == ([], [])
        (planned,) = audit.plan
        assert (planned.first, planned.last) == pytest.approx((self.head[0], self.head[35]), rel=1e-12)

    def test_tensorboard_has_a_curve_for_each_group(self, finetuned: Whole) -> None:
        assert points(finetuned[2]) == {"lr-AdamW": curve(self.head), "lr-AdamW/pg2": curve(self.backbone[12:], 12)}

    @pytest.mark.parametrize(
        "batch", [pytest.param(5, marks=SLOW), 12, pytest.param(23, marks=SLOW)]
    )  # frozen; thawed a batch ago; the last of an epoch
    def test_a_run_that_was_stopped_goes_on_bit_for_bit(self, finetuned: Whole, tmp_path: Path, batch: int) -> None:
        run, rows, _ = finetuned
        used, resumed = stopped_and_resumed(finetuning.main, tmp_path, batch)
        assert used == rows
        assert same(weights(resumed), weights(run))
        assert audit_of(resumed).differences == []
        assert points(tmp_path) == {"lr-AdamW": curve(self.head), "lr-AdamW/pg2": curve(self.backbone[12:], 12)}

    def test_lightnings_own_callback_leaves_the_backbone_frozen_after_a_resume(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # PL#21901, and why the project has a class of its own: once this fails, it can go
        monkeypatch.setattr(finetuning, "Finetuning", BackboneFinetuning)
        with pytest.raises(SystemExit):
            finetuning.main(tmp_path, [Stop(20)])
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        resumed = weights(finetuning.main(tmp_path, ckpt_path="last"))
        moved = {name for name in saved if not torch.equal(saved[name], resumed[name])}
        assert "head.1.weight" in moved
        assert "backbone.0.weight" not in moved

    def test_a_scheduler_that_cannot_take_the_backbone_in_is_found(self) -> None:
        class Mistaken(finetuning.DigitsClassifier):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                scheduler = LambdaLR(optimizer, lambda step: 1 - step / 36)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        audit = ScheduleAudit("raise")
        thaw = finetuning.Finetuning(unfreeze_backbone_at_epoch=1)
        with pytest.raises(ValueError, match=r"\[group-not-covered\] LambdaLR was built for 1 of the 2 param groups"):
            trainer(thaw, audit, max_epochs=3).fit(Mistaken(), finetuning.Digits())


@pytest.fixture(scope="module")
def adversaries(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(gan.main, tmp_path_factory)


class TestGAN:
    """36 batches, an update of each optimizer in each: up to a tenth, flat to a half, then 1 - sqrt to zero."""

    factors: ClassVar[list[float]] = [
        0.01 + 0.99 * (k / 36) / 0.1 if k / 36 < 0.1 else 1.0 if k / 36 < 0.5 else 1 - math.sqrt((k / 36 - 0.5) / 0.5)
        for k in range(37)
    ]

    def test_both_optimizers_have_the_schedule(self, adversaries: Whole) -> None:
        _, (generator, discriminator), _ = adversaries
        assert generator == [[pytest.approx(1e-3 * factor, rel=1e-12)] for factor in self.factors[:36]]
        assert discriminator == [[pytest.approx(4e-4 * factor, rel=1e-12)] for factor in self.factors[:36]]

    def test_the_audit_has_nothing_to_say(self, adversaries: Whole) -> None:
        audit = audit_of(adversaries[0])
        assert (audit.findings, audit.differences) == ([], [])
        assert [(one.name, one.peak, one.after) for one in audit.plan] == [("lr-Adam", 1e-3, 0), ("lr-Adam-1", 4e-4, 0)]

    def test_tensorboard_has_a_curve_for_each_optimizer(self, adversaries: Whole) -> None:
        generator, discriminator = ([lr * factor for factor in self.factors] for lr in (1e-3, 4e-4))
        assert points(adversaries[2]) == {"lr-Adam": curve(generator), "lr-Adam-1": curve(discriminator)}

    @pytest.mark.parametrize("batch", [2, pytest.param(19, marks=SLOW)])
    def test_a_run_that_was_stopped_goes_on_bit_for_bit(self, adversaries: Whole, tmp_path: Path, batch: int) -> None:
        run, rows, folder = adversaries
        used, resumed = stopped_and_resumed(gan.main, tmp_path, batch)
        assert used == rows
        assert same(weights(resumed), weights(run))
        assert audit_of(resumed).differences == []
        assert points(tmp_path) == points(folder)

    def test_schedulers_that_nobody_steps_are_found(self) -> None:
        class Mistaken(gan.GAN):
            def configure_optimizers(self) -> Any:
                optimizers, _ = super().configure_optimizers()
                return optimizers, [CosineAnnealingLR(optimizer, 36) for optimizer in optimizers]

        audit = ScheduleAudit("print")
        trainer(audit, max_epochs=3).fit(Mistaken(), gan.Images())
        assert [finding.code for finding in audit.findings] == ["never-steps", "never-steps"]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(language_model.main, tmp_path_factory)


class TestLanguageModel:
    """45 batches, two to an update and one at the end of each epoch: 24 updates, a quarter of them warmup."""

    lrs: ClassVar[list[float]] = [3e-3 * cosine(k, 24, 6, 0.1) for k in range(25)]

    def test_groups_with_and_without_decay_have_the_schedule(self, speaker: Whole) -> None:
        run, (rows,), _ = speaker
        assert rows == [[pytest.approx(lr, rel=1e-12)] * 2 for lr in self.lrs[:24]]
        assert run.callback_metrics["val/loss"] < 0.8 * math.log(128)  # guessing is log(128)

    def test_the_audit_has_nothing_to_say(self, speaker: Whole) -> None:
        audit = audit_of(speaker[0])
        assert (audit.findings, audit.differences) == ([], [])
        assert [one.name for one in audit.plan] == ["lr-AdamW/decay", "lr-AdamW/no_decay"]

    def test_tensorboard_has_a_curve_for_each_group(self, speaker: Whole) -> None:
        assert points(speaker[2]) == {"lr-AdamW/decay": curve(self.lrs), "lr-AdamW/no_decay": curve(self.lrs)}

    @pytest.mark.parametrize(
        "batch", [pytest.param(3, marks=SLOW), 14, pytest.param(33, marks=SLOW)]
    )  # in the warmup; the odd batch at an epoch's end; later
    def test_a_run_that_was_stopped_goes_on_bit_for_bit(self, speaker: Whole, tmp_path: Path, batch: int) -> None:
        run, rows, folder = speaker
        used, resumed = stopped_and_resumed(language_model.main, tmp_path, batch)
        assert used == rows
        assert same(weights(resumed), weights(run))
        assert audit_of(resumed).differences == []
        assert points(tmp_path) == points(folder)

    @pytest.mark.parametrize(
        ("interval", "code"), [("step", "ends-early"), ("epoch", "epoch-interval")], ids=["step", "epoch"]
    )
    def test_a_horizon_in_batches_is_found(self, interval: str, code: str) -> None:
        class Mistaken(language_model.LanguageModel):
            def configure_optimizers(self) -> Any:
                optimizer = super().configure_optimizers()
                scheduler = CosineAnnealingLR(optimizer, 3 * len(self.trainer.datamodule.train_dataloader()))
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

        audit = ScheduleAudit("print")
        run = trainer(audit, max_epochs=3, accumulate_grad_batches=2)
        run.fit(Mistaken(), language_model.HelpTexts())
        assert [finding.code for finding in audit.findings] == [code]


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(other_namespace.main, tmp_path_factory)


class TestOtherNamespace:
    """24 updates under pytorch_lightning's Trainer: 0.1 + 0.9 * (1 - u)^2 of an LR of 0.05."""

    lrs: ClassVar[list[float]] = [0.05 * (0.1 + 0.9 * (1 - k / 24) ** 2) for k in range(25)]

    def test_it_has_the_schedule(self, regressor: Whole) -> None:
        run, (rows,), _ = regressor
        assert isinstance(run, pytorch_lightning.Trainer)
        assert rows == [[pytest.approx(lr, rel=1e-12)] for lr in self.lrs[:24]]
        assert run.callback_metrics["val_loss"] < 0.8  # the mean's is about 1

    def test_the_audit_has_nothing_to_say(self, regressor: Whole) -> None:
        audit = audit_of(regressor[0])
        assert (audit.findings, audit.differences) == ([], [])
        assert audit.plan[0].after == pytest.approx(0.005, rel=1e-12)

    def test_tensorboard_has_the_curve(self, regressor: Whole) -> None:
        assert points(regressor[2]) == {"lr-SGD": curve(self.lrs)}

    @pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # 2026-11: it is
    def test_a_run_that_crashed_goes_on_from_the_last_epoch(self, regressor: Whole, tmp_path: Path) -> None:
        run, (rows,), _ = regressor
        first, second = Used(), Used()
        with pytest.raises(RuntimeError, match="the machine is gone"):
            other_namespace.main(tmp_path, [first, Crash(11)])
        resumed = other_namespace.main(tmp_path, [second], ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
        assert (len(first.rows[0]), len(second.rows[0])) == (11, 16)
        assert first.rows[0][:8] + second.rows[0] == rows
        assert same(weights(resumed), weights(run))  # its batches are never shuffled
        assert audit_of(resumed).differences == []

    @pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # 2026-11: it is
    def test_a_run_that_crashed_and_is_given_more_epochs_goes_on_without_a_jump(self, tmp_path: Path) -> None:
        used = Used()
        with pytest.raises(RuntimeError, match="the machine is gone"):
            other_namespace.main(tmp_path, [Crash(11)])
        last = tmp_path / "checkpoints" / "last.ckpt"
        run = other_namespace.main(tmp_path, [used], ckpt_path=last, max_epochs=5)
        # 8 of 24 updates were done, a third; the other two thirds are spread over the 32 updates to the new end
        progress = [1 / 3 + 2 / 3 * k / 32 for k in range(32)]
        assert used.rows == [[[pytest.approx(0.05 * (0.1 + 0.9 * (1 - u) ** 2), rel=1e-12)] for u in progress]]
        assert audit_of(run).differences == []

    # 2026-11: its loader is a plain one, and never shuffles
    @pytest.mark.filterwarnings("ignore:batches after a resume:UserWarning")
    @pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning")
    def test_exact_resume_in_the_other_namespace_goes_by_its_path(self, tmp_path: Path) -> None:
        def fit(*callbacks: Any, **options: Any) -> Used:
            exact = ExactResume(tmp_path / "exact", monitor=None)
            run = trainer(used := Used(), exact, *callbacks, cls=pytorch_lightning.Trainer, max_epochs=3)
            run.fit(other_namespace.Regressor(), other_namespace.Diabetes(), **options)
            return used

        with pytest.raises(SystemExit):
            fit(Stop(11))
        with (
            pytest.warns(UserWarning, match="there is no last checkpoint available"),
            pytest.raises(FileExistsError, match=r'resume it with ckpt_path="/.*/exact/last\.ckpt"') as refused,
        ):
            fit(ckpt_path="last")
        path = re.findall(r'ckpt_path="(.*)"', str(refused.value))[0]
        assert fit(ckpt_path=path).rows == [[[pytest.approx(lr, rel=1e-12)] for lr in self.lrs[12:24]]]

    def test_torchs_own_scheduler_with_the_old_horizon_is_found(self, tmp_path: Path) -> None:
        class Stock(other_namespace.Regressor):
            def configure_optimizers(self) -> Any:
                optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
                steps = self.trainer.estimated_stepping_batches
                return {
                    "optimizer": optimizer,
                    "lr_scheduler": {"scheduler": CosineAnnealingLR(optimizer, steps), "interval": "step"},
                }

        def fit(audit: ScheduleAudit, epochs: int, **options: Any) -> Any:
            run = trainer(audit, cls=pytorch_lightning.Trainer, max_epochs=epochs)
            run.fit(Stock(), other_namespace.Diabetes(), **options)
            return run

        fit(ScheduleAudit("raise"), 2).save_checkpoint(tmp_path / "two.ckpt")
        audit = ScheduleAudit("print")
        fit(audit, 4, ckpt_path=tmp_path / "two.ckpt")
        assert [finding.code for finding in audit.findings] == ["old-horizon"]


CONFIG = Path(yaml_alone.__file__).with_name("run.yaml")

# 2026-11: what ExactResume tells this project, whose loader shuffles with torch's own sampler: the LR goes on exactly,
# the batches do not
OTHER_BATCHES = pytest.mark.filterwarnings("ignore:batches after a resume:UserWarning")


class TestYamlAlone:
    """24 updates, a warmup of 2, then two cosines of 11 updates each, the second from half the height."""

    lrs: ClassVar[list[float]] = [
        0.01
        * min(1, (k + 1) / 3)
        * (1.0 if k < 13 else 0.5)
        * (0.1 + 0.9 * (1 + math.cos(math.pi * (max(0, k - 2) % 11 if k < 24 else 11) / 11)) / 2)
        for k in range(25)
    ]

    @pytest.fixture
    def fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[Rows]]]:
        """What `python project.py fit --config run.yaml …` does in an empty folder."""
        monkeypatch.chdir(tmp_path)

        def fit(*arguments: str, config: Path = CONFIG) -> tuple[Any, list[Rows]]:
            command = [
                "project.py",
                "fit",
                f"--config={config}",
                "--trainer.callbacks+=tests.helpers.witnesses.Used",
                *arguments,
            ]
            monkeypatch.setattr(sys, "argv", command)
            run = yaml_alone.main().trainer
            return run, next(callback.rows for callback in run.callbacks if isinstance(callback, Used))

        return fit

    def test_the_project_does_not_know_of_lit_cosine(self) -> None:
        assert not re.search(r"^(import|from) lit_cosine", Path(yaml_alone.__file__).read_text("utf-8"), re.MULTILINE)

    @pytest.mark.slow
    def test_the_command_alone(self, tmp_path: Path) -> None:
        shutil.copytree(CONFIG.parent, tmp_path, dirs_exist_ok=True)
        command = [sys.executable, "project.py", "fit", "--config", "run.yaml"]
        env = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "HOME": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False, timeout=250)
        assert done.returncode == 0, done.stderr
        assert "ScheduleAudit: nothing wrong in 24 updates (3 epochs)" in done.stderr
        assert points(tmp_path) == {"lr-Adam": curve(self.lrs)}

    @OTHER_BATCHES
    def test_trained_audited_and_logged(self, fit: Any, tmp_path: Path) -> None:
        run, (rows,) = fit()
        assert rows == [[pytest.approx(lr, rel=1e-12)] for lr in self.lrs[:24]]
        audit = audit_of(run)
        assert (audit.findings, audit.differences) == ([], [])
        assert points(tmp_path) == {"lr-Adam": curve(self.lrs)}
        assert run.callback_metrics["val_loss"] < 0.8 * math.log(3)  # guessing is log(3)

    @OTHER_BATCHES
    # 2026-11: so Lightning says too, since the loader of this project is no stateful one
    @pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning")
    @pytest.mark.parametrize("batch", [pytest.param(15, marks=SLOW), 17])
    def test_stopped_and_resumed(self, fit: Any, tmp_path: Path, batch: int) -> None:
        stop = ["--trainer.callbacks+=tests.test_projects.Stop", f"--trainer.callbacks.batch={batch}"]
        with pytest.raises(SystemExit) as left:
            fit(*stop)
        assert left.value.code == 143
        run, (rows,) = fit("--ckpt_path=last")
        assert rows == [[pytest.approx(lr, rel=1e-12)] for lr in self.lrs[batch + 1 : 24]]
        assert audit_of(run).differences == []
        assert points(tmp_path) == {"lr-Adam": curve(self.lrs)}

    # 2026-11: so it says of the project's own, whenever it makes the optimizer and the scheduler from flags
    @pytest.mark.filterwarnings("ignore:.*configure_optimizers` will be overridden by:UserWarning")
    def test_lightning_clis_own_scheduler_is_found(self, fit: Any, tmp_path: Path) -> None:
        text = CONFIG.read_text("utf-8")
        (tmp_path / "own.yaml").write_text(
            text.partition("    - class_path: lit_cosine.LearningRateScheduler")[0]
            + "    - {class_path: lit_cosine.ScheduleAudit, init_args: {on_problem: raise}}\n"
            + "optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}\n"
            + "lr_scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 24}}\n"
        )
        with pytest.raises(ScheduleProblem, match=r"\[epoch-interval\] CosineAnnealingLR has a horizon of 24 steps"):
            fit(config=tmp_path / "own.yaml")
