"""``compare`` on modules of a user's own; the witness is a Trainer run made by hand with the same arguments."""

import json
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lit_cosine import Comparison, Constant, Cosine, LearningRateScheduler, compare
from lit_cosine.cli._compare_options import parse
from lit_cosine.cli.main import main
from lit_cosine.comparison._engines import Engine, Failure
from lit_cosine.comparison._report import member_records, write

SCHEDULES = {"constant": Constant(), "cosine": Cosine()}


class Data(pl.LightningDataModule):
    def __init__(self, split_seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(80, 3, generator=generator)
        y = x.sum(1, keepdim=True) + 0.3 * torch.randn(80, 1, generator=generator)
        parts = random_split(TensorDataset(x, y), [48, 16, 16], torch.Generator().manual_seed(split_seed))
        self.train, self.val, self.test = parts

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=16)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=16)


class Regression(pl.LightningModule):
    """Batch normalization, dropout, two param groups, AdamW, and a scheduler that is replaced."""

    lr = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def loss(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.net[0].parameters(), "lr": self.lr}, {"params": self.net[1:].parameters()}]
        optimizer = torch.optim.AdamW(groups, lr=self.lr / 4)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Raising(Regression):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.optimizers().param_groups[0]["lr"] > 0.15:
            raise RuntimeError("no such luck")
        return super().training_step(batch, batch_idx)


class WithoutOptimizer(Regression):
    def configure_optimizers(self) -> None:
        return None


def different_every_time() -> Regression:
    torch.manual_seed(time.time_ns() % 2**31)
    return Regression()


def run(
    module: Any = Regression, schedules: Any = SCHEDULES, lrs: Any = (0.02, 0.1), seeds: Any = 1, **options: Any
) -> Comparison:
    given = {"metric": "val/loss", "trainer": {"max_epochs": 2, "accelerator": "cpu"}, "engine": "serial", **options}
    return compare(module, Data, schedules, lrs, seeds, **given)


def by_hand(schedule: Any, lr: float, seed: int) -> dict[str, float]:
    """Train with the LR written into the module, without anything of comparisons."""
    pl.seed_everything(seed, workers=True, verbose=False)
    module = Regression()
    module.lr = lr
    scheduler = LearningRateScheduler(schedule, replace=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[scheduler], **quiet)
    data = Data()
    trainer.fit(module, data)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return found | trainer.test(module, data, verbose=False)[0]


def test_each_row_is_a_trainer_run_made_by_hand_bit_for_bit() -> None:
    state = torch.get_rng_state()
    found = run(lrs=[0.1])
    assert torch.equal(torch.get_rng_state(), state)
    for index, schedule in enumerate(SCHEDULES.values()):
        hand = by_hand(schedule, 0.1, 0)
        assert found.members["val/loss"][0, index, 0, -1] == hand["val/loss"]
        assert found.members["test/loss"][0, index, 0] == hand["test/loss"]
        assert found.members["train/loss"][0, index, 0] == hand["train/loss"]
    assert found.report == "test/loss"
    assert found.paired
    assert (found.total_steps, found.epochs) == (6, 2)
    assert "seed noise only: says nothing about other data" in repr(found)
    assert "<pre>" in found._repr_html_()


def test_scales_are_multiples_of_what_the_module_asks_for() -> None:
    scaled = run(lrs="auto", lr_scales=[1.0, 5.0])
    assert scaled.lrs == (0.02, 0.1)
    assert scaled.members.tobytes() == run().members.tobytes()


