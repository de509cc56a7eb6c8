"""Measures of a model that ends in a squashing function: scores are logits, and no probability is squashed twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from captum_cav.metrics import deletion, insertion, morf_lerf, single_deletion

PICTURES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))


def net(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), *last).eval()


class Halved(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.softmax(1) / 2


@pytest.mark.parametrize("measure", [deletion, insertion, morf_lerf, single_deletion])
@pytest.mark.parametrize("output", ["probability", "score"])
@pytest.mark.parametrize("last", [nn.Softmax(1), nn.LogSoftmax(1)], ids=["softmax", "log_softmax"])
def test_they_are_those_of_the_logits(measure: Any, output: str, last: nn.Module) -> None:
    found = measure(net(last), PICTURES, MAPS, [0, 2], output=output)
    torch.testing.assert_close(found, measure(net(), PICTURES, MAPS, [0, 2], output=output), rtol=1e-5, atol=1e-6)


def test_the_probability_behind_a_sigmoid_is_its_output() -> None:
    single = nn.Sequential(net(), nn.Linear(3, 1), nn.Sigmoid(), nn.Flatten(0))
    with torch.no_grad():
        before, after = single(PICTURES).double(), single(0 * PICTURES).double()
    # One step: the curve begins at the picture, and ends at the baseline.
    found = deletion(single, PICTURES, MAPS, None, steps=1, baseline="zero")
    torch.testing.assert_close(found, (before + after) / 2)


def test_a_function_that_cannot_be_seen_through_counts_as_it_is() -> None:
    found = single_deletion(net(Halved()), PICTURES, MAPS, [0, 2])
    like = single_deletion(net(nn.Softmax(1)), PICTURES, MAPS, [0, 2], output="probability")
    torch.testing.assert_close(found, like)
