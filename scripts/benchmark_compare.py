"""What ``benchmark.py compare`` times: whole trainings of the article's task on two cores, each way in its own process.

Convention: a way is a class whose constructor prepares (imports, tracing, compiling) and whose ``train(members)``
trains that many members, paired over schedules, LRs and seeds alike. Workers are asked one at a time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

EPOCHS, BATCH, ROWS, ARMS = 10, 64, 800, 77
PROCESSES = 2


class Loop:
    """The article's loop, one training after the other."""

    def __init__(self) -> None:
        import torch
        from benchmark_article import article_loop, article_rows

        torch.set_num_threads(1)  # faster than two on a network this small
        self.loop = partial(article_loop, article_rows()[0], EPOCHS)
        self.train(1)

    def train(self, members: int) -> None:
        """Train ``members`` networks."""
        import torch

        for seed in range(members):
            torch.manual_seed(seed)
            self.loop()


class Stacked:
    """Our engine; validation after each epoch and test at the end included."""

    def __init__(self, arms: int = ARMS) -> None:
        import torch
        from benchmark_article import article_rows

        from lit_cosine import SimpleNN
        from lit_cosine.cli._compare_options import FIELD, LRS
        from lit_cosine.comparison.stacked import Ensemble, Training, learning_rates

        torch.set_num_threads(1)
        training = Training(SimpleNN, EPOCHS, BATCH)
        table = learning_rates(list(FIELD.values()), LRS, training.total_steps(ROWS))
        self.table = table[:, :arms].contiguous()
        self.ensemble = Ensemble(training, *article_rows(), seeds=1, arms=arms)
        self.train(arms)

    def train(self, members: int) -> None:
        """Train ``members``, block after block."""
        for seed in range(-(-members // self.ensemble.members)):
            self.ensemble.run([seed], self.table)


class Jax:
    """The same job in JAX: vmap over arms and over seeds, scan over steps, jit, optax; without any evaluation."""

    def __init__(self, seeds: int = 4) -> None:
        import jax
        import jax.numpy as jnp
        import optax
        from benchmark_article import article_rows

        from lit_cosine.cli._compare_options import FIELD, LRS

        x, y = (jnp.asarray(part.numpy()) for part in article_rows()[0])
        steps = EPOCHS * -(-ROWS // BATCH)
        factors = jnp.asarray([schedule.sample(steps) for schedule in FIELD.values()])
        lrs = (factors[:, None, :] * jnp.asarray(LRS)[None, :, None]).reshape(ARMS, EPOCHS, -1)
        adam = optax.scale_by_adam()

        def loss(p: Any, x: Any, y: Any) -> Any:
            hidden = jax.nn.relu(x @ p["w1"] + p["b1"])
            return optax.softmax_cross_entropy_with_integer_labels(hidden @ p["w2"] + p["b2"], y).mean()

        def update(carry: Any, batch: Any) -> Any:
            indices, lr = batch
            p, state = carry
            value, gradient = jax.value_and_grad(loss)(p, x[indices], y[indices])
            change, state = adam.update(gradient, state)
            return (jax.tree.map(lambda w, c: w - lr * c, p, change), state), value

        def epoch(carry: Any, given: Any) -> Any:
            order, lr = given
            full = ROWS // BATCH
            carry, _ = jax.lax.scan(update, carry, (order[: full * BATCH].reshape(full, BATCH), lr[:full]))
            carry, value = update(carry, (order[full * BATCH :], lr[full]))
            return carry, value

        def member(p: Any, orders: Any, lr: Any) -> Any:
            (p, _), values = jax.lax.scan(epoch, (p, adam.init(p)), (orders, lr))
            return p, values

        def seed(key: Any) -> Any:
            keys = jax.random.split(key, 5)
            shapes = {"w1": ((20, 64), 20), "b1": ((64,), 20), "w2": ((64, 2), 64), "b2": ((2,), 64)}
            p = {
                name: jax.random.uniform(k, shape, minval=-1.0, maxval=1.0) / fan_in**0.5
                for k, (name, (shape, fan_in)) in zip(keys, shapes.items(), strict=False)
            }
            orders = jax.vmap(lambda k: jax.random.permutation(k, ROWS))(jax.random.split(keys[4], EPOCHS))
            return jax.vmap(member, in_axes=(None, None, 0))(p, orders, lrs)

        self.seeds = seeds
        self.run = jax.jit(jax.vmap(seed))
        self.keys = lambda first: jax.random.split(jax.random.key(first), seeds)
        self.train(seeds * ARMS)

    def train(self, members: int) -> None:
        """Train ``members``, some seeds at a time."""
        for first in range(-(-members // (self.seeds * ARMS))):
            p, _ = self.run(self.keys(first))
            p["w1"].block_until_ready()


def _serve(way: str, options: dict[str, Any], pipe: Connection) -> None:
    start = time.perf_counter()
    try:
        trainer = {"loop": Loop, "stacked": Stacked, "jax": Jax}[way](**options)
    except ImportError as error:
        pipe.send(error.name or str(error))
        return
    pipe.send(time.perf_counter() - start)
    while members := pipe.recv():
        before = time.process_time()
        trainer.train(members)
        pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.process_time() - before) / members))


class Workers:
    """Processes that wait, until they are asked to train together.

    Args:
        way: ``"loop"``, ``"stacked"`` or ``"jax"``.
        processes: How many; each trains its share.
        options: Arguments of the way's class.

    Attributes:
        missing: The name of a module that is not installed, or None.
        preparation: Seconds that the slowest took to get ready.
        peak: Peak memory of the largest process so far, in MiB.
        cpu: For each call, the CPU seconds of a training: what is left of the time when others want the cores too.
    """

    def __init__(self, way: str, processes: int = 1, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        self._processes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(way, options, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        ready = [pipe.recv() for pipe in self._pipes]
        self.missing = next((value for value in ready if isinstance(value, str)), None)
        self.preparation = 0.0 if self.missing else max(ready)
        self.peak = 0.0
        self.cpu: list[float] = []

    def train(self, members: int) -> None:
        """Train ``members`` in all, and wait for the last."""
        for pipe in self._pipes:
            pipe.send(members // len(self._pipes))
        answers = [pipe.recv() for pipe in self._pipes]
        self.peak = max(peak for peak, _ in answers) / 1024
        self.cpu.append(sum(cpu for _, cpu in answers) / len(answers))

    def close(self) -> None:
        """Send the processes home."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(0)
        for process in self._processes:
            process.join()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let the processes that are started inside compute with one thread each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
