"""``lit-cosine preview``: schedules drawn before anything is trained, in the terminal and as PNG, SVG or CSV.

Convention: the LR at step k is lr * ``PlannedFactor``, as in ``ScheduleLR``. This module loads neither torch nor
lightning, and matplotlib only for a picture.
"""

from __future__ import annotations

import csv
import math
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lit_cosine._checks import as_integer, as_number, shown
from lit_cosine.cli._parser import command_parser, option_names, parse, with_underscores
from lit_cosine.cli._terminal import aligned, chart, letter, of_stdout
from lit_cosine.cli._yaml import parse_yaml, read_yaml
from lit_cosine.schedules import (
    Duration,
    Linear,
    PlannedFactor,
    Schedule,
    arguments,
    bound_of_factors,
    build_schedule,
    check_keys,
    convergence_bound,
    names,
    with_hint,
)

__all__ = ["preview"]

_OWN_KEYS = ("lr", "warmup", "cooldown", "cooldown_schedule")  # a schedule of a file may have its own
_RUN_KEYS = (*_OWN_KEYS, "steps", "epochs")
_CURVE_KEYS = ("class_path", "init_args", "schedule")  # a schedule by class_path, or as a callback's argument
_SUFFIXES = (".png", ".svg", ".csv")
_MOST_MILESTONES = 12
_MOST_CURVES = 50
_DESCRIPTION = """\
Draw learning-rate schedules before anything is trained.

  lit-cosine preview Cosine --end 0.1 --lr 0.01 --steps 1000 --warmup 50step
  lit-cosine preview Constant --cooldown 20% --cooldown_schedule Linear
  lit-cosine preview Cosine Step --milestones 0.5 0.8 one_cycle --output lr.png
  lit-cosine preview --config schedules.yaml

An option after a schedule's name sets an argument of that schedule, if it has one of that name; every other option
belongs to the run. The file holds a schedule (class_path, init_args), or any of lr, steps, epochs, warmup, cooldown,
cooldown_schedule and schedules: {name: {class_path: …, init_args: …, lr: …, warmup: …, cooldown: …}}. It may also hold
the schedule, warmup, cooldown, cooldown_schedule and groups of a LearningRateScheduler: every group has a curve."""

_SWITCHES = {"--force", "--ascii", "--bound", "--help", "-h"}


