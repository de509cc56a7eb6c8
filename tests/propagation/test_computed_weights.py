"""Weights that a module computes: quantized, scaled and parametrized weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from captum_cav import InputCAV, LayerCAV, NeuronCAV, verify
from captum_cav.errors import (
    ModelError,
    UnsupportedOperationError,
)
from tests.support.attributions import check_same_as
from tests.support.networks import fixed
from tests.support.small_networks import samples, seeded, small_net
from tests.support.tensors import assert_same
from tests.support.traces import left_as_it_was


def quantized(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and said so
        made: nn.Module = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    return made


def test_quantized_modules() -> None:
    net, x = quantized(small_net()), samples()
    said = (
        r"'linear_dynamic' in module '{}' \(Linear\) runs on quantized numbers.*pass the float model that it was made"
    )
    # Neither the state of their packed weights nor what they compute can be looked at bit by bit.
    for attribution, first in ((InputCAV(net), "0"), (LayerCAV(net, "0"), "2"), (LayerCAV(net, "1"), "2")):
        with pytest.raises(NotImplementedError, match=said.format(first)) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is UnsupportedOperationError
    assert_same(LayerCAV(net, "2").attribute(x, 1), torch.tensor([[0.0, 1.0, 0.0]] * 2))


def test_weights_of_integers_that_the_model_scales() -> None:
    class Dequantizing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.stored * self.scale, self.bias)

    plain, x = small_net(), samples()
    net = copy.deepcopy(plain)
    for index in (0, 2):
        net[index].__class__ = Dequantizing
        net[index].scale = 0.01
        net[index].stored = (plain[index].weight.detach() / 0.01).round().to(torch.int8)
        plain[index].weight.data = net[index].stored * 0.01
    check_same_as(plain, net, x)


class LowRank(nn.Module):
    """A parametrization as LoRA's: a small update of a weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(fixed(2, inputs, seed=2))
        self.up = nn.Parameter(fixed(outputs, 2, seed=3))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def old_spectral_norm(layer: nn.Linear) -> None:
    nn.utils.spectral_norm(layer)


PARAMETRIZATIONS: dict[str, Callable[[nn.Linear], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm, old": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "spectral_norm, old": old_spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "low rank": lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape)),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
    "pruned twice": lambda layer: [prune.l1_unstructured(layer, "weight", 0.2) for _ in range(2)],
    "pruned with the bias": lambda layer: prune.global_unstructured(
        [(layer, "weight"), (layer, "bias")], prune.L1Unstructured, amount=0.3
    ),
    "by a hook": lambda layer: computed_by_a_hook(layer),
}


def computed_by_a_hook(layer: nn.Linear) -> None:
    """The weight is an attribute that a hook of the user computes before each call."""
    raw = nn.Parameter(layer.weight.detach().clone())
    del layer.weight
    layer.register_parameter("raw", raw)

    def compute(module: nn.Module, args: Any) -> None:
        module.weight = module.raw * 2

    layer.register_forward_pre_hook(compute)
    compute(layer, ())


def changed_by(change: Callable[[nn.Linear], Any]) -> nn.Sequential:
    net = small_net().double()
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old functions are deprecated
        change(net[0])
        change(net[2])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3)
    net.train()(samples().double())  # some change their weight when they are run
    return net.eval()


@pytest.mark.parametrize("chosen", [None, "gamma"])
@pytest.mark.parametrize("change", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS)
def test_parametrized_layers(change: Callable[[nn.Linear], Any], chosen: str | None) -> None:
    net, plain, x = changed_by(change), small_net().double(), samples().double()
    net(x)
    before = plain[0].weight.detach().clone()
    for index in (0, 2):
        plain[index].weight.data = net[index].weight.detach().clone()
        plain[index].bias.data = net[index].bias.detach().clone()
    assert (plain[0].weight - before).abs().max() > 1e-3
    state = {key: value.clone() for key, value in net.state_dict().items()}
    found, expected = (
        [LayerCAV(model, "0", rules=chosen).attribute(x, 1), *InputCAV(model, rules=chosen).attribute(x, 1)]
        for model in (net, plain)
    )
    assert_same(found, expected)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_norm, old"])
