"""Hooks on optimizers that neither a pickle nor a copy takes along.

Convention: a callback keeps its hooks in one ``StepHooks`` and removes them when training ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

__all__ = ["StepHooks"]

_Hook = Callable[[Any, Any, Any], None]


class StepHooks:
    """The step hooks that one callback has registered on optimizers; a pickle or a copy of it is empty.

    torch's ``RemovableHandle`` would pickle all that a hook refers to: the Trainer, its loaders and the data set.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def add(self, optimizer: Optimizer, before: _Hook, after: _Hook) -> None:
        """Have ``before`` and ``after`` called with (optimizer, args, kwargs) around every step of ``optimizer``."""
        self._handles += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def remove(self) -> None:
        """Remove the hooks from their optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return StepHooks, ()
