"""The LR after so many steps of a torch scheduler, without making them.

Convention: steps are counted from where the scheduler stands. Only classes whose LR is a function of the step alone are
here, asked by their exact class: a subclass may have another curve.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine.scheduler import ScheduleLR

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
_FUNCTION_OF_STEP = (torch_schedulers.LambdaLR, torch_schedulers.OneCycleLR, torch_schedulers.CyclicLR)


def closed_form(scheduler: Any) -> LRAfter | None:
    """Return the LRs of the groups as a function of the steps made from now, or None if none is known.

    Args:
        scheduler: A copy that may be moved about.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> closed_form(torch_schedulers.CosineAnnealingLR(optimizer, T_max=1_000_000))(500_000)
    [0.5]
    """
    kind, now = type(scheduler), getattr(scheduler, "last_epoch", 0)
    if isinstance(scheduler, ScheduleLR):
        scheduler.state_dict()  # takes in what somebody else may have set the LR to
        return lambda steps: [float(lr) * scheduler.factor_at(now + steps) for lr in scheduler.base_lrs]
    if kind is torch_schedulers.ChainedScheduler:
        return _of_chain(scheduler)
    if kind is torch_schedulers.MultiplicativeLR:
        return _of_products(scheduler)
    if kind is torch_schedulers.SequentialLR:
        return _of_sequence(scheduler)
    if kind is torch_schedulers.CosineAnnealingWarmRestarts:
        return _of_restarts(scheduler)
    if kind in _WITH_CLOSED_FORM:
        return lambda steps: _floats(_at(scheduler, now + steps, scheduler._get_closed_form_lr))
    if kind in _FUNCTION_OF_STEP:
        scheduler._get_lr_called_within_step = True  # or get_lr warns
        return lambda steps: _floats(_at(scheduler, now + steps, scheduler.get_lr))
    return None


def _of_sequence(scheduler: Any) -> LRAfter | None:
    positions = [getattr(child, "last_epoch", 0) for child in scheduler._schedulers]
    milestones, now = list(scheduler._milestones), scheduler.last_epoch
    children: list[LRAfter] = []
    for child in scheduler._schedulers:
        lr_of_child = closed_form(child)
        if lr_of_child is None:
            return None
        children.append(lr_of_child)

    def lr_after(steps: int) -> list[float]:
        index = bisect_right(milestones, now + steps)
        begin = milestones[index - 1] if index else 0
        return children[index](now + steps - begin - positions[index])

    return lr_after


def _of_restarts(scheduler: Any) -> LRAfter:
    """Return the curve from the present cycle on; torch's own ``step(epoch)`` finds it by a rounded logarithm."""
    begun, first = scheduler.T_cur, scheduler.T_i
    scheduler._get_lr_called_within_step = True  # or get_lr warns

    def lr_after(steps: int) -> list[float]:
        position, length = begun + steps, first
        if scheduler.T_mult == 1:
            position %= length
        while position >= length:
            position, length = position - length, length * scheduler.T_mult
        scheduler.T_cur, scheduler.T_i = position, length
        return _floats(scheduler.get_lr())

    return lr_after


def _of_products(scheduler: Any) -> LRAfter:
    """Return the LRs multiplied up by the factors alone, which the next question goes on from."""
    now, begin = scheduler.last_epoch, _floats(group["lr"] for group in scheduler.optimizer.param_groups)
    position, lrs = 0, begin

    def lr_after(steps: int) -> list[float]:
        nonlocal position, lrs
        if steps < position:
            position, lrs = 0, begin
        for step in range(position + 1, steps + 1):
            lrs = [lr * factor(now + step) for lr, factor in zip(lrs, scheduler.lr_lambdas, strict=True)]
        position = steps
        return lrs

    return lr_after


def _of_chain(scheduler: Any) -> LRAfter | None:
    """Return the product of the children's curves; each is a factor of the base LR that they share."""
    children = [child for child in map(closed_form, scheduler._schedulers) if child is not None]
    bases = _floats(scheduler._schedulers[0].base_lrs)
    if len(children) < len(scheduler._schedulers) or 0.0 in bases:
        return None

    def lr_after(steps: int) -> list[float]:
        curves = zip(*(child(steps) for child in children), strict=True)
        return [base * math.prod(lr / base for lr in lrs) for base, lrs in zip(bases, curves, strict=True)]

    return lr_after


def _at(scheduler: Any, step: int, get: Callable[[], list[Any]]) -> list[Any]:
    scheduler.last_epoch = step
    return get()


def _floats(lrs: Iterable[Any]) -> list[float]:
    return [float(lr) for lr in lrs]
