import copy
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from setups import (
    QUIET,
    Net,
    SetUp,
    net,
    ours,
    per_step,
    transformers_cosine,
    two_groups,
    with_scheduler,
    without,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from lit_cosine import Cosine, LearningRateLogger, LearningRateScheduler, ScheduleAudit, lr_scheduler_config
from lit_cosine.audit import ScheduleProblem
from lit_cosine.cli import main
from lit_cosine.followup import Followup
from lit_cosine.playback import Run, play
from lit_cosine.situation import Situation


def fit(module, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(0)
    options = {"max_epochs": 3, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **{**QUIET, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def codes(audit):
    return [finding.code for finding in audit.findings]


def with_counter():
    """A factor that changes whenever somebody asks for it."""
    count = 0

    def factor(step):
        nonlocal count
        count += 1
        return 1 / (1 + count)

    return factor


AUDITED = [
    SetUp("cosine", net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24)))),
    SetUp("one cycle, momentum too", net(per_step(lambda sgd: OneCycleLR(sgd, 0.1, total_steps=24), momentum=0.9))),
    SetUp("sequence", net(per_step(lambda sgd: SequentialLR(sgd, [LinearLR(sgd), CosineAnnealingLR(sgd, 20)], [4])))),
    SetUp("a function that counts its calls", net(per_step(lambda sgd: LambdaLR(sgd, with_counter())))),
    SetUp("a tensor LR", net(per_step(lambda sgd: ExponentialLR(sgd, 0.9), lr=torch.tensor(0.1)))),
    SetUp("ours", net(ours(Cosine(), warmup="3step"))),
    SetUp("the callback", net(without), callbacks=lambda: [LearningRateScheduler(Cosine())]),
]


@pytest.mark.parametrize("setup", AUDITED, ids=lambda setup: setup.name)
def test_an_audited_run_is_the_run_it_would_have_been(setup):
    ends = []
    for audits in ([], [ScheduleAudit("print")]):
        torch.manual_seed(0)
        module, callbacks = setup.net(), setup.callbacks()
        trainer = fit(module, *audits, *callbacks)
        schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        schedulers += [callback.schedulers[0].state_dict() for callback in callbacks]
        ends.append((module.state_dict(), trainer.optimizers[0].state_dict(), schedulers, torch.get_rng_state()))
    for plain, audited in zip(*ends, strict=True):
        assert repr(plain) == repr(audited)
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0])


@pytest.mark.parametrize("first", [True, False])
def test_the_order_of_the_callbacks_does_not_matter(first):
    audit, scheduler = ScheduleAudit("print"), LearningRateScheduler(Cosine(), warmup="3step")
    fit(Net(without), *([audit, scheduler] if first else [scheduler, audit]))
    assert audit.findings == []
    assert audit.differences == []
    (plan,) = audit.plan
    assert (plan.first, plan.peak, plan.after, plan.changes) == (pytest.approx(0.025), 0.1, 0.0, 23)


def test_the_plan_of_every_group():
    audit = ScheduleAudit("print")
    fit(Net(two_groups(lambda sgd: LambdaLR(sgd, [lambda step: 1.0, lambda step: 0.5**step]))), audit, max_epochs=1)
    frozen, halved = audit.plan
    assert (frozen.name, frozen.first, frozen.last, frozen.changes) == ("lr-SGD/pg1", 1e-4, 1e-4, 0)
    assert (halved.name, halved.first, halved.peak, halved.changes) == ("lr-SGD/pg2", 0.1, 0.1, 7)
    assert halved.last == pytest.approx(0.1 * 0.5**7, rel=1e-12)
    assert halved.after == pytest.approx(0.1 * 0.5**8, rel=1e-12)


WRONG = per_step(lambda sgd: CosineAnnealingLR(sgd, 12))


def test_raise_stops_before_the_first_update():
    module = Net(WRONG)
    before = copy.deepcopy(module.state_dict())
    audit = ScheduleAudit("raise")
    with pytest.raises(ScheduleProblem, match=r"climbs from 0 to 0\.0983") as caught:
        fit(module, audit)
    assert isinstance(caught.value, ValueError)
    assert audit.differences == []  # a run that was refused has not parted from its plan
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_raise_lets_a_right_run_pass():
    audit = ScheduleAudit("raise")
    assert fit(Net(per_step(lambda sgd: CosineAnnealingLR(sgd, 24))), audit).global_step == 24
    assert audit.findings == []


