import csv
import math

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lit_cosine import (
    CooldownOnPlateau,
    Cosine,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    ScheduleAudit,
    TrainingCurves,
    lr_scheduler_config,
)
from lit_cosine.dashboard import Dashboard, write_hyperparameters
from lit_cosine.dashboard._run_page import hyperparameters
from tests.helpers.nets import Gan, Net, trainer


def fit(folder, model, *callbacks, **arguments):
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    run = trainer(*callbacks, **{"logger": logger, "log_every_n_steps": 1, "max_epochs": 2, **arguments})
    run.fit(model)
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def text_of(served):
    return served.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()


class TwoGroups(Net):
    def __init__(self, name=None):
        super().__init__()
        self.other, self.name = nn.Linear(3, 1), name

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.other(batch[0]).mean()

    def configure_optimizers(self):
        groups = [{"params": self.layer.parameters()}, {"params": self.other.parameters(), "lr": 0.01}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        config = lr_scheduler_config(optimizer, Cosine(), self.trainer, warmup="3step", name=self.name)
        return {"optimizer": optimizer, "lr_scheduler": config}


@pytest.mark.parametrize("audited", [False, True])
@pytest.mark.parametrize(
    ("name", "first", "second"), [(None, "lr-SGD/pg1", "lr-SGD/pg2"), ("a+b", "a+b/pg1", "a+b/pg2")]
)
def test_every_groups_planned_curve_is_the_one_that_is_used(tmp_path, audited, name, first, second):
    audits = [ScheduleAudit()] if audited else []
    served = fit(tmp_path, TwoGroups(name), *audits, LearningRateLogger(), Dashboard())
    for tag in (f"{name or 'lr-SGD'}/pg1", f"{name or 'lr-SGD'}/pg2"):
        planned = [(event.step, event.value) for event in served.Scalars(f"planned/{tag}")]
        assert planned == [(event.step, pytest.approx(event.value, rel=1e-6)) for event in served.Scalars(tag)]
        assert len(planned) == 17
    layout = served.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert (rb"^a\+b/pg2$" in layout) == (name is not None)


def test_a_long_plan_is_drawn_with_no_more_points_than_a_screen_has(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_cosine.audit._plan.POINTS", 5)
    served = fit(tmp_path, TwoGroups(), Dashboard())
    points = served.Scalars("planned/lr-SGD/pg1")
    assert 5 <= len(points) <= 6
    assert (points[0].step, points[-1].step, points[-1].value) == (0, 16, 0.0)


def test_the_page_says_what_made_the_run_what_was_planned_and_what_is_wrong_with_it(tmp_path):
    def stepped_by_the_epoch(optimizer, trainer):
        # meant in steps
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)}

    audit = ScheduleAudit(on_problem="print")
    page = Dashboard(command="python train.py --lr 0.1", configuration="trainer:\n  max_epochs: 2")
    text = text_of(fit(tmp_path, Net(stepped_by_the_epoch), audit, page))
    sections = dict(section.split("\n\n", 1) for section in text.split("## ")[1:])
    assert [*sections] == ["Command", "Plan", "Findings of the audit", "Hyperparameters", "Configuration", "Versions"]
    assert sections["Command"].strip() == "python train.py --lr 0.1"
    assert sections["Plan"].startswith("- lr-SGD: 0.1 at step 0, highest 0.1, ")
    for finding in audit.findings:
        assert f"- **{finding.code}**: {finding.message}" in sections["Findings of the audit"]
    assert "epoch-interval" in sections["Findings of the audit"]
    assert yaml.safe_load(sections["Configuration"]) == {"trainer": {"max_epochs": 2}}
    assert f"torch {torch.__version__.partition('+')[0]}" in sections["Versions"]


