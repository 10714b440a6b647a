import math
import re
import time
from collections import OrderedDict

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from lit_cosine import Cosine, LearningRateLogger, LitClassifier, ScheduleAudit, SyntheticDataModule, TrainingCurves
from lit_cosine.monitors import EpochLine, _listener, _training_curves
from lit_cosine.training import lr_scheduler_config

ARTICLE = [
    0.00975528, 0.00904508, 0.00793893, 0.00654508, 0.00500000, 0.00345492, 0.00206107, 0.00095492, 0.00024472, 0.0,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Kept(Logger):
    """Keeps what is logged, by tag."""

    name, version, experiment = "kept", 0, None

    def __init__(self):
        super().__init__()
        self.points = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for tag, value in metrics.items():
            self.points.setdefault(tag, []).append((step, value))

    def lrs(self):
        return {tag: points for tag, points in self.points.items() if "lr-" in tag}


class Falling(LightningModule):
    """Its weights fall by exactly the LR at every update: the witness of the LR that was used."""

    def __init__(self, groups=1, batches=8, schedule=True, name=None):
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.zeros((), dtype=torch.float64) for _ in range(groups)])
        self.batches, self.schedule, self.name = batches, schedule, name
        self.fallen = []

    def train_dataloader(self):
        return DataLoader(torch.zeros(self.batches, 1))

    def configure_optimizers(self):
        groups = [{"params": [weight], "lr": 0.1 / (i + 1)} for i, weight in enumerate(self.weights)]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        if not self.schedule:
            return optimizer
        scheduler = lr_scheduler_config(optimizer, Cosine(), self.trainer, name=self.name)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch, batch_idx):
        return sum(self.weights)

    def optimizer_step(self, *args, **kwargs):
        before = [weight.item() for weight in self.weights]
        super().optimizer_step(*args, **kwargs)
        self.fallen.append([old - weight.item() for old, weight in zip(before, self.weights, strict=False)])


