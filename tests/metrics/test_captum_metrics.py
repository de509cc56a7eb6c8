"""Infidelity and sensitivity of attributions of inputs and of layers, against the definitions written out as loops."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum import metrics as captum_metrics
from captum.attr import (
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVTypeError, InputError, LayerError, OptionError, TargetError
from captum_cav.metrics import infidelity, sensitivity_max
from tests.support.ids import without_address

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients")
X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 2.0, -1.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def assert_zero(found: torch.Tensor) -> None:
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-18)


class Fade:
    """Takes a random share of each unit away; notes what it gave."""

    def __init__(self, channels: bool = False) -> None:
        self.channels = channels
        self.given: list[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = []

    def __call__(self, units: Any) -> Any:
        units = units if isinstance(units, tuple) else (units,)
        shares = tuple(torch.rand_like(unit[:, :1] if self.channels else unit) for unit in units)
        perturbed = tuple(unit * (1 - share) for unit, share in zip(units, shares, strict=True))
        # Copies: whoever gets them may write into them.
        self.given.append((shares, tuple(unit.clone() for unit in perturbed)))
        return (shares, perturbed) if len(units) > 1 else (shares[0], perturbed[0])


@torch.no_grad()
def by_definition(
    fade: Fade,
    head: Callable[..., torch.Tensor],
    units: tuple[torch.Tensor, ...],
    attributions: tuple[torch.Tensor, ...],
    scaled: bool = False,
) -> torch.Tensor:
    """The mean of ``(I phi - (f(a) - f(a - I)))^2``, a sample and a perturbation at a time.

    ``head`` takes the units of one sample and its number, and gives its score.
    """
    samples, result = len(units[0]), []
    for number in range(samples):
        pairs = []
        score = head(*(unit[number : number + 1] for unit in units), number)
        for shares, perturbed in fade.given:
            times = len(perturbed[0]) // samples
            for place in range(number * times, (number + 1) * times):
                product = sum(
                    float((share[place] * part[number]).sum()) for share, part in zip(shares, attributions, strict=True)
                )
                moved = head(*(unit[place : place + 1] for unit in perturbed), number)
                pairs.append((product, float(score - moved)))
        factor = 1.0
        if scaled:
            factor = sum(a * b for a, b in pairs) / sum(a * a for a, _ in pairs)
        result.append(sum((factor * a - b) ** 2 for a, b in pairs) / len(pairs))
    return torch.tensor(result, dtype=torch.float64)


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)).double()


class Residual(nn.Module):
    """A layer of two tensors, in-place operations right behind it, and a way around it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 3)
        self.pair = Pair()

    def forward(self, x: torch.Tensor, scale: Any = 1.0, mode: str = "plus") -> torch.Tensor:
        x = self.stem(x)
        first, more = self.pair(signal=x)
        return self.behind(first, more["value"], x, scale, mode)

    def behind(self, a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, scale: Any, mode: str) -> torch.Tensor:
        a.mul_(scale)
        b.relu_()
        return self.head(a * b + x if mode == "plus" else a * b - x)


class Pair(nn.Module):
    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        return torch.tanh(signal), {"name": "second", "count": torch.tensor(3), "value": signal * 2}


# Infidelity --------------------------------------------------------------------------------------------------------


