"""``lit-cosine preview``: schedules drawn before anything is trained, in the terminal and as PNG, SVG or CSV.

Convention: the LR at step k is lr * warmup * schedule, the closed form that ``ScheduleLR`` plays. Loads neither torch
nor lightning, and matplotlib only for a picture.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from lit_cosine.horizon import Clock, Duration
from lit_cosine.schedules import Schedule
from lit_cosine.spelling import arguments, build_schedule, check_keys, names, with_hint
from lit_cosine.terminal import chart, letter

__all__ = ["Curve", "preview"]

_RUN_KEYS = ("lr", "steps", "epochs", "warmup")
_SUFFIXES = (".png", ".svg", ".csv")
_MOST_MILESTONES = 12
_DESCRIPTION = """\
Draw learning-rate schedules before anything is trained.

  lit-cosine preview Cosine --end 0.1 --lr 0.01 --steps 1000 --warmup 50step
  lit-cosine preview Cosine Step --milestones 0.5 0.8 one_cycle --output lr.png
  lit-cosine preview --config schedules.yaml

A flag after a schedule's name that the schedule has an argument for belongs to it, every other flag to the run.
The file holds a schedule (class_path, init_args), or any of lr, steps, epochs, warmup and
schedules: {name: {class_path: …, init_args: …, lr: …, warmup: …}}."""


@dataclass(frozen=True)
class Curve:
    """The LR of every step of a run: lr * warmup * schedule.

    Args:
        schedule: The curve.
        lr: Peak LR, finite and > 0.
        steps: Length of the run in optimizer steps, >= 1.
        warmup: Length of the linear warmup in steps, in [0, steps).

    >>> from lit_cosine import Linear
    >>> curve = Curve(Linear(), lr=0.1, steps=6, warmup=2)
    >>> [round(curve(step), 3) for step in range(7)]
    [0.033, 0.067, 0.1, 0.075, 0.05, 0.025, 0.0]
    """

    schedule: Schedule
    lr: float = 1.0
    steps: int = 1000
    warmup: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0.0):
            raise ValueError(f"lr must be finite and > 0, got {self.lr}")
        if self.steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {self.steps}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must be shorter than the run: got {self.warmup:,} of {self.steps:,} steps")

    @cached_property
    def _clock(self) -> Clock:
        return Clock(self.steps, self.warmup)

    def __call__(self, step: int) -> float:
        """Return the LR at ``step``; ``steps`` itself and later is after the end."""
        factor = self.schedule(self._clock(step))
        if step < self.warmup:
            factor *= (step + 1) / (self.warmup + 1)
        return self.lr * factor

    def notable(self) -> dict[int, str]:
        """Return the steps worth a line, rising: start, quarter points, warmup, milestones, last update, the end."""
        steps: dict[int, str] = {0: "start"}
        span = self.steps - self.warmup
        milestones = [self.warmup + math.ceil(p * span - 1e-9) for p in self.schedule.all_milestones()]
        for milestone in milestones[:_MOST_MILESTONES]:
            steps[milestone] = "milestone"
        if self.warmup:
            steps[self.warmup] = "end of warmup"
        for quarter, name in ((1, "a quarter"), (2, "half"), (3, "three quarters")):
            steps.setdefault(self.steps * quarter // 4, name)
        steps.setdefault(self.steps - 1, "last update")
        steps[self.steps] = "after the end"
        return dict(sorted(steps.items()))


def preview(arguments: Sequence[str]) -> None:
    """Run ``lit-cosine preview``.

    Raises:
        argparse.ArgumentError: If the arguments are refused, with the sentence to show.
    """
    try:
        run_flags, spelled = _split(arguments)
        options = _parser().parse_args(run_flags)
        curves = _curves(options, spelled)
        outputs = [_check_output(Path(path), options.force) for path in options.output]
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    _show(curves, options)
    for path in outputs:
        try:
            _write(path, curves)
        except OSError as error:
            raise argparse.ArgumentError(None, f"cannot write {path}: {error.strerror}") from None
        print(f"wrote {path}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "lit-cosine preview",
        usage="%(prog)s [NAME [--ARGUMENT VALUE …] …] [--lr LR] [--steps N] [--warmup DURATION] [--output FILE] …",
        description=_DESCRIPTION,
        epilog=_catalogue(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--lr", type=float, help="peak LR (default 1: the factor)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps of the run (default 1000)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of the run, for a warmup in epochs")
    parser.add_argument("--warmup", metavar="DURATION", help='such as "50step", "2ep" or "5%%"')
    parser.add_argument("--config", metavar="FILE", help="YAML file with the schedules")
    parser.add_argument(
        "--output", metavar="FILE", action="append", default=[], help="also write .png, .svg or .csv; repeatable"
    )
    parser.add_argument("--force", action="store_true", help="replace output files that exist")
    parser.add_argument("--width", type=int, metavar="N", help="columns of the drawing (default: the terminal's)")
    parser.add_argument("--height", type=int, metavar="N", default=16, help="rows of the drawing (default 16)")
    parser.add_argument("--ascii", action="store_true", help="draw with * instead of Braille dots")
    return parser


def _catalogue() -> str:
    lines = [f"  {name}({', '.join(arguments(name))})" for name in names()]
    return "schedules:\n" + "\n".join(lines)


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """Return the flags of the run, and each schedule as (name, its arguments)."""
    run_flags: list[str] = []
    spelled: list[tuple[str, dict[str, Any]]] = []
    own = {option for action in _parser()._actions for option in action.option_strings}
    given: set[str] = set()
    switches = {"--force", "--ascii", "--help", "-h"}
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("-"):
            arguments(token)
            spelled.append((token, {}))
            continue
        flag, equals, value = token.partition("=")
        name = spelled[-1][0] if spelled else ""
        path = flag.lstrip("-").replace("-", "_").split(".")
        values = [value] if equals else [following for following in tokens[:1] if not following.startswith("--")]
        # a preset's warmup is a bare fraction, the run's has a unit
        of_schedule = name and path[0] in arguments(name) and (path != ["warmup"] or all(map(_is_number, values)))
        if (of_schedule or flag in own - switches) and not any(values):
            raise ValueError(f"{flag} needs a value")
        if of_schedule:
            tokens = tokens if equals else tokens[1:]
            if path[-1] == "schedules" and not values[0].startswith("["):
                raise ValueError(f"{flag} must be a list such as [Linear,Cosine], got {values[0]!r}")
            while path[-1] == "milestones" and tokens and _is_number(tokens[0]):
                values.append(tokens.pop(0))
            _set(spelled[-1][1], path, values, flag)
        elif flag in own:
            if flag in given and flag != "--output":
                raise ValueError(
                    f"{flag} is given twice; schedules with their own lr or warmup go into a --config file"
                )
            given.add(flag)
            run_flags.append(token if flag in switches else f"{flag}={values[0]}")
            tokens = tokens if flag in switches or equals else tokens[1:]
        else:
            known = (*(f"--{argument}" for argument in arguments(name)), *sorted(own)) if name else tuple(sorted(own))
            raise ValueError(
                with_hint(f"{name} has no argument {flag}" if name else f"unknown flag {flag}", flag, known)
            )
    return run_flags, spelled


def _set(init_args: dict[str, Any], path: list[str], values: list[str], flag: str) -> None:
    """Store the values of ``--a.b.c`` as LightningCLI would: b is an argument of the schedule in a."""
    for part in path[:-1]:
        nested = init_args.get(part)
        if nested is None:
            raise ValueError(f"{flag} needs --{part} NAME before it")
        if not isinstance(nested, dict):
            nested = init_args[part] = {"class_path": nested}
        init_args = nested.setdefault("init_args", {})
    if path[-1] in init_args:
        raise ValueError(f"{flag} is given twice")
    parsed = [_parse(value) for value in values]
    init_args[path[-1]] = parsed[0] if len(parsed) == 1 and path[-1] != "milestones" else _flat(parsed)


def _flat(values: list[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _parse(text: str) -> Any:
    import yaml  # a tenth of this command's time, and not every call has a list to read

    try:
        return float(text) if _is_number(text) and not text.lstrip("+-").isdigit() else yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"cannot read the value {text!r}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _curves(options: argparse.Namespace, spelled: list[tuple[str, dict[str, Any]]]) -> dict[str, Curve]:
    run = {key: value for key in _RUN_KEYS if (value := getattr(options, key)) is not None}
    curves: dict[str, Curve] = {}
    if options.config is not None:
        settings, entries = _read(Path(options.config))
        run = {**settings, **run}
        for label, (entry, where) in entries.items():
            own: dict[str, Any] = {key: entry[key] for key in ("lr", "warmup") if key in entry}
            plain = {key: value for key, value in entry.items() if key not in own}
            curves[label] = _curve(build_schedule(plain, where), {**run, **own})
    for name, init_args in spelled:
        inside = ", ".join(f"{key}={_shown(value)}" for key, value in init_args.items())
        label = f"{name}({inside})"
        if label in curves:
            raise ValueError(f"{label} is given twice")
        curves[label] = _curve(build_schedule({"class_path": name, "init_args": init_args}, name), run)
    if not curves:
        raise ValueError(f"name a schedule or give --config; known are {', '.join(names())}")
    for name, least in (("width", 20), ("height", 4)):
        if (value := getattr(options, name)) is not None and value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    return curves


def _shown(value: Any) -> str:
    return str(value["class_path"]) if isinstance(value, dict) else str(value)


def _curve(schedule: Schedule, run: Mapping[str, Any]) -> Curve:
    lr, steps, epochs = run.get("lr", 1.0), run.get("steps", 1000), run.get("epochs")
    for name, value, kinds in (("lr", lr, (int, float)), ("steps", steps, int), ("epochs", epochs or 1, int)):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{name} must be {'a number' if name == 'lr' else 'an integer'}, got {value!r}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be an integer >= 1, got {epochs}")
    try:
        duration = Duration.parse(run.get("warmup", "0step"), "warmup")
    except TypeError as error:
        raise ValueError(str(error)) from None
    if duration.unit == "s":
        raise ValueError(f'warmup="{duration}" has no place in a run counted in steps: write "50step" or "5%"')
    if duration.unit == "ep" and epochs is None:
        raise ValueError(f'warmup="{duration}" needs --epochs, the number of epochs of the run')
    unit = {"step": 1.0, "run": float(steps), "ep": steps / (epochs or 1)}[duration.unit]
    return Curve(schedule, float(lr), steps, round(duration.value * unit))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[dict[str, Any], str]]]:
    """Return the run's settings of a YAML file, and for each of its schedules the spelling and where it stands."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{path} is not YAML{f', see line {mark.line + 1}' if mark else ''}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping with the key schedules or class_path, got {content!r}")
    alone = "class_path" in content
    keys = ("class_path", "init_args") if alone else ("schedules",)
    check_keys(content, (*keys, *_RUN_KEYS), str(path))
    settings = {key: content[key] for key in _RUN_KEYS if key in content}
    entries = {None: {key: content[key] for key in keys if key in content}} if alone else content.get("schedules")
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path}: schedules must hold at least one schedule, got {entries!r}")
    labelled: dict[str, tuple[dict[str, Any], str]] = {}
    for label, entry in entries.items():
        entry = {"class_path": entry} if isinstance(entry, str) else entry
        where = str(path) if alone else f"schedules.{label}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: a schedule is a name or has the keys class_path and init_args, got {entry!r}")
        if not alone:
            check_keys(entry, ("class_path", "init_args", "lr", "warmup"), where)
        labelled[label if isinstance(label, str) else _spell(entry, labelled)] = entry, where
    return settings, labelled


