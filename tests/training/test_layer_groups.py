"""param_groups beside tables written by hand, and on random module trees."""

import re
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_cosine import param_groups

WIDTH = 4


class ViT(nn.Module):
    """The names of timm's vision transformers."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.patch_embed = nn.Conv2d(1, WIDTH, 2)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm1": nn.LayerNorm(WIDTH), "mlp": nn.Linear(WIDTH, WIDTH)}) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 2)


class Bert(nn.Module):
    """The names of transformers' BERT, with the output tied to the word embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word": nn.Embedding(5, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))})
        self.decoder = nn.Linear(WIDTH, 5)
        self.decoder.weight = self.embeddings["word"].weight


class ResNet(nn.Module):
    """The names of torchvision's ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, WIDTH, 3, bias=False), nn.BatchNorm2d(WIDTH)
        for index in (1, 2):
            setattr(self, f"layer{index}", nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, bias=False), nn.BatchNorm2d(WIDTH)))
        self.fc = nn.Linear(WIDTH, 2)


class Wrapped(pl.LightningModule):
    """A module that holds a network without numbered layers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"conv": nn.Conv2d(1, WIDTH, 3), "fc": nn.Linear(WIDTH, 2)})


def table(module: nn.Module, **settings: Any) -> dict[str, tuple[float, float, list[str]]]:
    """Group name -> (LR, weight decay, the parameters' names)."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        group["name"]: (group["lr"], group["weight_decay"], [names[one] for one in group["params"]])
        for group in param_groups(module, weight_decay=0.05, **settings)
    }


def test_a_vision_transformer() -> None:
    assert table(ViT(), lr=8.0, layer_decay=0.5) == {
        "cls_token": (1.0, 0.05, ["cls_token"]),
        "patch_embed": (1.0, 0.05, ["patch_embed.weight"]),
        "patch_embed.no_decay": (1.0, 0.0, ["patch_embed.bias"]),
        "blocks.0.no_decay": (2.0, 0.0, ["blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.0.mlp.bias"]),
        "blocks.0": (2.0, 0.05, ["blocks.0.mlp.weight"]),
        "blocks.1.no_decay": (4.0, 0.0, ["blocks.1.norm1.weight", "blocks.1.norm1.bias", "blocks.1.mlp.bias"]),
        "blocks.1": (4.0, 0.05, ["blocks.1.mlp.weight"]),
        "norm.no_decay": (8.0, 0.0, ["norm.weight", "norm.bias"]),
        "head": (8.0, 0.05, ["head.weight"]),
        "head.no_decay": (8.0, 0.0, ["head.bias"]),
    }


def test_bert_with_tied_weights() -> None:
    """The tied weight counts where it is defined first: with the embeddings."""
    found = table(Bert(), lr=8.0, layer_decay=0.5)
    assert {name: lr for name, (lr, _, _) in found.items() if not name.endswith(".no_decay")} == {
        "embeddings": 1.0, "encoder.layer.0": 2.0, "encoder.layer.1": 4.0,
    }  # fmt: skip
    assert found["embeddings"][2] == ["embeddings.word.weight"]
    assert found["embeddings.no_decay"] == (1.0, 0.0, ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"])
    assert found["decoder.no_decay"] == (8.0, 0.0, ["decoder.bias"])


def test_a_resnet() -> None:
    found = table(ResNet(), lr=8.0, layer_decay=0.5)
    assert {name: lr for name, (lr, _, _) in found.items()} == {
        "conv1": 1.0, "bn1.no_decay": 1.0, "layer1": 2.0, "layer1.no_decay": 2.0, "layer2": 4.0,
        "layer2.no_decay": 4.0, "fc": 8.0, "fc.no_decay": 8.0,
    }  # fmt: skip


def test_layers_without_numbers_are_in_their_own_order() -> None:
    found = table(Wrapped(), lr=8.0, layer_decay=0.5)
    assert {name: lr for name, (lr, _, _) in found.items()} == {
        "model.conv": 4.0, "model.conv.no_decay": 4.0, "model.fc": 8.0, "model.fc.no_decay": 8.0,
    }  # fmt: skip
    assert {lr for lr, _, _ in table(nn.Linear(2, 2), lr=8.0, layer_decay=0.5).values()} == {8.0}


def test_numbered_layers_inside_a_backbone() -> None:
    module = nn.ModuleDict({"backbone": ViT(1), "head": nn.Linear(WIDTH, 2)})
    lrs = {name: lr for name, (lr, _, _) in table(module, lr=4.0, layer_decay=0.5).items()}
    assert (lrs["backbone.patch_embed"], lrs["backbone.blocks.0"], lrs["backbone.norm.no_decay"]) == (1.0, 2.0, 4.0)
    assert [*table(module, lr=4.0)] == ["backbone", "backbone.no_decay", "head", "head.no_decay"]


def test_a_frozen_layer_changes_no_other_layers_lr() -> None:
    module = ViT()
    free = {name: lr for name, (lr, _, _) in table(module, lr=8.0, layer_decay=0.5).items()}
    module.blocks[0].requires_grad_(False)
    frozen = {name: lr for name, (lr, _, _) in table(module, lr=8.0, layer_decay=0.5).items()}
    assert frozen == {name: lr for name, lr in free.items() if not name.startswith("blocks.0")}


def test_the_first_matching_rule_wins_for_each_entry() -> None:
    rules = {r"head\.bias": {"lr": 3.0}, "head": {"lr": 2.0, "betas": (0.8, 0.9)}, "bias$": {"weight_decay": 0.5}}
    by_name = {group["name"]: group for group in param_groups(ViT(0), lr=1.0, rules=rules)}
    assert by_name["head"].items() >= {"lr": 2.0, "betas": (0.8, 0.9)}.items()
    assert by_name["head.2"].items() >= {"lr": 3.0, "betas": (0.8, 0.9), "weight_decay": 0.5}.items()
    assert by_name["patch_embed"]["lr"] == 1.0
    assert "weight_decay" not in by_name["patch_embed"]  # the optimizer's own
    torch.optim.AdamW(by_name.values(), lr=9.0)


NAMES = st.sampled_from(["blocks", "layer", "layers", "h", "head", "norm", "layer1", "0", "backbone", "fc", "emb"])
LEAVES = st.sampled_from(
    [lambda: nn.Linear(2, 2), lambda: nn.BatchNorm1d(2), lambda: nn.Embedding(2, 2), nn.ReLU, lambda: nn.LayerNorm(2)]
).map(lambda make: make())


def _tree(children: list[tuple[str, nn.Module]]) -> nn.Module:
    module = nn.Module()
    for name, child in children:
        module.add_module(name, child)
    return module


TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(st.tuples(NAMES, inner), max_size=4).map(_tree), st.lists(inner, max_size=3).map(nn.ModuleList)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(TREES, st.sampled_from([1.0, 0.5]), st.integers(0, 2**30), st.booleans())
def test_every_trainable_parameter_is_in_exactly_one_group(
    module: nn.Module, layer_decay: float, frozen: int, tied: bool
) -> None:
    parameters = list(module.parameters())
    if tied and parameters:
        module.register_parameter("again", parameters[-1])
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(not frozen >> (index % 30) & 1)
    trainable = {id(one) for one in parameters if one.requires_grad}
    if not trainable:
        with pytest.raises(ValueError, match="module must have a trainable parameter"):
            param_groups(module, lr=1.0, layer_decay=layer_decay)
        return
    groups = param_groups(module, lr=1.0, layer_decay=layer_decay)
    grouped = [id(one) for group in groups for one in group["params"]]
    assert len(grouped) == len({*grouped})
    assert {*grouped} == trainable
    assert len({group["name"] for group in groups}) == len(groups)
    assert all(0.0 < group["lr"] <= 1.0 for group in groups)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and >= 0, got -1.0"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"layer_decay": 0.0}, ValueError, "layer_decay must be in (0, 1], got 0.0"),
        ({"layer_decay": 1.1}, ValueError, "layer_decay must be in (0, 1], got 1.1"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be finite and >= 0, got -0.1"),
        ({"no_weight_decay": "norm"}, TypeError, "no_weight_decay must be True or False, got 'norm'"),
        (
            {"rules": {"heads": {"lr": 1.0}}},
            ValueError,
            "rules: 'heads' matches no parameter; the names are cls_token,",
        ),
        ({"rules": {"(": {"lr": 1.0}}}, ValueError, "rules: '(' is no regular expression: "),
        ({"rules": {"head": 1.0}}, TypeError, "rules must be such as"),
        ({"rules": ["head"]}, TypeError, "rules must map regular expressions to entries of a group, got ['head']"),
        ({"rules": {"head": {"lr": -1.0}}}, ValueError, "rules['head'].lr must be finite and >= 0, got -1.0"),
        (
            {"rules": {"head": {"params": []}}},
            ValueError,
            "rules: 'head' must not set params, which param_groups makes",
        ),
    ],
)
def test_bad_input(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        param_groups(ViT(), **{"lr": 0.1, **settings})


def test_a_module_that_has_no_shapes_yet() -> None:
    with pytest.raises(ValueError, match="module must know the shapes of its parameters"):
        param_groups(nn.LazyLinear(3), lr=0.1)
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got \[\]"):
        param_groups([], lr=0.1)  # type: ignore[arg-type]
