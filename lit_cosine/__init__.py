"""lit_cosine: the learning-rate curve you plan is the curve you get.

The public names load on first use (PEP 562): ``import lit_cosine`` loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_cosine.audit import ScheduleAudit as ScheduleAudit
    from lit_cosine.callbacks import LearningRateScheduler as LearningRateScheduler
    from lit_cosine.checkpoint import ExactResume as ExactResume
    from lit_cosine.comparison import compare as compare
    from lit_cosine.data import SyntheticDataModule as SyntheticDataModule
    from lit_cosine.data import TabularDataModule as TabularDataModule
    from lit_cosine.horizon import Clock as Clock
    from lit_cosine.horizon import Duration as Duration
    from lit_cosine.model import LitClassifier as LitClassifier
    from lit_cosine.model import SimpleNN as SimpleNN
    from lit_cosine.monitors import LearningRateLogger as LearningRateLogger
    from lit_cosine.monitors import TrainingCurves as TrainingCurves
    from lit_cosine.scheduler import ScheduleLR as ScheduleLR
    from lit_cosine.schedules import Constant as Constant
    from lit_cosine.schedules import Cosine as Cosine
    from lit_cosine.schedules import Exponential as Exponential
    from lit_cosine.schedules import InverseSqrt as InverseSqrt
    from lit_cosine.schedules import Linear as Linear
    from lit_cosine.schedules import OneMinusSqrt as OneMinusSqrt
    from lit_cosine.schedules import Polynomial as Polynomial
    from lit_cosine.schedules import Restarts as Restarts
    from lit_cosine.schedules import Schedule as Schedule
    from lit_cosine.schedules import Sequential as Sequential
    from lit_cosine.schedules import Step as Step
    from lit_cosine.schedules import one_cycle as one_cycle
    from lit_cosine.schedules import warmup_cosine as warmup_cosine
    from lit_cosine.schedules import warmup_stable_decay as warmup_stable_decay
    from lit_cosine.trainer import lr_scheduler_config as lr_scheduler_config
    from lit_cosine.trainer import total_steps as total_steps

_ROOMS = {
    "comparison": "compare",
    "checkpoint": "ExactResume",
    "schedules": (
        "Schedule Constant Linear Cosine Polynomial Exponential Step OneMinusSqrt InverseSqrt "
        "Sequential Restarts warmup_cosine warmup_stable_decay one_cycle"
    ),
    "horizon": "Duration Clock",
    "audit": "ScheduleAudit",
    "scheduler": "ScheduleLR",
    "data": "TabularDataModule SyntheticDataModule",
    "model": "SimpleNN LitClassifier",
    "monitors": "LearningRateLogger TrainingCurves",
    "trainer": "lr_scheduler_config total_steps",
    "callbacks": "LearningRateScheduler",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}

__all__ = sorted(_ROOM_OF)


if not TYPE_CHECKING:  # with it, a type checker would take every name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in _ROOM_OF:
            raise AttributeError(f"module 'lit_cosine' has no attribute {name!r}")
        value = getattr(import_module(f"lit_cosine.{_ROOM_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
