"""Pictures of TensorBoard, made anew: those of the documentation, and those to look at after a change of the board.

`python -m tests.helpers.screenshots [FOLDER]` trains and writes the documentation's pictures, into `docs` by default.
`python -m tests.helpers.screenshots FOLDER --review` shows runs of four kinds at 1280 and 1920 pixels, light and dark.
"""

import math
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.tensorboard import SummaryWriter

from lit_cosine.cli.main import main
from tests.helpers.boards import chromium, served
from tests.helpers.nets import Net, rows

_TRAIN = ["--data.dataset", "digits", "--model.schedule", "Cosine", "--model.warmup", "2ep", "--model.interval", "step"]
_COMPARE = ["--data", "digits", "--schedules", "schedules.yaml", "--seeds", "4", "--lrs", "0.003", "0.01"]

_OPEN = """
const toggles = charts.slice(0, 2).map(chart => chart.shadowRoot.querySelector('.toggle-matches-button'));
toggles.forEach(toggle => toggle.click());
return toggles.length;
"""
_OPENED = """
const lists = charts.slice(0, 2).map(chart => deep(chart.shadowRoot).find(e => e.id === 'matches-list'));
return lists.every(list => list.offsetHeight > 0 && list.offsetHeight === list.parentElement.offsetHeight);
"""
_DRAWN = """
const drawn = charts.slice(0, 4).map(chart => lines(chart).map(line => line.getAttribute('d')));
return drawn.length === 4 && drawn.every(chart => chart.length) && drawn;
"""


def picture(folder: str, path: Path, height: int, legends: bool = False) -> None:
    """Save what the Schedule dashboard shows of the runs in a folder."""
    before = None

    def at_rest(found: object) -> bool:
        nonlocal before
        last, before = before, found
        return bool(found) and found == last

    with served(Path(folder)) as board, tempfile.TemporaryDirectory() as profile:
        runs = {file.parent for file in Path(folder).rglob("events*")}
        board.wait(lambda board: len(board.get("runs")) == len(runs) == len(board.rows("test/loss")))
        with chromium(Path(profile), 1060, height) as browser:
            browser.show(board)
            browser.soon(_DRAWN, at_rest)
            if legends:
                browser.soon(_OPEN)
                browser.soon(_OPENED)
            browser.driver.save_screenshot(str(path))


def make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)  # the page says which folder it shows
        assert main(["train", *_TRAIN, "--trainer.default_root_dir", "trained"]) == 0
        Path("schedules.yaml").write_text("constant: Constant\nstep: Step\ncosine: Cosine\nwarm restarts: Restarts\n")
        assert main(["compare", *_COMPARE]) == 0
        picture("trained", folder / "tensorboard_schedule.png", 932, legends=True)
        picture("runs/compare_digits/tensorboard", folder / "tensorboard_compare.png", 880)
        os.chdir("/")


class Plain(Net):
    """A module of somebody who does not know this package."""

    def training_step(self, batch, batch_idx):
        self.log("train_loss", loss := super().training_step(batch, batch_idx))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().training_step(batch, batch_idx))


def plain(folder: str) -> None:
    """Train twice with Lightning alone, and its LearningRateMonitor."""
    for _ in range(2):
        model = Plain(lambda optimizer, run: [[optimizer], [{"scheduler": CosineAnnealingLR(optimizer, 80)}]])
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        Trainer(
            max_epochs=10, logger=TensorBoardLogger(folder), callbacks=[LearningRateMonitor("step")],
            log_every_n_steps=1, accelerator="cpu", **quiet,
        ).fit(model, val_dataloaders=rows())  # fmt: skip


def long(folder: str, steps: int = 200_000) -> None:
    """Write the curves of a long run: warmup, cosine, and a loss that falls with noise."""
    with SummaryWriter(folder, max_queue=1000) as writer:
        for step in range(steps):
            lr = 0.01 * min(1, (step + 1) / 5000) * (1 + math.cos(math.pi * step / steps)) / 2
            writer.add_scalar("lr-AdamW", lr, step)
            writer.add_scalar("train/loss", 3 * math.exp(-step / 4e4) + 0.3 + 0.1 * math.sin(7.3 * step), step)


_REVIEWED = {"one": 1, "three": 3, "plain": 2, "long": 1}
"""Folder -> number of runs in it."""
_READY = {
    "custom_scalars": _DRAWN.replace("drawn.length === 4", "drawn.length > 1"),
    "hparams": "return tagged('vaadin-grid-cell-content').length > 8",
}


def review(folder: Path) -> None:
    """Save the Schedule dashboard and the HParams table of runs of every kind, at two widths, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as profile:
        os.chdir(made)
        for root, lr in (("one", "0.01"), ("three", "0.003"), ("three", "0.01"), ("three", "0.03")):
            assert main(["train", *_TRAIN, "--model.lr", lr, "--trainer.default_root_dir", root]) == 0
        plain("plain")
        long("long/run_1")
        pages = [("one", "hparams"), ("three", "hparams"), *((kind, "custom_scalars") for kind in _REVIEWED)]
        for width, light in product((1280, 1920), ("light", "dark")):
            with chromium(Path(profile) / f"{width}{light}", width, 1200) as browser:
                for kind, page in pages:
                    with served(Path(kind)) as board:
                        board.wait(lambda board, kind=kind: len(board.get("runs")) == _REVIEWED[kind])
                        browser.show(board, page, dark=light == "dark")
                        browser.soon(_READY[page])
                        time.sleep(4)  # lines move to where they belong
                        browser.driver.save_screenshot(str(folder / f"{kind}-{page}-{width}-{light}.png"))
        os.chdir("/")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs").absolute()
    (review if "--review" in sys.argv else make)(folder)
