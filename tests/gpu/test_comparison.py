"""Methods side by side: the device changes neither maps nor passes, and memory is measured where it can be."""

from __future__ import annotations

import pytest
import torch

from captum_cav import compare
from tests.comparison.networks import classifier, pictures

METHODS = ["cav", "cav:pinpoint", "gradcam", "deeplift", "layer_lrp", "guided_gradcam", "gradient_shap", "occlusion"]


def test_a_comparison_is_the_same_on_every_device(device: torch.device) -> None:
    found, expected = (
        compare(
            classifier().to(place),
            pictures(3).to(place),
            [0, 1, 2],
            METHODS,
            ["body.last", "body.relu", "input"],
            ["deletion", "sparseness"],
            progress=False,
            repeats=1,
        )
        for place in (device, torch.device("cpu"))
    )
    for (method, layer), maps in expected.raw.items():
        if method not in ("random", "gradient_shap"):  # their random numbers are the device's own
            torch.testing.assert_close(
                found.raw[method, layer], maps, msg=lambda text, m=method, at=layer: f"{m} {at}: {text}"
            )
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert (one.forwards, one.backwards) == (other.forwards, other.backwards)
        if one.method not in ("random", "uniform", "gradient_shap"):
            assert one.metrics == pytest.approx(dict(other.metrics), abs=1e-6)


def test_memory_and_random_numbers_are_the_devices(cuda: torch.device) -> None:
    state = torch.cuda.get_rng_state(cuda)
    small, large = (
        compare(classifier().to(cuda), pictures(n).to(cuda), 0, ["cav", "gradient_shap"], ["body"], (), progress=False)
        for n in (1, 8)
    )
    assert torch.equal(torch.cuda.get_rng_state(cuda), state)
    assert small.rows[0].peak_bytes is not None
    assert large.rows[0].peak_bytes is not None
    assert 0 < small.rows[0].peak_bytes < large.rows[0].peak_bytes
