"""What comes out of ``LayerCAV`` and its kin: shapes, nesting and numbers, in the situations of Captum's tests.

The networks are ours, piecewise linear and in float64. So contributions are activation x gradient, which torch's own
gradient gives and Captum's ``LayerGradientXActivation`` has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, LayerGradientXActivation
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import largest

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients")


class Split(nn.Module):
    """Gives a tuple of two tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x[:, :2], x[:, 2:] - 1


class Joined(nn.Module):
    """Takes two tensors, and gives one."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, 3 * b], 1)


class Net(nn.Module):
    """Two inputs and a factor; layers of one tensor and of two, with a ReLU that may write over its input."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(2, 5)
        self.relu, self.split, self.joined = nn.ReLU(inplace), Split(), Joined()
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor, factor: Any = 1.0) -> torch.Tensor:
        hidden = self.relu(self.left(x) + self.right(y))
        return self.head(self.joined(*self.split(hidden))) * factor


def made(inplace: bool) -> tuple[Net, tuple[torch.Tensor, torch.Tensor]]:
    return filled(Net(inplace)), (fixed(3, 3, seed=1), fixed(3, 2, seed=2))


def nesting(value: Any) -> Any:
    """The types of the containers, and the shapes inside."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else (type(value), [nesting(part) for part in value])


def modules(net: nn.Module, names: Any) -> Any:
    return [net.get_submodule(name) for name in names] if isinstance(names, list) else net.get_submodule(names)


def assert_alike(found: Any, expected: Any) -> None:
    assert nesting(found) == nesting(expected)
    if isinstance(found, torch.Tensor):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
        assert not found.requires_grad
        return
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)


inplace = pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
ALONE = ["left", "right", "relu", "split", "joined", "head"]
LISTS = [["left"], ["left", "head"], ["split", "relu", "head"], ["split", "joined"]]
TARGETS: list[Any] = [2, (2,), [0, 3, 1], torch.tensor([0, 3, 1]), [(0,), (3,), (1,)], -1]


@inplace
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("names", [*ALONE, *LISTS], ids=str)
def test_layers_have_the_nesting_and_the_numbers_of_captum(names: Any, of_input: bool, inplace: bool) -> None:
    net, inputs = made(inplace)
    several = isinstance(names, list)
    plain = filled(Net(False))  # Captum cannot explain every layer that is written over.
    expected = LayerGradientXActivation(plain, modules(plain, names)).attribute(
        inputs, 1, attribute_to_layer_input=of_input
    )
    for chosen in (modules(net, names), names):
        found, delta = LayerCAV(net, chosen, normalize=None).attribute(
            inputs, 1, attribute_to_layer_input=of_input, return_convergence_delta=True
        )
        assert_alike(found, expected)
        assert nesting(delta) == ((list, [(3,)] * len(names)) if several else (3,))


@inplace
def test_the_numbers_are_activation_times_gradient(inplace: bool) -> None:
    """Without Captum: the hidden layer is a leaf, and torch differentiates the score by it."""
    net, (x, y) = made(inplace)
    hidden = (net.left(x) + net.right(y)).relu().detach().requires_grad_()
    parts = (2 * hidden[:, :2], hidden[:, 2:] - 1)
    (gradient,) = torch.autograd.grad(net.head(net.joined(*parts))[:, 3].sum(), hidden)
    cav = LayerCAV(net, ["relu", "split"], normalize=None)
    found = cav.attribute((x, y), 3)
    assert_alike(found[0], hidden * gradient)
    weight = net.head.weight[3].detach()
    assert_alike(found[1], (parts[0] * weight[:2], parts[1] * 3 * weight[2:]))


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("factor", [None, 2.0, fixed(3, 1, seed=5)], ids=["", "number", "tensor"])
def test_targets_and_further_arguments(target: Any, factor: Any) -> None:
    net, inputs = made(False)
    args = {"inputs": inputs, "target": target, "additional_forward_args": factor}
    assert_alike(
        LayerCAV(net, "relu", normalize=None).attribute(**args),
        LayerGradientXActivation(net, net.relu).attribute(**args),
    )
    assert_alike(InputCAV(net, normalize=None).attribute(**args), InputXGradient(net).attribute(**args))


@inplace
def test_options_of_the_result(inplace: bool) -> None:
    net, inputs = made(inplace)
    cav = LayerCAV(net, ["relu", "split"], normalize=None)
    plain = cav.attribute(inputs, 1)
    assert_alike(
        cav.attribute(inputs, 1, relu_attributions=True),
        [plain[0].relu(), tuple(part.relu() for part in plain[1])],
    )
    assert_alike(
        cav.attribute(inputs, 1, attr_dim_summation=True),
        [plain[0].sum(1, keepdim=True), tuple(part.sum(1, keepdim=True) for part in plain[1])],
    )
    assert_alike(cav.attribute_targets(inputs, [1, 2]), [plain, cav.attribute(inputs, 2)])


@inplace
def test_ratios_divide_by_the_score_of_each_sample(inplace: bool) -> None:
    net, inputs = made(inplace)
    score = net(*inputs)[:, 1].detach()
    plain = LayerCAV(net, "split", normalize=None).attribute(inputs, 1)
    for normalize, divisor in (("score", score), ("abs", score.abs())):
        found = LayerCAV(net, "split", normalize=normalize).attribute(inputs, 1)  # type: ignore[arg-type]
        assert_alike(found, tuple(part / divisor[:, None] for part in plain))


@inplace
@pytest.mark.parametrize("as_list", [False, True])
def test_inputs_give_a_tuple_and_a_single_input_a_tensor(inplace: bool, as_list: bool) -> None:
    net, (x, y) = made(inplace)
    given: Any = [x, y] if as_list else (x, y)
    found = InputCAV(net, normalize=None).attribute(given, 0)
    assert_alike(found, InputXGradient(net).attribute((x, y), 0))
    alone = InputCAV(net, normalize=None).attribute(x, 0, additional_forward_args=(y,))
    assert_alike(alone, found[0])


NEURONS: list[tuple[str, Any, Callable[[Any], torch.Tensor]]] = [
    ("left", 1, lambda h: h[:, 1]),
    ("relu", (slice(1, 4),), lambda h: h[:, 1:4].sum(1)),
    ("split", lambda pair: pair[0][:, 0] + pair[1][:, 1], lambda pair: pair[0][:, 0] + pair[1][:, 1]),
    ("head", lambda h: h.sum(), lambda h: h.sum(1)),
]


@inplace
@pytest.mark.parametrize(("name", "selector", "select"), NEURONS, ids=[name for name, *_ in NEURONS])
def test_neurons_have_input_times_gradient(name: str, selector: Any, select: Any, inplace: bool) -> None:
    net, inputs = made(inplace)
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    seen: list[Any] = []

    def clones(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(tuple(part.clone() for part in output) if isinstance(output, tuple) else output.clone())

    hook = net.get_submodule(name).register_forward_hook(clones)
    net(*leaves)
    hook.remove()
    gradients = torch.autograd.grad(select(seen[0]).sum(), leaves, allow_unused=True)
    expected = tuple(
        torch.zeros_like(x) if gradient is None else x * gradient for x, gradient in zip(inputs, gradients, strict=True)
    )
    found = NeuronCAV(net, name, normalize=None).attribute(inputs, selector)
    assert_alike(found, expected)
    assert largest(found[0]) > 0
