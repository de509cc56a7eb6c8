"""What torch itself cannot do, or does wrongly, in versions that captum_cav admits. Nothing here uses captum_cav."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from packaging.version import Version

TORCH = Version(torch.__version__.partition("+")[0])
X = torch.arange(12.0).sin().reshape(1, 3, 4)


@dataclass(frozen=True)
class Limit:
    """An operation that some version of torch cannot derive, or computes wrongly.

    Attributes:
        last_wrong: the newest version in which that was seen.
        first_right: the oldest version in which torch was seen to do it. Versions in between were not tried.
        said: what ``docs/versions.md`` calls it.
        is_right: whether the torch of this process does it.
    """

    last_wrong: str
    first_right: str
    said: str
    is_right: Callable[[], bool]


def _derives(function: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    leaf = X.clone().requires_grad_()
    try:
        torch.autograd.grad(function(leaf).sum(), leaf)
    except RuntimeError:
        return False
    return True


def _slopes_of_distances(x: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(torch.cdist(x, X.flip(1)).sum(), x, create_graph=True)
    return found.square()


def _reads_strided_weights() -> bool:
    """``F.group_norm`` copies its weights first; exported programs and users of ``aten`` do not."""
    weight, bias = X[0, :, 0], X[0, :, 1]
    found, expected = (
        torch.ops.aten.native_group_norm.default(X, weight, bias, 1, 3, 4, 1, 1e-5)[0]
        for weight, bias in ((weight, bias), (weight.contiguous(), bias.contiguous()))
    )
    return torch.equal(found, expected)


#: By the name of the case in ``benchmarks.coverage.operations`` that torch cannot run, if there is one.
LIMITS = {
    "aminmax": Limit("2.9.1", "2.13.0", "`torch.aminmax`", lambda: _derives(lambda x: torch.aminmax(x, dim=1)[1])),
    "distance to prototypes": Limit("2.13.0", "2.14.1", "`torch.cdist`", lambda: _derives(_slopes_of_distances)),
    "strided weights": Limit("2.13.0", "2.14.1", "`torch.ops.aten.native_group_norm`", _reads_strided_weights),
}


def limit_of(case: str) -> str:
    """Why the torch of this process cannot pass a case. Empty if it can."""
    if case not in LIMITS or LIMITS[case].is_right():
        return ""
    return f"torch {TORCH} has a fault in {LIMITS[case].said}; docs/versions.md says which"
