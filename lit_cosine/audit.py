"""ScheduleAudit: the learning rate of a run before it begins, and in words what is wrong with it.

Convention: the audit plays copies of the schedulers, the way this Trainer will step them; it touches neither optimizer,
scheduler, module nor random numbers, so an audited run is the run it would have been.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch.optim import Optimizer

from lit_cosine.findings import Finding, findings_of
from lit_cosine.followup import Followup
from lit_cosine.plots import Points, pixels, schedule_curves
from lit_cosine.situation import Situation, has_class, horizon, horizon_of_state, situations
from lit_cosine.updates import UsedLRs

__all__ = ["Finding", "PlannedLR", "ScheduleAudit", "ScheduleProblem", "planned_curves"]

OnProblem = Literal["warn", "raise", "print"]


class ScheduleProblem(ValueError):
    """Raised before training by ``ScheduleAudit("raise")``, with every finding in the message."""


@dataclass(frozen=True)
class PlannedLR:
    """The planned LR of one param group.

    Args:
        name: The group's name, as the loggers call it.
        first: LR of the first update.
        peak: Highest LR that an update uses.
        last: LR of the last update.
        after: LR after the last update.
        changes: How often the LR changes from one update to the next; at least so often, where it was sampled.
        depends: What the LR depends on that nobody can know before the run, if anything.
    """

    name: str
    first: float
    peak: float
    last: float
    after: float
    changes: int
    depends: str = ""


class ScheduleAudit(Callback):
    """Plays the learning rate of the whole run before its first batch, and says what will go wrong.

    Works for any scheduler that Lightning accepts and for none, whatever other callbacks do, in any order. After the
    run the LRs really used are compared with the plan. Plan and use are drawn in TensorBoard, as ``schedule/planned``
    and ``schedule/planned_and_used``.

    Args:
        on_problem: What to do about findings before training: ``"warn"``, ``"raise"`` a ``ValueError`` or ``"print"``.

    Attributes:
        findings: What is wrong; each has ``.code``, ``.message`` and ``.fix``.
        plan: The planned LR of every param group.
        differences: After the run, where plan and use have parted, in sentences.

    Raises:
        ValueError: If ``on_problem`` is unknown.

    >>> import lightning.pytorch as pl
    >>> audit = ScheduleAudit(on_problem="raise")
    >>> trainer = pl.Trainer(max_epochs=3, callbacks=[audit], accelerator="cpu", logger=False)
    >>> audit.findings
    []
    """

    def __init__(self, on_problem: OnProblem = "warn") -> None:
        if on_problem not in get_args(OnProblem):
            raise ValueError(f"on_problem must be one of {', '.join(get_args(OnProblem))}, got {on_problem!r}")
        self.on_problem = on_problem
        self._clear()

    def _clear(self) -> None:
        self.findings: list[Finding] = []
        self.plan: list[PlannedLR] = []
        self.differences: list[str] = []
        self._built: dict[int, float | None] = {}
        self._restored: list[float | None] = []
        self._used = UsedLRs(self)
        self._followup: Followup | None = None
        self._situations: list[Situation] = []
        self._steps_before = self._done_before = self._batches_before = 0

    @property
    def audited(self) -> list[Situation]:
        """What was planned for each optimizer, while the run lasts; empty before its first batch."""
        return list(self._situations)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew."""
        if stage == "fit":
            self._used.detach()
            self._clear()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Look at the horizons that a checkpoint holds."""
        self._restored = [horizon_of_state(state) for state in checkpoint.get("lr_schedulers", [])]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the horizons that the module asked for, before the checkpoint's take their place."""
        self._built = {id(config.scheduler): horizon(config.scheduler) for config in trainer.lr_scheduler_configs}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen to the optimizers."""
        self._used.attach(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Audit: by now every callback has attached its schedulers."""
        self._audit(trainer, pl_module, 0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Audit, where the run resumes in the middle of an epoch."""
        self._audit(trainer, pl_module, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """Read the LRs."""
        self._used.read(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compare the LRs used with the plan."""
        self._follow(trainer, pl_module)

    def _follow(self, trainer: Any, pl_module: Any) -> None:
        updates, self._used.updates = self._used.updates, []
        if self._followup is None or not updates or not self._situations:
            return
        planned_batch = None
        if not pl_module.automatic_optimization:
            planned_batch = trainer.fit_loop.total_batch_idx - self._batches_before
        skipped = trainer.global_step - self._steps_before - sum(self._used.done) + self._done_before
        for index, update, used, _ in updates:
            self._followup.compare(index, update, used["lr"], max(0, skipped), planned_batch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say where plan and use have parted."""
        self._used.detach()
        if self._followup is None:
            return
        ended = " (trainer.should_stop was set, by early stopping or whoever else)" if trainer.should_stop else ""
        self._compare(self._followup, ended)
        self._draw(trainer, "schedule/planned_and_used", self._followup)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the optimizers, and say how far the plan was followed."""
        self._used.detach()
        self._follow(trainer, pl_module)
        if self._followup is not None and not isinstance(exception, ScheduleProblem):
            self._compare(self._followup, f" (ended by {type(exception).__name__})")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the optimizers and what was planned for them."""
        self._used.detach()
        self._situations, self._followup = [], None

    def _audit(self, trainer: Any, pl_module: Any, first_batch: int) -> None:
        if self._followup is not None:
            return
        self._situations = situations(trainer, pl_module, first_batch, self._built, self._restored)
        self._followup = Followup(self._situations, self._used.done)
        self._steps_before, self._done_before = trainer.global_step, sum(self._used.done)
        self._batches_before = trainer.fit_loop.total_batch_idx + (0 if first_batch else 1)
        self.plan = [planned for situation in self._situations for planned in _planned(situation)]
        if trainer.fast_dev_run:
            self._say("ScheduleAudit: fast_dev_run makes a few updates only, so the plan is not judged")
            return
        self.findings = [finding for situation in self._situations for finding in findings_of(situation)]
        self.findings += [finding for situation in self._situations[:1] for finding in _unlogged(trainer, situation)]
        self._say(self._line())
        self._draw(trainer, "schedule/planned")
        if not self.findings:
            return
        if self.on_problem == "raise":
            raise ScheduleProblem("\n".join(["the planned learning rate is wrong:", *map(str, self.findings)]))
        for finding in self.findings:
            if self.on_problem == "print":
                self._say(f"ScheduleAudit: {finding}")
            else:
                _warn(f"ScheduleAudit: {finding}")

    def _say(self, line: str) -> None:
        if self.on_problem == "print":
            _print(line)
        else:
            rank_zero_info(line)

    def _line(self) -> str:
        """Return the plan in one line."""
        if not self._situations:
            return "ScheduleAudit: the module has no optimizer"
        situation = self._situations[0]
        updates, run = situation.trace.updates, situation.run
        verdict = f"{len(self.findings)} found" if self.findings else "nothing wrong"
        length = f"the first {updates:,} updates" if situation.open_end else f"{updates:,} updates"
        epochs = len(np.unique(run.epoch))
        parts = [f"{verdict} in {length} ({epochs:,} epoch{'s'[: epochs != 1]})", *map(_of_groups, self._situations)]
        if any(one.trace.sampled for one in self._situations):
            looked = max(len(one.trace.at) for one in self._situations)
            parts.append(f"sampled at {looked:,} points of the closed form")
        return f"ScheduleAudit: {'; '.join(parts)}"

    def _compare(self, followup: Followup, ended: str) -> None:
        self.differences = followup.report(ended)
        for line in self.differences:
            self._say(f"ScheduleAudit: {line}")
        if not self.differences and followup.compared:
            self._say(f"ScheduleAudit: the LR was the planned one at all {followup.compared:,} updates compared")

    def _draw(self, trainer: Any, tag: str, followup: Followup | None = None) -> None:
        boards = [logger for logger in trainer.loggers if hasattr(logger.experiment, "add_image")]
        if not boards or not trainer.is_global_zero or trainer.fast_dev_run or not self._situations:
            return
        curves = dict(curve for one in self._situations for curve in planned_curves(one))
        title = "Planned learning rate"
        if followup is not None:
            curves = {f"{name} planned": curve for name, curve in curves.items()}
            curves |= {f"{name} used": curve for name, curve in followup.curves.items()}
            title = "Learning rate, planned and used"
        figure = schedule_curves(curves, title)
        for logger in boards:
            logger.experiment.add_image(tag, pixels(figure), trainer.global_step, dataformats="HWC")


def _planned(situation: Situation) -> list[PlannedLR]:
    trace = situation.trace
    depends = ", ".join(one.depends for one in situation.scheduled if one.depends)
    first, last, after = trace.lr(0), trace.lr(max(trace.updates - 1, 0)), trace.lr(trace.updates)
    return [
        PlannedLR(
            name,
            first[group],
            float(np.nanmax(trace.used[:, group])),
            last[group],
            after[group],
            trace.changes(group),
            depends,
        )
        for group, name in enumerate(situation.names)
    ]


def _of_groups(situation: Situation) -> str:
    """Return the plan of one optimizer in words, in one phrase however many groups it has."""
    planned = _planned(situation)
    of = f" ({', '.join(one.name for one in situation.scheduled) or 'no scheduler'})"
    if planned[0].depends:
        return f"{planned[0].name} {planned[0].first:.4g}, then depends on {planned[0].depends}{of}"
    if len(planned) > 4:
        phrases = [
            f"{planned[0].name} to {planned[-1].name} peak {_span(planned, 'peak')}, last {_span(planned, 'last')}"
        ]
    else:
        phrases = [
            f"{one.name} {one.first:.4g} -> {one.last:.4g}, peak {one.peak:.4g}, after the end {one.after:.4g}, "
            f"{'at least ' if situation.trace.sampled else ''}{one.changes:,} change{'s'[: one.changes != 1]}"
            for one in planned
        ]
    return ", ".join(phrases) + of


def _span(planned: list[PlannedLR], field: str) -> str:
    values = [getattr(one, field) for one in planned]
    return f"{min(values):.4g} to {max(values):.4g}"


def planned_curves(situation: Situation) -> list[tuple[str, Points]]:
    """Return the planned LR of every group as (name, points), in stairs where nothing lies between the points.

    Steps are counted from where the plan begins.

    Args:
        situation: One optimizer of the run.
    """
    trace = situation.trace
    at, ends = trace.at, np.append(trace.at[1:], trace.updates)
    steps: list[float] = np.stack([at, np.maximum(at, ends - 1)], axis=1).ravel().astype(float).tolist()
    return [(name, (steps, np.repeat(trace.lrs[:, group], 2).tolist())) for group, name in enumerate(situation.names)]


def _unlogged(trainer: Any, situation: Situation) -> list[Finding]:
    """Return that LearningRateMonitor will write no point."""
    callbacks = trainer.callbacks
    if not trainer.loggers or any(has_class(callback, "LearningRateLogger") for callback in callbacks):
        return []
    stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
    every, updates = trainer.log_every_n_steps, situation.trace.updates
    in_steps = 0 if not every else (stepped + updates) // every - stepped // every
    for callback in callbacks:
        if not has_class(callback, "LearningRateMonitor"):
            continue
        interval, configs = callback.logging_interval, trainer.lr_scheduler_configs
        # without an interval of its own it logs a scheduler at the scheduler's interval, other optimizers at both
        only_steps = interval == "step" or (
            interval is None
            and bool(configs)
            and all(config.interval == "step" for config in configs)
            and len({id(config.scheduler.optimizer) for config in configs}) == len(trainer.optimizers)
        )
        if only_steps and not in_steps:
            return [
                Finding(
                    "unlogged",
                    f"LearningRateMonitor will write no point: it looks every log_every_n_steps={every} updates, and "
                    f"the run makes {updates:,}",
                    "use LearningRateLogger, which writes every update, or Trainer(log_every_n_steps=1)",
                )
            ]
    return []


@rank_zero_only
def _print(line: str) -> None:
    print(line)


@rank_zero_only
def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)
