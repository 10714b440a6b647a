"""ExactResume: a resumed run equals the uninterrupted one in weights, batches, random numbers and LR.

Convention: a checkpoint is taken only between two updates and never inside an accumulation window. Where a validation
follows the batch it is taken after the validation, and after an epoch's last batch at the end of the epoch. Signals
wait for such a point.
"""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_integer, read_state, shown
from lit_cosine._compat import (
    forget_module,
    log_points_early,
    own_attributes,
    saves_shards,
    skip_finished_epoch,
    train_position,
    tree_leaves,
    validation_is_due,
)
from lit_cosine.checkpoint._best import Best
from lit_cosine.checkpoint._checkpoint_file import (
    CheckpointError,
    check_plain,
    link_checkpoint,
    local_path,
    write_errors,
)
from lit_cosine.checkpoint._finite import FiniteCheck
from lit_cosine.checkpoint._intervals import Intervals
from lit_cosine.checkpoint._process_state import ProcessState
from lit_cosine.checkpoint._run_folder import RunFolder
from lit_cosine.checkpoint._sampler import resumes_within_epoch
from lit_cosine.checkpoint._sharded import make_files_safe
from lit_cosine.checkpoint._signals import Signals

__all__ = ["ExactResume"]

_INSTEAD = (
    "where that cannot change, use ModelCheckpoint(save_last=True, every_n_train_steps=...) beside "
    "LearningRateScheduler and trainer.fit(..., ckpt_path=..., weights_only=False)"
)


