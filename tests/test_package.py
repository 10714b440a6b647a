import subprocess
import sys
from importlib import metadata

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
    with pytest.raises(AttributeError, match="module 'lit_cosine' has no attribute 'cosine'"):
        lit_cosine.cosine  # noqa: B018


def test_the_command_is_installed():
    (entry,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "lit-cosine"]
    assert entry.value == "lit_cosine.cli:main"
