"""TensorBoard as its users meet it: `lit-cosine board` in a process of its own, over HTTP or in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_COMMAND = "import sys; from lit_cosine.cli.main import main; sys.exit(main())"

# whatever proxy this machine has, it knows nothing of TensorBoard
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_PATIENCE = 180.0
"""Seconds until something counts as not coming: a busy machine takes ten times as long as an idle one."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

# TensorBoard nests its elements in shadow roots, which querySelectorAll does not enter
_DEEP = """
const deep = (root) => [...root.querySelectorAll('*')].flatMap(e => [e, ...(e.shadowRoot ? deep(e.shadowRoot) : [])]);
const all = deep(document), tagged = (name) => all.filter(e => e.tagName.toLowerCase() === name);
const charts = tagged('tf-custom-scalar-multi-line-chart-card');
const title = (chart) => deep(chart.shadowRoot).find(e => /heading-label/.test(e.className))?.textContent.trim();
const lines = (chart) => deep(chart.shadowRoot).filter(e => e.matches('path.line'));
"""


class Board:
    def __init__(self, address: str, said: list[str]) -> None:
        self.page = address
        self.said = said
        self._root = address.partition("?")[0]

    def get(self, path: str, body: Any = None, **query: str) -> Any:
        url = f"{self._root}data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with _OPENER.open(urllib.request.Request(url, data, headers), timeout=_PATIENCE) as answer:
            return json.loads(answer.read()) if "json" in answer.headers["Content-Type"] else answer.read()

    def scalars(self, run: str, tag: str) -> list[tuple[float, int, float]]:
        """Return a curve's (time, step, value)."""
        return [tuple(point) for point in self.get("plugin/scalars/scalars", run=run, tag=tag)]

    def rows(self, metric: str) -> list[dict[str, Any]]:
        """Return the rows of the HParams table, the highest ``metric`` first."""
        asked = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
            "colParams": [{"metric": {"tag": metric, "group": ""}, "order": "ORDER_DESC"}],
            "startIndex": 0,
            "sliceSize": 100,
        }
        return self.get("plugin/hparams/session_groups", body=asked)["sessionGroups"]

    def wait(self, ready: Callable[[Board], bool], seconds: float = _PATIENCE) -> Board:
        """Wait until the files that ``ready`` asks for have been read."""
        end = time.monotonic() + seconds
        while not ready(self):
            assert time.monotonic() < end, "TensorBoard has not read the run"
            time.sleep(0.2)
        return self


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Board]:
    command = [sys.executable, "-c", _COMMAND, "board", str(folder), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said: list[str] = []
            for line in process.stdout or ():
                said.append(line.rstrip())
                if found := re.search(r"TensorBoard: (http://\S+)", line):
                    yield Board(found[1], said)
                    break
            else:
                raise AssertionError("\n".join(said))
        finally:
            process.terminate()


class Browser:
    """Headless Chromium; scripts may use the helpers of ``_DEEP``."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, board: Board, dashboard: str = "custom_scalars", dark: bool = False) -> None:
        page = board.page.replace("custom_scalars", dashboard)
        self.driver.get("about:blank")  # or the hash alone would change
        self.driver.get(page.replace("?", "?darkMode=true&") if dark else page)

    def soon(self, script: str, ready: Callable[[Any], Any] = bool, seconds: float = _PATIENCE) -> Any:
        """Return what the script returns, once that is ready."""
        end = time.monotonic() + seconds
        while not ready(found := self.driver.execute_script(_DEEP + script)):
            assert time.monotonic() < end, f"still {found!r}"
            time.sleep(0.1)
        return found


@contextmanager
def chromium(profile: Path, width: int = 2200, height: int = 2400) -> Iterator[Browser]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "hide-scrollbars", f"window-size={width},{height}",
        "no-proxy-server", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_script_timeout(_PATIENCE)
        yield Browser(driver)
    finally:
        driver.quit()
