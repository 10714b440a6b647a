import re
import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lit_cosine import LitClassifier, SyntheticDataModule
from lit_cosine.cli.train import train
from lit_cosine.monitors import SteadyProgressBar


class Seen:
    """Notes after how many updates the bar is drawn."""

    def refresh(self, hard=False):
        super().refresh(hard)
        self.__dict__.setdefault("seen", []).append(self.trainer.global_step)


class Stock(Seen, RichProgressBar):
    pass


class Steady(Seen, SteadyProgressBar):
    pass


def seen(bar):
    trainer = Trainer(
        max_epochs=2, callbacks=[bar], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(LitClassifier(), SyntheticDataModule(batch_size=16))
    assert trainer.global_step == 100
    return bar.seen


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_bar_moves_with_the_clock_and_ends_with_the_epoch():
    assert {*range(1, 101)} <= {*seen(Stock())}
    ours = seen(Steady())
    assert {50, 100} <= {*ours}
    assert len({*ours}) < 100


@pytest.mark.parametrize("asked", [True, False])
def test_the_command_shows_a_bar_when_asked(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", str(asked).lower()])
    assert ("13/13" in capsys.readouterr().out) == asked


def test_a_terminal_gets_a_bar_with_loss_and_lr_and_a_pipe_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # rich breaks a number in two where the line is full
    train(["--trainer.max_epochs", "2"])
    piped = capsys.readouterr()
    assert "13/13" not in piped.out
    assert "stopped" not in piped.err  # the line of the last epoch says so
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    train(["--trainer.max_epochs", "2"])
    bar = capsys.readouterr().out
    assert "13/13" in bar
    assert re.search(r"loss:\s+0\.\d{4}", bar)
    assert re.search(r"lr:\s+0\.01", bar)
    assert {*re.findall(r"Epoch \d/-?\d", bar)} == {"Epoch 1/2", "Epoch 2/2"}  # as the lines above the bar count
    assert "13/13" not in bar[bar.rindex("Epoch 2/2, Loss") :]  # the bar is finished before the last lines


@pytest.mark.parametrize("listed", ["[{}]", "{}"])
def test_a_bar_of_ones_own_takes_its_place(listed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    callbacks = listed.format("{class_path: lightning.pytorch.callbacks.TQDMProgressBar}")
    (tmp_path / "bar.yaml").write_text(f"trainer: {{enable_progress_bar: true, callbacks: {callbacks}}}\n")
    train(["--config", "bar.yaml", "--trainer.max_epochs", "2"])
    assert "Epoch 1: 100%" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
def test_the_loss_in_the_bar_is_the_batchs_own_under_accumulation():
    class Constant(LitClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0.0 + 1.0

    bar = SteadyProgressBar()
    trainer = Trainer(
        max_epochs=1, callbacks=[bar], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0, accumulate_grad_batches=5,
    )  # fmt: skip
    trainer.fit(Constant(), SyntheticDataModule(batch_size=16))
    assert float(bar._loss) == pytest.approx(1.0)
