"""What ``benchmark.py board`` measures: how long runs of many steps take TensorBoard to read, and a browser to show."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from lit_cosine.cli.main import main
from tests.helpers.boards import Board, Browser, chromium, served  # the tests' own way to TensorBoard and the browser

__all__ = ["POINTS", "drawn", "loaded", "looking", "moved", "served_points", "train"]

POINTS = {"lr-Adam": 1, "train/loss_step": 0}
"""Tags of every step -> points beside those of the steps: the LR after the last one."""

_BATCH, _EPOCHS = 8, 10


def train(folder: Path, steps: int) -> Path:
    """Train for ``steps`` optimizer steps with ``lit-cosine train``, everything on; return the run's folder.

    Args:
        folder: Where the run is made.
        steps: A multiple of 10: an epoch makes a tenth.
    """
    rows = steps // _EPOCHS * _BATCH * 5 // 4  # a fifth is held out
    options = ["--data.n_samples", str(rows), "--data.batch_size", str(_BATCH), "--trainer.max_epochs", str(_EPOCHS)]
    status = main(["train", *options, "--model.interval", "step", "--trainer.default_root_dir", str(folder)])
    if status:
        raise SystemExit(status)
    return folder / "run_1"


def loaded(folder: Path, steps: int) -> None:
    """Start ``lit-cosine board`` and wait until it serves every point."""
    with served(folder) as board:
        board.wait(lambda board: served_points(board) == {tag: steps + more for tag, more in POINTS.items()})


def served_points(board: Board) -> dict[str, int]:
    """Return how many points of the tags of every step the HTTP API serves."""
    if "run_1" not in board.get("plugin/scalars/tags"):
        return {}
    known = board.get("plugin/scalars/tags")["run_1"]
    return {tag: len(board.scalars("run_1", tag)) for tag in POINTS if tag in known}


@contextmanager
def looking(folder: Path, steps: int) -> Iterator[tuple[Board, Browser]]:
    """Serve a run that has been read, beside a browser."""
    with (
        served(folder) as board,
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile), 1600, 1300) as browser,
    ):
        board.wait(lambda board: served_points(board) == {tag: steps + more for tag, more in POINTS.items()})
        yield board, browser


def drawn(board: Board, browser: Browser) -> None:
    """Open the page and wait until the LR and the loss of every step are drawn and the page answers."""
    browser.show(board)
    browser.soon("return charts.length === 5 && charts.slice(0, 2).every(chart => lines(chart).length >= 2)")


def moved(browser: Browser) -> None:
    """Move the mouse over the chart of the LR and wait until the page has drawn two frames."""
    from selenium.webdriver import ActionChains

    actions = ActionChains(browser.driver)
    for x in (500, 520):
        actions.w3c_actions.pointer_action.move_to_location(x, 220)
    actions.perform()
    frames = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    browser.driver.execute_async_script(frames)
