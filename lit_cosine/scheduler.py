"""ScheduleLR: the torch scheduler that plays a schedule on an optimizer.

Convention: ``last_epoch`` is the position, counted in the unit of ``total_steps`` (optimizer steps, or epochs, …); the
update at position k runs at base LR * warmup(k) * schedule(clock(k)). Every LR is this closed form, never a recursion.
"""

from __future__ import annotations

import logging
import math
import operator
import warnings
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_cosine.horizon import Clock, OnResize, check_on_resize
from lit_cosine.schedule import Schedule, check_schedule

__all__ = ["ScheduleLR", "check_key", "log_warning"]

_log = logging.getLogger(__name__)

_STATE = {"unit", "step", "total_steps", "warmup_steps", "clock", "base_lrs", "last_lr"}


class ScheduleLR(LRScheduler):
    """Plays ``schedule`` on every param group of ``optimizer``: lr = base LR * warmup * schedule(progress).

    Step k of ``total_steps`` = N runs at progress k/N. With ``warmup_steps`` = W the first W steps are scaled by
    (k+1)/(W+1), and the schedule spans what is left: step k >= W runs at progress (k-W)/(N-W). From step N on the LR
    holds the schedule's end.

    The base LR is each group's own. Whoever changes ``group["lr"]`` from outside is heard: the base LR moves by the
    same ratio, or becomes the new value where the factor is 0 or no step was taken yet. A group that is added later
    brings its own base LR and joins the schedule at the next ``step()``. Tensor LRs are filled in place, so that a
    compiled or captured optimizer step sees them.

    Args:
        optimizer: Any torch optimizer.
        schedule: The curve.
        total_steps: Length of the run in ``step()`` calls, an integer >= 1.
        warmup_steps: Length of the warmup, an integer in [0, total_steps).
        on_resize: What a changed ``total_steps`` does to the rest of the run, after ``load_state_dict`` or
            :meth:`resize`: ``"continue"``, ``"rescale"``, ``"keep"`` or ``"restart"``, see ``Clock.reanchor``.
        key: The entry of the param groups to drive: ``"lr"``, or another number such as ``"weight_decay"``, scaled in
            the same way.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``total_steps`` or ``warmup_steps`` is out of range, ``on_resize`` is unknown, or the optimizer
            has no param groups or ``key`` is no number in them.

    >>> from lit_cosine import Cosine
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> scheduler = ScheduleLR(optimizer, Cosine(), total_steps=4)
    >>> for _ in range(2):
    ...     _ = optimizer.step()
    ...     scheduler.step()
    >>> scheduler.get_last_lr()
    [0.05]
    """

    unit: str = "step"
    """What a step is; a state that counts something else is refused."""

    base_lrs: list[float]  # type: ignore[assignment]  # torch keeps tensors here; ours are always numbers

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        total_steps: int,
        warmup_steps: int = 0,
        on_resize: OnResize = "continue",
        *,
        key: str = "lr",
    ) -> None:
        check_schedule("schedule", schedule)
        check_on_resize(on_resize)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
        if not optimizer.param_groups:
            raise ValueError("optimizer must have at least one param group, got none")
        check_key(optimizer, key)
        self.schedule = schedule
        self.total_steps, self.warmup_steps = _check_lengths(total_steps, warmup_steps)
        self.on_resize = on_resize
        self.key = key
        self.clock = Clock(self.total_steps, self.warmup_steps)
        self._factor = 1.0
        self._written: list[float] = []
        self._filled: dict[int, tuple[Tensor, int]] = {}  # the tensors among them, at the version they then had
        self._checkpointed: list[float] = []
        super().__init__(optimizer)

    def factor_at(self, step: float) -> float:
        """Return warmup * schedule at ``step``: what multiplies every group's base LR there."""
        factor = self.schedule(self.clock(step))
        if step < self.warmup_steps:
            factor *= (step + 1) / (self.warmup_steps + 1)
        return factor

    def step(self, epoch: int | None = None) -> None:
        """Move on by one step; call it after ``optimizer.step()``.

        Raises:
            ValueError: If ``epoch`` is given: this scheduler counts for itself.
        """
        if epoch is not None:
            raise ValueError(f"ScheduleLR.step counts for itself, got epoch={epoch}; see move_to")
        if self.last_epoch == 0 and _is_untouched(self.optimizer):
            warnings.warn(
                "ScheduleLR.step() was called before optimizer.step(): the first LR of the schedule is skipped",
                stacklevel=2,
            )
        self.move_to(self.last_epoch + 1)

    def move_to(self, step: float) -> None:
        """Go to ``step`` and write its LR to every group, for runs that are not counted one by one.

        Raises:
            ValueError: If ``step`` is negative or not finite.
        """
        if not 0 <= step < math.inf:
            raise ValueError(f"step must be finite and >= 0, got {step}")
        if self.last_epoch < 0:  # called by torch's constructor, which has filled initial_lr
            entry = "initial_lr" if self.key == "lr" else self.key
            self.base_lrs = [float(group[entry]) for group in self.optimizer.param_groups]
        else:
            self._hear()
            self._checkpointed = []
        self.last_epoch = step  # type: ignore[assignment]
        self._write()

    def join(self) -> None:
        """Take in param groups that were added since the last step, so that their first update is scheduled too."""
        if len(self.optimizer.param_groups) > len(self._written):
            self.move_to(self.last_epoch)

    def resize(self, total_steps: int, warmup_steps: int | None = None) -> None:
        """Go on with another ``total_steps`` from where the run is now, as ``on_resize`` says; logs one line.

        Nothing happens if that is the run's length already.

        Args:
            total_steps: The run's length from its first step, an integer >= 1.
            warmup_steps: The warmup of a run planned so from the start, used by ``"rescale"`` alone: the other policies
                keep the warmup as it was.

        Raises:
            ValueError: If ``total_steps`` or ``warmup_steps`` is out of range.
        """
        if warmup_steps is None:  # a warmup that has become too long for the run is no reason to end it
            lengths = _integer("total_steps", total_steps, least=1), self.warmup_steps
        else:
            lengths = _check_lengths(total_steps, warmup_steps)
        if lengths != (self.total_steps, self.warmup_steps):
            self._hear()
            self._resize(*lengths)
            self._write()

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the LR of every group, as last written, as floats."""
        return list(self._written)

    def get_lr(self) -> list[float | Tensor]:
        """Return the closed form at the present step for every group, as floats."""
        factor = self.factor_at(self.last_epoch)
        return [base_lr * factor for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers and lists; it loads with ``weights_only=True``."""
        self._hear()
        return {
            "unit": self.unit,
            "step": self.last_epoch,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "clock": [self.clock.total, self.clock.step, self.clock.progress],
            "base_lrs": list(self.base_lrs),
            "last_lr": list(self._written),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, the clock and the base LRs, and write every group's LR.

        If the state's ``total_steps`` differs from this scheduler's, ``on_resize`` applies and one line is logged.
        Load the optimizer's state first: loaded later it brings back the LR that the checkpoint was written at, which
        is no longer right where ``on_resize`` moved it, until the next ``step()``.

        Raises:
            ValueError: If the state is not a ScheduleLR's, or counts another unit.
        """
        if not isinstance(state_dict, dict) or state_dict.keys() != _STATE:
            keys = sorted(state_dict) if isinstance(state_dict, dict) else type(state_dict).__name__
            raise ValueError(
                f"the state must be a ScheduleLR's, with the keys {sorted(_STATE)}; got {keys}: resume with the "
                "scheduler that saved it, or under the callback LearningRateScheduler with replace=True"
            )
        if state_dict["unit"] != self.unit:
            raise ValueError(
                f"the state counts by the {state_dict['unit']}, this scheduler by the {self.unit}: "
                "resume with the same interval and the same kind of limit"
            )
        planned = self.total_steps, self.warmup_steps
        self._hear()  # groups that the checkpoint does not know keep their own base LR
        saved = state_dict["base_lrs"][: len(self.base_lrs)]
        self.base_lrs[: len(saved)] = saved
        self.last_epoch = state_dict["step"]
        self.total_steps, self.warmup_steps = state_dict["total_steps"], state_dict["warmup_steps"]
        self.clock = Clock(*state_dict["clock"])
        if self.total_steps != planned[0]:
            self._resize(*planned)
        elif self.warmup_steps != planned[1]:
            log_warning("warmup_steps stays %s, as in the checkpoint; %s was asked for", self.warmup_steps, planned[1])
        self._write()
        self._checkpointed = list(state_dict["last_lr"])

    def _resize(self, total_steps: int, warmup_steps: int) -> None:
        step, old = self.last_epoch, self.total_steps
        progress, before = self.clock(step), self.factor_at(step)
        if self.on_resize == "rescale":
            self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.clock = self.clock.reanchor(step, total_steps, self.on_resize, origin=self.warmup_steps)
        if progress == 1.0 and self.on_resize in ("continue", "keep"):
            then = 'the schedule had ended and holds its end; "restart" or "rescale" would anneal again'
        else:
            then = f"factor {before:.4g} -> {self.factor_at(step):.4g}, its end at step {self.clock.total:,}"
        log_warning(
            'total_steps changed from %s to %s at step %s (progress %.4g), on_resize="%s": %s',
            *(f"{old:,}", f"{total_steps:,}", f"{step:,}", progress, self.on_resize, then),
        )

    def _hear(self) -> None:
        """Move base LRs along with groups whose LR is not what was last written; take in groups that are new."""
        written = self._written
        for index, group in enumerate(self.optimizer.param_groups):
            lr = group[self.key]
            if index >= len(written):
                self.base_lrs.append(float(lr))
                written.append(float(lr))
            elif isinstance(lr, Tensor):
                # reading a tensor waits for its device: look only if someone wrote to it, or put another in its place
                tensor, version = self._filled.get(index, (None, 0))
                if (lr is not tensor or lr._version != version) and not _same(lr, written[index]):
                    self._move_base(index, lr)
            elif lr != written[index]:
                self._move_base(index, lr)

    def _move_base(self, index: int, lr: float | Tensor) -> None:
        if index < len(self._checkpointed) and _same(lr, self._checkpointed[index]):
            return  # no change from outside: the optimizer's state was loaded after the scheduler's
        scale = self._factor if self.last_epoch > 0 and self._factor > 0.0 else 1.0
        self.base_lrs[index] = float(lr) / scale
        self._written[index] = float(lr)

    def _write(self) -> None:
        self._factor = factor = self.factor_at(self.last_epoch)
        self._written = written = [base_lr * factor for base_lr in self.base_lrs]
        for index, (group, value) in enumerate(zip(self.optimizer.param_groups, written, strict=False)):
            lr = group[self.key]
            if isinstance(lr, Tensor):
                lr.fill_(value)
                self._filled[index] = lr, lr._version
            else:
                group[self.key] = value


def check_key(optimizer: Optimizer, key: str) -> None:
    """Refuse an entry of the param groups that is no number."""
    for group in optimizer.param_groups:
        value = group.get(key)
        if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
            known = ", ".join(name for name in group if name != "params")
            raise ValueError(
                f"{key} is not a number in the param groups of {type(optimizer).__name__}, so it cannot be scheduled; "
                f"they have {known}"
            )


def _check_lengths(total_steps: int, warmup_steps: int) -> tuple[int, int]:
    total = _integer("total_steps", total_steps, least=1)
    warmup = _integer("warmup_steps", warmup_steps, least=0)
    if warmup >= total:
        raise ValueError(f"warmup_steps must be shorter than the run: got {warmup} of total_steps {total}")
    return total, warmup


def _integer(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        error = ValueError if isinstance(value, float) else TypeError
        raise error(f"{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value}")
    return operator.index(value)


def _is_untouched(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer.step`` was surely not called yet; a copy or pickle has lost torch's wrapper."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched") and not getattr(optimizer, "_opt_called", False)


def _same(lr: float | Tensor, value: float) -> bool:
    """Return whether ``lr`` holds ``value``, to its own precision."""
    return bool(lr == torch.tensor(value, dtype=lr.dtype)) if isinstance(lr, Tensor) else lr == value


def log_warning(message: str, *numbers: object) -> None:
    """Log one line, on one rank."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank()):
        _log.warning(message, *numbers)
