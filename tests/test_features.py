"""The table in docs/features.md: every cell is played with the library it is about, a "no" as well as a "yes".

Cells that a test elsewhere has shown name that test. An empty cell claims nothing: the library has no part for it, or
none that was played.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers import features
from tests.helpers.features import NO, SOME, YES

LIBRARIES = ("lit_cosine", "torch", "Lightning", "transformers", "timm", "composer", "Megatron-core", "optax")
OPTIONAL = LIBRARIES[3:]
ROOT = Path(__file__).parents[1]

Proof = Callable[[str, Path], str] | str


class Cell(NamedTuple):
    """What a library does, and the function here that plays it or the test elsewhere that has."""

    outcome: str
    proof: Proof


def played(proof: Callable[[str, Path], str], **outcomes: str) -> dict[str, Cell]:
    return {library: Cell(outcome, proof) for library, outcome in outcomes.items()}


def shown(test: str, **outcomes: str) -> dict[str, Cell]:
    return {library: Cell(outcome, test) for library, outcome in outcomes.items()}


FAULTS = "tests.audit.test_faults::test_fault_"
TABLE: dict[str, dict[str, Cell]] = {
    "The length of the run is the Trainer's own": shown(
        "tests.training.test_learning_rate_scheduler::test_both_roads_are_one", lit_cosine=YES
    )
    | played(
        features.takes_the_length,
        torch=NO,
        Lightning=YES,
        transformers=YES,
        timm=NO,
        composer=YES,
        **{"Megatron-core": NO, "optax": NO},
    ),
    "… under `max_time` and changing accumulation too; a run without a length is refused": shown(
        FAULTS + "4_lengths_that_the_trainer_gets_wrong", lit_cosine=YES, Lightning=NO
    ),
    "Accumulated batches count as one update": shown(
        "tests.training.test_learning_rate_scheduler::test_both_roads_are_one", lit_cosine=YES
    )
    | played(features.counts_updates, Lightning=YES, transformers=YES),
    "An update that a GradScaler skips does not use up the schedule": shown(
        FAULTS + "7_updates_that_the_grad_scaler_skips_use_up_the_schedule", lit_cosine=YES, Lightning=NO
    )
    | played(features.passes_over_skipped_updates, transformers=YES),
    "Resumed with more epochs, the LR reaches its end without a jump": shown(
        FAULTS + "2_a_resume_with_more_epochs_climbs", Lightning=NO
    )
    | played(
        features.goes_on_without_a_jump,
        lit_cosine=YES,
        torch=NO,
        transformers=NO,
        timm=NO,
        composer=NO,
        **{"Megatron-core": NO, "optax": NO},
    ),
    "A cosine holds its end when the run continues": played(
        features.holds_its_end,
        lit_cosine=YES,
        torch=NO,
        transformers=NO,
        timm=YES,
        composer=YES,
        **{"Megatron-core": YES, "optax": YES},
    ),
    "A param group that joins is scheduled": played(
        features.takes_in_a_group, lit_cosine=YES, torch=SOME, transformers=NO, timm=NO, composer=NO
    )
    | played(features.takes_in_a_backbone, Lightning=SOME),
    "A change of the LR from outside lasts": played(
        features.keeps_a_change,
        lit_cosine=YES,
        torch=SOME,
        transformers=NO,
        timm=NO,
        composer=NO,
        **{"Megatron-core": NO},
    ),
    "What an LR finder finds lasts": shown(FAULTS + "9_the_found_learning_rate_lasts_one_step", lit_cosine=YES)
    | played(features.keeps_what_a_finder_found, Lightning=SOME),
    "No update of a warmup is made at LR 0": played(
        features.warms_up_above_zero,
        lit_cosine=YES,
        torch=YES,
        transformers=SOME,
        timm=SOME,
        composer=NO,
        **{"Megatron-core": SOME, "optax": SOME},
    ),
    "A floor is a share of each group's LR": played(
        features.scales_the_floor,
        lit_cosine=YES,
        torch=NO,
        transformers=YES,
        timm=NO,
        composer=YES,
        **{"Megatron-core": NO},
    ),
    "A short run's LR is logged by default, the last value too": shown(
        FAULTS + "8_the_monitor_writes_no_point_on_a_short_run", lit_cosine=YES, Lightning=NO
    )
    | played(features.logs_a_short_run, transformers=NO),
    "A wrong plan is named before the first update": shown(
        FAULTS + "1_a_horizon_in_steps_played_once_an_epoch", Lightning=NO
    )
    | shown("tests.audit.test_audit_runs::test_raise_stops_before_the_first_update", lit_cosine=YES),
    "Manual optimization is scheduled without a call": shown(
        FAULTS + "11_manual_optimization_forgets_the_scheduler", lit_cosine=YES, Lightning=NO
    ),
    "A schedule is a value: `==`, `repr`, pickle": played(
        features.is_a_value,
        lit_cosine=YES,
        torch=NO,
        transformers=NO,
        timm=NO,
        composer=NO,
        **{"Megatron-core": NO, "optax": NO},
    ),
    "Chosen by flags or YAML alone": shown("tests.test_projects::TestYamlAlone.test_the_command_alone", lit_cosine=YES)
    | played(features.takes_flags, Lightning=YES, transformers=YES),
    "What a resume needs loads with `weights_only=True`": played(
        features.loads_as_plain_data,
        lit_cosine=YES,
        torch=YES,
        transformers=YES,
        timm=YES,
        composer=NO,
        **{"Megatron-core": YES},
    ),
    "A tensor LR is filled in place, for captured steps": played(
        features.fills_a_tensor,
        lit_cosine=YES,
        torch=YES,
        transformers=YES,
        timm=NO,
        composer=YES,
        **{"Megatron-core": NO},
    ),
    "Momentum is driven too": played(features.drives_momentum, lit_cosine=YES, torch=SOME, optax=YES),
    "The LR follows a metric": played(features.follows_a_metric, lit_cosine=NO, torch=YES, transformers=YES, optax=YES)
    | played(features.follows_a_logged_metric, Lightning=YES),
    "Noise on the LR": played(features.adds_noise, lit_cosine=NO, torch=NO, timm=YES),
    "Lengths in samples": played(features.counts_samples, lit_cosine=NO, composer=YES, **{"Megatron-core": YES}),
}
PLAYED = [
    pytest.param(
        row,
        library,
        id=f"{cell.proof.__name__}-{library}",
        marks=[pytest.mark.features] if library in OPTIONAL else [],
    )
    for row, cells in TABLE.items()
    for library, cell in cells.items()
    if callable(cell.proof)
]


# 2026-11, lightning 2.6.6: LightningCLI sees pytest's own arguments beside those that it is given
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter:UserWarning")
@pytest.mark.parametrize(("row", "library"), PLAYED)
def test_cell(row: str, library: str, tmp_path: Path) -> None:
    cell = TABLE[row][library]
    assert cell.proof(library, tmp_path) == cell.outcome  # type: ignore[operator]


def test_cells_that_are_shown_elsewhere_name_a_test() -> None:
    for cells in TABLE.values():
        for cell in cells.values():
            if isinstance(cell.proof, str):
                module, name = cell.proof.split("::")
                assert callable(attrgetter(name)(importlib.import_module(module)))


def name(proof: Proof) -> str:
    """Return the name to look for, faults by their number."""
    whole = proof.split("::")[1] if isinstance(proof, str) else proof.__name__
    return re.sub(r"(?<=^test_fault_)(\d+)_.*", r"\1", whole)


def markdown() -> str:
    """Return the table as the page has it."""
    lines = [f"| | {' | '.join(LIBRARIES)} | shown by |", "|---|" + ":-:|" * len(LIBRARIES) + "---|"]
    for row, cells in TABLE.items():
        outcomes = [cells[library].outcome if library in cells else "" for library in LIBRARIES]
        names = dict.fromkeys(f"`{name(cell.proof)}`" for cell in cells.values())
        lines.append(f"| {row} | {' | '.join(outcomes)} | {', '.join(names)} |")
    return "\n".join(lines)


def test_the_page_has_the_table() -> None:
    assert markdown() in (ROOT / "docs" / "features.md").read_text(encoding="utf-8")


def test_the_readmes_rows_are_rows_of_the_table() -> None:
    page = [line.rpartition(" | ")[0] for line in markdown().splitlines()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line.removesuffix(" |") for line in readme.splitlines() if line.startswith("| ")]
    assert 5 < len(rows) <= 11  # the head, and at most ten rows
    assert [row for row in rows if row not in page] == []


def test_the_stored_run_has_played_every_cell() -> None:
    """If this fails: python -m tests.helpers.play_features plays the cells and stores what came of it."""
    stored = json.loads((ROOT / "docs" / "features.json").read_text(encoding="utf-8"))
    assert stored["passed"] == sorted(param.id for param in PLAYED)
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert f"on {stored['date']} used {', '.join(map(' '.join, stored['versions'].items()))}" in " ".join(page.split())
