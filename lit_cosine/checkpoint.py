"""ExactResume: the run after a crash is the run without it, in weights, batches, random numbers and LR.

Convention: a checkpoint is taken only between two updates, where nothing is under way: never inside an accumulation
window, and instead of after an epoch's last batch at the epoch's end, after validation. Signals wait for such a place.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lit_cosine.checkpoint_io import LAST, SafeCheckpointIO, check_plain, link_in_place
from lit_cosine.checks import as_integer
from lit_cosine.horizon import Duration
from lit_cosine.sampler import EpochSampler
from lit_cosine.signals import Signals

__all__ = ["ExactResume"]

BEST = "best.ckpt"
_KEY = "lit_cosine"


class ExactResume(ModelCheckpoint):
    """Checkpoints to resume from exactly: ``Trainer(callbacks=[ExactResume("runs/a")]).fit(…, ckpt_path="last")``.

    Writes ``epoch=E-step=S.ckpt`` at the end of every epoch, and between updates where asked to; ``last.ckpt`` is the
    newest of them and ``best.ckpt`` the best. A Trainer of ``pytorch_lightning`` does not know it by ``"last"``, but by
    its path, ``ckpt_path="runs/a/last.ckpt"``. Each holds the random states of every process (torch, Python, numpy and
    the device's). Batches are exact where the train loader's sampler is an ``EpochSampler`` whose state the DataModule
    keeps, as lit_cosine's own do. One thing is not exact: what loader workers draw after a resume within an epoch.

    SIGTERM and Ctrl-C wait for the end of the update, leave a checkpoint, and exit with status 143 and 130; a second
    one does not wait. SLURM's requeueing signal waits likewise. A loss or a weight that is nan or infinite stops the
    run before anything is saved of it. Files are written and read by ``SafeCheckpointIO``, for test and predict too.

    Args:
        dirpath: The run's own folder, local. A new run is refused where another's checkpoints are.
        every_n_train_steps: Optimizer steps between checkpoints, >= 1; None for the ends of epochs alone.
        train_time_interval: Time between checkpoints, such as ``"30min"``; None for none.
        every_n_epochs: Epochs between checkpoints, >= 1; the last epoch always leaves one.
        monitor: What the best is best by, as logged at the end of an epoch; None for no best.
        mode: ``"min"`` or ``"max"``.
        keep: How many of the newest checkpoints stay, >= 1, or -1 for all. 2 by default: where the newest is damaged
            on the disk, ``ckpt_path="last"`` falls back to the one before.

    Raises:
        TypeError: If ``train_time_interval`` is no duration.
        ValueError: If an argument is out of range; before training, if hyperparameters could not be loaded again, the
            checkpoint is one of another number of processes, or an EpochSampler has another batch size than its loader.
        FileExistsError: Before training, if ``dirpath`` holds another run.
        FloatingPointError: If the loss or a weight is not finite; the message names epoch, step and LR.

    >>> callback = ExactResume("runs/a/checkpoints", every_n_train_steps=100)
    >>> ExactResume("runs/a/checkpoints", train_time_interval="5ep")
    Traceback (most recent call last):
    ValueError: train_time_interval must be a time > 0 such as "30min", got "5ep"
    """

    def __init__(
        self,
        dirpath: str | Path = "checkpoints",
        every_n_train_steps: int | None = None,
        train_time_interval: str | timedelta | None = None,
        every_n_epochs: int = 1,
        monitor: str | None = "val/loss",
        mode: str = "min",
        keep: int = 2,
    ) -> None:
        if every_n_train_steps is not None:
            every_n_train_steps = as_integer("every_n_train_steps", every_n_train_steps, least=1)
        every_n_epochs = as_integer("every_n_epochs", every_n_epochs, least=1)
        if isinstance(keep, bool) or not isinstance(keep, int) or keep == 0 or keep < -1:
            raise ValueError(f"keep must be an integer >= 1, or -1 for all, got {keep!r}")
        if mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", got {mode!r}')
        if dirpath is None or "://" in str(dirpath):  # None is what ModelCheckpoint takes
            raise ValueError(f"dirpath must be a local folder, got {dirpath!r}")
        super().__init__(dirpath, monitor=monitor, mode=mode, save_last=True, save_top_k=0)
        self.keep = keep
        self._steps_between = every_n_train_steps
        self._seconds_between = _seconds(train_time_interval)
        self._epochs_between = every_n_epochs
        self._best: tuple[float, str] | None = None
        self._random_state: dict[str, Any] | None = None
        self._signals = Signals()
        self._silence = contextlib.ExitStack()
        self._due = self._validated = False
        self._steps_seen = 0
        self._saved_at = 0.0

    @property
    def state_key(self) -> str:
        """The same whatever the arguments: another ``every_n_train_steps`` does not lose the state."""
        return type(self).__name__

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(str(self.dirpath))

    def state_dict(self) -> dict[str, Any]:
        """Return the best so far: its value and its file's name."""
        return {"best": None if self._best is None else list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best so far."""
        if (best := state_dict.get("best")) is not None:
            self._set_best(float(best[0]), str(best[1]))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Bring the safe reading and writing of files along, for every stage."""
        present = trainer.strategy.checkpoint_io
        if type(present).__name__ == "TorchCheckpointIO":
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        elif not isinstance(present, SafeCheckpointIO):
            raise TypeError(f"ExactResume brings its own CheckpointIO: take {type(present).__name__} out of plugins")
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse, before training, what could not be resumed or would mix with another run."""
        if trainer.fast_dev_run:
            return
        for owner in (pl_module, trainer.datamodule):
            if owner is not None and owner.hparams:
                check_plain(dict(owner.hparams), f"{type(owner).__name__}'s hyperparameters")
        fresh = trainer.ckpt_path is None and trainer.global_step == 0
        if fresh and trainer.is_global_zero and (found := sorted(self.folder.glob("*.ckpt"))):
            # a Trainer of the other namespace looks for "last" among callbacks of its own classes alone
            last = "last" if self in trainer.checkpoint_callbacks else self.folder / LAST
            raise FileExistsError(
                f"{self.folder} already holds a run's checkpoints ({found[-1].name}): "
                f'resume it with ckpt_path="{last}" (--resume), or choose another folder'
            )

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take this process's random states out of the checkpoint."""
        if trainer.state.fn != "fit":
            return
        if (state := checkpoint.get(_KEY)) is None:
            rank_zero_warn("the checkpoint was made without ExactResume: it has no random states, the rest is resumed")
            return
        made_by = len(state["random"])
        if made_by != trainer.world_size:
            raise ValueError(
                f"the checkpoint was made by {made_by} processes and this run has {trainer.world_size}: batches and "
                f"random numbers would be others; resume with {made_by}, or start a new run from its weights"
            )
        self._random_state = state["random"][trainer.global_rank]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put every process's random states into the checkpoint."""
        mine = _random_state(pl_module.device)
        states = [mine]
        if trainer.world_size > 1:
            states = [{}] * trainer.world_size
            distributed.all_gather_object(states, mine)
        checkpoint[_KEY] = {"random": states}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the random states: after everything that is set up, before the first batch is fetched."""
        self._steps_seen, self._due, self._saved_at = trainer.global_step, False, time.monotonic()
        self._signals.listen(trainer)
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end and trainer.max_steps != -1:
            # under max_steps Lightning would go through the epoch that was finished once more, without a batch
            loop.reset_restart_stage()
            loop.epoch_loop.restarting = False
            loop.epoch_progress.increment_completed()
        exact = all(_resumes(loader) for loader in tree_leaves(trainer.train_dataloader))
        if not exact and not trainer.fast_dev_run:
            rank_zero_warn(
                "batches after a resume will not be those of the uninterrupted run: give every train loader "
                "sampler=EpochSampler(…) and generator=sampler.generator, and keep its state in the DataModule"
            )
        self._find_best(trainer)
        if self._random_state is not None:
            _set_random_state(self._random_state, pl_module.device)
            self._random_state = None
            if exact:  # Lightning cannot know that the sampler resumes, and says that it does not
                self._silence.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Let Lightning warn again."""
        self._silence.close()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Stop at a loss that is nan or infinite, before it reaches a weight."""
        if not torch.isfinite(loss).all():
            self._not_finite(trainer, f"the loss is {loss.detach().float().mean().item()}")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, and leave if a signal said so, if this batch completed an update and is not its epoch's last."""
        step = trainer.global_step
        if step == self._steps_seen:
            return  # inside an accumulation window: its gradients are in no checkpoint
        every = self._steps_between
        self._due |= every is not None and step // every > self._steps_seen // every
        self._steps_seen = step
        if trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches or step == trainer.max_steps:
            return  # Lightning would count this epoch twice; its end is near
        self._save_or_leave(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save, and leave if a signal said so."""
        epoch = trainer.current_epoch
        self._due |= (epoch + 1) % self._epochs_between == 0 or epoch + 1 == trainer.max_epochs
        self._save_or_leave(trainer, pl_module, epoch, self._improvement(trainer))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait for the end of the epoch."""
        self._validated |= not trainer.sanity_checking

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the signals back."""
        self._signals.forget()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the signals back; nothing is saved of a state that nobody knows."""
        self._signals.forget()
        self._silence.close()

    def _save_or_leave(self, trainer: Any, pl_module: Any, epoch: int, best: float | None = None) -> None:
        waited = self._seconds_between is not None and time.monotonic() - self._saved_at >= self._seconds_between
        waited, requeue, stop = self._agree(trainer, waited)
        if not trainer.fast_dev_run and (self._due or waited or stop or best is not None):
            self._save(trainer, pl_module, f"epoch={epoch}-step={trainer.global_step}.ckpt", best)
            self._due, self._saved_at = False, time.monotonic()
        if requeue:
            self._signals.requeue()
        if stop:
            name = signal.Signals(stop).name
            rank_zero_info(f"stopped by {name} at epoch {epoch}, step {trainer.global_step}: {self.folder / LAST}")
            raise SIGTERMException(128 + stop) if stop == signal.SIGTERM else SystemExit(128 + stop)

    def _agree(self, trainer: Any, waited: bool) -> tuple[bool, bool, int]:
        """Return what any process has to tell, so that all save and leave at the same step."""
        told = (int(waited), int(self._signals.requeue_asked), self._signals.stop_asked)
        if trainer.world_size > 1:
            told = trainer.strategy.reduce(torch.tensor(told, device=trainer.strategy.root_device), reduce_op="max")
        waits, requeue, stop = (int(value) for value in told)
        return bool(waits), bool(requeue), stop

    def _save(self, trainer: Any, pl_module: Any, name: str, best: float | None) -> None:
        for parameter_name, parameter in pl_module.named_parameters():
            if not torch.isfinite(parameter).all():
                self._not_finite(trainer, f"{parameter_name} holds nan or infinity")
        if best is not None:
            self._set_best(best, name)
        last = self.folder / LAST
        trainer.save_checkpoint(last, weights_only=False)  # first: a kill in between leaves no folder without a last
        self.last_model_path = str(last)
        if trainer.is_global_zero:
            link_in_place(last, self.folder / name)
            if best is not None:
                link_in_place(last, self.folder / BEST)
            self._prune()
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def _find_best(self, trainer: Any) -> None:
        """Find the best that was resumed: a kill may have come before its name, or it is in another run's folder."""
        if self._best is None:
            return
        best = self.folder / self._best[1]
        if trainer.is_global_zero:
            if not best.exists() and best.stem.endswith(f"-step={trainer.global_step}") and trainer.ckpt_path:
                link_in_place(Path(str(trainer.ckpt_path)), best)
            if best.exists():
                link_in_place(best, self.folder / BEST)
        if not trainer.strategy.broadcast(best.exists()):
            self._best, self.best_model_score, self.best_model_path = None, None, ""

    def _prune(self) -> None:
        if self.keep == -1:
            return
        paths = [
            path for path in self.folder.glob("epoch=*-step=*.ckpt") if self._best is None or path.name != self._best[1]
        ]
        paths.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in paths[: -self.keep]:
            path.unlink(missing_ok=True)

    def _improvement(self, trainer: Any) -> float | None:
        """Return the monitored value if it is the best so far."""
        if self.monitor is None:
            return None
        if self.monitor not in trainer.callback_metrics:
            if not self._validated:
                return None  # it may yet be logged
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            rank_zero_warn(f"monitor={self.monitor!r} was not logged, so there is no best; logged were: {logged}")
            self.monitor = None
            return None
        value = float(trainer.callback_metrics[self.monitor])
        if trainer.world_size > 1:  # where it was logged without sync_dist, every process has another
            mine = torch.tensor(value, device=trainer.strategy.root_device)
            value = float(trainer.strategy.reduce(mine, reduce_op="mean"))
        sign = 1.0 if self.mode == "min" else -1.0
        better = self._best is None or sign * value < sign * self._best[0]
        return value if better and math.isfinite(value) else None

    def _set_best(self, value: float, name: str) -> None:
        self._best = (value, name)
        self.best_model_score = self.current_score = torch.tensor(value)
        self.best_model_path = str(self.folder / BEST)

    def _not_finite(self, trainer: Any, what: str) -> None:
        rates = ", ".join(f"{float(group['lr']):g}" for opt in trainer.optimizers for group in opt.param_groups)
        last = self.folder / LAST
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was taken yet"
        raise FloatingPointError(
            f"{what} at epoch {trainer.current_epoch}, step {trainer.global_step}, with LR {rates}: stopped; {kept}"
        )


def _seconds(interval: str | timedelta | None) -> float | None:
    if interval is None:
        return None
    if isinstance(interval, timedelta):
        seconds = interval.total_seconds()
    else:
        duration = Duration.parse(interval, "train_time_interval")
        seconds = duration.value if duration.unit == "s" else 0.0
    if seconds <= 0.0:
        raise ValueError(f'train_time_interval must be a time > 0 such as "30min", got "{interval}"')
    return seconds


def _resumes(loader: Any) -> bool:
    """Return whether ``loader`` goes on within an epoch; of one of somebody's own its state is believed."""
    if not isinstance(loader, DataLoader):
        return hasattr(loader, "load_state_dict")
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if not isinstance(sampler, EpochSampler):
        return False
    size = getattr(loader.batch_sampler, "batch_size", 1)
    if size != sampler.batch_size:  # its position is counted in these
        raise ValueError(f"EpochSampler.batch_size must be the loader's, which is {size}, got {sampler.batch_size}")
    return loader.generator is not None


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return this process's random states, as plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)
