import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lit_cosine.checkpoint import read_checkpoint, write_checkpoint
from lit_cosine.cli.main import main

# 3 batches an epoch; checkpoints after every update
SMALL = ["--trainer.accelerator=cpu", "--data.n_samples=100", "--data.batch_size=30", "--trainer.max_epochs=3"]
SMALL += ["--checkpoint.every_n_train_steps=1", "--model.interval=step"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


class Interrupted(nn.Sequential):
    """SimpleNN with dropout, that sends its process the signal named in the file ``signal`` at the update it names."""

    def __init__(self, in_features: int, classes: int, dropout: float = 0.3):
        super().__init__(nn.Linear(in_features, 5), nn.Dropout(dropout), nn.ReLU(), nn.Linear(5, classes))
        self.calls = 0

    def forward(self, x):
        if self.training and Path("signal").exists():
            name, at = Path("signal").read_text().split()
            self.calls += 1
            if self.calls == int(at):
                Path("signal").unlink(missing_ok=True)
                if name == "nan":
                    return super().forward(x) * torch.nan
                os.kill(os.getpid(), getattr(signal, name))
        return super().forward(x)


def train(*arguments):
    return main(["train", *SMALL, "--model.network", f"{__name__}.Interrupted", *arguments])


def resume(*arguments):
    return main(["train", "--trust", *arguments, "--resume"])


def last(run):
    return read_checkpoint(Path("runs") / run / "checkpoints" / "last.ckpt")


def assert_same_weights(one, other):
    assert one["global_step"] == other["global_step"]
    for name, tensor in one["state_dict"].items():
        if not name.endswith("accuracy"):
            assert torch.equal(tensor, other["state_dict"][name]), name


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_folder_as_if_nothing_had_been(name, status, capsys):
    assert train() == 0
    whole = capsys.readouterr().out
    Path("signal").write_text(f"{name} 5")
    assert train() == status
    assert "; continue with: lit-cosine train --resume runs/run_2\n" in capsys.readouterr().err
    assert last("run_2")["global_step"] == 5
    assert resume() == 0
    out = capsys.readouterr().out
    assert out.startswith("Resume: runs/run_2/checkpoints/last.ckpt\n")
    for line in re.findall(r"Epoch 3/3.*|Test accuracy.*", whole):
        assert line in out
    assert_same_weights(last("run_1"), last("run_2"))
    assert sorted(path.name for path in Path("runs").iterdir()) == ["run_1", "run_2"]


def test_fewer_epochs_than_are_done_are_refused_and_nothing_is_written(capsys):
    assert train() == 0
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["train", "--trust", "--resume", "runs/run_1", "--trainer.max_epochs", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("trainer.max_epochs must be at least the 3 epochs of the run, got 2")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_a_finished_run_is_complete_and_says_what_would_train_on(capsys):
    assert train() == 0
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert resume() == 0
    assert capsys.readouterr().out.splitlines() == [
        "Resume: runs/run_1/checkpoints/last.ckpt",
        "runs/run_1 is complete. To test it: lit-cosine test --ckpt_path runs/run_1/checkpoints/best.ckpt. "
        "To train on: lit-cosine train --resume runs/run_1 --trainer.max_epochs N --model.on_resize restart",
    ]
    assert sorted(Path().rglob("*")) == before
    assert (
        main(["train", "--trust", "--resume", "runs/run_1", "--trainer.max_epochs=5", "--model.on_resize=restart"]) == 0
    )
    rates = [float(lr) for lr in re.findall(r"LR: ([\d.]+)", capsys.readouterr().out)]
    # 6 updates anneal from 0.01 again, 3 an epoch: half-way after the first
    assert rates == [pytest.approx(0.005), 0.0]


@pytest.mark.slow
def test_the_newest_run_that_has_a_checkpoint_is_resumed(capsys):
    Path("signal").write_text("SIGTERM 5")
    assert train() == 143
    Path("runs/run_2").mkdir()
    Path("runs/run_10/checkpoints").mkdir(parents=True)
    capsys.readouterr()
    assert resume() == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "runs/run_10 cannot be resumed: there is no checkpoint in runs/run_10/checkpoints",
        "runs/run_2 cannot be resumed: there is no checkpoint in runs/run_2/checkpoints",
        "Resume: runs/run_1/checkpoints/last.ckpt",
    ]
    assert last("run_1")["global_step"] == 9
    # a run that is named is the one that is meant
    assert main(["train", "--resume", "runs/run_2"]) == 2
    assert "there is nothing to resume in runs/run_2: " in capsys.readouterr().err


HOSTILE = {
    "hyper_parameters": [
        [1, 2],
        {"network": [1]},
        {"network": {"class_path": "lit_cosine.SimpleNN", "init_args": [3]}},
        {"network": {"class_path": "lit_cosine.SimpleNN", "init_args": {"hidden": 10**12}}},
        {"network": {"class_path": "lit_cosine.SimpleNN", "init_args": {"hidden": [5]}}},
        {"lr": "high"},
        {"schedule": [1]},
        {"network": {"class_path": "os.system", "init_args": {"command": "true"}}},
    ],
    "loops": [[], {"fit_loop": []}, {"fit_loop": {"epoch_progress": {"current": {"processed": "many"}}}}],
    "global_step": [-1, 1.5, [3]],
    "state_dict": [[1]],
}


@pytest.mark.parametrize("key", [pytest.param("hyper_parameters", marks=pytest.mark.slow), *[*HOSTILE][1:]])
def test_hostile_plain_data_is_refused_in_one_sentence(key, capsys):
    quick = ["--trainer.accelerator=cpu", "--data.n_samples=100", "--data.batch_size=40", "--trainer.max_epochs=2"]
    assert main(["train", *quick]) == 0
    path = Path("runs/run_1/checkpoints/last.ckpt")
    good = read_checkpoint(path)
    for value in HOSTILE[key]:
        torch.save({**good, key: value}, path)
        commands = [["train", "--resume", str(path), "--trainer.max_epochs=3", "--model.on_resize=restart"]]
        if key in ("hyper_parameters", "state_dict"):
            commands += [[command, "--ckpt_path", str(path)] for command in ("test", "predict")]
        for command in commands:
            capsys.readouterr()
            assert main(command) == 2, (command, value)
            lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
            assert len(lines) == 1, lines
            assert len(lines[0]) < 300


@pytest.mark.slow
def test_a_run_or_a_checkpoint_can_be_named(capsys):
    Path("signal").write_text("SIGTERM 5")
    assert train() == 143
    assert train() == 0
    capsys.readouterr()
    assert resume("runs/run_1") == 2  # --resume comes last here and stands alone: what is before it is no flag
    assert main(["train", "--trust", "--resume", "runs/run_1"]) == 0
    assert_same_weights(last("run_1"), last("run_2"))
    assert main(["train", "--trust", "--resume", "runs/run_2/checkpoints/epoch=2-step=8.ckpt"]) == 0
    assert_same_weights(last("run_1"), last("run_2"))


def test_flags_that_differ_are_said_and_who_wins(capsys):
    Path("signal").write_text("SIGTERM 5")
    assert train() == 143
    capsys.readouterr()
    asked = ["--model.lr=0.5", "--data.batch_size=20", "--trainer.max_epochs=4", "--model.on_resize=restart"]
    assert resume(*asked) == 0
    assert capsys.readouterr().out.splitlines()[1:5] == [
        "data.init_args.batch_size: using 30 from the run (command line: 20)",
        "model.lr: using 0.01 from the run (command line: 0.5)",
        "model.on_resize: using restart from the command line (run: continue)",
        "trainer.max_epochs: using 4 from the command line (run: 3)",
    ]
    done = last("run_1")
    assert done["global_step"] == 12
    assert done["hyper_parameters"]["lr"] == 0.01
    assert done["lr_schedulers"][0]["base_lrs"] == [0.01]
    # what won is the run's configuration from now on, what it was is kept
    now, before = (yaml.safe_load(Path(f"runs/run_1/{name}.yaml").read_text()) for name in ("config", "config-1"))
    assert (now["trainer"]["max_epochs"], before["trainer"]["max_epochs"]) == (4, 3)
    assert now["model"] == {**before["model"], "on_resize": "restart"}
    assert now["data"] == before["data"]


def test_without_a_checkpoint_nothing_begins(capsys):
    Path("signal").write_text("nan 1")
    with pytest.raises(SystemExit) as stopped:
        train()
    assert re.fullmatch(
        r"lit-cosine train: the loss is nan at epoch 0, step 0, with LR 0.01: stopped; no checkpoint was saved yet",
        stopped.value.code,
    )
    assert resume() == 2
    assert "there is nothing to resume in runs/run_1: there is no checkpoint" in capsys.readouterr().err
    assert not list(Path().rglob("*.ckpt"))


def test_a_damaged_last_goes_on_from_the_one_before(capsys):
    assert train() == 0
    newest = Path("runs/run_1/checkpoints/epoch=2-step=9.ckpt")
    whole = last("run_1")
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged.*intact checkpoint instead: .*step=8.ckpt"):
        assert resume() == 0
    assert "Resume: runs/run_1/checkpoints/epoch=2-step=8.ckpt" in capsys.readouterr().out
    assert_same_weights(last("run_1"), whole)


def test_a_configuration_that_was_edited_is_refused(capsys):
    assert train() == 0
    path = Path("runs/run_1/config.yaml")
    path.write_text(path.read_text().replace("lr: 0.01", "lr: 0.5"))
    assert resume() == 2
    assert "was trained with lr=0.01 and its config.yaml says 0.5" in capsys.readouterr().err
    path.unlink()
    assert resume() == 2
    assert "cannot be resumed: there is no runs/run_1/config.yaml" in capsys.readouterr().err


def test_a_malicious_checkpoint_is_refused_by_every_command(capsys):
    assert train() == 0
    folder = Path("runs/run_1/checkpoints")
    good = read_checkpoint(folder / "last.ckpt")

    class Runs:
        def __reduce__(self):
            return os.system, ("touch pwned",)

    torch.save({**good, "x": Runs()}, folder / "last.ckpt")
    write_checkpoint(
        {**good, "hyper_parameters": {"_instantiator": "os.system", "command": "touch pwned"}}, folder / "built.ckpt"
    )
    capsys.readouterr()
    commands = [["train", "--trust", "--resume"]]
    for name in ("last.ckpt", "built.ckpt"):
        where = ["--trust", "--trainer.accelerator=cpu", "--ckpt_path", str(folder / name)]
        commands += [["test", *where], ["predict", *where]]
    for command in commands:
        assert main(command) == 2, command
        assert "is refused: it " in capsys.readouterr().err
    assert not Path("pwned").exists()
    torch.load(folder / "last.ckpt", weights_only=False)
    assert Path("pwned").exists()  # it would have worked on somebody who trusts


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_stop_together_go_on_and_end_as_one_would():
    same = ["--model.network.dropout=0", "--data.n_samples=110"]  # 88 rows: every batch divides by two
    assert train(*same, "--data.batch_size=22") == 0
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=11"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parents[2] / "scripts" / "train.py")]

    def launch(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=200)

    Path("signal").write_text("SIGTERM 6")
    stopped = launch(*SMALL, "--model.network", f"{__name__}.Interrupted", *same, *two)
    assert stopped.returncode == 143, stopped.stderr
    assert last("run_2")["global_step"] == 6
    alone = launch("--trust", "--resume", "--trainer.devices=1")
    assert alone.returncode == 2, alone.stderr
    assert "written by 2 processes and this run has 1" in alone.stderr
    resumed = launch("--trust", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    one, both = last("run_1"), last("run_2")
    assert one["global_step"] == both["global_step"] == 12
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(both["state_dict"][name], tensor, rtol=1e-6, atol=1e-7)
    assert both["lr_schedulers"] == one["lr_schedulers"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_what_two_processes_refuse_is_one_sentence_and_no_checkpoint_is_lost(strategy):
    command = [sys.executable, "-W", "ignore", "-m", "lit_cosine", "train", *SMALL, "--trainer.devices=2"]
    command += [f"--trainer.strategy={strategy}", "--checkpoint.every_n_train_steps=1"]

    def ended(*arguments):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200)
        assert "Traceback" not in done.stderr
        return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("lit-cosine train: ")]

    status, (line,) = ended("--model.warmup=5000step")
    assert status == 2
    assert line.startswith('lit-cosine train: error: warmup ("5000step", 5,000) must be shorter than the run')
    assert not any(Path("runs").iterdir())
    status, (line,) = ended("--model.lr=1e30")
    assert status == 1
    assert "the loss is nan at epoch 0, step 1" in line
    assert last("run_1")["global_step"] == 1


@pytest.mark.slow
def test_slurm_requeues_at_an_update_and_goes_on_exactly(tmp_path):
    """As SLURM sees it: a process, a signal, a call of scontrol, and the same command once more."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NAME": "run", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}}
    environment |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "tests.helpers.slurm", "whole", "requeued", "requeued"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=250)
    assert done.stdout.splitlines() == ["whole 0", "requeued 143", "requeued 0"], done.stderr
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert (tmp_path / "requeued" / "done").read_text() == (tmp_path / "whole" / "done").read_text()
