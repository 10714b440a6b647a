"""The tasks on which the schedule matters: their splits, and short trainings from their configurations."""

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
import yaml

from lit_cosine import Comparison, Constant, Linear, compare
from lit_cosine.cli._compare_options import TASKS, parse
from lit_cosine.cli.main import main
from lit_cosine.example import CharDataModule, CharTransformer, ConvNet, LitClassifier, MNIST1DDataModule

EXAMPLE = Path(__file__).parents[2] / "lit_cosine" / "example"


def windows(split_seed: int) -> list[list[str]]:
    """The windows of the training, the validation and the test part."""
    data = CharDataModule(split_seed=split_seed)
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    return [["".join(map(chr, row)) for row in loader.dataset.tensors[0].tolist()] for loader in loaders]


def test_char_parts_are_stretches_of_the_text_and_all_of_it() -> None:
    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace").decode()
    size = len(text) // 40
    stretches = [text[k * size : (k + 1) * size] for k in range(40)]
    expected = [tuple(each[k : k + 33] for k in range(0, size - 32, 32)) for each in stretches]
    first, second = windows(0), windows(1)
    for parts in (first, second):
        count = len(expected[0])
        drawn = [[tuple(part[k : k + count]) for k in range(0, len(part), count)] for part in parts]
        assert list(map(len, drawn)) == [34, 3, 3]
        assert sorted(each for part in drawn for each in part) == sorted(expected)
    assert windows(0) == first
    assert first[2] != second[2]


def test_char_windows_overlap_by_the_predicted_character_alone() -> None:
    data = CharDataModule(batch_size=2, length=5)
    data.setup()
    ((batch,), *_) = data.val_dataloader()
    assert batch.shape == (128, 6)
    assert torch.equal(batch[:-1, -1], batch[1:, 0])


def test_the_transformer_is_causal() -> None:
    model = CharTransformer(length=8).eval()
    characters = torch.randint(128, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = characters.clone()
    changed[:, 5:] = 7
    with torch.no_grad():
        one, other = model(characters), model(changed)
    assert torch.allclose(one[:, :5], other[:, :5], atol=1e-6)
    assert not torch.allclose(one[:, 5:], other[:, 5:], atol=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_short_trainings_of_a_task(name: str, tmp_path: Path) -> None:
    if TASKS[name]:
        pytest.importorskip(TASKS[name])
    config = yaml.safe_load((EXAMPLE / f"{name}.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "limit_test_batches": 1}
    schedules = {"constant": Constant(), "linear": Linear()}
    options = parse(["--data", name, "--splits", "2"])

    def compared() -> Comparison:
        return compare(
            None, None, schedules, [0.01], 1, folder=tmp_path,
            metric=options.metric, split_arg=options.split_arg, config=config, splits=2, engine="serial",
        )  # fmt: skip

    found = compared()
    assert (found.problems, found.report, found.paired) == ((), "test/loss", True)
    assert np.unique(found.values()).size == 4  # another loss in every training
    assert compared().members.tobytes() == found.members.tobytes()


def test_the_command_passes_its_options_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        "model: {class_path: lit_cosine.LitClassifier}\n"
        "data: {class_path: lit_cosine.SyntheticDataModule}\n"
        "trainer: {max_epochs: 1, limit_train_batches: 2}\n"
    )
    options = "--metric val/loss --lrs 0.01 --seeds 1 --splits 2 --engine serial --baseline linear"
    assert main(["compare", "--config", "tiny.yaml", *options.split()]) == 0
    results = json.loads(Path("runs/compare_module/results.json").read_text())
    assert (results["baseline"], results["scope"][:20]) == ("linear", "2 splits of the data")


def test_mnist1d_leaves_the_global_generators_alone() -> None:
    pytest.importorskip("mnist1d")
    random.seed(3), np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3), np.random.seed(3)
    data = MNIST1DDataModule(split_seed=1)
    assert (data.num_features, data.num_classes, len(data.test_dataloader().dataset)) == (40, 10, 500)
    assert (random.random(), np.random.rand()) == expected
    assert not torch.equal(
        data.val_dataloader().dataset.tensors[0], MNIST1DDataModule().val_dataloader().dataset.tensors[0]
    )
    assert LitClassifier(ConvNet())(next(iter(data.test_dataloader()))[0]).shape == (100, 10)
