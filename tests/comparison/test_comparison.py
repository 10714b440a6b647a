import json
import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from lit_cosine import Constant, Cosine, Linear, Step, TabularDataModule, compare_networks
from lit_cosine.comparison import OPTIMIZERS, Comparison
from lit_cosine.comparison._statistics import paired_differences
from lit_cosine.comparison.stacked import NotStackable, OptimizerName

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(60, 4, generator=GENERATOR)
LABELS = (FEATURES @ torch.randn(4, 3, generator=GENERATOR)).argmax(1)


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def data(**split: int) -> TabularDataModule:
    return TabularDataModule((FEATURES, LABELS), batch_size=16, **split)


def run(network=Small, schedules=None, lrs=(0.01, 0.1), seeds=3, max_epochs=2, **options) -> Comparison:
    schedules = {"constant": Constant(), "cosine": Cosine()} if schedules is None else schedules
    return compare_networks(network, data(), schedules, lrs, seeds, max_epochs, **{"engine": "serial", **options})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.xdist_group("processes")
def test_one_process_two_processes_and_a_continued_run_give_the_same_trainings(tmp_path: Path) -> None:
    one = run(folder=tmp_path / "one")
    two = run(folder=tmp_path / "two", engine="local", workers=2)

    def stop(done: int, *_: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "stopped", on_progress=stop)
    assert len(rows(tmp_path / "stopped")) == 1  # a block is 4 arms of one seed
    heard: list[tuple[int, int]] = []
    continued = run(folder=tmp_path / "stopped", on_progress=lambda *at: heard.append(at[:2]))
    assert heard == [(4, 12), (8, 12), (12, 12)]
    assert one.members.tobytes() == two.members.tobytes() == continued.members.tobytes()
    assert rows(tmp_path / "one") == rows(tmp_path / "two") == rows(tmp_path / "stopped")


def rows(folder: Path) -> list[str]:
    """The finished blocks of a journal."""
    return sorted((folder / "journal.jsonl").read_text().splitlines()[1:])


