"""Where these tests run: on CUDA if there is any (``-m gpu``), and on CPU to see that they are right (``-m slow``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: no GPU"),
    ],
)
CPU = pytest.param("cpu", marks=pytest.mark.slow)


@pytest.fixture(params=[CUDA, CPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test."""
    return torch.device(request.param)


@pytest.fixture(params=[CUDA, "meta"])
def cuda_or_meta(request: pytest.FixtureRequest) -> torch.device:
    """For what the host must not wait for: ``meta`` stands in for a GPU."""
    return torch.device(request.param)


@pytest.fixture(params=[CUDA])
def cuda(request: pytest.FixtureRequest) -> torch.device:
    """For what only a GPU has."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Float32 as it is: TF32 has ten bits, which would hide what these tests look for."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
