"""Streams and environments as shells have them: closed pipes, ASCII, deleted folders, odd variables."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "lit_cosine"]
SMALL = ["--trainer.accelerator=cpu", "--data.n_samples=100", "--data.batch_size=40", "--trainer.max_epochs=3"]


def run(*arguments, cwd, shell=None, **env):
    command = shell or [*COMMAND, *arguments]
    return subprocess.run(
        command, shell=bool(shell), cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **env}
    )


@pytest.mark.slow
def test_a_training_whose_reader_has_gone_trains_on(tmp_path):
    line = " ".join([*COMMAND, "train", *SMALL])
    # with this variable the first line is an epoch's, and not the number of threads
    done = run(cwd=tmp_path, shell=f"bash -c 'set -o pipefail; {line} 2>/dev/null | head -1'", OMP_NUM_THREADS="1")
    assert done.returncode == 0
    assert done.stdout.startswith("Epoch 1/3, ")
    assert (tmp_path / "runs/run_1/training_curves.png").is_file()


@pytest.mark.parametrize("arguments", ["--help", "preview Cosine", "preview --help", "compare --help"])
def test_output_into_a_closed_pipe_ends_quietly(arguments, tmp_path):
    done = run(cwd=tmp_path, shell=f"bash -c 'set -o pipefail; {' '.join(COMMAND)} {arguments} | true'")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", ["--version", "preview Cosine", "preview --help", "train --help"])
def test_output_onto_a_full_disk_is_one_sentence(arguments, tmp_path):
    done = run(cwd=tmp_path, shell=f"{' '.join(COMMAND)} {arguments} > /dev/full")
    sentence = "lit-cosine: error: the output could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_closed_streams_are_no_error(tmp_path):
    done = run(cwd=tmp_path, shell=f"{' '.join(COMMAND)} preview Cosine >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_a_terminal_of_ascii_gets_ascii(env, tmp_path):
    preview = run("preview", "--help", cwd=tmp_path, **env)
    assert (preview.returncode, preview.stderr) == (0, "")
    assert preview.stdout.isascii()


@pytest.mark.slow
def test_help_and_comparison_in_ascii(tmp_path):
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    assert run("train", "--help", cwd=tmp_path, **ascii_only).returncode == 0
    small = ["--seeds=2", "--lrs", "0.01", "--max-epochs=1", "--folder=c", "--engine=serial"]
    done = run("compare", *small, cwd=tmp_path, **ascii_only)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_working_directory_that_was_deleted_is_one_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    line = " ".join([*COMMAND, "train"])
    done = run(cwd=tmp_path / "gone", shell=f"rmdir ../gone && {line}", PYTHONSAFEPATH="1")
    sentence = "lit-cosine train: error: the working directory no longer exists: change to another one\n"
    assert (done.returncode, done.stderr) == (2, sentence)


@pytest.mark.slow
def test_odd_variables_have_no_effect(tmp_path):
    odd = {"MPLBACKEND": "bogus", "PYTHONWARNINGS": "error", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40"}
    done = run("train", *SMALL, cwd=tmp_path, **odd)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
