"""The table of operations: names of torch functions, whether a call writes into its first argument, and the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav import InputCAV
from captum_cav.operations import TABLE
from captum_cav.propagation.kinds import Kind, Role
from captum_cav.propagation.operation import UNKNOWN, Operation, OperationSpec
from captum_cav.propagation.table import OperationTable
from captum_cav.propagation.traits import Trait
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


def test_names_of_one_function_have_one_treatment() -> None:
    """``torch.spmm == torch.mm``, so they are one key. The treatment must not depend on which of them comes first."""
    names: dict[Any, set[str]] = {}
    for name in dir(torch):
        if inspect.isbuiltin(getattr(torch, name)):
            names.setdefault(getattr(torch, name), set()).add(name)
    several = {key: found for key, found in names.items() if len(found) > 1}
    assert {"mm", "spmm"} <= several[torch.mm]
    for found in several.values():
        rows = {TABLE._plain_names.get(name, name) for name in found}
        assert len(rows) == 1 or not rows & {name for name, _ in TABLE}, found


@pytest.mark.parametrize("first", [torch.spmm, torch.dsmm, torch.mm], ids=["spmm", "dsmm", "mm"])
def test_a_product_with_a_sparse_weight_by_any_name(first: Callable[..., Any]) -> None:
    TABLE.treatments.clear()
    x, weight = torch.rand(2, 3).double(), torch.rand(3, 4).double()
    for function in (first, torch.mm, first):
        for given in (weight, weight.to_sparse()):
            model = lambda x, function=function, given=given: function(given.T, x.T).T  # noqa: E731
            found = InputCAV(model, normalize=None).attribute(x, 1)
            torch.testing.assert_close(found, x * weight[:, 1])
        assert InputCAV(lambda x: torch.mm(x, weight), rules="gamma").attribute(x, 1).shape == x.shape


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


def test_the_rows_are_looked_up_by_plain_names_in_their_order() -> None:
    table = OperationTable()
    first, second = row(), row(is_as_is=True)
    table.register("tanh|hyperbolic_tangent sigmoid", first)
    table.register("relu", second)
    assert list(table) == [("tanh", first), ("sigmoid", first), ("relu", second)]
    assert len(table) == 3
    assert table.row("relu") is second
    assert table.row("hyperbolic_tangent") is UNKNOWN  # This is no plain name.
    assert table.row("cos") is UNKNOWN


def test_a_function_of_somebody_else_may_have_a_row() -> None:
    def kernel(x: T) -> T:
        return x

    table = OperationTable()
    assert table.treatments[kernel].spec is UNKNOWN
    spec = row(is_as_is=True)
    table.register(kernel, spec)
    treatment = table.treatments[kernel]
    assert (treatment.name, treatment.spec) == (None, spec)
    assert not treatment.is_simple  # Rules are given for plain names alone.
    assert not treatment.is_as_is
    with pytest.raises(ValueError, match=r"kernel.* has a row in the table of operations already"):
        table.register(kernel, row())


@pytest.mark.parametrize(
    ("more", "is_simple"),
    [
        ({}, True),
        ({"keeps": Trait.GATE, "makes": Trait.NONNEGATIVE, "has_weights": True}, True),
        ({"keeps_without_constants": Trait.GATE}, False),
        ({"find_gate": lambda operation, traits: Trait.NONE}, False),
        ({"guard": lambda operation: None}, False),
    ],
    ids=["plain", "traits", "without constants", "gate", "guard"],
)
def test_a_row_is_simple_if_traits_follow_from_traits(more: dict[str, Any], is_simple: bool) -> None:
    for is_as_is in (False, True):
        table = OperationTable()
        table.register("relu", row(is_as_is=is_as_is, **more))
        treatment = table.treatments[torch.relu]
        assert treatment.is_simple is is_simple
        assert treatment.is_as_is is (is_simple and is_as_is)


def test_a_treatment_says_which_traits_the_output_has() -> None:
    table = OperationTable()
    table.register("relu", row(keeps=Trait.GATE, makes=Trait.NONNEGATIVE))
    table.register("add", row(keeps=Trait.GATE, keeps_without_constants=Trait.NONNEGATIVE))
    table.register("linear", row(keeps=Trait.GATE, has_weights=True))
    relu, add, linear = (table.treatments[function] for function in (torch.relu, torch.add, F.linear))
    # What keeps a gate keeps what is squashed.
    assert Trait(relu.keeps) == Trait.GATE | Trait.SQUASHED | Trait.BEFORE_FIRST_LAYER
    assert (Trait(relu.makes), Trait(relu.drops_with_constants)) == (Trait.NONNEGATIVE, Trait.NONE)
    assert Trait(add.keeps) == Trait.GATE | Trait.SQUASHED | Trait.NONNEGATIVE | Trait.BEFORE_FIRST_LAYER
    assert Trait(add.drops_with_constants) == Trait.NONNEGATIVE
    assert Trait(linear.keeps) == Trait.GATE | Trait.SQUASHED


def test_a_treatment_says_whether_a_function_computes() -> None:
    table = OperationTable()
    table.register("shape", OperationSpec(rule=Operation.gradient, role=Role.ASKS))
    assert not table.treatments[T.shape.__get__].computes
    assert table.treatments[torch.relu].computes
