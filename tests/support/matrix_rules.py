"""The propagation rules written out with dense matrices in float64: no gradient, no coefficient, no shortcut.

Every affine operation becomes ``y_j = sum_i x_i w_ij + b_j`` with a full matrix ``w``, and a rule is its formula: how
the outputs' contributions ``R_j`` are shared out to the inputs. ``z_ij = x_i w_ij``. With ``bias="share"`` the bias is
one more input, always 1, with weight ``b_j``; with ``"absorb"`` it is in no sum, and ``R_j`` stays what it is.
0 / 0 is 0. Nothing here imports the package.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Affine(NamedTuple):
    """An affine operation on one sample, written out."""

    x: torch.Tensor  # (I,)
    w: torch.Tensor  # (I, J)
    b: torch.Tensor | None  # (J,)
    connected: torch.Tensor  # (I, J): 1 where input i has a weight to output j, 0 elsewhere
    shape: tuple[int, ...]  # of x before it was flattened, without a batch dimension


Rule = Callable[[Affine, torch.Tensor], torch.Tensor]
Network = Sequence[tuple[nn.Module, "Rule | None"]]

AFFINE = (nn.Linear, nn.modules.conv._ConvNd)
BATCH_NORM = nn.modules.batchnorm._BatchNorm
POOL_OF_MAXIMA = nn.modules.pooling._MaxPoolNd
POOL_OF_MEANS = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd)


class Sum(nn.Module):
    """Branches of one input, added up: a residual block. An empty branch is the shortcut."""

    def __init__(self, *networks: Network) -> None:
        super().__init__()
        self.networks = networks
        self.branches = nn.ModuleList(nn.Sequential(*(layer for layer, _ in network)) for network in networks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(branch(x) for branch in self.branches[1:]) + self.branches[0](x)


# The rules.


def _over(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    numerator, denominator = torch.broadcast_tensors(numerator, denominator)
    return torch.where(denominator == 0, 0, numerator / torch.where(denominator == 0, 1, denominator))


def _terms(op: Affine, bias: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``z_ij``, and what the bias adds to the sums."""
    assert bias in ("share", "absorb")
    shared = op.b is not None and bias == "share"
    return op.x[:, None] * op.w, op.b if shared else torch.zeros_like(op.w[0])


def contribution() -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        z, b = _terms(op, "share")
        return _over(z, z.sum(0) + b) @ r

    return rule


