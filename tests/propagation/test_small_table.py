"""A whole forward pass needs nothing but a table. Here the table has a few rows. All numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.errors import ModelError, UnsupportedOperationWarning
from captum_cav.propagation.hooks import Site
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.records import Unknown
from tests.propagation.engine import contributions, forward_of, rulebook
from tests.support.errors import cav_error


def twice_plus_three(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2 + 3


class Weighted(nn.Module):
    """``relu(x) * weight``, with a parameter."""

    def __init__(self, *weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.rectifier = nn.ReLU()

    def forward(self, x: torch.Tensor) -> Any:
        return self.rectifier(x) * self.weight


def test_contributions_and_shares_of_constants_add_up_to_the_score() -> None:
    passed = forward_of(twice_plus_three, torch.tensor([1.0, -2.0, 4.0]), with_shares=True)
    assert passed.output.tolist() == [5.0, 3.0, 11.0]
    assert contributions(passed) == [[2.0, -0.0, 8.0]]
    assert [float(share) for share in passed.trace.shares.settle([1], torch.device("cpu"))] == [9.0]


def test_a_rule_of_the_user_goes_before_the_row() -> None:
    def triple(operation: Operation) -> Any:
        x = operation.args[0]
        return operation.value().detach() + (x - x.detach()) * 3

    rules = rulebook({torch.relu: triple})
    passed = forward_of(twice_plus_three, torch.tensor([1.0, -2.0]), rules=rules)
    assert passed.output.tolist() == [5.0, 3.0]
    assert contributions(passed) == [[6.0, -12.0]]


def test_the_model_is_left_without_a_graph_and_without_hooks() -> None:
    model = Weighted(3.0, 5.0)
    passed = forward_of(model, torch.tensor([1.0, 2.0]), sites=[Site(model.rectifier, False)])
    assert contributions(passed) == [[3.0, 10.0]]
    assert all(grad is None for grad in torch.autograd.grad(passed.output.sum(), model.weight, allow_unused=True))
    assert not vars(model.rectifier)["_forward_hooks"]


def test_nothing_before_the_first_tap_builds_a_graph() -> None:
    before_tap: list[bool] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ReLU()

        def forward(self, x: torch.Tensor) -> Any:
            x = -x
            before_tap.append(x.requires_grad)
            return -self.layer(x)

    model = Watched()
    passed = forward_of(model, torch.tensor([-2.0]), sites=[Site(model.layer, False)])
    assert before_tap == [False]
    assert passed.output.requires_grad
    assert contributions(passed) == [[-2.0]]


def test_each_call_of_a_layer_is_a_tap() -> None:
    layer = nn.ReLU()

    def model(x: torch.Tensor) -> Any:
        return layer(x) * 2 + layer(-x) * 5

    passed = forward_of(model, torch.tensor([3.0, -1.0]), sites=[Site(layer, False)])
    assert passed.calls == [[0, 1]]
    assert contributions(passed, 0) == [[6.0, 0.0]]
    assert contributions(passed, 1) == [[0.0, 5.0]]


def test_the_input_of_a_layer_is_tapped_too() -> None:
    model = Weighted(3.0, 5.0)
    passed = forward_of(model, torch.tensor([1.0, -2.0]), sites=[Site(model.rectifier, True)])
    assert [saved.tolist() for saved in passed.trace.taps[0].values] == [[1.0, -2.0]]
    assert contributions(passed) == [[3.0, -0.0]]


def test_contributions_can_end_at_a_call() -> None:
    layer = nn.ReLU()
    passed = forward_of(
        lambda x: layer(x) * 2,
        torch.tensor([3.0]),
        sites=[Site(layer, False)],
        tap_inputs=True,
        keep_carriers=True,
        end_at_call=0,
    )
    assert not passed.output.requires_grad
    assert passed.output.tolist() == [6.0]
    assert passed.calls == [[1]]
    (carrier,) = passed.carriers
    assert carrier.tolist() == [3.0]
    assert carrier.requires_grad


def test_an_operation_without_a_row_is_refused() -> None:
    with cav_error(NotImplementedError, "'cos' has no rule", "rules={torch.cos: rules.pass_through}"):
        forward_of(torch.cos, torch.tensor([0.5]))


def test_an_operation_without_a_row_passes_its_gradient_on_with_a_warning() -> None:
    with pytest.warns(UnsupportedOperationWarning, match="'square' has no rule"):
        passed = forward_of(torch.square, torch.tensor([3.0]), on_unknown="gradient")
    assert contributions(passed) == [[18.0]]


def test_an_operation_without_a_row_is_noted() -> None:
    passed = forward_of(torch.square, torch.tensor([3.0]), on_unknown="note")
    assert passed.trace.unknown == [
        Unknown("square", "", "torch.square", "rules.pass_through", "y_i comes from x_i alone (equation 7)")
    ]


def test_the_module_of_an_operation_without_a_row_is_named() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Tanh())
    with cav_error(NotImplementedError, "'tanh' in module '1' (Tanh)"):
        forward_of(model, torch.tensor([0.5]))


def test_what_the_rows_meet_is_noted() -> None:
    passed = forward_of(twice_plus_three, torch.tensor([1.0]), with_rules=True)
    assert passed.trace.rules is not None
    assert [(row.operation, row.why) for row in passed.trace.rules.rows] == [
        ("relu", "default"),
        ("mul", "default"),
        ("add", "default"),
    ]
    # The rule of the sum does not say that it passes on the derivative.
    assert [row.operation for row in passed.trace.rules.inexact] == ["add"]


def test_the_model_writes_into_copies_of_its_inputs() -> None:
    x = torch.tensor([1.0, 2.0])
    passed = forward_of(lambda x: x.mul_(3), x)
    assert x.tolist() == [1.0, 2.0]
    assert contributions(passed) == [[3.0, 6.0]]


def test_the_random_state_is_kept() -> None:
    before = torch.get_rng_state()
    forward_of(lambda x: x * torch.rand(1), torch.tensor([1.0]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_differentiated_is_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        z = y * y  # The gradient of the product needs y.
        y.mul_(3)
        return z

    passed = forward_of(model, torch.tensor([1.0]))
    with cav_error(RuntimeError, "writes over a tensor that its own gradient needs"):
        contributions(passed)


def test_other_errors_of_the_backward_pass_come_through() -> None:
    passed = forward_of(torch.relu, torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        passed.coefficients(torch.ones(1), torch.ones(1), [0], False)
    assert not isinstance(caught.value, ModelError)


def test_writing_under_no_grad_into_what_carries_is_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        with torch.no_grad():
            y.mul_(2)
        return y

    with cav_error(RuntimeError, "'mul' writes into a tensor that carries contributions", "torch.no_grad()"):
        forward_of(model, torch.tensor([1.0]))


def test_out_is_written_by_the_rules() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(2)
        torch.mul(x, 4, out=out)
        return out

    passed = forward_of(model, torch.tensor([1.0, 2.0]))
    assert passed.output.tolist() == [4.0, 8.0]
    assert contributions(passed) == [[4.0, 8.0]]


def test_out_of_another_shape_is_refused() -> None:
    with cav_error(RuntimeError, "'mul'", "shape (2,)", "out= of shape (3,)"):
        forward_of(lambda x: torch.mul(x, 4, out=torch.zeros(3)), torch.tensor([1.0, 2.0]))


class Doubled(torch.autograd.Function):
    """Its backward pass is no derivative."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * 100


class Hidden(Doubled):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x * 2


def test_a_custom_function_is_followed_through_its_forward_pass() -> None:
    assert contributions(forward_of(lambda x: Doubled.apply(x), torch.tensor([1.0]))) == [[2.0]]


def test_a_custom_function_with_a_kernel_of_its_own_is_refused() -> None:
    with cav_error(NotImplementedError, "Hidden", "a kernel of its own, or under torch.no_grad()"):
        forward_of(lambda x: Hidden.apply(x), torch.tensor([1.0]))


def test_a_tensor_that_was_made_unseen_is_refused() -> None:
    apply = Doubled.apply  # This is torch's own method: the forward pass replaces the method later.
    with cav_error(NotImplementedError, "comes out at the end of the forward pass", "'DoubledBackward'"):
        forward_of(apply, torch.tensor([1.0]))
    with cav_error(NotImplementedError, "reached 'relu' but was made by 'DoubledBackward'"):
        forward_of(lambda x: torch.relu(apply(x)), torch.tensor([1.0]))
