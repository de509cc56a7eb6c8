"""Looking at tensors: those inside a result, their bits, and whether two results are the same."""

from __future__ import annotations

from typing import Any

import torch


def tensors_of(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors_of(part)]


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def assert_same(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def largest(values: torch.Tensor) -> float:
    return float(values.detach().abs().max())
