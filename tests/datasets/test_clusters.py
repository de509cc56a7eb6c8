"""Groups of maps: a planted group is found, chance is not taken for a group, distances are what they are said to be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from captum_cav.datasets.clusters import FARTHEST_BY_NATURE, Clustering, find_clusters
from captum_cav.errors import CAVTypeError, InputError, UnavailableError
from captum_cav.maps import resize_map
from tests.support.errors import raising


def smooth(count: int, side: int, seed: int, *, coarse: int = 3) -> torch.Tensor:
    """Random maps whose neighbouring places are similar, as those of networks."""
    generator = torch.Generator().manual_seed(seed)
    return resize_map(torch.randn(count, coarse, coarse, generator=generator).double(), (side, side))


def with_mark(count: int, marked: int, seed: int = 0) -> torch.Tensor:
    """Maps of 8 x 8 places, of which the first ones have a strong contribution in the upper right corner.

    The last map has no contributions.
    """
    maps = smooth(count, 8, seed)
    maps[-1] = 0
    generator = torch.Generator().manual_seed(seed)
    maps[:marked, :2, 6:] += maps.abs().mean() * (20 + torch.randn(marked, 2, 2, generator=generator))
    return maps


def same(one: Clustering, other: Clustering) -> bool:
    return (
        [cluster.members for cluster in one.clusters] == [cluster.members for cluster in other.clusters]
        and one.distance == pytest.approx(other.distance)
        and one.chance == pytest.approx(other.chance)
    )


@pytest.mark.parametrize("marked", [10, 75], ids=lambda marked: f"{marked} of 100")
def test_a_planted_group_is_found_and_reported(marked: int) -> None:
    maps = with_mark(100, marked)
    found = find_clusters(maps)
    assert found.is_reported
    assert found.standout is not None
    assert sorted(found.standout.members) == list(range(marked))
    assert found.standout.has_more
    assert found.standout.place[0] < 2
    assert found.standout.place[1] >= 6
    assert found.standout.mean[:2, 6:].sum() > 0.5
    distances = [cluster.distance for cluster in found.clusters]
    assert distances == sorted(distances, reverse=True)
    assert sorted(place for cluster in found.clusters for place in cluster.members) == list(range(100))


def test_distances_are_those_of_fishers_discriminant() -> None:
    maps = with_mark(100, 40).numpy()
    found = find_clusters(torch.from_numpy(maps))
    assert found.standout is not None
    rows = maps.reshape(100, -1) / np.maximum(np.abs(maps).sum((1, 2))[:, None], 1e-9)
    group, rest = rows[:40], rows[40:]
    difference = group.mean(0) - rest.mean(0)
    fisher = (difference @ difference) ** 2 / ((group @ difference).var() + (rest @ difference).var())
    assert found.standout.in_total == pytest.approx(np.sqrt(2 * fisher), rel=1e-4)
    place = found.standout.place[0] * 8 + found.standout.place[1]
    alone = difference[place] ** 2 / (group[:, place].var() + rest[:, place].var())
    assert found.standout.at_place == pytest.approx(np.sqrt(2 * alone), rel=1e-2)
    assert found.distance == min(found.standout.in_total, found.standout.at_place)
    similar = torch.nn.functional.cosine_similarity(
        torch.from_numpy(rows)[list(found.standout.members)], torch.from_numpy(group.mean(0))[None]
    ).tolist()
    assert similar == sorted(similar, reverse=True), "the most typical comes first"
    assert np.allclose(found.standout.mean.flatten(), group.mean(0))
    # The first coordinate of the points is the position along that difference, around the middle.
    along = found.points[:, 0]
    assert float(along[:40].mean()) == pytest.approx(found.standout.in_total / 2)
    assert float(along[40:].mean()) == pytest.approx(-found.standout.in_total / 2)


@pytest.mark.parametrize("seed", range(4))
def test_maps_without_groups_are_not_reported(seed: int) -> None:
    found = find_clusters(smooth(120, 8, seed))
    assert not found.is_reported
    assert found.distance < FARTHEST_BY_NATURE


def test_what_chance_explains_is_not_reported() -> None:
    # A few maps with many independent places always fall into groups that seem to stand far apart.
    maps = torch.randn(20, 16, 16, generator=torch.Generator().manual_seed(3))
    found = find_clusters(maps)
    assert found.standout is not None
    assert found.standout.in_total > FARTHEST_BY_NATURE
    assert not found.is_reported


def test_a_group_of_another_kind_everywhere_is_not_reported() -> None:
    # The maps differ a little in every place, as ways of writing do. No place alone tells both groups apart.
    generator = torch.Generator().manual_seed(0)
    maps = 1 + 0.5 * torch.randn(100, 12, 12, generator=generator)
    maps[:50, ::2] += 0.5
    maps[50:, 1::2] += 0.5
    found = find_clusters(maps)
    assert found.standout is not None
    assert sorted(found.standout.members) in (list(range(50)), list(range(50, 100)))
    assert found.standout.in_total > FARTHEST_BY_NATURE
    assert found.standout.at_place < FARTHEST_BY_NATURE
    assert not found.is_reported


def test_the_result_is_the_same_again_and_hangs_on_no_order_and_no_scale() -> None:
    maps = with_mark(80, 30)
    found = find_clusters(maps, seed=5)
    state = torch.get_rng_state()
    scales = torch.rand(80, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert same(found, find_clusters(maps * scales, seed=5))
    assert torch.equal(state, torch.get_rng_state())
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    turned = find_clusters(maps[order], seed=5)
    assert turned.standout is not None
    assert found.standout is not None
    assert [int(order[place]) for place in turned.standout.members] == list(found.standout.members)


@pytest.mark.parametrize(
    "maps",
    [torch.rand(19, 4, 4), torch.ones(40, 4, 4), torch.zeros(40, 4, 4)],
    ids=["few", "equal", "zeros"],
)
def test_where_there_can_be_no_groups_there_are_none(maps: torch.Tensor) -> None:
    found = find_clusters(maps)
    assert (found.clusters, found.standout, found.distance, found.is_reported) == ((), None, 0.0, False)
    assert found.points.shape == (len(maps), 2)


@pytest.mark.parametrize("shape", [(40, 1, 1), (40, 1, 2), (40, 5, 1)])
def test_maps_of_few_places(shape: tuple[int, ...]) -> None:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = find_clusters(maps)
    assert not found.is_reported
    assert found.points.shape == (40, 2)
    assert bool(found.points.isfinite().all())


def test_wrong_maps_are_refused() -> None:
    with raising(CAVTypeError, TypeError, "maps is a list; expected a tensor"):
        find_clusters([[1.0]])  # type: ignore[arg-type]
    with raising(InputError, ValueError, r"maps has shape \(3, 4\); expected \(N, h, w\)"):
        find_clusters(torch.ones(3, 4))
    with raising(InputError, ValueError, "maps"):
        find_clusters(torch.full((30, 2, 2), torch.nan))


def test_without_scikit_learn_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    message = r'not installed; expected pip install "captum_cav\[analysis\]"'
    with raising(UnavailableError, NotImplementedError, message):
        find_clusters(torch.ones(30, 2, 2))