class ExactResume(ModelCheckpoint):
    """Checkpoints to resume from exactly: ``Trainer(callbacks=[ExactResume("runs/a")]).fit(..., ckpt_path="last")``.

    Writes ``epoch=E-step=S.ckpt`` at the end of every epoch, and between updates on request. ``last.ckpt`` is the
    newest of them and ``best.ckpt`` the best. Each holds the random states of every process (torch, Python, numpy and
    the device's). A Trainer of ``pytorch_lightning`` needs the path, ``ckpt_path="runs/a/last.ckpt"``.

    Batches are exact if the train loader's sampler is an ``EpochSampler`` whose state the DataModule saves, as
    lit_cosine's own DataModules do. One thing is not exact: random numbers drawn in loader workers after a resume
    within an epoch.

    SIGTERM and Ctrl-C wait for the end of the update, save a checkpoint, and exit with status 143 and 130; a second
    signal does not wait. SLURM's requeue signal waits likewise. A loss or a weight that is nan or infinite stops the
    run before a checkpoint of it is saved; losses are looked at once a second and before each checkpoint, so that no
    update waits for the device. ``SafeCheckpointIO`` reads and writes the files, for test and predict too.

    Args:
        dirpath: A local folder for this run only. A new run is refused if the folder holds checkpoints of another.
        every_n_train_steps: Optimizer steps between checkpoints, >= 1; None for epoch ends only.
        train_time_interval: Time between checkpoints, such as ``"30min"``; None for no such checkpoints.
        every_n_epochs: Epochs between checkpoints, >= 1; the last epoch always saves one.
        monitor: The metric that decides which checkpoint is best, read at the end of an epoch; None for no best.
        mode: ``"min"`` or ``"max"``.
        keep: How many of the newest checkpoints to keep, >= 1, or -1 for all. The default of 2 lets
            ``ckpt_path="last"`` fall back to an older one if the newest file is damaged.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range. Before training: if hyperparameters could not be loaded again, the
            checkpoint is from another number of processes, or an EpochSampler's batch size is not its loader's.
        FileExistsError: Before training, if ``dirpath`` holds another run.
        FloatingPointError: If the loss or a weight is not finite; the message names epoch, step and LR.

    >>> callback = ExactResume("runs/a/checkpoints", every_n_train_steps=100)
    >>> ExactResume("runs/a/checkpoints", train_time_interval="5ep")
    Traceback (most recent call last):
    ValueError: train_time_interval must be a time > 0 such as "30min", got '5ep'
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
        if not isinstance(dirpath, (str, Path)):
            raise TypeError(f"dirpath must be a local folder, got {shown(dirpath)}")
        if "://" in str(dirpath):
            raise ValueError(f"dirpath must be a local folder, got {shown(dirpath)}")
        intervals = Intervals(every_n_train_steps, train_time_interval, every_n_epochs)
        if as_integer("keep", keep, least=-1) == 0:
            raise ValueError("keep must be an integer >= 1, or -1 for all, got 0")
        best = Best(monitor, mode)
        super().__init__(dirpath, monitor=monitor, mode=mode, save_last=True, save_top_k=0)
        self.keep = keep
        self._files = RunFolder(Path(str(self.dirpath)))
        self._intervals = intervals
        self._best = best
        self._process = ProcessState()
        self._signals = Signals()
        self._silence = contextlib.ExitStack()
        self._logger_failed = self._saves_nothing = self._save_after_validation = self._sharded = False
        self._finite = FiniteCheck(self._files.last)
        self._group: Any = None

    @property
    def state_key(self) -> str:
        """Independent of the arguments: a changed ``every_n_train_steps`` does not lose the state."""
        return type(self).__name__

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._files.path

    def __getstate__(self) -> dict[str, Any]:
        # a copy of the callback, among hyperparameters or in a spawned process, has no part in the run
        fresh = {"_process": ProcessState(), "_signals": Signals(), "_finite": FiniteCheck(self._files.last)}
        return {**own_attributes(self), **fresh, "_silence": contextlib.ExitStack(), "_group": None}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, "best": self._best.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (best := read_state("ExactResume", state_dict, {"best": None})["best"]) is None:
            return
        try:
            self._best.load_state_dict(best)
            if self._best.name is not None:
                self._set_best(self._best.value, self._files.checkpoint(self._best.name).name)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of ExactResume cannot be restored: {shown(best)}") from error

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        try:
            make_files_safe(trainer.strategy)
        except TypeError as error:
            raise TypeError(f"{error}; {_INSTEAD}") from None
        self._sharded = saves_shards(trainer.strategy)
        self._saves_nothing = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        super().setup(trainer, pl_module, stage)
        self._files.path = Path(str(self.dirpath))  # rank 0's: only that one knows the number of a new run

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._saves_nothing:
            return
        for owner in (pl_module, trainer.datamodule):  # type: ignore[attr-defined]
            if owner is not None and owner.hparams:
                try:
                    check_plain(dict(owner.hparams), f"{type(owner).__name__}'s hyperparameters")
                except CheckpointError as error:
                    raise CheckpointError(f"{error}; {_INSTEAD}") from None
        holder = trainer.strategy.broadcast(self._files.lock() if trainer.is_global_zero else None)
        if holder:
            raise BlockingIOError(
                f"{self.folder} is in use: {holder} is writing its checkpoints there; "
                "wait for its end, or choose another folder"
            )
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._refuse_to_mix(trainer)

    def _refuse_to_mix(self, trainer: Trainer) -> None:
        """Refuse a new run, once ``ckpt_path`` is known, in a folder that holds another's checkpoints."""
        fresh = trainer.ckpt_path is None and trainer.global_step == 0
        if found := trainer.strategy.broadcast(self._files.found() if fresh else None):
            # a Trainer of pytorch_lightning resolves "last" among callbacks of its own classes only
            last = "last" if self in trainer.checkpoint_callbacks else self._files.last
            raise FileExistsError(
                f"{self.folder} already holds a run's checkpoints ({found}): "
                f'resume it with ckpt_path="{last}" (--resume), or choose another folder'
            )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            self._process.load(trainer, checkpoint)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._process.save(trainer, pl_module, checkpoint)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the last hook before the first batch is fetched: nothing that is set up draws random numbers after it
        self._intervals.begin(trainer.global_step)
        self._signals.listen(trainer)
        self._finite = FiniteCheck(self._files.last)
        # a group on the CPU: processes agree at every update without waiting for their devices
        self._group = distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        if trainer.strategy.restore_checkpoint_after_setup and not self._saves_nothing:
            self._refuse_to_mix(trainer)  # only now such a strategy has a ckpt_path
        skip_finished_epoch(trainer)
        loaders = tree_leaves(trainer.train_dataloader)
        exact = all(resumes_within_epoch(loader) for loader in loaders)
        if not exact and not self._saves_nothing:
            rank_zero_warn(
                "batches after a resume within an epoch will not be those of the uninterrupted run: use "
                "torchdata.stateful_dataloader.StatefulDataLoader in place of DataLoader, or give every train loader "
                "sampler=EpochSampler(...) and generator=sampler.generator, and save its state in the DataModule"
            )
        _, batches = train_position(trainer)
        if batches > trainer.num_training_batches:
            raise ValueError(
                f"the checkpoint was saved after {batches} batches of its epoch, and an epoch has "
                f"{trainer.num_training_batches} now: resume from a checkpoint of an epoch's end"
            )
        self._find_best(trainer)
        if self._process.restore(trainer, pl_module, loaders, batches) and exact:
            # Lightning looks for a stateful loader, and warns although the sampler resumes
            self._silence.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._silence.close()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._finite.add(trainer, loss)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._process.after_batch(trainer, pl_module)
        step = trainer.global_step
        if not self._intervals.after_batch(step):
            return  # inside an accumulation window, whose gradients no checkpoint holds
        if trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches or step == trainer.max_steps:
            return  # a checkpoint taken here makes Lightning count this epoch twice; on_train_epoch_end saves it
        # a resumed FitLoop skips the validation of the batch that it resumes after (TrainingEpochLoop.advance)
        self._save_after_validation = validation_is_due(trainer)
        if not self._save_after_validation:
            self._save_or_stop(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._process.after_epoch()
        self._finite.losses(trainer)
        epoch = trainer.current_epoch
        ends = trainer.should_stop or trainer.global_step >= trainer.max_steps > 0
        self._intervals.after_epoch(epoch + 1, epoch + 1 if ends else trainer.max_epochs)
        self._save_or_stop(trainer, pl_module, epoch, self._best.improvement(trainer))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._best.validated(trainer)
        if self._save_after_validation:
            self._save_after_validation = False
            self._save_or_stop(trainer, pl_module, trainer.current_epoch)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a signal since the last checkpoint, for example while a figure was drawn in on_train_end
        self._stop_if(self._agree(trainer, False)[2], trainer, trainer.current_epoch - 1)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a signal during the module's on_train_end, which comes after the callbacks'; Lightning's teardown has then
        # restored the handlers of before the run
        self._stop_if(self._signals.stop_asked, trainer, trainer.current_epoch - 1)
        self._signals.forget()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._signals.forget()
        self._silence.close()
        self._files.release()
        forget_module(self)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._files.release()
        forget_module(self)
        if self._group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self._group)  # its threads may abort the interpreter at its end
        self._group = None

    def _save_or_stop(
        self, trainer: Trainer, pl_module: LightningModule, epoch: int, best: float | None = None
    ) -> None:
        elapsed, requeue, stop = self._agree(trainer, self._intervals.elapsed())
        wanted = self._intervals.due or elapsed or stop or best is not None
        if wanted and not self._saves_nothing:
            self._save(trainer, pl_module, f"epoch={epoch}-step={trainer.global_step}.ckpt", best)
            self._intervals.saved()
        if requeue:
            self._signals.requeue()
        self._stop_if(stop, trainer, epoch)

    def _stop_if(self, stop: int, trainer: Trainer, epoch: int) -> None:
        """End the run with the status of the signal ``stop``, if it is one."""
        if stop:
            name = signal.Signals(stop).name
            rank_zero_info(f"stopped by {name} at epoch {epoch}, step {trainer.global_step}: {self._files.last}")
            raise SIGTERMException(128 + stop) if stop == signal.SIGTERM else SystemExit(128 + stop)

    def _agree(self, trainer: Trainer, elapsed: bool) -> tuple[bool, bool, int]:
        """Return what any process was asked to do, so that all of them save and stop at the same step."""
        asked = [int(elapsed), int(self._signals.requeue_asked), self._signals.stop_asked]
        if self._group is not None:
            distributed.all_reduce(agreed := torch.tensor(asked), distributed.ReduceOp.MAX, self._group)
            asked = agreed.tolist()
        return bool(asked[0]), bool(asked[1]), asked[2]

    def _save(self, trainer: Trainer, pl_module: LightningModule, name: str, best: float | None) -> None:
        self._finite.losses(trainer)
        self._finite.weights(trainer, pl_module)
        if best is not None:
            self._set_best(best, name)
        # a run that resumes here logs nothing again of what comes before
        self._flush_loggers(trainer)
        # last.ckpt is written first: a run killed before the links are made can resume from it
        path = self._files.temporary(name) if self._sharded else self._files.last
        with write_errors(self.folder / name):
            trainer.save_checkpoint(path, weights_only=False)
            if trainer.is_global_zero:
                self._files.publish(name, sharded=self._sharded, best=best is not None)
        self.last_model_path = str(self._files.last)
        if trainer.is_global_zero:
            self._files.prune(self.keep, trainer.global_step, self._best.name)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)
        if self._sharded:
            trainer.strategy.barrier("ExactResume")  # every process waits until the folder has its name

    def _flush_loggers(self, trainer: Trainer) -> None:
        """Have the loggers write what they hold back; one that cannot is no reason to lose the checkpoint."""
        # before a validation within the epoch, Lightning has logged already
        writes: list[Callable[[], None]] = [partial(log_points_early, trainer)] if trainer.training else []
        writes += [logger.save for logger in trainer.loggers if trainer.is_global_zero]
        for write in writes:
            try:
                write()
            except Exception as error:
                if not self._logger_failed:
                    self._logger_failed = True
                    rank_zero_warn(f"a logger could not be saved before a checkpoint: {error}")

    def _find_best(self, trainer: Trainer) -> None:
        """Restore the files of the best checkpoint: a killed run may lack them, and another folder has none."""
        if self._best.name is None:
            return
        best = self._files.checkpoint(self._best.name)
        if trainer.is_global_zero:
            resumed = local_path(str(trainer.ckpt_path))
            # neither an address nor a folder of shards can be linked from another folder
            if not best.exists() and best.stem.endswith(f"-step={trainer.global_step}") and resumed.is_file():
                link_checkpoint(resumed, best)
            if best.exists():
                self._files.set_best(best)
        if not trainer.strategy.broadcast(best.exists()):
            self._set_best(None, None)

    def _set_best(self, value: float | None, name: str | None) -> None:
        self._best.value, self._best.name = value, name
        self.best_model_score = self.current_score = None if value is None else torch.tensor(value)
        self.best_model_path = "" if name is None else str(self._files.best)
