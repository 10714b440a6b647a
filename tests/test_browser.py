"""What a user sees: TensorBoard's pages in headless Chromium."""

import math
import re
import shutil
import time
from pathlib import Path

import pytest
from boards import Board, served

from lit_cosine import Constant, Cosine, TabularDataModule, compare
from lit_cosine.cli import main
from lit_cosine.report import write

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),  # one browser for all
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and its chromedriver"),
]

# TensorBoard nests its elements in shadow roots, which querySelectorAll does not enter
_DEEP = """
const deep = (root) => [...root.querySelectorAll('*')].flatMap(e => [e, ...(e.shadowRoot ? deep(e.shadowRoot) : [])]);
const all = deep(document), tagged = (name) => all.filter(e => e.tagName.toLowerCase() === name);
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(folder), "--model.interval", "step"]
    assert main(["train", "--trainer.accelerator", "cpu", *options]) == 0
    data = TabularDataModule("iris", batch_size=40)
    schedules = {"constant": Constant(), "cosine": Cosine()}
    found = compare(_linear, data, schedules, lrs=[0.1, 0.001], seeds=2, max_epochs=20, devices=1)
    write(found, folder / "compared")
    return folder


def _linear():
    from torch import nn

    return nn.Linear(4, 3)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=2200,2400", "no-proxy-server",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def board(runs):
    with served(runs) as board:
        yield board.wait(lambda board: len(board.get("runs")) == 3 and len(board.rows("test/accuracy")) == 3)


def page(browser, board: Board, name: str) -> None:
    browser.get("about:blank")  # or the hash alone would change
    browser.get(board.page.replace("custom_scalars", name))


def soon(browser, script: str, ready=bool, seconds: float = 60):
    """Return what the script returns, once that is ready."""
    end = time.monotonic() + seconds
    while not ready(found := browser.execute_script(_DEEP + script)):
        assert time.monotonic() < end, f"still {found!r}"
        time.sleep(0.3)
    return found


def curves(browser, chart: str):
    """Return what is drawn in a chart: by colour, the points of every line."""
    drawn = soon(
        browser,
        """
        const heading = (card) => deep(card.shadowRoot).find(e => /heading-label/.test(e.className));
        const card = tagged('tf-custom-scalar-multi-line-chart-card')
            .find(card => heading(card).textContent.trim() === CHART);
        return deep(card.shadowRoot).filter(e => e.matches('path.line'))
            .map(e => [e.getAttribute('stroke'), e.getAttribute('d')]);
        """.replace("CHART", repr(chart)),
    )
    return [
        (colour, [tuple(map(float, point.split(","))) for point in re.findall(r"[-\d.e]+,[-\d.e]+", path)])
        for colour, path in drawn
    ]


def heights(points):
    """Return the heights of a curve's points, from 0 at its foot to 1 at its top, by their place along its width."""
    xs, ys = zip(*points, strict=True)
    return [((x - min(xs)) / (max(xs) - min(xs)), (max(ys) - y) / (max(ys) - min(ys))) for x, y in points]


def test_the_schedule_dashboard_shows_the_lr_of_a_run_and_of_a_comparison(browser, board):
    page(browser, board, "custom_scalars")
    charts = soon(
        browser,
        "return tagged('tf-custom-scalar-multi-line-chart-card').map(card => deep(card.shadowRoot)"
        ".find(e => /heading-label/.test(e.className)).textContent.trim())",
        lambda found: len(found) == 5,
    )
    assert charts == [
        "Learning rate", "Training loss", "Validation and test loss", "Validation and test metrics", "Gradient norm"
    ]  # fmt: skip
    names = soon(browser, "return tagged('tf-multi-checkbox').map(e => e.shadowRoot.textContent).join(' ')")
    assert "run_1" in names
    assert re.search(r"compared/tensorboard/cosine lr=0\.\d+", names)
    time.sleep(2)  # until the lines have moved to where they belong
    drawn = curves(browser, "Learning rate")
    falling = [heights(points) for _, points in drawn if len({y for _, y in points}) > 5]
    assert len(falling) == 3  # planned and used of the run, and the cosine of the comparison
    for curve in falling:
        assert len(curve) >= 39
        for x, y in curve:
            assert y == pytest.approx((1 + math.cos(math.pi * x)) / 2, abs=0.02)
    level = [points for _, points in drawn if len(points) > 5 and len({round(y, 3) for _, y in points}) == 1]
    assert len(level) == 1  # the constant of the comparison
    assert len({colour for colour, _ in drawn}) == 3


def test_hparams_sorts_by_test_accuracy(browser, board):
    page(browser, board, "hparams")
    cells = "return tagged('vaadin-grid-cell-content').map(e => e.textContent.trim()).filter(t => t)"
    shown = soon(browser, cells, lambda found: "test accuracy" in found and any("run_1" in cell for cell in found))
    assert {"schedule", "parameters", "LR", "interval", "warmup", "training time [s]"} <= {*shown}
    assert "-1" not in shown
    by_accuracy = [row["sessions"][0]["name"] for row in board.rows("test/accuracy")]
    accuracy = {
        row["sessions"][0]["name"]: value["value"]
        for row in board.rows("test/accuracy")
        for value in row["metricValues"]
        if value["name"]["tag"] == "test/accuracy"
    }
    assert len(set(accuracy.values())) > 1
    for direction, order in (("Descending", -1), ("Ascending", 1)):
        for item in ("test accuracy", direction):
            soon(
                browser,
                f"const item = tagged('paper-item').find(e => e.textContent.trim() === {item!r});"
                "if (item) item.click(); return item !== undefined",
            )
        expected = sorted(accuracy.values(), key=lambda value: order * value)

        def in_order(found, expected=expected):
            rows = [name for cell in found for name in by_accuracy if cell.strip("/").endswith(name.split("/")[-1])]
            return [accuracy[name] for name in rows] == expected

        soon(browser, cells, in_order)


def test_images_are_drawn(browser, board):
    page(browser, board, "images")
    opened = """
        const panes = tagged('tf-category-paginated-view');
        const collapse = (pane) => deep(pane.shadowRoot).find(e => e.tagName === 'IRON-COLLAPSE');
        const shut = panes.filter(pane => !collapse(pane)?.opened);
        shut.forEach(pane => pane.shadowRoot.querySelector('.heading')?.click());
        return panes.length - shut.length;
    """
    soon(browser, opened, lambda count: count == 3)
    sizes = soon(
        browser,
        "return tagged('tf-image-loader').flatMap(e => deep(e.shadowRoot)).filter(e => e.tagName === 'IMG')"
        ".map(e => [e.naturalWidth, e.naturalHeight])",
        lambda found: len(found) >= 4 and all(width > 300 and height > 200 for width, height in found),
    )
    assert [1200, 450] in sizes  # the training curves
    assert [1500, 1000] in sizes  # the comparison
