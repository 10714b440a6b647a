"""One scheduler's curve: in the run, beyond it, and where it ends.

Convention: the length that a torch class states is certain. For any other scheduler the values of the curve are looked
at, as they would be in a longer run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine.audit._finding import Severity
from lit_cosine.audit._horizon import horizon, is_known, parts_of
from lit_cosine.audit._playback import Stepping, Trace, play
from lit_cosine.audit._situation import Scheduled, Situation

__all__ = ["PER_STEP", "Curve", "CurveEnd", "curve_end"]

PER_STEP = 'return {"scheduler": scheduler, "interval": "step"} from configure_optimizers'
_FAR = 30_000
"""The number of steps up to which a curve is followed beyond the run."""


class Curve:
    """A scheduler's curve in this run, in which it makes ``made`` steps."""

    def __init__(self, scheduled: Scheduled, stepping: Stepping, situation: Situation) -> None:
        self.scheduled, self.stepping, self.situation = scheduled, stepping, situation
        self.scheduler, self.name, self.trace = scheduled.scheduler, scheduled.name, situation.trace
        self.made = int(np.count_nonzero(stepping.steps[: self.trace.updates]))
        self.before = int(getattr(self.scheduler, "last_epoch", 0) or 0)
        self.reached = self.before + self.made
        self.total = situation.done + self.trace.updates
        self.first, self.last = self.trace.first[0], self.trace.last[0]

    @cached_property
    def length(self) -> float | None:
        """The horizon, if the class states it."""
        if isinstance(self.scheduler, torch_schedulers.CosineAnnealingWarmRestarts):
            restarted = self.scheduler.T_cur != self.before
            return None if restarted or self.made >= self.scheduler.T_i - self.before else float(self.scheduler.T_i)
        if isinstance(self.scheduler, torch_schedulers.CyclicLR):  # up to its first peak, where the run ends before it
            rise = self.scheduler.total_size * self.scheduler.step_ratio
            return rise if self.reached < rise else None
        return horizon(self.scheduler)

    @cached_property
    def beyond(self) -> Trace | None:
        """The curve beyond the run, one scheduler step an update; None if the run is too long to look further."""
        period = getattr(self.scheduler, "step_size", 0)
        period = period if isinstance(period, int) else 0
        of_updates = 0 if self.scheduled.interval == "step" else int(1.5 * self.total)
        far = min(_FAR, max(1_000, 20 * self.made, of_updates, period + 1))
        if far < 1.2 * self.made:
            if type(self.scheduler) is not torch_schedulers.LambdaLR:  # whose curve is sampled
                return None
            far = 2 * self.made
        always = Stepping(self.scheduler, np.ones(far, dtype=bool))
        return play(self.situation.optimizer, [always], far, shared=self.situation.shared)

    @cached_property
    def end(self) -> CurveEnd | None:
        """Where the values of the curve show an end, if the class states none."""
        return None if is_known(self.scheduler) or self.beyond is None else curve_end(self.beyond, self.made)

    @property
    def length_seen(self) -> float | None:
        """The horizon that the class states, or else the step at which the values show an end."""
        if self.length is not None or self.end is None:
            return self.length
        return float(self.end.step + self.before)

    @cached_property
    def bases(self) -> Any:
        """The base LR of every group."""
        bases = next((part.base_lrs for part in parts_of(self.scheduler) if hasattr(part, "base_lrs")), None)
        groups = self.situation.optimizer.param_groups
        if bases is None or len(bases) != len(groups):
            bases = [group.get("initial_lr", group["lr"]) for group in groups]
        return np.array([float(lr) for lr in bases])

    @property
    def moves(self) -> bool:
        """Whether the LR of a group changes in the run."""
        return any(self.trace.changes(group) for group in range(self.trace.lrs.shape[1]))

    def fix(self, code: str, command: str = "") -> str:
        """Return the fix that the reader can follow, see :class:`Reader`."""
        reader = self.situation.reader
        if self.scheduled.interval == "update" and reader.kind == "library":
            return code  # the callback is there already, and it is the reader's
        return reader.fix(code, command)

    @property
    def length_fix(self) -> str:
        """How to give the scheduler the length of the run, in the unit in which it is stepped."""
        by_epoch = self.scheduled.interval == "epoch"
        length = "epochs, trainer.max_epochs" if by_epoch else "length, lit_cosine.total_steps(trainer)"
        return f"set its horizon to the run's {length}, or use lr_scheduler_config, which does so"

    @property
    def certain(self) -> Severity:
        """The severity of a fault that follows from the end of the curve."""
        return "error" if is_known(self.scheduler) else "hint"


@dataclass(frozen=True)
class CurveEnd:
    """The step, from now, at which the values of a curve turn up, settle, raise, or peak after a rise."""

    step: int
    kind: Literal["turns", "settles", "raises", "peaks"]


def curve_end(beyond: Trace, made: int) -> CurveEnd | None:
    """Return where the values of a curve, played beyond the ``made`` steps of the run, show its end, if they do."""
    at, lrs = beyond.at, beyond.lrs[:, int(np.argmax(np.ptp(beyond.lrs, axis=0)))]
    peak = float(np.max(lrs))
    if len(at) < 3 or not np.isfinite(lrs).all() or peak <= 0:
        return None
    highest, falls = int(np.argmax(lrs)), np.diff(lrs) < 0
    if at[highest] > made and not falls[: np.searchsorted(at, made)].any():
        goes_on = len(at) - 1 == highest and beyond.error is None and at[highest] > 0.8 * beyond.updates
        # a rise without end may be meant, such as a test of LRs; one that ends or turns is a warmup
        return None if goes_on or peak < 1.2 * beyond.lr(made)[0] else CurveEnd(int(at[highest]), "peaks")

    turns = np.flatnonzero(falls[:-1] & (np.diff(lrs)[1:] > 0)) + 1
    if len(turns):
        first = int(turns[0])
        jumps = np.diff(lrs)[first:].max() > 0.5 * peak  # a restart, where the LR returns to its peak in one step
        return CurveEnd(int(at[first]), "turns") if lrs[first] <= 0.01 * peak and not jumps else None
    if beyond.error is not None:
        return CurveEnd(beyond.error[0], "raises")
    # an exponential decay is at 0 in the end too, but only where floats end
    underflow = lrs[-2] < 1e-30 * peak
    if at[-1] <= 0.8 * beyond.updates and (lrs[-1] <= 1e-9 * peak or _eases_out(lrs[highest:])) and not underflow:
        return CurveEnd(int(at[-1]), "settles")
    return None


def _eases_out(lrs: Any) -> bool:
    """Return whether a descent is steepest in its middle and flat at its end, as a cosine is down to a floor.

    A floor below an exponential or a linear decay is met in the middle of the descent: it says nothing of a length.
    """
    falls = -np.diff(lrs)
    return len(falls) > 10 and bool(0.2 < np.argmax(falls) / len(falls) < 0.8 and falls[-1] <= 0.2 * falls.max())
