"""Spectral relevance analysis: groups of maps that explain the same class in different ways.

A network that goes by a mark in the corner of some pictures has other maps for these pictures than for the others. So
the maps of one class fall into groups, and the group with the mark stands far apart from the rest. Nobody has to know
the mark before.

The steps are those of Lapuschkin, Waeldchen, Binder, Montavon, Samek and Mueller, Unmasking Clever Hans predictors and
assessing what machines really learn, 2019: a graph of nearest neighbours among the maps, the eigenvectors of its
Laplacian, k-means. How far a group stands apart is measured by Fisher's discriminant, as in Anders, Weber, Neumann,
Samek, Mueller and Lapuschkin, Finding and removing Clever Hans, 2022.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from captum_cav import checks
from captum_cav.errors import UnavailableError

__all__ = ["Cluster", "Clustering", "find_clusters"]

_Array: TypeAlias = npt.NDArray[Any]

#: A group is reported if it stands farther apart than this, in standard deviations. The halves of a single normal
#: distribution stand 2.7 apart; ways of writing a digit stand 3 to 6 apart.
FARTHEST_BY_NATURE = 6.0
#: Fewer maps than this are not clustered.
FEWEST_MAPS = 20
# A smaller group may be chance: so many maps, and this share of all maps.
_SMALLEST_GROUP = 5
_SMALLEST_SHARE = 0.05
# The graph links each map with so many nearest neighbours.
_NEIGHBOURS = 10
# The largest number of groups that is tried. A class has few strategies.
_MOST_GROUPS = 6
# So many times maps without groups are drawn. The largest distance of 19 draws is exceeded by chance once in 20.
_DRAWS = 19
# A group varies at least by this part of the variance of all maps. Otherwise a group without any variance would stand
# infinitely far apart.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Cluster:
    """Maps that are similar to each other and differ from the other maps of the class.

    Attributes:
        members: the positions of the maps. The most typical map comes first: the map that is most similar to the mean.
        mean: shape (h, w), the mean map. Each map counts as parts of its own size, so the absolute values of a map add
            up to 1.
        distance: how far the cluster stands apart from all other maps of the class, in standard deviations; the smaller
            one of ``in_total`` and ``at_place``.
        in_total: the distance along the difference of the two mean maps. This is the square root of twice Fisher's
            discriminant.
        at_place: the same distance in one place alone, the place where it is largest.
        place: row and column of that place.
        has_more: whether the cluster has more contribution than the other maps at that place.
    """

    members: tuple[int, ...]
    mean: torch.Tensor
    distance: float
    in_total: float
    at_place: float
    place: tuple[int, int]
    has_more: bool


@dataclass(frozen=True)
class Clustering:
    """How the maps of one class fall into groups.

    Attributes:
        clusters: the groups, that which stands farthest apart first; empty if there are too few maps.
        standout: the group that stands apart most, and has more contribution than the other maps at the place
            where both differ most. It is one of the clusters, or all maps outside of one cluster. None if no group is
            large enough.
        chance: the largest distance of maps that were drawn from a single normal distribution with the mean and the
            covariance of the maps. None if that was not needed, because no group stands far apart.
        eigenvalues: of the Laplacian, the smallest first. A large gap behind the k-th says that there are k groups.
        points: shape (N, 2), a position for each map. The first coordinate is the position along the difference between
            ``standout`` and the rest, in standard deviations from the middle between both. The second coordinate is the
            direction in which the maps differ most otherwise.
    """

    clusters: tuple[Cluster, ...]
    standout: Cluster | None
    chance: float | None
    eigenvalues: tuple[float, ...]
    points: torch.Tensor

    @property
    def distance(self) -> float:
        """How far ``standout`` stands apart, in standard deviations; 0 if there is none."""
        return self.standout.distance if self.standout else 0.0

    @property
    def is_reported(self) -> bool:
        """Whether one group goes by something that the other pictures of the class do not have.

        It stands farther apart than ``FARTHEST_BY_NATURE`` (6), in total and at one place alone, and farther than
        chance explains.
        """
        return self.chance is not None and self.distance > max(self.chance, FARTHEST_BY_NATURE)


def find_clusters(maps: torch.Tensor, *, seed: int = 0) -> Clustering:
    """Find groups among the maps of one class, and measure how far they stand apart.

    The same maps and the same seed give the same groups.

    Args:
        maps: shape (N, h, w), contribution maps of one class and one layer. At most 16 x 16 places are advised, see
            :func:`captum_cav.visualization.resize_map`. A map of zeros counts as it is.
        seed: for k-means, and for the maps that are drawn to measure chance.

    Returns:
        The groups. With fewer than 20 maps, or with maps of a single place, there are none.

    Raises:
        CAVTypeError, InputError: for what is not such a tensor.
        UnavailableError: if scikit-learn is not installed.

    Source: see :mod:`captum_cav.datasets.clusters`. The maps without groups are those of Liu, Hayes, Nobel and Marron,
    Statistical significance of clustering for high-dimension, low-sample size data, 2008.

    Example::

        >>> generator = torch.Generator().manual_seed(0)
        >>> maps = torch.rand(60, 4, 4, generator=generator)
        >>> find_clusters(maps).is_reported
        False
        >>> maps[:20, 0, 0] += 9                     # a third of the maps has a mark in the corner
        >>> found = find_clusters(maps)
        >>> found.is_reported, found.standout.place, sorted(found.standout.members) == list(range(20))
        (True, (0, 0), True)
    """
    require_sklearn()
    maps = checks.check_maps(maps, sides=2).double().cpu()
    features = in_parts_of_size(maps).flatten(1).numpy()
    if len(features) < FEWEST_MAPS or features.shape[1] < 2 or not float(features.var(0).sum()) > 0:
        return Clustering((), None, None, (), torch.zeros(len(features), 2, dtype=torch.float64, device="cpu"))
    eigenvalues, labels, inside = _best_groups(features, seed)
    if inside is None:
        return Clustering((), None, None, eigenvalues, _points(features, None))
    shape = (maps.shape[1], maps.shape[2])
    standout = _cluster(features, inside, shape)
    if not standout.has_more:
        inside = ~inside
        standout = _cluster(features, inside, shape)
    clusters = [_cluster(features, labels == label, shape) for label in np.unique(labels)]
    return Clustering(
        tuple(sorted(clusters, key=lambda cluster: -cluster.distance)),
        standout,
        _chance(features, seed) if standout.distance > FARTHEST_BY_NATURE else None,
        eigenvalues,
        _points(features, inside),
    )


def require_sklearn() -> None:
    """Refuse to work without scikit-learn.

    Raises:
        UnavailableError: if scikit-learn is not installed; the message says how to install it.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            'groups of maps need scikit-learn, which is not installed; expected pip install "captum_cav[analysis]".'
        ) from error