class Reads(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.row = hyperparameters(trainer, pl_module)


def test_the_row_of_a_run_whoever_moves_its_lr(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")

    def row(finish=None, *callbacks):
        reads = Reads()
        trainer(reads, *callbacks, max_epochs=1).fit(Net(finish))
        return reads.row

    common = {"epochs": 1, "batch_size": 4, "seed": 7, "network_size": 4, "data": "DataLoader", "lr": 0.1}
    assert row() == {**common, "schedule": "none", "start": 1.0, "end": 1.0}
    ours = {**common, "interval": "step", "warmup": "2step", "start": 1.0, "end": 0.5}
    driven = LearningRateScheduler(Linear(start=1.0, end=0.5), warmup="2step")
    assert row(None, driven) == {**ours, "schedule": "Linear", "parameters": "end=0.5"}

    def stepped(optimizer, trainer):
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)]

    assert row(stepped) == {**common, "schedule": "StepLR", "interval": "epoch"}
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert "seed" not in row()


def test_there_is_no_point_of_minus_one_and_a_row_for_the_table(tmp_path):
    served = fit(tmp_path, Net(), Dashboard())
    assert "hp_metric" not in served.Tags()["scalars"]
    content = served.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    row = metadata.parse_session_start_info_plugin_data(content)
    assert row.hparams["lr"].number_value == 0.1


class Dropping(Net):
    """Draws random numbers, and keeps a part of itself in eval mode while it trains."""

    def __init__(self, example=True):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 1))
        if example:
            self.example_input_array = torch.zeros(1, 3)

    def forward(self, x):
        return self.layer(x)

    def on_train_epoch_start(self):
        self.layer[2].eval()


def test_the_graph_is_drawn_and_the_run_is_the_one_it_would_have_been(tmp_path):
    def weights(folder, model, *callbacks):
        torch.manual_seed(3)
        served = fit(tmp_path / folder, model, *callbacks)
        modes = [module.training for module in model.layer]
        return served, modes, torch.cat([parameter.flatten() for parameter in model.state_dict().values()])

    without, modes, expected = weights("a", Dropping())
    drawn, same_modes, found = weights("b", Dropping(), Dashboard())
    undrawn, _, _ = weights("c", Dropping(example=False), Dashboard())
    assert (without.Tags()["graph"], drawn.Tags()["graph"], undrawn.Tags()["graph"]) == (False, True, False)
    assert any("Linear" in node.op or "linear" in node.name.lower() for node in drawn.Graph().node)
    assert modes == same_modes
    assert torch.equal(found, expected)


def test_a_module_that_cannot_be_traced_trains_without_a_graph(tmp_path, caplog):
    class Untraceable(Dropping):
        def forward(self, x):
            raise TypeError("not by itself")

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).mean()

    with caplog.at_level("INFO"):
        served = fit(tmp_path, Untraceable(), Dashboard())
    assert "Dashboard: no graph in TensorBoard, the module cannot be traced: not by itself" in caplog.text
    assert not served.Tags()["graph"]
    assert text_of(served)


class Slope(Net):
    """The gradient of every weight is the number of the batch."""

    def training_step(self, batch, batch_idx):
        return sum(parameter.sum() for parameter in self.parameters()) * batch_idx


def test_the_gradient_norm_is_that_of_all_weights_before_clipping(tmp_path):
    logger = CSVLogger(tmp_path / "csv", name="", version="")
    both = [TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False), logger]
    page = Dashboard(every_n_steps=3)
    served = fit(tmp_path, Slope(), page, logger=both, gradient_clip_val=1.0, max_epochs=1)
    norms = [(event.step, event.value) for event in served.Scalars("train/gradient_norm")]
    assert norms == [(step, pytest.approx(math.sqrt(4) * step, rel=1e-6)) for step in (0, 3, 6)]
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    written = [(int(row["step"]), float(row["train/gradient_norm"])) for row in rows if row["train/gradient_norm"]]
    assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in norms]
    assert sum(row["train/seconds"] != "" for row in rows) == 1


