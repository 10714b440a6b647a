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
from lit_cosine.training._changes import Lengths, Mapped, log_warning

__all__ = ["Curves", "Played", "checked_state", "matches"]


@dataclass
class Played:
    """One curve, its lengths, and how it is played now; docs/when-the-run-changes.md has the table of its changes."""

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
        return cls(schedule, lengths, _from_start(schedule, lengths, cooldown_schedule), own_warmup)

    def fitted(self, step: float, asked: Lengths, on_resize: OnResize) -> Lengths:
        """Return the lengths that the plan would have: the warmup, once begun, is its own, and the cooldown fits."""
        return asked.fitted(None if on_resize == "rescale" or step == 0 else self.lengths.warmup)

    def change(self, step: float, asked: Lengths, on_resize: OnResize, *, schedule: bool = False) -> None:
        """Plan the rest again for other lengths or for the code's ``schedule``, which may be refused."""
        if schedule:
            self.planned = self._with_schedule(step, asked, on_resize)
        else:
            self.planned = self._with_lengths(step, asked, on_resize)
        keeps = on_resize == "keep" and step > 0
        self.lengths = replace(asked, cooldown=self.lengths.cooldown) if keeps else asked

    def _with_lengths(self, step: float, lengths: Lengths, on_resize: OnResize) -> PlannedFactor:
        planned, cooldown = self.planned, self.planned.cooldown
        if step == 0 or on_resize == "rescale":  # before the first update nothing is a change
            return _from_start(planned.schedule, lengths, planned.cooldown_schedule)
        if on_resize == "keep":
            return planned
        if on_resize == "continue" and cooldown is not None and cooldown(step) > 0.0:
            return replace(planned, cooldown=cooldown.reanchor(step, lengths.total))
        return self._from(step, lengths, on_resize, planned.schedule)

    def _with_schedule(self, step: float, lengths: Lengths, on_resize: OnResize) -> PlannedFactor:
        planned, new, cooldown = self.planned, self.schedule, self.planned.cooldown
        anew = _from_start(new, lengths, planned.cooldown_schedule)
        if step == 0:
            return anew
        if on_resize == "keep":
            raise ValueError(f'on_resize="keep" plays the old plan, {planned.schedule}')
        factor = planned.schedule(planned.clock(step))
        if on_resize == "rescale" or abs(new(anew.clock(step)) - factor) <= 1e-9 * factor:
            return anew
        if on_resize == "restart":
            return self._from(step, lengths, "restart", new)
        if step >= lengths.total - lengths.cooldown or (cooldown is not None and cooldown(step) > 0.0):
            # nothing is left for another curve: it stays where it is, and the cooldown moves with the end
            return replace(self._with_lengths(step, lengths, "continue"), schedule=Constant(value=factor))
        if not _falls(new):
            raise ValueError(f"{new} is neither constant nor a curve that falls from its highest to its lowest factor")
        return self._from(step, lengths, "restart", Mapped(new, factor))

    def _from(self, step: float, lengths: Lengths, on_resize: OnResize, schedule: Schedule) -> PlannedFactor:
        """Return the plan whose ``schedule`` has its clock anchored at ``step``."""
        end = max(step, lengths.total - lengths.cooldown)
        return replace(
            self.planned,
            schedule=schedule,
            clock=self.planned.clock.reanchor(step, end, on_resize, origin=self.planned.warmup_steps),
            cooldown=Clock(lengths.total, end) if lengths.cooldown else None,
        )

    def start_cooldown(self, step: float, total: int, cooldown: int) -> None:
        """Begin the cooldown at ``step``, which ends at ``total``; the schedule is held where it is."""
        held = Constant(value=self.planned.schedule(self.planned.clock(step)))
        self.planned = replace(self.planned, schedule=held, cooldown=Clock(total, step))
        self.lengths = Lengths(total, self.lengths.warmup, cooldown)

    def is_idle(self, step: float) -> bool:
        """Return whether every factor from ``step`` on is 0, because the schedule or the cooldown has ended there."""
        curves = [(self.planned.schedule, self.planned.clock), (self.planned.cooldown_schedule, self.planned.cooldown)]
        return any(clock is not None and clock(step) == 1.0 and curve(1.0) == 0.0 for curve, clock in curves)

    def state(self) -> dict[str, Any]:
        """Return the plan as plain data; the mapping is ``["map", f]`` of :class:`Mapped`, ``["hold", f]`` or None."""
        planned, played, mapping = self.planned, self.planned.schedule, None
        if isinstance(played, Mapped):
            mapping = ["map", played.begin]
        elif isinstance(played, Constant) and played != self.schedule:
            mapping = ["hold", played.value]
        return {
            "warmup_steps": self.lengths.warmup,
            "cooldown_steps": self.lengths.cooldown,
            "schedule": self.schedule.to_dict(),
            "mapping": mapping,
            "cooldown_schedule": planned.cooldown_schedule.to_dict(),
            "clock": list(astuple(planned.clock)),
            "cooldown": None if planned.cooldown is None else list(astuple(planned.cooldown)),
        }

    def restore(self, state: Mapping[str, Any], *, step: float, total: int, cooling_down: bool) -> None:
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
        return self.run.lengths.total

    @property
    def lengths(self) -> list[Lengths]:
        """The lengths of every curve."""
        return [curve.lengths for curve in self.by_pattern.values()]

    def pattern_of(self, names: tuple[str, ...]) -> str:
        """Return the first pattern that names a group; "" for none."""
        return next((pattern for pattern in self.by_pattern if pattern and matches(pattern, names)), "")

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
        return all(curve.is_idle(step) for curve in self.by_pattern.values())

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


