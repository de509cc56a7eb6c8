"""What is explained: the output of the target, the logit before it, or how far it exceeds all other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch

from captum_cav import checks
from captum_cav.attribution.squashing import Squashing, is_hidden, refuse_hidden, squashing_of
from captum_cav.captum_internals import select_scores
from captum_cav.errors import TargetError
from captum_cav.propagation.forward import Forward
from captum_cav.scores.running import ScoreFunction

ScoreName: TypeAlias = Literal["output", "logit", "log_odds"]
SCORES: tuple[str, ...] = get_args(ScoreName)
#: The name of a number of the model's output, or a function of the output.
Score: TypeAlias = ScoreName | ScoreFunction


class SelectedScores(NamedTuple):
    """The scores that are explained.

    Attributes:
        values: shape (N,), the score of each sample, with its graph.
        constants: shape (N,), the part of each score that does not come from any output.
        output: shape (N, ...), all outputs that the scores were selected from.
        slopes: shape (N,), the coefficient that the last squashing function passes on to the logit for each unit of the
            score. If it is negative, the function turns the signs of all contributions round. None if there is no such
            function, or if no explained layer lies before it.
        can_turn_back: whether one logit for each sample has all contributions of the explained layers.
        is_hidden: whether the scores were computed from a squashing function whose logits cannot be found.
        first_sample: the number of the first of these samples in the batch, for messages.
    """

    values: torch.Tensor
    constants: torch.Tensor
    output: torch.Tensor
    slopes: torch.Tensor | None = None
    can_turn_back: bool = False
    is_hidden: bool = False
    first_sample: int = 0


def select_target(
    output: torch.Tensor, target: Any, score: ScoreName, squashing: Squashing | None = None, first_sample: int = 0
) -> SelectedScores:
    """The score of each sample.

    The log-odds of a class are its output minus the log-sum-exp of the other outputs ``z_k``. With the softmax ``s`` of
    the other outputs as constant weights, ``sum_k s_k z_k`` of the log-sum-exp comes from the outputs. The rest is the
    entropy of ``s``, which counts as a constant.

    Args:
        output: shape (N, ...), the output of the model.
        target: in any of the forms that Captum takes.
        score: ``"output"``, the output of the target; ``"logit"``, the number before the last squashing function as in
            the paper; ``"log_odds"``, ``log(p / (1 - p))`` of the probability ``p`` of the target. If the model returns
            logits, this is the logit minus the log-sum-exp of all other logits.
        squashing: the squashing function that gave the output, or None.
        first_sample: the number of the first of these samples in the batch, for messages.

    Raises:
        TargetError, CAVTypeError: for a target that does not fit the output.

    Example::

        >>> values, constants, *_ = select_target(torch.tensor([[2.0, 0.0, 0.0]]), 0, "log_odds")
        >>> values, constants                                      # 2 - log(2); the entropy of (1/2, 1/2) is log(2)
        (tensor([1.3069]), tensor([-0.6931]))
    """
    indices = checks.resolve_target(output, target, first_sample)
    if squashing is not None and score != "output":
        classes = squashing.classes
        output = squashing.logits().reshape(output.shape)
    else:
        classes = output.shape[1] if output.dim() == 2 else None
    scores = _selected(output, indices)
    # The log-odds of a sigmoid are its logit.
    if score != "log_odds" or (squashing is not None and squashing.is_of_each_element):
        return SelectedScores(scores, torch.zeros_like(scores.detach()), output, first_sample=first_sample)
    if output.dim() != 2 or output.shape[1] < 2 or classes != output.shape[1]:
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
    elif isinstance(indices, checks.Positions):
        others = others.scatter(1, indices.values[:, None], -torch.inf)
    else:
        others[:, indices[0]] = -torch.inf
    weights = torch.softmax(others, 1)
    carried = torch.where(weights > 0, weights * output, 0.0).sum(1)
    entropy = torch.logsumexp(others, 1) - carried.detach()
    return SelectedScores(scores - carried - entropy, -entropy, output, first_sample=first_sample)


def _selected(output: torch.Tensor, indices: Any) -> torch.Tensor:
    """Numbers of an output, shape (N,), at indices as :func:`captum_cav.checks.resolve_target` returns them."""
    if not isinstance(indices, checks.Positions):
        return select_scores(output, indices)
    return output.flatten(1).gather(1, indices.values[:, None])[:, 0]


def select_passed(
    passed: Forward, target: Any, score: ScoreName, chosen: Sequence[int], part: range | None = None
) -> SelectedScores:
    """The score of each sample in the output of a forward pass.

    Args:
        passed: what the forward pass left.
        target, score: as for :func:`select_target`.
        chosen: the indices of the explained layers among what was tapped.
        part: the samples that the pass had, if they are a part of the batch.

    Raises:
        ModelError: if the logits are wanted and cannot be found.
        TargetError, CAVTypeError: as by :func:`select_target`.
    """
    run = passed.trace.run
    squashing = squashing_of(passed.output, run)
    if squashing is None and score != "output":
        refuse_hidden(passed.output, run, score)
    output = checks.check_output(passed.output, can_be_named=True)
    checks.check_one_for_each(passed.output, "the model", part)
    first_sample = part.start if part is not None else 0
    with torch.enable_grad():
        selected = select_target(output, target, score, squashing, first_sample)
    if squashing is None:
        return selected._replace(is_hidden=is_hidden(passed.output, run))
    if score != "output":
        return selected
    behind = squashing.lies_behind(chosen, run)
    if not any(behind):
        return selected
    slopes = squashing.slopes(selected.values, passed.trace).reshape(output.shape)
    indices = checks.resolve_target(output, target)
    return selected._replace(slopes=_selected(slopes, indices), can_turn_back=all(behind))
