"""``multiply_by_inputs=False``: the coefficients ``c`` in the place of the contributions ``x * c``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, rules
from captum_cav.attribution import Normalize
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.tensors import assert_same

NET = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
X = fixed(2, 3)


def attributions(name: str, **options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What was explained; the result; and the delta."""
    if name == "layer":
        found = LayerCAV(NET, "1", **options).attribute(X, 1, return_convergence_delta=True)
        return NET[:2](X).detach(), *found
    if name == "inputs":
        return X, *InputCAV(NET, **options).attribute(X, 1, return_convergence_delta=True)
    return X, *NeuronCAV(NET, "3", **options).attribute(X, 1, return_convergence_delta=True)


@pytest.mark.parametrize("normalize", ["score", "abs", None])
@pytest.mark.parametrize("name", ["layer", "inputs", "neuron"])
def test_values_times_coefficients_are_contributions(name: str, normalize: Normalize) -> None:
    values, contributions, delta = attributions(name, normalize=normalize)
    _, coefficients, same_delta = attributions(name, normalize=normalize, multiply_by_inputs=False)
    assert_same(values * coefficients, contributions)
    assert_same(delta, same_delta)
    assert not torch.allclose(coefficients, contributions)


def test_the_coefficients_of_a_piecewise_linear_network_are_its_gradient() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    assert_same(InputCAV(net, normalize=None, multiply_by_inputs=False).attribute(X, 0), gradient)
    with_graph = InputCAV(net, normalize=None, multiply_by_inputs=False).attribute(
        X, 0, grad_kwargs={"create_graph": True}
    )
    assert_same(with_graph, gradient)


def test_a_unit_of_value_zero_has_a_coefficient() -> None:
    cav = InputCAV(lambda x: 2 * x[:, 0] + x[:, 1], normalize=None, multiply_by_inputs=False)
    assert_same(cav.attribute(torch.tensor([[0.0, 1.0]])), torch.tensor([[2.0, 1.0]]))


def test_half_precision_is_scaled_back() -> None:
    x = torch.tensor([[1e-4, 2e-4]], dtype=torch.float16)
    found = InputCAV(lambda x: x.sum(1), multiply_by_inputs=False).attribute(x)
    assert_same(found.double(), torch.full((1, 2), 1 / float(x.sum()), dtype=torch.float64), 0.1 / float(x.sum()))


def test_captum_is_told_what_is_given() -> None:
    assert LayerCAV(NET, "1").multiplies_by_inputs
    assert not LayerCAV(NET, "1", multiply_by_inputs=False).multiplies_by_inputs


def test_a_layer_that_the_score_does_not_depend_on_has_coefficients_of_zero_where_asked() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.unused(x)
            return self.used(x)

    cav = LayerCAV(Two(), ["used", "unused"], multiply_by_inputs=False, normalize=None)
    used, unused = cav.attribute(X, 0, grad_kwargs={"materialize_grads": True})
    assert_same(used, torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2, 2))
    assert_same(unused, torch.zeros(2, 2, dtype=torch.float64))


def test_a_rule_that_shares_without_regard_to_inputs_has_coefficients_too() -> None:
    net = nn.Sequential(nn.Linear(3, 2)).double()
    given: dict[str, Any] = {"rules": {"0": rules.FlatRule()}, "normalize": None}
    contributions = InputCAV(net, **given).attribute(X, 0)
    coefficients = InputCAV(net, **given, multiply_by_inputs=False).attribute(X, 0)
    assert_same(X * coefficients, contributions)


@pytest.mark.parametrize("given", [None, "no", 1])
def test_another_value_is_refused(given: Any) -> None:
    with cav_error(ValueError, f"multiply_by_inputs is {given!r}", "True or False"):
        InputCAV(NET, multiply_by_inputs=given)