def test_warn_warns_and_trains():
    trainer = pl.Trainer(callbacks=[ScheduleAudit()], max_epochs=3, **QUIET)
    with pytest.warns(UserWarning, match=r"ScheduleAudit: \[climbs-after-end\] CosineAnnealingLR ends its curve"):
        trainer.fit(Net(WRONG))
    assert trainer.global_step == 24


@pytest.mark.parametrize("value", ["error", "", None, True])
def test_an_unknown_on_problem_is_refused(value):
    with pytest.raises(ValueError, match="on_problem must be one of warn, raise, print, got"):
        ScheduleAudit(value)


def test_fast_dev_run_is_not_judged(capsys):
    audit = ScheduleAudit("print")
    fit(Net(WRONG), audit, fast_dev_run=True)
    assert audit.findings == []
    assert "fast_dev_run" in capsys.readouterr().out


def test_a_module_without_an_optimizer(capsys):
    class Frozen(Net):
        def training_step(self, batch, batch_idx):
            return None

    audit = ScheduleAudit("print")
    fit(Frozen(lambda module: None), audit)
    assert audit.findings == []
    assert "the module has no optimizer" in capsys.readouterr().out


def test_a_pytorch_lightning_project_is_audited_too(capsys):
    import pytorch_lightning

    class Theirs(pytorch_lightning.LightningModule):
        automatic_optimization = True
        training_step, configure_optimizers, train_dataloader = (
            Net.training_step,
            Net.configure_optimizers,
            Net.train_dataloader,
        )

        def __init__(self, configure):
            super().__init__()
            self.backbone, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
            self.configure, self.unsized = configure, False

    audit = ScheduleAudit("print")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytorch_lightning.Trainer(callbacks=[audit], max_epochs=3, **QUIET).fit(Theirs(WRONG))
    assert codes(audit) == ["climbs-after-end"]
    assert audit.differences == []


# resuming


def checkpoint(tmp_path, configure, **options):
    trainer = fit(Net(configure), **options)
    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path)
    return path


def cosine_over(steps):
    return per_step(lambda sgd: CosineAnnealingLR(sgd, steps))


def test_a_resume_that_restores_another_length_is_found_and_true(tmp_path):
    path = checkpoint(tmp_path, cosine_over(16), max_epochs=2)
    audit, used = ScheduleAudit("print"), []
    module = Net(cosine_over(32))
    module.on_train_batch_end = lambda *args: used.append(module.optimizers().param_groups[0]["lr"])
    fit(module, audit, max_epochs=4, ckpt_path=path)
    assert codes(audit) == ["old-horizon"]
    assert "over 32 steps, but it still has the 16 of the checkpoint" in audit.findings[0].message
    assert max(used) > 0.099  # the second half of a cosine climbs back


def test_a_horizon_edited_by_hand_after_the_restore_is_found_and_true(tmp_path):
    path = checkpoint(tmp_path, cosine_over(16), max_epochs=2)

    class Edited(Net):
        def on_train_start(self):
            self.lr_schedulers().T_max = 32

    audit = ScheduleAudit("print")
    trainer = fit(Edited(cosine_over(32)), audit, max_epochs=4, ckpt_path=path)
    assert codes(audit) == ["old-horizon"]
    assert "its LR was computed for the 16 of the checkpoint" in audit.findings[0].message
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


