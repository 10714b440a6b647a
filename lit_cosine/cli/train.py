"""What ``lit-cosine train``, ``test`` and ``predict`` do.

Convention: input that is wrong is refused before training.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from lit_cosine._files import new_file
from lit_cosine.cli._event_files import quiet_writers
from lit_cosine.cli._lightning_cli import ArticleCLI, RunComplete, restored, run_of
from lit_cosine.cli._process import TrainingBegan, in_one_process, quiet, refusing, stopping, threads
from lit_cosine.cli._shell import command_line
from lit_cosine.monitors import TrainingCurves

__all__ = ["predict", "test", "train"]


def train(arguments: Sequence[str]) -> None:
    """Fit, test the best checkpoint, and print where the results are."""
    with quiet(), quiet_writers():
        began = TrainingBegan()
        try:
            with refusing():
                cli = ArticleCLI("train", arguments, [began])
        except RunComplete as complete:
            rank_zero_only(print)(complete)
            return
        trainer = cli.trainer
        with (
            refusing(unless=began, made=cli.made),
            stopping(trainer.default_root_dir),
            in_one_process(),
            threads(cli.config["threads"], trainer, cli.model, cli.datamodule.batch_size),
        ):
            trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.ckpt_path, weights_only=True)
        if trainer.fast_dev_run and cli.made:  # type: ignore[attr-defined]
            cli.made.rmdir()  # nothing is written into it
        if trainer.interrupted or trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            return
        kept = trainer.checkpoint_callback
        best = kept.best_model_path or kept.last_model_path if kept else ""  # type: ignore[attr-defined]
        # without a best checkpoint, the weights as they are
        measured = trainer.test(
            cli.model, datamodule=cli.datamodule, ckpt_path=best or None, weights_only=True, verbose=False
        )
    for values in measured:  # none with limit_test_batches=0
        _print_measured(values)
    _print_results(trainer, best, cli.root)


def test(arguments: Sequence[str]) -> None:
    """Measure a checkpoint on the test rows of the data it was trained on."""
    with quiet(), refusing():
        cli, model = restored("test", arguments)
        measured = cli.trainer.test(model, datamodule=cli.datamodule, verbose=False)
        if not measured:
            raise ValueError("there are no test rows to measure: trainer.limit_test_batches is 0")
    _print_measured(measured[0])


def predict(arguments: Sequence[str]) -> None:
    """Write a checkpoint's class probabilities of the test rows as ``predictions.csv`` into its run's folder."""
    with quiet(), refusing():
        cli, model = restored("predict", arguments)
        found = cli.trainer.predict(model, datamodule=cli.datamodule)
        if not found:
            raise ValueError("there are no rows to predict: trainer.limit_predict_batches is 0")
        probabilities = torch.cat(found)  # type: ignore[arg-type]
        path = new_file(Path(cli.output) if cli.output else run_of(str(cli.ckpt_path)) / "predictions.csv")
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["row", "predicted", *(f"p{label}" for label in range(probabilities.shape[1]))])
            for row, p in enumerate(probabilities):
                table.writerow([row, int(p.argmax()), *p.tolist()])
    print(f"Predictions: {_shown_path(path)}")


def _print_measured(measured: Mapping[str, float]) -> None:
    accuracy, loss = measured.get("test/accuracy", math.nan), measured.get("test/loss", math.nan)
    rank_zero_only(print)(f"Test accuracy: {accuracy:.4f}, loss: {loss:.4f}")


def _print_results(trainer: Trainer, best: str, root: str | Path) -> None:
    curves = next(callback for callback in trainer.callbacks if isinstance(callback, TrainingCurves))  # type: ignore[attr-defined]
    results = {"Checkpoint": best, "Figure": curves.path, "Logs": trainer.log_dir if trainer.logger else None}
    for what, where in results.items():
        if where:
            rank_zero_only(print)(f"{what}: {_shown_path(where)}")
    if trainer.logger:
        rank_zero_only(print)(f"View in TensorBoard: {command_line('board', root)}")


def _shown_path(path: str | Path) -> Path:
    """Return ``path`` relative to the working directory, where it is inside it."""
    absolute, here = Path(path).absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else Path(path)