class Scaled(Slope):
    """Its fused optimizer unscales in its kernel, and skips batch 3, whose gradient is infinite."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, math.inf if batch_idx == 3 else batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)


def test_the_gradient_norm_of_a_fused_optimizer_is_not_scaled_and_a_skipped_update_has_none(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    served = fit(tmp_path, Scaled(), Dashboard(every_n_steps=1), plugins=[plugin], max_epochs=1)
    norms = [(event.step, event.value) for event in served.Scalars("train/gradient_norm")]
    batches = [0, 1, 2, 4, 5, 6, 7]
    assert norms == [(step, pytest.approx(2.0 * batch, rel=1e-3)) for step, batch in enumerate(batches)]


def test_each_optimizer_has_a_gradient_norm_of_its_own_with_its_own_steps_also_when_resumed(tmp_path):
    def steps(folder, **arguments):
        logger = CSVLogger(folder, name="", version="")
        run = trainer(Dashboard(every_n_steps=1), logger=logger, max_epochs=2, log_every_n_steps=1)
        run.fit(Gan(), weights_only=True, **arguments)
        run.save_checkpoint(folder / "last.ckpt")
        rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
        return [
            [int(row["step"]) for row in rows if row.get(f"train/gradient_norm-{name}")] for name in ("Adam", "Adam-1")
        ]

    class Saves(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "first.ckpt")

    trainer(Dashboard(every_n_steps=1), Saves(), max_epochs=1).fit(Gan())
    assert steps(tmp_path / "whole") == [[*range(6)], [*range(16)]]  # of 8 batches the generator trains on 0, 3, 6
    assert steps(tmp_path / "resumed", ckpt_path=tmp_path / "first.ckpt") == [[3, 4, 5], [*range(8, 16)]]


def test_seconds_of_a_resumed_run_are_those_of_both_parts():
    page = Dashboard()
    page.load_state_dict({"version": 2, "seconds": 100.0, "later": 1})
    assert 100.0 <= page.state_dict()["seconds"] < 160.0


def test_a_fast_dev_run_and_a_run_without_loggers_write_nothing(tmp_path):
    trainer(Dashboard(), fast_dev_run=2).fit(Net())
    trainer(Dashboard(), max_epochs=1).fit(Net())
    assert not list(tmp_path.iterdir())


def test_a_row_takes_a_hyperparameter_of_any_type(tmp_path):
    writer = SummaryWriter(tmp_path)
    write_hyperparameters(writer, {"warmup": [1, 2], "lr": np.float32(0.5), "seed": 3, "data": None}, 0.0)
    writer.close()
    content = EventAccumulator(str(tmp_path)).Reload().SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data
    row = metadata.parse_session_start_info_plugin_data(content.content).hparams
    assert (row["warmup"].string_value, row["lr"].string_value, row["seed"].number_value) == ("[1, 2]", "0.5", 3.0)
    assert row["data"].string_value == "None"


@pytest.mark.parametrize("callback", [CooldownOnPlateau, Dashboard, LearningRateLogger, TrainingCurves])
def test_a_state_of_another_version_is_refused(callback):
    with pytest.raises(ValueError, match=f"written by lit_cosine 1.x, whose state of {callback.__name__} cannot be"):
        callback().load_state_dict({"seconds": 1.0, "done": [3]})
    with pytest.raises(ValueError, match=f"the state of {callback.__name__} has version 3 and this lit_cosine reads"):
        callback().load_state_dict({"version": 3})
    callback().load_state_dict({"version": 2, "unknown": 1})


def test_loggers_of_hyperparameters_record_what_a_schedule_is():
    from lightning.fabric.utilities.logger import _sanitize_callable_params  # what WandbLogger calls

    assert _sanitize_callable_params({"schedule": Cosine(end=0.1)}) == {"schedule": repr(Cosine(end=0.1))}
    assert Cosine.__name__ == "Cosine"
