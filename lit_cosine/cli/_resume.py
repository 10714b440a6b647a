"""What ``lit-cosine train --resume`` continues: which run, which checkpoint, and which settings.

Convention: the settings of the model and the data come from the run, as they determine what the checkpoint holds. The
flags decide how training continues: the Trainer, the checkpoints, and the model's ``on_resize``. Every flag that
differs from the run's configuration is reported, with the value that is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lit_cosine._checks import as_integer, shown
from lit_cosine.checkpoint import CheckpointError, SafeCheckpointIO, read_newest

__all__ = [
    "AlreadyRead",
    "check_hyperparameters",
    "check_progress",
    "checkpoint_to_resume",
    "hyperparameters",
    "reconcile",
]

_RUN = re.compile(r"run_(\d+)")
# settings of the model and the data that change nothing of what was trained so far
_FLAGS_APPLY = {"model": {"on_resize"}, "data": {"init_args.num_workers"}}


class AlreadyRead(SafeCheckpointIO):
    """Passes the ``checkpoint`` that was read from ``path`` to the Trainer, which would otherwise read it again."""

    def __init__(self, path: Path, checkpoint: dict[str, Any]) -> None:
        super().__init__()
        self._path = path
        self._checkpoint: dict[str, Any] | None = checkpoint

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint, self._checkpoint = self._checkpoint, None  # once: the Trainer changes what it is given
        if checkpoint is None or Path(path) != self._path:
            return super().load_checkpoint(path, map_location, weights_only)
        return checkpoint


def checkpoint_to_resume(asked: str, root: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return path and contents of the checkpoint that ``--resume`` or ``--resume PATH`` means.

    Args:
        asked: A checkpoint, a run's folder, or an empty string for the last run in ``root`` that has a checkpoint.
        root: The folder of runs ``run_1``, ``run_2``, …
    """
    if asked:
        run = Path(asked)
        if run.is_file():
            run = run.absolute()  # its run is found through the parents
            _check_configuration(run)
            return run, SafeCheckpointIO().load_checkpoint(run)
        if not run.is_dir():
            raise ValueError(f"there is nothing to resume: {shown(asked)} is neither a run's folder nor a checkpoint")
        runs = [run]
    else:
        found = [path for path in Path(root).glob("run_*") if _RUN.fullmatch(path.name) and path.is_dir()]
        if not found:
            raise ValueError(f"there is nothing to resume: {root} holds no run; start one without --resume")
        runs = sorted(found, key=lambda path: int(path.name.removeprefix("run_")), reverse=True)
    skipped = []
    for run in runs:
        try:
            path, checkpoint = read_newest(run / "checkpoints")
        except FileNotFoundError as error:
            skipped.append((run, error))
            continue
        _check_configuration(path)
        for without, reason in skipped:
            rank_zero_only(print)(f"{without} cannot be resumed: {reason}")
        return path, checkpoint
    run, reason = skipped[0]
    raise ValueError(f"there is nothing to resume in {run}: {reason}; start a new run without --resume")


def _check_configuration(checkpoint: Path) -> None:
    configuration = checkpoint.parent.parent / "config.yaml"
    if not configuration.is_file():
        raise ValueError(f"{checkpoint} cannot be resumed: there is no {configuration}, which says how it was trained")


def reconcile(saved: Namespace, given: Namespace) -> tuple[Namespace, list[str]]:
    """Return the configuration to continue with, and a sentence for every flag that differs from the run's.

    ``saved`` is the run's configuration, ``given`` the same, changed by the command line's flags.
    """
    said = []
    before, now = saved.as_flat().__dict__, given.as_flat().__dict__
    for name in sorted({*before, *now}):
        group, _, part = name.partition(".")
        old, new = before.get(name), now.get(name)
        if old == new or group in ("config", "resume"):
            continue
        if group not in _FLAGS_APPLY or part in _FLAGS_APPLY[group]:
            said.append(f"{name}: using {new} from the command line (run: {old})")
        else:
            said.append(f"{name}: using {old} from the run (command line: {new})")
    for group, free in _FLAGS_APPLY.items():
        kept = saved[group].clone()
        for part in free:
            if given[group].get(part) is not None:
                kept[part] = given[group][part]
        given[group] = kept
    return given, said


def check_hyperparameters(checkpoint: dict[str, Any], model: LightningModule, run: Path) -> None:
    """Refuse a run whose config.yaml was changed after the checkpoint was trained."""
    trained = hyperparameters(checkpoint)
    for name, value in dict(model.hparams).items():
        if name in trained and trained[name] != value and name not in _FLAGS_APPLY["model"]:
            raise CheckpointError(
                f"{run} was trained with {name}={shown(trained[name])} and its config.yaml says {shown(value)}: the "
                "checkpoint is right, correct config.yaml"
            )


def hyperparameters(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the model's hyperparameters in a checkpoint, which may come from anywhere."""
    values = checkpoint.get("hyper_parameters", {})
    network = values.get("network", {}) if isinstance(values, dict) else None
    sizes = network.get("init_args", {}) if isinstance(network, dict) else None
    if not isinstance(values, dict) or not isinstance(sizes, dict):
        raise CheckpointError(f"the checkpoint's hyper_parameters must be a dict of dicts, got {shown(values)}")
    # before a network of these sizes is built, which could be larger than the memory
    for name, weight, dimension in (("in_features", "fc1", 1), ("hidden", "fc1", 0), ("classes", "fc2", 0)):
        shape = getattr(checkpoint["state_dict"].get(f"network.{weight}.weight"), "shape", None)
        if name in sizes and (shape is None or len(shape) != 2 or shape[dimension] != sizes[name]):
            raise CheckpointError(
                f"the checkpoint's hyper_parameters say {name}={shown(sizes[name])}, its weights have the shape "
                f"{None if shape is None else tuple(shape)}"
            )
    return values


def check_progress(checkpoint: dict[str, Any], max_epochs: int | None, max_steps: int) -> str:
    """Return the options that would have to grow for the run to continue: it has done its epochs or its steps."""
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        steps = as_integer("global_step", checkpoint["global_step"], least=0)
        epochs = as_integer("processed", epochs, least=0)
    except (KeyError, TypeError, ValueError, IndexError):
        raise CheckpointError("the checkpoint does not say how many epochs and steps the run has done") from None
    if max_epochs is not None and -1 < max_epochs < epochs:
        raise ValueError(f"trainer.max_epochs must be at least the {epochs} epochs of the run, got {max_epochs}")
    reached = {"max_epochs": max_epochs == epochs, "max_steps": -1 < max_steps <= steps}
    return " ".join(f"--trainer.{name} N" for name, is_reached in reached.items() if is_reached)
