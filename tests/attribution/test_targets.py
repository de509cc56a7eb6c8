"""Which output is explained: every form of a target is taken, and one that does not fit is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_cav import InputCAV, LayerCAV
from captum_cav.errors import (
    CAVError,
    CAVTypeError,
    TargetError,
)
from tests.support.errors import raising, refused
from tests.support.networks import fixed
from tests.support.small_networks import samples, small_net
from tests.support.tensors import assert_same


def test_a_missing_target_is_refused_where_a_sample_has_several_scores() -> None:
    net = small_net()
    said = ("target is missing", "3 values a sample", "(2, 3)", "target=i with i from 0 to 2")
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(ValueError, *said, model=net):
            attribution.attribute(samples())
    maps = nn.Conv2d(1, 3, 1)
    with refused(ValueError, "target is missing", "12 values", "one index for each of the sizes (3, 2, 2)", model=maps):
        InputCAV(maps).attribute(torch.ones(2, 1, 2, 2))


@pytest.mark.parametrize("count", [1, 2])
def test_no_target_is_needed_where_a_sample_has_one_score(count: int) -> None:
    net, x = small_net(outputs=1), samples(count)
    expected = LayerCAV(net, "0").attribute(x, 0)
    torch.testing.assert_close(LayerCAV(net, "0").attribute(x), expected)
    torch.testing.assert_close(LayerCAV(lambda x: net(x)[:, 0], net[0]).attribute(x), expected)


def test_a_target_is_refused_where_the_output_has_no_choices() -> None:
    with refused(ValueError, "target is 0", "0 dimensions", "output shape (2,)", "pass no target"):
        InputCAV(lambda x: x.sum(1)).attribute(samples(), 0)


OUT_OF_RANGE: dict[str, tuple[Any, str]] = {
    "int-high": (3, "target is 3"),
    "int-low": (-4, "target is -4"),
    "tuple-high": ((3,), "target is (3,)"),
    "tuple-low": ((-4,), "target is (-4,)"),
    "list-high": ([0, 3], "target[1] is 3"),
    "list-low": ([-4, 0], "target[0] is -4"),
    "list-of-tuples": ([(0,), (3,)], "target[1] is (3,)"),
    "tensor-high": (torch.tensor([3, 0]), "target[0] is 3"),
    "tensor-low": (torch.tensor([0, -4]), "target[1] is -4"),
    "tensor-of-one": (torch.tensor(3), "target is 3"),
}


@pytest.mark.parametrize(("target", "given"), list(OUT_OF_RANGE.values()), ids=list(OUT_OF_RANGE))
def test_a_target_out_of_range_is_refused(target: Any, given: str) -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(ValueError, given, "out of range for output shape (2, 3)", "0 to 2", model=net):
            attribution.attribute(samples(), target)


@pytest.mark.parametrize("target", [(3, 0, 0), (0, -3, 0), (0, 0, 2)])
def test_an_index_out_of_range_of_any_dimension_is_refused(target: tuple[int, ...]) -> None:
    net = nn.Conv2d(1, 3, 1)
    with refused(ValueError, f"target is {target}", "out of range for output shape (2, 3, 2, 2)", model=net):
        InputCAV(net).attribute(torch.ones(2, 1, 2, 2), target)


def test_a_target_out_of_range_among_several_is_refused() -> None:
    net = small_net()
    with refused(ValueError, "target is 7", "0 to 2", model=net):
        LayerCAV(net, "0").attribute_targets(samples(), [0, 7])


EQUAL: dict[str, tuple[Any, Any]] = {
    "negative-int": (-1, 2),
    "negative-tuple": ((-3,), 0),
    "list": ([2, 0], None),
    "negative-list": ([-1, -3], None),
    "tensor": (torch.tensor([2, 0]), None),
    "negative-tensor": (torch.tensor([-1, -3]), None),
    "int32-tensor": (torch.tensor([2, 0], dtype=torch.int32), None),
    "uint8-tensor": (torch.tensor([2, 0], dtype=torch.uint8), None),
    "tensor-of-one": (torch.tensor(-1), 2),
    "list-of-tuples": ([(2,), (-3,)], None),
    "mixed-list": ([2, (0,)], None),
    "list-mixed-otherwise": ([(2,), 0], None),
}


@pytest.mark.parametrize(("target", "same"), list(EQUAL.values()), ids=list(EQUAL))
def test_a_target_within_range_is_taken_in_every_form(target: Any, same: int | None) -> None:
    net, x = small_net(), samples()
    indices = (2, 0) if same is None else (same, same)
    expected = torch.cat([LayerCAV(net, "0").attribute(x[k : k + 1], index) for k, index in enumerate(indices)])
    torch.testing.assert_close(LayerCAV(net, "0").attribute(x, target), expected)


WRONG_TYPES: dict[str, tuple[Any, str]] = {
    "float": (1.0, "target is 1.0 (float)"),
    "bool": (True, "target is True (bool)"),
    "str": ("dog", "target is 'dog' (str)"),
    "dict": ({}, "target is {} (dict)"),
    "None-in-list": ([None, 0], "target[0] is None (NoneType)"),
    "bool-in-list": ([0, False], "target[1] is False (bool)"),
    "float-in-tuple": ((0.5,), "target is (0.5,) (tuple)"),
    "list-in-list": ([[0], [1]], "target[0] is [0] (list)"),
    "float-tensor": (torch.tensor([0.0, 1.0]), "target is a tensor of torch.float32"),
    "float-tensor-of-one": (torch.tensor(1.0), "target is a tensor of torch.float32"),
    "bool-tensor": (torch.tensor([True, False]), "target is a tensor of torch.bool"),
    "array": (np.array([0, 1]), "ndarray"),
}


@pytest.mark.parametrize(("target", "given"), list(WRONG_TYPES.values()), ids=list(WRONG_TYPES))
def test_a_target_of_a_wrong_type_is_refused(target: Any, given: str) -> None:
    net = small_net()
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with refused(TypeError, given, "expected", "integer", "target=i with i from 0 to 2", model=net):
            attribution.attribute(samples(), target)


@pytest.mark.parametrize("target", [[], [0], [0, 1, 2], torch.tensor([0, 1, 2])], ids=["0", "1", "3", "tensor"])
def test_a_target_of_a_wrong_length_is_refused(target: Any) -> None:
    net = small_net()
    with refused(ValueError, f"{len(target)} entries for 2 samples", "expected one for each", model=net):
        LayerCAV(net, "0").attribute(samples(), target)


def test_a_target_tensor_of_two_dimensions_is_refused() -> None:
    net = small_net()
    with refused(
        ValueError, "target has shape (2, 1)", "a list of 2 indices or tuples, one for each sample", model=net
    ):
        LayerCAV(net, "0").attribute(samples(), torch.tensor([[0], [1]]))


@pytest.mark.parametrize(
    ("target", "given"),
    [
        (1, "target is 1, which selects 1 of the 3"),
        ((1, 0), "target is (1, 0), which selects 2 of the 3"),
        ((1, 0, 0, 0), "target is (1, 0, 0, 0), which selects 4 of the 3"),
        ([(1, 0, 0), (1, 0)], "target[1] is (1, 0), which selects 2 of the 3"),
        (torch.tensor([1, 0]), "target[0] is 1, which selects 1 of the 3"),
    ],
    ids=["int", "pair", "four", "list", "tensor"],
)
def test_a_target_of_wrong_arity_is_refused(target: Any, given: str) -> None:
    net, x = nn.Conv2d(1, 3, 1), torch.ones(2, 1, 2, 2)
    said = ("dimensions behind the batch", "output shape (2, 3, 2, 2)", "one index for each of the sizes (3, 2, 2)")
    with refused(ValueError, given, *said, model=net):
        InputCAV(net).attribute(x, target)
    assert InputCAV(net).attribute(x, (1, 0, -1)).shape == x.shape


def test_target_missing() -> None:
    net = small_net()
    said = r"^target is missing: the model gives 3 values a sample .*\(2, 3\)\); pass target=i with i from 0 to 2\.$"
    for attribution in (LayerCAV(net, "0"), InputCAV(net)):
        with raising(TargetError, ValueError, said, net):
            attribution.attribute(samples())


@pytest.mark.parametrize("target", [3, -4])
def test_target_out_of_range(target: int) -> None:
    net = small_net()
    said = rf"^target is {target}, out of range for output shape \(2, 3\): 0 to 2\.$"
    with raising(TargetError, ValueError, said, net):
        LayerCAV(net, "0").attribute(samples(), target)


def test_negative_targets_count_from_the_end_as_documented() -> None:
    net = small_net()
    assert "Negative indices count from the end" in LayerCAV.attribute.__doc__.replace("\n", " ")
    assert torch.equal(LayerCAV(net, "0").attribute(samples(), -1), LayerCAV(net, "0").attribute(samples(), 2))


@pytest.mark.parametrize(
    ("target", "kind", "builtin", "said"),
    [
        ([0, 1, 2], TargetError, ValueError, r"target lists 3 entries for 2 samples; expected one for each"),
        (
            torch.tensor([[0], [1]]),
            TargetError,
            ValueError,
            r"target has shape \(2, 1\); expected an index, or a list of 2",
        ),
        (1.0, CAVTypeError, TypeError, r"target is 1\.0 \(float\); expected an integer, a tuple of integers, or a"),
        (True, CAVTypeError, TypeError, r"target is True \(bool\); expected an integer"),
        ("dog", CAVTypeError, TypeError, r"target is 'dog' \(str\); expected an integer"),
        (torch.tensor([True, False]), CAVTypeError, TypeError, r"target is a tensor of torch\.bool; expected integers"),
        (torch.tensor([0.0, 1.0]), CAVTypeError, TypeError, r"target is a tensor of torch\.float32; expected integers"),
    ],
    ids=["length", "dimensions", "float", "bool", "str", "bool-tensor", "float-tensor"],
)
def test_target_of_wrong_length_or_type(target: Any, kind: type[CAVError], builtin: type[Exception], said: str) -> None:
    net = small_net()
    with raising(kind, builtin, said, net):
        LayerCAV(net, "0").attribute(samples(), target)


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), torch.tensor(1)], ids=lambda one: type(one).__name__)
def test_integers_of_other_libraries_are_integers(one: Any) -> None:
    net, x = small_net(), samples()
    expected = LayerCAV(net, "0").attribute(x, 1)
    for target in (one, (one,), [one, one], [(one,), 1]):
        assert torch.equal(LayerCAV(net, "0").attribute(x, target), expected)


def test_tuple_target_of_dense_outputs() -> None:
    net, x = nn.Conv2d(2, 3, 3, padding=1).double(), fixed(2, 2, 4, 5)
    found, delta = InputCAV(net).attribute(x, (1, 2, 0), return_convergence_delta=True)
    expected = torch.zeros_like(x)
    # The window around row 2, column 0; its left column is padding.
    window = x[:, :, 1:4, 0:2] * net.weight.detach()[1, :, :, 1:]
    expected[:, :, 1:4, 0:2] = window / net(x)[:, 1, 2, 0].detach().reshape(2, 1, 1, 1)
    assert_same(found, expected)
    assert delta.abs().max() < 1e-12
    said = (
        r"target is \(1, 2\), which selects 2 of the 3 dimensions behind the batch.*for each of the sizes \(3, 4, 5\)"
    )
    with raising(TargetError, ValueError, said, net):
        InputCAV(net).attribute(x, (1, 2))
