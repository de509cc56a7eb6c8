"""What a torch function is called, and whether a call of it writes into its first argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav.propagation.operation import identify, writes_in_place
from captum_cav.rules import DEFAULTS, GUARDS, HANDING_ON, KEEPING, MAKING, NONNEGATIVE_TOGETHER, QUERIES
from tests.support.ids import without_address

T = torch.Tensor


@pytest.mark.parametrize(
    ("function", "name", "in_place"),
    [
        (torch.relu, "relu", False),
        (torch.relu_, "relu", True),
        (T.relu_, "relu", True),
        (F.relu, "relu", False),
        (torch.ops.aten.relu.default, "relu", False),
        (torch.ops.aten.relu_.default, "relu", True),
        (T.add_, "add", True),
        (T.__iadd__, "add", True),
        (T.__rsub__, "rsub", False),
        (T.__rdiv__, "rdiv", False),
        (T.true_divide, "div", False),
        (T.pow, "pow", False),
        (T.__getitem__, "getitem", False),
        (T.__setitem__, "setitem", True),
        (T.T.__get__, "T", False),
        (T.shape.__get__, "shape", False),
        (torch._C._nn.linear, "linear", False),
        (torch.conv2d, "conv2d", False),
        (T.requires_grad_, "requires_grad_", False),
        (inspect.signature, None, False),
    ],
    ids=without_address,
)
def test_all_forms_of_a_function_have_its_plain_name(function: Callable[..., Any], name: str, in_place: bool) -> None:
    identity = identify(function)
    assert (identity.name, identity.in_place) == (name, in_place)


SWITCHED = [name for name in dir(F) if not name.startswith("_") and callable(getattr(F, name))]
SWITCHED = [name for name in SWITCHED if inspect.isfunction(getattr(F, name))]
SWITCHED = [name for name in SWITCHED if "inplace" in inspect.signature(getattr(F, name)).parameters]


@pytest.mark.parametrize("name", SWITCHED)
def test_the_inplace_argument_is_seen_by_position_and_by_name(name: str) -> None:
    identity = identify(getattr(F, name))
    position = list(inspect.signature(getattr(F, name)).parameters).index("inplace")
    x = torch.zeros(1)
    between = (0.0,) * (position - 1)
    assert writes_in_place(identity, (x, *between, True), {})
    assert writes_in_place(identity, (x,), {"inplace": True})
    assert not writes_in_place(identity, (x, *between, False), {})
    assert not writes_in_place(identity, (x,), {"inplace": False})
    assert not writes_in_place(identity, (x,), {})


def test_the_tables_name_functions_that_have_rules() -> None:
    assert set(DEFAULTS) >= set(MAKING)
    assert set(DEFAULTS) >= set(KEEPING)
    assert set(DEFAULTS) >= HANDING_ON | NONNEGATIVE_TOGETHER
    assert set(GUARDS) <= set(DEFAULTS)
    assert not set(DEFAULTS) & QUERIES
