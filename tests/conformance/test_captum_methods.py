"""Everything of Captum that takes a method takes ours: base classes, NoiseTunnel, metrics, maps and pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum import metrics as captum_metrics
from captum.attr import (
    Attribution,
    GradientAttribution,
    InputXGradient,
    LayerAttribution,
    LayerGradCam,
    LayerGradientXActivation,
    NeuronAttribution,
    NeuronGradient,
    NoiseTunnel,
)
from captum.attr import visualization as captum_visualization
from captum.concept import TCAV, Classifier, Concept
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, NeuronCAV, metrics
from captum_cav.errors import (
    LayerError,
    UnavailableError,
)
from tests.support.captum_cases import SAMPLES, SMALL, assert_same, case_of, flat, hooks_on, row
from tests.support.captum_networks import basic_models

pytestmark = [
    pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients"),
    pytest.mark.filterwarnings("ignore:In order to make embedding layers more interpretable"),
]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Methods as Captum's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "bases", "name"),
    [
        (LayerCAV, (LayerAttribution, GradientAttribution), "Layer C A V"),
        (InputCAV, (GradientAttribution,), "Input C A V"),
        (NeuronCAV, (NeuronAttribution, GradientAttribution), "Neuron C A V"),
    ],
    ids=str,
)
def test_a_method_is_one_of_captums(method: type[Attribution], bases: tuple[type, ...], name: str) -> None:
    model = basic_models.BasicModel_MultiLayer()
    made = method(model) if method is InputCAV else method(model, model.relu, ["cpu"])
    assert isinstance(made, bases)
    assert made.forward_func is model
    assert method.get_name() == name
    assert made.multiplies_by_inputs is True
    assert made.has_convergence_delta() is True
    # NoiseTunnel and TCAV call what log_usage wraps.
    assert list(inspect.signature(made.attribute.__wrapped__).parameters)[:2] == ["self", "inputs"]
    if method is not InputCAV:
        assert made.layer is model.relu
        assert made.device_ids == ["cpu"]
    with pytest.raises(UnavailableError, match=r"attribute\(\.\.\., return_convergence_delta=True\)"):
        made.compute_convergence_delta(torch.zeros(1, 4), SMALL, SMALL, target=0)


@pytest.mark.parametrize(
    ("ours", "captums", "same", "before"),
    [
        (LayerCAV, LayerGradientXActivation, 4, ["self", "forward_func", "layer", "device_ids"]),
        (LayerCAV, LayerGradCam, 6, ["self", "forward_func", "layer", "device_ids"]),
        (InputCAV, InputXGradient, 3, ["self", "forward_func"]),
        (NeuronCAV, NeuronGradient, 4, ["self", "forward_func", "layer", "device_ids"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_stand_where_captums_stand(ours: Any, captums: Any, same: int, before: list[str]) -> None:
    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(ours.attribute)[1 : same + 1] == parameters(captums.attribute)[1 : same + 1]
    given = parameters(ours.__init__)
    assert given[: len(before)] == before
    assert all(
        parameter.kind is parameter.KEYWORD_ONLY
        for name, parameter in inspect.signature(ours.__init__).parameters.items()
        if name not in before
    )


def test_the_forward_function_need_not_be_a_module() -> None:
    model, layer, args = case_of("basic_layer_multiple_tuple_target")
    expected = LayerGradientXActivation(model, layer).attribute(**args)
    for function in (model.forward, lambda *given: model(*given)):
        assert_same(LayerCAV(function, layer, normalize=None).attribute(**args), expected)


def test_a_layer_that_is_set_later_is_the_one_explained() -> None:
    model = basic_models.BasicModel_MultiLayer()
    cav = LayerCAV(model, model.relu, normalize=None)
    cav.layer = model.linear0
    assert_same(cav.attribute(SMALL, 0), row(9.0, 12.0, 0.0))
    cav.layer = [model.linear0, model.relu]
    assert_same(cav.attribute(SMALL, 0), [row(9.0, 12.0, 0.0), row(0.0, 8.0, 8.0, 8.0)])
    with pytest.raises(LayerError, match="does not belong"):
        cav.layer = nn.ReLU()
    neuron = NeuronCAV(model, model.relu, normalize=None)
    neuron.layer = model.linear0
    assert_same(neuron.attribute(SMALL, 1), row(0.0, 4.0, 0.0))


class Means(Classifier):
    """The direction between the means of two concepts."""

    def __init__(self) -> None:
        self.found: tuple[torch.Tensor, list[int]] = (torch.empty(0), [])

    def train_and_eval(self, dataloader: Any, **_: Any) -> dict[str, float]:
        values, labels = (torch.cat(parts) for parts in zip(*dataloader, strict=True))
        first, second = (values[labels == label].mean(0) for label in (0, 1))
        self.found = torch.stack([first - second, second - first]), [0, 1]
        return {"accs": 1.0}

    def weights(self) -> torch.Tensor:
        return self.found[0]

    def classes(self) -> list[int]:
        return self.found[1]


def test_tcav_takes_layer_cav(tmp_path: Path) -> None:
    model = basic_models.BasicModel_MultiLayer()

    def scores(method: LayerAttribution, where: Path) -> list[float]:
        torch.manual_seed(0)
        concepts = [
            Concept(number, str(number), torch.utils.data.DataLoader(torch.rand(6, 3) * size, batch_size=3))
            for number, size in enumerate((5.0, -5.0))
        ]
        tcav = TCAV(model, ["linear0", "relu"], classifier=Means(), layer_attr_method=method, save_path=str(where))
        found = tcav.interpret(SAMPLES, [concepts], target=0)["0-1"]
        return [number for layer in ("linear0", "relu") for number in found[layer]["magnitude"].tolist()]

    ours = scores(LayerCAV(model, model.linear0, normalize=None), tmp_path / "ours")
    captums = scores(LayerGradientXActivation(model, model.linear0), tmp_path / "captums")
    assert ours == pytest.approx(captums)
    assert ours[0] != pytest.approx(ours[2])


@pytest.mark.parametrize("device_ids", [None, ["cpu"]], ids=str)
def test_data_parallel_and_its_device_change_nothing(device_ids: list[str] | None) -> None:
    model, layer, args = case_of("basic_layer_multi_input")
    captums = LayerGradientXActivation(model, layer).attribute(**args)
    parallel = nn.DataParallel(model)
    for wrapped, where in ((model, layer), (parallel, layer), (parallel, "module.model.relu")):
        cav = LayerCAV(wrapped, where, device_ids, normalize=None)
        assert cav.device_ids == device_ids
        assert_same(cav.attribute(**args), captums)
    assert hooks_on(parallel) == []


# NoiseTunnel ---------------------------------------------------------------------------------------------------------


class Noted(nn.Module):
    """Two inputs, two branches, a part that bypasses ``left``; notes what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        self.calls.append((a.detach().clone(), b.detach().clone(), scale))
        return self.head(torch.tanh(self.left(a)) + scale * self.right(b))


