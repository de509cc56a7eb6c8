"""What is explained: the target's output, or how far it stands out from all other classes."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch

from captum_cav import _captum, checks
from captum_cav.errors import TargetError

Score: TypeAlias = Literal["output", "log_odds"]


def select(output: torch.Tensor, target: Any, score: Score) -> tuple[torch.Tensor, torch.Tensor]:
    """The score of each sample, and the part of it that no output carries.

    Args:
        output: shape (N, ...), what the model returned.
        target: in any of Captum's forms.
        score: ``"output"``, the target's output itself, as the paper has it; ``"log_odds"``, that output less the
            log-sum-exp of all others, ``log(p / (1 - p))`` of its softmax probability.

    Returns:
        Two tensors of shape (N,). Of the log-sum-exp the others carry ``sum_k s_k z_k``, with their softmax ``s`` as
        constant weights; the entropy of ``s`` is the rest, and a constant's.

    Raises:
        TargetError: for a target that does not fit the output.
    """
    indices = checks.resolve_target(output, target)
    scores = _captum.select_scores(output, indices)
    if score == "output":
        return scores, torch.zeros_like(scores.detach())
    if output.dim() != 2 or output.shape[1] < 2:
        raise TargetError(
            f'score="log_odds" compares classes: expected an output of shape (N, classes) with several classes, got '
            f"{tuple(output.shape)}; pass a function that selects it, as forward_func=lambda x: model(x)[:, -1]."
        )
    assert indices is not None
    chosen = [entry[0] for entry in indices] if isinstance(indices, list) else indices * len(output)
    classes = torch.tensor(chosen, device=output.device) % output.shape[1]
    others = output.detach().scatter(1, classes.unsqueeze(1), -torch.inf)
    weights = torch.softmax(others, 1)
    carried = torch.where(weights > 0, weights * output, 0.0).sum(1)
    entropy = torch.logsumexp(others, 1) - carried.detach()
    return scores - carried - entropy, -entropy
