"""Private and undocumented names of torch, Lightning and TensorBoard, each behind one function.

Convention: a function says what it reads, where it was last seen (torch 2.13, lightning 2.6.6, tensorboard 2.21 unless
it says otherwise), and what it returns where the name is gone. No other module of the package touches such a name; a
test looks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch._ops import OpOverload

__all__ = [
    "attached_datamodule", "batches_that_stepped", "callbacks_of", "child_schedulers", "closed_form_lrs",
    "combined_mode", "evaluating", "file_writer", "finder_sets_lr", "forget_module", "gradient_scale", "has_class",
    "has_step_hooks", "in_place", "is_fast_dev_run", "is_local", "is_operator", "last_written_lrs",
    "log_every_n_steps", "log_points_early", "logged_metrics", "logger_prefix", "loop_progress", "mark_step_called",
    "milestones_of", "moved_to_device", "operator_arguments", "operator_makes_view", "operator_mutates",
    "optimizer_steps_begun", "own_attributes", "restart_iterators", "same_overload", "saves_shards",
    "skip_finished_epoch", "step_was_called", "tensor_version", "timer_seconds", "train_dataloader", "train_position",
    "tree_leaves", "uses_distributed_sampler", "validation_is_due",
]  # fmt: skip


# --- torch ---


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts. Reads ``torch.utils._pytree.tree_leaves``."""
    return _pytree.tree_leaves(tree)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold ``module`` in evaluation mode and without gradients, then give each of its modules its own mode back.

    ``module.train()`` would also switch modules to training that are frozen. Sets ``Module.training``.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def tensor_version(tensor: Tensor) -> int:
    """Return how often ``tensor`` was written in place. Reads ``Tensor._version``; -1 without it: always unknown."""
    return getattr(tensor, "_version", -1)


def step_was_called(optimizer: Optimizer) -> bool:
    """Return whether ``optimizer.step`` may have been called under a scheduler.

    Reads ``_wrapped_by_lr_sched`` of the patched ``step`` and ``_opt_called``, which every ``LRScheduler`` sets. A copy
    or a pickle has lost the patch; then the answer is True, as nothing is known.
    """
    patched = hasattr(optimizer.step, "_wrapped_by_lr_sched")
    return not patched or bool(getattr(optimizer, "_opt_called", False))


def mark_step_called(optimizer: Optimizer) -> None:
    """Have schedulers of ``optimizer`` believe that it has stepped. Sets ``_opt_called``; harmless without it."""
    optimizer._opt_called = True  # type: ignore[attr-defined]


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether hooks can be registered on ``optimizer``.

    Reads ``_optimizer_step_pre_hooks``, which ``Optimizer.__init__`` makes; a wrapper that skips it has none.
    """
    return hasattr(optimizer, "_optimizer_step_pre_hooks")


def last_written_lrs(scheduler: Any) -> list[float] | None:
    """Return what ``scheduler`` wrote last. Reads ``LRScheduler._last_lr``; None where there is none."""
    written = getattr(scheduler, "_last_lr", None)
    return None if written is None else [float(lr) for lr in written]


def child_schedulers(scheduler: Any) -> list[Any]:
    """Return the schedulers inside a SequentialLR or ChainedScheduler. Reads ``_schedulers``; empty without it."""
    return list(getattr(scheduler, "_schedulers", None) or ())


def milestones_of(scheduler: Any) -> list[int] | None:
    """Return the milestones of a SequentialLR. Reads ``_milestones``; None without it."""
    milestones = getattr(scheduler, "_milestones", None)
    return None if milestones is None else list(milestones)


def closed_form_lrs(scheduler: Any) -> Callable[[], Sequence[Any]] | None:
    """Return what computes the LRs at ``scheduler.last_epoch``. Reads ``_get_closed_form_lr``; None without it."""
    return getattr(scheduler, "_get_closed_form_lr", None)


# The stacked engine of comparisons walks a traced graph, whose operators have no documented description.


def is_operator(target: object) -> TypeIs[OpOverload]:
    """Return whether a graph node's target is one overload of an ATen operator: a ``torch._ops.OpOverload``."""
    return isinstance(target, type(torch.ops.aten.add.Tensor))


