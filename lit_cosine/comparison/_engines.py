"""Where the trainings of a comparison run: in this process, in processes of this machine, or on a Ray cluster.

Convention: an engine takes a function and items, and yields (number of the item, result or Failure) as they finish. An
exception that the function raises ends the comparison; a Failure is an item that an engine could not finish. Nothing
here imports torch before a process has switched the garbage collector off, which would slow the imports down.
"""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, get_args

from lit_cosine._checks import as_integer, as_number, check_choice

__all__ = ["Engine", "EngineName", "Failure"]

EngineName = Literal["serial", "local", "ray"]
Begun = Callable[[int], None]

_TRIES = 3
"""How often an item is started whose process is killed."""


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str


@dataclass(frozen=True)
class Engine:
    """Where trainings run.

    Args:
        name: ``"serial"``, ``"local"`` or ``"ray"``.
        workers: Trainings at a time with ``"local"`` and a local Ray; the CPUs where None, at most one for each item.
        timeout: Seconds that a training may take, the start of its process included; only with ``"local"``.
        address: ``host:port`` of a Ray cluster; a local one is started where None.
        cpus: CPUs of a training under Ray.
        gpus: GPUs of a training under Ray.
        fork: Whether ``"local"`` forks this process, which saves the imports; not for functions that may use a GPU.
    """

    name: EngineName = "local"
    workers: int | None = None
    timeout: float | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    fork: bool = False

    def __post_init__(self) -> None:
        check_choice("engine", self.name, get_args(EngineName))
        if self.workers is not None:
            as_integer("workers", self.workers, least=1)
        if self.timeout is not None:
            as_number("timeout", self.timeout, above=0.0)
            if self.name != "local":
                raise ValueError(f'timeout needs engine="local", which can end a process, got engine={self.name!r}')
        as_number("cpus", self.cpus, above=0.0)
        as_number("gpus", self.gpus, least=0.0)
        if self.address is not None and self.name != "ray":
            raise ValueError(f'address is that of a Ray cluster and needs engine="ray", got engine={self.name!r}')
        if self.name == "ray":
            try:
                import ray  # noqa: F401
            except ImportError:
                raise ValueError("engine 'ray' needs Ray: pip install 'lit-cosine[ray]'") from None
            if self.address is not None:
                _check_address(self.address)

    def run(
        self, function: Callable[[Any], Any], items: Sequence[Any], tell: Callable[[int], None] = lambda running: None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number, result or Failure) for every item as it finishes.

        ``tell`` gets the number of items that run, at the start and each time that the next result is asked for.
        """
        at_a_time = 0

        def begun(number: int) -> None:
            nonlocal at_a_time
            at_a_time = number
            tell(number)

        if not items:
            tell(0)
            return
        engine = {"serial": self._serial, "local": self._local, "ray": self._ray}[self.name]
        for done, answer in enumerate(engine(function, items, begun), start=1):
            yield answer
            tell(min(at_a_time, len(items) - done))

    def _serial(self, function: Callable[[Any], Any], items: Sequence[Any], begun: Begun) -> Iterator[tuple[int, Any]]:
        begun(1)
        for number, item in enumerate(items):
            yield number, _with_one_thread(function, item)

    def _local(self, function: Callable[[Any], Any], items: Sequence[Any], begun: Begun) -> Iterator[tuple[int, Any]]:
        """Run each item in a process with its own pipe, so that a lost process identifies its item."""
        workers = min(self.workers or os.cpu_count() or 1, len(items))
        begun(workers)
        waiting, tries, slots = deque(range(len(items))), Counter[int](), deque(range(workers))
        processes: dict[int, _Process] = {}
        running: dict[Connection, tuple[int, int, float]] = {}
        try:
            while waiting or running:
                while waiting and slots:
                    slot, number = slots.popleft(), waiting.popleft()
                    if slot not in processes:
                        processes[slot] = _Process(function, slot, self.fork)
                    tries[number] += 1
                    running[processes[slot].pipe] = slot, number, time.monotonic() + (self.timeout or math.inf)
                    processes[slot].send(items[number])
                nearest = min(end for *_, end in running.values()) - time.monotonic()
                ready: list[Any] = wait(list(running), min(max(0.0, nearest), 86_400.0))  # of poll, 24 days at most
                late = [pipe for pipe, (*_, end) in running.items() if end <= time.monotonic() and pipe not in ready]
                for pipe in [*ready, *late]:
                    slot, number, _ = running.pop(pipe)
                    slots.append(slot)
                    try:
                        if pipe in late:
                            raise TimeoutError
                        answer, error, trace = pipe.recv()
                    except TimeoutError:
                        processes.pop(slot).end()
                        yield number, Failure(f"took longer than the timeout of {self.timeout:g} s")
                    except (EOFError, OSError):
                        processes.pop(slot).end()
                        if tries[number] < _TRIES:
                            waiting.append(number)
                        else:
                            yield number, Failure(f"its process was killed {_TRIES} times")
                    else:
                        if error is not None:
                            raise error from RuntimeError(f"in a process of the comparison:\n{trace}")
                        yield number, answer
        finally:
            for process in processes.values():
                process.end()

    def _ray(self, function: Callable[[Any], Any], items: Sequence[Any], begun: Begun) -> Iterator[tuple[int, Any]]:
        import ray

        # without an address a cluster that a killed driver has left behind would be joined
        local: dict[str, Any] = {"include_dashboard": False, "num_cpus": self.workers} if self.address is None else {}
        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place of the process's
        try:
            ray.init(address=self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except ConnectionError as error:
            raise ValueError(f"address must be that of a Ray cluster that lets this process in: {error}") from None
        try:
            options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": _TRIES - 1}
            remote = ray.remote(**options)(_work_for_ray)
            stored = ray.put(ray.cloudpickle.dumps(function))  # type: ignore[no-untyped-call]
            begun(max(1, int(ray.cluster_resources().get("CPU", 0) / self.cpus)))  # type: ignore[no-untyped-call]
            pending = {remote.remote(stored, item): number for number, item in enumerate(items)}
            while pending:
                for done in ray.wait(list(pending), num_returns=1)[0]:
                    number = pending.pop(done)
                    try:
                        yield number, ray.get(done)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                        yield number, Failure(f"its process was killed: {type(error).__name__}")
        finally:
            ray.shutdown()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """Refuse an address where no Ray cluster answers; Ray itself tries for two minutes, and ends the process then."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=8.0) as connection:
            # Ray speaks gRPC: a server of HTTP/2 answers this greeting with its settings, a frame of type 4
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            if connection.recv(9)[3:4] != b"\x04":
                raise OSError("what answers is no Ray cluster")
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(
            f"address must be host:port of a Ray cluster, and no cluster answers at {address}: {error}"
        ) from None


