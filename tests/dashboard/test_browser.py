"""What a user sees: TensorBoard's pages in headless Chromium."""

import math
import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from lit_cosine import Constant, Cosine, TabularDataModule, compare_networks
from lit_cosine.cli.main import main
from lit_cosine.comparison import write
from tests.helpers.boards import CHROMIUM, DRIVER, chromium, served
from tests.helpers.nets import Net, rows

pytest.importorskip("selenium", reason="needs selenium: pip install '.[browser]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one browser for all
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and its chromedriver"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(folder), "--model.interval", "step"]
    assert main(["train", "--trainer.accelerator", "cpu", *options]) == 0
    data = TabularDataModule("iris", batch_size=40)
    schedules = {"constant": Constant(), "cosine": Cosine()}
    found = compare_networks(_linear, data, schedules, lrs=[0.1, 0.001], seeds=2, max_epochs=20, engine="serial")
    write(found, folder / "compared")
    return folder


def _linear():
    from torch import nn

    return nn.Linear(4, 3)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def board(runs):
    with served(runs, "--all") as board:
        yield board.wait(lambda board: len(board.get("runs")) == 3 and len(board.rows("test/accuracy")) == 3)


def curves(found):
    """Return what is drawn in a chart: by colour, the points of every line."""
    return [
        (colour, [tuple(map(float, point.split(","))) for point in re.findall(r"[-\d.e]+,[-\d.e]+", path)])
        for colour, path in found or []
    ]


def heights(points):
    """Return the heights of a curve's points, from 0 at its foot to 1 at its top, by their place along its width."""
    xs, ys = zip(*points, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (max(ys) - y) / (max(ys) - min(ys))) for x, y in points]


def cosines(found):
    return [
        curve
        for curve in (heights(points) for _, points in curves(found) if len({y for _, y in points}) > 5)
        if len(curve) >= 39 and all(abs(y - (1 + math.cos(math.pi * x)) / 2) < 0.02 for x, y in curve)
    ]


def levels(found):
    lines = [points for _, points in curves(found)]
    return [points for points in lines if len(points) > 5 and len({round(y, 3) for _, y in points}) == 1]


def test_the_schedule_dashboard_shows_the_lr_of_a_run_and_of_a_comparison(browser, board):
    browser.show(board)
    assert browser.soon("return charts.map(title)", lambda found: len(found) == 6) == [
        "Learning rate", "Training loss", "Validation and test loss", "Validation and test metrics", "Gradient norm",
        "train/accuracy",
    ]  # fmt: skip
    names = browser.soon("return tagged('tf-multi-checkbox').map(e => e.shadowRoot.textContent).join(' ')")
    assert "run_1" in names
    assert re.search(r"compared/tensorboard/cosine lr=0\.\d+", names)
    drawn = browser.soon(
        "return lines(charts[0]).map(line => [line.getAttribute('stroke'), line.getAttribute('d')])",
        # planned and used of the run and the cosine of the comparison, its constant; lines move to where they belong
        lambda found: (len(cosines(found)), len(levels(found))) == (3, 1),
    )
    assert len({colour for colour, _ in drawn}) == 3


@pytest.fixture(params=[(1280, 2), (1920, 3)], ids=["1280", "1920"])
def window(browser, request):
    """Yield a window's width, and how many charts should stand beside each other in it."""
    before = browser.driver.get_window_size()
    browser.driver.set_window_size(request.param[0], 1200)
    yield request.param
    browser.driver.set_window_size(before["width"], before["height"])


def test_the_charts_use_the_window(browser, board, window):
    width, columns = window
    browser.show(board)
    places = "return charts.map(chart => chart.getBoundingClientRect()).map(r => [r.left, r.right, r.top])"
    placed = browser.soon(places, lambda found: len(found) == 6 and min(right for _, right, _ in found) > 0)
    row = [(left, right) for left, right, top in placed if top == placed[0][2]]
    assert len(row) == columns
    assert sum(right - left for left, right in row) > 0.9 * (width - row[0][0])


def test_planned_and_used_can_be_told_apart(browser, board):
    browser.show(board)
    shown = browser.soon(
        "const drawn = charts.slice(0, 1).flatMap(lines), style = ['stroke-dasharray', 'stroke-width'];"
        "return drawn.map(line => style.map(name => line.getAttribute(name)))",
        lambda found: len(found) == 4,
    )
    # the run's planned curve, under its used one and those of the comparison
    assert shown[0] == ["9 3", "6px"]
    assert shown[1:] == [["none", "2px"]] * 3
    markers = "return deep(charts[0].shadowRoot).filter(e => e.matches('.scatter-plot path')).length"
    assert browser.soon(markers) == 4  # the last point of each curve


