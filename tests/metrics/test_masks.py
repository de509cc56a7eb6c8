"""Whether maps point at objects: mass and rank accuracy, pointing hit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from captum_cav.errors import CAVTypeError, InputError
from captum_cav.metrics import mass_accuracy, pointing_hit, rank_accuracy
from tests.metrics import reference
from tests.metrics.strategies import batches, few, masked

MEASURES = [mass_accuracy, rank_accuracy, pointing_hit]


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@few
@given(masked())
def test_mass_on_the_masks_grid(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    close(mass_accuracy(*pair), [reference.mass_accuracy(*each) for each in zip(*pair, strict=True)])


@few
@given(batches(), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_mass_on_a_finer_grid(maps: torch.Tensor, rows: int, columns: int, dice: Any) -> None:
    shape = (len(maps), maps.shape[1] * rows, maps.shape[2] * columns)
    masks = torch.tensor([dice.random() < 0.5 for _ in range(math.prod(shape))]).reshape(shape)
    masks[:, -1, -1] = True
    close(mass_accuracy(maps, masks), [reference.mass_accuracy(*each) for each in zip(maps, masks, strict=True)])


@few
@given(maps=batches(), height=st.integers(1, 7), width=st.integers(1, 7))
def test_all_of_the_mass_is_in_a_mask_of_everything(maps: torch.Tensor, height: int, width: int) -> None:
    found = mass_accuracy(maps, torch.ones(len(maps), height, width, dtype=torch.bool))
    assert torch.equal(found == 0, (maps <= 0).all(2).all(1))
    close(found[found > 0], [1.0] * int((found > 0).sum()))


SMALL = st.lists(st.integers(-1, 2), min_size=6, max_size=6)


@few
@given(SMALL, st.lists(st.booleans(), min_size=6, max_size=6).filter(any))
def test_ties_count_as_all_orders_would_on_average(values: list[int], inside: list[bool]) -> None:
    rows, mask = torch.tensor(values).reshape(2, 3).double(), torch.tensor(inside).reshape(2, 3)
    close(rank_accuracy(rows[None], mask[None]), [reference.expected_over_orders(rows, mask, int(mask.sum()))])
    close(pointing_hit(rows[None], mask[None]), [reference.expected_over_orders(rows, mask, 1)])


@pytest.mark.parametrize("size", [(8, 6), (5, 9), (3, 2), (2, 2)])
def test_ranks_on_another_grid_are_those_of_the_interpolated_map(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, masks = torch.randn(4, 4, 3, dtype=torch.float64), torch.rand(4, *size) < 0.4
    masks[:, 0, 0] = True
    spread = torch.tensor([reference.bilinear(rows, size) for rows in maps], dtype=torch.float64)
    for measure in (rank_accuracy, pointing_hit):
        assert torch.equal(measure(maps, masks), measure(spread, masks))
        assert len(measure(maps, masks).unique()) > 1


@pytest.mark.parametrize("measure", MEASURES)
@few
@given(pair=masked(), scale=st.sampled_from([0.25, 3.0, 1e-20]))
def test_properties(measure: Any, pair: tuple[torch.Tensor, torch.Tensor], scale: float) -> None:
    maps, masks = pair
    found = measure(maps, masks)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(measure(maps * scale, masks), found)
    if measure is not mass_accuracy:
        torch.testing.assert_close(measure(maps.exp() - 5, masks), found)
    one_by_one = [measure(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))]
    assert torch.equal(found, torch.cat(one_by_one))


def test_maps_that_say_little() -> None:
    mask = torch.tensor([[True, False, False], [False, True, False]])
    maps = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 0.1), -torch.arange(6.0).reshape(2, 3) - 1])
    masks = mask.expand(3, 2, 3)
    close(mass_accuracy(maps, masks), [0, 1 / 3, 0])
    # By chance where all is equal; of negative values the least negative are the highest.
    close(rank_accuracy(maps, masks), [1 / 3, 1 / 3, 1 / 2])
    close(pointing_hit(maps, masks), [1 / 3, 1 / 3, 1])
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    assert [float(measure(torch.tensor([[[2.0]]]), one)) for measure in MEASURES] == [1, 1, 1]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("maps", "masks", "error", "message"),
    [
        (torch.ones(2, 3, 3), torch.ones(1, 3, 3).bool(), InputError, "maps holds 2 examples and masks 1"),
        (torch.ones(2, 3, 3), torch.zeros(2, 3, 3).bool(), InputError, "masks selects nothing in samples 0, 1;"),
        (torch.ones(1, 3, 3), torch.ones(1, 3, 3), InputError, r"masks is a tensor of torch.float32 and shape"),
        (torch.ones(1, 3, 3), torch.ones(3, 3).bool(), InputError, r"expected booleans of shape \(N, H, W\)"),
        (torch.ones(1, 3, 3), [[True]], CAVTypeError, "masks is a list; expected a tensor"),
        (torch.ones(1, 1, 3, 3), torch.ones(1, 3, 3).bool(), InputError, r"maps has shape \(1, 1, 3, 3\)"),
        (torch.ones(0, 3, 3), torch.ones(0, 3, 3).bool(), InputError, "maps is empty"),
        (torch.full((1, 3, 3), math.nan), torch.ones(1, 3, 3).bool(), InputError, "maps holds NaN or infinity"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    measure: Any, maps: Any, masks: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure(maps, masks)