def operator_arguments(operator: Any) -> list[Any]:
    """Return the arguments of an operator, each with ``name``, ``type`` and ``is_out``. Reads ``_schema.arguments``."""
    return list(operator._schema.arguments)


def operator_mutates(operator: Any) -> bool:
    """Return whether an operator writes to an argument. Reads ``_schema.is_mutable``."""
    return bool(operator._schema.is_mutable)


def operator_makes_view(operator: Any) -> bool:
    """Return whether an operator's result is a view of its first argument.

    Reads ``_schema.returns`` and ``alias_info``. ``aten._unsafe_view``, which autograd writes for ``reshape``, is one,
    and its schema does not show it.
    """
    returns = operator._schema.returns
    aliased = bool(returns) and returns[0].alias_info is not None and not operator_mutates(operator)
    return aliased or operator is torch.ops.aten._unsafe_view.default


def same_overload(packet: Any, operator: Any) -> Any:
    """Return the overload of ``packet`` that is named as ``operator``, or None. Reads ``_overloadname``."""
    return getattr(packet, operator._overloadname, None)


def in_place(operation: Literal["addcmul_", "mul_"], targets: list[Tensor], *operands: list[Tensor]) -> None:
    """Apply a tensor's method to every target. Calls ``torch._foreach_addcmul_`` etc.; a loop without it."""
    if hasattr(torch, f"_foreach_{operation}"):
        getattr(torch, f"_foreach_{operation}")(targets, *operands)
    else:
        for target, *own in zip(targets, *operands, strict=True):
            getattr(target, operation)(*own)


# --- Lightning ---


def attached_datamodule(trainer: Trainer) -> Any:
    """Return the DataModule whose loaders this call of ``fit``, ``test`` etc. uses; None if it was given loaders.

    Reads ``_data_connector._datahook_selector.datamodule``; ``trainer.datamodule`` without it, which still holds the
    DataModule of an earlier call.
    """
    selector = getattr(getattr(trainer, "_data_connector", None), "_datahook_selector", None)
    return getattr(selector or trainer, "datamodule", None)


def has_class(thing: Any, name: str) -> bool:
    """Return whether ``thing`` is of a class of that name, from ``lightning`` or ``pytorch_lightning``."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def callbacks_of(trainer: Trainer, *classes: str) -> list[Any]:
    """Return the Trainer's callbacks, or those of one of ``classes``. Reads ``callbacks``, which is not declared."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [one for one in callbacks if not classes or any(has_class(one, name) for name in classes)]


_OF_THE_RUN = ("log", "log_dict")  # the module's methods, which lightning 2.6.6 sets on every callback of a run


def own_attributes(callback: Any) -> dict[str, Any]:
    """Return a callback's attributes without those that Lightning has set."""
    return {name: value for name, value in vars(callback).items() if name not in _OF_THE_RUN}


def forget_module(callback: Any) -> None:
    """Remove the attributes that Lightning has set on a callback: through them it would hold the module and Trainer."""
    for name in _OF_THE_RUN:
        vars(callback).pop(name, None)


def log_every_n_steps(trainer: Trainer) -> int:
    """Return the Trainer's ``log_every_n_steps``, undeclared as well; 0 where nothing is logged."""
    return int(trainer.log_every_n_steps or 0)  # type: ignore[attr-defined]


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Return whether the run makes a few batches only. Reads ``fast_dev_run``, undeclared; False without it."""
    return bool(getattr(trainer, "fast_dev_run", False))


def train_dataloader(trainer: Trainer) -> Any:
    """Return a new train dataloader, without setting up the Trainer's own.

    Reads ``fit_loop._data_source.dataloader()``. ``trainer.estimated_stepping_batches`` would set the loaders up before
    the loops are restored, and a stateful loader would lose its position (Lightning issue 20550).
    """
    return trainer.fit_loop._data_source.dataloader()


def combined_mode(loader: Any) -> str:
    """Return the mode of a CombinedLoader. Reads ``_mode``; ``"max_size_cycle"`` of any other loader, its default."""
    return str(getattr(loader, "_mode", "max_size_cycle"))


def uses_distributed_sampler(trainer: Trainer) -> bool:
    """Return the Trainer's ``use_distributed_sampler``. Reads ``_accelerator_connector``; True without it."""
    return bool(getattr(getattr(trainer, "_accelerator_connector", None), "use_distributed_sampler", True))


