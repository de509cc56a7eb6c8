"""What is explained: the output of the target, or how far that output exceeds the outputs of all other classes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from captum_cav import checks
from captum_cav.captum_internals import select_scores
from captum_cav.errors import TargetError

Score: TypeAlias = Literal["output", "log_odds"]
SCORES: tuple[str, ...] = get_args(Score)


class SelectedScores(NamedTuple):
    """The scores that are explained.

    Attributes:
        values: shape (N,), the score of each sample, with its graph.
        constants: shape (N,), the part of each score that does not come from any output.
        output: shape (N, ...), all outputs that the scores were selected from.
        first_sample: the number of the first of these samples in the batch, for messages.
    """

    values: torch.Tensor
    constants: torch.Tensor
    output: torch.Tensor
    first_sample: int = 0


def select_target(output: torch.Tensor, target: Any, score: Score, first_sample: int = 0) -> SelectedScores:
    """The score of each sample.

    The log-odds of a class are its output minus the log-sum-exp of the other outputs ``z_k``. With the softmax ``s`` of
    the other outputs as constant weights, ``sum_k s_k z_k`` of the log-sum-exp comes from the outputs. The rest is the
    entropy of ``s``, which counts as a constant.

    Args:
        output: shape (N, ...), the output of the model.
        target: in any of the forms that Captum takes.
        score: ``"output"``, the output of the target as in the paper; ``"log_odds"``, that output minus the log-sum-exp
            of all other outputs, which is ``log(p / (1 - p))`` of the softmax probability ``p``.
        first_sample: the number of the first of these samples in the batch, for messages.

    Raises:
        TargetError, CAVTypeError: for a target that does not fit the output.

    Example::

        >>> values, constants, *_ = select_target(torch.tensor([[2.0, 0.0, 0.0]]), 0, "log_odds")
        >>> values, constants                                      # 2 - log(2); the entropy of (1/2, 1/2) is log(2)
        (tensor([1.3069]), tensor([-0.6931]))
    """
    indices = checks.resolve_target(output, target, first_sample)
    scores = select_scores(output, indices)
    if score == "output":
        return SelectedScores(scores, torch.zeros_like(scores.detach()), output, first_sample)
    if output.dim() != 2 or output.shape[1] < 2:
        raise TargetError(
            f'score="log_odds" compares classes: expected an output of shape (N, classes) with several classes, got '
            f"{tuple(output.shape)}; pass a function that selects it, as forward_func=lambda x: model(x)[:, -1]."
        )
    assert indices is not None
    others = output.detach().clone()
    # An index tensor would be copied to the device, for which the host waits.
    if isinstance(indices, list):
        for sample, entry in enumerate(indices):
            others[sample, entry[0]] = -torch.inf
    else:
        others[:, indices[0]] = -torch.inf
    weights = torch.softmax(others, 1)
    carried = torch.where(weights > 0, weights * output, 0.0).sum(1)
    entropy = torch.logsumexp(others, 1) - carried.detach()
    return SelectedScores(scores - carried - entropy, -entropy, output, first_sample)
