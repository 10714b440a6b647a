import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import lit_cosine

PROBE = """
import sys
import lit_cosine
{then}
print(sorted({{"torch", "numpy", "lightning", "matplotlib", "sklearn"}} & {{*sys.modules}}))
"""


def heavy(then):
    done = subprocess.run([sys.executable, "-c", PROBE.format(then=then)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_is_light_and_so_are_the_schedules():
    assert heavy("lit_cosine.Cosine, lit_cosine.Duration, lit_cosine.__all__, dir(lit_cosine)") == "[]"


def test_the_probe_sees_what_is_heavy():
    assert heavy("lit_cosine.ScheduleLR") == "['numpy', 'torch']"


def test_the_public_names_load_on_first_use():
    for name in lit_cosine.__all__:
        value = getattr(lit_cosine, name)
        assert value.__name__ == name
        assert value.__doc__
        assert name in dir(lit_cosine)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lit_cosine' has no attribute 'cosine'"):
        lit_cosine.cosine  # noqa: B018


def test_the_command_is_installed():
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "lit-cosine"]
    assert entry.value == "lit_cosine.cli:main"


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_readmes_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = torch.arange(200.0).reshape(100, 2)
    names = {"features": rows, "labels": torch.arange(100) % 2}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block.replace("max_epochs=10", "max_epochs=2"), names)
    assert isinstance(names["model"], lit_cosine.LitClassifier)


def test_the_readmes_two_commands_are_ci_runs():
    commands = re.findall(r"^pip install -c constraints.txt .*$", README, re.MULTILINE)
    assert [command.rpartition(" && ")[2] for command in commands] == ["python scripts/train.py", "pytest"]


def test_the_readmes_tree_names_rooms_that_are_there():
    tree = README.partition("## What is where")[2]
    package = Path(lit_cosine.__file__).parent
    rooms = re.findall(r"^  (\w+\.py) ", tree, re.MULTILINE)
    assert len(rooms) >= 11
    assert [room for room in rooms if not (package / room).is_file()] == []
