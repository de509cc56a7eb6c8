"""Hooks of the user run as before, stay where they are, and do not change the map."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from captum_cav.errors import (
    ModelError,
)
from tests.support.attributions import every_attribution
from tests.support.errors import raising
from tests.support.networks import fixed
from tests.support.small_networks import net_around, picture, residual_net, samples, seeded, small_net
from tests.support.tensors import assert_same, bits_of, tensors_of
from tests.support.traces import left_as_it_was

Attribution = Callable[[nn.Module, torch.Tensor], Any]


class Recorder:
    """Hooks of every kind, and what they saw, in order."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[tuple[str, str, list[bytes]]] = []
        everywhere = torch.nn.modules.module
        self.handles = [
            everywhere.register_module_forward_pre_hook(self.note("everywhere before")),
            everywhere.register_module_forward_hook(self.note("everywhere after")),
        ]
        for module in net.modules():
            self.handles += [
                module.register_forward_pre_hook(self.note("before")),
                module.register_forward_pre_hook(self.note("first of all"), prepend=True),
                module.register_forward_pre_hook(self.note("with kwargs before"), with_kwargs=True),
                module.register_forward_hook(self.note("after")),
                module.register_forward_hook(self.note("with kwargs after"), with_kwargs=True),
                module.register_forward_hook(self.note("always"), always_call=True),
            ]
        self.names = {module: name for name, module in net.named_modules()}

    def note(self, kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, *values: Any) -> None:
            tensors = tensors_of([value for value in values if not isinstance(value, dict)])
            self.seen.append((self.names[module], kind, [bits_of(tensor) for tensor in tensors]))

        return hook

    def taken(self) -> list[tuple[str, str, list[bytes]]]:
        seen, self.seen = self.seen, []
        return seen


@every_attribution
def test_hooks_of_the_user_run_in_order_and_see_what_they_saw_before(
    attribution: Attribution, request: pytest.FixtureRequest
) -> None:
    net, x = residual_net(), picture()
    without = tensors_of(attribution(net, x))
    recorder = Recorder(net)
    try:
        with torch.no_grad():
            net(x)
        expected = recorder.taken()
        with left_as_it_was(net, x):
            found = tensors_of(attribution(net, x))
        seen = recorder.taken()
    finally:
        for handle in recorder.handles:
            handle.remove()
    if request.node.callspec.id.startswith("neuron"):  # the pass ends at the layer
        assert {name for name, _, _ in seen} == set(recorder.names.values())
        expected = expected[: len(seen)]
    assert seen == expected
    for one, other in zip(found, without, strict=True):
        assert torch.equal(one, other)


class Affine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3 - 1


def test_a_hook_of_the_user_that_changes_a_value_is_part_of_the_model() -> None:
    net, bare, x = residual_net().double(), residual_net().double(), picture().double()
    net.block1.register_forward_hook(lambda module, args, output: output * 3 - 1)
    net.head.register_forward_pre_hook(lambda module, args: (args[0].tanh(),))
    before, after = [bare.stem, bare.block1], [bare.block2, bare.pool, bare.flatten]
    twin = nn.Sequential(*before, Affine(), *after, nn.Tanh(), bare.head)
    for name, place in (("block1", "2"), ("flatten", "5"), ("stem", "0")):
        found, expected = LayerCAV(net, name).attribute(x, 1), LayerCAV(twin, place).attribute(x, 1)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(InputCAV(net).attribute(x, 1), InputCAV(twin).attribute(x, 1))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_backward_hooks_of_the_user_stay_and_do_not_change_the_map() -> None:
    net, x = residual_net(), picture()
    expected = LayerCAV(net, ["stem.0", "block1.conv", "head"]).attribute(x, 1)
    for module in (net.block1.conv, net.pool, net.head):  # torch refuses them where an output is written over
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    with left_as_it_was(net, x):
        found = LayerCAV(net, ["stem.0", "block1.conv", "head"]).attribute(x, 1)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_forward_hooks_are_kept_in_their_order() -> None:
    net, x = small_net(), samples()
    order: list[tuple[str, str]] = []
    names = {module: name for name, module in net.named_modules()}

    def note(what: str) -> Callable[..., None]:
        return lambda module, *_: order.append((names[module], what))

    everywhere = torch.nn.modules.module
    handles = [
        everywhere.register_module_forward_pre_hook(note("everywhere, before")),
        everywhere.register_module_forward_hook(note("everywhere, after")),
        net[1].register_forward_hook(note("first")),
        net[1].register_forward_hook(note("second"), with_kwargs=True),
        net[1].register_forward_hook(note("before all"), prepend=True, always_call=True),
        net[1].register_forward_pre_hook(note("before"), with_kwargs=True),
        net.register_forward_hook(note("the model's")),
    ]
    try:
        net(x)
        expected, order[:] = order[:], []
        with left_as_it_was(net, x):
            for attribution in (LayerCAV(net, ["0", "1"]), InputCAV(net)):
                attribution.attribute(x, 1)
                assert order == expected
                order.clear()
        net(x)
        assert order == expected
    finally:
        for handle in handles:
            handle.remove()
    assert len(expected) == 13