@dataclass(frozen=True)
class _Curve:
    """The LR of every step of a run: ``lr``, its peak LR, times ``factor`` of a step, for ``steps`` updates."""

    lr: float
    steps: int
    factor: PlannedFactor

    def __call__(self, step: int) -> float:
        """Return the LR at ``step``; ``steps`` and later are after the end."""
        return self.lr * self.factor(step)

    def notable(self) -> dict[int, str]:
        """Return the steps worth a line, rising, each with its name."""
        steps: dict[int, str] = {0: "start"}
        warmup = int(self.factor.warmup_steps)
        span = int(self.factor.clock.total) - warmup
        milestones = [warmup + math.ceil(p * span - 1e-9) for p in self.factor.schedule.all_milestones()]
        for milestone in milestones[:_MOST_MILESTONES]:
            steps[milestone] = "milestone"
        if warmup:
            steps[warmup] = "end of warmup"
        if self.factor.cooldown is not None:
            steps[int(self.factor.cooldown.step)] = "start of cooldown"
        for quarter, name in ((1, "a quarter"), (2, "half"), (3, "three quarters")):
            steps.setdefault(self.steps * quarter // 4, name)
        steps.setdefault(self.steps - 1, "last update")
        steps[self.steps] = "after the end"
        return dict(sorted(steps.items()))


def preview(arguments: Sequence[str]) -> None:
    """Run ``lit-cosine preview``."""
    try:
        run_flags, cooldown, schedules = _split(with_underscores(arguments))
        options = parse(_parser(), run_flags)
        curves = _curves(options, cooldown, schedules)
        bounds = _bounds(curves) if options.bound else []
        outputs = [_check_output(Path(path), options.force) for path in options.output]
    except (TypeError, ValueError) as error:
        raise ArgumentError(None, str(error)) from None
    _show(curves, options)
    print("\n".join(bounds), end="\n" * bool(bounds))
    for path in outputs:
        try:
            _write(path, curves)
        except OSError as error:
            raise ArgumentError(None, f"cannot write {path}: {error.strerror}") from None
        print(f"wrote {path}")


def _parser() -> ArgumentParser:
    parser = command_parser("preview", _DESCRIPTION)
    parser.epilog = "\n".join(["schedules:", *(f"  {name}({', '.join(arguments(name))})" for name in names())])
    parser.add_argument("--lr", type=float, help="The peak LR; 1 by default, which shows the factor.")
    parser.add_argument("--steps", type=int, metavar="N", help="The optimizer steps of the run; 1000 by default.")
    parser.add_argument("--epochs", type=int, metavar="N", help="The epochs of the run, for lengths in epochs.")
    parser.add_argument("--warmup", metavar="DURATION", help='The warmup, such as "50step", "2ep" or "5%".')
    parser.add_argument("--cooldown", metavar="DURATION", help="The cooldown at the end of the run.")
    parser.add_argument(
        "--cooldown_schedule", metavar="NAME", help="The curve of the cooldown; OneMinusSqrt by default."
    )
    parser.add_argument(
        "--bound", action="store_true", help="Add the convergence bound and its best peak LR, beside Linear's."
    )
    parser.add_argument("--config", metavar="FILE", help="A YAML file with the schedules.")
    parser.add_argument(
        "--output", metavar="FILE", action="append", default=[], help="A .png, .svg or .csv to write; repeatable."
    )
    parser.add_argument("--force", action="store_true", help="Replace output files that exist.")
    parser.add_argument("--width", type=int, metavar="N", help="The columns of the chart; the terminal's by default.")
    parser.add_argument("--height", type=int, metavar="N", default=16, help="The rows of the chart.")
    parser.add_argument("--ascii", action="store_true", help="Draw with * instead of Braille dots.")
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return the flags of the run, its cooldown_schedule as plain data, and each schedule as (name, its arguments)."""
    run_flags: list[str] = []
    cooldown: dict[str, Any] = {}
    schedules: list[tuple[str, dict[str, Any]]] = []
    own = {"-h", *option_names(_parser())}
    given: set[str] = set()
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if not token.startswith("-"):
            token = {name.lower(): name for name in names()}.get(token.lower(), token)  # cosine is Cosine
            arguments(token)
            schedules.append((token, {}))
            continue
        flag, equals, value = token.partition("=")
        name = schedules[-1][0] if schedules else ""
        path = flag.lstrip("-").split(".")
        values = [value] if equals else [following for following in tokens[:1] if not following.startswith("--")]
        # a preset's warmup is a bare fraction, the run's has a unit
        of_schedule = name and path[0] in arguments(name) and (path != ["warmup"] or all(map(_is_number, values)))
        of_cooldown = path[0] == "cooldown_schedule"
        if (of_schedule or of_cooldown or flag in own - _SWITCHES) and not any(values):
            raise ValueError(f"{flag} needs a value")
        if of_schedule:
            tokens = tokens if equals else tokens[1:]
            if path[-1] == "schedules" and not values[0].startswith("["):
                raise ValueError(f"{flag} must be a list such as [Linear,Cosine], got {shown(values[0])}")
            while path[-1] == "milestones" and tokens and _is_number(tokens[0]):
                values.append(tokens.pop(0))
            _set(schedules[-1][1], path, values, flag)
        elif of_cooldown:
            _set(cooldown, path, values, flag)
            tokens = tokens if equals else tokens[1:]
        elif flag in own:
            if flag in given and flag != "--output":
                raise ValueError(
                    f"{flag} is given twice; schedules with their own lr or warmup go into a --config file"
                )
            given.add(flag)
            run_flags.append(token if flag in _SWITCHES else f"{flag}={values[0]}")
            tokens = tokens if flag in _SWITCHES or equals else tokens[1:]
        else:
            known = (*(f"--{argument}" for argument in arguments(name)), *sorted(own)) if name else tuple(sorted(own))
            raise ValueError(
                with_hint(f"{name} has no argument {flag}" if name else f"unknown option {flag}", flag, known)
            )
    return run_flags, cooldown, schedules


def _set(init_args: dict[str, Any], path: list[str], values: list[str], flag: str) -> None:
    """Store the values of ``--a.b.c`` as LightningCLI does: b is an argument of the schedule in a."""
    for part in path[:-1]:
        nested = init_args.get(part)
        if nested is None:
            raise ValueError(f"{flag} needs --{part} NAME before it")
        if not isinstance(nested, dict):
            nested = init_args[part] = {"class_path": nested}
        init_args = nested.setdefault("init_args", {})
    if path[-1] in init_args:
        raise ValueError(f"{flag} is given twice")
    # YAML alone does not take 1e-3 for a number
    parsed = [
        float(value) if _is_number(value) and not value.lstrip("+-").isdigit() else parse_yaml(value, flag)
        for value in values
    ]
    if path[-1] == "milestones":
        init_args["milestones"] = [item for one in parsed for item in (one if isinstance(one, list) else [one])]
    else:
        (init_args[path[-1]],) = parsed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _curves(
    options: Namespace, cooldown: dict[str, Any], schedules: list[tuple[str, dict[str, Any]]]
) -> dict[str, _Curve]:
    run = {key: value for key in _RUN_KEYS if (value := options[key]) is not None} | cooldown
    curves: dict[str, _Curve] = {}
    if options.config is not None:
        settings, entries = _read(Path(options.config))
        run = {**settings, **run}
        for label, (entry, where) in entries.items():
            own: dict[str, Any] = {key: entry[key] for key in _OWN_KEYS if key in entry}
            plain = {key: value for key, value in entry.items() if key not in own}
            curves[label] = _curve(build_schedule(plain.get("schedule", plain), where), {**run, **own})
    for name, init_args in schedules:
        inside = ", ".join(
            f"{key}={value['class_path'] if isinstance(value, dict) else value}" for key, value in init_args.items()
        )
        label = f"{name}({inside})"
        if label in curves:
            raise ValueError(f"{label} is given twice")
        curves[label] = _curve(build_schedule({"class_path": name, "init_args": init_args}, name), run)
    if not curves:
        raise ValueError(f"name a schedule or give --config; known are {', '.join(names())}")
    for name, least in (("width", 20), ("height", 4)):
        if options[name] is not None:
            as_integer(name, options[name], least, most=1000)
    return curves


def _curve(schedule: Schedule, run: Mapping[str, Any]) -> _Curve:
    lr = as_number("lr", run.get("lr", 1.0), above=0.0)
    steps = as_integer("steps", run.get("steps", 1000), least=1)
    cooldown_schedule = build_schedule(run.get("cooldown_schedule", "OneMinusSqrt"), "cooldown_schedule")
    cooldown = _steps("cooldown", run, steps)
    if "cooldown" in run and cooldown == 0:
        raise ValueError(f"cooldown must be at least one of {steps:,} steps, got {shown(run['cooldown'])}")
    if "cooldown_schedule" in run and cooldown == 0:
        raise ValueError("cooldown_schedule needs --cooldown, the length of the cooldown")
    planned = PlannedFactor.of_run(schedule, steps, _steps("warmup", run, steps), cooldown, cooldown_schedule)
    if not math.isfinite(lr * max(map(planned, range(0, steps, max(1, steps // 1000))))):
        raise ValueError(f"lr must keep every LR finite, got {lr:g}")
    return _Curve(lr, steps, planned)


def _steps(name: str, run: Mapping[str, Any], steps: int) -> int:
    """Return the warmup or cooldown of a run in steps."""
    epochs = None if run.get("epochs") is None else as_integer("epochs", run["epochs"], least=1)
    duration = Duration.parse(run.get(name, "0step"), name)
    if duration.unit == "ep" and epochs is None:
        raise ValueError(f'{name}="{duration}" needs --epochs, the number of epochs of the run')
    return duration.length("step", steps, steps_of=(steps / (epochs or 1)).__mul__, name=name)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, tuple[dict[str, Any], str]]]:
    """Return the run's settings in a YAML file, and each of its schedules as plain data with its place in the file."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping with the key schedules or class_path, got {shown(content)}")
    alone = not content.keys().isdisjoint((*_CURVE_KEYS, "groups"))
    keys = (*_CURVE_KEYS, "groups") if alone else ("schedules",)
    check_keys(content, (*keys, *_RUN_KEYS), str(path))
    settings = {key: content[key] for key in _RUN_KEYS if key in content}
    entries = {None: {key: content[key] for key in keys if key in content}} if alone else content.get("schedules")
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path}: schedules must hold at least one schedule, got {shown(entries)}")
    labelled: dict[str, tuple[dict[str, Any], str]] = {}
    for label, given in entries.items():
        where = str(path) if alone else f"schedules.{label}"
        entry = _entry(given, where, "groups")
        groups = entry.pop("groups", {})
        if not isinstance(groups, dict):
            raise ValueError(f"{where}: groups must hold curves by the names of groups, got {shown(groups)}")
        label = label if isinstance(label, str) else _label(entry, labelled)
        labelled[label] = entry, where
        for pattern, of_group in groups.items():
            own = _entry(of_group, place := f"{where}.groups.{pattern}")
            has_curve = "class_path" in own or "schedule" in own
            of_run = {key: value for key, value in entry.items() if key in _OWN_KEYS or not has_curve}
            labelled[f"{pattern}" if alone else f"{label}/{pattern}"] = {**of_run, **own}, place
    if len(labelled) > _MOST_CURVES:
        raise ValueError(f"{path}: at most {_MOST_CURVES} schedules are drawn, got {len(labelled):,}")
    return settings, labelled


