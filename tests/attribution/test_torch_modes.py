"""Inference mode, gradient mode, frozen parameters: what torch is told about gradients."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from captum_cav.errors import (
    InputError,
    ModelError,
    TargetError,
    UnsupportedOperationError,
)
from tests.support.attributions import every_attribution
from tests.support.errors import raising, refused
from tests.support.small_networks import Apply, every_way, picture, residual_net, samples, small_net
from tests.support.tensors import tensors_of
from tests.support.traces import left_as_it_was

Attribution = Callable[..., Any]


# Inputs --------------------------------------------------------------------------------------------------------------


@every_way
def test_inference_mode_is_refused(attribute: Attribution) -> None:
    net, x = small_net(), samples()
    said = ("under torch.inference_mode()", "leave it", "torch.no_grad() instead")
    with torch.inference_mode(), refused(RuntimeError, *said, model=net):
        attribute(net, x)


@every_way
def test_parameters_made_under_inference_mode_are_refused(attribute: Attribution) -> None:
    with torch.inference_mode():
        net = small_net()
    said = ("parameters were created under torch.inference_mode()", "build or load it outside")
    with refused(RuntimeError, *said):
        attribute(net, samples())


@every_way
def test_inputs_made_under_inference_mode_are_refused_and_their_clone_is_not(attribute: Attribution) -> None:
    net = small_net()
    with torch.inference_mode():
        x = samples() + 0
    said = ("inputs was created under torch.inference_mode()", "pass inputs.clone()")
    with refused(ValueError, *said, model=net):
        attribute(net, x)
    torch.testing.assert_close(attribute(net, x.clone()), attribute(net, samples()))


# Random numbers, grad mode -------------------------------------------------------------------------------------------


@every_attribution
@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "enable_grad"])
def test_grad_mode_does_not_matter_and_is_restored(attribution: Attribution, enabled: bool) -> None:
    net, x = residual_net(), picture()
    expected = tensors_of(attribution(net, x))
    with torch.set_grad_enabled(enabled), left_as_it_was(net, x):
        found = tensors_of(attribution(net, x))
        assert torch.is_grad_enabled() is enabled
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("output", ["(N,)", "(N, 1)"])
def test_a_model_of_one_score_works_without_grad_mode(output: str) -> None:
    def score(x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if output == "(N,)" else x.sum(1, keepdim=True)

    with torch.no_grad():
        ratios = InputCAV(score).attribute(torch.tensor([[1.0, 3.0]]))
    torch.testing.assert_close(ratios, torch.tensor([[0.25, 0.75]]))


# Modes of the model and of torch -------------------------------------------------------------------------------------


def test_frozen_parameters_or_none() -> None:
    net, x = small_net(), samples()
    expected = LayerCAV(net, "0").attribute(x, 0)
    net.requires_grad_(False)
    with left_as_it_was(net, x):
        assert torch.equal(LayerCAV(net, "0").attribute(x, 0), expected)
    bare = nn.Sequential(nn.Identity(), nn.ReLU(), Apply(lambda x: x.sum(1)))
    ratios = LayerCAV(bare, "0").attribute(torch.tensor([[1.0, -2.0, 3.0]]))
    assert torch.equal(ratios, torch.tensor([[0.25, 0.0, 0.75]]))


def test_under_no_grad() -> None:
    net, x = small_net(), samples()
    expected = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
    with torch.no_grad():
        found = [LayerCAV(net, "0").attribute(x, 0), InputCAV(net).attribute(x, 0)]
        assert not torch.is_grad_enabled()
        with pytest.raises(TargetError):
            InputCAV(net).attribute(x)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert all(map(torch.equal, found, expected))


def test_inference_mode() -> None:
    net, x = small_net(), samples()
    said = r"attribute\(\) was called under torch\.inference_mode\(\).*leave it, or use torch\.no_grad\(\) instead"
    with torch.inference_mode():
        with raising(ModelError, RuntimeError, said, net):
            InputCAV(net).attribute(x, 0)
        made_there, model_made_there = samples() + 0, small_net()
    with raising(
        InputError, ValueError, r"inputs was created under torch\.inference_mode\(\); pass inputs\.clone\(\)", net
    ):
        InputCAV(net).attribute(made_there, 0)
    assert torch.equal(InputCAV(net).attribute(made_there.clone(), 0), InputCAV(net).attribute(x, 0))
    with raising(ModelError, RuntimeError, r"the model's parameters were created under.*; build or load it outside\."):
        InputCAV(model_made_there).attribute(x, 0)


# Tensors of inference mode on the model ------------------------------------------------------------------------------


class Cached(nn.Module):
    """A model with tensors that a prediction made: a buffer, an attribute, and a cache that its own forward fills."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.anchors = small_net(), torch.empty(0)
        self.register_buffer("scale", torch.linspace(0.5, 2, 4))
        self.register_buffer("mask", torch.tensor([1.0, 2.0, -1.0]))
        self.gain = nn.Parameter(torch.linspace(1, 2, 3))

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        if self.anchors.shape != (3,):
            self.anchors = torch.linspace(-1, 1, 3) + 0
        y = self.net(x * self.scale if offset is None else x * self.scale + offset)
        masked = y * (self.mask * self.gain)
        return torch.cat([masked * self.anchors.exp(), torch.stack([self.anchors[:2]] * 2)], 1)