def batches_that_stepped(trainer: Trainer) -> int:
    """Return the count that ``log_every_n_steps`` is held against.

    Reads ``fit_loop.epoch_loop._batches_that_stepped``; ``global_step`` without it, which is equal under one optimizer.
    """
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", trainer.global_step))


def optimizer_steps_begun(trainer: Trainer) -> int:
    """Return the number of optimizer steps begun under automatic optimization, including a step that is not finished.

    Reads ``fit_loop.epoch_loop.automatic_optimization.optim_progress``, whose classes are documented and whose place is
    not. ``trainer.global_step`` counts a step only after its optimizer has returned.
    """
    return int(trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.ready)


def logged_metrics(trainer: Trainer) -> dict[str, Any]:
    """Return key -> metric of what training has logged in this epoch as a number with ``on_epoch=True``.

    Reads ``epoch_loop._results`` and of each metric ``is_tensor`` and ``meta``; the caller reads and sets ``value`` and
    ``cumulated_batch_size``. Empty without the names.
    """
    results = getattr(trainer.fit_loop.epoch_loop, "_results", None) or {}
    return {key: metric for key, metric in results.items() if metric.is_tensor and metric.meta.on_epoch}


def log_points_early(trainer: Trainer) -> None:
    """In ``on_train_batch_end`` or ``on_train_epoch_end``, write the points that Lightning would write after that hook.

    Calls ``update_train_step_metrics`` or ``update_train_epoch_metrics`` of ``_logger_connector`` as the loops do, and
    empties ``_forward_cache``, so that Lightning finds nothing to write then. An AttributeError without the names.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    trainer.callback_metrics, trainer.progress_bar_metrics  # noqa: B018 (to read them keeps their values)
    if connector._first_loop_iter is None:  # the epoch has ended
        loop._batches_that_stepped -= 1
        try:
            connector.update_train_epoch_metrics()
        finally:
            loop._batches_that_stepped += 1
    elif connector.should_update_logs:
        connector.update_train_step_metrics()
        for metric in loop._results.values():
            metric._forward_cache = None


def loop_progress(trainer: Trainer) -> tuple[Any, Any]:
    """Return the progress of training's epochs and of its batches.

    Reads ``fit_loop.epoch_progress`` and ``fit_loop.epoch_loop.batch_progress``, whose classes are documented and whose
    ``processed`` is not declared.
    """
    return trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress


def train_position(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch that training is in, and how many of its batches were trained.

    Between two epochs the progress of batches still counts the finished one's. A resumed FitLoop continues with
    ``processed``: a batch that was fetched or has raised is not in it, and one whose ``on_train_batch_end`` is running
    is.
    """
    epochs, batches = loop_progress(trainer)
    epoch = int(epochs.current.processed)
    return epoch, int(batches.current.processed) if epochs.current.ready > epoch else 0


def validation_is_due(trainer: Trainer) -> bool:
    """In ``on_train_batch_end``, return whether Lightning will run validation after this batch.

    Reads ``epoch_loop._should_check_val_fx``, ``val_loop`` and ``fit_loop._data_fetcher``. The loader of the validation
    is set up first, as ``val_loop.run`` would: without batches it returns before its hooks. False without the names.
    """
    loop = trainer.fit_loop.epoch_loop
    due = getattr(loop, "_should_check_val_fx", None)
    if due is None or not due(trainer.fit_loop._data_fetcher):
        return False
    trainer.validating = True
    loop.val_loop.setup_data()
    trainer.training = True
    return not loop.val_loop.skip


