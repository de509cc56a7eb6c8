"""Maps and masks for properties."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st

few = settings(max_examples=20)


@st.composite
def batches(draw: st.DrawFn, values: st.SearchStrategy[int] | None = None, least: int = 1) -> torch.Tensor:
    """Maps of few values, so that many are equal: (N, h, w)."""
    examples, height, width = draw(st.integers(1, 3)), draw(st.integers(least, 5)), draw(st.integers(least, 5))
    count = examples * height * width
    numbers = draw(st.lists(values or st.integers(-3, 3), min_size=count, max_size=count))
    return torch.tensor(numbers, dtype=torch.float64).reshape(examples, height, width)


@st.composite
def masked(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and masks of the same grid, none of them empty."""
    maps = draw(batches())
    numbers = draw(st.lists(st.booleans(), min_size=maps.numel(), max_size=maps.numel()))
    masks = torch.tensor(numbers).reshape(maps.shape)
    masks[:, 0, 0] |= ~masks.flatten(1).any(1)
    return maps, masks
