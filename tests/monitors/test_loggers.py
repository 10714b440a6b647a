"""The loggers that people use besides TensorBoard, each with its real package, offline."""

import csv
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

from lit_cosine import Cosine, LearningRateLogger, LearningRateScheduler, ScheduleAudit, TrainingCurves
from lit_cosine.dashboard import Dashboard
from tests.helpers.nets import Net, trainer

STEPS = 16
TAGS = {"lr-SGD", "train/loss_step", "train/gradient_norm", "train/seconds"}


def fit(folder, logger):
    """Return the LR of every step, as the optimizer used it."""
    model = Net()
    log = LearningRateLogger(loss_tag="train/loss_step")
    watch = [LearningRateScheduler(Cosine(end=0.1)), ScheduleAudit(), log, Dashboard(every_n_steps=4), TrainingCurves()]
    run = trainer(*watch, max_epochs=2, logger=logger, default_root_dir=folder, log_every_n_steps=1)
    run.fit(model)
    return [*model.lrs, run.optimizers[0].param_groups[0]["lr"]]


def check(used, points):
    """Check that all curves, each {tag: [(step, value)]}, came through."""
    assert points["lr-SGD"] == [(step, pytest.approx(lr, rel=1e-6)) for step, lr in enumerate(used)]
    assert [step for step, _ in points["train/loss_step"]] == list(range(STEPS))
    assert [step for step, _ in points["train/gradient_norm"]] == [0, 4, 8, 12]
    ((step, seconds),) = points["train/seconds"]
    assert step == STEPS
    assert seconds > 0


def test_csv(tmp_path):
    used = fit(tmp_path, CSVLogger(tmp_path, name="", version=""))
    points = {}
    with (tmp_path / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for tag, value in row.items():
                if tag != "step" and value:
                    points.setdefault(tag, []).append((int(row["step"]), float(value)))
    check(used, points)
    assert (tmp_path / "training_curves.png").is_file()


def records(data):
    """Yield the records of an offline run: LevelDB's log format, with a header of its own in front."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra loggers")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    used = fit(tmp_path, WandbLogger(save_dir=str(tmp_path), offline=True))
    wandb.teardown()  # the file is whole when the process that writes it has gone
    (path,) = tmp_path.rglob("*.wandb")
    points = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        step = int(values.pop("trainer/global_step", -1))
        for tag in {*values} & TAGS:
            points.setdefault(tag, []).append((step, float(values[tag])))
    check(used, points)


@pytest.mark.loggers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_in_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the extra loggers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need more packages
    logger = MLFlowLogger(tracking_uri=Path(tmp_path / "mlruns").as_uri())
    used = fit(tmp_path, logger)
    points = {}
    for tag in TAGS:
        history = logger.experiment.get_metric_history(logger.run_id, tag)
        points[tag] = sorted((metric.step, metric.value) for metric in history)
    check(used, points)