def predicted() -> Cached:
    """The model after a prediction in inference mode, which also replaced its buffers."""
    net = Cached().eval()
    with torch.inference_mode():
        net.scale, net.mask = net.scale * 1, net.mask.clone()
        net(samples())
    assert net.anchors.is_inference()
    assert net.scale.is_inference()
    return net


def check_like_normal(attribute: Callable[[nn.Module], Any]) -> None:
    found, expected = attribute(predicted()), attribute(Cached().eval())
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))


@pytest.mark.parametrize("chosen", [None, "gamma", "epsilon_plus_flat", "alpha2_beta1"])
def test_tensors_of_inference_mode_on_the_model_count_like_others(chosen: str | None) -> None:
    x = samples()
    check_like_normal(lambda net: InputCAV(net, rules=chosen).attribute(x, 1, return_convergence_delta=True))
    check_like_normal(
        lambda net: LayerCAV(net, ["net.0", "net"], rules=chosen).attribute(x, 2, return_convergence_delta=True)
    )
    check_like_normal(lambda net: NeuronCAV(net, "net.0", rules=chosen).attribute(x, 1))


def test_a_model_with_tensors_of_inference_mode_is_verified_and_left_as_it_was() -> None:
    net, x = predicted(), samples()
    assert verify(net, x, 0).ok
    before = {**vars(net), **dict(net.named_buffers())}
    InputCAV(net).attribute(x, 0)
    assert all(before[name] is one for name, one in {**vars(net), **dict(net.named_buffers())}.items())
    assert net.scale.is_inference()


def test_additional_arguments_of_inference_mode_count_like_others() -> None:
    with torch.inference_mode():
        offset = torch.linspace(0, 1, 4) + 0
    x = samples()
    check_like_normal(lambda net: InputCAV(net).attribute(x, 1, offset, return_convergence_delta=True))
    found, expected = (InputCAV(Cached().eval()).attribute(x, 1, one) for one in (offset, offset.clone()))
    assert torch.equal(found, expected)


def test_the_model_cannot_write_into_a_tensor_of_inference_mode() -> None:
    net = predicted()

    def writing(x: torch.Tensor) -> torch.Tensor:
        net.scale[:2] = x[0, :2]
        return net(x)

    with raising(ModelError, RuntimeError, r"^'setitem' writes values that carry contributions into a tensor that was"):
        InputCAV(writing).attribute(samples(), 1)


@every_way
def test_the_advice_for_parameters_of_inference_mode_works(attribute: Attribution) -> None:
    with torch.inference_mode():
        net = small_net()
    assert torch.equal(attribute(copy.deepcopy(net), samples()), attribute(small_net(), samples()))


# Inside transforms of torch ------------------------------------------------------------------------------------------


