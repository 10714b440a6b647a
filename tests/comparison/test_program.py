from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from lit_cosine.comparison.stacked._program import Program, trace


def check(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Program:
    """Run the program on new values twice; torch itself is the witness."""
    fixed = [value.clone() for value in inputs]
    program = Program(trace(function, fixed), fixed)
    with torch.no_grad():
        for _ in range(2):
            for value in fixed:
                value.copy_(torch.randn_like(value))
            program()
            for output, expected in zip(program.outputs, function(*fixed), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    return program


def stack(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_products_take_their_bias_along_and_lie_with_their_longer_side_contiguous() -> None:
    program = check(
        lambda b, x, w: (torch.relu(b[:, None] + torch.bmm(x, w)),), stack(4, 3), stack(4, 9, 5), stack(4, 5, 3)
    )
    assert program.operations == ["bmm", "add.out", "relu_.default"]
    assert program.outputs[0].stride() == (27, 1, 9)
    program = check(lambda x, w: (torch.bmm(x, w),), stack(4, 3, 5), stack(4, 5, 9))
    assert program.outputs[0].stride() == (27, 9, 1)


def test_a_product_that_is_read_twice_keeps_its_own_memory() -> None:
    check(lambda b, x, w: (b + torch.bmm(x, w), torch.bmm(x, w).sum()), stack(3), stack(4, 2, 5), stack(4, 5, 3))

    def both(b: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        product = torch.bmm(x, w)
        return b + product, product.exp(), product + product

    check(both, stack(3), stack(4, 2, 5), stack(4, 5, 3))


def test_a_bias_that_is_computed_later_is_added_later() -> None:
    check(lambda b, x, w: (torch.bmm(x, w) + b.sin(),), stack(3), stack(4, 2, 5), stack(4, 5, 3))


def test_an_operand_is_overwritten_only_where_nobody_reads_it_again() -> None:
    def twice(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp()
        z = y * 2
        return z + y, y.sum()

    check(twice, stack(5, 5))
    check(lambda x: (x.exp() * x.exp().t(),), stack(5, 5))

    def with_its_transpose(x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp()
        return (y * y.t(),)

    check(with_its_transpose, stack(5, 5))


def test_inputs_are_never_overwritten() -> None:
    x = stack(3)
    program = Program(trace(lambda x: (x.exp(), x.neg_()), [x.clone()]), [x])
    before = x.clone()
    program()
    assert torch.equal(x, before)
    torch.testing.assert_close(program.outputs[1], -before)


def test_what_depends_on_no_input_is_computed_once() -> None:
    program = check(lambda x: (x + torch.arange(3).exp().sum() * 4,), stack(3))
    assert len(program.operations) == 1


def test_outputs_go_where_they_are_wanted() -> None:
    x, w = stack(4, 9, 5), stack(4, 5, 3)
    straight, turned, copied = (torch.zeros(4 * 27, dtype=torch.float64) for _ in range(3))
    into = [straight.view(4, 9, 3), turned.as_strided((4, 9, 3), (27, 1, 9)), copied.view(4, 9, 3)]

    def function(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return torch.bmm(x, w), torch.bmm(x, w) * 2, x[:, :, :3]

    program = Program(trace(function, [x, w]), [x, w], into)
    for _ in range(2):
        x.copy_(torch.randn_like(x))
        program()
        for target, expected in zip(into, function(x, w), strict=True):
            torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-12)


def test_a_view_that_the_layout_does_not_allow_is_copied() -> None:
    check(lambda x, w: (torch.bmm(x, w).view(4, 27).cumsum(1),), stack(4, 9, 5), stack(4, 5, 3))


def test_several_results_and_no_out_variant() -> None:
    check(lambda x: torch.linalg.qr(x @ x.t() + 9 * torch.eye(3))[0:1], stack(3, 3))
    check(lambda x: (*x.topk(2), x.max(1)[0])[0::2], stack(3, 5))


def test_random_numbers_are_drawn_at_every_run_from_torchs_generator() -> None:
    x = torch.ones(1000)
    program = Program(trace(lambda x: (torch.nn.functional.dropout(x, 0.5),), [x]), [x])
    torch.manual_seed(3)
    first, second = ((program(), program.outputs[0].clone())[1] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(first, torch.nn.functional.dropout(x, 0.5))
    assert torch.equal(second, torch.nn.functional.dropout(x, 0.5))
    assert not torch.equal(first, second)


def test_data_dependent_control_flow_cannot_be_traced() -> None:
    with pytest.raises(RuntimeError):
        trace(lambda x: (x if x.sum() > 0 else -x,), [torch.ones(2)])


UNARY = [
    torch.relu,
    torch.tanh,
    torch.exp,
    lambda x: x.transpose(1, 2),
    lambda x: 1 * x,
    lambda x: x.sum(1, keepdim=True),
]
BINARY = [torch.add, torch.mul, lambda x, y: x.expand_as(y) if y.shape[1] > x.shape[1] else x - y]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=12))
def test_random_chains_of_operations(moves: list[tuple[int, int, int]]) -> None:
    def function(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        values = [torch.bmm(x, w)]
        for kind, left, right in moves:
            one, other = values[left % len(values)], values[right % len(values)]
            if kind < len(UNARY):
                values.append(UNARY[kind](one * 0.1))
            else:
                values.append(BINARY[kind - len(UNARY)](one, other))
        return values[-1], values[len(values) // 2]

    check(function, stack(2, 4, 4), stack(2, 4, 4))


def test_gradients_of_stacked_functions() -> None:
    def loss(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return torch.log_softmax(torch.tanh(x @ w + b), dim=1)[:, 0].mean()

    check(vmap(grad(loss, argnums=(0, 1)), in_dims=(0, 0, None)), stack(4, 5, 3), stack(4, 3), stack(6, 5))
