"""The package's own rules that no linter knows: private names of others, lengths, folders of tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "lit_cosine").rglob("*.py"))
DOCUMENTED = {"os._exit"}


def own_names(tree: ast.Module) -> set[str]:
    """The underscore names that a module gives to things of its own."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def foreign_private_names(text: str) -> Iterator[str]:
    """Every underscore name that the module reads or sets on something that is not its own."""
    tree = ast.parse(text)
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of = ast.unparse(node.value)
            if of not in ("self", "cls") and node.attr not in own and f"{of}.{node.attr}" not in DOCUMENTED:
                yield f"{of}.{node.attr}, line {node.lineno}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and str(name.value).startswith("_") and name.value[:2] != "__":
                yield f"{ast.unparse(node)}, line {node.lineno}"
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("lit_cosine") and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(part.startswith("_") and not part.startswith("__") for part in parts):
                yield f"from {node.module} import …, line {node.lineno}"


def test_the_look_for_private_names_finds_them():
    text = (
        "from torch.utils import _pytree\nx.y._hidden\nself._own = 1\nother._own\ngetattr(x, '_name')\nos._exit(1)\n"
        "import lit_cosine._checks\nx.__dict__\n"
    )
    found = [name.partition(",")[0] for name in foreign_private_names(text)]
    assert found == ["from torch.utils import …", "x.y._hidden", "getattr(x"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_are_in_compat_alone(module):
    if module.name != "_compat.py":
        assert [*foreign_private_names(module.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_longer_than_400_lines(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_folder_of_tests_is_a_package():
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
