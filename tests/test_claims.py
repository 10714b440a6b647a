import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_cosine import Constant, Cosine, Schedule, Step
from lit_cosine.claims import CLAIMS, LATE, Evidence, Finding, flatter_cross_entropy, judge
from lit_cosine.comparison import Comparison
from lit_cosine.member import cross_entropy
from lit_cosine.report import findings_table, write_findings

FASTER, BETTER, STEADIER, LATER, INITIAL, MINIMUM, EPOCHS, FLAT = (claim.claim for claim in CLAIMS)
SEEDS = 6


def made(curves: dict[str, list[float]], test: dict[str, list[float]], schedules: dict[str, Schedule]) -> Comparison:
    """A comparison with the given validation curves and test losses by LR, and a little noise over seeds."""
    epochs = len(next(iter(curves.values())))
    lrs = len(next(iter(test.values())))
    curve = [(name, float, (epochs,)) for name in ("train_loss", "val_loss", "val_accuracy")]
    members = np.zeros((SEEDS, len(schedules), lrs), dtype=[*curve, ("test_loss", float), ("test_accuracy", float)])
    noise = np.random.default_rng(0).normal(0.0, 0.001, (SEEDS, len(schedules), lrs))
    for index, name in enumerate(schedules):
        for lr in range(lrs):
            # the last validation loss ranks LRs as the test loss does
            members["val_loss"][:, index, lr] = np.array(curves[name]) + 0.1 * (test[name][lr] - min(test[name]))
            members["train_loss"][:, index, lr] = members["val_loss"][:, index, lr]
            members["test_loss"][:, index, lr] = test[name][lr] + noise[:, index, lr]
    lr_values = tuple(0.1 * (lr + 1) for lr in range(lrs))
    return Comparison(dict(schedules), lr_values, tuple(range(SEEDS)), next(iter(schedules)), 10, members, {})


FIELD: dict[str, Schedule] = {"constant": Constant(), "step": Step(), "cosine": Cosine(), **LATE}
FLOORS: dict[str, Schedule] = {"floor 0": Cosine(), "floor 0.3": Cosine(end=0.3)}


def evidence(good: bool) -> Evidence:
    """Everything as the article says, or everything the other way round."""
    fast, slow = [0.9, 0.3, 0.2], [0.9, 0.8, 0.3]
    wavy = [0.5, 0.9, 0.3]
    curves = {"constant": slow, "step": wavy, "cosine": fast, "late cosine": slow}
    test = {"constant": [0.5, 0.9], "step": [0.5, 0.9], "cosine": [0.3, 0.9], "late cosine": [0.4, 0.8]}
    if not good:
        curves |= {"cosine": wavy, "constant": fast, "step": fast}
        test = {"constant": [0.3, 0.9], "step": [0.3, 0.9], "cosine": [0.5, 0.5], "late cosine": [0.4, 0.8]}
    floors = {"floor 0": [0.3], "floor 0.3": [0.5 if good else 0.3]}
    one = {"cosine": Cosine()}
    lengths = {
        epochs: made({"cosine": [0.5, loss]}, {"cosine": [loss]}, one)
        for epochs, loss in ((2, 0.5), (10, 0.3 if good else 0.5))
    }
    steep = made({"cosine": [0.9, 0.5]}, {"cosine": [0.5]}, one)
    flat = made({"cosine": [0.09, 0.08]}, {"cosine": [0.08]}, one)
    return Evidence(
        made(curves, test, FIELD),
        made({n: [0.5, v[0]] for n, v in floors.items()}, floors, FLOORS),
        lengths,
        steep,
        flat,
    )


def verdicts(given: Evidence) -> dict[str, str]:
    return {finding.claim: finding.verdict for finding in judge(given, "made up")}


def test_every_claim_is_supported_where_the_numbers_say_so_and_the_wrong_one_never() -> None:
    assert verdicts(evidence(good=True)) == {
        **dict.fromkeys((FASTER, BETTER, STEADIER, LATER, INITIAL, MINIMUM, EPOCHS), "supported"),
        FLAT: "not supported",
    }


def test_no_claim_is_supported_where_the_numbers_say_otherwise() -> None:
    assert set(verdicts(evidence(good=False)).values()) == {"not supported"}


def test_one_seed_is_not_testable() -> None:
    def one(found: Comparison) -> Comparison:
        return Comparison(**{**vars(found), "members": found.members[:1], "seeds": (0,)})

    given = evidence(good=True)
    lengths = {epochs: one(found) for epochs, found in given.lengths.items()}
    judged = Evidence(one(given.field), one(given.floors), lengths, one(given.steep), one(given.flat))
    assert set(verdicts(judged).values()) == {"not testable"}