def in_parts_of_size(maps: torch.Tensor) -> torch.Tensor:
    """Maps whose absolute values add up to 1, so that each picture counts equally. A map of zeros stays as it is.

    Args:
        maps: shape (N, h, w).

    Example::

        >>> in_parts_of_size(torch.tensor([[[3.0, -1.0]], [[0.0, 0.0]]]))
        tensor([[[ 0.7500, -0.2500]],
        <BLANKLINE>
                [[ 0.0000,  0.0000]]])
    """
    sizes = maps.abs().sum((1, 2), keepdim=True)
    return maps / torch.where(sizes > 0, sizes, 1)


def typical_first(features: torch.Tensor) -> list[int]:
    """The positions of maps, the most similar to their mean first.

    Args:
        features: shape (N, h, w).

    Example::

        >>> typical_first(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.9, 0.2]]]))
        [2, 0, 1]
    """
    rows = features.flatten(1)
    similar = torch.nn.functional.cosine_similarity(rows, rows.mean(0, keepdim=True))
    return similar.argsort(descending=True, stable=True).tolist()


def _best_groups(features: _Array, seed: int) -> tuple[tuple[float, ...], _Array, _Array | None]:
    """The eigenvalues, the labels of the groups, and which maps are in the group that stands apart most.

    The number of groups is that for which one group stands apart most.
    """
    eigenvalues, eigenvectors = _spectrum(features)
    best: tuple[float, _Array, _Array | None] = (-math.inf, np.zeros(len(features), int), None)
    for labels in _partitions(eigenvectors, seed):
        for label in np.unique(labels):
            inside = labels == label
            fewer = min(inside.sum(), (~inside).sum())
            if fewer >= max(_SMALLEST_GROUP, _SMALLEST_SHARE * len(features)):
                in_total, at_place, _ = _distances(features, inside)
                # A large distance at one place alone may be chance; in total alone, a difference without a place.
                if in_total * at_place > best[0]:
                    best = (in_total * at_place, labels, inside)
    return tuple(eigenvalues.tolist()), best[1], best[2]


