"""What a schedule is: a frozen value that maps progress in [0, 1] to a factor of the base LR.

Convention: an invalid schedule cannot exist. Each checks its own fields when it is made.
"""

from __future__ import annotations

import math
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lit_cosine._checks import as_integer, as_number, shown

__all__ = [
    "MOST_NESTED",
    "MOST_PIECES",
    "ROUNDING",
    "Schedule",
    "as_schedule",
    "check_schedule",
    "final",
    "public_path",
    "set_depth",
]

if TYPE_CHECKING:
    from typing import final

    from matplotlib.axes import Axes
else:

    def final(cls: type) -> type:
        """Mark ``cls`` as final for type checkers alone.

        ``typing.final`` marks it at run time too, and jsonargparse would then read ``Restarts.schedule``, whose default
        is a Cosine, as the arguments of the abstract Schedule.
        """
        return cls


_Self = TypeVar("_Self", bound="Schedule")

ROUNDING = 1e-12
"""Milestones this close count as reached.

A nested schedule sees progress that was rescaled, hence rounded: step k of N can lie 1e-15 before a milestone that it
meets exactly on paper. The steps of any real run are further apart.
"""
MOST_NESTED = 100
"""How deep schedules nest at most."""
MOST_PIECES = 10_000
"""How many pieces between milestones a nested schedule has at most."""


def public_path(cls: type) -> str:
    """Return the path that others import ``cls`` by, ``lit_cosine.NAME`` for a public class: files hold this one."""
    package = cls.__module__.partition(".")[0]
    if package == "lit_cosine" and cls.__qualname__ in import_module(package).__all__:
        return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


