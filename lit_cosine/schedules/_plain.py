"""A schedule from plain data: from YAML, a command line, a checkpoint's hyperparameters or a scheduler's state.

Convention: plain data is what LightningCLI reads, ``{class_path: Cosine, init_args: {end: 0.1}}`` or just ``Cosine``;
presets such as ``one_cycle`` are written in the same way. Nothing but a schedule is called. Every error is a ValueError
that names the place of the mistake.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from lit_cosine._checks import in_one_line, shown
from lit_cosine.schedules._base import MOST_NESTED, MOST_PIECES, Schedule, public_path
from lit_cosine.schedules._composed import PRESETS

__all__ = ["arguments", "build_schedule", "check_keys", "names", "unknown_argument", "with_hint"]

_PACKAGE = "lit_cosine.schedules."
# arguments of other libraries' schedulers, whose place here is elsewhere
_LENGTHS = ("T_max", "T_0", "total_iters", "num_training_steps", "total_steps", "max_steps", "max_epochs", "epochs")
_WARMUPS = ("num_warmup_steps", "warmup_steps", "warmup_epochs", "warmup_ratio", "warmup")
_FLOORS = ("eta_min", "min_lr", "lr_min", "lr_end", "final_lr")
_PEAKS = ("max_lr", "base_lr", "initial_lr", "lr")
_ELSEWHERE = {
    **dict.fromkeys(_LENGTHS, "the length comes from the run"),
    **dict.fromkeys(_WARMUPS, "warmup is an argument of lr_scheduler_config, LearningRateScheduler and ScheduleLR"),
    **dict.fromkeys(_FLOORS, "a floor is a factor of the peak LR, end=floor/peak"),
    **dict.fromkeys(_PEAKS, "the peak LR is the optimizer's lr"),
}


def names() -> tuple[str, ...]:
    """Return the names of lit_cosine's schedules and presets."""
    return tuple(sorted(_own()))


def arguments(name: str) -> tuple[str, ...]:
    """Return the arguments of the schedule or preset ``name``."""
    return tuple(inspect.signature(_maker(name)).parameters)


def build_schedule(plain: Any, where: str = "schedule", *, imports: bool = False) -> Schedule:
    """Return the schedule that ``plain`` describes.

    ``class_path`` names a schedule or preset of lit_cosine, or a subclass of ``Schedule`` that this process has already
    defined: by its full path or, where that is unknown, by its last part. With ``imports`` the module of an unknown one
    is imported, which runs it: leave that off for a checkpoint, which may not be trusted.

    >>> build_schedule({"class_path": "Restarts", "init_args": {"schedule": "Linear", "cycles": 2}})
    Restarts(schedule=Linear(start=1.0, end=0.0), cycles=2, t_mult=1.0, decay=1.0)
    >>> build_schedule("Cosinus")
    Traceback (most recent call last):
    ValueError: schedule: unknown schedule 'Cosinus'; did you mean Cosine?
    """
    try:
        return _Reader(imports).schedule(plain, where, depth=1)
    except RecursionError:
        raise _error(where, "the data is nested too deep or contains itself") from None


