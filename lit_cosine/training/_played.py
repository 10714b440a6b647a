"""The curves of a scheduler: the schedules that the code asks for, and the plans by which they are played.

Convention: a scheduler has one for the run, and one more for every pattern of param groups that have their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from lit_cosine._checks import as_flag, as_integer, as_number, read_state, shown
from lit_cosine.schedules import Clock, Constant, OneMinusSqrt, OnResize, PlannedFactor, Schedule
from lit_cosine.training._changes import (
    Lengths,
    Mapped,
    is_idle,
    log_warning,
    with_cooldown_now,
    with_lengths,
    with_schedule,
)

__all__ = ["Curves", "Played", "checked_state", "matches"]


@dataclass
class Played:
    """One curve, its lengths, and how it is played now."""

    schedule: Schedule  # the code's
    lengths: Lengths  # the plan's
    planned: PlannedFactor
    own_warmup: bool = False  # whether a param group that joins has a warmup of its own from then on

    @classmethod
    def of_run(
        cls,
        schedule: Schedule,
        lengths: Lengths,
        cooldown_schedule: Schedule = OneMinusSqrt(),
        own_warmup: bool = False,
    ) -> Played:
        """Return the curve of a run with these lengths, seen from its start."""
        parts = int(lengths.total), int(lengths.warmup), int(lengths.cooldown)
        planned = PlannedFactor.of_run(schedule, *parts, cooldown_schedule)
        return cls(schedule, lengths, planned, own_warmup)

    def fitted(self, step: float, asked: Lengths, on_resize: OnResize) -> Lengths:
        """Return the lengths that the plan would have: the warmup, once begun, is its own, and the cooldown fits."""
        return asked.fitted(None if on_resize == "rescale" or step == 0 else self.lengths.warmup)

    def change(self, step: float, asked: Lengths, on_resize: OnResize, *, schedule: bool = False) -> None:
        """Plan the rest again for other lengths or for the code's ``schedule``, which may be refused."""
        if schedule:
            self.planned = with_schedule(self.planned, step, asked, on_resize, self.schedule)
        else:
            self.planned = with_lengths(self.planned, step, asked, on_resize)
        keeps = on_resize == "keep" and step > 0
        self.lengths = replace(asked, cooldown=self.lengths.cooldown) if keeps else asked

    def start_cooldown(self, step: float, total: float, cooldown: float) -> None:
        """Begin the cooldown at ``step``, which ends at ``total``."""
        self.planned = with_cooldown_now(self.planned, step, total - step)
        self.lengths = Lengths(total, self.lengths.warmup, cooldown)

    def state(self) -> dict[str, Any]:
        """Return the plan as plain data; the mapping is ``["map", f]`` of :class:`Mapped`, ``["hold", f]`` or None."""
        planned, played, mapping = self.planned, self.planned.schedule, None
        if isinstance(played, Mapped):
            mapping = ["map", played.begin]
        elif isinstance(played, Constant) and played != self.schedule:
            mapping = ["hold", played.value]
        return {
            "warmup_steps": int(self.lengths.warmup),
            "cooldown_steps": int(self.lengths.cooldown),
            "schedule": self.schedule.to_dict(),
            "mapping": mapping,
            "cooldown_schedule": planned.cooldown_schedule.to_dict(),
            "clock": list(astuple(planned.clock)),
            "cooldown": None if planned.cooldown is None else list(astuple(planned.cooldown)),
        }

    def restore(self, state: Mapping[str, Any], *, step: float, total: float, cooling_down: bool) -> None:
        """Play what a checked state describes; until its cooldown begins, that has the code's curve."""
        schedule, (kind, begin) = state["schedule"], state["mapping"] or (None, 0.0)
        if kind is not None:
            schedule = Mapped(schedule, begin) if kind == "map" else Constant(value=begin)
        cooldown = None if state["cooldown"] is None else Clock(*state["cooldown"])
        begun = cooling_down or (cooldown is not None and cooldown(step) > 0.0)
        curve = state["cooldown_schedule"] if begun else self.planned.cooldown_schedule
        self.lengths = Lengths(total, state["warmup_steps"], state["cooldown_steps"])
        self.planned = PlannedFactor(schedule, Clock(*state["clock"]), state["warmup_steps"], cooldown, curve)


