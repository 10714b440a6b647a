#!/usr/bin/env python
"""Timings, measured side by side in one process: ``python scripts/benchmark.py scheduler``.

To add a subcommand, write a function that takes the parsed arguments and returns rows, under ``@command``; how they are
measured is in ``side_by_side.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from typing import Any

from side_by_side import CLOCKS, Row, side_by_side, table

_COMMANDS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {}


def command(function: Callable[[argparse.Namespace], list[Row]]) -> Callable[[argparse.Namespace], list[Row]]:
    """Make ``function`` a subcommand: its name is the command, its docstring the help."""
    _COMMANDS[function.__name__] = function
    return function


@command
def scheduler(args: argparse.Namespace) -> list[Row]:
    """Time ScheduleLR.step() against torch's LambdaLR with the same cosine, with one and with eight groups."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR, LRScheduler

    from lit_cosine import Cosine, ScheduleLR

    number = 20_000

    def steps(make: Callable[[torch.optim.Optimizer], LRScheduler], groups: int) -> Callable[[], None]:
        parameters = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": 0.1} for _ in range(groups)]
        optimizer = torch.optim.SGD(parameters)
        played = make(optimizer)
        optimizer.step()

        def run() -> None:
            played.last_epoch = 0
            for _ in range(number):
                played.step()

        return run

    rows = []
    for groups in (1, 8):
        lambda_lr = steps(lambda o: LambdaLR(o, lambda k: 0.5 * (1.0 + math.cos(math.pi * k / number))), groups)
        ours = steps(lambda o: ScheduleLR(o, Cosine(), total_steps=number), groups)
        label = f"{groups} group{'s' * (groups > 1)}"
        rows += side_by_side({f"LambdaLR, {label}": lambda_lr, f"ScheduleLR, {label}": ours}, args.runs, number)
    return rows


