import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from setups import QUIET, RIGHT, WRONG

from lit_cosine import ScheduleAudit


class Watch(pl.Callback):
    """The LRs of every update, read where the update is made."""

    def __init__(self):
        self.lrs = []
        self.handles = []

    def on_train_epoch_start(self, trainer, pl_module):
        if not self.handles:
            for optimizer in trainer.optimizers:
                self.handles.append(optimizer.register_step_pre_hook(self.read))

    def read(self, optimizer, args, kwargs):
        self.lrs.append([float(group["lr"]) for group in optimizer.param_groups])


def train(setup, tmp_path, *more):
    """Train the set-up; return the LRs of its updates, the exception that ended it, the Trainer and the module."""
    torch.manual_seed(0)
    watch, error, module = Watch(), None, setup.net()
    logger = CSVLogger(tmp_path) if setup.logged else False
    options = {**QUIET, **setup.trainer, "logger": logger}
    trainer = pl.Trainer(callbacks=[*setup.callbacks(), watch, *more], default_root_dir=tmp_path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch and Lightning warn about some of them too
        try:
            trainer.fit(module)
        except Exception as caught:
            error = caught
    return watch.lrs, error, trainer, module


@pytest.mark.parametrize("setup", [*WRONG, *RIGHT], ids=lambda setup: setup.name)
def test_findings(setup, tmp_path, capsys):
    audit = ScheduleAudit("print")
    _, error, _, _ = train(setup, tmp_path, audit)
    print(error)
    print(capsys.readouterr().out)
    assert sorted(finding.code for finding in audit.findings) == sorted(setup.expected)


@pytest.mark.parametrize("setup", WRONG, ids=lambda setup: setup.name)
def test_a_training_without_the_audit_proves_the_findings(setup, tmp_path):
    lrs, error, trainer, _ = train(setup, tmp_path)
    assert setup.witness(lrs, error, trainer)


@pytest.mark.parametrize("setup", RIGHT, ids=lambda setup: setup.name)
def test_a_right_setup_gets_one_line(setup, tmp_path, capsys):
    _, error, _, _ = train(setup, tmp_path, ScheduleAudit("print"))
    assert error is None
    before, *after = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ScheduleAudit")]
    assert before.startswith("ScheduleAudit: nothing wrong in ")
    assert len(after) <= 1
    assert not setup.exact or all("the LR was the planned one at all" in line for line in after)


@pytest.mark.parametrize("setup", [setup for setup in [*WRONG, *RIGHT] if setup.exact], ids=lambda setup: setup.name)
def test_the_plan_is_the_lr_that_is_used(setup, tmp_path):
    plans = []

    class Audit(ScheduleAudit):
        def on_train_end(self, trainer, pl_module):
            plans.extend(self._situations)
            super().on_train_end(trainer, pl_module)

        def on_exception(self, trainer, pl_module, exception):
            plans.extend(self._situations)
            super().on_exception(trainer, pl_module, exception)

    audit = Audit("print")
    lrs, error, _, _ = train(setup, tmp_path, audit)
    (situation,) = plans
    if any(scheduled.depends for scheduled in situation.scheduled):
        assert audit.plan[0].depends
        return
    trace = situation.trace
    assert trace.updates == len(lrs) or error is not None or situation.open_end
    used = [trace.lr(update)[: len(row)] for update, row in enumerate(lrs)]
    assert used == [pytest.approx(row, rel=1e-9, abs=1e-15) for row in lrs]