class Curves:
    """The curves of a scheduler by the pattern of the param groups' names; "" is that of all others, and first."""

    def __init__(self, by_pattern: Mapping[str, Played]) -> None:
        self.by_pattern = dict(by_pattern)
        self.cooling_down = False
        """Whether the cooldown was begun by hand: the length of the run is then final."""

    @property
    def run(self) -> Played:
        """The curve of the groups that have none of their own."""
        return self.by_pattern[""]

    @property
    def total(self) -> int:
        """Length of the run."""
        return int(self.run.lengths.total)

    @property
    def lengths(self) -> list[Lengths]:
        """The lengths of every curve."""
        return [curve.lengths for curve in self.by_pattern.values()]

    def pattern_of(self, names: tuple[str, ...]) -> str:
        """Return the first pattern that names a group; "" for none."""
        return next((pattern for pattern in self.by_pattern if pattern and matches(pattern, names)), "")

    def schedules(self) -> dict[str, dict[str, Any]]:
        """Return for every curve the schedules that its state holds."""
        return {
            pattern: {"schedule": curve.schedule, "cooldown_schedule": curve.planned.cooldown_schedule}
            for pattern, curve in self.by_pattern.items()
        }

    def state(self) -> dict[str, Any]:
        """Return the plans as plain data."""
        of_groups = {pattern: curve.state() for pattern, curve in self.by_pattern.items() if pattern}
        return {"total_steps": self.total, "cooling_down": self.cooling_down, **self.run.state(), "groups": of_groups}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Play what a checked state describes; a curve that it does not have, as the run's."""
        self.cooling_down = state["cooling_down"]
        for pattern, curve in self.by_pattern.items():
            plan = state["groups"].get(pattern, state)
            curve.restore(plan, step=state["step"], total=state["total_steps"], cooling_down=self.cooling_down)
        if lost := state["groups"].keys() - self.by_pattern.keys():
            log_warning("groups of the checkpoint whose curve is the run's now: %s", ", ".join(sorted(lost)))

    def start_cooldown(self, step: float, steps: int) -> None:
        """Begin the cooldown of every curve now."""
        steps = min(steps, math.ceil(self.total - step))
        for curve in self.by_pattern.values():
            curve.start_cooldown(step, math.ceil(step + steps), steps)
        self.cooling_down = True
        log_warning(
            "the cooldown (%s) begins at step %s and ends the run at step %s",
            *(self.run.planned.cooldown_schedule, f"{step:,}", f"{self.total:,}"),
        )

    def change_lengths(
        self, step: float, asked: Sequence[Lengths], on_resize: OnResize, *, quiet: bool = False
    ) -> bool:
        """Plan the rest of every curve whose lengths differ again, log one line, and return whether there is one."""
        run, old, before = self.run, self.total, self.run.planned
        changes = [
            (curve, new)
            for curve, wanted in zip(self.by_pattern.values(), asked, strict=True)
            if (new := curve.fitted(step, wanted, on_resize)).total != curve.lengths.total
            or new.cooldown != curve.lengths.cooldown
        ]
        if self.cooling_down or not changes:
            return False
        for curve, new in changes:
            curve.change(step, new, on_resize)
        if quiet or step == 0:
            return True
        planned = run.planned
        if planned.clock(step) == 1.0 and planned.cooldown is None:
            then = 'the schedule had ended and holds its end; "restart" or "rescale" would anneal again'
        else:
            end = planned.cooldown or planned.clock
            then = f"factor {before(step):.4g} -> {planned(step):.4g}, its end at step {end.total:,}"
        if on_resize != "keep" and run.lengths.cooldown < asked[0].cooldown:
            then += f", the cooldown shortened from {asked[0].cooldown:,} to {run.lengths.cooldown:,}"
        log_warning(
            'total_steps changed from %s to %s at step %s (progress %.4g), on_resize="%s": %s',
            *(f"{old:,}", f"{self.total:,}", f"{step:,}", before.clock(step), on_resize, then),
        )
        return True

    def take_up(self, asked: Sequence[Lengths], state: Mapping[str, Any], on_resize: OnResize, counted: str) -> None:
        """Apply what the code of a resumed run asks for otherwise than its checkpoint, whose checked state this is."""
        step, old, ended = state["step"], self.total, self.run.planned.clock.total
        new = [
            pattern
            for pattern, curve in self.by_pattern.items()
            if curve.schedule != state["groups"].get(pattern, state)["schedule"]
        ]
        for (pattern, curve), lengths in zip(self.by_pattern.items(), asked, strict=True):
            if pattern in new:
                self._change_schedule(pattern, step, curve.fitted(step, lengths, on_resize), on_resize)
        refused = on_resize in ("continue", "keep") and self._is_idle(step)  # below, in a sentence that says it all
        if not self.change_lengths(step, asked, on_resize, quiet=refused or "" in new):
            for (pattern, curve), lengths in zip(self.by_pattern.items(), asked, strict=True):
                if pattern not in new and (saved := curve.lengths.warmup) != lengths.warmup:
                    log_warning("warmup_steps: %s, from the checkpoint; the code has %s", saved, lengths.warmup)
        changed = bool(new) or self.total != old
        if changed and counted and step < self.total and self._is_idle(step):
            raise ValueError(
                f"all {self.total - step:,.0f} {counted} that are left would run at LR 0, because the schedule "
                f'({self.run.planned.schedule}) had ended at {ended:,.0f}: on_resize="restart" or "rescale" anneals '
                "again, a schedule whose end is above 0 continues there"
            )

    def _is_idle(self, step: float) -> bool:
        return all(is_idle(curve.planned, step) for curve in self.by_pattern.values())

    def _change_schedule(self, pattern: str, step: float, asked: Lengths, on_resize: OnResize) -> None:
        curve = self.by_pattern[pattern]
        before, what = curve.planned, f"the schedule of {pattern}" if pattern else "the schedule"
        try:
            curve.change(step, asked, on_resize, schedule=True)
        except ValueError as error:
            raise ValueError(
                f"{what} cannot change from {before.schedule} to {curve.schedule} at step {step:,}: {error}; use "
                'on_resize="rescale" or "restart"'
            ) from None
        if step > 0:
            log_warning(
                '%s changed from %s to %s at step %s of %s, on_resize="%s": factor %.4g -> %.4g',
                *(what, before.schedule, curve.schedule, f"{step:,}", f"{asked.total:,}"),
                *(on_resize, before(step), curve.planned(step)),
            )


