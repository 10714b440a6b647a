"""The fine-tuning project: every group at every update against closed forms, stopped and resumed twice."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from examples.vision_transformer import project
from tests.helpers.witnesses import Rows, Used, audit_of

CONFIG = Path(project.__file__).with_name("run.yaml")
# 2026-11: the loader of this project is no stateful one; only the LRs are looked at
pytestmark = [
    pytest.mark.filterwarnings("ignore:batches after a resume within an epoch will not be:UserWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch:UserWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging:UserWarning"),
]
N, JOINS = 36, 12

# three blocks at depths 1, 2 and 3; what is before them is at depth 0, what is after them at depth 4
PEAKS = {
    "head": 0.01,
    "head.no_decay": 0.01,
    **{f"backbone.{name}": 1e-3 * 0.75**4 for name in ("positions", "patches", "patches.no_decay")},
    **{f"backbone.blocks.{i}{suffix}": 1e-3 * 0.75 ** (3 - i) for i in range(3) for suffix in ("", ".no_decay")},
    "backbone.norm.no_decay": 1e-3,
}


def head(k: int) -> float:
    """Constant, then 1 - sqrt over the last quarter."""
    return 1 - math.sqrt(max(0, k - 27) / 9)


def backbone(k: int) -> float:
    """A cosine to a tenth behind a warmup of 4, which the groups make when they join."""
    return min(1.0, (k - JOINS + 1) / 5) * (0.1 + 0.9 * (1 + math.cos(math.pi * (k - 4) / (N - 4))) / 2)


class Noted(Used):
    """Notes where each part of the run begins, and its LRs."""

    parts: ClassVar[list[tuple[int, Rows]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.parts.append((trainer.global_step, self.rows[0]))


def fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What `python project.py fit --config run.yaml …` does."""
    noted = "--trainer.callbacks+=tests.test_fine_tuning.Noted"
    monkeypatch.setattr(sys, "argv", ["project.py", "fit", f"--config={CONFIG}", noted, *arguments])
    return project.main().trainer


@pytest.mark.parametrize("stops", [(), *(pytest.param(stops, marks=pytest.mark.slow) for stops in ((7, 20), (11, 14)))])
def test_every_group_has_its_lr_at_every_update(
    stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stop; stopped while the backbone is frozen and then thawed; stopped at the thaw and in the warmup."""
    monkeypatch.chdir(tmp_path)
    Noted.parts.clear()
    resume: list[str] = []
    for batch in stops:
        with pytest.raises(SystemExit):
            fit(
                monkeypatch,
                "--trainer.callbacks+=tests.test_projects.Stop",
                f"--trainer.callbacks.batch={batch}",
                *resume,
            )
        resume = ["--ckpt_path=last"]
    run = fit(monkeypatch, *resume)
    assert [first for first, _ in Noted.parts] == [0, *(batch + 1 for batch in stops)]
    used = [lrs for _, rows in Noted.parts for lrs in rows]
    names = [group["name"] for group in run.optimizers[0].param_groups]
    assert sorted(names) == sorted(PEAKS)
    assert [len(lrs) for lrs in used] == [2] * JOINS + [len(PEAKS)] * (N - JOINS)
    for k, lrs in enumerate(used):
        factors = {name: head(k) if name.startswith("head") else backbone(k) for name in names[: len(lrs)]}
        assert lrs == pytest.approx([PEAKS[name] * factor for name, factor in factors.items()], rel=1e-12)
    audit = audit_of(run)
    assert (audit.findings, audit.differences) == ([], [])
