"""Points of curves, on their way to the loggers.

Convention: steps are optimizer steps; a point carries the time at which it was measured, not that of its writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from lit_cosine._compat import file_writer, logger_prefix

__all__ = ["Point", "board_of", "numbers", "write_points"]

Point = tuple[int, dict[str, float], float]
"""Step, values by tag, time (seconds since 1970)."""


def numbers(values: Sequence[float | Tensor]) -> list[float]:
    """Return the values as floats. Tensors are fetched together, so that each device is waited for once.

    >>> numbers([torch.tensor(0.5), 2])
    [0.5, 2.0]
    """
    tensors = [value.reshape(()) for value in values if isinstance(value, Tensor)]
    fetched = {
        device: iter(torch.stack([tensor for tensor in tensors if tensor.device == device]).tolist())
        for device in {tensor.device for tensor in tensors}
    }
    return [float(next(fetched[value.device]) if isinstance(value, Tensor) else value) for value in values]


def board_of(logger: Logger) -> Any:
    """Return the SummaryWriter of a TensorBoard logger, from either of Lightning's namespaces; None of another logger.

    >>> from lightning.pytorch.loggers import CSVLogger
    >>> board_of(CSVLogger("logs")) is None
    True
    """
    experiment = getattr(logger, "experiment", None)  # a user's logger may have none
    return experiment if hasattr(experiment, "add_custom_scalars") else None


def write_points(logger: Logger, points: Sequence[Point]) -> None:
    """Write points to a logger and have it save them: from then on they outlive the process."""
    writer = board_of(logger)
    prefix = logger_prefix(logger)  # which log_metrics would add
    for step, values, when in points:
        if writer is None:
            logger.log_metrics(values, step=step)
            continue
        # one event for all values of a step, where add_scalar writes one for each
        scalars = [
            Summary.Value(tag=f"{prefix}-{tag}" if prefix else tag, simple_value=value) for tag, value in values.items()
        ]
        if (file := file_writer(writer)) is not None:  # None in the processes that write nothing
            file.add_summary(Summary(value=scalars), step, when)
    logger.save()
