"""What an epoch has accumulated for its metrics, which Lightning does not save: means of ``self.log``, torchmetrics.

Convention: the saved part is merged after the first batch of the resumed epoch, when Lightning has created its metrics
anew and each holds that batch alone. Sums are thus the same floats as in the uninterrupted run.
"""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric

from lit_cosine._checks import shown
from lit_cosine._compat import logged_metrics
from lit_cosine.checkpoint._checkpoint_file import CheckpointError

__all__ = ["check_epoch_metrics", "epoch_metrics", "merge_epoch_metrics"]


def epoch_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return this process's metrics of the epoch so far, as plain data: of ``self.log`` by key, of modules by name."""
    logged = {
        key: {"value": _plain(metric.value), "size": _plain(getattr(metric, "cumulated_batch_size", None))}
        for key, metric in logged_metrics(trainer).items()
    }
    modules = {name: _plain(metric.metric_state) for name, metric in _metrics(pl_module).items() if metric.update_count}
    return {"logged": logged, "modules": modules}


def check_epoch_metrics(saved: Any) -> None:
    """Refuse what :func:`epoch_metrics` does not return."""
    good = isinstance(saved, dict) and all(isinstance(part, dict) for part in saved.values())
    if not good or not all(isinstance(part, dict) for group in saved.values() for part in group.values()):
        raise CheckpointError(f"the metrics in the checkpoint cannot be restored: {shown(saved)}")


def merge_epoch_metrics(saved: dict[str, Any], trainer: Trainer, pl_module: LightningModule) -> None:
    """Merge ``saved`` into the metrics that have been updated since; what was merged is removed from ``saved``."""
    logged, modules = saved.get("logged", {}), saved.get("modules", {})
    for key, metric in logged_metrics(trainer).items():
        if (part := logged.pop(key, None)) is None:
            continue
        value = part["value"].to(metric.value.device)
        if metric.meta.is_mean_reduction:
            metric.cumulated_batch_size = part["size"].to(metric.value.device) + metric.cumulated_batch_size
        if metric.meta.is_mean_reduction or metric.meta.is_sum_reduction:
            metric.value = value + metric.value
        else:  # max and min
            metric.value = metric.meta.reduce_fx(metric.value, value)
    for name, module in _metrics(pl_module).items():
        if not module.update_count or (state := modules.pop(name, None)) is None:
            continue
        try:
            module.merge_state(move_data_to_device(state, pl_module.device))
        except (AttributeError, RuntimeError, ValueError) as error:  # full_state_update, or torchmetrics before 1.5
            rank_zero_warn(f"{name} of the resumed epoch is over its batches after the resume: {shown(str(error))}")


def _metrics(pl_module: LightningModule) -> dict[str, Metric]:
    return {name: module for name, module in pl_module.named_modules() if isinstance(module, Metric)}


def _plain(value: Any) -> Any:
    """Return ``value`` with copies on the CPU of its tensors."""
    return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().cpu().clone())
