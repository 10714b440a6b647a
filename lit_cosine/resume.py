"""What ``lit-cosine train --resume`` goes on with: which run, which checkpoint, and whose word counts.

Convention: what was trained is the checkpoint's word (the model and the data), how it goes on is the flags' (the
Trainer, how often checkpoints are taken, the model's ``on_resize``). Every flag that differs is said, and who wins.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lit_cosine.checkpoint_io import CheckpointError, newest_intact

__all__ = ["check_epochs", "check_hyperparameters", "checkpoint_to_resume", "reconcile"]

_RUN = re.compile(r"run_(\d+)")
# parts of the model and the data that change nothing of what was trained so far
_FLAGS_WIN = {"model": {"on_resize"}, "data": {"init_args.num_workers"}}


def checkpoint_to_resume(asked: str, root: str | Path) -> Path:
    """Return the checkpoint that ``--resume`` or ``--resume PATH`` means, in the folder ``checkpoints`` of its run.

    Args:
        asked: A checkpoint, a run's folder, or nothing for the last run of ``root``.
        root: The folder of runs ``run_1``, ``run_2``, …

    Raises:
        ValueError: If there is nothing to resume, or no configuration beside it.
        CheckpointError: If the checkpoint is damaged or refused.
    """
    if asked:
        run = Path(asked)
        if run.is_file():
            return _with_configuration(run)
        if not run.is_dir():
            raise ValueError(f"there is nothing to resume: no run and no checkpoint is {asked}")
    else:
        runs = [path for path in Path(root).glob("run_*") if _RUN.fullmatch(path.name) and path.is_dir()]
        if not runs:
            raise ValueError(f"there is nothing to resume: no run is in {root}; without --resume a new one begins")
        run = max(runs, key=lambda path: int(path.name.removeprefix("run_")))
    try:
        return _with_configuration(newest_intact(run / "checkpoints"))
    except FileNotFoundError as error:
        raise ValueError(f"there is nothing to resume in {run}: {error}; without --resume a new run begins") from error


def _with_configuration(checkpoint: Path) -> Path:
    configuration = checkpoint.parent.parent / "config.yaml"
    if not configuration.is_file():
        raise ValueError(f"{checkpoint} cannot be resumed: there is no {configuration}, which says how it was trained")
    return checkpoint


def reconcile(saved: Any, given: Any) -> tuple[Any, list[str]]:
    """Return the configuration to go on with, and a sentence for every flag that differs from the run's.

    Args:
        saved: The run's configuration, as a jsonargparse ``Namespace``.
        given: The same with the command line's flags in it.
    """
    said = []
    before, now = saved.as_flat().__dict__, given.as_flat().__dict__
    for name in sorted({*before, *now}):
        group, _, part = name.partition(".")
        old, new = before.get(name), now.get(name)
        if old == new or group in ("config", "resume"):
            continue
        wins = group not in _FLAGS_WIN or part in _FLAGS_WIN[group]
        said.append(f"{name}: {new} was given and the run has {old}; {'what was given' if wins else 'the run'} wins")
    for group, free in _FLAGS_WIN.items():
        kept = saved[group].clone()
        for part in free:
            if given[group].get(part) is not None:
                kept[part] = given[group][part]
        given[group] = kept
    return given, said


def check_hyperparameters(checkpoint: dict[str, Any], model: Any, path: Path) -> None:
    """Refuse a configuration that was edited into another than the one the checkpoint was trained under.

    Raises:
        CheckpointError: If a hyperparameter of ``model`` is not the checkpoint's.
    """
    trained = checkpoint.get("hyper_parameters", {})
    for name, value in dict(model.hparams).items():
        if name in trained and trained[name] != value and name not in _FLAGS_WIN["model"]:
            raise CheckpointError(
                f"{path} was trained with {name}={trained[name]} and config.yaml beside its folder says {value}: "
                "the checkpoint is right, mend config.yaml"
            )


def check_epochs(checkpoint: dict[str, Any], max_epochs: int | None) -> None:
    """Refuse to go on with a run that has more epochs behind it than ``max_epochs``.

    Raises:
        ValueError: If it has.
    """
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and -1 < max_epochs < done:
        raise ValueError(
            f"trainer.max_epochs must be at least the {done} epochs that the run has done, got {max_epochs}"
        )
