"""lit-cosine audit: the plan of any LightningCLI run, without training."""

import json
import subprocess
import sys

import pytest
import yaml

from lit_cosine.cli.main import main
from tests.helpers.nets import factor

PROJECT = """
import torch
from lightning.pytorch.demos.boring_classes import BoringModel


class Model(BoringModel):
    def __init__(self, steps: int = 10):
        super().__init__()
        self.steps = steps

    def training_step(self, batch, batch_idx):
        raise AssertionError("the audit trains nothing")

    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.steps)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Groups(Model):
    def configure_optimizers(self):
        named = {"backbone": self.layer.weight, "head": self.layer.bias}
        return torch.optim.SGD([{"name": name, "params": [one]} for name, one in named.items()], lr=0.1)
"""
CONFIG = {
    "seed_everything": 1,
    "model": {"class_path": "audited_project.Model", "init_args": {"steps": 10}},
    "trainer": {
        "max_epochs": 2,
        "limit_train_batches": 10,
        "limit_val_batches": 0,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
            {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"},
            {"class_path": "lightning.pytorch.callbacks.LearningRateFinder"},
        ],
    },
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a project of somebody else's, and the configuration of one of its runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "audited_project.py").write_text(PROJECT)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def files(folder):
    return {path.name for path in folder.iterdir()} - {"__pycache__"}


def test_a_wrong_run_is_reported_with_status_1_and_nothing_is_written(project, capsys):
    before = files(project)
    assert main(["audit", "--config", "run.yaml"]) == 1
    out = capsys.readouterr().out
    assert "ScheduleAudit: 1 found in 20 updates (2 epochs); lr-SGD 0.1 -> 0.09755" in out
    assert "[climbs-after-end] CosineAnnealingLR ends its curve of 10 steps at update 10 of 20" in out
    assert "LearningRateFinder is left out, because it trains" in out
    assert "planned updates" not in out
    assert "0.05 " in out  # the axis of the chart
    assert files(project) == before


def test_the_curve_of_each_group_of_a_yaml_is_planned(project, capsys):
    groups = {"head": {"schedule": "Constant", "cooldown": "25%"}, "backbone": {"warmup": "4step"}}
    ours = {"schedule": {"class_path": "lit_cosine.Cosine", "init_args": {"end": 0.1}}, "groups": groups}
    callbacks = [{"class_path": "lit_cosine.LearningRateScheduler", "init_args": ours}]
    config = {
        **CONFIG,
        "model": {"class_path": "audited_project.Groups"},
        "trainer": {**CONFIG["trainer"], "callbacks": callbacks},
    }
    (project / "groups.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["audit", "--config", "groups.yaml", "--output", "plan.json"]) == 0
    # 1 - sqrt of the 5 last of 20 updates, and an update of a warmup of 4
    assert [
        (plan["name"], plan["first"], plan["last"]) for plan in json.loads((project / "plan.json").read_text())["plan"]
    ] == [
        ("lr-SGD/backbone", pytest.approx(0.1 / 5, rel=1e-12), pytest.approx(0.1 * factor(19, 20, 4), rel=1e-12)),
        ("lr-SGD/head", 0.1, pytest.approx(0.1 * (1 - 0.8**0.5), rel=1e-12)),
    ]
    assert "(cosine 1 -> 0.1, head constant 1 -> 1, backbone cosine 1 -> 0.1)" in capsys.readouterr().out
    groups["haed"] = groups.pop("head")
    (project / "groups.yaml").write_text(yaml.safe_dump(config))
    assert main(["audit", "--config", "groups.yaml"]) == 2
    assert "groups: 'haed' names no param group; the groups are backbone, head" in capsys.readouterr().err
    groups["head"] = {"schedule": "Constnt"}
    (project / "groups.yaml").write_text(yaml.safe_dump(config))
    assert main(["audit", "--config", "groups.yaml"]) == 2
    (at,) = [at for at, line in enumerate((project / "groups.yaml").read_text().splitlines(), 1) if "Constnt" in line]
    assert capsys.readouterr().err == (
        f"lit-cosine audit: error: groups.yaml, line {at}: groups.head.schedule: unknown schedule 'Constnt'; did you "
        "mean Constant?\n"
    )


def test_a_right_run_has_status_0_and_its_plan_is_written(project, capsys):
    assert main(["audit", "--config", "run.yaml", "--model.steps", "20", "--output", "plan.json"]) == 0
    written = json.loads((project / "plan.json").read_text())
    assert written["findings"] == []
    (plan,) = written["plan"]
    assert (plan["name"], plan["first"], plan["after"], plan["changes"]) == ("lr-SGD", 0.1, 0.0, 19)
    assert main(["audit", "--config", "run.yaml", "--model.steps", "20", "--output", "plan.png"]) == 0
    assert (project / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_articles_model_is_audited_without_a_class(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    assert main(["audit", *flags]) == 0
    assert "nothing wrong in 26 updates (2 epochs)" in capsys.readouterr().out
    assert main(["audit", *flags, "--model.schedule", "Linear", "--model.schedule.start", "0"]) == 1
    out = capsys.readouterr().out
    assert "[idle-warmup]" in out
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_built_is_refused(project, capsys):
    assert main(["audit", "--config", "run.yaml", "--output", "plan.txt"]) == 2
    assert "output must be a .png or .json file, got plan.txt" in capsys.readouterr().err
    (project / "no_model.yaml").write_text("trainer: {max_epochs: 2}\n")
    assert main(["audit", "--config", "no_model.yaml"]) == 2  # not the plan of the article's model
    assert capsys.readouterr().err == "lit-cosine audit: error: config names no model: add --model module.Class\n"
    assert main(["audit", "--config", "missing.yaml"]) == 2
    assert "missing.yaml" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_several_processes_show_and_write_one_plan(strategy, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "lit_cosine", "audit", "--trainer.devices=2"]
    command += ["--trainer.accelerator=cpu", f"--trainer.strategy={strategy}", "--output=plan.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("└") == 1
    assert "70 updates" in done.stderr + done.stdout
    assert [path.name for path in tmp_path.glob("plan*")] == ["plan.json"]
