import csv
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lit_cosine import LitClassifier, SyntheticDataModule
from lit_cosine.cli._parser import one_sentence
from lit_cosine.cli.main import main

SMALL = ["--trainer.accelerator", "cpu", "--data.n_samples", "100", "--data.batch_size", "40"]
ARTICLE = [
    0.00975528, 0.00904508, 0.00793893, 0.00654508, 0.00500000, 0.00345492, 0.00206107, 0.00095492, 0.00024472, 0.0,
]  # fmt: skip
JSONARGPARSE = tuple(map(int, metadata.version("jsonargparse").split(".")[:2]))
UNRECOGNIZED = "unrecognized" if JSONARGPARSE >= (4, 48) else "Unrecognized"  # the sentence is jsonargparse's


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def train(*arguments):
    return main(["train", *SMALL, *arguments])


def error_of(capsys, status):
    """Return the one line that a refusal is."""
    assert status == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("Seed set", "INFO"))]
    assert line.startswith("lit-cosine ")
    return line.partition("error: ")[2]


def test_train_prints_the_articles_lines_and_says_where_everything_is(capsys):
    assert train() == 0
    out = capsys.readouterr().out
    assert re.findall(r"^Epoch (\d+)/10, Loss: \d\.\d{4}, LR: (\d\.\d{8})$", out, re.MULTILINE) == [
        (str(epoch), f"{lr:.8f}") for epoch, lr in enumerate(ARTICLE, start=1)
    ]
    said = dict(line.split(": ", 1) for line in out.splitlines() if not line.startswith("Epoch"))
    assert said.keys() == {"Test accuracy", "Checkpoint", "Figure", "Logs", "View in TensorBoard"}
    assert said["View in TensorBoard"] == "lit-cosine board runs"
    assert Path(said["Figure"]).read_bytes().startswith(b"\x89PNG")
    served = EventAccumulator(said["Logs"], size_guidance={"scalars": 0}).Reload()
    after_epochs = [event.value for event in served.Scalars("lr-Adam")][2::2]
    assert after_epochs == pytest.approx(ARTICLE, rel=1e-6, abs=5e-9)
    assert "training_curves" in served.Tags()["images"]
    assert "hp_metric" not in served.Tags()["scalars"]

    # the checkpoint is the best by validation loss, and what was tested
    validated = [event.value for event in served.Scalars("val/loss")]
    best = torch.load(said["Checkpoint"], weights_only=True)
    assert best["epoch"] == min(range(10), key=validated.__getitem__)
    model = LitClassifier.load_from_checkpoint(said["Checkpoint"], weights_only=True)
    x, y = SyntheticDataModule(n_samples=100, batch_size=40).test_dataloader().dataset.tensors
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    assert said["Test accuracy"].startswith(f"{accuracy:.4f},")


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_second_run_repeats_the_first_in_a_folder_of_its_own(capsys):
    quick = ["--trainer.max_epochs", "2"]
    assert train(*quick) == 0
    first, files = capsys.readouterr().out, snapshot("runs/run_1")
    names = {path.name for path in files}
    assert {"config.yaml", "best.ckpt", "last.ckpt", "training_curves.png"} <= names
    assert train(*quick) == 0
    assert capsys.readouterr().out == first.replace("run_1", "run_2")
    assert snapshot("runs/run_1") == files
    # the configuration of a run is enough to run it again
    assert main(["train", "--config", "runs/run_2/config.yaml"]) == 0
    assert capsys.readouterr().out == first.replace("run_1", "run_3")
    assert train(*quick, "--seed_everything", "7") == 0
    assert capsys.readouterr().out != first.replace("run_1", "run_4")
    weights = [torch.load(f"runs/run_{i}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for i in (1, 2, 3, 4)]
    for name, first_weights in weights[0].items():
        assert torch.equal(first_weights, weights[1][name])
        assert torch.equal(first_weights, weights[2][name])
        assert not torch.equal(first_weights, weights[3][name])


def test_options_by_flag_and_by_file(capsys):
    Path("run.yaml").write_text(
        "model: {interval: step, schedule: {class_path: Restarts, init_args: {cycles: 2}}}\ntrainer: {max_epochs: 4}\n"
    )
    arguments = ["--config", "run.yaml", "--model.lr", "0.1", "--trainer.default_root_dir", "mine"]
    assert train(*arguments, "--trainer.logger", "false") == 0
    out = capsys.readouterr().out
    # 2 steps an epoch: the second epoch ends with the first cycle, where the next begins
    lrs = re.findall(r"LR: ([\d.]+)", out)
    assert lrs == ["0.05000000", "0.10000000", "0.05000000", "0.00000000"]
    assert "Logs" not in out
    assert Path("mine/run_1/training_curves.png").is_file()
    assert not list(Path().rglob("*tfevents*"))
    with pytest.raises(SystemExit) as done:
        train(*arguments, "--print_config")
    assert done.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"]["lr"], config["trainer"]["max_epochs"]) == (0.1, 4)


def test_a_data_set_by_name_brings_its_sizes_to_training_test_and_prediction(capsys):
    cpu = ["--trainer.accelerator", "cpu"]
    quick = [*cpu, "--trainer.max_epochs", "2", "--model.network.hidden", "5"]
    assert main(["train", *quick, "--data.dataset", "wine", "--data.standardize", "true"]) == 0
    said = capsys.readouterr().out
    path = "runs/run_1/checkpoints/best.ckpt"
    model = LitClassifier.load_from_checkpoint(path, weights_only=True)
    assert model.hparams["network"]["init_args"] == {"in_features": 13, "hidden": 5, "classes": 3}
    accuracy = re.search(r"^Test accuracy: .*$", said, re.MULTILINE)[0]
    before = snapshot("runs")
    assert main(["test", *cpu, "--ckpt_path", path]) == 0
    assert capsys.readouterr().out.strip() == accuracy
    assert snapshot("runs") == before
    assert main(["predict", *cpu, f"--ckpt_path={path}"]) == 0
    assert main(["predict", *cpu, f"--ckpt_path={path}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Predictions: runs/run_1/predictions.csv", "Predictions: runs/run_1/predictions-1.csv",
    ]  # fmt: skip
    with open("runs/run_1/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for row in rows:
        p = [float(row[f"p{label}"]) for label in range(3)]
        assert sum(p) == pytest.approx(1.0, abs=1e-6)
        assert p[int(row["predicted"])] == max(p)


class Wide(nn.Module):
    """A network of the user's own that asks for the sizes."""

    def __init__(self, in_features: int, classes: int, width: int = 3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.Linear(width, classes))

    def forward(self, x):
        return self.layers(x)


def test_a_network_of_the_users_own_trains_and_is_tested_from_its_run(capsys):
    name = f"{__name__}.Wide"
    quick = ["--trainer.max_epochs", "2", "--data.n_features", "6", "--model.network", name]
    assert train(*quick, "--model.network.width", "4") == 0
    said = capsys.readouterr().out
    assert (
        main(["test", "--trust", "--trainer.accelerator=cpu", "--ckpt_path", "runs/run_1/checkpoints/best.ckpt"]) == 0
    )
    assert capsys.readouterr().out.splitlines() == [line for line in said.splitlines() if line.startswith("Test")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lr", "0"], "lr must be finite and > 0, got 0.0"),
        (["--model.lr", "-1"], "lr must be finite and > 0, got -1.0"),
        (["--model.lr", ".nan"], "lr must be finite and > 0, got nan"),
        (["--model.lr", "nan"], "model.lr: Expected a number. Got value: nan"),
        (["--data.batch_size", "0"], "batch_size must be an integer >= 1, got 0"),
        (["--data.batch_size", "81"], "batch_size must be at most the 80 rows of the training part, got 81"),
        (["--data.test_size", "0"], "test_size must be a fraction in (0, 1), got 0.0"),
        (["--data.test_size", "1"], "test_size must be a fraction in (0, 1), got 1.0"),
        (
            ["--data.n_classes", "3"],
            "n_classes(3) * n_clusters_per_class(2) must be smaller or equal 2**n_informative(2)=4",
        ),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs must be >= 1, or -1 for no limit, got 0"),
        (["--threads", "0"], "threads must be an integer >= 1, got 0"),
        (["--model.bogus", "3"], f"{UNRECOGNIZED} arguments: --model.bogus 3"),
        (["--config", "text.yaml"], "config: text.yaml must hold options by name, got 'just text'"),
        (["--trainer.default_root_dir", "text.yaml"], "trainer.default_root_dir must be a folder that can be written"),
        (["--trainer.default_root_dir", "/proc/runs"], "trainer.default_root_dir must be a folder that can be written"),
        (["--resume"], "there is nothing to resume: runs holds no run; start one without --resume"),
        (
            ["--resume", "nowhere.ckpt"],
            "there is nothing to resume: 'nowhere.ckpt' is neither a run's folder nor a checkpoint",
        ),
        (
            ["--resume", "text.yaml"],
            "text.yaml cannot be resumed: there is no ",
        ),
        (["--checkpoint.keep", "0"], "keep must be an integer >= 1, or -1 for all, got 0"),
        (
            ["--checkpoint.train_time_interval", "5ep"],
            'train_time_interval must be a time > 0 such as "30min"',
        ),
        (["--trainer.devices", "0"], "`Trainer(devices='0')` value is not a valid input"),
        (["--model.schedule", "Cosin"], "model.schedule: unknown schedule 'Cosin'; did you mean Cosine?"),
        (["--model.interval", "week"], "model.interval: Expected one of 'step', 'epoch'. Got value: week"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs: Expected an integer; got many"),
        (["--model.schedule.end", "-1"], "Cosine.end must be finite and >= 0, got -1.0"),
        (["--model.warmup", "10ep"], 'warmup ("10ep", 10) must be shorter than the run, got a run of 10 epochs'),
    ],
)
def test_bad_input_is_one_sentence_and_status_2_before_training(arguments, message, capsys):
    Path("text.yaml").write_text("just text")
    status = train(*arguments)
    assert message in error_of(capsys, status)
    assert not list(Path().rglob("*.ckpt"))


def test_an_unknown_data_set_is_refused_with_the_known_ones(capsys):
    status = main(["train", "--data.dataset", "mnist"])
    assert error_of(capsys, status) == "dataset must be one of breast_cancer, digits, iris, wine, got 'mnist'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config: cannot read run.yaml: No such file or directory"),
        ("model: {lr: 0.1", "config: run.yaml is not YAML, see line 1"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(text, message, capsys):
    if text is not None:
        Path("run.yaml").write_text(text)
    status = main(["train", "--config", "run.yaml"])
    assert message in error_of(capsys, status)


class Narrow(nn.Linear):
    def __init__(self):
        super().__init__(20, 3)


def test_a_network_of_another_width_is_refused_and_leaves_no_folder(capsys):
    status = train("--model.network", f"{__name__}.Narrow")
    assert "one output for each of the 2 classes; it maps (2, 20) to (2, 3)" in error_of(capsys, status)
    assert [*Path("runs").glob("*")] == []


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_command_without_its_checkpoint_is_refused(command, capsys):
    status = main([command, "--trainer.accelerator=cpu"])
    assert error_of(capsys, status) == f"ckpt_path must name a checkpoint: lit-cosine {command} --ckpt_path FILE"


class Breaks(nn.Linear):
    """Breaks down once training has begun."""

    def __init__(self, in_features: int, classes: int):
        super().__init__(in_features, classes)

    def forward(self, x):
        if self.training:
            raise ValueError("a mistake in the network")
        return super().forward(x)


def test_a_mistake_during_training_keeps_its_traceback():
    with pytest.raises(ValueError, match="a mistake in the network"):
        train("--model.network", f"{__name__}.Breaks")


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path):
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    done = subprocess.run(
        [sys.executable, script, "--model.lr", "0"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2
    assert "lit-cosine train: error: lr must be finite and > 0, got 0.0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log\\(\\)` but:UserWarning")
@pytest.mark.parametrize("mode", ["fast_dev_run", "barebones"])
def test_a_mode_that_writes_nothing_leaves_nothing(mode, capsys):
    assert main(["train", f"--trainer.{mode}", "true", "--trainer.max_epochs", "2"]) == 0
    assert [path for path in Path().rglob("*") if path.name != "runs"] == []
    assert "Test accuracy" not in capsys.readouterr().out


def test_a_report_on_several_types_becomes_one_sentence():
    report = """Parser key "model.network":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'torch.nn.modules.module.Module'>, <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: Simple
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: Simple"""
    assert one_sentence(report) == "model.network: Expected a dot import path string: Simple; got Simple"


def threads(capsys, *arguments):
    """Return the threads that a training had, and what was said of them."""
    seen = []
    Path("probe.yaml").write_text("trainer: {callbacks: [{class_path: tests.cli.test_runs.Threads}]}\n")
    Threads.seen = seen
    assert train("--trainer.max_epochs=2", "--config", "probe.yaml", *arguments) == 0
    out = capsys.readouterr().out
    return seen, [line for line in out.splitlines() if "CPU threads" in line]


class BreaksFiles(Callback):
    """Makes the event files of the run impossible to write to after its first epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        for path in Path(trainer.default_root_dir).glob("events*"):
            if path.is_file():
                path.unlink()
                path.mkdir()


def test_event_files_that_cannot_be_written_end_and_the_training_goes_on(capsys):
    with pytest.warns(UserWarning, match="event files end|writes no more to") as seen:
        assert train("--trainer.callbacks", f"{__name__}.BreaksFiles", "--trainer.max_epochs=4") == 0
    assert sum("event files end here, and training continues: " in str(one.message) for one in seen) == 1
    said = capsys.readouterr()
    assert "Epoch 4/4" in said.out
    assert "Test accuracy" in said.out
    assert "Traceback" not in said.err
    assert torch.load("runs/run_1/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


class Threads(Callback):
    seen: list = []  # noqa: RUF012

    def on_train_start(self, trainer, pl_module):
        self.seen.append(torch.get_num_threads())


@pytest.mark.slow
def test_a_tiny_network_gets_one_thread_unless_asked_for_more(capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    said = "Using 1 of 2 CPU threads: the batch is too small to benefit (override with --threads)"
    assert threads(capsys) == ([1], [said])
    assert torch.get_num_threads() == 2  # the process is not only ours
    assert threads(capsys, "--threads", "2") == ([2], [])
    assert threads(capsys, "--model.network.hidden", "20000") == ([2], [])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads(capsys) == ([2], [])
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    assert threads(capsys) == ([1], [])


def test_a_run_is_found_from_within_its_folder_and_a_test_without_rows_is_no_error(capsys, monkeypatch):
    assert train("--trainer.max_epochs", "2", "--trainer.limit_test_batches", "0") == 0
    assert "Checkpoint: " in capsys.readouterr().out
    run = Path("runs/run_1").absolute()
    monkeypatch.chdir(run / "checkpoints")
    assert main(["predict", "--ckpt_path", "last.ckpt"]) == 0
    assert (run / "predictions.csv").is_file()
    # the run's own configuration is found
    message = "there are no test rows to measure: trainer.limit_test_batches is 0"
    assert error_of(capsys, main(["test", "--ckpt_path", "last.ckpt"])) == message
    assert main(["test", "--ckpt_path", "last.ckpt", "--trainer.limit_test_batches", "1.0"]) == 0


@pytest.mark.parametrize("listed", ["ModelCheckpoint", "LearningRateMonitor", "LearningRateFinder"])
def test_callbacks_that_need_a_logger_or_train_are_left_out_of_an_audit(listed, capsys):
    assert main(["audit", *SMALL, "--trainer.callbacks", listed]) == 0
    assert "ScheduleAudit: nothing wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("train", "on: 1\n", "a.yaml: unknown key True; known are"),
        ("preview", "init_args: {end: 1}\n", "a.yaml: class_path must name a schedule, got None"),
    ],
)
def test_a_key_that_has_no_line_is_refused_all_the_same(command, text, message, capsys):
    Path("a.yaml").write_text(text)
    assert error_of(capsys, main([command, "--config", "a.yaml"])).startswith(message)
