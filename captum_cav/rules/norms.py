"""Rules for normalisations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from captum_cav.errors import OptionError
from captum_cav.operations import TABLE
from captum_cav.propagation.kinds import Kind
from captum_cav.propagation.operation import Operation
from captum_cav.propagation.rule import Rule
from captum_cav.rules.activations import PassThroughRule


@dataclass(frozen=True, repr=False)
class NormRule(Rule):
    """How layer, RMS, group, instance and batch norms pass contributions on.

    Args:
        statistic: how the statistics are treated.

            - ``"constant"``, the default of all norms: the statistic that divides is a constant, and the mean is
              linear.
            - ``"identity"``: each output's contribution goes to its own input, ``R_i = R_j`` for ``i = j``.

    Raises:
        OptionError: for another value of ``statistic``.

    Source: Ali et al. 2022 (constant); Achtibat et al. 2024, proposition 3.4 (identity).

    Example::

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from captum_cav import InputCAV
        >>> score = lambda x: F.layer_norm(x, (2,))[:, 0]
        >>> x = torch.tensor([[3., 1.]])
        >>> InputCAV(score).attribute(x)
        tensor([[ 1.5000, -0.5000]])
        >>> InputCAV(score, rules={F.layer_norm: NormRule("identity")}).attribute(x)
        tensor([[1., -0.]])
    """

    statistic: Literal["constant", "identity"] = "constant"

    operations: ClassVar[frozenset[str] | None] = TABLE.names(Kind.NORM)

    def __post_init__(self) -> None:
        if self.statistic not in ("constant", "identity"):
            raise OptionError(f'statistic is {self.statistic!r}; expected "constant" or "identity".')

    def __call__(self, operation: Operation, /) -> Any:
        """The default value, or the value of :class:`PassThroughRule`."""
        return operation.by_default() if self.statistic == "constant" else PassThroughRule()(operation)
