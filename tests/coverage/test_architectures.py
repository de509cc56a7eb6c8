"""Conservation, value and map on whole architectures with real biases and batch-norm statistics."""

from __future__ import annotations

import copy

import pytest
import torch

from captum_cav import InputCAV
from captum_cav.propagation import forward
from captum_cav.propagation.overrides import Rulebook
from tests.support.networks import FUNCTIONAL, OTHERS, PIECEWISE_LINEAR, heavy_are_slow, network, shape_of

ALL = [*PIECEWISE_LINEAR, *OTHERS, *FUNCTIONAL]


@pytest.mark.parametrize("name", heavy_are_slow(ALL))
def test_ratios_and_constants_sum_to_one(name: str) -> None:
    net = network(name)
    x = torch.randn(1, *shape_of(name), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = net(x)
    target = int(output.argmax(1))
    ratios, delta = InputCAV(net).attribute(x, target, return_convergence_delta=True)
    assert ratios.abs().sum() > 1e-3, "a map of nothing conserves trivially"
    assert delta.abs().item() < 1e-3

    passed = forward.run(
        net, (x,), (), [], tap_inputs=True, rules=Rulebook({}, net), on_unknown="error", with_account=False
    )
    torch.testing.assert_close(passed.output.detach(), output, rtol=1e-4, atol=1e-4 * float(output.abs().max()))

    double = copy.deepcopy(net).double()
    ratios, delta = InputCAV(double).attribute(x.double(), target, return_convergence_delta=True)
    assert delta.abs().item() < 1e-10
    if name in PIECEWISE_LINEAR or name in FUNCTIONAL:
        leaf = x.double().requires_grad_()
        score = double(leaf)[0, target]
        expected = leaf * torch.autograd.grad(score, leaf)[0] / score
        expected = expected.detach()
        torch.testing.assert_close(ratios, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
