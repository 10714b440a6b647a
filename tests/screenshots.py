"""The README's pictures of TensorBoard, made anew: `python tests/screenshots.py [FOLDER]` trains, compares and looks.

FOLDER is where the pictures go, `docs` by default. The numbers in them are those of one machine.
"""

import os
import sys
import tempfile
from pathlib import Path

from boards import chromium, served

from lit_cosine.cli import main

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


if __name__ == "__main__":
    make(Path(sys.argv[1] if len(sys.argv) > 1 else "docs").absolute())
