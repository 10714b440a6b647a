"""A run folder that somebody else made runs nothing, unless --trust is given."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from lit_cosine.cli.main import main

CPU = "--trainer.accelerator=cpu"
EVIL = "from pathlib import Path\nPath('pwned').touch()\nfrom lit_cosine import SimpleNN as Net, Cosine as Curve\n"


@pytest.fixture(scope="module")
def received(tmp_path_factory):
    folder = tmp_path_factory.mktemp("received")
    torch.set_num_threads(1)
    small = [CPU, "--data.n_samples=100", "--data.batch_size=40", "--trainer.max_epochs=2"]
    assert main(["train", *small, "--trainer.default_root_dir", str(folder)]) == 0
    return folder / "run_1"


@pytest.fixture
def run(received, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(received, "run")
    Path("evil_module.py").write_text(EVIL)
    Path("run/evil_module.py").write_text(EVIL)
    Path("more.yaml").write_text("class_path: evil_module.Net\n")
    Path("run/inside.yaml").write_text("class_path: evil_module.Net\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Path("run")
    sys.modules.pop("evil_module", None)


def change(run, changes):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for path, value in changes.items():
        *folders, name = path.split(".")
        inner = config
        for folder in folders:
            inner = inner[folder]
        inner[name] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def commands(run):
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    yield ["train", "--resume", str(run), "--trainer.max_epochs=3", "--model.on_resize=restart"]
    yield ["test", CPU, "--ckpt_path", checkpoint]
    yield ["predict", CPU, f"--ckpt_path={checkpoint}"]


TOUCH = {"class_path": "evil_module.Net"}
CURVE = {"class_path": "evil_module.Curve"}
LAMBDA = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "evil_module.Net"}}
LAYER = {
    "class_path": "torch.nn.TransformerEncoderLayer",
    "init_args": {"d_model": 2, "nhead": 1, "activation": "os.abort"},
}
CONFIGURATIONS = {
    "a network": {"model.network": TOUCH},
    "a network by its path alone": {"model.network": "evil_module.Net"},
    "a network in a string of YAML": {"model.network": "{class_path: evil_module.Net}"},
    "a network in a file beside the command": {"model.network": "more.yaml"},
    "a network in a file beside the configuration": {"model.network": "inside.yaml"},
    "a network on a device without an end": {"model.network": "/dev/zero"},
    "a schedule": {"model.schedule": CURVE},
    "a schedule within a schedule": {
        "model.schedule": {"class_path": "lit_cosine.Restarts", "init_args": {"schedule": CURVE}}
    },
    "a data module": {"data": TOUCH},
    "a callback": {"trainer.callbacks": [TOUCH]},
    "a callback that is not in a list": {"trainer.callbacks": TOUCH},
    "a callback with a function": {"trainer.callbacks": [LAMBDA]},
    "a layer with a function": {"model.network": LAYER},
    "a logger": {"trainer.logger": [TOUCH]},
    "a profiler": {"trainer.profiler": {"class_path": "lightning.pytorch.profilers.PyTorchProfiler"}},
    "plugins": {"trainer.plugins": [TOUCH]},
    "a strategy": {"trainer.strategy": TOUCH},
    "a module of our own that is no class": {"model.network": {"class_path": "lit_cosine.__main__.main"}},
    "a module reached through a known one": {"model.network": {"class_path": "torch.nn.init.os.system"}},
    "a line that trusts itself": {"trust": True, "model.network": TOUCH},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_could_run_code_is_refused(name, run, capsys):
    change(run, CONFIGURATIONS[name])
    before = sorted(Path().rglob("*"))
    for command in commands(run):
        assert main(command) == 2, command
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cosine")]
        assert len(error) == 1
        assert "which could run code: add --trust if you trust the run's origin" in error[0]
        assert len(error[0]) < 300
    assert sorted(Path().rglob("*")) == before
    assert "evil_module" not in sys.modules


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as other:
        other.writestr("hello.txt", "hello")
    return file.getvalue()


FOLDER = "a folder in its place"
DAMAGES = {
    "no config": ("config.yaml", None, "there is no "),
    "a folder for config": ("config.yaml", FOLDER, "there is no "),
    "bytes for config": ("config.yaml", b"a: \xff", "not a text file"),
    "an empty config": ("config.yaml", b"", "must hold options by name, got None"),
    "a list for config": ("config.yaml", b"[1, 2]", "must hold options by name, got [1, 2]"),
    "empty checkpoints": ("checkpoints/*.ckpt", b"", "is damaged: it is empty"),
    "bytes for checkpoints": ("checkpoints/*.ckpt", bytes(range(256)) * 20, "is damaged or not a checkpoint"),
    "text for checkpoints": ("checkpoints/*.ckpt", b"hello\n" * 99, "is damaged or not a checkpoint"),
    "another archive": ("checkpoints/*.ckpt", archive(), "is damaged or not a checkpoint"),
    "half of each checkpoint": ("checkpoints/*.ckpt", lambda found: found[: len(found) // 2], "is damaged or not a"),
    "folders for checkpoints": ("checkpoints/*.ckpt", FOLDER, "was not found"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_refused_in_one_sentence_and_stays_as_it_is(name, run, capsys):
    pattern, contents, message = DAMAGES[name]
    for path in [*run.glob(pattern)]:
        found = path.read_bytes()
        path.unlink()
        if contents is FOLDER:
            path.mkdir()
        elif contents is not None:
            path.write_bytes(contents(found) if callable(contents) else contents)
    before = {path: path.is_file() and path.read_bytes() for path in run.rglob("*")}
    for command in [*commands(run)][: 1 if message == "there is no " else 3]:  # a test needs no config
        assert main(command) == 2
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cosine")]
        assert message in error
        assert len(error) < 300
    assert {path: path.is_file() and path.read_bytes() for path in run.rglob("*")} == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX locks")
def test_a_run_that_another_process_writes_to_is_refused_before_anything_is_written(run, capsys):
    held = "import sys; from pathlib import Path; from lit_cosine._files import WriterLock; lock = WriterLock(); "
    held += "lock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    lock = run / "checkpoints" / ".lock"
    command = [sys.executable, "-c", held, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        before = sorted(run.rglob("*"))
        assert main(next(commands(run))) == 2
        assert f"checkpoints is in use: process {other.pid} on " in capsys.readouterr().err
        assert sorted(run.rglob("*")) == before
        other.communicate()
    lock.unlink()
    lock.mkdir()
    assert main(next(commands(run))) == 2
    assert f"{lock}: Is a directory" in capsys.readouterr().err


def test_what_is_known_needs_no_trust(run, capsys):
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "my_logs.of.mine"}}
    change(run, {"trainer.callbacks": [stopping, "lit_cosine.TrainingCurves"], "trainer.logger": logger})
    for command in commands(run):
        assert main(command) == 0, capsys.readouterr().err


def test_trust_and_a_configuration_of_one_s_own_lift_the_refusal(run):
    config = (run / "config.yaml").read_text()
    change(run, CONFIGURATIONS["a network"])
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    Path("mine.yaml").write_text(config)
    assert main(["test", CPU, "--config", "mine.yaml", *checkpoint]) == 0
    assert not [*Path().rglob("pwned")]
    assert main(["test", CPU, "--trust", *checkpoint]) == 0
    assert [*Path().rglob("pwned")]  # the module above does run


def test_trust_is_no_part_of_a_configuration(run):
    assert main(["train", "--resume", str(run), "--trainer.max_epochs=3", "--model.on_resize=restart", "--trust"]) == 0
    assert "trust" not in yaml.safe_load((run / "config.yaml").read_text())