@command
def callback(args: argparse.Namespace) -> list[Row]:
    """Time a step of LearningRateScheduler, with LR, weight decay and beta1, against a step of torch's LambdaLR."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel
    from torch.optim.lr_scheduler import LambdaLR

    from lit_cosine import LearningRateScheduler, Linear

    torch.set_num_threads(1)
    number = 5_000
    rows: list[Row] = []
    ours = LearningRateScheduler(weight_decay=Linear(), beta1=Linear())

    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(()))]} for _ in range(args.groups)])

    class Grouped(BoringModel):
        def configure_optimizers(self) -> torch.optim.Optimizer:  # type: ignore[override]
            return optimizer()

    class Timer(pl.Callback):
        """Times the schedulers in the middle of the run."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            bare = optimizer()
            lambda_lr = LambdaLR(bare, lambda k: 0.5 * (1.0 + math.cos(math.pi * k / number)))
            bare.step()

            def of_torch() -> None:
                for _ in range(number):
                    lambda_lr.step()

            def with_ours() -> None:
                for _ in range(number):
                    ours.on_train_batch_start(trainer, pl_module, None, 0)
                    for one in ours.schedulers:
                        one.step()

            label = f"{args.groups} group{'s' * (args.groups > 1)}"
            contenders = {f"LambdaLR, {label}": of_torch, "LearningRateScheduler, 3 entries": with_ours}
            rows.extend(side_by_side(contenders, args.runs, number))
            trainer.should_stop = True

    trainer = pl.Trainer(
        max_epochs=(args.runs + 2) * number,  # a run so long that the schedule is still falling
        limit_train_batches=1,
        limit_val_batches=0,
        callbacks=[ours, Timer()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Grouped())
    return rows


@command
def callbacks(args: argparse.Namespace) -> list[Row]:
    """Time what callbacks add to an update of a small training with TensorBoard, drawing and set-up left out."""
    import tempfile

    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.demos.boring_classes import BoringModel
    from lightning.pytorch.loggers import TensorBoardLogger
    from torch.utils.data import DataLoader

    from lit_cosine import Cosine, LearningRateLogger, LearningRateScheduler, ScheduleAudit, TrainingCurves

    torch.set_num_threads(1)
    number, spent = 500, 0.0

    class Model(BoringModel):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(torch.zeros(number, 32))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Timer(pl.Callback):
        """Counts the time from the second batch to the last one."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            nonlocal spent
            if trainer.global_step in (1, number):
                spent += CLOCKS[args.clock]() * (-1 if trainer.global_step == 1 else 1)

    def train(*makers: Callable[[], pl.Callback]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_epochs=1,
                limit_val_batches=0,
                callbacks=[*(make() for make in makers), Timer()],
                accelerator="cpu",
                logger=TensorBoardLogger(folder),
                log_every_n_steps=1,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(Model())

    ours: list[Callable[[], pl.Callback]] = [partial(LearningRateScheduler, Cosine()), LearningRateLogger]
    contenders = {
        "no callback": train,
        "LearningRateMonitor": partial(train, LearningRateMonitor),
        "scheduler, logger": partial(train, *ours),
        "scheduler, logger, curves, audit": partial(train, *ours, TrainingCurves, ScheduleAudit),
    }
    rows = []
    for row in side_by_side(contenders, args.runs, number - 1, clock=lambda: spent):
        own = tuple(ratio - 1.0 for ratio in row.ratios)
        alone = row.seconds * (1.0 - 1.0 / statistics.median(row.ratios))
        rows += [row, Row(f"{row.name}: alone", row.baseline, alone, own)]
    return rows


@command
def audit(args: argparse.Namespace) -> list[Row]:
    """Time the audit of a million planned updates, against the time budget of 3 s."""
    import torch
    from torch.optim import lr_scheduler as torch_schedulers

    from lit_cosine import Cosine, ScheduleLR
    from lit_cosine.audit._playback import Stepping, Timeline, play
    from lit_cosine.audit._rules import findings_of
    from lit_cosine.audit._situation import Scheduled, Situation

    n = 1_000_000

    class Own(torch_schedulers.LRScheduler):
        """Has no closed form that anybody knows, so every step is played."""

        def get_lr(self) -> list[float | torch.Tensor]:
            return [group["lr"] * 0.999999 for group in self.optimizer.param_groups]

    def chain(o: torch.optim.Optimizer) -> torch_schedulers.LRScheduler:
        parts = [torch_schedulers.LinearLR(o, 0.01, 1.0, 1_000), torch_schedulers.CosineAnnealingLR(o, n - 1_000)]
        return torch_schedulers.SequentialLR(o, parts, [1_000])

    kinds: dict[str, Callable[[torch.optim.Optimizer], torch_schedulers.LRScheduler]] = {
        "ScheduleLR": lambda o: ScheduleLR(o, Cosine(), n, warmup_steps=1_000),
        "CosineAnnealingLR": lambda o: torch_schedulers.CosineAnnealingLR(o, n),
        "OneCycleLR": lambda o: torch_schedulers.OneCycleLR(o, 0.1, total_steps=n),
        "LambdaLR": lambda o: torch_schedulers.LambdaLR(o, lambda k: 1 - k / n),
        "SequentialLR": chain,
        "MultiplicativeLR": lambda o: torch_schedulers.MultiplicativeLR(o, lambda k: 0.999999),
        "a hand-written scheduler": Own,
    }

    def audited(make: Callable[[torch.optim.Optimizer], torch_schedulers.LRScheduler]) -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
        timeline, made = Timeline(batches=1_000, epochs=n // 1_000), make(optimizer)
        stepping = Stepping(made, timeline.stepping("step"))
        trace = play(optimizer, [stepping], timeline.updates)
        findings_of(Situation(optimizer, ["lr-SGD"], [Scheduled(made, "step", 1, stepping)], trace, timeline))

    budget = {"budget of 3 s": partial(time.sleep, 3.0)}
    contenders = {f"{name}, {n:,} updates": partial(audited, make) for name, make in kinds.items()}
    return side_by_side(budget | contenders, args.runs)


@command
def compare(args: argparse.Namespace) -> list[Row]:
    """Time whole trainings of the article's task: its own loop, our engine on two cores, and JAX.

    Time is per training; preparation (imports, tracing, compiling) is left out and printed first. JAX needs the extra
    ``benchmark``.
    """
    from benchmark_compare import ARMS, PROCESSES, Workers, one_thread

    loop_members, stacked_members, jax_members = 4, 2 * PROCESSES * 4 * ARMS, 8 * ARMS
    with one_thread():
        loop, stacked = Workers("loop"), Workers("stacked", PROCESSES)
    jax = Workers("jax")
    ours = f"compare_networks(), {PROCESSES} processes"
    contenders: dict[str, tuple[Workers, int]] = {
        "the article's loop": (loop, loop_members),
        ours: (stacked, stacked_members),
    }
    if jax.missing:
        print(f"JAX left out: no module named {jax.missing}; pip install '.[benchmark]'", file=sys.stderr)
    else:
        contenders["JAX"] = (jax, jax_members)
    for name, (workers, _) in contenders.items():
        print(f"{name}: {workers.preparation:.1f} s to prepare", file=sys.stderr)
    calls = {name: partial(workers.train, members) for name, (workers, members) in contenders.items()}
    number = {name: members for name, (_, members) in contenders.items()}
    rows = side_by_side(calls, args.runs, number)
    if not jax.missing:
        rows += side_by_side({name: calls[name] for name in ("JAX", ours)}, args.runs, number)
    for row in rows:
        if row.name == ours:
            times = 1.0 / statistics.median(row.ratios)
            print(f"{row.name}: {times:.0f} times {row.baseline}, {1 / row.seconds:.0f} trainings/s", file=sys.stderr)
    for name, (workers, _) in contenders.items():
        cpu = statistics.median(workers.cpu[1:])
        print(f"{name}: {cpu * 1e3:.2f} ms of CPU time a training", file=sys.stderr)
    for workers in (loop, stacked, jax):
        workers.close()
    return rows


@command
def compare_module(args: argparse.Namespace) -> list[Row]:
    """Time compare() on a LightningModule against plain Trainer runs, and two workers against one, per training."""
    import logging
    import warnings

    import torch
    from benchmark_module import TRAININGS, by_compare, by_hand

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # what a Trainer says of itself
    here = {"plain Trainer": by_hand, "compare(), serial": partial(by_compare, engine="serial")}
    workers = {f"compare(), workers={n}": partial(by_compare, engine="local", workers=n) for n in (1, 2)}
    clock = CLOCKS[args.clock]
    return [row for calls in (here, workers) for row in side_by_side(calls, args.runs, TRAININGS, clock)]


@command
def compare_size(args: argparse.Namespace) -> list[Row]:
    """Time the stacked engine per member with 64, 1,024 and 16,384 members, in one process; print its memory."""
    from benchmark_compare import Workers, one_thread

    with one_thread():
        engines = {members: Workers("stacked", arms=64) for members in (64, 1024, 16_384)}
    calls = {f"{members:,} members": partial(engine.train, members) for members, engine in engines.items()}
    rows = side_by_side(calls, args.runs, dict(zip(calls, engines, strict=True)))
    for members, engine in engines.items():
        cpu = statistics.median(engine.cpu[1:])
        print(f"{members:,} members: {cpu * 1e3:.2f} ms of CPU time each, peak {engine.peak:.0f} MiB", file=sys.stderr)
        engine.close()
    return rows


@command
def compare_step(args: argparse.Namespace) -> list[Row]:
    """Time every operation of one stacked step of 77 members against the whole of loss and gradients."""
    import torch
    from benchmark_compare import Stacked

    program = Stacked().ensemble.program

    def repeated(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(50):
                call()

        return run

    calls = {
        f"{place:2} {name}": call
        for place, (name, call) in enumerate(zip(program.operations, program.calls, strict=True))
    }
    with torch.no_grad():
        return side_by_side(
            {"loss and gradients": repeated(program), **{n: repeated(c) for n, c in calls.items()}}, args.runs, 50
        )


@command
def train(args: argparse.Namespace) -> list[Row]:
    """Time 100 epochs of the article's training: its own loop, a plain Lightning port, and ours part by part."""
    import torch
    from benchmark_train import PARTS, article, ours, port

    torch.set_num_threads(1)
    epochs = 100
    contenders: dict[str, Callable[[], object]] = {
        "the article's loop": partial(article, epochs),
        "plain Lightning port, everything on": partial(port, epochs),
        "ours, lean": partial(ours, epochs, ()),
    }
    for number, part in enumerate(PARTS, start=1):
        name = f"… with {part}" if number < len(PARTS) else f"… with {part}: everything on"
        contenders[name] = partial(ours, epochs, PARTS[:number])
    return side_by_side(contenders, args.runs, epochs * 13, CLOCKS[args.clock])


@command
def startup(args: argparse.Namespace) -> list[Row]:
    """Time whole processes: scripts/train.py and lit-cosine's help against the article's script with its plot."""
    from benchmark_train import SCRIPTS, process

    cli = "import sys; from lit_cosine.cli.main import main; sys.exit(main())"
    contenders = {
        "the article's script": process(SCRIPTS / "article.py", "figure.png"),
        "scripts/train.py": process(SCRIPTS / "train.py"),
        "… with a group of options that is not there": process(SCRIPTS / "train.py", "--modle.lr", "0"),
        "lit-cosine --help": process("-c", cli, "--help"),
        "python -c pass": process("-c", "pass"),
    }
    return side_by_side(contenders, args.runs, clock=CLOCKS[args.clock])


@command
def data(args: argparse.Namespace) -> list[Row]:
    """Time an epoch over 1e6 rows in batches of 1024 against DataLoader(TensorDataset); print the cost of more rows."""
    import torch
    from benchmark_train import scale
    from torch.utils.data import DataLoader, TensorDataset

    from lit_cosine import SyntheticDataModule

    torch.set_num_threads(1)
    for rows in (1_000, 10_000, 100_000, 1_000_000, 5_000_000):
        seconds, peak = scale(rows)
        note = f", peak {peak:.2f} times the float32 bytes" if rows >= 100_000 else ""
        print(f"{rows:>9,} rows: {seconds:.3g} s, {seconds / rows * 1e6:.2f} µs a row{note}", file=sys.stderr)
    ours = SyntheticDataModule(n_samples=1_250_000, batch_size=1024).train_dataloader()
    stock = DataLoader(TensorDataset(*ours.dataset.tensors), batch_size=1024, shuffle=True)  # type: ignore[attr-defined]

    def epoch(loader: Any) -> None:
        for _ in loader:
            pass

    contenders = {"DataLoader(TensorDataset)": partial(epoch, stock), "SyntheticDataModule": partial(epoch, ours)}
    return side_by_side(contenders, args.runs, clock=CLOCKS[args.clock])


@command
def board(args: argparse.Namespace) -> list[Row]:
    """Time lit-cosine board on a run of 200,000 steps against one of 2,000: read, drawn, and a move of the mouse.

    Both are trained first; the sizes of their files and the points served are printed. Needs Chromium.
    """
    import tempfile
    from pathlib import Path

    from benchmark_board import drawn, loaded, looking, moved, served_points, train

    lengths = {f"a run of {steps:,} steps": steps for steps in (args.steps // 100, args.steps)}
    with tempfile.TemporaryDirectory() as made:
        folders = {name: Path(made, str(steps)) for name, steps in lengths.items()}
        with redirect_stdout(sys.stderr):
            for name, steps in lengths.items():
                train(folders[name], steps)
        pages: dict[str, Callable[[], object]] = {}
        moves: dict[str, Callable[[], object]] = {}
        with ExitStack() as stack:
            for name, steps in lengths.items():
                board, browser = stack.enter_context(looking(folders[name], steps))
                pages[f"{name}, drawn"] = partial(drawn, board, browser)
                moves[f"{name}, the mouse moved"] = partial(moved, browser)
                size = sum(file.stat().st_size for file in folders[name].rglob("*tfevents*"))
                print(f"{name}: {size / 1e6:.1f} MB, points served: {served_points(board)}", file=sys.stderr)
            shown = side_by_side(pages, args.runs) + side_by_side(moves, args.runs)
        reads = {f"{name}, read": partial(loaded, folders[name], steps) for name, steps in lengths.items()}
        return side_by_side(reads, args.runs) + shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand and print its table, or JSON."""
    parser = argparse.ArgumentParser(description="Timings, measured side by side in one process.")
    subcommands = parser.add_subparsers(dest="command", required=True)
    for name, function in _COMMANDS.items():
        subparser = subcommands.add_parser(name, help=function.__doc__, description=function.__doc__)
        subparser.add_argument("--runs", type=_runs, default=15, help="rounds that are measured (15)")
        if name in ("callbacks", "compare_module", "train", "startup", "data"):
            clock = "what tells the time: processor leaves out what other programs do meanwhile (wall)"
            subparser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help=clock)
        if name == "callback":
            subparser.add_argument("--groups", type=_runs, default=1, help="the optimizer's param groups (1)")
        if name == "board":
            steps = "optimizer steps of the long run, a multiple of 1000 (200000)"
            subparser.add_argument("--steps", type=int, default=200_000, help=steps)
        subparser.add_argument("--json", action="store_true", help="print the rows as JSON, every ratio included")
    args = parser.parse_args(arguments)
    rows = _COMMANDS[args.command](args)
    print(json.dumps([row.summary() for row in rows], indent=2) if args.json else table(rows))


def _runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