def epsilon(eps: float = 1e-6, *, relative: bool = False, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        z, b = _terms(op, bias)
        total = z.sum(0) + b
        step = eps * total.square().mean().sqrt() if relative else eps
        return _over(z, torch.where(total < 0, total - step, total + step)) @ r

    return rule


def absolute_epsilon(eps: float = 0.3, *, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        z, b = _terms(op, bias)
        total, step = z.sum(0) + b, eps * (z.abs().sum(0) + b.abs())
        return _over(z, torch.where(total < 0, total - step, total + step)) @ r

    return rule


def gamma(g: float = 0.25, *, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        z, b = _terms(op, bias)
        total, up, down = z.sum(0) + b, z.clamp(min=0).sum(0) + b.clamp(min=0), z.clamp(max=0).sum(0) + b.clamp(max=0)
        positive = _over(z + g * z.clamp(min=0), total + g * up)
        negative = _over(z + g * z.clamp(max=0), total + g * down)
        return torch.where(total >= 0, positive, negative) @ r

    return rule


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, *, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        z, b = _terms(op, bias)
        up, down = z.clamp(min=0).sum(0) + b.clamp(min=0), z.clamp(max=0).sum(0) + b.clamp(max=0)
        return (alpha * _over(z.clamp(min=0), up) - beta * _over(z.clamp(max=0), down)) @ r

    return rule


def z_plus(*, bias: str = "share") -> Rule:
    return alpha_beta(1.0, 0.0, bias=bias)


def z_box(low: float | torch.Tensor, high: float | torch.Tensor) -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        lowest, highest = (
            torch.as_tensor(bound, dtype=torch.float64).expand(1, *op.shape).reshape(-1, 1) for bound in (low, high)
        )
        u = op.x[:, None] * op.w - lowest * op.w.clamp(min=0) - highest * op.w.clamp(max=0)
        return _over(u, u.sum(0)) @ r

    return rule


def w_square(*, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        _, b = _terms(op, bias)
        return _over(op.w**2, (op.w**2).sum(0) + b**2) @ r

    return rule


def flat(*, bias: str = "share") -> Rule:
    def rule(op: Affine, r: torch.Tensor) -> torch.Tensor:
        shared = op.b is not None and bias == "share"
        return _over(op.connected, op.connected.sum(0) + shared) @ r

    return rule


# The layers.


def _columns(layer: nn.Module, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """What each input alone adds to each output, and what is there without any."""
    size = math.prod(shape)
    at_zero = layer(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    return layer(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1) - at_zero, at_zero


def _padding(layer: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """Padding with copies of the inputs is an operation of its own, in front of a convolution without padding."""
    if getattr(layer, "padding_mode", "zeros") == "zeros":
        return None, layer
    bare = copy.deepcopy(layer)
    sides, mode = list(bare._reversed_padding_repeated_twice), bare.padding_mode
    bare.padding, bare.padding_mode = (0,) * len(bare.kernel_size), "zeros"
    pad = nn.Module()
    pad.forward = lambda x: F.pad(x, sides, mode=mode)  # type: ignore[method-assign]
    return pad, bare


def _affine(layer: nn.Module, norm: nn.Module | None, x: torch.Tensor) -> Affine:
    """A layer, with the batch norm behind it, as one operation on ``x``."""
    shape = tuple(x.shape)
    w, b = _columns(nn.Sequential(layer, norm) if norm else layer, shape)
    ones = copy.deepcopy(layer)
    for name, parameter in ones.named_parameters():
        parameter.fill_(1 if name == "weight" else 0)
    connected = (_columns(ones, shape)[0] != 0).double()
    has_bias = norm is not None or getattr(layer, "bias", None) is not None
    return Affine(x.flatten(), w, b if has_bias else None, connected, shape)


def _through_affine(
    layer: nn.Module, norm: nn.Module | None, rule: Rule, x: torch.Tensor, r: torch.Tensor
) -> torch.Tensor:
    pad, layer = _padding(layer)
    padded = pad(x[None])[0] if pad else x
    found = rule(_affine(layer, norm, padded), r.flatten())
    return ((_columns(pad, tuple(x.shape))[0] @ found) if pad else found).reshape(x.shape)


def _through_means(layer: nn.Module, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """In proportion; in equal parts where a window has nothing but zeros, as equal tiny numbers would have it."""
    window, _ = _columns(layer, tuple(x.shape))
    z = x.flatten()[:, None] * window
    z = torch.where((z == 0).all(0), window, z)
    return (_over(z, z.sum(0)) @ r.flatten()).reshape(x.shape)


def _through_maxima(layer: nn.Module, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The first of the largest of each window takes everything."""
    window, _ = _columns(layer, tuple(x.shape))  # the maximum of a unit vector is 1 where the window has the unit
    winners = torch.where(window > 0, x.flatten()[:, None], -math.inf).max(0).values
    found = torch.zeros_like(x).flatten()
    for j, winner in enumerate(winners):
        first = ((window[:, j] > 0) & (x.flatten() == winner)).nonzero()[0]
        found[first] += r.flatten()[j]
    return found.reshape(x.shape)


def _backwards(network: Network, x: torch.Tensor, r_of: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    """The contributions at the input of every layer, of the layers inside blocks too, of one sample."""
    xs = [x]
    for layer, _ in network:
        xs.append(layer(xs[-1][None])[0])
    r = r_of(xs[-1])
    found: dict[nn.Module, torch.Tensor] = {}
    for index, (layer, rule) in reversed(list(enumerate(network))):
        x, y = xs[index], xs[index + 1]
        before = network[index - 1][0] if index else None
        behind = network[index + 1][0] if index + 1 < len(network) else None
        if isinstance(layer, BATCH_NORM) and isinstance(before, AFFINE):
            continue  # one operation with the layer before it, in whose turn it is written out
        if isinstance(layer, (*AFFINE, BATCH_NORM)):
            norm = behind if isinstance(behind, BATCH_NORM) and isinstance(layer, AFFINE) else None
            r = _through_affine(layer, norm, rule or contribution(), x, r)
        elif isinstance(layer, POOL_OF_MEANS):
            r = _through_means(layer, x, r)
        elif isinstance(layer, POOL_OF_MAXIMA):
            r = _through_maxima(layer, x, r)
        elif isinstance(layer, nn.Flatten):
            r = r.reshape(x.shape)
        elif isinstance(layer, Sum):
            parts = torch.zeros_like(x)
            for branch, inside in zip(layer.branches, layer.networks, strict=True):
                share = _over(branch(x[None])[0], y) * r
                deeper = _backwards(inside, x, lambda _, share=share: share)
                parts = parts + (next(iter(deeper.values())) if inside else share)
                found = {**deeper, **found}
            r = parts
        else:
            assert x.shape == y.shape, f"no rule for {layer}"  # an activation: one input, one output, also where off
        found = {layer: r, **found}
    return found


@torch.no_grad()
def relevances_by_layer(network: Network, x: torch.Tensor, target: int) -> dict[nn.Module, torch.Tensor]:
    """Contributions to the score of the target, in its units, at the input of every layer, also inside blocks.

    A batch norm that is folded into the layer before it has no input of its own, and is left out.

    Args:
        network: pairs of a layer and its rule, in order. Affine layers without a rule have :func:`contribution`; the
            rule of any other layer is never looked at: activations pass through, the winner of a max pool takes all,
            average pools and sums share in proportion.
        x: (N, ...), float64.
        target: an index of the last layer's outputs.
    """

    def score(y: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(len(y)) == target, y, 0)

    samples = [_backwards(network, sample, score) for sample in x]
    return {layer: torch.stack([found[layer] for found in samples]) for layer in samples[0]}


def relevances(network: Network, x: torch.Tensor, target: int) -> list[torch.Tensor | None]:
    """Contributions at the input of every layer of the list, None for a folded batch norm's."""
    found = relevances_by_layer(network, x, target)
    return [found.get(layer) for layer, _ in network]
