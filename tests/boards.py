"""TensorBoard as its users meet it: `lit-cosine board` in a process of its own, asked over HTTP."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_COMMAND = "import sys; from lit_cosine.cli import main; sys.exit(main())"

# whatever proxy this machine has, it knows nothing of TensorBoard
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Board:
    def __init__(self, address: str, said: list[str]) -> None:
        self.page = address
        self.said = said
        self._root = address.partition("#")[0]

    def get(self, path: str, body: Any = None, **query: str) -> Any:
        url = f"{self._root}data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with _OPENER.open(urllib.request.Request(url, data, headers), timeout=60) as answer:
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

    def wait(self, ready: Callable[[Board], bool], seconds: float = 60) -> Board:
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
