"""Losses as scores: which part of the prediction and of the target gave the loss.

A loss is decomposed into operations that have rules. A target is a constant, unless it depends on the inputs. A squared
difference passes its contribution to the difference, and the difference shares it out between prediction and target.

The functions of :mod:`torch.nn.functional` read the reduction and call a function of torch's core. So their Python
bodies are run, and the rules here are those of the functions of the core. Their argument ``reduction`` is a number.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F

from captum_cav.operations.table import TABLE
from captum_cav.propagation.kinds import Derivative
from captum_cav.propagation.operation import Operation, OperationSpec, Surrogate
from captum_cav.torch_internals import Overload

Optional = torch.Tensor | None

_MEAN, _SUM = 1, 2


def _reduced(losses: torch.Tensor, reduction: int) -> torch.Tensor:
    if reduction == _MEAN:
        return losses.mean()
    return losses.sum() if reduction == _SUM else losses


def _loss(compute: Callable[..., torch.Tensor]) -> Surrogate:
    """Rule of a loss, decomposed.

    Args:
        compute: computes the loss from the arguments of the function of torch's core.
    """
    signature = inspect.signature(compute)

    def rule(operation: Operation) -> Any:
        if isinstance(operation.function, FunctionType):
            return operation.decompose_body()
        given = signature.bind(*operation.args, **operation.kwargs).arguments
        # A built-in function without a reduction does not do what the schema of torch says.
        if "reduction" not in given and not isinstance(operation.function, Overload):
            return operation.gradient()
        return operation.decompose(compute, *operation.args, **operation.kwargs)

    rule.__name__ = "loss"
    return rule


def _of_difference(
    function: Callable[[torch.Tensor, float], torch.Tensor], x: torch.Tensor, target: torch.Tensor, setting: float
) -> torch.Tensor:
    """A function of ``x - target`` that is 0 at 0, whose contribution goes to the difference.

    Args:
        function: takes the difference and the setting, and gives the losses.
        x: the prediction.
        target: the target.
        setting: passed on to the function.
    """
    difference = x - target
    fixed = difference.detach()
    return difference * (function(fixed, setting) / fixed).nan_to_num(nan=0.0)


# Regression ---------------------------------------------------------------------------------------------------------


def _mse(x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN) -> torch.Tensor:
    return _reduced((x - target).square(), reduction)


def _l1(x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN) -> torch.Tensor:
    return _reduced((x - target).abs(), reduction)


def _smooth_l1(x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN, beta: float = 1.0) -> torch.Tensor:
    def losses(difference: torch.Tensor, beta: float) -> torch.Tensor:
        return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)

    return _reduced(_of_difference(losses, x, target, beta), reduction)


def _huber(x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN, delta: float = 1.0) -> torch.Tensor:
    def losses(difference: torch.Tensor, delta: float) -> torch.Tensor:
        return F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta)

    return _reduced(_of_difference(losses, x, target, delta), reduction)


def _poisson(
    x: torch.Tensor, target: torch.Tensor, log_input: bool, full: bool, eps: float, reduction: int
) -> torch.Tensor:
    losses = x.exp() - target * x if log_input else x - target * (x + eps).log()
    if full:
        stirling = target * target.log() - target + 0.5 * (2 * math.pi * target).log()
        losses = losses + stirling.masked_fill(target <= 1, 0.0)
    return _reduced(losses, reduction)


def gaussian(operation: Operation) -> Any:
    """``gaussian_nll_loss``, decomposed: torch's body would write into the variance without a graph."""

    def loss(
        x: torch.Tensor,
        target: torch.Tensor,
        var: torch.Tensor | float,
        full: bool = False,
        eps: float = 1e-6,
        reduction: str = "mean",
    ) -> torch.Tensor:
        variance = var if isinstance(var, torch.Tensor) else x.new_full((), var)
        if variance.dim() and x.dim() == variance.dim() + 1:
            variance = variance.unsqueeze(-1)
        variance = variance.clamp(min=eps)
        losses = 0.5 * (variance.log() + (x - target).square() / variance)
        if full:
            losses = losses + 0.5 * math.log(2 * math.pi)
        return _reduced(losses, {"mean": _MEAN, "sum": _SUM}.get(reduction, 0))

    return operation.decompose(loss, *operation.args, **operation.kwargs)


