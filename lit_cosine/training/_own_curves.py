"""What ``groups={"head": …}`` asks for: curves of their own for some param groups, by the groups' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from lit_cosine._checks import in_one_line, shown
from lit_cosine._compat import has_class
from lit_cosine.schedules import Duration, Schedule, as_schedule
from lit_cosine.training._changes import log_warning
from lit_cosine.training._param_groups import check_key, group_names, has_entry, optimizer_names, read_entry
from lit_cosine.training._played import matches

__all__ = ["OwnCurve", "as_own_curves", "check_keys_of", "check_patterns", "unmatched"]

_KEYS = ("schedule", "warmup", "cooldown", "cooldown_schedule")


@dataclass(frozen=True)
class OwnCurve:
    """What some param groups have of their own; the rest is the run's."""

    schedules: dict[str, Schedule] = field(default_factory=dict)  # by the entry of the groups that they drive
    warmup: Duration | None = None
    cooldown: Duration | None = None
    cooldown_schedule: Schedule | None = None

    def __str__(self) -> str:
        """Return it in words, for log lines."""
        parts = [f"{key} {curve}" if key != "lr" else str(curve) for key, curve in self.schedules.items()]
        lengths = (("warmup", self.warmup), ("cooldown", self.cooldown))
        return ", ".join([*parts, *(f"{name} {length}" for name, length in lengths if length is not None)])


def as_own_curves(groups: Any) -> dict[str, OwnCurve]:
    """Return the argument ``groups`` checked: pattern of group names -> what these groups have of their own."""
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise TypeError(f'groups must be such as {{"head": Constant()}}, got {shown(groups)}')
    found = {}
    for pattern, given in groups.items():
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(f"groups must be keyed by names of param groups, got {shown(pattern)}")
        where = f"groups.{in_one_line(pattern, 80)}"
        if not isinstance(given, Mapping) or "class_path" in given:
            found[pattern] = OwnCurve({"lr": _schedule(where, given)})
            continue
        if "lr" in given:
            raise ValueError(f"{where}: the curve of the LR is its schedule: write schedule, got lr")
        keys = ["schedule", *(key for key in given if key not in _KEYS)]
        curves = {
            key: _schedule(f"{where}.{in_one_line(str(key), 80)}", given[key], key) for key in keys if key in given
        }
        schedules = {"lr" if key == "schedule" else key: curve for key, curve in curves.items()}
        lengths = {key: Duration.parse(given[key], f"{where}.{key}") for key in ("warmup", "cooldown") if key in given}
        cooldown = given.get("cooldown_schedule")
        curve = None if cooldown is None else _schedule(f"{where}.cooldown_schedule", cooldown)
        found[pattern] = OwnCurve(schedules, **lengths, cooldown_schedule=curve)
    return found


def unmatched(patterns: Iterable[str], optimizers: Sequence[Optimizer]) -> list[str]:
    """Return the patterns that name no param group."""
    names = _names(optimizers)
    return [pattern for pattern in patterns if not any(matches(pattern, one) for one in names)]


def check_patterns(patterns: Iterable[str], optimizers: Sequence[Optimizer], callbacks: Iterable[Any]) -> None:
    """Refuse patterns that name no param group, where no finetuning callback will add groups."""
    if any(has_class(one, "BaseFinetuning") for one in callbacks):
        return
    if missing := unmatched(patterns, optimizers):
        known = ", ".join(dict.fromkeys(names[0] for names in _names(optimizers)))
        raise ValueError(f"groups: {shown(missing[0])} names no param group; the groups are {known}")


def check_keys_of(
    optimizers: Sequence[Optimizer], schedules: Mapping[str, Schedule], groups: Mapping[str, OwnCurve]
) -> None:
    """Refuse an entry that no optimizer has or that is no number, and a beta that would reach 1; name who lacks one."""
    for key in schedules:
        having = [one for one in optimizers if has_entry(one, key)]
        for optimizer in having or optimizers:
            check_key(optimizer, key, _KEYS if any(key in own.schedules for own in groups.values()) else ())
        values = [read_entry(group, key) for optimizer in optimizers for group in optimizer.param_groups]
        if key in ("beta1", "beta2"):
            curves = [schedules[key], *(own.schedules[key] for own in groups.values() if key in own.schedules)]
            _check_beta(key, values, max(max(*curve.sample(1000), curve(1.0)) for curve in curves))
        lacking = [
            names[-1].removeprefix("lr-")
            for names, value in zip(_names(optimizers), values, strict=True)
            if value is None
        ]
        if lacking:
            log_warning("%s is scheduled, and %s has none", key, ", ".join(lacking))


def _check_beta(key: str, values: Sequence[Any], highest: float) -> None:
    base = max(float(value) for value in values if value is not None)
    if base * highest >= 1.0:
        raise ValueError(
            f"{key} must stay below 1, got {base:g} times a factor of up to {highest:.6g}: lower the factor, or the "
            "optimizer's betas"
        )


def _names(optimizers: Sequence[Optimizer]) -> list[tuple[str, ...]]:
    labelled = zip(optimizers, optimizer_names(optimizers), strict=True)
    return [
        group_names(optimizer, index, f"lr-{label}")
        for optimizer, label in labelled
        for index in range(len(optimizer.param_groups))
    ]


def _schedule(where: str, given: Any, key: str = "schedule") -> Schedule:
    try:
        return as_schedule(where, {"class_path": given} if isinstance(given, str) else given, imports=True)
    except (TypeError, ValueError) as error:  # a misspelt key ends up here too
        if key in _KEYS:
            raise
        raise type(error)(f"{error}; keys that are no schedules: warmup and cooldown") from None
