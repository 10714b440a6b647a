"""``lit-cosine board``: TensorBoard on a folder of runs, with every point, opened on the Schedule dashboard.

Conventions: it listens on this machine alone unless a host is named; it writes nothing into the folder. Every point is
served; the Schedule dashboard alone, which draws each with an element of the page, gets of a long curve what a screen
can show.
"""

from __future__ import annotations

import argparse
import errno
import io
import ipaddress
import os
import socket
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["board"]

_PORT = 6006
_TRIED = 100
# no smoothing, here and under Time Series: a learning rate that is smoothed is not the one that was used
_PAGE = "?smoothing=0#custom_scalars&_smoothingWeight=0"
# points of a curve, pictures and texts of a tag: all that a run of lit_cosine writes
_SAMPLES = "scalars=1000000,images=1000,text=100"
# of a long curve the Schedule dashboard draws this many lowest and highest points: more than a screen is wide
_PARTS = 1000


def board(arguments: Sequence[str]) -> None:
    """Serve TensorBoard until it is interrupted.

    Args:
        arguments: The command line after ``lit-cosine board``.

    Raises:
        argparse.ArgumentError: If there is no such folder, or nothing can be served at that address.
    """
    asked = _parser().parse_args(list(arguments))
    folder = Path(asked.logdir)
    if not folder.is_dir():
        raise argparse.ArgumentError(None, f"LOGDIR must be a folder of runs, there is no folder {folder}")
    if not 0 <= asked.port <= 65535:
        raise argparse.ArgumentError(None, f"port must be between 0 and 65535, got {asked.port}")
    port = _first_free(asked.host, asked.port)
    if not any(folder.rglob("*tfevents*")):
        print(f"No run has written to {folder} yet: the page fills as they do.")
    _serve(folder, asked.host, port, asked.open)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lit-cosine board", description="Show the runs in a folder in TensorBoard, on the Schedule dashboard."
    )
    parser.add_argument("logdir", metavar="LOGDIR", nargs="?", default="runs", help="the folder of runs (%(default)s)")
    parser.add_argument("--port", type=int, default=_PORT, help="the first port to try, 0 for any (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on (%(default)s: reachable from this machine alone)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


def _serve(folder: Path, host: str, port: int, open_browser: bool) -> None:
    # imported when they are needed: --help and usage errors answer at once
    from tensorboard import default, program
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin

    class Schedule(CustomScalarsPlugin):  # type: ignore[misc]
        """TensorBoard's own dashboard, which stays usable with curves of any length."""

        def scalars_impl(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().scalars_impl(*args, **kwargs)
            curves = answer["tag_to_events"]
            return {**answer, "tag_to_events": {tag: _thinned(points) for tag, points in curves.items()}}

    class Server(program.WerkzeugServer):  # type: ignore[misc]
        """TensorBoard's own server, which says where it is in the words of this command."""

        def print_serving_message(self) -> None:
            silenced.close()
            address = f"{self.get_url()}{_PAGE}"
            if not _is_loopback(host):
                print(f"Listening on {host}: whoever can reach this machine can read these runs.")
            print(f"TensorBoard: {address} (Ctrl-C ends it)", flush=True)
            if open_browser:
                webbrowser.open(address)

    plugins = [Schedule if plugin is CustomScalarsPlugin else plugin for plugin in default.get_plugins()]
    tensorboard = program.TensorBoard(plugins, server_class=Server)
    flags = [f"--logdir={folder}", f"--host={host}", f"--port={port}", f"--samples_per_plugin={_SAMPLES}"]
    tensorboard.configure(["tensorboard", *flags, "--reload_interval=2"])
    with ExitStack() as silenced, suppress(KeyboardInterrupt):
        # its advice on the flags of a command that is not this one
        silenced.enter_context(redirect_stderr(io.StringIO()))
        tensorboard.main()


def _thinned(points: Sequence[tuple[float, int, float]], parts: int = _PARTS) -> list[tuple[float, int, float]]:
    """Return a curve of (time, step, value); of a long one both ends, and the lowest and highest of each of its parts.

    >>> _thinned([(0.0, step, float(step == 70)) for step in range(100)], parts=2)
    [(0.0, 0, 0.0), (0.0, 50, 0.0), (0.0, 70, 1.0), (0.0, 99, 0.0)]
    """
    if len(points) <= 2 * parts:
        return list(points)

    def height(index: int) -> tuple[bool, float]:
        value = points[index][2]
        return value == value, value  # nan is lowest, and is shown

    kept = {0, len(points) - 1}
    for part in range(parts):
        indices = range(len(points) * part // parts, len(points) * (part + 1) // parts)
        kept |= {min(indices, key=height), max(indices, key=height)}
    return [points[index] for index in sorted(kept)]


def _first_free(host: str, port: int) -> int:
    """Return the first port from ``port`` on at which nobody listens."""
    for tried in range(port, min(port + _TRIED, 65536)):
        try:
            family, kind, *_, address = socket.getaddrinfo(host, tried, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                if os.name == "posix":  # elsewhere it would let two listen
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return tried
        except OSError as error:
            if error.errno == errno.EACCES:
                raise argparse.ArgumentError(None, f"port must be one that you may open, got {tried}") from error
            if error.errno != errno.EADDRINUSE:
                reason = error.strerror or str(error)
                sentence = f"host must be an address of this machine, got {host}: {reason}"
                raise argparse.ArgumentError(None, sentence) from error
        print(f"Port {tried} is taken.", flush=True)
    raise argparse.ArgumentError(None, f"port must have a free one among the {_TRIED} from {port} on")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
