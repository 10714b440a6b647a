"""Param groups of a module: by layer, with names, layer-wise decay of the LR, and rules on parameter names.

Convention: layers are counted in the order in which the module defines them, frozen ones as well, so that freezing a
layer changes no other layer's LR.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lit_cosine._checks import as_flag, as_number, shown

__all__ = ["param_groups"]

_NUMBERED = re.compile(r"(?:.+\.)??(?:blocks?|layers?|stages?|h)\.?\d+(?=\.)")


def param_groups(
    module: nn.Module,
    *,
    lr: float,
    layer_decay: float = 1.0,
    weight_decay: float | None = None,
    no_weight_decay: bool = True,
    rules: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    r"""Return named param groups for an optimizer: every trainable parameter of ``module`` in exactly one.

    A group is what one layer trains with the same settings, and is named by the layer; biases and norms, which have no
    weight decay, are ``LAYER.no_decay``. With ``layer_decay`` = d < 1 a layer of depth i of n has the LR
    lr * d^(n - i). The layers are those with a number in their name (``blocks.3``, ``layers.3``, ``layer.3``,
    ``layer3``, ``stages.3``, ``h.3``): what is defined before them has depth 0, what is defined after them n. In a
    module without such names, and for ``layer_decay=1``, a layer is a child of the module.

    Args:
        module: The module. A parameter that it shares counts under its first name; a frozen one is left out.
        lr: LR of the last layer, >= 0.
        layer_decay: Factor of the LR from a layer to the one before, in (0, 1].
        weight_decay: The weight decay, >= 0; None for the optimizer's own.
        no_weight_decay: Whether biases, norms and other parameters of fewer than two dimensions have none.
        rules: Regular expression on parameter names -> entries of their groups, such as ``{"lr": 0.01}``, which take
            the place of the above. For each entry the first matching rule applies.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, an expression is none or matches no parameter, or no parameter is
            trainable.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> for group in param_groups(model, lr=0.1, layer_decay=0.5, rules={r"^1\.": {"lr": 1.0}}):
    ...     print(group["name"], group["lr"], group.get("weight_decay"))
    0 0.05 None
    0.no_decay 0.05 0.0
    1 1.0 None
    1.no_decay 1.0 0.0
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {shown(module)}")
    lr = as_number("lr", lr, least=0.0)
    if not 0.0 < (decay := as_number("layer_decay", layer_decay)) <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {shown(layer_decay)}")
    common = {} if weight_decay is None else {"weight_decay": as_number("weight_decay", weight_decay, least=0.0)}
    exempt = _norms_and_biases(module) if as_flag("no_weight_decay", no_weight_decay) else set()
    compiled = _checked(rules or {}, [name for name, _ in module.named_parameters(remove_duplicate=False)])
    named = dict(module.named_parameters())
    layers = _layers(list(named), numbered=decay < 1.0)
    deepest = max((depth for _, depth in layers), default=0)
    found: dict[str, list[dict[str, Any]]] = {}
    for (name, parameter), (layer, depth) in zip(named.items(), layers, strict=True):
        if not parameter.requires_grad:
            continue
        entries = {"lr": lr * decay ** (deepest - depth), **common}
        if parameter in exempt:
            entries["weight_decay"] = 0.0
        for pattern, values in reversed(compiled):
            if pattern.search(name):
                entries |= values
        label = f"{layer}.no_decay" if entries.get("weight_decay") == 0.0 != weight_decay else layer
        alike = found.setdefault(label, [])
        for group in alike:
            if {key: value for key, value in group.items() if key not in ("name", "params")} == entries:
                group["params"].append(parameter)
                break
        else:
            suffix = f".{len(alike) + 1}" if alike else ""
            alike.append({"name": label + suffix, "params": [parameter], **entries})
    if not found:
        raise ValueError(f"module must have a trainable parameter, got {type(module).__name__} without one")
    return [group for alike in found.values() for group in alike]


def _norms_and_biases(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that weight decay leaves out: those of norms, and vectors and numbers."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise ValueError("module must know the shapes of its parameters: run a batch through its lazy layers first")
    of_norms = {p for part in module.modules() if "Norm" in type(part).__name__ for p in part.parameters(recurse=False)}
    return of_norms | {parameter for parameter in module.parameters() if parameter.ndim < 2}


def _checked(rules: Any, names: Sequence[str]) -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must map regular expressions to entries of a group, got {shown(rules)}")
    compiled = []
    for text, entries in rules.items():
        if not isinstance(text, str) or not isinstance(entries, Mapping):
            raise TypeError(f'rules must be such as {{"bias$": {{"lr": 0.1}}}}, got {shown({text: entries})}')
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"rules: {shown(text)} is no regular expression: {error}") from None
        if not any(pattern.search(name) for name in names):
            some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise ValueError(f"rules: {shown(text)} matches no parameter; the names are {some}")
        if unknown := {"params", "name"} & {*entries}:
            raise ValueError(f"rules: {shown(text)} must not set {min(unknown)}, which param_groups makes")
        numbers = {
            key: as_number(f"rules[{shown(text)}].{key}", entries[key], least=0.0)
            for key in ("lr", "weight_decay")
            if key in entries
        }
        compiled.append((pattern, {**entries, **numbers}))
    return compiled


def _layers(names: Sequence[str], *, numbered: bool) -> list[tuple[str, int]]:
    """Return the layer of every parameter, and the layer's depth."""
    matches = [_NUMBERED.match(name) if numbered else None for name in names]
    blocks = list(dict.fromkeys(match[0] for match in matches if match))
    parents = _parents(blocks) if blocks else _shared_parents(names)
    found: list[tuple[str, int]] = []
    seen: dict[str, int] = {}
    for name, match in zip(names, matches, strict=True):
        parts = name.split(".")
        layer = match[0] if match else next(part for part in _prefixes(parts) if part not in parents)
        if not blocks or match:  # the parameters that a module holds itself are one layer
            depth = seen.setdefault(layer if layer != name else name.rpartition(".")[0], len(seen) + bool(blocks))
        else:  # before the blocks, between two of them, or after the last
            depth = len(seen) + (len(seen) == len(blocks))
        found.append((layer, depth))
    return found


def _prefixes(parts: Sequence[str]) -> list[str]:
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _parents(names: Iterable[str]) -> set[str]:
    return {prefix for name in names for prefix in _prefixes(name.split(".")[:-1])}


def _shared_parents(names: Sequence[str]) -> set[str]:
    """Return the modules that hold every parameter in modules of their own, as a LightningModule's one child does."""
    parents = [_parents([name]) for name in names]
    shared = set.intersection(*parents) if parents else set()
    return {one for one in shared if any(one in _parents([name.rpartition(".")[0]]) for name in names)}
