"""How long a scheduler's curve is, where its class tells.

Convention: a horizon is counted in the scheduler's own steps. Only torch's and our classes have a known one: an
attribute of another class, or a variable of a closure, may count anything, whatever its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers

from lit_cosine._compat import child_schedulers, milestones_of
from lit_cosine.training import ScheduleLR

__all__ = ["horizon", "is_known", "parts_of"]

_KNOWN = {
    torch_schedulers.CosineAnnealingLR: "T_max",
    torch_schedulers.OneCycleLR: "total_steps",
    torch_schedulers.LinearLR: "total_iters",
    torch_schedulers.ConstantLR: "total_iters",
    torch_schedulers.PolynomialLR: "total_iters",
}
# torch's classes without an end, or with one of another kind
_ENDLESS = (
    torch_schedulers.StepLR,
    torch_schedulers.MultiStepLR,
    torch_schedulers.ExponentialLR,
    torch_schedulers.CyclicLR,
    torch_schedulers.CosineAnnealingWarmRestarts,
)


def horizon(scheduler: Any, state: Any = None) -> float | None:
    """Return the step at which the curve of a torch class, or of a ScheduleLR, ends; None if that is not known.

    With a ``state``, what a ``state_dict`` of that scheduler says of it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> horizon(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10))
    10.0
    """
    if isinstance(scheduler, ScheduleLR):
        return scheduler.total_steps
    held = vars(scheduler) if state is None else state
    if not isinstance(held, Mapping):
        return None
    if children := child_schedulers(scheduler):
        states = [None] * len(children) if state is None else list(held.get("_schedulers", ()))
        lengths = [horizon(child, one) for child, one in zip(children, states, strict=False)]
        if (milestones := milestones_of(scheduler)) is None:  # a ChainedScheduler
            return max((length for length in lengths if length is not None), default=None)
        return None if not lengths or lengths[-1] is None else milestones[-1] + lengths[-1]
    length = next((held.get(name) for kind, name in _KNOWN.items() if isinstance(scheduler, kind)), None)
    return float(length) if isinstance(length, (int, float)) else None


def parts_of(scheduler: Any) -> list[Any]:
    """Return the scheduler, and those it is composed of."""
    return [scheduler, *(part for child in child_schedulers(scheduler) for part in parts_of(child))]


def is_known(scheduler: Any) -> bool:
    """Return whether the class determines the whole curve, so that its values need not be looked at."""
    if children := child_schedulers(scheduler):
        return all(is_known(child) for child in children)
    return isinstance(scheduler, (ScheduleLR, *_KNOWN, *_ENDLESS))
