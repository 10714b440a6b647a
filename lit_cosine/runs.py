"""What ``lit-cosine train``, ``test`` and ``predict`` do, on LightningCLI.

Convention: a run is one new folder under ``--trainer.default_root_dir``, with its logs, checkpoints, figure and
configuration; nothing that is already there is written to. Whatever is wrong with the input is said before training.
"""

from __future__ import annotations

import csv
import math
import os
import re
import shlex
import shutil
import signal
import warnings
from argparse import SUPPRESS, ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_cosine.audit import ScheduleAudit
from lit_cosine.checkpoint import ExactResume
from lit_cosine.checkpoint_io import CheckpointWriteError, SafeCheckpointIO
from lit_cosine.console import EpochLine, SteadyProgressBar
from lit_cosine.dashboard import Dashboard
from lit_cosine.data import TabularDataModule
from lit_cosine.model import LitClassifier
from lit_cosine.monitors import LearningRateLogger, TrainingCurves, new_file
from lit_cosine.resume import check_epochs, check_hyperparameters, checkpoint_to_resume, reconcile

__all__ = ["predict", "test", "train"]

_TRAINER = {
    "max_epochs": 10,
    "default_root_dir": "runs",
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
_TINY = 10_000_000
"""Multiplications that one core does in about a millisecond; below it, threads wait for each other longer than that."""

_REFUSED = (ArgumentError, MisconfigurationException, OSError, TypeError, ValueError)


def train(arguments: Sequence[str]) -> None:
    """Fit, test the best checkpoint, and say where everything is.

    Args:
        arguments: The command line after ``lit-cosine train``.

    Raises:
        ArgumentError: If the run cannot begin.
    """
    with _quiet():
        began = _Began()
        with _refusing():
            cli = _CLI("train", arguments, [began])
        trainer: Any = cli.trainer
        with _refusing(unless=began, made=cli.made), _stopping(cli), _threads(cli):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=True)
        if trainer.fast_dev_run and cli.made:
            cli.made.rmdir()  # nothing is written into it
        if trainer.interrupted or trainer.fast_dev_run or trainer.barebones:
            return
        kept = trainer.checkpoint_callback
        best = kept.best_model_path or kept.last_model_path if kept else ""
        # without a best checkpoint, the weights as they are
        (measured,) = trainer.test(
            cli.model, datamodule=cli.datamodule, ckpt_path=best or None, weights_only=True, verbose=False
        )
    _say_measured(measured)
    curves = next(callback for callback in trainer.callbacks if isinstance(callback, TrainingCurves))
    root = Path(cli.root)
    for what, where in (
        ("Checkpoint", best),
        ("Figure", curves.path),
        ("Logs", trainer.log_dir if trainer.logger else None),
    ):
        if where:
            rank_zero_only(print)(f"{what}: {_shown(where)}")
    if trainer.logger:
        rank_zero_only(print)(f"Show them: lit-cosine board {root}")


def test(arguments: Sequence[str]) -> None:
    """Measure a checkpoint on the test rows of the data it was trained on.

    Args:
        arguments: The command line after ``lit-cosine test``.

    Raises:
        ArgumentError: If there is no such checkpoint, or it does not fit.
    """
    with _quiet(), _refusing():
        cli, model = _restored("test", arguments)
        (measured,) = cli.trainer.test(model, datamodule=cli.datamodule, verbose=False)
    _say_measured(measured)


def predict(arguments: Sequence[str]) -> None:
    """Write a checkpoint's class probabilities of the test rows as ``predictions.csv`` into its run's folder.

    Args:
        arguments: The command line after ``lit-cosine predict``.

    Raises:
        ArgumentError: If there is no such checkpoint, or it does not fit.
    """
    with _quiet(), _refusing():
        cli, model = _restored("predict", arguments)
        probabilities = torch.cat(cli.trainer.predict(model, datamodule=cli.datamodule))  # type: ignore[arg-type]
        path = new_file(Path(cli.output) if cli.output else _run_of(cli.ckpt_path) / "predictions.csv")
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["row", "predicted", *(f"p{label}" for label in range(probabilities.shape[1]))])
            for row, p in enumerate(probabilities):
                table.writerow([row, int(p.argmax()), *p.tolist()])
    print(f"Predictions: {path}")