def test_a_linear_model_has_none_with_shares_of_the_inputs() -> None:
    weight = torch.tensor([[2.0, -1.0, 0.5], [1.0, 4.0, -2.0]], dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False).double()
    model.weight.data = weight

    def quarters(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.randint(0, 5, inputs.shape) / 4.0
        return shares, inputs * (1 - shares)

    for attributions in (
        X * weight[1],
        InputCAV(model, normalize=None).attribute(X, 1),
        InputXGradient(model).attribute(X, 1),
    ):
        # All numbers are sums of few powers of two, so nothing is rounded.
        assert infidelity(model, quarters, X, attributions, target=1).tolist() == [0.0, 0.0]
    # Of ratios, whose unit is the score, and of gradients it is not none, and normalize does not care for a factor.
    ratios = InputCAV(model).attribute(X, 1)
    assert infidelity(model, quarters, X, ratios, target=1).min() > 1e-3
    assert infidelity(model, quarters, X, weight[[1, 1]], target=1).min() > 1e-3
    assert infidelity(model, quarters, X, ratios, target=1, normalize=True).abs().max() < 1e-12


def test_a_linear_model_has_none_with_differences_and_gradients() -> None:
    model = nn.Linear(3, 1).double()

    def differences(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn_like(inputs)
        return noise, inputs - noise

    gradient = model.weight.detach().expand(2, 3)
    assert_zero(infidelity(model, differences, X, gradient))
    assert infidelity(model, differences, X, X * gradient).min() > 1e-3


@pytest.mark.parametrize("max_examples", [None, 6], ids=["together", "in parts"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "normalize"])
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
def test_a_layer_is_perturbed_and_the_score_followed_from_there(
    of_input: bool, scaled: bool, max_examples: int | None
) -> None:
    model, fade, targets = net(), Fade(), [2, 0]
    attributions = LayerCAV(model, "1", normalize=None).attribute(X, targets, attribute_to_layer_input=of_input)
    found = infidelity(
        model,
        fade,
        X,
        attributions,
        target=targets,
        n_perturb_samples=7,
        max_examples_per_batch=max_examples,
        normalize=scaled,
        layer=model[1],
        attribute_to_layer_input=of_input,
    )
    assert [len(shares[0]) for shares, _ in fade.given] == ([14] if max_examples is None else [6, 6, 2])
    before, behind = (model[:1], model[1:]) if of_input else (model[:2], model[2:])
    expected = by_definition(
        fade, lambda a, sample: behind(a)[0, targets[sample]], (before(X),), (attributions,), scaled
    )
    assert_same(found, expected)
    assert not found.requires_grad
    assert found.min() > 1e-6


def test_behind_the_layer_a_linear_rest_has_none() -> None:
    model = net()[:3]
    for method in (LayerCAV(model, "1", normalize=None), LayerGradientXActivation(model, model[1])):
        assert_zero(infidelity(model, Fade(), X, method.attribute(X, 2), target=2, layer="1"))
    assert infidelity(model, Fade(), X, LayerActivation(model, model[1]).attribute(X), target=2, layer="1").min() > 1e-3


@pytest.mark.parametrize(
    "additional",
    [None, 2.5, (2.5, "minus"), (torch.tensor([[2.0], [3.0]], dtype=torch.float64), "minus"), (torch.tensor(2.0),)],
    ids=str,
)
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
def test_several_tensors_what_bypasses_them_and_further_arguments(of_input: bool, additional: Any) -> None:
    model, fade = Residual().double(), Fade()
    scale, mode = (*(additional if isinstance(additional, tuple) else (additional or 1.0,)), "plus")[:2]
    attributions = LayerCAV(model, "pair", normalize=None).attribute(
        X, 1, additional, attribute_to_layer_input=of_input
    )
    found = infidelity(
        model,
        fade,
        X,
        attributions,
        additional_forward_args=additional,
        target=1,
        max_examples_per_batch=8,
        layer="pair",
        attribute_to_layer_input=of_input,
    )
    around = model.stem(X).detach()

    def head(*arguments: Any) -> torch.Tensor:
        *units, sample = arguments
        factor = scale[sample : sample + 1] if isinstance(scale, torch.Tensor) and scale.dim() else scale
        a, b = (torch.tanh(units[0]), units[0] * 2) if of_input else (unit.clone() for unit in units)
        return model.behind(a, b, around[sample : sample + 1], factor, mode)[0, 1]

    units = (around,) if of_input else (torch.tanh(around), around * 2)
    parts = attributions if isinstance(attributions, tuple) else (attributions,)
    assert len(parts) == len(units)
    assert_same(found, by_definition(fade, head, units, parts))
    assert found.min() > 1e-6


def test_a_dimension_that_was_summed_is_perturbed_as_one() -> None:
    torch.manual_seed(5)
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    model, x = nn.Sequential(*layers).double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    maps = LayerGradCam(model, model[1]).attribute(x, 2)
    assert maps.shape == (2, 1, 4, 4)
    assert_zero(infidelity(model, Fade(channels=True), x, maps, target=2, layer="1"))
    summed = LayerCAV(model, "1", normalize=None).attribute(x, 2, attr_dim_summation=True)
    assert_zero(infidelity(model, Fade(channels=True), x, summed, target=2, layer="1"))
    # In front of the activation it is an approximation; compared with the definition.
    fade, maps = Fade(channels=True), LayerGradCam(model, model[0]).attribute(x, 2).detach()
    found = infidelity(model, fade, x, maps, target=2, layer=model[0])
    assert_same(found, by_definition(fade, lambda a, _: model[1:](a)[0, 2], (model[0](x),), (maps,)))
    assert found.min() > 1e-6
    with pytest.raises(InputError, match=r"perturbations of shape \[\(20, 4, 4, 4\)\]; expected \[\(20, 1, 4, 4\)\]"):
        infidelity(model, Fade(), x, maps, target=2, layer=model[0])


def test_units_in_another_memory_format() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    strided = model[0](x.contiguous(memory_format=torch.channels_last))
    assert not strided.is_contiguous()
    found = []
    for inputs in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.manual_seed(1)

        def fade(units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            shares = torch.rand(units.shape, dtype=units.dtype).to(memory_format=torch.channels_last)
            return shares, units * (1 - shares)

        attributions = LayerCAV(model, "1", normalize=None).attribute(inputs, 1)
        found.append(infidelity(model, fade, inputs, attributions, target=1, layer="1"))
    assert_same(found[0], found[1])


def test_inputs_give_what_captum_gives() -> None:
    model, baselines = net(), torch.full_like(X, 0.25)

    @captum_metrics.infidelity_perturb_func_decorator(multiply_by_inputs=True)
    def perturb(inputs: torch.Tensor, baselines: torch.Tensor) -> torch.Tensor:
        return baselines + (inputs - baselines) * torch.rand_like(inputs)

    attributions = IntegratedGradients(model).attribute(X, baselines, 1)
    torch.manual_seed(2)
    found = infidelity(model, perturb, X, attributions, baselines, target=1)
    torch.manual_seed(2)
    assert_same(found, captum_metrics.infidelity(model, perturb, X, attributions, baselines, target=1))
    assert found.min() > 1e-9


def test_layer_integrated_gradients_with_baselines_of_the_layer() -> None:
    """Behind the layer the net is linear, so integrated gradients are exact with the layer's own baseline."""
    model = net()[:3]
    start = model[:2](torch.zeros(1, 3, dtype=torch.float64)).detach()

    def toward(units: torch.Tensor, baselines: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.rand_like(units)
        return shares, units - shares * (units - baselines)

    attributions = LayerIntegratedGradients(model, model[1]).attribute(X, torch.zeros_like(X), 2)
    assert_zero(infidelity(model, toward, X, attributions, start, target=2, layer="1"))
    assert infidelity(model, toward, X, attributions, start + 1, target=2, layer="1").min() > 1e-6


def test_a_call_of_a_layer_that_is_reached_twice() -> None:
    model = net()
    reusing = nn.Sequential(model[0], model[1], model[2], nn.Linear(4, 5).double(), model[1], nn.Linear(5, 1).double())
    for call, at in ((0, 2), (1, 5), (-1, 5)):
        fade = Fade()
        attributions = LayerCAV(reusing, model[1], normalize=None, call=call).attribute(X)
        found = infidelity(reusing, fade, X, attributions, layer=model[1], call=call)
        head = reusing[at:]
        expected = by_definition(fade, lambda a, _, head=head: head(a)[0, 0], (reusing[:at](X),), (attributions,))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-20)
        assert (found.min() > 1e-6) == (call == 0)
    for call, said in ((None, "choose one with call=0"), (2, "call=2 is out"), (-3, "call=-3 is out")):
        with pytest.raises(LayerError, match=f"reached 2 times; {said}"):
            infidelity(reusing, Fade(), X, attributions, layer=model[1], call=call)


def test_data_parallel_functions_and_nested_inputs() -> None:
    model = net()
    attributions = LayerCAV(model, "1", normalize=None).attribute(X, 1)

    def of(forward_func: Any, inputs: Any, layer: Any, **options: Any) -> torch.Tensor:
        torch.manual_seed(1)
        return infidelity(forward_func, Fade(), inputs, attributions, layer=layer, **options)

    expected = of(model, X, "1", target=1)
    assert_same(of(nn.DataParallel(model), X, "module.1", target=1), expected)
    assert_same(of(lambda x: model(x)[:, 1], X, model[1]), expected)
    around = of(lambda x: model(x["x"][0])[:, 1] + x["x"][0].sum(1), ({"x": [X]},), model[1])
    assert_same(around, expected)


def test_nothing_is_left_on_the_model() -> None:
    model = net()
    attributions = LayerCAV(model, "1", normalize=None).attribute(X, 1)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def fails(units: torch.Tensor) -> Any:
        raise RuntimeError("no perturbation")

    recorded: list[bool] = []
    model[4].register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    for of_input in (False, True):
        options: dict[str, Any] = {"target": 1, "layer": "1", "attribute_to_layer_input": of_input}
        infidelity(model, Fade(), X, attributions, **options)
        with pytest.raises(RuntimeError, match="no perturbation"):
            infidelity(model, fails, X, attributions, **options)
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            infidelity(model, Fade(), X[:, :2], attributions, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model[:4].modules())
    assert recorded == [False] * 8
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "2"}, InputError, r"attributions have shape \(2, 5\) and layer '2' \(2, 4\); expected the same"),
        ({"layer": None}, InputError, r"attributions have shape \(2, 5\) and the inputs \(2, 3\)"),
        ({"layer": "7"}, LayerError, "unknown layer '7'"),
        ({"layer": 7}, CAVTypeError, "layer is a int"),
        ({"layer": nn.Tanh()}, LayerError, "does not belong to this model"),
        ({"target": 3}, TargetError, "target is 3, out of range"),
        ({"target": None}, TargetError, "target is missing"),
        ({"target": [0, 1, 2]}, TargetError, "target lists 3 entries for 2 samples"),
        ({"n_perturb_samples": 0}, OptionError, "n_perturb_samples is 0; expected an integer of at least 1"),
        ({"n_perturb_samples": 2.0}, OptionError, r"n_perturb_samples is 2\.0"),
        ({"attributions": (torch.ones(2, 5), torch.ones(2))}, InputError, "hold 2 tensors, layer '1' 1; .* the first"),
        ({"attributions": [torch.ones(2, 5)]}, CAVTypeError, "attributions: expected a tensor .* got a list"),
        ({"attributions": torch.ones(1, 5)}, InputError, r"have shape \(1, 5\)"),
        ({"attributions": torch.ones(2, 5, 1)}, InputError, r"have shape \(2, 5, 1\)"),
        ({"perturb_func": lambda units: units}, CAVTypeError, "perturb_func returned a Tensor; expected a pair"),
        ({"perturb_func": lambda units: (units, units, units)}, CAVTypeError, "returned a tuple; expected a pair"),
        ({"perturb_func": lambda units: (units, 1)}, CAVTypeError, "perturbed units: expected a tensor .* got a int"),
        ({"perturb_func": lambda a: (a, a[:, :1])}, InputError, r"perturbed units of shape \[\(20, 1\)\]; expected"),
        ({"perturb_func": lambda a: ((a, a), (a, a))}, InputError, r"perturbations of shape \[\(20, 5\), \(20, 5\)\]"),
        ({"forward_func": "model"}, CAVTypeError, "forward_func is a str"),
        ({"forward_func": lambda x: {"scores": x}, "layer": None}, CAVTypeError, "the model returned a dict"),
    ],
    ids=without_address,
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = net()
    arguments = {
        "forward_func": model,
        "perturb_func": Fade(),
        "inputs": X,
        "attributions": torch.ones(2, 5, dtype=torch.float64),
        "target": 1,
        "layer": "1",
    }
    with pytest.raises(error, match=message):
        infidelity(**(arguments | options))


