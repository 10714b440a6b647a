"""The suite's core on the lowest and the highest versions that pyproject.toml allows, in environments of their own.

Not collected by default, for an environment is gigabytes from a package index. Name the file to run it:
``pytest tests/helpers/environments.py -n 0``; ``-k lowest`` for one. A python3.10 and a python3.13 must be on PATH.
Slow tests stay out, as they do by default.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FOLDERS = ("schedules", "training", "audit", "monitors", "checkpoint", "example")
"""The packages that meet code of torch and Lightning: command line, board and comparisons add no other."""

TESTS_NEED = [
    "hydra-core",
    "hypothesis",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "pytorch-lightning>=2.6.6,<3",
    "torchdata",
]
# what packages of other versions deprecate among themselves is not ours; pins make it an error in the default run
WARNINGS = ("-W", "ignore::DeprecationWarning", "-W", "ignore:The epoch parameter in:UserWarning")  # of torch 2.6

pytestmark = pytest.mark.environments


def dependencies():
    """What pyproject.toml requires, line by line: tomllib is not there before Python 3.11."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(r'^    "(.+)",$', block, re.MULTILINE)


def lowest(requirement):
    """The requirement with its lower bound as its only version."""
    parsed = Requirement(requirement)
    (bound,) = [each.version for each in parsed.specifier if each.operator == ">="]
    extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.extras else ""
    return f"{parsed.name}{extras}=={bound}"


def test_the_dependencies_are_read():
    assert "torch==2.6" in [lowest(line) for line in dependencies()]
    assert len(dependencies()) > 8


@pytest.mark.parametrize(("python", "bounds"), [("3.10", lowest), ("3.13", str)], ids=["lowest", "highest"])
def test_the_core_passes(python, bounds):
    if not _has(python):
        pytest.skip(f"there is no python{python} on PATH")
    # not tmp_path: pytest keeps the folders of its last three runs, and an environment is 6 GB
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([f"python{python}", "-m", "venv", folder], check=True)
        ours = Path(folder) / "bin" / "python"
        subprocess.run([ours, "-m", "pip", "install", "-q", *map(bounds, dependencies()), *TESTS_NEED], check=True)
        subprocess.run([ours, "-m", "pip", "install", "-q", "--no-deps", ROOT], check=True)
        folders = [ROOT / where / name for where in ("tests", "lit_cosine") for name in FOLDERS]
        command = [ours, "-m", "pytest", *folders, "-n", "2", "-q", *WARNINGS]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def _has(python):
    found = shutil.which(f"python{python}")
    return found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0
