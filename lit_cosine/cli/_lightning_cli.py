"""LightningCLI as the commands ``train``, ``test`` and ``predict`` use it.

Convention: a run is one new folder under ``--trainer.default_root_dir`` with its logs, checkpoints, figure and
configuration. Nothing that is already there is changed.
"""

from __future__ import annotations

import shutil
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    LearningRateFinder,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lit_cosine._checks import as_integer, shown
from lit_cosine._files import WriterLock, new_file
from lit_cosine.audit import ScheduleAudit
from lit_cosine.checkpoint import ExactResume, SafeCheckpointIO
from lit_cosine.cli._event_files import SteadyTensorBoardLogger
from lit_cosine.cli._parser import given, group_help, one_sentence, up_to_help, with_name_hint, with_underscores
from lit_cosine.cli._resume import (
    AlreadyRead,
    check_hyperparameters,
    check_progress,
    checkpoint_to_resume,
    hyperparameters,
    reconcile,
)
from lit_cosine.cli._shell import command_line
from lit_cosine.cli._trust import check_trusted
from lit_cosine.cli._usage import HELP, OF_TRAIN
from lit_cosine.dashboard import Dashboard
from lit_cosine.example import LitClassifier, TabularDataModule, check_network
from lit_cosine.monitors import EpochLine, LearningRateLogger, SteadyProgressBar, TrainingCurves

__all__ = ["ArticleCLI", "RunComplete", "check_numbers", "restored", "run_of"]

_MOST_DEVICES = 1024
"""Devices of one node; Lightning makes a list of as many as are asked for."""

_TRAINER = {"max_epochs": 10, "default_root_dir": "runs", "log_every_n_steps": 1, "enable_model_summary": False}


class RunComplete(Exception):
    """The run that ``--resume`` means has done all its epochs or steps; the message says what would train on."""


