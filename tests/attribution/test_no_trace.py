"""Nothing is left on the model, its inputs or the process, whether an attribution returns or raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV
from tests.support import traces
from tests.support.attributions import ATTRIBUTIONS, every_attribution
from tests.support.networks import fixed
from tests.support.small_networks import ResidualNet, picture, residual_net, samples, small_net
from tests.support.tensors import bits_of, tensors_of
from tests.support.traces import InjectedError, inject, left_as_it_was, state_of

Attribution = Callable[[nn.Module, torch.Tensor], Any]


# What a trace would be -----------------------------------------------------------------------------------------------


TRACES: dict[str, Callable[[ResidualNet], Any]] = {
    "hook": lambda net: net.block1.register_forward_hook(print),
    "hook-with-kwargs": lambda net: net.block1.register_forward_pre_hook(print, with_kwargs=True),
    "backward-hook": lambda net: net.block1.register_full_backward_hook(print),
    "state-dict-hook": lambda net: net.block1.register_state_dict_post_hook(lambda *_: None),
    "parameter-hook": lambda net: net.head.bias.register_hook(print),
    "requires-grad": lambda net: net.head.bias.requires_grad_(False),
    "grad": lambda net: net.head.weight.grad.add_(1),
    "new-grad": lambda net: setattr(net.head.bias, "grad", torch.zeros_like(net.head.bias)),
    "mode": lambda net: net.pool.eval(),
    "statistics": lambda net: net.stem[1].num_batches_tracked.add_(1),
    "same-values-written": lambda net: net.stem[1].running_mean.mul_(1),
    "mark": lambda net: setattr(net.head.weight, "_mark", 1),
    "attribute": lambda net: setattr(net.block1, "_mark", 1),
    "replaced-module": lambda net: setattr(net, "pool", nn.AdaptiveAvgPool2d(1)),
    "replaced-parameter": lambda net: setattr(net.head, "bias", nn.Parameter(net.head.bias.detach())),
    "random-numbers": lambda _: torch.rand(1),
}


@pytest.mark.parametrize("leave", list(TRACES.values()), ids=list(TRACES))
def test_a_trace_would_be_seen(leave: Callable[[ResidualNet], Any]) -> None:
    net = residual_net()
    before = state_of(net)
    leave(net)
    assert state_of(net) != before


def test_a_trace_on_the_process_would_be_seen() -> None:
    net = residual_net()
    before = state_of(net)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    seen = state_of(net) != before
    handle.remove()
    assert seen
    with torch.no_grad():
        assert state_of(net) != before
    with torch.overrides.BaseTorchFunctionMode():
        assert state_of(net) != before
    assert state_of(net) == before


# No trace on the model -----------------------------------------------------------------------------------------------


@every_attribution
def test_an_attribution_leaves_nothing(attribution: Attribution) -> None:
    net, x = residual_net(), picture()
    with left_as_it_was(net, x):
        results = tensors_of(attribution(net, x))
    assert results
    for result in results:
        assert not result.requires_grad
        assert result.isfinite().all()


def ways_through(name: str) -> list[Attribution]:
    """The attributions whose forward pass is not over before a module is done."""
    too_early = {"": ("neuron", "neuron-input"), "head": ("neuron-input",)}.get(name, ())
    return [attribution for way, attribution in ATTRIBUTIONS.items() if way not in too_early]


@pytest.mark.parametrize("kind", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("name", [name for name, _ in ResidualNet().named_modules()], ids=lambda name: name or "model")
def test_a_module_that_raises_leaves_nothing(
    name: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = residual_net(), picture()
    expected = LayerCAV(net, "flatten").attribute(x, 1)
    error = kind("on purpose")
    with monkeypatch.context() as patched:
        inject(patched, net.get_submodule(name), error)
        for attribution in ways_through(name):
            with left_as_it_was(net, x):
                with pytest.raises(kind) as caught:
                    attribution(net, x)
                assert caught.value is error
    assert torch.equal(LayerCAV(net, "flatten").attribute(x, 1), expected)


def test_a_hook_or_rule_that_raises_leaves_nothing() -> None:
    net, x = residual_net(), picture()
    error = InjectedError("on purpose")

    def fail(*_: Any) -> Any:
        raise error

    with left_as_it_was(net, x):
        with pytest.raises(InjectedError) as caught:
            LayerCAV(net, "stem", rules={F.relu: fail}).attribute(x, 1)
        assert caught.value is error
    for register in (net.block2.register_forward_hook, net.block2.register_forward_pre_hook):
        handle = register(fail)
        for attribution in ATTRIBUTIONS.values():
            with left_as_it_was(net, x):
                with pytest.raises(InjectedError) as caught:
                    attribution(net, x)
                assert caught.value is error
        handle.remove()


def test_a_refusal_leaves_nothing() -> None:
    net, x = residual_net(), picture()
    net.block2.norm.train()
    for attribution in ATTRIBUTIONS.values():
        with left_as_it_was(net, x), pytest.raises(RuntimeError, match=r"call model\.eval"):
            attribution(net, x)
    net.block2.norm.eval()
    with left_as_it_was(net, x), pytest.raises(ValueError, match="out of range"):
        LayerCAV(net, ["stem", "block1"]).attribute_targets(x, [0, 99])


# Inputs --------------------------------------------------------------------------------------------------------------


def leaf_with_grad() -> torch.Tensor:
    x = picture().requires_grad_()
    x.grad = torch.ones_like(x)
    return x


def part_of_a_graph() -> torch.Tensor:
    return picture().requires_grad_() * 2


def view_of_a_leaf() -> torch.Tensor:
    return torch.cat([picture(), picture()]).requires_grad_()[1:3]


def parameter() -> torch.Tensor:
    return nn.Parameter(picture())


def with_attribute_and_hook() -> torch.Tensor:
    x = picture().requires_grad_()
    x.label = "mine"
    x.register_hook(lambda grad: grad * 100)
    return x


INPUTS = [picture, leaf_with_grad, part_of_a_graph, view_of_a_leaf, parameter, with_attribute_and_hook]


@every_attribution
@pytest.mark.parametrize("make", INPUTS)
def test_the_input_is_left_as_it_was(attribution: Attribution, make: Callable[[], torch.Tensor]) -> None:
    net, x = residual_net(), make()
    expected = tensors_of(attribution(net, x.detach().clone()))
    shared = [x] if x._base is None else [x, x._base]
    with left_as_it_was(net, *shared):
        found = tensors_of(attribution(net, x))
    for one, other in zip(found, expected, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other)


def test_further_arguments_are_left_as_they_were() -> None:
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self.linear(x * scale[:, 1:]) + shift.view(-1)[:3]

    net = Conditioned()
    x, scale, shift = torch.randn(2, 4), torch.randn(1, 5, requires_grad=True), torch.randn(3, 3)
    with left_as_it_was(net, x, scale, shift):
        _, delta = InputCAV(net).attribute(x, 0, (scale, shift), return_convergence_delta=True)
        LayerCAV(net, "linear").attribute(x, 0, (scale, shift), attribute_to_layer_input=True)
    assert delta.abs().max() < 1e-4


# Failures midway -----------------------------------------------------------------------------------------------------


def test_an_exception_at_every_module_of_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    net.conv1.weight.requires_grad_(False)
    net.fc.bias.grad = torch.ones(4)
    x = fixed(1, 3, 32, 32).float()
    layers = LayerCAV(net, ["conv1", "layer1", "layer3.0"])
    inputs = InputCAV(net)
    expected = [layers.attribute(x, 1), inputs.attribute(x, 1)]
    names = [name for name, _ in net.named_modules()]
    assert len(names) == 68
    bits = state_of(net, x)
    # Comparing 45 MB each time would take longest: torch counts the writes, and all bits are compared at the end.
    count_writes = lambda tensor: tensor._version if tensor.numel() > 10_000 else bits_of(tensor)  # noqa: E731
    monkeypatch.setattr(traces, "bits_of", count_writes)
    before = state_of(net, x)
    for name in names:
        for attribution, kind in ((layers, InjectedError), (inputs, KeyboardInterrupt)):
            error = kind(name)
            with monkeypatch.context() as patched:
                inject(patched, net.get_submodule(name), error)
                with pytest.raises(kind) as caught:
                    attribution.attribute(x, 1, return_convergence_delta=True)
            assert caught.value is error
        assert state_of(net, x) == before, name
    monkeypatch.undo()
    assert state_of(net, x) == bits
    assert all(map(torch.equal, tensors_of([layers.attribute(x, 1), inputs.attribute(x, 1)]), tensors_of(expected)))


def test_an_input_that_belongs_to_a_graph_of_the_users() -> None:
    net = small_net()

    def run(explained: bool) -> list[torch.Tensor]:
        leaf = samples().requires_grad_()
        shared = leaf * 2
        loss = net(shared)[:, 1].sum()
        if explained:
            for x in (leaf, shared):
                with left_as_it_was(net, x):
                    maps = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
                assert not any(one.requires_grad for one in maps)
        loss.backward()
        gradients = [leaf.grad, *(parameter.grad for parameter in net.parameters())]
        net.zero_grad()
        return gradients

    assert all(map(torch.equal, run(True), run(False)))
