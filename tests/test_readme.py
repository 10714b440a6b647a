"""What README and docs show is what happens: Python and YAML run, and commands, shortened, print what the pages say."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

import lit_cosine
from lit_cosine.cli.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
LINKING = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"]
TESTED_ELSEWHERE = {"migration", "_options"}
"""Pages whose blocks a test of their own runs."""
COMPARE = ["--seeds", "2", "--lrs", "0.01", "--max-epochs", "1", "--engine", "serial"]
SHORTER = {
    "max_epochs=10": "max_epochs=2",
    '"max_epochs": 10': '"max_epochs": 1',
    "[0.003, 0.01], 32, 10": "[0.01], 2, 1",
    'lrs="auto",\n    seeds=5': 'lrs=[0.01],\n    seeds=1,\n    engine="serial"',
}
"""What the blocks train, and what is trained here instead."""


def blocks(language, *pages):
    """Return the blocks in ``language`` of the named pages, or of every page."""
    texts = [text for name, text in PAGES.items() if name in (pages or PAGES) and name not in TESTED_ELSEWHERE]
    found = [
        each for text in texts for each in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    return [block for block in found if "srun" not in block]  # those of a cluster


def commands(start):
    """Return the arguments of every ``lit-cosine`` command that begins with ``start``, in their order."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(f"lit-cosine {start}")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


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
    monkeypatch.setitem(sys.modules, "a_page", ModuleType("a_page"))  # where dataclasses look their annotations up
    given = {"features": torch.arange(200.0).reshape(100, 2), "labels": torch.arange(100) % 2, "__name__": "a_page"}
    given |= {"MyModule": lit_cosine.LitClassifier, "MyData": lit_cosine.SyntheticDataModule}
    run = [block for page in PAGES for block in blocks("python", page)]
    assert len(run) >= 5
    for page in PAGES:
        names = dict(given)
        for block in blocks("python", page):
            for long, short in SHORTER.items():
                block = block.replace(long, short)
            exec(block, names)


class Bare(BoringModel):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter:UserWarning")
@pytest.mark.parametrize("page", ["README", "get-started"])
def test_the_yaml_is_a_config_of_any_project(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("yaml", page)
    Path("config.yaml").write_text(block.replace("max_epochs: 10", "max_epochs: 1"))
    short = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    arguments = ["fit", "--config", "config.yaml"]
    cli = LightningCLI(
        Bare, trainer_defaults=short, args=arguments, save_config_callback=None, seed_everything_default=1
    )
    assert cli.trainer.global_step == 64
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.01, rel=1e-12)


def test_the_yaml_of_a_callback_is_read(tmp_path):
    (block,) = [block for block in blocks("yaml", "groups") if block.startswith("class_path: lit_cosine.Learning")]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=lit_cosine.LearningRateScheduler)
    read = parser.instantiate_classes(parser.parse_object({"callback": yaml.safe_load(block)})).callback
    assert {*read.groups} == {"backbone", "head"}


def test_the_yaml_of_the_whole_project_is_the_projects():
    (block,) = [block for block in blocks("yaml", "groups") if block.startswith("callbacks:")]
    project = yaml.safe_load((ROOT / "examples/vision_transformer/run.yaml").read_text(encoding="utf-8"))
    assert [one for one in yaml.safe_load(block)["callbacks"] if one not in project["trainer"]["callbacks"]] == []


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_the_change_of_a_shuffled_loader():
    pytest.importorskip("torchdata", reason="needs torchdata")
    (block,) = blocks("diff")
    for sign in "-+":
        names = {"rows": range(64)}
        exec("\n".join(line[1:] for line in block.splitlines() if line[0] == sign), names)
        assert sorted(row for batch in names["loader"] for row in batch.tolist()) == [*range(64)]
        assert hasattr(names["loader"], "state_dict") == (sign == "+")


def test_every_command_is_tried_here():
    tried = [commands(name) for name in ("train", "test", "predict", "audit", "compare", "preview")]
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
        epochs = "2" if "--resume" not in arguments else "4" if "--trainer.max_epochs" in arguments else "3"
        if "--resume" in arguments:  # of a run that has ended, and without a network of the user's own
            printed(capsys, "train", "--trainer.max_epochs", "2")
            arguments = [*arguments, "--model.on_resize", "rescale"]
        out = printed(capsys, *arguments, "--trainer.max_epochs", epochs)
        assert "Test accuracy" in out
    for name, said in (("test", "Test accuracy"), ("predict", "Predictions")):
        ((arguments),) = commands(name)
        assert said in printed(capsys, *arguments)
    sys.modules.pop("my_module")


