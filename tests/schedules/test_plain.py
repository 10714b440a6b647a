"""Schedules from plain data: what is found, what is refused in one short line, and data made to exhaust the reader."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from hypothesis import given
from omegaconf import OmegaConf

from lit_cosine.schedules import (
    Cosine,
    Linear,
    Restarts,
    Schedule,
    Sequential,
    Step,
    as_schedule,
    build_schedule,
    names,
    one_cycle,
    warmup_cosine,
)
from tests.helpers import strategies


@dataclass(frozen=True)
class Parabola(Schedule):
    end: float = 0.0

    def factor(self, progress: float) -> float:
        return 1 - (1 - self.end) * progress**2


@dataclass(frozen=True)
class Points(Schedule):
    """A polygon through points, with schedules of its own."""

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    label: str = "1e3"
    inner: Schedule | None = None

    def factor(self, progress: float) -> float:
        return 1.0 - progress


@given(strategies.schedules)
def test_plain_data_comes_back(schedule: Schedule) -> None:
    assert build_schedule(schedule.to_dict()) == schedule
    assert as_schedule("schedule", OmegaConf.create(schedule.to_dict())) == schedule


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("Cosine", Cosine()),
        ("lit_cosine.Cosine", Cosine()),
        ("lit_cosine.schedules.Cosine", Cosine()),
        ({"class_path": "Cosine", "init_args": None}, Cosine()),
        ({"class_path": "Cosine", "init_args": {"end": "1e-3"}}, Cosine(end=0.001)),
        ({"class_path": "one_cycle", "init_args": {"warmup": 0.2}}, one_cycle(0.2)),
        ({"class_path": "lit_cosine.warmup_cosine"}, warmup_cosine()),
        ({"class_path": "Restarts", "init_args": {"schedule": "Linear"}}, Restarts(Linear())),
        (
            {"class_path": "Sequential", "init_args": {"schedules": ["Linear", Step()], "milestones": ["5e-1"]}},
            Sequential((Linear(), Step()), (0.5,)),
        ),
        ("Parabola", Parabola()),
        (f"{__name__}.Parabola", Parabola()),
        ("moved.elsewhere.Parabola", Parabola()),
        ({"class_path": "Points", "init_args": {"points": [[0, 2], [1, "1e-1"]]}}, Points(((0, 2), (1, 0.1)))),
        ({"class_path": "Points", "init_args": {"inner": "Parabola"}}, Points(inner=Parabola())),
    ],
)
def test_what_is_found(plain: Any, expected: Schedule) -> None:
    assert build_schedule(plain) == expected


def test_text_that_looks_like_a_number_stays_text_where_text_belongs() -> None:
    assert build_schedule({"class_path": "Points", "init_args": {"label": "1e5", "inner": None}}).label == "1e5"


def test_names_are_those_of_the_package() -> None:
    assert "Parabola" not in names()
    assert {"Cosine", "Sequential", "one_cycle"} <= {*names()}


def test_a_bare_name_is_lit_cosines() -> None:
    other = type("Cosine", (Parabola,), {"__module__": "somewhere.else", "__qualname__": "Cosine"})
    assert type(build_schedule(Cosine().to_dict())) is Cosine
    assert type(build_schedule("Cosine")) is Cosine
    assert type(build_schedule(other().to_dict())) is other
    third = type("Cosine", (Parabola,), {"__module__": "third", "__qualname__": "Cosine"})
    with pytest.raises(ValueError, match=r"'gone.Cosine' could be any of somewhere.else.Cosine, third.Cosine; write"):
        build_schedule("gone.Cosine")
    del other, third
    gc.collect()  # a class is in cycles, and would be a second Cosine for the tests that follow


def test_a_class_that_this_process_does_not_know_is_not_replaced_by_ours() -> None:
    with pytest.raises(ValueError, match=r"^schedule: unknown schedule 'my_curves.Cosine'; did you mean Cosine\?$"):
        build_schedule("my_curves.Cosine")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "curves_of_mine.py").write_text(
        "from dataclasses import dataclass\nfrom lit_cosine import Schedule\n\n\n@dataclass(frozen=True)\n"
        "class Falling(Schedule):\n    def factor(self, progress: float) -> float:\n        return 1 - progress\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "curves_of_mine"
    sys.modules.pop("curves_of_mine", None)
    gc.collect()


def test_a_module_is_imported_only_on_request(own_module: str) -> None:
    plain = {"class_path": f"{own_module}.Falling"}
    with pytest.raises(ValueError, match=r"unknown schedule 'curves_of_mine.Falling'"):
        build_schedule(plain)
    assert own_module not in sys.modules
    assert build_schedule(plain, imports=True)(0.25) == 0.75
    assert build_schedule(plain)(0.25) == 0.75
    with pytest.raises(ValueError, match=r"unknown schedule 'os.system'"):
        build_schedule("os.system", imports=True)
    with pytest.raises(ValueError, match=r"unknown schedule 'no_such_module.Rising'"):
        build_schedule("no_such_module.Rising", imports=True)


@pytest.mark.parametrize("path", [".curves.Falling", "..Falling", "broken_curves.Falling"])
def test_a_module_that_cannot_be_imported_is_one_line(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_curves.py").write_text("from os import no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^schedule: cannot import '") as raised:
        build_schedule(path, imports=True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (3, "schedule: a schedule is a name or has the keys class_path and init_args, got 3"),
        ({"end": 0.1}, "schedule: unknown key 'end'; known are class_path, init_args"),
        ({"class_path": "Cosine", "dict_kwargs": {}}, "schedule: unknown key 'dict_kwargs'"),
        ({"class_path": ["Cosine"]}, r"schedule: class_path must name a schedule, got \['Cosine'\]"),
        ({"class_path": "os.system"}, "schedule: unknown schedule 'os.system'"),
        ({"class_path": "torch.nn.Linear"}, r"schedule: unknown schedule 'torch.nn.Linear'; did you mean Linear\?"),
        ({"class_path": "lit_cosine.Schedule"}, "schedule: unknown schedule 'lit_cosine.Schedule'"),
        ({"class_path": "Cosin"}, r"schedule: unknown schedule 'Cosin'; did you mean Cosine\?"),
        (
            {"class_path": "Cosine", "init_args": torch.zeros(2)},
            "schedule: init_args must hold the arguments by name, got",
        ),
        ({"class_path": "Cosine", "init_args": [1]}, r"schedule: init_args must hold the arguments by name, got \[1\]"),
        (
            {"class_path": "Cosine", "init_args": {"floor": 1}},
            "schedule.init_args.floor: Cosine has no argument 'floor",
        ),
        ({"class_path": "Cosine", "init_args": {"edn": 1}}, r".*has no argument 'edn'; did you mean end\?"),
        ({"class_path": "Cosine", "init_args": {"end": "big"}}, "schedule: Cosine.end must be a number, got 'big'"),
        ({"class_path": "Cosine", "init_args": {"end": -1}}, "schedule: Cosine.end must be finite and >= 0, got -1"),
        ({"class_path": "Sequential", "init_args": {"schedules": []}}, "schedule: Sequential needs milestones"),
        (
            {"class_path": "Sequential", "init_args": {"schedules": ["Cosine", {"class_path": "Stpe"}]}},
            "schedule: Sequential needs milestones",
        ),
        (
            {"class_path": "Sequential", "init_args": {"schedules": ["Linear", "Stpe"], "milestones": [0.5]}},
            r"schedule.init_args.schedules\[1\]: unknown schedule 'Stpe'; did you mean Step\?",
        ),
    ],
)
def test_what_is_refused(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build_schedule(plain)
    if not isinstance(plain, str):
        with pytest.raises(ValueError, match=f"^{message}"):
            Schedule.from_dict(plain)


def nested(depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {"class_path": "Cosine"}
    for _ in range(depth - 1):
        plain = {"class_path": "Restarts", "init_args": {"schedule": plain, "cycles": 1}}
    return plain


CYCLIC = "&a {class_path: Sequential, init_args: {schedules: [*a, *a], milestones: [0.5]}}"
CYCLIC_LIST = "{class_path: Step, init_args: {milestones: &a [*a, *a]}}"
EXPLODING = "\n".join(
    ["a0: &a0 {class_path: Cosine}"]
    + [
        f"a{level}: &a{level} {{class_path: Sequential, "
        f"init_args: {{schedules: [*a{level - 1}, *a{level - 1}], milestones: [0.5]}}}}"
        for level in range(1, 60)
    ]
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (yaml.safe_load(CYCLIC), "schedules nest at most 100 deep"),
        (yaml.safe_load(CYCLIC_LIST), "the data is nested too deep or contains itself"),
        (yaml.safe_load(EXPLODING)["a59"], "pieces"),
        (nested(101), "schedules nest at most 100 deep"),
        (nested(3_000), "schedules nest at most 100 deep"),
        (
            {"class_path": "Sequential", "init_args": {"schedules": ["Cosine"] * 10**6, "milestones": []}},
            "10,000 pieces",
        ),
        ({"class_path": "Step", "init_args": {"milestones": [0.5] * 15_000}}, "Step.milestones must rise"),
        ({"class_path": "Restarts", "init_args": {"cycles": 10**300}}, r"below 2\*\*63"),
        ({"class_path": "x" * 10**6}, "unknown schedule 'xxx"),
        ({"class_path": "Cosine", "init_args": {"y" * 10**6: 1}}, "has no argument 'yyy"),
        ({"class_path": "Cosine", "init_args": {"end": "two\nlines " * 100}}, "Cosine.end must be a number"),
        ({"class_path": "Cosine\nStep"}, "unknown schedule"),
        ({"class_path": "Cosine", "init_args": {"e\nnd": 1}}, "has no argument"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_hostile_data_gets_one_short_line(plain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        build_schedule(plain)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_a_hundred_levels_are_read() -> None:
    assert build_schedule(nested(100))(0.5) == 0.5


# --- Hydra ---

HYDRA = """
_target_: lit_cosine.Sequential
schedules:
- {_target_: lit_cosine.Linear, start: 0.1, end: 1}
- {_target_: lit_cosine.Step, milestones: [0.25, 0.5]}
- {_target_: lit_cosine.Restarts, schedule: {_target_: lit_cosine.Cosine, end: 0.5}, cycles: 2}
milestones: [0.2, 0.4]
"""
HYDRA_BUILDS = Sequential(
    (Linear(start=0.1, end=1), Step(milestones=(0.25, 0.5)), Restarts(Cosine(end=0.5), 2)), milestones=(0.2, 0.4)
)


@pytest.mark.parametrize("convert", ["", "_convert_: all"])
def test_hydra_builds_a_nested_schedule(convert: str) -> None:
    built = instantiate(OmegaConf.create(HYDRA + convert))
    assert built == HYDRA_BUILDS
    assert Schedule.from_dict(built.to_dict()) == built