def trainer(path, *callbacks, logger=None, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    arguments = {"max_epochs": 2, "default_root_dir": path, "enable_checkpointing": False, **quiet, **arguments}
    return Trainer(callbacks=list(callbacks), logger=Kept() if logger is None else logger, **arguments)


LOGS_RARELY = pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")


@LOGS_RARELY
def test_every_step_and_the_last_value_are_logged_although_log_every_n_steps_is_longer_than_the_run(tmp_path):
    model, run = Falling(), trainer(tmp_path, LearningRateLogger())
    run.fit(model)
    ((tag, points),) = run.logger.lrs().items()
    assert tag == "lr-SGD"
    assert [step for step, _ in points] == list(range(17))
    by_hand = [0.1 * (1 + math.cos(math.pi * k / 16)) / 2 for k in range(17)]
    assert [lr for _, lr in points] == pytest.approx(by_hand, rel=1e-12, abs=1e-18)
    assert [lr for _, lr in points[:-1]] == pytest.approx([fall for (fall,) in model.fallen], rel=1e-9, abs=1e-15)


@LOGS_RARELY
def test_one_point_for_each_update_under_accumulation(tmp_path):
    model, run = Falling(), trainer(tmp_path, LearningRateLogger(), accumulate_grad_batches=3)
    run.fit(model)
    points = run.logger.lrs()["lr-SGD"]
    assert [step for step, _ in points] == list(range(7))  # 3 updates from 8 batches, twice
    by_hand = [0.1 * (1 + math.cos(math.pi * k / 6)) / 2 for k in range(7)]
    assert [lr for _, lr in points] == pytest.approx(by_hand, rel=1e-12, abs=1e-18)


class Meddler(Callback):
    """Changes the LR at every moment somebody might."""

    def on_fit_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(lambda optimizer, *_: self.lower(trainer))

    def lower(self, trainer):
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= 0.9

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lower(trainer)

    def on_before_backward(self, trainer, pl_module, loss):
        self.lower(trainer)  # the optimizer's step has begun by now: it is what computes the loss

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.lower(trainer)


@LOGS_RARELY
@pytest.mark.parametrize("meddler_first", [True, False])
def test_the_lr_that_was_used_is_logged_whoever_set_it_and_in_any_order(tmp_path, meddler_first):
    callbacks = [Meddler(), LearningRateLogger()] if meddler_first else [LearningRateLogger(), Meddler()]
    model, run = Falling(groups=2, schedule=False), trainer(tmp_path, *callbacks, max_epochs=1)
    run.fit(model)
    points = run.logger.lrs()
    for tag, used in zip(("lr-SGD/pg1", "lr-SGD/pg2"), zip(*model.fallen, strict=True), strict=True):
        assert [lr for _, lr in points[tag][:-1]] == pytest.approx(list(used), rel=1e-9)
    assert len({lr for _, lr in points["lr-SGD/pg1"]}) == 9


class TwoOptimizers(Falling):
    """Manual optimization: the second optimizer steps every other batch."""

    automatic_optimization = False

    def __init__(self):
        super().__init__(groups=3)
        self.automatic_optimization = False

    def configure_optimizers(self):
        a, b, c = self.weights
        return torch.optim.SGD([a, b], lr=0.1), torch.optim.SGD([{"params": [c], "name": "head"}], lr=0.2)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers()[: 1 + (batch_idx + 1) % 2]:
            optimizer.zero_grad()
            self.manual_backward(sum(self.weights))
            optimizer.step()


@LOGS_RARELY
@pytest.mark.parametrize("make", [Falling, lambda: Falling(groups=2), lambda: Falling(name="lr-x/y"), TwoOptimizers])
def test_tags_are_learning_rate_monitors(tmp_path, make):
    monitor = trainer(tmp_path, LearningRateMonitor(), max_epochs=1, log_every_n_steps=1)
    monitor.fit(make())
    ours = trainer(tmp_path, LearningRateLogger(), max_epochs=1)
    ours.fit(make())
    assert ours.logger.lrs().keys() == monitor.logger.lrs().keys()


@LOGS_RARELY
def test_each_optimizer_counts_its_own_updates(tmp_path):
    run = trainer(tmp_path, LearningRateLogger(), max_epochs=1)
    run.fit(TwoOptimizers())
    points = run.logger.lrs()
    assert points["lr-SGD"] == [(step, 0.1) for step in range(9)]
    assert points["lr-SGD-1/head"] == [(step, 0.2) for step in range(5)]


class Skips(Falling):
    """A GradScaler that refuses the updates of batches 2 and 5, whose gradients are infinite."""

    def __init__(self):
        super().__init__(schedule=False)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.scaler.scale(self.weights[0] * (math.inf if batch_idx in (2, 5) else 1.0)).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


@LOGS_RARELY
def test_an_update_that_was_skipped_is_no_point(tmp_path):
    run = trainer(tmp_path, LearningRateLogger(), max_epochs=1)
    run.fit(Skips())
    assert [step for step, _ in run.logger.lrs()["lr-SGD"]] == list(range(7))


class Silent(torch.optim.Optimizer):
    """A wrapper that leaves ``Optimizer.__init__`` out, as timm's Lookahead: its hooks never fire."""

    def __init__(self, base):
        self.base, self.param_groups, self.defaults, self.state = base, base.param_groups, base.defaults, base.state
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()

    def step(self, closure=None):
        return self.base.step(closure)

    def zero_grad(self, set_to_none=True):  # torch 2.13: Optimizer's own patches step, so that hooks fire from then on
        self.base.zero_grad(set_to_none)


@LOGS_RARELY
@pytest.mark.parametrize("overflows", [(), (0, 1, 5)])
def test_an_optimizer_without_hooks_has_a_point_for_every_update_under_a_grad_scaler_too(tmp_path, overflows):
    class Wrapped(Falling):
        def configure_optimizers(self):
            return Silent(torch.optim.SGD(self.weights, lr=0.1))

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.inf if batch_idx in overflows else 1.0)

    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1.0))
    run = trainer(tmp_path, LearningRateLogger(), max_epochs=1, plugins=[plugin])
    run.fit(Wrapped(schedule=False))
    assert run.logger.lrs()["lr-Silent"] == [(step, 0.1) for step in range(9 - len(overflows))]


class Watch(Callback):
    """Says how many points the logger had when a batch began."""

    def __init__(self, act=None):
        self.seen, self.act = [], act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(len(trainer.logger.lrs().get("lr-SGD", ())))
        if self.act is not None:
            self.act(trainer, trainer.global_step)