def keep(output: torch.Tensor) -> None:
    output.detach().abs().mean().item()
    torch.histc(output.detach().float())


def check_finite(output: torch.Tensor) -> None:
    assert not output.isnan().any()
    assert bool((output.abs() < 1e9).all())


LOOKING: dict[str, Callable[[torch.Tensor], Any]] = {
    "detached statistics": keep,
    "statistics": lambda output: output.mean().detach(),
    "statistics of channels": lambda output: output.mean((2, 3)) if output.dim() == 4 else None,
    "copies": lambda output: output.clone(),
    "checks": check_finite,
    "hooks": lambda output: output.register_hook(lambda gradient: None) if output.requires_grad else None,
    "shapes": lambda output: (output.shape, output.requires_grad, output.dtype, output.unsqueeze(0).shape),
}


class Watched(nn.Module):
    """Every kind of layer that rules look around: what is in front of it, what is behind it."""

    def __init__(self, look: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        with seeded():
            self.convolutions = nn.ModuleList(nn.Conv2d(size, 5, 3) for size in (3, 5))
            self.norms = nn.ModuleList(nn.BatchNorm2d(5) for _ in range(2))
            self.head = nn.Linear(5, 3)
            for norm in self.norms:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                norm.running_mean.normal_()
        self.look = look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            self.look(x)
            x = norm(x)
            self.look(x)
            x = x.relu()
            self.look(x)
        return self.head(x.mean((2, 3)))


def sees_nothing(output: torch.Tensor) -> None:
    pass


@pytest.mark.parametrize("chosen", [None, "gamma", "epsilon", "epsilon_plus_flat", "alpha2_beta1", "pinpoint"])
@pytest.mark.parametrize("look", LOOKING.values(), ids=LOOKING)
def test_looking_at_activations_does_not_change_the_map(look: Callable[..., Any], chosen: str | None) -> None:
    """Neither in a hook nor in the model's own forward pass."""
    plain, looking = Watched(sees_nothing).double().eval(), Watched(look).double().eval()
    hooked, x = copy.deepcopy(plain), fixed(2, 3, 8, 8)
    for module in hooked.modules():
        module.register_forward_hook(lambda module, args, output: (look(output), None)[1])
    expected = InputCAV(plain, rules=chosen).attribute(x, 1, return_convergence_delta=True)
    for net in (hooked, looking):
        found = InputCAV(net, rules=chosen).attribute(x, 1, return_convergence_delta=True)
        # To rounding: the gamma rule needs fewer sums where nothing but a ReLU could have taken the output.
        assert_same(found, expected)


def test_counting_operations_does_not_change_the_map() -> None:
    net, x = Watched(sees_nothing).double().eval(), fixed(2, 3, 8, 8)
    explain = InputCAV(net, rules="gamma")
    expected = explain.attribute(x, 1)
    with FlopCounterMode(display=False) as counter:
        found = explain.attribute(x, 1)
    assert_same(found, expected)
    assert counter.get_total_flops() > 0


def halve(*arguments: Any) -> Any:
    """A backward hook of any kind: of tensors, of modules, of modules before."""
    gradients = arguments[-1] if len(arguments) < 3 else arguments[1]
    if isinstance(gradients, torch.Tensor):
        return gradients / 2
    return tuple(None if one is None else one / 2 for one in gradients)


class Hooking(nn.Module):
    """Scales gradients by hooks that it registers in its forward pass."""

    def __init__(self, called: list[Any]) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(lambda gradient: (self.called.append(1), halve(gradient))[1])
        y = F.gelu(x)
        if y.requires_grad:
            y.retain_grad()
            y.register_hook(lambda gradient: (self.called.append(1), halve(gradient))[1])
        return y


def test_hooks_on_tensors_in_the_forward_pass_are_for_gradients() -> None:
    called: list[int] = []
    net, plain, x = net_around(Hooking(called)), net_around(nn.GELU()), samples().double()
    found, expected = (
        [LayerCAV(model, "first").attribute(x, 1), *InputCAV(model).attribute(x, 1, return_convergence_delta=True)]
        for model in (net, plain)
    )
    assert all(map(torch.equal, found, expected))
    assert not called, "a contribution is no gradient"
    net(x)[:, 1].sum().backward()
    plain(x)[:, 1].sum().backward()
    assert len(called) == 2
    assert_same(net.first.weight.grad * 4, plain.first.weight.grad)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("kind", ["module", "module, before", "everywhere", "everywhere, before"])
def test_backward_hooks_do_not_change_the_map(kind: str) -> None:
    net, x, called = net_around(nn.GELU(), nn.Tanh()), samples().double(), []
    attributions = [LayerCAV(net, "first"), LayerCAV(net, "middle.0"), InputCAV(net)]
    expected = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
    everywhere = torch.nn.modules.module
    register = {
        "module": net.middle[0].register_full_backward_hook,
        "module, before": net.middle[0].register_full_backward_pre_hook,
        "everywhere": everywhere.register_module_full_backward_hook,
        "everywhere, before": everywhere.register_module_full_backward_pre_hook,
    }[kind]
    handle = register(lambda *arguments: (called.append(1), halve(*arguments))[1])
    try:
        with left_as_it_was(net, x):
            found = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
        assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
        assert not called
        net(x).sum().backward()
        assert called, "it is the user's still"
    finally:
        handle.remove()


def test_a_backward_hook_of_the_old_kind_is_refused() -> None:
    net = net_around(nn.Identity(), nn.GELU())
    net.middle[1].register_backward_hook(lambda module, before, after: None)
    with raising(ModelError, RuntimeError, r"module 'middle\.1' \(GELU\).*register_full_backward_hook", net):
        InputCAV(net).attribute(samples().double(), 1)


# Hooks in the graph --------------------------------------------------------------------------------------------------


def doubled(*gradients: Any) -> tuple[Any, ...]:
    """A hook of a node: of the gradients of its inputs if there are two arguments, else of its outputs."""
    return tuple(None if one is None else one * 2 for one in gradients[0])


def reach_down(node: Any) -> Any:
    """The first node before a node that has nodes before it, or the node itself."""
    return next((before for before, _ in node.next_functions if before is not None), node)


def scale_saved(node: Any) -> None:
    for name in dir(node):
        if name.startswith("_raw_saved_") and isinstance(getattr(node, name), torch._C._autograd.SavedTensor):
            getattr(node, name).register_hooks(lambda tensor: tensor * 2, lambda tensor: tensor)


NODE_HOOKS: dict[str, Callable[[torch.Tensor], Any]] = {
    "after a node": lambda y: y.grad_fn.register_hook(doubled),
    "before a node": lambda y: y.grad_fn.register_prehook(doubled),
    "before the node before": lambda y: reach_down(y.grad_fn).register_prehook(doubled),
    "by the edge": lambda y: torch.autograd.graph.get_gradient_edge(y).node.register_hook(doubled),
    "of a view": lambda y: y[:, 1:].grad_fn.register_hook(doubled),
    "saved tensors": lambda y: scale_saved(y.grad_fn),
    "several tensors": lambda y: torch.autograd.graph.register_multi_grad_hook([y, y.exp()], print),
    "any of them": lambda y: torch.autograd.graph.register_multi_grad_hook([y], print, mode="any"),
    "post-accumulate": lambda y: y.register_post_accumulate_grad_hook(print),
}
THE_USERS = ("several tensors", "any of them", "post-accumulate")


@pytest.mark.parametrize("kind", NODE_HOOKS)
@pytest.mark.parametrize("where", ["a hook", "the model"])
def test_hooks_in_the_graph_do_not_change_the_map(kind: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    def act(y: torch.Tensor) -> None:
        if y.requires_grad:
            NODE_HOOKS[kind](y)

    net, x = net_around(nn.Identity(), nn.GELU()), samples().double()
    attributions = [LayerCAV(net, ["first", "middle.0"]), InputCAV(net), InputCAV(net, rules="gamma")]
    expected = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
    if where == "a hook":
        net.first.register_forward_hook(lambda module, args, output: act(output))
        net.middle[1].register_forward_hook(lambda module, args, output: act(output))
    else:
        net.middle[0].forward = lambda y: (act(y), y)[1]
    found = [attribution.attribute(x, 1, return_convergence_delta=True) for attribution in attributions]
    assert all(map(torch.equal, tensors_of(found), tensors_of(expected)))
    assert NeuronCAV(net, "last").attribute(x, 1).isfinite().all()
    assert verify(net, x, 1).ok
    assert capsys.readouterr().out == ""


def test_the_hooks_in_the_graph_would_change_a_gradient() -> None:
    """So the test above can fail."""
    for kind in set(NODE_HOOKS) - {*THE_USERS, "of a view"}:
        net, x = net_around(nn.Identity(), nn.GELU()), samples().double().requires_grad_()
        (expected,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
        net.first.register_forward_hook(lambda module, args, output, kind=kind: (NODE_HOOKS[kind](output), None)[1])
        net.middle[1].register_forward_hook(lambda module, args, output, kind=kind: (NODE_HOOKS[kind](output), None)[1])
        (found,) = torch.autograd.grad(net(x)[:, 1].sum(), x)
        assert not torch.allclose(found, expected), kind


def test_hooks_on_parameters_stay_the_users() -> None:
    called: list[str] = []
    kept: list[Any] = []  # A parameter does not keep its node.

    class Registering(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not called:
                called.append("registered")
                self.weight.register_hook(lambda gradient: (called.append("tensor"), gradient * 2)[1])
                self.weight.register_post_accumulate_grad_hook(lambda weight: called.append("accumulated"))
                node = self.weight.view_as(self.weight).grad_fn.next_functions[0][0]
                node.register_hook(lambda *_: called.append("node"))
                kept.append(node)
            return super().forward(x)

    net, x = small_net(), samples()
    expected = InputCAV(net).attribute(x, 1)
    net[2].__class__ = Registering
    assert torch.equal(InputCAV(net).attribute(x, 1), expected)
    assert called == ["registered"]
    net(x)[:, 1].sum().backward()
    assert sorted(called) == ["accumulated", "node", "registered", "tensor"]


def test_looking_at_nodes_does_not_fail() -> None:
    seen: list[Any] = []

    def look(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        node = output.grad_fn
        seen.append((node is None) is not output.requires_grad)
        if node is not None:
            seen.append(isinstance(node.name(), str))
            seen.append(isinstance(node, torch.autograd.graph.Node))
            seen.append(len(node.next_functions) == 1)

    net, x = small_net(), samples()
    expected = LayerCAV(net, "1").attribute(x, 1)
    for module in net:
        module.register_forward_hook(look)
    assert torch.equal(LayerCAV(net, "1").attribute(x, 1), expected)
    assert all(seen)
    assert len(seen) == 3 + 3  # The hook of the layer itself comes before the tap.
