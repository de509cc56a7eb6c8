"""Everything that is checked after the propagation; no other module reads scores or contributions on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from captum_cav import checks
from captum_cav.attribution.backward import Propagated
from captum_cav.attribution.options import Normalize
from captum_cav.attribution.scores import SelectedScores
from captum_cav.errors import ModelError, ScoreWarning, SignWarning


def check_scores(
    what: str, scores: SelectedScores, normalize: Normalize, model: Callable[..., Any], rerun: Callable[[], Any]
) -> None:
    """Refuse scores that are not finite, and warn about scores that make ratios hard to read.

    Such scores are too small to divide by, or turn the signs of a map round. All numbers are read at once.

    Args:
        what: what the scores are, with a verb, such as ``"the score is"``.
        scores: the scores.
        normalize: what contributions are divided by.
        model: the model.
        rerun: runs the model once more with the same arguments. It is called if a score is not finite.

    Raises:
        ModelError: names the samples, and the module that gives the first number that is not finite.
    """
    values = scores.values.detach()
    near_zero = torch.zeros_like(values, dtype=torch.bool)
    if normalize is not None:
        near_zero = checks.near_zero(values, scores.output)
    turned = _turned(scores, normalize) & ~near_zero
    is_finite, any_near_zero, any_turned = torch.stack(
        [checks.has_finite_sum(values), near_zero.any(), turned.any()]
    ).tolist()
    if not is_finite:
        checks.check_finite_results(what, values, model, rerun, scores.first_sample)
    if any_near_zero:
        warnings.warn(
            f"the score of {checks.sample_names(near_zero, scores.first_sample)} is at or near zero, so ratios to it "
            "mean nothing; normalize=None gives contributions in units of the score instead.",
            ScoreWarning,
            stacklevel=checks.users_level(),
        )
    if scores.is_hidden:
        warnings.warn(
            f"{what} computed from a sigmoid, a softmax or the like in a way that cannot be followed. Positive numbers "
            "of the map may have lowered it; let forward_func return the numbers before that function.",
            SignWarning,
            stacklevel=checks.users_level(),
        )
    elif any_turned:
        warnings.warn(_sign_message(what, scores, normalize), SignWarning, stacklevel=checks.users_level())


def _turned(scores: SelectedScores, normalize: Normalize) -> torch.Tensor:
    """For which samples positive numbers of the map lowered the score. Booleans of shape (N,)."""
    values = scores.values.detach()
    if scores.slopes is None:
        return values < 0 if normalize == "score" else torch.zeros_like(values, dtype=torch.bool)
    if normalize == "score":
        return values * scores.slopes < 0
    if normalize == "abs" and scores.can_turn_back:
        return torch.zeros_like(values, dtype=torch.bool)
    return scores.slopes < 0


def _sign_message(what: str, scores: SelectedScores, normalize: Normalize) -> str:
    """Why signs of the map are turned round, and what to do. The text does not name samples (see SignWarning)."""
    if scores.slopes is None:
        return (
            f"{what} negative in some samples. There positive numbers of the map lowered it; "
            'normalize="abs" keeps positive for what raised it.'
        )
    if normalize == "score":
        remedy = 'normalize="abs" keeps positive for what raised it'
    elif normalize is None:
        remedy = 'score="logit" explains the logit (of a neuron, attribute_to_neuron_input=True)'
    else:
        remedy = "explain one neuron at a time, and layers behind the function apart from layers before it"
    return (
        f"{what} squashed by a function such as a sigmoid, and its logit, the number before the function, has another "
        f"sign in some samples. There positive numbers of the map lowered it; {remedy}."
    )


def samples_are_separate(found: Propagated) -> bool:
    """Whether the deltas of all samples add up to the delta of the batch, up to rounding.

    They do not if torch differentiated the backward pass of a user's rule wrongly. That happens without an error if the
    backward pass detaches what it gets.
    """
    tolerance = torch.finfo(found.seeds.dtype).eps ** 0.5
    for total, parts in found.divided:
        whole, of_samples = total.item(), parts.tolist()
        if abs(whole - sum(of_samples)) > tolerance * (abs(whole) + sum(map(abs, of_samples))):
            return False
    return True


def check_contributions(
    found: Propagated, names: Sequence[str], model: Callable[..., Any], rerun: Callable[[], Any], first_sample: int
) -> None:
    """Refuse layers that the score does not depend on, and contributions that are not finite.

    Args:
        found: what the propagation found.
        names: of the explained layers, such as ``"layer 'features.3'"``.
        model: the model.
        rerun: runs the model once more with the same arguments. It is called if a contribution is not finite.
        first_sample: the number of the first of these samples in the batch.

    Raises:
        ModelError: names the layers or the samples.
    """
    if found.independent:
        refuse_independent(", ".join(names[place] for place in found.independent), found.weighed)
    # Ratios to a score of 0 are not finite. A warning has told about that score.
    if bool(torch.isfinite(found.seeds).all()):
        for name, parts in zip(names, found.contributions, strict=True):
            for part in parts:
                checks.check_finite_results(f"the contributions at {name} are", part, model, rerun, first_sample)


def refuse_independent(name: str, weighed: str | None) -> NoReturn:
    """Refuse to explain a score that has no contributions of a layer.

    Args:
        name: of the layer, such as ``"layer 'features.3'"``.
        weighed: an operation in which a gate weighs nothing but constants, or None if there is none.

    Raises:
        ModelError: always.
    """
    if weighed is not None:
        raise ModelError(
            f"the score does not depend on {name} by anything that carries contributions. In {weighed} a gate, such as "
            "attention weights or a sigmoid, multiplies only constants: under these rules a gate is a constant, and so "
            'is that product. If this is why, pass rules="attnlrp", with which gates carry. Otherwise the score is '
            "computed before the layer, under torch.no_grad(), from detached tensors, or the layer weighs only."
        )
    raise ModelError(
        f"the score does not depend on {name} by anything that carries contributions (it is computed before the layer, "
        "under torch.no_grad(), from detached tensors or integers, or weighs only: gates and attention weights carry "
        "nothing)."
    )
