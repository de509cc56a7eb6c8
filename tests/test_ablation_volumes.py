"""Ablation of layers of volumes and videos."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.ablation import ablate, resize_mask
from captum_cav.ablation.disabling import replacement
from captum_cav.errors import InputError, LayerError
from captum_cav.visualization import spatial_map
from tests.support.small_networks import Apply, seeded


def network() -> nn.Sequential:
    with seeded():
        head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(36, 4))
        return nn.Sequential(nn.Conv3d(2, 3, 2, 2), head).double().eval()


def volumes() -> torch.Tensor:
    """Two volumes of 6 x 4 x 4; the layer has 3 x 2 x 2 places."""
    return torch.randn(2, 2, 6, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MASK = torch.zeros(3, 2, 2, dtype=torch.bool)
MASK[1, 0, 1] = MASK[2] = True


@pytest.mark.parametrize("by", ["zero", "mean", "blur"])
def test_places_of_a_volume_are_disabled(by: Any) -> None:
    net, x = network(), volumes()
    values = net[0](x).detach()
    expected = torch.where(MASK, replacement(values, by), values)
    found = ablate(net, x, "0", MASK, by=by)
    torch.testing.assert_close(found.before, net(x).detach())
    torch.testing.assert_close(found.after, net[1](expected).detach())
    assert str(found).startswith("5 of 12 places of layer '0'")


def test_a_mask_of_voxels_is_brought_to_the_layer() -> None:
    net, x = network(), volumes()
    voxels = MASK.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(resize_mask(voxels, (3, 2, 2)), MASK)
    torch.testing.assert_close(ablate(net, x, "0", voxels).after, ablate(net, x, "0", MASK).after)
    both = torch.stack([voxels, ~voxels])
    torch.testing.assert_close(ablate(net, x, "0", both).after[0], ablate(net, x, "0", MASK).after[0])


def test_voxels_themselves_are_disabled() -> None:
    net, x = network(), volumes()
    voxels = torch.zeros(6, 4, 4, dtype=torch.bool)
    voxels[2:4] = True
    torch.testing.assert_close(ablate(net, x, None, voxels).after, net(torch.where(voxels, 0.0, x)).detach())


def test_layers_with_channels_last_are_disabled() -> None:
    net, x = network(), volumes()
    turned = nn.Sequential(Apply(lambda x: net[0](x).movedim(1, -1)), Apply(lambda x: net[1](x.movedim(-1, 1))))
    torch.testing.assert_close(ablate(turned, x, "0", MASK).after, ablate(net, x, "0", MASK).after)


def test_what_does_not_fit_is_refused() -> None:
    net, x = network(), volumes()
    with pytest.raises(InputError, match=r"mask has shape \(2, 2\); expected \(3, 2, 2\), the places of layer '0'"):
        ablate(net, x, "0", MASK[0])
    with pytest.raises(InputError, match="mask selects none of the 3 x 2 x 2 places"):
        ablate(net, x, "0", MASK & False)
    with pytest.raises(LayerError, match="no places to disable in pictures of 6 x 4 x 4 pixels"):
        ablate(net, x, "1.1", MASK)


def test_maps_of_volumes_are_summed_over_channels() -> None:
    values = torch.rand(2, 3, 5, 4, 6)
    assert torch.equal(spatial_map(values, (40, 8, 12)), values.sum(1))
    assert torch.equal(spatial_map(values.movedim(1, -1), (40, 8, 12)), values.movedim(1, -1).sum(-1))
    with pytest.raises(InputError, match=r"a volume of 4 x 8 x 8 voxels; expected \(N, C, d, h, w\)"):
        spatial_map(torch.rand(2, 3, 4), (4, 8, 8))
