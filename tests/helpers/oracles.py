"""Witnesses: the learning-rate formulas of others, each as its authors write it, without a line of lit_cosine.

Convention: the arguments are steps and the result is a factor of the peak LR, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def transformers_cosine(step: int, warmup: int, total: int, min_lr_rate: float = 0.0) -> float:
    """transformers.get_cosine_with_min_lr_schedule_with_warmup; at 0, get_cosine_schedule_with_warmup."""
    if step < warmup:
        return step / max(1, warmup)
    factor = 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return factor * (1 - min_lr_rate) + min_lr_rate


def transformers_hard_restarts(step: int, warmup: int, total: int, cycles: int) -> float:
    """transformers.get_cosine_with_hard_restarts_schedule_with_warmup."""
    if step < warmup:
        return step / max(1, warmup)
    # exact integer arithmetic for `(cycles * progress) % 1`, which in floats lands a cycle's first step at its end
    within = cycles * (step - warmup) % (total - warmup) / (total - warmup)
    return 0.0 if step >= total else 0.5 * (1.0 + math.cos(math.pi * within))


def transformers_linear(step: int, warmup: int, total: int) -> float:
    """transformers.get_linear_schedule_with_warmup."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def transformers_wsd(step: int, warmup: int, stable: int, decay: int, decay_type: str, min_lr_ratio: float) -> float:
    """transformers.get_wsd_schedule with a linear warmup from 0."""
    if step < warmup:
        return step / max(1, warmup) * (1.0 - min_lr_ratio) + min_lr_ratio
    if step < warmup + stable:
        return 1.0
    if step >= warmup + stable + decay:
        return min_lr_ratio
    progress = (step - warmup - stable) / max(1, decay)
    shapes: dict[str, Callable[[float], float]] = {
        "linear": lambda u: 1.0 - u,
        "cosine": lambda u: 0.5 * (1.0 + math.cos(math.pi * u)),
        "1-sqrt": lambda u: 1.0 - math.sqrt(u),
    }
    return shapes[decay_type](progress) * (1.0 - min_lr_ratio) + min_lr_ratio


def transformers_polynomial(step: int, total: int, lr_init: float, lr_end: float, power: float) -> float:
    """transformers.get_polynomial_decay_schedule_with_warmup without its warmup."""
    return ((lr_init - lr_end) * (1 - step / total) ** power + lr_end) / lr_init


def transformers_inverse_sqrt(step: int, timescale: int) -> float:
    """transformers.get_inverse_sqrt_schedule without its warmup."""
    return 1.0 / math.sqrt((step + timescale) / timescale)


def timm_cosine(
    t: int, lr: float, t_initial: int, lr_min: float, warmup_t: int, warmup_lr_init: float, warmup_prefix: bool
) -> float:
    """timm.scheduler.CosineLRScheduler, _get_lr, with one cycle: an absolute LR."""
    if t < warmup_t:
        return warmup_lr_init + t * (lr - warmup_lr_init) / warmup_t
    if warmup_prefix:
        t -= warmup_t
    return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * t / t_initial)) if t < t_initial else lr_min


def nanogpt_get_lr(it: int, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int) -> float:
    """nanoGPT's train.py, get_lr: an absolute LR."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def sgdr(step: int, t_0: int, t_mult: int, eta_min: float, eta_max: float) -> float:
    """Loshchilov & Hutter 2017, eq. 5: an absolute LR, by walking through the cycles."""
    t_cur, t_i = step, t_0
    while t_cur >= t_i:
        t_cur, t_i = t_cur - t_i, t_i * t_mult
    return eta_min + 0.5 * (eta_max - eta_min) * (1 + math.cos(math.pi * t_cur / t_i))


def k_decay(step: int, total: int, k: float, eta_min: float) -> float:
    """Zhang & Li 2020, cosine with the k-decay factor: t^k / T^k in place of t / T."""
    return eta_min + 0.5 * (1 - eta_min) * (1 + math.cos(math.pi * step**k / total**k))


def resumed_progress(step: float, resumed_at: float, policy: str, old: float, new: float, origin: float = 0) -> float:
    """DESIGN.md's table: progress at ``step`` of a run of ``old`` steps that went on at ``resumed_at`` with ``new``.

    Args:
        origin: End of the warmup, where progress 0 was planned.
    """

    def line(x0: float, y0: float, x1: float, x: float) -> float:
        """The straight line from (x0, y0) to (x1, 1), level before and behind."""
        if x >= x1:
            return 1.0
        return y0 if x <= x0 else y0 + (1 - y0) * (x - x0) / (x1 - x0)

    if step < resumed_at or policy == "keep":
        return line(origin, 0.0, old, step)
    reached = line(origin, 0.0, old, resumed_at)
    start = max(resumed_at, origin)
    anchors = {"continue": (start, reached), "rescale": (origin, 0.0), "restart": (start, 0.0)}
    return line(*anchors[policy], new, step)


def linear_warmup(step: int, warmup: int) -> float:
    """The warmup of pytorch_warmup.LinearWarmup with a period of ``warmup + 1``."""
    return min(1.0, (step + 1) / (warmup + 1))
