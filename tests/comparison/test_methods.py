"""The ready methods against what they are by definition, and what Captum would get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum import attr as captum_attr
from captum.attr._utils.lrp_rules import GammaRule
from torch import nn
from torch.nn import functional as F

from captum_cav import LayerCAV, presets, rules
from captum_cav.comparison import NAMES, Method
from captum_cav.comparison.methods import INPUT, find
from captum_cav.comparison.places import Places
from captum_cav.comparison.rivals import _ApartMaxPool
from captum_cav.errors import CAVError, CAVTypeError, InputError, LayerError, OptionError, UnsupportedOperationError
from tests.comparison.networks import Skipping, classifier, pictures, seeded
from tests.support.traces import left_as_it_was

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # where Captum is called as it is

TARGETS = [2, 1]
LAYER = "body.relu"


def explained(
    method: str | Method, model: nn.Module, layer: str = LAYER, inputs: torch.Tensor | None = None
) -> torch.Tensor:
    inputs = pictures() if inputs is None else inputs
    method = find(method, inputs) if isinstance(method, str) else method
    bound = method.at(model, layer if method.takes_layer else INPUT, inputs[:1], Places.of_pictures(inputs))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return bound.explain(inputs, TARGETS[: len(inputs)])


def scores(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model(inputs)[range(len(inputs)), TARGETS[: len(inputs)]]


def gains(model: nn.Module) -> torch.Tensor:
    """By how much the scores exceed those of the baseline."""
    with torch.no_grad():
        return scores(model, pictures()) - scores(model, torch.zeros_like(pictures()))


def units_and_gradients(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the layer ``body.relu``."""
    units = model.body[:2](inputs).detach().requires_grad_()  # type: ignore[index]
    output = model.head(torch.flatten(model.average(model.body[2:](units * 1)), 1))  # type: ignore[index,operator]
    (gradients,) = torch.autograd.grad(output[range(len(inputs)), TARGETS[: len(inputs)]].sum(), units)
    return units.detach(), gradients


