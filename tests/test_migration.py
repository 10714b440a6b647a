"""docs/migration.md, run as it stands: every "before" against every "after", LR by LR.

Convention: a trace is the LR and the momentum of every update, read as the optimizer steps. What is not torch's is
played by its formula in oracles.py.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lit_cosine import Cosine, LearningRateScheduler, Linear, Restarts, ScheduleAudit
from tests.helpers import oracles
from tests.helpers.nets import Net, rows, trainer
from tests.helpers.setups import BoltsWarmupCosine

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
INTRODUCTION, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
TITLES = [section.partition("\n")[0] for section in SECTIONS]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
LABEL = re.compile(
    r"# (before|once, beside the module|after, (?:another curve|the same LR (?:at every|from) update.*))\n"
)
EPOCHS, UPDATES, PEAK = 8, 40, 0.1
(FRAME,) = BLOCK.findall(INTRODUCTION)


class Project(Net):
    """The module around the page's lines, with a validation loss that stalls from epoch 1 on."""

    def train_dataloader(self) -> Any:
        return rows(4 * UPDATES // EPOCHS)

    def on_train_epoch_end(self) -> None:
        self.log("val_loss", max(0.9, 1 - self.current_epoch / 10))


class TimmCosine:
    """timm's CosineLRScheduler, for its formula: no torch class, told the epoch or the update by the module."""

    def __init__(self, optimizer, t_initial, lr_min, warmup_t, warmup_lr_init, warmup_prefix=False, t_in_epochs=True):
        self.optimizer, self.t_in_epochs = optimizer, t_in_epochs
        (group,) = optimizer.param_groups
        self.lr_at = partial(
            oracles.timm_cosine,
            lr=group["lr"],
            t_initial=t_initial,
            lr_min=lr_min,
            warmup_t=warmup_t,
            warmup_lr_init=warmup_lr_init,
            warmup_prefix=warmup_prefix,
        )
        self.write(0)

    def write(self, t: int) -> None:
        self.optimizer.param_groups[0]["lr"] = self.lr_at(t)

    def step(self, epoch: int) -> None:
        if self.t_in_epochs:
            self.write(epoch)

    def step_update(self, num_updates: int) -> None:
        if not self.t_in_epochs:
            self.write(num_updates)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError


def transformers(factor: Callable[..., float]) -> Callable[..., LambdaLR]:
    """Return transformers' function for the formula ``factor``."""

    def get_schedule(optimizer, num_warmup_steps, num_training_steps, **options):
        cycles = [options["num_cycles"]] if options else []
        return LambdaLR(optimizer, lambda step: factor(step, num_warmup_steps, num_training_steps, *cycles))

    return get_schedule


WITNESSES = {
    "get_cosine_schedule_with_warmup": transformers(oracles.transformers_cosine),
    "get_linear_schedule_with_warmup": transformers(oracles.transformers_linear),
    "get_cosine_with_hard_restarts_schedule_with_warmup": transformers(oracles.transformers_hard_restarts),
    "LinearWarmupCosineAnnealingLR": BoltsWarmupCosine,
    "CosineLRScheduler": TimmCosine,
}


def labelled(section: str) -> list[tuple[str, str]]:
    """Return every block of a section with what its first line says it is."""
    blocks = BLOCK.findall(section)
    assert all(LABEL.match(block) for block in blocks)
    return [(LABEL.match(block)[1], block) for block in blocks]


def migrated(names: dict[str, Any]) -> Project:
    """Return the module whose hooks are those of the page's lines."""
    hooks = {hook: names[hook] for hook in ("configure_optimizers", "lr_scheduler_step") if hook in names}
    return type("Migrated", (Project,), hooks)()


def played(block: str, *, beside: str = "", witnesses: dict[str, Any] = WITNESSES) -> np.ndarray:
    """Return the LR and the momentum of every update of the page's run under ``block``; a row an update."""
    names: dict[str, Any] = {**witnesses, "__name__": __name__}
    exec(FRAME + beside, names)
    trace: list[tuple[float, float]] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        (group,) = optimizer.param_groups
        trace.append((float(group["lr"]), float(group["momentum"])))

    handle = register_optimizer_step_pre_hook(note)
    try:
        if "model.parameters()" in block:
            exec(block, {**names, "model": nn.Linear(3, 1), "batches": torch.ones(UPDATES, 4, 3)})
        else:
            if "def configure_optimizers" not in block:  # its lines go where the frame says
                inside = textwrap.indent(block, "    ")
                block = re.sub(r"^    lr_scheduler = \.\.\. .*\n", lambda _: inside, FRAME, flags=re.MULTILINE)
            exec(block, names)
            trainer(*names.get("callbacks", ()), max_epochs=EPOCHS).fit(migrated(names))
    finally:
        handle.remove()
    assert len(trace) == UPDATES
    return np.array(trace)


@cache
def traces(title: str) -> list[tuple[str, np.ndarray]]:
    """Return what each block of the section is, and its trace."""
    blocks = labelled(SECTIONS[TITLES.index(title)])
    beside = "".join(block for label, block in blocks if label.startswith("once"))
    return [(label, played(block, beside=beside)) for label, block in blocks if not label.startswith("once")]


def lrs(title: str, label: str) -> np.ndarray:
    """Return the LRs of the section's first block that is labelled so."""
    return next(trace[:, 0] for found, trace in traces(title) if found == label)


def same(ours: np.ndarray, theirs: np.ndarray) -> Any:
    return np.allclose(ours, theirs, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("title", TITLES)
def test_what_the_page_calls_the_same_is_the_same(title: str) -> None:
    (first, before), *others = traces(title)
    assert first == "before"
    assert others
    for label, after in others:
        if label == "after, the same LR at every update":
            assert same(after[:, 0], before[:, 0])
        elif from_update := re.fullmatch(r"after, the same LR from update (\d+) on", label):
            warmup = int(from_update[1])
            assert same(after[warmup:, 0], before[warmup:, 0])
            # an epoch's warmup moves once an epoch
            unit = 1 if len(set(before[:, 0])) > EPOCHS else UPDATES // EPOCHS
            rise = [PEAK * oracles.linear_warmup(k // unit, warmup // unit) for k in range(warmup)]
            assert same(after[:warmup, 0], np.array(rise))
            assert not np.isclose(after[:warmup, 0], before[:warmup, 0], rtol=1e-3, atol=0.0).any()
        else:
            assert label == "after, another curve"
            assert not same(after[:, 0], before[:, 0])


def test_the_table_says_what_the_blocks_say() -> None:
    table = re.findall(r"^\| \[[^]]*\]\(#([\w-]+)\) \|.*\| ([^|]*) \|$", INTRODUCTION, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in TITLES]
    assert [anchor for anchor, _ in table] == anchors
    claims = {"yes": "the same LR at every update", "after the warmup": "the same LR from", "no": "another curve"}
    for title, (_, verdict) in zip(TITLES, table, strict=True):
        first, *more = [label for label, _ in traces(title) if label != "before"]
        assert claims[re.split("[,;]", verdict)[0]] in first
        assert (";" in verdict) == (bool(more) and claims["yes"] not in first)
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) == set(anchors)


@pytest.mark.parametrize("title", [title for title in TITLES if title.startswith("get_")])
def test_the_witness_is_transformers_own(title: str) -> None:
    theirs = {title: getattr(pytest.importorskip("transformers"), title)}
    (block,) = [block for label, block in labelled(SECTIONS[TITLES.index(title)]) if label == "before"]
    assert same(played(block, witnesses=theirs)[:, 0], lrs(title, "before"))


def test_per_epoch_and_per_update_meet_at_the_first_update_of_an_epoch() -> None:
    per_update = lrs("CosineAnnealingLR per update", "after, the same LR at every update")
    per_epoch = lrs("CosineAnnealingLR per epoch", "after, the same LR at every update")
    meet = np.isclose(per_update, per_epoch, rtol=1e-12, atol=0.0)
    assert np.flatnonzero(meet).tolist() == list(range(0, UPDATES, UPDATES // EPOCHS))


def test_an_update_at_lr_0_is_transformers_alone() -> None:
    title = "get_cosine_schedule_with_warmup"
    assert lrs(title, "before")[0] == 0.0
    assert lrs(title, "after, the same LR from update 8 on").min() > 0.0


def test_bolts_reaches_the_peak_an_epoch_early() -> None:
    before = lrs("bolts' LinearWarmupCosineAnnealingLR", "before")
    assert np.flatnonzero(np.isclose(before, PEAK, rtol=1e-12)).tolist() == list(range(10, 20))


def test_timm_without_a_prefix_never_reaches_the_peak() -> None:
    before = lrs("timm's CosineLRScheduler", "before")
    assert before.max() == before[10] == pytest.approx(0.86 * PEAK, abs=0.005 * PEAK)
    after = lrs("timm's CosineLRScheduler", "after, another curve")
    rise = [PEAK / 3] * 5 + [2 * PEAK / 3] * 5
    rest = [oracles.timm_cosine(epoch, PEAK, 6, 0.001, 0, 0.0, False) for epoch in range(6) for _ in range(5)]
    assert same(after, np.array(rise + rest))


def test_one_cycle_is_torchs_of_a_run_that_is_an_update_longer() -> None:
    (_, torchs), (_, ours), (_, driven), (_, exact) = traces("OneCycleLR")
    assert same(exact, torchs)  # the momentum too
    assert [torchs[:, 0].argmax(), ours[:, 0].argmax()] == [11, 12]
    assert torchs[-1, 0] == pytest.approx(4e-6 * PEAK, rel=1e-12)
    longer = "OneCycleLR(optimizer, max_lr=0.1, total_steps=41, pct_start=13 / 41)"
    witness = played(f'lr_scheduler = {{"scheduler": {longer}, "interval": "step"}}\n')
    assert same(driven, witness)
    assert same(ours[:, 0], witness[:, 0])
    assert set(ours[:, 1]) == {0.95}


def test_adams_betas_are_refused() -> None:
    model = Net(lambda optimizer, run: torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="betas is not a number in the param groups of Adam"):
        trainer(LearningRateScheduler(betas=Linear(start=1, end=0.9)), max_epochs=1).fit(model)


def test_the_plateau_cuts_and_the_cuts_stay() -> None:
    after = lrs("ReduceLROnPlateau after a cosine", "after, the same LR at every update")
    assert after[20:].tolist() == pytest.approx([0.01] * 10 + [0.005] * 5 + [0.0025] * 5, rel=1e-12)


PLATEAU = [block for _, block in labelled(SECTIONS[TITLES.index("ReduceLROnPlateau after a cosine")])]


def test_a_plateau_that_need_not_wait_scales_what_is_left_of_the_cosine() -> None:
    trace = played(PLATEAU[1].partition("def lr_scheduler_step")[0])
    whole = [0.01 + (PEAK - 0.01) * oracles.transformers_cosine(min(k, 20), 0, 20) for k in range(UPDATES)]
    cuts = [0.5 ** max(0, k // 5 - 2) for k in range(UPDATES)]
    assert same(trace[:, 0], np.multiply(whole, cuts))


@pytest.mark.parametrize("block", PLATEAU, ids=["before", "after"])
def test_the_audit_reports_a_plateau_beside_a_cosine(block: str) -> None:
    names: dict[str, Any] = {}
    exec(FRAME + block, names)
    audit = ScheduleAudit("print")
    trainer(audit, max_epochs=EPOCHS).fit(migrated(names))
    assert "lr-conflict" in [finding.code for finding in audit.findings]


def test_cycles_that_do_not_add_up_end_high_in_torch_and_fill_the_run_here() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=13, T_mult=2)
    theirs = []
    for _ in range(UPDATES):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert theirs[-1] == PEAK
    assert Restarts(Cosine(), cycles=2, t_mult=2).sample(UPDATES)[-1] < 0.01