def _spell(entry: dict[str, Any], taken: Mapping[str, Any]) -> str:
    """Return a name for a schedule of the file that has none."""
    name = str(entry.get("class_path")).rpartition(".")[2]
    return name if name not in taken else f"{name} ({len(taken) + 1})"


def _check_output(path: Path, force: bool) -> Path:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--output must end in {', '.join(_SUFFIXES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"the folder {path.parent} of --output does not exist")
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder")
    if path.exists() and not force:
        raise ValueError(f"{path} is already there: give another name, or --force to replace it")
    return path


def _show(curves: Mapping[str, Curve], options: argparse.Namespace) -> None:
    try:
        "⠿│".encode(sys.stdout.encoding or "ascii")
        ascii_only = options.ascii
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    width = options.width or max(20, min(100, shutil.get_terminal_size().columns - 14))
    steps = max(curve.steps for curve in curves.values())
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(chart(curves, steps, width=width, height=options.height, colour=colour, ascii_only=ascii_only))
    print()
    print("\n".join(_table(curves, steps)))


def _table(curves: Mapping[str, Curve], steps: int) -> list[str]:
    """Return the LR at the notable points of any of the curves: a line for each, a column for each curve."""
    points: dict[int, str] = {}
    for curve in curves.values():
        for step, name in curve.notable().items():
            # a curve's own point says more than a quarter of the run
            if step not in points or name in ("milestone", "end of warmup"):
                points[step] = name
    several = len(curves) > 1
    titles = [letter(index) for index in range(len(curves))] if several else ["LR"]
    rows = [["step", "progress", "", *titles]]
    for step, name in sorted(points.items()):
        values = [f"{curve(step):.6g}" for curve in curves.values()]
        rows.append([f"{step:,}", f"{step / steps:.1%}", name, *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if column == 2 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    hidden = max(len(curve.schedule.all_milestones()) for curve in curves.values()) - _MOST_MILESTONES
    return [*lines, f"and {hidden} more milestones"] if hidden > 0 else lines


def _write(path: Path, curves: Mapping[str, Curve]) -> None:
    steps = max(curve.steps for curve in curves.values())
    if path.suffix.lower() == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "progress", *curves])
            writer.writerows(
                [step, step / steps, *(curve(step) for curve in curves.values())] for step in range(steps + 1)
            )
        return
    from lit_cosine.plots import schedule_curves  # matplotlib takes longer to load than all the rest of this command

    marks = range(steps + 1) if steps <= 20_000 else sorted({steps * k // 20_000 for k in range(20_001)})
    schedule_curves({name: (list(marks), [curve(step) for step in marks]) for name, curve in curves.items()}).savefig(
        path, dpi=120
    )
