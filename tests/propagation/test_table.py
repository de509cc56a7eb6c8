"""The table of operations: names of torch functions, whether a call writes into its first argument, and the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav.operations import TABLE
from captum_cav.propagation.operation import Kind, Operation, OperationSpec, Role
from captum_cav.propagation.table import OperationTable
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
    treatment = TABLE.treatments[function]
    assert (treatment.name, treatment.writes) == (name, in_place)


SWITCHED = [name for name in dir(F) if not name.startswith("_") and callable(getattr(F, name))]
SWITCHED = [name for name in SWITCHED if inspect.isfunction(getattr(F, name))]
SWITCHED = [name for name in SWITCHED if "inplace" in inspect.signature(getattr(F, name)).parameters]


@pytest.mark.parametrize("name", SWITCHED)
def test_the_inplace_argument_is_seen_by_position_and_by_name(name: str) -> None:
    treatment = TABLE.treatments[getattr(F, name)]
    position = list(inspect.signature(getattr(F, name)).parameters).index("inplace")
    x = torch.zeros(1)
    between = (0.0,) * (position - 1)
    assert treatment.writes_in_place((x, *between, True), {})
    assert treatment.writes_in_place((x,), {"inplace": True})
    assert not treatment.writes_in_place((x, *between, False), {})
    assert not treatment.writes_in_place((x,), {"inplace": False})
    assert not treatment.writes_in_place((x,), {})


def row(**more: Any) -> OperationSpec:
    return OperationSpec(rule=Operation.value, **more)


def test_a_name_has_one_row() -> None:
    table = OperationTable()
    table.register("relu sigmoid|special_expit", row())
    for again in ("relu", "special_expit", "tanh|sigmoid"):
        with pytest.raises(ValueError, match="has a row in the table of operations already"):
            table.register(again, row())


def test_a_function_is_resolved_once_until_a_row_is_added() -> None:
    table = OperationTable()
    before = table.treatments[torch.relu]
    assert table.treatments[torch.relu] is before
    assert before.spec.rule is Operation.gradient
    added = row(is_as_is=True)
    table.register("relu", added)
    assert table.treatments[torch.relu].spec is added
    assert table.treatments[T.relu_].is_as_is


def test_augmented_assignments_write_and_other_names_with_an_i_do_not() -> None:
    assert TABLE.treatments[T.__imul__].writes
    assert TABLE.treatments[T.__itruediv__].name == "div"
    assert not TABLE.treatments[T.__invert__].writes


def test_a_function_without_a_plain_name_has_its_own_row() -> None:
    assert TABLE.name_of(torch.autograd.grad) is None
    assert TABLE.treatments[torch.autograd.grad].role is Role.DIFFERENTIATES


def test_kinds_are_selected_in_the_order_of_the_rows() -> None:
    table = OperationTable()
    table.register("tanh relu", row(kind=Kind.ACTIVATION))
    table.register("matmul", row(kind=Kind.DENSE | Kind.PRODUCT))
    assert table.functions(Kind.ACTIVATION) == (F.tanh, F.relu)
    assert table.names(Kind.DENSE, Kind.ACTIVATION) == {"tanh", "relu", "matmul"}


def test_rows_that_compute_nothing_have_no_rule_of_their_own() -> None:
    for name, spec in TABLE:
        assert (spec.role is Role.COMPUTES) == (spec.rule is not Operation.gradient), name