PAIR = tuple(
    torch.randn(2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) for size in (3, 2)
)


SCALE = torch.tensor([[2.0], [3.0]], dtype=torch.float64)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("at_once", [None, 2], ids=["together", "in parts"])
@pytest.mark.parametrize("kind", ["layer", "layer-input", "input", "neuron"])
def test_a_noise_tunnel_is_what_its_noisy_samples_give(kind: str, at_once: int | None, nt_type: str) -> None:
    model = Noted().double()
    method = {
        "layer": LayerCAV(model, "left"),
        "layer-input": LayerCAV(model, "left"),
        "input": InputCAV(model),
        "neuron": NeuronCAV(model, "head"),
    }[kind]
    options: dict[str, Any] = {"neuron_selector": 1} if kind == "neuron" else {"target": [2, 0]}
    if kind == "layer-input":
        options["attribute_to_layer_input"] = True
    torch.manual_seed(5)
    found, deltas = NoiseTunnel(method).attribute(
        PAIR,
        nt_type=nt_type,
        nt_samples=5,
        nt_samples_batch_size=at_once,
        stdevs=(0.3, 0.5),
        additional_forward_args=(SCALE,),
        return_convergence_delta=True,
        **options,
    )
    calls, model.calls = model.calls, []
    assert [len(call[0]) for call in calls] == ([10] if at_once is None else [4, 4, 2])
    singles: list[list[tuple[torch.Tensor, ...]]] = [[], []]
    expected_deltas = []
    for a, b, scale in calls:
        assert torch.equal(scale, SCALE.repeat_interleave(len(a) // 2, 0))
        for index in range(len(a)):
            sample = index // (len(a) // 2)
            alone = dict(options) if kind == "neuron" else {**options, "target": options["target"][sample]}
            one, delta = method.attribute(
                (a[index : index + 1], b[index : index + 1]),
                additional_forward_args=(SCALE[sample : sample + 1],),
                return_convergence_delta=True,
                **alone,
            )
            singles[sample].append(tuple(flat(one)))
            expected_deltas.append(delta)
    for number, part in enumerate(flat(found)):
        for sample in (0, 1):
            values = torch.cat([single[number] for single in singles[sample]])
            assert len(values) == 5
            expected = {
                "smoothgrad": values.mean(0),
                "smoothgrad_sq": values.square().mean(0),
                "vargrad": values.var(0, unbiased=False),
            }[nt_type]
            torch.testing.assert_close(part[sample], expected, rtol=1e-9, atol=1e-12)
            assert expected.abs().max() > 1e-6
    torch.testing.assert_close(deltas, torch.cat(expected_deltas), rtol=1e-9, atol=1e-12)
    # What bypasses the layer is left over; inputs are all that there is.
    assert (deltas.abs().max() > 1e-3) == kind.startswith("layer")


def test_a_noise_tunnel_gets_the_maps_of_several_layers_as_a_tuple() -> None:
    model = basic_models.BasicModel_MultiLayer()
    found = NoiseTunnel(LayerCAV(model, ["relu", "linear0"], normalize=None)).attribute(SMALL, target=0, stdevs=1e-9)
    expected = LayerCAV(model, ["relu", "linear0"], normalize=None).attribute(SMALL, target=0)
    assert [part.shape for part in found] == [part.shape for part in expected]
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-4)


# Metrics, maps and pictures ------------------------------------------------------------------------------------------


def test_captums_infidelity_takes_attributions_of_inputs() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), SAMPLES

    def perturb(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = torch.rand(inputs.shape)
        return shares, inputs * (1 - shares)

    def of(attributions: torch.Tensor, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return function(model, perturb, x, attributions, target=1, n_perturb_samples=7)

    ours = InputCAV(model, normalize=None).attribute(x, 1)
    found = of(ours, captum_metrics.infidelity)
    assert found.shape == (4,)
    assert found.min() > 0
    torch.testing.assert_close(found, of(InputXGradient(model).attribute(x, 1), captum_metrics.infidelity))
    torch.testing.assert_close(found, of(ours, metrics.infidelity))
    # The input of the first layer has the inputs' shape.
    first = LayerCAV(model, "0", normalize=None).attribute(x, 1, attribute_to_layer_input=True)
    torch.testing.assert_close(found, of(first, captum_metrics.infidelity))


def test_captums_sensitivity_takes_attributions_of_inputs() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))

    def of(explain: Callable[..., Any], function: Callable[..., torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(0)
        return function(explain, (SAMPLES,), perturb_radius=0.5, target=[0, 1, 1, 0])

    found = of(InputCAV(model, normalize=None).attribute, captum_metrics.sensitivity_max)
    assert found.min() > 0
    torch.testing.assert_close(found, of(InputXGradient(model).attribute, captum_metrics.sensitivity_max))
    torch.testing.assert_close(found, of(InputCAV(model, normalize=None).attribute, metrics.sensitivity_max))


@pytest.mark.parametrize(
    ("layer", "sizes", "mode"),
    [
        (nn.Conv1d(2, 3, 2), 12, "linear"),
        (nn.Conv2d(2, 3, 2), (9, 12), "bilinear"),
        (nn.Conv2d(2, 3, 2), (9, 12), "nearest"),
        (nn.Conv3d(2, 3, 2), (6, 7, 8), "trilinear"),
    ],
    ids=str,
)
def test_interpolate(layer: nn.Module, sizes: Any, mode: str) -> None:
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 2, *[4] * (len(layer.kernel_size)))
    model(x)
    ratios = LayerCAV(model, "1").attribute(x, 1)
    larger = LayerCAV.interpolate(ratios, sizes, mode)
    assert larger.shape == (2, 3, *((sizes,) if isinstance(sizes, int) else sizes))
    torch.testing.assert_close(larger, F.interpolate(ratios, sizes, mode=mode))


@pytest.fixture
def shown() -> tuple[np.ndarray, np.ndarray]:
    """A map of a layer in the size of its picture, and the picture, as Captum draws them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    picture = torch.rand(1, 3, 8, 8)
    ratios = LayerCAV(model, "2", normalize=None).attribute(picture, 1)
    larger = LayerCAV.interpolate(ratios, (8, 8), "bilinear")
    return larger[0].permute(1, 2, 0).numpy(), picture[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("sign", ["all", "positive", "negative", "absolute_value"])
def test_captum_draws_a_map(shown: tuple[np.ndarray, np.ndarray], sign: str) -> None:
    attributions, picture = shown
    _, axes = captum_visualization.visualize_image_attr(
        attributions, picture, method="heat_map", sign=sign, outlier_perc=0, use_pyplot=False
    )
    drawn = np.asarray(axes.images[0].get_array())
    summed = attributions.sum(2)
    assert summed.min() < 0 < summed.max()
    of_sign = {
        "all": summed,
        "positive": summed.clip(min=0),
        "negative": (-summed).clip(min=0),
        "absolute_value": np.abs(summed),
    }
    np.testing.assert_allclose(drawn, of_sign[sign] / np.abs(of_sign[sign]).max(), rtol=1e-5, atol=1e-6)


def test_captum_draws_several_pictures_of_a_map(shown: tuple[np.ndarray, np.ndarray]) -> None:
    methods = ["original_image", "heat_map", "blended_heat_map", "masked_image", "alpha_scaling"]
    signs = ["all", "positive", "negative", "positive", "absolute_value"]
    figure, axes = captum_visualization.visualize_image_attr_multiple(*shown, methods, signs, use_pyplot=False)
    assert [len(one.images) for one in axes] == [1, 1, 2, 1, 1]
    FigureCanvasAgg(figure).draw()