def checked_state(state: Any, own: Mapping[str, Any], curves: Curves) -> dict[str, Any]:
    """Return the entries of a state that ``ScheduleLR.state_dict`` wrote, its schedules built; ``own`` is our own."""
    if isinstance(state, Mapping) and "version" not in state and "unit" not in state:
        raise ValueError(
            f"the state must be a ScheduleLR's, got one with the keys {shown(sorted(map(str, state)))}: resume with "
            "the scheduler that saved it, or under the callback LearningRateScheduler with replace=True"
        )
    values = read_state("ScheduleLR", state, {**own, "groups": {}})  # a state without groups is of a run without any
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
    for pattern, plan in {**values["groups"], "": values}.items():
        known = curves.by_pattern.get(pattern, curves.run)
        plan["schedule"] = _built("schedule", plan["schedule"], known.schedule)
        own_cooldown = known.planned.cooldown_schedule
        plan["cooldown_schedule"] = _built("cooldown_schedule", plan["cooldown_schedule"], own_cooldown)
    return values


def _check_values(values: dict[str, Any]) -> None:
    if values["step"] != -1:  # torch's SequentialLR sets its schedulers back before they begin
        as_number("step", values["step"], least=0.0)
    as_integer("total_steps", values["total_steps"], least=1)
    as_flag("cooling_down", values["cooling_down"])
    _listed("names", values["names"])
    for name in ("base_lrs", "last_lr", "joined"):
        values[name] = [as_number(name, value, least=0.0) for value in _listed(name, values[name])]
    bases, last = len(values["base_lrs"]), len(values["last_lr"])
    if bases != last:
        raise ValueError(f"base_lrs and last_lr must have one length, got {bases} and {last}")
    for name in ("groups", "outside"):
        if not isinstance(values[name], Mapping):
            raise TypeError(f"{name} must be a dict, got {shown(values[name])}")
    values["groups"] = {pattern: {**values, **curve} for pattern, curve in values["groups"].items()}
    for curve in (values, *values["groups"].values()):
        for name in ("warmup_steps", "cooldown_steps"):
            as_integer(name, curve[name], least=0)
        for name in ("clock", "cooldown"):
            if name == "clock" or curve[name] is not None:
                Clock(*_listed(name, curve[name]))
        kind, begin = ("hold", 0.0) if curve["mapping"] is None else _listed("mapping", curve["mapping"])
        if kind not in ("map", "hold"):
            raise ValueError(f"mapping must be of the kind map or hold, got {shown(kind)}")
        as_number("mapping", begin, least=0.0)
    for index, change in values["outside"].items():
        as_integer("outside", index, least=0)
        if len([as_number("outside", value) for value in _listed("outside", change)]) != 3:
            raise ValueError(f"outside must hold three numbers for a group, got {shown(change)}")


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name} must be a list, got {shown(value)}")
    return value


def _built(name: str, plain: Any, own: Schedule) -> Schedule:
    """Return the schedule of a state; the scheduler's own where it is the same, so that no class is looked up."""
    if plain == own.to_dict():
        return own
    try:
        return Schedule.from_dict(plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the {name} of the checkpoint cannot be built ({error}): import the module that defines it before "
            "resuming, or begin a new run"
        ) from None


def _from_start(schedule: Schedule, lengths: Lengths, cooldown_schedule: Schedule) -> PlannedFactor:
    """Return the plan of a run that has these lengths from its start; a warmup that has begun may be longer than it."""
    end = lengths.total - lengths.cooldown
    cooldown = Clock(lengths.total, end) if lengths.cooldown else None
    return PlannedFactor(schedule, Clock(end, lengths.warmup), lengths.warmup, cooldown, cooldown_schedule)


def _falls(schedule: Schedule) -> bool:
    """Return whether the curve has its highest factor at progress 0 and its lowest at 1, as far as samples show."""
    start, end = schedule(0.0), schedule(1.0)
    return all(end <= factor <= start for factor in (*schedule.sample(1000), *map(schedule, schedule.all_milestones())))
