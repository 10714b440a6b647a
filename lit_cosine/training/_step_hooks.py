"""Hooks on optimizers that neither a pickle nor a copy takes along.

Convention: a callback keeps its hooks in one ``StepHooks`` and removes them when training ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["StepHooks"]


class StepHooks:
    """The step hooks that one callback has registered on optimizers.

    torch's ``RemovableHandle`` pickles the optimizer's dict of hooks, hence all that a hook refers to: the Trainer, its
    loaders and the data set. A pickle or a copy of this object is empty.

    >>> import copy, torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> hooks = StepHooks()
    >>> hooks.add(optimizer, after=lambda optimizer, args, kwargs: None)
    >>> len(hooks), len(copy.deepcopy(hooks))
    (1, 0)
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def add(
        self,
        optimizer: Optimizer,
        *,
        before: Callable[[Any, Any, Any], None] | None = None,
        after: Callable[[Any, Any, Any], None] | None = None,
    ) -> None:
        """Have ``before`` and ``after`` called with (optimizer, args, kwargs) around every step of ``optimizer``."""
        if before is not None:
            self._handles.append(optimizer.register_step_pre_hook(before))
        if after is not None:
            self._handles.append(optimizer.register_step_post_hook(after))

    def remove(self) -> None:
        """Remove the hooks from their optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __len__(self) -> int:
        return len(self._handles)

    def __reduce__(self) -> tuple[Any, ...]:
        return StepHooks, ()