def restart_iterators(trainer: Trainer) -> None:
    """In ``on_train_start`` of a run resumed at the end of an epoch, have Lightning call ``iter`` on its loaders again.

    Lightning calls it when it sets the loaders up, before any hook, so that the random numbers that ``iter`` draws are
    others than in the uninterrupted run. Sets ``fit_loop._resuming_from_checkpoint``, on which
    ``TrainingEpochLoop.on_run_start`` decides; without it the order of a plain DataLoader differs after a resume.
    """
    trainer.fit_loop._resuming_from_checkpoint = False


def saves_shards(strategy: Any) -> bool:
    """Return whether ``strategy`` saves a folder of shards.

    Reads ``ModelParallelStrategy._save_distributed_checkpoint`` and ``FSDPStrategy._state_dict_type``; False without.
    """
    sharded = bool(getattr(strategy, "_save_distributed_checkpoint", False))
    return sharded or getattr(strategy, "_state_dict_type", "full") == "sharded"


def skip_finished_epoch(trainer: Trainer) -> None:
    """In ``on_train_start`` of a resumed run, move on from an epoch that the checkpoint had finished.

    Under ``max_steps`` Lightning would otherwise run that epoch again with one batch (``FitLoop.restarting`` is always
    True there, and ``FitLoop.reset`` moves on only where it is False). Reads ``fit_loop.restarted_on_epoch_end``, sets
    ``epoch_loop.restarting`` and ``epoch_progress``.
    """
    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end and trainer.max_steps != -1:
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False
        loop.epoch_progress.increment_completed()


def timer_seconds(timer: Any) -> float | None:
    """Return the ``max_time`` of a Timer in seconds, None without a limit.

    Reads ``_duration``; without it the sum of ``time_elapsed()`` and ``time_remaining()``, two readings of the clock.
    """
    if hasattr(timer, "_duration"):
        return None if timer._duration is None else float(timer._duration)
    remaining = timer.time_remaining()
    return None if remaining is None else float(remaining + timer.time_elapsed())


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> Tensor | float:
    """In ``on_before_optimizer_step``, return the factor by which a GradScaler has made the gradients larger.

    Lightning has unscaled them by then, except those of a fused optimizer, which does it in its kernel. Reads
    ``precision_plugin.scaler``, ``GradScaler._scale``, a tensor that ``get_scale()`` would wait for, and
    ``Optimizer._step_supports_amp_scaling``; 1 without one of them.
    """
    scale = getattr(getattr(trainer.precision_plugin, "scaler", None), "_scale", None)
    return 1.0 if scale is None or not getattr(optimizer, "_step_supports_amp_scaling", False) else scale


def finder_sets_lr(finder: Any) -> bool:
    """Return whether a LearningRateFinder sets the LR that it finds. Reads ``_update_attr``; True without it."""
    return bool(getattr(finder, "_update_attr", True))


def logger_prefix(logger: Any) -> str:
    """Return what a logger puts before every tag. Reads ``_prefix``; empty without it."""
    return str(getattr(logger, "_prefix", "") or "")


def is_local(path: str | Path) -> bool:
    """Return whether ``path`` is on a local filesystem. Reads ``cloud_io._is_local_file_protocol``."""
    from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

    return bool(_is_local_file_protocol(path))


def moved_to_device(pl_module: LightningModule, batch: Any) -> Any:
    """Return ``batch`` as Lightning hands it to a step of ``pl_module``.

    Reads ``_on_before_batch_transfer`` and ``_apply_batch_transfer_handler``.
    """
    return pl_module._apply_batch_transfer_handler(pl_module._on_before_batch_transfer(batch))


# --- TensorBoard ---


def file_writer(writer: Any) -> Any:
    """Return the file writer of a SummaryWriter. Reads ``_get_file_writer``; None in a process that writes nothing."""
    return writer._get_file_writer()
