"""``lit-cosine board``: TensorBoard on a folder of runs, with every point, opened on the Schedule dashboard.

Conventions: the server listens on this machine alone unless another host is given, and nothing is written into the
folder. The charts of the Schedule dashboard are made from the tags of the runs, of any logger. Every point
is served, except that this dashboard, which draws one page element per point, receives a reduced form of a long curve.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import socket
import time
import webbrowser
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jsonargparse import ArgumentParser
from typing_extensions import override

from lit_cosine.cli._parser import command_parser, parse
from lit_cosine.cli._shell import Stopped

__all__ = ["board"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PORT = 6006
_TRIED = 100
# no smoothing, here and under Time Series: no update used a smoothed learning rate
_PAGE = "?smoothing=0{}#custom_scalars&_smoothingWeight=0{}"
# points of a curve, pictures and texts of a tag: all that a run of lit_cosine writes
_SAMPLES = "scalars=1000000,images=1000,text=100"
# the Schedule dashboard draws this many lowest and highest points of a long curve: more than a screen is wide
_PARTS = 1000


def board(arguments: Sequence[str]) -> None:
    """Serve TensorBoard until it is interrupted."""
    options = parse(_parser(), arguments)
    folder = Path(options.folder)
    if not folder.is_dir():
        raise ArgumentError(None, f"FOLDER must be a folder of runs, there is no folder {folder}")
    if not 0 <= options.port <= 65535:
        raise ArgumentError(None, f"port must be between 0 and 65535, got {options.port}")
    port = _first_free(options.host, options.port)
    if not any(folder.rglob("*tfevents*")):
        print(f"No run has written to {folder} yet: the page fills as they do.")
    comparisons = [] if options.all else _comparisons(folder)
    filters = ["", ""]  # of Time Series, and of this dashboard
    if comparisons:
        print(f"The runs of {', '.join(comparisons)} are left out; --all shows them too.")
        others = quote(f"^(?!({'|'.join(map(re.escape, comparisons))})/)")
        filters = [f"&runFilter={others}", f"&regexInput={others}"]
    try:
        _serve(folder, options.host, port, _PAGE.format(*filters), options.open)
    except Stopped:  # the way to end a server
        raise SystemExit(0) from None


def _parser() -> ArgumentParser:
    parser = command_parser("board", "Show the runs in a folder in TensorBoard, on the Schedule dashboard.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="The folder of runs.")
    parser.add_argument("--port", type=int, default=_PORT, help="The first port to try; 0 takes any free one.")
    parser.add_argument("--host", default="127.0.0.1", help="The address to listen on; by default this machine alone.")
    parser.add_argument("--all", action="store_true", help="Show the trainings of comparisons too.")
    parser.add_argument("--open", action="store_true", help="Open the page in a browser.")
    return parser


def _comparisons(folder: Path) -> list[str]:
    """Return the folders that ``lit-cosine compare`` wrote below ``folder``."""
    found = (results.parent for results in folder.rglob("results.json"))
    return sorted(
        path.relative_to(folder).as_posix() for path in found if path != folder and (path / "tensorboard").is_dir()
    )


def _serve(folder: Path, host: str, port: int, page: str, open_browser: bool) -> None:
    # imported when they are needed: --help and usage errors answer at once
    from tensorboard import default, program
    from tensorboard.plugins.base_plugin import FrontendMetadata
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    from lit_cosine.cli._web_page import web_page
    from lit_cosine.dashboard import layout_of

    class Schedule(CustomScalarsPlugin):  # type: ignore[misc]
        """TensorBoard's own dashboard, usable with curves of any length and runs that bring no layout."""

        def __init__(self, context: Any) -> None:
            super().__init__(context)
            self._provider = context.data_provider

        @override
        def is_active(self) -> bool:
            return True

        @override
        def frontend_metadata(self) -> Any:
            return FrontendMetadata(element_name=super().frontend_metadata().element_name, tab_name="Schedule")

        @override
        def layout_impl(self, ctx: Any, experiment: str) -> Any:
            # the categories of a layout of the user's own stay
            written = json.loads(super().layout_impl(ctx, experiment) or "{}").get("category", [])
            runs = self._provider.list_scalars(ctx, experiment_id=experiment, plugin_name="scalars")
            made = layout_of(tag for tags in runs.values() for tag in tags)
            if not made and not written:
                made = {f"No run has written a scalar to {folder} yet: reload the page when one has": {}}
            categories = [
                {
                    "title": name,
                    "chart": [{"title": title, "multiline": {"tag": tags}} for title, tags in charts.items()],
                }
                for name, charts in made.items()
            ]
            return {"category": categories + [category for category in written if category["title"] not in made]}

        @override
        def scalars_impl(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().scalars_impl(*args, **kwargs)
            curves = answer["tag_to_events"]
            return {**answer, "tag_to_events": {tag: _outline(points) for tag, points in curves.items()}}

    plugins = [Schedule if plugin is CustomScalarsPlugin else plugin for plugin in default.get_plugins()]
    tensorboard = program.TensorBoard(plugins, assets_zip_provider=web_page)
    flags = [f"--logdir={folder}", f"--host={host}", f"--port={port}", f"--samples_per_plugin={_SAMPLES}"]
    tensorboard.configure(["tensorboard", *flags, "--reload_interval=2"])
    with redirect_stderr(io.StringIO()):  # TensorBoard writes advice on flags of its own command
        # serves in a thread. TensorBoard's own loop has a SIGTERM handler that writes to stderr: with a closed pipe the
        # error is lost among those of requests, and the server never ends
        address = f"{tensorboard.launch()}{page}"
    if host not in _LOOPBACK:
        print(f"Listening on {host}: everybody who can reach this machine can read these runs.")
    print(f"TensorBoard: {address} (Ctrl-C stops it)", flush=True)
    if open_browser:
        webbrowser.open(address)
    while True:
        time.sleep(0.5)  # a signal that the system delivers to another thread does not end a longer sleep


def _outline(points: Sequence[tuple[float, int, float]], parts: int = _PARTS) -> list[tuple[float, int, float]]:
    """Return a curve of (time, step, value); a long one is reduced to its ends and the extremes of each of its parts.

    >>> _outline([(0.0, step, float(step == 70)) for step in range(100)], parts=2)
    [(0.0, 0, 0.0), (0.0, 50, 0.0), (0.0, 70, 1.0), (0.0, 99, 0.0)]
    """
    if len(points) <= 2 * parts:
        return list(points)

    def height(index: int) -> tuple[bool, float]:
        value = points[index][2]
        return value == value, value  # nan counts as lowest, and is shown

    kept = {0, len(points) - 1}
    for part in range(parts):
        indices = range(len(points) * part // parts, len(points) * (part + 1) // parts)
        kept |= {min(indices, key=height), max(indices, key=height)}
    return [points[index] for index in sorted(kept)]


def _first_free(host: str, port: int) -> int:
    """Return the first free port from ``port`` on."""
    for tried in range(port, min(port + _TRIED, 65536)):
        try:
            family, kind, *_, address = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                if os.name == "posix":  # on Windows it would let two processes listen
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return tried
        except OSError as error:
            if error.errno == errno.EACCES:
                raise ArgumentError(None, f"port must be one that you may open, got {tried}") from error
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or str(error)
                sentence = f"host must be an address of this machine, got {host}: {reason}"
                raise ArgumentError(None, sentence) from error
        print(f"Port {tried} is taken.", flush=True)
    raise ArgumentError(None, f"port: none of the {_TRIED} from {port} on is free")