def test_a_resume_with_the_same_length_is_right_also_in_the_middle_of_an_epoch(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    fit(Net(cosine_over(24)), Stop())
    audit = ScheduleAudit("print")
    trainer = fit(Net(cosine_over(24)), audit, ckpt_path=tmp_path / "middle.ckpt")
    assert trainer.global_step == 24
    assert audit.findings == []
    assert audit.differences == []
    (plan,) = audit.plan
    assert plan.first == pytest.approx(0.1 * (1 + torch.cos(torch.tensor(11 / 24 * torch.pi)).item()) / 2, rel=1e-6)
    assert plan.after == pytest.approx(0.0, abs=1e-12)


def test_a_finished_run_that_is_resumed_at_lr_0_is_found(tmp_path):
    path = checkpoint(tmp_path, ours(Cosine()), max_epochs=2)
    audit = ScheduleAudit("print")
    trainer = fit(Net(ours(Cosine())), audit, max_epochs=3, ckpt_path=path)
    assert codes(audit) == ["idle-tail"]
    assert audit.findings[0].message == (
        "all 8 updates that are left are made at LR 0 and change nothing: cosine 1 -> 0 had ended before"
    )
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("on_resize", ["continue", "rescale", "restart"])
def test_our_resume_to_another_length_is_right(tmp_path, on_resize):
    path = checkpoint(tmp_path, ours(Cosine(end=0.1)), max_epochs=2)
    audit = ScheduleAudit("print")
    fit(Net(ours(Cosine(end=0.1), on_resize=on_resize)), audit, max_epochs=4, ckpt_path=path)
    assert audit.findings == []
    assert audit.differences == []


# an LR from outside


class Found(LearningRateFinder):
    """Sets the LR as the finder does, to a value that the test knows."""

    def lr_find(self, trainer, pl_module):
        super().lr_find(trainer, pl_module)
        self.optimal_lr.suggestion = lambda *args, **kwargs: 0.0316
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.0316


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda sgd: LambdaLR(sgd, lambda step: 1 - step / 24), ["two-masters"]),
        (lambda sgd: OneCycleLR(sgd, 0.1, total_steps=24, cycle_momentum=False), ["two-masters"]),
        (lambda sgd: CosineAnnealingLR(sgd, 24), []),
        (lambda sgd: ExponentialLR(sgd, 0.9), []),
    ],
)
def test_an_lr_finder_whose_value_is_lost(tmp_path, make, expected):
    used = []

    class Kept(Net):
        def on_before_optimizer_step(self, optimizer):
            used.append(optimizer.param_groups[0]["lr"])

    audit = ScheduleAudit("print")
    finder = Found(num_training_steps=4, early_stop_threshold=None)
    fit(Kept(per_step(make)), finder, audit, default_root_dir=tmp_path)
    assert codes(audit) == expected
    assert all("to 0.0316, which lasts for 1 of 24 updates" in finding.message for finding in audit.findings)
    assert audit.differences == []
    first, second = used[-24:-22]
    assert first == 0.0316
    assert (abs(second - 0.0316) > 0.02) == bool(expected) or second < 0.03


def test_an_lr_finder_and_our_callback(tmp_path):
    audit = ScheduleAudit("print")
    finder = Found(num_training_steps=4, early_stop_threshold=None)
    fit(Net(without), finder, LearningRateScheduler(Cosine()), audit, default_root_dir=tmp_path)
    assert audit.findings == []
    assert audit.plan[0].peak == pytest.approx(0.0316)
    assert audit.differences == []


# after the fit