def input_gradients(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    inputs = inputs.clone().requires_grad_()
    (gradients,) = torch.autograd.grad(scores(model, inputs).sum(), inputs)
    return gradients


# What they are --------------------------------------------------------------------------------------------------


def test_saliency_is_the_size_of_the_gradient() -> None:
    model = classifier()
    torch.testing.assert_close(explained("saliency", model), input_gradients(model, pictures()).abs().sum(1))


def test_input_x_gradient_is_what_it_says() -> None:
    model = classifier()
    torch.testing.assert_close(
        explained("input_x_gradient", model), (pictures() * input_gradients(model, pictures())).sum(1)
    )


def test_gradcam_weighs_channels_by_their_mean_gradient() -> None:
    model = classifier()
    units, gradients = units_and_gradients(model, pictures())
    expected = (units * gradients.mean((2, 3), keepdim=True)).sum(1)
    torch.testing.assert_close(explained("gradcam", model), expected.relu())
    torch.testing.assert_close(explained(Method(captum_attr.LayerGradCam), model), expected)


@pytest.mark.parametrize("method", ["layer_gradient_x_activation", "layer_lrp", "cav"])
def test_three_methods_agree_on_piecewise_linear_networks(method: str) -> None:
    model = classifier()
    units, gradients = units_and_gradients(model, pictures())
    scale = scores(model, pictures()).detach().abs()[:, None, None] if method == "cav" else 1.0
    torch.testing.assert_close(explained(method, model) * scale, (units * gradients).sum(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", ["lrp", "layer_lrp", "layer_gradient_x_activation", "cav"])
def test_at_the_input_they_are_input_x_gradient(method: str) -> None:
    model = classifier()
    scale = scores(model, pictures()).detach().abs()[:, None, None] if method == "cav" else 1.0
    found = explained(method, model, INPUT) * scale
    torch.testing.assert_close(found, explained("input_x_gradient", model), rtol=1e-5, atol=1e-8)


def test_layer_lrp_explains_containers_and_activations() -> None:
    model = classifier()
    assert explained("layer_lrp", model, "body").shape == (2, 5, 5)
    torch.testing.assert_close(explained("layer_lrp", model, "body"), explained("layer_lrp", model, "body.last"))


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        ("integrated_gradients", 0.02),
        ("layer_integrated_gradients", 0.02),
        ("layer_conductance", 0.02),
        ("gradient_shap", 0.2),
        ("deeplift", 1e-6),
    ],
)
def test_differences_from_the_baseline_are_complete(method: str, tolerance: float) -> None:
    model = classifier()
    found = explained(method, model).sum((1, 2))
    torch.testing.assert_close(found, gains(model), rtol=tolerance, atol=tolerance * float(gains(model).abs().max()))


def test_internal_influence_is_the_mean_gradient_along_the_path() -> None:
    model = classifier()
    steps = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for index, one in enumerate(pictures().split(1)):
        units = model.body[:2](steps[:, None, None, None] * one).detach().requires_grad_()  # type: ignore[index]
        output = model.head(torch.flatten(model.average(model.body[2:](units * 1)), 1))  # type: ignore[index,operator]
        (gradients,) = torch.autograd.grad(output[:, TARGETS[index]].sum(), units)
        expected = gradients.mean(0).sum(0)
        found = explained("internal_influence", model)[index]
        assert float((found - expected).abs().mean()) < 0.05 * float(expected.abs().mean())


def test_occlusion_is_the_mean_drop_of_the_windows_over_a_pixel() -> None:
    model = classifier()
    inputs = pictures()
    total, count = torch.zeros(2, 14, 14, dtype=torch.float64), torch.zeros(14, 14, dtype=torch.float64)
    with torch.no_grad():
        for row in range(13):  # windows of a seventh of 14 pixels, moved by one
            for column in range(13):
                hidden = inputs.clone()
                hidden[:, :, row : row + 2, column : column + 2] = 0
                drop = scores(model, inputs) - scores(model, hidden)
                total[:, row : row + 2, column : column + 2] += drop[:, None, None]
                count[row : row + 2, column : column + 2] += 1
    expected = 2 * total / count  # of both channels
    torch.testing.assert_close(explained("occlusion", model).double(), expected, rtol=1e-5, atol=1e-6)


class _Guided(torch.autograd.Function):
    """A bounded ReLU that lets positive gradients through only."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: float) -> torch.Tensor:
        ctx.save_for_backward((x > 0) & (x < bound))
        return x.clamp(0, bound)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (passing,) = ctx.saved_tensors
        return gradient.clamp(min=0) * passing, None


class _GuidedReLU(nn.Module):
    def __init__(self, bound: float = float("inf")) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Guided.apply(x, self.bound)


@pytest.mark.parametrize(
    ("activation", "guided"),
    [(lambda: nn.ReLU(inplace=True), _GuidedReLU), (nn.ReLU6, lambda: _GuidedReLU(6.0))],
    ids=["ReLU", "ReLU6"],
)
def test_guided_backprop_lets_positive_gradients_through(
    activation: Callable[[], nn.Module], guided: Callable[[], nn.Module]
) -> None:
    inputs = 20 * pictures()
    model, twin = classifier(activation), classifier(guided)
    assert bool((model.body[0](inputs) > 6).any()), "some activation is at its bound"  # type: ignore[index]
    expected = input_gradients(twin, inputs)
    torch.testing.assert_close(explained("guided_backprop", model, inputs=inputs), expected.abs().sum(1))
    cam = F.interpolate(explained("gradcam", model, inputs=inputs)[:, None], (14, 14), mode="nearest")
    found = explained("guided_gradcam", model, inputs=inputs)
    torch.testing.assert_close(found, (expected * cam).abs().sum(1))


@pytest.mark.parametrize("preset", presets.NAMES)
def test_cav_with_a_preset_is_layer_cav_with_it(preset: str) -> None:
    model = classifier()
    expected = LayerCAV(model, LAYER, rules=preset, normalize="abs").attribute(pictures(), TARGETS).sum(1)
    torch.testing.assert_close(explained(f"cav:{preset}", model), expected)
    of_odds = LayerCAV(model, LAYER, rules=preset, normalize="abs", score="log_odds").attribute(pictures(), TARGETS)
    torch.testing.assert_close(explained(f"cav:{preset}+log_odds", model), of_odds.sum(1))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_leaves_the_model_as_it_was(name: str) -> None:
    model = classifier()
    inputs = pictures()
    with left_as_it_was(model, inputs):
        assert bool(torch.isfinite(explained(name, model, inputs=inputs)).all())
        explained(name, model, INPUT, inputs)


@pytest.mark.parametrize("name", ["cav", "layer_gradient_x_activation", "layer_lrp", "layer_conductance", "deeplift"])
def test_a_negative_score_does_not_turn_the_map_round(name: str) -> None:
    model = classifier()
    mean = model.head.bias.data.clone()
    before = explained(name, model)
    model.head.bias.data = mean - 100
    assert bool((scores(model, pictures()) < 0).all())
    after = explained(name, model)
    assert float((before * after).sum()) > 0


# What Captum gets wrong ------------------------------------------------------------------------------------------


def captum_deeplift(model: nn.Module) -> torch.Tensor:
    """Captum's own answer, on a copy of the model."""
    return captum_attr.DeepLift(copy.deepcopy(model)).attribute(pictures(), target=TARGETS).sum((1, 2, 3))


def two_pools() -> nn.Module:
    """Overlapping max poolings, of which Captum's DeepLift ignores the first, since a ReLU stands before it."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 1), nn.Conv2d(4, 3, 8), nn.Flatten()
        )
    )


@pytest.mark.parametrize(
    "make",
    [two_pools, lambda: classifier(nn.ReLU6), lambda: seeded(Skipping)],
    ids=["overlapping windows", "ReLU6", "skip connection"],
)
def test_deeplift_is_complete_where_captum_is_not(make: Callable[[], nn.Module]) -> None:
    model = make()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 10  # so that ReLU6 meets its bound
    torch.testing.assert_close(explained("deeplift", model).sum((1, 2)), gains(model), rtol=1e-6, atol=1e-8)
    wrong = (captum_deeplift(model) - gains(model)).abs() / gains(model).abs()
    assert bool((wrong > 0.01).any()), "Captum does it right now; the workaround can go"


class _Chord(nn.Module):
    """The linear function that has an activation's values at the baseline's and the input's pre-activations."""

    def __init__(self, here: torch.Tensor, there: torch.Tensor) -> None:
        super().__init__()
        self.slope = (F.relu6(here) - F.relu6(there)) / (here - there)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * x


def test_deeplift_rescales_each_activation() -> None:
    model = classifier(nn.ReLU6, nn.AvgPool2d(2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= 10
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, before in (("relu", 1), ("last", 4)):
            here, there = (model.body[:before](x) for x in (pictures(), torch.zeros_like(pictures())))  # type: ignore[index]
            setattr(twin.body, name, _Chord(here, there))
    expected = (pictures() * input_gradients(twin, pictures())).sum(1)
    torch.testing.assert_close(explained("deeplift", model), expected, rtol=1e-6, atol=1e-9)


def test_deeplift_keeps_examples_apart() -> None:
    model = two_pools()
    alone = torch.cat(
        [
            find("deeplift", one).at(model, INPUT, one, Places.of_pictures(one)).explain(one, [target])
            for one, target in zip(pictures().split(1), TARGETS, strict=True)
        ]
    )
    torch.testing.assert_close(explained("deeplift", model), alone)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 1, 1),
        nn.MaxPool2d((3, 2), (1, 2), (1, 0)),
        nn.MaxPool2d(5, 2, 2, ceil_mode=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [(17, 16), (14, 19)], ids=str)
def test_windows_side_by_side_have_the_same_maxima(pool: nn.MaxPool2d, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_ApartMaxPool(pool)(x), pool(x))


def test_guided_backprop_is_right_where_an_activation_shares_its_input() -> None:
    model, twin = seeded(Skipping), seeded(Skipping)
    twin.relu, twin.last = _GuidedReLU(), _GuidedReLU()
    expected = input_gradients(twin, pictures())
    torch.testing.assert_close(explained("guided_backprop", model), expected.abs().sum(1))
    captum = captum_attr.GuidedBackprop(copy.deepcopy(model)).attribute(pictures(), target=TARGETS)
    assert not torch.allclose(captum, expected), "Captum does it right now; the workaround can go"


class _Functional(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 12)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.after(self.function(self.before(x))), 1)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("lrp", lambda: seeded(Skipping), "LRP .* wrong at add in the model's own forward"),
        ("layer_lrp", lambda: _Functional(lambda x: x * x.mean((2, 3), keepdim=True)), "LRP .* wrong at mean"),
        ("deeplift", lambda: classifier(nn.GELU), r"DeepLift .* wrong at gelu in body\.relu\."),
        ("deeplift", lambda: _Functional(F.relu), "DeepLift .* wrong at relu in the model's own forward"),
        ("deeplift", lambda: _Functional(lambda x: x * x), "DeepLift .* wrong at mul"),
        ("guided_backprop", lambda: _Functional(F.relu), "guided backpropagation .* wrong at relu"),
        ("guided_backprop", lambda: classifier(nn.SiLU), r"guided backpropagation .* wrong at silu in body\.relu\."),
        ("guided_gradcam", lambda: classifier(nn.Tanh), "guided backpropagation .* wrong at tanh"),
    ],
)
def test_what_captum_would_overlook_is_refused(name: str, make: Callable[[], nn.Module], reason: str) -> None:
    model = make().double().eval()
    layer = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    with left_as_it_was(model), pytest.raises(UnsupportedOperationError, match=reason):
        explained(name, model, layer)


