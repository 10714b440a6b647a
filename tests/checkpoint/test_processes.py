"""Two processes: on one host, and on two that are network namespaces of this test's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

REPORTING = """
import json, os, signal, sys, warnings
from pathlib import Path
from lightning.pytorch import Callback
from tests.helpers.resumable import Trace, build, weights
from lit_cosine import ExactResume

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
written = []

def note(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax+":
        written.append(str(arguments[0]))
    if event in ("os.link", "os.rename"):
        written.append(str(arguments[1]))

class Report(Callback):
    def __init__(self, name, trace):
        self.name, self.trace = name, trace

    def on_train_start(self, trainer, pl_module):
        sys.addaudithook(note)
        written.clear()  # what the process that this one was forked from has written

    def on_train_end(self, trainer, pl_module):
        report = {
            "rows": self.trace.rows,
            "weights": weights(pl_module),
            "values": [value for p in pl_module.parameters() for value in p.flatten().tolist()],
            "val_loss": float(trainer.callback_metrics["val/loss"]),
            "wrote": sum(path.startswith(str(folder)) and ".ckpt" in path for path in written),
        }
        (folder / f"{self.name}-{trainer.global_rank}.json").write_text(json.dumps(report))

def run(name, road, path=None, callbacks=(), **arguments):
    trace = Trace()
    if arguments.get("strategy") == "ddp_fork":
        os.environ.pop("MASTER_PORT", None)  # Lightning would listen once more on a port that it has hardly left
    callbacks = [Report(name, trace), *callbacks]
    trainer, model, data = build(folder / name, road, trace=trace, callbacks=callbacks, **arguments)
    trainer.fit(model, data, ckpt_path=path)
"""

ONE_HOST = (
    REPORTING
    + """
two = {"devices": 2, "strategy": "ddp_fork"}
run("single", "noiseless")
run("double", "noiseless", **two)
run("whole", "callback", accumulate=2, **two)
here = folder / "whole" / "checkpoints"
for step in (1, 3, 5):
    (path,) = here.glob(f"epoch=*-step={step}.ckpt")
    run(f"from-{step}", "callback", path, accumulate=2, **two)
try:
    run("refused", "callback", here / "last.ckpt", accumulate=2)
except ValueError as error:
    print(error)
"""
)


def environment(**more):
    return {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", **more}


def reports(folder, name, processes=2):
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]


def lrs(report):
    return [row[-1] for row in report["rows"]]


def test_two_processes_are_one_and_resume_exactly(tmp_path):
    (tmp_path / "job.py").write_text(ONE_HOST)
    command = [sys.executable, "job.py", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=250)
    assert done.returncode == 0, done.stderr
    (single,) = reports(tmp_path, "single", 1)
    for report in reports(tmp_path, "double"):
        assert lrs(report) == lrs(single)
        assert report["values"] == pytest.approx(single["values"], rel=1e-6, abs=1e-7)
        assert report["val_loss"] == pytest.approx(single["val_loss"], rel=1e-6)
    first, second = reports(tmp_path, "double")
    assert {row[2] for row in first["rows"]}.isdisjoint(row[2] for row in second["rows"])
    assert first["weights"] == second["weights"]
    assert first["wrote"] > 0
    assert second["wrote"] == 0

    whole = reports(tmp_path, "whole")
    for step in (1, 3, 5):
        for resumed, uninterrupted in zip(reports(tmp_path, f"from-{step}"), whole, strict=True):
            assert resumed["rows"] == uninterrupted["rows"][2 * step :]
            assert resumed["weights"] == uninterrupted["weights"]
    assert "the checkpoint was written by 2 processes and this run has 1" in done.stdout


TWO_HOSTS = (
    REPORTING
    + """
class Asked(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 7:
            os.kill(os.getpid(), signal.SIGTERM)  # one of them alone

two = {"num_nodes": 2, "devices": 1, "strategy": "ddp"}
run("whole", "callback", **two)
try:
    run("stopped", "callback", callbacks=[Asked()], **two)
except SystemExit as left:
    (folder / f"stopped-{os.environ['RANK']}.status").write_text(str(left.code))
run("resumed", "callback", folder / "stopped" / "checkpoints" / "last.ckpt", **two)
"""
)

# this shell is one host; the other is a sleeping process with a network of its own, joined to it by a virtual cable
HOSTS = """
set -eu
ip link set lo up
unshare --net sleep 600 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.05; done
until ip link add name here type veth peer name there netns $other 2>/dev/null; do sleep 0.05; done
ip addr add 10.77.0.1/24 dev here
ip link set here up
nsenter --target $other --net sh -c 'ip link set lo up; ip addr add 10.77.0.2/24 dev there; ip link set there up'
export job="$PYTHON -W ignore -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --master_addr 10.77.0.1"
GLOO_SOCKET_IFNAME=there nsenter --target $other --net sh -c '$job --node_rank 1 job.py $FOLDER' & second=$!
GLOO_SOCKET_IFNAME=here $job --node_rank 0 job.py $FOLDER
wait $second
"""


def test_two_hosts_stop_together_and_resume_exactly(tmp_path):
    own = ["unshare", "--user", "--map-root-user", "--net"]
    if (
        not all(map(shutil.which, ("unshare", "nsenter", "ip")))
        or subprocess.run(
            [*own, "ip", "link", "add", "here", "type", "veth", "peer", "name", "there"],
            capture_output=True,
            timeout=60,
        ).returncode
    ):
        pytest.skip("this system does not let a test make network namespaces (unshare --user --net, ip link add)")
    (tmp_path / "job.py").write_text(TWO_HOSTS)
    shell = environment(PYTHON=sys.executable, FOLDER=str(tmp_path), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [*own, "bash", "-c", HOSTS], cwd=tmp_path, capture_output=True, text=True, env=shell, timeout=250
    )
    assert done.returncode == 0, done.stderr
    whole, resumed = reports(tmp_path, "whole"), reports(tmp_path, "resumed")
    assert lrs(whole[0]) == lrs(whole[1])
    assert whole[0]["weights"] == whole[1]["weights"]
    assert whole[0]["val_loss"] == whole[1]["val_loss"]
    assert [report["wrote"] > 0 for report in whole] == [True, False]
    # both heard what one of them was told, and left at the same step
    assert [(tmp_path / f"stopped-{rank}.status").read_text() for rank in (0, 1)] == ["143", "143"]
    assert not list(tmp_path.glob("stopped-*.json"))
    for report, uninterrupted in zip(resumed, whole, strict=True):
        assert report["rows"] == uninterrupted["rows"][8:]
        assert report["weights"] == uninterrupted["weights"]