def inside_dual_level(explain: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
    with forward_ad.dual_level():
        return explain(x)


TRANSFORMS: dict[str, tuple[Callable[..., Any], str]] = {
    "vmap": (lambda explain, x: torch.func.vmap(lambda one: explain(one[None])[0])(x), "torch.func.vmap"),
    "grad": (lambda explain, x: torch.func.grad(lambda x: explain(x).sum())(x), "torch.func.grad, vjp or jacrev"),
    "vjp": (lambda explain, x: torch.func.vjp(explain, x), "torch.func.grad, vjp or jacrev"),
    "jacrev": (lambda explain, x: torch.func.jacrev(explain)(x), "torch.func.grad, vjp or jacrev"),
    "jvp": (lambda explain, x: torch.func.jvp(explain, (x,), (x,)), "torch.func.jvp or jacfwd"),
    "jacfwd": (lambda explain, x: torch.func.jacfwd(explain)(x), "torch.func.jvp or jacfwd"),
    "functionalize": (lambda explain, x: torch.func.functionalize(explain)(x), "torch.func.functionalize"),
    "dual level": (inside_dual_level, "torch.autograd.forward_ad.dual_level"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@every_way
def test_an_attribution_inside_a_transform_is_refused_by_name(attribute: Attribution, transform: str) -> None:
    net, x = small_net(), samples()
    act, name = TRANSFORMS[transform]
    said = f"attribute() was called inside {name}, which would transform the propagation too; call it outside."
    with refused(RuntimeError, said, 'grad_kwargs={"create_graph": True}', model=net):
        act(lambda x: attribute(net, x), x)


def test_the_advice_for_attributions_inside_transforms_works() -> None:
    net, x = small_net(), samples().requires_grad_()
    one_by_one = torch.cat([InputCAV(net).attribute(sample[None], 1) for sample in x.detach()])
    torch.testing.assert_close(InputCAV(net).attribute(x, 1), one_by_one)
    ratios = InputCAV(net).attribute(x, 1, grad_kwargs={"create_graph": True})
    assert torch.autograd.grad(ratios.sum(), x)[0].abs().sum() > 0


def test_a_model_that_is_called_with_other_parameters() -> None:
    net, x = small_net(), samples()
    others = {name: parameter.detach() * 2 for name, parameter in net.named_parameters()}
    twin = small_net()
    twin.load_state_dict(others)

    def called(x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, others, (x,))

    with left_as_it_was(net, x):
        assert torch.equal(InputCAV(called).attribute(x, 1), InputCAV(twin).attribute(x, 1))
        assert torch.equal(LayerCAV(called, net[0]).attribute(x, 1), LayerCAV(twin, "0").attribute(x, 1))
    explaining = Apply(lambda x: InputCAV(net).attribute(x, 1), net)
    with left_as_it_was(net, x):
        found = torch.func.functional_call(explaining, {f"used.0.{name}": one for name, one in others.items()}, (x,))
    assert torch.equal(found, InputCAV(twin).attribute(x, 1))


def test_a_model_that_transforms_functions_is_refused_by_name() -> None:
    net, x = small_net(), samples()
    with raising(UnsupportedOperationError, NotImplementedError, r"could not see \(a scripted function, torch\.func"):
        InputCAV(lambda x: torch.func.vmap(net)(x)).attribute(x, 1)
    with raising(UnsupportedOperationError, NotImplementedError, r"^The model takes derivatives in its forward pass"):
        InputCAV(lambda x: torch.func.vmap(torch.func.grad(lambda one: net(one).sum()))(x)).attribute(x, 1)


def test_an_attribution_inside_an_export_is_refused() -> None:
    net, x = small_net(), samples()
    explaining = Apply(lambda x: InputCAV(net).attribute(x, 1), net)
    said = r"^attribute\(\) was called inside torch\.export, which records no numbers"
    with raising(ModelError, RuntimeError, said), pytest.MonkeyPatch.context() as patch:
        # The export of torch 2.9 leaves a hook of its own in this registry when it raises.
        patch.setattr(torch.nn.modules.module, "_global_buffer_registration_hooks", OrderedDict())
        torch.export.export(explaining, (x,), strict=False)
    assert torch.export.export(net, (x,)).module()(x).shape == (2, 3)