def test_the_power_iteration_of_spectral_norm_is_not_continued(kind: str) -> None:
    net, x = changed_by(PARAMETRIZATIONS[kind]).train(), samples().double()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    said = (
        r"^module '0.*' \(\w+\) is in training mode, where it .* changes its statistics; call model\.eval\(\) first\.$"
    )
    for attribution in (LayerCAV(net, "0"), LayerCAV(net, "2"), InputCAV(net)):
        with pytest.raises(RuntimeError, match=said) as caught:
            attribution.attribute(x, 1)
        assert type(caught.value) is ModelError
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    net(x)
    assert not all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


# What stays on the model ---------------------------------------------------------------------------------------------


ATTRIBUTING: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "inputs": lambda net, x: InputCAV(net).attribute(x, 1),
    "layer, delta": lambda net, x: LayerCAV(net, "0").attribute(x, 1, return_convergence_delta=True),
    "neuron": lambda net, x: NeuronCAV(net, "2").attribute(x, 1),
    "rules": lambda net, x: InputCAV(net, rules="gamma").attribute(x, 1),
    "verify": lambda net, x: verify(net, x, 1),
    "with a graph": lambda net, x: InputCAV(net).attribute(x, 1, grad_kwargs={"create_graph": True}),
}
every_way = pytest.mark.parametrize("attribute", ATTRIBUTING.values(), ids=ATTRIBUTING)


