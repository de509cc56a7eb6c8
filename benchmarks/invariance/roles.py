"""Roles: the same numbers as a closure, buffer, parameter, Python number, input or additional argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.coverage.operations import fixed
from benchmarks.invariance.pair import Function, Pair, Spelling, family

_GROUP = "roles"
_SAME_SIZE = fixed(2, 4, 6, seed=131)
_MATRIX = fixed(6, 6, seed=132)

_Use = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Holder(nn.Module):
    """A module that holds the numbers.

    Args:
        use: takes the input and the numbers.
        numbers: the numbers.
        role: ``"buffer"``, ``"parameter"`` or ``"attribute"``.
    """

    def __init__(self, use: _Use, numbers: torch.Tensor, role: str) -> None:
        super().__init__()
        self._use = use
        if role == "buffer":
            self.register_buffer("numbers", numbers.clone())
        else:
            self.numbers = nn.Parameter(numbers.clone()) if role == "parameter" else numbers.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the function makes of the input and the numbers."""
        return self._use(x, self.numbers)


def _roles(use: _Use, numbers: torch.Tensor) -> dict[str, Function | Spelling]:
    values = numbers.tolist()
    return {
        **{role: _Holder(use, numbers, role) for role in ("buffer", "parameter", "attribute")},
        "additional argument": Spelling(use, (numbers,)),
        "Python numbers": lambda x: use(x, torch.tensor(values, dtype=x.dtype)),
        "clone": lambda x: use(x, numbers.clone()),
        "requires grad": lambda x: use(x, numbers.clone().requires_grad_()),
        "computed": lambda x: use(x, numbers * 2 / 2),
        "computed from the shape": lambda x: use(x, numbers + x.new_zeros(()).sum()),
        "detached from the input": lambda x: use(x, numbers + 0 * x.detach().sum()),
    }


_USES: dict[str, tuple[_Use, torch.Tensor]] = {
    "sum": (lambda x, c: x + c, _SAME_SIZE),
    "product": (lambda x, c: x * c, _SAME_SIZE),
    "quotient": (lambda x, c: x / (c.square() + 1), _SAME_SIZE),
    "cat": (lambda x, c: torch.cat([x, c], 1), _SAME_SIZE),
    "maximum": (torch.maximum, _SAME_SIZE),
    "weight": (lambda x, c: F.linear(x, c), _MATRIX),
    "shifted norm": (lambda x, c: F.layer_norm(x + c, (6,)), _SAME_SIZE),
    "keys": (lambda x, c: F.scaled_dot_product_attention(x, c, x), _SAME_SIZE),
    "queries": (lambda x, c: F.scaled_dot_product_attention(c, x, x), _SAME_SIZE),
    "values": (lambda x, c: x + F.scaled_dot_product_attention(x, x, c), _SAME_SIZE),
    "gate": (lambda x, c: x * torch.sigmoid(c), _SAME_SIZE),
    "mixed by a gate": (lambda x, c: torch.sigmoid(x) * c + x, _SAME_SIZE),
}
_UNDECIDABLE = {"sum": {"input": "What is constant is a bias of the layer before. Another input is none."}}
#: Uses in which the numbers only add, so that they may be inputs without taking a part of any factor.
_ADDING = ("sum", "cat", "maximum")


def pairs() -> Iterator[Pair]:
    """All pairs of this group."""
    for name, (use, numbers) in _USES.items():
        ways = _roles(use, numbers)
        if name in _ADDING:
            ways["input"] = Spelling(use, (numbers,), are_inputs=True)
        yield from family(_GROUP, name, _closure(use, numbers), ways, undecidable=_UNDECIDABLE.get(name))
    yield from family(
        _GROUP,
        "a number",
        lambda x: x + 0.75,
        {
            "tensor": lambda x: x + torch.tensor(0.75, dtype=x.dtype),
            "full_like": lambda x: x + torch.full_like(x, 0.75),
            "ones_like": lambda x: x + 0.75 * torch.ones_like(x),
            "numbers of numpy": lambda x: x + torch.full((1,), 0.75, dtype=x.dtype).numpy()[0],
            "sub": lambda x: x - -0.75,
            "rsub": lambda x: 0.75 - (-x),
            "add_": lambda x: x.add_(0.75),
            "fill_": lambda x: x + torch.empty_like(x).fill_(0.75),
        },
    )


def _closure(use: _Use, numbers: torch.Tensor) -> Function:
    return lambda x: use(x, numbers)