@pytest.fixture
def _no_hurry(monkeypatch):
    """A busy machine may take half a second for a batch."""
    monkeypatch.setattr(_listener, "_SECONDS", math.inf)


@LOGS_RARELY
def test_points_wait_no_longer_than_half_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(_listener, "_SECONDS", 0.0)
    watch = Watch()
    trainer(tmp_path, LearningRateLogger(), watch, max_epochs=1).fit(Falling())
    assert watch.seen == list(range(8))


@LOGS_RARELY
@pytest.mark.usefixtures("_no_hurry")
def test_points_are_written_before_a_validation(tmp_path):
    class Validated(Falling):
        def val_dataloader(self):
            return DataLoader(torch.zeros(1, 1))

        def validation_step(self, batch, batch_idx):
            pass

    watch = Watch()
    trainer(tmp_path, LearningRateLogger(), watch, max_epochs=1, val_check_interval=4).fit(Validated())
    assert watch.seen == [0, 0, 0, 0, 4, 4, 4, 4]


@LOGS_RARELY
def test_points_carry_the_time_of_their_update(tmp_path):
    made = []

    class Timed(Falling):
        def optimizer_step(self, *args, **kwargs):
            before = time.time()
            super().optimizer_step(*args, **kwargs)
            made.append((before, time.time()))
            time.sleep(0.02)

    logger = TensorBoardLogger(tmp_path, name="", version="", prefix="mine")
    trainer(tmp_path, LearningRateLogger(), logger=logger, max_epochs=1).fit(Timed())
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload().Scalars("mine-lr-SGD")
    assert [event.step for event in events] == list(range(9))
    for (before, after), event in zip(made, events, strict=False):
        assert before <= event.wall_time <= after


@LOGS_RARELY
@pytest.mark.usefixtures("_no_hurry")
def test_points_are_written_in_bundles(tmp_path, monkeypatch):
    watch = Watch()
    trainer(tmp_path, LearningRateLogger(), watch).fit(Falling())
    assert watch.seen == [0] * 8 + [8] * 8
    monkeypatch.setattr(_listener, "BUFFER", 3)
    watch = Watch()
    trainer(tmp_path, LearningRateLogger(), watch, max_epochs=1).fit(Falling())
    assert watch.seen == [0, 0, 0, 3, 3, 3, 6, 6]


@LOGS_RARELY
@pytest.mark.usefixtures("_no_hurry")
def test_a_checkpoint_and_an_exception_write_what_was_done(tmp_path):
    def act(run, step):
        if step == 2:
            run.save_checkpoint(tmp_path / "model.ckpt")
        if step == 5:
            raise RuntimeError("stop")

    watch = Watch(act)
    run = trainer(tmp_path, LearningRateLogger(), watch)
    with pytest.raises(RuntimeError, match="stop"):
        run.fit(model := Falling())
    assert watch.seen == [0, 0, 0, 2, 2, 2]
    assert [step for step, _ in run.logger.lrs()["lr-SGD"]] == list(range(5))
    assert len(model.fallen) == 5
    (optimizer,) = run.optimizers
    # what is left is the scheduler's own, which is the module's
    assert all("TrainerLR" in repr(hook) for hook in optimizer._optimizer_step_pre_hooks.values())
    assert all("TrainerLR" in repr(hook) for hook in optimizer._optimizer_step_post_hooks.values())


class Unfreezes(Falling):
    """A second group joins in the second epoch."""

    def configure_optimizers(self):
        return torch.optim.SGD([self.weights[0]], lr=0.1)

    def join(self):
        self.optimizers(use_pl_optimizer=False).add_param_group({"params": [self.weights[1]], "lr": 0.5})

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.join()


class ResumesUnfrozen(Falling):
    def configure_optimizers(self):
        a, b = self.weights
        return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=0.1)


