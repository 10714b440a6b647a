"""The LR after a number of steps of a torch scheduler, without making the steps.

Convention: steps are counted from the scheduler's present position. Only classes whose LR is a function of the step
number are supported, and they are compared by exact class: a subclass may have another curve.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine._compat import child_schedulers, closed_form_lrs, milestones_of, silence_get_lr
from lit_cosine.training import ScheduleLR

__all__ = ["closed_form"]

LRAfter = Callable[[int], list[float]]

_WITH_CLOSED_FORM = (
    torch_schedulers.StepLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.ConstantLR,
    torch_schedulers.LinearLR,
    torch_schedulers.ExponentialLR,
    torch_schedulers.CosineAnnealingLR,
    torch_schedulers.PolynomialLR,
)
# get_lr() of these computes the LR from last_epoch alone
_FUNCTION_OF_STEP = (torch_schedulers.LambdaLR, torch_schedulers.OneCycleLR, torch_schedulers.CyclicLR)


def closed_form(scheduler: Any) -> LRAfter | None:
    """Return the LRs of the groups as a function of the number of further steps, or None if there is no closed form.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> closed_form(torch_schedulers.CosineAnnealingLR(optimizer, T_max=1_000_000))(500_000)
    [0.5]
    """
    kind, now = type(scheduler), getattr(scheduler, "last_epoch", 0)
    if isinstance(scheduler, ScheduleLR):
        scheduler.state_dict()  # updates base_lrs where group["lr"] was changed from outside
        return lambda steps: scheduler.lrs_at(now + steps)
    if kind is torch_schedulers.ChainedScheduler:
        return _of_chain(scheduler)
    if kind is torch_schedulers.SequentialLR:
        return _of_sequence(scheduler)
    if kind in _WITH_CLOSED_FORM and (lrs := closed_form_lrs(scheduler)) is not None:
        return lambda steps: _floats(_at(scheduler, now + steps, lrs))
    if kind in _FUNCTION_OF_STEP:
        silence_get_lr(scheduler)
        return lambda steps: _floats(_at(scheduler, now + steps, scheduler.get_lr))
    return None


def _of_sequence(scheduler: Any) -> LRAfter | None:
    parts, milestones, now = child_schedulers(scheduler), milestones_of(scheduler), scheduler.last_epoch
    positions = [getattr(child, "last_epoch", 0) for child in parts]
    if milestones is None:
        return None
    children = [child for child in map(closed_form, parts) if child is not None]
    if len(children) < len(parts):
        return None

    def lr_after(steps: int) -> list[float]:
        index = bisect_right(milestones, now + steps)
        begin = milestones[index - 1] if index else 0
        return children[index](now + steps - begin - positions[index])

    return lr_after


def _of_chain(scheduler: Any) -> LRAfter | None:
    """Return the product of the children's curves; each is a factor of the base LR that they share."""
    parts = child_schedulers(scheduler)
    children = [child for child in map(closed_form, parts) if child is not None]
    bases = _floats(parts[0].base_lrs)
    if len(children) < len(parts) or 0.0 in bases:
        return None

    def lr_after(steps: int) -> list[float]:
        curves = zip(*(child(steps) for child in children), strict=True)
        return [base * math.prod(lr / base for lr in lrs) for base, lrs in zip(bases, curves, strict=True)]

    return lr_after


def _at(scheduler: Any, step: int, get: Callable[[], Iterable[Any]]) -> Iterable[Any]:
    scheduler.last_epoch = step
    return get()


def _floats(lrs: Iterable[Any]) -> list[float]:
    return [float(lr) for lr in lrs]
