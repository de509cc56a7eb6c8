"""Targets and inputs that are nearly right, and wrappers of Captum around several layers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import CAVError
from tests.support.errors import cav_error
from tests.support.networks import fixed
from tests.support.rules import filled
from tests.support.tensors import assert_same

PLACES = fixed(2, 3, 4)


def places(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_a_tensor_of_rows_is_no_target_and_the_message_says_what_is() -> None:
    target = torch.tensor([[2, 3], [1, 0]])
    with pytest.raises(CAVError, match="a list of 2 indices or tuples, one for each sample") as caught:
        InputCAV(places).attribute(PLACES, target)
    advised = re.search(r"pass target=(.*)\.$", str(caught.value))
    assert advised is not None
    found = InputCAV(places, normalize=None).attribute(PLACES, eval(advised[1], {"target": target}))  # noqa: S307
    assert found.count_nonzero() == 2
    assert found[0, 2, 3] == 2 * PLACES[0, 2, 3]


@pytest.mark.parametrize("target", [torch.ones(2, 1, 2).long(), torch.ones(3, 2).long()], ids=["3-D", "rows"])
def test_other_tensors_are_no_targets(target: torch.Tensor) -> None:
    with cav_error(ValueError, "a list of 2 indices or tuples", "pass target=(i, ...)"):
        InputCAV(places).attribute(PLACES, target)


@pytest.mark.parametrize("target", [[[2, 3], [1, 0]], [2.0, 1.0], ["a", "b"]], ids=str)
def test_lists_of_something_else_are_no_targets(target: Any) -> None:
    with cav_error(TypeError, "target[0] is", "a list of integers or tuples, one for each sample"):
        InputCAV(places).attribute(PLACES, target)


def embedded(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return x * (1.0 + ids[:, None])


def test_integers_among_the_inputs_are_named_with_what_to_do() -> None:
    x, ids = fixed(2, 3), torch.tensor([1, 2])
    with cav_error(TypeError, "inputs[1] is a tensor of torch.int64", "pass it by additional_forward_args"):
        InputCAV(embedded).attribute((x, ids), 0)
    expected = InputCAV(embedded).attribute(x, 0, additional_forward_args=ids)
    with cav_error(TypeError, "inputs[0] is a tensor of torch.int64", "forward_func=lambda x: model(ids, x)"):
        InputCAV(lambda ids, x: embedded(x, ids)).attribute((ids, x), 0)
    assert_same(InputCAV(lambda x: embedded(x, ids)).attribute(x, 0), expected)
    with cav_error(TypeError, "inputs are torch.int64", "use LayerCAV at the layer that takes them"):
        InputCAV(lambda ids: embedded(x, ids)).attribute(ids, 0)
    with cav_error(TypeError, "inputs['ids'] is a tensor of torch.int64", "pass it by additional_forward_kwargs"):
        InputCAV(lambda mask, ids: embedded(x, ids)).attribute({"ids": ids, "mask": ids}, 0)


# Wrappers of Captum -------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


def test_noise_tunnel_takes_several_layers() -> None:
    model, x = net(), fixed(2, 3)
    quiet: dict[str, Any] = {"nt_samples": 3, "stdevs": 1e-12, "target": 0}
    found = NoiseTunnel(LayerCAV(model, ["0", "1"], normalize=None)).attribute(x, **quiet)
    expected = LayerCAV(model, ["0", "1"], normalize=None).attribute(x, 0)
    assert isinstance(found, tuple)
    assert isinstance(expected, list)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    (alone,) = NoiseTunnel(LayerCAV(model, ["1"], normalize=None)).attribute(x, **quiet)
    torch.testing.assert_close(alone, expected[1])


def test_noise_tunnel_gets_a_sentence_where_it_cannot_add_up() -> None:
    with cav_error(ValueError, "such as NoiseTunnel, takes the delta of one layer", "one layer at a time"):
        NoiseTunnel(LayerCAV(net(), ["0", "1"])).attribute(
            fixed(2, 3), target=0, nt_samples=2, return_convergence_delta=True
        )

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0])

    model = filled(Recurrent())
    with cav_error(ValueError, "such as NoiseTunnel, takes several layers only if each of them gives one tensor"):
        NoiseTunnel(LayerCAV(model, ["lstm", "head"])).attribute(fixed(2, 3), target=0, nt_samples=2)
    attributions, delta = NoiseTunnel(LayerCAV(model, "head")).attribute(
        fixed(2, 3), target=0, nt_samples=2, return_convergence_delta=True
    )
    assert attributions.shape == (2, 2)
    assert delta.shape == (4,)
