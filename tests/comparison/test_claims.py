"""Verdicts on made-up trainings whose differences are known, and a small real run of the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_cosine import Comparison, Constant, Schedule
from lit_cosine.cli.main import main
from lit_cosine.comparison import CONTESTANTS, gather, judge, record, verdicts_table
from lit_cosine.comparison._claims import CLAIMS, HALF, Evidence, Found, flatter_cross_entropy
from lit_cosine.comparison._evidence import AVERAGED, _search
from lit_cosine.comparison._statistics import paired_differences
from lit_cosine.comparison.stacked import cross_entropy

SPLITS = 10
NOISE = np.random.default_rng(0).normal(0.0, 0.001, (40, SPLITS))
LEVEL = np.random.default_rng(1).normal(0.0, 0.3, SPLITS)
"""Splits are of different difficulty, which is the same for every schedule."""


def trained(curve: list[float], number: int, lrs: tuple[float, ...], worse: tuple[float, ...]) -> Comparison:
    """Trainings with a validation curve and, at its end, a test loss like it; ``worse`` is added at each LR."""
    kind = np.dtype([("val/loss", float, (len(curve),)), ("train_loss", float, (2,)), ("test/loss", float)])
    members = np.zeros((SPLITS, 1, len(lrs)), dtype=kind)
    for at, more in enumerate(worse):
        members["val/loss"][:, 0, at] = np.array(curve) + more + LEVEL[:, None]
        members["test/loss"][:, 0, at] = curve[-1] + more + LEVEL + NOISE[number]
        members["train_loss"][:, 0, at] = [curve[0], curve[-1]]
    return Comparison(
        {"x": Constant()}, lrs, (0,), "x", 100, members, {}, tuple(range(SPLITS)), "val/loss", "test/loss", overlap=0.1
    )


def found(curve: list[float], number: int, slope: float = 0.1, schedule: Schedule = Constant()) -> Found:
    lrs = (0.01, 0.02, 0.04)
    tried = trained(curve, number, lrs, (slope, 0.0, slope))
    grid = dict(zip(lrs, tried.values("val/loss")[:, 0].mean(axis=0).tolist(), strict=True))
    return Found(schedule, 0.02, grid, False, tried, trained(curve, number, (0.02,), (0.0,)))


RANKS = (
    (AVERAGED,),
    ("constant, last 20 % 1-sqrt",),
    ("1-sqrt", "constant, last 20 % linear"),
    ("linear",),
    ("cosine", "late cosine"),
    ("cosine to 10 %", HALF),
    ("step", "constant"),
)


def evidence(step: float = 0.1, slope: float = 0.1) -> Evidence:
    """The contestants, each rank ``step`` above the one before; other LRs are ``slope`` worse."""
    field = {}
    for rank, names in enumerate(RANKS):
        end = 2.0 + step * rank
        for name in names:
            # the cosine is down early and never climbs
            curve = [3.0, end, end, end] if name == "cosine" else [3.0, 3.1, 3.2, end]
            field[name] = found(curve, len(field), slope, CONTESTANTS.get(name, Constant()))
    one = (0.1,)
    return Evidence(field, 400, trained([2.0, 1.5], 30, one, (0.0,)), trained([0.2, 0.14], 31, one, (0.0,)))


def changed(given: Evidence, **field: Found) -> Evidence:
    return replace(given, field={**given.field, **field})


def verdicts(given: Evidence) -> dict[str, str]:
    return {each.claim: each.verdict for each in judge({"made up": given})}


def effect(given: Evidence, start: str) -> str:
    (one,) = [each.effect for each in judge({"made up": given}) if each.claim.startswith(start)]
    return one


def test_every_claim_is_supported_where_the_numbers_say_so() -> None:
    judged = verdicts(evidence())
    assert {*judged} == {claim.claim for claim in CLAIMS}
    assert set(judged.values()) == {"supported"}


def test_the_opposite_is_found_where_the_numbers_say_the_opposite() -> None:
    given = evidence(step=-0.1, slope=0.0)
    slow = found([3.0, 3.5, 3.0, 3.4, 1.6], 40 - 1, 0.0)
    judged = verdicts(changed(given, cosine=slow, step=found([3.0, 1.4, 1.4, 1.4, 1.4], 38)))
    assert judged["Cosine reaches the final loss of step in fewer steps"] == "opposite"
    assert judged["Cosine is steadier than step: its loss climbs less"] == "opposite"
    losses = {claim: verdict for claim, verdict in judged.items() if " below " in claim or "generalises" in claim}
    assert set(losses.values()) == {"opposite"}
    assert judged["The initial LR matters by more than 1 %: half or double the best"] == "opposite"


def test_no_difference_is_undecided() -> None:
    judged = verdicts(evidence(step=0.0))
    assert {judged[claim] for claim in judged if " ends below " in claim or "generalises" in claim} == {"undecided"}


def test_effects_are_stated_with_their_intervals() -> None:
    given = evidence()
    assert effect(given, "Constant, last 20 % 1-sqrt ends below constant,").startswith("0.1 nats lower, 0.09")
    assert effect(given, "Cosine reaches the final loss of constant") == "200 steps lower, 200 to 200"
    assert effect(given, "Cosine is steadier") == "0.2 nats lower, 0.2 to 0.2"
    assert "% of the loss, " in effect(given, "The minimum LR")


def test_a_best_lr_at_the_edge_leaves_the_claim_undecided_and_says_so() -> None:
    given = evidence()
    linear = replace(given.field["linear"], at_edge=True)
    judged = {each.claim: each for each in judge({"made up": changed(given, linear=linear)})}
    edged = judged["Linear ends below constant"]
    assert edged.verdict == "undecided"
    assert edged.effect.endswith("; the best LR of linear, 0.02, is at the edge of its grid after 0 widenings")
    assert judged["Cosine ends below cosine to 10 %"].verdict == "supported"


def test_without_an_interval_a_claim_is_undecided() -> None:
    given = evidence()
    given.field["cosine"].final.members["test/loss"][1:] = math.nan
    judged = {each.claim: each for each in judge({"made up": given})}
    one = judged["Cosine generalises better than constant"]
    assert (one.verdict, one.effect[-29:]) == ("undecided", "lower; no interval from 1 split"[-29:])


def test_the_family_is_every_claim_on_every_data_set() -> None:
    given = {"one": evidence(), "two": evidence(step=0.001)}
    judged = judge(given)
    assert len(judged) == 2 * len(CLAIMS)
    alone = [paired_differences([claim.measure(each)], overlap=0.1)[0].p for claim in CLAIMS for each in given.values()]
    order, largest, expected = np.argsort(alone, kind="stable"), 0.0, [0.0] * len(alone)
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(alone) - rank) * alone[index]))
        expected[index] = largest
    assert [each.p for each in judged] == pytest.approx(expected, rel=1e-12)


def test_contestants_that_were_not_trained_are_left_out() -> None:
    given = evidence()
    field = {name: each for name, each in given.field.items() if name != AVERAGED}
    claims = [each.claim for each in judge({"tabular": Evidence(field, 400)})]
    assert not [claim for claim in claims if "averaging" in claim or "SGD" in claim]


@pytest.mark.parametrize(
    ("best", "lowest", "highest", "at_edge"), [(0.16, 0.01, 0.32, False), (99.0, 0.01, 2.56, True)]
)
def test_the_grid_is_widened_until_the_best_is_inside(
    best: float, lowest: float, highest: float, at_edge: bool
) -> None:
    asked = []

    def train(schedules: dict[str, Schedule], lrs: list[float], splits: int) -> Comparison:
        asked.append((len(lrs), splits))
        worse = tuple(abs(math.log(lr / best)) for lr in lrs)
        return replace(trained([3.0, 2.0], 0, tuple(lrs), worse), schedules=schedules)

    one = _search(train, "linear", CONTESTANTS["linear"], 400, 10, 5)
    assert (min(one.grid), max(one.grid), one.at_edge) == (lowest, highest, at_edge)
    assert asked == [*((n, 5) for n in range(3, len(one.grid) + 1)), (1, 10)]
    assert one.lr == (highest if at_edge else best)


def test_the_flatter_surface_is_ten_times_flatter() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert float(flatter_cross_entropy(logits, labels)) == pytest.approx(float(cross_entropy(logits, labels)) / 10)


def test_the_record_is_plain_and_finite() -> None:
    given = {"made up": evidence()}
    given["made up"].field["linear"].final.members["test/loss"][0] = math.nan
    plain = json.loads(json.dumps(record(given, judge(given), "lit-cosine compare --claims"), allow_nan=False))
    linear = plain["data"]["made up"]["schedules"]["linear"]
    assert (linear["bound"], linear["peak"], linear["test"][0], len(linear["test"])) == (1.0, 1.0, None, SPLITS)
    assert len(plain["verdicts"]) == len(CLAIMS)
    assert verdicts_table(judge(given)).row_count == len(CLAIMS)
    assert {"python", "torch", "lightning", "lit-cosine"} <= {*plain["versions"]}


@pytest.mark.slow
def test_the_command_states_its_time_and_resumes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--claims", "--data", "article", "--splits", "2", "--seeds", "1", "--max_epochs", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "minutes on one core" in said.splitlines()[0]
    written = Path("runs/claims/claims.json").read_text()
    assert main(arguments) == 0
    assert Path("runs/claims/claims.json").read_text() == written


@pytest.mark.slow
def test_a_task_with_a_module_of_its_own(tmp_path: Path) -> None:
    given = gather("char", tmp_path, splits=2, max_epochs=1, contestants={"cosine": CONTESTANTS["cosine"]})
    assert {*given.field} == {"cosine", HALF, AVERAGED}
    assert given.field["cosine"].test.shape == (2,)
    again = gather("char", tmp_path, splits=2, max_epochs=1, contestants={"cosine": CONTESTANTS["cosine"]})
    assert again.field["cosine"].test.tolist() == given.field["cosine"].test.tolist()


def test_other_options_are_refused(capsys) -> None:
    assert main(["compare", "--claims", "--lrs", "0.1"]) == 2
    assert "--lrs must be left out with --claims, whose schedules and LRs are fixed" in capsys.readouterr().err
    assert main(["compare", "--claims", "--splits", "0"]) == 2
    assert "splits must be an integer >= 1, got 0" in capsys.readouterr().err
    assert main(["compare", "--claims", "--data", "wine"]) == 2
    assert (
        "--data must be one of article, digits, breast_cancer, char, mnist1d with --claims" in capsys.readouterr().err
    )