class Schedule(ABC):
    """A learning-rate curve: progress in [0, 1] -> factor.

    A schedule of your own is a frozen dataclass with one method:

    >>> from dataclasses import dataclass
    >>> from lit_cosine import Linear, Sequential
    >>> @dataclass(frozen=True)
    ... class Square(Schedule):
    ...     end: float = 0.0
    ...     def factor(self, progress: float) -> float:
    ...         return 1 - (1 - self.end) * progress**2
    >>> Square()(0.5)
    0.75
    >>> Sequential((Linear(start=0, end=1), Square()), milestones=(0.5,))(0.75)
    0.75
    """

    _depth = 1  # how deep it nests

    def __new__(cls: type[_Self], *args: object, **kwargs: object) -> _Self:
        """Say where a wrong argument of a schedule of lit_cosine belongs; copies and pickles pass no arguments."""
        if cls.__module__.startswith("lit_cosine.schedules."):
            known: dict[str, Field[Any]] = cls.__dataclass_fields__  # type: ignore[attr-defined]
            if args and all(field.kw_only for field in known.values()):
                raise TypeError(
                    f"{cls.__name__} takes keyword arguments alone ({', '.join(known)}), got {shown(args[0])}; the "
                    "length comes from the run, the peak LR from the optimizer"
                )
            if unknown := kwargs.keys() - known.keys():
                from lit_cosine.schedules._plain import unknown_argument  # it imports every schedule

                raise TypeError(unknown_argument(cls.__name__, min(unknown), tuple(known)))
        return super().__new__(cls)

    if not TYPE_CHECKING:  # to a type checker it would be a property of the classes too
        # W&B's and TensorBoard's loggers of lightning 2.6.6 record a callable hyperparameter by this name
        __name__ = property(repr)

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``, which is already clamped to [0, 1]."""

    def __call__(self, progress: float) -> float:
        """Return the factor of the base LR at ``progress``.

        Args:
            progress: Fraction of the run done; values outside [0, 1] are clamped.

        Returns:
            A Python float; ``factor`` may return any real number.

        Raises:
            TypeError: If ``progress`` or the factor at it is not one number.
            ValueError: If ``progress`` is nan, or the factor at it is negative or not finite.
        """
        try:
            inside = 0.0 <= progress <= 1.0
        except (TypeError, ValueError, RuntimeError):  # an array, a tensor of several numbers
            raise TypeError(
                f"progress must be one number, got {shown(progress)}; for a whole curve see sample(n)"
            ) from None
        if not inside:
            if math.isnan(progress):
                raise ValueError(f"progress must be a number, got {progress}")
            progress = 0.0 if progress < 0.0 else 1.0
        factor = self.factor(progress)
        if type(factor) is not float:  # a schedule of the user's own may return numpy's or torch's numbers
            factor = as_number(f"a factor of {type(self).__name__}", factor)
        if not 0.0 <= factor < math.inf:
            at = f"{factor} at progress {progress:g} from {shown(self)}"
            raise ValueError(f"a factor must be finite and >= 0, got {at}")
        return factor

    def sample(self, n: int) -> list[float]:
        """Return the ``n`` factors that a run of ``n`` steps uses, at progress 0/n, 1/n, …, (n-1)/n.

        Raises:
            TypeError: If ``n`` is not an integer.
            ValueError: If ``n`` < 1.

        >>> from lit_cosine import Cosine
        >>> [round(factor, 3) for factor in Cosine().sample(4)]
        [1.0, 0.854, 0.5, 0.146]
        """
        n = as_integer("n", n, least=1)
        return [self(k / n) for k in range(n)]

    def all_milestones(self) -> tuple[float, ...]:
        """Return the progress points inside (0, 1) where the curve jumps or changes its formula, nested ones too.

        >>> from lit_cosine import Linear, Sequential, Step
        >>> Sequential((Linear(start=0, end=1), Step(milestones=(0.5,))), milestones=(0.2,)).all_milestones()
        (0.2, 0.6000000000000001)
        """
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule as plain data (str, float, int, list, dict), in the form LightningCLI reads from YAML.

        Raises:
            TypeError: If a schedule of the user's own is no dataclass, or a field of it is no plain data.

        >>> from lit_cosine import Cosine
        >>> Cosine(end=0.1).to_dict()
        {'class_path': 'lit_cosine.Cosine', 'init_args': {'start': 1.0, 'end': 0.1, 'k': 1.0}}
        """
        if not is_dataclass(self):
            raise TypeError(f"{type(self).__name__} must be a dataclass: as plain data a schedule is its fields")
        init_args = {
            field.name: _plain(f"{type(self).__name__}.{field.name}", getattr(self, field.name))
            for field in fields(self)
            if field.init
        }
        return {"class_path": public_path(type(self)), "init_args": init_args}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Schedule:
        """Return the schedule that :meth:`to_dict` wrote.

        ``class_path`` names a schedule or preset of lit_cosine, or a subclass of ``Schedule`` that this process has
        already defined: by its full path or, where that is unknown, by its last part. Nothing is imported, so plain
        data from an untrusted checkpoint cannot call anything else.

        Raises:
            ValueError: If ``data`` has another form, names an unknown schedule, or leaves open which of two is meant.

        >>> from lit_cosine import Cosine
        >>> Schedule.from_dict({"class_path": "Cosine", "init_args": {"end": 0.1}})
        Cosine(start=1.0, end=0.1, k=1.0)
        """
        from lit_cosine.schedules._plain import build_schedule  # it imports every schedule, and they import this module

        return build_schedule(data)

    def plot(self, ax: Axes | None = None, lr: float = 1.0, steps: int | None = None) -> Axes:
        """Draw the curve with matplotlib, and return the axes.

        Args:
            ax: The axes to draw in; those of a new pyplot figure where None.
            lr: Peak LR; 1 draws the factor.
            steps: Length of the run in optimizer steps; None draws over progress.

        Raises:
            TypeError: If ``lr`` or ``steps`` is no number.
            ValueError: If ``lr`` <= 0 or ``steps`` < 1.
        """
        from lit_cosine.schedules._plot import plot  # it imports this module

        return plot(self, ax, lr, steps)

    def _repr_svg_(self) -> str:
        """Return the picture that Jupyter shows of a schedule."""
        from lit_cosine.schedules._plot import svg  # it imports this module

        return svg(self)

    def __str__(self) -> str:
        """Return the curve in words, for log lines: ``cosine 1 -> 0.1``."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()
        return f"{name} {self(0.0):.4g} -> {self(1.0):.4g}"


def set_depth(schedule: Schedule, inner: Sequence[Schedule]) -> None:
    """Store how deep ``schedule`` nests, which holds ``inner``; refuse what would exceed Python's recursion limit."""
    depth = 1 + max(part._depth for part in inner)
    if depth > MOST_NESTED:
        raise ValueError(f"{type(schedule).__name__}: schedules nest at most {MOST_NESTED} deep")
    object.__setattr__(schedule, "_depth", depth)


def as_schedule(name: str, value: object, *, imports: bool = False) -> Schedule:
    """Return ``value`` as a schedule, which it is or describes as plain data; ``imports`` as in ``build_schedule``."""
    if isinstance(value, Schedule):
        return value
    # Hydra passes containers of OmegaConf, which exist only where that has been imported
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        value = omegaconf.OmegaConf.to_object(value)  # a mapping made from a dataclass becomes that dataclass again
    if isinstance(value, Mapping):
        from lit_cosine.schedules._plain import build_schedule  # it imports every schedule, and they import this module

        return build_schedule(value, name, imports=imports)
    check_schedule(name, value)
    return cast("Schedule", value)


def check_schedule(name: str, value: object) -> None:
    """Refuse what is not a schedule; ``name`` is the argument the message names."""
    if isinstance(value, type) and issubclass(value, Schedule):
        raise TypeError(f"{name} must be a schedule, got the class {value.__name__}: write {value.__name__}()")
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a schedule such as Cosine(end=0.1), got {shown(value)}")


def _plain(name: str, value: Any) -> Any:
    """Return the field ``name`` as plain data, which a checkpoint may hold under ``weights_only=True``."""
    if isinstance(value, Schedule):
        return value.to_dict()
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{index}]", item) for index, item in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{name} must be a number, text, a schedule, or a tuple of these to be saved with a run, got {shown(value)}"
    )
