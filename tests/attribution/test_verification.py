"""What ``verify`` finds, and that it finds nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import captum_cav
from captum_cav import rules, verify
from captum_cav.errors import CAVTypeError, LayerError, ModelError, OptionError, TargetError
from tests.support.networks import fixed, network, shape_of
from tests.support.traces import left_as_it_was


class Gated(nn.Module):
    """A gate, a norm, an activation written over its input, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.norm, self.last = (
            nn.Linear(4, 5),
            nn.Linear(5, 5),
            nn.LayerNorm(5),
            nn.Linear(5, 3),
        )

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        y = F.silu(self.first(x))
        y = self.norm(y + y * torch.sigmoid(self.gate(y)) * scale)
        y[:, 1] = 0.3
        return self.last(F.relu_(y.tanh()))


@pytest.fixture
def net() -> Gated:
    torch.manual_seed(0)
    return Gated().double().eval()


@pytest.mark.parametrize("name", ["functional", "reused", "lstm", "transformer_encoder", "mobilenet_v3_small"])
def test_nothing_is_found_where_nothing_is_wrong(name: str) -> None:
    net, x = network(name), torch.randn(2, *shape_of(name), generator=torch.Generator().manual_seed(3))
    with left_as_it_was(net, x):
        found = verify(net, x, 3)
    assert found.ok, found
    assert found.operations > 5
    assert abs(found.delta) < 1e-3
    assert found.score == pytest.approx(float(net(x)[:, 3].detach().sum()), rel=1e-4)
    assert str(found).startswith(f"ok: {found.operations} operations, score ")


def test_cancellation_is_told_beside_the_sum() -> None:
    """4 of 5 parts of the score are taken back by 4 others: absolute contributions are nine times what is left."""
    weight = torch.tensor([[5.0, -4.0]])
    found = verify(lambda x: F.linear(x, weight)[:, 0], torch.ones(3, 2))
    assert found.cancellation == pytest.approx(9.0)
    assert "absolute contributions 9.0 times that" in str(found)
    assert verify(lambda x: x.sum(1), torch.ones(3, 2)).cancellation == pytest.approx(1.0)


@pytest.mark.parametrize("preset", ["gamma", "epsilon", "alpha2_beta1", "epsilon_plus_flat", "cp_lrp", "attnlrp"])
def test_presets_conserve_at_every_operation(net: Gated, preset: str) -> None:
    found = verify(net, fixed(3, 4), 1, rules=preset)
    assert found.ok, found
    assert abs(found.delta) < 1e-9


def test_an_operation_that_does_not_conserve_is_named_with_what_it_leaves(net: Gated) -> None:
    x = fixed(2, 4)
    found = verify(net, x, 1, rules={F.silu: rules.GradientRule()})
    (leak,) = found.leaks
    assert (leak.module, leak.operation, leak.rule) == ("Gated", "silu", "GradientRule()")
    assert not found.ok
    # By hand: what comes out of the activation less what goes into it.
    captured: dict[str, torch.Tensor] = {}

    class Activation(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(x)

    class Split(Gated):
        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            y = self.act(self.first(x))
            y = self.norm(y + y * torch.sigmoid(self.gate(y)) * scale)
            y[:, 1] = 0.3
            return self.last(F.relu_(y.tanh()))

    split = Split()
    split.act = Activation()
    split = split.double().eval()
    split.load_state_dict(net.state_dict())
    options = {"rules": {F.silu: rules.GradientRule()}, "normalize": None}
    for name, at_input in (("out", False), ("in", True)):
        captured[name] = captum_cav.LayerCAV(split, "act", **options).attribute(x, 1, attribute_to_layer_input=at_input)
    scores = net(x)[:, 1].detach().abs().sum()
    assert leak.residual == pytest.approx(float((captured["out"].sum() - captured["in"].sum()) / scores), rel=1e-9)
    assert found.delta == pytest.approx(leak.residual, rel=1e-9)
    assert f"silu in Gated (GradientRule()) leaves {leak.residual:+.1e} of the score" in str(found)


def test_every_unknown_operation_is_listed_once_with_a_key_that_works() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = torch.special.i1(torch.special.i0(x))
        return x.sum(1)

    x = fixed(2, 4)
    found = verify(model, x)
    assert [one.operation for one in found.unknown] == ["special_i0", "special_i1"]
    assert not found.ok
    assert "special_i1 in no module has no rule; define one, as rules={torch.special.i1: rules.pass_" in str(found)
    keys = {eval(one.key, {"torch": torch}): rules.pass_through for one in found.unknown}  # noqa: S307
    again = verify(model, x, rules=keys)
    assert again.ok
    assert not again.unknown


def test_verify_finds_a_rule_that_changes_the_value(net: Gated) -> None:
    def wrong(operation: rules.Operation) -> Any:
        return 1.1 * operation.by_default()

    found = verify(net, fixed(2, 4), 1, rules={F.silu: wrong})
    assert found.value > 1e-3
    assert not found.ok


def test_verify_finds_a_rule_that_treats_a_nonlinear_operation_as_linear() -> None:
    found = verify(lambda x: x.cumprod(1)[:, -1], fixed(2, 4), rules={torch.cumprod: rules.linear})
    (leak,) = found.leaks
    assert leak.operation == "cumprod"
    assert leak.residual == pytest.approx(found.delta)


def test_it_begins_at_a_layer_where_the_inputs_are_indices() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).double()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(CAVTypeError, match="carry no contributions"):
        verify(net, ids, 1)
    found = verify(net, ids, 1, layer="0")
    assert found.ok
    assert found.operations == 1, "flattening is a view, which has nothing to share out"
    assert abs(found.delta) < 1e-12


