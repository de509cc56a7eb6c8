"""Metrics of Quantus take maps of ours and of Captum's. The adapter is tested without it, the rest with the package."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Saliency
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVTypeError, InputError
from captum_cav.metrics import (
    entropy,
    mass_accuracy,
    pointing_hit,
    quantus_explain_func,
    rank_accuracy,
    sparseness,
)
from captum_cav.visualization import resize_map
from tests.metrics.networks import convolutional, pictures

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients")

FACTORIES: dict[str, Callable[[nn.Module], Any]] = {
    "LayerCAV": lambda model: LayerCAV(model, "4", normalize="abs"),
    "InputCAV": lambda model: InputCAV(model, normalize="abs"),
    "Saliency": Saliency,
    "LayerGradCam": lambda model: LayerGradCam(model, model.get_submodule("4")),
}


def single() -> nn.Module:
    return convolutional().float()


def arrays(count: int = 4, side: int = 8) -> tuple[Any, Any]:
    return pictures(count, side, side).float().numpy(), np.array([2, 0, 1, 1][:count])


@pytest.mark.parametrize("name", FACTORIES)
def test_maps_are_summed_over_channels_and_keep_their_sum(name: str) -> None:
    model, (x, y) = single(), arrays()
    explain = quantus_explain_func(FACTORIES[name])
    found = explain(model=model, inputs=x, targets=y, device="cpu", softmax=True)
    assert isinstance(found, np.ndarray)
    assert found.shape == (4, 1, 8, 8)
    expected = FACTORIES[name](model).attribute(torch.tensor(x), target=y.tolist()).detach().sum(1)
    np.testing.assert_allclose(found[:, 0], resize_map(expected, (8, 8)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.sum((1, 2, 3)), expected.sum((1, 2)), rtol=1e-4, atol=1e-6)


def test_options_go_to_attribute_and_the_attribution_is_made_for_each_model() -> None:
    x, y = arrays()
    explain = quantus_explain_func(FACTORIES["LayerGradCam"], relu_attributions=True)
    assert explain(single(), x, y).min() == 0
    other = convolutional(seed=5).float()
    assert not np.array_equal(explain(single(), x, y), explain(other, x, y))


def test_what_does_not_fit_is_refused() -> None:
    x, y = arrays()
    with pytest.raises(CAVTypeError, match="factory is a LayerCAV; expected a function that makes an attribution"):
        quantus_explain_func(LayerCAV(single(), "4"))  # type: ignore[arg-type]
    with pytest.raises(CAVTypeError, match="the attribution gave a list; expected one map, of one layer"):
        quantus_explain_func(lambda model: LayerCAV(model, ["4", "5"]))(single(), x, y)
    with pytest.raises(InputError, match="have no places to lay over a picture of 8 x 8 pixels"):
        quantus_explain_func(lambda model: LayerCAV(model, "7"))(single(), x, y)


@pytest.fixture
def quantus() -> Any:
    return pytest.importorskip("quantus", reason='quantus is not installed; pip install "captum_cav[quantus]"')


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FACTORIES)
def test_metrics_of_each_kind_accept_our_maps(quantus: Any, name: str) -> None:
    model, (x, y) = single(), arrays()
    masks = np.zeros((4, 1, 8, 8), dtype=bool)
    masks[:, :, 2:6, 1:5] = True
    options = {"disable_warnings": True, "display_progressbar": False}
    kinds = {
        "faithfulness": quantus.PixelFlipping(features_in_step=16, **options),
        "robustness": quantus.MaxSensitivity(nr_samples=3, **options),
        "localisation": quantus.RelevanceRankAccuracy(**options),
        "complexity": quantus.Sparseness(**options),
        "randomisation": quantus.MPRT(disable_warnings=True, display_progressbar=False),
        "random logit": quantus.RandomLogit(num_classes=3, **options),
    }
    for kind, metric in kinds.items():
        found = metric(
            model=model,
            x_batch=x,
            y_batch=y,
            a_batch=None,
            s_batch=masks,
            explain_func=quantus_explain_func(FACTORIES[name]),
            device="cpu",
        )
        values = list(found.values()) if isinstance(found, dict) else found
        numbers = np.array(values, dtype=float)
        assert numbers.size, kind
        assert np.isfinite(numbers).all(), kind


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_its_measures_of_maps_are_ours(quantus: Any) -> None:
    model, (x, y) = single(), arrays()
    maps = quantus_explain_func(FACTORIES["InputCAV"])(model, x, y)
    positive = np.abs(maps)  # it divides by the sum of all, so only there are the two the same
    masks = np.zeros((4, 1, 8, 8), dtype=bool)
    masks[:, :, 2:6, 1:5] = True
    options = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}
    given = {"model": model, "x_batch": x, "y_batch": y, "a_batch": positive, "s_batch": masks, "device": "cpu"}
    ours = torch.tensor(positive[:, 0]), torch.tensor(masks[:, 0])
    pairs = {
        quantus.RelevanceMassAccuracy: mass_accuracy(*ours),
        quantus.RelevanceRankAccuracy: rank_accuracy(*ours),
        quantus.PointingGame: pointing_hit(*ours),
        # In nats.
        quantus.Complexity: entropy(ours[0]) * math.log(64),
        quantus.Sparseness: sparseness(ours[0]),
    }
    for metric, expected in pairs.items():
        np.testing.assert_allclose(np.array(metric(**options)(**given), dtype=float), expected, rtol=1e-5, atol=1e-6)