def test_a_field_that_diverged_is_not_testable() -> None:
    given = evidence(good=True)
    given.field.members["val_loss"][:] = math.nan
    judged = verdicts(given)
    assert {judged[claim] for claim in (FASTER, BETTER, STEADIER, LATER, INITIAL)} == {"not testable"}


def figures(given: Evidence) -> dict[str, str]:
    return {finding.claim: finding.figure for finding in judge(given, "made up")}


def test_the_figure_holds_the_numbers() -> None:
    shown = figures(evidence(good=True))
    # constant ends at 0.3 after 30 steps; the cosine is there after 20, step after 30
    assert shown[FASTER].startswith("optimizer steps to a validation loss of 0.3: cosine minus constant -10 ")
    assert "counted as 40 steps: cosine in 0, constant in 0, step in 0 of 6 seeds" in shown[FASTER]
    assert "LR 0.2 minus LR 0.1 +0.6" in shown[INITIAL]
    assert "2 epochs minus 10 epochs +0.2" in shown[EPOCHS]
    assert shown[EPOCHS].endswith(" on 0.3")
    assert "-0.1 on the surface flatter and -0.4 on the surface as it is" in shown[FLAT]
    assert "the LRs of the 20 steps differ by at most 0" in shown[FLAT]


def test_a_loss_that_is_never_reached_is_counted_one_epoch_after_the_end() -> None:
    given = evidence(good=True)
    given.field.members["val_loss"][:2, 2] = 0.9  # two seeds of the cosine, at every LR
    figure = figures(given)[FASTER]
    assert "cosine in 2, constant in 0, step in 0 of 6 seeds" in figure
    assert f"cosine minus constant {(4 * 20 + 2 * 40) / 6 - 30:+.3g} " in figure


def test_steadiness_is_compared_at_one_lr() -> None:
    given = evidence(good=True)
    # at its own best LR the cosine does not climb; at step's, the other one, it climbs more than step
    given.field.members["val_loss"][:, 1, 0] += 1.0
    given.field.members["val_loss"][:, 2, 1] = [0.5, 1.5, 1.0]
    assert figures(given)[STEADIER].startswith(
        "sum of the climbs of the validation loss at LR 0.2: cosine minus step +0.6"
    )
    assert verdicts(given)[STEADIER] == "not supported"


@pytest.mark.parametrize(("difference", "verdict"), [(0.02, "supported"), (0.002, "not supported")])
def test_a_choice_needs_care_where_it_makes_more_than_a_percent(difference: float, verdict: str) -> None:
    given = evidence(good=True)
    given.floors.members["test_loss"][:, 1] = given.floors.members["test_loss"][:, 0] + difference  # on 0.3
    assert verdicts(given)[MINIMUM] == verdict


def test_a_floor_that_is_the_initial_lr_is_none() -> None:
    given = evidence(good=True)
    floors = Comparison(**{**vars(given.floors), "schedules": {"floor 0": Cosine(), "floor 1": Cosine(end=1.0)}})
    judged = judge(Evidence(given.field, floors, given.lengths, given.steep, given.flat), "made up")
    (minimum,) = (finding for finding in judged if finding.claim == MINIMUM)
    assert (minimum.verdict, minimum.figure) == ("not testable", "fewer than two options did not diverge")


def test_seeds_that_diverged_are_counted_in_the_figure() -> None:
    given = evidence(good=True)
    given.field.members["test_loss"][0, 2, 0] = math.nan  # the cosine at one LR, and at the other for all seeds
    given.field.members["test_loss"][:, 2, 1] = math.nan
    given.field.members["test_loss"][0, 0] = math.nan
    judged = figures(given)
    assert "5 of 6 pairs, the others diverged" in judged[BETTER]
    assert judged[INITIAL].endswith("; LR 0.2 diverged for every seed")


def test_the_flatter_surface_is_ten_times_flatter() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert float(flatter_cross_entropy(logits, labels)) == pytest.approx(float(cross_entropy(logits, labels)) / 10)


def test_findings_as_files_and_table(tmp_path: Path) -> None:
    findings = [finding for name in ("a", "b") for finding in judge(evidence(good=name == "a"), name)]
    write_findings(findings, tmp_path, "6 seeds")
    assert [Finding(**record) for record in json.loads((tmp_path / "claims.json").read_text())] == findings
    text = (tmp_path / "claims.md").read_text()
    assert f"| {BETTER} | supported | not supported |" in text
    assert f"| {FLAT} | not supported | not supported |" in text
    assert findings_table(findings).row_count == 16
