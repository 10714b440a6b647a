"""Many small trainings at once: stacked weights, one program per step, each member at its own LR.

A block is a rectangle of members: some seeds, each with the same arms. An arm is a column of the LR table. All arms of
a seed start from the same weights, see the same batches in the same order and the same dropout, so that they differ by
their LR alone. Members are ordered by seed, then arm.

Convention: a member depends on its block only through the order of additions inside a batched matrix product. The same
blocks give the same bits in any process.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule

from lit_cosine._compat import tensor_version
from lit_cosine.comparison.stacked._member import (
    CURVES,
    FINALS,
    Rows,
    Training,
    batch_orders,
    dropout_seed,
    initial_network,
)
from lit_cosine.comparison.stacked._program import Program, trace
from lit_cosine.comparison.stacked._update_rules import update_rule

__all__ = ["BlockResult", "Ensemble", "NotStackable"]

_EVALUATION_ROWS = 512  # rows that are evaluated at once: bounds the memory


class NotStackable(ValueError):
    """The network cannot be trained as a stack of members."""


@dataclass(frozen=True)
class BlockResult:
    """What the trainings of a block gave; the last dimension counts members, by seed, then arm.

    Attributes:
        curves: For each name in ``CURVES`` the mean over rows in each epoch (epochs, members): of the training batches
            as they were trained on, and of the validation rows after the epoch.
        finals: For each name in ``FINALS`` the mean over the test rows after the last epoch (members,).
        weights: Each parameter after the last step, stacked (members, …).
    """

    curves: dict[str, Tensor]
    finals: dict[str, Tensor]
    weights: dict[str, Tensor]


class Ensemble:
    """Trains blocks of ``seeds`` x ``arms`` members of one :class:`Training` on the same data.

    Args:
        training: What the members have in common.
        train: Training rows.
        val: Validation rows.
        test: Test rows.
        seeds: Seeds in a block, >= 1; 1 for a network that draws random numbers in training (``draws_random``).
        arms: Arms of each seed, >= 1.

    Raises:
        NotStackable: If members of this network cannot be trained as one; the message says why.
    """

    def __init__(self, training: Training, train: Rows, val: Rows, test: Rows, seeds: int, arms: int) -> None:
        self._training, self._train = training, train
        self.seeds, self.arms, self.members = seeds, arms, seeds * arms
        network = initial_network(training, 0)
        self.draws_random = _check_forward(network, training, train)
        if self.draws_random and seeds > 1:
            raise ValueError(f"seeds must be 1 for a network that draws random numbers in training, got {seeds}")
        self._network = network
        self._trained = {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}
        self._fixed = {
            name: _repeat(value.detach(), self.members)
            for name, value in (*network.named_parameters(), *network.named_buffers())
            if name not in self._trained
        }
        self._val_rows, self._test_rows = val, test
        self._graphs: dict[tuple[str, torch.Size], GraphModule] = {}
        self._steps: dict[int, _Step] = {}
        self._evaluations: list[list[tuple[int, Program]]] = []
        with torch.random.fork_rng(devices=[]):
            self.program = self._begin(min(training.batch_size, len(train[0])))
        parameters = sum(flat.numel() * flat.element_size() for flat in (self._weights, self._gradients))
        self.bytes_per_member = (2 * parameters + self.program.nbytes) // self.members

    def _begin(self, size: int) -> Program:
        """Lay out the weights, return the program of a full batch, and compare it with plain autograd."""
        first = next(iter(self._trained.values()))
        total = self.members * sum(value.numel() for value in self._trained.values())
        self._weights, self._gradients = first.new_zeros(total), first.new_zeros(total)
        self._lay_out(None)
        # lowered twice: the first pass finds the layout of the gradients, and the weights get the same one
        outputs = self._step(size, lay_out_freely=True).program.outputs
        strides = [_dense_strides(gradient) for gradient in outputs[:-1]]
        self._lay_out(strides)
        self._steps[size] = self._step(size)
        self._check_against_autograd(self._steps[size])
        buffers = self._weights, self._gradients, self._pieces(self._weights, strides)
        training = self._training
        self._optimizer = update_rule(training.optimizer, *buffers, training.weight_decay, training.momentum)
        return self._steps[size].program

    def _complete(self) -> None:
        """Build the programs that only a run needs: for an epoch's last batch, and for evaluation."""
        last = len(self._train[0]) % self._training.batch_size
        if last and last not in self._steps:
            self._steps[last] = self._step(last)
        if not self._evaluations:
            self._evaluations = [self._evaluation(self._val_rows), self._evaluation(self._test_rows)]

    def _lay_out(self, strides: Sequence[tuple[int, ...]] | None) -> None:
        """Make each parameter (members, …) a piece of the flat buffers, and start it where member 0 starts."""
        self._stacked = dict(zip(self._trained, self._pieces(self._weights, strides), strict=True))
        self._stacked_gradients = self._pieces(self._gradients, strides)
        for name, value in self._trained.items():
            self._stacked[name].copy_(value.expand_as(self._stacked[name]))

    def _pieces(self, flat: Tensor, strides: Sequence[tuple[int, ...]] | None) -> list[Tensor]:
        pieces, offset = [], 0
        for index, value in enumerate(self._trained.values()):
            shape = (self.members, *value.shape)
            piece = flat[offset : offset + self.members * value.numel()]
            pieces.append(piece.view(shape) if strides is None else piece.as_strided(shape, strides[index]))
            offset += piece.numel()
        return pieces

    def _program(
        self, function: Callable[..., tuple[Tensor, ...]], x: Tensor, y: Tensor, into: list[Tensor | None] | None = None
    ) -> Program:
        """Return ``function(trained, fixed, x, y)`` as a program, traced once for rows of one shape."""
        tensors = [*self._stacked.values(), *self._fixed.values(), x, y]

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            *state, x, y = tensors
            trained = dict(zip(self._stacked, state, strict=False))
            return function(trained, dict(zip(self._fixed, state[len(trained) :], strict=True)), x, y)

        key = function.__name__, x.shape
        if key not in self._graphs:
            try:
                self._graphs[key] = trace(flat, tensors)
            except Exception as error:  # torch.func refuses with errors of many types
                raise NotStackable(f"network cannot be stacked: {_first_line(error)}") from error
        return Program(self._graphs[key], tensors, into)

    def _outputs(self, trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor) -> Tensor:
        outputs: Tensor = functional_call(self._network, {**trained, **fixed}, (x,))
        return outputs

    def _step(self, size: int, lay_out_freely: bool = False) -> _Step:
        """Return the program that computes loss and gradients of every member on a batch of ``size`` rows."""
        inputs, targets = (rows[:size].clone() for rows in self._train)
        if self.seeds > 1:
            inputs, targets = (_repeat(rows, self.members) for rows in (inputs, targets))
        rows_dim = None if self.seeds == 1 else 0

        def loss(trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return self._training.loss(self._outputs(trained, fixed, x), y)

        stacked = vmap(grad_and_value(loss), in_dims=(0, 0, rows_dim, rows_dim), randomness="same")

        def step(*given: Any) -> tuple[Tensor, ...]:
            gradients, losses = stacked(*given)
            return *gradients.values(), losses

        self._network.train()
        into = None if lay_out_freely else [*self._stacked_gradients, None]
        return _Step(self._program(step, inputs, targets, into), inputs, targets)

    def _evaluation(self, rows: Rows) -> list[tuple[int, Program]]:
        """Return programs that compute the mean loss and metrics of every member, each on some of ``rows``."""

        def member(trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
            return self._training.measure(self._outputs(trained, fixed, x), y)

        def evaluate(*given: Any) -> Any:
            return vmap(member, in_dims=(0, 0, None, None), randomness="same")(*given)

        self._network.eval()
        parts = zip(*(torch.split(part, _EVALUATION_ROWS) for part in rows), strict=True)
        programs = [(len(x), self._program(evaluate, x, y)) for x, y in parts]
        self._network.train()
        return programs

    def _check_against_autograd(self, step: _Step) -> None:
        """Refuse a network whose stacked gradients differ from those of plain autograd."""
        network, shared = self._network, self.seeds == 1
        x, y = (rows if shared else rows[0] for rows in (step.inputs, step.targets))
        torch.manual_seed(0)
        with torch.enable_grad():
            loss = self._training.loss(network(x), y)
            parameters = [value for value in network.parameters() if value.requires_grad]
            expected = torch.autograd.grad(loss, parameters, allow_unused=True)
        torch.manual_seed(0)
        with torch.no_grad():
            step.program()
        plain = [torch.zeros_like(v) if g is None else g for v, g in zip(parameters, expected, strict=True)]
        eps, largest = torch.finfo(plain[0].dtype).eps, max(float(value.abs().max()) for value in plain)
        for name, value, stacked in zip(self._trained, plain, self._stacked_gradients, strict=True):
            # a gradient that is zero in exact arithmetic, as of a bias before a normalisation, is rounding error
            scale = max(float(value.abs().max()), largest * 1e-3)
            off = float((stacked[-1] - value).abs().max()) / scale if scale else 0.0
            if not off < 1e4 * eps:
                raise NotStackable(
                    f"network cannot be stacked: the gradient of {name!r} is off by {off:.1g} of its largest entry"
                )

    def run(self, seeds: Sequence[int], learning_rates: Tensor) -> BlockResult:
        """Train the ``seeds`` of a block with the LR of every arm at every step, (steps, arms)."""
        if len(seeds) != self.seeds:
            raise ValueError(f"seeds must be {self.seeds}, got {len(seeds)}")
        rows = len(self._train[0])
        steps = self._training.total_steps(rows)
        if learning_rates.shape != (steps, self.arms):
            raise ValueError(f"learning_rates must be {(steps, self.arms)}, got {tuple(learning_rates.shape)}")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self._complete()
            self._start(seeds)
            orders = torch.stack([batch_orders(self._training, rows, seed) for seed in seeds], dim=1)
            torch.manual_seed(dropout_seed(seeds[0]))
            table = learning_rates.to(self._weights.dtype).repeat(1, self.seeds)
            epochs = [self._epoch(order, part) for order, part in zip(orders, table.chunk(len(orders)), strict=True)]
            curves = [torch.stack(curve) for curve in zip(*epochs, strict=True)]
            finals = _evaluate(self._evaluations[1])
            weights = {name: value.clone() for name, value in self._stacked.items()}
        return BlockResult(dict(zip(CURVES, curves, strict=True)), dict(zip(FINALS, finals, strict=True)), weights)

    def _start(self, seeds: Sequence[int]) -> None:
        """Give every member the initial state of its seed."""
        self._optimizer.reset()
        for index, seed in enumerate(seeds):
            members = slice(index * self.arms, (index + 1) * self.arms)
            network = initial_network(self._training, seed)
            state = dict((*network.named_parameters(), *network.named_buffers()))
            for name, stacked in (*self._stacked.items(), *self._fixed.items()):
                stacked[members].copy_(state[name].expand_as(stacked[members]))

    def _epoch(self, order: Tensor, learning_rates: Tensor) -> tuple[Tensor, ...]:
        """Train one epoch over the rows in ``order`` (seeds, rows); return what ``CURVES`` names."""
        batch, rows = self._training.batch_size, order.shape[1]
        losses = torch.zeros(self.members, dtype=torch.float64)
        for start, lr in zip(range(0, rows, batch), learning_rates, strict=True):
            indices = order[:, start : start + batch]
            step = self._steps[indices.shape[1]]
            step.fetch(self._train, indices, self.arms)
            step.program()
            losses.add_(step.program.outputs[-1], alpha=indices.shape[1] / rows)
            self._optimizer.step(lr)
        return losses, *_evaluate(self._evaluations[0])


@dataclass(frozen=True)
class _Step:
    """A program and the fixed tensors that it reads its batch from."""

    program: Program
    inputs: Tensor
    targets: Tensor

    def fetch(self, rows: Rows, indices: Tensor, arms: int) -> None:
        """Read the rows of ``indices`` (seeds, batch), once for each seed."""
        for source, target in zip(rows, (self.inputs, self.targets), strict=True):
            if len(indices) == 1:
                torch.index_select(source, 0, indices[0], out=target)
            else:
                fetched = source[indices]
                members = target.view(len(indices), arms, *target.shape[1:])
                members.copy_(fetched.unsqueeze(1).expand_as(members))


def _evaluate(programs: Sequence[tuple[int, Program]]) -> list[Tensor]:
    """Return the mean loss and metrics of every member over all rows."""
    rows = sum(count for count, _ in programs)
    totals = [torch.zeros_like(output, dtype=torch.float64) for output in programs[0][1].outputs]
    for count, program in programs:
        program()
        for total, output in zip(totals, program.outputs, strict=True):
            total.add_(output, alpha=count / rows)
    return totals


def _check_forward(network: nn.Module, training: Training, train: Rows) -> bool:
    """Return whether a forward pass in training draws random numbers; refuse one that changes anything else."""
    if not any(value.requires_grad for value in network.parameters()):
        raise NotStackable("network cannot be stacked: it has no parameter to train")
    network.train()
    state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    versions = {name: tensor_version(buffer) for name, buffer in network.named_buffers()}
    values = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        training.loss(network(train[0][: training.batch_size]), train[1][: training.batch_size])
        draws = not torch.equal(state, torch.get_rng_state())
    changed = [
        name
        for name, buffer in network.named_buffers()
        if tensor_version(buffer) != versions[name] or not torch.equal(buffer, values[name])
    ]
    for name, buffer in network.named_buffers():
        buffer.copy_(values[name])
    if changed:
        raise NotStackable(
            f"network cannot be stacked: training changes its buffers {', '.join(changed)} (as BatchNorm does), "
            f"and stacked members would share them"
        )
    if random.getstate() != python_state or repr(np.random.get_state()) != repr(numpy_state):
        raise NotStackable("network cannot be stacked: it draws random numbers from Python or numpy, not from torch")
    return draws


def _dense_strides(value: Tensor) -> tuple[int, ...]:
    """Return the strides of ``value`` if it fills its memory without gaps, or those of a contiguous copy."""
    copy = torch.empty_like(value, memory_format=torch.preserve_format)
    return copy.stride()


def _repeat(value: Tensor, members: int) -> Tensor:
    return value.unsqueeze(0).repeat(members, *[1] * value.dim())


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
