"""``lit-cosine compare`` stopped, killed and out of space: what is finished is kept, and no process is left.

Convention: the same command goes on afterwards, and writes what an undisturbed one writes, byte by byte.
"""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_cosine.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "compare.py")
WRITTEN = ("members.csv", "table.csv", "results.json", "curves.csv", "figure.png")


def environment(**more: str) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": "/", "OMP_NUM_THREADS": "1", **more}


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def finished(folder: Path) -> int:
    """Return the finished blocks in the journal."""
    journal = folder / "trainings" / "journal.jsonl"
    return max(0, len(journal.read_bytes().splitlines()) - 1) if journal.exists() else 0


def in_terminal(command: list[str]) -> tuple[int, int]:
    """Start a command in a terminal of its own; return its process id and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, *command], environment(TERM="xterm", COLUMNS="150"))
    return pid, terminal


def read_until(terminal: int, pattern: str, seconds: float = 120.0) -> str:
    """Return what the terminal shows up to the first match, or until it is closed."""
    text, end = "", time.monotonic() + seconds
    while time.monotonic() < end and not re.search(pattern, text):
        try:
            text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(terminal, 65536).decode(errors="replace"))
        except OSError:  # closed
            break
    return text


def left_of(folder: Path) -> list[str]:
    """Return the processes that have the folder on their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in place.read_bytes():
                found.append(place.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command line of 40 blocks, as dropout makes one of each seed, and what it writes when nobody stops it."""
    folder = tmp_path_factory.mktemp("long")
    file = folder / "schedules.yaml"
    file.write_text("flat: Constant\ndown: Cosine\n")
    options = ["--data", "wine", "--network", "tests.helpers.nets:Dropping", "--schedules", str(file)]
    command = ["compare", *options, "--lrs", "0.01", "0.02", "0.03", "0.04", "--seeds", "40", "--max_epochs", "10"]
    assert main([*command, "--engine", "serial", "--folder", str(folder / "run")]) == 0
    return command, folder / "run"


def test_ctrl_c_in_a_terminal_keeps_finished_blocks_and_leaves_nobody(
    long: tuple[list[str], Path], tmp_path: Path
) -> None:
    (command, whole), folder = long, tmp_path / "stopped"
    pid, terminal = in_terminal([SCRIPT, *command[1:], "--folder", str(folder), "--workers", "2"])
    shown = read_until(terminal, r" [1-9]\d*/320 trainings")
    os.write(terminal, b"\x03")
    shown += read_until(terminal, r"never shown")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    said = "stopped by Ctrl-C; finished trainings are kept, and the same command continues from there"
    assert shown.count(said) == 1, shown
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert "Traceback" not in shown
    assert left_of(folder) == []
    assert 0 < finished(folder) < 40
    assert not (folder / "members.csv").exists()

    assert main([*command, "--engine", "serial", "--folder", str(folder)]) == 0
    assert files(folder) == files(whole)


def started(command: list[str], folder: Path) -> "subprocess.Popen[str]":
    """Start the command with two workers and wait for its first blocks."""
    running = subprocess.Popen(
        [sys.executable, SCRIPT, *command[1:], "--workers", "2", "--folder", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while not finished(folder) and running.poll() is None:
        time.sleep(0.02)
    return running


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda by: by.name)
def test_a_parent_that_is_stopped_alone_takes_its_processes_along(
    by: signal.Signals, long: tuple[list[str], Path], tmp_path: Path
) -> None:
    (command, whole), folder = long, tmp_path / "stopped"
    running = started(command, folder)
    running.send_signal(by)
    _, error = running.communicate(timeout=60)
    assert running.returncode == (-by if by is signal.SIGKILL else 128 + by)
    assert "Traceback" not in error
    end = time.monotonic() + 10.0
    while left_of(folder) and time.monotonic() < end:
        time.sleep(0.1)
    assert left_of(folder) == []
    assert 0 < finished(folder) < 40
    assert main([*command, "--engine", "serial", "--folder", str(folder)]) == 0
    assert files(folder) == files(whole)


def test_a_worker_that_is_killed_is_replaced(long: tuple[list[str], Path], tmp_path: Path) -> None:
    (command, whole), folder = long, tmp_path / "killed"
    running = started(command, folder)
    workers = [int(pid) for pid in left_of(folder) if int(pid) != running.pid]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    _, error = running.communicate(timeout=120)
    assert (len(workers), running.returncode) == (2, 0), error
    assert files(folder) == files(whole)
    assert left_of(folder) == []


def test_a_full_disk_keeps_what_was_written(long: tuple[list[str], Path], tmp_path: Path) -> None:
    """The command may write files of at most 100 kB: the journal is longer."""
    (command, whole), folder = long, tmp_path / "full"
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000)); "
    limited += "from lit_cosine.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limited, *command, "--workers", "2", "--folder", str(folder)],
        *(), capture_output=True, text=True, env=environment(), timeout=120,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("lit-cosine compare: error: cannot write to ")
    assert last.endswith("File too large; finished trainings are kept, and the same command continues from there")
    assert "Traceback" not in done.stderr
    assert 0 < finished(folder) < 40
    assert main([*command, "--engine", "serial", "--folder", str(folder)]) == 0
    assert files(folder) == files(whole)
