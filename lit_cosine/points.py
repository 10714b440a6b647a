"""Points of curves, on their way to the loggers.

Convention: steps are optimizer steps; a point carries the time at which it was measured, not that of its writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

__all__ = ["Point", "board_of", "write_points"]

Point = tuple[int, dict[str, float], float]
"""Step, values by tag, time (seconds since 1970)."""


def board_of(logger: Any) -> Any:
    """Return the SummaryWriter of a TensorBoard logger, of whichever of Lightning's namespaces; None of another.

    >>> from lightning.pytorch.loggers import CSVLogger
    >>> board_of(CSVLogger("logs")) is None
    True
    """
    experiment = logger.experiment
    return experiment if hasattr(experiment, "add_custom_scalars") else None


def write_points(loggers: Sequence[Any], points: Iterable[Point]) -> None:
    """Write points to every logger and have it save them: from then on they outlive the process.

    Args:
        loggers: Lightning's loggers. TensorBoard is told when each point was measured, which the interface cannot.
        points: The points, in the order of their steps.
    """
    points = list(points)
    if not points:
        return
    for logger in loggers:
        writer = board_of(logger)
        prefix = getattr(logger, "_prefix", "")  # what log_metrics would put in front
        for step, values, when in points:
            if writer is None:
                logger.log_metrics(values, step=step)
                continue
            # one event for all values of a step, where add_scalar writes one for each
            scalars = [
                Summary.Value(tag=f"{prefix}-{tag}" if prefix else tag, simple_value=value)
                for tag, value in values.items()
            ]
            if (file := writer._get_file_writer()) is not None:  # None in the processes that write nothing
                file.add_summary(Summary(value=scalars), step, when)
        logger.save()
