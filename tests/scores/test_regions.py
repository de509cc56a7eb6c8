"""Scores of a class in a region of the picture."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, scores
from tests.scores.networks import Segmenter, check_like_a_function, pictures
from tests.support.errors import cav_error

MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:5, 3:7] = True
MASKS = torch.stack([MASK, MASK.T])


@pytest.mark.parametrize("as_dict", [False, True], ids=["tensor", "dict"])
@pytest.mark.parametrize(
    "score",
    [scores.Region(2), scores.Region(-1, MASK), scores.Region(0, MASKS), scores.Region(1, MASK.float())],
    ids=["own", "mask", "masks", "numbers"],
)
def test_a_region_is_explained_like_a_function_around_the_model(score: scores.Region, as_dict: bool) -> None:
    check_like_a_function(Segmenter(as_dict=as_dict), "features.1", score, pictures())


def test_the_own_region_of_a_class_is_where_the_class_is_the_best() -> None:
    maps = Segmenter()(pictures()).detach()
    expected = torch.zeros(2, 4, dtype=maps.dtype)
    for sample, i, j in itertools.product(range(2), range(8), range(8)):
        place = maps[sample, :, i, j]
        expected[sample, place.argmax()] += place.max()
    torch.testing.assert_close(scores.Region()(maps), expected)
    torch.testing.assert_close(scores.Region(2)(maps), expected[:, 2])


def test_the_region_is_a_constant() -> None:
    """Of linear networks, contributions are the products with the weights inside the region alone."""
    maps = torch.tensor([[[[1.0, 5.0]], [[2.0, 3.0]], [[1.5, -4.0]]]])
    found = InputCAV(torch.nn.Identity(), score=scores.Region(1), normalize=None).attribute(maps)
    expected = torch.zeros_like(maps)
    expected[:, 1] = torch.where(maps.argmax(1) == 1, maps[:, 1], 0.0)
    assert torch.equal(found, expected)
    assert found.count_nonzero() == 1


def test_a_model_that_ends_in_a_softmax() -> None:
    """Probabilities are gates where they multiply a constant; a region selects instead."""
    net = nn.Sequential(Segmenter(), nn.Softmax(1))
    check_like_a_function(net, "0.features.1", scores.Region(2), pictures())
    check_like_a_function(net, "0.features.1", scores.Region(2, MASKS), pictures())


def test_a_single_class_has_the_region_of_its_positive_scores() -> None:
    maps = torch.tensor([[[[3.0, -1.0], [2.0, -5.0]]]])
    assert scores.Region(0)(maps).tolist() == [5.0]


def test_without_a_class_the_target_selects() -> None:
    net, x = Segmenter(), pictures()
    every = LayerCAV(net, "features", score=scores.Region())
    for maps, index in zip(every.attribute_targets(x, [0, 2]), (0, 2), strict=True):
        torch.testing.assert_close(maps, LayerCAV(net, "features", score=scores.Region(index)).attribute(x))


def test_an_output_of_transformers() -> None:
    maps = Segmenter()(pictures())
    assert torch.equal(scores.Region(1, MASK)(SimpleNamespace(logits=maps)), scores.Region(1, MASK)(maps))


def test_a_mask_of_another_size_is_refused_and_the_advice_works() -> None:
    net, x = Segmenter(), pictures()
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[:, 4:10] = True
    with cav_error(
        ValueError,
        "mask has shape (2, 16, 16); expected (8, 8) or (N, 8, 8), the size of the model's output",
        "torch.nn.functional.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), (8, 8))[:, 0]",
    ):
        LayerCAV(net, "head", score=scores.Region(1, mask)).attribute(x)
    smaller = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), (8, 8))[:, 0]
    assert LayerCAV(net, "head", score=scores.Region(1, smaller)).attribute(x).abs().sum() > 0


def test_masks_of_other_samples_are_refused() -> None:
    with cav_error(ValueError, "mask has shape (3, 8, 8); expected (8, 8) for all samples, or (2, 8, 8)"):
        scores.Region(1, MASK.expand(3, 8, 8))(Segmenter()(pictures()))


def test_a_region_without_a_place_is_refused_and_the_advice_works() -> None:
    maps = torch.zeros(2, 3, 1, 2)
    maps[0, 1], maps[1, 0] = 1.0, 1.0
    with cav_error(ValueError, "class 1 has the largest score nowhere in sample 1", "Region(1, mask=torch.ones(1, 2))"):
        scores.Region(1)(maps)
    assert scores.Region(1, mask=torch.ones(1, 2))(maps).tolist() == [2.0, 0.0]
    with cav_error(ValueError, "the mask holds no place in samples 0, 1"):
        scores.Region(1, torch.zeros(1, 2))(maps)


def test_wrong_arguments_and_outputs_are_refused() -> None:
    maps = torch.zeros(2, 3, 1, 2)
    with cav_error(ValueError, "class_index is 3; expected 0 to 2, the model's classes"):
        scores.Region(3)(maps)
    with cav_error(TypeError, "class_index is 'cat'; expected the index of a class"):
        scores.Region("cat")  # type: ignore[arg-type]
    with cav_error(TypeError, "mask is a list; expected a tensor of shape (h, w) or (N, h, w)"):
        scores.Region(1, [[1]])  # type: ignore[arg-type]
    with cav_error(ValueError, "mask holds other numbers than 0 and 1; expected booleans, as mask > 0.5"):
        scores.Region(1, torch.full((1, 2), 0.5))
    with cav_error(TypeError, "the model returned a tensor of shape (2, 3); expected by the score Region"):
        scores.Region(1)(torch.zeros(2, 3))
    with cav_error(
        TypeError, "a tuple of length 2 that begins with a tensor of shape (2, 3, 1, 2)", "my_score(output[0])"
    ):
        scores.Region(1)((maps, maps))
    with cav_error(TypeError, "a dict with 'masks'", "my_score(output['masks'])"):
        scores.Region(1)({"masks": maps})


def test_the_advice_for_another_output_works() -> None:
    class Deep(Segmenter):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = super().forward(x)
            return found, found[:, :, ::2, ::2]

    x, my_score = pictures(), scores.Region(1)
    found = LayerCAV(Deep(), "features.1", score=lambda output: my_score(output[0])).attribute(x)
    assert torch.equal(found, LayerCAV(Segmenter(), "features.1", score=my_score).attribute(x))


# Volumes and videos --------------------------------------------------------------------------------------------------


def of_volumes() -> nn.Sequential:
    """Scores of shape (N, 4, 3, 4, 5)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 4, 1))
    return net.double().eval()