def test_layers_that_are_not_reached_or_hold_samples_elsewhere() -> None:
    model = net()
    with pytest.raises(LayerError, match="layer Tanh was not reached"):
        infidelity(model.forward, Fade(), X, torch.ones(2, 5), target=1, layer=nn.Tanh())
    recurrent, x = nn.LSTM(3, 4).double(), torch.randn(6, 2, 3, dtype=torch.float64)
    states = tuple(torch.ones(shape) for shape in ((6, 2, 4), (1, 2, 4), (1, 2, 4)))
    with pytest.raises(InputError, match=r"layer LSTM has shape \(6, 2, 4\); expected the 2 samples in the first"):
        infidelity(lambda x: recurrent(x.transpose(0, 1))[0][-1], Fade(), x.transpose(0, 1), states, layer=recurrent)


def test_scores_that_do_not_follow_the_samples_are_refused() -> None:
    with pytest.raises(InputError, match=r"forward_func returned \(1,\) for 10 samples; expected a row of each"):
        infidelity(lambda x: x.sum(), Fade(), X[:1], X[:1])


# Sensitivity -------------------------------------------------------------------------------------------------------


class Shake:
    """Adds noise within a radius; notes what it gave."""

    def __init__(self) -> None:
        self.given: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, inputs: Any, radius: float) -> Any:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        shaken = tuple(x + radius * (2 * torch.rand_like(x) - 1) for x in tensors)
        self.given.append(shaken)
        return shaken if isinstance(inputs, tuple) else shaken[0]


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in flat(part)]


