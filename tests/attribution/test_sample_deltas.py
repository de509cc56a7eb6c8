"""The delta of each sample of a batch, where torch cannot differentiate the backward pass of an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torchvision import ops

from captum_cav import InputCAV, LayerCAV, rules
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled

BOXES = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0], [1, 1.0, 1.0, 5.0, 5.0], [2, 0.0, 1.0, 3.0, 5.0]], dtype=torch.float64)


def deformed(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    offset = 0.3 * fixed(1, 2 * 4, 5, 5).expand(len(x), -1, -1, -1)
    return ops.deform_conv2d(x, offset, fixed(4, 8, 2, 2), fixed(4))


DETECTION: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "roi_align": lambda x, boxes: ops.roi_align(x, boxes, 2),
    "roi_pool": lambda x, boxes: ops.roi_pool(x, boxes, 2),
    "ps_roi_align": lambda x, boxes: ops.ps_roi_align(x, boxes, 2),
    "ps_roi_pool": lambda x, boxes: ops.ps_roi_pool(x, boxes, 2),
    "deform_conv2d": deformed,
    "deform_conv2d with a mask": lambda x, boxes: ops.deform_conv2d(
        x,
        0.3 * fixed(1, 2 * 4, 5, 5).expand(len(x), -1, -1, -1),
        fixed(4, 8, 2, 2),
        mask=fixed(1, 4, 5, 5).sigmoid().expand(len(x), -1, -1, -1),
    ),
    "roi_align of a list": lambda x, boxes: ops.roi_align(x, list(boxes[:, None, 1:]), 2, 0.5, 2, aligned=True),
    "several maps": lambda x, boxes: ops.MultiScaleRoIAlign(["a", "b"], 2, 2)(
        {"a": x, "b": nn.functional.avg_pool2d(x, 2)}, list(boxes[:, None, 1:]), [(6, 6)] * 3
    ),
}


class Detector(nn.Module):
    def __init__(self, pool: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.early, self.late, self.pool, self.boxes = nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1), pool, BOXES

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The first branch bypasses the layer "late", so that layer's delta is not 0.
        return (
            self.early(x).tanh() + self.pool(self.late(x), self.boxes).mean((2, 3), keepdim=True).sum(1, True)
        ).mean((1, 2, 3))


@pytest.mark.parametrize("operation", DETECTION)
def test_each_sample_has_its_own_delta_behind_operations_of_detection(operation: str) -> None:
    net, x = filled(Detector(DETECTION[operation])), fixed(3, 2, 6, 6)
    (late, _), deltas = LayerCAV(net, ["late", "early"], normalize=None).attribute(x, return_convergence_delta=True)
    with torch.no_grad():
        expected = net.early(x).tanh().mean((1, 2, 3))
    torch.testing.assert_close(deltas[0], expected)
    bias = InputCAV(net, normalize=None).attribute(x, return_convergence_delta=True)[1]
    assert float(bias.abs().max()) < 1e-12
    assert late.abs().sum() > 0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return 0.5 * coefficients, None


class OnTheHost(Once):
    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(0.5 * coefficients.detach().numpy()), None


class WithOut(Once):
    @staticmethod
    def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.mul(coefficients, 0.5, out=torch.empty_like(coefficients)), None


@pytest.mark.parametrize("function", [Once, OnTheHost, WithOut])
def test_each_sample_has_its_own_delta_whatever_a_rule_does_in_its_backward_pass(function: Any) -> None:
    """Torch refuses the first and the third of them; the second would give a wrong number without an error."""

    def rule(operation: rules.Operation) -> Any:
        return function.apply(operation.args[0], operation.value().detach())

    net, x = filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), fixed(3, 4)
    cav = LayerCAV(net, ["0", "1"], rules={torch.tanh: rule})
    alone = [cav.attribute(x[i : i + 1], 0, return_convergence_delta=True) for i in range(3)]
    for targets in ([0], [0, 1]):
        (maps, deltas), *_ = cav.attribute_targets(x, targets, return_convergence_delta=True)
        for layer in range(2):
            torch.testing.assert_close(deltas[layer], torch.cat([one[1][layer] for one in alone]))
            torch.testing.assert_close(maps[layer], torch.cat([one[0][layer] for one in alone]))
    assert float(deltas[0].abs().min()) > 1e-3


def test_an_error_of_a_rule_in_its_backward_pass_is_its_own() -> None:
    class Broken(Once):
        @staticmethod
        def backward(ctx: Any, coefficients: torch.Tensor) -> tuple[torch.Tensor, None]:
            raise RuntimeError("this rule is broken")

    def rule(operation: rules.Operation) -> Any:
        return Broken.apply(operation.args[0], operation.value().detach())

    cav = InputCAV(filled(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), rules={torch.tanh: rule})
    for with_delta in (False, True):
        with pytest.raises(RuntimeError, match="this rule is broken"):
            cav.attribute(fixed(3, 4), 0, return_convergence_delta=with_delta)


@pytest.mark.parametrize(
    "function",
    [lambda x: x[:0].sum(1), lambda x: x[:, :0], lambda x: x[x > 9]],
    ids=["no rows", "no classes", "chosen"],
)
def test_a_model_without_scores_is_refused(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for target in (None, 0):
        with cav_error(RuntimeError, "the model returned no scores", str(tuple(function(fixed(2, 3)).shape))):
            InputCAV(function).attribute(fixed(2, 3), target)
