"""Comparisons on Ray: rows that equal runs by hand, and a killed worker, driver and node.

Convention: the tests of this file but the last share one cluster of this machine, joined by its address.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.comparison.test_compare import Regression, run
from tests.comparison.test_faults import (
    ROOT,
    check_that_a_killed_process_and_a_raising_module_cost_no_other_row,
    until,
    why_no_ray,
)
from tests.comparison.test_modules import CASES, all_by_hand, by_command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if reason := why_no_ray():
        pytest.skip(reason)
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # by default workers wait for every other process of the machine
        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place of the process's
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80_000_000})
        signal.signal(signal.SIGTERM, handler)
    yield str(cluster.address)
    cluster.shutdown()


# 2026-11: true of Lightning's demo, which has no validation_step
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_each_row_is_a_run_by_hand(name: str, address: str, tmp_path: Path) -> None:
    # one training at a time, of two CPUs: one process has to import torch
    found = by_command(CASES[name], tmp_path, "--engine", "ray", "--address", address, "--cpus", "2")
    np.testing.assert_array_equal(found, all_by_hand(CASES[name]))


def test_a_process_that_is_killed_and_a_module_that_raises_for_one_lr_cost_no_other_row(
    address: str, tmp_path: Path
) -> None:
    check_that_a_killed_process_and_a_raising_module_cost_no_other_row(tmp_path, engine="ray", address=address)


# This shell is one node; the other is a process with a network of its own, joined to it by a virtual cable. The shell
# is the first process of its namespace: when it ends, so does everything that it has started.
NODES = """
set -eu
ip link set lo up
unshare --net sleep 600 & other=$!
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
until ip link add name here type veth peer name there netns $other 2>/dev/null; do sleep 0.05; done
ip addr add 10.78.0.1/24 dev here
ip link set here up
nsenter --target $other --net sh -c 'ip link set lo up; ip addr add 10.78.0.2/24 dev there; ip link set there up'
common="--num-cpus 1 --disable-usage-stats --object-store-memory 80000000"
$RAY start --head --node-ip-address 10.78.0.1 --port 6399 --include-dashboard false $common
nsenter --target $other --net $RAY start --address 10.78.0.1:6399 --node-ip-address 10.78.0.2 $common
$PYTHON -c "$JOB" 10.78.0.1:6399 "$FOLDER" "$other"
"""
JOB = """
import os, signal, sys
from pathlib import Path
from tests.comparison.test_compare import run
from tests.comparison.test_ray import OnTwoNodes, of_namespace

address, folder, other = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
(folder / "network").write_text(os.readlink("/proc/self/ns/net"))

def lose(done, *_):
    if done == 1:
        for pid in of_namespace(other):
            os.kill(pid, signal.SIGKILL)

trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder)}
run(OnTwoNodes, trainer=trainer, seeds=2, folder=folder / "run", engine="ray", address=address, on_progress=lose)
"""


class OnTwoNodes(Regression):
    """On the node that is killed the training never ends; on the other it waits until that one has begun."""

    def on_train_start(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        if os.readlink("/proc/self/ns/net") != (folder / "network").read_text():
            (folder / "begun").touch()
            signal.pause()
        assert until((folder / "begun").exists, 200.0)


def of_namespace(pid: int) -> list[int]:
    """Return the processes in the network namespace of a process, without itself."""
    space, found = os.readlink(f"/proc/{pid}/ns/net"), []
    for place in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if os.readlink(place) == space and place.parts[2] != str(pid):
                found.append(int(place.parts[2]))
        except OSError:
            continue
    return found


def test_two_nodes_one_of_which_is_killed_in_the_middle(tmp_path: Path) -> None:
    if reason := why_no_ray():
        pytest.skip(reason)
    own = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    link = ["ip", "link", "add", "here", "type", "veth", "peer", "name", "there"]
    tools = all(map(shutil.which, ("unshare", "nsenter", "ip")))
    if not tools or subprocess.run([*own, *link], capture_output=True).returncode:
        pytest.skip("this system does not let a test make network namespaces (unshare --user --net --pid, ip link add)")
    shell = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "JOB": JOB,
        "RAY": f"{sys.executable} -m ray.scripts.scripts", "FOLDER": str(tmp_path), "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "disabled",  # the nodes have no token to ask each other for
        "RAY_worker_niceness": "0",
        "RAY_health_check_initial_delay_ms": "0", "RAY_health_check_period_ms": "1000",
    }  # fmt: skip
    done = subprocess.run([*own, "bash", "-c", NODES], capture_output=True, text=True, env=shell, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "begun").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()[1:]]
    assert len(lines) == 8
    trainer = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(tmp_path)}
    heard: list[tuple[int, int]] = []
    whole = run(
        OnTwoNodes, trainer=trainer, seeds=2, folder=tmp_path / "run", on_progress=lambda *at: heard.append(at[:2])
    )
    assert heard == [(8, 8)]
    assert whole.members.tobytes() == run(seeds=2).members.tobytes()
