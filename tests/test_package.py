import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

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
    with pytest.raises(AttributeError, match="No lit_cosine attribute cosine"):
        lit_cosine.cosine  # noqa: B018


def test_the_command_is_installed():
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "lit-cosine"]
    assert entry.value == "lit_cosine.cli.main:main"


OPTIONAL = {"mnist1d", "pandas", "ray"}
"""Imported in functions alone; each error says what to install."""
BROUGHT = {"lightning_utilities", "typing_extensions"}
"""Come with lightning and torch."""
NAMES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "lazy_loader": "lazy-loader"}


def imported(nodes):
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        yield from (name.partition(".")[0] for name in names)


def test_the_package_requires_what_it_imports_and_nothing_else():
    files = [*Path(lit_cosine.__file__).parent.rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    third = {name for tree in trees for name in imported(ast.walk(tree))} - sys.stdlib_module_names - {"lit_cosine"}
    at_once = {name for tree in trees for name in imported(tree.body)}
    lines = (Path(lit_cosine.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    block = lines[lines.index("dependencies = [") + 1 :]
    required = {re.match(r' *"([\w-]+)', line)[1] for line in block[: block.index("]")] if '"' in line.split("#")[0]}
    assert {NAMES.get(name, name) for name in third - OPTIONAL - BROUGHT} == required
    assert at_once & OPTIONAL == set()


def test_a_table_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_frame needs pandas: pip install pandas$"):
        lit_cosine.Comparison.to_frame(None)
