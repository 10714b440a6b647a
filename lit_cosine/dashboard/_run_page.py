"""The description of a run: its row of the HParams table and its page of text.

Convention: it is read from the Trainer and the module, which may be of any class; what they do not have is left out.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import yaml

from lit_cosine._compat import has_class
from lit_cosine.audit import Finding
from lit_cosine.schedules import Schedule, public_path

__all__ = ["configuration", "hyperparameters", "page", "schedule_columns"]

_PACKAGES = ("lit-cosine", "lightning", "torch", "torchmetrics", "numpy", "scikit-learn", "tensorboard")


def hyperparameters(trainer: Any, pl_module: Any) -> dict[str, str | float]:
    """Return a run's row of the HParams table, by the names of ``HYPERPARAMETERS``.

    Args:
        trainer: The Trainer, at the run's first batch.
        pl_module: Its module.
    """
    row: dict[str, Any] = dict(_scheduled(trainer, pl_module))
    loader, data = trainer.train_dataloader, trainer.datamodule
    name = getattr(data, "dataset", None)
    row |= {
        "epochs": trainer.max_epochs,
        "batch_size": getattr(loader, "batch_size", None) or getattr(data, "batch_size", None),
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
        "network_size": sum(parameter.numel() for parameter in pl_module.parameters()),
        "data": name if isinstance(name, str) else type(loader if data is None else data).__name__,
    }
    return {key: value for key, value in row.items() if value is not None}


def _scheduled(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """Return what moves the LR of the first optimizer."""
    if not trainer.optimizers:
        return {}
    first = trainer.optimizers[0]
    configs = [config for config in trainer.lr_scheduler_configs if config.scheduler.optimizer is first]
    own = [callback for callback in trainer.callbacks if has_class(callback, "LearningRateScheduler")]
    own = [callback for callback in own if callback.schedulers]
    scheduler = own[0].schedulers[0] if own else configs[0].scheduler if configs else None
    group = first.param_groups[0]
    row: dict[str, Any] = {"schedule": type(scheduler).__name__, "lr": float(group.get("initial_lr", group["lr"]))}
    if scheduler is None:
        return {**row, "schedule": "none", "start": 1.0, "end": 1.0}
    row["lr"] = float(getattr(scheduler, "base_lrs", [row["lr"]])[0])
    row["interval"] = "step" if own else configs[0].interval
    row["warmup"] = str(own[0].warmup) if own else pl_module.hparams.get("warmup")
    schedule = getattr(scheduler, "schedule", None)
    if not isinstance(schedule, Schedule):
        return {**row, "parameters": _numbers(scheduler)}
    return row | schedule_columns(schedule)


def schedule_columns(schedule: Schedule) -> dict[str, str | float]:
    """Return the columns of the HParams table that describe a schedule.

    Args:
        schedule: Any.

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


def _numbers(scheduler: Any) -> str:
    """Return the numbers that a scheduler of another library was given."""
    state = {"last_epoch", "verbose", "total_steps_done", "num_bad_epochs", "best", "cooldown_counter", "T_cur"}
    return ", ".join(
        f"{name}={value}"
        for name, value in vars(scheduler).items()
        if name[0] != "_" and name not in state and isinstance(value, (int, float, str))
    )


def page(
    command: str,
    configuration: str,
    row: Mapping[str, Any],
    plan: Sequence[str],
    findings: Sequence[Finding] | None,
) -> str:
    """Return a run's page in Markdown: what made it, what was planned, what is wrong with that, and versions.

    Args:
        command: The command line.
        configuration: YAML.
        row: What is in the HParams table.
        plan: The planned LRs, in sentences.
        findings: What an audit found; None where there was none.

    >>> page("lit-cosine train", "a: 1", {"lr": 0.1}, ["0.1 to 0"], []).splitlines()[:6]
    ['## Command', '', '    lit-cosine train', '', '## Plan', '']
    """
    if findings is None:
        found = "not audited"
    else:
        found = (
            "\n".join(f"- **{one.code}**: {_inline(f'{one.message}. Fix: {one.fix}.')}" for one in findings) or "none"
        )
    sections = {
        "Command": _verbatim(command),
        "Plan": "\n".join(f"- {_inline(line)}" for line in plan) or "no optimizer",
        "Findings of the audit": found,
        "Hyperparameters": "\n".join(
            ["| name | value |", "|---|---|", *(f"| {k} | {_inline(v)} |" for k, v in row.items())]
        ),
        "Configuration": _verbatim(configuration),
        "Versions": _verbatim(_versions()),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())


def configuration(trainer: Any, pl_module: Any) -> str:
    """Return what a run outside the command line can tell of its configuration, as YAML."""
    told = {
        "trainer": {
            name: getattr(trainer, name)
            for name in ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")
        },
        "model": {"class_path": public_path(type(pl_module)), "init_args": dict(pl_module.hparams_initial)},
    }
    if trainer.datamodule is not None:
        data = trainer.datamodule
        told["data"] = {"class_path": public_path(type(data)), "init_args": dict(data.hparams_initial)}
    return yaml.dump(_plain(told), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


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
