"""Gates that are written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from captum_cav.operations import TABLE
from captum_cav.operations.gates import bounded, bounds_of, clipped, reciprocal_power, shifted
from captum_cav.propagation.traits import Trait
from tests.propagation.engine import Pass

NONE, GATE, NONNEGATIVE, RECIPROCAL = Trait.NONE, Trait.GATE, Trait.NONNEGATIVE, Trait.RECIPROCAL
BOUNDED, SHIFTED_UP, CAPPED = Trait.BOUNDED, Trait.SHIFTED_UP, Trait.CAPPED
#: A sigmoid that is written by hand.
SIGMOID = GATE | Trait.SQUASHED
X, CONSTANT = "a tensor of the pass", torch.tensor([2.0])


def found(find_gate: Any, traits: Trait, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Trait:
    """The traits of an operation. X stands for a tensor that depends on the inputs."""
    one = Pass()
    args = tuple(one.tapped(1.0) if value is X else value for value in args)
    traits_found: Trait = find_gate(one.operation(function, *args, **kwargs), traits)
    return traits_found


@pytest.mark.parametrize(
    ("base", "exponent", "expected"),
    [
        (X, -1, GATE | RECIPROCAL),
        (X, -0.5, GATE | RECIPROCAL),
        (X, torch.tensor([-1.0, -2.0]), GATE | RECIPROCAL),
        (2.0, X, GATE),
        (CONSTANT, X, GATE),
        (X, 2, NONE),
        (X, 0, NONE),
        (X, torch.tensor([-1.0, 2.0]), NONE),
        (X, X, NONE),
    ],
    ids=["1/x", "1/sqrt", "negatives", "exp", "exp of a tensor", "square", "one", "mixed", "both"],
)
def test_a_negative_power_and_a_power_of_a_constant_are_gates(base: Any, exponent: Any, expected: Trait) -> None:
    assert found(reciprocal_power, NONE, torch.pow, base, exponent) == expected


def test_the_exponent_may_come_by_name() -> None:
    one = Pass()
    assert reciprocal_power(one.operation(torch.pow, input=one.tapped(1.0), exponent=-2), NONE) == GATE | RECIPROCAL


def test_a_bounded_function_of_what_is_not_negative_is_a_gate() -> None:
    assert found(bounded, NONNEGATIVE, torch.tanh, X) == GATE
    assert found(bounded, NONE, torch.tanh, X) == BOUNDED
    assert found(bounded, GATE | BOUNDED, torch.tanh, X) == BOUNDED


@pytest.mark.parametrize(
    ("traits", "args", "expected"),
    [
        (BOUNDED, (X, 1), SIGMOID | SHIFTED_UP),
        (BOUNDED, (1.0, X), SIGMOID | SHIFTED_UP),
        (BOUNDED | NONNEGATIVE, (X, 1.5), SIGMOID | SHIFTED_UP),
        (BOUNDED, (X, 0.5), SHIFTED_UP),
        (BOUNDED, (X, 0), NONE),
        (BOUNDED, (X, -1), NONE),
        (BOUNDED, (X, CONSTANT), NONE),
        (NONE, (X, 3), SHIFTED_UP),
        (NONE, (X, -3), NONE),
    ],
    ids=["1 + tanh", "from the left", "more", "half", "zero", "minus", "tensor", "x + 3", "x - 3"],
)
def test_one_and_a_bounded_function_are_a_gate(traits: Trait, args: tuple[Any, ...], expected: Trait) -> None:
    assert found(shifted, traits, torch.add, *args) == expected


@pytest.mark.parametrize(
    ("traits", "bounds", "expected"),
    [
        (SHIFTED_UP, (0, 6), SIGMOID),
        (SHIFTED_UP | NONNEGATIVE, (0.0, 1.0), SIGMOID),
        (SHIFTED_UP, (0, None), SHIFTED_UP | NONNEGATIVE),
        (SHIFTED_UP, (None, 6), SHIFTED_UP | CAPPED),
        (SHIFTED_UP | NONNEGATIVE, (None, 6), SIGMOID),
        (SHIFTED_UP | CAPPED, (0, None), SIGMOID),
        (SHIFTED_UP | CAPPED, (0.5, None), NONNEGATIVE),
        (NONNEGATIVE, (None, 6), NONE),
        (SHIFTED_UP, (-1, 1), NONE),
        (NONE, (0, 6), NONNEGATIVE),
        (BOUNDED, (0, 6), NONNEGATIVE),
        (NONE, (0, -1), NONE),
        (NONE, (-1, 6), NONE),
    ],
    ids=[
        *["hard sigmoid", "of floats", "no top", "no bottom", "top at last", "bottom at last", "bottom above 0"],
        *["relu6", "from -1", "not shifted", "bounded", "all -1", "not shifted, from -1"],
    ],
)
def test_what_was_shifted_up_and_is_clipped_from_zero_is_a_gate(
    traits: Trait, bounds: tuple[Any, Any], expected: Trait
) -> None:
    assert found(clipped(lambda operation: bounds), traits, torch.clamp, X) == expected


def test_bounds_are_read_by_place_and_by_name_and_by_default() -> None:
    bounds = bounds_of("min", "max", None, 7.0)
    one = Pass()
    x = one.tapped(1.0)
    assert bounds(one.operation(torch.clamp, x)) == (None, 7.0)
    assert bounds(one.operation(torch.clamp, x, 0)) == (0, 7.0)
    assert bounds(one.operation(torch.clamp, x, 0, 6)) == (0, 6)
    assert bounds(one.operation(torch.clamp, x, max=6, min=0)) == (0, 6)
    assert bounds(one.operation(torch.clamp, x, None, None)) == (None, None)


# Written by hand, in a whole ----------------------------------------------------------------------------------------

GATES = {
    "sigmoid by tanh": lambda x: 1 + torch.tanh(x / 2),
    "erf as in GELU": lambda x: torch.erf(x / 1.4).add(1),
    "tanh of softplus": lambda x: torch.tanh(F.softplus(x)),
    "tanh of relu": lambda x: torch.tanh(torch.relu(x)),
    "hard sigmoid by relu6": lambda x: F.relu6(x + 3),
    "hard sigmoid by clamp": lambda x: torch.clamp(x + 3, 0, 6),
    "hard sigmoid by hardtanh": lambda x: F.hardtanh(x + 3, 0.0, 6.0),
    "hard sigmoid of exported graphs": lambda x: torch.clamp(torch.clamp(x + 3, 0), None, 6),
    "hard sigmoid by bounds": lambda x: torch.clamp_max(torch.clamp_min(x + 3, 0), 6),
    "hard sigmoid by bounds, the upper one first": lambda x: torch.clamp_min(torch.clamp_max(x + 3, 6), min=0),
    "hard sigmoid by relu": lambda x: torch.relu(x + 3).clamp(max=6),
    "reciprocal power": lambda x: x**-2,
    "power of a number": lambda x: 2.0**x,
    "gate times a number": lambda x: (1 + torch.tanh(x)) / 2,
}
NO_GATES = {
    "tanh": torch.tanh,
    "tanh minus one": lambda x: torch.tanh(x) - 1,
    "tanh plus a half": lambda x: torch.tanh(x) + 0.5,
    "relu6": F.relu6,
    "relu6 of x - 3": lambda x: F.relu6(x - 3),
    "clamp without top": lambda x: torch.clamp(x + 3, min=0),
    "clamp without bottom": lambda x: torch.clamp(x + 3, max=6),
    "relu with a top": lambda x: torch.relu(x).clamp(max=6),
    "shifted twice": lambda x: torch.clamp(torch.relu(x + 3) - 1, max=6),
    "hardtanh": F.hardtanh,
    "square": lambda x: x**2,
    "x + 1": lambda x: x + 1,
}


@pytest.mark.parametrize(
    ("function", "is_gate"),
    [(function, function in GATES.values()) for function in [*GATES.values(), *NO_GATES.values()]],
    ids=[*GATES, *NO_GATES],
)
def test_gates_that_are_written_by_hand(function: Callable[[torch.Tensor], torch.Tensor], is_gate: bool) -> None:
    one = Pass(TABLE)
    assert (GATE in one.traits_of(one.run(function, one.tapped(0.5, -2.0)))) is is_gate
