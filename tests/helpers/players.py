"""Cosines of other libraries, each in its library's own way, played on an optimizer alike.

Convention: a maker takes the optimizer, the number of updates, a warmup in updates and a floor, written as a factor of
the first group's LR. The defaults are the library's: nothing is handed over that was not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from lit_cosine import Cosine, ScheduleLR

PEAK = 0.1


class Player(Protocol):
    """What has been made: one ``step()`` after every update."""

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


Maker = Callable[..., Any]


def need(library: str) -> Any:
    """Import a library, or skip: the package does without it."""
    return pytest.importorskip(library, reason=f"{library} is not installed")


def optimizer_at(*lrs: float | torch.Tensor, **options: Any) -> torch.optim.Optimizer:
    """Return an optimizer with a group for each LR."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or (PEAK,)]
    return torch.optim.SGD(groups, **options)


def cosine(k: int, total: int) -> float:
    return PEAK * (1 + math.cos(math.pi * min(k, total) / total)) / 2


def play(player: Player, optimizer: torch.optim.Optimizer, updates: int) -> list[list[float]]:
    """Make updates; return the LR of every group at each."""
    used = []
    for _ in range(updates):
        used.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        player.step()
    return used


def lit_cosine(optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0) -> Player:
    return ScheduleLR(optimizer, Cosine(end=floor), total_steps=total, warmup_steps=warmup)


def torch_cosine(optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0) -> Player:
    annealing = CosineAnnealingLR(optimizer, total - warmup, floor * optimizer.param_groups[0]["lr"])
    if not warmup:
        return annealing
    return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=warmup), annealing], [warmup])


def torch_lambda(optimizer: Any, total: int) -> Player:
    return LambdaLR(optimizer, lambda k: cosine(k, total) / PEAK)


def transformers_cosine(optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0) -> Player:
    transformers = need("transformers")
    if floor:
        make = transformers.get_cosine_with_min_lr_schedule_with_warmup
        return make(optimizer, warmup, total, min_lr_rate=floor)
    return transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)


def transformers_warm(optimizer: Any, total: int, warmup: int = 0) -> Player:
    """The one whose warmup begins where it is told to."""
    from_transformers = need("transformers").optimization
    make = from_transformers.get_cosine_with_min_lr_schedule_with_warmup_lr_rate
    return make(optimizer, warmup, total, min_lr=0.0, warmup_lr_rate=0.1)


class Timm:
    """timm's schedulers are told the number of updates."""

    def __init__(self, optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0, **options: Any) -> None:
        if floor:
            options["lr_min"] = floor * optimizer.param_groups[0]["lr"]
        make = need("timm.scheduler").CosineLRScheduler
        self.scheduler = make(optimizer, total, warmup_t=warmup, t_in_epochs=False, **options)
        self.updates = 0

    def step(self) -> None:
        self.updates += 1
        self.scheduler.step_update(self.updates)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.scheduler.load_state_dict(state_dict["scheduler"])


def timm_warm(optimizer: Any, total: int, warmup: int = 0) -> Player:
    """The warmup with the option for where it begins."""
    return Timm(optimizer, total, warmup, warmup_lr_init=0.01)


class Composer:
    """Composer's schedules read the state of its Trainer, whose clock is moved on by batches."""

    def __init__(self, optimizer: Any, duration: int | str, warmup: int = 0, floor: float = 0.0, **state: Any) -> None:
        need("composer")
        from composer.core import State
        from composer.devices import DeviceCPU
        from composer.optim import CosineAnnealingScheduler, CosineAnnealingWithWarmupScheduler
        from composer.optim.scheduler import compile_composer_scheduler

        length = duration if isinstance(duration, str) else f"{duration}ba"
        self.state = State(nn.Linear(1, 1), 0, "run", DeviceCPU(), max_duration=length, optimizers=optimizer, **state)
        make = CosineAnnealingWithWarmupScheduler if warmup else CosineAnnealingScheduler
        schedule = make(**({"t_warmup": f"{warmup}ba"} if warmup else {}), **({"alpha_f": floor} if floor else {}))
        self.scheduler = compile_composer_scheduler(schedule, self.state)

    def step(self, samples: int = 4) -> None:
        self.state.timestamp = self.state.timestamp.to_next_batch(samples=samples)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {"timestamp": self.state.timestamp.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state.timestamp.load_state_dict(state_dict["timestamp"])
        self.scheduler.load_state_dict(state_dict["scheduler"])


class Megatron:
    """Megatron-core's scheduler is told by how much the count goes up, in updates or samples."""

    def __init__(
        self, optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0, start: float = 0.0, step: int = 1
    ) -> None:
        need("megatron.core")
        from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

        peak = float(optimizer.param_groups[0]["lr"])
        self.increment = step
        self.scheduler = OptimizerParamScheduler(
            optimizer, init_lr=start, max_lr=peak, min_lr=floor * peak, lr_warmup_steps=warmup, lr_decay_steps=total,
            lr_decay_style="cosine", start_wd=0.0, end_wd=0.0, wd_incr_steps=total, wd_incr_style="constant",
        )  # fmt: skip
        self.state_dict, self.load_state_dict = self.scheduler.state_dict, self.scheduler.load_state_dict

    def step(self) -> None:
        self.scheduler.step(self.increment)


def megatron_warm(optimizer: Any, total: int, warmup: int = 0) -> Player:
    """The warmup with the option for where it begins."""
    return Megatron(optimizer, total, warmup, start=0.01)


class Optax:
    """optax's schedules are functions of a count, which is the whole state; here they set a torch optimizer's LR."""

    def __init__(self, optimizer: Any, total: int, warmup: int = 0, floor: float = 0.0, start: float = 0.0) -> None:
        optax = need("optax")
        need("jax").config.update("jax_enable_x64", True)  # as precise as torch's schedulers
        self.optimizer, self.count = optimizer, 0
        peak = float(optimizer.param_groups[0]["lr"])
        if warmup:
            self.schedule = optax.warmup_cosine_decay_schedule(start, peak, warmup, total, floor * peak)
        else:
            self.schedule = optax.cosine_decay_schedule(peak, total, alpha=floor)
        self._set()

    def _set(self) -> None:
        self.optimizer.param_groups[0]["lr"] = float(self.schedule(self.count))

    def step(self) -> None:
        self.count += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]
        self._set()


def optax_warm(optimizer: Any, total: int, warmup: int = 0) -> Player:
    """The warmup with the argument for where it begins."""
    return Optax(optimizer, total, warmup, start=0.01)


MAKERS: dict[str, list[Maker]] = {
    "lit_cosine": [lit_cosine],
    "torch": [torch_cosine, torch_lambda],
    "transformers": [transformers_cosine],
    "timm": [Timm],
    "composer": [Composer],
    "Megatron-core": [Megatron],
    "optax": [Optax],
}
"""What each library plays a cosine with; of torch also the one that takes any formula."""

WARMUPS: dict[str, list[Maker]] = {
    **MAKERS,
    "torch": [torch_cosine],
    "transformers": [transformers_cosine, transformers_warm],
    "timm": [Timm, timm_warm],
    "Megatron-core": [Megatron, megatron_warm],
    "optax": [Optax, optax_warm],
}
"""The same with a warmup, as they come and with the option that lifts its start."""
