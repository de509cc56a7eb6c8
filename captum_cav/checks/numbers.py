"""Checks that read numbers of tensors on the host; on a GPU the host waits for each of them."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from captum_cav.errors import InputError, ModelError
from captum_cav.tensors import tensors_in

_NEAR_ZERO = 1e-6
# Their functions lie between the user's line and a warning.
_LIBRARIES = ("captum_cav", "captum")


def check_finite(tensor: torch.Tensor, name: str) -> None:
    """Refuse a floating-point argument that holds NaN or infinity.

    Args:
        tensor: shape (N, ...) or ().
        name: of the argument, for the message.

    Raises:
        InputError: names the samples that hold such numbers.
    """
    # The sum costs a third of the full test. A sum that is not finite may be an overflow, so the full test follows.
    if math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all()):
        return
    rows = torch.isfinite(tensor.reshape(len(tensor) if tensor.dim() else 1, -1)).all(1)
    raise InputError(f"{name} holds NaN or infinity in {sample_names(~rows)}; expected finite numbers.")


def check_finite_results(
    what: str, values: torch.Tensor, model: Callable[..., Any], rerun: Callable[[], Any], first_sample: int = 0
) -> None:
    """Refuse scores or contributions that are not finite, and name the first module that gives such numbers.

    Args:
        what: what the numbers are, with a verb, such as ``"the score is"``.
        values: shape (N, ...), the scores or contributions.
        model: the model that gave the numbers, for the names of its modules.
        rerun: runs the model once more with the same arguments. It is called if a number is not finite.
        first_sample: the number of the first of these samples in the batch.

    Raises:
        ModelError: names the samples and the module.
    """
    values = values.detach()
    if math.isfinite(_sum_of(values).item()):
        return
    rows = ~torch.isfinite(values.reshape(len(values), -1)).all(1)
    if bool(rows.any()):
        raise ModelError(
            f"{what} not finite in {sample_names(rows, first_sample)}: NaN or infinity first comes "
            f"{_first_not_finite(model, rerun)}. Look at the numbers there."
        )


def has_finite_sum(values: torch.Tensor) -> torch.Tensor:
    """Whether the sum of some numbers is finite: a fast test of whether all are. A boolean of shape ().

    If the sum is not finite, all numbers may be finite nevertheless.
    """
    return torch.isfinite(_sum_of(values))


def _sum_of(values: torch.Tensor) -> torch.Tensor:
    """The sum of some numbers. Sums of half-precision numbers would overflow, so they are float32."""
    return values.sum(dtype=torch.float32 if values.itemsize < 4 else values.dtype)


def _first_not_finite(model: Callable[..., Any], rerun: Callable[[], Any]) -> str:
    """The place of the forward pass that gives the first number that is not finite, as the message names the place."""
    thread = threading.get_ident()
    found: list[torch.nn.Module] = []

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        if threading.get_ident() == thread and not found:
            tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
                found.append(module)

    with torch.no_grad():
        handle = torch.nn.modules.module.register_module_forward_hook(look)
        try:
            rerun()
        finally:
            handle.remove()
    if not found:
        return "between its modules or in the backward pass"
    modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    names = {module: name for name, module in modules}
    name, kind = names.get(found[0], ""), type(found[0]).__name__
    return f"out of module {name!r} ({kind})" if name else f"out of the module {kind}"


def near_zero(scores: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Which scores are at or near zero compared with the other scores of the sample. Booleans of shape (N,).

    Args:
        scores: shape (N,), the scores that contributions are divided by.
        output: shape (N, ...), all scores of each sample.
        first_sample: the number of the first of these samples in the batch.
    """
    rows = output.detach().reshape(len(scores), -1).abs()
    scale = rows.amax(1) if rows.shape[1] > 1 else torch.ones_like(rows[:, 0])
    sizes = scores.detach().abs()
    # The smallest numbers of float32 have no finite reciprocal. Scores of half precision are scaled beforehand.
    smallest = 1 / torch.finfo(sizes.dtype).max if sizes.itemsize >= 4 else 0.0
    return sizes <= (_NEAR_ZERO * scale).clamp(min=smallest)


def users_level() -> int:
    """The ``stacklevel`` with which a warning of the caller names the line where the user called the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level


def sample_names(rows: torch.Tensor, first_sample: int = 0) -> str:
    """The samples of a selection, as messages name them: "sample 2", "samples 0, 3, ..."; the first five at most.

    Args:
        rows: booleans of shape (N,), True for each selected sample.
        first_sample: the number of the first of these samples in the batch.
    """
    indices: Sequence[int] = (rows.nonzero().flatten() + first_sample).tolist()
    shown = ", ".join(map(str, indices[:5])) + (", ..." if len(indices) > 5 else "")
    return f"sample {shown}" if len(indices) == 1 else f"samples {shown}"
