"""``lit-cosine compare`` by processes that torchrun, SLURM or two shells start, and stopped in a terminal.

Convention: the trainings are those of one process in this test's own, and so are the files, byte by byte.
"""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_cosine.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "scripts" / "compare.py")
WRITTEN = ("members.csv", "table.csv", "results.json", "curves.csv", "figure.png")
SCHEDULES = "flat: Constant\ndown: Cosine\n"

# what a shell on each machine, or srun, does: one process for each environment, which all import together
SHELLS = """
import json, os, sys
import lit_cosine.compare_command
from lit_cosine.cli import main

processes = []
for environment, folder in json.loads(sys.argv[1]):
    if (pid := os.fork()) == 0:
        os.environ.update(environment)
        sys.stdout = open(folder + ".out", "w", buffering=1)
        sys.stderr = sys.stdout
        try:
            status = main([*sys.argv[2:], "--folder", folder])
        except SystemExit as left:
            status = left.code
        os._exit(status)
    processes.append(pid)
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes))
"""


def environment(**more: str) -> dict[str, str]:
    path = ":".join(map(str, (ROOT, ROOT / "tests")))
    return {"PYTHONPATH": path, "PATH": os.environ["PATH"], "HOME": "/", "OMP_NUM_THREADS": "1", **more}