# Sequences ----------------------------------------------------------------------------------------------------------


def connectionist(operation: Operation) -> Any:
    """``ctc_loss``: its derivative, which is minus the posterior of each symbol. The entropy is a constant.

    Torch's own gradient is the derivative only behind a log-softmax that is differentiated, too. It contains the
    probabilities, which are added here.
    """
    if isinstance(operation.function, FunctionType):
        return operation.decompose_body()
    x, targets, times, lengths, blank, reduction, zero_infinity = (
        operation.argument(place, name, default)
        for place, (name, default) in enumerate(
            (
                ("log_probs", None),
                ("targets", None),
                ("input_lengths", None),
                ("target_lengths", None),
                ("blank", 0),
                ("reduction", None),
                ("zero_infinity", False),
            )
        )
    )
    if operation.sources != [x] or reduction is None:
        return operation.gradient()
    leaf = x.detach().requires_grad_()
    losses = torch.ctc_loss(leaf, targets, times, lengths, blank, 0, zero_infinity)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    times, lengths = (torch.as_tensor(counts, device=x.device).reshape(losses.shape) for counts in (times, lengths))
    is_read = torch.arange(len(x), device=x.device).reshape(-1, *[1] * losses.dim()) < times
    is_finite = (gradient != 0).any(-1).any(0)
    slope = torch.where((is_read & is_finite)[..., None], gradient - x.detach().exp(), 0.0)
    entropy = losses.detach() - (x.detach() * slope).sum((0, -1))

    def loss() -> torch.Tensor:
        found = (x * slope).sum((0, -1)) + entropy
        return _reduced(found / lengths.clamp(min=1) if reduction == _MEAN else found, reduction)

    return operation.decompose(loss)


# Classification -----------------------------------------------------------------------------------------------------


def negative_log_likelihood(operation: Operation) -> Any:
    """``nll_loss``: linear in the logarithms of the probabilities."""
    x = operation.argument(0, "input")
    if len(operation.sources) > 1 or operation.sources[0] is not x:
        return operation.gradient()
    return operation.value()


def _cross_entropy(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Optional = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    dim = min(1, x.dim() - 1)
    classes = x.shape[dim]
    logarithms = F.log_softmax(x, dim)
    weighted = logarithms
    if weight is not None:
        weighted = logarithms * weight.reshape(-1, *[1] * (x.dim() - dim - 1))
    if target.is_floating_point():
        return _reduced(-(weighted * (target * (1 - label_smoothing) + label_smoothing / classes)).sum(dim), reduction)
    name = ("none", "mean", "sum")[reduction]
    loss = F.nll_loss(logarithms, target, weight, ignore_index=ignore_index, reduction=name)
    if not label_smoothing:
        return loss
    ignored = target == ignore_index
    uniform = (-weighted.sum(dim)).masked_fill(ignored, 0.0)
    if reduction == _MEAN:
        counts = ~ignored if weight is None else weight[target.masked_fill(ignored, 0)].masked_fill(ignored, 0.0)
        uniform = uniform.sum() / counts.sum()
    else:
        uniform = _reduced(uniform, reduction)
    return (1 - label_smoothing) * loss + label_smoothing / classes * uniform


def _binary(x: torch.Tensor, target: torch.Tensor, weight: Optional = None, reduction: int = _MEAN) -> torch.Tensor:
    # Torch limits the logarithms, too, so that no loss is infinite.
    losses = -(target * x.log().clamp(min=-100) + (1 - target) * (-x).log1p().clamp(min=-100))
    return _reduced(losses if weight is None else losses * weight, reduction)


def _binary_with_logits(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: Optional = None,
    pos_weight: Optional = None,
    reduction: int = _MEAN,
) -> torch.Tensor:
    of_sigmoid = 1.0 if pos_weight is None else 1 + (pos_weight - 1) * target
    losses = (1 - target) * x - F.logsigmoid(x) * of_sigmoid
    return _reduced(losses if weight is None else losses * weight, reduction)


def _divergence(
    x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN, *, log_target: bool = False
) -> torch.Tensor:
    if log_target:
        return _reduced(target.exp() * (target - x), reduction)
    return _reduced(torch.xlogy(target, target) - target * x, reduction)


def _soft_margin(x: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN) -> torch.Tensor:
    return _reduced(F.softplus(-target * x), reduction)


def _multi_margin(
    x: torch.Tensor,
    target: torch.Tensor,
    p: float = 1,
    margin: float = 1.0,
    weight: Optional = None,
    reduction: int = _MEAN,
) -> torch.Tensor:
    rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1, 1)
    above = F.relu(margin - rows.gather(1, classes) + rows)
    above = above if p == 1 else above.square()
    above = above if weight is None else above * weight[classes]
    losses = above.scatter(1, classes, 0.0).mean(1)
    return _reduced(losses.reshape(target.shape), reduction)


