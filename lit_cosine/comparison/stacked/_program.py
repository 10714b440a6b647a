"""A traced function of tensors as a flat list of calls into fixed buffers, without the overhead of dispatch.

``torch.func`` writes a stacked training step in three lines, and spends most of its time on dispatch, small
allocations and unsuitable layouts. A :class:`Program` traces the function once (``make_fx``), and lowers the
operations of any network:

* every intermediate has a place in a small set of reused buffers, so that views are made once and not at every step;
* an operation that depends on no input is computed once;
* an elementwise operation overwrites an operand that is not read again;
* a batched matrix product is stored with its longer side contiguous.

Convention: inputs and outputs are fixed tensors. Write the inputs in place, call the program, read the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from lit_cosine._compat import (
    is_operator,
    operator_arguments,
    operator_makes_view,
    operator_mutates,
    same_overload,
    tree_leaves,
)

__all__ = ["Program", "trace"]

_aten = torch.ops.aten
_BATCHED_PRODUCT = _aten.bmm.default
_COPIES = {_aten.clone.default, _aten.detach.default, _aten.alias.default, _aten.lift_fresh.default}
_SCALINGS = {_aten.mul.Scalar, _aten.mul.Tensor, _aten.div.Scalar, _aten.div.Tensor}
_SHAPE_ALONE = {  # they read the shape of their operand, not its values
    *(_aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default, _aten.empty_like.default),
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.new_empty.default),
}


def trace(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> GraphModule:
    """Return the operations of ``function(*inputs)`` as a graph without mutations and dead code.

    Raises a RuntimeError if what the function does depends on the values of its inputs.
    """
    graph_module = make_fx(function)(*inputs)
    if any(is_operator(node.target) and operator_mutates(node.target) for node in graph_module.graph.nodes):
        graph_module = make_fx(functionalize(function))(*inputs)
    graph_module.graph.eliminate_dead_code()
    return graph_module


class Program:
    """``outputs = graph(*inputs)`` as calls into fixed buffers.

    Args:
        graph_module: From :func:`trace`, with inputs of the same shapes and types.
        inputs: The fixed tensors that the calls read.
        into: For each output the tensor that it is written to, or ``None`` for a buffer of the program's own.

    Attributes:
        outputs: The fixed tensors that hold the results after each call.
        calls: The calls, in their order.
        nbytes: Size of the program's own buffers.

    >>> x = torch.zeros(3)
    >>> double = Program(trace(lambda x: (2 * x,), [x]), [x])
    >>> _ = x.fill_(4.0)
    >>> double()
    >>> double.outputs[0]
    tensor([8., 8., 8.])
    """

    def __init__(
        self, graph_module: GraphModule, inputs: Sequence[Tensor], into: Sequence[Tensor | None] | None = None
    ) -> None:
        with torch.no_grad():
            lowering = _Lowering(graph_module, inputs, into)
        self.outputs = lowering.outputs
        self.nbytes = lowering.nbytes
        self.calls = lowering.calls

    def __call__(self) -> None:
        """Compute the outputs from what the inputs hold now. Call it under ``torch.no_grad()``."""
        for call in self.calls:
            call()

    @property
    def operations(self) -> list[str]:
        """The names of the calls, in their order."""
        return [str(getattr(call.func, "__name__", call.func)) for call in self.calls]


class _Lowering:
    """One walk over the graph; every node is computed once on the way, so that shapes and strides are known."""

    def __init__(
        self, graph_module: GraphModule, inputs: Sequence[Tensor], into: Sequence[Tensor | None] | None
    ) -> None:
        self.calls: list[partial[Any]] = []
        self.nbytes = 0
        self._values: dict[Node, Any] = {}
        self._fixed: set[Node] = set()  # computed once: no input and no random number in it
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self._buffers: dict[int, Tensor] = {}  # storage -> the flat buffer to give back
        nodes = list(graph_module.graph.nodes)
        self._last_use, self._owner = _lifetimes(nodes)
        (result,) = nodes[-1].args
        results = tree_leaves(result)
        into = [None] * len(results) if into is None else into
        self._place = {
            self._owner[node]: target for node, target in zip(results, into, strict=True) if target is not None
        }
        placeholders = iter(inputs)
        for index, node in enumerate(nodes[:-1]):
            if node.op == "placeholder":
                self._values[node] = next(placeholders)
            elif node.op == "get_attr":
                self._values[node] = getattr(graph_module, str(node.target))
                self._fixed.add(node)
            else:
                self._lower(index, node)
                self._give_back(index, node)
        self.outputs = [self._output(node, target) for node, target in zip(results, into, strict=True)]

    def _lower(self, index: int, node: Node) -> None:
        operands: Any = map_arg((node.args, node.kwargs), self._values.__getitem__)
        args, kwargs = operands
        operation = node.target
        if not is_operator(operation):  # operator.getitem on a tuple of results
            self._values[node] = operation(*args, **kwargs)  # type: ignore[operator]
            return
        random = torch.Tag.nondeterministic_seeded in operation.tags
        fixed = all(operand in self._fixed for operand in node.all_input_nodes)
        if (fixed and not random) or operation in _SHAPE_ALONE:
            self._values[node] = operation(*args, **kwargs)
            self._fixed.add(node)
        elif operation in _COPIES or _is_identity(node):
            self._values[node] = args[0]
        elif operation is _BATCHED_PRODUCT:
            self._product(node, *args)
        else:
            self._general(index, node, operation, args, kwargs)

    def _emit(self, call: partial[Any]) -> None:
        call()  # later nodes read real values: an index into a table must be valid
        self.calls.append(call)

    def _general(self, index: int, node: Node, operation: Any, args: Any, kwargs: Any) -> None:
        try:
            example = operation(*args, **kwargs)
        except RuntimeError:
            if not operator_makes_view(operation):
                raise
            # the layout chosen for the operand has no such view: copy it to a contiguous buffer first, in every run
            source = args[0]
            ordered = self._take(source.contiguous(), node)
            self._emit(partial(ordered.copy_, source))
            args = (ordered, *args[1:])
            example = operation(*args, **kwargs)
        if isinstance(example, Tensor) and _same_storage(example, args):
            self._values[node] = example
            return
        if not isinstance(example, Tensor):
            fixed = tuple(self._keep(item) if isinstance(item, Tensor) else item for item in example)
            self._emit(partial(_call_and_copy, operation, args, kwargs, fixed))
            self._values[node] = fixed
            return
        buffer = self._written_over(index, node, operation, example)
        in_place = _in_place_variant(operation) if buffer is not None and args[0] is buffer else None
        buffer = self._take(example, node) if buffer is None else buffer
        into = _out_variant(operation)
        if in_place is not None:
            self._emit(partial(in_place, *args, **kwargs))
        elif into is None:
            self._emit(partial(_call_and_copy, operation, args, kwargs, (buffer,)))
        else:
            self._emit(partial(into[0], *args, **kwargs, **{into[1]: buffer}))
        self._values[node] = buffer

    def _product(self, node: Node, left: Tensor, right: Tensor) -> None:
        # a product of (m, k) and (k, n) runs fastest along its contiguous side, so that should be the longer one
        flipped = right.shape[2] < left.shape[1]
        if flipped:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        buffer = self._take(left.new_empty(left.shape[0], left.shape[1], right.shape[2]), node)
        self._emit(partial(torch.bmm, left, right, out=buffer))
        self._values[node] = buffer.transpose(1, 2) if flipped else buffer

    def _written_over(self, index: int, node: Node, operation: Any, example: Tensor) -> Tensor | None:
        """Return an operand that this elementwise operation may overwrite, or None."""
        if torch.Tag.pointwise not in operation.tags or self._owner[node] in self._place:
            return None
        for operand in node.all_input_nodes:
            value = self._values[operand]
            if (
                isinstance(value, Tensor)
                and value.untyped_storage().data_ptr() in self._buffers
                and self._last_use[self._owner[operand]] == index
                and self._owner[operand] not in self._place
                and (value.shape, value.stride(), value.dtype) == (example.shape, example.stride(), example.dtype)
                and value.numel() == self._buffers[value.untyped_storage().data_ptr()].numel()
                and all(_same_view(value, self._values[other]) for other in node.all_input_nodes)
            ):
                return value
        return None

    def _take(self, example: Tensor, node: Node) -> Tensor:
        """Return a buffer laid out like ``example``."""
        target = self._place.get(self._owner[node])
        size, strides = example.shape, example.stride()
        if not _is_dense(example):
            strides = example.contiguous().stride()
        if target is not None and target.numel() == example.numel() and target.dtype == example.dtype:
            return torch.as_strided(target, size, strides, target.storage_offset())
        key = (example.numel(), example.dtype)
        free = self._free.setdefault(key, [])
        if free:
            flat = free.pop()
        else:
            flat = torch.empty(example.numel(), dtype=example.dtype, device=example.device)
            self.nbytes += flat.numel() * flat.element_size()
        self._buffers[flat.untyped_storage().data_ptr()] = flat
        return torch.as_strided(flat, size, strides)

    def _keep(self, example: Tensor) -> Tensor:
        """Return a buffer that is never reused, for an operation with several results."""
        self.nbytes += example.numel() * example.element_size()
        return torch.empty_like(example)

    def _give_back(self, index: int, node: Node) -> None:
        """Free the buffers that this node was the last to read."""
        for operand in {self._owner[operand] for operand in node.all_input_nodes}:
            value = self._values.get(operand)
            if self._last_use[operand] != index or not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage().data_ptr()
            written_over = self._values[node]
            if isinstance(written_over, Tensor) and written_over.untyped_storage().data_ptr() == storage:
                continue
            flat = self._buffers.pop(storage, None)
            if flat is not None:
                self._free[(flat.numel(), flat.dtype)].append(flat)

    def _output(self, node: Node, target: Tensor | None) -> Tensor:
        value: Tensor = self._values[node]
        if target is None:
            return value
        same_place = value.data_ptr() == target.data_ptr() and value.dtype == target.dtype
        if not (same_place and value.shape == target.shape and value.stride() == target.stride()):
            self._emit(partial(_reorder, target, value) if same_place else partial(target.copy_, value))
        return target


def _lifetimes(nodes: Sequence[Node]) -> tuple[dict[Node, int], dict[Node, Node]]:
    """Return each owner's last reader, and for each node the owner of the memory that it may stand for."""
    owner: dict[Node, Node] = {}
    last_use: dict[Node, int] = {}
    for index, node in enumerate(nodes):
        operation = node.target
        may_alias = node.op == "call_function" and (
            not is_operator(operation) or operation in _COPIES or operator_makes_view(operation) or _is_identity(node)
        )
        for operand in node.all_input_nodes:
            last_use[owner[operand]] = index
        owner[node] = owner[node.all_input_nodes[0]] if may_alias and node.all_input_nodes else node
        last_use.setdefault(owner[node], index)
    return last_use, owner


