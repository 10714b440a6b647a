"""The description of a run: its row of the HParams table and its page of text.

Convention: it is read from the Trainer and the module, which may be of any class; what they do not have is left out.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from lit_cosine._compat import attached_datamodule, callbacks_of
from lit_cosine.audit import Finding
from lit_cosine.schedules import Schedule

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["hyperparameters", "page", "schedule_columns"]

_PACKAGES = ("lit-cosine", "lightning", "torch", "torchmetrics", "numpy", "scikit-learn", "tensorboard")


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return a run's row of the HParams table, by the names of ``HYPERPARAMETERS``; what is not known is left out."""
    loader, data = trainer.train_dataloader, attached_datamodule(trainer)
    name = getattr(data, "dataset", None)
    row = {
        **_scheduled(trainer, pl_module),
        "epochs": trainer.max_epochs,
        "batch_size": getattr(loader, "batch_size", None) or getattr(data, "batch_size", None),
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
        "network_size": sum(parameter.numel() for parameter in pl_module.parameters()),
        "data": name if isinstance(name, str) else type(loader if data is None else data).__name__,
    }
    return {key: value for key, value in row.items() if value is not None}


def _scheduled(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return what moves the LR of the first optimizer."""
    if not trainer.optimizers:
        return {}
    first = trainer.optimizers[0]
    own = [callback for callback in callbacks_of(trainer, "LearningRateScheduler") if callback.schedulers]
    configs = [config for config in trainer.lr_scheduler_configs if config.scheduler.optimizer is first]
    if not own and not configs:
        return {"schedule": "none", "start": 1.0, "end": 1.0, "lr": float(first.param_groups[0]["lr"])}
    scheduler = own[0].schedulers[0] if own else configs[0].scheduler
    group = first.param_groups[0]
    bases = getattr(scheduler, "base_lrs", [group.get("initial_lr", group["lr"])])
    schedule = getattr(scheduler, "schedule", None)
    return {
        "lr": float(bases[0]),
        "interval": "step" if own else configs[0].interval,
        "warmup": str(own[0].warmup) if own else pl_module.hparams.get("warmup"),
        **(schedule_columns(schedule) if isinstance(schedule, Schedule) else {"schedule": type(scheduler).__name__}),
    }


def schedule_columns(schedule: Schedule) -> dict[str, str | float]:
    """Return the columns of the HParams table that describe a schedule.

    >>> from lit_cosine.schedules import Linear
    >>> schedule_columns(Linear(start=1.0, end=0.1))
    {'schedule': 'Linear', 'parameters': 'end=0.1', 'start': 1.0, 'end': 0.1}
    """
    # those that are at their defaults are left out: a column of the table shows some 15 characters
    given = {
        name: (getattr(schedule, name), field.default)
        for name, field in getattr(schedule, "__dataclass_fields__", {}).items()
    }
    told = [f"{name}={value}" for name, (value, default) in given.items() if value != default]
    row = {"schedule": type(schedule).__name__, "parameters": ", ".join(told)}
    return {**row, "start": schedule(0.0), "end": schedule(1.0)}


def page(
    command: str, configuration: str, row: Mapping[str, Any], plan: Sequence[str], findings: Sequence[Finding] | None
) -> str:
    """Return a run's page in Markdown: what made it, what was planned, what an audit found, if there was one, versions.

    >>> page("lit-cosine train", "a: 1", {"lr": 0.1}, ["0.1 to 0"], []).splitlines()[:6]
    ['## Command', '', '    lit-cosine train', '', '## Plan', '']
    """
    found = [f"- **{one.code}**: {_inline(f'{one.message}. Fix: {one.fix}.')}" for one in findings or ()]
    rows = [f"| {name} | {_inline(value)} |" for name, value in row.items()]
    sections = {
        "Command": _verbatim(command),
        "Plan": "\n".join(f"- {_inline(line)}" for line in plan) or "no optimizer",
        "Findings of the audit": "not audited" if findings is None else "\n".join(found) or "none",
        "Hyperparameters": "\n".join(["| name | value |", "|---|---|", *rows]),
        "Configuration": _verbatim(configuration),
        "Versions": _verbatim(_versions()),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def _inline(value: Any) -> str:
    """Return a value as text in one line, in which nothing is Markdown or HTML: an image would be fetched."""
    return re.sub(r"[&<\[\]!|`*\\]", lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def _verbatim(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


def _versions() -> str:
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # `pytorch_lightning` alone, or a checkout that is not installed
            continue
    return "\n".join(lines)
