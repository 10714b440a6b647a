"""What makes a callback that only watches safe: an error in one of its hooks ends the callback, not the training.

Convention: only ``Exception`` is handled, so Ctrl-C and ``SystemExit`` pass. ``load_state_dict`` may raise: it
refuses a checkpoint before training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from lightning.pytorch import Callback

from lit_cosine._checks import shown
from lit_cosine._compat import forget_module, own_attributes

__all__ = ["reason", "watching"]

Cls = TypeVar("Cls", bound=type[Callback])

_STOPPED = "_stopped_watching"
_LAST = ("teardown", "on_exception")
_HOOKS = [name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown", "state_dict")]


def watching(*raises: type[Exception]) -> Callable[[Cls], Cls]:
    """Return a decorator for a callback that must never end a training.

    The first error in a hook becomes one warning. The callback's ``teardown`` then runs, and its hooks do nothing up to
    the next ``setup``. Copies, pickles, and the callback after a run hold nothing of the run's module.

    Args:
        raises: Exceptions that the callback raises on purpose.

    >>> @watching()
    ... class Watches(Callback):
    ...     def on_train_start(self, trainer, pl_module):
    ...         raise OSError("No space left on device")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     Watches().on_train_start(None, None)
    >>> print(caught[0].message)
    Watches stopped, and training continues: on_train_start raised OSError: No space left on device
    """

    def decorate(cls: Cls) -> Cls:
        teardown = cls.teardown
        for name in _HOOKS:
            hook = getattr(cls, name)
            if hook is not getattr(Callback, name) or name in _LAST:
                setattr(cls, name, _guarded(hook, teardown, raises))
        if "__getstate__" not in vars(cls):
            cls.__getstate__ = own_attributes  # type: ignore[attr-defined]
        return cls

    return decorate


def _guarded(hook: Callable[..., Any], teardown: Callable[..., Any], raises: tuple[type[Exception], ...]) -> Any:
    nothing: dict[str, Any] | None = {} if hook.__name__ == "state_dict" else None

    @wraps(hook)
    def guarded(self: Callback, *args: Any, **kwargs: Any) -> Any:
        if hook.__name__ == "setup":
            vars(self).pop(_STOPPED, None)
        try:
            return nothing if _STOPPED in vars(self) else hook(self, *args, **kwargs)
        except raises:
            raise
        except Exception as error:
            setattr(self, _STOPPED, True)
            with suppress(Exception):
                teardown(self, *args[:2], "fit")  # removes hooks from optimizers; args are (trainer, pl_module, …)
            why = f"{hook.__name__} raised {reason(error)}"
            warnings.warn(f"{type(self).__name__} stopped, and training continues: {why}", stacklevel=2)
            return nothing
        finally:
            # lightning 2.6.6 calls no teardown after an exception
            if hook.__name__ in _LAST:
                forget_module(self)

    return guarded


def reason(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or shown(error)}"
