"""Random histories of a run: its plan, and what changes before which update."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from lit_cosine import Constant, Cosine, Linear, OneMinusSqrt, Polynomial, Schedule, Sequential, Step
from lit_cosine.schedules import OnResize

PEAK = 0.2
MAPPABLE: list[Schedule] = [Cosine(end=0.1), Linear(end=0.02), OneMinusSqrt(end=0.05), Polynomial(end=0.3), Constant()]
OTHER: list[Schedule] = [
    Step(gamma=0.5, milestones=(0.4, 0.8)),
    Sequential((Linear(start=0.2, end=1), Cosine(end=0.1)), milestones=(0.25,)),
]


@dataclass
class Change:
    """What happens before update ``step``; N, W, C and schedule are those in the code that goes on."""

    step: int
    kind: str
    N: int
    W: int
    C: int
    schedule: Schedule
    lr: float = 0.0
    updates: int = 1


@dataclass
class History:
    schedule: Schedule
    N: int
    W: int
    C: int
    cooldown_schedule: Schedule
    policy: OnResize
    changes: list[Change]


@st.composite
def histories(draw: st.DrawFn) -> History:
    policy: OnResize = draw(st.sampled_from(["continue", "rescale", "keep", "restart"]))
    W, cools = draw(st.integers(0, 6)), draw(st.booleans())
    C = draw(st.integers(1, 12)) if cools else 0
    N = draw(st.integers(W + C + 2, 50))
    schedule = draw(st.sampled_from([*MAPPABLE, *OTHER]))
    run = History(schedule, N, W, C, draw(st.sampled_from([OneMinusSqrt(), Linear(end=0.1)])), policy, [])
    step = 0
    kinds = ["copy", "resume", "other code", "length", "length in place", "outside", "floor"]
    for _ in range(draw(st.integers(1, 3))):
        step = draw(st.integers(step, N - 1))
        kind = draw(st.sampled_from(kinds if policy == "keep" else [*kinds, "schedule"]))
        change = Change(step, kind, N, W, C, schedule)
        if kind in ("length", "length in place", "schedule"):
            N = change.N = draw(st.integers(max(step, W + 2) + 1, 60))
            C = change.C = draw(st.integers(1, min(12, N - W - 2))) if cools else 0
            W = change.W = draw(st.integers(0, min(6, N - C - 2))) if policy == "rescale" else W
        if kind == "schedule" and policy == "continue" and step >= min(run.N - run.C, N - C):
            change.kind = "length"  # nothing is left for another curve
        elif kind == "schedule":
            schedule = change.schedule = draw(
                st.sampled_from(MAPPABLE if policy == "continue" else [*MAPPABLE, *OTHER])
            )
        if kind in ("outside", "floor"):
            change.lr = PEAK * draw(st.sampled_from([0.0, 1e-4, 0.3, 0.9, 1.5, 4.0]))
            change.updates = draw(st.integers(2, 5)) if kind == "floor" else 1
        run.changes.append(change)
        step += change.updates
        if step >= N:
            return run
    before_every_cooldown = max(step, W) < min(code.N - code.C for code in (run, *run.changes))
    if before_every_cooldown and draw(st.booleans()):
        run.changes.append(Change(max(step, W), "start cooldown", N, W, C, schedule, updates=draw(st.integers(1, 15))))
        run.changes.append(Change(max(step, W) + 1, "resume", N, W, C, schedule))
    return run
