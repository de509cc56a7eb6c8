"""Maps for Quantus of tables and series, not only of pictures. Quantus itself is not needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.metrics import quantus_explain_func
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled

TABLE, SERIES = fixed(2, 3).numpy(), fixed(2, 2, 8).numpy()
TARGETS = np.array([0, 1])


def of_table() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


def of_series() -> nn.Module:
    return filled(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)))


def test_a_table_has_the_contributions_of_its_fields() -> None:
    net = of_table()
    found = quantus_explain_func(lambda model: InputCAV(model))(net, TABLE, TARGETS)
    expected = InputCAV(net).attribute(torch.from_numpy(TABLE), [0, 1])
    np.testing.assert_allclose(found, expected.numpy())


@pytest.mark.parametrize("layer", [None, "0", "1"])
def test_a_series_has_one_number_for_each_step(layer: str | None) -> None:
    net = of_series()

    def make(model: nn.Module) -> Any:
        return InputCAV(model, normalize=None) if layer is None else LayerCAV(model, layer, normalize=None)

    found = quantus_explain_func(make)(net, SERIES, TARGETS)
    expected = make(net).attribute(torch.from_numpy(SERIES), [0, 1])
    assert found.shape == (2, 1, 8)
    np.testing.assert_allclose(found.sum((1, 2)), expected.sum((1, 2)).numpy())
    if layer is None:
        np.testing.assert_allclose(found, expected.sum(1, keepdim=True).numpy())


def test_attributions_without_places_are_refused() -> None:
    with cav_error(ValueError, "attributions of shape (2, 4) cannot be laid over inputs of shape (2, 3)", "InputCAV"):
        quantus_explain_func(lambda model: LayerCAV(model, "0"))(of_table(), TABLE, TARGETS)
    with cav_error(ValueError, "attributions of shape (2, 18) cannot be laid over inputs of shape (2, 2, 8)"):
        quantus_explain_func(lambda model: LayerCAV(model, "2"))(of_series(), SERIES, TARGETS)
    volumes = fixed(2, 1, 2, 2, 2).numpy()
    with cav_error(ValueError, "inputs of shape (2, 1, 2, 2, 2)", "expected pictures (N, C, H, W), series"):
        quantus_explain_func(lambda model: InputCAV(lambda x: x.flatten(1)))(of_table(), volumes, TARGETS)
