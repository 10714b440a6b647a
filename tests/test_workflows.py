"""What surrounds the package on a forge: workflows, hooks and citation agree with pyproject.toml and scripts/check."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_tests_run_on_every_python_with_the_lowest_and_the_newest_torch():
    jobs = workflow("ci")["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["python"] == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert matrix["torch"] == [re.search(r'"(torch)>=([\d.]+)",', PROJECT).expand(r"\1==\2"), "torch"]
    assert commands(jobs["tests"])[-1] == "pytest"


def test_the_workflows_call_what_a_contributor_calls():
    jobs = workflow("ci")["jobs"]
    assert commands(jobs["checks"])[-1] == "scripts/check"
    assert commands(jobs["everything"]) == [".ci/run"]
    build = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "sphinx-build -q -W --keep-going docs" in build
    assert "sphinx-build -W --keep-going docs" in commands(workflow("docs")["jobs"]["build"])[-1]


def test_a_release_is_published_without_a_stored_token():
    jobs = workflow("release")["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert any("pypa/gh-action-pypi-publish" in step.get("uses", "") for step in jobs["publish"]["steps"])
    assert "twine check --strict" in " ".join(commands(jobs["build"]))


def test_the_hooks_are_the_tools_of_scripts_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    check = (ROOT / "scripts" / "check").read_text(encoding="utf-8")
    assert {hook["entry"] for hook in hooks} == {"ruff format", "ruff check", "mypy", "lint-imports"}
    assert all(hook["entry"] in check for hook in hooks)


def test_the_citation_names_this_version_and_its_date():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (cited["version"], str(cited["date-released"])) == re.search(
        r"^## \[([\d.]+)\] - (\S+)$", changes, re.M
    ).groups()
    assert f'version = "{cited["version"]}"' in PROJECT
    for key, name in {"repository-code": "Source", "url": "Documentation"}.items():
        assert f'{name} = "{cited[key]}"' in PROJECT
