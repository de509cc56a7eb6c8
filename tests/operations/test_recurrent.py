"""Recurrent layers as a whole give what their steps give one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import captum_cav
from captum_cav import InputCAV, LayerCAV, rules
from captum_cav.propagation.operation import Operation
from tests.support.networks import fixed

STEPS, SAMPLES, FEATURES, UNITS = 5, 2, 3, 4
KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


class Model(nn.Module):
    """Scores from some of the results of a recurrent layer."""

    weights: torch.Tensor

    def __init__(self, kind: str, options: dict[str, Any], reads: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = KINDS[kind](FEATURES, UNITS, **options).double().eval()
        self.reads = reads
        self.register_buffer("weights", fixed(200, seed=3))

    def results(self, x: torch.Tensor, *states: torch.Tensor) -> list[torch.Tensor]:
        output, hidden = self.layer(x, *([states if len(states) == 2 else states[0]] if states else []))
        of_sample = output if self.layer.batch_first else output.transpose(0, 1)
        last = hidden if isinstance(hidden, tuple) else (hidden,)
        return [of_sample, *(part.transpose(0, 1) for part in last)]

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        x = x if self.layer.batch_first else x.transpose(0, 1)
        results = [one.flatten(1) for one in self.results(x, *(state.transpose(0, 1).contiguous() for state in states))]
        read = {"output": results[:1], "last": results[-1:], "all": results}[self.reads]
        joined = torch.cat(read, 1)
        return joined @ self.weights[: joined.shape[1]]


def both(cav: Any, *args: Any) -> tuple[Any, Any]:
    """The map of a model as a whole, and its map step by step. With shares of constants, the steps run one by one."""
    return cav.attribute(*args), cav.attribute(*args, return_convergence_delta=True)[0]


@pytest.mark.parametrize(
    ("form", "reads"), [("plain", "output"), ("plain", "last"), *((form, "all") for form in FORMS)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_as_a_whole_is_its_steps(kind: str, form: str, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Model(kind, FORMS[form], reads), fixed(SAMPLES, STEPS, FEATURES)
    x[0, :2] = 0.0  # Without a bias the cells of these steps are exactly 0.
    whole, by_steps = both(InputCAV(model, normalize=None), x)
    torch.testing.assert_close(whole, by_steps, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(Operation, "decompose", None)
    torch.testing.assert_close(InputCAV(model, normalize=None).attribute(x), whole)


@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_carry_contributions(kind: str, form: str) -> None:
    model, x = Model(kind, FORMS[form], "all"), fixed(SAMPLES, STEPS, FEATURES)
    cells = model.layer.num_layers * (2 if model.layer.bidirectional else 1)
    states = tuple(fixed(SAMPLES, cells, UNITS, seed=seed) for seed in range(7, 9 if kind == "lstm" else 8))
    for whole, by_steps in zip(*both(InputCAV(model), (x, *states)), strict=True):
        torch.testing.assert_close(whole, by_steps, rtol=1e-9, atol=1e-12)
    # As constants, the states have no contributions, but change those of the inputs.
    whole, by_steps = (InputCAV(model).attribute(x, None, states), InputCAV(lambda x: model(x, *states)).attribute(x))
    torch.testing.assert_close(whole, by_steps)
    torch.testing.assert_close(*both(InputCAV(lambda x: model(x, *states)), x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_may_write_into_what_a_layer_took_and_gave(kind: str) -> None:
    layer, x = Model(kind, {"batch_first": True}, "output").layer, fixed(SAMPLES, STEPS, FEATURES)

    def model(x: torch.Tensor, writes: bool) -> torch.Tensor:
        given = x * 2
        output = layer(given)[0]
        if writes:
            given.mul_(3.0)
            output.relu_()
            return output.flatten(1).sum(1) + given.flatten(1).sum(1)
        return output.relu().flatten(1).sum(1) + (given * 3.0).flatten(1).sum(1)

    expected = InputCAV(lambda x: model(x, False)).attribute(x)
    torch.testing.assert_close(InputCAV(lambda x: model(x, True)).attribute(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rules_for_parts_of_a_layer_hold(kind: str) -> None:
    model, x = Model(kind, {}, "output"), fixed(SAMPLES, STEPS, FEATURES)
    plain = InputCAV(model).attribute(x)
    for key in (nn.functional.linear, "layer"):
        assert not torch.allclose(InputCAV(model, rules={key: rules.GammaRule(0.5)}).attribute(x), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_behind_a_recurrent_layer_is_not_the_first(kind: str) -> None:
    layer = KINDS[kind](FEATURES, UNITS, batch_first=True).double().eval()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(UNITS, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(self.layer(x)[0][:, -1])
            return scores

    net, x = Net(), fixed(SAMPLES, STEPS, FEATURES)
    given = {nn.Linear: [rules.AtInput(rules.FlatRule()), rules.ZPlusRule()]}
    for one in (LayerCAV(net, "layer", rules=given), LayerCAV(net, "layer", rules={nn.Linear: rules.ZPlusRule()})):
        contributions = one.attribute(x, 0)[0]
        assert one.explain_rules(x)[-1].rule == "AlphaBetaRule(alpha=1.0, beta=0.0)", one.explain_rules(x)
        assert torch.isfinite(contributions).all()


def test_a_recorded_layer_is_replayed_for_any_number_of_samples() -> None:
    model = Model("lstm", FORMS["plain"], "all")
    recorded = captum_cav.compile(InputCAV(model), dynamic_batch=True)
    recorded.attribute(fixed(2, 2, FEATURES))
    x = fixed(4, 2, FEATURES, seed=9)
    assert torch.equal(recorded.attribute(x), InputCAV(model).attribute(x))
