"""Which checkpoint of a run is the best: the monitored value, at the ends of epochs, and the file that holds it."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_cosine._checks import check_choice, check_text, shown

__all__ = ["Best"]


class Best:
    """The best ``value`` of the metric ``monitor`` so far, and the ``name`` of its checkpoint; None before."""

    def __init__(self, monitor: str | None, mode: str) -> None:
        check_choice("mode", mode, ("min", "max"))
        check_text("monitor", monitor, optional=True)
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None
        self.name: str | None = None
        self._validated = False
        self._last: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far, and the last value: a run resumed after a validation has no such metric."""
        return {"value": self.value, "file": self.name, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if (value := state["value"]) is not None:
            self.value, self.name = float(value), str(state["file"])
        self._last = None if state["last"] is None else float(state["last"])

    def validated(self, trainer: Trainer) -> None:
        """Take the value of a validation that has ended."""
        self._validated = True
        if self.monitor in trainer.callback_metrics:
            self._last = float(trainer.callback_metrics[self.monitor])

    def improvement(self, trainer: Trainer) -> float | None:
        """Return the monitored value at the end of an epoch if it is better than the best so far."""
        if self.monitor is None:
            return None
        found = trainer.callback_metrics.get(self.monitor, self._last)
        if found is None:
            if self._validated:  # before a validation it may be logged later
                names = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
                rank_zero_warn(
                    f"monitor={shown(self.monitor)} was not logged, so there is no best checkpoint; logged: {names}"
                )
                self.monitor = None
            return None
        value = float(found)
        if trainer.world_size > 1:  # logged without sync_dist, it differs between processes
            mine = torch.tensor(value, device=trainer.strategy.root_device)
            value = float(trainer.strategy.reduce(mine, reduce_op="mean"))
        sign = 1.0 if self.mode == "min" else -1.0
        better = self.value is None or sign * value < sign * self.value
        return value if better and math.isfinite(value) else None
