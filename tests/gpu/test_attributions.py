"""What else there is on the device: several targets, options, neurons, derivatives of maps, measures, verification."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from captum_cav import InputCAV, LayerCAV, NeuronCAV, metrics, rules, verify
from captum_cav.ablation import ablate
from tests.gpu.networks import FEW, SAMPLES, Case, on
from tests.support.ids import without_address

CPU = torch.device("cpu")


def close(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_many_targets_of_any_form(name: str, device: torch.device) -> None:
    here, there = on(name, device), on(name, CPU)
    each = torch.arange(SAMPLES) % 5
    targets = [0, -1, each.tolist(), each.to(device), torch.tensor(2, device=device)]

    def explain(case: Case) -> list[Any]:
        cav = LayerCAV(case.model, case.layers[-1], normalize=None)
        return cav.attribute_targets(case.inputs, targets, return_convergence_delta=True)

    for (found, delta), (expected, its_delta) in zip(explain(here), explain(there), strict=True):
        assert delta.device.type == device.type
        for mine, its in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            close(mine, its)
        close(delta, its_delta, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "score"},
        {"normalize": "abs"},
        {"score": "log_odds", "normalize": None},
        {"rules": {torch.nn.ReLU: rules.StopRule()}, "normalize": None, "score": "log_odds"},
        {"rules": {torch.nn.Linear: rules.ZBoxRule(-3.0, 3.0)}},
        {"rules": {torch.nn.Linear: rules.WSquareRule()}},
        {"rules": {torch.add: rules.AdditionRule("magnitude")}},
        {"rules": {torch.nn.functional.max_pool2d: rules.UniformPoolingRule()}},
        {"rules": {torch.nn.Conv2d: lambda operation: rules.linear(operation)}},
    ],
    ids=without_address,
)
def test_options_and_rules(options: dict[str, Any], device: torch.device) -> None:
    here, there = on("functional", device), on("functional", CPU)
    found, expected = (InputCAV(case.model, **options).attribute(case.inputs, 1) for case in (here, there))
    close(found, expected)


@pytest.mark.parametrize("selector", [(2, 3, 4), (slice(0, 2), 3, 4), lambda y: y.mean((1, 2, 3))], ids=without_address)
def test_neurons(selector: Any, device: torch.device) -> None:
    here, there = on("functional", device), on("functional", CPU)
    found, expected = (
        NeuronCAV(case.model, "second", normalize=None).attribute(case.inputs, selector) for case in (here, there)
    )
    close(found, expected)


def test_layer_inputs_sums_and_positive_parts(device: torch.device) -> None:
    options = {"attribute_to_layer_input": True, "attr_dim_summation": True, "relu_attributions": True}
    found, expected = (
        LayerCAV(case.model, "second").attribute(case.inputs, 1, **options)
        for case in (on("functional", device), on("functional", CPU))
    )
    close(found, expected)


def test_maps_that_can_be_differentiated(device: torch.device) -> None:
    def gradient(case: Case) -> torch.Tensor:
        inputs = case.inputs.clone().requires_grad_()
        cav = LayerCAV(case.model, "second", normalize=None)
        ratios = cav.attribute(inputs, 0, grad_kwargs={"create_graph": True})
        return torch.autograd.grad(ratios.square().sum(), inputs)[0]

    close(gradient(on("functional", device)), gradient(on("functional", CPU)))


def test_explanation_of_rules_is_the_same(device: torch.device) -> None:
    here, there = on("transformer_encoder", device), on("transformer_encoder", CPU)
    tables = [str(InputCAV(case.model).explain_rules(case.inputs)) for case in (here, there)]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", FEW)
def test_every_operation_is_verified(name: str, device: torch.device) -> None:
    here = on(name, device)
    layer = None if here.inputs.is_floating_point() else here.layers[0]
    found = verify(here.model, here.inputs, 0, layer=layer)
    assert found.ok, str(found)


@pytest.mark.parametrize("name", metrics.MEASURES)
def test_measures(name: str, device: torch.device) -> None:
    measure = metrics.MEASURES[name]

    def measured(case: Case) -> torch.Tensor:
        def explain(model: Any, inputs: torch.Tensor, targets: Any) -> torch.Tensor:
            return InputCAV(model, normalize="abs").attribute(inputs, targets).sum(1)

        target = [0, 0, 1, 1, 2, 2, 3, 3]  # grids take pictures of one class and of others
        inputs = torch.cat([case.inputs, case.inputs.flip(2), case.inputs.flip(3)])[:8]
        maps = explain(case.model, inputs, target)
        given = {
            "maps": maps,
            "others": maps.flip(1) + maps,
            "masks": inputs.mean(1) > 0,
            "scores": case.model(inputs).detach()[range(8), target],
            "model": case.model,
            "inputs": inputs,
            "target": target,
            "explain": explain,
        }
        return measure(**{needed: given[needed] for needed in measure.needs})

    found = measured(on("reused", device))
    low, high = measure.range
    assert bool(((found >= low) & (found <= high)).all())
    if name != "model_randomisation":  # which draws on the model's device
        close(found.double(), measured(on("reused", CPU)).double(), 1e-6)


def test_infidelity_and_sensitivity_of_a_layer(device: torch.device) -> None:
    here = on("reused", device)
    contributions = LayerCAV(here.model, "again", normalize=None, call=-1).attribute(here.inputs, 0)

    def fade(units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(units, 0.5), units * 0.5

    options = {"layer": "again", "call": -1, "target": 0}
    found = metrics.infidelity(here.model, fade, here.inputs, contributions, **options)
    assert found.device.type == device.type
    # Behind the last ReLU the network is linear: halving the units takes half of what they gave.
    assert float(found.max()) < 1e-12
    explain = InputCAV(here.model, normalize=None).attribute
    assert bool(torch.isfinite(metrics.sensitivity_max(explain, here.inputs, target=0, n_perturb_samples=2)).all())


def test_ablation(device: torch.device) -> None:
    mask = torch.zeros(7, 7, dtype=torch.bool)
    mask[2:5, 1:3] = True
    found, expected = (
        ablate(case.model, case.inputs, "second", mask.to(case.inputs.device)).after
        for case in (on("functional", device), on("functional", CPU))
    )
    close(found, expected)
