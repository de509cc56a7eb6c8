"""The measures make the host wait for nothing between their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from captum_cav import InputCAV, metrics
from tests.gpu.networks import on
from tests.gpu.reads import check_reads, names_of


class Given:
    """What measures need: maps of a small network, on the device.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.model, pictures, _ = on("reused", device)
        self.inputs = pictures.repeat(3, 1, 1, 1)[:8]
        self.target = [0, 1, 2, 3, 0, 1, 2, 3]
        self.maps = self.inputs.sum(1)
        self.others = self.maps[:, ::2, ::2] * 2
        self.masks = self.maps > 0
        self.scores = self.maps.sum((1, 2))

    def explain(self, model: Any, inputs: torch.Tensor, target: Any) -> torch.Tensor:
        found: torch.Tensor = InputCAV(model, normalize=None).attribute(inputs, target).sum(1)
        return found


_ARGUMENTS: dict[str, dict[str, Any]] = {"deletion": {"steps": 3}, "insertion": {"steps": 3}, "morf_lerf": {"steps": 3}}
_CASES: dict[str, Callable[[Given], Any]] = {
    name: lambda given, measure=measure, name=name: measure(
        **{need: getattr(given, need) for need in measure.needs}, **_ARGUMENTS.get(name, {})
    )
    for name, measure in metrics.MEASURES.items()
} | {
    "deletion of means": lambda given: metrics.deletion(
        given.model, given.inputs, given.maps, given.target, steps=3, baseline="mean", output="score"
    ),
    "insertion into zeros": lambda given: metrics.insertion(
        given.model, given.inputs, given.others, given.target, steps=3, baseline="zero"
    ),
    "agreement by cosine": lambda given: metrics.agreement(given.maps, given.others, similarity="cosine"),
    "shares_in_cells": lambda given: metrics.shares_in_cells(given.maps),
}


@pytest.mark.parametrize("name", _CASES)
def test_a_measure_waits_for_nothing(name: str, cuda_or_meta: torch.device) -> None:
    given = Given(cuda_or_meta)
    check_reads(f"measure {name}", cuda_or_meta, _CASES[name], given)


def test_the_list_names_measures_that_exist() -> None:
    assert names_of("measure") <= set(metrics.MEASURES)
