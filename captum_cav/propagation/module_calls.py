"""Modules whose whole call is ruled as one operation. The module runs unseen, then its rule applies to its output."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from captum_cav.errors import ModelError
from captum_cav.propagation.custom_functions import note_written
from captum_cav.propagation.dispatch import Propagation
from captum_cav.propagation.rule import Rule
from captum_cav.tensors import tensors_in
from captum_cav.torch_internals import tree_map, version_of


class _Call(NamedTuple):
    """A running call of a module that is ruled as one operation.

    Attributes:
        module: the module.
        rule: its rule.
        why: the key that chose the rule.
        args: its positional arguments.
        copies: copies of these arguments. The module gets the copies, because it may write into its arguments.
    """

    module: torch.nn.Module
    rule: Rule
    why: str
    args: tuple[Any, ...]
    copies: tuple[Any, ...]


class ModuleCalls:
    """Rules modules as one operation, one call at a time.

    Args:
        propagation: the propagation of the forward pass.
    """

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation
        self._running: _Call | None = None

    def begin(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pause the propagation for a module that is ruled as one operation.

        Args:
            module: the module that was entered last.
            args: its positional arguments.

        Returns:
            Copies of the arguments, for the module. None if the module is not ruled as one operation.
        """
        chosen = self._propagation.modules.rule_of_call() if self._running is None else None
        if chosen is None:
            return None
        self._propagation.is_paused = True
        copies: tuple[Any, ...] = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)
        self._running = _Call(module, *chosen, args, copies)
        return copies

    def end(self, kwargs: dict[str, Any], output: Any) -> Any:
        """End the call of the module, and apply its rule.

        Args:
            kwargs: its keyword arguments.
            output: what the module returned. None if the module raised.

        Returns:
            The output by the rule. None if the module raised.

        Raises:
            ModelError: for a module that returns a keyword argument.
        """
        call, self._running, self._propagation.is_paused = self._running, None, False
        assert call is not None
        if output is None:
            return None
        pairs = zip(tensors_in(call.args), tensors_in(call.copies), strict=True)
        with self._propagation.paused():  # This call of torch is the engine's, not the model's.
            written = [(argument, copy) for argument, copy in pairs if version_of(copy)]
        who = self._propagation.modules.describe(call.module)
        if any(tensor is output for tensor in tensors_in(kwargs)):
            raise ModelError(
                f"{who} is ruled as one by {call.rule!r}, but returns a keyword argument; pass that argument by "
                "position, or give rules for the operations inside the module."
            )
        arguments = [argument for argument, copy in written if copy is output]
        ruled = self._propagation.run_module_call(
            call.module, (call.rule, call.why), call.args, kwargs, output, arguments
        )
        for argument, copy in written:
            if copy is not output:
                note_written(self._propagation, argument, copy, who)
        return ruled
