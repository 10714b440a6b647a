"""Ctrl-C and SIGTERM at any point of a command: one sentence, status 130 or 143, no empty run folder."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lit_cosine.cli._shell import Stopped, stop_signals
from lit_cosine.cli.main import main

SMALL = ["--trainer.accelerator=cpu", "--data.n_samples=100", "--data.batch_size=40", "--trainer.max_epochs=2"]
SIGNALS = {"SIGTERM": (143, "SIGTERM"), "SIGINT": (130, "Ctrl-C")}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


class Sends(Callback):
    """Sends its own process a signal in one hook."""

    def __init__(self, hook: str, name: str):
        def send(*args, **kwargs):
            os.kill(os.getpid(), getattr(signal, name))

        setattr(self, hook, send)


class Destroyed(Callback):
    """Sends the signal from a destructor, in which Python ignores exceptions."""

    def on_test_start(self, trainer, pl_module):
        class Late:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(1000):  # the handler runs between two bytecodes
                    pass

        Late()


def test_what_fails_because_it_ignored_the_signal_is_not_reported():
    def broken_import():
        with suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AttributeError("of a module whose import was interrupted")

    with pytest.raises(Stopped) as stop, stop_signals():
        broken_import()
    assert stop.value.code == 143


def train_with(callback):
    Path("callbacks.yaml").write_text(f"trainer: {{callbacks: [{{{callback}}}]}}\n")
    return main(["train", "--config", "callbacks.yaml", *SMALL])


def last_line(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cosine")]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_sanity_check_start", "on_validation_batch_start"])
def test_before_the_first_batch_nothing_is_left(hook, name, capsys):
    status, shown = SIGNALS[name]
    assert train_with(f"class_path: {__name__}.Sends, init_args: {{hook: {hook}, name: {name}}}") == status
    assert last_line(capsys) == [f"lit-cosine train: stopped by {shown}"]
    assert [*Path("runs").iterdir()] == []


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_epoch_end", "on_train_end"])
def test_from_the_first_batch_on_the_run_can_be_continued(hook, name, capsys):
    status, shown = SIGNALS[name]
    assert train_with(f"class_path: {__name__}.Sends, init_args: {{hook: {hook}, name: {name}}}") == status
    (line,) = last_line(capsys)
    assert line == f"lit-cosine train: stopped by {shown}; continue with: lit-cosine train --resume runs/run_1"
    assert Path("runs/run_1/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("name", SIGNALS)
def test_during_the_test_the_command_stops(name, capsys):
    status, shown = SIGNALS[name]
    assert train_with(f"class_path: {__name__}.Sends, init_args: {{hook: on_test_start, name: {name}}}") == status
    assert last_line(capsys) == [f"lit-cosine train: stopped by {shown}"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_python_ignores_is_not_forgotten():
    assert train_with(f"class_path: {__name__}.Destroyed") == 143


IMPORTING = """
import os, signal, sys
from lit_cosine.cli.main import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))

sys.meta_path.insert(0, Finder())
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("module", ["torch", "lightning.pytorch.trainer"])
@pytest.mark.slow
def test_during_the_imports_there_is_no_traceback(module, name, command):
    status, shown = SIGNALS[name]
    code = [sys.executable, "-c", IMPORTING, module, name, command]
    done = subprocess.run(code, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"lit-cosine {command}: stopped by {shown}\n")
    assert not Path("runs").exists()


def test_signals_are_python_s_own_again_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main(["--help"]) == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
