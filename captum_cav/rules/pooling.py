"""Rules for max pooling, and for other operations that select values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.operations.surrogates import with_slopes
from captum_cav.propagation import zeros
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule


@dataclass(frozen=True, repr=False)
class WinnerTakeAllRule(Rule):
    """The paper's rule for max pooling: the largest input of a window takes all (equations 7' and 8).

    This is the default rule of max pooling and of all other selections.

    Source: Kakishita and Hattori, equations 7' and 8.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> x = torch.tensor([[[1., 3.]]])
        >>> InputCAV(lambda x: F.max_pool1d(x, 2), rules={F.max_pool1d: WinnerTakeAllRule()}).attribute(x, (0, 0))
        tensor([[[0., 1.]]])
    """

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.SELECTION)

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value by its default rule."""
        return operation.by_default()


@dataclass(frozen=True, repr=False)
class _SharedWindow(Rule):
    """Max pooling that shares the contribution of each window among its inputs, as average pooling does."""

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.MAX_POOLING)

    def __call__(self, operation: Operation, /) -> Any:
        """The operation's value. Each input's share is in proportion to its value in :meth:`_stand_in`."""
        x = operation.argument(0, "input")
        result = operation.value()
        values = result[0] if isinstance(result, tuple) else result
        sums = _average(operation, self._stand_in(operation, x))
        total = sums.detach()
        output = with_slopes(values.detach(), [sums], [torch.where(total == 0, 0.0, values.detach() / total)])
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def _stand_in(self, operation: Operation, x: torch.Tensor) -> torch.Tensor:
        """The tensor that is averaged in the place of the input."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class ProportionalPoolingRule(_SharedWindow):
    """Max pooling in which the inputs of a window share in proportion to their values.

    ``R_i = sum_j x_i / sum_i x_i R_j``. The inputs should have one sign, as they have behind a ReLU. If the values of a
    window sum to nearly 0, their shares are very large.

    Raises:
        OptionError: in the forward pass, for a pooling with dilation.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> x = torch.tensor([[[1., 3.]]])
        >>> InputCAV(lambda x: F.max_pool1d(x, 2), rules={F.max_pool1d: ProportionalPoolingRule()}).attribute(x, (0, 0))
        tensor([[[0.2500, 0.7500]]])
    """

    def _stand_in(self, operation: Operation, x: torch.Tensor) -> torch.Tensor:
        return x


@dataclass(frozen=True, repr=False)
class UniformPoolingRule(_SharedWindow):
    """Max pooling in which the ``n`` inputs of a window get equal shares, ``R_i = sum_j 1 / n R_j``.

    Inputs of value 0 get contributions, too.

    Raises:
        OptionError: in the forward pass, for a pooling with dilation.

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> x = torch.tensor([[[0., 3.]]])
        >>> InputCAV(lambda x: F.max_pool1d(x, 2), rules={F.max_pool1d: UniformPoolingRule()}).attribute(x, (0, 0))
        tensor([[[0.5000, 0.5000]]])
    """

    def _stand_in(self, operation: Operation, x: torch.Tensor) -> torch.Tensor:
        operation.let_zeros_carry()
        values = x.detach()
        return with_slopes(torch.ones_like(values), [x], [zeros.without_zeros(values).reciprocal()])


def _average(operation: Operation, x: torch.Tensor) -> torch.Tensor:
    """Average pooling over the windows of a max pooling. Padding gets no share, because it is never the maximum."""
    dims = next(digit for digit in operation.name if digit.isdigit())
    if operation.name.startswith("adaptive"):
        adaptive: torch.Tensor = getattr(F, f"adaptive_avg_pool{dims}d")(x, operation.argument(1, "output_size"))
        return adaptive
    kernel, stride, padding, dilation, ceil = (
        operation.argument(position, name, default)
        for position, (name, default) in enumerate(
            (("kernel_size", None), ("stride", None), ("padding", 0), ("dilation", 1), ("ceil_mode", False)), 1
        )
    )
    if any(size != 1 for size in (dilation if isinstance(dilation, (tuple, list)) else (dilation,))):
        raise OptionError(
            f"{operation.name}{operation.where} has dilation {dilation}, which this rule does not support; keep the "
            "winner-take-all rule there."
        )
    # The divisor of the average cancels in the shares, so any divisor serves.
    pooled: torch.Tensor = getattr(F, f"avg_pool{dims}d")(x, kernel, stride or kernel, padding, ceil)
    return pooled
