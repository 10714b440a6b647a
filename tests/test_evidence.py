"""The page of evidence is what its script makes of the stored results, and a stored training can be repeated."""

import json
import platform
import runpy
from pathlib import Path

import pytest
import torch
import yaml

from lit_cosine import compare, convergence_bound
from lit_cosine.comparison import CONTESTANTS

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "evidence.py"))
FOUND = json.loads((ROOT / "docs" / "evidence.json").read_text(encoding="utf-8"))
TASKS = [name for name in ("char", "mnist1d") if name in FOUND["data"]]


def test_the_page_is_what_the_script_makes() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert SCRIPT["page"](page, FOUND) == page
    assert page.count("<!-- end -->") == 3 + len(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_bounds_are_those_of_the_schedules(name: str) -> None:
    task = FOUND["data"][name]
    linear = convergence_bound(CONTESTANTS["linear"], task["steps"])
    rows = {schedule: row for schedule, row in task["schedules"].items() if "bound" in row}
    assert len(rows) >= 8
    for schedule, row in rows.items():
        bound = convergence_bound(CONTESTANTS[schedule], task["steps"])
        assert (row["bound"], row["peak"]) == pytest.approx((bound.value / linear.value, bound.peak / linear.peak))


def test_what_the_pages_say_is_what_was_found() -> None:
    verdicts = {(each["data"], each["claim"]): each["verdict"] for each in FOUND["verdicts"]}
    cooldown, averaged = "Constant, last 20 % 1-sqrt", "Constant + averaging"
    supported = ["Linear ends below constant", "Linear ends below cosine"]
    supported += [f"{each} ends below {other}" for each in (cooldown, averaged) for other in ("constant", "cosine")]
    assert {verdicts["char", claim] for claim in supported} == {"supported"}
    assert verdicts["char", "Cosine ends below cosine to 10 %"] == "opposite"
    decided = {key for key, verdict in verdicts.items() if " ends below " in key[1] and verdict != "undecided"}
    assert {key for key in decided if key[0] != "char"} == {("mnist1d", f"{averaged} ends below constant")}


def test_every_best_lr_is_the_lowest_of_its_grid() -> None:
    for task in FOUND["data"].values():
        for row in task["schedules"].values():
            assert min((loss, lr) for lr, loss in row["grid"] if loss is not None)[1] == row["lr"]
            assert row["at_edge"] == (row["lr"] in (row["grid"][0][0], row["grid"][-1][0]))


def test_the_parabola_finds_the_minimum() -> None:
    assert SCRIPT["peak"]([(0.5, 4.0), (1.0, 1.0), (2.0, 0.0), (4.0, 1.0)]) == pytest.approx(2.0)
    assert SCRIPT["peak"]([(0.5, 2.25), (1.0, 0.25), (2.0, 0.25)]) == pytest.approx(2.0**0.5)
    assert SCRIPT["peak"]([(1.0, 1.0), (2.0, 0.5)]) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.skipif(
    FOUND["versions"]["python"] != platform.python_version() or FOUND["versions"]["torch"] != torch.__version__,
    reason="the text and the arithmetic are of other versions",
)
def test_a_stored_training_can_be_repeated(name: str) -> None:
    """One training in the first and one in the last split, with the same result to the rounding of the file."""
    task = FOUND["data"][name]
    config = yaml.safe_load((ROOT / "lit_cosine" / "example" / f"{name}.yaml").read_text(encoding="utf-8"))
    for schedule, row in list(task["schedules"].items())[:2]:
        again = compare(
            None, None, {schedule: CONTESTANTS[schedule]}, [row["lr"]], 1, metric="val/loss", config=config, splits=2,
            split_arg="data.init_args.split_seed", engine="serial",
        )  # fmt: skip
        same_machine = FOUND["machine"].endswith(torch.backends.cpu.get_cpu_capability())
        tolerance = 1e-8 if same_machine else 0.05
        assert again.values()[:, 0, 0].tolist() == pytest.approx(row["test"][:2], rel=tolerance)