class _CLI(LightningCLI):
    """LightningCLI with the sizes of the network linked to the data, and a folder for each run.

    Args:
        command: ``"train"``, ``"test"`` or ``"predict"``.
        arguments: The command line.
        callbacks: More callbacks for the Trainer.
    """

    def __init__(self, command: str, arguments: Sequence[str], callbacks: Sequence[Callback] = ()) -> None:
        self._command = command
        self._arguments = arguments
        self._callbacks = callbacks
        super().__init__(
            LitClassifier,
            TabularDataModule,
            save_config_callback=SaveConfigCallback if command == "train" else None,
            trainer_defaults=dict(_TRAINER),
            seed_everything_default=42,
            parser_kwargs={"prog": f"lit-cosine {command}", "exit_on_error": False},
            subclass_mode_data=True,
            args=_with_data_class(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set what the article trains, and let the network's sizes follow the data."""
        parser.set_defaults(
            {
                "data": {"class_path": "lit_cosine.SyntheticDataModule"},
                "model.network": {"class_path": "lit_cosine.SimpleNN"},
            }
        )
        for size, source in (("in_features", "num_features"), ("classes", "num_classes")):
            parser.link_arguments(f"data.{source}", f"model.network.init_args.{size}", apply_on="instantiate")
        parser.add_argument(  # of every command, which may be given the configuration of a training
            "--audit",
            type=Literal["warn", "raise", "print", "off"],
            default="warn",
            help="What to do about a learning rate whose plan is wrong, before training.",
        )
        parser.add_argument(
            "--threads",
            type=int | None,
            default=None,
            help="Threads that share an operation; 1 where the network is so small that sharing takes longer.",
        )
        if self._command == "train":
            parser.add_class_arguments(ExactResume, "checkpoint", skip={"dirpath"}, instantiate=False)
            parser.set_defaults({"checkpoint.monitor": "val/loss"})
            what = "Go on with the last run, or with this run or checkpoint."
            parser.add_argument("--resume", nargs="?", type=str, const="", default=None, help=what, metavar="PATH")
        else:
            parser.add_argument("--ckpt_path", type=str, default=None, help=f"The checkpoint to {self._command}.")
            for name in ("checkpoint", "resume"):  # a run's config.yaml has them
                parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
        if self._command == "predict":
            parser.add_argument("--output", type=str, default=None, help="The CSV file to write.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; the arguments are the command line, of which LightningCLI would warn."""
        line = cast("list[str]", args)
        self.config = parser.parse_args(line)
        self.ckpt_path, self.output = self.config.get("ckpt_path"), self.config.get("output")
        if self.config["trainer"]["barebones"]:  # writes nothing, and refuses a default of ours
            self.save_config_callback, self.config["trainer"]["log_every_n_steps"] = None, None
        threads = self.config["threads"]
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be an integer >= 1, got {threads}")
        self.resumed: Path | None = None
        asked = self.config.get("resume")
        if asked is None:
            return
        path = checkpoint_to_resume(asked, self.config["trainer"]["default_root_dir"] or ".")
        self.ckpt_path, self.resumed = str(path), path.parent.parent
        of_the_run = ["--config", str(self.resumed / "config.yaml")]
        self.config, said = reconcile(parser.parse_args(of_the_run), parser.parse_args([*of_the_run, *line]))
        self.config["resume"] = None
        rank_zero_only(print)("\n".join([f"Resume: {path}", *said]))
        if not said:
            self.save_config_callback = None
            return
        # a resume without flags goes on under what was last said
        self.save_config_kwargs["overwrite"] = True
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            shutil.copy(self.resumed / "config.yaml", new_file(self.resumed / "config.yaml"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return a Trainer that writes into a folder of its own."""
        config = self.config_init["trainer"]
        self.root, self.made = config["default_root_dir"] or ".", None
        if self._command != "train":
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        max_epochs = config["max_epochs"]
        if max_epochs is not None and (max_epochs == 0 or max_epochs < -1):
            raise ValueError(f"trainer.max_epochs must be >= 1, or -1 for no limit, got {max_epochs}")
        extra: list[Callback] = list(self._callbacks)
        self.model.check_network(self.datamodule.num_features, self.datamodule.num_classes)
        folder = None
        listed = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        if config["enable_progress_bar"] and not any(isinstance(callback, ProgressBar) for callback in listed):
            extra.append(SteadyProgressBar())
        if not config["barebones"]:
            if self.resumed is None:
                kwargs["default_root_dir"] = folder = _new_folder(Path(self.root))
                self.made = folder if rank_zero_only.rank == 0 else None  # type: ignore[attr-defined]
            else:
                kwargs["default_root_dir"] = folder = self.resumed
                checkpoint = SafeCheckpointIO().load_checkpoint(str(self.ckpt_path))
                check_hyperparameters(checkpoint, self.model, folder)
                check_epochs(checkpoint, max_epochs)
            if config["logger"] in (None, True):
                kwargs["logger"] = TensorBoardLogger(
                    folder, name="", version="", default_hp_metric=False, max_queue=1000
                )
            audits = [callback for callback in listed if isinstance(callback, ScheduleAudit)]
            if self.config["audit"] == "raise" and audits:
                audits[0].on_problem = "raise"
            elif self.config["audit"] != "off" and not audits:
                extra.insert(0, ScheduleAudit(self.config["audit"]))
            told = self.parser.dump(self.config, skip_none=False)
            page = Dashboard(shlex.join(["lit-cosine", self._command, *self._arguments]), told)
            extra += [LearningRateLogger(loss_tag="train/loss_step"), page, TrainingCurves(), EpochLine()]
            if config["enable_checkpointing"] is not False:
                settings = dict(self.config_init["checkpoint"].items())
                if config["limit_val_batches"] == 0:
                    settings["monitor"] = None
                extra.append(ExactResume(folder / "checkpoints", **settings))
        self.trainer_defaults["callbacks"] = extra
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception:
            if self.made is not None:
                self.made.rmdir()
            raise


class _Began(Callback):
    """Knows whether training has begun."""

    def __init__(self) -> None:
        self.yes = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Take note."""
        self.yes = True


@contextmanager
def _refusing(unless: _Began | None = None, made: Path | None = None) -> Iterator[None]:
    """Turn an error in the input into one sentence; once training has begun an error is one and keeps its traceback.

    The folder that was ``made`` for a run that has not begun goes with it.
    """
    try:
        yield
    except _REFUSED as error:
        if unless is not None and unless.yes:
            raise
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise ArgumentError(None, _sentence(str(error))) from error


@contextmanager
def _stopping(cli: _CLI) -> Iterator[None]:
    """Say in one sentence why a run stopped that had begun, and how it goes on."""
    again = f"lit-cosine train --resume {cli.trainer.default_root_dir}"
    try:
        yield
    except SystemExit as stop:
        if stop.code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
            rank_zero_only(print)(f"Stopped; to go on: {again}", flush=True)
        raise
    except (FloatingPointError, CheckpointWriteError) as error:
        raise SystemExit(f"lit-cosine train: {error}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings back that are true of every run of this command and ask nothing of its user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.* is deprecated")
        yield


@contextmanager
def _threads(cli: _CLI) -> Iterator[None]:
    """Train with ``--threads``, or with one where waking the others takes longer than what they would do."""
    before = torch.get_num_threads()
    number = cli.config["threads"]
    if number is None:
        weights = sum(parameter.numel() for parameter in cli.model.parameters())
        work = weights * cli.datamodule.batch_size
        on_cpu = cli.trainer.strategy.root_device.type == "cpu"
        number = 1 if on_cpu and work < _TINY and "OMP_NUM_THREADS" not in os.environ else before
        if number < before:
            rank_zero_only(print)(
                f"Threads: 1 of {before}, the {work:,} multiplications of a batch are too few to share (--threads)"
            )
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _with_data_class(arguments: Sequence[str]) -> list[str]:
    """Return the arguments; ``--data.dataset`` says by itself which DataModule is meant."""
    names = [argument.partition("=")[0] for argument in arguments]
    asked = {"--data.dataset", "--data.init_args.dataset"} & {*names} and "--data" not in names
    return ["--data", "lit_cosine.TabularDataModule", *arguments] if asked else list(arguments)


def _restored(command: str, arguments: Sequence[str]) -> tuple[_CLI, LitClassifier]:
    """Return the command line and the model of its ``--ckpt_path``.

    The configuration that lies in the checkpoint's run folder is taken where none is given: it knows the data.
    """
    names = [argument.partition("=")[0] for argument in arguments]
    if "--ckpt_path" in names and not {"-c", "--config"} & {*names}:
        position = names.index("--ckpt_path")
        path = arguments[position].partition("=")[2] or "".join(arguments[position + 1 : position + 2])
        config = _run_of(path) / "config.yaml"
        if config.is_file():
            arguments = ["--config", str(config), *arguments]
    cli = _CLI(command, arguments)
    if cli.ckpt_path is None:
        raise ValueError(f"ckpt_path must name a checkpoint: lit-cosine {command} --ckpt_path FILE")
    own = SafeCheckpointIO().load_checkpoint(cli.ckpt_path).get("hyper_parameters", {}).get("network", {})
    handed_in = {} if "init_args" in own else {"network": cli.model.network}
    model = LitClassifier.load_from_checkpoint(cli.ckpt_path, map_location="cpu", weights_only=True, **handed_in)
    return cli, model


def _run_of(ckpt_path: str) -> Path:
    """Return the folder of the run that wrote ``<run>/checkpoints/<name>.ckpt``."""
    return Path(ckpt_path).parent.parent


def _shown(path: str | Path) -> Path:
    """Return ``path`` as seen from here, where it is below."""
    below = Path(path).absolute().is_relative_to(Path.cwd())
    return Path(path).absolute().relative_to(Path.cwd()) if below else Path(path)


def _new_folder(root: Path) -> Path:
    """Return a new folder ``run_1``, ``run_2``, … in ``root``; two runs that begin at once get one each."""
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return root  # rank 0 has made the folder, and is the one who writes
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


def _say_measured(measured: Any) -> None:
    accuracy, loss = measured.get("test/accuracy", math.nan), measured.get("test/loss", math.nan)
    rank_zero_only(print)(f"Test accuracy: {accuracy:.4f}, loss: {loss:.4f}")


def _sentence(message: str) -> str:
    """Return a message as one line; of jsonargparse's report on a union of types, the reasons and the value."""
    # whatever takes a class also takes a file that describes one, which is not what anybody meant
    message = re.sub(r"\n *- Expected a path but .* invalid", "", message)
    head, errors, rest = message.partition("Errors:")
    if errors:
        reasons, _, given = rest.partition("Given value:")
        lines = [line.strip(" -") for line in reasons.splitlines() if line.strip()]
        message = "; ".join(line for line in lines if "NoneType" not in line and not line.startswith("Given value"))
        if "Namespace(" not in given:  # a class that refused one of its arguments has said which
            message = f"{head.splitlines()[0]} {message}; got {given}"
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    message = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", message)
    message = message.replace("Expected a int", "Expected an integer").replace("Expected a float", "Expected a number")
    message = re.sub(r'Parser key "([\w.]+)":', r"\1:", message)
    return " ".join(message.replace("\n  - ", "\n").split())