def _is_identity(node: Node) -> bool:
    """Return whether ``node`` multiplies or divides by the number 1, as vmap does to biases."""
    return node.target in _SCALINGS and len(node.args) == 2 and node.args[1] in (1, 1.0) and not node.kwargs


def _same_storage(value: Tensor, args: Any) -> bool:
    storage = value.untyped_storage().data_ptr()
    tensors: Iterator[Tensor] = (leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    return storage != 0 and any(tensor.untyped_storage().data_ptr() == storage for tensor in tensors)


def _same_view(value: Tensor, other: Any) -> bool:
    """Return whether ``other`` has other memory, or views the same memory in the same order."""
    if not isinstance(other, Tensor) or other.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
        return True
    return (other.shape, other.stride(), other.data_ptr()) == (value.shape, value.stride(), value.data_ptr())


def _is_dense(value: Tensor) -> bool:
    """Return whether the strides are those of a permuted contiguous tensor."""
    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _out_variant(operation: Any) -> tuple[Any, str] | None:
    """Return the overload that takes the same arguments and writes its one result to an argument, and its name."""
    wanted = [(argument.name, str(argument.type)) for argument in operator_arguments(operation)]
    packet = operation.overloadpacket
    for name in packet.overloads():
        candidate = getattr(packet, name)
        outs = [argument.name for argument in operator_arguments(candidate) if argument.is_out]
        plain = [(a.name, str(a.type)) for a in operator_arguments(candidate) if not a.is_out]
        if len(outs) == 1 and plain == wanted:
            return candidate, outs[0]
    return None


def _in_place_variant(operation: Any) -> Any | None:
    """Return the overload that writes its result over its first argument."""
    packet = getattr(_aten, f"{operation.overloadpacket.__name__}_", None)
    variant = same_overload(packet, operation)
    wanted = [argument.name for argument in operator_arguments(operation)]
    return variant if variant and [argument.name for argument in operator_arguments(variant)] == wanted else None


def _call_and_copy(operation: Any, args: Any, kwargs: Any, targets: Sequence[Any]) -> None:
    results = operation(*args, **kwargs)
    for target, result in zip(targets, (results,) if isinstance(results, Tensor) else results, strict=True):
        if isinstance(target, Tensor):
            target.copy_(result)


def _reorder(target: Tensor, value: Tensor) -> None:
    """Write ``value`` to ``target``, which is the same memory in another order."""
    target.copy_(value.clone())
