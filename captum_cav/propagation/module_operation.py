"""The whole call of a module as one operation."""

from __future__ import annotations

from typing import Any

import torch

from captum_cav.propagation.operation import UNKNOWN, Engine, Operation
from captum_cav.torch_internals import tree_map


class ModuleCall(Operation):
    """The whole call of a module as one operation. The operations inside are not seen."""

    __slots__ = ("_output", "module")

    def __init__(
        self,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[torch.Tensor],
        output: Any,
        engine: Engine,
    ) -> None:
        super().__init__(type(module).__name__, UNKNOWN, module.forward, args, kwargs, sources, False, engine)
        self.module = module
        self._output = output

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at a position. Keyword arguments count, too, because a module may give its input any name."""
        arguments = [*self.args, *self.kwargs.values()]
        return arguments[position] if position < len(arguments) else default

    def value(self) -> Any:
        """What the module returned, differentiated as torch does."""
        return self._output

    def evaluate(self, x: torch.Tensor) -> Any:
        """What the module returned, without a graph. The first argument is always the original one."""
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, self._output)

    def by_default(self) -> Any:
        """What the module returned, differentiated as torch does. A module has no default rule as one operation."""
        return self._output
