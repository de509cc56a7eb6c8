"""Values with a backward pass of their own: value, gradient, gradient of the gradient, and what they keep in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from captum_cav.operations.surrogates import scaled, with_backward, with_late_slope, with_slopes, written_over
from tests.support.tensors import bits_of

Surrogate = Callable[[torch.Tensor], torch.Tensor]


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def gradient(y: torch.Tensor, x: torch.Tensor, *coefficients: float, **options: Any) -> list[float]:
    (found,) = torch.autograd.grad(y, x, torch.tensor(coefficients), **options)
    return found.tolist()


# Every surrogate here has the value x ** 2, and some slope for coefficients that is no derivative of it.


def by_function(x: torch.Tensor) -> torch.Tensor:
    slope = x.detach() + 1
    return with_backward(x.detach() ** 2, lambda coefficients: (coefficients * slope,), x)


def by_factor(x: torch.Tensor) -> torch.Tensor:
    return scaled(x**2, torch.tensor([0.5, 10.0]))


def by_late_slope(x: torch.Tensor) -> torch.Tensor:
    saved = x.detach()
    return with_late_slope(x, saved**2, lambda: saved + 1)


def by_slopes(x: torch.Tensor) -> torch.Tensor:
    return with_slopes(x.detach() ** 2, [x], [x.detach() + 1])


def by_writing(x: torch.Tensor) -> torch.Tensor:
    slope = x.detach() + 1
    y = x * 1
    with torch.no_grad():
        y.pow_(2)
    return written_over(y, slope)


ALL = [by_function, by_late_slope, by_slopes, by_writing]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What dies here dies without a search for circles."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("surrogate", [*ALL, by_factor])
def test_the_value_is_kept_bit_for_bit(surrogate: Surrogate) -> None:
    x = leaf(0.1, -0.3)
    assert bits_of(surrogate(x)) == bits_of(x**2)
    assert surrogate(x).requires_grad


@pytest.mark.parametrize("surrogate", ALL)
def test_coefficients_are_multiplied_with_the_slope(surrogate: Surrogate) -> None:
    x = leaf(2.0, -3.0)
    assert gradient(surrogate(x), x, 1.0, 10.0) == [3.0, -20.0]


@pytest.mark.parametrize("surrogate", ALL)
def test_contributions_can_be_differentiated_by_the_coefficients(surrogate: Surrogate) -> None:
    x, seeds = leaf(2.0, -3.0), leaf(1.0, 10.0)
    (coefficients,) = torch.autograd.grad(surrogate(x), x, seeds, create_graph=True)
    assert gradient(coefficients, seeds, 1.0, 1.0) == [3.0, -2.0]


@pytest.mark.parametrize("surrogate", ALL)
def test_a_second_backward_pass_gives_the_same(surrogate: Surrogate) -> None:
    x = leaf(2.0, -3.0)
    y = surrogate(x)
    for _ in range(2):
        assert gradient(y, x, 1.0, 10.0, retain_graph=True) == [3.0, -20.0]


@pytest.mark.parametrize("surrogate", ALL)
def test_the_coefficients_that_come_in_are_not_written_over(surrogate: Surrogate) -> None:
    x, seeds = leaf(2.0, -3.0), torch.tensor([1.0, 10.0])
    torch.autograd.grad(surrogate(x), x, seeds)
    assert seeds.tolist() == [1.0, 10.0]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("surrogate", [*ALL, by_factor])
def test_the_graph_dies_with_the_output(surrogate: Surrogate) -> None:
    begin = leaf(2.0, -3.0)
    x = begin * 1
    y = surrogate(x)
    node, memory = weakref.ref(x), weakref.ref(y)
    del x, y
    assert node() is None
    assert memory() is None


# One by one ---------------------------------------------------------------------------------------------------------


def test_a_function_may_give_several_inputs_different_coefficients_or_none() -> None:
    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    y = with_backward(torch.zeros(1), lambda g: (g * 5, None, g * 7), a, b, c)
    found = torch.autograd.grad(y, [a, b, c], torch.tensor([2.0]), allow_unused=True)
    assert [None if g is None else g.tolist() for g in found] == [[10.0], None, [14.0]]


def test_the_value_shares_the_memory_of_what_was_given() -> None:
    x, value = leaf(1.0), torch.tensor([5.0])
    assert with_backward(value, lambda g: (g,), x).data_ptr() == value.data_ptr()


def test_the_value_may_be_computed_without_a_graph_by_a_function() -> None:
    x = leaf(2.0)
    modes: list[bool] = []

    def value() -> torch.Tensor:
        modes.append(torch.is_grad_enabled())
        return x**2

    y = with_backward(value, lambda coefficients: (coefficients * 3,), x)
    assert modes == [False]
    assert y.tolist() == [4.0]
    assert gradient(y, x, 10.0) == [30.0]


def test_scaled_multiplies_what_passes_and_goes_on_in_the_graph() -> None:
    x = leaf(2.0, -3.0)
    assert gradient(scaled(x**2, 0.5), x, 1.0, 10.0) == [2.0, -30.0]
    assert gradient(scaled(x**2, torch.tensor([0.5, 10.0])), x, 1.0, 1.0) == [2.0, -60.0]


def test_the_gradient_of_scaled_goes_on_too() -> None:
    x = leaf(2.0)
    (first,) = torch.autograd.grad(scaled(x**3, 0.5), x, create_graph=True)
    assert first.tolist() == [6.0]
    assert gradient(first, x, 1.0) == [6.0]  # Half of the second derivative 6 x.


def test_a_late_slope_is_worked_out_by_the_backward_pass_alone() -> None:
    asked: list[str] = []

    def slope() -> torch.Tensor:
        asked.append("slope")
        return torch.tensor([3.0])

    x = leaf(2.0)
    y = with_late_slope(x, torch.tensor([4.0]), slope)
    unread = with_late_slope(x, torch.tensor([4.0]), slope)
    assert asked == []
    assert gradient(y + unread.detach(), x, 2.0) == [6.0]
    assert asked == ["slope"]


def test_the_memory_of_a_late_slope_becomes_that_of_the_coefficients() -> None:
    made: list[torch.Tensor] = []

    def slope() -> torch.Tensor:
        made.append(torch.tensor([3.0]))
        return made[-1]

    x = leaf(2.0)
    (found,) = torch.autograd.grad(with_late_slope(x, torch.tensor([4.0]), slope), x)
    assert found.data_ptr() == made[0].data_ptr()
    # But not where the coefficients have a graph, which must keep the slope as the slope is.
    seeds = leaf(5.0)
    (found,) = torch.autograd.grad(with_late_slope(x, torch.tensor([4.0]), slope), x, seeds, create_graph=True)
    assert found.tolist() == [15.0]
    assert made[1].tolist() == [3.0]


def sloped(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return with_slopes(torch.zeros(2), [x], [slope])


def written(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return written_over(x * 1, slope)


@pytest.mark.parametrize("surrogate", [sloped, written])
def test_the_last_backward_pass_overwrites_the_slopes_and_no_earlier_one(surrogate: Any) -> None:
    x, slope = leaf(2.0, -3.0), torch.tensor([3.0, 5.0])
    y, seeds = surrogate(x, slope), torch.tensor([1.0, 10.0])
    (kept,) = torch.autograd.grad(y, x, seeds, retain_graph=True)
    (several,) = torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True, retain_graph=True)
    with_graph = leaf(2.0, 2.0)
    (differentiable,) = torch.autograd.grad(y, x, with_graph, create_graph=True)
    assert slope.tolist() == [3.0, 5.0]
    assert gradient(differentiable, with_graph, 1.0, 1.0) == [3.0, 5.0]
    (last,) = torch.autograd.grad(surrogate(x, slope), x, seeds)
    assert kept.tolist() == last.tolist() == slope.tolist() == [3.0, 50.0]
    assert several.tolist() == [[3.0, 0.0], [0.0, 5.0]]


@pytest.mark.parametrize("surrogate", [sloped, written])
def test_a_last_pass_of_several_scores_keeps_the_slopes(surrogate: Any) -> None:
    x, slope = leaf(2.0, -3.0), torch.tensor([3.0, 5.0])
    (found,) = torch.autograd.grad(surrogate(x, slope), x, torch.eye(2), is_grads_batched=True)
    assert found.tolist() == [[3.0, 0.0], [0.0, 5.0]]
    assert slope.tolist() == [3.0, 5.0]


@pytest.mark.parametrize("slope", [torch.tensor([3.0]), torch.tensor([3.0, 5.0], dtype=torch.float64)])
def test_a_slope_of_another_kind_than_the_coefficients_is_kept(slope: torch.Tensor) -> None:
    before = slope.clone()
    x = leaf(2.0, -3.0)
    (found,) = torch.autograd.grad(with_slopes(torch.zeros(2), [x], [slope]), x, torch.tensor([1.0, 10.0]))
    assert found.tolist() == [3.0, 30.0 if len(slope) == 1 else 50.0]
    assert torch.equal(slope, before)


def test_slopes_go_to_several_inputs_that_broadcast() -> None:
    a, b = torch.ones(2, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    y = with_slopes(torch.zeros(2, 3), [a, b], [torch.full((2, 3), 2.0), torch.tensor([1.0, 10.0, 100.0])])
    of_a, of_b = torch.autograd.grad(y, [a, b], torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert of_a.tolist() == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
    assert of_b.tolist() == [5.0, 70.0, 900.0]


def test_slopes_are_saved_as_autograd_saves_tensors() -> None:
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x, slope = leaf(2.0), torch.tensor([3.0])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with_slopes(torch.zeros(1), [x], [slope])
        written_over(x * 1, slope)
    assert [tensor.data_ptr() for tensor in saved] == [slope.data_ptr()] * 2


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("of_output", [with_slopes, written_over])
def test_a_backward_pass_frees_the_slopes(of_output: Any) -> None:
    x, slope = leaf(2.0), torch.tensor([3.0])
    y = with_slopes(torch.zeros(1), [x], [slope]) if of_output is with_slopes else written_over(x * 1, slope)
    memory = weakref.ref(slope.untyped_storage())
    del slope
    assert memory() is not None
    torch.autograd.grad(y, x)
    assert memory() is None


def test_what_was_written_over_is_the_same_tensor() -> None:
    x = leaf(2.0)
    y = x * 3
    y.detach().fill_(7.0)
    result = written_over(y, torch.tensor([5.0]))
    assert result is y
    assert y.tolist() == [7.0]
    assert gradient(y, x, 2.0) == [30.0]  # Twice the slope, and then the factor of what y was before.
