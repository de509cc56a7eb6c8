"""Places and grids: one number a place, and the same sum on every grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from captum_cav.errors import InputError
from captum_cav.visualization import resize_map, spatial_map


@pytest.mark.parametrize(
    ("shape", "picture", "expected"),
    [
        ((1, 5, 7, 7), (224, 224), (1, 7, 7)),
        ((1, 7, 7, 5), (224, 224), (1, 7, 7)),
        ((1, 56, 56, 96), (224, 224), (1, 56, 56)),
        ((1, 7, 7, 7), (224, 224), (1, 7, 7)),
        ((2, 3, 7, 14), (224, 448), (2, 7, 14)),
        ((1, 5, 54, 53), (227, 224), (1, 54, 53)),
        ((1, 196, 8), (224, 224), (1, 14, 14)),
        ((1, 197, 8), (224, 224), (1, 14, 14)),
        ((1, 198, 8), (224, 224), (1, 14, 14)),
        ((1, 1 + 7 * 14, 8), (224, 448), (1, 7, 14)),
        # Register tokens: 5 + 25 tokens would make a grid of 5 x 6, too, and 4 + 16 one of 4 x 5.
        ((1, 5 + 25, 8), (224, 224), (1, 5, 5)),
        ((1, 4 + 16, 8), (224, 224), (1, 4, 4)),
        ((1, 30, 8), (200, 240), (1, 5, 6)),
    ],
    ids=str,
)
def test_places_are_found_in_every_layout(
    shape: tuple[int, ...], picture: tuple[int, int], expected: tuple[int, ...]
) -> None:
    attributions = torch.randn(shape, dtype=torch.float64)
    found = spatial_map(attributions, picture)
    assert found.shape == expected
    extra = shape[1] - expected[1] * expected[2] if len(shape) == 3 else 0
    torch.testing.assert_close(found.sum(), attributions[:, extra:].sum() if extra else attributions.sum())


def test_channels_are_summed_place_by_place() -> None:
    maps = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(spatial_map(maps, (64, 64)), maps.sum(1))
    torch.testing.assert_close(spatial_map(maps.permute(0, 2, 3, 1), (64, 64)), maps.sum(1))
    tokens = torch.cat([torch.randn(2, 1, 6), maps.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(spatial_map(tokens, (64, 64)), maps.sum(1))


@pytest.mark.parametrize("shape", [(1, 5), (1, 64, 49, 512), (1, 150, 8), (1, 2, 3, 4, 5)], ids=str)
def test_what_has_no_places_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="no places to lay over a picture of 224 x 224 pixels; expected"):
        spatial_map(torch.zeros(shape), (224, 224))


# Resizing ------------------------------------------------------------------------------------------------------------

SIZES = [(7, 224), (13, 227), (7, 10), (14, 7), (56, 14), (227, 13), (1, 5), (5, 1), (3, 3), (1, 1)]


def spread_by_hand(cells: int, new: int) -> np.ndarray:
    """How a row of cells is divided among new ones: triangles as wide as the coarser cells, made to add up to 1."""
    width = max(cells / new, 1.0)
    centres = (np.arange(new) + 0.5) * cells / new
    triangles = np.maximum(0, 1 - np.abs(np.arange(cells)[:, None] + 0.5 - centres) / width)
    interpolated = triangles / triangles.sum(0)
    return interpolated / interpolated.sum(1, keepdims=True)


@pytest.mark.parametrize(("cells", "new"), SIZES)
def test_a_resized_map_is_what_triangles_written_out_give(cells: int, new: int) -> None:
    ratios = np.random.default_rng(0).normal(size=(cells, cells + 2))
    expected = spread_by_hand(cells, new).T @ ratios @ spread_by_hand(cells + 2, new + 1)
    np.testing.assert_allclose(resize_map(torch.from_numpy(ratios), (new, new + 1)), expected, atol=1e-12)


@pytest.mark.parametrize(("cells", "new"), SIZES)
def test_the_sum_is_kept_also_where_it_is_nearly_nothing(cells: int, new: int) -> None:
    ratios = torch.randn(3, cells, cells, dtype=torch.float64)
    ratios[1] -= ratios[1].mean() - 1e-9
    torch.testing.assert_close(resize_map(ratios, (new, new)).sum((1, 2)), ratios.sum((1, 2)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("cells", "new"), [(7, 224), (14, 224), (5, 15)])
def test_on_a_multiple_of_the_grid_it_is_bilinear_interpolation_of_densities(cells: int, new: int) -> None:
    ratios = torch.randn(cells, cells, dtype=torch.float64)
    expected = F.interpolate(ratios[None, None], (new, new), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(resize_map(ratios, (new, new)), expected * cells**2 / new**2)


@pytest.mark.parametrize(("cells", "new"), SIZES)
def test_a_resized_even_map_stays_nearly_even_and_keeps_its_signs(cells: int, new: int) -> None:
    even = resize_map(torch.ones(cells, cells), (new, new)) * new**2 / cells**2
    assert float((even - 1).abs().max()) < (0.005 if new >= 10 * cells else 0.2)
    assert bool((resize_map(torch.rand(cells, cells), (new, new)) >= 0).all())
    assert bool((resize_map(torch.zeros(cells, cells), (new, new)) == 0).all())


def test_a_cell_stays_where_it_was() -> None:
    ratios = torch.zeros(4, 4)
    ratios[1, 2] = 1.0
    resized = resize_map(ratios, (32, 32))
    rows, columns = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    assert float((resized * rows).sum()) == pytest.approx(1.5 * 8)
    assert float((resized * columns).sum()) == pytest.approx(2.5 * 8)
    assert bool((resized[:4] == 0).all()), "further than one cell away nothing arrives"


def test_it_keeps_doubles_and_gradients_and_lifts_halves() -> None:
    assert resize_map(torch.ones(2, 2, dtype=torch.float64), (3, 3)).dtype == torch.float64
    assert resize_map(torch.ones(2, 2, dtype=torch.bfloat16), (3, 3)).dtype == torch.float32
    ratios = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    resize_map(ratios, (5, 3)).sum().backward()
    torch.testing.assert_close(ratios.grad, torch.ones_like(ratios))


@pytest.mark.parametrize(("shape", "size"), [((4,), (2, 2)), ((0, 4), (2, 2)), ((4, 4), (0, 2))], ids=str)
def test_what_cannot_be_resized_is_refused(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        resize_map(torch.zeros(shape), size)
    assert str(caught.value) == (
        f"a map of shape {shape} cannot be brought to {size[0]} x {size[1]} cells; expected (..., h, w) with at least "
        "one cell on either side."
    )