def _entry(given: Any, where: str, *more: str) -> dict[str, Any]:
    """Return a copy of what a file says about one curve, with known keys alone."""
    entry = {"class_path": given} if isinstance(given, str) else given
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: a schedule is a name or has the keys class_path and init_args, got {shown(entry)}")
    check_keys(entry, (*_CURVE_KEYS, *_OWN_KEYS, *more), where)
    if "schedule" in entry and "class_path" in entry:
        raise ValueError(f"{where}: give the schedule as schedule or as class_path, not as both")
    return {**entry}


def _label(entry: dict[str, Any], taken: Mapping[str, Any]) -> str:
    """Return a label for a schedule in the file that has no name."""
    schedule = entry.get("schedule", entry)
    name = str(schedule.get("class_path") if isinstance(schedule, dict) else schedule).rpartition(".")[2]
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


def _show(curves: Mapping[str, _Curve], options: Namespace) -> None:
    steps = max(curve.steps for curve in curves.values())
    drawn = of_stdout()
    drawn["width"] = options.width or drawn["width"]
    drawn["ascii_only"] |= options.ascii
    print(chart(curves, steps, height=options.height, **drawn))
    print()
    print("\n".join(_table(curves, steps)))


def _table(curves: Mapping[str, _Curve], steps: int) -> list[str]:
    """Return the LR at the notable points of any of the curves: a line for each, a column for each curve."""
    points: dict[int, str] = {}
    for curve in curves.values():
        for step, name in curve.notable().items():
            # a milestone, warmup or cooldown replaces a quarter of the run as the name of a step
            if step not in points or name in ("milestone", "end of warmup", "start of cooldown"):
                points[step] = name
    several = len(curves) > 1
    titles = [letter(index) for index in range(len(curves))] if several else ["LR"]
    rows = [["step", "progress", "", *titles]]
    for step, name in sorted(points.items()):
        values = [f"{curve(step):.6g}" for curve in curves.values()]
        rows.append([f"{step:,}", f"{step / steps:.1%}", name, *values])
    lines = aligned(rows, left=2)
    hidden = max(len(curve.factor.schedule.all_milestones()) for curve in curves.values()) - _MOST_MILESTONES
    return [*lines, f"and {hidden} more milestones"] if hidden > 0 else lines


