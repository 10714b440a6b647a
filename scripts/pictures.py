#!/usr/bin/env python
"""The pictures of curves in README and docs: ``python scripts/pictures.py`` writes hero, schedules and resume.png.

Convention: 1600 pixels wide with letters of at least 20 pixels, so that a picture can be read at half its size.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_cosine import (
    Clock,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    LitClassifier,
    OneMinusSqrt,
    Polynomial,
    Restarts,
    Schedule,
    ScheduleAudit,
    Sequential,
    SimpleNN,
    Step,
    TabularDataModule,
    one_cycle,
    warmup_cosine,
    warmup_stable_decay,
)
from lit_cosine.monitors._figures import style
from lit_cosine.schedules import OnResize

DOCS = Path(__file__).parents[1] / "docs"
LETTERS = {"font.size": 11, "axes.titlesize": 11, "legend.fontsize": 10, "axes.grid": True, "grid.alpha": 0.3}
SCHEDULES: dict[str, Schedule] = {
    "Constant()": Constant(),
    "Linear()": Linear(),
    "Cosine()": Cosine(),
    "Cosine(end=0.1, k=2)": Cosine(end=0.1, k=2),
    "Polynomial()": Polynomial(),
    "Exponential()": Exponential(),
    "Step()": Step(),
    "OneMinusSqrt()": OneMinusSqrt(),
    "InverseSqrt()": InverseSqrt(),
    "Restarts()": Restarts(),
    "Restarts(\nt_mult=2, decay=0.5)": Restarts(t_mult=2, decay=0.5),
    "Sequential((Cosine(…),\nLinear(…)), (0.6,))": Sequential((Cosine(end=0.4), Linear(start=0.4)), (0.6,)),
    "warmup_cosine()": warmup_cosine(),
    "warmup_stable_decay()": warmup_stable_decay(),
    "one_cycle()": one_cycle(),
}


class Record(Callback):
    """Notes the planned LRs, and the LR and the loss of every update."""

    def __init__(self, audit: ScheduleAudit) -> None:
        """Take the audit whose plan is read."""
        self.audit = audit
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.planned: Any = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Note the LR that the update uses."""
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the loss, and the plan while it is there."""
        self.losses.append(float(outputs["loss"]))
        (self.planned,) = self.audit.planned_points.values()


def hero(planned: int = 10, stopped: int = 6, now: int = 16) -> Figure:
    """Return planned and used LR, and loss, of a run of ``planned`` epochs, stopped and resumed as one of ``now``."""

    def train(folder: str, epochs: int, stop: int | None = None, ckpt_path: str | None = None) -> Record:
        seed_everything(0, verbose=False)
        audit = ScheduleAudit()
        record = Record(audit)
        ends = Callback()
        ends.on_train_epoch_end = lambda trainer, _: setattr(  # type: ignore[method-assign]
            trainer, "should_stop", trainer.current_epoch + 1 == stop
        )
        model = LitClassifier(SimpleNN(64, 64, 10), lr=0.01, schedule=Cosine(), warmup="10%", interval="step")
        callbacks = [audit, record, ends, ModelCheckpoint(folder, save_last=True)]
        trainer = Trainer(max_epochs=epochs, callbacks=callbacks, logger=False, accelerator="cpu",
                          enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(model, TabularDataModule("digits"), ckpt_path=ckpt_path)
        return record

    with tempfile.TemporaryDirectory() as folder:
        first = train(folder, planned, stopped)
        second = train(folder, now, ckpt_path=f"{folder}/last.ckpt")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    done, end = len(first.lrs), len(first.lrs) + len(second.lrs)
    wide = {"linewidth": 6.0, "alpha": 0.35}
    left.plot(*first.planned, label=f"planned: {planned} epochs", color=style(1)["color"], **wide)
    left.plot(*second.planned, label=f"planned after the resume: {now} epochs", color=style(0)["color"], **wide)
    left.plot(range(end), first.lrs + second.lrs, label="used", color="black", linewidth=1.5)
    left.set(xlabel="optimizer step", ylabel="learning rate", title="Planned and used LR")
    right.plot(range(end), first.losses + second.losses, color=style(2)["color"], linewidth=0.8)
    right.set(xlabel="optimizer step", ylabel="training loss", title="Loss", yscale="log")
    for axes in (left, right):
        axes.axvline(done, color="grey", linewidth=1.0, linestyle="--")
    left.text(done + 8, 0.0055, f"stopped after {stopped} epochs,\nresumed with max_epochs={now}")
    left.legend(loc="upper right")
    return figure


def schedules() -> Figure:
    """Return a panel for each schedule."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(3, 5, sharex=True, sharey=True).ravel()
    progress = [k / 1000 for k in range(1001)]
    for axes, (name, schedule) in zip(panels, SCHEDULES.items(), strict=True):
        axes.plot(progress, [schedule(u) for u in progress], **style(0))
        axes.set_title(name, fontsize=9, family="monospace")
    figure.supxlabel("progress", fontsize=11)
    figure.supylabel("factor of the peak LR", fontsize=11)
    return figure


def resume(planned: int = 100, stopped: int = 60, now: int = 150) -> Figure:
    """Return the LR of a run that was planned ``planned`` updates long, stopped and resumed as one of ``now``."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    schedule, clock = Cosine(), Clock(planned)
    panels = figure.subplots(1, 4, sharey=True)
    for axes, policy in zip(panels, get_args(OnResize), strict=True):
        resumed = clock.reanchor(stopped, now, policy)
        after = range(stopped, now + 1)
        axes.plot(range(planned + 1), [schedule(clock(k)) for k in range(planned + 1)], ":", color="grey")
        axes.plot(range(stopped + 1), [schedule(clock(k)) for k in range(stopped + 1)], **style(0))
        axes.plot(after, [schedule(resumed(k)) for k in after], color=style(1)["color"])
        axes.axvline(stopped, color="grey", linewidth=0.8)
        axes.set_title(f'on_resize="{policy}"', fontsize=10, family="monospace")
        axes.set_xlabel("optimizer step")
    panels[0].set_ylabel("factor of the peak LR")
    return figure


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for draw in (hero, schedules, resume):
        with rc_context(LETTERS):
            draw().savefig(DOCS / f"{draw.__name__}.png", dpi=160)
        print(f"docs/{draw.__name__}.png")
