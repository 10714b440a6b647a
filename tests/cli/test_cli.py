import re
import subprocess
import sys

import pytest

from lit_cosine.cli.main import main


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


HELP = """
import sys
from lit_cosine.cli.main import main
status = main(["--help"])
print("heavy:", sorted({"torch", "lightning", "numpy"} & {*sys.modules}))
if "load" in sys.argv:
    main(["test", "--ckpt_path", "nowhere"])
    print("then:", sorted({"torch", "lightning", "numpy"} & {*sys.modules}))
sys.exit(status)
"""


def test_help_is_light():
    light = run(HELP)
    assert light.returncode == 0
    assert "heavy: []" in light.stdout


@pytest.mark.slow
def test_the_probe_can_see_what_is_heavy():
    assert "then: ['lightning', 'numpy', 'torch']" in run(HELP, "load").stdout


def test_help_names_the_subcommands(capsys):
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    for name in ("train", "test", "predict"):
        assert f"  {name} " in bare


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"lit-cosine \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("arguments", [["dance"], ["--dance"]])
def test_an_unknown_subcommand_is_refused(arguments, capsys):
    assert main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    expected = f"lit-cosine: error: unknown subcommand {arguments[0]!r}; known are train, test, predict"
    assert written.err.startswith(expected)
    assert written.err.count("\n") == 1


USAGE = """
import sys
from lit_cosine.cli.main import main
status = main(sys.argv[1:])
print("heavy:", sorted({"torch", "lightning", "numpy"} & {*sys.modules}))
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--modle.lr", "0.1"],
            "train: error: unknown option --modle.lr; did you mean --model.lr?",
        ),
        (["train", "--ckpt_path=x"], "train: error: unknown option --ckpt_path; "),
        (["test", "--output", "x"], "test: error: unknown option --output; "),
        (["test"], "test: error: ckpt_path must name a checkpoint: lit-cosine test --ckpt_path FILE"),
        (["predict", "--output", "x"], "predict: error: ckpt_path must name a checkpoint: lit-cosine predict"),
        (
            ["train", "--model.schedule", "Cosin"],
            "train: error: model.schedule: unknown schedule 'Cosin'; did you mean",
        ),
        (
            ["train", "--model.schedule=one_cycle"],
            "train: error: model.schedule must be a class, got the function one_",
        ),
    ],
)
def test_a_slip_in_an_option_is_answered_without_torch(arguments, message):
    done = run(USAGE, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lit-cosine {message}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == "heavy: []\n"


COLLECTED = """
import gc, sys
from lit_cosine.cli.main import main
assert gc.isenabled() and gc.get_freeze_count() == 0
main(["preview", "Cosine"])
assert gc.isenabled() and gc.get_freeze_count() > 0
frozen = gc.get_freeze_count()
main(["preview", "Cosine"])
assert gc.get_freeze_count() <= frozen  # some have died
gc.disable()
main(["compare", "--bogus"])
assert not gc.isenabled() and gc.get_freeze_count() <= frozen
"""


def test_importing_leaves_the_collector_as_it_was():
    done = run(COLLECTED)
    assert done.returncode == 0, done.stderr
