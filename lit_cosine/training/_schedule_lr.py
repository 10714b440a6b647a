"""ScheduleLR: the torch scheduler that plays a schedule on an optimizer.

Convention: ``last_epoch`` is the position s, counted in the unit of ``total_steps`` (optimizer steps, or epochs, …): s
steps are done, and the next one runs at base LR * warmup(s) * schedule(s) * cooldown(s). Every LR is this closed form,
never a recursion.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_integer, shown
from lit_cosine._compat import step_was_called, tensor_version
from lit_cosine.schedules import Clock, OneMinusSqrt, OnResize, Schedule, check_lengths, check_on_resize, check_schedule
from lit_cosine.training._changes import ENDLESS, Lengths, OutsideChanges
from lit_cosine.training._param_groups import (
    check_key,
    check_order,
    group_names,
    own_names,
    read_entry,
    same_value,
    set_entry,
    set_own_names,
)
from lit_cosine.training._played import Curves, Played, checked_state

__all__ = ["ScheduleLR"]


class ScheduleLR(LRScheduler):
    """Plays ``schedule`` on every param group of ``optimizer``: lr = base LR * warmup * schedule * cooldown.

    Step k of ``total_steps`` = N runs at progress k/N. With ``warmup_steps`` = W and ``cooldown_steps`` = C, the first
    W steps are scaled by (k+1)/(W+1), the schedule spans what lies between warmup and cooldown at progress
    (k-W)/(N-C-W), and the last C steps scale its end by ``cooldown_schedule((k-(N-C))/C)``. From step N on the LR holds
    its end.

    The base LR is each group's own. If ``group["lr"]`` is changed from outside, the value holds for that step; before
    the first step it is the base LR. Later the base LR moves by the same ratio; a value more than twice the LR that was
    written becomes the base LR if it is larger. The same value again at the next step is a clamp, and the base LR
    stays what it was before. A group that is added later brings its own base LR and joins the schedule at the next
    ``step()``. Tensor LRs are filled in place, so that a compiled or captured optimizer step sees them.

    Args:
        optimizer: Any torch optimizer.
        schedule: The curve.
        total_steps: Length of the run in ``step()`` calls, an integer >= 1.
        warmup_steps: Length of the warmup, an integer >= 0.
        on_resize: What a changed ``total_steps`` does to the rest of the run, after ``load_state_dict`` or
            :meth:`resize`: ``"continue"``, ``"rescale"``, ``"keep"`` or ``"restart"``, see ``Clock.reanchor``.
        cooldown_steps: Length of the cooldown, an integer >= 0; with the warmup it is shorter than the run.
        cooldown_schedule: The curve of the cooldown.
        key: The entry of the param groups to drive: ``"lr"``, or another number such as ``"weight_decay"``, scaled in
            the same way; ``"beta1"`` and ``"beta2"`` are the two of ``"betas"``. Groups without it are left alone.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a length is out of range, ``on_resize`` is unknown, the optimizer has no param groups, or ``key``
            is no number in them.

    >>> import torch; from lit_cosine import Cosine
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

    _curves_of_groups: Mapping[str, Played] = {}  # pattern of group names -> their curve; set by TrainerLR
    _label: str | None = None  # what loggers call the optimizer
    _names: Sequence[str | None] | None = None  # the groups' names in the code

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        total_steps: int,
        warmup_steps: int = 0,
        on_resize: OnResize = "continue",
        *,
        cooldown_steps: int = 0,
        cooldown_schedule: Schedule = OneMinusSqrt(),
        key: str = "lr",
    ) -> None:
        check_schedule("schedule", schedule)
        check_schedule("cooldown_schedule", cooldown_schedule)
        check_on_resize(on_resize)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shown(optimizer)}")
        if not optimizer.param_groups:
            raise ValueError("optimizer must have at least one param group, got none")
        check_key(optimizer, key)
        lengths = Lengths(*check_lengths(total_steps, warmup_steps, cooldown_steps))
        run = Played.of_run(schedule, lengths, cooldown_schedule)
        self._curves = Curves({"": run, **self._curves_of_groups})
        self._curves.state()  # what no checkpoint can hold is refused now
        self.on_resize = on_resize
        self.key = key
        if self._names is None:
            self._names = own_names(optimizer)
        self._places: list[tuple[str, float]] = []  # of every group: its curve, and where its warmup begins
        self._written: list[float] = []
        self._filled: dict[int, tuple[Tensor, int]] = {}  # the tensors among them, at the version they then had
        self._checkpointed: list[float] = []
        self._outside: dict[int, OutsideChanges] = {}
        super().__init__(optimizer)

    @property
    def schedule(self) -> Schedule:
        """The curve; of the groups that have none of their own."""
        return self._curves.run.schedule

    @property
    def total_steps(self) -> int | None:
        """Length of the run; None where it has no known end, until a cooldown begins."""
        return self._curves.total if self._curves.total < ENDLESS else None

    @property
    def warmup_steps(self) -> int:
        """Length of the warmup."""
        return self._curves.run.lengths.warmup

    @property
    def cooldown_steps(self) -> int:
        """Length of the cooldown."""
        return self._curves.run.lengths.cooldown

    @property
    def cooling_down(self) -> bool:
        """Whether :meth:`start_cooldown` has begun the cooldown: the length of the run is then final."""
        return self._curves.cooling_down

    @property
    def clock(self) -> Clock:
        """Maps a step to the progress of the schedule."""
        return self._curves.run.planned.clock

    def lrs_at(self, step: float) -> list[float]:
        """Return the LR of every group at ``step``."""
        factors: dict[tuple[str, float], float] = {}
        for place in self._places:
            if place not in factors:
                factors[place] = self._curves.by_pattern[place[0]].planned(step, place[1])
        return [base * factors[place] for base, place in zip(self.base_lrs, self._places, strict=True)]

    @override
    def step(self, epoch: int | None = None) -> None:
        """Move on by one step, after ``optimizer.step()``; to the step ``epoch`` where SequentialLR gives one."""
        if epoch is None and self.last_epoch == 0 and not step_was_called(self.optimizer):
            warnings.warn(
                "ScheduleLR.step() was called before optimizer.step(): the first LR of the schedule is skipped",
                stacklevel=2,
            )
        self.move_to(self.last_epoch + 1 if epoch is None else epoch)

    @override
    def _update_lr(self, epoch: int | None = None) -> None:
        # torch 2.13's SequentialLR calls this at a milestone, where torch 2.6 calls step(0)
        self.move_to(self.last_epoch + 1 if epoch is None else epoch)

    def move_to(self, step: float) -> None:
        """Go to ``step`` and write its LR to every group, for runs that are not counted one by one.

        Raises:
            ValueError: If ``step`` is negative or not finite.
        """
        if not 0 <= step < math.inf:
            raise ValueError(f"step must be finite and >= 0, got {shown(step)}")
        if self.last_epoch < 0:  # called by torch's constructor, which has filled initial_lr
            entry = "initial_lr" if self.key == "lr" else self.key
            self.base_lrs = [float(read_entry(group, entry) or 0.0) for group in self.optimizer.param_groups]
            self._places = [(self._pattern_of(index), 0) for index in range(len(self.base_lrs))]
        else:
            self._sync_external_changes()
            self._checkpointed = []
        self.last_epoch = step  # type: ignore[assignment]
        self._step_count += 1
        self._write()

    def join(self) -> None:
        """Take in param groups that were added since the last step, so that their first update is scheduled too."""
        if len(self.optimizer.param_groups) > len(self._written):
            self.move_to(self.last_epoch)

    def resize(self, total_steps: int, warmup_steps: int | None = None, cooldown_steps: int | None = None) -> None:
        """Continue with another length from where the run is now, as ``on_resize`` says; logs one line.

        Nothing happens if that is the run's length already, or once :meth:`start_cooldown` was called.

        Args:
            total_steps: The run's length from its first step, an integer >= 1.
            warmup_steps: The warmup of a run planned so from the start, used by ``"rescale"`` alone: the other policies
                keep the warmup as it was.
            cooldown_steps: The cooldown at the new end; None for the length that it had.

        Raises:
            TypeError: If a length is no integer.
            ValueError: If a length is out of range.
        """
        total = as_integer("total_steps", total_steps, least=1)
        # lengths that no longer fit the run are no reason to end it
        asked = [replace(now, total=total) for now in self._curves.lengths]
        if warmup_steps is not None or cooldown_steps is not None:
            warmup = self.warmup_steps if warmup_steps is None else warmup_steps
            cooldown = self.cooldown_steps if cooldown_steps is None else cooldown_steps
            asked[0] = Lengths(*check_lengths(total, warmup, cooldown))
        self._change_lengths(asked, self.on_resize)

    def start_cooldown(self, steps: int) -> None:
        """Begin the cooldown now: the schedule is held where it is, and the run ends after ``steps``.

        Args:
            steps: Length of the cooldown, an integer >= 1; it is shortened to what is left of the run.

        Raises:
            ValueError: If the cooldown was started before, or the run has ended.
        """
        steps = as_integer("steps", steps, least=1)
        if self.cooling_down:
            raise ValueError(f"the cooldown was started already; it ends at step {self._curves.total:,}")
        if self.last_epoch >= self._curves.total:
            raise ValueError(f"the run has ended at step {self._curves.total:,}: no cooldown can be started")
        self._sync_external_changes()
        self._curves.start_cooldown(self.last_epoch, steps)
        self._write()

    @override
    def get_last_lr(self) -> list[float | Tensor]:
        """Return the LR of every group, as last written, as floats."""
        return list(self._written)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Return the closed form at the present step for every group, as floats."""
        return [*self.lrs_at(self.last_epoch)]

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain data; it loads with ``weights_only=True``."""
        self._sync_external_changes()
        return {
            "version": STATE_VERSION,
            "key": self.key,
            "unit": self.unit,
            "step": self.last_epoch,
            **self._curves.state(),
            "names": own_names(self.optimizer),
            "joined": [joined for _, joined in self._places],
            "base_lrs": list(self.base_lrs),
            "last_lr": list(self._written),
            "outside": {index: list(astuple(change)) for index, change in self._outside.items()},
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step, the plan and the base LRs, and write every group's LR.

        Where the state's length or schedule differs from this scheduler's, ``on_resize`` applies and one line is
        logged. Load the optimizer's state first: loaded later it brings back the LR that the checkpoint was written at,
        which is no longer right where ``on_resize`` moved it, until the next ``step()``.

        Raises:
            ValueError: If the state is not a ScheduleLR's, counts another unit or drives another entry, holds a value
                that is none, or if the change is refused: a schedule that cannot be mapped, or updates that would all
                run at LR 0.
        """
        state = checked_state(state_dict, self.state_dict(), self._curves)
        check_order(self._names or (), state["names"])
        code = self._curves.lengths
        self._restore(state)
        if not self.cooling_down and self.last_epoch >= 0:
            counted = f"{self.unit}s" if self.key == "lr" else ""
            self._curves.take_up(self._asked(code), state, self.on_resize, counted)
        self._write()
        self._checkpointed = list(state["last_lr"])

    def _restore(self, state: dict[str, Any]) -> None:
        # torch has put the checkpoint's names in by position; groups that it does not know keep their own base LR
        set_own_names(self.optimizer, self._names or ())
        saved = state["base_lrs"][: len(self.base_lrs)]
        self.base_lrs[: len(saved)] = saved
        joined = [*state["joined"], *(joined for _, joined in self._places[len(state["joined"]) :])]
        self._places = [(self._pattern_of(index), joined[index]) for index in range(len(self._places))]
        self.last_epoch = state["step"]
        self._outside = {index: OutsideChanges(*change) for index, change in state["outside"].items()}
        if self.last_epoch >= 0:  # else inside torch's SequentialLR, before its turn
            self._curves.restore(state)

    def _asked(self, code: list[Lengths]) -> list[Lengths]:
        """Return the lengths that a resumed run is to have, of every curve; ``code`` are those of the code."""
        return code

    def _change_lengths(self, asked: Sequence[Lengths], on_resize: OnResize, *, quiet: bool = False) -> None:
        if self._curves.change_lengths(self.last_epoch, asked, on_resize, quiet=quiet):
            self._sync_external_changes()
            self._write()

    def _pattern_of(self, index: int) -> str:
        return self._curves.pattern_of(group_names(self.optimizer, index, self._label))

    def _sync_external_changes(self) -> None:
        """Move base LRs of groups whose LR is not what was last written; take in groups that are new."""
        written = self._written
        for index, group in enumerate(self.optimizer.param_groups):
            lr = read_entry(group, self.key)
            if index >= len(written):
                self.base_lrs.append(float(lr or 0.0))
                written.append(float(lr or 0.0))
                pattern = self._pattern_of(index)
                self._places.append((pattern, self.last_epoch if self._curves.by_pattern[pattern].own_warmup else 0))
            elif lr is None:
                continue
            elif isinstance(lr, Tensor):
                # reading a tensor waits for its device: look only if it was written to, or replaced by another
                tensor, version = self._filled.get(index, (None, 0))
                if (lr is not tensor or tensor_version(lr) != version) and not same_value(lr, written[index]):
                    self._move_base(index, lr)
            elif lr != written[index]:
                self._move_base(index, lr)

    def _move_base(self, index: int, lr: float | Tensor) -> None:
        if index < len(self._checkpointed) and same_value(lr, self._checkpointed[index]):
            return  # no change from outside: the optimizer's state was loaded after the scheduler's
        change = self._outside.setdefault(index, OutsideChanges())
        self.base_lrs[index] = change.base_after(self.last_epoch, float(lr), self._written[index], self.base_lrs[index])
        self._written[index] = float(lr)

    def _write(self) -> None:
        self._written = self.lrs_at(self.last_epoch)
        self._last_lr = list(self._written)
        for index, (group, value) in enumerate(zip(self.optimizer.param_groups, self._written, strict=False)):
            set_entry(group, self.key, value)
            if isinstance(entry := read_entry(group, self.key), Tensor):
                self._filled[index] = entry, tensor_version(entry)
