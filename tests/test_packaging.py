"""What people install: sdist and wheel, built twice, looked into, installed by themselves, and typed."""

import email
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]
pytest.importorskip("hatchling", reason="needs the extra packaging: pip install -c constraints.txt -e '.[packaging]'")


def run(*command, **options):
    # nothing of this checkout, of a user's site-packages or of another build's epoch gets in
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SOURCE_DATE_EPOCH")}
    env = kept | {"PYTHONNOUSERSITE": "1"} | options.pop("env", {})
    done = subprocess.run(
        [*map(str, command)], env=env, capture_output=True, text=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source, folder, **options):
    """Return the sdist, and the wheel that is built from what is in it: the road that an index's users take."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=source, **options)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=unpacked, **options)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files that git knows, as a clone has them."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    folder = tmp_path_factory.mktemp("sources")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    return build(sources, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def metadata(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_builds_in_other_places_and_times_are_the_same_bytes(built, sources, tmp_path):
    elsewhere = tmp_path / "another folder" / "of another name"
    shutil.copytree(sources, elsewhere)
    later = time.time() + 86_400 * 400
    for path in [elsewhere, *elsewhere.rglob("*")]:
        os.utime(path, (later, later))
        path.chmod(0o700 if path.is_dir() else 0o600)
    (elsewhere / "lit_cosine" / "__pycache__").mkdir()
    (elsewhere / "lit_cosine" / "__pycache__" / "cosine.cpython-311.pyc").write_bytes(b"left behind")
    (tmp_path / "dist").mkdir()
    env = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    again = build(elsewhere, tmp_path / "dist", env=env, umask=0o077)
    assert [path.name for path in again] == [path.name for path in built]
    assert [sha256(path) for path in again] == [sha256(path) for path in built]


def test_a_build_takes_the_time_it_is_given(built, sources, tmp_path):
    """The probe of the test above can fail: another time is other bytes, and what the archives then say."""
    sdist, wheel = build(sources, tmp_path, env={"SOURCE_DATE_EPOCH": "1700000000"})
    assert {sha256(sdist), sha256(wheel)}.isdisjoint({sha256(path) for path in built})
    with tarfile.open(sdist) as archive:
        assert {member.mtime for member in archive} == {1_700_000_000}


def package():
    files = (path for path in (ROOT / "lit_cosine").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    info = "lit_cosine-2.0.0.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt", "RECORD", "licenses/LICENSE")}
    assert {*names} == package() | about
    assert "lit_cosine/py.typed" in names


def test_the_sdist_holds_what_a_build_and_a_reader_need(built):
    with tarfile.open(built[0]) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    # constraints.txt pins the builder: with it anyone gets this wheel again; hatchling adds .gitignore and PKG-INFO
    others = {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "pyproject.toml", ".gitignore", "PKG-INFO"}
    assert names == package() | others


def test_the_metadata(metadata):
    assert metadata["Name"] == "lit-cosine"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    versions = [name.rpartition(" ")[2] for name in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", name)]
    assert versions == PYTHONS
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert metadata["Version"] == released[0]


def test_every_extra_says_what_it_gives(metadata):
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    for extra in metadata.get_all("Provides-Extra"):
        (place,) = [index for index, line in enumerate(lines) if re.match(rf"{extra} = \[", line)]
        assert lines[place - 1].startswith("# "), extra


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(metadata, python):
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                assert pins.setdefault(canonicalize_name(pin.name), pin) is pin, line
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    extras = ["", *metadata.get_all("Provides-Extra")]
    environments = [{"python_version": python, "extra": extra} for extra in extras]
    required = [each for each in required if each.name != "lit-cosine"]
    required = [each for each in required if each.marker is None or any(map(each.marker.evaluate, environments))]
    assert len(required) > 15
    for each in required:
        (version,) = pins[canonicalize_name(each.name)].specifier
        assert each.specifier.contains(version.version), each


def test_a_package_index_would_take_it(built):
    pytest.importorskip("twine", reason="needs the extra packaging")
    shown = run(sys.executable, "-m", "twine", "check", "--strict", *built, env={"NO_COLOR": "1"})
    assert shown.count("PASSED") == 2


def test_a_package_index_shows_the_readme(metadata):
    """What PyPI's own renderer makes of the long description: every link and picture is absolute and is kept."""
    pytest.importorskip("comrak", reason="needs the extra packaging")
    markdown = pytest.importorskip("readme_renderer.markdown")
    text = metadata.get_payload()
    page = markdown.render(text)
    assert page
    shown = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(shown) >= len(re.findall(r"\]\(http", text)) > 20
    assert [link for link in shown if not link.startswith(("https://", "#user-content-"))] == []  # headings
    assert page.count("<table") == text.count("\n|---") == 1
    assert page.count("<pre") == text.count("\n```") // 2
    assert f'src="{metadata_urls(metadata)["Source"]}/raw/main/docs/hero.png"' in page


def metadata_urls(metadata):
    return dict(url.split(", ") for url in metadata.get_all("Project-URL"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Python of an environment that has the wheel, and for its dependencies looks into this one's site-packages."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    site = Path(run(folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[1])
    # a path in a .pth is searched last, and its own .pth files, such as an editable install's, are not read
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_imports_and_trains(installed, tmp_path):
    where = run(installed, "-c", "import lit_cosine; print(lit_cosine.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parents[1])
    command = installed.with_name("lit-cosine")
    assert run(command, "--version", cwd=tmp_path) == "lit-cosine 2.0.0\n"
    assert "subcommands:" in run(command, "--help", cwd=tmp_path)
    shown = run(command, "train", "--trainer.max_epochs", "2", "--data.n_samples", "100", cwd=tmp_path)
    assert "LR: 0.00000000" in shown
    assert (tmp_path / "runs" / "run_1" / "checkpoints" / "best.ckpt").is_file()


USER = Path(__file__).parent / "helpers" / "typed_user.py"


def test_the_typed_user_uses_every_public_name():
    import lit_cosine

    words = {*re.findall(r"\w+", USER.read_text(encoding="utf-8").partition(")\n\n")[2])}
    assert {*lit_cosine.__all__} - words == set()


@pytest.mark.slow
def test_mypy_sees_the_types_of_the_wheel(installed, tmp_path):
    shutil.copy(USER, tmp_path)
    strict = ("--strict", "--config-file", os.devnull, "--cache-dir", tmp_path / "cache")
    shown = run(sys.executable, "-m", "mypy", *strict, "--python-executable", installed, USER.name, cwd=tmp_path)
    assert "Success: no issues found in 1 source file" in shown


@pytest.mark.slow
def test_pyright_sees_the_types_of_the_wheel(installed, tmp_path):
    pytest.importorskip("basedpyright", reason="needs the extra packaging")
    shutil.copy(USER, tmp_path)
    rules = {
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "reportMissingTypeStubs": "error",
        "reportUnknownMemberType": "none",
        "reportUnusedExpression": "none",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(rules))
    shown = run(sys.executable, "-m", "basedpyright", "--pythonpath", installed, USER.name, cwd=tmp_path)
    assert "0 errors" in shown