def largest_move(shake: Shake, explain: Callable[..., Any], inputs: Any, order: float = 2.0) -> torch.Tensor:
    """The largest ``|phi(x') - phi(x)| / |phi(x)|``, a sample and a perturbation at a time.

    ``explain`` takes the inputs of one sample, a tuple, and its number.
    """

    def vector(sample: int, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([part.detach().flatten() for part in flat(explain(tensors, sample))])

    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    samples, result = len(inputs[0]), []
    for sample in range(samples):
        plain = vector(sample, tuple(x[sample : sample + 1] for x in inputs))
        moves = []
        for shaken in shake.given:
            times = len(shaken[0]) // samples
            for place in range(sample * times, (sample + 1) * times):
                moved = vector(sample, tuple(x[place : place + 1] for x in shaken))
                moves.append((moved - plain).norm(order) / plain.norm(order))
        result.append(torch.stack(moves).max())
    return torch.stack(result)


def image_net() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(6)
    layers = nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(27, 3)
    return nn.Sequential(*layers).double(), torch.randn(2, 2, 6, 6, dtype=torch.float64)


METHODS: dict[str, Callable[[nn.Sequential], Callable[..., Any]]] = {
    "LayerCAV": lambda model: LayerCAV(model, "1").attribute,
    "list of layers": lambda model: LayerCAV(model, ["1", "3"]).attribute,
    "InputCAV": lambda model: InputCAV(model).attribute,
    "LayerGradCam": lambda model: LayerGradCam(model, model[1]).attribute,
    "LayerGradientXActivation": lambda model: LayerGradientXActivation(model, model[1]).attribute,
    "LayerIntegratedGradients": lambda model: LayerIntegratedGradients(model, model[1]).attribute,
    "IntegratedGradients": lambda model: IntegratedGradients(model).attribute,
    "permuted": lambda model: lambda x, target: LayerCAV(model, "1").attribute(x, target).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("max_examples", [None, 4], ids=["together", "in parts"])
@pytest.mark.parametrize("name", METHODS)
def test_sensitivity_is_the_largest_move(name: str, max_examples: int | None, samples: int) -> None:
    model, x = image_net()
    x, targets, shake, explain = x[:samples], [2, 0][:samples], Shake(), METHODS[name](model)
    found = sensitivity_max(
        explain,
        x,
        shake,
        perturb_radius=0.3,
        n_perturb_samples=5,
        max_examples_per_batch=max_examples,
        target=targets,
    )
    expected = largest_move(shake, lambda tensors, sample: explain(tensors[0], target=targets[sample]), x)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert found.min() > 1e-3
    parts = [5] if max_examples is None else [4, 1] if samples == 1 else [2, 2, 1]
    assert [len(given[0]) for given in shake.given] == [samples * part for part in parts]


@pytest.mark.parametrize("order", [1.0, 2.0, torch.inf])
def test_norms(order: float) -> None:
    model, shake = net(), Shake()
    explain = LayerCAV(model, "1").attribute
    found = sensitivity_max(explain, X, shake, norm_ord=order, target=1)
    assert_same(found, largest_move(shake, lambda tensors, _: explain(tensors[0], 1), X, order))


def test_several_inputs_and_a_layer_of_several_tensors() -> None:
    model, shake = Residual().double(), Shake()

    def forward(x: torch.Tensor, scale: torch.Tensor, *more: Any) -> torch.Tensor:
        return model(x, scale, *more)

    explain = LayerCAV(forward, model.pair).attribute
    scale = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    found = sensitivity_max(explain, (X, scale), shake, target=1, additional_forward_args="minus")
    assert_same(found, largest_move(shake, lambda tensors, _: explain(tensors, 1, "minus"), (X, scale)))
    assert len(shake.given[0]) == 2


def test_the_default_perturbation_is_captums_and_stays_within_the_radius() -> None:
    seen: list[torch.Tensor] = []

    def explain(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.square()

    torch.manual_seed(1)
    found = sensitivity_max(explain, X, perturb_radius=0.25, n_perturb_samples=50)
    torch.manual_seed(1)
    assert_same(
        found, captum_metrics.sensitivity_max(lambda x: (x[0].square(),), X, perturb_radius=0.25, n_perturb_samples=50)
    )
    assert torch.equal(seen[0], X)
    moved = (seen[1] - X.repeat_interleave(50, 0)).abs()
    assert 0.2 < moved.max() <= 0.25


def test_a_constant_explanation_and_one_of_zeros() -> None:
    assert sensitivity_max(torch.ones_like, X).tolist() == [0.0, 0.0]
    assert sensitivity_max(torch.zeros_like, X).tolist() == [0.0, 0.0]


def test_arguments_are_passed_on_unchanged_and_tensors_are_repeated() -> None:
    weights = torch.tensor([[1.0], [-3.0]], dtype=torch.float64).requires_grad_() * 2
    module, lock, shake, seen = nn.Linear(2, 2), threading.Lock(), Shake(), []

    def explain(x: torch.Tensor, additional_forward_args: tuple[Any, ...], layer: nn.Module, held: Any) -> torch.Tensor:
        factor, same, text = additional_forward_args
        assert (layer, same, text, held[0]) == (module, lock, "text", lock)
        seen.append(factor)
        return x.exp() * factor

    found = sensitivity_max(
        explain, X, shake, additional_forward_args=(weights, lock, "text"), layer=module, held=[lock]
    )
    assert torch.equal(seen[1], weights.detach().repeat_interleave(10, 0))
    assert_same(found, largest_move(shake, lambda tensors, _: tensors[0].exp(), X))


def test_baselines_are_repeated() -> None:
    model, shake = net(), Shake()
    explain, baselines = IntegratedGradients(model).attribute, torch.stack((X[1], X[0])) / 2
    found = sensitivity_max(explain, X, shake, target=1, baselines=baselines)
    expected = largest_move(shake, lambda x, sample: explain(x[0], baselines[sample : sample + 1], 1), X)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert found.min() > 1e-3


@pytest.mark.parametrize(
    ("explain", "options", "error", "message"),
    [
        (LayerCAV(net(), "1"), {}, CAVTypeError, r"explanation_func is a LayerCAV; expected a function"),
        (lambda x: "map", {}, CAVTypeError, "explanations: expected a tensor .* got a str"),
        (lambda x: x.sum(), {}, InputError, r"returned shape \(\) for 2 samples; expected one row a sample"),
        (lambda x: x.t(), {}, InputError, r"returned shape \(3, 2\) for 2 samples"),
        (lambda x: x[:1], {}, InputError, r"returned shape \(1, 3\) for 2 samples"),
        (lambda x: x, {"n_perturb_samples": -1}, OptionError, "n_perturb_samples is -1"),
        (LayerCAV(net(), "1").attribute, {"return_convergence_delta": True}, OptionError, "the delta is no part"),
        (lambda x: x, {"inputs": "text"}, CAVTypeError, "inputs: expected a tensor or a tuple of tensors, got a str"),
    ],
    ids=without_address,
)
def test_explanations_that_do_not_fit_are_refused(
    explain: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sensitivity_max(explain, **({"inputs": X} | options))