def test_a_torn_line_is_trained_again_and_a_larger_grid_trains_what_is_new(tmp_path: Path) -> None:
    first = run(folder=tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-100])
    heard: list[tuple[int, int]] = []
    again = run(folder=tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert first.members.tobytes() == again.members.tobytes()
    assert heard == [(8, 12), (12, 12)]
    heard.clear()
    more = run(folder=tmp_path, seeds=4, on_progress=lambda *at: heard.append(at[:2]))
    assert heard == [(12, 16), (16, 16)]
    assert more.members[:3].tobytes() == first.members.tobytes()


def test_a_grid_that_grows_on_every_side_trains_what_is_new_alone(tmp_path: Path) -> None:
    first = run(folder=tmp_path, splits=2)
    heard: list[tuple[int, ...]] = []
    schedules = {"linear": Linear(), "cosine": Cosine(), "constant": Constant()}
    larger = {"schedules": schedules, "lrs": (0.03, 0.1, 0.01), "seeds": 4, "splits": 3}
    more = run(**larger, folder=tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert heard[0] == (2 * 3 * 4, 3 * 4 * 9)
    kept = more.members.reshape(3, 4, 3, 3)[:2, :3][:, :, [2, 1]][..., [2, 1]]
    assert kept.tobytes() == first.members.reshape(2, 3, 2, 2).tobytes()
    whole = run(**larger)
    for name in whole.members.dtype.names:
        np.testing.assert_allclose(more.members[name], whole.members[name], rtol=1e-4)
    heard.clear()
    assert run(folder=tmp_path, splits=2, on_progress=lambda *at: heard.append(at)).members.tobytes() == (
        first.members.tobytes()
    )
    assert heard == [(24, 24, 0, 0)]


def test_a_stop_shows_the_table_of_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_progress=stop)
    shown = capsys.readouterr().out
    assert "Stopped after 8 of 12 trainings:" in shown
    assert re.search(r"cosine +0\.", shown)
    assert "diverged" not in shown


def test_batch_norm_is_refused_with_the_reason() -> None:
    with pytest.raises(NotStackable, match=r"changes its buffers 1\.running_mean"):
        run(Normed)


def test_over_splits_each_split_is_the_comparison_of_that_split(tmp_path: Path) -> None:
    found = run(splits=3, seeds=2, folder=tmp_path)
    assert found.members.shape == (6, 2, 2)
    for split in range(3):
        alone = compare_networks(
            *(Small, data(split_seed=split), found.schedules, found.lrs, 2, 2), engine="serial", baseline="constant"
        )
        assert found.members[2 * split : 2 * split + 2].tobytes() == alone.members.tobytes()
    assert found.values().shape == (3, 2, 2)
    assert found.overlap == 6 / 48  # test rows over training rows
    assert found.scope == "3 splits of the data, 2 seeds averaged in each"
    heard: list[tuple[int, int]] = []
    more = run(splits=4, seeds=2, folder=tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert heard[0] == (24, 32)
    assert more.members[:6].tobytes() == found.members.tobytes()


def test_seeds_are_paired() -> None:
    twins = run(schedules={"a": Cosine(), "b": Cosine()})
    for name in twins.members.dtype.names:
        # but for the rounding of members that are the first and the last in a vector register
        np.testing.assert_allclose(twins.members[name][:, 0], twins.members[name][:, 1], rtol=1e-6)
    other = run(schedules={"a": Cosine(), "b": Cosine()}, seeds=[2, 0, 1])
    np.testing.assert_allclose(other.values()[1], twins.values()[0], rtol=1e-5)


def fabricated(test_loss: np.ndarray, val_loss: np.ndarray | None = None, lrs=(0.1, 0.2)) -> Comparison:
    """A comparison whose members are given: (seeds, schedules, lrs), constant first."""
    epochs = 1 if val_loss is None else val_loss.shape[-1]
    curve = [(name, float, (epochs,)) for name in ("train_loss", "val_loss", "val_accuracy")]
    members = np.zeros(test_loss.shape, dtype=[*curve, ("test_loss", float), ("test_accuracy", float)])
    members["test_loss"] = test_loss
    members["val_loss"] = test_loss[..., None] if val_loss is None else val_loss
    names = ["constant", "cosine", "linear"][: test_loss.shape[1]]
    schedules = dict(zip(names, (Constant(), Cosine(), Linear()), strict=False))
    return Comparison(schedules, lrs, tuple(range(len(test_loss))), "constant", 5, members, {})


def test_the_best_lr_is_chosen_on_validation_and_judged_on_test() -> None:
    test = np.array([[[1.0, 9.0], [3.0, 8.0]], [[2.0, 9.0], [4.0, 8.5]]])
    val = np.array([[[[5.0], [4.0]], [[1.0], [2.0]]]] * 2)
    found = fabricated(test, val)
    assert [found.best_index(name) for name in found.schedules] == [1, 0]
    baseline, cosine = found.table()
    assert (baseline.lr, baseline.mean.value, baseline.difference) == (0.2, 9.0, None)
    assert (cosine.lr, cosine.mean.value, cosine.difference.value, cosine.difference.won) == (0.1, 3.5, -5.5, 1.0)
    witness = paired_differences([([3.0, 4.0], [9.0, 9.0])])[0]
    assert cosine.difference == witness


def test_the_table_by_lr_is_one_family_against_the_baseline_at_the_same_lr() -> None:
    test = np.random.default_rng(0).normal(1.0, 0.2, (8, 3, 2))
    rows = {(row.schedule, row.lr): row for row in fabricated(test).table_by_lr()}
    keys = [(name, lr) for name in ("cosine", "linear") for lr in (0.1, 0.2)]
    witness = paired_differences([(test[:, i, j], test[:, 0, j]) for i in (1, 2) for j in (0, 1)])
    assert [rows[key].difference for key in keys] == witness
    assert rows["constant", 0.1].difference is None


def test_more_accuracy_wins() -> None:
    found = fabricated(np.ones((3, 2, 1)), lrs=(0.1,))
    found.members["test_accuracy"][:, 1] = [[0.9], [0.8], [0.7]]
    found.members["test_accuracy"][:, 0] = [[0.6], [0.6], [0.6]]
    difference = found.table("test_accuracy")[1].difference
    assert difference.value == pytest.approx(0.2)
    assert difference.low < 0.2 < difference.high
    assert difference.won == 1.0


def test_a_diverged_member_is_counted_and_never_averaged_in() -> None:
    test = np.array([[[1.0], [2.0]], [[1.0], [math.nan]], [[1.0], [3.0]]])
    found = fabricated(test, lrs=(0.1,))
    row = found.table()[1]
    assert (row.diverged, row.mean.value, row.mean.n, row.difference.n) == (1, 2.5, 2, 2)
    nothing = fabricated(np.array([[[1.0], [math.nan]]] * 3), lrs=(0.1,))
    row = nothing.table()[1]
    assert (row.diverged, row.mean.n) == (3, 0)
    assert math.isnan(row.lr)
    # it may have recovered by the end: infinite once is diverged
    val = np.array([[[[math.inf, 1.0]], [[1.0, 1.0]]]] * 2)
    recovered = fabricated(np.ones((2, 2, 1)), val, lrs=(0.1,))
    assert recovered.diverged[:, :, 0].tolist() == [[True, False]] * 2
    assert [row.mean.n for row in recovered.table_by_lr()] == [0, 2]


def test_an_lr_with_fewer_diverged_seeds_goes_first() -> None:
    found = fabricated(np.array([[[1.0, 2.0]], [[math.nan, 2.0]]]))
    assert found.best_index("constant") == 1


def test_a_real_divergence() -> None:
    found = run(schedules=[Constant()], lrs=[0.01, 3e38], optimizer="sgd", seeds=2)
    assert found.diverged[:, 0].tolist() == [[False, True]] * 2
    assert [row.diverged for row in found.table_by_lr()] == [0, 2]


def test_a_loss_that_ends_above_a_thousand_times_its_start_has_diverged() -> None:
    found = run(schedules=[Constant()], lrs=[0.01, 1e6], optimizer="sgd", seeds=2)
    assert found.diverged[:, 0].tolist() == [[False, True]] * 2


def test_steps_to_a_loss_and_spread() -> None:
    val = np.array([[[[3.0, 2.0, 1.0], [3.0, 3.0, 3.0]]], [[[2.0, 2.5, 1.0], [3.0, 3.0, 3.0]]]])
    found = fabricated(np.array([[[1.0, 3.0]], [[1.0, 5.0]]]), val)
    assert found.steps_to(2.0, "constant").tolist() == [10.0, 5.0]
    assert found.steps_to(0.5, "constant").tolist() == [math.inf, math.inf]
    assert found.spread("constant") == pytest.approx(np.std([1.0, 4.0], ddof=1))
    assert found.total_steps == 15


def test_one_seed_has_no_interval() -> None:
    row = run(seeds=1).table()[1]
    assert math.isfinite(row.mean.value)
    assert math.isnan(row.mean.low)
    assert math.isnan(row.difference.low)


def test_a_null_experiment_is_called_different_at_most_5_times_in_100() -> None:
    found = run(
        lambda: nn.Linear(4, 3), {"a": Cosine(), "b": Cosine()}, lrs=[0.05], seeds=600, max_epochs=1, optimizer="sgd"
    )
    losses = found.values()[:, :, 0]
    # one schedule under two names, 3 seeds at a time
    called = sum(paired_differences([group.T])[0].p <= 0.05 for group in losses.reshape(200, 3, 2))
    assert called <= 0.05 * 200
    # and with seeds of its own for each name, so that the two really differ: 5 in 100 are expected
    generator = np.random.default_rng(0)
    draws = [generator.permutation(600)[:16].reshape(2, 8) for _ in range(4000)]
    called = sum(paired_differences([(losses[a, 0], losses[b, 0])])[0].p <= 0.05 for a, b in draws)
    assert called / 4000 == pytest.approx(0.05, abs=0.012)  # 3.5 standard errors


BAD = [
    ({"schedules": []}, ValueError, "schedules must hold at least one schedule, got none"),
    ({"schedules": [Cosine(), Cosine()]}, ValueError, "schedules must have different names, got 'cosine 1 -> 0' twice"),
    ({"schedules": [("a", Cosine()), ("a", Step())]}, ValueError, "different names, got 'a' twice"),
    ({"schedules": [Cosine]}, TypeError, "got the class Cosine"),
    ({"schedules": Cosine()}, TypeError, "schedules must be a mapping or a list"),
    ({"lrs": []}, ValueError, "lrs must hold at least one LR, got none"),
    ({"lrs": [0.1, 0.0]}, ValueError, "lrs must be finite and > 0, got 0.0"),
    ({"lrs": [math.nan]}, ValueError, "lrs must be finite and > 0, got nan"),
    ({"lrs": [0.1, 0.1]}, ValueError, "lrs must differ from each other"),
    ({"lrs": 0.1}, TypeError, "lrs must be a list of numbers, got 0.1"),
    ({"seeds": 0}, ValueError, "seeds must be an integer >= 1, got 0"),
    ({"seeds": []}, ValueError, "seeds must hold at least one seed, got none"),
    ({"seeds": [1, 1]}, ValueError, "seeds must differ from each other"),
    ({"seeds": [-1]}, ValueError, "seeds must be an integer from 0 to 4294967295, got -1"),
    ({"seeds": 1.5}, TypeError, "seeds must be a number of seeds or a list of integers, got 1.5"),
    ({"max_epochs": 0}, ValueError, "max_epochs must be an integer >= 1, got 0"),
    ({"batch_size": 0}, ValueError, "batch_size must be an integer >= 1, got 0"),
    ({"baseline": "step"}, ValueError, "baseline must be one of constant, cosine, got 'step'"),
    ({"optimizer": "lion"}, ValueError, "optimizer must be one of adam, adamw, sgd, got 'lion'"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay must be finite and >= 0, got -1.0"),
    ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
    ({"batch_size": 49}, ValueError, "batch_size must be at most the 48 training rows, got 49"),
    ({"network": lambda: nn.Linear(5, 3)}, ValueError, r"network must map features \(16, 4\) to what the loss takes"),
    ({"network": lambda: nn.Linear(4, 2)}, ValueError, r"each of the 3 classes, got \(16, 2\)"),
    ({"seeds": 10**12}, ValueError, "must fit into memory"),
    ({"splits": 0}, ValueError, "splits must be an integer >= 1, got 0"),
    ({"engine": "dask"}, ValueError, "engine must be one of serial, local, ray, got 'dask'"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: str(value).partition(" at 0x")[0][:40])
def test_bad_input_is_refused_before_training(options, kind, message: str) -> None:
    with pytest.raises(kind, match=message):
        run(**options)


def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(folder=tmp_path / "a", seeds=1)
    before = files(tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds a different comparison \(differs in: max_epochs\)"):
        run(folder=tmp_path / "a", seeds=1, max_epochs=3)
    with pytest.raises(ValueError, match=r"differs in: loss, network\)"):
        run(lambda: nn.Linear(4, 3), folder=tmp_path / "a", seeds=1)
    assert files(tmp_path / "a") == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        run(folder=tmp_path / "b", seeds=1)
    (tmp_path / "a" / "journal.jsonl").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        run(folder=tmp_path / "a", seeds=1)


def test_the_names_of_optimizers_are_those_that_have_a_rule() -> None:
    assert get_args(OptimizerName) == OPTIMIZERS


def test_the_description_is_plain_and_whole() -> None:
    found = run(seeds=1)
    assert json.loads(json.dumps(found.description)) == found.description
    assert found.description["schedules"]["cosine"] == Cosine().to_dict()


def test_another_loss_is_another_comparison_and_further_seeds_are_the_same_one(tmp_path: Path) -> None:
    run(folder=tmp_path, seeds=[1], loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"differs in: loss\)"):
        run(folder=tmp_path, seeds=[1], loss=nn.CrossEntropyLoss(label_smoothing=0.5))
    assert run(folder=tmp_path, seeds=[0, 1], loss=nn.CrossEntropyLoss()).seeds == (0, 1)


def test_a_batch_size_that_fits_small_data_is_taken() -> None:
    few = torch.randn(50, 4).numpy(), (torch.arange(50) % 3).numpy()
    found = compare_networks(Small, few, {"cosine": Cosine()}, [0.01], 1, 1, batch_size=16, engine="serial")
    assert found.steps_per_epoch == 3


def test_names_of_schedules_are_text_and_no_markup() -> None:
    found = run(schedules={"cosine [end=0.1]": Cosine(end=0.1), "cosine [/late]": Cosine()}, seeds=1)
    assert "cosine [end=0.1]" in repr(found)
    assert "cosine [/late]" in repr(found)
    with pytest.raises(TypeError, match=r"names of schedules must be text, got 0\.1"):
        run(schedules={0.1: Cosine()})
