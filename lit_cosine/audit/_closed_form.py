"""The LR after a number of steps of a torch scheduler, without making the steps.

Convention: steps are counted from the scheduler's present position. Only torch's classes whose LR is a function of the
step number are supported, and ours; they are compared by exact class: a subclass may have another curve.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine._compat import child_schedulers, closed_form_lrs, milestones_of
from lit_cosine.training import ScheduleLR

__all__ = ["closed_form"]

LRAfter = Callable[[int], list[float]]

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
    if kind in (torch_schedulers.SequentialLR, torch_schedulers.ChainedScheduler):
        parts = child_schedulers(scheduler)
        children = [child for child in map(closed_form, parts) if child is not None]
        if len(children) < len(parts):
            return None
        of_parts = _of_sequence if kind is torch_schedulers.SequentialLR else _of_chain
        return of_parts(scheduler, parts, children)
    get = scheduler.get_lr if kind in _FUNCTION_OF_STEP else closed_form_lrs(scheduler)
    if get is None or kind.__module__ != torch_schedulers.__name__:
        return None

    def lr_after(steps: int) -> list[float]:
        scheduler.last_epoch = now + steps
        return [float(lr) for lr in get()]

    return lr_after


def _of_sequence(scheduler: Any, parts: Sequence[Any], children: Sequence[LRAfter]) -> LRAfter | None:
    milestones, now = milestones_of(scheduler), scheduler.last_epoch
    positions = [getattr(child, "last_epoch", 0) for child in parts]
    if milestones is None:
        return None

    def lr_after(steps: int) -> list[float]:
        index = bisect_right(milestones, now + steps)
        begin = milestones[index - 1] if index else 0
        return children[index](now + steps - begin - positions[index])

    return lr_after


def _of_chain(scheduler: Any, parts: Sequence[Any], children: Sequence[LRAfter]) -> LRAfter | None:
    """Return the product of the children's curves; each is a factor of the base LR that they share."""
    bases = [float(base) for base in parts[0].base_lrs]
    if 0.0 in bases:
        return None

    def lr_after(steps: int) -> list[float]:
        curves = zip(*(child(steps) for child in children), strict=True)
        return [base * math.prod(lr / base for lr in lrs) for base, lrs in zip(bases, curves, strict=True)]

    return lr_after