def test_every_metric_is_in_the_window(browser, board, window):
    browser.show(board, "hparams")
    header = "return tagged('vaadin-grid-cell-content').filter(e => e.textContent.trim() === 'training time [s]')"
    edges = browser.soon(f"{header}.map(e => e.getBoundingClientRect().right)", lambda found: found and found[0] > 0)
    assert edges[0] <= window[0]


def test_hparams_sorts_by_test_accuracy(browser, board):
    browser.show(board, "hparams")
    cells = "return tagged('vaadin-grid-cell-content').map(e => e.textContent.trim()).filter(t => t)"
    shown = browser.soon(cells, lambda found: "test accuracy" in found and any("run_1" in cell for cell in found))
    assert {"schedule", "parameters", "LR", "interval", "warmup", "training time [s]"} <= {*shown}
    assert "-1" not in shown
    accuracy = {
        row["name"]: value["value"]
        for row in board.rows("test/accuracy")
        for value in row["metricValues"]
        if value["name"]["tag"] == "test/accuracy"
    }
    assert len(set(accuracy.values())) > 1
    for direction, order in (("Descending", -1), ("Ascending", 1)):
        for item in ("test accuracy", direction):
            browser.soon(
                f"const item = tagged('paper-item').find(e => e.textContent.trim() === {item!r});"
                "if (item) item.click(); return item !== undefined",
            )
        expected = sorted(accuracy.values(), key=lambda value: order * value)

        def in_order(found, expected=expected):
            return [accuracy[cell] for cell in found if cell in accuracy] == expected

        browser.soon(cells, in_order)


def test_images_are_drawn(browser, board):
    browser.show(board, "images")
    opened = """
        const panes = tagged('tf-category-paginated-view');
        const collapse = (pane) => deep(pane.shadowRoot).find(e => e.tagName === 'IRON-COLLAPSE');
        const shut = panes.filter(pane => !collapse(pane)?.opened);
        shut.forEach(pane => pane.shadowRoot.querySelector('.heading')?.click());
        return panes.length - shut.length;
    """
    browser.soon(opened, lambda count: count == 3)
    sizes = browser.soon(
        "return tagged('tf-image-loader').flatMap(e => deep(e.shadowRoot)).filter(e => e.tagName === 'IMG')"
        ".map(e => [e.naturalWidth, e.naturalHeight])",
        lambda found: len(found) >= 4 and all(width > 300 and height > 200 for width, height in found),
    )
    assert [1200, 450] in sizes  # the training curves
    assert [1500, 1000] in sizes  # the comparison


class Plain(Net):
    """A module of somebody who does not know this package, with names of its own."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log_dict({"train_loss": loss, "mae": loss.sqrt()})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().training_step(batch, batch_idx))


@pytest.mark.filterwarnings("ignore:.*has no lr_schedulers|.*You are using `LearningRateMonitor`")
def test_the_runs_of_a_plain_lightning_project_are_drawn(browser, tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    for _ in range(2):
        logger = TensorBoardLogger(tmp_path)
        monitor = LearningRateMonitor("step")
        trainer = Trainer(
            max_epochs=2, logger=logger, callbacks=[monitor], log_every_n_steps=1, accelerator="cpu", **quiet
        )
        trainer.fit(Plain(), val_dataloaders=rows())
    with served(tmp_path) as board:
        board.wait(lambda board: len(board.get("runs")) == 2)
        browser.show(board)
        assert browser.soon("return charts.map(title)", lambda found: len(found) == 4) == [
            "Learning rate", "Training loss", "Validation and test loss", "mae"
        ]  # fmt: skip
        drawn = browser.soon(
            "return charts.map(chart => lines(chart).filter(line => line.getAttribute('d')).length)",
            lambda found: min(found) == 2,
        )
    assert drawn == [2, 2, 2, 2]  # of both runs, in each chart


def test_an_empty_folder_says_so(browser, tmp_path):
    with served(tmp_path) as board:
        browser.show(board)
        said = browser.soon("return tagged('tf-category-paginated-view').map(e => e.shadowRoot.textContent).join(' ')")
    assert f"No run has written a scalar to {tmp_path} yet" in said


def test_the_trainings_of_a_comparison_are_left_out(browser, runs):
    with served(runs) as board:
        board.wait(lambda board: len(board.get("runs")) == 3)
        assert board.said[0] == "The runs of compared are left out; --all shows them too."
        browser.show(board)
        names = browser.soon("return tagged('tf-multi-checkbox').map(e => e.shadowRoot.textContent).join(' ')")
    assert "run_1" in names
    assert "compared" not in names