def test_a_training_that_raises_is_excluded_with_its_reason_and_tried_again_where_asked(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    found = run(Raising, lrs=[0.02, 0.2], folder=tmp_path)
    assert found.diverged[0, :, 1].all()
    assert found.best_lr("cosine") == 0.02
    assert found.problems[0] == "constant, LR 0.2, seed 0 failed: RuntimeError: no such luck"
    again = run(Raising, lrs=[0.02, 0.2], folder=tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert heard == [(4, 4)]
    assert again.members.tobytes() == found.members.tobytes()
    heard.clear()
    run(Raising, lrs=[0.02, 0.2], folder=tmp_path, retry_failed=True, on_progress=lambda *at: heard.append(at[:2]))
    assert heard == [(2, 4), (3, 4), (4, 4)]


def test_a_stopped_comparison_goes_on_and_a_larger_grid_trains_what_is_new(tmp_path: Path) -> None:
    whole = run(seeds=2)

    def stop(done: int, *_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, on_progress=stop)
    journal = tmp_path / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 3
    journal.write_bytes(journal.read_bytes()[:-50])  # a kill in the middle of a write
    heard: list[tuple[int, int]] = []
    continued = run(seeds=2, folder=tmp_path, on_progress=lambda *at: heard.append(at[:2]))
    assert heard[0] == (2, 8)
    assert continued.members.tobytes() == whole.members.tobytes()
    with pytest.raises(ValueError, match=r"holds a different comparison \(differs in: trainer\)"):
        run(folder=tmp_path, trainer={"max_epochs": 3})
    with pytest.raises(ValueError, match="got 'val_loss'"):
        run(folder=tmp_path / "misspelt", metric="val_loss")
    assert run(folder=tmp_path / "misspelt").problems == ()  # no training was kept under the wrong name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        run(folder=tmp_path / "other")


def test_progress_is_trainings_done_known_running_and_failed_and_a_stop_shows_what_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard: list[tuple[int, ...]] = []
    run(Raising, lrs=[0.02, 0.2], on_progress=lambda *at: heard.append(at))
    assert heard == [(0, 4, 1, 0), (1, 4, 1, 0), (2, 4, 1, 1), (3, 4, 1, 1), (4, 4, 0, 2)]

    def stop(done: int, *_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    assert capsys.readouterr().out == ""
    with pytest.raises(KeyboardInterrupt):
        run(Raising, lrs=[0.02, 0.2], on_progress=stop)
    shown = capsys.readouterr().out
    assert "Stopped after 3 of 4 trainings:" in shown
    assert "1 of 3 trainings diverged" in shown
    assert "constant, LR 0.2, seed 0 failed: RuntimeError: no such luck" in shown


def test_over_splits_the_split_is_the_unit() -> None:
    found = run(seeds=2, splits=3, lrs=[0.1])
    assert found.members.shape == (6, 2, 1)
    means = found.members["test/loss"].reshape(3, 2, 2, 1).mean(axis=1)
    np.testing.assert_array_equal(found.values(), means)
    differences = means[:, 1, 0] - means[:, 0, 0]
    # Nadeau and Bengio: the variance is (1/J + n_test/n_train) s^2; t of 2 degrees of freedom at 97.5 % is 4.302653
    half = 4.302653 * math.sqrt(1 / 3 + 16 / 48) * differences.std(ddof=1)
    row = found.table()[1]
    assert row.difference.value == pytest.approx(differences.mean())
    assert row.difference.high - row.difference.value == pytest.approx(half, rel=1e-6)
    assert "3 splits of the data, 2 seeds averaged in each" in repr(found)


def test_trainings_that_start_differently_are_called_unpaired() -> None:
    found = run(different_every_time, lrs=[0.1], seeds=2)
    assert not found.paired
    assert "unpaired" in found.scope


def test_an_early_stop_is_a_row_with_a_reason() -> None:
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 100.0},
    }
    trainer = {"max_epochs": 4, "accelerator": "cpu", "callbacks": [stop]}
    found = run(lrs=[0.02], trainer=trainer)
    assert found.problems == tuple(f"{name}, LR 0.02, seed 0 ended early, at step 6" for name in SCHEDULES)
    assert np.isfinite(found.values()).all()


def test_a_loss_that_explodes_has_diverged() -> None:
    found = run(schedules={"constant": Constant()}, lrs=[0.02, 3e4], trainer={"max_epochs": 3, "accelerator": "cpu"})
    assert found.diverged[0, 0].tolist() == [False, True]


BAD = [
    ({"metric": "val_loss"}, ValueError, "which are test/loss, train/loss, val/loss; got 'val_loss'"),
    ({"metric": 3}, TypeError, "metric must be text, got 3"),
    ({"module": WithoutOptimizer}, ValueError, "every training failed or diverged: ValueError: .*needs an optimizer"),
    ({"module": lambda: Regression()}, TypeError, "module must be a class or a function at the top level"),
    ({"module": "nowhere:Net"}, ValueError, "module must be importable as module:Name, got 'nowhere:Net'"),
    ({"mode": "least"}, ValueError, "mode must be one of min, max"),
    ({"lr_scales": [1.0]}, ValueError, "lrs and lr_scales exclude each other"),
    ({"lrs": "auto", "lr_scales": [0.0]}, ValueError, "lr_scales must be finite and > 0, got 0.0"),
    ({"splits": 0}, ValueError, "splits must be an integer >= 1, got 0"),
    ({"seeds": 10**12}, ValueError, "must be at most 1,000,000 trainings, got 2,000,000,000,000"),
    ({"seeds": [2**32]}, ValueError, "seeds must be an integer from 0 to 4294967295, got 4294967296"),
    ({"engine": "dask"}, ValueError, "engine must be one of serial, local, ray, got 'dask'"),
    ({"workers": 0}, ValueError, "workers must be an integer >= 1, got 0"),
    ({"timeout": 1.0}, ValueError, 'timeout needs engine="local"'),
    ({"address": "127.0.0.1:1"}, ValueError, 'needs engine="ray"'),
    ({"trainer": {"callbacks": [object()]}}, TypeError, "trainer must be plain data"),
    ({"config": {"model": {}}}, ValueError, "module and config exclude each other"),
    (
        {"module": None, "config": "run.yaml"},
        TypeError,
        "config must be a mapping, the content of the file, got 'run.yaml'",
    ),
    ({"module": None, "config": {"model": "a.B"}}, ValueError, "config takes the place of data and trainer"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: str(value).partition(" at 0x")[0][:40])
def test_bad_input_is_refused(options, kind, message: str) -> None:
    with pytest.raises(kind, match=message):
        run(**{"lrs": [0.02], **options})


def test_a_configuration_names_a_class_that_can_be_imported_and_splits_need_data() -> None:
    with pytest.raises(ValueError, match=r"model must be importable as module:Name, got 'a.B'"):
        compare(None, None, SCHEDULES, [0.02], 1, metric="val/loss", config={"model": "a.B"})
    with pytest.raises(
        ValueError, match="splits needs data, a LightningDataModule that takes split_seed, got splits=2"
    ):
        compare(Regression, None, SCHEDULES, [0.02], 1, metric="val/loss", splits=2)


class LogsItsLr(Regression):
    def on_train_epoch_end(self) -> None:
        self.log("epochs/begun", float(self.current_epoch + 1))
        self.log("lr", 1e-9)


class TwoValidationLoaders(Data):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader()]


def test_a_curve_has_a_point_for_each_validation_or_epoch_and_no_old_values() -> None:
    trainer = {"max_epochs": 5, "accelerator": "cpu", "check_val_every_n_epoch": 2}
    found = run(LogsItsLr, lrs=[0.02], trainer=trainer)
    assert (found.epochs, found.steps_per_epoch) == (2, 6)
    trainer = {"max_epochs": 3, "accelerator": "cpu"}
    found = run(LogsItsLr, lrs=[0.02], trainer=trainer, metric="epochs/begun")
    assert found.members["epochs/begun"][0, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert {row["lr"] for row in member_records(found)} == {0.02}


def test_the_rows_of_a_list_of_loaders_count() -> None:
    options = {"metric": "val/loss", "trainer": {"max_epochs": 1, "accelerator": "cpu"}, "engine": "serial"}
    found = compare(Regression, TwoValidationLoaders, {"cosine": Cosine()}, [0.02], 1, splits=2, **options)
    assert found.overlap == pytest.approx(16 / 48)


def test_a_training_without_a_test_is_a_row() -> None:
    found = run(lrs=[0.02], trainer={"max_epochs": 1, "accelerator": "cpu", "limit_test_batches": 0})
    assert found.report == "val/loss"
    assert not found.diverged.any()


@pytest.mark.slow
def test_the_search_widens_at_an_edge_and_refines_around_the_best() -> None:
    found = run(schedules={"cosine": Cosine()}, lrs="auto")
    asked = Regression.lr
    assert {round(lr / asked, 6) for lr in found.lrs} >= {round(scale, 6) for scale in (1 / 9, 1 / 3, 1, 3, 9)}
    best = found.best_lr("cosine")
    assert any(
        lr == pytest.approx(best * math.sqrt(3.0)) or lr == pytest.approx(best / math.sqrt(3.0)) for lr in found.lrs
    )


@pytest.mark.slow
def test_the_grids_of_further_schedules_are_moved_by_the_ratio_of_the_peaks_of_the_bound() -> None:
    schedules = {"cosine": Cosine(), "constant": Constant()}
    found = run(schedules=schedules, lrs="auto", trainer={"max_steps": 3, "accelerator": "cpu"})
    tried = {name: {lr for index, lr in enumerate(found.lrs) if found.has(name, index)} for name in schedules}
    # the peak of constant's bound is 0.38 times that of the cosine's, nearest to a third: FACTS of Schaipp et al. 2025
    assert min(tried["cosine"]) == pytest.approx(Regression.lr / 9) or found.best_lr("cosine") < Regression.lr
    assert {round(lr / Regression.lr, 6) for lr in tried["constant"]} >= {round(3.0**k, 6) for k in range(-3, 2)}
    assert found.diverged[~found.trained].sum() == 0
    assert all(math.isfinite(row.mean.value) for row in found.table())


def squared(number: int) -> int:
    return number**2


def once_killed(item: tuple[int, str]) -> int:
    number, mark = item
    if number == 1 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def frozen(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def process_of(number: int) -> int:
    time.sleep(0.2)
    return os.getpid()


class Unreadable:
    """A function that no other process can load."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))

    def __call__(self, item: int) -> int:
        return item


@pytest.mark.slow
def test_a_function_that_a_process_cannot_load_is_an_error_with_its_reason() -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(Engine("local", workers=1).run(Unreadable(), [1]))


def test_more_workers_than_items_start_a_process_for_each_item() -> None:
    running: list[int] = []
    processes = dict(Engine("local", workers=5, fork=True).run(process_of, range(2), running.append))
    assert (len(set(processes.values())), running) == (2, [2, 1, 0])


def always_killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_a_frozen_one_ended(tmp_path: Path) -> None:
    local = Engine("local", workers=2)
    items = [(number, str(tmp_path / "mark")) for number in range(5)]
    assert dict(local.run(once_killed, items)) == {number: number for number in range(5)}
    killed = dict(local.run(always_killed, range(3)))
    assert killed == {0: 0, 1: Failure("its process was killed 3 times"), 2: 2}
    stopped = dict(Engine("local", workers=2, timeout=15.0, fork=True).run(frozen, range(4)))
    assert stopped == {0: 0, 1: Failure("took longer than the timeout of 15 s"), 2: 2, 3: 3}


def test_ray_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python takes for a missing module
    with pytest.raises(ValueError, match=r"engine 'ray' needs Ray: pip install 'lit-cosine\[ray\]'"):
        Engine("ray")


@pytest.mark.slow
def test_an_address_that_no_ray_cluster_answers_is_refused() -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"no cluster answers at 127\.0\.0\.1:1"):
        Engine("ray", address="127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and is no Ray cluster
        began = time.monotonic()
        with pytest.raises(ValueError, match="no cluster answers at"):
            Engine("ray", address=f"127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 20.0


def test_a_lightning_cli_configuration_gives_the_same_rows() -> None:
    """The article's loop is in the configuration: model and data by class path, and a split by its key."""
    here = __name__
    config = {
        "model": {"class_path": f"{here}.Regression"},
        "data": {"class_path": f"{here}.Data", "init_args": {"split_seed": 5}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    options = {"config": config, "metric": "val/loss", "engine": "serial", "splits": 2}
    found = compare(None, None, SCHEDULES, [0.02], 1, split_arg="data.init_args.split_seed", **options)
    assert found.members.tobytes() == run(lrs=[0.02], splits=2).members.tobytes()
    assert config["data"]["init_args"] == {"split_seed": 5}


class LogsPictures(Regression):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.logger.experiment.add_figure("errors", None)
        super().validation_step(batch, batch_idx)


def test_what_a_configuration_lists_to_watch_and_save_runs_is_left_out(tmp_path: Path) -> None:
    listed = ["lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.LearningRateMonitor"]
    listed += ["lit_cosine.LearningRateScheduler", "lit_cosine.ScheduleAudit", "lit_cosine.TrainingCurves"]
    config = {
        "model": f"{__name__}.LogsPictures",
        "data": f"{__name__}.Data",
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path),
            "callbacks": [{"class_path": name} for name in listed],
        },
    }
    found = compare(None, None, SCHEDULES, [0.02], 1, config=config, metric="val/loss", engine="serial")
    assert found.problems == ()
    assert found.members.tobytes() == run(lrs=[0.02]).members.tobytes()
    assert list(tmp_path.iterdir()) == []


class Bare(Regression):
    """Logs one metric, in the training alone."""

    def train_dataloader(self) -> DataLoader[Any]:
        return Data().train_dataloader()

    validation_step = test_step = pl.LightningModule.validation_step


def test_a_metric_that_is_a_curve_and_nothing_else_is_reported(tmp_path: Path) -> None:
    found = compare(Bare, None, SCHEDULES, [0.02], 1, metric="train/loss", trainer={"max_epochs": 1}, engine="serial")
    write(found, tmp_path)
    head, first, *_ = (tmp_path / "table.csv").read_text().splitlines()
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert (row["measure"], float(row["mean"])) == ("train/loss", found.values()[0, 0, 0])


def test_the_command_compares_on_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {{class_path: {__name__}.Regression}}\ndata: {{class_path: {__name__}.Data}}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    (tmp_path / "schedules.yaml").write_text("constant: Constant\ncosine: Cosine\n")
    command = ["compare", "--config", str(file), "--engine", "serial", "--folder", str(tmp_path / "run")]
    command += ["--schedules", str(tmp_path / "schedules.yaml"), "--lrs", "0.02", "0.1", "--seeds", "1"]
    assert main([*command, "--metric", "val/loss"]) == 0
    out = capsys.readouterr().out
    assert "seed noise only: says nothing about other data" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    at = ("same lr", "test/loss")
    tested = [row for row in results["tables"] if (row["at"], row["measure"]) == at]
    rows = {(row["schedule"], row["lr"]): row["mean"] for row in tested}
    witness = run().values()[0]
    assert rows["cosine", 0.1] == witness[1, 1]
    assert rows["constant", 0.02] == witness[0, 0]
    assert main([*command, "--metric", "val_loss"]) == 2
    assert "holds a different comparison (differs in: metric)" in capsys.readouterr().err
    for wrong, message in (
        ([], "--metric must name a metric"),
        (["--metric", "val/loss", "--network", "a.B"], "--network must be left out with --config"),
        (["--metric", "val/loss", "--lr_scales", "2"], "lrs and lr_scales exclude each other"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
    short = [*command, "--metric", "val/loss", "--folder", str(tmp_path / "short"), "--fraction", "0.5"]
    assert main(short) == 0
    shown = capsys.readouterr().out
    assert "Trained for 1 of 2 epochs: the peak LR of a short run is too high for a long one" in shown
    described = json.loads((tmp_path / "short" / "results.json").read_text())["description"]
    assert described["config"]["trainer"] == {"max_epochs": 1, "accelerator": "cpu"}
    assert main(["compare", "--metric", "val/loss"]) == 2
    assert "--metric needs --config" in capsys.readouterr().err


CONFIGURATIONS = [
    ("cosine: Cosine\n", [], "must be a LightningCLI configuration with the class of the model; "),
    ("- 1\n", [], "must be a LightningCLI configuration with the class of the model; "),
    ("model: a.B\naudit: warn\n", [], "has 'audit', of another command"),
    ("model: {lr: 0.1}\n", [], "must name the class of the model; in "),
    ("model: a.B\n", ["--fraction", "0.5"], "--fraction needs trainer.max_epochs or trainer.max_steps"),
    ("model: a.B\ntrainer: {max_epochs: 2}\n", ["--fraction", "1.5"], "fraction must be in (0, 1], got 1.5"),
    (
        "model: a.B\ntrainer: {max_epochs: 2}\n",
        ["--fraction", "0.1"],
        "fraction must leave at least one of the 2 epochs, got 0.1",
    ),
    ("model: a.B\n", ["--max_epochs", "0"], "max_epochs must be an integer >= 1, got 0"),
    ("model: a.B\n", ["--max_epochs", "1", "--fraction", "0.1"], "--max_epochs and --fraction exclude each other"),
]


@pytest.mark.parametrize(("text", "more", "message"), CONFIGURATIONS, ids=range(len(CONFIGURATIONS)))
def test_a_configuration_of_another_command_and_a_length_that_is_none_are_refused(
    text: str, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["compare", "--config", str(file), "--metric", "val/loss", *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "options", "left", "said"),
    [
        ({"max_epochs": 10}, ["--max_epochs", "3"], {"max_epochs": 3}, "Trained for 3 epochs"),
        ({"max_epochs": 10}, ["--max_epochs", "10"], {"max_epochs": 10}, ""),
        ({"max_steps": 90}, ["--fraction", "0.1"], {"max_steps": 9}, "Trained for 9 of 90 steps"),
        ({"max_steps": 90}, ["--max_epochs", "3"], {"max_steps": 90, "max_epochs": 3}, "Trained for at most 3 epochs"),
        ({"max_epochs": 9}, ["--fraction", "1"], {"max_epochs": 9}, ""),
        ({"max_epochs": 3, "max_steps": 90}, ["--max_epochs", "3"], {"max_epochs": 3, "max_steps": 90}, ""),
        (
            {"max_epochs": 10, "max_steps": 90},
            ["--fraction", "0.1"],
            {"max_epochs": 1, "max_steps": 9},
            "Trained for 1 of 10 epochs or 9 of 90 steps",
        ),
        ({"max_epochs": 9}, [], {"max_epochs": 9}, ""),
    ],
)
def test_a_shorter_run(trainer: Any, options: list[str], left: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"fit": {"model": "a.B", "trainer": trainer, "ckpt_path": None}}))
    parsed = parse(["--config", str(file), "--metric", "m", "--folder", str(tmp_path / "new"), *options])
    assert parsed.config == {"model": "a.B", "trainer": left}
    assert parsed.shortened == said
