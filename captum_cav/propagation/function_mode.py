"""A mode that may be left in any state of the stack of modes."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from captum_cav.torch_internals import function_modes


class FunctionMode(TorchFunctionMode):
    """A function mode that may be left after torch took it off its stack, as torch does around each operation.

    If an interrupt comes just then, torch does not put the mode back.
    """

    def __exit__(self, *error: Any) -> None:
        modes = function_modes()
        if modes and modes[-1] is self:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
