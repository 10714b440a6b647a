"""What a schedule is: a frozen value that answers progress in [0, 1] with a factor of the base LR.

Convention: an invalid schedule cannot exist. Each checks its own fields when it is made.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import MISSING, fields
from typing import Any

from lit_cosine.checks import as_integer

__all__ = ["Schedule", "check_schedule"]


class Schedule(ABC):
    """A learning-rate curve: progress in [0, 1] -> factor.

    The one abstract class of this module. A schedule of your own is a frozen dataclass with one method:

    >>> from dataclasses import dataclass
    >>> from lit_cosine import Linear, Sequential
    >>> @dataclass(frozen=True)
    ... class Square(Schedule):
    ...     end: float = 0.0
    ...     def factor(self, progress: float) -> float:
    ...         return 1 - (1 - self.end) * progress**2
    >>> Square()(0.5)
    0.75
    >>> Sequential((Linear(0, 1), Square()), milestones=(0.5,))(0.75)
    0.75
    """

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``, which is already clamped to [0, 1]."""

    def __call__(self, progress: float) -> float:
        """Return the factor of the base LR at ``progress``.

        Args:
            progress: Fraction of the run done; values outside [0, 1] are clamped.

        Raises:
            TypeError: If ``progress`` is not one number.
            ValueError: If ``progress`` is nan, or the factor there is negative or not finite.
        """
        try:
            inside = 0.0 <= progress <= 1.0
        except (TypeError, ValueError, RuntimeError):  # an array, a tensor of several numbers
            raise TypeError(f"progress must be one number, got {progress!r}; for a whole curve see sample(n)") from None
        if not inside:
            if math.isnan(progress):
                raise ValueError(f"progress must be a number, got {progress}")
            progress = 0.0 if progress < 0.0 else 1.0
        factor = self.factor(progress)
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"a factor must be finite and >= 0, got {factor} at progress {progress} from {self!r}")
        return factor

    def sample(self, n: int) -> list[float]:
        """Return the ``n`` factors that a run of ``n`` steps uses, at progress 0/n, 1/n, …, (n-1)/n.

        Raises:
            ValueError: If ``n`` is not an integer >= 1.

        >>> from lit_cosine import Cosine
        >>> [round(factor, 3) for factor in Cosine().sample(4)]
        [1.0, 0.854, 0.5, 0.146]
        """
        n = as_integer("n", n, least=1)
        return [self(k / n) for k in range(n)]

    def all_milestones(self) -> tuple[float, ...]:
        """Return the progress points inside (0, 1) where the curve jumps or changes its formula, nested ones too.

        >>> from lit_cosine import Linear, Sequential, Step
        >>> Sequential((Linear(0, 1), Step(milestones=(0.5,))), milestones=(0.2,)).all_milestones()
        (0.2, 0.6000000000000001)
        """
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain data (str, float, int, list, dict), in the form LightningCLI reads from YAML.

        >>> from lit_cosine import Cosine
        >>> Cosine(end=0.1).to_dict()
        {'class_path': 'lit_cosine.schedules.Cosine', 'init_args': {'start': 1.0, 'end': 0.1, 'k': 1.0}}
        """
        init_args = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": init_args}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Schedule:
        """Return the schedule that :meth:`to_dict` wrote.

        ``class_path`` names a subclass of ``Schedule`` that this process has already defined, by its full path or, if
        that is unknown, by its last part. Nothing is imported, so plain data from an untrusted checkpoint cannot call
        anything else.

        Raises:
            ValueError: If ``data`` has another form, names an unknown schedule, or leaves open which of two is meant.

        >>> from lit_cosine import Cosine
        >>> Schedule.from_dict({"class_path": "Cosine", "init_args": {"end": 0.1}})
        Cosine(start=1.0, end=0.1, k=1.0)
        """
        if not isinstance(data, dict) or not isinstance(data.get("class_path"), str) or data.keys() - _PLAIN_KEYS:
            raise ValueError(f"a schedule as plain data has the keys class_path and init_args, got {data!r}")
        cls = _find_class(data["class_path"])
        init_args = data.get("init_args") or {}
        if not isinstance(init_args, dict):
            raise ValueError(f"init_args of {cls.__name__} must be a dict, got {init_args!r}")
        arguments = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := init_args.keys() - arguments.keys():
            raise ValueError(f"{cls.__name__} has no argument {', '.join(sorted(unknown))}")
        required = {name for name, field in arguments.items() if field.default is field.default_factory is MISSING}
        if missing := required - init_args.keys():
            raise ValueError(f"{cls.__name__} needs the argument {', '.join(sorted(missing))}")
        return cls(**{key: _from_plain(value) for key, value in init_args.items()})

    def __str__(self) -> str:
        """Return the curve in words, for log lines: ``cosine 1 -> 0.1``."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()
        return f"{name} {self(0.0):.4g} -> {self(1.0):.4g}"


_PLAIN_KEYS = {"class_path", "init_args"}


def check_schedule(name: str, value: object) -> None:
    """Refuse what is not a schedule; ``name`` is the argument the message names."""
    if isinstance(value, type) and issubclass(value, Schedule):
        raise TypeError(f"{name} must be a schedule, got the class {value.__name__}: write {value.__name__}()")
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a schedule such as Cosine(end=0.1), got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return Schedule.from_dict(value)
    return [_from_plain(item) for item in value] if isinstance(value, list) else value


def _find_class(class_path: str) -> type[Schedule]:
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _subclasses(Schedule)}  # type: ignore[type-abstract]
    if class_path in known:
        return known[class_path]
    name = class_path.rpartition(".")[2]
    matches = [path for path, cls in known.items() if cls.__name__ == name]
    if not matches:
        raise ValueError(
            f"unknown schedule {name!r}; known are {', '.join(sorted(c.__name__ for c in known.values()))}"
        )
    if len(matches) > 1:
        raise ValueError(f"{class_path!r} could be any of {', '.join(sorted(matches))}; write one of these")
    return known[matches[0]]


def _subclasses(cls: type[Schedule]) -> list[type[Schedule]]:
    return [sub for child in cls.__subclasses__() for sub in (child, *_subclasses(child))]
