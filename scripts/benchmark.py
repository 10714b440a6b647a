#!/usr/bin/env python
"""Timings, measured side by side in one process: ``python scripts/benchmark.py scheduler``.

Convention: every round runs the baseline and each contender once, in an order that turns from round to round, and a
ratio compares the two of one round; so what else the machine is doing meets them alike. To add a subcommand, write a
function that takes the parsed arguments and returns rows, under ``@command``.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

_COMMANDS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {}


@dataclass(frozen=True)
class Row:
    """What one contender took against its baseline.

    Args:
        name: The contender.
        baseline: What it was measured against.
        seconds: The contender's median.
        ratios: Its time over the baseline's, round by round.
    """

    name: str
    baseline: str
    seconds: float
    ratios: tuple[float, ...]

    def summary(self) -> dict[str, str | float | int]:
        """Return the row as plain data, with the figures the table shows."""
        figures = {"median": statistics.median(self.ratios), "min": min(self.ratios), "max": max(self.ratios)}
        return {**asdict(self), **figures, "runs": len(self.ratios)}


def command(function: Callable[[argparse.Namespace], list[Row]]) -> Callable[[argparse.Namespace], list[Row]]:
    """Make ``function`` a subcommand: its name is the command, its docstring the help."""
    _COMMANDS[function.__name__] = function
    return function


def processor_time() -> float:
    """Return the seconds that this process and the children it has waited for have had a processor."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


CLOCKS = {"wall": time.perf_counter, "processor": processor_time}