def test_further_arguments_reach_the_model(net: Gated) -> None:
    found = verify(net, fixed(2, 4), 1, 3.0)
    assert found.ok
    assert found.score == pytest.approx(float(net(fixed(2, 4), 3.0)[:, 1].detach().sum()))


def test_what_bypasses_a_layer_is_no_leak() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x + self.layer(x))

    torch.manual_seed(0)
    found = verify(Beside().double(), fixed(2, 4), 1, layer="layer")
    assert found.ok
    assert abs(found.delta) > 1e-3


def test_a_model_that_cannot_be_followed_is_refused(net: Gated) -> None:
    with pytest.raises(ModelError, match="is in training mode"):
        verify(nn.Sequential(net, nn.Dropout()).train(), fixed(2, 4), 1)


def test_a_users_tolerance(net: Gated) -> None:
    found = verify(net, fixed(2, 4), 1, rules={F.silu: rules.GradientRule()}, tolerance=10.0)
    assert found.ok
    assert found.tolerance == 10.0


class Twice(nn.Module):
    """Reaches one layer twice, and beside the first time there is another path."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(torch.tanh(self.layer(x))))


@pytest.fixture
def twice() -> Twice:
    torch.manual_seed(0)
    return Twice().double()


@pytest.mark.parametrize(("call", "operations"), [(0, 3), (1, 1), (-1, 1), (-2, 3)])
def test_the_call_of_a_layer_that_is_reached_twice(twice: Twice, call: int, operations: int) -> None:
    x = fixed(2, 4)
    found = verify(twice, x, 1, layer="layer", call=call)
    assert found.ok, found
    assert found.operations == operations
    explain = captum_cav.LayerCAV(twice, "layer", call=call, normalize=None)
    contributions, delta = explain.attribute(x, 1, return_convergence_delta=True)
    total = twice(x)[:, 1].detach().abs().sum()
    assert found.cancellation == pytest.approx(float(contributions.abs().sum() / total))
    assert found.delta == pytest.approx(float(delta.sum() / total), abs=1e-12)
    # A leak between the calls is behind the first call alone.
    bent = verify(twice, x, 1, layer="layer", call=call, rules={torch.tanh: rules.GradientRule()})
    assert bent.ok == (operations == 1)


@pytest.mark.parametrize(
    ("layer", "call", "error"),
    [("layer", None, LayerError), ("layer", 2, LayerError), ("unused", None, LayerError), ("layer", "1", CAVTypeError)],
)
def test_a_call_that_is_not_there_is_refused_as_by_an_attribution(
    twice: Twice, layer: str, call: Any, error: type[Exception]
) -> None:
    messages = []
    for attempt in (
        lambda: captum_cav.LayerCAV(twice, layer, call=call).attribute(fixed(2, 4), 1),
        lambda: verify(twice, fixed(2, 4), 1, layer=layer, call=call),
    ):
        with pytest.raises(error) as raised:
            attempt()
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_a_call_without_a_layer_is_refused(twice: Twice) -> None:
    with pytest.raises(OptionError, match=r"call is 0 without a layer; expected layer=, whose call is meant"):
        verify(twice, fixed(2, 4), 1, call=0)


def test_a_call_on_which_the_score_does_not_depend_is_refused_as_by_an_attribution() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first: torch.Tensor = self.layer(x)
            self.layer(x + 1)
            return first

    net, messages = Idle().double(), []
    for attempt in (
        lambda: captum_cav.LayerCAV(net, "layer", call=1).attribute(fixed(2, 4), 1),
        lambda: verify(net, fixed(2, 4), 1, layer="layer", call=1),
    ):
        with pytest.raises(ModelError, match="the score does not depend on layer 'layer'") as raised:
            attempt()
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_where_something_bypasses_the_layer_nobody_can_tell_what_is_lost() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x + self.layer(x))

    torch.manual_seed(0)
    net, x = Beside().double(), fixed(2, 4)
    assert verify(net, x, 1, layer="layer").lost is None
    behind = verify(net, x, 1, layer="last")
    assert behind.lost == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like])
def test_random_numbers_of_the_model_are_drawn_once(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = verify(lambda x: (x + draw(x)) @ torch.eye(4, dtype=x.dtype), fixed(2, 4), 1)
    assert found.ok, found
    assert found.value == 0


class Busy(nn.Module):
    """Draws random numbers, and writes into its input and into a further argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        scale += 1
        y = self.norm(self.first(x)) * scale
        return self.last(y * torch.rand(y.shape, dtype=y.dtype))


def test_everything_of_the_users_is_as_before() -> None:
    torch.manual_seed(0)
    net = Busy().double().train()
    net.norm.eval()
    net.first.weight.requires_grad_(False)
    calls: list[str] = []
    net.last.register_forward_hook(lambda *_: calls.append("forward"))
    net.last.register_full_backward_hook(lambda *_: calls.append("backward"))
    net.last.weight.register_hook(lambda gradient: calls.append("gradient"))
    net(fixed(2, 4), torch.ones(5, dtype=torch.float64)).sum().backward()
    assert set(calls) == {"forward", "backward", "gradient"}
    calls.clear()
    x, scale = fixed(2, 4).requires_grad_(), torch.ones(5, dtype=torch.float64)
    with left_as_it_was(net, x, scale):
        found = verify(net, x, 1, scale)
    assert found.ok, found
    assert found.value == 0.0
    assert set(calls) == {"forward"}
    with left_as_it_was(net, x, scale), torch.no_grad():
        assert not verify(net, x, 1, scale, rules={nn.Linear: lambda operation: 2 * operation.value()}).ok
    with left_as_it_was(net, x, scale), pytest.raises(TargetError):
        verify(net, x, 7, scale)