def gradients_of(net: nn.Module, *outputs: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of all parameters. None of them may be missing."""
    return list(torch.autograd.grad(sum(output.sum() for output in outputs), list(net.parameters())))


@every_way
@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
def test_derived_weights_have_their_graph_afterwards(kind: str, attribute: Callable[..., Any]) -> None:
    net, x = changed_by(PARAMETRIZATIONS[kind]).eval(), samples().double()
    expected = gradients_of(net, net(x), net[0].weight, net[2].weight)
    net(x)
    attribute(net, x)
    assert net[2].weight.requires_grad
    found = gradients_of(net, net(x), net[0].weight, net[2].weight)
    assert all(map(torch.equal, found, expected))


@every_way
@pytest.mark.parametrize("kind", ["weight_norm, old", "spectral_norm, old", "pruned", "weight_norm"])
@pytest.mark.parametrize("enabled", [True, False], ids=["", "under no_grad"])
def test_derived_weights_are_the_very_tensors_that_they_were(
    kind: str, attribute: Callable[..., Any], enabled: bool
) -> None:
    net, x = changed_by(PARAMETRIZATIONS[kind]).eval(), samples().double()
    loss = net(x).sum()
    with torch.set_grad_enabled(enabled or attribute is ATTRIBUTING["with a graph"]), left_as_it_was(net, x):
        attribute(net, x)
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["attention", "recurrent"])
def test_derived_weights_of_larger_layers_are_the_very_tensors_that_they_were(kind: str) -> None:
    class Larger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            is_attention = kind == "attention"
            self.layer = nn.MultiheadAttention(4, 2, batch_first=True) if is_attention else nn.LSTM(4, 3)
            prune.l1_unstructured(self.layer, "in_proj_weight" if is_attention else "weight_hh_l0", 0.4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.layer(x, x, x) if kind == "attention" else self.layer(x))[0].sum(1)

    net, x = Larger().double().eval(), fixed(2, 3, 4)
    expected = gradients_of(net, net(x))
    net(x)
    weight = net.layer.in_proj_weight if kind == "attention" else net.layer.weight_hh_l0
    for attribution in (InputCAV(net), LayerCAV(net, "layer")):
        attribution.attribute(x, 1)
        assert weight is (net.layer.in_proj_weight if kind == "attention" else net.layer.weight_hh_l0)
        assert weight.requires_grad
    assert all(map(torch.equal, gradients_of(net, net(x)), expected))


@every_way
@pytest.mark.parametrize("filled", [False, True])
def test_cached_parametrizations_keep_their_graph(attribute: Callable[..., Any], filled: bool) -> None:
    net, x = changed_by(PARAMETRIZATIONS["weight_norm"]), samples().double()
    expected = gradients_of(net, net(x))
    with parametrize.cached():
        if filled:
            net(x)
        attribute(net, x)
        found = gradients_of(net, net(x))
    assert all(map(torch.equal, found, expected))


class Caches(nn.Module):
    """Keeps weights that it computes from its parameters in many places."""

    class Beside:
        weight: torch.Tensor | None = None

    def __init__(self, *, caching: bool = True) -> None:
        super().__init__()
        self.caching = caching
        self.scales = nn.ParameterList(nn.Parameter(fixed(4, seed=seed)) for seed in range(6))
        self.down, self.up = nn.Parameter(fixed(2, 4, seed=7)), nn.Parameter(fixed(3, 2, seed=8))
        self.last = nn.Linear(4, 3).double()
        self.attribute: torch.Tensor | None = None
        self.is_ready, self.placeholder = False, torch.zeros(4, dtype=torch.float64)
        self.by_name: dict[str, torch.Tensor] = {}
        self.in_list: list[torch.Tensor] = []
        self.beside = self.Beside()
        self.register_buffer("merged", torch.zeros(3, 4, dtype=torch.float64))
        self.written: torch.Tensor | None = None

    def fill(self) -> None:
        zero, one, two, three, four, five = self.scales
        self.attribute, self.placeholder = zero * 2, one.exp()
        self.by_name["weight"], self.in_list, self.beside.weight = two.tanh(), [three * 3], four * 4
        self.merged = self.last.weight + self.up @ self.down
        self.written = five.clone()
        self.written += five
        self.written[1:].mul_(five[1:])
        self.is_ready = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.is_ready and self.caching):
            self.fill()
        weights = self.attribute, self.placeholder, self.by_name["weight"], self.in_list[0], self.beside.weight
        for weight in (*weights, self.written):
            x = x * weight + weight.abs().mean()
        return F.linear(x, self.merged, self.last.bias)


@pytest.mark.parametrize("filled", [False, True])
def test_caches_that_the_forward_pass_fills_have_their_graph(filled: bool) -> None:
    x = samples().double()
    for chosen in (None, "gamma"):
        net, plain = Caches(), Caches(caching=False)
        plain.load_state_dict(net.state_dict())
        expected = gradients_of(plain, plain(x))
        if filled:
            net(x)
        found, wanted = (
            InputCAV(model, rules=chosen).attribute(x, 1, return_convergence_delta=True) for model in (net, plain)
        )
        assert_same(found, wanted)
        assert found[1].abs().max() < 1e-10
        assert verify(net, x, 1).ok
        assert all(map(torch.equal, gradients_of(net, net(x)), expected))


def test_under_no_grad_a_cache_is_as_after_a_forward_pass_under_no_grad() -> None:
    net, x = Caches(), samples().double()
    with torch.no_grad():
        InputCAV(net).attribute(x, 1)
    assert not net.attribute.requires_grad


def test_another_value_stays_with_what_the_model_noted_of_it() -> None:
    """A weight for each task, and which task the weight is for."""

    class Tasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(fixed(2, 3, 4))
            self.task, self.weight = -1, None

        def forward(self, x: torch.Tensor, task: int) -> torch.Tensor:
            if task != self.task:
                self.task, self.weight = task, self.weights[task] * 2
            return F.linear(x, self.weight)

    net, x = Tasks(), samples().double()
    net(x, 0)
    InputCAV(net).attribute(x, 1, 1)
    assert torch.equal(net(x, 1), F.linear(x, net.weights[1] * 2))
    assert net.weight.requires_grad


def test_buffers_and_attributes_that_require_grad() -> None:
    class Requiring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4).double()
            self.register_buffer("leaf", fixed(4).requires_grad_())
            self.register_buffer("made", self.leaf * 2)
            self.attribute = self.made + self.first.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x * self.leaf + self.made) * self.attribute

    net, x = Requiring(), samples().double()
    kept = net.leaf, net.made, net.attribute
    graphs = [one.grad_fn for one in kept]
    for attribute in (InputCAV(net), LayerCAV(net, "first")):
        with left_as_it_was(net, x):
            _, delta = attribute.attribute(x, 1, return_convergence_delta=True)
        assert delta.abs().max() < 1e-12
    assert all(one is two for one, two in zip(kept, (net.leaf, net.made, net.attribute), strict=True))
    assert graphs == [one.grad_fn for one in kept]
    assert all(one.requires_grad for one in kept)


# What the model notes of its activations -----------------------------------------------------------------------------


class Noting(nn.Module):
    """Notes its activations in an attribute and in a buffer, and an auxiliary loss, as a mixture of experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().double()
        self.register_buffer("memory", torch.zeros(2, 5, dtype=torch.float64))
        self.register_buffer("last", torch.zeros(2, 3, dtype=torch.float64))
        self.hidden: torch.Tensor | None = None
        self.loss: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = self.net[0](x)
        self.memory[:] = self.hidden
        self.loss = self.hidden.pow(2).mean()
        self.last = self.net[2](self.net[1](self.memory))
        return self.last


def test_activations_that_the_model_notes_have_no_graph_of_contributions() -> None:
    net, x = Noting(), samples().double()
    found = InputCAV(net).attribute(x, 1)
    assert_same(found, InputCAV(net.net).attribute(x, 1))
    assert torch.equal(net.hidden, net.net[0](x))
    for noted in (net.hidden, net.memory, net.loss, net.last):
        assert not noted.requires_grad
    assert net.memory is dict(net.named_buffers())["memory"]
    InputCAV(net).attribute(x, 1)


def test_a_loss_that_the_model_noted_before_keeps_its_graph() -> None:
    net, x = Noting(), samples().double()
    output = net(x)
    loss = net.loss
    expected = torch.autograd.grad(loss, net.net[0].weight, retain_graph=True)
    net.memory = net.memory.detach()
    LayerCAV(net, "net.0").attribute(x, 1)
    assert net.loss is loss
    assert all(map(torch.equal, torch.autograd.grad(output.sum() * 0 + net.loss, net.net[0].weight), expected))


# Contributions written into what was computed from parameters --------------------------------------------------------


INTO_COMPUTED: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "a part": (
        lambda x, a: (a * 2).index_copy_(0, torch.tensor([0, 2]), x[0, [0, 2]]).tanh(),
        lambda x, a: torch.stack([x[0, 0], a[1] * 2, x[0, 2], a[3] * 2]).tanh(),
    ),
    "setitem": (
        lambda x, a: set_item(a.exp(), x),
        lambda x, a: torch.cat([x[0, :2], a[2:].exp()]).sigmoid() * torch.cat([x[0, :2], a[2:].exp()]),
    ),
    "a view": (lambda x, a: add_to_view(a * 3, x), lambda x, a: torch.cat([a[:1] * 3, a[1:] * 3 + x[0, 1:]]).tanh()),
    "out": (lambda x, a: torch.mul(x[0], 2, out=a * 1).tanh(), lambda x, a: (x[0] * 2).tanh()),
}