def test_a_change_from_outside_is_named(capsys):
    class Meddler(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 10:
                trainer.optimizers[0].param_groups[1]["lr"] = 0.5

    audit = ScheduleAudit("print")
    flat = two_groups(lambda sgd: LambdaLR(sgd, lambda step: 1 - step / 24))
    fit(Net(flat), Meddler(), audit)
    (difference,) = audit.differences
    assert difference == (
        "lr-SGD/pg2: at update 11 the plan was 0.0583333 and 0.5 was used: the LR was set from outside"
    )
    assert difference in capsys.readouterr().out


def test_early_stopping_is_named():
    audit = ScheduleAudit("print")
    stop = EarlyStopping("loss", patience=0, min_delta=100.0, check_on_train_epoch_end=True)
    trainer = fit(Net(cosine_over(24)), stop, audit)
    assert trainer.global_step == 16
    assert audit.differences == [
        "SGD made 16 of 24 planned updates, 67% of the plan "
        "(trainer.should_stop was set, by early stopping or whoever else)"
    ]


class Overflows(Net):
    """Batches 1, 4 and 5 overflow, and the GradScaler skips their updates."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx in (1, 4, 5) else loss


def with_grad_scaler():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1.0))


@pytest.mark.parametrize("fused", [False, True])
def test_updates_that_a_grad_scaler_skips_are_named(fused):
    audit = ScheduleAudit("print")
    module = Overflows(per_step(lambda sgd: CosineAnnealingLR(sgd, 8), fused=fused))
    fit(module, audit, plugins=[with_grad_scaler()], max_epochs=1)
    # the second real update is the third batch's: torch's scheduler has been stepped for the skipped one too
    assert audit.differences == [
        "lr-SGD: at update 2 the plan was 0.096194 and 0.0853553 was used: updates before it were skipped (1)",
        "SGD made 5 of 8 planned updates, 62% of the plan",
    ]


def test_the_callback_keeps_to_the_plan_where_a_grad_scaler_skips():
    audit = ScheduleAudit("print")
    fit(Overflows(without), audit, LearningRateScheduler(Cosine()), plugins=[with_grad_scaler()], max_epochs=1)
    assert audit.differences == ["SGD made 5 of 8 planned updates, 62% of the plan"]


def test_a_run_that_goes_on_for_longer_is_named():
    class Longer(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.fit_loop.max_epochs = 4

    audit = ScheduleAudit("print")
    fit(Net(cosine_over(24)), Longer(), audit)
    assert audit.differences == ["SGD made 32 updates, 8 more than were planned"]


def test_an_exception_lets_go_of_the_optimizer():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            if self.global_step == 5:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    audit, module = ScheduleAudit("print"), Broken(cosine_over(24))
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, audit)
    assert audit.differences == ["SGD made 5 of 24 planned updates, 21% of the plan (ended by RuntimeError)"]
    optimizer = module.trainer.optimizers[0]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_of_a_long_run_the_picture_keeps_some_points_and_every_update_is_compared():
    n, groups = 25_000, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.2)]
    sgd = torch.optim.SGD(groups)
    trace = play(sgd, [], n)
    followup = Followup([Situation(sgd, ["lr-SGD/pg1", "lr-SGD/pg2"], [], trace, Run(batches=n, epochs=1))], [0])
    for update in range(n):
        followup.compare(0, update, [0.1, 0.2 if update < 20_123 else 0.3], skipped=0)
    every_fourth = list(range(0, n, 4))  # halved at 10,000 points, and once more
    assert followup.curves["lr-SGD/pg1"] == (every_fourth, [0.1] * len(every_fourth))
    assert followup.curves["lr-SGD/pg2"][0] == every_fourth
    assert followup.compared == n
    (difference,) = followup.report()
    assert difference.startswith("lr-SGD/pg2: at update 20,124 the plan was 0.2 and 0.3 was used")


def test_a_second_fit_is_audited_anew():
    audit, module = ScheduleAudit("print"), Net(cosine_over(12))
    trainer = fit(module, audit)
    assert codes(audit) == ["climbs-after-end"]
    module.configure = cosine_over(16)
    trainer.fit_loop.max_epochs = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module)
    assert audit.findings == []
    assert audit.differences == []
    assert audit.plan[0].changes == 15


# pictures and logs


def test_tensorboard_gets_the_plan_and_the_plan_beside_the_use(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    fit(Net(cosine_over(24)), ScheduleAudit("print"), logger=logger)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"schedule/planned", "schedule/planned_and_used"}
    (image,) = events.Images("schedule/planned")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (800, 400)


def test_of_a_long_run_the_picture_keeps_fewer_and_fewer_points(monkeypatch):
    monkeypatch.setattr("lit_cosine.followup._KEPT", 5)

    class Reads(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            self.curves = dict(audit._followup.curves)

    audit, reads = ScheduleAudit("print"), Reads()
    fit(Net(cosine_over(24)), reads, audit)
    assert audit.differences == []
    ((steps, lrs),) = reads.curves.values()
    assert steps == [0, 8, 16]
    assert lrs == pytest.approx([0.1, 0.075, 0.025], rel=1e-9)


def test_learning_rate_logger_writes_where_the_monitor_does_not(tmp_path):
    audit = ScheduleAudit("print")
    callbacks = [pl.callbacks.LearningRateMonitor(), LearningRateLogger(), audit]
    fit(Net(cosine_over(24)), *callbacks, logger=pl.loggers.CSVLogger(tmp_path))
    assert audit.findings == []


def test_the_module_road_needs_no_trainer_of_its_own_length():
    def configure(module):
        sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": lr_scheduler_config(sgd, Cosine(), module.trainer)}

    audit = ScheduleAudit("print")
    fit(Net(configure), audit, max_epochs=-1, max_time={"seconds": 1}, limit_train_batches=2)
    assert audit.findings == []
    assert audit.plan[0].depends == "the clock"


def test_a_step_of_its_own_that_was_compiled_from_text_is_followed():
    names = {}
    exec("def lr_scheduler_step(self, scheduler, metric):\n    if self.global_step <= 12: scheduler.step()", names)
    assert names["lr_scheduler_step"].__module__ is None
    kind = type("Compiled", (Net,), {"lr_scheduler_step": names["lr_scheduler_step"]})
    audit = ScheduleAudit("print")
    fit(kind(per_step(lambda sgd: CosineAnnealingLR(sgd, 24))), audit)
    assert audit.plan[0].changes == 12
    assert audit.plan[0].last == pytest.approx(0.05, rel=1e-12)


def test_what_cannot_be_copied_is_said(capsys):
    class Stubborn(LambdaLR):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    audit = ScheduleAudit("print")
    fit(Net(per_step(lambda sgd: Stubborn(sgd, lambda step: 1.0))), audit)
    assert audit.findings == []
    assert audit.plan[0].depends == "a scheduler that cannot be copied (TypeError: not me)"


def test_a_scheduler_of_ones_own_may_mean_something_else_by_step_size():
    class Own(LRScheduler):
        step_size = None

        def get_lr(self):
            return list(self.base_lrs)

    audit = ScheduleAudit("print")
    assert fit(Net(per_step(Own)), audit).global_step == 24
    assert audit.findings == []


def test_transformers_own_scheduler_is_read_like_the_function_written_here():
    transformers = pytest.importorskip("transformers")
    theirs = with_scheduler(lambda sgd: transformers.get_cosine_schedule_with_warmup(sgd, 0, 24))
    mine = with_scheduler(
        lambda sgd: LambdaLR(sgd, partial(transformers_cosine, num_warmup_steps=0, num_training_steps=24))
    )
    found = []
    for configure in (theirs, mine):
        audit = ScheduleAudit("print")
        fit(Net(configure), audit)
        found.append((audit.findings, audit.plan))
    assert found[0] == found[1]
    assert [finding.code for finding in found[0][0]] == ["epoch-interval"]


# the command line

WARMUP_FROM_ZERO = ["--model.schedule", "Linear", "--model.schedule.start", "0", "--model.schedule.end", "1"]


def command(tmp_path, *flags):
    return main(["train", "--trainer.default_root_dir", str(tmp_path), "--trainer.max_epochs", "2", *flags])


@pytest.mark.parametrize("listed", [[], ["--trainer.callbacks+=lit_cosine.ScheduleAudit"]])
def test_the_command_refuses_a_wrong_plan_before_training(tmp_path, capsys, listed):
    assert command(tmp_path, "--audit", "raise", *listed, *WARMUP_FROM_ZERO) == 2
    assert list(tmp_path.iterdir()) == []
    out, err = capsys.readouterr()
    assert "Epoch 1/2" not in out
    assert "[idle-warmup] under linear 0 -> 1 the first 13 of 26 updates are made at LR 0" in err.splitlines()[-1]


def test_the_command_warns_by_default(tmp_path):
    with pytest.warns(UserWarning, match=r"\[idle-warmup\]"):
        assert command(tmp_path, *WARMUP_FROM_ZERO) == 0


def test_the_command_audits_once_also_where_the_configuration_lists_an_audit(tmp_path, capsys, caplog):
    listed = ["--trainer.callbacks+=lit_cosine.ScheduleAudit", "--trainer.callbacks.on_problem", "print"]
    assert command(tmp_path, *listed) == 0
    assert (capsys.readouterr().out + caplog.text).count("ScheduleAudit: nothing wrong in") == 1


def test_a_resumed_run_that_is_refused_keeps_its_folder(tmp_path, capsys):
    assert command(tmp_path, "--audit", "off") == 0
    kept = {path.name for path in (tmp_path / "run_1").iterdir()}
    # resumed at LR 0, for a run that had ended: on_resize is "continue"
    assert command(tmp_path, "--resume", "--trainer.max_epochs", "3", "--audit", "raise") == 2
    assert "had ended before" in capsys.readouterr().err
    assert kept <= {path.name for path in (tmp_path / "run_1").iterdir()}


def test_the_command_can_do_without(tmp_path, capsys):
    assert command(tmp_path, "--audit", "off", *WARMUP_FROM_ZERO) == 0
    assert "ScheduleAudit" not in capsys.readouterr().out
