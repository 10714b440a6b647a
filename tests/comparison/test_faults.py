"""What goes wrong in a comparison of a user's module: finished rows are kept, the same call does the rest.

Convention: a comparison that is to be stopped is a session of its own, whose processes are found wherever they are.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_cosine import Comparison
from tests.comparison.test_compare import Raising, Regression, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

ROOT = Path(__file__).parents[2]


class Faulty(Raising):
    """The first process that trains at an LR of 0.1 is killed; a training at 0.2 raises."""

    def on_fit_start(self) -> None:
        if 0.05 < self.optimizers().param_groups[0]["lr"] < 0.15:
            with suppress(FileExistsError):
                Path(self.trainer.default_root_dir, "died").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)


class Freezing(Regression):
    def on_train_start(self) -> None:
        if self.optimizers().param_groups[0]["lr"] > 0.15:
            os.kill(os.getpid(), signal.SIGSTOP)


class Waiting(Regression):
    """Trainings of all seeds but the first wait for a file."""

    def on_train_start(self) -> None:
        if torch.initial_seed() > 0:
            assert until(Path(self.trainer.default_root_dir, "go").exists, 600.0)


@cache
def why_no_ray() -> str:
    """Return why Ray cannot be tested here: it is missing, or the system does not let it start; else nothing."""
    if find_spec("ray") is None:
        return "Ray is not installed"
    start = [sys.executable, "-c", "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False)"]
    try:
        started = subprocess.run(start, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "Ray does not start on this system within 120 s"
    return f"Ray does not start on this system: {started.stderr[-300:]}" if started.returncode else ""


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true; return whether it is."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


def check_that_a_killed_process_and_a_raising_module_cost_no_other_row(folder: Path, **engine: Any) -> None:
    trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder)}
    found = run(Faulty, lrs=[0.02, 0.1, 0.2], trainer=trainer, **engine)
    assert (folder / "died").exists()
    witness = run(Raising, lrs=[0.02, 0.1, 0.2])
    assert len(witness.problems) == 2
    assert found.problems == witness.problems
    assert found.members.tobytes() == witness.members.tobytes()


def test_a_process_that_is_killed_and_a_module_that_raises_for_one_lr_cost_no_other_row(tmp_path: Path) -> None:
    check_that_a_killed_process_and_a_raising_module_cost_no_other_row(tmp_path, engine="local", workers=2)


def test_a_frozen_process_is_ended_by_the_time_limit_and_its_training_tried_again_where_asked(tmp_path: Path) -> None:
    options: Any = {"lrs": [0.02, 0.2], "engine": "local", "workers": 2, "folder": tmp_path}
    found = run(Freezing, timeout=40.0, **options)
    assert [problem.partition(" failed: ")[2] for problem in found.problems] == [
        "took longer than the timeout of 40 s"
    ] * 2
    assert found.members["val/loss"][:, :, 0].tobytes() == run(lrs=[0.02]).members["val/loss"][:, :, 0].tobytes()
    heard: list[tuple[int, int]] = []
    run(Freezing, timeout=40.0, **options, on_progress=lambda *at: heard.append(at[:2]))
    assert heard == [(4, 4)]


COMMAND = """
import sys
from tests.comparison.test_faults import waiting
waiting(sys.argv[2], engine=sys.argv[1], workers=2)
"""


def waiting(folder: str | Path, **options: Any) -> Comparison:
    """Compare on eight trainings, four of which wait."""
    trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder)}
    return run(Waiting, seeds=2, trainer=trainer, folder=Path(folder, "run"), **options)


def of_session(leader: int) -> dict[int, str]:
    """Return the living processes of a session, with the first word of their command lines."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session, *_ = (place / "stat").read_text().rpartition(") ")[2].split()
            if int(session) == leader and state != "Z":
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ").split(" ")[0]
        except (OSError, ValueError):  # ended meanwhile
            continue
    return found


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_comparison_that_is_stopped_leaves_no_process_and_goes_on(
    by: signal.Signals, engine: str, tmp_path: Path
) -> None:
    if engine == "ray" and (reason := why_no_ray()):
        pytest.skip(reason)
    journal = tmp_path / "run" / "journal.jsonl"
    running = subprocess.Popen(
        [sys.executable, "-c", COMMAND, engine, str(tmp_path)], start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert until(lambda: journal.exists() and len(journal.read_text().splitlines()) == 1 + 4, 240.0)
    running.send_signal(by)
    assert running.wait(180) in ((1, -by) if by is signal.SIGINT else (-by,))  # at Ctrl-C Python may end with 1
    # 2026-11, ray 2.60: these two report for a minute to the killed cluster that it was killed, and end then
    late = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} if (engine, by) == ("ray", signal.SIGKILL) else set()
    gone = until(lambda: {*of_session(running.pid).values()} <= late, 60.0)
    left = of_session(running.pid)
    for pid in left:
        with suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, signal.SIGKILL)
    assert gone, left
    (tmp_path / "go").touch()
    heard: list[tuple[int, int]] = []
    found = waiting(tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert heard[0] == (4, 8)
    assert found.problems == ()