def job(folder: Path, seeds: int = 4, epochs: int = 1, lrs: tuple[str, ...] = ("0.01", "0.1")) -> list[str]:
    """A command line without its folder, of as many blocks as seeds."""
    file = folder / "schedules.yaml"
    file.write_text(SCHEDULES)
    options = ["--data", "wine", "--network", "nets:Dropping", "--schedules", str(file), "--lrs", *lrs]
    return ["compare", *options, "--seeds", str(seeds), "--max-epochs", str(epochs)]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def blocks(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "trainings" / "blocks").iterdir())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("alone")
    assert main([*job(folder), "--devices", "1", "--folder", str(folder / "run")]) == 0
    return folder / "run"


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def in_shells(command: list[str], processes: list[tuple[dict[str, str], Path]]) -> tuple[list[int], list[str]]:
    """Start a process for each environment and folder; return exit statuses and what each has printed."""
    given = json.dumps([(environment, str(folder)) for environment, folder in processes])
    done = subprocess.run(
        [sys.executable, "-c", SHELLS, given, *command], capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    outputs = [Path(f"{folder}.out").read_text() for _, folder in processes]
    return [int(status) for status in done.stdout.split()], outputs


def slurm(rank: int, port: str, **more: str) -> dict[str, str]:
    """What srun --nodes 2 --ntasks-per-node 1 sets."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
        "MASTER_PORT": port,
        **more,
    }


def by_hand(rank: int, port: str) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(rank)}


def test_torchrun_on_two_nodes(alone: Path, tmp_path: Path) -> None:
    port, command = free_port(), job(tmp_path)[1:]
    nodes = []
    for rank in (1, 0):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        address = ["--master-addr", "127.0.0.1", "--master-port", port, "--node-rank", str(rank)]
        folder = tmp_path / f"node{rank}"
        with open(f"{folder}.out", "w") as out, open(f"{folder}.err", "w") as err:
            whole = [*torchrun, *address, SCRIPT, *command, "--folder", str(folder)]
            nodes.append(subprocess.Popen(whole, stdout=out, stderr=err, env=environment()))
    try:
        statuses = [node.wait(timeout=60) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    printed = {path.name: path.read_text() for path in tmp_path.glob("node?.*")}
    assert statuses == [0, 0], printed
    assert files(tmp_path / "node0") == files(alone)
    assert "test accuracy" in printed["node0.out"]
    assert "16/16 trainings" in printed["node0.err"]
    # the second has a disk of its own: what it trained is there too, and nothing else
    assert printed["node1.out"] == ""
    assert [path.name for path in (tmp_path / "node1").iterdir()] == ["trainings"]
    assert blocks(tmp_path / "node1") == ["00001.npy", "00003.npy"]
    assert blocks(tmp_path / "node0") == blocks(alone)


@pytest.mark.parametrize("kind", ["slurm", "by hand"])
def test_two_nodes_that_share_a_disk(kind: str, alone: Path, tmp_path: Path) -> None:
    port = free_port()
    start, more = (slurm, []) if kind == "slurm" else (by_hand, ["--num-nodes", "2", "--devices", "1"])
    (tmp_path / "a").symlink_to(tmp_path / "shared")  # two names, so that each has a file for what it prints
    (tmp_path / "b").symlink_to(tmp_path / "shared")
    (tmp_path / "shared").mkdir()
    processes = [(start(rank, port), tmp_path / name) for rank, name in ((1, "b"), (0, "a"))]
    statuses, (second, first) = in_shells([*job(tmp_path), *more], processes)
    assert statuses == [0, 0], (first, second)
    assert second == ""
    assert "16/16 trainings" in first
    assert files(tmp_path / "shared") == files(alone)
    assert blocks(tmp_path / "shared") == blocks(alone)


def test_nodes_that_share_no_disk_go_on_from_what_each_has(alone: Path, tmp_path: Path) -> None:
    port, folders = free_port(), [tmp_path / "zero", tmp_path / "one"]
    processes = [(slurm(rank, port), folder) for rank, folder in enumerate(folders)]
    assert in_shells(job(tmp_path), processes)[0] == [0, 0]
    for name in ("00000.npy", "00001.npy", "00003.npy"):
        (folders[0] / "trainings" / "blocks" / name).unlink()
    made = {path: path.stat().st_mtime_ns for path in (folders[1] / "trainings" / "blocks").iterdir()}
    port = free_port()
    processes = [(slurm(rank, port), folder) for rank, folder in enumerate(folders)]
    statuses, _ = in_shells(job(tmp_path), processes)
    assert statuses == [0, 0]
    assert files(folders[0]) == files(alone)
    # blocks 1 and 3 came from the second's disk, block 0 was trained again
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert blocks(folders[0]) == blocks(alone)


def test_one_node_with_another_comparison_stops_all(tmp_path: Path) -> None:
    port = free_port()
    other = tmp_path / "one" / "trainings"
    other.mkdir(parents=True)
    (other / "comparison.json").write_text("{}")
    processes = [(slurm(rank, port), tmp_path / name) for rank, name in enumerate(("zero", "one"))]
    statuses, (first, second) = in_shells(job(tmp_path), processes)
    assert statuses == [2, 2]
    assert "folder must hold this comparison or nothing" in first
    assert f"{other} holds another" in first
    assert second == ""


def test_slurm_without_tasks_per_node_and_more_processes_than_blocks_are_refused(tmp_path: Path) -> None:
    wrong = slurm(0, free_port())
    del wrong["SLURM_NTASKS_PER_NODE"]
    many = slurm(0, free_port(), SLURM_NTASKS="8", SLURM_NTASKS_PER_NODE="4")
    statuses, outputs = in_shells(job(tmp_path), [(wrong, tmp_path / "wrong"), (many, tmp_path / "many")])
    assert statuses == [2, 2]
    assert "srun must be given --ntasks-per-node, a divisor of the 2 tasks, got 0" in outputs[0]
    assert "devices * num_nodes must be at most the 4 blocks of this comparison, got 4 * 2" in outputs[1]
    assert not (tmp_path / "many").exists()


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
    """A command line of 40 blocks, and what it writes when nobody stops it."""
    folder = tmp_path_factory.mktemp("long")
    command = job(folder, seeds=40, epochs=10, lrs=("0.01",))
    assert main([*command, "--devices", "1", "--folder", str(folder / "run")]) == 0
    return command, folder / "run"


@pytest.mark.parametrize("torchrun", [False, True], ids=["forked", "torchrun"])
def test_ctrl_c_in_a_terminal_keeps_finished_blocks_and_leaves_nobody(
    torchrun: bool, long: tuple[list[str], Path], tmp_path: Path
) -> None:
    (command, whole), folder = long, tmp_path / "stopped"
    run = [SCRIPT, *command[1:], "--folder", str(folder)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if torchrun else []
    pid, terminal = in_terminal([*launch, *run, *([] if torchrun else ["--devices", "2"])])
    shown = read_until(terminal, r" [1-9]\d*/80 trainings")
    os.write(terminal, b"\x03")
    shown += read_until(terminal, r"never shown")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert shown.count("stopped: finished blocks are kept, and the same command goes on from there") == 1
    if not torchrun:  # torchrun itself says what it thinks of Ctrl-C
        assert os.waitstatus_to_exitcode(status) == 130, shown
        assert "Traceback" not in shown
    assert left_of(folder) == []
    assert 0 < len(blocks(folder)) < 40
    assert not (folder / "members.csv").exists()

    assert main([*command, "--devices", "1", "--folder", str(folder)]) == 0
    assert files(folder) == files(whole)
    assert blocks(folder) == blocks(whole)


def test_a_parent_that_is_stopped_alone_takes_its_processes_along(long: tuple[list[str], Path], tmp_path: Path) -> None:
    (command, _), folder = long, tmp_path / "stopped"
    running = subprocess.Popen(
        [sys.executable, SCRIPT, *command[1:], "--devices", "2", "--folder", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    while not (folder / "trainings" / "blocks").exists():
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in error
    assert left_of(folder) == []
    assert len(blocks(folder)) < 40
