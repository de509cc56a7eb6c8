"""Recordings on the device: a replay has the same bits, a CUDA graph the same map."""

from __future__ import annotations

import pytest
import torch

import captum_cav
from captum_cav import LayerCAV
from tests.compilation.test_equality import convolutional


@pytest.mark.parametrize("backend", ["replay", "cudagraphs"])
def test_recordings_on_a_gpu(backend: str, cuda: torch.device) -> None:
    net = convolutional().to(cuda)
    cav = LayerCAV(net, ["0", "3"])
    compiled = captum_cav.compile(cav, backend=backend)  # type: ignore[arg-type]
    for seed in range(3):
        x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed)).to(cuda)
        for found, expected in zip(compiled.attribute(x, seed), cav.attribute(x, seed), strict=True):
            assert found.device == expected.device
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # A parameter in another place needs another graph; numbers written into the same place do not.
    with torch.no_grad():
        net[8].weight.mul_(2.0)
    torch.testing.assert_close(compiled.attribute(x, 1)[0], cav.attribute(x, 1)[0], rtol=1e-4, atol=1e-5)
    net[8].weight = torch.nn.Parameter(torch.randn_like(net[8].weight))
    torch.testing.assert_close(compiled.attribute(x, 1)[0], cav.attribute(x, 1)[0], rtol=1e-4, atol=1e-5)


def test_results_of_a_cuda_graph_are_kept(cuda: torch.device) -> None:
    cav = LayerCAV(convolutional().to(cuda), "0")
    compiled = captum_cav.compile(cav, backend="cudagraphs")
    x = torch.randn(2, 3, 12, 12, device=cuda)
    first = compiled.attribute(x, 1)
    kept = first.clone()
    compiled.attribute(2 * x, 2)
    assert torch.equal(first, kept)