class _Twice(nn.Module):
    """One activation for both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))


@pytest.mark.parametrize("name", ["gradcam", "layer_gradient_x_activation", "layer_conductance", "cav"])
def test_a_layer_that_is_reached_twice_is_refused(name: str) -> None:
    with pytest.raises(LayerError, match=r"layer 'relu' was reached 2 times"):
        explained(name, seeded(_Twice), "relu")


@pytest.mark.parametrize("name", ["gradcam", "guided_gradcam"])
def test_gradcam_is_refused_where_channels_come_last(name: str) -> None:
    class Last(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1)

    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 11, 3), nn.ReLU(), Last(), nn.Flatten(), nn.Linear(1584, 3)))
    with pytest.raises(UnsupportedOperationError, match=r"layer '2' of shape \(1, 12, 12, 11\) has no channels there"):
        explained(name, model, "2")
    assert explained("cav", model, "2").shape == (2, 12, 12)


def test_lrp_keeps_the_users_rules_from_call_to_call() -> None:
    model = classifier()
    model.body.second.rule = GammaRule()  # type: ignore[union-attr]
    method = find("layer_lrp", pictures())
    bound = method.at(model, LAYER, pictures()[:1], Places.of_pictures(pictures()))
    first, again = (bound.explain(pictures(), TARGETS) for _ in range(2))
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, explained("layer_lrp", classifier())), "the rule has an effect"
    assert isinstance(model.body.second.rule, GammaRule)  # type: ignore[union-attr]


# What a method is given ------------------------------------------------------------------------------------------


def test_options_go_to_the_constructor_or_to_attribute() -> None:
    model = classifier()
    method = Method(captum_attr.IntegratedGradients, multiply_by_inputs=False, n_steps=3, method="riemann_left")
    attribution = captum_attr.IntegratedGradients(model, multiply_by_inputs=False)
    expected = attribution.attribute(pictures(), target=TARGETS, n_steps=3, method="riemann_left")
    torch.testing.assert_close(explained(method, model), expected.sum(1))
    assert repr(method) == "Method(IntegratedGradients, multiply_by_inputs=False, n_steps=3, method='riemann_left')"


def test_a_class_without_targets_gets_none() -> None:
    model = classifier()
    units, _ = units_and_gradients(model, pictures())
    torch.testing.assert_close(explained(Method(captum_attr.LayerActivation), model), units.sum(1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Method(print), CAVTypeError, "takes an attribution class, .* not <built-in function print>"),  # type: ignore[arg-type]
        (
            lambda: Method(captum_attr.LayerGradCam, relu_attribution=True),
            OptionError,
            r"LayerGradCam has no option 'relu_attribution' \(did you mean 'relu_attributions'.*; it has attribute_to",
        ),
        (lambda: Method(captum_attr.Saliency, layer="1"), OptionError, "Saliency explains no layer, but layer='1'"),
        (lambda: Method(LayerCAV, normalize="score"), OptionError, 'compare with normalize="abs", or None'),
        (lambda: find("grad_cam", pictures()), OptionError, r"unknown method 'grad_cam' \(did you mean 'gradcam'"),
        (lambda: find("cav:gama", pictures()), OptionError, r"unknown method 'cav:gama' \(did you mean 'cav:gamma'"),
        (lambda: find("gradcam+log_odds", pictures()), OptionError, "unknown method"),
        (
            lambda: find("cav:epsilon_gamma_box", pictures()),
            OptionError,
            r"Method\(LayerCAV, rules=presets.epsilon_gamma_box\(...\)\) gives a preset its arguments",
        ),
    ],
)
def test_bad_methods_are_refused(make: Callable[[], Any], error: type[CAVError], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_own_rules_by_name_hold_at_the_input_too() -> None:
    model = classifier()
    method = Method(LayerCAV, rules={"body.first": rules.FlatRule()})
    assert not torch.allclose(explained(method, model, INPUT), explained("cav", model, INPUT))


def test_a_layer_without_places_is_refused() -> None:
    with pytest.raises(InputError, match="no places to lay over a picture"):
        explained("cav", classifier(), "head")
