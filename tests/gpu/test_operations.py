"""Every operation of the coverage benchmark, and others: what is done for them makes the host wait for nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from benchmarks.coverage import operations
from captum_cav import InputCAV, presets, verify
from captum_cav.propagation.operation import Operation
from tests.gpu.reads import check_reads, names_of
from tests.support.torch_limits import limit_of

_OTHERS: dict[str, operations.Function] = {
    "boolean index": lambda x: x[operations.MASK],
    "number at a mask": lambda x: operations.written(x, lambda y: y.__setitem__(operations.MASK, 0.5)),
    "values at a mask": lambda x: operations.written(x, lambda y: y.__setitem__(operations.MASK, x[0, 0].repeat(4))),
    "counted repetitions": lambda x: x.repeat_interleave(operations.PLACES.expand(2, 3).flatten()[:4], 1),
    "power of a tensor": lambda x: (x.abs() + 1) ** operations.A,
    "tensor to the power": lambda x: operations.A**x,
}
_CASES = {name: function for name, (function, _) in operations.CASES.items()} | _OTHERS


@pytest.fixture
def device(cuda_or_meta: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, on which all constants of the cases lie."""
    numbers = functools.cache(operations.fixed)

    def there(value: Any) -> Any:
        return value.to(cuda_or_meta) if isinstance(value, torch.Tensor) else value

    @functools.cache
    def fixed(*shape: int, seed: int = 11) -> torch.Tensor:
        return there(numbers(*shape, seed=seed))

    monkeypatch.setattr(operations, "fixed", fixed)
    for name, value in list(vars(operations).items()):
        if isinstance(value, (torch.Tensor, list)):
            monkeypatch.setattr(operations, name, tree_map(there, value))
    return cuda_or_meta


#: Operations that torch itself cannot run without numbers, and why.
NOT_ON_META = {
    "multilabel_margin_loss": "torch has no backward pass on the meta device",
    "ctc_loss": "torch has no kernel on the meta device",
    "gaussian_nll_loss": "torch's own function reads the variance on the host",
}


def scored(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A case as a model. It runs once, which makes its constants and loads what torch needs on a GPU."""

    def score(x: torch.Tensor) -> torch.Tensor:
        return operations.score(_CASES[name](x))

    if reason := limit_of(name):
        pytest.skip(reason)
    if operations.X.is_meta and name in NOT_ON_META:
        pytest.skip(NOT_ON_META[name])
    if name not in names_of("operation"):
        score(operations.X)
    return score


@pytest.mark.parametrize("name", _CASES)
def test_an_operation_waits_for_nothing(name: str, device: torch.device) -> None:
    cav = InputCAV(scored(name))
    check_reads(f"operation {name}", device, cav.attribute, operations.X, return_convergence_delta=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", _CASES)
def test_an_operation_waits_for_nothing_under_any_preset(name: str, device: torch.device) -> None:
    score = scored(name)
    for preset in (None, *presets.NAMES):
        for with_delta in (False, True):
            cav = InputCAV(score, rules=preset, normalize="abs")
            check_reads(f"operation {name}", device, cav.attribute, operations.X, return_convergence_delta=with_delta)
    check_reads(f"operation {name}", device, verify, score, operations.X)


def test_a_rule_of_a_user_is_checked(device: torch.device) -> None:
    def users(operation: Operation) -> Any:
        return operation.value() * 1

    cav = InputCAV(scored("tanh"), rules={torch.tanh: users})
    check_reads("rule of a user", device, cav.attribute, operations.X)


def test_the_list_names_cases_that_exist() -> None:
    assert names_of("operation") <= set(_CASES)
