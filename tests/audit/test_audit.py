import ast
import re
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lit_cosine import ScheduleAudit
from tests.helpers.nets import QUIET
from tests.helpers.random_setups import drawn_setups, wrong
from tests.helpers.setups import RIGHT, WRONG

ROOT = Path(__file__).parents[2]
DRAWN = drawn_setups(8, wrong)


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
        warnings.filterwarnings("error", ".* stopped, and training continues")  # an error of the audit's own
        try:
            trainer.fit(module)
        except Exception as caught:
            error = caught
    return watch.lrs, error, trainer, module


class Kept(ScheduleAudit):
    """Keeps the situations, which the audit drops after the run."""

    def teardown(self, trainer, pl_module, stage):
        self.kept = self._situations
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer, pl_module, exception):
        self.kept = self._situations
        super().on_exception(trainer, pl_module, exception)


@pytest.mark.parametrize("setup", [*WRONG, *RIGHT], ids=lambda setup: setup.name)
def test_findings_match_the_fault_and_the_plan_matches_the_used_lrs(setup, tmp_path, capsys):
    audit = Kept("print")
    lrs, error, _, _ = train(setup, tmp_path, audit)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ScheduleAudit")]
    assert sorted(finding.code for finding in audit.findings) == sorted(setup.expected)
    if not setup.expected:  # a right set-up gets one line before the run, and at most one after it
        assert error is None
        assert said[0].startswith("ScheduleAudit: nothing wrong in ")
        assert not setup.exact or all("the LR was the planned one at all" in line for line in said[1:])
        assert len(said) <= 2
    situation = audit.kept[0]
    if any(scheduled.depends for scheduled in situation.scheduled):
        assert f"then depends on {audit.plan[0].depends}" in said[0]
    elif setup.exact:
        trace = situation.trace
        assert trace.updates == len(lrs) or error is not None or situation.open_end
        used = [trace.lr(update)[: len(row)] for update, row in enumerate(lrs)]
        assert used == [pytest.approx(row, rel=1e-9, abs=1e-15) for row in lrs]
        assert not [line for line in audit.differences if "the plan was" in line]


@pytest.mark.parametrize("setup", WRONG, ids=lambda setup: setup.name)
def test_a_training_without_the_audit_shows_the_fault(setup, tmp_path):
    lrs, error, trainer, _ = train(setup, tmp_path)
    assert setup.witness(lrs, error, trainer)


def codes_in_the_source():
    """Every code that a rule gives a Finding."""
    for path in (ROOT / "lit_cosine" / "audit").glob("_*rules.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding":
                yield ast.literal_eval(node.args[0])


def test_every_finding_has_a_setup_and_a_section_in_the_docs():
    tried = {code for setup in [*WRONG, *DRAWN] for code in setup.expected}
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    codes = set(codes_in_the_source())
    assert len(codes) > 15
    assert codes == tried | {"old-horizon"}  # which takes two runs: tests/audit/test_audit_runs.py
    assert codes == set(re.findall(r"^## `([a-z-]+)`", page, re.MULTILINE))