def _bounds(curves: Mapping[str, _Curve]) -> list[str]:
    """Return a line for each curve: its convergence bound and best peak LR, as multiples of Linear's in that run."""
    rows = [["", "schedule", "bound against linear", "peak against linear"]]
    for index, (label, curve) in enumerate(curves.items()):
        own = bound_of_factors([curve.factor(step) for step in range(curve.steps)])
        linear = convergence_bound(Linear(), curve.steps, int(curve.factor.warmup_steps))
        cells = f"{own.value / linear.value:.4f}", f"{own.peak / linear.peak:.4f}"
        rows.append([letter(index) if len(curves) > 1 else "", label, *cells])
    return ["", *aligned(rows, left=1)]


def _write(path: Path, curves: Mapping[str, _Curve]) -> None:
    steps = max(curve.steps for curve in curves.values())
    if path.suffix.lower() == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "progress", *curves])
            writer.writerows(
                [step, step / steps, *(curve(step) for curve in curves.values())] for step in range(steps + 1)
            )
        return
    from lit_cosine.monitors import schedule_curves  # matplotlib takes longer to load than the rest of the command

    marks = range(steps + 1) if steps <= 20_000 else sorted({steps * k // 20_000 for k in range(20_001)})
    schedule_curves({name: (list(marks), [curve(step) for step in marks]) for name, curve in curves.items()}).savefig(
        path, dpi=120
    )
