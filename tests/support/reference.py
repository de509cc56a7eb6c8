"""The paper's equations 1-9 written out with dense matrices in float64: no gradient, no shortcut.

Each layer gives ``beta[i, j]``, the contribution ratio of its input ``i`` to its output ``j``, and the ratio of its
bias to each output. The chain (equations 5 and 6) multiplies them from the score back. One sample at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a linear layer or convolution as a fully connected layer (equation 9)."""
    size = int(np.prod(shape))
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        columns = layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1) - bias
    return columns.numpy(), bias.numpy()


def fully_connected(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1-4: ``beta[i, j] = x_i w_ij / y_j``; the bias is one more input, always 1."""
    y = x @ w + b
    return x[:, None] * w / y, b / y


def max_pooling(x: np.ndarray, shape: tuple[int, int, int], layer: nn.MaxPool2d) -> np.ndarray:
    """Equations 7' and 8: the arg-max of each window gives everything."""
    grid = x.reshape(shape)
    channels, height, width = shape
    size, step = layer.kernel_size, layer.stride
    rows, columns = (height - size) // step + 1, (width - size) // step + 1
    beta = np.zeros((x.size, channels * rows * columns))
    for j, (c, r, k) in enumerate(np.ndindex(channels, rows, columns)):
        window = grid[c, r * step : r * step + size, k * step : k * step + size]
        dr, dk = np.unravel_index(window.argmax(), window.shape)
        beta[np.ravel_multi_index((c, r * step + dr, k * step + dk), shape), j] = 1
    return beta


def ratios(net: nn.Sequential, sample: torch.Tensor, target: int) -> tuple[list[np.ndarray], list[float]]:
    """Contribution ratios of the input of every layer, and the share of the constants from there on.

    Args:
        net: convolutions, linear layers, max pooling, elementwise activations, flatten.
        sample: shape (...) without a batch dimension, float64.
        target: index of the output that is the score.
    """
    betas, bias_betas, shapes = [], [], []
    x = sample
    for layer in net:
        y = layer(x[None])[0].detach()
        flat = x.detach().flatten().numpy()
        shapes.append(tuple(x.shape))
        bias = np.zeros(y.numel())
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            beta, bias = fully_connected(flat, *matrix(layer, tuple(x.shape)))
        elif isinstance(layer, nn.MaxPool2d):
            beta = max_pooling(flat, tuple(x.shape), layer)
        else:
            beta = np.eye(y.numel())  # equation 7: an activation's output comes from its own input
        betas.append(beta)
        bias_betas.append(bias)
        x = y
    to_score = np.zeros(x.numel())
    to_score[target] = 1
    found, constants = [], [0.0]
    for beta, bias, shape in zip(reversed(betas), reversed(bias_betas), reversed(shapes), strict=True):
        # Equations 5 and 6. An output without any contribution to the score passes none on, though it may be 0 / 0.
        alive = to_score != 0
        constants.insert(0, constants[0] + float(bias[alive] @ to_score[alive]))
        to_score = beta[:, alive] @ to_score[alive]
        found.insert(0, to_score.reshape(shape))
    return found, constants[:-1]
