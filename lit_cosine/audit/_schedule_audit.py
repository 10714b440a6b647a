"""ScheduleAudit: the learning rate of a run before its first update, and what is wrong with it.

Convention: the audit plays copies of the schedulers, as this Trainer will step them. It changes neither optimizer,
scheduler, module nor random numbers, so the audited run is the same as without the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from typing_extensions import override

from lit_cosine._checks import check_choice
from lit_cosine._compat import is_fast_dev_run
from lit_cosine.audit._finding import Finding
from lit_cosine.audit._followup import Followup
from lit_cosine.audit._horizon import horizon
from lit_cosine.audit._optimizer_rules import logging_findings, never_stepped
from lit_cosine.audit._plan import PlannedLR, plan_line, planned_lrs, planned_points
from lit_cosine.audit._rules import findings_of
from lit_cosine.audit._situation import Situation, situations
from lit_cosine.monitors import Listener, Points, pixels, schedule_curves, watching
from lit_cosine.training import GlobalBatch

__all__ = ["ScheduleAudit", "ScheduleProblem"]

OnProblem = Literal["warn", "raise", "print"]


class ScheduleProblem(ValueError):
    """Raised before training by ``ScheduleAudit("raise")``; the message holds every finding."""


@watching(ScheduleProblem)
class ScheduleAudit(Listener):
    """Computes the learning rate of the whole run before its first batch, and reports what will go wrong.

    Works for every scheduler that Lightning accepts, for modules without one, beside other callbacks and in any order
    with them. After the run the LRs that were used are compared with the plan. Plan and use are drawn in TensorBoard,
    as ``schedule/planned`` and ``schedule/planned_and_used``.

    Args:
        on_problem: What to do about findings before training: ``"warn"``, ``"print"``, or ``"raise"`` a ``ValueError``
            for errors and warn of hints.

    Attributes:
        findings: What is wrong; each finding has ``.code``, ``.severity``, ``.message`` and ``.fix``.
        plan: The planned LR of every param group.
        differences: After the run, the differences between plan and use, one sentence each.

    Raises:
        ValueError: If ``on_problem`` is unknown.

    >>> import lightning.pytorch as pl
    >>> audit = ScheduleAudit(on_problem="raise")
    >>> trainer = pl.Trainer(max_epochs=3, callbacks=[audit], accelerator="cpu", logger=False)
    >>> audit.findings
    []
    """

    def __init__(self, on_problem: OnProblem = "warn") -> None:
        super().__init__()
        check_choice("on_problem", on_problem, get_args(OnProblem))
        self.on_problem = on_problem
        self._clear()

    @override
    def _clear(self) -> None:
        self.findings: list[Finding] = []
        self.plan: list[PlannedLR] = []
        self.differences: list[str] = []
        self._built: dict[int, float | None] = {}
        self._restored: list[Any] = []
        self._followup: Followup | None = None
        self._situations: list[Situation] = []
        self._steps_before = self._done_before = self._batches_before = 0
        self._manual_checked = False

    def __repr__(self) -> str:
        parts = [repr(self.on_problem)]
        if self.plan:
            parts.append(f"findings={len(self.findings)}")
        parts += [f"{one.name} {one.first:.4g} -> {one.last:.4g}" for one in self.plan]
        return f"ScheduleAudit({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """Return the plan and the findings as the tables that Jupyter shows."""
        plan = [
            [one.name, *map("{:.4g}".format, (one.first, one.peak, one.last, one.after)), str(one.changes), one.depends]
            for one in self.plan
        ]
        found = [(one.severity, one.code, one.message, one.fix) for one in self.findings]
        columns = ("group", "first LR", "peak", "last", "after the end", "changes", "depends on")
        tables = _table(columns, plan) + _table(("severity", "finding", "message", "fix"), found)
        return f"<p>{escape(repr(self))}</p>{tables}"

    @property
    def audited(self) -> list[Situation]:
        """The situation of each optimizer, from the first batch to the end of the run; empty otherwise."""
        return list(self._situations)

    @property
    def planned_points(self) -> dict[str, Points]:
        """The planned curves, for a picture, from the first batch to the end of the run; empty otherwise."""
        return {name: points for one in self._situations for name, points in planned_points(one).items()}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = list(checkpoint.get("lr_schedulers", []))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # after configure_optimizers and before the loops are restored (lightning 2.6.6, Trainer._run): these are the
        # horizons that the module asked for, which those of the checkpoint will replace
        self._built = {id(config.scheduler): horizon(config.scheduler) for config in trainer.lr_scheduler_configs}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in on_train_start, where callbacks listed later have not built their schedulers yet
        self._audit(trainer, pl_module, 0, batches=trainer.fit_loop.total_batch_idx + 1)
        self._check_manual_steps(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # a run that is resumed calls no on_train_epoch_start first; here total_batch_idx counts this batch already
        self._audit(trainer, pl_module, batch_idx, batches=trainer.fit_loop.total_batch_idx)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._follow(trainer, pl_module)

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the updates made since the last call with the plan."""
        updates = self._used.drain()
        if self._followup is None or not updates or not self._situations:
            return
        manual = not pl_module.automatic_optimization
        batch = trainer.fit_loop.total_batch_idx - self._batches_before if manual else None
        skipped = trainer.global_step - self._steps_before - sum(self._used.done) + self._done_before
        self._followup.add(updates, max(0, skipped), batch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._used.detach()
        if self._followup is None:
            return
        self._check_manual_steps(trainer, at_the_end=True)
        ended = " (trainer.should_stop was set, by early stopping or another callback)" if trainer.should_stop else ""
        self._compare(self._followup, ended)
        self._draw(trainer, "schedule/planned_and_used", self._followup)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._follow(trainer, pl_module)
        made = sum(self._used.done) - self._done_before
        if self._followup is not None and made:
            self._compare(self._followup, f" (ended by {type(exception).__name__})")
        self.teardown(trainer, pl_module, "fit")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._situations, self._followup = [], None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle keeps: the findings and the plan, nothing of the run."""
        return {name: getattr(self, name) for name in ("on_problem", "findings", "plan", "differences")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._clear()
        self.__dict__.update(state)

    def _audit(self, trainer: Trainer, pl_module: LightningModule, first_batch: int, batches: int) -> None:
        """Make the plan and judge it, once a run."""
        if self._followup is not None:
            return
        self._situations = situations(trainer, pl_module, first_batch, self._built, self._restored)
        self._followup = Followup(self._situations, self._used.done)
        self._steps_before, self._done_before = trainer.global_step, sum(self._used.done)
        self._batches_before = batches
        self.plan = [planned for situation in self._situations for planned in planned_lrs(situation)]
        if is_fast_dev_run(trainer):
            self._say("ScheduleAudit: fast_dev_run makes a few updates only, so the plan is not judged")
            return
        self.findings = [finding for situation in self._situations for finding in findings_of(situation)]
        self.findings += [f for situation in self._situations[:1] for f in logging_findings(trainer, situation)]
        verdict = f"{len(self.findings)} found" if self.findings else "nothing wrong"
        line, batch = plan_line(self._situations), GlobalBatch.of(trainer)
        line = f"{verdict} in {line}" if self._situations else line
        self._say(f"ScheduleAudit: {line}; {batch}" if batch else f"ScheduleAudit: {line}")
        self._draw(trainer, "schedule/planned")
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors and self.on_problem == "raise":
            raise ScheduleProblem("\n".join(["the planned learning rate is wrong:", *map(str, errors)]))
        self._report(self.findings)

    def _check_manual_steps(self, trainer: Trainer, *, at_the_end: bool = False) -> None:
        """Report, once, a scheduler that manual optimization has not stepped in the first quarter of the run."""
        batches = trainer.fit_loop.total_batch_idx + 1 - self._batches_before
        if self._manual_checked or is_fast_dev_run(trainer):
            return
        if at_the_end or any(batches >= 0.25 * one.timeline.updates for one in self._situations):
            self._manual_checked = True
            found = [finding for one in self._situations for finding in never_stepped(one, batches)]
            self.findings += found
            self._report(found)

    def _report(self, findings: list[Finding]) -> None:
        say = self._say if self.on_problem == "print" else rank_zero_warn
        for finding in findings:
            say(f"ScheduleAudit: {finding}")

    def _say(self, line: str) -> None:
        say = rank_zero_only(print) if self.on_problem == "print" else rank_zero_info
        say(line)

    def _compare(self, followup: Followup, ended: str) -> None:
        self.differences = followup.report(ended)
        for line in self.differences:
            self._say(f"ScheduleAudit: {line}")
        if not self.differences and followup.compared:
            self._say(f"ScheduleAudit: the LR was the planned one at all {followup.compared:,} updates compared")

    def _draw(self, trainer: Trainer, tag: str, followup: Followup | None = None) -> None:
        if not self._situations:
            return
        curves, title = self.planned_points, "Planned learning rate"
        if followup is not None:
            curves = {f"{name} planned": curve for name, curve in curves.items()}
            curves |= {f"{name} used": curve for name, curve in followup.curves.items()}
            title = "Learning rate, planned and used"

        def write(board: Any) -> None:
            image = pixels(schedule_curves(curves, title))
            board.add_image(tag, image, trainer.global_step, dataformats="HWC")

        self._each_board(trainer, write)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div style="overflow-x: auto"><table>{rows}</table></div>'
