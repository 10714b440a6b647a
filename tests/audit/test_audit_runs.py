import copy
import gc
import pickle
import warnings
import weakref
from contextlib import nullcontext
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
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
from torch.utils._python_dispatch import TorchDispatchMode

from lit_cosine import Cosine, LearningRateLogger, LearningRateScheduler, ScheduleAudit, lr_scheduler_config
from lit_cosine.audit._followup import Followup
from lit_cosine.audit._playback import Timeline, play
from lit_cosine.audit._schedule_audit import ScheduleProblem
from lit_cosine.audit._situation import Situation
from lit_cosine.cli.main import main
from lit_cosine.monitors import Update
from tests.helpers.nets import QUIET
from tests.helpers.setups import (
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


def fit(module, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(0)
    options = {"max_epochs": 3, **options}
    trainer = pl.Trainer(callbacks=list(callbacks), **{**QUIET, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", ".* stopped, and training continues")  # an error of the audit's own
        trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def codes(audit):
    return [finding.code for finding in audit.findings]


def with_counter():
    """A factor that changes with every call."""
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
def test_the_audit_does_not_change_the_run(setup):
    ends = []
    for audits in ([], [ScheduleAudit("print")]):
        torch.manual_seed(0)
        module, callbacks = setup.net(), setup.callbacks()
        trainer = fit(module, *audits, *callbacks)
        schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
        for callback in callbacks:
            callback.on_save_checkpoint(trainer, module, saved := {})
            schedulers.append(saved)
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


def test_of_a_run_too_long_to_be_played_the_beginning_is_planned(capsys):
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = True

    audit = ScheduleAudit("print")
    fit(Net(per_step(lambda sgd: CosineAnnealingLR(sgd, 8 * 10**7))), audit, Stops(), max_epochs=10**7)
    assert (audit.findings, audit.differences) == ([], [])
    assert "nothing wrong in the first 10,000 updates" in capsys.readouterr().out


def test_an_lr_of_nan_is_one_finding_and_no_difference():
    audit = ScheduleAudit("print")
    fit(Net(per_step(lambda sgd: LambdaLR(sgd, lambda step: float("nan")))), audit)
    assert codes(audit) == ["bad-value"]
    assert audit.differences == []


def test_warn_warns_and_trains():
    trainer = pl.Trainer(callbacks=[ScheduleAudit()], max_epochs=3, **QUIET)
    with pytest.warns(UserWarning, match=r"ScheduleAudit: \[climbs-after-end\] CosineAnnealingLR ends its curve"):
        trainer.fit(Net(WRONG))
    assert trainer.global_step == 24


@pytest.mark.parametrize(
    ("value", "error"), [("error", ValueError), ("", ValueError), (None, TypeError), (True, TypeError)]
)
def test_an_unknown_on_problem_is_refused(value, error):
    with pytest.raises(error, match="on_problem must be one of warn, raise, print, got"):
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


def test_a_resume_that_restores_another_length_is_found(tmp_path):
    path = checkpoint(tmp_path, cosine_over(16), max_epochs=2)
    audit, used = ScheduleAudit("print"), []
    module = Net(cosine_over(32))
    module.on_train_batch_end = lambda *args: used.append(module.optimizers().param_groups[0]["lr"])
    fit(module, audit, max_epochs=4, ckpt_path=path)
    assert codes(audit) == ["old-horizon"]
    assert "over 32 steps, but it still has the 16 of the checkpoint" in audit.findings[0].message
    assert max(used) > 0.099  # the second half of a cosine climbs back


def test_a_horizon_edited_by_hand_after_the_restore_is_found(tmp_path):
    path = checkpoint(tmp_path, cosine_over(16), max_epochs=2)

    class Edited(Net):
        def on_train_start(self):
            self.lr_schedulers().T_max = 32

    audit = ScheduleAudit("print")
    trainer = fit(Edited(cosine_over(32)), audit, max_epochs=4, ckpt_path=path)
    assert codes(audit) == ["old-horizon"]
    assert "its LR was computed for the 16 of the checkpoint" in audit.findings[0].message
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0


def test_a_resume_within_an_epoch_with_the_same_length_is_right(tmp_path):
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


def test_a_finished_run_is_not_resumed_at_lr_0(tmp_path):
    path = checkpoint(tmp_path, ours(Cosine()), max_epochs=2)
    with pytest.raises(ValueError, match=r"all 8 steps that are left would run at LR 0.*\"restart\" or \"rescale\""):
        fit(Net(ours(Cosine())), ScheduleAudit("print"), max_epochs=3, ckpt_path=path)


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
        (lambda sgd: LambdaLR(sgd, lambda step: 1 - step / 24), ["lr-conflict"]),
        (lambda sgd: OneCycleLR(sgd, 0.1, total_steps=24, cycle_momentum=False), ["lr-conflict"]),
        (lambda sgd: CosineAnnealingLR(sgd, 24), []),
        (lambda sgd: ExponentialLR(sgd, 0.9), []),
    ],
)
def test_a_lost_value_of_an_lr_finder_is_found(tmp_path, make, expected):
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
        "(trainer.should_stop was set, by early stopping or another callback)"
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


def test_the_callback_plans_the_rest_again_where_a_grad_scaler_skips():
    audit = ScheduleAudit("print")
    fit(Overflows(without), audit, LearningRateScheduler(Cosine()), plugins=[with_grad_scaler()], max_epochs=1)
    assert [line.partition(":")[0] for line in audit.differences] == [
        "lr-SGD",  # what is left was planned again, so that the curve reaches its end
        "SGD made 5 of 8 planned updates, 62% of the plan",
    ]


def test_a_run_longer_than_planned_is_named():
    class Longer(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.fit_loop.max_epochs = 4

    audit = ScheduleAudit("print")
    fit(Net(cosine_over(24)), Longer(), audit)
    assert audit.differences == ["SGD made 32 updates, 8 more than were planned"]


def test_an_exception_removes_the_hooks():
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


def test_a_long_run_is_compared_at_every_update_and_drawn_with_fewer_points():
    n, groups = 25_000, [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.2)]
    sgd = torch.optim.SGD(groups)
    trace = play(sgd, [], n)
    followup = Followup([Situation(sgd, ["lr-SGD/pg1", "lr-SGD/pg2"], [], trace, Timeline(batches=n, epochs=1))], [0])
    for update in range(n):
        followup.add([Update(0, update, {"lr": [0.1, 0.2 if update < 20_123 else 0.3]}, when=0.0)], skipped=0)
    (difference,) = followup.report()
    kept = list(range(0, n, 12))  # some 2,000
    assert followup.curves["lr-SGD/pg1"] == (kept, [0.1] * len(kept))
    assert followup.curves["lr-SGD/pg2"][0] == kept
    assert followup.compared == n
    assert difference.startswith("lr-SGD/pg2: at update 20,124 the plan was 0.2 and 0.3 was used")


def test_a_second_fit_has_its_own_audit():
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


@pytest.mark.parametrize("limit", [{"max_steps": 20}, {"max_steps": 20, "max_epochs": 2}, {"max_epochs": 2}])
def test_the_planned_updates_under_a_changing_accumulation(limit):
    audit, counts = ScheduleAudit("print"), GradientAccumulationScheduler({0: 1, 1: 4, 3: 3})
    trainer = fit(Net(without), counts, audit, **{"max_epochs": -1, **limit})
    assert audit.differences == []
    assert trainer.global_step == min(limit.get("max_steps", 10), 8 + 2 if "max_epochs" in limit else 20)


class Finetuning(pl.callbacks.BaseFinetuning):
    """Adds the backbone as a group in the second epoch, in code of its own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=0.01)


@pytest.mark.parametrize(
    "finetuning",
    [Finetuning, lambda: pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)],
)
@pytest.mark.parametrize("scheduler", [[], [LearningRateScheduler(Cosine())]])
def test_groups_added_by_a_finetuning_callback_are_not_reported(finetuning, scheduler):
    audit = ScheduleAudit("raise")
    fit(
        Net(lambda module: torch.optim.SGD(module.head.parameters(), lr=0.1)),
        *scheduler,
        finetuning(),
        audit,
        max_epochs=5,
    )
    assert (audit.findings, audit.differences) == ([], [])


def test_the_plan_depends_on_a_finetuning_callback_beside_another_scheduler():
    def configure(module):
        sgd = torch.optim.SGD(module.head.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": CosineAnnealingLR(sgd, 8), "interval": "step"}}

    audit = ScheduleAudit("raise")
    fit(Net(configure), Finetuning(), audit, max_epochs=1)
    assert audit.plan[0].depends == "Finetuning"


# what is done about findings


def test_raise_stops_for_errors_and_warns_of_hints():
    audit = ScheduleAudit("raise")
    hint = per_step(lambda sgd: LambdaLR(sgd, lambda step: 0.001 * (1 - step / 25)))
    trainer = pl.Trainer(callbacks=[audit], max_epochs=3, **QUIET)
    with pytest.warns(UserWarning, match=r"ScheduleAudit: \[absolute-factor, a hint\]"):
        trainer.fit(Net(hint))
    assert trainer.global_step == 24
    assert [finding.severity for finding in audit.findings] == ["hint"]


class SaveConfigCallback(pl.Callback):
    """What LightningCLI adds to its Trainer, by name."""


def their_library(module):
    """A configure_optimizers in an installed package, with a scheduler that climbs."""
    names = {}
    source = "def configure_optimizers(self):\n    return configure(self)"
    exec(compile(source, "/venv/lib/site-packages/theirs/model.py", "exec"), {"configure": cosine_over(12)}, names)
    return type("Theirs", (Net,), names)(None)


@pytest.mark.parametrize(
    ("module", "callbacks", "fix"),
    [
        (Net(cosine_over(12)), [], "set its horizon to the run's length, lit_cosine.total_steps(trainer)"),
        (their_library(None), [], "add LearningRateScheduler(Cosine(), replace=True) to the Trainer's callbacks; "),
        (
            their_library(None),
            [SaveConfigCallback()],
            "add {class_path: lit_cosine.LearningRateScheduler, init_args: {replace: true}} to trainer.callbacks",
        ),
    ],
    ids=["own code", "a library", "a library in YAML"],
)
def test_the_fix_suits_its_reader(module, callbacks, fix):
    audit = ScheduleAudit("print")
    fit(module, audit, *callbacks)
    (finding,) = audit.findings
    assert finding.code == "climbs-after-end"
    assert fix in finding.fix


def test_the_suggested_callback_fixes_a_library():
    audit = ScheduleAudit("raise")
    fit(their_library(None), LearningRateScheduler(Cosine(), replace=True), audit)
    assert (audit.findings, audit.differences) == ([], [])


# as a guest in other people's programs


class ScalarReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, which on a GPU waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_no_update_reads_a_tensor():
    class Begins(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            reads.append(ScalarReads())
            reads[-1].__enter__()

    class Ends(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            reads[-1].__exit__(None, None, None)

    counts = []
    for audits in ([], [ScheduleAudit("print")]):
        reads = []
        tensor_lr = per_step(lambda sgd: ExponentialLR(sgd, 0.9), lr=torch.tensor(0.1))
        fit(Net(tensor_lr), Begins(), *audits, Ends())
        counts.append([one.count for one in reads])
    assert len(counts[0]) == 24
    assert counts[0] == counts[1]


@pytest.mark.parametrize("where", ["before", "while", "after"])
def test_the_audit_pickles_small_and_copies(where):
    audit = ScheduleAudit("print")
    copies = []

    class Copies(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            copies[:] = [pickle.dumps(audit), copy.deepcopy(audit)]

    if where != "before":
        fit(Net(cosine_over(12)), audit, *([Copies()] if where == "while" else []))
    if where != "while":
        copies = [pickle.dumps(audit), copy.deepcopy(audit)]
    assert len(copies[0]) < 10_000
    for one in (pickle.loads(copies[0]), copies[1]):
        assert (one.on_problem, one.findings, one.plan) == ("print", audit.findings, audit.plan)
        fit(Net(cosine_over(24)), one)
        assert (one.findings, one.differences) == ([], [])


@pytest.mark.parametrize("broken", [False, True])
def test_the_audit_keeps_nothing_of_a_run_alive(broken):
    def run(*callbacks):
        class Breaks(Net):
            def on_train_epoch_end(self):
                if broken:
                    raise RuntimeError("broken")

        module = Breaks(cosine_over(24))
        trainer = pl.Trainer(callbacks=list(callbacks), max_epochs=1, **QUIET)
        with pytest.raises(RuntimeError) if broken else nullcontext():
            trainer.fit(module)
        return [weakref.ref(one) for one in (trainer, module, trainer.optimizers[0])]

    audit = ScheduleAudit("print")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without, refs = run(), run(audit)
    gc.collect()
    assert [ref() is None for ref in refs] == [ref() is None for ref in without] == [True] * 3


# pictures and logs


def test_tensorboard_shows_the_plan_and_the_used_lrs(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    fit(Net(cosine_over(24)), ScheduleAudit("print"), logger=logger)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"schedule/planned", "schedule/planned_and_used"}
    (image,) = events.Images("schedule/planned")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (800, 400)


def test_the_points_of_the_picture_are_thinned(monkeypatch):
    monkeypatch.setattr("lit_cosine.audit._followup.POINTS", 3)

    class Reads(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            self.curves = dict(audit._followup.curves)

    audit, reads = ScheduleAudit("print"), Reads()
    fit(Net(cosine_over(24)), audit, reads)
    assert audit.differences == []
    ((steps, lrs),) = reads.curves.values()
    assert steps == [0, 8, 16]
    assert lrs == pytest.approx([0.1, 0.075, 0.025], rel=1e-9)


def test_learning_rate_logger_writes_where_the_monitor_does_not(tmp_path):
    audit = ScheduleAudit("print")
    callbacks = [pl.callbacks.LearningRateMonitor(), LearningRateLogger(), audit]
    fit(Net(cosine_over(24)), *callbacks, logger=pl.loggers.CSVLogger(tmp_path))
    assert audit.findings == []


def test_a_run_limited_by_time_depends_on_the_clock():
    def configure(module):
        sgd = torch.optim.SGD(module.parameters(), lr=0.1)
        return {"optimizer": sgd, "lr_scheduler": lr_scheduler_config(sgd, Cosine(), module.trainer)}

    audit = ScheduleAudit("print")
    fit(Net(configure), audit, max_epochs=-1, max_time={"seconds": 1}, limit_train_batches=2)
    assert audit.findings == []
    assert audit.plan[0].depends == "the clock"


def by_hand_once_an_epoch(module, scheduler, metric):
    if module.trainer.is_last_batch:
        scheduler.step()


def test_the_plan_depends_on_an_own_lr_scheduler_step():
    names = {}
    exec("def lr_scheduler_step(self, scheduler, metric):\n    if self.global_step <= 12: scheduler.step()", names)
    assert names["lr_scheduler_step"].__module__ is None
    for step in (by_hand_once_an_epoch, names["lr_scheduler_step"]):
        audit = ScheduleAudit("raise")
        fit(type("Own", (Net,), {"lr_scheduler_step": step})(cosine_over(24)), audit)
        assert audit.plan[0].depends == "the module's own lr_scheduler_step"
        assert (audit.findings, audit.differences) == ([], [])


def test_the_plan_depends_on_a_scheduler_that_cannot_be_copied(capsys):
    class Stubborn(LambdaLR):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    audit = ScheduleAudit("print")
    fit(Net(per_step(lambda sgd: Stubborn(sgd, lambda step: 1.0))), audit)
    assert audit.findings == []
    assert audit.plan[0].depends == "a scheduler that cannot be copied (TypeError: not me)"


def test_an_own_scheduler_may_have_another_step_size():
    class Own(LRScheduler):
        step_size = None

        def get_lr(self):
            return list(self.base_lrs)

    audit = ScheduleAudit("print")
    assert fit(Net(per_step(Own)), audit).global_step == 24
    assert audit.findings == []


def test_a_scheduler_of_transformers_is_judged_like_the_same_function():
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


def test_the_command_audits_once_if_the_configuration_lists_an_audit(tmp_path, capsys, caplog):
    listed = ["--trainer.callbacks+=lit_cosine.ScheduleAudit", "--trainer.callbacks.on_problem", "print"]
    assert command(tmp_path, *listed) == 0
    assert (capsys.readouterr().out + caplog.text).count("ScheduleAudit: nothing wrong in") == 1


def test_a_resumed_run_that_is_refused_keeps_its_folder(tmp_path, capsys):
    assert command(tmp_path, "--audit", "off") == 0
    kept = {path.name for path in (tmp_path / "run_1").iterdir()}
    # resumed at LR 0, for a run that had ended: on_resize is "continue"
    assert command(tmp_path, "--resume", "--trainer.max_epochs", "3", "--audit", "raise") == 2
    assert "had ended at 2" in capsys.readouterr().err
    assert kept <= {path.name for path in (tmp_path / "run_1").iterdir()}


def test_the_command_runs_without_the_audit(tmp_path, capsys):
    assert command(tmp_path, "--audit", "off", *WARMUP_FROM_ZERO) == 0
    assert "ScheduleAudit" not in capsys.readouterr().out
