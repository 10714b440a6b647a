import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_cosine import Constant, Cosine, Schedule, Step
from lit_cosine.claims import CLAIMS, LATE, Evidence, Finding, flatter_cross_entropy, judge
from lit_cosine.comparison import Comparison
from lit_cosine.ensemble import cross_entropy
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
    given = evidence(good=True)
    one = {
        name: Comparison(**{**vars(found), "members": found.members[:1], "seeds": (0,)})
        for name, found in (("field", given.field), ("floors", given.floors))
    }
    lengths = {
        epochs: Comparison(**{**vars(found), "members": found.members[:1], "seeds": (0,)})
        for epochs, found in given.lengths.items()
    }
    judged = verdicts(Evidence(one["field"], one["floors"], lengths, given.steep, given.flat))
    assert {judged[claim] for claim in (FASTER, BETTER, STEADIER, LATER, INITIAL, MINIMUM, EPOCHS)} == {"not testable"}


def test_a_field_that_diverged_is_not_testable() -> None:
    given = evidence(good=True)
    given.field.members["val_loss"][:] = math.nan
    judged = verdicts(given)
    assert {judged[claim] for claim in (FASTER, BETTER, STEADIER, LATER, INITIAL)} == {"not testable"}


def test_the_figure_holds_the_numbers() -> None:
    figures = {finding.claim: finding.figure for finding in judge(evidence(good=True), "made up")}
    # constant ends at 0.3 after 30 steps; the cosine is there after 20, step after 30
    assert figures[FASTER].startswith("optimizer steps to a validation loss of 0.3: cosine minus constant -10 ")
    assert "LR 0.2 minus LR 0.1 +0.6" in figures[INITIAL]
    assert "2 epochs minus 10 epochs +0.2" in figures[EPOCHS]
    assert "went down by 0.4 on the surface and by 0.1 of the same height" in figures[FLAT]


def test_the_flatter_surface_is_ten_times_flatter() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert float(flatter_cross_entropy(logits, labels)) == pytest.approx(float(cross_entropy(logits, labels)) / 10)


def test_findings_as_files_and_table(tmp_path: Path) -> None:
    findings = [finding for name in ("a", "b") for finding in judge(evidence(good=name == "a"), name)]
    write_findings(findings, tmp_path)
    assert [Finding(**record) for record in json.loads((tmp_path / "claims.json").read_text())] == findings
    text = (tmp_path / "claims.md").read_text()
    assert f"| {BETTER} | supported | not supported |" in text
    assert f"| {FLAT} | not supported | not supported |" in text
    assert findings_table(findings).row_count == 16
