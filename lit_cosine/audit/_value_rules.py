"""Rules on the values of a curve: LRs that are invalid, too high, too low or not factors.

Convention: every rule takes a :class:`Curve` and yields at most one finding, or one of each kind of hint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine.audit._curve import Curve
from lit_cosine.audit._finding import Finding
from lit_cosine.training import ScheduleLR

__all__ = ["RULES"]

# these take the LR itself, not a factor of the optimizer's
_ABSOLUTE = (torch_schedulers.OneCycleLR, torch_schedulers.CyclicLR)


def _bad_value(curve: Curve) -> Iterator[Finding]:
    """Yield that an update uses an LR that is negative, infinite or nan."""
    trace = curve.trace
    bad = (~np.isfinite(trace.used) | (trace.used < 0)) & trace.present[: len(trace.used)]
    if bad.any():
        row, group = map(int, np.argwhere(bad)[0])
        update, value = curve.situation.done + int(trace.at[row]) + 1, float(trace.used[row, group])
        yield Finding(
            "bad-value",
            f"{curve.name} sets the LR to {value:.4g} at update {update:,} of {curve.total:,}"
            + (", and with a negative LR the optimizer raises the loss" if value < 0 else ""),
            curve.fix(f"keep its factor finite and >= 0 up to the end of the run, or {curve.length_fix}"),
        )


def _absolute_factor(curve: Curve) -> Iterator[Finding]:
    """Yield that the function of a LambdaLR returns an LR, which is then multiplied by the optimizer's."""
    if type(curve.scheduler) is not torch_schedulers.LambdaLR or curve.before or curve.beyond is None:
        return
    base, highest = curve.bases[0], float(np.nanmax(curve.beyond.lrs[:, 0]))
    factor = highest / base if base else 0.0
    same = math.isclose(factor, base, rel_tol=1e-6) and base <= 0.5
    if same or 0 < factor < 0.01:
        yield Finding(
            "absolute-factor",
            f"the function of {curve.name} returns at most {factor:.4g}, "
            + ("which is the optimizer's LR: the two are multiplied, " if same else "")
            + f"and the LR is {highest:.4g} at its highest where the optimizer's is {base:.4g}",
            curve.fix("divide what the function returns by the optimizer's LR: LambdaLR multiplies the two"),
            "error" if same else "hint",
        )


def _grows(curve: Curve) -> Iterator[Finding]:
    """Yield that the LR grows far above the optimizer's."""
    if isinstance(curve.scheduler, (ScheduleLR, *_ABSOLUTE)):
        return
    bases = curve.bases
    peaks = curve.trace.peaks[: len(bases)]
    far = np.flatnonzero((bases > 0) & (peaks > 10 * bases * (1 + 1e-9)))
    if len(far):
        group = int(far[0])
        yield Finding(
            "grows",
            f"{curve.name} raises the LR of {curve.situation.names[group]} to {peaks[group]:.4g}, "
            f"{peaks[group] / bases[group]:,.0f} times the optimizer's {bases[group]:.4g}",
            curve.fix("give the optimizer the peak LR, and the scheduler factors up to 1"),
            "error" if peaks[group] > 10 else "hint",  # below, it may be a test of LRs
        )


def _unusual_factor(curve: Curve) -> Iterator[Finding]:
    """Yield a factor in a ScheduleLR that looks like an LR, or like a typing error."""
    if not isinstance(curve.scheduler, ScheduleLR):
        return
    bases, schedule = curve.bases, curve.scheduler.schedule
    highest = float(np.max(curve.trace.peaks[: len(bases)] / np.where(bases > 0, bases, 1.0)))
    if highest > 1 + 1e-9:
        yield Finding(
            "unusual-factor",
            f"{curve.name} raises the LR to {highest:.4g} times the peak LR of the optimizer",
            "give the optimizer the highest LR, and the schedule factors up to 1",
            "hint",
        )
    end = schedule(1.0)
    if 0 < end < 1e-4 and end != 4e-6:  # the end of one_cycle
        yield Finding(
            "unusual-factor",
            f"{curve.name} ends at {end:.4g} times the peak LR, at {end * float(bases[0]):.4g}: an end is a factor",
            f"to end at an LR of {end:.4g}, write end={end / float(bases[0]) if bases[0] else 0:.4g}",
            "hint",
        )


RULES = (_bad_value, _absolute_factor, _grows, _unusual_factor)
