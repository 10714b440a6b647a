"""What really happened in a run, and closed forms to hold it against: shared by tests of other people's projects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_cosine import ScheduleAudit

Rows = list[list[float]]


class Used(pl.Callback):
    """Notes the LRs of every update, read as the optimizer is about to use them; one list for each optimizer."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.rows = [[] for _ in trainer.optimizers]
        for optimizer, rows in zip(trainer.optimizers, self.rows, strict=True):
            optimizer.register_step_pre_hook(
                lambda stepped, args, kwargs, rows=rows: rows.append([group["lr"] for group in stepped.param_groups])
            )


def audit_of(run: Any) -> ScheduleAudit:
    return next(callback for callback in run.callbacks if isinstance(callback, ScheduleAudit))


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every LR curve that TensorBoard shows of the runs in ``folder``."""
    found: dict[str, list[tuple[int, float]]] = {}
    for run in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("lr-"):
                found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def curve(values: Sequence[float], first: int = 0) -> list[tuple[int, Any]]:
    """Return values as points from step ``first`` on, to the precision that TensorBoard keeps."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in enumerate(values, first)]


def cosine(k: int, total: int, warmup: int, end: float) -> float:
    u = max(0, k - warmup) / (total - warmup)
    return min(1, (k + 1) / (warmup + 1)) * (end + (1 - end) * (1 + math.cos(math.pi * u)) / 2)
