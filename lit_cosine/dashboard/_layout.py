"""What TensorBoard's pages are made of: the layout of the Schedule dashboard, the rows of the HParams table.

Convention: a function writes one thing to a SummaryWriter; nothing here knows a Trainer. Tags and columns are the same
for every run, so that runs of all kinds stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from lit_cosine._compat import file_writer
from lit_cosine.dashboard._charts import CHARTS, LR, exactly

__all__ = [
    "HYPERPARAMETERS",
    "METRICS",
    "begin_again",
    "write_hyperparameters",
    "write_layout",
    "write_success",
]

# every run writes the same columns: of several tables TensorBoard shows one
HYPERPARAMETERS = {
    "schedule": ("schedule", "what moves the LR", False),
    "parameters": ("parameters", "the schedule's", False),
    "start": ("start factor", "multiple of the LR at progress 0", True),
    "end": ("end factor", "multiple of the LR at progress 1", True),
    "lr": ("LR", "base LR of the first param group, the peak of the schedule", True),
    "interval": ("interval", "how often the LR moves", False),
    "warmup": ("warmup", "before the schedule", False),
    "epochs": ("epochs", "max_epochs; -1 where there is no limit", True),
    "batch_size": ("batch size [rows]", "rows of a batch, in one process", True),
    "seed": ("seed", "of seed_everything", True),
    "network_size": ("network size [parameters]", "parameters of the module", True),
    "data": ("data", "data set, or class of the DataModule", False),
}
"""Name -> title, description, whether it is a number."""

# by default TensorBoard shows five columns, first those with ``differs``
_SHOWN = ("schedule", "parameters", "lr", "interval", "warmup")

METRICS = {
    "val/loss": ("validation loss", "after the last epoch"),
    "val/accuracy": ("validation accuracy", "after the last epoch, of 1"),
    "test/loss": ("test loss", "of the tested checkpoint"),
    "test/accuracy": ("test accuracy", "of the tested checkpoint, of 1"),
    "train/seconds": ("training time [s]", "validation and checkpoints included"),
}
"""Tag -> title, description."""


def begin_again(writer: Any, step: int) -> None:
    """Write that a run continues from ``step``: TensorBoard drops what a killed process has written from there on."""
    start = SessionLog(status=SessionLog.START)
    file_writer(writer).add_event(Event(session_log=start), step)


def write_layout(writer: Any, curves: Sequence[str] = ()) -> None:
    """Write the layout of the "Schedule" dashboard, in which the LR chart also has the tags ``curves``.

    TensorBoard shows it under Custom Scalars, equal ones of a folder once; its charts overlay all runs.
    """
    charts = dict(CHARTS)
    charts[LR] = charts[LR] + [exactly(tag) for tag in curves if not tag.startswith("lr-")]
    writer.add_custom_scalars({"Schedule": {title: ["Multiline", tags] for title, tags in charts.items()}})


def write_hyperparameters(writer: Any, values: Mapping[str, str | float | bool], began: float, name: str = "") -> None:
    """Write a run's row of the HParams table; the metrics in it are the last points of the run's curves.

    ``values`` are by the names of ``HYPERPARAMETERS``, ``began`` is in seconds since 1970. ``name`` is that of the row,
    the run's where it is empty; runs under one name would be one row.
    """
    table = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(
                name=key,
                display_name=title,
                description=description,
                differs=key in _SHOWN,
                type=api_pb2.DATA_TYPE_FLOAT64 if numeric else api_pb2.DATA_TYPE_STRING,
            )
            for key, (title, description, numeric) in HYPERPARAMETERS.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title, description=description)
            for tag, (title, description) in METRICS.items()
        ],
    )
    row = plugin_data_pb2.SessionStartInfo(group_name=name, start_time_secs=began)
    for key, value in values.items():
        # a module's hyperparameter may be of any type; a column of the table is numeric or text
        kind = {str: "string_value", bool: "bool_value", int: "number_value", float: "number_value"}.get(type(value))
        setattr(row.hparams[key], kind or "string_value", value if kind else str(value))
    _write_session(writer, metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=table))
    _write_session(writer, metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=row))


def write_success(writer: Any, ended: float) -> None:
    """Write that the run came to its end, at ``ended`` seconds since 1970."""
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=ended)
    _write_session(writer, metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))


def _write_session(writer: Any, tag: str, data: Any) -> None:
    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
    file_writer(writer).add_summary(Summary(value=[value]), 0)