class ArticleCLI(LightningCLI):
    """LightningCLI with the sizes of the network linked to the data, and a folder for each run.

    ``root`` is the folder of runs. ``made`` is the folder of a new run, in the process that made it; ``resumed`` is the
    folder of the run that is continued.
    """

    def __init__(self, command: str, arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> None:
        self._command = command
        self._arguments = arguments
        self._callbacks = callbacks
        # of the command line alone: a configuration cannot vouch for itself
        self._trusts = "--trust" in arguments
        self.root: str | Path = "."
        self.made: Path | None = None
        self.resumed: Path | None = None
        super().__init__(
            LitClassifier,
            TabularDataModule,
            save_config_callback=_SaveConfig if command == "train" else None,
            trainer_defaults=dict(_TRAINER),
            seed_everything_default=42,
            parser_kwargs={"prog": f"lit-cosine {command}", "exit_on_error": False, "allow_abbrev": False},
            subclass_mode_data=True,
            args=_with_data_class([argument for argument in with_underscores(arguments) if argument != "--trust"]),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, path in (("data", "SyntheticDataModule"), ("model.network", "SimpleNN")):
            parser.set_defaults({name: {"class_path": f"lit_cosine.{path}"}})
        for size, source in (("in_features", "num_features"), ("classes", "num_classes")):
            parser.link_arguments(f"data.{source}", f"model.network.init_args.{size}", apply_on="instantiate")
        # of every command, which may be given the configuration of a training
        actions = Literal["warn", "raise", "print", "off"]
        parser.add_argument("--audit", type=actions, default="warn", help=HELP["audit"])
        parser.add_argument("--threads", type=int | None, default=None, help=HELP["threads"])
        parser.add_argument("--trust", action="store_true", help=HELP["trust"])
        if self._command == "train":
            parser.add_class_arguments(ExactResume, "checkpoint", skip={"dirpath"}, instantiate=False)
            parser.set_defaults({"checkpoint.monitor": "val/loss"})
            parser.add_argument("--resume", nargs="?", type=str, const="", default=None, help=HELP["resume"])
        else:
            parser.add_argument("--ckpt_path", type=str, default=None, help=HELP["ckpt_path"])
            for name in OF_TRAIN:  # a run's config.yaml has them
                parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
        if self._command in ("predict", "audit"):
            parser.add_argument("--output", type=str, default=None, help=HELP["output"])

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        line = cast("list[str]", args)
        for argument in line:
            if argument.startswith("--help."):
                print(group_help(parser, argument.removeprefix("--help.")))
                raise SystemExit(0)
        try:
            self.config = parser.parse_args(up_to_help(line))
        except ArgumentError as error:
            options = list(vars(parser.get_defaults().as_flat()))
            raise ArgumentError(None, with_name_hint(one_sentence(str(error)), options)) from None
        self.config.pop("trust", None)  # stays out of the run's config.yaml
        check_numbers(self.config)
        self.ckpt_path, self.output = self.config.get("ckpt_path"), self.config.get("output")
        if self.config["trainer"]["barebones"]:  # writes nothing, and Lightning refuses a logging interval beside it
            self.save_config_callback, self.config["trainer"]["log_every_n_steps"] = None, None
        threads = self.config["threads"]
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be an integer >= 1, got {threads}")
        if self.config.get("resume") is not None:
            self._continue_run(parser, line)

    def _continue_run(self, parser: LightningArgumentParser, line: list[str]) -> None:
        """Take the configuration of the run that ``--resume`` means, changed by the flags."""
        root = self.config["trainer"]["default_root_dir"] or "."
        path, self.checkpoint = checkpoint_to_resume(self.config["resume"], root)
        self.ckpt_path, self.resumed = str(path), path.parent.parent
        if not self._trusts:
            check_trusted(self.resumed / "config.yaml")
        of_the_run = ["--config", str(self.resumed / "config.yaml")]
        self.config, said = reconcile(parser.parse_args(of_the_run), parser.parse_args([*of_the_run, *line]))
        self.config["resume"] = None
        self.config.pop("trust", None)
        rank_zero_only(print)("\n".join([f"Resume: {path}", *said]))
        self.save_config_callback = _SaveChangedConfig if said else None

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init["trainer"]
        self.root = config["default_root_dir"] or "."
        bar = config["enable_progress_bar"]
        bar = self._command == "train" and sys.stdout.isatty() if bar is None else bar
        kwargs["enable_progress_bar"] = bar
        listed = config["callbacks"] or []
        listed = listed if isinstance(listed, list) else [listed]
        if self._command != "train":
            # those that train, or refuse a Trainer without a logger or checkpoints
            left_out = (BatchSizeFinder, Checkpoint, LearningRateFinder, LearningRateMonitor)
            kept = [callback for callback in listed if not isinstance(callback, left_out)]
            return super().instantiate_trainer(callbacks=kept, logger=False, enable_checkpointing=False, **kwargs)
        max_epochs = config["max_epochs"]
        if max_epochs is not None and (max_epochs == 0 or max_epochs < -1):
            raise ValueError(f"trainer.max_epochs must be >= 1, or -1 for no limit, got {max_epochs}")
        # LitClassifier checks this in setup too, but by then a folder of the run is there
        check_network(self.model, self.datamodule.num_features, self.datamodule.num_classes)
        if self.resumed is not None:
            check_hyperparameters(self.checkpoint, self.model, self.resumed)
            if larger := check_progress(self.checkpoint, max_epochs, config["max_steps"]):
                best = self.resumed / "checkpoints" / "best.ckpt"
                tested = command_line("test", "--ckpt_path", best if best.is_file() else self.ckpt_path)
                on = command_line("train", "--resume", self.resumed, *larger.split(), "--model.on_resize", "restart")
                raise RunComplete(f"{self.resumed} is complete. To test it: {tested}. To train on: {on}")
        extra: list[Callback] = list(self._callbacks)
        if bar and not any(isinstance(callback, ProgressBar) for callback in listed):
            extra.append(SteadyProgressBar())
        if not config["barebones"]:
            folder = self._run_folder()
            kwargs["default_root_dir"] = folder
            if config["logger"] in (None, True):
                kwargs["logger"] = SteadyTensorBoardLogger(
                    folder, name="", version="", default_hp_metric=False, max_queue=1000
                )
            listed_types = {type(callback) for callback in listed}
            monitors = [callback for callback in self._monitors() if type(callback) not in listed_types]
            extra = [*extra, EpochLine(), *self._audit(listed), *monitors]
            if config["enable_checkpointing"] is not False:
                settings = dict(self.config_init["checkpoint"].items())
                if config["limit_val_batches"] == 0:
                    settings["monitor"] = None
                extra.append(ExactResume(folder / "checkpoints", **settings))
        self.trainer_defaults["callbacks"] = extra
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except BaseException as error:  # Ctrl-C too
            if self.made is not None:
                shutil.rmtree(self.made, ignore_errors=True)
            if isinstance(error, RuntimeError):  # Lightning's, of a callback that is listed twice
                raise ValueError(str(error)) from error
            raise
        if self.resumed is not None:
            trainer.strategy.checkpoint_io = AlreadyRead(Path(str(self.ckpt_path)), self.checkpoint)
        return trainer

    def _run_folder(self) -> Path:
        """Return the folder of the run that is continued, or a new one."""
        if self.resumed is not None:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                self._refuse_a_second_writer(self.resumed / "checkpoints")
            return self.resumed
        folder = _new_folder(Path(self.root))
        self.made = folder if rank_zero_only.rank == 0 else None  # type: ignore[attr-defined]
        return folder

    def _refuse_a_second_writer(self, folder: Path) -> None:
        """Refuse what ExactResume refuses too, but only after the loggers have begun new files in the run."""
        lock = WriterLock()
        if holder := lock.acquire(folder / ".lock"):
            raise ValueError(f"{folder} is in use: {holder} is writing its checkpoints there; wait for its end")
        lock.release()

    def _audit(self, listed: Sequence[Any]) -> list[Callback]:
        """Return the ScheduleAudit that ``--audit`` asks for, where no callback of the user's is one."""
        audits = [callback for callback in listed if isinstance(callback, ScheduleAudit)]
        if audits and self.config["audit"] == "raise":
            audits[0].on_problem = "raise"
        return [] if audits or self.config["audit"] == "off" else [ScheduleAudit(self.config["audit"])]

    def _monitors(self) -> list[Callback]:
        command = command_line(self._command, *self._arguments)
        dashboard = Dashboard(command, self.parser.dump(self.config, skip_none=False))
        return [LearningRateLogger(loss_tag="train/loss_step"), dashboard, TrainingCurves()]


class _SaveConfig(SaveConfigCallback):
    """Writes the configuration once: the processes of ``ddp_fork`` that test have not seen that it was written."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class _SaveChangedConfig(SaveConfigCallback):
    """Writes the configuration of a resumed run when training starts, and keeps the old one beside it.

    Lightning's own callback writes in ``setup``, before the checkpoint is restored, which may still refuse the run.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...

    @override
    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "config.yaml"
        shutil.copy(path, new_file(path))
        self.parser.save(self.config, str(path), skip_none=False, overwrite=True)


def check_numbers(config: Namespace) -> None:
    """Refuse integers that no counter holds, and intervals of nothing, which Lightning does not look at."""
    for name, value in vars(config.as_flat()).items():
        counts = isinstance(value, int) or (isinstance(value, float) and name.endswith("_batches"))
        if counts and not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} must be below 2**63, got {shown(value)}")
    devices = config["trainer"]["devices"]
    with suppress(TypeError, ValueError):  # "auto", "0,1", [0, 1]
        devices = int(devices)
    if isinstance(devices, int) and devices > _MOST_DEVICES:
        raise ValueError(f"trainer.devices must be at most {_MOST_DEVICES:,}, got {shown(devices)}")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := config["trainer"][name]) is not None:
            as_integer(f"trainer.{name}", value, least=1)