VOLUMES = torch.randn(2, 3, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
VOXELS = torch.zeros(3, 4, 5, dtype=torch.bool)
VOXELS[:2, 1:3, 2:] = True


@pytest.mark.parametrize(
    "score",
    [
        scores.Region(2),
        scores.Region(1, VOXELS),
        scores.Region(0, torch.stack([VOXELS, VOXELS.flip(0)])),
        scores.Region(3, VOXELS.double()),
    ],
    ids=["own", "mask", "masks", "numbers"],
)
def test_a_region_of_a_volume_is_explained_like_a_function_around_the_model(score: scores.Region) -> None:
    check_like_a_function(of_volumes(), "1", score, VOLUMES)


def test_the_map_of_a_region_of_a_volume_is_input_x_gradient() -> None:
    net, x = of_volumes(), VOLUMES.clone().requires_grad_()
    own = net(x).argmax(1) == 2
    (gradient,) = torch.autograd.grad((net(x)[:, 2] * own).sum(), x)
    found = InputCAV(net, score=scores.Region(2), normalize=None).attribute(VOLUMES)
    torch.testing.assert_close(found, (x * gradient).detach())


def test_a_volume_of_one_slice_is_a_picture() -> None:
    maps = Segmenter()(pictures()).detach()
    for class_index, mask in ((None, None), (2, None), (1, MASK), (0, MASKS)):
        slices = None if mask is None else mask.unsqueeze(-3)
        found = scores.Region(class_index, slices)(maps.unsqueeze(2))
        assert torch.equal(found, scores.Region(class_index, mask)(maps))


def test_wrong_masks_of_volumes_are_refused_and_the_advice_works() -> None:
    net, mask = of_volumes(), torch.ones(2, 6, 8, 10)
    with cav_error(
        ValueError,
        "mask has shape (2, 6, 8, 10); expected (3, 4, 5) or (N, 3, 4, 5), the size of the model's output",
        "torch.nn.functional.interpolate(mask.reshape(-1, 1, *mask.shape[-3:]).float(), (3, 4, 5))[:, 0]",
    ):
        InputCAV(net, score=scores.Region(1, mask)).attribute(VOLUMES)
    smaller = F.interpolate(mask.reshape(-1, 1, *mask.shape[-3:]).float(), (3, 4, 5))[:, 0]
    assert InputCAV(net, score=scores.Region(1, smaller)).attribute(VOLUMES).abs().sum() > 0
    said = r"mask has shape \(4, 5\); expected \(3, 4, 5\) or \(N, 3, 4, 5\), the size of the model's output\.$"
    with pytest.raises(ValueError, match=said):
        scores.Region(1, torch.ones(4, 5))(net(VOLUMES))
    with cav_error(ValueError, "class 3 has the largest score nowhere", "Region(3, mask=torch.ones(1, 1, 2))"):
        scores.Region(3)(-torch.arange(4.0).reshape(1, 4, 1, 1, 1).expand(1, 4, 1, 1, 2))