def _spectrum(features: _Array) -> tuple[_Array, _Array]:
    """The smallest eigenvalues of the normalized Laplacian of the graph of neighbours, and their eigenvectors."""
    from scipy.linalg import eigh
    from scipy.sparse.csgraph import laplacian
    from sklearn.neighbors import kneighbors_graph

    count = len(features)
    linked = kneighbors_graph(features, min(_NEIGHBOURS, count - 1)).toarray()
    graph = laplacian(np.maximum(linked, linked.T), normed=True)
    eigenvalues, eigenvectors = eigh(graph, subset_by_index=(0, min(_MOST_GROUPS, count - 1)))
    return eigenvalues, eigenvectors


def _partitions(eigenvectors: _Array, seed: int) -> Iterator[_Array]:
    """The labels of the maps for each number of groups."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    for count in range(2, _MOST_GROUPS + 1):
        with warnings.catch_warnings():
            # Equal maps lie on one point, so there may be fewer groups than asked for.
            warnings.simplefilter("ignore", ConvergenceWarning)
            yield KMeans(count, n_init=3, random_state=seed).fit_predict(eigenvectors[:, :count])


def _distances(features: _Array, inside: _Array) -> tuple[float, float, int]:
    """How far a group stands apart, in total and at one place, in standard deviations; and which place that is."""
    group, rest = features[inside], features[~inside]
    difference = group.mean(0) - rest.mean(0)
    along = features @ difference
    in_total = np.abs(along[inside].mean() - along[~inside].mean()) / _deviation(along, inside, along.var())
    at_places = np.abs(difference) / _deviation(features, inside, features.var(0).mean())
    place = int(at_places.argmax())
    return float(in_total), float(at_places[place]), place


def _deviation(values: _Array, inside: _Array, of_all: Any) -> Any:
    """The standard deviation inside of a group and outside, for each column.

    Args:
        values: shape (N,) or (N, columns).
        inside: shape (N,), which values are in the group.
        of_all: the variance of all values.
    """
    variance = (values[inside].var(0) + values[~inside].var(0)) / 2 + _LEAST_VARIANCE * of_all
    return np.sqrt(np.where(variance > 0, variance, 1))


def _cluster(features: _Array, inside: _Array, shape: tuple[int, int]) -> Cluster:
    in_total, at_place, place = _distances(features, inside)
    members = np.flatnonzero(inside)
    group = torch.from_numpy(features[inside]).reshape(-1, *shape)
    return Cluster(
        members=tuple(int(members[position]) for position in typical_first(group)),
        mean=group.mean(0),
        distance=min(in_total, at_place),
        in_total=in_total,
        at_place=at_place,
        place=divmod(place, shape[1]),
        has_more=bool(features[inside, place].mean() > features[~inside, place].mean()),
    )


def _chance(features: _Array, seed: int) -> float:
    """The largest distance in maps without groups. Few maps with many places fall apart by chance alone."""
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(features)
    variances, directions = np.linalg.eigh(covariance)
    scaled = directions * np.sqrt(variances.clip(min=0))
    generator = np.random.default_rng(seed)
    found = 0.0
    for _ in range(_DRAWS):
        drawn = features.mean(0) + generator.standard_normal(features.shape) @ scaled.T
        inside = _best_groups(drawn, seed)[2]
        if inside is not None:
            found = max(found, min(_distances(drawn, inside)[:2]))
    return found


def _points(features: _Array, inside: _Array | None) -> torch.Tensor:
    """See :attr:`Clustering.points`. Without a group, the two directions in which the maps differ most."""
    centred = features - features.mean(0)
    if inside is None:
        directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
        return torch.from_numpy(centred @ directions.T)
    difference = features[inside].mean(0) - features[~inside].mean(0)
    along = features @ difference
    middle = (along[inside].mean() + along[~inside].mean()) / 2
    deviation = _deviation(along, inside, along.var())
    unit = difference / np.linalg.norm(difference)
    others = centred - np.outer(centred @ unit, unit)
    direction = np.linalg.svd(others, full_matrices=False)[2][0]
    return torch.from_numpy(np.stack([(along - middle) / deviation, others @ direction], 1))
