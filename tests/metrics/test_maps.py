"""Measures of maps alone: sparseness, entropy, completeness, agreement."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_cav import LayerCAV
from captum_cav.errors import InputError, OptionError
from captum_cav.metrics import agreement, completeness, entropy, sparseness, spearman
from tests.metrics import reference
from tests.metrics.strategies import batches, few


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12, equal_nan=True
    )


@few
@given(batches())
def test_sparseness_is_the_mean_difference(maps: torch.Tensor) -> None:
    close(sparseness(maps), [reference.gini(rows) for rows in maps])


@few
@given(batches())
def test_entropy_is_the_sum_of_its_definition(maps: torch.Tensor) -> None:
    close(entropy(maps), [reference.entropy(rows) for rows in maps])


@pytest.mark.parametrize("measure", [sparseness, entropy])
@few
@given(maps=batches(), scale=st.sampled_from([-2.0, 1e-30, 3.0, 1e30]))
def test_concentration_does_not_depend_on_scale_sign_or_place(
    measure: object, maps: torch.Tensor, scale: float
) -> None:
    assert callable(measure)
    expected = measure(maps)
    torch.testing.assert_close(measure(maps * scale), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(measure(maps.flip(1).mT), expected, rtol=1e-12, atol=1e-12)
    assert ((expected >= 0) & (expected <= 1)).all()


@few
@given(batches())
def test_dividing_cells_does_not_change_the_sparseness(maps: torch.Tensor) -> None:
    divided = maps.repeat_interleave(2, 1).repeat_interleave(3, 2) / 6
    torch.testing.assert_close(sparseness(divided), sparseness(maps), rtol=1e-12, atol=1e-12)


def test_concentration_of_maps_that_say_little() -> None:
    maps = torch.stack([torch.zeros(2, 3), torch.full((2, 3), -0.1), torch.eye(3)[:2] * -7])
    maps[2, 1, 1] = 0
    assert sparseness(maps).tolist() == pytest.approx([0, 0, 5 / 6])
    assert entropy(maps).tolist() == pytest.approx([1, 1, 0])
    single = torch.tensor([[[3.0]], [[0.0]]])
    assert sparseness(single).tolist() == [0, 0]
    assert entropy(single).tolist() == [0, 0]


def test_half_precision_is_summed_in_double() -> None:
    maps = torch.full((1, 300, 300), 7.0, dtype=torch.float16)
    maps[0, 0, 0] = 0
    close(sparseness(maps), [1 / 90000])
    close(completeness(maps, torch.tensor([2.0])), [1 - 7 * 89999 / 2])


def test_completeness_is_the_share_that_biases_keep() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    net = net.double()
    pictures = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    scores = net(pictures)[:, 1].detach()
    maps = LayerCAV(net, "1", normalize=None).attribute(pictures, 1).sum(1)
    # Behind layer 1 there is one constant, the bias.
    close(completeness(maps, scores), (net[3].bias[1].detach() / scores).tolist())
    assert completeness(torch.ones(1, 1, 1), torch.zeros(1)).tolist() == [-math.inf]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(3), "maps holds 2 examples and scores 3"),
        (torch.ones(2, 1), r"scores has shape \(2, 1\); expected \(N,\)"),
        (torch.tensor([1.0, math.nan]), "a finite number for each of 2 examples"),
        ([1.0, 2.0], "scores is a list; expected a tensor"),
    ],
    ids=str,
)
def test_scores_that_do_not_fit_are_refused(scores: object, message: str) -> None:
    with pytest.raises((InputError, TypeError), match=message):
        completeness(torch.ones(2, 2, 2), scores)


@few
@given(st.data())
def test_spearman_and_cosine_by_definition(data: st.DataObject) -> None:
    maps = data.draw(batches())
    numbers = st.lists(st.integers(-2, 2), min_size=maps.numel(), max_size=maps.numel())
    others = torch.tensor(data.draw(numbers), dtype=torch.float64).reshape(maps.shape)
    pairs = [(reference.places(one), reference.places(other)) for one, other in zip(maps, others, strict=True)]
    close(agreement(maps, others), [reference.spearman(*pair) for pair in pairs])
    close(spearman(maps, others), [reference.spearman(*pair) for pair in pairs])
    close(agreement(maps, others, similarity="cosine"), [reference.cosine(*pair) for pair in pairs])


@few
@given(batches(least=2))
def test_agreement_is_of_orders_or_of_directions(maps: torch.Tensor) -> None:
    ranked = agreement(maps, maps.exp() * 3 + 1)
    assert torch.equal(ranked.nan_to_num(1.0), torch.ones(len(maps), dtype=torch.float64))
    assert torch.equal(agreement(maps, -maps).isnan(), ranked.isnan())
    assert torch.equal(agreement(maps, -maps).nan_to_num(-1.0), -torch.ones(len(maps), dtype=torch.float64))
    assert torch.equal(agreement(maps, maps.flip(2)).nan_to_num(9), agreement(maps.flip(2), maps).nan_to_num(9))
    along = agreement(maps * 1e-150, maps * 1e100, similarity="cosine")
    torch.testing.assert_close(along.nan_to_num(1.0), torch.ones(len(maps), dtype=torch.float64), rtol=1e-14, atol=0)


@few
@given(batches(), st.integers(1, 3), st.integers(1, 3))
def test_agreement_across_resolutions(maps: torch.Tensor, rows: int, columns: int) -> None:
    fine = torch.randn(
        len(maps), maps.shape[1] * rows, maps.shape[2] * columns, generator=torch.Generator().manual_seed(0)
    ).double()
    size = fine.shape[1], fine.shape[2]
    spread = [reference.places(reference.bilinear(one, size)) for one in maps]
    expected = [reference.cosine(one, reference.places(other)) for one, other in zip(spread, fine, strict=True)]
    close(agreement(maps, fine, similarity="cosine"), expected)
    close(agreement(fine, maps, similarity="cosine"), expected)


@few
@given(st.floats(-1, 1), st.integers(1, 5), st.integers(2, 7))
def test_even_maps_have_no_order_at_any_resolution(value: float, side: int, new: int) -> None:
    maps = torch.full((1, side, side), value)
    assert agreement(maps, torch.rand(1, side + new, side + new)).isnan().all()


def test_an_unknown_similarity_is_refused() -> None:
    with pytest.raises(OptionError, match='similarity is \'ssim\'; expected "spearman" or "cosine"'):
        agreement(torch.ones(1, 2, 2), torch.ones(1, 2, 2), similarity="ssim")  # type: ignore[arg-type]