class _Reader:
    """Reads one piece of plain data within bounds: YAML's aliases let data contain itself, or a part many times."""

    def __init__(self, imports: bool) -> None:
        self.imports = imports
        self.values = 0

    def schedule(self, plain: Any, where: str, depth: int) -> Schedule:
        if isinstance(plain, Schedule):
            return plain
        if depth > MOST_NESTED:
            raise _error(where, f"schedules nest at most {MOST_NESTED} deep")
        if isinstance(plain, str):
            plain = {"class_path": plain}
        if not isinstance(plain, Mapping):
            raise _error(where, f"a schedule is a name or has the keys class_path and init_args, got {shown(plain)}")
        check_keys(plain, ("class_path", "init_args"), where)
        class_path, init_args = plain.get("class_path"), plain.get("init_args")
        init_args = {} if init_args is None else init_args  # a tensor has no truth value
        if not isinstance(class_path, str):
            raise _error(where, f"class_path must name a schedule, got {shown(class_path)}")
        if not isinstance(init_args, Mapping):
            raise _error(where, f"init_args must hold the arguments by name, got {shown(init_args)}")
        try:
            maker = _maker(class_path, self.imports)
        except ValueError as error:
            raise _error(where, error) from None
        parameters = inspect.signature(maker).parameters
        for key in init_args:
            if key not in parameters:
                problem = unknown_argument(maker.__name__, str(key), tuple(parameters))
                raise _error(f"{where}.init_args.{key}", problem)
        needed = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
        if missing := [key for key in needed if key not in init_args]:
            raise _error(where, f"{maker.__name__} needs {' and '.join(missing)}")
        values = {
            key: self._value(value, str(parameters[key].annotation), f"{where}.init_args.{key}", depth)
            for key, value in init_args.items()
        }
        try:
            return maker(**values)
        except (TypeError, ValueError) as error:
            raise _error(where, error) from None

    def _value(self, value: Any, annotation: str, where: str, depth: int) -> Any:
        """Return an argument of a schedule; ``annotation`` is the text of its type."""
        self.values += 1
        if self.values > 2 * MOST_PIECES:
            raise _error(where, f"a schedule has at most {MOST_PIECES:,} pieces")
        if isinstance(value, Sequence) and not isinstance(value, str):
            item_type = annotation.partition("[")[2]
            items = [self._value(item, item_type, f"{where}[{index}]", depth) for index, item in enumerate(value)]
            return items if annotation.startswith("list") else tuple(items)
        if isinstance(value, Mapping) and "class_path" in value:
            return self.schedule(value, where, depth + 1)
        if isinstance(value, str) and "Schedule" in annotation:
            return self.schedule(value, where, depth + 1)
        if isinstance(value, str) and "float" in annotation:
            with suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
                return float(value)
        return value


def check_keys(mapping: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key of ``mapping`` that is not ``known``, by its name."""
    known = tuple(known)
    for key in mapping:
        if key not in known:
            raise _error(where, with_hint(f"unknown key {shown(key)}", str(key), known))


def unknown_argument(owner: str, name: str, known: tuple[str, ...]) -> str:
    """Return what to say about an argument that ``owner`` does not have."""
    problem = f"{owner} has no argument {shown(name)}"
    return f"{problem}: {_ELSEWHERE[name]}" if name in _ELSEWHERE else with_hint(problem, name, known)


def with_hint(problem: str, word: str, known: tuple[str, ...]) -> str:
    """Return ``problem`` and the name that ``word`` was probably meant to be, or list all of them."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:100].lower(), by_lower, n=1, cutoff=0.5)
    return f"{problem}; did you mean {by_lower[near[0]]}?" if near else f"{problem}; known are {', '.join(known)}"


def _error(where: str, problem: object) -> ValueError:
    """Return the error that names the place: one line, with the middle left out where it is long."""
    return ValueError(f"{in_one_line(where, 60)}: {in_one_line(str(problem), 230)}")


def _own() -> dict[str, Callable[..., Schedule]]:
    """Return lit_cosine's schedules and presets by name."""
    own: dict[str, Callable[..., Schedule]] = {preset.__name__: preset for preset in PRESETS}
    classes = {cls.__name__: cls for cls in _subclasses() if cls.__module__.startswith(_PACKAGE)}
    return own | {name: cls for name, cls in classes.items() if not name.startswith("_")}


def _maker(class_path: str, imports: bool = False) -> Callable[..., Schedule]:
    """Return the schedule class or preset that ``class_path`` names."""
    module, _, name = class_path.rpartition(".")
    own = _own()
    if name in own and module.partition(".")[0] in ("", "lit_cosine"):
        return own[name]
    others = {public_path(cls): cls for cls in _subclasses() if own.get(cls.__name__) is not cls}
    if imports and module and class_path not in others:
        imported = _import(module, name)
        if isinstance(imported, type) and issubclass(imported, Schedule):
            return imported
    if class_path in others:
        return others[class_path]
    matches = sorted(path for path in others if path.rpartition(".")[2] == name)
    if len(matches) > 1:
        raise ValueError(f"{shown(class_path)} could be any of {', '.join(matches)}; write one of these")
    if not matches:
        public = [path for path in others if "._" not in path]
        raise ValueError(with_hint(f"unknown schedule {shown(class_path)}", name, (*sorted(own), *public)))
    return others[matches[0]]


def _import(module: str, name: str) -> Any:
    """Return ``name`` of ``module``, None if there is no such module or name."""
    try:
        return getattr(import_module(module), name, None)
    except ModuleNotFoundError:
        return None
    except (ImportError, TypeError, ValueError) as error:  # TypeError, ValueError: names such as ".curves"
        raise ValueError(f"cannot import {shown(module)}: {error}") from None


def _subclasses(cls: type[Schedule] = Schedule) -> Iterator[type[Schedule]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