def side_by_side(
    contenders: dict[str, Callable[[], object]],
    runs: int,
    number: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Return a row for every contender but the first, which is the baseline.

    Args:
        contenders: What is timed, by name; each call does ``number`` repetitions of one thing.
        runs: Rounds, >= 1; a round before the first warms up and is not counted.
        number: Repetitions in one call; ``seconds`` is the time of one of them.
        clock: What tells the seconds.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(runs + 1):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            start = clock()
            contenders[name]()
            seconds[name].append((clock() - start) / number)
    return _rows(names, seconds)


def _rows(names: Sequence[str], seconds: dict[str, list[float]]) -> list[Row]:
    """Return a row for every name but the first, which is the baseline; the first round does not count."""
    baseline, *others = names
    return [
        Row(
            name,
            baseline,
            statistics.median(seconds[name][1:]),
            tuple(own / base for own, base in zip(seconds[name][1:], seconds[baseline][1:], strict=True)),
        )
        for name in others
    ]


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
    """Time what LearningRateScheduler adds to an optimizer step with one group, in a Trainer that is training."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel

    from lit_cosine import LearningRateScheduler

    torch.set_num_threads(1)
    number = 5_000
    rows: list[Row] = []
    ours = LearningRateScheduler(replace=True)  # of the demo module's own

    class Timer(pl.Callback):
        """Times the optimizer that has the hook against one that has not, in the middle of the run."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            hooked, bare = trainer.optimizers[0], torch.optim.SGD(pl_module.parameters(), lr=0.0)

            def without() -> None:
                for _ in range(number):
                    bare.step()

            def with_ours() -> None:
                for _ in range(number):
                    ours.on_train_batch_start(trainer, pl_module, None, 0)
                    hooked.step()

            contenders = {"optimizer.step()": without, "… with LearningRateScheduler": with_ours}
            rows.extend(side_by_side(contenders, args.runs, number))
            trainer.should_stop = True

    trainer = pl.Trainer(
        max_epochs=(args.runs + 1) * number,  # a run so long that the schedule is still falling
        limit_train_batches=1,
        limit_val_batches=0,
        callbacks=[ours, Timer()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())
    (row,) = rows
    own = tuple(ratio - 1.0 for ratio in row.ratios)
    alone = row.seconds * (1.0 - 1.0 / statistics.median(row.ratios))
    return [row, Row("LearningRateScheduler alone", row.baseline, alone, own)]


@command
def audit(args: argparse.Namespace) -> list[Row]:
    """Time the audit of a million planned updates, against the time budget of 3 s."""
    import torch
    from torch.optim import lr_scheduler as torch_schedulers

    from lit_cosine import Cosine, ScheduleLR
    from lit_cosine.findings import findings_of
    from lit_cosine.playback import Master, Run, play
    from lit_cosine.situation import Scheduled, Situation

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
        "a scheduler of one's own": Own,
    }

    def audited(make: Callable[[torch.optim.Optimizer], torch_schedulers.LRScheduler]) -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
        run, made = Run(batches=1_000, epochs=n // 1_000), make(optimizer)
        master = Master(made, run.stepping("step"))
        trace = play(optimizer, [master], run.updates)
        findings_of(Situation(optimizer, ["lr-SGD"], [Scheduled(made, "step", 1, master)], trace, run))

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
    ours = f"compare(), {PROCESSES} processes"
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
    rows = _per_member({name: (workers.train, members) for name, (workers, members) in contenders.items()}, args.runs)
    if not jax.missing:
        rows += _per_member({"JAX": (jax.train, jax_members), ours: (stacked.train, stacked_members)}, args.runs)
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
def compare_size(args: argparse.Namespace) -> list[Row]:
    """Time the engine of compare() per member with 64, 1,024 and 16,384 members, in one process; print its memory."""
    from benchmark_compare import Workers, one_thread

    with one_thread():
        engines = {members: Workers("stacked", arms=64) for members in (64, 1024, 16_384)}
    names = {f"{members:,} members": (engine.train, members) for members, engine in engines.items()}
    rows = _per_member(names, args.runs)
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
    from benchmark_train import PARTS, article_loop, ours, port

    torch.set_num_threads(1)
    epochs = 100
    contenders: dict[str, Callable[[], object]] = {
        "the article's loop": partial(article_loop, epochs),
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

    cli = "import sys; from lit_cosine.cli import main; sys.exit(main())"
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


def _per_member(contenders: dict[str, tuple[Callable[[int], object], int]], runs: int) -> list[Row]:
    """Return rows as ``side_by_side`` does, with times per member: contenders may train different numbers."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(runs + 1):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            train, members = contenders[name]
            start = time.perf_counter()
            train(members)
            seconds[name].append((time.perf_counter() - start) / members)
    return _rows(names, seconds)


def _table(rows: Sequence[Row]) -> str:
    header = ("what", "against", "time", "ratio", "min", "max", "runs")
    lines = [header]
    for row in rows:
        figures = row.summary()
        ratios = (f"{figures[key]:.3f}" for key in ("median", "min", "max"))
        lines.append((row.name, row.baseline, _time(row.seconds), *ratios, str(figures["runs"])))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _time(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")) if seconds >= s)
    return f"{seconds / scale:.3g} {unit}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one subcommand and print its table, or JSON."""
    parser = argparse.ArgumentParser(description="Timings, measured side by side in one process.")
    subcommands = parser.add_subparsers(dest="command", required=True)
    for name, function in _COMMANDS.items():
        subparser = subcommands.add_parser(name, help=function.__doc__, description=function.__doc__)
        subparser.add_argument("--runs", type=_runs, default=15, help="rounds that are measured (15)")
        if name in ("train", "startup", "data"):
            clock = "what tells the time: processor leaves out what other programs do meanwhile (wall)"
            subparser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help=clock)
        if name == "board":
            steps = "optimizer steps of the long run, a multiple of 1000 (200000)"
            subparser.add_argument("--steps", type=int, default=200_000, help=steps)
        subparser.add_argument("--json", action="store_true", help="print the rows as JSON, every ratio included")
    args = parser.parse_args(arguments)
    rows = _COMMANDS[args.command](args)
    print(json.dumps([row.summary() for row in rows], indent=2) if args.json else _table(rows))


def _runs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
