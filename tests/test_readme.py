"""What the README shows is what happens: Python and YAML run, and commands, shortened, print what it says."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

import lit_cosine
from lit_cosine.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMPARE = ["--seeds", "2", "--lrs", "0.01", "--max-epochs", "1", "--devices", "1"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(start):
    """Return the arguments of every ``lit-cosine`` command that begins with ``start``, in their order."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(f"lit-cosine {start}")]
    return [shlex.split(line)[1:] for line in lines]


def printed(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def shown(first_line):
    """Return the lines of the text block that begins so."""
    (block,) = [block for block in blocks("text") if block.startswith(first_line)]
    return block.splitlines()


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = torch.arange(200.0).reshape(100, 2)
    names = {"features": rows, "labels": torch.arange(100) % 2}
    assert len(blocks("python")) >= 5
    for block in blocks("python"):
        exec(block.replace("max_epochs=10", "max_epochs=2").replace("[0.003, 0.01], 32, 10", "[0.01], 2, 1"), names)
    assert isinstance(names["model"], lit_cosine.LitClassifier)


class Bare(BoringModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter:UserWarning")
def test_the_yaml_is_a_config_of_any_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("yaml")
    Path("config.yaml").write_text(block)
    short = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    arguments = ["fit", "--config", "config.yaml"]
    cli = LightningCLI(
        Bare, trainer_defaults=short, args=arguments, save_config_callback=None, seed_everything_default=1
    )
    assert cli.trainer.global_step == 64
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.01, rel=1e-12)


def test_every_command_is_tried_here():
    tried = [commands(name) for name in ("train", "test", "predict", "compare", "preview")]
    every = [line for block in blocks("sh") for line in block.splitlines() if not line.startswith("pip install ")]
    assert sum(map(len, tried)) == len(every) > 8


@pytest.mark.filterwarnings("ignore:ScheduleAudit:UserWarning")  # of runs as short as these
def test_the_trainings_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_module.py").write_text("from lit_cosine import SimpleNN\nclass MyNetwork(SimpleNN): pass\n")
    lines = printed(capsys, "train").splitlines()
    told = shown("Epoch 1/10")
    assert [line for line in told if line.startswith("Epoch")][-1].startswith("Epoch 10/10")
    for line in told:
        numbers = re.compile(r"(?<=: )\d\.\d+")
        (same,) = [own for own in lines if numbers.sub("", own) == numbers.sub("", line)] if line != "…" else [line]
        assert [*map(float, numbers.findall(same))] == pytest.approx([*map(float, numbers.findall(line))], abs=2e-3)
    for arguments in commands("train"):
        epochs = "3" if "--resume" in arguments and "--trainer.max_epochs" in arguments else "2"
        out = printed(capsys, *arguments, "--trainer.max_epochs", epochs)
        assert "Test accuracy" in out
    for name, said in (("test", "Test accuracy"), ("predict", "Predictions")):
        ((arguments),) = commands(name)
        assert said in printed(capsys, *arguments)
    sys.modules.pop("my_module")


def test_the_previews(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, several = commands("preview")
    assert [line.rstrip() for line in printed(capsys, *one).splitlines()] == shown("    0.01 │")
    printed(capsys, *several)
    assert Path("preview.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparisons(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain, claims = commands("compare")
    printed(capsys, *plain, *COMPARE)
    files = ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png")
    assert all(Path("runs/compare_article", name).is_file() for name in files)
    printed(capsys, *claims, *COMPARE, "--data", "article")
    assert "not supported" in Path("runs/claims/claims.md").read_text()


@pytest.mark.filterwarnings("ignore:ScheduleAudit:UserWarning")
def test_the_finding(capsys):
    class Wrong(BoringModel):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24)]

    trainer = Trainer(
        max_epochs=3, limit_train_batches=8, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[lit_cosine.ScheduleAudit("print")],
    )  # fmt: skip
    trainer.fit(Wrong())
    assert " ".join(shown("[epoch-interval]")) in capsys.readouterr().out


def test_the_two_commands_are_ci_runs():
    lines = re.findall(r"^pip install -c constraints.txt .*$", README, re.MULTILINE)
    assert [line.rpartition(" && ")[2] for line in lines] == ["python scripts/train.py", "pytest"]


def test_the_tree_names_every_room_and_no_other():
    tree = README.partition("## What is where")[2]
    package = Path(lit_cosine.__file__).parent
    rooms = {*re.findall(r"(\w+\.py)\b", tree)}
    scripts = {path.name for path in (package.parent / "scripts").glob("*.py") if "benchmark_" not in path.name}
    assert {path.name for path in package.glob("*.py")} - {"__init__.py"} | scripts <= rooms
    assert [room for room in rooms if not [*package.parent.glob(f"*/{room}")]] == []


def test_the_pictures_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert len(pictures) >= 5
    assert [name for name in pictures if not (Path(__file__).parents[1] / name).is_file()] == []