@pytest.mark.filterwarnings("ignore:The number of training batches|Be aware that when using `ckpt_path`:UserWarning")
def test_the_audits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, data = "{class_path: lit_cosine.LitClassifier}", "{class_path: lit_cosine.SyntheticDataModule}"
    Path("their.yaml").write_text(f"model: {model}\ndata: {data}\ntrainer: {{max_epochs: 2}}\n")
    printed(capsys, "train", "--trainer.max_epochs", "2")
    unfinished = Path("runs/run_1/checkpoints/epoch=0-step=13.ckpt")
    Path("last.ckpt").write_bytes(unfinished.read_bytes())
    for arguments in commands("audit"):
        assert "updates" in printed(capsys, *arguments)
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_previews(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, several = commands("preview")
    assert [line.rstrip() for line in printed(capsys, *one).splitlines()] == shown("    0.01 │")
    printed(capsys, *several)
    assert Path("preview.png").read_bytes().startswith(b"\x89PNG")
    (block,) = blocks("yaml", "command-line")
    Path("groups.yaml").write_text(block)
    drawn = printed(capsys, "preview", "--config", "groups.yaml")
    assert "head" in drawn
    assert "backbone" in drawn


@pytest.mark.slow
def test_the_comparisons(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, plain, claims = commands("compare")
    Path("run.yaml").write_text(
        "model: {class_path: lit_cosine.LitClassifier}\n"
        "data: {class_path: lit_cosine.SyntheticDataModule}\n"
        "trainer: {max_epochs: 1}\n"
    )
    assert "cosine" in printed(capsys, *own, "--lrs", "0.01", "--seeds", "1", "--engine", "serial")
    printed(capsys, *plain, *COMPARE)
    files = ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png")
    assert all(Path("runs/compare_article", name).is_file() for name in files)
    assert "undecided" in printed(
        capsys, *claims, "--data", "article", "--splits", "2", "--seeds", "1", "--max-epochs", "1"
    )
    assert Path("runs/claims/claims.json").is_file()


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


def test_the_design_page_names_every_package():
    tree = PAGES["design"].partition("## Layout")[2].partition("### Import rules")[0]
    there = {path.parent.name for path in (ROOT / "lit_cosine").rglob("__init__.py")} - {"lit_cosine"}
    assert there == {*re.findall(r"\b(\w+)/", tree)} - {"lit_cosine", "tests", "helpers", "scripts", "docs"}


def test_the_reference_describes_every_public_name():
    described = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", PAGES["api"], re.MULTILINE)
    assert sorted(described) == sorted(lit_cosine.__all__)


@pytest.mark.parametrize("page", LINKING, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


def urls():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return dict(
        re.findall(r'^(\w+) = "(.+)"$', re.search(r"\[project.urls\]\n(.*?)\n\n", text, re.DOTALL)[1], re.MULTILINE)
    )


def test_the_readmes_links_are_absolute_and_name_files_of_this_tree():
    source, site = urls()["Source"], urls()["Documentation"]
    links = re.findall(r"\]\(([^)]+)\)", README)
    own = [link for link in links if link.startswith((source, site))]
    others = {link for link in links if link not in own}
    assert {link.split("/")[2] for link in others} == {"img.shields.io", "pypi.org"}
    assert len(own) > 15
    for link in own:
        if link.startswith(site):
            name = link.removeprefix(site).removesuffix(".html") or "index"
            assert (ROOT / "docs" / f"{name}.md").is_file(), link
        else:
            place = re.sub(r"^/(blob|raw|tree)/main/", "", link.removeprefix(source).removesuffix("/badge.svg"))
            place = place.replace("/actions/", ".github/")
            assert (ROOT / place).exists(), link


def test_the_owner_is_the_same_everywhere():
    owner = re.fullmatch(r"https://github\.com/(\w[\w-]*)/lit_cosine", urls()["Homepage"])[1]
    assert urls() == {
        "Homepage": f"https://github.com/{owner}/lit_cosine",
        "Documentation": f"https://{owner}.github.io/lit_cosine/",
        "Source": f"https://github.com/{owner}/lit_cosine",
        "Changelog": f"https://github.com/{owner}/lit_cosine/blob/main/CHANGELOG.md",
    }
    for path in (*LINKING, ROOT / "docs" / "conf.py", ROOT / "CITATION.cff", *ROOT.glob(".github/**/*.yml")):
        text = path.read_text(encoding="utf-8")
        assert {*re.findall(r"github\.com/([\w-]+)/lit_cosine", text)} <= {owner}, path
        assert {*re.findall(r"//([\w-]+)\.github\.io/lit_cosine", text)} <= {owner}, path


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
def test_the_options_are_those_of_the_parsers():
    """If this fails: python scripts/command_line.py writes the page."""
    script = runpy.run_path(str(ROOT / "scripts" / "command_line.py"))
    assert PAGES["_options"] == script["page"]()