# Distances ----------------------------------------------------------------------------------------------------------


def _cosine_embedding(
    input1: torch.Tensor, input2: torch.Tensor, target: torch.Tensor, margin: float = 0.0, reduction: int = _MEAN
) -> torch.Tensor:
    cosines = F.cosine_similarity(input1, input2, dim=-1)
    alike = (1 - cosines).masked_fill(target != 1, 0.0)
    return _reduced(alike + F.relu(cosines - margin).masked_fill(target != -1, 0.0), reduction)


def _hinge_embedding(
    x: torch.Tensor, target: torch.Tensor, margin: float = 1.0, reduction: int = _MEAN
) -> torch.Tensor:
    alike = x.masked_fill(target == -1, 0.0)
    return _reduced(alike + F.relu(margin - x).masked_fill(target == 1, 0.0), reduction)


def _margin_ranking(
    input1: torch.Tensor, input2: torch.Tensor, target: torch.Tensor, margin: float = 0.0, reduction: int = _MEAN
) -> torch.Tensor:
    return _reduced(F.relu(-target * (input1 - input2) + margin), reduction)


def _triplet_margin(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = _MEAN,
) -> torch.Tensor:
    near, far = (F.pairwise_distance(anchor, other, p, eps) for other in (positive, negative))
    if swap:
        far = torch.minimum(far, F.pairwise_distance(positive, negative, p, eps))
    return _reduced(F.relu(near - far + margin), reduction)


_COMPUTE: dict[str, Callable[..., torch.Tensor]] = {
    "mse_loss": _mse,
    "l1_loss": _l1,
    "smooth_l1_loss": _smooth_l1,
    "huber_loss": _huber,
    "poisson_nll_loss": _poisson,
    "cross_entropy|cross_entropy_loss": _cross_entropy,
    "binary_cross_entropy": _binary,
    "binary_cross_entropy_with_logits": _binary_with_logits,
    "kl_div": _divergence,
    "soft_margin_loss": _soft_margin,
    "multi_margin_loss": _multi_margin,
    "cosine_embedding_loss": _cosine_embedding,
    "hinge_embedding_loss": _hinge_embedding,
    "margin_ranking_loss": _margin_ranking,
    "triplet_margin_loss": _triplet_margin,
}
for _name, _compute in _COMPUTE.items():
    TABLE.register(_name, OperationSpec(rule=_loss(_compute)))
TABLE.register("ctc_loss", OperationSpec(rule=connectionist))
TABLE.register("gaussian_nll_loss", OperationSpec(rule=gaussian))
TABLE.register(
    "nll_loss|nll_loss_nd|nll_loss2d", OperationSpec(rule=negative_log_likelihood, derivative=Derivative.ALWAYS)
)
# Their Python bodies are made of operations that have rules.
TABLE.register(
    "multilabel_soft_margin_loss triplet_margin_with_distance_loss", OperationSpec(rule=Operation.decompose_body)
)