def matches(pattern: str, names: tuple[str, ...]) -> bool:
    """Return whether ``pattern`` names a param group: one of its names, or the part of one before a dot.

    >>> matches("head", ("head.no_decay", "pg2")), matches("*.1", ("blocks.12",)), matches("pg2", ("head", "pg2"))
    (True, False, True)
    """
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for name in names)


def checked_state(state: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a state that ``ScheduleLR.state_dict`` wrote, its schedules built."""
    if isinstance(state, Mapping) and "version" not in state and "unit" not in state:
        raise ValueError(
            f"the state must be a ScheduleLR's, got one with the keys {shown(sorted(map(str, state)))}: resume with "
            "the scheduler that saved it, or under the callback LearningRateScheduler with replace=True"
        )
    # a state without groups is of a run without any
    defaults = {**{name: value for name, value in own.items() if name != "version"}, "groups": {}}
    values = read_state("ScheduleLR", state, defaults)
    for name, remedy in (("key", "entry of the param groups"), ("unit", "interval and the same kind of limit")):
        if values[name] != own[name]:
            raise ValueError(
                f"the state has the {name} {shown(values[name])}, this scheduler {shown(own[name])}: resume with the "
                f"same {remedy}"
            )
    try:
        _check_values(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the state of ScheduleLR cannot be read: {error}") from None
    for curve, known in [(values, own), *((one, own["groups"].get(p, own)) for p, one in values["groups"].items())]:
        for name in ("schedule", "cooldown_schedule"):
            curve[name] = _built(name, curve[name], known[name])
    return values


def _check_values(values: dict[str, Any]) -> None:
    if values["step"] != -1:  # torch's SequentialLR sets its schedulers back before they begin
        as_number("step", values["step"], least=0.0)
    as_integer("total_steps", values["total_steps"], least=0)
    as_flag("cooling_down", values["cooling_down"])
    for name in ("base_lrs", "last_lr", "joined"):
        values[name] = [as_number(name, value, least=0.0) for value in _listed(name, values[name])]
    bases, last = len(values["base_lrs"]), len(values["last_lr"])
    if bases != last:
        raise ValueError(f"base_lrs and last_lr must have one length, got {bases} and {last}")
    if not isinstance(values["groups"], Mapping):
        raise TypeError(f"groups must be a dict, got {shown(values['groups'])}")
    values["groups"] = {pattern: {**values, **curve} for pattern, curve in values["groups"].items()}
    for curve in (values, *values["groups"].values()):
        _check_curve(curve)
    if not isinstance(values["outside"], Mapping):
        raise TypeError(f"outside must be a dict, got {shown(values['outside'])}")
    for index, change in values["outside"].items():
        as_integer("outside", index, least=0)
        if len([as_number("outside", value) for value in _listed("outside", change)]) != 3:
            raise ValueError(f"outside must hold three numbers for a group, got {shown(change)}")


def _check_curve(curve: Mapping[str, Any]) -> None:
    for name in ("warmup_steps", "cooldown_steps"):
        as_integer(name, curve[name], least=0)
    Clock(*_listed("clock", curve["clock"]))
    if curve["cooldown"] is not None:
        Clock(*_listed("cooldown", curve["cooldown"]))
    if curve["mapping"] is not None:
        kind, begin = _listed("mapping", curve["mapping"])
        if kind not in ("map", "hold"):
            raise ValueError(f"mapping must be of the kind map or hold, got {shown(kind)}")
        as_number("mapping", begin, least=0.0)


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list, got {shown(value)}")
    return value


def _built(name: str, plain: Any, own: Schedule) -> Schedule:
    """Return the schedule of a state; the scheduler's own where it is the same, so that no class is looked up."""
    if plain is own or plain == own.to_dict():
        return own
    try:
        return Schedule.from_dict(plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the {name} of the checkpoint cannot be built ({error}): import the module that defines it before "
            "resuming, or begin a new run"
        ) from None
