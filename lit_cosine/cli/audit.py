"""``lit-cosine audit``: the planned learning rate of a LightningCLI project's run, and its faults, without training.

Convention: data, model and Trainer are built as for a training, and the run is stopped before its first batch. Nothing
is written except the file that ``--output`` names. Callbacks that would train or write checkpoints are left out.
"""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Checkpoint, LearningRateFinder, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from typing_extensions import override

from lit_cosine._files import new_file
from lit_cosine.audit import ScheduleAudit, planned_points
from lit_cosine.audit import Situation as Plan
from lit_cosine.cli._lightning_cli import ArticleCLI, check_numbers
from lit_cosine.cli._parser import given, up_to_help, with_underscores
from lit_cosine.cli._process import in_one_process, quiet, refusing
from lit_cosine.cli._terminal import chart, of_stdout
from lit_cosine.cli._usage import HELP, configurations
from lit_cosine.monitors import schedule_curves

__all__ = ["audit"]

_LEFT_OUT = (BatchSizeFinder, LearningRateFinder, Checkpoint, ProgressBar, ModelSummary, ScheduleAudit)
_MOST_CURVES = 8


class _Audited(Exception):
    """Raised to stop a run before its first batch; the message is the exit status."""


class StopBeforeTraining(Callback):
    """Shows the plans of the ScheduleAudit before it, in the process of rank 0, and stops the run."""

    def __init__(self, audit: ScheduleAudit, output: Path | None) -> None:
        self.audit = audit
        self.output = output

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero:
            _show(self.audit, self.audit.audited, self.output)
        trainer.strategy.barrier()  # the first process that ends this way ends the others
        raise _Audited(_status(self.audit))


class _AnyCLI(LightningCLI):
    """LightningCLI for a model and a DataModule of any class, as the configuration names them."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__(
            save_config_callback=None,
            parser_kwargs={"prog": "lit-cosine audit", "exit_on_error": False, "allow_abbrev": False},
            args=list(arguments),
            run=False,
            load_from_checkpoint_support=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in ("ckpt_path", "output"):
            parser.add_argument(f"--{name}", type=str, default=None, help=HELP[name])

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(up_to_help(cast("list[str]", args)))
        check_numbers(self.config)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        listed = self.config_init["trainer"]["callbacks"] or []
        listed = listed if isinstance(listed, list) else [listed]
        kept = [callback for callback in listed if not isinstance(callback, _LEFT_OUT)]
        for callback in listed:
            if isinstance(callback, (BatchSizeFinder, LearningRateFinder)):
                print(f"{type(callback).__name__} is left out, because it trains: LR and batch size are as given")
        quietly = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        # LearningRateMonitor refuses a Trainer without a logger
        return super().instantiate_trainer(
            callbacks=kept, logger=DummyLogger(), num_sanity_val_steps=0, **quietly, **kwargs
        )


def audit(arguments: Sequence[str]) -> int:
    """Print the plan of a run, what is wrong with it and its curve; return 1 if something is an error."""
    arguments = with_underscores(arguments)
    with quiet(), refusing():
        cli = _AnyCLI(arguments) if _names_a_model(arguments) else ArticleCLI("audit", arguments)
        output = Path(cli.config["output"]) if cli.config["output"] else None
        if output is not None and output.suffix not in (".png", ".json"):
            raise ArgumentError(None, f"output must be a .png or .json file, got {output}")
        judge = ScheduleAudit("print")
        stop = StopBeforeTraining(judge, output)
        cli.trainer.callbacks = [*cli.trainer.callbacks, judge, stop]  # type: ignore[attr-defined]
        try:
            with in_one_process(_Audited):
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config["ckpt_path"])
        except _Audited as audited:
            return int(str(audited))
        _show(judge, [], output)  # of a run without a batch
    return _status(judge)


def _status(judge: ScheduleAudit) -> int:
    return int(any(finding.severity == "error" for finding in judge.findings))


def _show(judge: ScheduleAudit, plans: Sequence[Plan], output: Path | None) -> None:
    _draw(plans)
    if output is not None:
        _write(new_file(output), judge, plans)


def _names_a_model(arguments: Sequence[str]) -> bool:
    """Return whether the command line, or a configuration file on it, names the class of the model."""
    models = [content.get("model") for _, content in configurations(arguments)]
    named = (isinstance(model, str) or (isinstance(model, dict) and "class_path" in model) for model in models)
    return "--model" in dict(given(arguments)) or any(named)


def _draw(plans: Sequence[Plan]) -> None:
    """Print the planned LR of the first groups as a chart."""
    curves = {
        name: (lambda x, plan=plan, group=group: plan.trace.lr(x)[group])
        for plan in plans
        for group, name in enumerate(plan.names)
    }
    updates = max((plan.trace.updates for plan in plans), default=0)
    if updates and all(((used := plan.trace.used) >= 0).all() and (used < float("inf")).all() for plan in plans):
        print(chart(dict(list(curves.items())[:_MOST_CURVES]), updates, **of_stdout()))


def _write(path: Path, judge: ScheduleAudit, plans: Sequence[Plan]) -> None:
    if path.suffix == ".json":
        found = {"plan": [asdict(one) for one in judge.plan], "findings": [asdict(one) for one in judge.findings]}
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    else:
        curves = {name: points for plan in plans for name, points in planned_points(plan).items()}
        schedule_curves(curves, "Planned learning rate").savefig(path, dpi=120)
    print(f"Plan: {path}")
