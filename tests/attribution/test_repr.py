"""How attributions print: what they explain and how, in one short line."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV, NeuronCAV, presets, rules, scores

NET = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def scored(x: torch.Tensor) -> torch.Tensor:
    return x.sum(1)


@pytest.mark.parametrize(
    ("attribution", "shown"),
    [
        (LayerCAV(NET, "1"), "LayerCAV(Sequential, '1', rules='paper', normalize='score')"),
        (LayerCAV(NET, ["0", "1"], rules="pinpoint", normalize=None, score="logit"),
         "LayerCAV(Sequential, ['0', '1'], rules='pinpoint', normalize=None, score='logit')"),
        (InputCAV(scored, rules=presets.gamma() | {}), "InputCAV(scored, rules='gamma, changed', normalize='score')"),
        (InputCAV(NET, rules={nn.Linear: rules.EpsilonRule()}),
         "InputCAV(Sequential, rules='of yours', normalize='score')"),
        (NeuronCAV(NET, NET[1]), "NeuronCAV(Sequential, '1', rules='paper', normalize='score')"),
    ],
)  # fmt: skip
def test_an_attribution_says_what_it_explains(attribution: object, shown: str) -> None:
    assert repr(attribution) == shown


def test_a_score_that_is_a_function_is_named() -> None:
    region = scores.Region(1)
    assert repr(InputCAV(nn.Conv2d(3, 2, 1).eval(), score=region)).endswith(f"score={region!r})")


@pytest.mark.parametrize("kind", [LayerCAV, InputCAV, NeuronCAV])
def test_attribute_keeps_its_signature(kind: type) -> None:
    """Captum's decorator has no types, and hid the parameters from editors and type checkers."""
    parameters = inspect.signature(kind.attribute).parameters
    assert list(parameters)[:2] == ["self", "inputs"]
    assert kind.attribute.__wrapped__ is not None, "NoiseTunnel calls it"