def restored(command: str, arguments: Sequence[str]) -> tuple[ArticleCLI, LitClassifier]:
    """Return the command line and the model of its ``--ckpt_path``, by default with its run's configuration."""
    arguments = with_underscores(arguments)
    options = dict(given(arguments))
    if "--ckpt_path" in options and not {"-c", "--config"} & {*options}:
        config = run_of(options["--ckpt_path"]) / "config.yaml"
        if config.is_file():
            if "--trust" not in arguments:
                check_trusted(config)
            arguments = ["--config", str(config), *arguments]
    cli = ArticleCLI(command, arguments)
    if cli.ckpt_path is None:
        raise ValueError(f"ckpt_path must name a checkpoint: lit-cosine {command} --ckpt_path FILE")
    checkpoint = SafeCheckpointIO().load_checkpoint(cli.ckpt_path)
    own = hyperparameters(checkpoint).get("network", {})
    network = {} if "init_args" in own else {"network": cli.model.network}
    return cli, LitClassifier.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True, **network)


def run_of(ckpt_path: str) -> Path:
    """Return the folder of the run that wrote ``<run>/checkpoints/<name>.ckpt``."""
    return Path(ckpt_path).absolute().parent.parent


def _with_data_class(arguments: Sequence[str]) -> list[str]:
    """Return the arguments; ``--data.dataset`` implies the DataModule that has it."""
    options = dict(given(arguments))
    asked = {"--data.dataset", "--data.init_args.dataset"} & {*options} and "--data" not in options
    return ["--data", "lit_cosine.TabularDataModule", *arguments] if asked else list(arguments)


def _new_folder(root: Path) -> Path:
    """Return a new folder ``run_1``, ``run_2``, … in ``root``; two runs that begin at once get different ones."""
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return root  # rank 0 has made the folder and is the only one that writes
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = root / f"run_{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            break
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir must be a folder that can be written to, got {root}: {error.strerror}"
        ) from error
    return folder