@LOGS_RARELY
def test_a_group_that_joins_renames_none_also_when_resumed(tmp_path):
    run = trainer(tmp_path, LearningRateLogger())
    run.fit(Unfreezes(groups=2))
    assert run.logger.lrs() == {
        "lr-SGD": [(step, 0.1) for step in range(17)],
        "lr-SGD/pg2": [(step, 0.5) for step in range(8, 17)],
    }
    run.save_checkpoint(tmp_path / "model.ckpt")
    resumed = trainer(tmp_path, LearningRateLogger(), max_epochs=3)
    resumed.fit(ResumesUnfrozen(groups=2), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert resumed.logger.lrs() == {
        "lr-SGD": [(step, 0.1) for step in range(16, 25)],
        "lr-SGD/pg2": [(step, 0.5) for step in range(16, 25)],
    }


@LOGS_RARELY
def test_without_a_logger_or_an_optimizer_nothing_is_asked_for(tmp_path):
    class NoOptimizer(Falling):
        def configure_optimizers(self):
            return None

    trainer(tmp_path, LearningRateLogger(), logger=False, max_epochs=1).fit(Falling())
    with pytest.warns(UserWarning, match="will run with no optimizer"):
        trainer(tmp_path, LearningRateLogger(), TrainingCurves(), max_epochs=1).fit(NoOptimizer())


def lines(axes):
    return {line.get_label(): [list(map(float, data)) for data in line.get_data()] for line in axes.get_lines()}


@LOGS_RARELY
def test_the_articles_lines_and_curves(tmp_path, capsys):
    torch.manual_seed(42)
    curves = TrainingCurves()
    run = trainer(
        tmp_path, LearningRateLogger(), EpochLine(), curves, logger=TensorBoardLogger(tmp_path), max_epochs=10
    )
    run.fit(LitClassifier(), SyntheticDataModule(batch_size=200))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [line.split(", LR: ")[1] for line in printed] == [f"{lr:.8f}" for lr in ARTICLE]
    assert [line.split(", ")[0] for line in printed] == [f"Epoch {epoch}/10" for epoch in range(1, 11)]
    served = EventAccumulator(run.log_dir, size_guidance={"scalars": 0}).Reload()
    losses = [f"Loss: {event.value:.4f}" for event in served.Scalars("train/loss")]
    assert [line.split(", ")[1] for line in printed] == losses
    after_epochs = {event.step: event.value for event in served.Scalars("lr-Adam")}
    assert [after_epochs[4 * epoch] for epoch in range(1, 11)] == pytest.approx(ARTICLE, rel=1e-6, abs=5e-9)

    assert curves.path == tmp_path / "lightning_logs" / "version_0" / "training_curves.png"
    assert curves.path.read_bytes().startswith(b"\x89PNG")
    (image,) = served.Images("training_curves")
    assert image.step == 40
    left, right = curves.figure.axes
    steps, lrs = lines(left)["lr-Adam"]
    assert steps == list(range(41))
    assert lrs[4::4] == pytest.approx(ARTICLE, abs=5e-9)
    losses = {tag: [event.value for event in served.Scalars(tag)] for tag in ("train/loss", "val/loss")}
    drawn = lines(right)
    epoch_ends = list(range(4, 41, 4))
    assert drawn["training, epoch mean"] == [epoch_ends, pytest.approx(losses["train/loss"], rel=1e-6)]
    assert drawn["validation"] == [epoch_ends, pytest.approx(losses["val/loss"], rel=1e-6)]
    assert drawn["training"][0] == list(range(40))


@LOGS_RARELY
def test_curves_under_accumulation_show_the_loss_of_the_whole_window(tmp_path):
    class Numbered(Falling):
        def training_step(self, batch, batch_idx):
            return sum(self.weights) * 0 + batch_idx

    curves = TrainingCurves()
    trainer(tmp_path, curves, logger=False, max_epochs=1, accumulate_grad_batches=3).fit(Numbered())
    assert lines(curves.figure.axes[1])["training"] == [[0, 1, 2], [1.0, 4.0, 6.5]]  # of 0 1 2, 3 4 5, 6 7


@LOGS_RARELY
def test_curves_are_drawn_after_an_interruption_and_overwrite_nothing(tmp_path):
    def act(run, step):
        if step == 5:
            raise RuntimeError("stop")

    (tmp_path / "training_curves.png").write_bytes(b"somebody's")
    curves = TrainingCurves()
    run = trainer(tmp_path, curves, Watch(act))
    with pytest.raises(RuntimeError, match="stop"):
        run.fit(Falling())
    assert curves.path == tmp_path / "training_curves-1.png"
    assert lines(curves.figure.axes[0])["lr-SGD"][0] == list(range(5))
    assert (tmp_path / "training_curves.png").read_bytes() == b"somebody's"


@LOGS_RARELY
def test_the_picture_is_kept_current_in_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_training_curves, "_SHARE", math.inf)
    curves = TrainingCurves()
    run = trainer(tmp_path, curves, logger=TensorBoardLogger(tmp_path, name="", version=""), max_epochs=3)
    run.fit(Falling())
    images = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Images("training_curves")
    assert [image.step for image in images] == [8, 16, 24, 24]
    assert len({image.encoded_image_string for image in images[:3]}) == 3
    assert [path.name for path in tmp_path.glob("*.png")] == ["training_curves.png"]
    assert curves.path.read_bytes()