class _Process:
    """A process that takes one item after the other through a pipe: forked from this one, or by loky a fresh one."""

    def __init__(self, function: Any, slot: int, fork: bool) -> None:
        context: Any
        options: dict[str, Any] = {}
        if fork:
            context = multiprocessing.get_context("fork")
        else:
            import torch
            from joblib.externals.loky.backend.context import get_context
            from joblib.externals.loky.backend.reduction import dumps

            function = bytes(dumps(function))  # loaded by the process when it is ready for the imports
            gpus = torch.cuda.device_count()
            # a process is given physical numbers, of those that this process may use
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            devices = {"CUDA_VISIBLE_DEVICES": visible.split(",")[slot % gpus]} if gpus else {}
            context, options["env"] = get_context("loky"), {"OMP_NUM_THREADS": "1", **devices}
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, function, os.getpid()), **options)
        self._process.start()
        theirs.close()

    def send(self, item: Any) -> None:
        with suppress(OSError):  # it was killed, which reading its pipe shows
            self.pipe.send(item)

    def end(self) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Any, parent: int) -> None:
    """Answer items with (result, exception, its traceback) until the pipe is closed, and end with the ``parent``.

    ``function`` may be the pickle of one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent ends its processes
    _end_with(parent)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            if isinstance(function, bytes):
                function = _loaded(function)
                gc.freeze()
            answer: Any = (_with_one_thread(function, item), None, "")
        except Exception as error:
            answer = (None, error, traceback.format_exc())
            try:
                ForkingPickler.loads(ForkingPickler.dumps(error))
            except Exception:
                answer = (None, RuntimeError(f"{type(error).__name__}: {error}"), answer[2])
        pipe.send(answer)


def _work_for_ray(function: bytes, item: Any) -> Any:
    """Return the result for an item, in a worker of Ray, which by itself finishes its training after Ray was killed."""
    _end_with(os.getppid())
    return _with_one_thread(_loaded(function), item)


def _loaded(function: bytes) -> Callable[[Any], Any]:
    """Return the function of a pickle, which imports what it needs."""
    gc.disable()  # imports make no garbage, and looking for it takes a third of their time
    try:
        return pickle.loads(function)  # type: ignore[no-any-return]
    finally:
        gc.enable()


@cache  # one thread a process
def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even if that was killed in the middle of a training."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _with_one_thread(function: Callable[[Any], Any], item: Any) -> Any:
    """Return ``function(item)``, computed with one thread on every engine, so that the numbers are the same."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(item)
    finally:
        torch.set_num_threads(threads)
