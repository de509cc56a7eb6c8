"""Measures of maps of volumes and videos."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, metrics
from captum_cav.ablation.disabling import replacement
from captum_cav.errors import InputError
from captum_cav.metrics.resolution import at_size
from tests.support.small_networks import seeded

SHAPE = (3, 4, 5)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(voxels: int) -> nn.Module:
    with seeded():
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * voxels, 3)).double().eval()


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
def test_voxels_are_removed_in_the_order_of_the_map(insert: bool, baseline: Any) -> None:
    """The oracle ranks and replaces voxel by voxel."""
    net, x, maps = model(60), numbers(2, 2, *SHAPE), numbers(2, *SHAPE, seed=1)
    instead = replacement(x, baseline).expand_as(x)
    steps = 7
    expected = []
    for sample in range(2):
        order = sorted(range(60), key=lambda place: -float(maps[sample].flatten()[place]))
        curve = []
        for step in range(steps + 1):
            now = (instead if insert else x)[sample].clone().flatten(1)
            new = (x if insert else instead)[sample].flatten(1)
            for place in order[: -(-step * 60 // steps)]:
                now[:, place] = new[:, place]
            curve.append(net(now.reshape(1, 2, *SHAPE)).softmax(1)[0, 1].detach())
        expected.append(torch.trapezoid(torch.stack(curve)) / steps)
    measured = metrics.insertion if insert else metrics.deletion
    found = measured(net, x, maps, 1, steps=steps, baseline=baseline)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("name", ["deletion", "insertion", "morf_lerf"])
@pytest.mark.parametrize("baseline", ["zero", "mean", "blur"])
@pytest.mark.parametrize("grid", [(4, 5), (2, 3), (8, 3)])
def test_a_volume_of_one_slice_is_a_picture(name: str, baseline: Any, grid: tuple[int, int]) -> None:
    net, x, maps = model(20), numbers(2, 2, 4, 5), numbers(2, *grid, seed=1)
    measured = metrics.MEASURES[name]
    picture = measured(net, x, maps, 1, baseline=baseline)
    volume = measured(net, x[:, :, None], maps[:, None], 1, baseline=baseline)
    torch.testing.assert_close(volume, picture)


def test_single_cells_of_a_volume_are_removed() -> None:
    """In a linear model the drop of a cell is the contribution of the cell."""
    net, x = model(64), numbers(2, 2, 4, 4, 4)
    maps = InputCAV(net, normalize=None).attribute(x, 1).sum(1)
    options: dict[str, Any] = {"cells": 2, "baseline": "zero"}
    torch.testing.assert_close(metrics.single_deletion(net, x, maps, 1, **options), torch.ones(2).double())
    torch.testing.assert_close(metrics.single_deletion(net, x, -maps, 1, **options), -torch.ones(2).double())
    with pytest.raises(InputError, match="inputs of 1 x 4 x 4 pixels cannot be divided into 2 x 2 x 2 cells"):
        metrics.single_deletion(model(16), x[:, :, :1], maps[:, :1], 1, cells=2)


@pytest.mark.parametrize("name", ["mass_accuracy", "rank_accuracy", "pointing_hit"])
def test_masks_of_volumes(name: str) -> None:
    maps, masks = numbers(3, 2, 3, seed=1), numbers(3, 4, 6, seed=2) > 0
    measured = metrics.MEASURES[name]
    torch.testing.assert_close(measured(maps[:, None], masks[:, None]), measured(maps, masks))
    # The dimensions are alike.
    maps, masks = numbers(3, 2, 3, 4, seed=3), numbers(3, 4, 3, 8, seed=4) > 0
    torch.testing.assert_close(measured(maps.mT, masks.mT), measured(maps, masks))
    torch.testing.assert_close(measured(maps.transpose(1, 3), masks.transpose(1, 3)), measured(maps, masks))


def test_randomised_models_are_compared_on_volumes() -> None:
    net, x = model(8), numbers(2, 2, 2, 2, 2)

    def explain(model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        contributions: torch.Tensor = InputCAV(model, normalize=None).attribute(inputs, target)
        return contributions.sum(1)

    found = metrics.model_randomisation(net, x, explain(net, x, [1, 1]), 1, explain)
    assert found.shape == (2,)
    assert found.max() < 1
    assert metrics.random_logit(net, x, explain(net, x, [1, 1]), 1, explain).shape == (2,)


@pytest.mark.parametrize("size", [(3, 4, 5), (6, 4, 10), (2, 2, 2), (1, 9, 3)])
def test_a_map_of_a_volume_on_another_grid(size: tuple[int, int, int]) -> None:
    plane = numbers(2, 4, 5)
    along_depth = at_size(plane[:, None].expand(2, 3, 4, 5), size)
    torch.testing.assert_close(along_depth, at_size(plane, size[1:])[:, None].expand(2, *size))
    maps = numbers(2, *SHAPE)
    turned = at_size(maps.permute(0, 3, 1, 2), (size[2], size[0], size[1]))
    torch.testing.assert_close(turned, at_size(maps, size).permute(0, 3, 1, 2))
    uniform = at_size(torch.full((1, *SHAPE), 0.1), size)
    assert (uniform == uniform[0, 0, 0, 0]).all()


def test_a_volume_is_blurred_in_all_dimensions() -> None:
    volume = numbers(1, 2, 20, 20, 20)
    blurred = replacement(volume, "blur")
    torch.testing.assert_close(replacement(volume.transpose(2, 4), "blur").transpose(2, 4), blurred)
    torch.testing.assert_close(replacement(volume.transpose(3, 4), "blur").transpose(3, 4), blurred)
    plane = numbers(1, 2, 20, 20, seed=1)
    same = replacement(plane[:, :, None].expand(1, 2, 7, 20, 20), "blur")
    torch.testing.assert_close(same, replacement(plane, "blur")[:, :, None].expand_as(same))
    torch.testing.assert_close(replacement(volume, "mean").flatten(), volume.mean((2, 3, 4)).flatten())


def test_maps_of_other_dimensions_are_refused() -> None:
    net, x = model(60), numbers(2, 2, *SHAPE)
    with pytest.raises(InputError, match=r"maps has shape \(2, 4, 5\); expected \(N, d, h, w\)"):
        metrics.deletion(net, x, numbers(2, 4, 5), 1)
    with pytest.raises(InputError, match=r"maps has shape \(2, 3, 4, 5\); expected \(N, h, w\)"):
        metrics.deletion(net, x[:, :, 0], numbers(2, *SHAPE), 1)
    with pytest.raises(InputError, match=r"maps has shape \(2, 4, 5\); expected \(N, d, h, w\)"):
        metrics.pointing_hit(numbers(2, 4, 5), numbers(2, *SHAPE) > 0)
    with pytest.raises(InputError, match=r"maps has shape \(2, 3, 4, 5\); expected \(N, h, w\)"):
        metrics.pointing_hit(numbers(2, *SHAPE), numbers(2, 4, 5) > 0)