@LOGS_RARELY
def test_a_resumed_run_draws_the_whole_run_into_its_own_file(tmp_path, monkeypatch):
    class Counted(Falling):
        def training_step(self, batch, batch_idx):
            return sum(self.weights) * 0 + self.trainer.global_step

    def act(run, step):
        if step == 11:
            run.save_checkpoint(tmp_path / "model.ckpt")
        if step == 13:
            raise RuntimeError("stop")

    monkeypatch.setattr(_training_curves, "_SHARE", math.inf)
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, TrainingCurves(), Watch(act), max_epochs=3).fit(Counted())
    curves = TrainingCurves()
    run = trainer(tmp_path, curves, max_epochs=3)
    with pytest.warns(UserWarning, match="resuming from a checkpoint that ended before the epoch"):
        run.fit(Counted(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    lrs, losses = map(lines, curves.figure.axes)
    assert lrs["lr-SGD"][0][:12] == list(range(12))
    assert losses["training"][0][:12] == losses["training"][1][:12] == list(range(12))
    assert losses["training, epoch mean"][1][:1] == [3.5]
    assert [path.name for path in tmp_path.glob("*.png")] == ["training_curves.png"]


def test_a_checkpoint_holds_no_more_points_than_a_picture_shows(monkeypatch):
    monkeypatch.setattr(_training_curves, "_KEPT", 4)
    curves = TrainingCurves()
    curves._lrs["lr"] = list(range(10)), [0.5 * step for step in range(10)]
    again = TrainingCurves()
    again.load_state_dict(curves.state_dict())
    assert again._lrs == {"lr": ([0, 3, 6, 9], [0.0, 1.5, 3.0, 4.5])}


class FindsOnTheWay(LearningRateFinder):
    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


@LOGS_RARELY
def test_the_trials_of_an_lr_finder_are_no_points(tmp_path):
    class Found(Falling):
        lr = 0.1

    finder, curves = FindsOnTheWay(num_training_steps=3, update_attr=False), TrainingCurves()
    model, run = Found(schedule=False), trainer(tmp_path, LearningRateLogger(), curves, finder, max_epochs=3)
    run.fit(model)
    assert len(model.fallen) > 24  # it did try some
    assert run.logger.lrs()["lr-SGD"] == [(step, 0.1) for step in range(25)]
    assert lines(curves.figure.axes[0])["lr-SGD"] == [list(range(25)), [0.1] * 25]


class Numbered(Falling):
    """Its loss is the number of the batch."""

    def training_step(self, batch, batch_idx):
        return sum(self.weights) * 0 + batch_idx


@LOGS_RARELY
@pytest.mark.parametrize(
    ("accumulated", "losses"), [(1, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), (3, [1.0, 4.0, 6.5])]
)
def test_the_loss_of_every_update_is_written_where_a_tag_is_given(tmp_path, accumulated, losses, monkeypatch):
    for buffer in (1000, 2):
        monkeypatch.setattr(_listener, "BUFFER", buffer)
        callback = LearningRateLogger(loss_tag="train/loss_step")
        run = trainer(tmp_path, callback, accumulate_grad_batches=accumulated)
        run.fit(Numbered())
        assert run.logger.points["train/loss_step"] == list(enumerate(losses * 2))
        assert [step for step, _ in run.logger.points["lr-SGD"]] == list(range(2 * len(losses) + 1))
    plain = trainer(tmp_path, LearningRateLogger(), max_epochs=1)
    plain.fit(Numbered())
    assert "train/loss_step" not in plain.logger.points


@LOGS_RARELY
@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_loses_no_loss_and_a_resumed_run_goes_on_with_the_next(tmp_path, interruption):
    def act(run, step):
        if step == 4:
            run.save_checkpoint(tmp_path / "model.ckpt")
        if step == 5:
            raise interruption

    broken = trainer(tmp_path, LearningRateLogger(loss_tag="train/loss_step"), Watch(act))
    with pytest.raises((RuntimeError, SystemExit)):
        broken.fit(Numbered())
    assert broken.logger.points["train/loss_step"] == list(enumerate(map(float, range(5))))
    resumed = trainer(tmp_path, LearningRateLogger(loss_tag="train/loss_step"), max_epochs=1)
    with pytest.warns(UserWarning, match="resuming from a checkpoint that ended before the epoch"):
        resumed.fit(Numbered(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert [step for step, _ in resumed.logger.points["train/loss_step"]] == [4, 5, 6, 7]


@LOGS_RARELY
def test_a_resume_that_is_refused_draws_nothing(tmp_path):
    run = trainer(tmp_path, TrainingCurves(), max_epochs=4)
    run.fit(Falling())
    run.save_checkpoint(tmp_path / "model.ckpt")
    picture = (tmp_path / "training_curves.png").stat().st_mtime_ns
    again = trainer(tmp_path, TrainingCurves(), max_epochs=1, logger=TensorBoardLogger(tmp_path))
    with pytest.raises(MisconfigurationException, match=r"current_epoch=4.*max_epochs=1"):
        again.fit(Falling(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert (tmp_path / "training_curves.png").stat().st_mtime_ns == picture
    assert len([*tmp_path.rglob("*.png")]) == 1


class TwoKinds(TwoOptimizers):
    """Another number of updates for each of two optimizers, which may change places."""

    def __init__(self, swapped=False):
        super().__init__()
        self.swapped = swapped

    def configure_optimizers(self):
        a, b, _ = self.weights
        pair = torch.optim.SGD([a], lr=0.1), torch.optim.Adam([b], lr=0.2)
        return pair[::-1] if self.swapped else pair


@LOGS_RARELY
def test_a_state_is_matched_by_the_optimizers_name(tmp_path):
    def begin(run, step):
        if step:
            state.update(run.callbacks[0].state_dict())

    state = {}
    trainer(tmp_path, LearningRateLogger(), Watch(begin), max_epochs=1).fit(TwoKinds())
    assert state == {
        "version": 2,
        "optimizers": {"SGD": {"updates": 7, "tags": ["lr-SGD"]}, "Adam": {"updates": 4, "tags": ["lr-Adam"]}},
    }
    again = LearningRateLogger()

    class Loads(Callback):
        def on_fit_start(self, trainer, pl_module):
            again.load_state_dict(state)

    run = trainer(tmp_path, again, Loads(), max_epochs=1)
    run.fit(TwoKinds(swapped=True))
    assert [step for step, _ in run.logger.lrs()["lr-Adam"]] == list(range(4, 13))
    assert [step for step, _ in run.logger.lrs()["lr-SGD"]] == list(range(7, 12))


class Shown(Callback):
    """Keeps what the progress bar shows after each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append({tag: value for tag, value in trainer.progress_bar_metrics.items() if "lr-" in tag})


@pytest.mark.parametrize("schedule", [True, False])
def test_the_bar_shows_the_lr_of_the_last_update(tmp_path, schedule):
    model, shown = Falling(groups=2, schedule=schedule), Shown()
    logger = LearningRateLogger(prog_bar=True, prefix="optim/", names={"lr-SGD/pg2": "lr-head"})
    run = trainer(tmp_path, logger, shown, max_epochs=1, log_every_n_steps=1)
    run.fit(model)
    for seen, fallen in zip(shown.seen[1:], model.fallen, strict=False):
        assert seen == pytest.approx({"optim/lr-SGD/pg1": fallen[0], "optim/lr-head": fallen[1]}, rel=1e-6)
    used = [lr for _, lr in run.logger.points["optim/lr-head"]]
    assert used[:-1] == pytest.approx([fallen[1] for fallen in model.fallen], rel=1e-12)
    assert set(run.logger.lrs()) == {"optim/lr-SGD/pg1", "optim/lr-head"}


def test_a_bar_shows_four_lrs_at_most(tmp_path):
    shown = Shown()
    trainer(tmp_path, LearningRateLogger(prog_bar=True), shown, max_epochs=1, log_every_n_steps=1).fit(
        Falling(groups=6)
    )
    assert [*shown.seen[-1]] == [f"lr-SGD/pg{index}" for index in (1, 2, 3, 4)]


def test_a_name_for_a_curve_that_never_was_is_warned_of(tmp_path):
    logger = LearningRateLogger(names={"lr-Adam": "lr-all"})
    with pytest.warns(UserWarning, match="LearningRateLogger.names: no curve was called lr-Adam"):
        trainer(tmp_path, logger, max_epochs=1, log_every_n_steps=1).fit(Falling())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prog_bar": "yes"}, TypeError, "prog_bar must be True or False, got 'yes'"),
        ({"prefix": 1}, TypeError, "prefix must be text, got 1"),
        ({"names": ["head"]}, TypeError, "names must map tags to names, as {'lr-AdamW/pg1': 'head'}, got ['head']"),
        ({"names": {"lr-a": "x", "lr-b": "x"}}, ValueError, "names must give every tag a name of its own, got {"),
    ],
)
def test_wrong_arguments_of_the_logger(settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LearningRateLogger(**settings)


class Validated(Falling):
    """Logs what it is asked to after every epoch."""

    def __init__(self, *names, schedule=True):
        super().__init__(schedule=schedule)
        self.names = names

    def val_dataloader(self):
        return DataLoader(torch.zeros(1, 1))

    def validation_step(self, batch, batch_idx):
        for value, name in enumerate(self.names, start=1):
            self.log(name, float(value))


@pytest.mark.parametrize(
    ("logged", "monitored", "expected"),
    [
        (["train/loss", "val/accuracy", "val/loss"], [], "val/loss"),
        (["val_loss", "val_loss_step", "val_loss_epoch", "val_kl_loss"], ["val_kl_loss"], "val_loss"),
        (["valid_loss"], [], "valid_loss"),
        (["loss/validation", "train/value_loss", "interval_loss"], [], "loss/validation"),
        (["Val_Loss_A", "Val_Loss_B"], [None, "accuracy"], None),
        (["Val_Loss_A", "Val_Loss_B"], ["Val_Loss_B"], "Val_Loss_B"),
        (["train/loss", "val/accuracy"], ["val/accuracy"], None),
    ],
)
def test_the_validation_loss_is_found_by_its_name(logged, monitored, expected):
    assert _training_curves.validation_loss(logged, monitored) == expected


@LOGS_RARELY
def test_curves_find_the_validation_loss_say_what_they_draw_and_draw_the_plan_beside_it(tmp_path, caplog):
    curves = TrainingCurves()
    with caplog.at_level("INFO"):
        trainer(tmp_path, curves, ScheduleAudit()).fit(Validated("val_kl", "val_loss"))
    lrs, losses = map(lines, curves.figure.axes)
    assert losses["validation"] == [[8.0, 16.0], [2.0, 2.0]]
    assert lrs["lr-SGD planned"] == [lrs["lr-SGD"][0], pytest.approx(lrs["lr-SGD"][1])]
    drawn = "lr-SGD, the planned LR, the training loss, the validation loss val_loss"
    assert [one.message for one in caplog.records if "TrainingCurves" in one.message] == [
        f"TrainingCurves: {drawn} in {tmp_path / 'training_curves.png'}"
    ]


@LOGS_RARELY
@pytest.mark.parametrize("validated", [True, False])
def test_a_monitor_that_is_not_logged_is_one_warning_with_the_names(tmp_path, validated):
    model = Validated("val_loss", "val_kl") if validated else Falling()
    with pytest.warns(UserWarning, match="TrainingCurves") as caught:
        trainer(tmp_path, TrainingCurves(monitor="val/los")).fit(model)
    names = "val_kl, val_loss" if validated else "nothing"
    assert [str(one.message) for one in caught if "TrainingCurves" in str(one.message)] == [
        f"TrainingCurves: monitor must name a metric that is logged ({names}), got 'val/los'"
    ]
