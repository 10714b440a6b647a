"""Play every cell of the feature table with the libraries that break beside ours, in an environment of their own.

``python -m tests.helpers.play_features [PYTHON]`` makes the environment (6 GB from a package index) in a temporary
folder, or takes the one whose Python is named, runs tests/test_features.py there, and writes docs/features.json: the
date, the versions, and the cells that passed. If a cell fails or is skipped, nothing is written.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.environments import TESTS_NEED, dependencies

ROOT = Path(__file__).parents[2]
LIBRARIES = ["transformers", "accelerate", "timm", "mosaicml", "megatron-core", "optax", "jax"]
SHOWN = ["torch", "lightning", "transformers", "timm", "mosaicml", "megatron-core", "optax"]
VERSIONS = f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {SHOWN}}}))"


def made(folder: str) -> Path:
    """Return the Python of a new environment."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = Path(folder) / "bin" / "python"
    # torch and torchvision together: timm and composer need the pair that fits
    for packages in (["torch", "torchvision"], [*dependencies(), *TESTS_NEED, "pytest-timeout", *LIBRARIES]):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def play(python: Path) -> dict[str, object]:
    """Run the cells; return what is stored."""
    command = [python, "-m", "pytest", "tests/test_features.py", "-k", "test_cell and not elsewhere", "-v", "-n", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "text": True}
    # warnings of these libraries among themselves are not ours
    done = subprocess.run([*command, "-W", "ignore", "--color=no"], stdout=subprocess.PIPE, check=False, **options)
    outcomes = dict(re.findall(r"::test_cell\[(\S+)\] (\w+)", done.stdout))
    if done.returncode or {*outcomes.values()} != {"PASSED"}:
        raise SystemExit(done.stdout)
    versions = subprocess.run([python, "-c", VERSIONS], stdout=subprocess.PIPE, check=True, **options).stdout
    return {"date": str(datetime.date.today()), "versions": json.loads(versions), "passed": sorted(outcomes)}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        stored = play(Path(sys.argv[1]) if len(sys.argv) > 1 else made(folder))
    (ROOT / "docs" / "features.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print("docs/features.json")
