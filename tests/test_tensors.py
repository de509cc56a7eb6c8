"""Tensors in nested arguments, and tensors that are one in memory."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch

from captum_cav.tensors import is_autocast_on, is_number, is_same_memory, map_tensors, tensors_in

A, B, C = torch.tensor([1.0]), torch.tensor([2]), torch.tensor([True])
Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, True),
        (torch.float16, True),
        (torch.complex64, True),
        (torch.int64, False),
        (torch.bool, False),
        (torch.uint8, False),
    ],
    ids=str,
)
def test_integers_are_no_numbers_that_carry(dtype: torch.dtype, expected: bool) -> None:
    assert is_number(torch.zeros(1, dtype=dtype)) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (A, [A]),
        ((A, [B, (C,)]), [A, B, C]),
        ({"x": B, "y": {"z": (A, 3)}}, [B, A]),
        (OrderedDict(x=A), [A]),
        (Pair(B, A), [B, A]),
        ((A, A), [A, A]),
        (["text", None, 3, 1.5], []),
        (None, []),
        ("text", []),
        ({A}, []),
    ],
    ids=["tensor", "nested", "dict", "ordered dict", "named tuple", "twice", "others", "None", "text", "set"],
)
def test_tensors_are_found_in_order(value: Any, expected: list[torch.Tensor]) -> None:
    found = tensors_in(value)
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_autocast_is_off_where_a_device_has_none(device: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_autocast_on(device) is (device == "cpu")
    assert not is_autocast_on(device)


def test_tensors_in_tuples_and_lists_are_changed() -> None:
    found = map_tensors(lambda tensor: tensor * 10, (A, [B, "text", (3, A)]))
    assert found == (10.0, [20, "text", (3, 10.0)])
    assert map_tensors(lambda tensor: "changed", A) == "changed"


def test_other_structures_are_left_alone() -> None:
    for value in ({"x": A}, Pair(A, B), slice(0, 1), None):
        assert map_tensors(lambda tensor: "changed", value) is value


X = torch.arange(12.0).reshape(3, 4)


def test_the_same_memory_looked_at_in_the_same_way() -> None:
    for same in (X, X[:], X.detach(), X.view(3, 4)):
        assert is_same_memory(X, same)


@pytest.mark.parametrize(
    "other",
    [X.clone(), X[1:], X[:, :3], X.t().reshape(3, 4), X.view(4, 3), X.view(torch.int32), X[:1]],
    ids=["copy", "start", "part", "order", "shape", "type", "size"],
)
def test_other_memory_or_another_look(other: torch.Tensor) -> None:
    assert not is_same_memory(X, other)


def test_strides_matter() -> None:
    square = torch.zeros(3, 3)
    assert not is_same_memory(square, square.t())


def test_the_address_alone_does_not_tell() -> None:
    assert not is_same_memory(torch.zeros(0), torch.zeros(0))
    assert not is_same_memory(torch.zeros(2, device="meta"), torch.zeros(2, device="meta"))
    on_meta = torch.zeros(2, device="meta")
    assert is_same_memory(on_meta, on_meta.detach())