def set_item(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y[:2] = x[0, :2]
    return y.sigmoid() * y


def add_to_view(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    y[1:] += x[0, 1:]
    return y.tanh()


@pytest.mark.parametrize("kind", INTO_COMPUTED)
def test_contributions_are_written_into_a_computed_constant(kind: str) -> None:
    a, x = nn.Parameter(fixed(4, seed=3)), samples(1).double()
    writing, twin = INTO_COMPUTED[kind]
    found, without_parameters, expected = (
        InputCAV(lambda x, f=f, a=a: f(x, a).sum()[None]).attribute(x, return_convergence_delta=True)
        for f, a in ((writing, a), (writing, a.detach()), (twin, a))
    )
    assert_same(found, without_parameters)
    assert_same(found[0], expected[0])
    assert a.requires_grad
    assert a.is_leaf


def test_contributions_are_not_written_into_a_parameter() -> None:
    net, x = small_net(), samples()

    def model(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            net[0].weight[0] = x[0]
        return net(x)

    before = net[0].weight.detach().clone()
    said = r"^'setitem' writes values that carry contributions into a tensor that was there before the model ran, a Par"
    with pytest.raises(ModelError, match=said):
        InputCAV(model).attribute(x, 1)
    assert torch.equal(net[0].weight, before)
