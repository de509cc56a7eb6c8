"""Whether anything makes the host wait for the device, or copies a number to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def none_allowed(device: torch.device) -> Iterator[None]:
    """Fail where the host waits for the device.

    On CUDA torch itself raises. Anywhere else the device is ``meta``, whose tensors have no numbers: torch raises where
    the host wants to know one. Copies between host and device, tensors of both in one operation, and operations that
    wait on CUDA alone are looked for here.

    Raises:
        RuntimeError, AssertionError: where the host waits.
    """
    if device.type != "cuda":
        with ExitStack() as watched:
            # Seen by no mode in the backward pass.
            watched.enter_context(patch.object(torch.Tensor, "new_tensor", _without_copies(torch.Tensor.new_tensor, 1)))
            for name in ("tensor", "as_tensor", "asarray"):
                watched.enter_context(patch.object(torch, name, _without_copies(getattr(torch, name), 0)))
            watched.enter_context(_OneDevice())
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _devices(value: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)}


def _without_copies(make: Callable[..., torch.Tensor], place: int) -> Callable[..., torch.Tensor]:
    """A function that makes tensors, refused where it copies to the device what the host has.

    Args:
        make: the function.
        place: position of the data among its arguments.
    """

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        output = make(*args, **kwargs)
        assert output.device.type == "cpu" or _devices(args[place]), f"{make.__name__} copies a number to the device"
        return output

    return call


_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEX_PUTS = (torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class _OneDevice(TorchDispatchMode):
    """Refuses tensors of host and device in one operation, and what makes the host wait on CUDA but not on ``meta``.

    Numbers of no dimension may come from the host: torch hands them on as arguments.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or func in _COPIES}
        assert len(devices) <= 1, f"{func} takes or gives tensors of host and device"
        assert func != torch.ops.aten._linalg_check_errors.default, "torch reads whether a matrix is singular"
        if func in _INDEX_PUTS:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            assert not masks or args[2].numel() == 1, f"{func} counts the places of a mask"
        return output
