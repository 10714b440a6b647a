"""What libraries with schedules do, seen by playing them: a function for each row of the table in docs/features.md.

Convention: each returns YES, NO, or SOME where the library's schedules differ or an option decides. Where a "yes" and a
"no" are not the only outcomes possible both are named, and a third fails.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

import lit_cosine as ours
from lit_cosine import Cosine, Duration, ScheduleLR
from tests.helpers.hf_trainer import trained
from tests.helpers.nets import Net, Transfer, finetuning, fit
from tests.helpers.players import (
    MAKERS,
    PEAK,
    WARMUPS,
    Composer,
    Maker,
    Megatron,
    Optax,
    Timm,
    cosine,
    lit_cosine,
    need,
    optimizer_at,
    play,
)

YES, NO, SOME = "✓", "\u2013", "some"


def one_of(*, yes: bool, no: bool) -> bool:
    """Return which of two outcomes it was; neither or both is a fault of the test."""
    assert yes != no
    return yes


def each(outcomes: list[bool]) -> str:
    return SOME if len(set(outcomes)) == 2 else YES if outcomes[0] else NO


# Schedules on an optimizer, without a Trainer.


def holds_its_end(library: str, folder: Path) -> str:
    optimizer = optimizer_at()
    after = [lr for [lr] in play(MAKERS[library][0](optimizer, 8), optimizer, 16)[8:]]
    return each([one_of(yes=max(after) < 1e-12, no=max(after) > 0.09)])


def goes_on_without_a_jump(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        optimizer, longer = optimizer_at(), optimizer_at()
        first = make(optimizer, 16)
        play(first, optimizer, 12)
        saved = copy.deepcopy((optimizer.state_dict(), first.state_dict()))
        resumed = make(longer, 32)
        longer.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        lrs = [lr for [lr] in play(resumed, longer, 20)]
        assert lrs[0] in (pytest.approx(cosine(12, 16), rel=1e-12), pytest.approx(cosine(12, 32), rel=1e-12))
        climbs = any(later > before + 1e-3 for before, later in pairwise([cosine(12, 16), *lrs]))
        idles = max(lrs[4:]) < 1e-12
        falls = all(0.0 < later < before for before, later in pairwise(lrs))
        return one_of(yes=falls and not climbs and float(longer.param_groups[0]["lr"]) < 1e-12, no=climbs or idles)

    return each([outcome(make) for make in MAKERS[library]])


def takes_in_a_group(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        optimizer = optimizer_at()
        player = make(optimizer, 8)
        play(player, optimizer, 3)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.01})
        try:
            joined = [lrs[1] for lrs in play(player, optimizer, 5)]
        except ValueError as error:  # LambdaLR since torch 2.10; before, it passed the group over
            if "zip" not in str(error):
                raise
            joined = [0.01]
        falls = all(later < before for before, later in pairwise(joined))
        end = float(optimizer.param_groups[1]["lr"])
        return one_of(yes=falls and end < 1e-12, no=set(joined) == {0.01})

    return each([outcome(make) for make in MAKERS[library]])


def keeps_a_change(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        optimizer = optimizer_at()
        player = make(optimizer, 8)
        play(player, optimizer, 3)
        optimizer.param_groups[0]["lr"] /= 2
        lrs = [lr for [lr] in play(player, optimizer, 5)]
        old = [cosine(k, 8) for k in range(3, 8)]
        return one_of(
            yes=lrs == pytest.approx([lr / 2 for lr in old], rel=1e-12), no=lrs[1:] == pytest.approx(old[1:], rel=1e-12)
        )

    return each([outcome(make) for make in MAKERS[library]])


def warms_up_above_zero(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        optimizer = optimizer_at()
        lrs = [lr for [lr] in play(make(optimizer, 8, warmup=2), optimizer, 8)]
        return one_of(yes=min(lrs[:2]) > 0.0, no=lrs[0] == 0.0 < lrs[1])

    return each([outcome(make) for make in WARMUPS[library]])


def scales_the_floor(library: str, folder: Path) -> str:
    optimizer = optimizer_at(PEAK, 0.001)
    player = MAKERS[library][0](optimizer, 8, floor=0.1)
    play(player, optimizer, 8)
    ends = [float(group["lr"]) for group in optimizer.param_groups]
    return each([one_of(yes=ends == pytest.approx([0.01, 0.0001]), no=ends == pytest.approx([0.01, 0.01]))])


def fills_a_tensor(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        lr = torch.tensor(PEAK)
        optimizer = optimizer_at(lr, foreach=False)
        play(make(optimizer, 8), optimizer, 4)
        now = optimizer.param_groups[0]["lr"]
        assert float(now) == pytest.approx(PEAK / 2)
        return now is lr

    return each([outcome(make) for make in MAKERS[library]])


def loads_as_plain_data(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        optimizer = optimizer_at()
        player = make(optimizer, 8)
        play(player, optimizer, 3)
        file = io.BytesIO()
        torch.save(player.state_dict(), file)
        file.seek(0)
        try:
            assert torch.load(file, weights_only=True) == player.state_dict()
        except pickle.UnpicklingError as error:  # of the clock of composer's Trainer
            if "timedelta" not in str(error):
                raise
            return False
        return True

    return each([outcome(make) for make in MAKERS[library]])


def is_a_value(library: str, folder: Path) -> str:
    def made() -> Any:
        if library == "lit_cosine":
            return Cosine(end=0.1)
        if library == "composer":
            need("composer")
            return importlib.import_module("composer.optim").CosineAnnealingScheduler(alpha_f=0.1)
        player = MAKERS[library][0](optimizer_at(), 8, floor=0.1)
        if isinstance(player, Optax):
            return player.schedule
        return player.scheduler if isinstance(player, (Timm, Megatron)) else player

    schedule = made()
    equal = schedule == made()
    return each([equal and eval(repr(schedule)) == schedule and pickle.loads(pickle.dumps(schedule)) == schedule])


def drives_momentum(library: str, folder: Path) -> str:
    def moved(make: Maker) -> bool:
        optimizer = optimizer_at(momentum=0.9)
        play(make(optimizer, 8), optimizer, 4)
        return bool(optimizer.param_groups[0]["momentum"] != 0.9)

    makers: dict[str, list[Maker]] = {
        "lit_cosine": [lambda optimizer, total: ScheduleLR(optimizer, Cosine(), total, key="momentum")],
        "torch": [*MAKERS["torch"], lambda optimizer, total: OneCycleLR(optimizer, PEAK, total)],
    }
    if library == "optax":
        optax, jax = need("optax"), need("jax")
        momentum = optax.cosine_decay_schedule(0.9, 8)
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=PEAK, momentum=momentum)
        weights = {"w": jax.numpy.zeros(1)}
        state = optimizer.init(weights)
        for _ in range(4):
            _, state = optimizer.update(weights, state, weights)
        return each([one_of(yes=float(state.hyperparams["momentum"]) < 0.8, no=False)])
    return each([moved(make) for make in makers[library]])


def follows_a_metric(library: str, folder: Path) -> str:
    optimizer = optimizer_at()
    if library == "lit_cosine":
        with pytest.raises(TypeError, match="metrics"):
            lit_cosine(optimizer, 8).step(metrics=1.0)  # type: ignore[call-arg]
        return NO
    if library == "optax":
        need("optax")
        from optax.contrib import reduce_on_plateau

        transform = reduce_on_plateau(factor=0.1, patience=10)
        weights = {"w": need("jax").numpy.ones(1)}
        state = transform.init(weights)
        for _ in range(12):
            _, state = transform.update(weights, state, value=1.0)
        return each([one_of(yes=float(state.scale) == pytest.approx(0.1), no=False)])
    plateau: Any = ReduceLROnPlateau
    if library == "transformers":
        plateau = need("transformers").get_reduce_on_plateau_schedule
    scheduler = plateau(optimizer)
    for _ in range(12):
        scheduler.step(1.0)
    return each([one_of(yes=optimizer.param_groups[0]["lr"] == pytest.approx(PEAK / 10), no=False)])


def adds_noise(library: str, folder: Path) -> str:
    if library == "timm":
        quiet, noisy = optimizer_at(), optimizer_at()
        same = play(Timm(quiet, 8), quiet, 8) == play(Timm(noisy, 8, noise_range_t=(0, 8)), noisy, 8)
        return each([not same])
    if library == "lit_cosine":
        parts = [getattr(ours, name) for name in ours.__all__]
    else:
        module: Any = torch.optim.lr_scheduler
        parts = [getattr(module, name) for name in module.__all__]
    return each(["noise" in " ".join(inspect.signature(part).parameters) for part in parts if callable(part)])


def counts_samples(library: str, folder: Path) -> str:
    if library == "lit_cosine":
        with pytest.raises(ValueError, match="unknown unit 'sp'"):
            Duration.parse("64sp")
        return NO
    optimizer = optimizer_at()
    player: Any = Composer(optimizer, "64sp") if library == "composer" else Megatron(optimizer, 64).scheduler
    for samples in (5, 11, 16):
        optimizer.step()
        player.step(samples)
    return each([optimizer.param_groups[0]["lr"] == pytest.approx(cosine(32, 64))])


# In each library's own Trainer.


def stock(make: Callable[[Any, Any], Any], **config: Any) -> Callable[[Any, Any], Any]:
    """Give Net a scheduler by hand, stepped at every update."""
    return lambda optimizer, run: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": make(optimizer, run), "interval": "step", **config},
    }


def takes_the_length(library: str, folder: Path) -> str:
    wanted = [cosine(k, 16) for k in range(16)]
    if library == "Lightning":
        model = Net(stock(lambda optimizer, run: CosineAnnealingLR(optimizer, run.estimated_stepping_batches)))
        fit(model, max_epochs=2)
        return each([model.lrs == pytest.approx(wanted, rel=1e-12)])
    if library == "transformers":
        return each([trained(folder, num_train_epochs=2).lrs == pytest.approx(wanted, rel=1e-12)])
    if library == "composer":
        optimizer = optimizer_at()
        lrs = [
            lr
            for [lr] in play(Composer(optimizer, "2ep", dataloader=[None] * 8, dataloader_label="train"), optimizer, 16)
        ]
        return each([lrs == pytest.approx(wanted, rel=1e-12)])
    if library == "Megatron-core":
        need("megatron.core")
        make: Any = importlib.import_module("megatron.core.optimizer_param_scheduler").OptimizerParamScheduler
    elif library == "optax":
        make = need("optax").cosine_decay_schedule
    else:
        make = CosineAnnealingLR if library == "torch" else need("timm.scheduler").CosineLRScheduler
    names = "'(T_max|t_initial|decay_steps)'|'lr_decay_steps'"
    with pytest.raises(TypeError, match=rf"missing \d+ required positional arguments?: .*({names})"):
        make(optimizer_at())
    return NO


def counts_updates(library: str, folder: Path) -> str:
    if library == "Lightning":
        model = Net(stock(lambda optimizer, run: CosineAnnealingLR(optimizer, 4)))
        fit(model, max_epochs=2, accumulate_grad_batches=4)
        lrs = model.lrs
    else:
        lrs = trained(folder, num_train_epochs=2, gradient_accumulation_steps=4).lrs
    return each([lrs == pytest.approx([cosine(k, 4) for k in range(4)], rel=1e-12)])


def passes_over_skipped_updates(library: str, folder: Path) -> str:
    run = trained(folder, num_train_epochs=1, overflows=(1, 4, 5))
    assert run.lrs == pytest.approx([cosine(k, 8) for k in range(5)], rel=1e-12)
    return YES


def takes_in_a_backbone(library: str, folder: Path) -> str:
    def outcome(make: Maker) -> bool:
        model = Transfer(stock(lambda optimizer, run: make(optimizer, 16)))
        try:
            fit(model, finetuning(), max_epochs=2)
        except ValueError as error:  # LambdaLR since torch 2.10; before, it passed the group over
            if "zip" not in str(error):
                raise
            return False
        joined = [lrs[1] for lrs in model.used[8:]]
        return one_of(yes=joined == pytest.approx([cosine(k, 16) / 5 for k in range(8, 16)]), no=len(set(joined)) == 1)

    return each([outcome(make) for make in MAKERS["torch"]])


def logs_a_short_run(library: str, folder: Path) -> str:
    run = trained(folder, num_train_epochs=2)
    logged = [entry["learning_rate"] for entry in run.history if "learning_rate" in entry]
    return each([one_of(yes=logged == pytest.approx([*run.lrs, 0.0], rel=1e-6, abs=1e-12), no=logged == [])])


def keeps_what_a_finder_found(library: str, folder: Path) -> str:
    def outcome(make: Callable[[Any, Any], Any]) -> bool:
        model = Net(stock(make))
        finder = LearningRateFinder(min_lr=1e-4, max_lr=0.05, num_training_steps=30, early_stop_threshold=None)
        fit(model, finder, max_epochs=5, default_root_dir=folder)
        lrs = model.lrs[30:]  # behind the finder's own updates
        assert lrs[0] == model.lr < 0.05
        wanted = [cosine(k, 40) for k in range(1, 40)]
        return one_of(
            yes=lrs[1:] == pytest.approx([model.lr / PEAK * lr for lr in wanted], rel=1e-9),
            no=lrs[1:] == pytest.approx(wanted, rel=1e-9),
        )

    annealing, formula = (lambda optimizer, run, make=make: make(optimizer, 40) for make in MAKERS["torch"])
    return each([outcome(annealing), outcome(formula)])


def follows_a_logged_metric(library: str, folder: Path) -> str:
    class Logs(Net):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.log("flat", 1.0)
            return super().training_step(batch, batch_idx)

    model = Logs(stock(lambda optimizer, run: ReduceLROnPlateau(optimizer, patience=2), monitor="flat"))
    fit(model, max_epochs=1)
    return each([model.lrs == pytest.approx([PEAK] * 4 + [PEAK / 10] * 3 + [PEAK / 100])])


class WithoutOptimizer(Net):
    """What LightningCLI gives an optimizer and a scheduler."""

    configure_optimizers = pl.LightningModule.configure_optimizers


def takes_flags(library: str, folder: Path) -> str:
    if library == "transformers":
        parser = need("transformers").HfArgumentParser(need("transformers").TrainingArguments)
        flags = ["--output_dir", str(folder), "--use_cpu", "--lr_scheduler_type", "cosine", "--warmup_steps", "2"]
        [arguments] = parser.parse_args_into_dataclasses(flags)
        return each([(arguments.lr_scheduler_type, arguments.warmup_steps) == ("cosine", 2)])
    flags = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--seed_everything=false"]
    flags += ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=CosineAnnealingLR", "--lr_scheduler.T_max=8"]
    cli = LightningCLI(WithoutOptimizer, args=flags, run=False, save_config_callback=None)
    [optimizer], [scheduler] = cli.model.configure_optimizers()
    return each([[lr for [lr] in play(scheduler, optimizer, 8)] == pytest.approx([cosine(k, 8) for k in range(8)])])
